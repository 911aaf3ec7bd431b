//! The moves that going forward, reverting and settling are made of.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;

use jiji_model::name::HostName;
use jiji_model::plan::{Phase, Step};
use jiji_model::project::Rollout;
use jiji_model::protocol::{RefusalKind, Request, RunReport, StepFailure};
use jiji_model::transaction::audit::AuditEvent;
use jiji_model::transaction::{Begin, Decision, Release, Settlement};

use super::cancel::{Cancel, DETACH, REVERT};
use super::error::Failure;
use super::events::{Hearing, Watch};
use super::fan::{Ends, all, done, ran, split};
use super::link::HostLink;
use super::{Options, result_word};
use crate::audit;
use crate::fleet::{FleetError, PATIENCE};

/// Somebody asked twice to stop: leave everything as it is.
#[derive(Debug)]
pub(super) struct Detach;

/// What beginning gave.
#[derive(Debug, Default)]
pub(super) struct Begun {
    /// Hosts on which nothing began.
    pub(super) refused: Vec<HostName>,
    /// Why it did not begin everywhere.
    pub(super) cause: Option<FleetError>,
}

/// One transaction on the hosts that can still be reached.
pub(super) struct Drive<'a, L> {
    /// Hosts that take part and answer.
    pub(super) links: BTreeMap<HostName, &'a L>,
    /// Hosts that took part and do not answer any more.
    pub(super) lost: Vec<(HostName, FleetError)>,
    /// How it began, on each host.
    pub(super) begins: BTreeMap<HostName, Begin>,
    /// The fencing number of this run's leases.
    pub(super) fencing: u64,
    /// Whether whoever asks to stop interrupts what runs. Not where something older is brought to its end.
    pub(super) interruptible: bool,
    /// Whether each host's lease is given back together with the conclusion there, in the same round trip.
    pub(super) gives_back: bool,
    /// Hosts whose lease was.
    pub(super) given_back: BTreeSet<HostName>,
    /// How many releases stay, and what is written as typed.
    pub(super) retain: u32,
    pub(super) command: &'a str,
    /// How it goes over the hosts, and in how many batches.
    pub(super) rollout: Rollout,
    pub(super) batches: usize,
    pub(super) options: &'a Options,
    pub(super) cancel: &'a Cancel,
    pub(super) watch: &'a Watch<'a>,
    pub(super) hearing: Hearing,
}

/// What running a phase gave.
#[derive(Debug, Default)]
pub(super) struct Run {
    pub(super) failures: Vec<Failure>,
    pub(super) errors: Vec<FleetError>,
}

