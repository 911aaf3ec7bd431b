//! Why a command of the door did not succeed, in fragments that fit after "failed to".

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

use crate::lab;

/// Why a command did not succeed.
#[derive(Debug)]
pub enum Error {
    /// A program could not be started.
    Start {
        /// The program.
        program: String,
        /// Why.
        cause: io::Error,
    },
    /// A program ended with something else than 0. It said why by itself.
    Ended {
        /// The program with its arguments.
        line: String,
        /// How it ended.
        status: ExitStatus,
    },
    /// A file could not be read or written.
    File {
        /// What was done to it.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// A program said something that is not in its form.
    Answer {
        /// The program.
        program: String,
        /// What is wrong.
        reason: String,
    },
    /// Things are missing and this command cannot install them.
    Missing {
        /// What, one a line.
        things: Vec<String>,
        /// What to do.
        hint: String,
    },
    /// The person said no.
    Declined,
    /// Parts of a test run failed.
    Tests {
        /// Their names.
        failed: Vec<String>,
    },
    /// There is nothing of that name.
    Unknown {
        /// What kind of thing.
        kind: &'static str,
        /// The name.
        name: String,
        /// The names there are.
        known: Vec<String>,
    },
    /// The demonstration did not show what it is to show.
    Demo {
        /// What happened instead.
        reason: String,
    },
    /// The laboratory did not run.
    Lab(lab::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start { program, cause } => write!(f, "start `{program}`: {cause}"),
            Self::Ended { line, status } => write!(f, "run `{line}`: {status}"),
            Self::File { action, path, cause } => write!(f, "{action} `{}`: {cause}", path.display()),
            Self::Answer { program, reason } => write!(f, "understand `{program}`: {reason}"),
            Self::Missing { things, hint } => {
                f.write_str("find what is needed:")?;
                for thing in things {
                    write!(f, "\n  {thing}")?;
                }
                write!(f, "\nhint: {hint}")
            }
            Self::Declined => f.write_str("go on: nothing was installed"),
            Self::Tests { failed } => write!(f, "pass: {}", failed.join(", ")),
            Self::Unknown { kind, name, known } => {
                write!(f, "find the {kind} `{name}`\nhint: there are {}", known.join(", "))
            }
            Self::Demo { reason } => write!(f, "show it: {reason}"),
            Self::Lab(error) => error.fmt(f),
        }
    }
}

impl From<lab::Error> for Error {
    fn from(error: lab::Error) -> Self {
        Self::Lab(error)
    }
}

impl Error {
    /// For `map_err` on what reads and writes files.
    pub fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |cause| Self::File { action, path, cause }
    }
}
