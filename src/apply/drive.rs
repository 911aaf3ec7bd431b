//! The moves that going forward, reverting and settling are made of.

use std::collections::BTreeMap;
use std::time::Duration;

use jiji_model::name::HostName;
use jiji_model::plan::{Phase, Step};
use jiji_model::protocol::{Request, RunReport, StepFailure};
use jiji_model::transaction::audit::AuditEvent;
use jiji_model::transaction::{Begin, Decision, Release, Settlement};

use super::cancel::{Cancel, DETACH, REVERT};
use super::error::{Cause, Failure};
use super::events::{Hearing, Watch};
use super::fan::{Ends, all, done, ran, split};
use super::link::HostLink;
use super::{Options, result_word};
use crate::audit;
use crate::fleet::{FleetError, PATIENCE};

/// Why going forward stopped.
#[derive(Debug)]
pub(super) enum Stop {
    /// Something failed, or somebody asked to stop: revert.
    Cause(Cause),
    /// Somebody asked twice: leave everything as it is.
    Detach,
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

impl Run {
    /// Why it must not go on, if so. Who asked to stop wants to hear that it stopped, not that waits were cut short by it.
    pub(super) fn stop(self, cancel: &Cancel) -> Result<(), Stop> {
        if cancel.is_requested() {
            Err(Stop::Cause(Cause::Interrupted))
        } else if let Some(error) = self.errors.into_iter().next() {
            Err(Stop::Cause(Cause::Host(error)))
        } else if !self.failures.is_empty() {
            Err(Stop::Cause(Cause::Step(self.failures)))
        } else {
            Ok(())
        }
    }
}

impl<'a, L: HostLink> Drive<'a, L> {
    /// Does something on the given hosts at once, unless somebody asks twice to stop.
    async fn on<T, F: Future<Output = Result<T, FleetError>>>(
        &mut self,
        hosts: &[HostName],
        each: impl Fn(&'a L) -> F,
    ) -> Result<Ends<T>, Stop> {
        let links: Vec<&'a L> = hosts.iter().filter_map(|host| self.links.get(host).copied()).collect();
        let work = self.hearing.during(self.watch, all(links, each));
        tokio::select! {
            biased;
            () = self.cancel.reached(DETACH) => Err(Stop::Detach),
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

    /// Begins on all hosts.
    pub(super) async fn begin(&mut self) -> Result<(), Stop> {
        let begins = self.begins.clone();
        let ends = self
            .on(&self.hosts(), async |link| {
                let begin = begins.get(link.host()).expect("every host has its beginning").clone();
                done(link, Request::Begin(Box::new(begin)), PATIENCE, "begin the transaction").await
            })
            .await?;
        let mut first = None;
        for (host, error) in split(ends).1 {
            if error.is_lost() {
                self.lose(host, error.clone());
            } else {
                // Refused: nothing began there.
                self.links.remove(&host);
                self.begins.remove(&host);
            }
            first.get_or_insert(error);
        }
        match first {
            Some(error) => Err(Stop::Cause(Cause::Host(error))),
            None => Ok(()),
        }
    }

    /// Runs what is left of a phase on those of `hosts` that have steps of it. Before the decision, whoever asks to stop interrupts it.
    pub(super) async fn run(&mut self, phase: Phase, hosts: &[HostName]) -> Result<Run, Stop> {
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
        let run = self.on(&hosts, |link| ran(link, Request::Run { phase }, patience, "run steps"));
        let ends = if interruptible && !cancel.is_requested() {
            tokio::select! {
                biased;
                ends = run => ends,
                () = interrupt => return Err(Stop::Detach),
            }
        } else {
            run.await
        }?;
        Ok(self.reports(ends, phase, false))
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

    /// How long to wait before a failed step is taken back: its effect may still come.
    pub(super) fn quiet(&self, cause: &Cause) -> Duration {
        let Cause::Step(failures) = cause else {
            return Duration::ZERO;
        };
        let longest = failures.iter().filter_map(|failure| {
            let steps = self.steps(&failure.host).iter();
            let step = steps.into_iter().find(|step| step.id == failure.found.step)?;
            Some(step.quiet_ms)
        });
        Duration::from_millis(longest.max().unwrap_or(0).into())
    }

    /// Records a settlement on the hosts. Those that do not take it are lost.
    pub(super) async fn settle(&mut self, decision: Decision, hosts: &[HostName]) -> Result<Vec<HostName>, Stop> {
        let settlement = Settlement { decision, fencing: self.fencing };
        let ends =
            self.on(hosts, |link| done(link, Request::Settle(settlement), PATIENCE, "settle the transaction")).await?;
        let (settled, errors) = split(ends);
        for (host, error) in errors {
            self.lose(host, error);
        }
        for host in settled.keys() {
            self.watch.settled(host, decision);
        }
        Ok(settled.into_keys().collect())
    }

    /// Takes back what was done, on hosts that settled on it. Gives what could not be taken back.
    pub(super) async fn undo(&mut self, hosts: &[HostName]) -> Result<Run, Stop> {
        let patience = self.patience(None);
        let ends = self.on(hosts, |link| ran(link, Request::Undo, patience, "take steps back")).await?;
        Ok(self.reports(ends, Phase::Cutover, true))
    }

    /// Closes the journals. Hosts that do not answer are lost.
    pub(super) async fn conclude(
        &mut self,
        decision: Decision,
        hosts: &[HostName],
        retain: u32,
        command: &str,
    ) -> Result<(), Stop> {
        let begins = self.begins.clone();
        let (at_s, fencing) = (self.options.at_s, self.fencing);
        let ends = self
            .on(hosts, async |link| {
                let begin = begins.get(link.host()).expect("every host has its beginning");
                let release = (decision == Decision::Commit).then(|| Box::new(release(begin)));
                let audit = audit_event(begin, decision, at_s, command, fencing);
                let request = Request::Conclude { release, retain, audit };
                done(link, request, PATIENCE, "conclude the transaction").await
            })
            .await?;
        let (concluded, errors) = split(ends);
        for (host, error) in errors {
            self.lose(host, error);
        }
        for host in concluded.keys() {
            self.watch.concluded(host, decision);
        }
        Ok(())
    }
}

/// The release that a committed transaction makes.
fn release(begin: &Begin) -> Release {
    Release {
        version: Release::VERSION,
        number: begin.fencing,
        transaction: begin.transaction.clone(),
        plan: begin.plan,
        who: begin.who.clone(),
        command: begin.command.clone(),
        at_s: begin.at_s,
        services: begin.services.clone(),
    }
}

fn audit_event(begin: &Begin, decision: Decision, at_s: u64, command: &str, fencing: u64) -> AuditEvent {
    AuditEvent {
        transaction: begin.transaction.clone(),
        fencing,
        who: begin.who.clone(),
        command: command.to_owned(),
        result: result_word(decision).to_owned(),
        at_s,
        services: audit::service_lines(&begin.services),
    }
}
