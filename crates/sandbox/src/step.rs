//! What is asked of the sandbox and what it answers: a [`Step`], its [`Limits`], its [`Outcome`].
//!
//! Plain data; nothing here touches the machine.

use std::ffi::OsString;
use std::fmt;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a step is given: raised whenever the same step may come out differently in a newer version of this crate (environment,
/// limits, mounts, how changes are told). It belongs into the key of whatever is kept of a step's result.
pub const VERSION: u32 = 1;

/// The port of 127.0.0.1 at which a step finds the proxy that it is given.
pub const PROXY_PORT: u16 = 3128;

/// One command, the image it runs in and what it may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The program and its arguments. A program without a slash is looked up in the step's `PATH`, inside the image.
    pub argv: Vec<OsString>,
    /// Variables set over the fixed ones (see [`Step::new`]); the last of two with one name counts.
    pub env: Vec<(OsString, OsString)>,
    /// `name`, `uid`, `name:group` or `uid:gid`, looked up in the image's own `/etc/passwd` and `/etc/group`. Nothing means root.
    pub user: Option<String>,
    /// The directory the command starts in, seen from the image's root. It is created where it is missing, as root, mode 0755.
    pub workdir: PathBuf,
    /// The unpacked layers, lowest first, as `unpack` left them. At least one.
    pub layers: Vec<PathBuf>,
    /// What is laid over the image while the command runs. None of it is a change, and neither are the mount points.
    pub mounts: Vec<Mount>,
    /// Whom the command can talk to.
    pub network: Network,
    /// A socket of this machine to which the step's first process hands over a listener at [`PROXY_PORT`] of the step's own network, before
    /// the command begins: see [`receive_listener`](crate::receive_listener). Of a step without the machine's network alone.
    pub proxy: Option<PathBuf>,
    /// What `SOURCE_DATE_EPOCH` says to the command, in seconds.
    pub source_date_epoch: u64,
    /// What the command may use.
    pub limits: Limits,
}

impl Step {
    /// A command that runs as root in `/` with the fixed environment alone: `PATH` (Docker's), `HOME` (from the image's
    /// `/etc/passwd`), `LANG=C.UTF-8`, `TZ=UTC`, `TERM=dumb`, `PYTHONHASHSEED=0`, `SOURCE_DATE_EPOCH=0`.
    pub fn new<A: Into<OsString>>(argv: impl IntoIterator<Item = A>, layers: Vec<PathBuf>) -> Self {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            user: None,
            workdir: PathBuf::from("/"),
            layers,
            mounts: Vec::new(),
            network: Network::None,
            proxy: None,
            source_date_epoch: 0,
            limits: Limits::default(),
        }
    }
}

/// Whom a step can talk to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    /// Itself: it has a loopback interface of its own.
    #[default]
    None,
    /// Whomever this machine can: it has this machine's network, names and resolver. What it gives is no longer a matter of what it was given.
    Machine,
}

/// Something laid over the image while a step runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Where, seen from the image's root, without `..` and not through links. What is missing of it is there for the step alone; the
    /// root itself, `/proc` and `/sys` and what is below these cannot be covered.
    pub target: PathBuf,
    /// What.
    pub source: Source,
    /// Whether the step may only read it.
    pub read_only: bool,
}

/// What a [`Mount`] shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// This directory of the machine itself: what the step writes stays in it.
    Directory(PathBuf),
    /// A file or directory of unpacked layers, lowest first.
    Layers {
        /// The layers, at least one.
        layers: Vec<PathBuf>,
        /// Seen from their root; links in it lead where they lead there.
        path: PathBuf,
        /// A directory that keeps what the step writes, for the next step that mounts the same layers with it. Only one step may use it at
        /// once. Without one, what the step writes goes nowhere.
        keep: Option<PathBuf>,
    },
    /// A socket of this machine, by its path.
    Socket(PathBuf),
    /// An empty directory in memory.
    Memory {
        /// How much may be written to it, in bytes; half of the machine's memory where nothing is said.
        size: Option<u64>,
    },
    /// A file in memory.
    File {
        /// Its content.
        content: Content,
        /// Permission bits.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
}

/// The content of a file that is not to be printed: it may be a secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content(pub Vec<u8>);

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} bytes]", self.0.len())
    }
}

/// What a step may use of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// How many processors the command sees and gets, whatever the machine has: a build must not depend on it.
    pub cpus: NonZeroU32,
    /// How many processes and threads may exist at once. Kept by a cgroup; see `Support::processes_bounded`.
    pub processes: u32,
    /// Bytes of memory, where this machine has a memory cgroup; beyond that the kernel kills within the step.
    pub memory: Option<u64>,
    /// Bytes of output that are handed on; what comes after is read, counted and dropped.
    pub output: u64,
    /// Wall-clock time after which everything in the sandbox is killed.
    pub time: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { cpus: NonZeroU32::MIN, processes: 4096, memory: None, output: 16 << 20, time: None }
    }
}

/// Where a line of output came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// How a step ended, once it had begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// How the command itself ended. What it left running was killed with it.
    pub exit: Exit,
    /// Bytes of output the command wrote.
    pub output: u64,
    /// How many of them were dropped for being beyond [`Limits::output`].
    pub dropped: u64,
    /// Wall-clock time from the start of the helper to its end.
    pub elapsed: Duration,
    /// Whether [`Limits::processes`] was in force.
    pub processes_bounded: bool,
}

/// The end of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this code.
    Code(u8),
    /// It was killed by this signal.
    Signal(i32),
    /// [`Limits::time`] was over and everything was killed.
    TimedOut,
    /// A `Canceller` was used and everything was killed.
    Cancelled,
}

impl Exit {
    /// Whether the command exited with 0.
    pub fn success(self) -> bool {
        self == Self::Code(0)
    }
}
