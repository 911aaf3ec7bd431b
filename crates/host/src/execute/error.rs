//! Why an action failed.

use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use jiji_model::plan::OutputKind;
use jiji_model::probe::Timeline;
use jiji_store::StoreError;

use crate::command::{self, CommandError, Output};
use crate::engine::EngineError;
use crate::engine::run::SpecError;
use crate::mesh::MeshError;
use crate::place::PlaceError;

/// Why an action failed.
#[derive(Debug, thiserror::Error)]
pub enum ActionError {
    /// The engine did not do it.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The engine could not be told or does not answer.
    #[error("{why}")]
    NoEngine {
        /// What it met.
        why: String,
    },
    /// A program could not be run.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// A file could not be read or written.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A specification cannot be run.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The mesh is not as it should be.
    #[error(transparent)]
    Mesh(#[from] MeshError),
    /// Nobody here is root.
    #[error("change the host's network: everything here is done as a user who is not root")]
    NeedsRoot,
    /// A secret's value did not come.
    #[error("use secret `{name}`: its value was not sent")]
    NoSecret {
        /// The secret.
        name: String,
    },
    /// Every user of the host can read arguments.
    #[error("use secret `{name}` as an argument: arguments are no secret")]
    SecretArgument {
        /// The secret.
        name: String,
    },
    /// An earlier step left no output.
    #[error("use the output of step `{step}`: there is none")]
    NoOutput {
        /// The step's id.
        step: String,
    },
    /// An earlier step printed something else.
    #[error("use the output of step `{step}`: it is no {kind:?}")]
    WrongOutput {
        /// The step's id.
        step: String,
        /// What it should be.
        kind: OutputKind,
    },
    /// A command failed.
    #[error("{what}: {ending}{}{complaint}", if complaint.is_empty() { "" } else { ": " })]
    Exited {
        /// The command, an imperative.
        what: String,
        /// How it ended.
        ending: String,
        /// What it said.
        complaint: String,
    },
    /// Its time was up.
    #[error("end within {} ms: it was still at work", .0.as_millis())]
    TimedOut(Duration),
    /// What was waited for did not become healthy.
    #[error("{why}")]
    NotHealthy {
        /// In one sentence.
        why: String,
        /// The probes.
        timeline: Box<Timeline>,
    },
    /// Somebody wanted to stop.
    #[error("wait for health: interrupted")]
    Interrupted {
        /// The probes until then.
        timeline: Box<Timeline>,
    },
    /// A container of that name is not jiji's.
    #[error("replace container `{name}`: it was not started by jiji, or for another project")]
    Foreign {
        /// Its name.
        name: String,
    },
    /// There is no such container.
    #[error("find container `{name}`: there is none")]
    NoContainer {
        /// Its name.
        name: String,
    },
    /// The container does not run.
    #[error("run container `{name}`: it is {state}, exit code {exit}{}", if *oom { ", ended for memory" } else { "" })]
    NotRunning {
        /// Its name.
        name: String,
        /// Its state.
        state: String,
        /// Its exit code.
        exit: i32,
        /// Whether the kernel ended it for memory.
        oom: bool,
    },
    /// The engine runs another image.
    #[error("run container `{name}`: the engine runs image `{actual}`, not `{expected}`")]
    WrongImage {
        /// The container.
        name: String,
        /// The configuration that was asked for.
        expected: String,
        /// What runs.
        actual: String,
    },
    /// The engine does not have the image.
    #[error("find image `{image}`: the engine does not have it")]
    NoImage {
        /// Its configuration's digest.
        image: String,
    },
    /// A network of that name has another subnet.
    #[error("make network `{name}` with subnet {wanted}: it exists with subnet {actual}")]
    Network {
        /// The network.
        name: String,
        /// What is wanted.
        wanted: String,
        /// What is there.
        actual: String,
    },
    /// The container is not in the network, or has no address in it.
    #[error("probe container `{name}`: it has no address in network `{network}`")]
    NoAddress {
        /// The container.
        name: String,
        /// The network.
        network: String,
    },
    /// An address that is not this host's.
    #[error("ask {address}: it is not this host's")]
    Elsewhere {
        /// The address.
        address: Ipv4Addr,
    },
    /// The port from which the engine pulls could not be opened.
    #[error("serve images on 127.0.0.1: {0}")]
    Serve(io::Error),
    /// An action of a later contract.
    #[error("run action `{kind}`: this jiji-host does not know it")]
    Unsupported {
        /// Its kind.
        kind: String,
    },
}

impl ActionError {
    /// That a command failed, with what it said: on standard error, or else on standard output.
    pub(super) fn exited(what: String, output: &Output) -> Self {
        let complaint = match output.complaint() {
            said if said.is_empty() => command::one_line(&output.text()),
            said => said,
        };
        Self::Exited { what, ending: output.ending(), complaint }
    }

    /// The probes, where it waited for health.
    pub fn timeline(&self) -> Option<&Timeline> {
        match self {
            Self::NotHealthy { timeline, .. } | Self::Interrupted { timeline } => Some(timeline),
            _ => None,
        }
    }
}
