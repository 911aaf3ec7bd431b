//! What a plan means for a person: per host and service, what changes and what does not. No secret value is in it.

use std::collections::BTreeMap;

use jiji_model::image::ImageId;
use jiji_model::name::{ContainerName, HostName, ServiceName};
use jiji_model::plan::{ContainerSpec, Phase, Plan, Word};
use serde::Serialize;

use super::desired::{Change, Desired, Reason};

/// What a plan changes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Changes {
    /// Services, by host. Those that stay as they are too.
    pub hosts: BTreeMap<HostName, Vec<ServiceChange>>,
    /// Most bytes of images that may have to be sent to each host.
    pub bytes: BTreeMap<HostName, u64>,
    /// Titles of steps, by host and phase, in order.
    pub steps: BTreeMap<HostName, Vec<(Phase, String)>>,
}

/// What changes for a service.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ServiceChange {
    /// The service.
    pub service: ServiceName,
    /// Why a container is replaced; empty where it is not.
    pub why: Vec<Reason>,
    /// What it ran.
    pub from: Option<ImageId>,
    /// What it will run; none where it goes.
    pub to: Option<ImageId>,
    /// The container that will run it.
    pub container: Option<ContainerName>,
    /// Environment variables that change, by name.
    pub env: Vec<EnvChange>,
    /// Other parts of the specification that change: `command`, `mounts` and so on.
    pub parts: Vec<&'static str>,
    /// The route as the proxy plugin is asked for it, where it changes.
    pub route: Option<serde_json::Value>,
    /// Containers that go.
    pub removed: Vec<ContainerName>,
}

/// A variable that changes. Its value is not told.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct EnvChange {
    /// The variable.
    pub name: String,
    /// How it changes.
    pub kind: EnvKind,
    /// Whether its value is a secret's.
    pub secret: bool,
}

/// How a variable changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EnvKind {
    /// It is new.
    Added,
    /// It has another value.
    Changed,
    /// It goes.
    Removed,
}

/// What `plan`, which was assembled from `desired`, changes.
pub fn changes(desired: &Desired, plan: &Plan) -> Changes {
    let mut changes = Changes { hosts: BTreeMap::new(), bytes: BTreeMap::new(), steps: BTreeMap::new() };
    for (host, wanted) in &desired.hosts {
        let services = wanted.services.iter().map(|(name, service)| {
            let planned = plan.releases.get(host).and_then(|services| services.get(name));
            of_service(name, &service.change, planned.and_then(|planned| planned.route.as_ref()))
        });
        changes.hosts.insert(host.clone(), services.collect());
        let images = plan.images.iter().filter(|image| image.hosts.contains(host));
        changes.bytes.insert(host.clone(), images.map(|image| image.image.size()).sum());
        let steps = plan.steps.iter().filter(|step| step.host == *host);
        changes.steps.insert(host.clone(), steps.map(|step| (step.phase, step.title.clone())).collect());
    }
    changes
}

fn of_service(name: &ServiceName, change: &Change, route: Option<&serde_json::Value>) -> ServiceChange {
    let (before, after) = (change.previous(), change.serving());
    let (old, new) = (before.map(|before| &before.container_spec), after.map(|after| &after.container_spec));
    let route_before = before.and_then(|before| before.route.as_ref());
    ServiceChange {
        service: name.clone(),
        why: match change {
            Change::Replace { why, .. } => why.clone(),
            Change::Unchanged { .. } | Change::Remove { .. } => Vec::new(),
        },
        from: before.map(|before| before.image.id()),
        to: after.map(|after| after.image.id()),
        container: after.map(|after| after.container.clone()),
        env: env(old, new),
        parts: match (old, new) {
            (Some(old), Some(new)) => parts(old, new),
            _ => Vec::new(),
        },
        route: route.filter(|route| Some(*route) != route_before).cloned(),
        removed: change.old().iter().map(|old| old.name.clone()).collect(),
    }
}

fn env(old: Option<&ContainerSpec>, new: Option<&ContainerSpec>) -> Vec<EnvChange> {
    let none = BTreeMap::new();
    let old = old.map_or(&none, |spec| &spec.env);
    let new = new.map_or(&none, |spec| &spec.env);
    let change = |name: &String, kind, word: &Word| EnvChange {
        name: name.clone(),
        kind,
        secret: matches!(word, Word::Secret(_)),
    };
    let mut changes: Vec<_> = new
        .iter()
        .filter_map(|(name, word)| match old.get(name) {
            None => Some(change(name, EnvKind::Added, word)),
            Some(before) if before != word => Some(change(name, EnvKind::Changed, word)),
            Some(_) => None,
        })
        .chain(
            old.iter()
                .filter(|(name, _)| !new.contains_key(*name))
                .map(|(name, word)| change(name, EnvKind::Removed, word)),
        )
        .collect();
    changes.sort();
    changes
}

fn parts(old: &ContainerSpec, new: &ContainerSpec) -> Vec<&'static str> {
    let parts = [
        ("command", old.command != new.command),
        ("entrypoint", old.entrypoint != new.entrypoint),
        ("labels", old.labels != new.labels),
        ("mounts", old.mounts != new.mounts),
        ("network", old.network != new.network),
        ("ports", old.publish != new.publish),
        ("restart", old.restart != new.restart),
        ("stop_timeout", old.stop_timeout_s != new.stop_timeout_s),
        ("user", old.user != new.user),
    ];
    parts.into_iter().filter(|(_, changed)| *changed).map(|(part, _)| part).collect()
}
