//! The one door for development: `cargo xtask COMMAND`.
//!
//! Each command is a file of its own; this one only knows their names.

#![expect(clippy::print_stderr, reason = "a program for people: this is where it speaks")]

mod lab;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The one door for development.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", about)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build a laboratory of real hosts and play in it: up, exec, status, down
    #[command(disable_help_flag = true)]
    Lab(lab::Args),
}

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Lab(args) => lab::run(&args),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: failed to {error}");
            ExitCode::FAILURE
        }
    }
}
