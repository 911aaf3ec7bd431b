//! Who runs a RUN step: this machine's sandbox, or something else that gives the same.

mod agent;
mod cleanup;
mod local;

use jiji_model::image::{Compression, Platform};
use jiji_model::secret::Secret;
use jiji_store::{CacheUse, Layer, Store, StoreError};

use super::layer::LayerError;
use super::rootfs::IndexError;
use super::trees::TreeError;

pub(in crate::build) use cleanup::VERSION as CLEANUPS;
pub use jiji_sandbox::{Canceller, Exit, Refusal, Stream, Support};
pub use local::{Caretaker, Local, ability};

/// A RUN step with everything that its result depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunStep {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Variables, sorted by name.
    pub env: Vec<(String, String)>,
    /// As USER says it; none for root.
    pub user: Option<String>,
    /// The directory it begins in.
    pub workdir: String,
    /// What it is told the time is, and what its files' times will be, in seconds since 1970.
    pub epoch: u64,
    /// How what it gives is compressed: in no key, since the files are the same.
    pub compression: Compression,
    /// What its programs are compiled for.
    pub platform: Platform,
    /// What it runs in, lowest first.
    pub layers: Vec<Layer>,
    /// What is laid over that while it runs.
    pub mounts: Vec<StepMount>,
    /// Whom it can talk to. With the network, what package managers leave behind of the time is no change of it.
    pub network: Network,
    /// Where it hands over what its proxy listens to, where it is recorded and about to run.
    pub proxy: Option<std::path::PathBuf>,
    /// Variables that are secrets. Their values are in no key: the step must give the same with any.
    pub secrets: Vec<(String, Secret)>,
}

/// Whom a step can talk to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Network {
    /// Itself.
    #[default]
    None,
    /// Whomever this machine can.
    Machine,
    /// A proxy that gives from then on what each URL gave the first time.
    Recorded,
}

/// Something laid over the image while a step runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepMount {
    /// Where: an absolute path that leads through no link.
    pub target: String,
    /// What.
    pub source: StepSource,
    /// Whether the step may only read it.
    pub read_only: bool,
}

/// What a step finds where something is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepSource {
    /// A path of an image of these layers. What the step writes goes nowhere.
    Layers {
        /// The layers, lowest first.
        layers: Vec<Layer>,
        /// From their root.
        path: String,
    },
    /// The cache of this name.
    Cache {
        /// Its name.
        id: String,
        /// What it begins with: a path of an image of these layers. Another image is another cache.
        from: Option<(Vec<Layer>, String)>,
        /// What happens where it is in use.
        sharing: CacheUse,
        /// The mode it begins with.
        mode: u32,
        /// Owner and group it begins with.
        owner: (u32, u32),
    },
    /// An empty directory in memory.
    Memory {
        /// Bytes that it may hold.
        size: Option<u64>,
    },
    /// A file that is a secret: it is in no key and on no disk.
    Secret {
        /// Its content.
        value: Secret,
        /// Its mode.
        mode: u32,
        /// Owner and group.
        owner: (u32, u32),
    },
    /// A program, whose text is part of the step.
    Script(String),
    /// A socket through which an agent of this machine is asked to sign.
    Agent {
        /// The agent's own socket.
        socket: std::path::PathBuf,
        /// The mode of the one that the step sees.
        mode: u32,
        /// Its owner and group.
        owner: (u32, u32),
    },
}

/// What came of a step that ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ran {
    /// It succeeded and changed this; none where it changed nothing. The layer is in the store.
    Changed(Option<Layer>),
    /// It failed.
    Failed(Exit),
}

/// Runs steps, several at once where it is asked to.
pub trait Executor: Sync {
    /// Runs one step. Lines of its output, without line feeds, are handed on as they come. Where `canceller` is used, it ends soon.
    ///
    /// # Errors
    /// When it could not be run, which is another thing than that it failed.
    fn run(
        &self,
        step: &RunStep,
        store: &Store,
        canceller: &Canceller,
        output: &mut dyn FnMut(Stream, &[u8]),
    ) -> Result<Ran, ExecuteError>;
}

/// Why a step could not be run.
#[derive(Debug, thiserror::Error)]
pub enum ExecuteError {
    /// Its layers cannot be unpacked.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// Its layers cannot be looked into.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The store has no room for it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What it changed could not be written as a layer.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// A cache that it mounts cannot be given its mode and owner.
    #[error("prepare the cache `{id}`")]
    Cache {
        /// The cache's name.
        id: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The agent that signs for it cannot be handed on.
    #[error("hand on the agent at `{path}`", path = path.display())]
    Agent {
        /// The agent's socket.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A directory for its changes could not be made.
    #[error("make room for a step")]
    Scratch(#[source] std::io::Error),
    /// This machine cannot run programs of its platform.
    #[error("run a step for {wanted} on {here}")]
    Platform {
        /// The step's platform.
        wanted: Platform,
        /// This machine's architecture.
        here: &'static str,
    },
    /// The sandbox could not run it.
    #[error(transparent)]
    Sandbox(#[from] jiji_sandbox::RunError),
    /// What it left behind of the time could not be looked into.
    #[error("clean up after a step that had the network")]
    Cleanup(#[source] std::io::Error),
    /// What it changed could not be read.
    #[error(transparent)]
    Changes(#[from] jiji_sandbox::ChangeError),
}

impl ExecuteError {
    /// What a person can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Platform { .. } => Some("build on a machine of that architecture, or for this one"),
            Self::Agent { .. } => Some("see whether `ssh-add -l` reaches it"),
            Self::Tree(error) => error.hint(),
            Self::Sandbox(error) => error.hint(),
            _ => None,
        }
    }
}
