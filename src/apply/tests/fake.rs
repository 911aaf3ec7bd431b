//! Hosts in memory that keep the rules of the model, serve one service, and die when they are told to.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use jiji_model::digest::Digest;
use jiji_model::name::HostName;
use jiji_model::observation::{Answer, Fact, LeaseFacts, Query};
use jiji_model::plan::{Action, Phase, Step, Word};
use jiji_model::probe::{Probe, ProbeResult, Timeline};
use jiji_model::protocol::{EvidenceFound, HostEvent, RefusalKind, Reply, Request, RunReport, StepFailure, StepReport};
use jiji_model::transaction::lease::{self, Moment};
use jiji_model::transaction::{
    Decision, Entry, HostRecords, Lease, LeaseDecision, Outcome, Refused, Release, Transaction, accept,
};
use jiji_store::Store;

use crate::apply::HostLink;
use crate::fleet::{BlobProgress, FleetError, Listener, LostCause};

/// What a host is and does.
#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) fencing: u64,
    lease: Option<Lease>,
    sessions: Vec<i32>,
    next_session: i32,
    pub(super) transaction: Option<Transaction>,
    pub(super) releases: Vec<Release>,
    /// Containers, and whether each runs.
    pub(super) containers: BTreeMap<String, bool>,
    /// Where the proxy sends requests.
    pub(super) routed: Option<String>,
    /// Whether requests were sent to something that does not run.
    pub(super) outage: bool,
    /// Whether candidates are unhealthy here.
    pub(super) unhealthy: bool,
    /// Whether candidates become unhealthy once they serve.
    pub(super) sickens: bool,
    /// Whether the proxy refuses new routes.
    pub(super) refuses_routes: bool,
    /// Whether undoing fails.
    pub(super) cannot_undo: bool,
    /// Whether a wait for health takes until it is interrupted.
    pub(super) slow: bool,
    pub(super) interrupted: bool,
    /// Bytes that were sent.
    pub(super) blobs: u64,
    /// After how many moves the host dies, counted down.
    pub(super) dies_in: Option<u32>,
    pub(super) dead: bool,
    /// What was about to be logged when the host died.
    pub(super) dies_at: Option<String>,
    /// What was asked and done, in order.
    pub(super) log: Vec<String>,
}

/// After how many asks, on whatever host, the operator dies: before the last one has an effect, or after it. Counted down.
#[derive(Debug, Default)]
pub(super) struct Doom {
    pub(super) asks: Option<u32>,
    pub(super) after: bool,
}

/// A connection to a host. Dropped, its session is dead.
pub(super) struct Link {
    host: HostName,
    session: i32,
    world: Arc<Mutex<World>>,
    doom: Arc<Mutex<Doom>>,
    listener: Mutex<Option<Listener>>,
    ahead: Mutex<VecDeque<(Request, Said)>>,
}

/// An answer, and what was told before it.
type Said = (Result<Reply, Dead>, Vec<HostEvent>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no test panics while it holds a lock")
}

impl Link {
    pub(super) fn to(host: &HostName, world: &Arc<Mutex<World>>, doom: &Arc<Mutex<Doom>>) -> Self {
        let mut state = lock(world);
        state.next_session += 1;
        let session = state.next_session;
        state.sessions.push(session);
        drop(state);
        Self {
            host: host.clone(),
            session,
            world: Arc::clone(world),
            doom: Arc::clone(doom),
            listener: Mutex::new(None),
            ahead: Mutex::default(),
        }
    }

    fn said(&self, request: Request) -> Said {
        let mut events = Vec::new();
        (lock(&self.world).answer(&self.host, self.session, request, &mut events), events)
    }

    /// What was said to it already, if it was asked ahead.
    fn said_ahead(&self, request: &Request) -> Option<Said> {
        let mut ahead = lock(&self.ahead);
        match ahead.front() {
            Some((next, _)) if next == request => ahead.pop_front().map(|(_, said)| said),
            _ => {
                ahead.clear();
                None
            }
        }
    }

    fn lost(&self) -> FleetError {
        FleetError::Lost { host: self.host.clone(), doing: "ask", cause: LostCause::Closed { stderr: String::new() } }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let session = self.session;
        lock(&self.world).sessions.retain(|other| *other != session);
    }
}

impl HostLink for Link {
    fn host(&self) -> &HostName {
        &self.host
    }

    fn address(&self) -> Option<&str> {
        None
    }

