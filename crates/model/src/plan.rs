//! Steps, phases, words: a change of a fleet as data.
//!
//! The core's own steps and a plugin's are the same [`Step`], so one executor runs them, one journal holds them and one renderer shows
//! them. A plan is vetted whole ([`vet`]) before the first effect. No step holds a secret value or a shell string.

pub mod vet;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::digest::{CanonicalJson, Digest};
use crate::image::{Image, ImageId};
use crate::mesh::Interface;
use crate::name::{AbsPath, ContainerName, HostName, SecretName, ServiceName};
use crate::probe::ProbeSpec;
use crate::project::{Mount, Rollout};
use crate::shared::Shared;

/// The order in which a fleet changes. Every host ends `Prepare` before any host begins `Publish`; `Publish` and `Cutover` go batch by
/// batch; once every batch is cut over, `Hold` watches all of them; after `Hold` the transaction is *decided*, and the rest goes forward only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// What every later step stands on: the network, the proxy. Kept when the transaction reverts.
    Boot,
    /// Blobs present and verified, candidate running and healthy, not routed.
    Prepare,
    /// New names and addresses made known.
    Publish,
    /// Traffic moved to the candidate.
    Cutover,
    /// Candidates watched while they serve.
    Hold,
    /// Old names and addresses withdrawn. First phase after *decided*.
    Withdraw,
    /// Old containers stopped, once their requests ended.
    Drain,
    /// Old containers and images removed.
    Finalize,
}

impl Phase {
    /// All phases in order.
    pub const ALL: [Self; 8] = [
        Self::Boot,
        Self::Prepare,
        Self::Publish,
        Self::Cutover,
        Self::Hold,
        Self::Withdraw,
        Self::Drain,
        Self::Finalize,
    ];

    /// Whether steps of this phase run before the transaction is decided, and so need an undo where they change anything.
    pub fn before_decided(self) -> bool {
        self <= Self::Hold
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Boot => "boot",
            Self::Prepare => "prepare",
            Self::Publish => "publish",
            Self::Cutover => "cutover",
            Self::Hold => "hold",
            Self::Withdraw => "withdraw",
            Self::Drain => "drain",
            Self::Finalize => "finalize",
        })
    }
}

/// A whole change of a fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Format of this record, [`Plan::VERSION`].
    pub version: u32,
    /// The project's scope.
    pub scope: String,
    /// Steps. Within a host and a phase they run in this order.
    pub steps: Vec<Step>,
    /// The images that the plan's services run: which blobs must reach which host.
    pub images: Vec<PlannedImage>,
    /// How many releases stay on each host, the new one counted. At least 1.
    #[serde(default = "one")]
    pub retain: u32,
    /// How it goes over the hosts.
    #[serde(default, skip_serializing_if = "Rollout::is_plain")]
    pub rollout: Rollout,
    /// What each host will run once decided, for its release record.
    pub releases: BTreeMap<HostName, BTreeMap<ServiceName, Shared<PlannedService>>>,
}

fn one() -> u32 {
    1
}

impl Plan {
    /// The version that this jiji writes and reads.
    pub const VERSION: u32 = 1;

    /// The plan's name: the digest of its canonical JSON.
    pub fn digest(&self) -> Digest {
        Digest::of_json(self)
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// The hosts that the plan changes, in name order.
    pub fn hosts(&self) -> Vec<HostName> {
        let mut hosts: Vec<_> = self.steps.iter().map(|step| step.host.clone()).collect();
        hosts.sort();
        hosts.dedup();
        hosts
    }

    /// The steps of `host` in `phase`, in order.
    pub fn steps_of<'a>(&'a self, host: &'a HostName, phase: Phase) -> impl Iterator<Item = &'a Step> {
        self.steps.iter().filter(move |step| step.host == *host && step.phase == phase)
    }
}

/// An image that a plan brings to hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedImage {
    /// The image.
    pub image: Image,
    /// The hosts that need it.
    pub hosts: Vec<HostName>,
}

/// What a service will run on a host: the content of a release record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedService {
    /// The whole image, so that a rollback needs no sources and no registry.
    pub image: Shared<Image>,
    /// The container.
    pub container: ContainerName,
    /// Its address in the `jiji` network.
    pub address: Option<Ipv4Addr>,
    /// Digest of the container's specification, see [`ContainerSpec::digest`].
    pub spec: Digest,
    /// The specification itself, without secret values.
    pub container_spec: ContainerSpec,
    /// How its health is told.
    pub probe: Option<ProbeSpec>,
    /// The proxy plugin's input for its route, as canonical JSON, so that a rollback routes the same way.
    pub route: Option<CanonicalJson>,
}

