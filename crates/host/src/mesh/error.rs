//! Why the mesh on a host is not as it should be.

use std::io;
use std::path::PathBuf;

use crate::command::{CommandError, Output};
use crate::place::PlaceError;

/// Why the mesh on a host is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// A program could not be run.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// A file could not be read or written.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// A program failed.
    #[error("run `{what}`: {ending}{}{complaint}", if complaint.is_empty() { "" } else { ": " })]
    Exited {
        /// Its first words.
        what: String,
        /// How it ended.
        ending: String,
        /// What it said.
        complaint: String,
    },
    /// A program's answer is in no form that is known.
    #[error("read what `{what}` says: {reason}")]
    Unreadable {
        /// The program.
        what: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// A file that should hold a private key does not.
    #[error("read `{path}`: it is no private key")]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// Others can read a private key.
    #[error("use the key in `{path}`: its mode {mode:o} lets others read it")]
    OpenKey {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// What an interface was told to be cannot be read.
    #[error("read `{path}`: {reason}")]
    Spec {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A specification that no host may be brought into.
    #[error("accept the interface: {reason}")]
    Refused {
        /// What is wrong with it.
        reason: String,
    },
    /// An interface of that name is somebody else's.
    #[error("make interface `{name}`: one of that name is there, which jiji did not make")]
    Foreign {
        /// Its name.
        name: String,
    },
    /// Neither the kernel nor a program can do it.
    #[error("make the interface: the kernel has no WireGuard ({kernel}), and `wireguard-go` is not installed")]
    NoImplementation {
        /// What the kernel says.
        kernel: String,
    },
    /// The implementation of userspace does not work.
    #[error("run `{program}`: {reason}")]
    Userspace {
        /// The program.
        program: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The runtime could not be started.
    #[error("start the runtime: {0}")]
    Runtime(io::Error),
}

impl MeshError {
    /// That a program failed, with what it said on standard error alone: `wg` writes keys on the other.
    pub(super) fn exited(program: &str, args: &[&str], output: &Output) -> Self {
        let words: Vec<_> = std::iter::once(program).chain(args.iter().copied()).take(6).collect();
        Self::Exited { what: words.join(" "), ending: output.ending(), complaint: output.complaint() }
    }
}
