//! What passes between this side of the wall and the helper: one request in, one reply out, over a socket pair.
//!
//! Both ends are the same file on disk at the same moment, so the form carries no version and promises nothing to anybody else.
//! Frames are a length (u32, little endian) and JSON. Nothing is passed as an argument or in the environment, where other users
//! could read it.

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::step::{Mount, Network};

/// Longest frame, bytes: an environment may be large, nothing else is.
const FRAME: u32 = 32 << 20;

/// What the helper is asked to do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Try whether an overlay can be mounted over this scratch directory.
    Probe { scratch: OsString },
    /// Run a step.
    Run(Run),
}

/// A step as the helper needs it. `OsString` rather than `PathBuf`: names need not be UTF-8.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) argv: Vec<OsString>,
    pub(crate) env: Vec<(OsString, OsString)>,
    pub(crate) user: Option<String>,
    pub(crate) workdir: OsString,
    pub(crate) layers: Vec<OsString>,
    pub(crate) scratch: OsString,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) network: Network,
    pub(crate) source_date_epoch: u64,
    pub(crate) cpus: u32,
    pub(crate) millis: Option<u64>,
    /// Whether to be as on another machine.
    pub(crate) elsewhere: bool,
    /// Files to write `0` into, so that the helper joins those cgroups.
    pub(crate) cgroups: Vec<OsString>,
}

/// What the helper answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// The probe's overlay could be mounted.
    Able,
    /// The command ran to its end.
    Exited(u8),
    /// The command was killed by a signal.
    Signaled(i32),
    /// Time was over.
    TimedOut,
    /// The other side hung up.
    Cancelled,
    /// The first process of the sandbox died without a word.
    Silent,
    /// The command never began.
    Failed(Failure),
}

/// Why a command never began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Failure {
    /// A system call that builds the sandbox failed.
    #[error("{doing}: {}", io::Error::from_raw_os_error(*errno))]
    System {
        /// What was being done.
        doing: Doing,
        /// The kernel's error number.
        errno: i32,
    },
    /// The image has something at a place where the sandbox must mount that is not a directory.
    #[error("mount over `{path}`: it is not a directory in the image")]
    Obstructed {
        /// Seen from the image's root.
        path: PathBuf,
    },
    /// Something cannot be mounted where it should: another kind of thing is there, or a link leads there.
    #[error("mount at `{path}`: {}", if *link { "a link leads there" } else { "a directory belongs on a directory, a file on a file" })]
    MountTarget {
        /// Seen from the image's root.
        path: PathBuf,
        /// Whether a link is in the way.
        link: bool,
    },
    /// The image or stage that something is mounted from does not have it.
    #[error("mount `{path}`: {}", io::Error::from_raw_os_error(*errno))]
    MountSource {
        /// Seen from that image's root.
        path: PathBuf,
        /// The kernel's error number.
        errno: i32,
    },
    /// There are more layers than the kernel takes at once; an image has 127 at most.
    #[error("mount {layers} layers at once: this is more than the kernel takes")]
    TooManyLayers {
        /// How many there are.
        layers: usize,
    },
    /// The machine has fewer processors than the step must see.
    #[error("give the step {wanted} processors: this machine lets us use {usable}")]
    TooFewCpus {
        /// What the step asks for.
        wanted: u32,
        /// What the machine has.
        usable: u32,
    },
    /// The user is not in the image's `/etc/passwd`.
    #[error("find user `{name}` in the image's `/etc/passwd`")]
    UnknownUser {
        /// As it was asked for.
        name: String,
    },
    /// The group is not in the image's `/etc/group`.
    #[error("find group `{name}` in the image's `/etc/group`")]
    UnknownGroup {
        /// As it was asked for.
        name: String,
    },
    /// The image's `/etc/passwd` or `/etc/group` is something else than a file of reasonable size.
    #[error("read the image's `{path}`: it is not a regular file below 4 MiB")]
    OddAccounts {
        /// Seen from the image's root.
        path: PathBuf,
    },
    /// The working directory could not be created or entered.
    #[error("enter working directory `{path}`: {}", io::Error::from_raw_os_error(*errno))]
    Workdir {
        /// Seen from the image's root.
        path: PathBuf,
        /// The kernel's error number.
        errno: i32,
    },
    /// The program is not in the image.
    #[error("find program `{program}` in the image")]
    NotFound {
        /// As it was asked for.
        program: String,
    },
    /// The program is there and cannot be run: not executable, for another processor, or its interpreter is missing.
    #[error("run program `{program}`: {}", io::Error::from_raw_os_error(*errno))]
    NotRunnable {
        /// As it was asked for.
        program: String,
        /// The kernel's error number.
        errno: i32,
    },
    /// An argument or variable holds a zero byte.
    #[error("pass an argument or variable that holds a zero byte")]
    ZeroByte,
}

