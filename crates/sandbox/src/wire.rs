//! What passes between this side of the wall and the helper: one request in, one reply out, over a socket pair.
//!
//! Both ends are the same file on disk at the same moment, so the form carries no version and promises nothing to anybody else.
//! Frames are a length (u32, little endian) and JSON. Nothing is passed as an argument or in the environment, where other users
//! could read it.

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::changes::{Change, ChangeError};
use crate::step::{Mount, Network};
use crate::unpack::{UnpackError, Unpacked};

/// Longest frame, bytes: an environment may be large, nothing else is.
const FRAME: u32 = 32 << 20;

/// What the helper is asked to do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Try whether an overlay can be mounted over this scratch directory, and `/proc` and `/sys` anywhere.
    Probe { scratch: OsString },
    /// Create a user namespace, for the caller to keep, with a bound on its user's processes.
    Namespace { processes: Option<u64> },
    /// Run a step.
    Run(Run),
    /// Do something with directories whose files belong to users of the namespace.
    Deputy(Errand),
}

/// What is done with directories whose files belong to users that the caller is not.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Errand {
    /// Unpack the archive that follows until the end of what the caller sends.
    Unpack { dir: OsString, below: Vec<OsString>, bytes: u64, entries: u64 },
    /// Tell what a step changed, then open files of it.
    Changes { upper: OsString, layers: Vec<OsString> },
    /// Take away again what was made in the scratch directory only to mount on.
    Forget { upper: OsString, layers: Vec<OsString>, targets: Vec<OsString> },
    /// Open files below this directory.
    Open { root: OsString },
    /// Remove a directory with all that is in it.
    Remove { dir: OsString },
    /// Say what a directory takes on disk.
    Measure { dir: OsString },
    /// Give something an owner and a mode.
    Give { path: OsString, uid: u32, gid: u32, mode: u32 },
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
    /// Where a listener in the step's own network is handed over.
    pub(crate) proxy: Option<OsString>,
    pub(crate) source_date_epoch: u64,
    pub(crate) cpus: u32,
    pub(crate) millis: Option<u64>,
    /// Whether to be as on another machine.
    pub(crate) elsewhere: bool,
    /// Files to write `0` into, so that the helper joins those cgroups.
    pub(crate) cgroups: Vec<OsString>,
    /// The highest user and group of the namespace, where it is not the machine's own.
    pub(crate) highest: Option<(u32, u32)>,
}

/// What the helper answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// It was done: the probe's mounts, the user namespace.
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
    /// The command never began, or could not go on as it would have as root.
    Failed(Failure),
    /// What became of an errand.
    Answer(Answer),
}

/// What became of an [`Errand`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// The archive was unpacked.
    Unpacked(Result<Unpacked, UnpackError>),
    /// Some of the changes, and whether more follow.
    Changes(Vec<Change>, bool),
    /// They could not be told.
    NoChanges(ChangeError),
    /// The file is open: a byte follows that carries it.
    Opened(Result<(), Told>),
    /// It was done, or a directory takes so many bytes.
    Done(Result<u64, Told>),
}

/// An error of the system, as it passes through the wall.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Told(#[serde(with = "io_error")] pub(crate) io::Error);

/// A name below the directory that an errand is about.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Name(#[serde(with = "text_of_bytes")] pub(crate) PathBuf);

/// Why a command never began, or was ended because it could not go on.
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
    /// The step did what only this machine's root can do. It was ended, since it would have gone on otherwise than with root.
    #[error("let the step {action}: only this machine's root can")]
    OnlyRoot {
        /// What it did.
        action: Action,
    },
}

impl Failure {
    /// What would help.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::OnlyRoot { action: Action::Device } => Some(
                "build as root; most programs that make device nodes do so in `/dev`, where a step has all it needs",
            ),
            Self::OnlyRoot { .. } => Some(
                "build as root, or set more ids aside for the user: `sudo usermod --add-subuids FIRST-LAST --add-subgids FIRST-LAST USER`",
            ),
            _ => None,
        }
    }
}

/// What a step can do with root alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// It made a device node.
    Device,
    /// It gave a file an owner that the namespace does not have.
    Own {
        /// The user or group.
        id: u32,
    },
    /// It set its supplementary groups where the namespace has one group.
    Groups,
    /// It became a user that the namespace does not have.
    Become {
        /// The user or group.
        id: u32,
    },
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device => f.write_str("make a device node"),
            Self::Own { id } => write!(f, "give a file to user or group {id}, which the user namespace does not have"),
            Self::Groups => f.write_str("set its groups, of which the user namespace has one"),
            Self::Become { id } => write!(f, "become user or group {id}, which the user namespace does not have"),
        }
    }
}

