//! `cargo xtask lab ...`: builds the `lab` program and hands it all arguments.
//!
//! What the arguments mean is the laboratory's own affair (`cargo xtask lab --help`). It needs root, which is asked of sudo
//! where this is not root.

use std::{
    ffi::OsString,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode, ExitStatus},
};

/// Why the laboratory did not run.
#[derive(Debug)]
pub enum Error {
    /// A program could not be started.
    Start(&'static str, io::Error),
    /// Cargo could not build the laboratory; it said why.
    Build(ExitStatus),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Start(program, error) => write!(f, "start `{program}`: {error}"),
            Self::Build(status) => write!(f, "build the laboratory: {status}"),
        }
    }
}

/// What the laboratory is told.
#[derive(clap::Args)]
pub struct Args {
    /// up, exec, status or down, and their arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// Builds the laboratory and runs it with these arguments.
pub fn run(args: &Args) -> Result<ExitCode, Error> {
    let program = build()?;
    let mut command = if is_root() {
        Command::new(program)
    } else {
        let mut sudo = Command::new("sudo");
        sudo.arg("--preserve-env=JIJI_LAB_STATE").arg("--").arg(program);
        sudo
    };
    let status = command.args(&args.args).status().map_err(|error| Error::Start("lab", error))?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

/// Builds the `lab` program; gives its path.
pub fn build() -> Result<PathBuf, Error> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--package", "jiji-lab", "--bin", "lab"])
        .current_dir(&root)
        .status()
        .map_err(|error| Error::Start("cargo", error))?;
    if !status.success() {
        return Err(Error::Build(status));
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    Ok(target.join("debug/lab"))
}

fn is_root() -> bool {
    Path::new("/proc/self").metadata().is_ok_and(|data| data.uid() == 0)
}
