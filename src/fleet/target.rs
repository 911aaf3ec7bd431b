//! How a server is reached, worked out from the project.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiji_model::name::HostName;
use jiji_model::project::{Engine, Project};

use super::bootstrap::Manner;
use super::error::FleetError;

/// Seconds that a connection may take where the project says nothing.
const CONNECT_TIMEOUT_S: u32 = 10;

/// A server, and how to reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its name in the project.
    pub host: HostName,
    /// The engine that the configuration chooses for it.
    pub engine: Option<Engine>,
    /// Whether everything there is done as the user who logs in, with a Podman of their own.
    pub rootless: bool,
    /// The way there.
    pub transport: Transport,
}

/// The way to a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// Through the user's ssh.
    Ssh(SshTarget),
    /// This machine: no ssh.
    Local,
}

/// An ssh configuration file, by who names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigFile {
    /// The project: it may say where and as whom to connect, and nothing else.
    Project(PathBuf),
    /// The person who runs jiji: it counts as their own does.
    Person(PathBuf),
}

/// What ssh is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshTarget {
    /// Host name, address, or a name from the ssh configuration.
    pub address: String,
    /// User name, else ssh's.
    pub user: Option<String>,
    /// Port, else ssh's.
    pub port: Option<u16>,
    /// Jump hosts in order, else ssh's.
    pub jump: Vec<String>,
    /// Identity files; where there are some, no others are tried.
    pub keys: Vec<String>,
    /// An ssh configuration file to use instead of the user's and the system's.
    pub config: Option<ConfigFile>,
    /// How long the connection may take.
    pub connect_timeout: Duration,
}

impl Target {
    /// How `project` reaches `host`.
    ///
    /// # Errors
    /// [`FleetError::UnknownHost`], [`FleetError::Address`].
    pub fn of(project: &Project, host: &HostName) -> Result<Self, FleetError> {
        let server = project.servers.get(host).ok_or_else(|| FleetError::UnknownHost { host: host.clone() })?;
        let rootless = server.rootless;
        let engine = if rootless { Some(Engine::Podman) } else { server.engine.or(project.builder.engine) };
        if server.is_local() {
            return Ok(Self { host: host.clone(), engine, rootless, transport: Transport::Local });
        }
        let ssh = &project.ssh;
        let jump = ssh.proxy_jump.as_deref().unwrap_or_default();
        let target = SshTarget {
            address: server.address.clone(),
            user: server.user.clone().or_else(|| ssh.user.clone()),
            port: server.port.or(ssh.port),
            jump: jump.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect(),
            keys: ssh.keys.clone(),
            config: ssh.config.as_ref().map(|path| ConfigFile::Project(path.into())),
            connect_timeout: Duration::from_secs(ssh.connect_timeout.unwrap_or(CONNECT_TIMEOUT_S).max(1).into()),
        };
        target.check(host)?;
        Ok(Self { host: host.clone(), engine, rootless, transport: Transport::Ssh(target) })
    }

    /// How `jiji-host` is to work there.
    pub(super) fn manner(&self) -> Manner {
        Manner { engine: self.engine, rootless: self.rootless }
    }
}

/// What an address may begin with.
const SCHEME: &str = "ssh://";

/// What an address begins with where everything is done as the user who logs in.
const SCHEME_ROOTLESS: &str = "rootless+ssh://";

impl Target {
    /// A server by its address alone, such as a journal or a person gives it: `[ssh://][USER@]HOST[:PORT]`, an IPv6 address in brackets;
    /// what ssh is not told this way, the user's own configuration says. `rootless+ssh://` is one where everything is the user's own.
    ///
    /// # Errors
    /// [`FleetError::Address`].
    pub fn at(host: &HostName, url: &str) -> Result<Self, FleetError> {
        let refuse = || FleetError::Address {
            host: host.clone(),
            text: url.to_owned(),
            what: "an address in the form `ssh://[USER@]HOST[:PORT]`",
        };
        let (rootless, text) = match url.strip_prefix(SCHEME_ROOTLESS) {
            Some(text) => (true, text),
            None => (false, url.strip_prefix(SCHEME).unwrap_or(url)),
        };
        let text = text.strip_suffix('/').unwrap_or(text);
        let (user, place) = match text.rsplit_once('@') {
            Some((user, place)) => (Some(user.to_owned()), place),
            None => (None, text),
        };
        let (address, port) = match place.strip_prefix('[').and_then(|place| place.split_once(']')) {
            Some((address, "")) => (address, None),
            Some((address, port)) => (address, Some(port.strip_prefix(':').ok_or_else(refuse)?)),
            // Of two colons or more, none stands before a port.
            None if place.matches(':').count() > 1 => (place, None),
            None => place.split_once(':').map_or((place, None), |(address, port)| (address, Some(port))),
        };
        let port = port.map(|port| port.parse().ok().filter(|port| *port > 0).ok_or_else(refuse)).transpose()?;
        let target = SshTarget {
            address: address.to_owned(),
            user,
            port,
            jump: Vec::new(),
            keys: Vec::new(),
            config: None,
            connect_timeout: Duration::from_secs(CONNECT_TIMEOUT_S.into()),
        };
        target.check(host)?;
        let engine = rootless.then_some(Engine::Podman);
        Ok(Self { host: host.clone(), engine, rootless, transport: Transport::Ssh(target) })
    }

