//! What needs the lease: transactions, step by step.
//!
//! Every change of a record is made under the project's lock and only while the lease is still this session's; an entry of the journal is
//! synced before what it announces is done, and before what it reports is told. What a journal's entries mean, what is
//! accepted, and which steps are left to do or to take back, is [`jiji_model::transaction`]'s.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use jiji_model::digest::Digest;
use jiji_model::name::{ContainerName, ServiceName};
use jiji_model::observation::RecordFile;
use jiji_model::plan::{Action, ContainerSpec, LABEL_SCOPE, LABEL_SECRETS, Phase, Repeat, Step};
use jiji_model::protocol::{HostEvent, RefusalKind, Reply, RunReport, StepFailure, StepReport};
use jiji_model::transaction::audit::AuditEvent;
use jiji_model::transaction::serving::{self, Standing};
use jiji_model::transaction::{
    Accepted, Begin, Entry, LeaseDecision, LeaseRequest, Outcome, Release, Settlement, Transaction, accept,
};

use super::{Refusal, Session};
use crate::abort;
use crate::execute::{Executor, unsupported};
use crate::journal::{self, Journal};
use crate::observe::chain;
use crate::place::{self, Lock, Project};
use crate::{integrity, lease, probe, records, secrets};

/// Longest cause of a failure in the journal, in characters.
const CAUSE: usize = 1024;

/// How long a program in a container that was just started, here or by the engine after a reboot, may not take commands yet.
const WAKING: Duration = Duration::from_secs(10);

/// Time between two commands that it is asked.
const AGAIN: Duration = Duration::from_millis(250);

/// The transactional half of a session's worker.
pub(super) struct Keeper<'s> {
    session: &'s Session,
    /// The project's journal, once the lease is held and there is one.
    journal: Option<Journal>,
    /// The keyed digests of the secrets that this session gave to containers.
    ran: BTreeMap<ContainerName, String>,
    /// Whether what must run was looked after, or the transaction is this session's own: then the host was not started anew since.
    revived: bool,
    /// Until when what was looked after may not take commands yet.
    waking: Option<Instant>,
}

fn out_of_order(message: impl Into<String>) -> Refusal {
    Refusal::new(RefusalKind::OutOfOrder, message)
}

impl<'s> Keeper<'s> {
    pub(super) fn new(session: &'s Session) -> Self {
        Self { session, journal: None, ran: BTreeMap::new(), revived: false, waking: None }
    }

    /// Holds the records' lock while the lease is this session's. Never held across a wait: the reader takes the same lock.
    fn guard(&self) -> Result<Lock, Refusal> {
        match self.session.lease.borrow().as_ref() {
            Some(held) => Ok(held.guard()?),
            None => Err(Refusal::new(RefusalKind::NoLease, "use the lease: this session has none")),
        }
    }

    /// The open transaction's journal.
    fn open(&mut self) -> Result<&mut Journal, Refusal> {
        accept::open(self.journal.as_ref().map(Journal::transaction))?;
        self.journal.as_mut().ok_or_else(|| out_of_order("find the transaction: it went away"))
    }

    fn append(&mut self, entry: Entry) -> Result<(), Refusal> {
        let _lock = self.guard()?;
        Ok(self.open()?.append(entry)?)
    }

    /// Appends that a step has ended: lasting with the next entry, or once all steps of a request are done.
    fn append_end(&mut self, entry: Entry) -> Result<(), Refusal> {
        let _lock = self.guard()?;
        Ok(self.open()?.append_unsynced(entry)?)
    }

