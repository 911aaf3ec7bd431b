//! What may be asked of a host, and what it answers.
//!
//! Asking changes nothing on the host and takes no lease. A [`Want`] names a [`Query`], a [`Fact`] carries the [`Answer`] to the want
//! of the same id. Facts are structured, bounded, and come from a machine that may be hostile: nothing in them is trusted to be a
//! path, a line or a name until it was checked.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::image::ImageId;
use crate::name::{AbsPath, ContainerName, HostName, SecretName};
use crate::project::Engine;
use crate::transaction::{HostRecords, Lease};

/// A question with an id that its fact repeats.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Want {
    /// Chosen by the asker, unique in its look. The core prefixes a plugin's ids with the plugin's name.
    pub id: String,
    /// The question.
    pub query: Query,
}

/// What may be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Query {
    /// The host itself: engine, version, boot, disk. Answered by [`Answer::Host`].
    Host,
    /// All containers with every one of these labels. Answered by [`Answer::Containers`].
    Containers {
        /// Labels to match. Empty: all containers.
        labels: BTreeMap<String, String>,
    },
    /// One container. Answered by [`Answer::Container`] or [`Answer::Absent`].
    Container {
        /// Its name.
        name: ContainerName,
    },
    /// What a command inside a running container says. Needs a grant; must only read. Answered by [`Answer::Command`].
    Exec {
        /// The container.
        container: ContainerName,
        /// The command's arguments.
        argv: Vec<String>,
        /// Milliseconds it may take.
        timeout_ms: u32,
    },
    /// The end of a container's log. Answered by [`Answer::Text`].
    Logs {
        /// The container.
        container: ContainerName,
        /// How many lines, at most 1000.
        lines: u32,
    },
    /// A file. Answered by [`Answer::File`] or [`Answer::Absent`].
    File {
        /// Its path, below a granted root where a plugin asks.
        path: AbsPath,
        /// How many of its bytes are wanted, at most 256 KiB. 0: its digest and mode alone.
        limit: u32,
    },
    /// A network of the engine. Answered by [`Answer::Network`] or [`Answer::Absent`].
    Network {
        /// Its name.
        name: String,
    },
    /// Which of these images the engine has. Answered by [`Answer::Images`].
    Images {
        /// Their identities.
        images: Vec<ImageId>,
    },
    /// Which of these blobs are in the host's own store, and how much of each that came in part. Answered by [`Answer::Blobs`].
    Blobs {
        /// Their digests.
        digests: Vec<Digest>,
    },
    /// `GET` on a port of the host itself or of a container's address. Answered by [`Answer::Http`].
    Http {
        /// Loopback or an address in the `jiji` network.
        address: Ipv4Addr,
        /// Port.
        port: u16,
        /// Path.
        path: String,
        /// The `Host` header.
        host: Option<String>,
    },
    /// What jiji keeps on the host about a project: lease, open transaction, releases, addresses. Answered by [`Answer::Records`].
    Records {
        /// The project's scope.
        scope: String,
    },
    /// A keyed digest of secrets' values under the host's own key, so that a changed value shows and no value does. The values
    /// must have been sent before. Answered by [`Answer::Mac`], or [`Answer::Absent`] where the host has no key yet.
    SecretsMac {
        /// Names of the secrets.
        names: Vec<SecretName>,
    },
}

/// The answer to the want of the same id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fact {
    /// The want's id.
    pub id: String,
    /// The answer.
    pub answer: Answer,
}

/// What a host answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// What was asked for does not exist.
    Absent,
    /// It could not be told.
    Failed(String),
    /// To [`Query::Host`].
    Host(HostFacts),
    /// To [`Query::Containers`].
    Containers(Vec<ContainerFacts>),
    /// To [`Query::Container`].
    Container(Box<ContainerFacts>),
    /// To [`Query::Exec`].
    Command(CommandFacts),
    /// To [`Query::Logs`]: at most 64 KiB, control characters but line breaks replaced.
    Text(String),
    /// To [`Query::File`].
    File(FileFacts),
    /// To [`Query::Network`].
    Network(NetworkFacts),
    /// To [`Query::Images`]: those the engine has.
    Images(Vec<ImageId>),
    /// To [`Query::Blobs`].
    Blobs(Vec<BlobFacts>),
    /// To [`Query::Http`].
    Http(HttpFacts),
    /// To [`Query::Records`].
    Records(Box<HostRecords>),
    /// To [`Query::SecretsMac`].
    Mac(String),
}

