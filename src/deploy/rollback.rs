//! Going back to an earlier release, from the hosts' own records: no sources, no registry.

use std::collections::{BTreeMap, BTreeSet};

use jiji_model::name::{HostName, SecretName};
use jiji_model::observation::{Observation, Want};
use jiji_model::transaction::{HostRecords, Release};

use super::desired::{Desired, Wish, compare};
use super::error::{PlanError, Refused};
use super::look::{images_want, secrets_want};

/// What a fleet ran at an earlier time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The release's number.
    pub number: u64,
    /// What each host ran then: its newest release up to that number.
    pub hosts: BTreeMap<HostName, Release>,
}

impl Target {
    /// The secrets that `host` needs to run it, in order.
    pub fn secrets(&self, host: &HostName) -> BTreeSet<SecretName> {
        let services = self.hosts.get(host).into_iter().flat_map(|release| release.services.values());
        services.flat_map(|service| service.container_spec.secrets()).collect()
    }
}

/// What a fleet ran when release `number` was its newest. Not every release changes every host, so a host may be at an earlier one.
fn at(records: &BTreeMap<HostName, HostRecords>, number: u64) -> Result<Target, PlanError> {
    let mut hosts = BTreeMap::new();
    for (host, records) in records {
        let release = records.releases.iter().find(|release| release.number <= number);
        let release = release.ok_or_else(|| PlanError::UnknownRelease {
            host: host.clone(),
            number,
            known: records.releases.iter().map(|release| release.number).collect(),
        })?;
        hosts.insert(host.clone(), release.clone());
    }
    Ok(Target { number, hosts })
}

/// Whether two states of a fleet run the same.
fn same(one: &Target, other: &Target) -> bool {
    let content = |target: &Target| -> BTreeMap<_, _> {
        let hosts = target.hosts.iter();
        hosts
            .map(|(host, release)| {
                let services = release.services.iter();
                let services: BTreeMap<_, _> =
                    services.map(|(name, service)| (name.clone(), (service.image.id(), service.spec))).collect();
                (host.clone(), services)
            })
            .collect()
    };
    content(one) == content(other)
}

/// Chooses the release to go back to: the one asked for, or the newest before the current one that every host knows and that ran
/// something else.
///
/// # Errors
/// [`PlanError::UnknownRelease`], [`PlanError::NoRelease`].
pub fn choose(records: &BTreeMap<HostName, HostRecords>, number: Option<u64>) -> Result<Target, PlanError> {
    let known: BTreeSet<u64> =
        records.values().flat_map(|records| &records.releases).map(|release| release.number).collect();
    if let Some(number) = number {
        if !known.contains(&number) {
            let (host, records) = records.first_key_value().ok_or(PlanError::NoRelease)?;
            return Err(PlanError::UnknownRelease {
                host: host.clone(),
                number,
                known: records.releases.iter().map(|release| release.number).collect(),
            });
        }
        return at(records, number);
    }
    let current = *known.last().ok_or(PlanError::NoRelease)?;
    let now = at(records, current)?;
    let earlier = known.iter().rev().filter(|number| **number < current);
    earlier
        .filter_map(|number| at(records, *number).ok())
        .find(|target| !same(target, &now))
        .ok_or(PlanError::NoRelease)
}

/// What to ask of `host` beside the core's wants before [`rollback`]. Secrets must have been sent before.
pub fn rollback_wants(target: &Target, host: &HostName) -> Vec<Want> {
    let Some(release) = target.hosts.get(host) else {
        return Vec::new();
    };
    let mut wants = vec![images_want(release.services.values().map(|service| service.image.id()).collect())];
    let services = release.services.iter();
    wants.extend(
        services
            .map(|(name, service)| (name, service.container_spec.secrets()))
            .filter(|(_, secrets)| !secrets.is_empty())
            .map(|(name, secrets)| secrets_want(name, secrets)),
    );
    wants
}

/// Compares an earlier release with what runs. Probes and routes of the candidates are those of the earlier release; the proxy plugin
/// is asked again with its routes, because addresses are new.
///
/// # Errors
/// Every reason why there is no plan.
pub fn rollback(scope: &str, target: &Target, retain: u32, observation: &Observation) -> Result<Desired, Refused> {
    let hosts = target.hosts.iter();
    let wishes = hosts
        .map(|(host, release)| {
            let services = release.services.iter();
            let services = services
                .map(|(name, service)| {
                    let wish = Wish {
                        image: service.image.clone(),
                        spec: service.container_spec.clone(),
                        retain: retain.max(1),
                        earlier: Some(service.clone()),
                    };
                    (name.clone(), wish)
                })
                .collect();
            (host.clone(), services)
        })
        .collect();
    compare(scope, wishes, observation, Vec::new())
}