    pub(super) async fn acquire(&mut self, request: &LeaseRequest) -> Result<Reply, Refusal> {
        let project = self.session.place.project(&request.scope)?;
        // Taken out for the while: the reader must not want the lock that a takeover holds.
        let held = self.session.lease.take();
        if let Some(held) = held.filter(|held| held.project().dir() != project.dir()) {
            self.session.lease.replace(Some(held));
            return Err(out_of_order("take the lease: this session holds one of another project"));
        }
        // A newer jiji's records are refused before anything of them is touched.
        journal::read(&project.journal())?;
        records::releases(&project)?;
        match lease::acquire(project.clone(), request).await? {
            Ok(held) => {
                let lease = held.lease().clone();
                self.session.lease.replace(Some(held));
                self.journal = Journal::open(&project.journal())?;
                self.revived = false;
                self.sweep(&project);
                Ok(Reply::Lease(LeaseDecision::Granted(lease)))
            }
            Err(decision) => Ok(Reply::Lease(decision)),
        }
    }

    /// Sets damaged records aside and keeps a release that is missing. This is what a lease needs first: it refuses records that cannot be
    /// read.
    pub(super) async fn repair(
        &mut self,
        scope: &str,
        files: &[RecordFile],
        release: Option<Release>,
    ) -> Result<Reply, Refusal> {
        let place = &self.session.place;
        let project = place.project(scope)?;
        if self.session.lease.borrow().is_none()
            && let Ok(Some(held)) = lease::observe(&project)
            && held.live
        {
            return Err(Refusal::new(RefusalKind::NoLease, format!("repair: {} is at work", held.lease.who)));
        }
        integrity::set_aside(place, scope, files)?;
        if let Some(release) = release {
            let secrets = self.secrets_of(&project, &release).await;
            let _lock = project.lock()?;
            if !records::numbers(&project)?.contains_key(&release.number) {
                // How many images are kept is the next release's to say.
                records::keep_release(place, &project, &Release { secrets, ..release }, u32::MAX)?;
            }
        }
        Ok(Reply::Done)
    }

    pub(super) fn release(&mut self) -> Result<Reply, Refusal> {
        self.journal = None;
        match self.session.lease.take() {
            Some(held) => {
                held.release()?;
                Ok(Reply::Done)
            }
            None => Err(Refusal::new(RefusalKind::NoLease, "give the lease back: this session has none")),
        }
    }

    pub(super) fn begin(&mut self, begin: Begin) -> Result<Reply, Refusal> {
        let actions = begin.steps.iter().flat_map(|step| std::iter::once(&step.action).chain(&step.undo));
        if let Some(kind) = actions.filter_map(unsupported).next() {
            return Err(Refusal::new(RefusalKind::Unsupported, format!("begin: this jiji-host knows no {kind}")));
        }
        let _lock = self.guard()?;
        let (path, fencing) = {
            let lease = self.session.lease.borrow();
            let held = lease.as_ref().ok_or_else(|| out_of_order("begin: no lease is held"))?;
            if self.session.place.project(&begin.scope)?.dir() != held.project().dir() {
                return Err(out_of_order("begin: the lease is for another project"));
            }
            (held.project().journal(), held.lease().fencing)
        };
        let last = self.journal.as_ref().map(Journal::transaction);
        if accept::begin(last, &begin, fencing)? == Accepted::Already {
            return Ok(Reply::Done);
        }
        self.journal = Some(Journal::begin(&path, begin)?);
        (self.revived, self.waking) = (true, None);
        Ok(Reply::Done)
    }

    pub(super) fn settle(&mut self, settlement: Settlement) -> Result<Reply, Refusal> {
        let _lock = self.guard()?;
        let highest = self.session.lease.borrow().as_ref().map_or(0, |held| held.lease().fencing);
        let journal = self.open()?;
        if accept::settle(journal.transaction(), settlement, highest)? == Accepted::New {
            journal.append(Entry::Settled(settlement))?;
        }
        Ok(Reply::Done)
    }

