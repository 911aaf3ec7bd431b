//! A plan for hosts that somebody else asks: everything between the configuration and the plan, without a session, a store or a registry.
//!
//! What is planned here is planned by the same rooms as a ship, with the same plugins. It is for those who measure and for those who know
//! what their hosts would answer.

use std::collections::BTreeMap;

use jiji_model::image::Image;
use jiji_model::name::HostName;
use jiji_model::observation::{Fact, Observation, Want};
use jiji_model::project::Project;
use jiji_model::reference::Reference;

use super::images::Pins;
use super::look::{Ready, Wants};
use super::talk::{Talk, Wish, too_many_rounds};
use super::{Planned, ShipError};
use crate::deploy::{self, Assembled, Images, Seeds};
use crate::plugin::{MAX_ROUNDS, Plugins, Proxy};
use crate::secrets::Secrets;
use crate::side_by_side::side_by_side;

/// A project whose fleet is planned for.
pub struct Rehearsal<'a> {
    project: &'a Project,
    images: &'a Images,
    ready: Ready,
    threads: usize,
}

/// What a rehearsal came to.
#[derive(Debug)]
pub struct Rehearsed {
    /// The plan as a person is shown it.
    pub planned: Planned,
    /// Calls of plugins.
    pub calls: u64,
    /// How often hosts were asked.
    pub rounds: usize,
}

impl<'a> Rehearsal<'a> {
    /// With these images of services and of plugins (`seeds`, by the reference with the manifest's digest), on so many threads.
    pub fn new(project: &'a Project, images: &'a Images, plugins: Plugins, seeds: Seeds, threads: usize) -> Self {
        let pins = pins(&plugins.proxy, &seeds);
        Self { project, images, ready: Ready { plugins, pins, seeds }, threads: threads.max(1) }
    }

    /// Plans for hosts of the given architectures. `ask` answers for a host, for several at once.
    ///
    /// # Errors
    /// As a ship's plan.
    pub fn plan(
        &self,
        hosts: &BTreeMap<HostName, String>,
        ask: impl Fn(&HostName, &[Want]) -> Vec<Fact> + Sync,
    ) -> Result<Rehearsed, ShipError> {
        let calls = self.ready.plugins.calls();
        let none = Secrets::default();
        let talk = Talk { project: self.project, secrets: &none, ready: &self.ready, threads: self.threads };
        let mut observation = Observation::default();
        let placement = self.project.placement();
        let hosts: Vec<(&HostName, &String)> = hosts.iter().collect();
        let wanted = side_by_side(self.threads, &hosts, |&(host, architecture)| {
            let services = placement.on(host);
            let mut of_host = deploy::wants_for(self.project, services, self.images, &self.ready.seeds);
            of_host.extend(talk.first_wants(host, architecture, services.iter().copied())?);
            Ok::<_, ShipError>((host.clone(), of_host))
        });
        let wants: Wants = wanted.into_iter().collect::<Result<_, _>>()?;
        let mut rounds = 0;
        let mut look = |wants: &Wants, observation: &mut Observation| {
            rounds += 1;
            let wants: Vec<_> = wants.iter().collect();
            let said = side_by_side(self.threads, &wants, |(host, wants)| ask(host, wants));
            for ((host, _), facts) in wants.into_iter().zip(said) {
                observation.add(host, facts);
            }
        };
        look(&wants, &mut observation);
        drop(wants);
        let desired = deploy::desired(self.project, self.images, &observation)?;
        let mut answers = None;
        for _ in 0..MAX_ROUNDS {
            let (answered, open) = talk.round(&desired, &observation, Wish::Project(self.project))?;
            if open.is_empty() {
                answers = Some(answered);
                break;
            }
            look(&open, &mut observation);
        }
        let answers = answers.ok_or_else(|| too_many_rounds(&desired))?;
        observation.forget_plugins();
        let Assembled { plan, notes } = deploy::assemble(&desired, &self.ready.seeds, &answers, &observation)?;
        let changes = deploy::changes(&desired, &plan, BTreeMap::new());
        let planned = Planned { changes, plan, images: self.images.clone(), notes, saved: None };
        Ok(Rehearsed { planned, calls: self.ready.plugins.calls() - calls, rounds })
    }
}

/// What the proxy plugin is told of its images: the references that `seeds` has for them.
fn pins(proxy: &Proxy, seeds: &Seeds) -> Pins {
    let mut pins = Pins::new();
    for (name, wanted) in proxy.images() {
        for (reference, images) in seeds {
            let Ok(found) = reference.parse::<Reference>() else { continue };
            if (&found.registry, &found.repository) != (&wanted.registry, &wanted.repository) {
                continue;
            }
            for Image { platform, .. } in images {
                pins.entry(platform.architecture.clone()).or_default().insert(name.clone(), found.clone());
            }
        }
    }
    pins
}

#[cfg(test)]
mod tests;