    /// The same with another ssh configuration than the user's, which the person named who runs jiji.
    #[must_use]
    pub fn configured_by(mut self, file: &Path) -> Self {
        if let Transport::Ssh(ssh) = &mut self.transport {
            ssh.config = Some(ConfigFile::Person(file.to_owned()));
        }
        self
    }

    /// How ssh is asked for it, in the form that [`Self::at`] reads; none for this machine.
    pub fn url(&self) -> Option<String> {
        let Transport::Ssh(ssh) = &self.transport else { return None };
        let user = ssh.user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
        let port = ssh.port.map(|port| format!(":{port}")).unwrap_or_default();
        let address = if ssh.address.contains(':') { format!("[{}]", ssh.address) } else { ssh.address.clone() };
        let scheme = if self.rootless { SCHEME_ROOTLESS } else { SCHEME };
        Some(format!("{scheme}{user}{address}{port}"))
    }
}

impl SshTarget {
    /// ssh takes these as arguments and expands them into the commands of a `ProxyCommand`, so they hold nothing but names.
    fn check(&self, host: &HostName) -> Result<(), FleetError> {
        let refuse = |text: &str, what| Err(FleetError::Address { host: host.clone(), text: text.to_owned(), what });
        let plain = |text: &str, others: &[u8]| {
            !text.is_empty()
                && !text.starts_with('-')
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_') || others.contains(&b))
        };
        if !plain(&self.address, b":[]%") {
            return refuse(&self.address, "a host name or address");
        }
        if let Some(user) = self.user.as_deref().filter(|user| !plain(user, b"@\\")) {
            return refuse(user, "a user name");
        }
        if let Some(jump) = self.jump.iter().find(|jump| !plain(jump, b"@:[]%/")) {
            return refuse(jump, "a jump host in the form `[USER@]HOST[:PORT]`");
        }
        let quotable = |text: &str| !text.is_empty() && !text.contains('"') && !text.chars().any(char::is_control);
        match self.keys.iter().find(|key| !quotable(key)) {
            Some(key) => refuse(key, "the path of an identity file"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(address: &str) -> SshTarget {
        SshTarget {
            address: address.to_owned(),
            user: None,
            port: None,
            jump: Vec::new(),
            keys: Vec::new(),
            config: None,
            connect_timeout: Duration::from_secs(1),
        }
    }

    #[test]
    fn nothing_that_ssh_could_take_for_an_option_or_a_command_is_an_address() {
        let host = HostName::new("one").expect("a name");
        for address in ["h", "h.example", "10.0.0.1", "fe80::1%eth0"] {
            assert!(target(address).check(&host).is_ok(), "{address}");
        }
        for address in ["", "-oProxyCommand=x", "a b", "a;b", "$(x)", "a\nb", "`x`", "a'b"] {
            assert!(target(address).check(&host).is_err(), "{address}");
        }
        let keys = SshTarget { keys: vec!["a\"\nProxyCommand x".to_owned()], ..target("h") };
        assert!(keys.check(&host).is_err());
    }

    #[test]
    fn an_address_is_written_as_it_is_read_and_holds_no_option() {
        let host = HostName::new("one").expect("a name");
        for (text, url) in [
            ("root@10.0.0.5:2222", "ssh://root@10.0.0.5:2222"),
            ("ssh://fra1", "ssh://fra1"),
            ("ssh://root@[fe80::1]:22/", "ssh://root@[fe80::1]:22"),
            ("::1", "ssh://[::1]"),
            ("rootless+ssh://ann@h", "rootless+ssh://ann@h"),
        ] {
            let target = Target::at(&host, text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(target.url().as_deref(), Some(url));
            assert_eq!(Target::at(&host, url).expect("its own form"), target);
        }
        for text in ["", "ssh://", "-oProxyCommand=x", "ssh://-x@h", "h:0", "h:x", "[::1]22", "a b", "http://h"] {
            assert!(Target::at(&host, text).is_err(), "{text}");
        }
    }
}
