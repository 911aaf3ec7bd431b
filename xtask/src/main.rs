//! The one door for development: `cargo xtask COMMAND`.
//!
//! Each command is a file of its own; this one only knows their names. Light on purpose: no wasmtime, no C, so that the door opens
//! on a bare machine within a minute.

#![expect(clippy::print_stderr, clippy::print_stdout, reason = "a program for people: this is where it speaks")]

mod bench;
mod demo;
mod docs;
mod error;
mod lab;
mod matrix;
mod plugins;
mod process;
mod product;
mod setup;
mod sweep;
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
    /// Show it: two real hosts, one ship, and what they answer
    Demo(demo::Args),
    /// Check everything: format, lints, unit tests, and the program on real hosts
    Test(test::Args),
    /// Build a laboratory of real hosts and play in it: up, exec, status, down
    #[command(disable_help_flag = true)]
    Lab(lab::Args),
    /// Build a jiji to keep, with jiji-host for x86-64 and arm64 inside
    Build {
        /// Install what is missing without asking
        #[arg(long)]
        yes: bool,
    },
    /// Install what the tests and the demonstration need, and do nothing else
    Setup {
        /// Install without asking
        #[arg(long)]
        yes: bool,
    },
    /// Measure against a peer or a limit
    Bench(bench::Args),
    /// Strike a transaction at every step, or ship many times in a row, on real hosts under load
    #[command(disable_help_flag = true)]
    Sweep(sweep::Args),
    /// Build the same projects under many conditions of the builder's world: each has to keep its digest
    #[command(disable_help_flag = true)]
    Matrix(matrix::Args),
    /// Build the guests of plugins/ anew
    Plugins(plugins::Args),
    /// Write the pages that the documentation takes from the code
    Docs,
    /// What `demo` runs in a process of its own
    #[command(hide = true)]
    DemoShow(demo::ShowArgs),
    /// What `demo` asks the proxies with
    #[command(hide = true)]
    DemoAsk(demo::AskArgs),
}

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Demo(args) => demo::demo(&args).map(|()| ExitCode::SUCCESS),
        Command::DemoShow(args) => demo::show(&args).map(|()| ExitCode::SUCCESS),
        Command::DemoAsk(args) => demo::ask(&args).map(|()| ExitCode::SUCCESS),
        Command::Build { yes } => build(yes).map(|()| ExitCode::SUCCESS),
        Command::Setup { yes } => setup::ensure(setup::Level::Lab, yes).map(|_| ExitCode::SUCCESS),
        Command::Bench(args) => bench::bench(&args).map(|()| ExitCode::SUCCESS),
        Command::Sweep(args) => sweep::sweep(&args).map(|()| ExitCode::SUCCESS),
        Command::Matrix(args) => matrix::matrix(&args).map(|()| ExitCode::SUCCESS),
        Command::Test(args) => test::run_all(&args).map(|()| ExitCode::SUCCESS),
        Command::Lab(args) => lab::run(&args).map_err(Error::from),
        Command::Plugins(args) => plugins::build(&args).map(|()| ExitCode::SUCCESS),
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

fn build(yes: bool) -> Result<(), Error> {
    let setup = setup::ensure(setup::Level::Build, yes)?;
    let jiji = product::distribution(&setup)?;
    println!("{}", jiji.display());
    Ok(())
}