/// The host itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// The engine that jiji uses here; none where neither is installed.
    pub engine: Option<EngineFacts>,
    /// Machine architecture in Go's words: `amd64`, `arm64`.
    pub architecture: String,
    /// Host name.
    pub hostname: String,
    /// The kernel's id of this boot.
    pub boot_id: String,
    /// Milliseconds since boot, suspended time counted (`CLOCK_BOOTTIME`).
    pub boottime_ms: u64,
    /// Seconds since 1970 by the host's own clock: shown, never trusted.
    pub wall_clock_s: u64,
    /// Free bytes where the engine keeps images.
    pub disk_free: u64,
    /// Bytes of memory that new processes could have.
    pub memory_available: u64,
}

/// A container engine on a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineFacts {
    /// Which.
    pub kind: Engine,
    /// The server's version, such as `20.10.24`.
    pub version: String,
}

/// A container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerFacts {
    /// The engine's id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The image it runs, as far as this engine can tell.
    pub manifest: Option<Digest>,
    /// The image configuration it runs, as far as this engine can tell.
    pub config: Option<Digest>,
    /// `running`, `exited`, `created` and so on, in the engine's words.
    pub state: String,
    /// Exit code of a container that ended.
    pub exit: Option<i32>,
    /// Whether the kernel ended it for memory.
    pub oom: bool,
    /// When it started, as the engine prints it.
    pub started: Option<String>,
    /// Its address in each network.
    pub addresses: BTreeMap<String, Ipv4Addr>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

impl ContainerFacts {
    /// Whether its state is `running`.
    pub fn running(&self) -> bool {
        self.state == "running"
    }
}

/// What a command did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandFacts {
    /// Exit code; none where a signal or the timeout ended it.
    pub exit: Option<i32>,
    /// Standard output, at most 64 KiB.
    pub stdout: String,
    /// Standard error, at most 16 KiB.
    pub stderr: String,
    /// Whether either was cut.
    pub truncated: bool,
}

/// A file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileFacts {
    /// Digest of the whole content.
    pub sha256: Digest,
    /// Permission bits.
    pub mode: u32,
    /// Length in bytes.
    pub size: u64,
    /// Its beginning, as far as it was wanted and is UTF-8.
    pub content: Option<String>,
}

/// A network of the engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkFacts {
    /// Name.
    pub name: String,
    /// Subnet in CIDR form.
    pub subnet: Option<String>,
    /// Gateway.
    pub gateway: Option<Ipv4Addr>,
    /// Addresses that containers hold, whoever started them.
    pub used: Vec<Ipv4Addr>,
}

/// A blob in a host's own store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobFacts {
    /// Its digest.
    pub digest: Digest,
    /// Bytes that are there already, from an earlier stream that was cut.
    pub have: u64,
    /// Whether it is whole and verified.
    pub complete: bool,
}

/// An HTTP answer, or why there was none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpFacts {
    /// What the request met.
    pub result: crate::probe::ProbeResult,
    /// Milliseconds until then.
    pub took_ms: u32,
}

/// What a whole look at a fleet found. A host that could not be asked has no entry; the caller knows why.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    /// Facts by host, by want id.
    pub hosts: BTreeMap<HostName, BTreeMap<String, Answer>>,
}

impl Observation {
    /// The answer of `host` to the want `id`.
    pub fn answer(&self, host: &HostName, id: &str) -> Option<&Answer> {
        self.hosts.get(host)?.get(id)
    }

    /// Adds facts of one host.
    pub fn add(&mut self, host: &HostName, facts: Vec<Fact>) {
        self.hosts.entry(host.clone()).or_default().extend(facts.into_iter().map(|fact| (fact.id, fact.answer)));
    }
}

/// The parts of a lease that an observer may print.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseFacts {
    /// The lease as recorded.
    pub lease: Lease,
    /// Whether its session still runs and it has not expired.
    pub live: bool,
}
