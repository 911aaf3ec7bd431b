//! What a plan stood on, so that a plan that was kept can be refused once it has moved, and whoever is refused is told what moved.
//!
//! Only what a plan depends on counts. How long a host runs, how much room it has, or what other projects have routed changes all the
//! time and changes no plan. Everything is a digest or a short fact: no value of a secret can be in it, since hosts tell none.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use jiji_model::digest::Digest;
use jiji_model::image::ImageId;
use jiji_model::name::{HostName, ServiceName};
use jiji_model::observation::{ContainerFacts, Observation};
use jiji_model::plan::{NETWORK, Step};
use serde::{Deserialize, Serialize};

use super::error::Refused;
use super::look::Look;
use super::saved::plain;
use super::{Answers, Desired, HostAnswers};

/// What a plan stood on, by host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Basis(pub BTreeMap<HostName, HostBasis>);

/// What a plan stood on, on one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostBasis {
    /// Its architecture in Go's words.
    pub architecture: String,
    /// Its container engine.
    pub engine: String,
    /// Containers of the project and those that projects share, by name: a digest of what each runs, where, and whether it does.
    pub containers: BTreeMap<String, Digest>,
    /// Subnet and gateway of the containers' network; none where there is none.
    pub network: Option<Digest>,
    /// Those of the wanted images that its engine has.
    pub images: BTreeSet<ImageId>,
    /// What is routed for each service, as far as it matters: a digest of the proxy plugin's answer.
    pub routes: BTreeMap<ServiceName, Digest>,
    /// The proxy itself: a digest of the plugin's other answers.
    pub proxy: Digest,
    /// The roster of servers as it is stored there.
    pub roster: Option<Digest>,
    /// The highest fencing number that was granted.
    pub fencing: u64,
    /// The last transaction.
    pub transaction: Option<String>,
    /// The newest release's number.
    pub release: Option<u64>,
    /// What all releases say that are known there.
    pub releases: Digest,
    /// The container address leased last.
    pub last_address: Option<Ipv4Addr>,
    /// Secrets of each service that has some, as they were sent: a digest of their keyed digest under the host's own key. A host that
    /// has no key yet tells none.
    pub secrets: BTreeMap<ServiceName, Digest>,
}

