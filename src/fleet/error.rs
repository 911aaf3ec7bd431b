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
    /// The ssh configuration file that the project names has a line that such a file may not have.
    #[error("use the ssh configuration `{path}`: line {line} has `{directive}`", path = path.display())]
    ConfigRefused {
        /// The file.
        path: PathBuf,
        /// The line's number.
        line: usize,
        /// What it begins with.
        directive: String,
        /// Why not.
        why: &'static str,
    },
    /// There is no ssh on this machine.
    #[error("start `ssh` on this machine")]
    NoSsh {
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// ssh does not understand the user's configuration.
    #[error("connect to `{host}`: ssh does not take its configuration: {cause}")]
    SshConfig {
        /// The server.
        host: HostName,
        /// What ssh said.
        cause: String,
    },
    /// Nobody has vouched for the host key.
    #[error("connect to `{host}` at `{address}`: the host key{} is not known", of_key(key.as_deref(), name))]
    HostKeyUnknown {
        /// The server.
        host: HostName,
        /// What ssh connected to.
        address: String,
        /// Whose key: the server's name for ssh, or a jump host's.
        name: String,
        /// The key as it is now, such as `ED25519 SHA256:… of NAME`, where it could be had.
        key: Option<String>,
        /// Where `--accept-new` would write it.
        file: String,
    },
    /// The host key is another than the known one.
    #[error("connect to `{host}` at `{address}`: the host key of `{name}` has changed; it is now {key}")]
    HostKeyChanged {
        /// The server.
        host: HostName,
        /// What ssh connected to.
        address: String,
        /// Whose key.
        name: String,
        /// The key as it is now, such as `ED25519 SHA256:…`.
        key: String,
        /// File and line of the known one.
        known: String,
    },
    /// The server takes none of the keys, or not this user.
    #[error("log in to `{host}` at `{address}`{}: permission denied ({methods})", as_user(user.as_deref()))]
    Denied {
        /// The server.
        host: HostName,
        /// What ssh connected to.
        address: String,
        /// As whom.
        user: Option<String>,
        /// What the server would have taken.
        methods: String,
    },
    /// The server lets this user in only to say that another is to be used, as images of cloud providers do for root.
    #[error("log in to `{host}`: it asks for the user `{user}`")]
    WrongUser {
        /// The server.
        host: HostName,
        /// Whom it names.
        user: String,
    },
    /// The server's name leads nowhere.
    #[error("find `{name}`, the address of `{host}`: no such name")]
    NoName {
        /// The server.
        host: HostName,
        /// The name.
        name: String,
    },
    /// The server does not answer.
    #[error("connect to `{host}` at `{address}`: no answer within {seconds} seconds")]
    TimedOut {
        /// The server.
        host: HostName,
        /// What ssh connected to.
        address: String,
        /// How long, in seconds.
        seconds: u64,
    },
    /// The server, or the jump host, ended the connection before it said who it is.
    #[error("connect to `{host}` at `{address}`: it ended the connection at once, several times")]
    Dropped {
        /// The server.
        host: HostName,
        /// What ssh connected to.
        address: String,
    },
    /// ssh could not connect for another cause.
    #[error("connect to `{host}` at `{address}`: {cause}")]
    Unreachable {
        /// The server.
        host: HostName,
        /// What ssh connected to.
        address: String,
        /// What ssh said.
        cause: String,
    },
    /// The user is not root and may not become root without a password.
    #[error("become root on `{host}` as `{user}`: {cause}")]
    NoSudo {
        /// The server.
        host: HostName,
        /// Who the user is there.
        user: String,
        /// What `sudo -n` said.
        cause: String,
    },
    /// The user is not root and there is no `sudo`.
    #[error("become root on `{host}` as `{user}`: `sudo` is not installed there")]
    SudoMissing {
        /// The server.
        host: HostName,
        /// Who the user is there.
        user: String,
    },
    /// The user is root, and everything was to be done as a user who is not.
    #[error("use a user's own Podman on `{host}`: the user there is root")]
    IsRoot {
        /// The server.
        host: HostName,
    },
    /// There is no room for jiji-host.
    #[error("install jiji-host on `{host}`: the disk under {directory} is full")]
    DiskFull {
        /// The server.
        host: HostName,
        /// Where everything lies there.
        directory: &'static str,
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
        /// Where everything lies there.
        directory: &'static str,
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

fn of_key(key: Option<&str>, name: &str) -> String {
    key.map_or_else(|| format!(" of {name}"), |key| format!(" {key}"))
}

fn as_user(user: Option<&str>) -> String {
    user.map_or_else(String::new, |user| format!(" as `{user}`"))
}

/// The line of sudoers(5) that lets this user become root without a password. A name that could be taken for something else in that
/// file is left to the person.
fn sudoers(user: &str) -> String {
    let plain = !user.is_empty() && user.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    format!("{} ALL=(root) NOPASSWD: ALL", if plain { user } else { "USER" })
}

impl FleetError {
    /// The server that it is about, where it is about one.
    pub fn host(&self) -> Option<&HostName> {
        match self {
            Self::ControlDirectory { .. }
            | Self::ControlPath { .. }
            | Self::Config { .. }
            | Self::ConfigRefused { .. }
            | Self::NoSsh { .. } => None,
            Self::UnknownHost { host }
            | Self::Address { host, .. }
            | Self::SshConfig { host, .. }
            | Self::HostKeyUnknown { host, .. }
            | Self::HostKeyChanged { host, .. }
            | Self::Denied { host, .. }
            | Self::WrongUser { host, .. }
            | Self::NoName { host, .. }
            | Self::TimedOut { host, .. }
            | Self::Dropped { host, .. }
            | Self::Unreachable { host, .. }
            | Self::NoSudo { host, .. }
            | Self::SudoMissing { host, .. }
            | Self::IsRoot { host }
            | Self::DiskFull { host, .. }
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
    /// configuration is wrong, 15 where the host was reached and is not fit, 1 for the rest.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::UnknownHost { .. }
            | Self::Address { .. }
            | Self::Config { .. }
            | Self::ConfigRefused { .. }
            | Self::NoSsh { .. }
            | Self::SshConfig { .. }
            | Self::IsRoot { .. }
            | Self::NoProgram { .. } => 2,
            Self::NoSudo { .. } | Self::SudoMissing { .. } | Self::DiskFull { .. } => 15,
            Self::HostKeyUnknown { .. }
            | Self::HostKeyChanged { .. }
            | Self::Denied { .. }
            | Self::WrongUser { .. }
            | Self::NoName { .. }
            | Self::TimedOut { .. }
            | Self::Dropped { .. }
            | Self::Unreachable { .. }
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
            Self::ConfigRefused { why, .. } => Some(format!(
                "{why}; leave out `ssh.config` and write it to your own `~/.ssh/config`, which no change of a project reaches"
            )),
            Self::NoSsh { .. } => Some("install the OpenSSH client (`apt install openssh-client`)".to_owned()),
            Self::HostKeyUnknown { file, .. } => Some(format!(
                "compare it with `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` on that machine's console; \
                 `--accept-new` then pins it in `{file}`"
            )),
            Self::HostKeyChanged { name, known, .. } => Some(format!(
                "the known one stands in `{known}`; unless the machine was made anew, somebody may be between: compare the key on its \
                 console, then remove the old one with `ssh-keygen -R {name}`. `--accept-new` does not take a changed key"
            )),
            Self::Denied { user, address, methods, .. } => Some(if methods.starts_with("too many") {
                "name the key under `ssh.keys`, so that no others are tried".to_owned()
            } else {
                let user = user
                    .as_ref()
                    .map_or_else(String::new, |user| format!("`{user}` is the wrong user (`ssh.user`), or "));
                format!(
                    "{user}the key is not in its `authorized_keys`, or has a passphrase and is not in the agent (`ssh-add -l`); \
                     try `ssh {address}`"
                )
            }),
            Self::WrongUser { user, .. } => {
                Some(format!("set `user: {user}` for the server; jiji goes through `sudo -n` then"))
            }
            Self::NoName { host, .. } => Some(format!(
                "check the spelling of `servers.{host}.host` in `.jiji/deploy.yml`, or add the name to `~/.ssh/config`"
            )),
            Self::TimedOut { address, .. } => Some(format!(
                "is the machine on, and port 22 open to this one? Try `ssh {address}`; `ssh.connect_timeout` gives it longer"
            )),
            Self::Dropped { .. } => Some(
                "its sshd has too many connections under way (`MaxStartups`), or a firewall has shut this machine out"
                    .to_owned(),
            ),
            Self::Unreachable { host, address, .. } => Some(format!(
                "try `ssh {address}`; the address of `{host}` stands under `servers` in `.jiji/deploy.yml`"
            )),
            Self::NoSudo { user, .. } => Some(format!(
                "add the line `{}` there with `visudo -f /etc/sudoers.d/jiji`, or connect as root",
                sudoers(user)
            )),
            Self::SudoMissing { user, .. } => Some(format!(
                "`apt install sudo` there, then add the line `{}` with `visudo -f /etc/sudoers.d/jiji`; or connect as root",
                sudoers(user)
            )),
            Self::IsRoot { .. } => Some(
                "say with `user` whose Podman it is, or leave `rootless` out: root's containers need no such thing"
                    .to_owned(),
            ),
            Self::DiskFull { directory, .. } => Some(format!(
                "`df -h {directory}` and `docker system df` or `podman system df` there tell what takes it"
            )),
            Self::Shell { .. } => Some("the login shell must be able to run `sh -c`".to_owned()),
            Self::NoProgram { architecture, .. } => Some(format!(
                "install a jiji that carries jiji-host for `{architecture}`; `cargo xtask build` makes one"
            )),
            Self::Install { directory, .. } => Some(format!("check the free space under {directory} there")),
            Self::NotStarted { .. } => {
                Some("check that /var, or with `rootless` the user's home, is not mounted `noexec` there".to_owned())
            }
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
