//! Rollback: the fleet goes to an earlier release by the same path as a ship.
//!
//! What is wanted comes from the hosts' records and not from the sources; images that hosts lost are brought again from wherever they are
//! ([`Ship::gather`]). The values of secrets are those of the operator's environment now: a release holds none. Whether they are those
//! that the release ran with is told by their keyed digests.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use jiji_model::event::Record;
use jiji_model::image::Image;
use jiji_model::name::{HostName, SecretName, ServiceName};
use jiji_model::observation::Observation;
use jiji_model::transaction::Decision;

use super::look::{Ready, Wants, platforms};
use super::pipeline::{Durations, Looked, is_taken, since};
use super::talk::Wish;
use super::{Ship, ShipError, Shipped};
use crate::apply::Settled;
use crate::deploy::{self, Choice, Desired, Histories, Images, Sameness, Trust};
use crate::fleet::Fleet;

/// Gives the value of a secret that the project may not name any more.
pub type Lookup<'a> = dyn Fn(&str) -> Option<String> + Sync + 'a;

impl Ship {
    /// Moves the fleet back to the release that `wanted` names, or to the last good one that all hosts remember.
    ///
    /// Where that settled an interrupted ship by taking it back, and nothing is named, the fleet is at its last good release already, and
    /// stays there.
    ///
    /// # Errors
    /// As [`Self::ship`].
    pub async fn rollback(&mut self, wanted: Option<&str>, lookup: &Lookup<'_>) -> Result<Shipped, ShipError> {
        let start = Instant::now();
        let mut durations = Durations::new();
        let fleet = self.unless_stopped(self.connect()).await?;
        let until = self.until();
        let shipped = loop {
            if let Err(error) = self.wait_for_others(&fleet, until).await {
                break Err(error);
            }
            let shipped = self.deliver_release(&fleet, wanted, lookup, &mut durations).await;
            if !is_taken(&shipped, until) {
                break shipped;
            }
        };
        self.end(fleet, shipped, durations, start).await
    }

    async fn deliver_release(
        &mut self,
        fleet: &Fleet,
        wanted: Option<&str>,
        lookup: &Lookup<'_>,
        durations: &mut Durations,
    ) -> Result<Shipped, ShipError> {
        let start = Instant::now();
        let ready = self.ready(&platforms(fleet), None).await?;
        let (mut observation, settled, taken_back) = self.remembered(fleet, &ready).await?;
        let now = self.now();
        let histories = deploy::history(&observation)?;
        let choice = match wanted {
            None if taken_back => deploy::current(&histories).ok_or(deploy::PlanError::NoRelease)?,
            wanted => deploy::choose(&histories, wanted)?,
        };
        self.tell_choice(&choice, &histories, taken_back && wanted.is_none());
        let scope = self.project.scope();
        let wants: Wants = fleet
            .sessions
            .keys()
            .map(|host| (host.clone(), deploy::release_wants(&scope, &choice, host)))
            .filter(|(_, wants)| !wants.is_empty())
            .collect();
        self.ask(fleet, &wants, &mut observation).await?;
        let target = deploy::target(&self.project, &choice, &observation)?;
        for (host, services) in &target.adopted {
            for (service, other) in services {
                let text = format!("remembers no release {}: it gets the {service} that {other} ran", target.number);
                self.sink.emit(Record::new("rollback.adopted", text).on(host).service(service));
            }
        }
        let needed = target.hosts.keys().flat_map(|host| target.secrets(host)).collect();
        self.look_up(target.number, &needed, lookup)?;
        self.send_secrets(fleet, |host| target.secrets(host)).await?;
        let wants = fleet.sessions.keys().map(|host| (host.clone(), deploy::rollback_wants(&target, host))).collect();
        self.ask(fleet, &wants, &mut observation).await?;
        self.tell_secrets(target.number, deploy::secrets_of(&target, &observation));
        let mut desired = deploy::rollback(&scope, &target, self.retain(), &|_, _| Trust::Looks, &observation)?;
        desired.rollout = self.project.rollout.clone();
        let answers = self.answers(fleet, &ready, &desired, &mut observation, Wish::Release).await?;
        let mut assembled = deploy::assemble(&desired, &ready.seeds, &answers, &observation)?;
        self.fit(fleet, &desired, &mut assembled, &mut observation, now).await?;
        durations.insert("look", since(start));
        let images = images(&desired);
        let looked = Looked { observation, desired, answers, assembled, settled };
        let shipped = self.apply(fleet, &ready, looked, durations).await?;
        Ok(Shipped { images, ..shipped })
    }