/// One change on one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// A stable id made from the content: [`Step::content_id`]. Unique in a plan.
    pub id: String,
    /// Where it runs.
    pub host: HostName,
    /// The service it is for, where it is for one.
    pub service: Option<ServiceName>,
    /// When it runs.
    pub phase: Phase,
    /// For people: a verb in the imperative and what it is done to, `run shop-web-3f2a`.
    pub title: String,
    /// What is done.
    pub action: Action,
    /// Ids of steps that must have ended before. On another host: a barrier. Steps of one host and phase run in order anyway.
    pub after: Vec<String>,
    /// Milliseconds it may take.
    pub timeout_ms: u32,
    /// Whether running it twice is as good as once.
    pub repeat: Repeat,
    /// After an unknown outcome (a killed client, a cut line): milliseconds until its effect can no longer come late.
    pub quiet_ms: u32,
    /// What takes it back. Steps before *decided* that change what is served have one.
    pub undo: Option<Action>,
    /// What to gather when it fails.
    pub evidence: Vec<Evidence>,
    /// Room for growth that needs no new format.
    pub labels: BTreeMap<String, String>,
}

impl Step {
    /// A step with nothing special about it; the fields that differ are set after.
    pub fn new(host: &HostName, phase: Phase, title: impl Into<String>, action: Action) -> Self {
        let title = title.into();
        let id = Self::content_id(host, phase, &title, &action);
        Self {
            id,
            host: host.clone(),
            service: None,
            phase,
            title,
            action,
            after: Vec::new(),
            timeout_ms: 60_000,
            repeat: Repeat::Repeatable,
            quiet_ms: 0,
            undo: None,
            evidence: Vec::new(),
            labels: BTreeMap::new(),
        }
    }

    /// The id of a step with this content: 16 hexadecimal digits.
    pub fn content_id(host: &HostName, phase: Phase, title: &str, action: &Action) -> String {
        Digest::of_json(&(host, phase, title, action)).hex()[..16].to_owned()
    }
}

/// Whether a step may run twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Repeat {
    /// Running it again after an unknown outcome is fine.
    Repeatable,
    /// After an unknown outcome the world must be looked at first.
    AtMostOnce,
}

/// What to gather when a step fails.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Evidence {
    /// The end of a container's log.
    Logs {
        /// The container.
        container: ContainerName,
        /// How many lines.
        lines: u32,
    },
    /// A container's state, exit code and whether memory ended it.
    State {
        /// The container.
        container: ContainerName,
    },
}

/// A part of a text: what is known now, or what is known only on the host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Word {
    /// This text.
    Lit(String),
    /// The value of a secret, put in on the host.
    Secret(SecretName),
    /// What an earlier step printed, checked against its type before it is put in: a hostile host smuggles no line into a file.
    Output {
        /// The step's id.
        step: String,
        /// What it must look like.
        kind: OutputKind,
    },
}

impl Word {
    /// A literal.
    pub fn lit(text: impl Into<String>) -> Self {
        Self::Lit(text.into())
    }
}

/// What a step's output must look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutputKind {
    /// A WireGuard public key: 44 characters of base64.
    WgPublicKey,
    /// An IPv4 or IPv6 address.
    Ip,
    /// A port, 1 to 65535.
    Port,
    /// A digest.
    Digest,
}

impl OutputKind {
    /// Whether `text` is of this kind.
    pub fn accepts(self, text: &str) -> bool {
        match self {
            Self::WgPublicKey => {
                text.len() == 44
                    && text.ends_with('=')
                    && text[..43].bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/'))
            }
            Self::Ip => text.parse::<std::net::IpAddr>().is_ok(),
            Self::Port => text.parse::<u16>().is_ok_and(|port| port > 0),
            Self::Digest => text.parse::<Digest>().is_ok(),
        }
    }
}

/// Probes in a row that fail a [`Action::Hold`].
pub const HOLD_FAILURES: u32 = 3;