impl<'a, L: HostLink> Drive<'a, L> {
    /// Does something on the given hosts at once, unless somebody asks twice to stop.
    async fn on<T, F: Future<Output = Result<T, FleetError>>>(
        &mut self,
        hosts: &[HostName],
        each: impl Fn(&'a L) -> F,
    ) -> Result<Ends<T>, Detach> {
        let links: Vec<&'a L> = hosts.iter().filter_map(|host| self.links.get(host).copied()).collect();
        let work = self.hearing.during(self.watch, all(links, each));
        tokio::select! {
            biased;
            () = self.cancel.reached(DETACH) => Err(Detach),
            ends = work => Ok(ends),
        }
    }

    /// Hosts that answer.
    pub(super) fn hosts(&self) -> Vec<HostName> {
        self.links.keys().cloned().collect()
    }

    /// Takes a host out that did not do what it had to: how it stands is not known until it is reached again.
    pub(super) fn lose(&mut self, host: HostName, error: FleetError) {
        self.watch.lost(&host, &error.to_string());
        self.links.remove(&host);
        self.lost.push((host, error));
    }

    fn steps(&self, host: &HostName) -> &[Step] {
        self.begins.get(host).map_or(&[], |begin| &begin.steps)
    }

    /// As long as the longest of the steps may take, and the usual on top.
    fn patience(&self, phase: Option<Phase>) -> Duration {
        let steps = self.begins.values().flat_map(|begin| &begin.steps);
        let steps = steps.filter(|step| phase.is_none_or(|phase| step.phase == phase));
        let longest = steps.map(|step| step.timeout_ms).max().unwrap_or(0);
        PATIENCE + Duration::from_millis(longest.into())
    }

    /// Where the transaction is of one host alone, asks ahead: nobody else is waited for between two moves, and the host itself refuses
    /// what does not follow. First everything before the decision, and then everything after it, so that what is not known of a host that
    /// is lost is not more than elsewhere.
    async fn ahead(&self, first: Request, decided: bool) {
        let [(host, begin)] = self.begins.iter().collect::<Vec<_>>()[..] else { return };
        let Some(link) = self.links.get(host).filter(|_| begin.hosts.len() == 1) else { return };
        let phases = Phase::ALL.into_iter().filter(|phase| phase.before_decided() != decided);
        let phases = phases.filter(|phase| begin.steps.iter().any(|step| step.phase == *phase));
        let mut requests = vec![first];
        requests.extend(phases.map(|phase| Request::Run { phase }));
        if decided {
            requests.push(self.conclusion(begin, Decision::Commit));
            requests.extend(self.gives_back.then_some(Request::Release));
        }
        link.ask_ahead(requests).await;
    }

    /// Begins on all hosts.
    pub(super) async fn begin(&mut self) -> Result<Begun, Detach> {
        let begins = self.begins.clone();
        if let Some(begin) = begins.values().next() {
            self.ahead(Request::Begin(Box::new(begin.clone())), false).await;
        }
        let ends = self
            .on(&self.hosts(), async |link| {
                let begin = begins.get(link.host()).expect("every host has its beginning").clone();
                done(link, Request::Begin(Box::new(begin)), PATIENCE, "begin the transaction").await
            })
            .await?;
        let mut begun = Begun::default();
        for (host, error) in split(ends).1 {
            if error.is_lost() || matches!(error, FleetError::Refused { why: RefusalKind::Io, .. }) {
                // It may stand in the journal.
                self.lose(host, error.clone());
            } else {
                self.links.remove(&host);
                self.begins.remove(&host);
                begun.refused.push(host);
            }
            begun.cause.get_or_insert(error);
        }
        Ok(begun)
    }

    /// Runs what is left of a phase on those of `hosts` that have steps of it. Before the decision, whoever asks to stop interrupts it.
    pub(super) async fn run(&mut self, phase: Phase, hosts: &[HostName]) -> Result<Run, Detach> {
        let hosts: Vec<_> =
            hosts.iter().filter(|host| self.steps(host).iter().any(|step| step.phase == phase)).cloned().collect();
        if hosts.is_empty() {
            return Ok(Run::default());
        }
        self.watch.phase(phase, &hosts);
        let patience = self.patience(Some(phase));
        let cancel = self.cancel;
        let watch = self.watch;
        let interruptible = self.interruptible && phase.before_decided();
        let links: Vec<&'a L> = hosts.iter().filter_map(|host| self.links.get(host).copied()).collect();
        let interrupt = async {
            cancel.reached(REVERT).await;
            watch.interrupting();
            for link in &links {
                // One that does not take it ends by its own time.
                let _ = link.tell(Request::Interrupt).await;
            }
            std::future::pending::<()>().await;
        };
        // What is watched on other hosts is taken back too once one is sick, so they need not watch it to the end.
        let watched = Mutex::new(Watched::default());
        let (everyone, shared) = (&links, &watched);
        let run = self.on(&hosts, |link| async move {
            let end = ran(link, Request::Run { phase }, patience, "run steps").await;
            let good = matches!(&end, Ok(report) if report.failure.is_none());
            let sick = phase == Phase::Hold && !good;
            let to_stop = shared.lock().expect("nobody panics with it").ended(everyone, link, sick);
            for other in to_stop {
                // One that does not take it ends by its own time.
                let _ = other.tell(Request::Interrupt).await;
            }
            end
        });
        let ends = if interruptible && !cancel.is_requested() {
            tokio::select! {
                biased;
                ends = run => ends,
                () = interrupt => return Err(Detach),
            }
        } else {
            run.await
        }?;
        let stopped = watched.into_inner().expect("nobody panicked with it").stopped;
        let mut run = self.reports(ends, phase, false);
        // They were not sick, they were stopped.
        run.failures.retain(|failure| !stopped.contains(&failure.host));
        Ok(run)
    }

    /// Tells of a batch, after the time that passes between two. Gives whether it is to begin: nobody asked to stop meanwhile.
    pub(super) async fn batch(&mut self, number: usize, hosts: &[HostName]) -> Result<bool, Detach> {
        let pause = Duration::from_millis(self.rollout.wait_ms.into());
        if number > 0 && !pause.is_zero() {
            self.watch.pausing(pause);
            let cancel = self.cancel;
            let passed = async {
                tokio::select! {
                    biased;
                    () = cancel.reached(REVERT) => false,
                    () = tokio::time::sleep(pause) => true,
                }
            };
            if !self.hearing.during(self.watch, passed).await {
                return Ok(false);
            }
        }
        if self.batches > 1 {
            self.watch.batch(number + 1, self.batches, hosts);
        }
        Ok(true)
    }

    fn reports(&mut self, ends: Ends<RunReport>, phase: Phase, undo: bool) -> Run {
        let mut run = Run::default();
        let (reports, errors) = split(ends);
        for (host, report) in reports {
            if let Some(found) = report.failure {
                run.failures.push(self.failure(&host, phase, undo, *found));
            }
        }
        for (host, error) in errors {
            if error.is_lost() {
                self.lose(host, error.clone());
            }
            run.errors.push(error);
        }
        run
    }

    fn failure(&self, host: &HostName, phase: Phase, undo: bool, found: StepFailure) -> Failure {
        let step = self.steps(host).iter().find(|step| step.id == found.step);
        Failure {
            host: host.clone(),
            service: step.and_then(|step| step.service.clone()),
            phase: step.map_or(phase, |step| step.phase),
            title: step.map_or_else(|| found.step.clone(), |step| step.title.clone()),
            undo,
            found,
        }
    }

    /// Records a settlement on the hosts. Those that do not take it are lost.
    pub(super) async fn settle(&mut self, decision: Decision, hosts: &[HostName]) -> Result<(), Detach> {
        let settlement = Settlement { decision, fencing: self.fencing };
        if decision == Decision::Commit && !hosts.is_empty() {
            self.ahead(Request::Settle(settlement), true).await;
        }
        let ends =
            self.on(hosts, |link| done(link, Request::Settle(settlement), PATIENCE, "settle the transaction")).await?;
        let (settled, errors) = split(ends);
        for (host, error) in errors {
            self.lose(host, error);
        }
        for host in settled.keys() {
            self.watch.settled(host, decision);
        }
        Ok(())
    }

    /// Takes back what was done, on hosts that settled on it. Gives what could not be taken back.
    pub(super) async fn undo(&mut self, hosts: &[HostName]) -> Result<Run, Detach> {
        // A host waits first until what was begun can take effect no more.
        let quiet = self.begins.values().flat_map(|begin| &begin.steps).map(|step| step.quiet_ms).max();
        let patience = self.patience(None) + Duration::from_millis(quiet.unwrap_or(0).into());
        let ends = self.on(hosts, |link| ran(link, Request::Undo, patience, "take steps back")).await?;
        Ok(self.reports(ends, Phase::Cutover, true))
    }

    /// Closes the journals. Hosts that do not answer are lost.
    pub(super) async fn conclude(&mut self, decision: Decision, hosts: &[HostName]) -> Result<(), Detach> {
        let gives_back = self.gives_back;
        let requests = self.begins.iter().map(|(host, begin)| (host.clone(), self.conclusion(begin, decision)));
        let requests: BTreeMap<_, _> = requests.collect();
        let ends = self
            .on(hosts, async |link| {
                let request = requests.get(link.host()).expect("every host has its beginning").clone();
                let conclude = done(link, request, PATIENCE, "conclude the transaction");
                if !gives_back {
                    return conclude.await;
                }
                // The host does one after the other. Without the conclusion it would be given back too, since nobody could go on.
                let (concluded, given) =
                    tokio::join!(conclude, done(link, Request::Release, PATIENCE, "give the lease back"));
                if let Err(error) = given {
                    tracing::debug!(host = %link.host(), %error, "give the lease back");
                }
                concluded
            })
            .await?;
        let (concluded, errors) = split(ends);
        if gives_back {
            self.given_back.extend(hosts.iter().cloned());
        }
        for (host, error) in errors {
            self.lose(host, error);
        }
        for host in concluded.keys() {
            self.watch.concluded(host, decision);
        }
        Ok(())
    }

    /// What closes the journal that began with `begin`.
    fn conclusion(&self, begin: &Begin, decision: Decision) -> Request {
        let audit = AuditEvent {
            transaction: begin.transaction.clone(),
            fencing: self.fencing,
            who: begin.who.clone(),
            command: self.command.to_owned(),
            result: result_word(decision).to_owned(),
            at_s: self.options.at_s,
            services: audit::service_lines(&begin.services),
        };
        let release = (decision == Decision::Commit).then(|| Box::new(Release::of(begin)));
        Request::Conclude { release, retain: self.retain, audit }
    }
}

/// Which hosts have ended a watch, and which were stopped in it because another was sick.
#[derive(Debug, Default)]
struct Watched {
    ended: BTreeSet<HostName>,
    stopped: BTreeSet<HostName>,
}

impl Watched {
    /// Notes the end of a host, and gives those to stop where it is the first that was `sick`.
    fn ended<'a, L: HostLink>(&mut self, everyone: &[&'a L], link: &L, sick: bool) -> Vec<&'a L> {
        self.ended.insert(link.host().clone());
        if !sick || !self.stopped.is_empty() {
            return Vec::new();
        }
        let rest: Vec<_> = everyone.iter().copied().filter(|other| !self.ended.contains(other.host())).collect();
        self.stopped.extend(rest.iter().map(|other| other.host().clone()));
        rest
    }
}
