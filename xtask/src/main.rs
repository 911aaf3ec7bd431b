//! The one door for development: `cargo xtask COMMAND`.
//!
//! Each command is a file of its own; this one only knows their names. Light on purpose: no wasmtime, no C, so that the door opens
//! on a bare machine within a minute.

#![expect(clippy::print_stderr, reason = "a program for people: this is where it speaks")]

mod docs;
mod error;
mod lab;
mod process;
mod product;
mod setup;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use error::Error;

/// The one door for development.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", about)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check everything: format, lints, unit tests, and the program on real hosts
    Test(test::Args),
    /// Build a laboratory of real hosts and play in it: up, exec, status, down
    #[command(disable_help_flag = true)]
    Lab(lab::Args),
    /// Write the pages that the documentation takes from the code
    Docs,
}

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Test(args) => test::run_all(&args).map(|()| ExitCode::SUCCESS),
        Command::Lab(args) => lab::run(&args).map_err(Error::from),
        Command::Docs => docs::write().map(|()| ExitCode::SUCCESS),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: failed to {error}");
            ExitCode::FAILURE
        }
    }
}
