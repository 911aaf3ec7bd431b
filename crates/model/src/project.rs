//! A validated deployment: what `deploy.yml` means once every rule was checked.
//!
//! `config` builds a [`Project`] and nobody else does; a value of this type names only servers that exist, has at least one service,
//! and holds no secret value, only names of secrets.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::image::Compression;
use crate::mesh::Endpoint;
use crate::name::{AbsPath, HostName, PluginName, ProjectName, SecretName, ServiceName};
use crate::reference::Reference;

/// One project in one environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Project {
    /// The project's name: the scope of releases, journals and leases on every host.
    pub name: ProjectName,
    /// The environment (`-e`), or none for the base file alone. Part of the scope.
    pub environment: Option<String>,
    /// How images are built and where they are kept.
    pub builder: Builder,
    /// How servers are reached.
    pub ssh: Ssh,
    /// The servers, by the name that services use.
    pub servers: BTreeMap<HostName, Server>,
    /// The services.
    pub services: BTreeMap<ServiceName, Service>,
    /// How a change goes over the hosts.
    pub rollout: Rollout,
    /// Which plugin fills each role.
    pub plugins: Plugins,
    /// The plugin that connects the servers; none where nothing does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<PluginChoice>,
}

impl Project {
    /// The name under which hosts keep this project's records: `NAME` or `NAME.ENVIRONMENT`. A project's name has no dot, so no project
    /// of another name has the same scope.
    pub fn scope(&self) -> String {
        match &self.environment {
            Some(environment) => format!("{}.{environment}", self.name),
            None => self.name.to_string(),
        }
    }

    /// Servers that at least one service runs on, in name order.
    pub fn used_servers(&self) -> impl Iterator<Item = (&HostName, &Server)> {
        let used: BTreeSet<&HostName> = self.services.values().flat_map(|service| &service.hosts).collect();
        self.servers.iter().filter(move |(name, _)| used.contains(name))
    }

    /// The services of every server: for those who look at one server after the other, which [`Self::services_on`] would make a search
    /// through all hosts of all services each time.
    pub fn placement(&self) -> Placement<'_> {
        let mut placement: BTreeMap<&HostName, Vec<_>> = BTreeMap::new();
        for (name, service) in &self.services {
            for host in &service.hosts {
                placement.entry(host).or_default().push((name, service));
            }
        }
        Placement(placement)
    }

    /// Services that run on `host`, in name order.
    pub fn services_on<'a>(&'a self, host: &'a HostName) -> impl Iterator<Item = (&'a ServiceName, &'a Service)> {
        self.services.iter().filter(move |(_, service)| service.hosts.contains(host))
    }
}

/// The services of every server. Made by [`Project::placement`].
#[derive(Debug, Clone)]
pub struct Placement<'a>(BTreeMap<&'a HostName, Vec<(&'a ServiceName, &'a Service)>>);

impl<'a> Placement<'a> {
    /// Services that run on `host`, in name order.
    pub fn on(&self, host: &HostName) -> &[(&'a ServiceName, &'a Service)] {
        self.0.get(host).map_or(&[], Vec::as_slice)
    }
}

/// How images are built and where they are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Builder {
    /// The container engine on the servers, where it cannot be told from the host: both are installed.
    pub engine: Option<Engine>,
    /// A registry to push to. Without one, blobs go to the hosts only.
    pub registry: Option<Registry>,
    /// Where a registry's content may be had from instead: registry host to mirrors, tried in order before the registry itself.
    pub mirrors: BTreeMap<String, Vec<RegistryServer>>,
}

/// A container engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// Docker Engine.
    Docker,
    /// Podman.
    Podman,
}

impl Engine {
    /// The name of its program.
    pub fn program(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
        }
    }
}

impl std::fmt::Display for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.program())
    }
}

/// `HOST[:PORT]` of a registry and how to speak to it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RegistryServer {
    /// `HOST[:PORT]`, no scheme.
    pub authority: String,
    /// Plain HTTP: written `http://HOST:PORT` in the configuration, and the default for loopback.
    pub plain_http: bool,
}

/// A registry to push to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registry {
    /// Where.
    pub server: RegistryServer,
    /// A path below the server that repositories are put under, such as `acme`.
    pub namespace: Option<String>,
    /// User name.
    pub username: Option<String>,
    /// The secret that holds the password.
    pub password: Option<SecretName>,
}

/// How servers are reached, for all that say nothing else. The user's own ssh configuration applies below this.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ssh {
    /// User name.
    pub user: Option<String>,
    /// Port.
    pub port: Option<u16>,
    /// Jump hosts, in ssh's `ProxyJump` form.
    pub proxy_jump: Option<String>,
    /// Identity files.
    pub keys: Vec<String>,
    /// An ssh configuration file to use instead of the user's.
    pub config: Option<String>,
    /// Seconds to wait for a connection.
    pub connect_timeout: Option<u32>,
}