/// What was being done when a system call failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Doing {
    /// Making sure that the helper's own program cannot be written to.
    Seal,
    /// Entering the cgroup that bounds processes and memory.
    Cgroup,
    /// Creating a user namespace.
    UserNamespace,
    /// Entering the user namespace.
    Join,
    /// Creating the namespaces.
    Namespaces,
    /// Creating the first process in them.
    Fork,
    /// Cutting mounts off from the host's.
    Private,
    /// Bringing up the loopback interface.
    Loopback,
    /// Listening for the proxy's clients, and handing that over.
    Proxy,
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
            Self::UserNamespace => "create a user namespace",
            Self::Join => "enter the user namespace",
            Self::Namespaces => "create namespaces",
            Self::Fork => "create the step's first process",
            Self::Private => "detach mounts from the host's",
            Self::Loopback => "bring up the loopback interface",
            Self::Proxy => "hand over the listener of the proxy",
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

/// Bytes as a text of JSON, one character each: names need not be UTF-8, and lists of numbers would take four times the room.
pub(crate) mod text_of_bytes {
    use serde::de::{Deserialize as _, Deserializer, Error as _};
    use serde::ser::Serializer;

    pub(crate) fn encode(bytes: &[u8]) -> String {
        bytes.iter().copied().map(char::from).collect()
    }

    pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
        text.chars().map(|one| u8::try_from(one).ok()).collect()
    }

    pub(crate) fn serialize<T: AsRef<std::ffi::OsStr>, S: Serializer>(name: &T, to: S) -> Result<S::Ok, S::Error> {
        use std::os::unix::ffi::OsStrExt as _;
        to.serialize_str(&encode(name.as_ref().as_bytes()))
    }

    pub(crate) fn deserialize<'a, T: From<std::ffi::OsString>, D: Deserializer<'a>>(from: D) -> Result<T, D::Error> {
        use std::os::unix::ffi::OsStringExt as _;
        let text = String::deserialize(from)?;
        let bytes = decode(&text).ok_or_else(|| D::Error::custom("a character is no byte"))?;
        Ok(std::ffi::OsString::from_vec(bytes).into())
    }
}

/// An error of the system on its way through the wall: its number, or its text.
pub(crate) mod io_error {
    use std::io;

    use serde::de::{Deserialize, Deserializer};
    use serde::ser::{Serialize, Serializer};

    #[derive(serde::Serialize, serde::Deserialize)]
    enum Told {
        Number(i32),
        Data(String),
        Text(String),
    }

    pub(crate) fn serialize<S: Serializer>(error: &io::Error, to: S) -> Result<S::Ok, S::Error> {
        let told = match error.raw_os_error() {
            Some(number) => Told::Number(number),
            None if error.kind() == io::ErrorKind::InvalidData => Told::Data(error.to_string()),
            None => Told::Text(error.to_string()),
        };
        told.serialize(to)
    }

    pub(crate) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<io::Error, D::Error> {
        Ok(match Told::deserialize(from)? {
            Told::Number(number) => io::Error::from_raw_os_error(number),
            Told::Data(text) => io::Error::new(io::ErrorKind::InvalidData, text),
            Told::Text(text) => io::Error::other(text),
        })
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

/// Sends a descriptor, which the other side gets one of its own for.
pub(crate) fn send_fd(to: &UnixStream, fd: BorrowedFd<'_>) -> io::Result<()> {
    let fds = [fd];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut carried = SendAncillaryBuffer::new(&mut space);
    if !carried.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    rustix::net::sendmsg(to, &[io::IoSlice::new(b"f")], &mut carried, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives the listener that a step's first process hands over (see [`Step::proxy`](crate::Step::proxy)).
///
/// # Errors
/// When the other side hangs up, or hands over something else.
pub fn receive_listener(from: &UnixStream) -> io::Result<TcpListener> {
    receive_fd(from).map(TcpListener::from)
}

/// Receives a descriptor.
pub(crate) fn receive_fd(from: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut carried = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [io::IoSliceMut::new(&mut byte)];
    rustix::net::recvmsg(from, &mut parts, &mut carried, RecvFlags::CMSG_CLOEXEC)?;
    for message in carried.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message
            && let Some(fd) = fds.next()
        {
            return Ok(fd);
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
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

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt as _;

    use super::*;

    #[test]
    fn names_of_any_bytes_and_errors_pass_through_the_wall() {
        let path = PathBuf::from(OsString::from_vec((1..=255).filter(|byte| *byte != b'/').collect()));
        let denied = io::Error::from_raw_os_error(libc::EACCES);
        let sent = Reply::Answer(Answer::Unpacked(Err(UnpackError::Io { path: path.clone(), source: denied })));
        let mut frame = Vec::new();
        send(&mut frame, &sent).expect("sent");
        let Reply::Answer(Answer::Unpacked(Err(UnpackError::Io { path: told, source }))) =
            receive(&mut frame.as_slice()).expect("received")
        else {
            panic!("another reply");
        };
        assert_eq!((told, source.raw_os_error()), (path, Some(libc::EACCES)));
        let torn = Told(io::Error::new(io::ErrorKind::InvalidData, "it is torn"));
        let mut frame = Vec::new();
        send(&mut frame, &torn).expect("sent");
        let Told(error) = receive(&mut frame.as_slice()).expect("received");
        assert_eq!((error.kind(), error.to_string().as_str()), (io::ErrorKind::InvalidData, "it is torn"));
    }
}
