//! Why the laboratory could not do what it was asked.

use std::{io, path::PathBuf};

/// Why the laboratory could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A file or directory of the lab could not be used.
    #[error("{action} `{path}`: {source}")]
    File {
        /// What was tried, as a verb: "read", "create".
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// TLS could not be set up as it was asked for.
    #[error("{what}: {why}")]
    Tls {
        /// What was tried, as a verb with its object.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// A system call on no file in particular failed.
    #[error("{action}: {source}")]
    System {
        /// What was tried, as a verb with its object.
        action: String,
        /// What the system said.
        source: io::Error,
    },
    /// A program of the machine could not be started at all; mostly its package is not installed.
    #[error("start `{program}`: {source}")]
    NoProgram {
        /// The program's name.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// A program ran and ended with something else than 0.
    #[error("run `{argv}`: {status}: {stderr}")]
    Program {
        /// The whole argv, words separated by blanks.
        argv: String,
        /// How it ended.
        status: String,
        /// The end of what it wrote to standard error.
        stderr: String,
    },
    /// Namespaces and mounts need root.
    #[error("build a lab as another user than root")]
    NotRoot,
    /// The `lab` program itself was not found beside the caller.
    #[error("find the `lab` program (build it with `cargo build -p jiji-lab`, or name it in JIJI_LAB_BIN)")]
    NoLabProgram,
    /// No lab of that name is up, or none at all.
    #[error("find a lab named `{name}`")]
    NoSuchLab {
        /// The name that was asked for.
        name: String,
    },
    /// Several labs are up and none was named.
    #[error("choose between the labs {names}: name one with --name")]
    Ambiguous {
        /// The names, separated by blanks.
        names: String,
    },
    /// A lab of that name is up already.
    #[error("name a lab `{name}`: one of that name is up")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// The lab has no host of that name.
    #[error("find a host `{name}` in the lab")]
    NoSuchHost {
        /// The name that was asked for.
        name: String,
    },
    /// A part did not become ready in its time.
    #[error("wait for {what}: not ready after {seconds} s; see `{log}`")]
    NotReady {
        /// Which part.
        what: String,
        /// How long it had, in seconds.
        seconds: u64,
        /// Where it wrote what it thought.
        log: PathBuf,
    },
    /// The keeper of the lab said no, or went away.
    #[error("ask the keeper of the lab: {message}")]
    Keeper {
        /// What it said.
        message: String,
    },
    /// A record or an answer is not the JSON it should be.
    #[error("read {what}: {source}")]
    Json {
        /// Which record or answer.
        what: String,
        /// Where it is wrong.
        source: serde_json::Error,
    },
    /// The spec asks for what cannot be.
    #[error("accept the spec: {reason}")]
    Spec {
        /// What is wrong with it.
        reason: String,
    },
    /// A package that is pinned by its hash is served no more, or with other bytes.
    #[error("fetch `{package}` version {version} with sha256 {sha256}: {reason}")]
    Pinned {
        /// The package's name.
        package: String,
        /// The version that is pinned.
        version: String,
        /// The hash that is pinned.
        sha256: String,
        /// What came instead.
        reason: String,
    },
    /// Something that the lab builds has another digest than the one that is written down.
    #[error("build `{what}` byte for byte: expected {expected}, got {actual}")]
    Digest {
        /// What was built.
        what: String,
        /// The digest in the source.
        expected: String,
        /// The digest that came out.
        actual: String,
    },
    /// The load generator could not run, or what it saw does not count.
    #[error("put load on the hosts: {reason}")]
    Load {
        /// Why.
        reason: String,
    },
}

impl LabError {
    /// Wraps an I/O error on a file.
    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }

    /// Wraps an error of a system call.
    pub(crate) fn system<E: Into<io::Error>>(action: impl Into<String>) -> impl FnOnce(E) -> Self {
        let action = action.into();
        move |source| Self::System { action, source: source.into() }
    }

    /// Wraps an error of the JSON parser.
    pub(crate) fn json(what: impl Into<String>) -> impl FnOnce(serde_json::Error) -> Self {
        let what = what.into();
        move |source| Self::Json { what, source }
    }
}
