//! One look at the fleet for the core and the plugins together, and the plan that comes of it.

use std::collections::{BTreeMap, BTreeSet};

use jiji_model::image::Platform;
use jiji_model::name::{HostName, SecretName};
use jiji_model::observation::{Observation, Want};
use jiji_model::secret::Secret;

use super::images::Pins;
use super::talk::{Talk, Wish, too_many_rounds};
use super::{Ship, ShipError};
use crate::deploy::{Answers, Desired, HostAnswers, Seeds};
use crate::fleet::Fleet;
use crate::plugin::{HostContext, MAX_ROUNDS, Plugins};

/// What is asked of each host.
pub(super) type Wants = BTreeMap<HostName, Vec<Want>>;

/// The plugins of a ship with the images they run.
pub(super) struct Ready {
    pub(super) plugins: Plugins,
    pub(super) pins: Pins,
    pub(super) seeds: Seeds,
}

/// The platforms of connected hosts, each once.
pub(super) fn platforms(fleet: &Fleet) -> Vec<Platform> {
    let architectures: BTreeSet<_> =
        fleet.sessions.values().map(|session| session.hello().architecture.clone()).collect();
    architectures.into_iter().map(|architecture| Platform { os: "linux".to_owned(), architecture }).collect()
}

impl Ship {
    /// Loads the plugins, and finds out about the images they run; those of a `kept` plan are taken where it has them.
    pub(super) async fn ready(&self, platforms: &[Platform], kept: Option<&Seeds>) -> Result<Ready, ShipError> {
        let pins = self.lock.read()?.plugins;
        let plugins = Plugins::load(&self.project.plugins, &pins, &self.store, Some(&self.compiled))?;
        let routed = self.project.services.values().any(|service| service.proxy.is_some());
        let (pins, seeds) =
            if routed { self.seeds(&plugins.proxy, platforms, kept).await? } else { (Pins::new(), Seeds::new()) };
        Ok(Ready { plugins, pins, seeds })
    }

    /// Asks hosts; one that does not answer is an error, since nothing may change while a host is not known.
    pub(super) async fn ask(&self, fleet: &Fleet, wants: &Wants, into: &mut Observation) -> Result<(), ShipError> {
        let (seen, lost) = self.unless_stopped(async { Ok(fleet.observe(wants).await) }).await?;
        if !lost.is_empty() {
            return Err(ShipError::Unreachable(lost));
        }
        for (host, answers) in seen.hosts {
            into.hosts.entry(host).or_default().extend(answers);
        }
        Ok(())
    }

    /// Sends each host the secrets of its services, and no others.
    pub(super) async fn send_secrets(
        &self,
        fleet: &Fleet,
        names: impl Fn(&HostName) -> BTreeSet<SecretName>,
    ) -> Result<(), ShipError> {
        let of_host = |host: &HostName| -> BTreeMap<SecretName, Secret> {
            let named = names(host).into_iter();
            named.filter_map(|name| self.secrets.get(&name).map(|secret| (name, secret.clone()))).collect()
        };
        let secrets = fleet.sessions.keys().map(|host| (host.clone(), of_host(host))).collect();
        let lost = fleet.send_secrets(&secrets).await;
        if lost.is_empty() { Ok(()) } else { Err(ShipError::Unreachable(lost)) }
    }

    /// What plugins want to know before anything of the host is known.
    pub(super) fn first_wants(
        &self,
        ready: &Ready,
        host: &HostName,
        architecture: &str,
    ) -> Result<Vec<Want>, ShipError> {
        self.talk(ready).first_wants(host, architecture, self.project.services_on(host))
    }

    fn talk<'a>(&'a self, ready: &'a Ready) -> Talk<'a> {
        Talk { project: &self.project, secrets: &self.secrets, ready, threads: self.threads }
    }

    pub(super) fn context(&self, ready: &Ready, host: &HostName, architecture: &str, number: u16) -> HostContext {
        self.talk(ready).context(host, architecture, number)
    }

    /// What the plugins answer for one host with what is known; `open` gets what they want to know besides.
    pub(super) fn host_answers(
        &self,
        ready: &Ready,
        desired: &Desired,
        host: &HostName,
        observation: &Observation,
        wish: Wish<'_>,
        open: &mut Vec<Want>,
    ) -> Result<HostAnswers, ShipError> {
        self.talk(ready).host_answers(desired, host, observation, wish, open)
    }

    /// Talks with the plugins until each has answered, asking hosts what they want to know.
    pub(super) async fn answers(
        &self,
        fleet: &Fleet,
        ready: &Ready,
        desired: &Desired,
        observation: &mut Observation,
        wish: Wish<'_>,
    ) -> Result<Answers, ShipError> {
        for _ in 0..MAX_ROUNDS {
            let (answers, wants) = self.talk(ready).round(desired, observation, wish)?;
            if wants.is_empty() {
                observation.forget_plugins();
                return Ok(answers);
            }
            self.ask(fleet, &wants, observation).await?;
        }
        Err(too_many_rounds(desired))
    }
}
