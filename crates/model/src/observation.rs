//! What may be asked of a host, and what it answers.
//!
//! Asking changes nothing on the host and takes no lease. A [`Want`] names a [`Query`], a [`Fact`] carries the [`Answer`] to the want
//! of the same id. Facts are structured, bounded, and come from a machine that may be hostile: nothing in them is trusted to be a
//! path, a line or a name until it was checked.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use litemap::LiteMap;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::image::{Image, ImageId};
use crate::mesh::{InterfaceFacts, PublicKey};
use crate::name::{AbsPath, ContainerName, HostName, SecretName};
use crate::plan::PlannedService;
use crate::project::Engine;
use crate::shared::Shared;
use crate::transaction::{HostRecords, Lease, Release, ReleaseLine, Roster};

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
    /// What decides whether the host is fit for a change at all. Answered by [`Answer::Fitness`].
    Fitness,
    /// Who listens on these TCP ports of the host. Answered by [`Answer::Ports`].
    Ports {
        /// The ports.
        ports: Vec<u16>,
    },
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
    /// The public key that belongs to a private one of the mesh. Answered by [`Answer::PublicKey`] or [`Answer::Absent`].
    PublicKey {
        /// The private key's file.
        path: AbsPath,
    },
    /// An interface of the mesh. Answered by [`Answer::Interface`].
    Interface {
        /// Its name.
        name: String,
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
    /// Every release of a project that the host remembers, in short. Answered by [`Answer::History`].
    History {
        /// The project's scope.
        scope: String,
    },
    /// The newest release up to a number, whole. Answered by [`Answer::Release`] or [`Answer::Absent`].
    Release {
        /// The project's scope.
        scope: String,
        /// The number.
        at: u64,
    },
    /// Whether what jiji keeps on the host is as jiji wrote it. Answered by [`Answer::Integrity`].
    Integrity {
        /// The project's scope.
        scope: String,
    },
    /// How a service's container differs from what was decided. Secrets' values are compared on the host, by their keyed digest.
    /// Answered by [`Answer::Differences`]; a container that is not there differs in [`Part::Existence`] alone.
    Compare {
        /// What was decided.
        service: Shared<PlannedService>,
        /// The keyed digest of its secrets as the release recorded it, where it did.
        secrets: Option<String>,
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
    /// To [`Query::Fitness`].
    Fitness(Box<FitnessFacts>),
    /// To [`Query::Ports`]: those that somebody has.
    Ports(Vec<PortFacts>),
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
    /// To [`Query::PublicKey`].
    PublicKey(PublicKey),
    /// To [`Query::Interface`].
    Interface(Box<InterfaceFacts>),
    /// To [`Query::Records`].
    Records(Box<HostRecords>),
    /// To [`Query::SecretsMac`].
    Mac(String),
    /// To [`Query::History`]: newest first.
    History(Vec<ReleaseLine>),
    /// To [`Query::Release`].
    Release(Box<Release>),
    /// To [`Query::Integrity`].
    Integrity(Box<IntegrityFacts>),
    /// To [`Query::Compare`].
    Differences(Vec<Difference>),
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

/// What decides whether a host is fit for a change. Gathered without starting a program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FitnessFacts {
    /// The engines whose programs are installed, whether they answer or not.
    pub installed: Vec<Engine>,
    /// Why the engine that is meant cannot be used, in its own words; none where it can, or where none is installed.
    pub engine_problem: Option<String>,
    /// `ID` and `ID_LIKE` of os-release(5), such as `debian` or `ubuntu debian`; empty where there is no such file.
    pub distribution: Vec<String>,
    /// The kernel's release, such as `6.1.0-18-amd64`.
    pub kernel: String,
    /// The user's number: 0 but where the engine is a user's own.
    pub uid: u32,
    /// The first port that a user who is not root may listen on (`net.ipv4.ip_unprivileged_port_start`).
    pub unprivileged_port: u16,
    /// The file system where the engine keeps images.
    pub engine_disk: DiskFacts,
    /// The file system where jiji keeps blobs and records.
    pub state_disk: DiskFacts,
    /// Bytes of memory that new processes could have.
    pub memory_available: u64,
    /// Milliseconds since 1970 by the host's own clock.
    pub wall_clock_ms: u64,
    /// What a user's own engine needs of the host; none where the engine is root's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rootless: Option<RootlessFacts>,
    /// Whether containers start again when the machine boots; none where the engine's daemon or the user's own systemd sees
    /// to it, or where it cannot be told.
    #[serde(default)]
    pub starts_at_boot: Option<bool>,
}

/// What a user's own engine needs of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootlessFacts {
    /// The user's name.
    pub user: String,
    /// How many subordinate users `/etc/subuid` gives the user; none where somebody else than that file tells.
    pub subordinate_users: Option<u64>,
    /// The same of groups and `/etc/subgid`.
    pub subordinate_groups: Option<u64>,
    /// Those of [`ROOTLESS_PROGRAMS`] that are installed.
    pub programs: Vec<String>,
    /// Whether `/dev/net/tun` can be opened.
    pub tun: bool,
    /// Whether the user's processes outlive their last login; none where no systemd ends them.
    pub lingers: Option<bool>,
    /// Whether the user's control group may bound and tell the memory of groups below it.
    pub memory_control: bool,
}

