//! The plan of a private network: numbers, the containers' network, and what the mesh plugin answered.
//!
//! It belongs to no project: its leases, journals and records are in a scope of their own ([`SCOPE`]), since several projects share a server's
//! interface. What runs on servers is looked at for the numbers that it gave them, and not changed. Who is told of whom is the plugin's,
//! whose steps come in as data.

use std::collections::{BTreeMap, BTreeSet};

use jiji_model::digest::canonical_json;
use jiji_model::mesh::SCOPE;
use jiji_model::name::HostName;
use jiji_model::observation::{Observation, Want};
use jiji_model::plan::vet::vet_form;
use jiji_model::plan::{Plan, Step};
use jiji_model::project::Rollout;
use jiji_model::transaction::Roster;

use super::assemble::foundation;
use super::desired::numbers;
use super::error::{PlanError, Refused};
use super::look::{Look, wants_of};

/// What is asked of every server before the mesh plugin is.
pub fn network_wants() -> Vec<Want> {
    wants_of(SCOPE, BTreeSet::new())
}

/// The servers of a network with their numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numbered {
    /// The numbers, as every server should have them stored.
    pub roster: Roster,
    /// Each server's number and its architecture in Go's words.
    pub servers: BTreeMap<HostName, (u16, String)>,
}

/// Numbers the servers that were looked at.
///
/// # Errors
/// Every reason why one cannot be in the network: it was not looked at well enough, its containers are in another network.
pub fn numbered(observation: &Observation) -> Result<Numbered, Refused> {
    let mut errors = Vec::new();
    let mut looks = BTreeMap::new();
    for host in observation.hosts.keys() {
        match Look::of(observation, host) {
            Ok(look) => {
                looks.insert(host.clone(), look);
            }
            Err(error) => errors.push(error),
        }
    }
    let roster = numbers(&looks, &mut errors);
    if !errors.is_empty() {
        return Err(Refused(errors));
    }
    let number = |host: &HostName| roster.servers.get(host).map(|entry| entry.number);
    let servers =
        looks.iter().filter_map(|(host, look)| Some((host.clone(), (number(host)?, look.facts.architecture.clone()))));
    let servers = servers.collect();
    Ok(Numbered { servers, roster })
}

/// The plan: what every server's network stands on, and then the plugin's steps. Empty where all is so already.
///
/// # Errors
/// Every reason why there is no plan.
pub fn network_plan(numbered: &Numbered, steps: &[Step], observation: &Observation) -> Result<Plan, Refused> {
    let mut plan = Plan {
        version: Plan::VERSION,
        scope: SCOPE.to_owned(),
        steps: Vec::new(),
        images: Vec::new(),
        retain: 1,
        rollout: Rollout::default(),
        releases: BTreeMap::new(),
    };
    let text = String::from_utf8(canonical_json(&numbered.roster)).expect("JSON is UTF-8");
    for (host, (number, _)) in &numbered.servers {
        let look = Look::of(observation, host).map_err(|error| Refused(vec![error]))?;
        let is_stored = look.records.roster.as_ref().is_some_and(|stored| **stored == numbered.roster);
        let mut of_host = foundation(host, *number, &look, (!is_stored).then_some(&text));
        of_host.extend(steps.iter().filter(|step| step.host == *host).cloned());
        if !of_host.is_empty() {
            // It runs nothing, and is recorded all the same: a transaction ends with a record of what it left.
            plan.releases.insert(host.clone(), BTreeMap::new());
        }
        plan.steps.extend(of_host);
    }
    let hosts = numbered.servers.keys().cloned().collect();
    match vet_form(&plan.steps, &hosts) {
        Ok(()) => Ok(plan),
        Err(refusals) => Err(Refused(refusals.into_iter().map(PlanError::Form).collect())),
    }
}
