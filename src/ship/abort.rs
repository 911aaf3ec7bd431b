//! Settling what an interrupted run left open: from any machine, with the project's sources or without.
//!
//! Nothing is built, planned or shipped here. The hosts' journals say what was going on, which hosts took part and how they were reached;
//! which way each transaction ends is [`crate::apply`]'s to say. Hosts that cannot be reached do not keep the others from being settled:
//! they are named, and follow when they are reached next.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use jiji_model::event::{Record, Sink};
use jiji_model::name::{HostName, SecretName};
use jiji_model::observation::{Answer, Query, Want};
use jiji_model::project::Project;
use jiji_model::secret::Secret;
use jiji_model::transaction::{Begin, HostRecords, Transaction};

use super::ShipError;
use super::pipeline::applied;
use crate::apply::{self, Cancel, Settled, settle_open, wait_until_free};
use crate::fleet::{self, Fleet, FleetError, Target};
use crate::secrets::Secrets;

/// What the look at a host is called.
const RECORDS: &str = "records";

/// Which hosts are asked first.
#[derive(Debug, Clone)]
pub enum Known {
    /// The project's servers.
    Project(Arc<Project>),
    /// Addresses, where the sources are not here.
    Addresses {
        /// The servers. What they are called, their journals tell.
        targets: Vec<Target>,
        /// An ssh configuration file to use instead of the user's.
        config: Option<PathBuf>,
    },
}

/// Everything that settling works with.
pub struct Abort {
    /// The project's scope.
    pub scope: String,
    /// Which hosts are asked first.
    pub known: Known,
    /// Values of the project's secrets, as far as they are here: going forward may need them.
    pub secrets: Secrets,
    /// How hosts are reached.
    pub fleet: fleet::Options,
    /// Who settles, and how.
    pub apply: apply::Options,
    /// To be asked to stop.
    pub cancel: Cancel,
    /// Who watches.
    pub sink: Arc<dyn Sink>,
}

/// What was settled.
#[derive(Debug, Default)]
pub struct Aborted {
    /// Transactions that were open and are settled now, the oldest first.
    pub settled: Vec<Settled>,
    /// Hosts that were asked and answered.
    pub hosts: Vec<HostName>,
    /// Hosts that could not be reached, and why. Nothing is known of them.
    pub unreachable: BTreeMap<HostName, FleetError>,
    /// Hosts that took part in what was open, and nobody says how they are reached.
    pub unknown: BTreeSet<HostName>,
}

impl Aborted {
    /// Hosts that took part in what was settled and were not reached: in doubt until they are.
    pub fn in_doubt(&self) -> BTreeSet<&HostName> {
        self.settled.iter().flat_map(|settled| &settled.away).collect()
    }
}

/// What hosts have recorded.
type Seen = BTreeMap<HostName, HostRecords>;

/// How the last transaction of a host began, open or not: it may be open elsewhere.
fn last(records: &HostRecords) -> Option<&Begin> {
    records.transaction.as_ref().map(|transaction| &transaction.begin)
}

impl Abort {
    /// Settles everything that is open on the hosts that answer.
    ///
    /// # Errors
    /// [`ShipError::Unreachable`] where no host answers, [`ShipError::Apply`] where something could not be settled.
    pub async fn run(&self) -> Result<Aborted, ShipError> {
        let mut fleet = self.connect(self.first()?).await?;
        let settled = self.settle(&mut fleet).await;
        let hosts: Vec<_> = fleet.sessions.keys().cloned().collect();
        let unreachable = std::mem::take(&mut fleet.unreachable);
        fleet.close().await;
        let (settled, unknown) = settled?;
        if hosts.is_empty() {
            return Err(ShipError::Unreachable(unreachable));
        }
        Ok(Aborted { settled, hosts, unreachable, unknown })
    }

    fn first(&self) -> Result<Vec<Target>, ShipError> {
        match &self.known {
            Known::Project(project) => {
                let targets = project.used_servers().map(|(host, _)| Target::of(project, host));
                targets.collect::<Result<_, _>>().map_err(ShipError::Fleet)
            }
            Known::Addresses { targets, .. } => Ok(targets.clone()),
        }
    }

    async fn connect(&self, targets: Vec<Target>) -> Result<Fleet, ShipError> {
        let text = match targets.len() {
            1 => "connecting to 1 host".to_owned(),
            count => format!("connecting to {count} hosts"),
        };
        self.sink.emit(Record::new("fleet.connecting", text));
        let targets = match &self.known {
            Known::Addresses { config: Some(config), .. } => {
                targets.into_iter().map(|target| target.configured_by(config)).collect()
            }
            _ => targets,
        };
        Fleet::connect(targets, &self.fleet).await.map_err(ShipError::Fleet)
    }

