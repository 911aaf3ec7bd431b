//! What is wrong with a host, and the way out.

use std::collections::BTreeSet;
use std::fmt;

use jiji_model::event::bytes;
use jiji_model::name::{HostName, ServiceName};
use jiji_model::project::Engine;

use super::rootless::Lack;

/// What is wrong with one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The server.
    pub host: HostName,
    /// What it is.
    pub what: Unfit,
}

/// Whether a finding is a reason not to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// A person should know; the change goes on.
    Warning,
    /// Nothing is begun.
    Refusal,
}

/// One thing that is wrong with a host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Neither Docker nor Podman is installed, or not the one that the project names.
    #[error("engine: {} not installed", missing(*.wanted))]
    NoEngine {
        /// The engine that the project names.
        wanted: Option<Engine>,
        /// How packages are installed there.
        packages: Packages,
    },
    /// Both are installed and the project names none.
    #[error("engine: Docker and Podman are both installed, and the project names neither")]
    TwoEngines,
    /// It is installed and does not answer.
    #[error("engine: {problem}")]
    EngineSilent {
        /// Which.
        engine: Engine,
        /// What it said.
        problem: String,
    },
    /// It is older than jiji works with.
    #[error("engine: {engine} {version} is older than {least}, the oldest that jiji works with")]
    EngineOld {
        /// Which.
        engine: Engine,
        /// Its version.
        version: String,
        /// The oldest that does.
        least: &'static str,
        /// How packages are installed there.
        packages: Packages,
    },
    /// It cannot read the layers of images that are compressed with zstd.
    #[error(
        "engine: docker {version} cannot read layers compressed with zstd, which {} has: {least} is the first that can",
        quoted(images)
    )]
    Zstd {
        /// Docker's version.
        version: String,
        /// The first that can.
        least: &'static str,
        /// The images' names.
        images: BTreeSet<String>,
        /// How packages are installed there.
        packages: Packages,
    },
    /// There is no image for the machine's architecture.
    #[error("architecture: `{service}` has no image for {architecture}")]
    Architecture {
        /// The service.
        service: ServiceName,
        /// The machine's, in Go's words.
        architecture: String,
    },
    /// The kernel is older than any that was tried.
    #[error("kernel: {release} is older than {least}, the oldest that was tried")]
    KernelOld {
        /// Its release.
        release: String,
        /// The oldest that was tried.
        least: &'static str,
    },
    /// Images would not fit.
    #[error("disk: {} free in {paths}, about {} needed", bytes(*.free), bytes(*.needed))]
    Disk {
        /// The directories of one file system that something goes into.
        paths: String,
        /// Bytes that are free.
        free: u64,
        /// Bytes that are needed.
        needed: u64,
        /// The engine there.
        engine: Option<Engine>,
    },
    /// The file system can hold no more files, whatever their size.
    #[error("disk: {files} more files can be made in {path}")]
    Files {
        /// The directory.
        path: String,
        /// How many.
        files: u64,
    },
    /// Old and new would not fit together.
    #[error(
        "memory: {} available, {} held by what runs of {} and needed once more while old and new run together",
        bytes(*.available), bytes(*.needed), quoted(services)
    )]
    Memory {
        /// Bytes that new processes could have.
        available: u64,
        /// Bytes that the old containers hold.
        needed: u64,
        /// The services.
        services: Vec<ServiceName>,
    },
    /// Somebody has a port that a container is to publish.
    #[error("port {port}: {owner} has it, and {container} is to publish it")]
    Port {
        /// The port.
        port: u16,
        /// Who has it.
        owner: Owner,
        /// What is to publish it.
        container: String,
    },
    /// A user who is not root may not listen on a port that a container is to publish.
    #[error("port {port}: a user who is not root may listen on {first} and above alone")]
    Privileged {
        /// The port.
        port: u16,
        /// The first that the user may.
        first: u16,
        /// The lowest of the ports that are to be published, which is what the host should allow.
        lowest: u16,
    },
    /// What a user's own Podman needs is not there.
    #[error("rootless: {0}")]
    Rootless(Lack),
    /// A program of the host is to do what root alone may.
    #[error("`{program}` is to be run there, which root alone may, and everything is done as `{user}`")]
    NeedsRoot {
        /// The program.
        program: String,
        /// The user.
        user: String,
    },
    /// Podman's containers stay down when the machine boots.
    #[error("engine: Podman does not start containers again when the machine boots")]
    DownAtBoot,
    /// The host's clock differs from the operator's.
    #[error("clock: {} {}", span(*.ahead_ms), if *.ahead_ms > 0 { "ahead of this machine's" } else { "behind this machine's" })]
    Clock {
        /// Milliseconds that it is ahead.
        ahead_ms: i64,
    },
}

/// How packages are installed on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packages {
    /// apt: Debian, Ubuntu and what is like them.
    Apt,
    /// dnf: Fedora, RHEL and what is like them.
    Dnf,
    /// Some other way.
    Other,
}

/// Who has a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// A container.
    Container(String),
    /// A process, by name and number.
    Process(String, u32),
    /// Somebody whom the host could not tell.
    Unknown,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Container(name) => write!(f, "container `{name}`"),
            Self::Process(name, number) => write!(f, "`{name}` (process {number})"),
            Self::Unknown => f.write_str("something"),
        }
    }
}