/// What was being done when a system call failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Doing {
    /// Making sure that the helper's own program cannot be written to.
    Seal,
    /// Entering the cgroup that bounds processes and memory.
    Cgroup,
    /// Creating the namespaces.
    Namespaces,
    /// Creating the first process in them.
    Fork,
    /// Cutting mounts off from the host's.
    Private,
    /// Bringing up the loopback interface.
    Loopback,
    /// Setting host and domain name.
    HostName,
    /// Opening the layers' directories.
    Layers,
    /// Mounting the overlay of layers and scratch.
    Overlay,
    /// Mounting `/proc`.
    Proc,
    /// Mounting `/sys`.
    Sys,
    /// Filling `/dev`.
    Dev,
    /// Putting `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` in place.
    Etc,
    /// Preparing and attaching what the step asks to be mounted.
    Mounts,
    /// Making the image the root directory.
    Pivot,
    /// Setting resource limits, processors and personality.
    Fixed,
    /// Giving up capabilities and system calls, becoming the step's user.
    Privileges,
}

impl fmt::Display for Doing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Seal => "protect the helper's program",
            Self::Cgroup => "enter the step's cgroup",
            Self::Namespaces => "create namespaces",
            Self::Fork => "create the step's first process",
            Self::Private => "detach mounts from the host's",
            Self::Loopback => "bring up the loopback interface",
            Self::HostName => "set the host name",
            Self::Layers => "open the layers",
            Self::Overlay => "mount the overlay",
            Self::Proc => "mount `/proc`",
            Self::Sys => "mount `/sys`",
            Self::Dev => "fill `/dev`",
            Self::Etc => "put `/etc/hosts` and its like in place",
            Self::Mounts => "mount what the step asks for",
            Self::Pivot => "change the root directory",
            Self::Fixed => "set resource limits",
            Self::Privileges => "give up privileges",
        })
    }
}

/// Names what was being done when an error came up.
pub(crate) trait During<T> {
    fn during(self, doing: Doing) -> Result<T, Failure>;
}

impl<T> During<T> for rustix::io::Result<T> {
    fn during(self, doing: Doing) -> Result<T, Failure> {
        self.map_err(|errno| Failure::System { doing, errno: errno.raw_os_error() })
    }
}

impl<T> During<T> for io::Result<T> {
    fn during(self, doing: Doing) -> Result<T, Failure> {
        self.map_err(|error| Failure::System { doing, errno: error.raw_os_error().unwrap_or(libc::EIO) })
    }
}

/// A path in the image, for messages.
pub(crate) fn absolute(path: &Path) -> PathBuf {
    Path::new("/").join(path)
}

/// Writes one frame.
pub(crate) fn send<T: Serialize>(to: &mut impl Write, message: &T) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len()).ok().filter(|&n| n <= FRAME);
    let length = length.ok_or_else(|| io::Error::from(io::ErrorKind::FileTooLarge))?;
    to.write_all(&length.to_le_bytes())?;
    to.write_all(&body)
}

/// Reads one frame.
pub(crate) fn receive<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<T> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > FRAME {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut body = vec![0; length as usize];
    from.read_exact(&mut body)?;
    Ok(serde_json::from_slice(&body)?)
}