/// A server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// What ssh connects to, or `localhost` for this machine without SSH.
    pub address: String,
    /// User name, before the project's.
    pub user: Option<String>,
    /// Port, before the project's.
    pub port: Option<u16>,
    /// The engine, before the project's.
    pub engine: Option<Engine>,
    /// Whether everything there is done as the user who logs in, with a Podman of their own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rootless: bool,
    /// Where other servers reach it, where that is elsewhere than ssh does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<ServerEndpoint>,
}

/// Where other servers reach a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerEndpoint {
    /// A name or an address, without brackets.
    pub host: String,
    /// The UDP port there, where it is another one than the server listens on.
    pub port: Option<u16>,
}

impl FromStr for ServerEndpoint {
    type Err = crate::mesh::MeshTextError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        if Endpoint::is_host(bare) && (bare == text || bare.contains(':')) {
            return Ok(Self { host: bare.to_owned(), port: None });
        }
        let Endpoint { host, port } = text.parse()?;
        Ok(Self { host, port: Some(port) })
    }
}

impl Server {
    /// Whether this machine itself is meant, so that no SSH is needed.
    pub fn is_local(&self) -> bool {
        self.address == "localhost"
    }
}

/// How a change goes over the hosts: in which batches they are cut over, and how long the new version is watched before it is decided.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rollout {
    /// How many hosts are cut over at once, at least 1. None: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_parallel: Option<u32>,
    /// Servers that are cut over before all others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub canary: Vec<HostName>,
    /// Milliseconds between two batches.
    #[serde(skip_serializing_if = "is_zero")]
    pub wait_ms: u32,
    /// Milliseconds for which candidates are watched after all hosts were cut over.
    #[serde(skip_serializing_if = "is_zero")]
    pub hold_ms: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields by reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Rollout {
    /// Whether nothing special is wished for.
    pub fn is_plain(&self) -> bool {
        *self == Self::default()
    }

    /// The hosts in the batches in which they are cut over: canaries first, then the others in their order.
    pub fn batches(&self, hosts: &[HostName]) -> Vec<Vec<HostName>> {
        let (canaries, others): (Vec<_>, Vec<_>) = hosts.iter().cloned().partition(|host| self.canary.contains(host));
        let most = self.max_parallel.map_or(usize::MAX, |most| usize::try_from(most.max(1)).unwrap_or(usize::MAX));
        let batches = |hosts: &[HostName]| hosts.chunks(most).map(<[HostName]>::to_vec).collect::<Vec<_>>();
        let mut all = batches(&canaries);
        all.extend(batches(&others));
        all
    }
}

/// A service: one image, run once on each of its hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Where its image comes from.
    pub source: Source,
    /// The servers it runs on, at least one, none twice.
    pub hosts: Vec<HostName>,
    /// Its environment, the project's merged in.
    pub environment: Environment,
    /// Arguments instead of the image's command.
    pub command: Option<Vec<String>>,
    /// Volumes and directories of the host.
    pub volumes: Vec<Mount>,
    /// How it is reached from outside, if it is.
    pub proxy: Option<Proxy>,
    /// How its health is told. Where a service has a proxy, `proxy.healthcheck` in the configuration lands here too.
    pub healthcheck: Option<HealthCheck>,
    /// How many releases stay on each host, the running one counted. At least 1.
    pub retain: u32,
    /// Seconds between SIGTERM and SIGKILL.
    pub stop_timeout: u32,
    /// Seconds that requests under way get to end after the proxy has moved on.
    pub drain_timeout: u32,
}

impl Service {
    /// Names of the secrets that its hosts need: those of its environment and of its certificate.
    pub fn secrets(&self) -> impl Iterator<Item = &SecretName> {
        let certificate = self.proxy.iter().filter_map(|proxy| proxy.certificate.as_ref());
        let certificate = certificate.flat_map(|certificate| [&certificate.chain, &certificate.key]);
        self.environment.secrets.iter().chain(certificate)
    }
}

/// Where a service's image comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// A registry's image, by tag or digest. A tag is resolved once, into `jiji.lock`.
    Image(String),
    /// Built from source.
    Build(Build),
}

/// The language of the file that says how an image is built.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Frontend {
    /// That of `docker/dockerfile`.
    #[default]
    Dockerfile,
    /// jiji's own.
    Recipe,
}

impl Frontend {
    fn is_dockerfile(&self) -> bool {
        *self == Self::Dockerfile
    }
}

