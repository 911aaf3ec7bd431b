//! Another proxy in the place of the one that runs: what a person asks for, and never a ship by itself.
//!
//! Services stay as their newest release says. What is done on a host is the proxy plugin's; that it is one transaction of the whole
//! fleet, with undo and decision, is this room's as for a ship.

use std::collections::BTreeMap;
use std::time::Instant;

use jiji_model::name::HostName;
use jiji_model::observation::Observation;

use super::look::{Ready, Wants, platforms};
use super::pipeline::{Durations, Looked, is_taken, since};
use super::rollback::Lookup;
use super::talk::too_many_rounds;
use super::{Ship, ShipError, Shipped};
use crate::deploy::{self, Answers, Change, Desired, HostAnswers, Trust};
use crate::fleet::Fleet;
use crate::plugin::{MAX_ROUNDS, Turn};

impl Ship {
    /// Replaces the proxy on every host where it runs with another image or other settings than the project's.
    ///
    /// # Errors
    /// As [`Self::ship`].
    pub async fn upgrade_proxy(&mut self, lookup: &Lookup<'_>) -> Result<Shipped, ShipError> {
        let start = Instant::now();
        let mut durations = Durations::new();
        let fleet = self.unless_stopped(self.connect()).await?;
        let until = self.until();
        let shipped = loop {
            if let Err(error) = self.wait_for_others(&fleet, until).await {
                break Err(error);
            }
            let shipped = self.deliver_proxy(&fleet, lookup, &mut durations).await;
            if !is_taken(&shipped, until) {
                break shipped;
            }
        };
        self.end(fleet, shipped, durations, start).await
    }

    async fn deliver_proxy(
        &mut self,
        fleet: &Fleet,
        lookup: &Lookup<'_>,
        durations: &mut Durations,
    ) -> Result<Shipped, ShipError> {
        let start = Instant::now();
        let ready = self.ready(&platforms(fleet), None).await?;
        let (mut observation, settled, _) = self.remembered(fleet, &ready).await?;
        let now = self.now();
        let choice = deploy::current(&deploy::history(&observation)?).ok_or(deploy::PlanError::NoRelease)?;
        let scope = self.project.scope();
        let hosts = fleet.sessions.keys();
        let wants = hosts.map(|host| (host.clone(), deploy::release_wants(&scope, &choice, host)));
        self.ask(fleet, &wants.filter(|(_, wants)| !wants.is_empty()).collect(), &mut observation).await?;
        let target = deploy::target(&self.project, &choice, &observation)?;
        let needed = target.hosts.keys().flat_map(|host| target.secrets(host)).collect();
        self.look_up(target.number, &needed, lookup)?;
        self.send_secrets(fleet, |host| target.secrets(host)).await?;
        let wants = fleet.sessions.keys().map(|host| (host.clone(), deploy::rollback_wants(&target, host))).collect();
        self.ask(fleet, &wants, &mut observation).await?;
        let mut desired = deploy::rollback(&scope, &target, self.retain(), &|_, _| Trust::Looks, &observation)?;
        desired.rollout = self.project.rollout.clone();
        let mut services = desired.hosts.iter().flat_map(|(host, wanted)| {
            wanted.services.iter().map(move |(service, wanted)| (host, service, &wanted.change))
        });
        if let Some((host, service, _)) = services.find(|(.., change)| !matches!(change, Change::Unchanged { .. })) {
            return Err(ShipError::NotAsReleased { host: host.clone(), service: service.clone() });
        }
        let answers = self.upgrades(fleet, &ready, &desired, &mut observation).await?;
        let mut assembled = deploy::assemble(&desired, &ready.seeds, &answers, &observation)?;
        self.fit(fleet, &desired, &mut assembled, &mut observation, now).await?;
        durations.insert("look", since(start));
        let looked = Looked { observation, desired, answers, assembled, settled };
        self.apply(fleet, &ready, looked, durations).await
    }

    /// What the proxy plugin says of each host that runs a service with a route.
    async fn upgrades(
        &self,
        fleet: &Fleet,
        ready: &Ready,
        desired: &Desired,
        observation: &mut Observation,
    ) -> Result<Answers, ShipError> {
        let routed = |host: &&HostName| {
            let services = &desired.hosts[*host].services;
            services.values().filter_map(|service| service.change.serving()).any(|serving| serving.route.is_some())
        };
        for _ in 0..MAX_ROUNDS {
            let (mut answers, mut wants) = (Answers::new(), Wants::new());
            for host in desired.hosts.keys().filter(routed) {
                let wanted = &desired.hosts[host];
                let context = self.context(ready, host, &wanted.architecture, wanted.number);
                let nothing = BTreeMap::new();
                let facts = observation.hosts.get(host).unwrap_or(&nothing);
                match ready.plugins.proxy.upgrade(&context, facts)? {
                    Turn::Observe(more) => {
                        wants.insert(host.clone(), more);
                    }
                    Turn::Done(steps) => {
                        answers.insert(host.clone(), HostAnswers { steps, replaces: true, ..HostAnswers::default() });
                    }
                }
            }
            if wants.is_empty() {
                return Ok(answers);
            }
            self.ask(fleet, &wants, observation).await?;
        }
        Err(too_many_rounds(desired))
    }
}
