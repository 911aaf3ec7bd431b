//! What the engines' `inspect` says, as far as jiji reads it.
//!
//! Docker writes ids with `sha256:` and names with a slash before, Podman neither. Fields that one of them lacks are optional; what is
//! not listed here is ignored, because both add fields with every release.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use jiji_model::digest::Digest;
use jiji_model::image::ImageId;
use jiji_model::observation::{ContainerFacts, NetworkFacts};
use jiji_model::plan::{LABEL_ADDRESS, NETWORK};
use jiji_model::project;
use serde::Deserialize;

use crate::fitness;

/// Reads a digest with or without its algorithm.
fn digest(text: &str) -> Option<Digest> {
    text.parse().ok().or_else(|| format!("sha256:{text}").parse().ok())
}

/// A container.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ContainerInspect {
    /// The engine's id.
    pub id: String,
    /// Its name, in Docker with a slash before.
    pub name: String,
    /// The id of the image it runs.
    pub image: String,
    /// Podman: digest of the image's manifest.
    #[serde(default)]
    image_digest: Option<String>,
    /// Docker with the containerd store: the manifest it runs.
    #[serde(default)]
    image_manifest_descriptor: Option<Descriptor>,
    /// How it is.
    pub state: State,
    /// How often the engine started it again.
    #[serde(default)]
    pub restart_count: u32,
    #[serde(default)]
    config: Config,
    #[serde(default)]
    host_config: Restarts,
    #[serde(default)]
    network_settings: NetworkSettings,
}

/// A manifest's descriptor.
#[derive(Debug, Clone, Deserialize)]
struct Descriptor {
    digest: String,
}

/// How a container is.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct State {
    /// `running`, `exited`, `created` and so on.
    pub status: String,
    /// Exit code of its last run.
    pub exit_code: i32,
    /// Whether the kernel ended it for memory.
    #[serde(rename = "OOMKilled")]
    pub oom_killed: bool,
    /// When it started.
    pub started_at: Option<String>,
    /// Its first process, 0 where none runs.
    pub pid: i32,
}

