//! A project of a test's own: `examples/hello` under another name, in a directory with a home and a cache beside it.

use std::path::{Path, PathBuf};
use std::process::Command;

use jiji_lab::command::{command, run};

use crate::{Outcome, Run, Running, Site, secrecy};

/// The program that is tested.
///
/// # Errors
/// When nobody said where it is.
pub fn jiji_bin() -> Outcome<PathBuf> {
    let path = std::env::var_os("JIJI_BIN").ok_or("JIJI_BIN names no jiji to test; `cargo xtask test` does")?;
    Ok(std::fs::canonicalize(path)?)
}

/// Copies a directory with all in it.
///
/// # Errors
/// When it cannot be read or written.
pub fn copy_tree(from: &Path, to: &Path) -> Outcome {
    std::fs::create_dir_all(to)?;
    run(command("cp", ["-R", "--"]).arg(from.join(".")).arg(to))?;
    Ok(())
}

/// A project, and an operator's directories of its own.
pub struct Project<'a> {
    site: &'a Site,
    /// What goes with the test.
    dir: tempfile::TempDir,
    name: String,
    /// The value of HELLO_KEY.
    pub secret: String,
}

impl<'a> Project<'a> {
    /// A copy of `examples/hello` as project `NAME`, routed at `NAME.test`, in version `v1`. Names let the tests of a program share
    /// hosts and their proxies.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn new(site: &'a Site, name: &str) -> Outcome<Self> {
        let dir = tempfile::Builder::new().prefix("e2e-").tempdir()?;
        let project = Self { site, dir, name: name.to_owned(), secret: secrecy::suite().value().to_owned() };
        copy_tree(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/hello"), &project.root())?;
        for part in ["home", "cache", "run"] {
            std::fs::create_dir(project.dir.path().join(part))?;
        }
        project.edit("project: hello\n", &format!("project: {name}\n"))?;
        project.edit("host: hello.test\n", &format!("host: {name}.test\n"))?;
        project.edit("retain: 2\n", "retain: 2\n    stop_timeout: 5s\n")?;
        Ok(project)
    }

    /// The project on another machine: its configuration and its lock, without sources, and an operator with nothing in home and cache.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn elsewhere(&self) -> Outcome<Self> {
        let dir = tempfile::Builder::new().prefix("e2e-").tempdir()?;
        let other = Self { site: self.site, dir, name: self.name.clone(), secret: self.secret.clone() };
        copy_tree(&self.root().join(".jiji"), &other.root().join(".jiji"))?;
        std::fs::copy(self.root().join("jiji.lock"), other.root().join("jiji.lock"))?;
        for part in ["home", "cache", "run"] {
            std::fs::create_dir(other.dir.path().join(part))?;
        }
        Ok(other)
    }

    /// Puts its service on the first `count` hosts of the site, as servers `one`, `two`, `three` and so on.
    ///
    /// # Errors
    /// When deploy.yml cannot be written, or has not the servers that it began with.
    pub fn spread(&self, count: usize) -> Outcome {
        let servers: Vec<&str> = crate::site::SERVERS.into_iter().take(count).collect();
        let blocks: String =
            (1..).zip(&servers).map(|(place, name)| format!("  {name}:\n    host: ${{LAB_HOST_{place}}}\n")).collect();
        self.edit("  one:\n    host: ${LAB_HOST_1}\n  two:\n    host: ${LAB_HOST_2}\n", &blocks)?;
        self.edit("hosts: [one, two]", &format!("hosts: [{}]", servers.join(", ")))
    }

    /// The project's directory.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("project")
    }

    /// The operator's HOME.
    pub fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    /// Where the operator keeps store and caches: `XDG_CACHE_HOME`.
    pub fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    /// The directory around all of these.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The Host header that is routed to it.
    pub fn authority(&self) -> String {
        format!("{}.test", self.name)
    }

    /// Makes it another version.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set_version(&self, version: &str) -> Outcome {
        Ok(std::fs::write(self.root().join("version.txt"), format!("{version}\n"))?)
    }

    /// Puts a text in place of another in deploy.yml, which has it exactly once.
    ///
    /// # Errors
    /// When it has not.
    pub fn edit(&self, from: &str, to: &str) -> Outcome {
        let path = self.root().join(".jiji/deploy.yml");
        let text = std::fs::read_to_string(&path)?;
        match text.matches(from).count() {
            1 => Ok(std::fs::write(&path, text.replacen(from, to, 1))?),
            count => Err(format!("deploy.yml has `{from}` {count} times").into()),
        }
    }

    /// `jiji` with these arguments, where the operator is, in the project's directory.
    ///
    /// # Errors
    /// When nobody said where it is.
    pub fn command(&self, args: &[&str]) -> Outcome<Command> {
        let mut command = self.site.lab.operator_command(jiji_bin()?);
        command.args(args).current_dir(self.root());
        command.env("HOME", self.home()).env("XDG_CACHE_HOME", self.cache());
        command.env("XDG_STATE_HOME", self.home().join("state")).env("XDG_RUNTIME_DIR", self.dir.path().join("run"));
        command.env("HELLO_KEY", &self.secret).env("CI", "true");
        command.envs(self.site.variables.iter().map(|(name, value)| (name, value)));
        Ok(command)
    }

    /// Runs `jiji --json` with these arguments.
    ///
    /// # Errors
    /// When it does not end.
    pub fn run(&self, args: &[&str]) -> Outcome<Run> {
        Run::of(self.command(args)?.arg("--json"))
    }

    /// Runs `jiji` as a person does, without `--json`.
    ///
    /// # Errors
    /// When it does not end.
    pub fn show(&self, args: &[&str]) -> Outcome<Run> {
        Run::of(&mut self.command(args)?)
    }

    /// Starts `jiji --json` with these arguments.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, args: &[&str]) -> Outcome<Running> {
        Running::start(self.command(args)?.arg("--json"))
    }

    /// Ships it, which must succeed.
    ///
    /// # Errors
    /// When it does not.
    pub fn ship(&self) -> Outcome<Run> {
        self.run(&["ship"])?.expect(0)
    }
}

impl Drop for Project<'_> {
    fn drop(&mut self) {
        // A test that fails says so itself.
        if std::thread::panicking() {
            return;
        }
        let places = secrecy::suite().places_below(self.dir.path()).expect("the operator's files can be searched");
        assert!(places.is_empty(), "files of the operator that hold the secret: {places:#?}");
    }
}