/// Programs by which a user's own Podman does what is root's to do.
pub const ROOTLESS_PROGRAMS: [&str; 5] = ["newuidmap", "newgidmap", "slirp4netns", "pasta", "fuse-overlayfs"];

/// A file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskFacts {
    /// The directory that was meant.
    pub path: String,
    /// Number of the device: the same for two directories of one file system.
    pub device: u64,
    /// Bytes that are free.
    pub free: u64,
    /// Files that can still be made; none where the file system has no such limit.
    pub files_free: Option<u64>,
}

/// Who has a TCP port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortFacts {
    /// The port.
    pub port: u16,
    /// The address that is listened on; none for all of them.
    pub address: Option<std::net::IpAddr>,
    /// Number and name of the process, where it could be told.
    pub process: Option<(u32, String)>,
    /// The container that publishes it, where one does.
    pub container: Option<String>,
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
    pub addresses: LiteMap<String, Ipv4Addr>,
    /// Its labels.
    pub labels: LiteMap<String, String>,
    /// Bytes of memory that its processes hold and that the kernel cannot simply drop, where it runs and could be asked.
    #[serde(default)]
    pub memory: Option<u64>,
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

impl NetworkFacts {
    /// Adds addresses that containers hold. Afterwards all are there once, in their order.
    pub fn hold(&mut self, addresses: impl IntoIterator<Item = Ipv4Addr>) {
        self.used.extend(addresses);
        self.used.sort_unstable();
        self.used.dedup();
    }
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
    /// What hosts said alike.
    #[serde(skip)]
    alike: Alike,
}

/// Parts of answers that many hosts give alike, each kept once.
#[derive(Debug, Clone, Default)]
struct Alike {
    images: BTreeMap<ImageId, Shared<Image>>,
    /// The first service with the variables and labels of a container, by the digest of its specification.
    specs: BTreeMap<Digest, Shared<PlannedService>>,
    roster: Option<Shared<Roster>>,
}

impl PartialEq for Alike {
    /// How answers are kept is no part of what they say.
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Alike {}

impl Alike {
    fn share(&mut self, answer: &mut Answer) {
        let Answer::Records(records) = answer else { return };
        if let Some(roster) = &mut records.roster {
            match &self.roster {
                Some(known) if known == roster => *roster = known.clone(),
                _ => self.roster = Some(roster.clone()),
            }
        }
        for service in records.releases.iter_mut().flat_map(|release| release.services.values_mut()) {
            let known = self.images.entry(service.image.id()).or_insert_with(|| service.image.clone());
            if *known == service.image && !known.is_same(&service.image) {
                service.to_mut().image = known.clone();
            }
            let known = &self.specs.entry(service.spec).or_insert_with(|| service.clone()).container_spec;
            let spec = &service.container_spec;
            // A host may say a digest that is another's.
            let same = known.env == spec.env && known.labels == spec.labels;
            if same && !(known.env.is_same(&spec.env) && known.labels.is_same(&spec.labels)) {
                let spec = &mut service.to_mut().container_spec;
                (spec.env, spec.labels) = (known.env.clone(), known.labels.clone());
            }
        }
    }
}

impl Observation {
    /// The answer of `host` to the want `id`.
    pub fn answer(&self, host: &HostName, id: &str) -> Option<&Answer> {
        self.hosts.get(host)?.get(id)
    }