    pub(super) async fn run(&mut self, phase: Phase) -> Result<Reply, Refusal> {
        drop(self.guard()?);
        let steps: Vec<Step> = accept::run(self.open()?.transaction(), phase)?.into_iter().cloned().collect();
        self.revive().await?;
        let mut report = RunReport { steps: Vec::new(), failure: None };
        for step in steps {
            if self.session.closing.is_wanted() || self.session.interrupt.is_wanted() {
                break;
            }
            let failure = match accept::in_the_way(self.open()?.transaction(), &step) {
                Some(cause) => Some(StepFailure { step: step.id, cause, timeline: None, evidence: Vec::new() }),
                None => self.step(&step, false, &mut report.steps).await?,
            };
            if failure.is_some() && phase.before_decided() {
                report.failure = failure.map(Box::new);
                break;
            }
            report.failure = report.failure.or(failure.map(Box::new));
        }
        self.open()?.sync()?;
        Ok(Reply::Ran(report))
    }

    pub(super) async fn undo(&mut self) -> Result<Reply, Refusal> {
        drop(self.guard()?);
        let transaction = self.open()?.transaction();
        let steps: Vec<Step> = accept::undo(transaction)?.into_iter().cloned().collect();
        if !steps.is_empty() {
            // What was begun, by whomever, may still take effect; what takes it back must come after that.
            let quiet = Duration::from_millis(transaction.quiet_ms().into());
            tokio::select! {
                () = self.session.closing.wanted() => {}
                () = tokio::time::sleep(quiet) => {}
            }
        }
        self.revive().await?;
        let mut report = RunReport { steps: Vec::new(), failure: None };
        for step in steps {
            if self.session.closing.is_wanted() {
                break;
            }
            if accept::undo_in_the_way(self.open()?.transaction(), &step).is_some() {
                continue;
            }
            let failure = self.step(&step, true, &mut report.steps).await?;
            report.failure = report.failure.or(failure.map(Box::new));
        }
        self.open()?.sync()?;
        Ok(Reply::Ran(report))
    }

    /// Takes away what writers left beside jiji's records and an interrupted transaction's files that were killed while they wrote.
    fn sweep(&self, project: &Project) {
        for dir in [self.session.place.root(), project.dir(), &project.releases()] {
            place::sweep(dir);
        }
        let steps = self.journal.iter().map(Journal::transaction).filter(|last| last.is_open());
        for step in steps.flat_map(|open| &open.begin.steps) {
            if let Action::File { path, .. } = &step.action
                && let Some(parent) = self.session.place.locate(path).parent()
            {
                place::sweep(parent);
            }
        }
    }

    /// Starts what must run for how the transaction was settled and does not, as after a loss of power. No step of the transaction, so
    /// it is in no journal: who settles it next looks again. What cannot be started is told, and fails what needs it.
    async fn revive(&mut self) -> Result<(), Refusal> {
        if self.revived {
            return Ok(());
        }
        let session = self.session;
        let open = self.open()?.transaction();
        if open.settlement.is_none() {
            return Ok(());
        }
        let Ok(Some(engine)) = session.engine().await else { return Ok(()) };
        let Ok(found) = engine.containers(&[LABEL_SCOPE.to_owned()]).await else { return Ok(()) };
        let ours = found.iter().filter_map(|container| {
            let scope = container.label(LABEL_SCOPE).filter(|scope| *scope == "*" || *scope == open.begin.scope)?;
            Some(Standing {
                name: container.plain_name(),
                shared: scope == "*",
                stopped: container.stopped(),
                restarts: container.restarts(),
            })
        });
        for name in serving::to_start(open, &ours.collect::<Vec<_>>()) {
            let started = engine.must("start", engine.command(["start", name])).await;
            // Another project's run may have put its own proxy in its place meanwhile.
            let runs = match &started {
                Ok(_) => true,
                Err(_) => engine.inspect_container(name).await.ok().flatten().is_some_and(|found| found.running()),
            };
            let cause = started.err().filter(|_| !runs).map(|error| session.secrets.borrow().redact(&chain(&error)));
            session.outbox.event(HostEvent::Revived { container: name.to_owned(), cause });
        }
        self.revived = true;
        self.waking = Some(Instant::now() + WAKING);
        Ok(())
    }

