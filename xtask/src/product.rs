//! Builds what is tested and shown: `jiji-host`, `jiji` with it inside, and the laboratory.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::error::Error;
use crate::process::{cargo, line, root, run, target};
use crate::setup::{Setup, musl};

/// What was built.
#[derive(Debug)]
pub struct Product {
    /// The `jiji` program.
    pub jiji: PathBuf,
    /// The laboratory's program.
    pub lab: PathBuf,
}

/// Whether the program has the hooks of the tests of crash recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum For {
    /// With the hooks.
    Tests,
    /// As people get it.
    People,
    /// As people get it, and as fast as it can be.
    Measuring,
}

impl For {
    /// The directory below `target/` that keeps what was built.
    fn dir(self) -> PathBuf {
        target().join(match self {
            Self::Tests => "tests",
            Self::People => "people",
            Self::Measuring => "measuring",
        })
    }
}

/// Builds everything.
///
/// # Errors
/// When something does not compile; the compiler said why.
pub fn build(setup: &Setup, purpose: For) -> Result<Product, Error> {
    let hosts = host(setup, purpose)?;
    let mut command = cargo();
    command.args(["build", "--package", "jiji", "--bin", "jiji"]).env("JIJI_HOST_BINARIES", hosts);
    if purpose == For::Tests {
        command.args(["--features", "abort-points"]);
    }
    if purpose == For::Measuring {
        command.arg("--release");
    }
    let jiji = executable(&mut command, "jiji")?;
    // The next build may be for the other purpose and goes to the same file.
    let kept = purpose.dir();
    std::fs::create_dir_all(&kept).map_err(Error::file("create", &kept))?;
    let copy = kept.join("jiji");
    // A program that is running cannot be written to, but its name can be given to another.
    let fresh = kept.join("jiji.new");
    std::fs::copy(&jiji, &fresh).map_err(Error::file("copy", &jiji))?;
    std::fs::rename(&fresh, &copy).map_err(Error::file("rename", &fresh))?;
    let lab = executable(cargo().args(["build", "--package", "jiji-lab", "--bin", "lab"]), "lab")?;
    Ok(Product { jiji: copy, lab })
}

/// Builds `jiji-host` for this machine's architecture, static; gives the directory that `build.rs` embeds from.
fn host(setup: &Setup, purpose: For) -> Result<PathBuf, Error> {
    let mut command = cargo();
    command.args(["build", "--package", "jiji-host", "--bin", "jiji-host", "--profile", "host"]);
    if setup.musl {
        // The linker that comes with Rust: no C compiler is needed for a program without C.
        let variable = format!("CARGO_TARGET_{}_LINKER", musl().to_uppercase().replace('-', "_"));
        command.args(["--target", musl()]).env(variable, "rust-lld");
    } else {
        // Static against the machine's own C library.
        let gnu = musl().replace("musl", "gnu");
        let variable = format!("CARGO_TARGET_{}_RUSTFLAGS", gnu.to_uppercase().replace('-', "_"));
        command.args(["--target", &gnu]).env(variable, "-Ctarget-feature=+crt-static");
    }
    if purpose == For::Tests {
        command.args(["--features", "abort-points"]);
    }
    let built = executable(&mut command, "jiji-host")?;
    let hosts = purpose.dir().join("host");
    std::fs::create_dir_all(&hosts).map_err(Error::file("create", &hosts))?;
    let named = hosts.join(format!("jiji-host-{}", std::env::consts::ARCH));
    // The same bytes keep their time, so that cargo does not build jiji again.
    if !same(&built, &named) {
        std::fs::copy(&built, &named).map_err(Error::file("copy", &built))?;
    }
    Ok(hosts)
}

fn same(one: &Path, other: &Path) -> bool {
    std::fs::read(one).ok().zip(std::fs::read(other).ok()).is_some_and(|(one, other)| one == other)
}

/// Runs a build and gives the path of the program of that name.
pub fn executable(command: &mut Command, name: &str) -> Result<PathBuf, Error> {
    let found = executables(command)?.into_iter().find(|(target, _)| target == name).map(|(_, path)| path);
    found.ok_or_else(|| Error::Answer { program: line(command), reason: format!("it built no `{name}`") })
}

/// Runs a build and gives the programs that it made: their targets' names and paths.
///
/// # Errors
/// When it does not compile.
pub fn executables(command: &mut Command) -> Result<Vec<(String, PathBuf)>, Error> {
    command.arg("--message-format=json-render-diagnostics");
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|cause| Error::Start { program: "cargo".to_owned(), cause })?;
    if !output.status.success() {
        return Err(Error::Ended { line: line(command), status: output.status });
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let messages = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(messages
        .filter_map(|message| {
            let path = message.get("executable")?.as_str()?;
            let name = message.get("target")?.get("name")?.as_str()?;
            Some((name.to_owned(), PathBuf::from(path)))
        })
        .collect())
}

/// Where the end-to-end tests' package lies.
pub fn tests_dir() -> PathBuf {
    root().join("tests")
}

/// Checks that nothing but warnings-free code is there.
pub fn lint() -> Result<(), Error> {
    run(cargo().args(["clippy", "--workspace", "--all-targets", "--quiet", "--", "--deny", "warnings"]))
}
