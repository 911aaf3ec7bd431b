//! Ship and plan, from the first connection to the last record.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use jiji_model::event::Record;
use jiji_model::name::{HostName, SecretName};
use jiji_model::observation::Observation;
use jiji_model::probe::Verdict;
use jiji_model::transaction::{HostRecords, Transaction};

use super::look::{Ready, Wants, platforms};
use super::talk::Wish;
use super::{Ship, ShipError, Shipped, Source, native};
use crate::apply::{self, ApplyError, Settled, settle_open, wait_until_free};
use crate::deploy::{self, Answers, Assembled, Desired, Images};
use crate::fleet::{Fleet, FleetError, Target};
use crate::plugin::{Judge, Subject};

/// How often what others leave open is settled, where they go on leaving something.
pub(super) const SETTLED_AT_MOST: usize = 5;

/// Milliseconds by stage.
pub(super) type Durations = BTreeMap<&'static str, u64>;

pub(super) fn since(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// How a transaction ended, where nothing more is known about candidates.
pub(super) fn applied(error: ApplyError) -> ShipError {
    ShipError::Apply { error: Box::new(error), verdicts: Vec::new() }
}

/// Whether somebody was faster, and there is time left. What was looked at is not so any more then, so everything from the look on is
/// done again.
pub(super) fn is_taken<T>(ended: &Result<T, ShipError>, until: tokio::time::Instant) -> bool {
    matches!(ended, Err(ShipError::Apply { error, .. }) if error.is_taken()) && tokio::time::Instant::now() < until
}

/// What a look came to.
pub(super) struct Looked {
    pub(super) observation: Observation,
    pub(super) desired: Desired,
    pub(super) answers: Answers,
    pub(super) assembled: Assembled,
    pub(super) settled: Vec<Settled>,
}

impl Ship {
    /// Moves the fleet to the project's images.
    ///
    /// # Errors
    /// [`ShipError`]: before any effect, or with all hosts alike, or with the hosts named that are in doubt.
    pub async fn ship(&self, source: Source) -> Result<Shipped, ShipError> {
        let start = Instant::now();
        let mut durations = Durations::new();
        let both = async {
            Ok(tokio::join!(self.connect(), async {
                let images = self.images(source, &[native()]).await;
                (images, since(start))
            }))
        };
        let (fleet, images) = self.unless_stopped(both).await?;
        let fleet = fleet?;
        durations.insert("build", images.1);
        let shipped = match images.0 {
            Ok(images) => {
                self.once_free(&fleet, async || self.deliver(&fleet, source, images.clone(), &mut durations).await)
                    .await
            }
            Err(error) => Err(error),
        };
        self.end(fleet, shipped, durations, start).await
    }

    /// Does something that changes nothing on hosts, unless somebody asks to stop.
    pub(super) async fn unless_stopped<T>(
        &self,
        work: impl Future<Output = Result<T, ShipError>>,
    ) -> Result<T, ShipError> {
        tokio::select! {
            biased;
            () = self.cancel.requested() => Err(applied(ApplyError::Stopped)),
            done = work => done,
        }
    }

    /// Does something for which nobody else may be at work on the hosts: at once, or where it was wished for as soon as nobody is.
    pub(super) async fn once_free(
        &self,
        fleet: &Fleet,
        mut work: impl AsyncFnMut() -> Result<Shipped, ShipError>,
    ) -> Result<Shipped, ShipError> {
        let until = self.until();
        loop {
            self.wait_for_others(fleet, until).await?;
            let ended = work().await;
            if !is_taken(&ended, until) {
                return ended;
            }
        }
    }

    /// The end of the time that it may wait for others.
    pub(super) fn until(&self) -> tokio::time::Instant {
        tokio::time::Instant::now() + self.apply.wait_lock
    }

    /// Waits until nobody else is at work on the hosts, where that was wished for.
    pub(super) async fn wait_for_others(&self, fleet: &Fleet, until: tokio::time::Instant) -> Result<(), ShipError> {
        if self.apply.wait_lock.is_zero() {
            return Ok(());
        }
        let scope = self.project.scope();
        wait_until_free(&scope, &fleet.sessions, &self.apply, until, &self.cancel, &*self.sink)
            .await
            .map_err(applied)?;
        Ok(())
    }

    pub(super) async fn end(
        &self,
        fleet: Fleet,
        shipped: Result<Shipped, ShipError>,
        mut durations: Durations,
        start: Instant,
    ) -> Result<Shipped, ShipError> {
        let counters = fleet.counters();
        let hosts = fleet.sessions.keys().cloned().collect();
        fleet.close().await;
        durations.insert("total", since(start));
        Ok(Shipped { counters, hosts, durations, ..shipped? })
    }

    pub(super) async fn connect(&self) -> Result<Fleet, ShipError> {
        self.connect_to(self.project.used_servers().map(|(host, _)| Target::of(&self.project, host))).await
    }

    /// Reaches all of these servers, or says which could not be.
    pub(super) async fn connect_to(
        &self,
        targets: impl Iterator<Item = Result<Target, FleetError>>,
    ) -> Result<Fleet, ShipError> {
        let targets: Vec<_> = targets.collect::<Result<_, _>>().map_err(ShipError::Fleet)?;
        let text = format!("connecting to {} hosts", targets.len());
        self.sink.emit(Record::new("fleet.connecting", text));
        let mut fleet = Fleet::connect(targets, &self.fleet).await.map_err(ShipError::Fleet)?;
        for (host, keys) in &fleet.pinned {
            let text = format!("{host}: pinned the host key {}", keys.join(", "));
            let record = Record::new("fleet.pinned", text).on(host);
            self.sink.emit(record.with(serde_json::json!({ "keys": keys })));
        }
        if fleet.unreachable.is_empty() {
            return Ok(fleet);
        }
        let unreachable = std::mem::take(&mut fleet.unreachable);
        fleet.close().await;
        Err(ShipError::Unreachable(unreachable))
    }

    /// Builds for the platforms of hosts that were not built for yet.
    pub(super) async fn complete(&self, fleet: &Fleet, source: Source, images: &mut Images) -> Result<(), ShipError> {
        let mut more = platforms(fleet);
        more.retain(|platform| *platform != native());
        for (service, built) in self.images(source, &more).await? {
            images.entry(service).or_default().extend(built);
        }
        Ok(())
    }

    async fn deliver(
        &self,
        fleet: &Fleet,
        source: Source,
        mut images: Images,
        durations: &mut Durations,
    ) -> Result<Shipped, ShipError> {
        self.unless_stopped(self.complete(fleet, source, &mut images)).await?;
        let ready = self.unless_stopped(self.ready(&platforms(fleet), None)).await?;
        let start = Instant::now();
        let (looked, pushed) =
            tokio::join!(self.look(fleet, &ready, &images, true), self.unless_stopped(self.pushed(&images)));
        let (looked, pushed_bytes) = (looked?, pushed?);
        durations.insert("look", since(start));
        let shipped = self.apply(fleet, &ready, looked, durations).await?;
        Ok(Shipped { images, pushed_bytes, ..shipped })
    }

    pub(super) async fn pushed(&self, images: &Images) -> Result<u64, ShipError> {
        if !self.push || self.project.builder.registry.is_none() {
            return Ok(0);
        }
        let pushed = self.push(images).await?;
        Ok(pushed.values().flatten().map(|pushed| pushed.sent_bytes).sum())
    }

    /// Looks at all hosts and plans. With `settle`, transactions that somebody left open are settled first.
    pub(super) async fn look(
        &self,
        fleet: &Fleet,
        ready: &Ready,
        images: &Images,
        settle: bool,
    ) -> Result<Looked, ShipError> {
        let secrets = |host: &HostName| -> BTreeSet<SecretName> {
            let services = self.project.services_on(host);
            services.flat_map(|(_, service)| service.secrets().cloned()).collect()
        };
        self.send_secrets(fleet, secrets).await?;
        let mut wants = Wants::new();
        for (host, session) in &fleet.sessions {
            let mut of_host = deploy::wants(&self.project, host, images, &ready.seeds);
            of_host.extend(self.first_wants(ready, host, &session.hello().architecture)?);
            wants.insert(host.clone(), of_host);
        }
        let mut observation = Observation::default();
        self.ask(fleet, &wants, &mut observation).await?;
        let mut now = self.now();
        let mut settled = Vec::new();
        if settle {
            settled = self.settle_and_look(fleet, &wants, &mut observation).await?;
            now = self.now();
        }
        let desired = deploy::desired(&self.project, images, &observation)
            .map_err(|refused| self.unfit(images, &observation, refused, now))?;
        let wish = Wish::Project(&self.project);
        let answers = self.answers(fleet, ready, &desired, &mut observation, wish).await?;
        let mut assembled = deploy::assemble(&desired, &ready.seeds, &answers, &observation)?;
        self.fit(fleet, &desired, &mut assembled, &mut observation, now).await?;
        Ok(Looked { observation, desired, answers, assembled, settled })
    }

    /// Settles what others left open, and looks again: also where there was nothing left to settle, because whoever had begun it was at
    /// its end just then.
    pub(super) async fn settle_and_look(
        &self,
        fleet: &Fleet,
        wants: &Wants,
        observation: &mut Observation,
    ) -> Result<Vec<Settled>, ShipError> {
        let mut all_settled = Vec::new();
        for _ in 0..SETTLED_AT_MOST {
            let is_open = |records: &HostRecords| records.transaction.as_ref().is_some_and(Transaction::is_open);
            if !deploy::records(observation).values().any(is_open) {
                break;
            }
            all_settled.extend(self.settle(fleet, observation).await?);
            *observation = Observation::default();
            self.ask(fleet, wants, observation).await?;
        }
        Ok(all_settled)
    }

    pub(super) async fn settle(&self, fleet: &Fleet, observation: &Observation) -> Result<Vec<Settled>, ShipError> {
        let records = deploy::records(observation);
        let scope = self.project.scope();
        // A ship reaches every host of the project, or does nothing.
        let mut options = self.apply.clone();
        options.project = Some(self.project.used_servers().map(|(host, _)| host.clone()).collect());
        settle_open(&scope, &records, &fleet.sessions, &options, &self.cancel, &*self.sink).await.map_err(applied)
    }

    pub(super) async fn apply(
        &self,
        fleet: &Fleet,
        ready: &Ready,
        looked: Looked,
        durations: &mut Durations,
    ) -> Result<Shipped, ShipError> {
        let Looked { observation, desired, assembled: Assembled { plan, notes }, settled, .. } = looked;
        let start = Instant::now();
        if plan.is_empty() {
            return Ok(Shipped { notes, settled, ..Shipped::default() });
        }
        self.unless_stopped(self.gather(fleet, &plan.images, &ready.seeds)).await?;
        let seen = deploy::records(&observation);
        let applied =
            apply::apply(&plan, &seen, &fleet.sessions, &self.store, &self.apply, &self.cancel, &*self.sink).await;
        durations.insert("apply", since(start));
        match applied {
            Ok(applied) => Ok(Shipped {
                changed: true,
                number: applied.number,
                blob_bytes: applied.sent.values().sum(),
                left: applied.left,
                notes,
                settled,
                ..Shipped::default()
            }),
            Err(error) => {
                let verdicts = self.verdicts(ready, &desired, &error);
                Err(ShipError::Apply { error: Box::new(error), verdicts })
            }
        }
    }

    /// What the health plugin says of candidates that were not healthy. A plugin that fails at this says nothing.
    fn verdicts(&self, ready: &Ready, desired: &Desired, error: &ApplyError) -> Vec<(HostName, Verdict)> {
        let of_failure = |failure: &apply::Failure| {
            let timeline = failure.found.timeline.as_ref()?;
            let service = failure.service.as_ref()?;
            let configured = self.project.services.get(service)?;
            let (host, architecture) = (&failure.host, desired.hosts.get(&failure.host)?.architecture.as_str());
            let subject = Subject {
                service,
                healthcheck: configured.healthcheck.as_ref(),
                app_port: configured.proxy.as_ref().map(|proxy| proxy.app_port),
            };
            let specs = ready.plugins.health.probes(host, architecture, &[subject]).ok()?;
            let spec = specs.into_iter().next().flatten()?;
            let log = failure.found.evidence.first().map_or("", |evidence| evidence.log.as_str());
            let judge = Judge { host, architecture, subject: &subject, spec: &spec, timeline, log };
            Some((failure.host.clone(), ready.plugins.health.judge(judge).ok()?))
        };
        error.failures().into_iter().filter_map(of_failure).collect()
    }
}
