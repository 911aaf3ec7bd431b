//! The pipeline: build → push → look → plan → apply, and what overlaps with what.
//!
//! Hosts are connected while images are built; pushing overlaps with looking; hosts are looked at once, with the core's questions and the
//! plugins' together. Where the look shows that nothing would change, that is all that happens. This room has no rules of its own: it
//! hands what one room gives to the next.

mod abort;
mod drift;
mod error;
mod fit;
mod gather;
mod images;
mod look;
mod needs;
mod network;
mod pipeline;
mod planned;
mod rehearsal;
mod rollback;
mod talk;
mod upgrade;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use jiji_model::event::Sink;
use jiji_model::image::{Image, Platform};
use jiji_model::name::{HostName, ServiceName};
use jiji_model::project::{NamedContext, Project};
use jiji_store::Store;

use crate::apply::{self, Cancel, Settled};
use crate::deploy::{Changes, Saved};
use crate::fleet::{self, Counters};
use crate::lockfile::LockFile;
use crate::registry::Client;
use crate::secrets::Secrets;

pub use abort::{Abort, Aborted, Known};
pub use drift::{Drift, Mended};
pub use error::ShipError;
pub use images::Pushed;
pub use network::NetworkState;
pub use rehearsal::{Rehearsal, Rehearsed};
pub use rollback::Lookup;

/// Everything that a ship works with.
pub struct Ship {
    /// The project.
    pub project: Arc<Project>,
    /// Its directory.
    pub root: PathBuf,
    /// The store.
    pub store: Store,
    /// `jiji.lock`.
    pub lock: LockFile,
    /// The client of registries.
    pub client: Client,
    /// Values of the project's secrets.
    pub secrets: Secrets,
    /// Where compiled plugins are kept.
    pub compiled: PathBuf,
    /// How hosts are reached.
    pub fleet: fleet::Options,
    /// Who ships, and how.
    pub apply: apply::Options,
    /// To be asked to stop.
    pub cancel: Cancel,
    /// Whether anything that `jiji.lock` does not say already is an error.
    pub locked: bool,
    /// Whether steps are done again that are remembered.
    pub renew: bool,
    /// Whether to say of each step why it is done or not.
    pub explain: bool,
    /// Whether to push to the project's registry.
    pub push: bool,
    /// What builds are given besides.
    pub given: Given,
    /// How many cores to build on.
    pub threads: usize,
    /// This machine's clock in milliseconds since 1970, to tell how far those of hosts are off.
    pub clock: fn() -> u64,
    /// Who watches.
    pub sink: Arc<dyn Sink>,
}

/// What builds are given besides what the configuration says: by the command line and by whoever builds.
#[derive(Debug, Clone, Default)]
pub struct Given {
    /// What names stand for, before those of the configuration.
    pub contexts: BTreeMap<String, NamedContext>,
    /// Sockets of agents, by their ids.
    pub agents: BTreeMap<String, PathBuf>,
    /// The agent of whoever builds, for the ids that the configuration names.
    pub agent: Option<PathBuf>,
}

/// Where the images of a ship come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// They are built now.
    Build,
    /// They are the ones that `jiji.lock` names.
    Lock,
}

/// How a ship ended that ended well.
#[derive(Debug, Default)]
pub struct Shipped {
    /// The images, by service.
    pub images: BTreeMap<ServiceName, Vec<Image>>,
    /// Whether anything changed on hosts.
    pub changed: bool,
    /// The release's number; 0 where nothing changed.
    pub number: u64,
    /// All hosts.
    pub hosts: Vec<HostName>,
    /// What passed between this machine and each host.
    pub counters: BTreeMap<HostName, Counters>,
    /// Bytes of blobs that were sent to hosts.
    pub blob_bytes: u64,
    /// Bytes that were pushed to the registry.
    pub pushed_bytes: u64,
    /// Milliseconds by stage.
    pub durations: BTreeMap<&'static str, u64>,
    /// Interrupted transactions that were settled first.
    pub settled: Vec<Settled>,
    /// Steps after the decision that failed: something old is left, which the next ship takes up again.
    pub left: Vec<apply::Failure>,
    /// What was left alone, by host.
    pub notes: Vec<(HostName, String)>,
}

/// What a ship would do.
#[derive(Debug)]
pub struct Planned {
    /// What changes, for people.
    pub changes: Changes,
    /// The plan itself.
    pub plan: jiji_model::plan::Plan,
    /// The images of services.
    pub images: BTreeMap<ServiceName, Vec<Image>>,
    /// What was left alone, by host.
    pub notes: Vec<(HostName, String)>,
    /// The plan as it can be kept, where that was asked for.
    pub saved: Option<Saved>,
}

impl Ship {
    /// Keeps registries and servers that files are fetched from out of it, or does not.
    pub fn set_offline(&mut self, offline: bool) {
        self.client = self.client.clone().offline(offline);
    }
}

/// The platform of this machine.
pub fn native() -> Platform {
    match std::env::consts::ARCH {
        "aarch64" => Platform::linux_arm64(),
        _ => Platform::linux_amd64(),
    }
}
