//! What a plan means for a person: per host and service, what changes and what does not. No secret value is in it.

use std::collections::BTreeMap;

use jiji_model::digest::CanonicalJson;
use jiji_model::image::ImageId;
use jiji_model::name::{ContainerName, HostName, ServiceName};
use jiji_model::plan::{ContainerSpec, Phase, Plan, Word};
use jiji_model::route::Route;
use serde::Serialize;

use super::desired::{Change, Desired, Reason};
use crate::side_by_side::on_all_processors;

/// What a plan changes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Changes {
    /// Services, by host. Those that stay as they are too.
    pub hosts: BTreeMap<HostName, Vec<ServiceChange>>,
    /// Bytes of images that have to be sent to each host: of the blobs that it lacks.
    pub bytes: BTreeMap<HostName, u64>,
    /// Phases and titles of steps, by host, in the order in which a host runs them.
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
    /// How its route changes, if it does.
    pub route: Option<RouteChange>,
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
    /// It is a secret, and at least one of those that are marked so has another value: a host keeps one keyed digest for all
    /// secrets of a container.
    Possible,
}

/// How a route changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RouteChange {
    /// In what way.
    pub kind: RouteKind,
    /// What is routed to the service: host and path, such as `shop.example/api`; `*/` for everything.
    pub at: Vec<String>,
    /// Whether the proxy speaks TLS for it.
    pub tls: bool,
    /// Where requests go, `ADDRESS:PORT`. Empty where the route goes.
    pub to: Vec<String>,
}

/// In what way a route changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RouteKind {
    /// There was none.
    Added,
    /// The same requests go to another container.
    Moved,
    /// Other requests are routed, or otherwise.
    Changed,
    /// There is none any more.
    Removed,
}

/// What `plan`, which was assembled from `desired`, changes. `bytes` is what has to be sent to each host.
pub fn changes(desired: &Desired, plan: &Plan, bytes: BTreeMap<HostName, u64>) -> Changes {
    let mut changes = Changes { hosts: BTreeMap::new(), bytes, steps: BTreeMap::new() };
    let hosts: Vec<_> = desired.hosts.iter().collect();
    let changed = on_all_processors(&hosts, |&(host, wanted)| {
        let planned = plan.releases.get(host);
        let services = wanted.services.iter().map(|(name, service)| {
            let route = match planned {
                // A host without steps has no release, and routes as it did.
                None => service.change.previous().and_then(|before| before.route.as_ref()),
                Some(planned) => planned.get(name).and_then(|planned| planned.route.as_ref()),
            };
            of_service(name, &service.change, route)
        });
        services.collect()
    });
    for ((host, _), services) in hosts.into_iter().zip(changed) {
        changes.hosts.insert(host.clone(), services);
        changes.bytes.entry(host.clone()).or_default();
        changes.steps.insert(host.clone(), Vec::new());
    }
    for step in &plan.steps {
        changes.steps.entry(step.host.clone()).or_default().push((step.phase, step.title.clone()));
    }
    for steps in changes.steps.values_mut() {
        steps.sort_by_key(|(phase, _)| *phase);
    }
    changes
}

fn of_service(name: &ServiceName, change: &Change, route: Option<&CanonicalJson>) -> ServiceChange {
    let (before, after) = (change.previous(), change.serving());
    let (old, new) = (before.map(|before| &before.container_spec), after.map(|after| &after.container_spec));
    let why = match change {
        Change::Replace { why, .. } => why.clone(),
        Change::Unchanged { .. } | Change::Remove { .. } => Vec::new(),
    };
    ServiceChange {
        service: name.clone(),
        from: before.map(|before| before.image.id()),
        to: after.map(|after| after.image.id()),
        container: after.map(|after| after.container.clone()),
        env: env(old, new, why.contains(&Reason::Secrets)),
        parts: match (old, new) {
            (Some(old), Some(new)) => parts(old, new),
            _ => Vec::new(),
        },
        route: route_change(before.and_then(|before| before.route.as_ref()), route),
        removed: change.old().iter().map(|old| old.name.clone()).collect(),
        why,
    }
}

/// What a route that cannot be read says is not told: it is another version's.
fn route_change(before: Option<&CanonicalJson>, after: Option<&CanonicalJson>) -> Option<RouteChange> {
    if before == after {
        return None;
    }
    let read = |route: &CanonicalJson| route.read::<Route>().ok();
    let (before, after) = (before.and_then(read), after.and_then(read));
    let kind = match (&before, &after) {
        (None, None) => return None,
        (None, Some(_)) => RouteKind::Added,
        (Some(_), None) => RouteKind::Removed,
        (Some(before), Some(after)) if before.options != after.options => RouteKind::Changed,
        (Some(before), Some(after)) if before.targets != after.targets => RouteKind::Moved,
        // What was before them is no part of where requests go.
        (Some(_), Some(_)) => return None,
    };
    let targets = after.iter().flat_map(|route| &route.targets);
    let to = targets.map(|target| format!("{}:{}", target.address, target.port)).collect();
    let options = &after.as_ref().or(before.as_ref())?.options;
    let all = [String::from("*")];
    let names = if options.hosts.is_empty() { &all[..] } else { &options.hosts };
    let path = options.path_prefix.trim_start_matches('/');
    let at = names.iter().map(|name| format!("{name}/{path}")).collect();
    Some(RouteChange { kind, at, tls: options.ssl, to })
}

fn env(old: Option<&ContainerSpec>, new: Option<&ContainerSpec>, secrets_differ: bool) -> Vec<EnvChange> {
    let kept = |spec: &ContainerSpec| -> Vec<String> {
        let both = spec.env.iter().filter(|(name, word)| {
            matches!(word, Word::Secret(_)) && old.is_some_and(|old| old.env.get(*name) == Some(word))
        });
        both.map(|(name, _)| name.clone()).collect()
    };
    let kept = new.filter(|_| secrets_differ).map(kept).unwrap_or_default();
    // Where there is no other it must be this one, unless names came or went, which are part of the digest too.
    let kind = if kept.len() == 1 && old.map(ContainerSpec::secrets) == new.map(ContainerSpec::secrets) {
        EnvKind::Changed
    } else {
        EnvKind::Possible
    };
    let kept = kept.into_iter().map(|name| EnvChange { name, kind, secret: true });

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
        .chain(kept)
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