    async fn ask(&self, request: Request, _patience: Duration) -> Result<Reply, FleetError> {
        let doomed = {
            let mut doom = lock(&self.doom);
            doom.asks = doom.asks.map(|left| left.saturating_sub(1));
            (doom.asks == Some(0)).then_some(doom.after)
        };
        if doomed == Some(false) {
            std::future::pending::<()>().await;
        }
        // A wait that only an interrupt ends.
        if matches!(request, Request::Run { phase: Phase::Prepare }) {
            while lock(&self.world).slow && !lock(&self.world).interrupted {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        let (reply, events) = self.said_ahead(&request).unwrap_or_else(|| self.said(request));
        if doomed == Some(true) {
            std::future::pending::<()>().await;
        }
        let listener = lock(&self.listener).clone();
        for event in events {
            if let Some(listener) = &listener {
                listener(event);
            }
        }
        match reply {
            Err(Dead) => Err(self.lost()),
            Ok(Reply::Refused { why, message }) => {
                Err(FleetError::Refused { host: self.host.clone(), doing: "ask", why, message })
            }
            Ok(reply) => Ok(reply),
        }
    }

    /// As a host does that is faster than its operator: everything at once, up to a wait that only an interrupt ends.
    async fn ask_ahead(&self, requests: Vec<Request>) {
        lock(&self.ahead).clear();
        for request in requests {
            if matches!(request, Request::Run { phase: Phase::Prepare }) && lock(&self.world).slow {
                return;
            }
            let said = self.said(request.clone());
            lock(&self.ahead).push_back((request, said));
        }
    }

    async fn tell(&self, request: Request) -> Result<(), FleetError> {
        if request == Request::Interrupt {
            lock(&self.world).interrupted = true;
        }
        Ok(())
    }

    async fn send_blobs(
        &self,
        _store: &Store,
        blobs: &[(Digest, u64)],
        progress: &(dyn Fn(BlobProgress) + Send + Sync),
    ) -> Result<BlobProgress, FleetError> {
        let mut world = lock(&self.world);
        if world.dead {
            return Err(self.lost());
        }
        let bytes = blobs.iter().map(|(_, size)| size).sum();
        world.blobs += bytes;
        let done = BlobProgress { blobs: blobs.len() as u64, bytes, sent: bytes };
        progress(done);
        Ok(done)
    }

    fn listen(&self, listener: Listener) {
        *lock(&self.listener) = Some(listener);
    }
}

/// The host died.
struct Dead;

fn refusal(refused: Refused) -> Reply {
    Reply::Refused { why: refused.why, message: refused.message }
}

fn refused(why: RefusalKind) -> Reply {
    Reply::Refused { why, message: format!("{why:?}") }
}

impl World {
    /// One move: between any two of them the host may die.
    fn tick(&mut self) -> Result<(), Dead> {
        if let Some(left) = &mut self.dies_in {
            *left = left.saturating_sub(1);
            if *left == 0 {
                self.dead = true;
                self.dies_in = None;
            }
        }
        if self.dead { Err(Dead) } else { Ok(()) }
    }

    pub(super) fn revive(&mut self) {
        self.dead = false;
        self.dies_in = None;
        self.sessions.clear();
    }

    pub(super) fn records(&self) -> HostRecords {
        HostRecords {
            fencing: self.fencing,
            lease: self.lease.clone().map(|lease| LeaseFacts {
                live: self.sessions.contains(&lease.session),
                age_ms: None,
                lease,
            }),
            transaction: self.transaction.clone(),
            releases: self.releases.clone(),
            last_address: None,
            roster: None,
        }
    }

    fn holds(&self, session: i32) -> bool {
        self.lease.as_ref().is_some_and(|lease| lease.session == session)
    }

    fn answer(
        &mut self,
        host: &HostName,
        session: i32,
        request: Request,
        events: &mut Vec<HostEvent>,
    ) -> Result<Reply, Dead> {
        self.tick()?;
        let needs_lease = !matches!(request, Request::Observe { .. } | Request::Acquire(_));
        if needs_lease && !self.holds(session) {
            return Ok(refused(RefusalKind::NoLease));
        }
        let lease = self.lease.as_ref().map_or(0, |lease| lease.fencing);
        let reply = match request {
            Request::Observe { wants } => {
                Reply::Facts(wants.into_iter().map(|want| self.fact(want.id, &want.query)).collect())
            }
            Request::Acquire(request) => self.acquire(session, &request),
            Request::Offer { .. } => Reply::Blobs(Vec::new()),
            Request::Release => {
                self.lease = None;
                Reply::Done
            }
            Request::Begin(begin) => match accept::begin(self.transaction.as_ref(), &begin, lease) {
                Ok(_) => {
                    self.log.push("begin".to_owned());
                    self.transaction = Some(Transaction::new(*begin));
                    Reply::Done
                }
                Err(refused) => refusal(refused),
            },
            request => match self.in_transaction(host, lease, request, events)? {
                Ok(reply) => reply,
                Err(refused) => refusal(refused),
            },
        };
        // It was done, and the answer may still be lost.
        self.tick()?;
        Ok(reply)
    }

    /// What needs an open transaction, accepted by the rules that hosts have.
    fn in_transaction(
        &mut self,
        host: &HostName,
        lease: u64,
        request: Request,
        events: &mut Vec<HostEvent>,
    ) -> Result<Result<Reply, Refused>, Dead> {
        let journal = self.transaction.clone();
        let open = match accept::open(journal.as_ref()) {
            Ok(open) => open,
            Err(refused) => return Ok(Err(refused)),
        };
        let accepted = match &request {
            Request::Run { phase } => accept::run(open, *phase).map(|_| ()),
            Request::Settle(settlement) => accept::settle(open, *settlement, lease).map(|_| ()),
            Request::Undo => accept::undo(open).map(|_| ()),
            Request::Conclude { release, audit, .. } => {
                accept::conclude(Some(open), &audit.transaction, release.as_deref()).map(|_| ())
            }
            other => panic!("nobody asks {other:?} here"),
        };
        if let Err(refused) = accepted {
            return Ok(Err(refused));
        }
        Ok(Ok(match request {
            Request::Run { phase } => {
                self.log.push(format!("run {phase}"));
                Reply::Ran(self.run(host, phase, events)?)
            }
            Request::Settle(settlement) => {
                let what = format!("settle {:?}", settlement.decision);
                if self.dies_at.as_ref() == Some(&what) {
                    self.dead = true;
                    return Err(Dead);
                }
                self.log.push(what);
                self.journal(Entry::Settled(settlement));
                Reply::Done
            }
            Request::Undo => {
                self.log.push("undo".to_owned());
                Reply::Ran(self.undo(events)?)
            }
            Request::Conclude { release, .. } => {
                self.log.push("conclude".to_owned());
                if let Some(release) = release {
                    self.releases.insert(0, *release);
                }
                self.journal(Entry::Concluded);
                Reply::Done
            }
            _ => Reply::Done,
        }))
    }

    fn fact(&self, id: String, query: &Query) -> Fact {
        let answer = match query {
            Query::Records { .. } => Answer::Records(Box::new(self.records())),
            _ => Answer::Absent,
        };
        Fact { id, answer }
    }

    fn acquire(&mut self, session: i32, request: &jiji_model::transaction::LeaseRequest) -> Reply {
        let moment = Moment { boot_id: "boot", now_ms: 0, session: (session, 0) };
        let current = self.lease.as_ref().map(|lease| (lease, self.sessions.contains(&lease.session)));
        let decision = lease::decide(request, current, self.fencing, &moment);
        if let LeaseDecision::Granted(lease) = &decision {
            self.fencing = lease.fencing;
            self.lease = Some(lease.clone());
        }
        Reply::Lease(decision)
    }

    fn journal(&mut self, entry: Entry) {
        let transaction = self.transaction.as_mut().expect("one is open");
        transaction.apply(entry).expect("the step is known");
    }

    fn run(&mut self, host: &HostName, phase: Phase, events: &mut Vec<HostEvent>) -> Result<RunReport, Dead> {
        let open = self.transaction.as_ref().expect("one is open");
        let decided = open.settlement.is_some_and(|settled| settled.decision == Decision::Commit);
        assert!(phase.before_decided() || decided, "{phase} before it was decided");
        let steps: Vec<Step> = open.to_finish(phase).into_iter().cloned().collect();
        let mut report = RunReport { steps: Vec::new(), failure: None };
        for step in steps {
            events.push(HostEvent::StepStarted { step: step.id.clone(), undo: false });
            self.journal(Entry::Started { step: step.id.clone() });
            self.tick()?;
            let outcome = self.act(&step.action, false);
            self.tick()?;
            self.journal(Entry::Ended { step: step.id.clone(), outcome: outcome.clone() });
            events.push(HostEvent::StepEnded {
                step: step.id.clone(),
                undo: false,
                outcome: outcome.clone(),
                took_ms: 1,
            });
            report.steps.push(StepReport { step: step.id.clone(), outcome: outcome.clone(), took_ms: 1 });
            if let Outcome::Failed { cause } = outcome {
                report.failure = Some(Box::new(self.failure(&step, host, cause)));
                if phase.before_decided() {
                    break;
                }
            }
            self.tick()?;
        }
        Ok(report)
    }

    fn undo(&mut self, events: &mut Vec<HostEvent>) -> Result<RunReport, Dead> {
        let open = self.transaction.as_ref().expect("one is open");
        let settled = open.settlement.expect("it was settled");
        assert_eq!(settled.decision, Decision::Revert, "undoing what was decided");
        let steps: Vec<Step> = open.to_undo().into_iter().cloned().collect();
        let mut report = RunReport { steps: Vec::new(), failure: None };
        for step in steps {
            if accept::undo_in_the_way(self.transaction.as_ref().expect("one is open"), &step).is_some() {
                continue;
            }
            events.push(HostEvent::StepStarted { step: step.id.clone(), undo: true });
            self.journal(Entry::UndoStarted { step: step.id.clone() });
            self.tick()?;
            let outcome = if self.cannot_undo {
                Outcome::Failed { cause: "it does not let itself be taken back".to_owned() }
            } else {
                self.act(step.undo.as_ref().expect("it has an undo"), true)
            };
            self.tick()?;
            self.journal(Entry::UndoEnded { step: step.id.clone(), outcome: outcome.clone() });
            if let Outcome::Failed { cause } = outcome {
                report.failure.get_or_insert_with(|| {
                    Box::new(StepFailure { step: step.id.clone(), cause, timeline: None, evidence: Vec::new() })
                });
            }
        }
        Ok(report)
    }

    fn failure(&self, step: &Step, host: &HostName, cause: String) -> StepFailure {
        let waits = matches!(step.action, Action::WaitProbe { .. } | Action::Hold { .. });
        let probe = Probe {
            at_ms: 0,
            took_ms: 3,
            result: ProbeResult::Http { status: 503, body: format!("not ready on {host}"), location: None },
            healthy: false,
        };
        StepFailure {
            step: step.id.clone(),
            cause,
            timeline: waits.then(|| Timeline {
                healthy: false,
                took_ms: 5000,
                made: 10,
                probes: vec![probe],
                findings: None,
            }),
            evidence: match &step.action {
                Action::WaitProbe { container, .. } => vec![EvidenceFound {
                    container: container.clone(),
                    state: Some("running".to_owned()),
                    exit: None,
                    oom: false,
                    log: "starting\ncannot reach the database\n".to_owned(),
                }],
                _ => Vec::new(),
            },
        }
    }

    fn act(&mut self, action: &Action, undo: bool) -> Outcome {
        let failed = |cause: &str| Outcome::Failed { cause: cause.to_owned() };
        let outcome = match action {
            Action::ContainerRun(spec) => {
                self.containers.insert(spec.name.to_string(), true);
                Outcome::Done { output: None }
            }
            Action::ContainerStop { name, .. } => {
                if let Some(runs) = self.containers.get_mut(name.as_str()) {
                    *runs = false;
                }
                Outcome::Done { output: None }
            }
            Action::ContainerRemove { name } => {
                self.containers.remove(name.as_str());
                Outcome::Done { output: None }
            }
            Action::Hold { .. } if self.interrupted => failed("interrupted"),
            Action::Hold { .. } if self.sickens => failed("not healthy any more"),
            Action::WaitProbe { .. } if self.interrupted => failed("interrupted"),
            Action::WaitProbe { .. } if self.unhealthy => failed("not healthy within 5 seconds"),
            Action::ContainerExec { .. } if self.refuses_routes && !undo => failed("exit code 1"),
            Action::ContainerExec { argv, .. } => {
                if let Some(Word::Lit(to)) = argv.last() {
                    self.routed = Some(to.clone());
                }
                Outcome::Done { output: None }
            }
            _ => Outcome::Done { output: None },
        };
        self.log.push(format!("{}{}", if undo { "undo " } else { "" }, describe(action)));
        if let Some(routed) = &self.routed {
            self.outage |= self.containers.get(routed) != Some(&true);
        }
        outcome
    }
}

fn describe(action: &Action) -> String {
    match action {
        Action::ContainerRun(spec) => format!("run {}", spec.name),
        Action::ContainerStop { name, .. } => format!("stop {name}"),
        Action::ContainerRemove { name } => format!("remove {name}"),
        Action::WaitProbe { container, .. } => format!("wait {container}"),
        Action::Hold { container, .. } => format!("hold {container}"),
        Action::ContainerExec { argv, .. } => match argv.last() {
            Some(Word::Lit(to)) => format!("route {to}"),
            _ => "exec".to_owned(),
        },
        Action::Note { text } => text.clone(),
        _ => "other".to_owned(),
    }
}
