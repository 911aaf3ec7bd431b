//! Drift: what differs on hosts from what was decided last, and its mending by the same path as a ship.
//!
//! Needs the hosts and the project's list of them, no sources: what is expected is what hosts recorded. Before a lease can be taken,
//! damaged records are set aside on the hosts; everything else is a plan with a journal. A host with a difference that only a person can
//! mend is left as it is, and the others are mended.

use std::collections::{BTreeMap, BTreeSet};

use jiji_model::event::Record;
use jiji_model::name::{HostName, SecretName, ServiceName};
use jiji_model::observation::{Observation, RecordFile};
use jiji_model::protocol::Request;
use jiji_model::transaction::Release;

use super::look::{Ready, Wants, platforms};
use super::pipeline::{Durations, Looked, is_taken};
use super::rollback::{Lookup, images};
use super::talk::Wish;
use super::{Ship, ShipError, Shipped};
use crate::deploy::{self, Desired, Expected, Finding, Kind, Proxied, Target, Trust, preflight};
use crate::fleet::{Fleet, PATIENCE};
use crate::plugin::MAX_ROUNDS;

/// What differs.
#[derive(Debug, Clone, Default)]
pub struct Drift {
    /// The release that hosts were compared with; 0 where an open transaction has to be settled first.
    pub release: u64,
    /// The hosts that were looked at.
    pub hosts: Vec<HostName>,
    /// The differences.
    pub findings: Vec<Finding>,
}

/// How mending ended.
#[derive(Debug)]
pub struct Mended {
    /// What differed before.
    pub before: Drift,
    /// What still does.
    pub left: Drift,
    /// What the transaction did.
    pub shipped: Shipped,
}

/// A look, and what it came to.
struct Compared {
    observation: Observation,
    /// None while a transaction is open.
    expected: Option<Expected>,
    drift: Drift,
}

/// Records to set aside on a host, and a release to keep again.
type Repairs = BTreeMap<HostName, (Vec<RecordFile>, Option<Release>)>;

/// Services whose containers are replaced.
type Replaced = BTreeSet<(HostName, ServiceName)>;

impl Ship {
    /// Compares the fleet with what was decided last. Changes nothing.
    ///
    /// # Errors
    /// As [`Self::ship`].
    pub async fn drift(&self) -> Result<Drift, ShipError> {
        let fleet = self.connect().await?;
        let compared = match self.ready(&platforms(&fleet), None).await {
            Ok(ready) => self.compare(&fleet, &ready).await,
            Err(error) => Err(error),
        };
        fleet.close().await;
        Ok(compared?.drift)
    }

    /// Compares, makes hosts what was decided last, and compares again. `lookup` gives the secrets of containers that are replaced.
    ///
    /// # Errors
    /// As [`Self::ship`].
    pub async fn mend(&mut self, lookup: &Lookup<'_>) -> Result<Mended, ShipError> {
        let fleet = self.connect().await?;
        let until = self.until();
        let mended = loop {
            if let Err(error) = self.wait_for_others(&fleet, until).await {
                break Err(error);
            }
            let mended = self.mend_on(&fleet, lookup).await;
            if !is_taken(&mended, until) {
                break mended;
            }
        };
        fleet.close().await;
        mended
    }

    /// Compares. A proxy that did not answer is asked again before that is said of it: on a host at work one answer may come late.
    async fn compare(&self, fleet: &Fleet, ready: &Ready) -> Result<Compared, ShipError> {
        let compared = self.compare_once(fleet, ready).await?;
        match compared.drift.findings.iter().any(|finding| finding.kind == Kind::Proxy) {
            true => self.compare_once(fleet, ready).await,
            false => Ok(compared),
        }
    }