    /// Drops what plugins asked for, once they have answered: files and outputs of commands that nobody reads again.
    pub fn forget_plugins(&mut self) {
        for facts in self.hosts.values_mut() {
            // `PLUGIN/…`; no want of the core has a slash.
            facts.retain(|id, _| !id.contains('/'));
        }
    }

    /// Adds facts of one host.
    pub fn add(&mut self, host: &HostName, facts: Vec<Fact>) {
        let of_host = self.hosts.entry(host.clone()).or_default();
        of_host.extend(facts.into_iter().map(|mut fact| {
            self.alike.share(&mut fact.answer);
            (fact.id, fact.answer)
        }));
    }
}

/// The parts of a lease that an observer may print.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseFacts {
    /// The lease as recorded.
    pub lease: Lease,
    /// Whether its session still runs and it has not expired.
    pub live: bool,
    /// Milliseconds since it was granted, by the host's time since boot; none where the record is of another boot or does not say.
    #[serde(default)]
    pub age_ms: Option<u64>,
}

/// Whether what jiji keeps on a host is as jiji wrote it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntegrityFacts {
    /// What is readable and whole of the project's records. What is damaged is left out.
    pub records: HostRecords,
    /// What is not, with the reason.
    pub damaged: Vec<Damage>,
    /// The release that the last transaction's journal says was decided, where that journal is whole and its release is not.
    pub decided: Option<Box<Release>>,
    /// Permission bits of the directory of all records; none where there is none.
    pub mode: Option<u32>,
    /// Programs below `bin` that are not what their names say.
    pub programs: Vec<ProgramFacts>,
}

/// A program of jiji's on a host that is not what its name says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramFacts {
    /// Its file's name: the digest that it should have.
    pub name: String,
    /// The digest that it has.
    pub sha256: Digest,
    /// Permission bits.
    pub mode: u32,
}

/// A record that is not as jiji wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// Which.
    pub file: RecordFile,
    /// What is wrong with it, a fragment for people.
    pub reason: String,
}

/// A record on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordFile {
    /// The lease.
    Lease,
    /// The highest fencing number granted.
    Fencing,
    /// The journal of the last transaction.
    Journal,
    /// The release of this number.
    Release(u64),
    /// The audit log.
    Audit,
    /// The roster of servers.
    Roster,
    /// The address leased last.
    LastAddress,
    /// The host's key.
    Key,
}

impl std::fmt::Display for RecordFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Lease => f.write_str("lease.json"),
            Self::Fencing => f.write_str("fencing"),
            Self::Journal => f.write_str("journal"),
            Self::Release(number) => write!(f, "releases/{number}.json"),
            Self::Audit => f.write_str("audit.jsonl"),
            Self::Roster => f.write_str("roster.json"),
            Self::LastAddress => f.write_str("last-address"),
            Self::Key => f.write_str("host.key"),
        }
    }
}

/// How a container differs from what was decided. No value of a variable is in it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Difference {
    /// In what.
    pub part: Part,
    /// What was decided, a fragment for people.
    pub expected: String,
    /// What is there instead.
    pub found: String,
}

/// What of a container may differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// There is none of that name.
    Existence,
    /// It does not run.
    State,
    /// It runs another image.
    Image,
    /// Variables.
    Env,
    /// The values of its secrets.
    Secrets,
    /// Labels.
    Labels,
    /// Mounts.
    Mounts,
    /// Entry point, arguments, user, restart policy or published ports.
    Settings,
    /// Its networks or its address.
    Network,
}
