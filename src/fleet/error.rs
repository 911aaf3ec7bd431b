//! Why a host could not be reached, or was lost.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use jiji_model::digest::Digest;
use jiji_model::name::HostName;
use jiji_model::protocol::{FrameError, RefusalKind};
use jiji_store::StoreError;

/// Why something on a host did not work.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FleetError {
    /// The project names no such server.
    #[error("find server `{host}` in the project")]
    UnknownHost {
        /// The name.
        host: HostName,
    },
    /// What ssh should connect to, or its user, could be taken for an option or a pattern.
    #[error("connect to `{host}`: `{text}` is not {what}")]
    Address {
        /// The server.
        host: HostName,
        /// What is wrong.
        text: String,
        /// What was expected.
        what: &'static str,
    },
    /// The directory for ssh's control sockets cannot be used.
    #[error("use `{path}` for ssh's control sockets", path = path.display())]
    ControlDirectory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The directory's path is so long that a socket in it has no name (108 bytes, unix(7)).
    #[error("use `{path}` for ssh's control sockets: longer than {limit} bytes", path = path.display())]
    ControlPath {
        /// The directory.
        path: PathBuf,
        /// The longest that works.
        limit: usize,
    },
    /// The ssh configuration file that the project names cannot be read.
    #[error("read the ssh configuration `{path}`", path = path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// ssh could not connect.
    #[error("connect to `{host}` at `{address}`: {cause}")]
    Unreachable {
        /// The server.
        host: HostName,
        /// What ssh connected to.
        address: String,
        /// What ssh said.
        cause: String,
    },
    /// The user is not root and `sudo -n` asks for a password.
    #[error("become root on `{host}`: `sudo` wants a password")]
    NoSudo {
        /// The server.
        host: HostName,
    },
    /// The login shell answered something that is not jiji's.
    #[error("start jiji-host on `{host}`: the shell answered `{said}`")]
    Shell {
        /// The server.
        host: HostName,
        /// The beginning of what it said.
        said: String,
    },
    /// There is no jiji-host for this machine in this jiji.
    #[error("start jiji-host on `{host}`: this jiji carries none for `{architecture}`")]
    NoProgram {
        /// The server.
        host: HostName,
        /// What `uname -m` said there, or what this jiji was asked for.
        architecture: String,
    },
    /// jiji-host arrived with other bytes than it was sent with.
    #[error("install jiji-host on `{host}`: {cause}")]
    Install {
        /// The server.
        host: HostName,
        /// What went wrong.
        cause: String,
    },
    /// jiji-host is there and does not run.
    #[error("start jiji-host on `{host}`: {cause}")]
    NotStarted {
        /// The server.
        host: HostName,
        /// What was seen instead of its greeting.
        cause: String,
    },
    /// jiji-host speaks another version of the protocol.
    #[error("speak with jiji-host on `{host}`: protocol {theirs}, expected {ours}", ours = jiji_model::protocol::VERSION)]
    Version {
        /// The server.
        host: HostName,
        /// Its version.
        theirs: u32,
    },
    /// The session ended, or nothing came for too long. What was asked may have happened.
    #[error("{doing} on `{host}`: {cause}")]
    Lost {
        /// The server.
        host: HostName,
        /// What was asked, an imperative.
        doing: &'static str,
        /// How it was lost.
        cause: LostCause,
    },
    /// The host refused, or failed before any effect.
    #[error("{doing} on `{host}`: {message}")]
    Refused {
        /// The server.
        host: HostName,
        /// What was asked, an imperative.
        doing: &'static str,
        /// Why.
        why: RefusalKind,
        /// For people.
        message: String,
    },
    /// The host answered something that does not answer what was asked.
    #[error("{doing} on `{host}`: the answer is of another kind")]
    Unexpected {
        /// The server.
        host: HostName,
        /// What was asked, an imperative.
        doing: &'static str,
    },
    /// A blob that should be sent cannot be read here.
    #[error("read a blob for `{host}`")]
    Store {
        /// The server.
        host: HostName,
        /// What the store said.
        source: Arc<StoreError>,
    },
    /// A blob was sent and is not whole on the host.
    #[error("send blob `{digest}` to `{host}`: it did not arrive whole")]
    Blob {
        /// The server.
        host: HostName,
        /// The blob.
        digest: Digest,
    },
}