    async fn compare_once(&self, fleet: &Fleet, ready: &Ready) -> Result<Compared, ShipError> {
        let scope = self.project.scope();
        let mut observation = Observation::default();
        self.look_at_records(fleet, ready, &mut observation).await?;
        let hosts: Vec<_> = fleet.sessions.keys().cloned().collect();
        if deploy::is_open(&observation) {
            let findings = deploy::record_findings(&observation)?;
            return Ok(Compared { observation, expected: None, drift: Drift { release: 0, hosts, findings } });
        }
        let expected = deploy::expected(&self.project, &observation)?;
        let wants = |host: &HostName| deploy::compare_wants(&expected, &ready.seeds, &observation, host);
        let wants: Wants = hosts.iter().map(|host| (host.clone(), wants(host))).collect();
        self.ask(fleet, &wants, &mut observation).await?;
        let mut findings = deploy::findings(&scope, &expected, &observation, &BTreeMap::new())?;
        // Without a network that can be used there is nothing that a proxy could route to.
        if findings.iter().all(|finding| finding.kind != Kind::Network || finding.fixable) {
            let desired = deploy::recorded(&scope, &expected, &observation)?;
            let proxied = self.proxied(fleet, ready, &desired, &mut observation).await?;
            findings = deploy::findings(&scope, &expected, &observation, &proxied)?;
        }
        let release = expected.target.number;
        Ok(Compared { observation, expected: Some(expected), drift: Drift { release, hosts, findings } })
    }

    async fn look_at_records(
        &self,
        fleet: &Fleet,
        ready: &Ready,
        observation: &mut Observation,
    ) -> Result<(), ShipError> {
        let scope = self.project.scope();
        let mut wants = Wants::new();
        for (host, session) in &fleet.sessions {
            let mut of_host = deploy::drift_wants(&scope);
            of_host.extend(self.first_wants(ready, host, &session.hello().architecture)?);
            wants.insert(host.clone(), of_host);
        }
        self.ask(fleet, &wants, observation).await?;
        Ok(deploy::believe(observation)?)
    }

    /// What the proxy plugin would do on each host, were all services as they were decided.
    async fn proxied(
        &self,
        fleet: &Fleet,
        ready: &Ready,
        desired: &Desired,
        observation: &mut Observation,
    ) -> Result<BTreeMap<HostName, Proxied>, ShipError> {
        let mut proxied = BTreeMap::new();
        for _ in 0..MAX_ROUNDS {
            let mut wants = Wants::new();
            for host in desired.hosts.keys().filter(|host| !proxied.contains_key(*host)).cloned().collect::<Vec<_>>() {
                let mut open = Vec::new();
                match self.host_answers(ready, desired, &host, observation, Wish::Release, &mut open) {
                    Ok(answer) if open.is_empty() => {
                        proxied.insert(host, Proxied::Steps(answer.steps));
                    }
                    Ok(_) => {
                        open.sort_by(|one, other| one.id.cmp(&other.id));
                        open.dedup_by(|one, other| one.id == other.id);
                        wants.insert(host, open);
                    }
                    Err(ShipError::Plugin(error)) => {
                        proxied.insert(host, Proxied::Refused { message: error.to_string(), hint: error.hint() });
                    }
                    Err(error) => return Err(error),
                }
            }
            if wants.is_empty() {
                return Ok(proxied);
            }
            self.ask(fleet, &wants, observation).await?;
        }
        let host = desired.hosts.keys().find(|host| !proxied.contains_key(*host)).cloned();
        let host = host.expect("a host without an answer is why it was asked so often");
        Err(ShipError::Rounds { host, rounds: MAX_ROUNDS })
    }

    async fn mend_on(&mut self, fleet: &Fleet, lookup: &Lookup<'_>) -> Result<Mended, ShipError> {
        let ready = self.ready(&platforms(fleet), None).await?;
        let mut compared = self.compare(fleet, &ready).await?;
        let mut before = Drift::default();
        if compared.expected.is_none() {
            before.findings = std::mem::take(&mut compared.drift.findings);
            self.repair(fleet, deploy::repairs(None, &compared.observation)).await?;
            self.settle(fleet, &compared.observation).await?;
            compared = self.compare(fleet, &ready).await?;
        }
        let Compared { observation, expected, drift } = compared;
        before
            .findings
            .extend(drift.findings.iter().filter(|now| !before.findings.contains(now)).cloned().collect::<Vec<_>>());
        before = Drift { release: drift.release, hosts: drift.hosts.clone(), ..before };
        let mendable = drift.findings.iter().any(|finding| finding.fixable);
        let Some(expected) = expected.filter(|_| mendable) else {
            return Ok(Mended { before, left: drift, shipped: Shipped::default() });
        };
        let shipped = self.mend_found(fleet, &ready, &expected, &drift.findings, observation, lookup).await?;
        let left = self.compare(fleet, &ready).await?.drift;
        Ok(Mended { before, left, shipped })
    }

