//! `jiji build --load`: an image into the engine of this machine, through the engine's own `load`.
//!
//! The image goes to the engine's standard input as it is read from the store. Afterwards the engine is asked what the name means now.

use std::io::Read as _;
use std::path::PathBuf;
use std::process::{ChildStderr, Command, Stdio};

use jiji_model::digest::Digest;
use jiji_model::image::{Image, LAYER_ZSTD};
use jiji_model::project::Engine;
use jiji_store::Store;
use jiji_store::archive::ArchiveError;

use super::exit::Exit;
use super::failure::Failure;

/// How much of what an engine says is kept, in bytes.
const SAID: u64 = 64 << 10;

/// Why an image could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// No engine was found.
    #[error("find an engine to load the image into: there is no {wanted} in `PATH`")]
    NoEngine {
        /// What was looked for.
        wanted: String,
    },
    /// The engine cannot be started.
    #[error("start `{engine}`")]
    Start {
        /// Its program.
        engine: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The store lacks a part of the image, or cannot be read.
    #[error(transparent)]
    Archive(ArchiveError),
    /// The engine did not take it.
    #[error("load the image with `{engine}`: it ended with {status}")]
    Refused {
        /// Its program.
        engine: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it said.
        said: String,
        /// Whether the image has layers that an old Docker cannot read.
        zstd: bool,
    },
    /// The engine has another image under the name.
    #[error("find the image in `{engine}`: `{reference}` is `{found}` there")]
    Other {
        /// Its program.
        engine: String,
        /// The name.
        reference: String,
        /// What it means there.
        found: String,
    },
}

impl LoadError {
    /// The error as it is shown.
    pub fn failure(&self) -> Failure {
        let failure = Failure::new(Exit::Internal, self);
        match self {
            Self::NoEngine { .. } => {
                failure.hint("install Podman or Docker, or write the image to a directory with `--output oci:DIR`")
            }
            Self::Refused { said, zstd: true, .. } => failure.detail(said).hint(
                "the image has layers in zstd, which Docker reads from 23 on: leave out `compression: zstd`, or load it into Podman",
            ),
            Self::Refused { said, .. } => failure.detail(said).hint("is it running, and may this user use it?"),
            Self::Start { .. } | Self::Archive(_) | Self::Other { .. } => failure,
        }
    }
}

/// An engine of this machine.
#[derive(Debug)]
pub struct Local {
    engine: Engine,
    program: PathBuf,
}

impl Local {
    /// The engine that was asked for, or the first that is there: Podman, then Docker. `path` is where programs are.
    ///
    /// # Errors
    /// [`LoadError::NoEngine`].
    pub fn find(wanted: Option<Engine>, path: &str) -> Result<Self, LoadError> {
        let candidates = match wanted {
            Some(engine) => vec![engine],
            None => vec![Engine::Podman, Engine::Docker],
        };
        let found = candidates.into_iter().find_map(|engine| {
            let program = std::env::split_paths(path).map(|dir| dir.join(engine.program())).find(|file| runs(file))?;
            Some(Self { engine, program })
        });
        let program = |engine: Engine| format!("`{engine}`");
        found.ok_or_else(|| LoadError::NoEngine {
            wanted: wanted.map_or("`podman` and no `docker`".to_owned(), program),
        })
    }

    /// The engine.
    pub fn engine(&self) -> Engine {
        self.engine
    }

    /// Loads an image under a name, repository and tag.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn load(&self, image: &Image, reference: &str, store: &Store) -> Result<(), LoadError> {
        let engine = self.program.display().to_string();
        let start = |source| LoadError::Start { engine: engine.clone(), source };
        let mut child = Command::new(&self.program)
            .arg("load")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(start)?;
        let said = child.stderr.take().map(|stderr| std::thread::spawn(move || read(stderr)));
        let written = match child.stdin.take() {
            // Dropped afterwards, which is the end of the stream.
            Some(mut stdin) => store.write_archive(image, reference, &mut stdin),
            None => Ok(()),
        };
        let status = child.wait().map_err(start)?;
        let said = said.and_then(|thread| thread.join().ok()).unwrap_or_default();
        // An engine that gives up closes the stream: what it says of itself is the cause.
        if !status.success() {
            let zstd = self.engine == Engine::Docker && image.layers.iter().any(|layer| layer.media_type == LAYER_ZSTD);
            return Err(LoadError::Refused { engine, status, said, zstd });
        }
        written.map_err(LoadError::Archive)?;
        self.check(image, reference)
    }

    /// Whether the name means the image now.
    fn check(&self, image: &Image, reference: &str) -> Result<(), LoadError> {
        let engine = self.program.display().to_string();
        let output = Command::new(&self.program)
            .args(["image", "inspect", "--format", "{{.Id}}", reference])
            .stdin(Stdio::null())
            .output()
            .map_err(|source| LoadError::Start { engine: engine.clone(), source })?;
        let found = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        // Podman writes digests without their algorithm. An engine knows an image by its configuration or by its manifest.
        let digest = format!("sha256:{}", found.trim_start_matches("sha256:")).parse::<Digest>().ok();
        match digest.filter(|digest| [image.config.digest, image.manifest.digest].contains(digest)) {
            Some(_) => Ok(()),
            None => {
                let found = if found.is_empty() { "nothing".to_owned() } else { found };
                Err(LoadError::Other { engine, reference: reference.to_owned(), found })
            }
        }
    }
}

fn runs(file: &std::path::Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(file).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

/// The beginning of what an engine says; the rest is read, so that it can go on.
fn read(mut stderr: ChildStderr) -> String {
    let mut said = Vec::new();
    let _ = stderr.by_ref().take(SAID).read_to_end(&mut said);
    let _ = std::io::copy(&mut stderr, &mut std::io::sink());
    String::from_utf8_lossy(&said).into_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn an_engine_is_found_by_its_program_and_where_there_is_none_a_way_out_is_told() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().to_str().expect("text");
        let error = Local::find(None, path).expect_err("there is none");
        let shown = error.failure();
        assert_eq!(
            shown.line(),
            "find an engine to load the image into: there is no `podman` and no `docker` in `PATH`"
        );
        assert_eq!(shown.hints.len(), 1);
        let docker = dir.path().join("docker");
        std::fs::write(&docker, "").expect("written");
        assert!(Local::find(None, path).is_err(), "it cannot be run");
        std::fs::set_permissions(&docker, std::fs::Permissions::from_mode(0o755)).expect("made a program");
        assert_eq!(Local::find(None, path).expect("found").engine(), Engine::Docker);
        assert!(matches!(Local::find(Some(Engine::Podman), path), Err(LoadError::NoEngine { .. })));
    }
}