/// What a step does. Plugins never spell `docker` or `podman`: the host knows its engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    /// The engine's network exists with this subnet. One that differs and is in use fails the step.
    NetworkEnsure {
        /// Name.
        name: String,
        /// Subnet in CIDR form.
        subnet: String,
        /// Gateway.
        gateway: Ipv4Addr,
    },
    /// The engine has the image, pulled by digest from this host's own store, and its identity was checked.
    ImageEnsure {
        /// The image.
        image: Image,
    },
    /// An image is gone, unless a container uses it. Absent is fine.
    ImageRemove {
        /// Its identity.
        image: ImageId,
        /// The repository the engine lists it under.
        repository: String,
    },
    /// A container with this specification runs. One of that name with the same specification and running is left alone; another is
    /// replaced.
    ContainerRun(Box<ContainerSpec>),
    /// A container that exists is started. Absent fails.
    ContainerStart {
        /// Its name.
        name: ContainerName,
    },
    /// A container is stopped: SIGTERM, then SIGKILL. Absent and stopped are fine.
    ContainerStop {
        /// Its name.
        name: ContainerName,
        /// Seconds between the two signals.
        timeout_s: u32,
    },
    /// A container is gone. Absent is fine.
    ContainerRemove {
        /// Its name.
        name: ContainerName,
    },
    /// A command in a running container. Exit 0 is success.
    ContainerExec {
        /// The container.
        container: ContainerName,
        /// Arguments, one word each.
        argv: Vec<Word>,
        /// Texts on standard error that make a failure as good as done, such as `service not found` where something is removed: an
        /// undo may run twice, and not every program calls that a success.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        tolerate: Vec<String>,
    },
    /// A container becomes healthy.
    WaitProbe {
        /// The container.
        container: ContainerName,
        /// The network whose address is probed.
        network: String,
        /// The loop.
        probe: ProbeSpec,
    },
    /// A container that serves stays healthy for a while. It fails at once when the container ends, and when [`HOLD_FAILURES`] probes in a
    /// row fail: one alone may be lost where a host is busy.
    Hold {
        /// The container.
        container: ContainerName,
        /// The network whose address is probed.
        network: String,
        /// What is probed, how often and how patiently; its deadline does not count.
        probe: ProbeSpec,
        /// For how many milliseconds.
        for_ms: u32,
    },
    /// A volume of the engine exists.
    VolumeEnsure {
        /// Its name.
        name: String,
    },
    /// A directory exists with this mode.
    Directory {
        /// Path.
        path: AbsPath,
        /// Permission bits.
        mode: u32,
    },
    /// A file has this content and mode, written beside and renamed.
    File {
        /// Path.
        path: AbsPath,
        /// Permission bits.
        mode: u32,
        /// Content.
        content: Vec<Word>,
    },
    /// A file or an empty directory is gone. Absent is fine.
    Remove {
        /// Path.
        path: AbsPath,
    },
    /// `GET` until it answers as wanted.
    HttpWait {
        /// Loopback or an address in the `jiji` network.
        address: Ipv4Addr,
        /// The loop; its check must be HTTP.
        probe: ProbeSpec,
    },
    /// A private key of the mesh is in this file, mode 0600: made here if there is none, never replaced, never told.
    KeypairEnsure {
        /// Its file.
        path: AbsPath,
    },
    /// An interface of the mesh is as the specification says, with routes, forwarding and firewall, now and after a reboot. Peers that stay
    /// are not disturbed.
    InterfaceEnsure(Box<Interface>),
    /// An interface of the mesh is gone, with all that belongs to it but its key. Absent is fine.
    InterfaceRemove {
        /// Its name.
        name: String,
    },
    /// A program of the host. The escape hatch: needs a grant for exactly this.
    Run {
        /// Arguments, one word each; the first is looked up in a fixed path.
        argv: Vec<Word>,
        /// Standard input.
        stdin: Vec<Word>,
    },
    /// Nothing: a line for people.
    Note {
        /// The line.
        text: String,
    },
    /// A kind of action that this contract does not know yet. A host that does not know it either refuses the plan.
    Other {
        /// The kind.
        kind: String,
        /// Its content as canonical JSON.
        json: serde_json::Value,
    },
}

/// A container to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerSpec {
    /// Its name.
    pub name: ContainerName,
    /// What it runs.
    pub image: ContainerImage,
    /// The network it is in; `host` for the host's own.
    pub network: String,
    /// Its address in that network.
    pub address: Option<Ipv4Addr>,
    /// Environment variables.
    pub env: Shared<BTreeMap<String, Word>>,
    /// Labels. The executor adds `jiji.spec` ([`ContainerSpec::digest`]), `jiji.address` where it has an address, and `jiji.secrets`
    /// where `env` has secrets.
    pub labels: Shared<BTreeMap<String, String>>,
    /// Volumes and directories.
    pub mounts: Vec<Mount>,
    /// Ports of the host.
    pub publish: Vec<Publish>,
    /// The image's entry point is replaced by this.
    pub entrypoint: Option<String>,
    /// Arguments instead of the image's.
    pub command: Option<Vec<String>>,
    /// User instead of the image's.
    pub user: Option<String>,
    /// Whether the engine starts it again when it ends and after a reboot.
    pub restart: bool,
    /// Seconds between SIGTERM and SIGKILL.
    pub stop_timeout_s: u32,
}