/// Whether the engine starts it again.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Restarts {
    restart_policy: RestartPolicy,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Config {
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct NetworkSettings {
    networks: Option<BTreeMap<String, Endpoint>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Endpoint {
    #[serde(rename = "IPAddress")]
    ip_address: String,
    #[serde(rename = "IPAMConfig")]
    ipam_config: Option<BTreeMap<String, serde_json::Value>>,
}

impl ContainerInspect {
    /// Its name, the same in both engines.
    pub fn plain_name(&self) -> &str {
        self.name.strip_prefix('/').unwrap_or(&self.name)
    }

    /// Its labels.
    pub fn label(&self, name: &str) -> Option<&str> {
        Some(self.config.labels.as_ref()?.get(name)?.as_str())
    }

    /// Whether it runs.
    pub fn running(&self) -> bool {
        self.state.status == "running"
    }

    /// Whether nothing of it runs. One that the engine is about to start again is not stopped yet.
    pub fn stopped(&self) -> bool {
        let stopped = ["exited", "created", "configured", "stopped", "dead"];
        stopped.contains(&self.state.status.as_str())
    }

    /// Whether it was made to be started again after it ended and after a reboot.
    pub fn restarts(&self) -> bool {
        matches!(self.host_config.restart_policy.name.as_str(), "unless-stopped" | "always")
    }

    /// Whether it runs exactly this image.
    pub fn runs(&self, id: &ImageId) -> bool {
        digest(&self.image).is_some_and(|image| image == id.config || image == id.manifest)
    }

    /// The networks that it is in.
    pub fn networks(&self) -> Vec<String> {
        let networks = self.network_settings.networks.iter().flat_map(BTreeMap::keys);
        networks.cloned().collect()
    }

    /// Its address in a network: the one it has, or the one it will have again when it is started.
    pub fn address(&self, network: &str) -> Option<Ipv4Addr> {
        let endpoint = self.network_settings.networks.as_ref()?.get(network)?;
        if let Ok(address) = endpoint.ip_address.parse() {
            return Some(address);
        }
        let configured = endpoint.ipam_config.as_ref();
        let configured = configured.and_then(|config| config.get("IPv4Address")?.as_str()?.parse().ok());
        configured.or_else(|| {
            let label = self.label(LABEL_ADDRESS).filter(|_| network == NETWORK);
            label?.parse().ok()
        })
    }

    /// What an observer sees of it.
    pub fn facts(&self, engine: project::Engine, by_manifest: bool) -> ContainerFacts {
        let image = digest(&self.image);
        let descriptor = self.image_manifest_descriptor.as_ref();
        let (manifest, config) = match engine {
            project::Engine::Podman => (self.image_digest.as_deref().and_then(digest), image),
            project::Engine::Docker if by_manifest => {
                (descriptor.and_then(|descriptor| digest(&descriptor.digest)).or(image), None)
            }
            project::Engine::Docker => (None, image),
        };
        let networks = self.network_settings.networks.iter().flat_map(BTreeMap::keys);
        let ended = matches!(self.state.status.as_str(), "exited" | "stopped" | "dead");
        ContainerFacts {
            id: self.id.clone(),
            name: self.plain_name().to_owned(),
            manifest,
            config,
            state: self.state.status.clone(),
            exit: ended.then_some(self.state.exit_code),
            oom: self.state.oom_killed,
            started: self.state.started_at.clone().filter(|time| !time.starts_with("0001-")),
            addresses: networks.filter_map(|network| Some((network.clone(), self.address(network)?))).collect(),
            labels: self.config.labels.clone().unwrap_or_default().into_iter().collect(),
            memory: Some(self.state.pid).filter(|pid| *pid > 0).and_then(|pid| fitness::held_memory(pid, &self.id)),
        }
    }
}

/// With what a container was made: what says how it was asked for. Its environment holds secrets and is never printed.
#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Made {
    config: MadeConfig,
    host_config: HostConfig,
    /// What is mounted.
    pub mounts: Vec<MadeMount>,
}

/// What an image says of containers that are made of it.
#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct MadeImage {
    config: MadeConfig,
}

/// The part of `inspect` that containers and images have in common. Everything may be null.
#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct MadeConfig {
    env: Option<Vec<String>>,
    cmd: Option<Words>,
    entrypoint: Option<Words>,
    user: Option<String>,
}

/// Podman 4 writes a container's entry point as one text, Docker and later ones as a list.
#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum Words {
    Text(String),
    List(Vec<String>),
}

impl Words {
    fn list(words: Option<&Self>) -> Vec<String> {
        match words {
            None => Vec::new(),
            Some(Self::Text(text)) if text.is_empty() => Vec::new(),
            Some(Self::Text(text)) => vec![text.clone()],
            Some(Self::List(list)) => list.clone(),
        }
    }
}

#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct HostConfig {
    restart_policy: RestartPolicy,
    port_bindings: Option<BTreeMap<String, Option<Vec<PortBinding>>>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RestartPolicy {
    name: String,
}

#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct PortBinding {
    host_port: String,
}

/// What is mounted in a container.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct MadeMount {
    /// `bind`, `volume`, `tmpfs`.
    #[serde(rename = "Type")]
    pub kind: String,
    /// Name of a volume.
    pub name: String,
    /// Path on the host.
    pub source: String,
    /// Path in the container.
    pub destination: String,
    /// Whether it may be written.
    #[serde(rename = "RW")]
    pub writable: bool,
}

impl Made {
    /// Its environment, `NAME=VALUE` each.
    pub fn env(&self) -> &[String] {
        self.config.env.as_deref().unwrap_or_default()
    }

    /// Its entry point in one text.
    pub fn entrypoint(&self) -> String {
        Words::list(self.config.entrypoint.as_ref()).join(" ")
    }

