//! Why a ship ended otherwise, by the room it ended in.

use std::collections::BTreeMap;

use jiji_model::name::{HostName, PluginName, ServiceName};
use jiji_model::probe::Verdict;
use jiji_model::reference::ParseReferenceError;
use jiji_store::StoreError;

use crate::apply::ApplyError;
use crate::build::BuildError;
use crate::deploy::preflight::{Finding, Severity};
use crate::deploy::{PlanError, Refused, SavedError};
use crate::fleet::FleetError;
use crate::lockfile::LockfileError;
use crate::plugin::PluginError;
use crate::registry::RegistryError;

/// Why a ship ended otherwise.
#[derive(Debug, thiserror::Error)]
pub enum ShipError {
    /// A service's image could not be built.
    #[error("build `{service}`")]
    Build {
        /// The service.
        service: ServiceName,
        /// Why not.
        #[source]
        cause: Box<BuildError>,
    },
    /// Services' images are made from each other.
    #[error("build `{service}`: its image is made from itself, {way}")]
    Circle {
        /// A service.
        service: ServiceName,
        /// From it to itself.
        way: String,
    },
    /// A service's or a plugin's image could not be had, or one could not be pushed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// What stands under `image` is not a reference.
    #[error("find the image of `{service}`")]
    Reference {
        /// The service.
        service: ServiceName,
        /// Why not.
        #[source]
        cause: ParseReferenceError,
    },
    /// Nothing was built for a service yet, so there is nothing to push or deploy.
    #[error("find the image of `{service}`: jiji.lock names none")]
    NotBuilt {
        /// The service.
        service: ServiceName,
    },
    /// With `--locked`: a tag is not in the lock.
    #[error("find `{reference}` in jiji.lock")]
    NotLocked {
        /// The reference.
        reference: String,
    },
    /// There is no registry to push to.
    #[error("push: `builder.registry` names no registry")]
    NoRegistry,
    /// The lock could not be read or written.
    #[error(transparent)]
    Lock(#[from] LockfileError),
    /// The store could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Hosts lack a blob, and nobody who was asked has it.
    #[error("find blob `{digest}` of `{repository}`: {}", nobody(registry.as_deref(), hosts))]
    NoBlob {
        /// The repository it belongs to.
        repository: String,
        /// The blob.
        digest: jiji_model::digest::Digest,
        /// The manifest of the image it belongs to.
        image: jiji_model::digest::Digest,
        /// The registry that was asked, if one was.
        registry: Option<String>,
        /// The hosts that were asked.
        hosts: Vec<HostName>,
    },
    /// A plugin was refused or failed.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// A plugin asked again and again.
    #[error("plan for `{host}`: the proxy plugin has asked {rounds} times and gives no answer")]
    Rounds {
        /// The host.
        host: HostName,
        /// How often.
        rounds: usize,
    },
    /// The mesh plugin asked again and again.
    #[error("plan the network: plugin `{plugin}` has asked {rounds} times and gives no answer")]
    MeshRounds {
        /// The plugin.
        plugin: PluginName,
        /// How often.
        rounds: usize,
    },
    /// The project has no private network.
    #[error("find the network: the project has none")]
    NoNetwork,
    /// What the project says of its hosts cannot be used, or this machine cannot connect.
    #[error(transparent)]
    Fleet(FleetError),
    /// Hosts could not be reached or did not answer. Nothing was changed.
    #[error("reach {}", names(.0))]
    Unreachable(BTreeMap<HostName, FleetError>),
    /// Hosts are not fit for it. Nothing was changed.
    #[error("begin: {} not fit for it, nothing was changed", unfit(findings))]
    Unfit {
        /// All that is wrong with hosts, by host, warnings too.
        findings: Vec<Finding>,
        /// Reasons that are no host's own.
        errors: Vec<PlanError>,
    },
    /// There is no plan.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// A plan that was kept cannot be applied.
    #[error(transparent)]
    Saved(#[from] SavedError),
    /// There is no release to go back to.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A release's record on a host cannot be understood.
    #[error("read the release of `{service}` on `{host}`: its route is not one of this jiji's")]
    Release {
        /// The host.
        host: HostName,
        /// The service.
        service: ServiceName,
    },
    /// Secrets that an earlier release needs are not in this environment.
    #[error("roll back to release {number}: it needs {}", secrets(.missing))]
    SecretsMissing {
        /// The release.
        number: u64,
        /// Names of the secrets.
        missing: Vec<jiji_model::name::SecretName>,
    },
    /// A service does not run as its newest release says, so the proxy is not the first thing to look after.
    #[error("replace the proxy: `{service}` on `{host}` does not run as its release says")]
    NotAsReleased {
        /// The host.
        host: HostName,
        /// The service.
        service: ServiceName,
    },
    /// The transaction did not end well.
    #[error("{error}")]
    Apply {
        /// How it ended.
        error: Box<ApplyError>,
        /// What the health plugin says of each candidate that was not healthy.
        verdicts: Vec<(HostName, Verdict)>,
    },
    /// The thread that built was lost.
    #[error("build: the builder's thread ended early")]
    Thread,
}

fn names(errors: &BTreeMap<HostName, FleetError>) -> String {
    let names: Vec<_> = errors.keys().map(|host| format!("`{host}`")).collect();
    names.join(", ")
}

fn nobody(registry: Option<&str>, hosts: &[HostName]) -> String {
    let hosts: Vec<_> = hosts.iter().map(|host| format!("`{host}`")).collect();
    let registry =
        registry.map_or_else(|| "no registry is known".to_owned(), |registry| format!("not in `{registry}`"));
    match hosts.is_empty() {
        true => format!("not in this machine's store, and {registry}"),
        false => format!("not in this machine's store, {registry}, and not on {}", hosts.join(", ")),
    }
}

fn unfit(findings: &[Finding]) -> String {
    let mut hosts: Vec<_> = findings
        .iter()
        .filter(|finding| finding.what.severity() == Severity::Refusal)
        .map(|finding| format!("`{}`", finding.host))
        .collect();
    hosts.dedup();
    let are = if hosts.len() == 1 { "is" } else { "are" };
    format!("{} {are}", hosts.join(", "))
}

fn secrets(missing: &[jiji_model::name::SecretName]) -> String {
    let names: Vec<_> = missing.iter().map(|name| format!("`{name}`")).collect();
    names.join(", ")
}