/// What to build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    /// The context directory, relative to the project's root.
    pub context: String,
    /// The file that says how, relative to the context: a Dockerfile or a recipe. Kept plans know it by the name that it had first.
    #[serde(rename = "dockerfile")]
    pub file: String,
    /// Which of the two.
    #[serde(default, skip_serializing_if = "Frontend::is_dockerfile")]
    pub frontend: Frontend,
    /// Build arguments.
    pub args: BTreeMap<String, String>,
    /// The stage to build instead of the last.
    pub target: Option<String>,
    /// Secrets that `RUN --mount=type=secret` may ask for by their names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretName>,
    /// What names stand for in FROM, `COPY --from` and `RUN --mount=from=`. Directories are relative to the project's root.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub contexts: BTreeMap<String, NamedContext>,
    /// Agents that `RUN --mount=type=ssh` may ask to sign, by their ids.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ssh: Vec<String>,
    /// How the layers that are made are compressed.
    #[serde(default, skip_serializing_if = "Compression::is_default")]
    pub compression: Compression,
}

/// What a name stands for in a Dockerfile, written as Docker writes it (`--build-context NAME=…`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum NamedContext {
    /// A directory: its files as COPY makes them.
    Directory(PathBuf),
    /// An image of a registry: `docker-image://REFERENCE`.
    Image(String),
    /// An image in a directory that is an OCI image layout: `oci-layout://DIRECTORY[:TAG][@DIGEST]`.
    Layout {
        /// The directory.
        directory: PathBuf,
        /// Which of its images, by tag or digest.
        version: Option<String>,
    },
}

/// A text that says no context.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no context: expected a directory, `docker-image://REFERENCE` or `oci-layout://DIRECTORY[:TAG]`")]
pub struct ParseContextError {
    /// The text.
    pub text: String,
}

impl NamedContext {
    /// The same, with its directory below another.
    #[must_use]
    pub fn below(self, root: &Path) -> Self {
        match self {
            Self::Directory(directory) => Self::Directory(root.join(directory)),
            Self::Layout { directory, version } => Self::Layout { directory: root.join(directory), version },
            Self::Image(reference) => Self::Image(reference),
        }
    }

    /// The directory that it is in, if it is in one.
    pub fn directory(&self) -> Option<&Path> {
        match self {
            Self::Directory(directory) | Self::Layout { directory, .. } => Some(directory),
            Self::Image(_) => None,
        }
    }
}

impl FromStr for NamedContext {
    type Err = ParseContextError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || ParseContextError { text: text.chars().take(80).collect() };
        let good = !text.is_empty() && text.len() <= 4096 && !text.chars().any(char::is_control);
        match text.split_once("://") {
            _ if !good => Err(refused()),
            // Docker knows these as well: another target, a repository.
            None if text.starts_with("target:") || text.starts_with("git@") => Err(refused()),
            None => Ok(Self::Directory(PathBuf::from(text))),
            Some(("docker-image", reference)) if reference.parse::<Reference>().is_ok() => {
                Ok(Self::Image(reference.to_owned()))
            }
            Some(("oci-layout", rest)) => {
                let (rest, digest) = match rest.split_once('@') {
                    Some((rest, digest)) => (rest, Some(digest)),
                    None => (rest, None),
                };
                let name = rest.rsplit('/').next().unwrap_or_default();
                let (directory, tag) = match name.split_once(':') {
                    Some((_, tag)) => (&rest[..rest.len() - tag.len() - 1], Some(tag)),
                    None => (rest, None),
                };
                if directory.is_empty() || digest.is_some_and(|digest| digest.parse::<Digest>().is_err()) {
                    return Err(refused());
                }
                let version = digest.or(tag).map(str::to_owned);
                Ok(Self::Layout { directory: PathBuf::from(directory), version })
            }
            Some(_) => Err(refused()),
        }
    }
}

impl TryFrom<String> for NamedContext {
    type Error = ParseContextError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<NamedContext> for String {
    fn from(context: NamedContext) -> Self {
        match context {
            NamedContext::Directory(directory) => directory.display().to_string(),
            NamedContext::Image(reference) => format!("docker-image://{reference}"),
            NamedContext::Layout { directory, version } => {
                let directory = directory.display();
                match version {
                    None => format!("oci-layout://{directory}"),
                    Some(digest) if digest.starts_with("sha256:") => format!("oci-layout://{directory}@{digest}"),
                    Some(tag) => format!("oci-layout://{directory}:{tag}"),
                }
            }
        }
    }
}

/// A service's environment variables.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// Values that anybody may see.
    pub clear: BTreeMap<String, String>,
    /// Names of secrets; each becomes the variable of that name.
    pub secrets: Vec<SecretName>,
}