/// Label that holds [`ContainerSpec::digest`].
pub const LABEL_SPEC: &str = "jiji.spec";
/// Label that holds the keyed digest of the secrets in a container's environment.
pub const LABEL_SECRETS: &str = "jiji.secrets";
/// Label that holds the address a container was given in the `jiji` network: Podman does not tell it of one that is stopped.
pub const LABEL_ADDRESS: &str = "jiji.address";
/// Label on everything that jiji starts, with the project's scope as value; plugins' shared containers have `*`.
pub const LABEL_SCOPE: &str = "jiji.scope";
/// Label with the service's name.
pub const LABEL_SERVICE: &str = "jiji.service";
/// Label with the plugin's name on what a plugin starts.
pub const LABEL_PLUGIN: &str = "jiji.plugin";

/// The containers' network on every host.
pub const NETWORK: &str = "jiji";

impl ContainerSpec {
    /// What makes two containers the same: everything but the name and the address.
    pub fn digest(&self) -> Digest {
        let mut spec = serde_json::to_value(self).expect("a container specification is JSON");
        if let Some(map) = spec.as_object_mut() {
            map.remove("name");
            map.remove("address");
        }
        Digest::of_json(&spec)
    }

    /// Names of the secrets in its environment, in order.
    pub fn secrets(&self) -> Vec<SecretName> {
        let mut names: Vec<_> = self
            .env
            .values()
            .filter_map(|word| if let Word::Secret(name) = word { Some(name.clone()) } else { None })
            .collect();
        names.sort();
        names.dedup();
        names
    }
}

/// What a container runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ContainerImage {
    /// An image that jiji brought to the host.
    Seeded {
        /// Its identity; the engine is asked for exactly this.
        id: ImageId,
        /// The repository it is listed under.
        repository: String,
    },
    /// An image of a registry, which a plugin names. The core brings it to the host and puts [`Self::Seeded`] in its place; a host refuses
    /// this form.
    Pinned {
        /// `REGISTRY/REPOSITORY@sha256:…`.
        reference: String,
    },
}

/// A port of the host that leads into a container.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Publish {
    /// Address of the host, all where none.
    pub address: Option<Ipv4Addr>,
    /// Port of the host.
    pub host_port: u16,
    /// Port in the container.
    pub container_port: u16,
}

/// What a plugin is allowed: what its manifest asks for, and what the user accepted. A plan beyond it is refused before any effect.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Grants {
    /// Containers it may run, stop, remove and read logs of: exact names.
    pub containers: Vec<String>,
    /// Commands it may run inside containers: container name and a prefix of the arguments.
    pub exec: Vec<ExecGrant>,
    /// Repositories it may run images of: `REGISTRY/REPOSITORY`, without tag or digest.
    pub images: Vec<String>,
    /// Ports of the host it may publish.
    pub ports: Vec<u16>,
    /// Directories of the host it may read and write below.
    pub paths: Vec<AbsPath>,
    /// Volumes it may use: exact names.
    pub volumes: Vec<String>,
    /// Programs of the host it may run: a prefix of the arguments.
    pub run: Vec<Vec<String>>,
    /// Secrets it may name.
    pub secrets: Vec<SecretName>,
    /// Interfaces of the mesh that it may make and change: exact names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<String>,
    /// UDP ports of the host that it may open.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub udp_ports: Vec<u16>,
}

/// A command that a plugin may run inside a container.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecGrant {
    /// The container.
    pub container: String,
    /// What the arguments begin with.
    pub argv: Vec<String>,
}

impl Grants {
    /// What `self` asks for beyond `accepted`, for people: one line each. Empty where nothing.
    pub fn beyond(&self, accepted: &Self) -> Vec<String> {
        fn add<T: PartialEq>(out: &mut Vec<String>, asked: &[T], had: &[T], show: impl Fn(&T) -> String) {
            out.extend(asked.iter().filter(|item| !had.contains(item)).map(show));
        }
        let mut out = Vec::new();
        add(&mut out, &self.containers, &accepted.containers, |name| format!("manage container `{name}`"));
        add(&mut out, &self.exec, &accepted.exec, |grant| {
            format!("run `{}` in container `{}`", grant.argv.join(" "), grant.container)
        });
        add(&mut out, &self.images, &accepted.images, |name| format!("run image `{name}`"));
        add(&mut out, &self.ports, &accepted.ports, |port| format!("publish port {port}"));
        add(&mut out, &self.paths, &accepted.paths, |path| format!("read and write below `{path}`"));
        add(&mut out, &self.volumes, &accepted.volumes, |name| format!("use volume `{name}`"));
        add(&mut out, &self.run, &accepted.run, |argv| format!("run `{}` on the host", argv.join(" ")));
        add(&mut out, &self.secrets, &accepted.secrets, |name| format!("use secret `{name}`"));
        add(&mut out, &self.interfaces, &accepted.interfaces, |name| format!("manage interface `{name}`"));
        add(&mut out, &self.udp_ports, &accepted.udp_ports, |port| format!("open UDP port {port}"));
        out
    }
}
