//! `cargo xtask sweep`: deaths and faults at every step of a transaction, or many ships in a row, on real hosts under load.
//!
//! What is swept and how is the end-to-end package's program `jiji-sweep`; this only builds what it needs and hands it on.

use std::ffi::OsString;

use crate::error::Error;
use crate::process::{as_root, cargo, run};
use crate::product::{self, For};
use crate::setup::{self, Level};

/// What to sweep.
#[derive(clap::Args)]
pub struct Args {
    /// Arguments of the sweep; `--help` shows them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<OsString>,
}

/// Builds what is swept and sweeps it.
///
/// # Errors
/// When something does not compile, or something is wrong.
pub fn sweep(args: &Args) -> Result<(), Error> {
    let setup = setup::ensure(Level::Lab, std::env::var_os("CI").is_some())?;
    let product = product::build(&setup, For::Tests)?;
    let mut build = cargo();
    build.args(["build", "--package", "jiji-e2e", "--bin", "jiji-sweep"]);
    let program = product::executable(&mut build, "jiji-sweep")?;
    let mut sweep = as_root(program);
    sweep.args(&args.rest).current_dir(product::tests_dir()).env("PATH", setup.path());
    sweep.env("JIJI_BIN", &product.jiji).env("JIJI_LAB_BIN", &product.lab);
    run(&mut sweep)
}