    /// Its arguments.
    pub fn command(&self) -> Vec<String> {
        Words::list(self.config.cmd.as_ref())
    }

    /// Its user; empty where none was asked for.
    pub fn user(&self) -> String {
        self.config.user.clone().unwrap_or_default()
    }

    /// When the engine starts it again, in the engines' words.
    pub fn restart(&self) -> &str {
        &self.host_config.restart_policy.name
    }

    /// Ports of the host that lead into it, `HOST->CONTAINER` each.
    pub fn ports(&self) -> BTreeSet<String> {
        let bindings = self.host_config.port_bindings.iter().flatten();
        bindings
            .flat_map(|(port, bindings)| {
                let port = port.split('/').next().unwrap_or(port);
                bindings.iter().flatten().map(move |binding| format!("{}->{port}", binding.host_port))
            })
            .collect()
    }
}

impl MadeImage {
    /// Its environment, `NAME=VALUE` each.
    pub fn env(&self) -> &[String] {
        self.config.env.as_deref().unwrap_or_default()
    }

    /// Its entry point in one text.
    pub fn entrypoint(&self) -> String {
        Words::list(self.config.entrypoint.as_ref()).join(" ")
    }

    /// Its arguments.
    pub fn command(&self) -> Vec<String> {
        Words::list(self.config.cmd.as_ref())
    }

    /// Its user; empty where it names none.
    pub fn user(&self) -> String {
        self.config.user.clone().unwrap_or_default()
    }
}

/// An image.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ImageInspect {
    /// The engine's id.
    pub id: String,
    /// Names with tags.
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    /// Names with digests.
    #[serde(default)]
    repo_digests: Option<Vec<String>>,
}

impl ImageInspect {
    /// Whether it is this one. An id of either kind is enough: a configuration names its layers, a manifest names its configuration.
    pub fn is(&self, id: &ImageId) -> bool {
        digest(&self.id).is_some_and(|image| image == id.config || image == id.manifest)
    }

    /// All names of it.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let tags = self.repo_tags.iter().flatten();
        tags.chain(self.repo_digests.iter().flatten()).map(String::as_str)
    }
}

/// A network, in Docker's words or in Podman's.
#[derive(Debug, Clone, Deserialize)]
pub struct NetworkInspect {
    #[serde(alias = "Name")]
    name: String,
    #[serde(rename = "IPAM", default)]
    ipam: Option<Ipam>,
    #[serde(default)]
    subnets: Option<Vec<Subnet>>,
    #[serde(rename = "Containers", default)]
    containers: Option<BTreeMap<String, Member>>,
}

#[derive(Debug, Clone, Deserialize)]
struct Ipam {
    #[serde(rename = "Config", default)]
    config: Option<Vec<Subnet>>,
}

#[derive(Debug, Clone, Deserialize)]
struct Subnet {
    #[serde(alias = "Subnet", default)]
    subnet: Option<String>,
    #[serde(alias = "Gateway", default)]
    gateway: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
struct Member {
    #[serde(rename = "IPv4Address", default)]
    address: String,
}

impl NetworkInspect {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What an observer sees of it; addresses as far as the network itself knows them.
    pub fn facts(&self) -> NetworkFacts {
        let docker = self.ipam.iter().filter_map(|ipam| ipam.config.as_ref());
        let subnets: Vec<&Subnet> = docker.chain(self.subnets.as_ref()).flatten().collect();
        let first = subnets.iter().find(|subnet| subnet.subnet.as_deref().is_some_and(|text| !text.contains(':')));
        let used = self.containers.iter().flat_map(BTreeMap::values);
        NetworkFacts {
            name: self.name.clone(),
            subnet: first.and_then(|subnet| subnet.subnet.clone()),
            gateway: first.and_then(|subnet| subnet.gateway.as_ref()?.parse().ok()),
            used: used.filter_map(|member| member.address.split('/').next()?.parse().ok()).collect(),
        }
    }
}
