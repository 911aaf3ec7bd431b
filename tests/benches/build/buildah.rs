//! buildah with a storage of its own, remembering every instruction (`--layers`).

use std::path::Path;
use std::process::Command;

use jiji_e2e::{Outcome, Site};
use jiji_lab::command::run;

/// What its image is called in its storage.
const NAME: &str = "localhost/bench";

/// buildah, with storage in a directory.
pub struct Buildah<'a> {
    pub site: &'a Site,
    pub dir: tempfile::TempDir,
}

impl<'a> Buildah<'a> {
    /// One that remembers nothing.
    ///
    /// # Errors
    /// When its directory cannot be made.
    pub fn new(site: &'a Site) -> Outcome<Self> {
        Ok(Self { site, dir: tempfile::Builder::new().prefix("bench-").tempdir_in("/var/tmp")? })
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.site.lab.operator_command("/usr/bin/buildah");
        command.arg("--root").arg(self.dir.path().join("root")).arg("--runroot").arg(self.dir.path().join("run"));
        command.args(["--storage-driver", "overlay"]).args(words);
        command
    }

    /// Builds a context.
    ///
    /// # Errors
    /// When it fails.
    pub fn build(&self, context: &Path) -> Outcome {
        let mut build = self.command(&["bud", "--quiet", "--layers", "--isolation", "chroot", "--tag", NAME]);
        run(build.arg(context))?;
        Ok(())
    }

    /// Pushes what was built last.
    ///
    /// # Errors
    /// When it fails.
    pub fn push(&self, repository: &str) -> Outcome {
        let to = format!("docker://{repository}:latest");
        run(&mut self.command(&["push", "--quiet", "--tls-verify=false", NAME, &to]))?;
        Ok(())
    }

    /// Takes its storage away.
    ///
    /// # Errors
    /// When something is left.
    pub fn end(self) -> Outcome {
        run(&mut self.command(&["rm", "--all"]))?;
        run(&mut self.command(&["rmi", "--all", "--force"]))?;
        Ok(self.dir.close()?)
    }
}