    /// Runs a step, or its undo, with its entries in the journal around it. Gives the failure, if it is one.
    async fn step(
        &mut self,
        step: &Step,
        undo: bool,
        reports: &mut Vec<StepReport>,
    ) -> Result<Option<StepFailure>, Refusal> {
        let action = match (&step.undo, undo) {
            (Some(action), true) => action,
            (None, true) => return Ok(None),
            (_, false) => &step.action,
        };
        let id = || step.id.clone();
        let begun = Instant::now();
        self.append(if undo { Entry::UndoStarted { step: id() } } else { Entry::Started { step: id() } })?;
        self.session.outbox.event(HostEvent::StepStarted { step: id(), undo });
        let (outcome, mut failure) = self.act(step, action, undo).await?;
        abort::point("acted", || journal::place_of(step, if undo { "undo" } else { "do" }));
        let ended = outcome.clone();
        self.append_end(if undo {
            Entry::UndoEnded { step: id(), outcome: ended }
        } else {
            Entry::Ended { step: id(), outcome: ended }
        })?;
        let took_ms = probe::millis(begun.elapsed());
        self.session.outbox.event(HostEvent::StepEnded { step: id(), undo, outcome: outcome.clone(), took_ms });
        reports.push(StepReport { step: id(), outcome, took_ms });
        if let Some(failure) = &mut failure {
            failure.evidence = self.executing(step, async |executor| executor.evidence(&step.evidence).await).await?;
        }
        Ok(failure)
    }

    async fn act(
        &mut self,
        step: &Step,
        action: &Action,
        undo: bool,
    ) -> Result<(Outcome, Option<StepFailure>), Refusal> {
        let result = loop {
            // What takes something back is never cut short.
            let result = self.executing(step, async |executor| {
                let executor = Executor {
                    stop: if undo { &|| std::future::pending().boxed_local() } else { executor.stop },
                    ..*executor
                };
                executor.run(step, action).await
            });
            let result = result.await?;
            let asked = matches!(action, Action::ContainerExec { .. });
            let again = asked && (undo || step.repeat == Repeat::Repeatable);
            let waking = self.waking.is_some_and(|until| Instant::now() < until);
            if result.is_ok() || !again || !waking || self.session.closing.is_wanted() {
                break result;
            }
            tokio::time::sleep(AGAIN).await;
        };
        Ok(match result {
            Ok(outcome) => {
                if let (Action::ContainerRun(spec), false) = (action, undo) {
                    self.ran.extend(self.mac(spec).map(|mac| (spec.name.clone(), mac)));
                }
                (outcome, None)
            }
            Err(error) => {
                let cause: String = self.session.secrets.borrow().redact(&chain(&error));
                let cause: String = cause.chars().take(CAUSE).collect();
                let failure = StepFailure {
                    step: step.id.clone(),
                    cause: cause.clone(),
                    timeline: error.timeline().cloned(),
                    evidence: Vec::new(),
                };
                (Outcome::Failed { cause }, Some(failure))
            }
        })
    }

