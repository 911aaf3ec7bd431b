//! BuildKit: its daemon with a worker of its own, built from its Go module, with state in a directory.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use jiji_e2e::{Outcome, Site};
use jiji_lab::command::run;
use jiji_lab::images;

/// Its programs in the module that `tests/tools/buildkit/go.mod` pins.
const PACKAGES: [&str; 2] = ["github.com/moby/buildkit/cmd/buildkitd", "github.com/moby/buildkit/cmd/buildctl"];

/// How long its daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon that remembers nothing yet.
pub struct BuildKit<'a> {
    site: &'a Site,
    programs: PathBuf,
    dir: tempfile::TempDir,
    daemon: Child,
}

impl<'a> BuildKit<'a> {
    /// Starts one.
    ///
    /// # Errors
    /// When it cannot be built, which takes Go and its modules, or does not answer.
    pub fn new(site: &'a Site) -> Outcome<Self> {
        let programs = images::programs("buildkit", &PACKAGES)?;
        let dir = tempfile::Builder::new().prefix("bench-").tempdir_in("/var/tmp")?;
        let registry = &site.lab.registry()?.address;
        let settings = format!(
            "root = {root:?}\n[grpc]\naddress = [\"unix://{socket}\"]\n[worker.containerd]\nenabled = false\n\
             [worker.oci]\nenabled = true\nsnapshotter = \"overlayfs\"\nnetworkMode = \"host\"\n[registry.\"{registry}\"]\nhttp = true\n",
            root = dir.path().join("root"),
            socket = dir.path().join("socket").display(),
        );
        std::fs::write(dir.path().join("settings.toml"), settings)?;
        let log = std::fs::File::create(dir.path().join("log"))?;
        let mut daemon = site.lab.operator_command(programs.join("buildkitd"));
        daemon.arg("--config").arg(dir.path().join("settings.toml"));
        let daemon = daemon.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn()?;
        let mut started = Self { site, programs, dir, daemon };
        match started.answers() {
            Ok(()) => Ok(started),
            Err(error) => {
                let log = std::fs::read_to_string(started.dir.path().join("log")).unwrap_or_default();
                started.end()?;
                Err(format!("{error}: {}", log.lines().last().unwrap_or_default()).into())
            }
        }
    }

    fn answers(&mut self) -> Outcome {
        let begun = Instant::now();
        loop {
            match run(self.command(&["debug", "workers"]).stderr(Stdio::null())) {
                Ok(_) => return Ok(()),
                Err(_) if begun.elapsed() < PATIENCE && self.daemon.try_wait()?.is_none() => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.site.lab.operator_command(self.programs.join("buildctl"));
        command.arg("--addr").arg(format!("unix://{}", self.dir.path().join("socket").display())).args(words);
        command
    }

    /// Builds a context into an image of this name, and pushes it if that is wanted.
    ///
    /// # Errors
    /// When it fails.
    pub fn build(&self, context: &Path, name: &str, push: bool) -> Outcome {
        let mut build = self.command(&["build", "--frontend", "dockerfile.v0", "--progress", "plain"]);
        for place in ["context", "dockerfile"] {
            build.arg("--local").arg(format!("{place}={}", context.display()));
        }
        run(build.arg("--output").arg(format!("type=image,name={name}:latest,push={push}")))?;
        Ok(())
    }

    /// Ends it and takes its state away.
    ///
    /// # Errors
    /// When something is left.
    pub fn end(mut self) -> Outcome {
        if self.daemon.try_wait()?.is_none() {
            // It takes its mounts away before it ends.
            run(Command::new("kill").arg("-TERM").arg(self.daemon.id().to_string()))?;
        }
        self.daemon.wait()?;
        Ok(self.dir.close()?)
    }
}
