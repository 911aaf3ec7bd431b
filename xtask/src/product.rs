//! Builds what is tested and shown: `jiji-host`, `jiji` with it inside, and the laboratory.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::error::Error;
use crate::process::{cargo, line, root, run, target};
use crate::setup::{self, Setup, musl};

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
    host(setup, purpose)?;
    let jiji = jiji(purpose)?;
    let lab = executable(cargo().args(["build", "--package", "jiji-lab", "--bin", "lab"]), "lab")?;
    Ok(Product { jiji, lab })
}

/// Builds a `jiji` to keep, with `jiji-host` for every architecture that this toolchain has or can get the static target of.
///
/// # Errors
/// When something does not compile, or not even this machine's architecture can be had.
pub fn distribution(setup: &Setup) -> Result<PathBuf, Error> {
    host(setup, For::Measuring)?;
    for target in TARGETS.into_iter().filter(|target| *target != musl()) {
        if setup::add_target(target) {
            host_for(target, For::Measuring)?;
        }
    }
    jiji(For::Measuring)
}

const TARGETS: [&str; 2] = ["x86_64-unknown-linux-musl", "aarch64-unknown-linux-musl"];

/// Builds `jiji` with whatever `jiji-host` was built for the purpose.
fn jiji(purpose: For) -> Result<PathBuf, Error> {
    let hosts = purpose.dir().join("host");
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
    Ok(copy)
}

/// Builds `jiji-host` for this machine's architecture, static, to where `build.rs` embeds it from.
fn host(setup: &Setup, purpose: For) -> Result<(), Error> {
    if setup.musl {
        return host_for(musl(), purpose);
    }
    // Static against the machine's own C library.
    let gnu = musl().replace("musl", "gnu");
    let variable = format!("CARGO_TARGET_{}_RUSTFLAGS", gnu.to_uppercase().replace('-', "_"));
    let mut command = host_command(&gnu, purpose);
    command.env(variable, "-Ctarget-feature=+crt-static");
    keep_host(&mut command, std::env::consts::ARCH, purpose)
}

fn host_for(target: &str, purpose: For) -> Result<(), Error> {
    // The linker that comes with Rust: no C compiler is needed for a program without C.
    let variable = format!("CARGO_TARGET_{}_LINKER", target.to_uppercase().replace('-', "_"));
    let mut command = host_command(target, purpose);
    command.env(variable, "rust-lld");
    let architecture = target.split('-').next().unwrap_or(target);
    keep_host(&mut command, architecture, purpose)
}

fn host_command(target: &str, purpose: For) -> Command {
    let mut command = cargo();
    command.args(["build", "--package", "jiji-host", "--bin", "jiji-host", "--profile", "host", "--target", target]);
    if purpose == For::Tests {
        command.args(["--features", "abort-points"]);
    }
    command
}

fn keep_host(command: &mut Command, architecture: &str, purpose: For) -> Result<(), Error> {
    let built = executable(command, "jiji-host")?;
    let hosts = purpose.dir().join("host");
    std::fs::create_dir_all(&hosts).map_err(Error::file("create", &hosts))?;
    let named = hosts.join(format!("jiji-host-{architecture}"));
    // The same bytes keep their time, so that cargo does not build jiji again.
    if !same(&built, &named) {
        std::fs::copy(&built, &named).map_err(Error::file("copy", &built))?;
    }
    Ok(())
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

/// Lints everything; a warning is an error.
///
/// # Errors
/// When there is a warning.
pub fn lint() -> Result<(), Error> {
    run(cargo().args(["clippy", "--workspace", "--all-targets", "--quiet", "--", "--deny", "warnings"]))
}