    async fn mend_found(
        &mut self,
        fleet: &Fleet,
        ready: &Ready,
        expected: &Expected,
        findings: &[Finding],
        mut observation: Observation,
        lookup: &Lookup<'_>,
    ) -> Result<Shipped, ShipError> {
        let scope = self.project.scope();
        let stuck: BTreeSet<&HostName> =
            findings.iter().filter(|finding| !finding.fixable).map(|finding| &finding.host).collect();
        let findings: Vec<Finding> =
            findings.iter().filter(|finding| !stuck.contains(&finding.host)).cloned().collect();
        let mut repairs = deploy::repairs(Some(expected), &observation);
        repairs.retain(|host, _| !stuck.contains(host));
        if !repairs.is_empty() {
            self.repair(fleet, repairs).await?;
            self.look_at_records(fleet, ready, &mut observation).await?;
        }
        let replaced = deploy::distrusted(&findings, expected);
        let needed = secrets(&expected.target, &replaced, &findings);
        let all: BTreeSet<SecretName> = needed.values().flatten().cloned().collect();
        self.look_up(expected.target.number, &all, lookup)?;
        self.send_secrets(fleet, |host| needed.get(host).cloned().unwrap_or_default()).await?;
        let wants = |host: &HostName| {
            let mut wants = deploy::mend_wants(expected, &replaced, host);
            wants.push(preflight::want());
            wants
        };
        let wants: Wants = fleet.sessions.keys().map(|host| (host.clone(), wants(host))).collect();
        self.ask(fleet, &wants, &mut observation).await?;
        let now = self.now();
        let mut told = deploy::secrets_of(&expected.target, &observation);
        told.retain(|(host, service, ..)| replaced.contains(&(host.clone(), service.clone())));
        self.tell_secrets(expected.target.number, told);
        let trust = |host: &HostName, service: &ServiceName| match replaced.contains(&(host.clone(), service.clone())) {
            true => Trust::Never,
            false => Trust::Blind,
        };
        let retain = self.retain().max(deploy::kept(&observation).saturating_add(1));
        let mut desired = deploy::rollback(&scope, &expected.target, retain, &trust, &observation)?;
        desired.rollout = self.project.rollout.clone();
        desired.hosts.retain(|host, _| !stuck.contains(host));
        let answers = self.answers(fleet, ready, &desired, &mut observation, Wish::Release).await?;
        let extra = deploy::mend(&findings, &observation, &desired);
        let mut assembled = deploy::assemble_with(&desired, &ready.seeds, &answers, &observation, &extra)?;
        self.fit(fleet, &desired, &mut assembled, &mut observation, now).await?;
        let images = images(&desired);
        let looked = Looked { observation, desired, answers, assembled, settled: Vec::new() };
        let shipped = self.apply(fleet, ready, looked, &mut Durations::new()).await?;
        Ok(Shipped { images, ..shipped })
    }

    /// Has damaged records set aside, and releases kept again that journals tell.
    async fn repair(&self, fleet: &Fleet, repairs: Repairs) -> Result<(), ShipError> {
        for (host, (files, release)) in repairs {
            let Some(session) = fleet.sessions.get(&host) else { continue };
            let named: Vec<_> = files.iter().map(RecordFile::to_string).collect();
            let text = format!("setting aside {}", named.join(", "));
            self.sink.emit(Record::new("drift.repairing", text).on(&host).with(serde_json::json!({"files": named})));
            let request = Request::Repair { scope: self.project.scope(), files, release: release.map(Box::new) };
            session.ask(request, PATIENCE).await.map_err(ShipError::Fleet)?;
        }
        Ok(())
    }
}

/// The secrets that mending needs, by host: those of containers that are replaced, and the certificates of what is routed again.
fn secrets(target: &Target, replaced: &Replaced, findings: &[Finding]) -> BTreeMap<HostName, BTreeSet<SecretName>> {
    let mut needed: BTreeMap<HostName, BTreeSet<SecretName>> = BTreeMap::new();
    for (host, service) in replaced {
        let planned = target.hosts.get(host).and_then(|ran| ran.services.get(service));
        needed
            .entry(host.clone())
            .or_default()
            .extend(planned.into_iter().flat_map(|service| deploy::secrets(service)));
    }
    for finding in findings.iter().filter(|finding| matches!(finding.kind, Kind::Proxy | Kind::Route)) {
        let services = target.hosts.get(&finding.host).into_iter().flat_map(|ran| ran.services.values());
        needed
            .entry(finding.host.clone())
            .or_default()
            .extend(services.flat_map(|service| deploy::certificate(service)));
    }
    needed
}