/// What the plan that comes of these values stands on.
///
/// # Errors
/// As [`super::assemble`]: what a host did not answer.
pub fn basis(desired: &Desired, answers: &Answers, observation: &Observation) -> Result<Basis, Refused> {
    let mut errors = Vec::new();
    let mut hosts = BTreeMap::new();
    let none = HostAnswers::default();
    for (host, wanted) in &desired.hosts {
        match Look::of(observation, host) {
            Ok(look) => {
                let services = wanted.services.keys();
                let answers = answers.get(host).unwrap_or(&none);
                hosts.insert(host.clone(), of_host(&look, services, answers));
            }
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() { Ok(Basis(hosts)) } else { Err(Refused(errors)) }
}

fn of_host<'s>(look: &Look<'_>, services: impl Iterator<Item = &'s ServiceName>, answers: &HostAnswers) -> HostBasis {
    let records = look.records;
    let mut routes: BTreeMap<ServiceName, Vec<&Step>> = BTreeMap::new();
    let mut proxy = Vec::new();
    for step in &answers.steps {
        match &step.service {
            Some(service) => routes.entry(service.clone()).or_default().push(step),
            None => proxy.push(step),
        }
    }
    HostBasis {
        architecture: look.facts.architecture.clone(),
        engine: look.engine.kind.to_string(),
        containers: look.ours.iter().chain(look.shared).map(|facts| (facts.name.clone(), container(facts))).collect(),
        network: look.network.map(|network| Digest::of_json(&(&network.subnet, &network.gateway))),
        images: look.images().iter().copied().collect(),
        routes: routes.into_iter().map(|(service, steps)| (service, Digest::of_json(&steps))).collect(),
        proxy: Digest::of_json(&proxy),
        roster: records.roster.as_ref().map(Digest::of_json),
        fencing: records.fencing,
        transaction: records.transaction.as_ref().map(|transaction| transaction.begin.transaction.clone()),
        release: records.releases.first().map(|release| release.number),
        releases: Digest::of_json(&records.releases),
        last_address: records.last_address,
        secrets: services.filter_map(|service| Some((service.clone(), Digest::of(look.secrets(service)?)))).collect(),
    }
}

/// The engine's id, the time of the start and the exit code of one that ended are not what a plan depends on.
fn container(facts: &ContainerFacts) -> Digest {
    let address = facts.addresses.get(NETWORK);
    Digest::of_json(&(facts.manifest, facts.config, facts.running(), address, &facts.labels))
}

impl Basis {
    /// Its name.
    pub fn digest(&self) -> Digest {
        Digest::of_json(self)
    }

    /// What is otherwise `now`, by host, one line each. Empty where nothing moved.
    pub fn moved(&self, now: &Self) -> BTreeMap<HostName, Vec<String>> {
        let mut moved = BTreeMap::new();
        for (host, before) in &self.0 {
            let lines = match now.0.get(host) {
                Some(now) => before.moved(now),
                None => vec!["it is no part of the fleet any more".to_owned()],
            };
            if !lines.is_empty() {
                moved.insert(host.clone(), lines);
            }
        }
        for host in now.0.keys().filter(|host| !self.0.contains_key(*host)) {
            moved.insert(host.clone(), vec!["it was no part of the fleet".to_owned()]);
        }
        moved
    }
}

impl HostBasis {
    fn moved(&self, now: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut say = |moved: bool, line: String| {
            if moved {
                lines.push(plain(&line));
            }
        };
        say(
            self.architecture != now.architecture,
            format!("its architecture was {} and is {}", self.architecture, now.architecture),
        );
        say(self.engine != now.engine, format!("its engine was {} and is {}", self.engine, now.engine));
        let transaction = |name: &Option<String>| name.clone().unwrap_or_else(|| "none".to_owned());
        say(
            self.transaction != now.transaction,
            format!(
                "another transaction ran: the last was `{}` and is `{}`",
                transaction(&self.transaction),
                transaction(&now.transaction)
            ),
        );
        let release = |number: Option<u64>| number.map_or_else(|| "none".to_owned(), |number| number.to_string());
        say(
            self.release != now.release,
            format!("its newest release was {} and is {}", release(self.release), release(now.release)),
        );
        say(
            self.release == now.release && self.releases != now.releases,
            "the records of its releases are others".to_owned(),
        );
        // Whoever made a release or ran a transaction took the lease too: that is said already.
        say(
            self.fencing != now.fencing && self.transaction == now.transaction && self.release == now.release,
            format!("somebody took its lease: the number was {} and is {}", self.fencing, now.fencing),
        );
        for line in differences(&self.containers, &now.containers) {
            say(true, format!("container {line}"));
        }
        say(self.network != now.network, "the network `jiji` is there otherwise".to_owned());
        for (image, there) in self
            .images
            .difference(&now.images)
            .map(|image| (image, false))
            .chain(now.images.difference(&self.images).map(|image| (image, true)))
        {
            let how = if there { "has come to its engine" } else { "is gone from its engine" };
            say(true, format!("image {} {how}", image.manifest.short()));
        }
        // A candidate's name and address are part of the answer: where those had to change, the route did not move.
        let same_candidates = self.fencing == now.fencing && self.last_address == now.last_address;
        if same_candidates && self.secrets == now.secrets {
            for service in others(&self.routes, &now.routes) {
                say(true, format!("the proxy routes `{service}` otherwise"));
            }
        }
        say(self.proxy != now.proxy, "the proxy itself stands otherwise".to_owned());
        say(self.roster != now.roster, "the roster of servers is another".to_owned());
        say(
            self.last_address != now.last_address && self.transaction == now.transaction,
            "another project gave out container addresses".to_owned(),
        );
        for service in others(&self.secrets, &now.secrets) {
            say(true, format!("secrets of `{service}` have other values"));
        }
        lines
    }
}

/// What came, went or changed, one fragment each that begins with the name.
fn differences<K: Ord + std::fmt::Display>(before: &BTreeMap<K, Digest>, now: &BTreeMap<K, Digest>) -> Vec<String> {
    let mut lines: Vec<String> = before
        .iter()
        .filter_map(|(name, digest)| match now.get(name) {
            None => Some(format!("`{name}` is gone")),
            Some(now) if now != digest => Some(format!("`{name}` has changed")),
            Some(_) => None,
        })
        .collect();
    lines.extend(now.keys().filter(|name| !before.contains_key(*name)).map(|name| format!("`{name}` is new")));
    lines
}

/// The names that one of the two does not have, or has otherwise.
fn others<'m, K: Ord, V: PartialEq>(before: &'m BTreeMap<K, V>, now: &'m BTreeMap<K, V>) -> BTreeSet<&'m K> {
    before.keys().chain(now.keys()).filter(|name| before.get(name) != now.get(name)).collect()
}