    /// What the hosts of a fleet have recorded. One that does not answer is taken out.
    async fn look(&self, fleet: &mut Fleet) -> Seen {
        let want = || vec![Want { id: RECORDS.to_owned(), query: Query::Records { scope: self.scope.clone() } }];
        let wants = fleet.sessions.keys().map(|host| (host.clone(), want())).collect();
        let (observation, lost) = fleet.observe(&wants).await;
        let mut seen = Seen::new();
        for host in observation.hosts.keys() {
            if let Some(Answer::Records(records)) = observation.answer(host, RECORDS) {
                seen.insert(host.clone(), (**records).clone());
            }
        }
        for (host, error) in lost {
            fleet.sessions.remove(&host);
            fleet.unreachable.insert(host, error);
        }
        seen
    }

    async fn settle(&self, fleet: &mut Fleet) -> Result<(Vec<Settled>, BTreeSet<HostName>), ShipError> {
        let mut seen = self.look(fleet).await;
        if let Known::Addresses { targets, .. } = &self.known
            && let Some(renamed) = renamed(targets, &seen)
        {
            // The hosts' own names are known now. What was called otherwise is asked again by its name.
            let before = std::mem::take(fleet);
            let unreachable = before.unreachable.clone();
            before.close().await;
            *fleet = self.connect(renamed).await?;
            fleet.unreachable.extend(unreachable);
            seen = self.look(fleet).await;
        }
        let mut unknown = BTreeSet::new();
        loop {
            let (others, nowhere) = self.others(fleet, &seen)?;
            unknown.extend(nowhere);
            if others.is_empty() {
                break;
            }
            let mut more = self.connect(others).await?;
            seen.extend(self.look(&mut more).await);
            fleet.absorb(more);
        }
        unknown.retain(|host| !fleet.sessions.contains_key(host));
        if !self.apply.wait_lock.is_zero() {
            let until = tokio::time::Instant::now() + self.apply.wait_lock;
            wait_until_free(&self.scope, &fleet.sessions, &self.apply, until, &self.cancel, &*self.sink)
                .await
                .map_err(applied)?;
            seen = self.look(fleet).await;
        }
        self.send_secrets(fleet).await?;
        let mut options = self.apply.clone();
        if let Known::Project(project) = &self.known {
            options.project = Some(project.used_servers().map(|(host, _)| host.clone()).collect());
        }
        let settled = settle_open(&self.scope, &seen, &fleet.sessions, &options, &self.cancel, &*self.sink).await;
        let settled = settled.map_err(applied)?;
        Ok((settled, unknown))
    }

    /// Hosts that took part in what was last begun and were not asked yet: those that can be reached, and those of which nobody says how.
    /// Where the sources are here, they say which servers there are, and only what is open can add to them.
    fn others(&self, fleet: &Fleet, seen: &Seen) -> Result<(Vec<Target>, Vec<HostName>), ShipError> {
        let (mut targets, mut nowhere) = (BTreeMap::new(), Vec::new());
        let asked = |records: &&HostRecords| match &self.known {
            Known::Project(_) => records.transaction.as_ref().is_some_and(Transaction::is_open),
            Known::Addresses { .. } => true,
        };
        for begin in seen.values().filter(asked).filter_map(last) {
            for host in &begin.hosts {
                if fleet.sessions.contains_key(host) || fleet.unreachable.contains_key(host) {
                    continue;
                }
                let target = match &self.known {
                    Known::Project(project) if project.servers.contains_key(host) => Some(Target::of(project, host)),
                    _ => begin.addresses.get(host).map(|url| Target::at(host, url)),
                };
                match target {
                    Some(target) => {
                        targets.insert(host.clone(), target.map_err(ShipError::Fleet)?);
                    }
                    None => nowhere.push(host.clone()),
                }
            }
        }
        Ok((targets.into_values().collect(), nowhere))
    }

    /// Sends each host those secrets of its services that are here.
    async fn send_secrets(&self, fleet: &Fleet) -> Result<(), ShipError> {
        let Known::Project(project) = &self.known else { return Ok(()) };
        let of_host = |host: &HostName| -> BTreeMap<SecretName, Secret> {
            let services = project.services_on(host);
            let names = services.flat_map(|(_, service)| &service.environment.secrets);
            names.filter_map(|name| Some((name.clone(), self.secrets.get(name)?.clone()))).collect()
        };
        let secrets = fleet.sessions.keys().map(|host| (host.clone(), of_host(host))).collect();
        let lost = fleet.send_secrets(&secrets).await;
        if lost.is_empty() { Ok(()) } else { Err(ShipError::Unreachable(lost)) }
    }
}

/// The targets under the names that the hosts' journals give them; none where they are called so already or nothing was ever begun.
fn renamed(targets: &[Target], seen: &Seen) -> Option<Vec<Target>> {
    let name = |host: &HostName| -> Option<&HostName> { Some(&last(seen.get(host)?)?.host) };
    if targets.iter().all(|target| name(&target.host).is_none_or(|own| *own == target.host)) {
        return None;
    }
    let mut renamed: BTreeMap<HostName, Target> = BTreeMap::new();
    for target in targets.iter().filter(|target| seen.contains_key(&target.host)) {
        let own = name(&target.host).unwrap_or(&target.host).clone();
        // One host under two addresses is one host.
        renamed.entry(own.clone()).or_insert_with(|| Target { host: own, ..target.clone() });
    }
    Some(renamed.into_values().collect())
}
