//! The command line: one file per command. Parse, call the library, render.
//!
//! This is the only room that knows the terminal, the environment, the user's directories and the wall clock; it hands them to the
//! others. Whatever goes wrong becomes a [`failure::Failure`] here, with an exit code from [`exit`].

mod abort;
mod apply;
pub mod args;
mod build;
mod compare;
mod drift;
pub mod environment;
pub mod exit;
pub mod failure;
mod host;
pub mod hosts;
mod load;
mod network;
mod pins;
mod plan;
mod plugin;
pub mod ready;
mod recipe;
#[cfg(test)]
mod reference;
mod releases;
mod server;
mod ship;
mod ship_failure;
mod store;

pub mod workplace;

mod status;
mod version;

use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use jiji_model::event::Record;

use args::{Cli, Command, ProxyCommand};
use environment::Environment;
use exit::Exit;
use failure::Failure;

use crate::report::{Report, Summary};

/// The whole program: reads argv, runs one command, says how it ended.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let environment = Environment { accept_new: cli.global.accept_new, ..Environment::read() };
    let report = match workplace::report(&cli, &environment) {
        Ok(report) => report,
        Err(failure) => {
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "{}", failure.render(false));
            return ExitCode::from(failure.exit.code());
        }
    };
    match run(&cli, &environment, &report) {
        Ok(exit) => ExitCode::from(exit.code()),
        Err(failure) => {
            show(&failure, &cli, &environment, &report);
            ExitCode::from(failure.exit.code())
        }
    }
}

/// `--help` and `--version` are answers; everything else that clap says is a usage error, exit 2.
fn usage(error: &clap::Error) -> ExitCode {
    // A closed pipe behind `jiji --help | head` is no error.
    let _ = error.print();
    ExitCode::from(if error.use_stderr() { Exit::Usage.code() } else { Exit::Done.code() })
}

/// The error on standard error for people; with `--json` as the last events too.
fn show(failure: &Failure, cli: &Cli, environment: &Environment, report: &Arc<dyn Report>) {
    use std::io::{IsTerminal, Write};
    let summary = Summary {
        result: failure.exit.name().to_owned(),
        exit: failure.exit.code(),
        // It is told before what failed.
        text: failure.settled.iter().map(|settled| settled.text.clone()).collect::<Vec<_>>().join("\n"),
        settled: failure.settled.clone(),
        ..Summary::default()
    };
    if cli.global.json {
        report.emit(Record::new("error", failure.message.clone()).with(failure.data()));
    }
    report.summary(&summary);
    let color = environment.color && std::io::stderr().is_terminal();
    let _ = writeln!(std::io::stderr(), "{}", failure.render(color));
}

fn run(cli: &Cli, environment: &Environment, report: &Arc<dyn Report>) -> Result<Exit, Failure> {
    let global = &cli.global;
    match &cli.command {
        Command::Ship(args) => drive(ship::ship(global, args, environment, report)),
        Command::Deploy(args) => drive(ship::deploy(global, args, environment, report)),
        Command::Rollback(args) => drive(ship::rollback(global, args, environment, report)),
        Command::Build(args) => drive(build::build(global, args, environment, report)),
        Command::Push(args) => drive(build::push(global, args, environment, report)),
        Command::Diff(args) => drive(compare::diff(global, args, environment, report)),
        Command::Plan(args) => drive(plan::run(global, args, environment, report)),
        Command::Apply(args) => drive(apply::run(global, args, environment, report)),
        Command::Drift(args) => drive(drift::run(global, args, environment, report)),
        Command::Releases => drive(releases::run(global, environment)),
        Command::Abort(args) => drive(abort::run(global, args, environment, report)),
        Command::Status => drive(status::run(global, environment)),
        Command::Proxy(ProxyCommand::Upgrade(args)) => drive(ship::upgrade_proxy(global, args, environment, report)),
        Command::Server(command) => drive(server::run(global, command, environment)),
        Command::Network(command) => drive(network::run(global, command, environment, report)),
        Command::Plugin(command) => plugin::run(global, command, environment, report, &runtime()?),
        Command::Pins(command) => drive(pins::run(global, command, environment, report)),
        Command::Recipe(command) => recipe::run(global, command, report),
        Command::Store(command) => store::run(global, command, environment, report),
        Command::Version => version::run(global),
        Command::Host(args) => host::run(args),
    }
}

/// Runs a command to its end.
fn drive(work: impl Future<Output = Result<Exit, Failure>>) -> Result<Exit, Failure> {
    let runtime = runtime()?;
    let done = runtime.block_on(work);
    // A build that was interrupted has a thread of its own, which nobody waits for: it ends with the process.
    runtime.shutdown_background();
    done
}

/// Drives sessions, registries and timers. Hashing and building have threads of their own.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::text(Exit::Internal, format!("start the runtime: {error}")))
}