/// How a session was lost.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LostCause {
    /// The other end closed it.
    #[error("the connection ended{}", said(stderr))]
    Closed {
        /// The end of what it wrote to standard error.
        stderr: String,
    },
    /// Nothing came for so long.
    #[error("no answer for {seconds} seconds")]
    Silent {
        /// How long, in seconds.
        seconds: u64,
    },
    /// What came is not the protocol.
    #[error("{0}")]
    Garbled(Arc<FrameError>),
    /// A newer holder took the lease, and the host ended the session.
    #[error("another run of jiji took the lease")]
    LeaseLost,
    /// This end closed it.
    #[error("the session was closed")]
    Left,
}

fn said(stderr: &str) -> String {
    let last = stderr.lines().rev().find(|line| !line.trim().is_empty());
    last.map_or_else(String::new, |line| format!(" (`{}`)", line.trim()))
}

impl FleetError {
    /// The server that it is about, where it is about one.
    pub fn host(&self) -> Option<&HostName> {
        match self {
            Self::ControlDirectory { .. } | Self::ControlPath { .. } | Self::Config { .. } => None,
            Self::UnknownHost { host }
            | Self::Address { host, .. }
            | Self::Unreachable { host, .. }
            | Self::NoSudo { host }
            | Self::Shell { host, .. }
            | Self::NoProgram { host, .. }
            | Self::Install { host, .. }
            | Self::NotStarted { host, .. }
            | Self::Version { host, .. }
            | Self::Lost { host, .. }
            | Self::Refused { host, .. }
            | Self::Unexpected { host, .. }
            | Self::Store { host, .. }
            | Self::Blob { host, .. } => Some(host),
        }
    }

    /// Whether it is unknown what the host did, so that it stays in doubt until it is reached again.
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Lost { .. })
    }

    /// The exit code of a command that failed for this alone: 6 where a host could not be reached or was lost, 2 where the
    /// configuration is wrong, 15 where a newer jiji was there, 1 for the rest.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::UnknownHost { .. } | Self::Address { .. } | Self::Config { .. } | Self::NoProgram { .. } => 2,
            Self::Unreachable { .. }
            | Self::NoSudo { .. }
            | Self::Shell { .. }
            | Self::Install { .. }
            | Self::NotStarted { .. }
            | Self::Lost { .. } => 6,
            Self::Version { .. } => 15,
            Self::Refused { why, .. } => match why {
                RefusalKind::NewerFormat | RefusalKind::Unsupported | RefusalKind::OpenTransaction => 15,
                RefusalKind::NoLease => 10,
                RefusalKind::NoTransaction | RefusalKind::OutOfOrder | RefusalKind::Io | RefusalKind::Absent => 1,
            },
            Self::ControlDirectory { .. }
            | Self::ControlPath { .. }
            | Self::Unexpected { .. }
            | Self::Store { .. }
            | Self::Blob { .. } => 1,
        }
    }

    /// What a person can do, where there is something.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::UnknownHost { .. } => Some("servers are listed under `servers` in `.jiji/deploy.yml`".to_owned()),
            Self::Unreachable { host, address, cause } => Some(if cause.contains("ost key verification failed") {
                format!(
                    "`{address}` is not in known_hosts, or its key changed; connect once with `ssh {address}` and compare the key"
                )
            } else if cause.contains("ermission denied") {
                format!("check `ssh.user` and `ssh.keys`, or the agent; jiji uses what `ssh {address}` would use")
            } else {
                format!("try `ssh {address}`; the address of `{host}` stands under `servers` in `.jiji/deploy.yml`")
            }),
            Self::NoSudo { host } => {
                Some(format!("connect to `{host}` as root, or give the user `NOPASSWD` in sudoers"))
            }
            Self::Shell { .. } => Some("the login shell must be able to run `sh -c`".to_owned()),
            Self::NoProgram { architecture, .. } => Some(format!(
                "install a jiji that carries jiji-host for `{architecture}`; `cargo xtask build` makes one"
            )),
            Self::Install { .. } => Some("check the free space under /var/lib/jiji there".to_owned()),
            Self::NotStarted { .. } => Some("check that /var is not mounted `noexec` there".to_owned()),
            Self::ControlPath { .. } => Some("set XDG_RUNTIME_DIR to a shorter path".to_owned()),
            Self::Lost { .. } => Some("`jiji abort` settles what is in doubt as soon as the host answers".to_owned()),
            Self::Refused { why, .. } => match why {
                RefusalKind::NewerFormat => Some("a newer jiji wrote this host's records; update jiji".to_owned()),
                RefusalKind::NoLease => Some("another run of jiji is at work; see `jiji status`".to_owned()),
                _ => None,
            },
            _ => None,
        }
    }
}