    /// How many releases' images stay.
    pub(super) fn retain(&self) -> u32 {
        self.project.services.values().map(|service| service.retain).max().unwrap_or(1)
    }

    /// Looks at what runs and what is remembered, and settles what was left open. Also tells whether that took back a run that was no
    /// rollback.
    pub(super) async fn remembered(
        &self,
        fleet: &Fleet,
        ready: &Ready,
    ) -> Result<(Observation, Vec<Settled>, bool), ShipError> {
        let nothing = Images::new();
        let of_host = |host: &HostName| {
            let mut wants = deploy::wants(&self.project, host, &nothing, &ready.seeds);
            // Secrets are sent once it is known which ones the release needs.
            wants.retain(|want| !deploy::needs_secrets(want));
            wants.push(deploy::history_want(&self.project.scope()));
            wants
        };
        let wants: Wants = fleet.sessions.keys().map(|host| (host.clone(), of_host(host))).collect();
        let mut observation = Observation::default();
        self.ask(fleet, &wants, &mut observation).await?;
        let interrupted: BTreeMap<String, String> = deploy::records(&observation)
            .into_values()
            .filter_map(|records| records.transaction.filter(|transaction| transaction.is_open()))
            .map(|transaction| (transaction.begin.transaction, transaction.begin.command))
            .collect();
        let settled = self.settle_and_look(fleet, &wants, &mut observation).await?;
        let taken_back = settled.iter().any(|settled| {
            let command = interrupted.get(&settled.transaction);
            settled.decision == Decision::Revert && command.is_some_and(|command| command != "rollback")
        });
        Ok((observation, settled, taken_back))
    }

    /// Gets the secrets that a release needs and the project may not name any more.
    pub(super) fn look_up(
        &mut self,
        number: u64,
        needed: &BTreeSet<SecretName>,
        lookup: &Lookup<'_>,
    ) -> Result<(), ShipError> {
        let missing = self.secrets.look_up(needed, lookup);
        match missing.is_empty() {
            true => Ok(()),
            false => Err(ShipError::SecretsMissing { number, missing }),
        }
    }

    fn tell_choice(&self, choice: &Choice, histories: &Histories, taken_back: bool) {
        let line = &choice.line;
        let from = histories.values().flatten().map(|line| line.number).max().unwrap_or(choice.number);
        let text = match taken_back {
            true => format!("the interrupted run was taken back, release {} stays", choice.number),
            false => {
                format!("rolling back from release {from} to {}, `{}` of {}", choice.number, line.command, line.who)
            }
        };
        let images: BTreeMap<_, _> =
            line.services.iter().map(|(name, service)| (name.to_string(), service.image.manifest)).collect();
        let data = serde_json::json!({
            "release": choice.number, "from": from, "who": line.who, "command": line.command, "at_s": line.at_s,
            "transaction": line.transaction, "images": images,
        });
        self.sink.emit(Record::new("ship.rollback", text).with(data));
    }

    /// Says whose secrets containers get, and whether they are those that the release ran with.
    pub(super) fn tell_secrets(&self, number: u64, told: Vec<(HostName, ServiceName, Vec<SecretName>, Sameness)>) {
        let mut by_answer: BTreeMap<Sameness, (BTreeSet<SecretName>, BTreeSet<HostName>)> = BTreeMap::new();
        for (host, _, secrets, sameness) in told {
            let (names, hosts) = by_answer.entry(sameness).or_default();
            names.extend(secrets);
            hosts.insert(host);
        }
        for (sameness, (names, hosts)) in by_answer {
            let quoted: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
            let on: Vec<_> = hosts.iter().map(HostName::to_string).collect();
            let (quoted, on) = (quoted.join(", "), on.join(", "));
            let text = match sameness {
                Sameness::Same => format!("{quoted} from this environment, as in release {number}, on {on}"),
                Sameness::Differ => {
                    format!("{quoted} from this environment, with other values than in release {number}, on {on}")
                }
                Sameness::Unknown => {
                    format!("{quoted} from this environment; the values of release {number} are not known on {on}")
                }
            };
            let data = serde_json::json!({"secrets": names, "hosts": hosts, "values": sameness});
            self.sink.emit(Record::new("rollback.secrets", text).with(data));
        }
    }
}

/// The images that a fleet will run.
pub(super) fn images(desired: &Desired) -> Images {
    let mut images = Images::new();
    let services = desired.hosts.values().flat_map(|host| &host.services);
    for (name, serving) in services.filter_map(|(name, service)| Some((name, service.change.serving()?))) {
        let known = images.entry(name.clone()).or_default();
        if known.iter().all(|image| image.id() != serving.image.id()) {
            known.push(Image::clone(&serving.image));
        }
    }
    images
}