fn missing(wanted: Option<Engine>) -> &'static str {
    match wanted {
        Some(Engine::Docker) => "Docker, which the project names, is",
        Some(Engine::Podman) => "Podman, which the project names, is",
        None => "Docker and Podman are both",
    }
}

fn quoted<T: fmt::Display>(names: impl IntoIterator<Item = T>) -> String {
    names.into_iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

fn span(ms: i64) -> String {
    let seconds = ms.unsigned_abs().div_ceil(1000);
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}

impl Packages {
    pub(super) fn install(self, package: &str) -> String {
        match self {
            Self::Apt => format!("`apt-get install {package}` there"),
            Self::Dnf => format!("`dnf install {package}` there"),
            Self::Other => format!("install {package} there"),
        }
    }

    fn engine(self, wanted: Option<Engine>) -> String {
        let docker = if self == Self::Apt { "docker.io" } else { "docker" };
        match wanted {
            Some(Engine::Docker) => self.install(docker),
            Some(Engine::Podman) => self.install("podman"),
            None => format!("{}, or {}", self.install("podman"), self.install(docker)),
        }
    }
}

impl Unfit {
    /// Whether it is a reason not to begin.
    pub fn severity(&self) -> Severity {
        match self {
            Self::Rootless(lack) => lack.severity(),
            Self::Clock { .. } | Self::DownAtBoot | Self::KernelOld { .. } => Severity::Warning,
            _ => Severity::Refusal,
        }
    }

    /// A word by which programs know it.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoEngine { .. } => "engine_missing",
            Self::TwoEngines => "engine_ambiguous",
            Self::EngineSilent { .. } => "engine_silent",
            Self::EngineOld { .. } => "engine_old",
            Self::Zstd { .. } => "engine_zstd",
            Self::Architecture { .. } => "architecture",
            Self::KernelOld { .. } => "kernel_old",
            Self::Disk { .. } => "disk",
            Self::Files { .. } => "files",
            Self::Memory { .. } => "memory",
            Self::Port { .. } => "port_taken",
            Self::Privileged { .. } => "port_privileged",
            Self::Rootless(lack) => lack.code(),
            Self::NeedsRoot { .. } => "needs_root",
            Self::DownAtBoot => "down_at_boot",
            Self::Clock { .. } => "clock",
        }
    }

    /// What a person can do.
    pub fn hint(&self) -> String {
        match self {
            Self::NoEngine { wanted, packages } => packages.engine(*wanted),
            Self::TwoEngines => {
                "say `engine: docker` or `engine: podman` for the server in `.jiji/deploy.yml`".to_owned()
            }
            Self::EngineSilent { engine: Engine::Docker, .. } => {
                "`systemctl enable --now docker` there, then `docker info` says what it lacks".to_owned()
            }
            Self::EngineSilent { engine: Engine::Podman, .. } => "`podman info` there says what it lacks".to_owned(),
            Self::EngineOld { engine, packages, .. } => {
                format!("{}, in a release of the distribution that has a newer one", packages.engine(Some(*engine)))
            }
            Self::Zstd { least, packages, .. } => format!(
                "leave out `compression: zstd` in `.jiji/deploy.yml` (a base image that has such layers keeps them), or {} in a release of the distribution that has {least}",
                packages.engine(Some(Engine::Docker))
            ),
            Self::Architecture { .. } => "build or pin the image for this architecture too".to_owned(),
            Self::KernelOld { .. } => "what fails there may fail for that".to_owned(),
            Self::Disk { engine, .. } => match engine {
                Some(engine) => format!(
                    "`{engine} system prune` there removes what no container uses; `retain` says how many releases stay"
                ),
                None => "free some space there".to_owned(),
            },
            Self::Files { path, .. } => {
                format!("`df -i {path}` there shows it; many small files somewhere have used them up")
            }
            Self::Memory { .. } => "stop something else there, or take a machine with more memory".to_owned(),
            Self::Port { owner, container, .. } => match owner {
                Owner::Process(name, _) => format!(
                    "stop `{name}` there (`systemctl disable --now {name}`), or give the proxy another port with `plugins.proxy.settings`"
                ),
                Owner::Container(name) => format!(
                    "let container `{name}` go first, or give {container} another port with `plugins.proxy.settings`"
                ),
                Owner::Unknown => "`ss -ltnp` there, as root, shows who".to_owned(),
            },
            Self::Privileged { lowest, .. } => format!(
                "put the line `net.ipv4.ip_unprivileged_port_start={lowest}` into `/etc/sysctl.d/60-jiji.conf` there and run `sysctl --system`; or \
                 give the proxy other ports with `plugins.proxy.settings`"
            ),
            Self::Rootless(lack) => lack.hint(),
            Self::NeedsRoot { .. } => {
                "where it is to lead connections from one proxy to another: `podman rm --force kamal-proxy` there and then `jiji ship` puts \
                 the new one in the old one's place, with some seconds in which nobody answers"
                    .to_owned()
            }
            Self::DownAtBoot => "`systemctl enable podman-restart.service` there".to_owned(),
            Self::Clock { .. } => {
                "certificates and log times go wrong with it; `timedatectl set-ntp true` there".to_owned()
            }
        }
    }
}
