//! Why no plan can be made: found before any effect.

use std::net::Ipv4Addr;

use jiji_model::name::{HostName, ServiceName};
use jiji_model::plan::vet::Refusal;
use jiji_model::transaction::roster::SERVERS;

/// One reason why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The host was not looked at, or did not answer one question.
    #[error("plan for `{host}`: {what} is not known{}", because(cause.as_deref()))]
    Unknown {
        /// The server.
        host: HostName,
        /// What should have been answered.
        what: &'static str,
        /// What the host said instead.
        cause: Option<String>,
    },
    /// Neither Docker nor Podman is there, or both are and nothing chooses.
    #[error("plan for `{host}`: it has no container engine, or two and no choice between them")]
    NoEngine {
        /// The server.
        host: HostName,
    },
    /// A service has no image for the host's architecture.
    #[error("plan `{service}` on `{host}`: there is no image for `{architecture}`")]
    NoImage {
        /// The server.
        host: HostName,
        /// The service.
        service: ServiceName,
        /// The host's architecture in Go's words.
        architecture: String,
    },
    /// An image that a plugin runs was not brought for the host's architecture.
    #[error("plan for `{host}`: the image `{reference}` was not brought for `{architecture}`")]
    NoSeed {
        /// The server.
        host: HostName,
        /// What the plugin names.
        reference: String,
        /// The host's architecture in Go's words.
        architecture: String,
    },
    /// The engine's network `jiji` is not one that jiji made.
    #[error("plan for `{host}`: its network `jiji` has the subnet `{subnet}`, which is none of jiji's")]
    Network {
        /// The server.
        host: HostName,
        /// The subnet it has.
        subnet: String,
    },
    /// All addresses for containers are in use.
    #[error("plan `{service}` on `{host}`: all addresses after {last} are in use")]
    NoAddress {
        /// The server.
        host: HostName,
        /// The service.
        service: ServiceName,
        /// Where the search began.
        last: Ipv4Addr,
    },
    /// As many servers have a number as can.
    #[error("plan for `{host}`: all {SERVERS} subnets from 10.210.0.0 to 10.213.255.0 are given out")]
    RosterFull {
        /// The server.
        host: HostName,
    },
    /// Two services want the same requests on one host.
    #[error("plan for `{host}`: `{first}` and `{second}` both want `{route}`")]
    Route {
        /// The server.
        host: HostName,
        /// A service.
        first: ServiceName,
        /// Another.
        second: ServiceName,
        /// The host name and path.
        route: String,
    },
    /// The container's name would be too long for an engine.
    #[error("plan `{service}` on `{host}`: the container's name `{name}` is longer than 128 characters")]
    Name {
        /// The server.
        host: HostName,
        /// The service.
        service: ServiceName,
        /// The name.
        name: String,
    },
    /// A transaction is open, which must be settled first.
    #[error("plan for `{host}`: the transaction `{transaction}` is open there")]
    Open {
        /// The server.
        host: HostName,
        /// Its id.
        transaction: String,
    },
    /// The steps themselves do not fit together: a defect of a plugin, or of jiji.
    #[error("plan step `{}`: {}", .0.step, .0.reason)]
    Form(Refusal),
    /// There is no release to go back to.
    #[error("find an earlier release that every host remembers and that ran something else")]
    NoRelease,
    /// No host remembers any release.
    #[error("find what was decided last: no host remembers a release")]
    NothingShipped,
    /// No host remembers the release that was asked for.
    #[error("find release `{wanted}`: {}", kept(known))]
    UnknownRelease {
        /// What was asked for.
        wanted: String,
        /// The numbers of those that hosts remember, newest first.
        known: Vec<u64>,
    },
    /// The beginning that was asked for is that of several releases.
    #[error("find release `{wanted}`: it may be {}", listed(.numbers))]
    Ambiguous {
        /// What was asked for.
        wanted: String,
        /// The numbers of the releases, newest first.
        numbers: Vec<u64>,
    },
    /// A host remembers nothing, and no other host can tell what a service ran there.
    #[error("go to release {number} with `{service}` on `{host}`: it remembers nothing, {}", nobody_but(.elsewhere.as_ref()))]
    Forgotten {
        /// The server.
        host: HostName,
        /// The service.
        service: ServiceName,
        /// The release's number.
        number: u64,
        /// Another host that ran the service, and its architecture in Go's words.
        elsewhere: Option<(HostName, String)>,
    },
}

fn because(cause: Option<&str>) -> String {
    cause.map_or_else(String::new, |cause| format!(" (`{cause}`)"))
}

fn listed(numbers: &[u64]) -> String {
    let numbers: Vec<_> = numbers.iter().map(u64::to_string).collect();
    numbers.join(", ")
}

fn kept(known: &[u64]) -> String {
    if known.is_empty() {
        return "hosts remember none".to_owned();
    }
    format!("hosts remember {}", listed(known))
}

fn nobody_but(other: Option<&(HostName, String)>) -> String {
    match other {
        None => "and no other host ran it".to_owned(),
        Some((other, architecture)) => format!("and `{other}`, which ran it, has the architecture `{architecture}`"),
    }
}

impl PlanError {
    /// What a person can do, where there is something.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoEngine { .. } => Some(
                "install Docker or Podman there; where both are, set `engine:` for the server in `.jiji/deploy.yml`",
            ),
            Self::NoImage { .. } => Some("build or pin the image for the server's architecture too"),
            Self::Network { .. } => {
                Some("something else made a network of that name; remove it there if nothing uses it any more")
            }
            Self::NoAddress { .. } => {
                Some("a host has 115 addresses for containers; see what holds them with `jiji status`")
            }
            Self::Route { .. } => Some("give one of them another `proxy.host` or `proxy.path`"),
            Self::Open { .. } => Some("`jiji ship` settles it first"),
            Self::UnknownRelease { .. } | Self::NoRelease => Some("`jiji releases` lists what each host remembers"),
            Self::NothingShipped => Some("`jiji ship` makes the first one"),
            Self::Ambiguous { .. } => Some("name it by its number"),
            Self::Forgotten { .. } => Some(
                "`jiji deploy` or `jiji ship` brings the project's present version there; what ran before is in `jiji.lock`'s history",
            ),
            Self::Unknown { .. }
            | Self::NoSeed { .. }
            | Self::RosterFull { .. }
            | Self::Name { .. }
            | Self::Form(_) => None,
        }
    }
}

/// Every reason why there is no plan, found at once. Exit code 15.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", lines(.0))]
pub struct Refused(
    /// At least one.
    pub Vec<PlanError>,
);

fn lines(errors: &[PlanError]) -> String {
    let lines: Vec<_> = errors.iter().map(PlanError::to_string).collect();
    lines.join("\n")
}

impl Refused {
    /// Hints of all reasons, each once.
    pub fn hints(&self) -> Vec<&'static str> {
        let mut hints: Vec<_> = self.0.iter().filter_map(PlanError::hint).collect();
        hints.sort_unstable();
        hints.dedup();
        hints
    }
}
