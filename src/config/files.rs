//! Finds the two files of a project's configuration and reads them, and nothing else.
//!
//! A path that leads out of the project by a symbolic link, or to something that is no regular file, is refused: errors show source
//! lines, and a stranger's project must not be able to show this machine's files.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::error::{ConfigErrors, Problem};
use super::{Source, tree};

/// The base file, relative to the project's root.
pub const FILE: &str = ".jiji/deploy.yml";

/// The overlay of an environment, relative to the project's root.
pub fn overlay_file(environment: &str) -> String {
    format!(".jiji/deploy.{environment}.yml")
}

/// The nearest directory from `start` upward that holds [`FILE`].
pub fn find_root(start: &Path) -> Option<PathBuf> {
    start.ancestors().find(|directory| directory.join(FILE).is_file()).map(Path::to_path_buf)
}

/// Reads the base file below `root` and, for an environment, its overlay.
///
/// # Errors
/// [`ConfigErrors`] of the one file that could not be read, or for an environment's name that could leave the directory.
pub fn find(root: &Path, environment: Option<&str>) -> Result<Vec<Source>, ConfigErrors> {
    let mut sources = vec![read(root, FILE)?];
    if let Some(environment) = environment {
        if !is_environment(environment) {
            let problem = Problem::EnvironmentName { name: environment.to_owned() };
            return Err(ConfigErrors::of_file("-e", problem));
        }
        sources.push(read(root, &overlay_file(environment))?);
    }
    Ok(sources)
}

/// Whether a name may stand in a file name and in a project's scope.
pub fn is_environment(name: &str) -> bool {
    let bytes = name.as_bytes();
    (1..=20).contains(&bytes.len())
        && bytes[0].is_ascii_alphanumeric()
        && bytes[bytes.len() - 1].is_ascii_alphanumeric()
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

fn read(root: &Path, name: &str) -> Result<Source, ConfigErrors> {
    let refuse = |problem| ConfigErrors::of_file(name, problem);
    let unreadable = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound if name == FILE => refuse(Problem::FileMissing { environments: Vec::new() }),
        std::io::ErrorKind::NotFound => refuse(Problem::FileMissing { environments: environments(root) }),
        _ => refuse(Problem::FileUnreadable { cause: error.to_string() }),
    };
    let root = root.canonicalize().map_err(unreadable)?;
    let path = root.join(name).canonicalize().map_err(unreadable)?;
    if !path.starts_with(&root) {
        return Err(refuse(Problem::FileOutside));
    }
    if !path.metadata().map_err(unreadable)?.is_file() {
        return Err(refuse(Problem::FileIrregular));
    }
    let mut bytes = Vec::new();
    let limit = tree::LARGEST_TEXT;
    let file = std::fs::File::open(&path).map_err(unreadable)?;
    file.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() > limit {
        return Err(refuse(Problem::TooLarge { limit }));
    }
    let text = String::from_utf8(bytes).map_err(|_| refuse(Problem::NotUtf8))?;
    Ok(Source { name: name.to_owned(), text })
}

/// The environments that have an overlay, for the hint.
fn environments(root: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(root.join(".jiji")) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|name| Some(name.strip_prefix("deploy.")?.strip_suffix(".yml")?.to_owned()))
        .filter(|name| is_environment(name))
        .collect();
    names.sort();
    names.truncate(20);
    names
}