    /// Does something with what runs actions.
    async fn executing<T>(&mut self, step: &Step, work: impl AsyncFnOnce(&Executor<'_>) -> T) -> Result<T, Refusal> {
        let session = self.session;
        let transaction: Transaction = self.open()?.transaction().clone();
        let secrets = Rc::clone(&session.secrets.borrow());
        let executor = Executor {
            settings: &session.settings,
            place: &session.place,
            engine: session.engine().await,
            secrets: &secrets,
            transaction: &transaction,
            store: &|| session.receiver.borrow_mut().store(),
            probed: &|probe| session.outbox.event(HostEvent::Probed { step: step.id.clone(), probe }),
            stop: &|| {
                let either = async {
                    tokio::select! {
                        () = session.closing.wanted() => {}
                        () = session.interrupt.wanted() => {}
                    }
                };
                either.boxed_local()
            },
        };
        Ok(work(&executor).await)
    }

    /// The keyed digest of a container's secrets as this session has them.
    fn mac(&self, spec: &ContainerSpec) -> Option<String> {
        let names = spec.secrets();
        if names.is_empty() {
            return None;
        }
        let key = secrets::host_key(&self.session.place).ok().flatten()?;
        self.session.secrets.borrow().mac(&key, &names).ok()
    }

    /// The keyed digests of the secrets that a release's containers run with: as this session ran them, as the release before says of
    /// containers that stayed, or as the containers themselves do, where somebody else's transaction is brought to its end.
    async fn secrets_of(&self, project: &Project, release: &Release) -> BTreeMap<ServiceName, String> {
        let before = records::release_at(project, release.number.saturating_sub(1)).ok().flatten();
        let mut macs = BTreeMap::new();
        let mut unknown: BTreeMap<&str, &ServiceName> = BTreeMap::new();
        for (name, service) in &release.services {
            if service.container_spec.secrets().is_empty() {
                continue;
            }
            let stayed = before.as_ref().filter(|before| {
                before.services.get(name).is_some_and(|earlier| earlier.container == service.container)
            });
            let known = self.ran.get(&service.container).or_else(|| stayed?.secrets.get(name));
            match known {
                Some(mac) => {
                    macs.insert(name.clone(), mac.clone());
                }
                None => {
                    unknown.insert(service.container.as_str(), name);
                }
            }
        }
        if !unknown.is_empty()
            && let Ok(Some(engine)) = self.session.engine().await
        {
            let names: Vec<String> = unknown.keys().map(|name| (*name).to_owned()).collect();
            for container in engine.inspect_containers(&names).await.unwrap_or_default() {
                if let (Some(name), Some(mac)) = (unknown.get(container.plain_name()), container.label(LABEL_SECRETS)) {
                    macs.insert((*name).clone(), mac.to_owned());
                }
            }
        }
        macs
    }

    pub(super) async fn conclude(
        &mut self,
        release: Option<&Release>,
        retain: u32,
        audit: AuditEvent,
    ) -> Result<Reply, Refusal> {
        let project = match self.session.lease.borrow().as_ref() {
            Some(held) => held.project().clone(),
            None => return Err(Refusal::new(RefusalKind::NoLease, "conclude: this session has no lease")),
        };
        let last = self.journal.as_ref().map(Journal::transaction);
        if accept::conclude(last, &audit.transaction, release)? == Accepted::Already {
            return Ok(Reply::Done);
        }
        drop(self.guard()?);
        self.revive().await?;
        // Asked before the lock, which is never held across a wait.
        let secrets = match release {
            Some(release) => self.secrets_of(&project, release).await,
            None => BTreeMap::new(),
        };
        let _lock = self.guard()?;
        if let Some(release) = release {
            let release = Release { secrets, ..release.clone() };
            records::keep_release(&self.session.place, &project, &release, retain)?;
        }
        records::audit(&project, audit)?;
        self.open()?.append(Entry::Concluded)?;
        self.tidy();
        Ok(Reply::Done)
    }

    /// Drops blobs that nothing here will need. Those of what runs and of the releases whose images are kept stay: the next image has
    /// most of its layers in common with them, an image that somebody prunes comes back from here, and so does one that another host
    /// lost. Whoever else has the store open may need any of them, so then all stay until the next time.
    fn tidy(&self) {
        let mut keep: BTreeSet<Digest> = BTreeSet::new();
        let Ok(projects) = self.session.place.all_projects() else { return };
        for project in projects {
            // What cannot be read may need anything.
            let (Ok(releases), Ok(transaction)) = (records::kept(&project), journal::read(&project.journal())) else {
                return;
            };
            let running = releases.iter().flat_map(|release| release.services.values());
            let open = transaction.filter(Transaction::is_open);
            let steps = open.iter().flat_map(|transaction| &transaction.begin.steps);
            let coming = steps.filter_map(|step| match &step.action {
                Action::ImageEnsure { image } => Some(image),
                _ => None,
            });
            for image in running.map(|service| &*service.image).chain(coming) {
                keep.extend(image.blobs().map(|blob| blob.digest));
            }
        }
        self.session.receiver.borrow_mut().tidy(&keep);
    }
}
