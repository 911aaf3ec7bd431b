//! `cargo xtask matrix`: the same projects under many conditions of the builder's world, and whether each keeps its digest.
//!
//! What is built and varied is the end-to-end package's program `jiji-matrix`; this only builds what it needs and hands it on.

use std::ffi::OsString;

use crate::error::Error;
use crate::process::{as_root, cargo, run};
use crate::product::{self, For};
use crate::setup::{self, Level};

/// What to build, and how.
#[derive(clap::Args)]
pub struct Args {
    /// Arguments of the matrix; `--help` shows them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<OsString>,
}

/// Builds what it takes and builds with it.
///
/// # Errors
/// When something does not compile, or a digest is not the same.
pub fn matrix(args: &Args) -> Result<(), Error> {
    let setup = setup::ensure(Level::Matrix, std::env::var_os("CI").is_some())?;
    let product = product::build(&setup, For::Tests)?;
    let mut build = cargo();
    build.args(["build", "--package", "jiji-e2e", "--bin", "jiji-matrix"]);
    let program = product::executable(&mut build, "jiji-matrix")?;
    let mut matrix = as_root(program);
    matrix.args(&args.rest).current_dir(product::tests_dir()).env("PATH", setup.path());
    matrix.env("JIJI_BIN", &product.jiji).env("JIJI_LAB_BIN", &product.lab);
    run(&mut matrix)
}