/// Something of the host that a container sees.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Mount {
    /// What is mounted.
    pub source: MountSource,
    /// Where in the container.
    pub target: AbsPath,
    /// Whether the container may only read it.
    pub read_only: bool,
}

/// What a [`Mount`] shows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountSource {
    /// A volume of the engine, by name.
    Volume(String),
    /// A path of the host.
    Bind(AbsPath),
    /// Memory that is gone with the container.
    Tmpfs,
}

/// How a service is reached from outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proxy {
    /// The port the application listens on in its container.
    pub app_port: u16,
    /// Host names that are routed to it. Empty: all that no other service takes.
    pub hosts: Vec<String>,
    /// A path prefix that is routed to it, `/` for everything.
    pub path_prefix: String,
    /// Whether the proxy speaks TLS for these hosts.
    pub ssl: bool,
    /// The certificate to speak it with. None: the proxy gets one by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<Certificate>,
}

/// A certificate that is handed in: which secrets hold it, as PEM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// The certificate, then those that lead from it to its authority's.
    pub chain: SecretName,
    /// Its private key.
    pub key: SecretName,
}

/// How a service's health is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// What is asked.
    pub check: Check,
    /// Milliseconds between two probes.
    pub interval_ms: u32,
    /// Milliseconds one probe may take.
    pub timeout_ms: u32,
    /// Milliseconds from the container's start until it must be healthy.
    pub deadline_ms: u32,
}

/// What a health check asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// `GET` of a path on a port; 200 to 299 is healthy. The port defaults to the proxy's `app_port`.
    Http {
        /// Port in the container.
        port: u16,
        /// Path, beginning with `/`.
        path: String,
    },
    /// A TCP connection.
    Tcp {
        /// Port in the container.
        port: u16,
    },
    /// A command in the container; exit 0 is healthy.
    Exec {
        /// Its arguments.
        argv: Vec<String>,
    },
}

/// Which plugin fills each role, and its settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plugins {
    /// The proxy's.
    pub proxy: PluginChoice,
    /// The health judge's.
    pub health: PluginChoice,
}

impl Default for Plugins {
    fn default() -> Self {
        let choice = |name: &str| PluginChoice {
            name: PluginName::new(name).expect("a default plugin's name is a plugin name"),
            settings: serde_json::Value::Object(serde_json::Map::new()),
        };
        Self { proxy: choice("proxy-kamal"), health: choice("health-probe") }
    }
}

impl Plugins {
    /// The plugin that connects servers where nobody says otherwise.
    pub fn default_mesh() -> PluginChoice {
        PluginChoice {
            name: PluginName::new("mesh-wireguard").expect("a default plugin's name is a plugin name"),
            settings: serde_json::Value::Object(serde_json::Map::new()),
        }
    }
}

/// A plugin and the settings it is called with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginChoice {
    /// An embedded plugin, or one that `jiji.lock` pins.
    pub name: PluginName,
    /// Settings, checked by the plugin itself against its schema. Always an object.
    pub settings: serde_json::Value,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_has_a_port_or_takes_the_one_that_all_listen_on() {
        let read = |text: &str| text.parse::<ServerEndpoint>().ok().map(|it| (it.host, it.port));
        assert_eq!(read("fra1.example.com"), Some(("fra1.example.com".to_owned(), None)));
        assert_eq!(read("198.51.100.7:4000"), Some(("198.51.100.7".to_owned(), Some(4000))));
        assert_eq!(read("2001:db8::7"), Some(("2001:db8::7".to_owned(), None)));
        assert_eq!(read("[2001:db8::7]"), Some(("2001:db8::7".to_owned(), None)));
        assert_eq!(read("[2001:db8::7]:4000"), Some(("2001:db8::7".to_owned(), Some(4000))));
        assert_eq!(["", "a b", "fra1:0", "[fra1]", "fra1:"].map(read), [None, None, None, None, None]);
    }

    #[test]
    fn canaries_are_cut_over_first_and_the_others_in_batches() {
        let hosts: Vec<_> = ["a", "b", "c", "d"].map(|name| HostName::new(name).expect("a name")).into();
        let shown = |rollout: &Rollout| {
            let batches = rollout.batches(&hosts).into_iter();
            batches.map(|batch| batch.iter().map(ToString::to_string).collect::<String>()).collect::<Vec<_>>()
        };
        let mut rollout = Rollout::default();
        assert_eq!(shown(&rollout), ["abcd"]);
        rollout.canary = vec![hosts[2].clone(), HostName::new("elsewhere").expect("a name")];
        assert_eq!(shown(&rollout), ["c", "abd"]);
        rollout.max_parallel = Some(2);
        assert_eq!(shown(&rollout), ["c", "ab", "d"]);
    }
}
