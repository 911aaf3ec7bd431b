//! The command line: one file per command. Parse, call the library, render.
//!
//! This is the only room that knows the terminal, the environment, the user's directories and the wall clock; it hands them to the
//! others. Whatever goes wrong becomes a [`failure::Failure`] here, with an exit code from [`exit`].

pub mod args;
pub mod environment;
pub mod exit;
pub mod failure;

mod version;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};
use environment::Environment;
use exit::Exit;
use failure::Failure;

/// The whole program: reads argv, runs one command, says how it ended.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let environment = Environment::read();
    match run(&cli, &environment) {
        Ok(exit) => ExitCode::from(exit.code()),
        Err(failure) => {
            show(&failure, &cli, &environment);
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

fn show(failure: &Failure, cli: &Cli, environment: &Environment) {
    use std::io::{IsTerminal, Write};
    let color = environment.color && std::io::stderr().is_terminal();
    let _ = writeln!(std::io::stderr(), "{}", failure.render(color));
    if cli.global.json {
        let record = jiji_model::event::Record::new("error", failure.message.clone()).with(failure.data());
        jiji_model::event::Sink::emit(&crate::report::ndjson::Ndjson::new(std::io::stdout()), record);
    }
}

fn run(cli: &Cli, _environment: &Environment) -> Result<Exit, Failure> {
    match &cli.command {
        Command::Version => version::run(&cli.global),
        _ => Err(Failure::text(Exit::Internal, "run a command that is not built yet")),
    }
}
