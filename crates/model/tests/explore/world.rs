//! Hosts and operators as data: everything that can be different between two moments, and nothing else.
//!
//! A host's records are the real ones. What a container or a proxy is, is a number: which version runs, which one is routed.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use jiji_model::digest::Digest;
use jiji_model::image::{Descriptor, Image, ImageId, Platform};
use jiji_model::name::{ContainerName, HostName, ServiceName};
use jiji_model::plan::{Action, ContainerImage, ContainerSpec, NETWORK, Phase, PlannedService, Step};
use jiji_model::shared::Shared;
use jiji_model::transaction::serving::{self, Standing};
use jiji_model::transaction::{
    Begin, Course, Decision, Heard, HostRecords, Lease, Outcome, Settlement, StepState, Transaction,
};

/// A host, an operator and a version, by their numbers.
pub type Id = u8;

/// How long an effect that was asked for may come late, as the proxy plugin says it for a route.
const QUIET_MS: u32 = 35_000;

/// The proxy's bit among those of versions.
pub const PROXY: Id = 7;

/// What is asked of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ask {
    Begin,
    Run(Phase),
    Settle(Settlement),
    Undo,
    Conclude(Decision),
}

/// What a step does to a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    Run(Id),
    Remove(Id),
    Route(Id),
    /// Watching changes nothing.
    Watch,
}

/// A session of `jiji-host`, started by an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Session {
    /// What it was asked and has not answered.
    pub asked: Option<Ask>,
    /// Its operator hears it no more, and it does not know.
    pub deaf: bool,
}

#[derive(Debug, Clone)]
pub struct Host {
    pub up: bool,
    pub records: Arc<HostRecords>,
    pub lease: Option<Arc<Lease>>,
    /// The lease's time is over.
    pub expired: bool,
    pub routed: Id,
    /// Versions that run, as bits.
    pub runs: u8,
    /// Of those and the proxy, the ones that a loss of power stopped and nobody started since.
    pub stopped: u8,
    /// Effects that were asked for by sessions that are gone, or given up on, and may still come.
    pub late: Vec<Effect>,
    /// The leases that operators were granted here, whether they still have them or not.
    pub held: Vec<Option<Arc<Lease>>>,
    /// By operator.
    pub sessions: Vec<Option<Session>>,
}

/// What an operator wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Script {
    /// `jiji ship`: every host must answer; what is open is settled first.
    Ship,
    /// The same, and the new version is watched for a while before it is decided.
    Watched,
    /// `jiji abort`: what is open is settled on the hosts that answer.
    Abort,
}

/// What an operator is doing.
#[derive(Debug, Clone)]
pub enum At {
    /// It was not started.
    Idle,
    /// It takes leases, that of the first host and then those of the others at once; `next` is the one that answers next.
    Leasing { hosts: Vec<Id>, next: usize, settling: bool },
    /// It follows a course.
    Driving { course: Course<Id>, heard: BTreeMap<Id, Option<Heard>>, rest: Vec<(Arc<Begin>, Vec<Id>)>, settling: bool },
    /// It ended. `good`: with exit code 0.
    Ended { good: bool },
    /// It was killed, or its machine is gone.
    Dead,
}

#[derive(Debug, Clone)]
pub struct Operator {
    pub script: Script,
    pub at: At,
    /// The fencing number of its leases.
    pub fencing: u64,
    /// What it saw of each host.
    pub seen: Arc<BTreeMap<Id, Arc<HostRecords>>>,
    /// What it begins, on each host.
    pub begins: Arc<BTreeMap<Id, Arc<Begin>>>,
    /// Whether a host was lost, or something is left open.
    pub doubt: bool,
    /// How often it found something open.
    pub rounds: u8,
}

/// What happened to one operator's transaction, anywhere: for the invariants alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct History {
    /// The settlement with the highest number that any host recorded.
    pub highest: Option<Settlement>,
    /// Some host concluded it as committed, or did what cannot be taken back.
    pub committed: bool,
    /// Some host concluded it as reverted.
    pub reverted: bool,
}

#[derive(Debug, Clone)]
pub struct State {
    pub hosts: Vec<Host>,
    pub operators: Vec<Operator>,
    /// How many faults may still happen.
    pub faults: u8,
    pub histories: Vec<History>,
    /// What went wrong, if something did.
    pub wrong: Option<&'static str>,
}

pub fn host_name(host: Id) -> HostName {
    HostName::new(format!("h{host}")).expect("a name")
}

pub fn host_id(name: &HostName) -> Id {
    name.as_str()[1..].parse().expect("a number")
}

/// Which operator began a transaction.
pub fn began(id: &str) -> usize {
    usize::from(id.as_bytes()[0] - b'0')
}

fn note(verb: &str, version: Id) -> Action {
    Action::Note { text: format!("{verb}{version}") }
}

fn container(version: Id) -> ContainerName {
    ContainerName::new(format!("v{version}")).expect("a name")
}

/// What an action does.
pub fn effect(action: &Action) -> Effect {
    let version = |name: &ContainerName| name.as_str()[1..].parse().expect("a number");
    let text = match action {
        Action::ContainerStop { name, .. } | Action::ContainerRemove { name } => return Effect::Remove(version(name)),
        Action::Note { text } => text,
        _ => panic!("nothing else is planned"),
    };
    let version = text[1..].parse().expect("a number");
    match &text[..1] {
        "+" => Effect::Run(version),
        "=" => Effect::Watch,
        _ => Effect::Route(version),
    }
}

/// The steps that bring a host from what it runs to `version`; none where it is there.
pub fn steps(host: Id, routed: Id, runs: u8, version: Id, watched: bool) -> Vec<Step> {
    let name = host_name(host);
    let step = |phase, action: Action| Step::new(&name, phase, "", action);
    let mut steps = Vec::new();
    if routed != version {
        let mut run = step(Phase::Prepare, note("+", version));
        run.undo = Some(Action::ContainerRemove { name: container(version) });
        let mut route = step(Phase::Cutover, note(">", version));
        route.undo = Some(note(">", routed));
        route.quiet_ms = QUIET_MS;
        steps.extend([run, route]);
        if watched {
            steps.push(step(Phase::Hold, note("=", version)));
        }
    }
    let old = (0..8).filter(|old| runs & (1 << old) != 0 && *old != version);
    let stop = |old| Action::ContainerStop { name: container(old), timeout_s: 0 };
    steps.extend(old.map(|old| step(Phase::Drain, stop(old))));
    steps
}

/// What a host runs once `version` is decided, as far as a rule asks for it.
fn service(version: Id) -> (ServiceName, Shared<PlannedService>) {
    let blob = || Descriptor { media_type: String::new(), digest: Digest::of(""), size: 0 };
    let image = Image {
        repository: String::new(),
        platform: Platform::linux_amd64(),
        manifest: blob(),
        config: blob(),
        layers: Vec::new(),
    };
    let id = ImageId { manifest: Digest::of(""), config: Digest::of("") };
    let container_spec = ContainerSpec {
        name: container(version),
        image: ContainerImage::Seeded { id, repository: String::new() },
        network: NETWORK.to_owned(),
        address: None,
        env: BTreeMap::new().into(),
        labels: BTreeMap::new().into(),
        mounts: Vec::new(),
        publish: Vec::new(),
        entrypoint: None,
        command: None,
        user: None,
        restart: true,
        stop_timeout_s: 0,
    };
    let service = PlannedService {
        image: image.into(),
        container: container(version),
        address: None,
        spec: Digest::of(""),
        container_spec,
        probe: None,
        route: None,
    };
    (ServiceName::new("web").expect("a name"), service.into())
}

pub fn begin(operator: usize, fencing: u64, hosts: &[Id], host: Id, version: Id, steps: Vec<Step>) -> Begin {
    Begin {
        transaction: format!("{operator}-{fencing}"),
        fencing,
        hosts: hosts.iter().map(|host| host_name(*host)).collect(),
        host: host_name(host),
        steps,
        services: BTreeMap::from([service(version)]),
        ..blank()
    }
}

fn blank() -> Begin {
    Begin {
        version: Begin::VERSION,
        transaction: String::new(),
        scope: "shop".to_owned(),
        fencing: 0,
        who: String::new(),
        command: String::new(),
        at_s: 0,
        plan: Digest::of(""),
        hosts: Vec::new(),
        addresses: BTreeMap::new(),
        host: host_name(0),
        steps: Vec::new(),
        services: BTreeMap::new(),
    }
}

impl State {
    /// A fleet that serves version 0, and operators who have not begun.
    pub fn start(hosts: usize, scripts: &[Script], faults: u8) -> Self {
        let host = Host {
            up: true,
            records: Arc::new(HostRecords { releases: vec![release(&blank())], ..HostRecords::default() }),
            lease: None,
            expired: false,
            routed: 0,
            runs: 1,
            stopped: 0,
            late: Vec::new(),
            held: vec![None; scripts.len()],
            sessions: vec![None; scripts.len()],
        };
        let operator = |script: &Script| Operator {
            script: *script,
            at: At::Idle,
            fencing: 0,
            seen: Arc::default(),
            begins: Arc::default(),
            doubt: false,
            rounds: 0,
        };
        Self {
            hosts: vec![host; hosts],
            operators: scripts.iter().map(operator).collect(),
            faults,
            histories: vec![History::default(); scripts.len()],
            wrong: None,
        }
    }

    /// 128 bits that name this state.
    pub fn key(&self) -> u128 {
        let half = |salt: u8| {
            let mut hasher = DefaultHasher::new();
            salt.hash(&mut hasher);
            self.write(&mut hasher);
            u128::from(hasher.finish())
        };
        half(0) << 64 | half(1)
    }

    fn write(&self, hasher: &mut DefaultHasher) {
        (self.faults, &self.histories, self.wrong).hash(hasher);
        for host in &self.hosts {
            (host.up, host.expired, host.routed, host.runs, host.stopped, &host.late, &host.sessions).hash(hasher);
            for held in &host.held {
                held.as_ref().map(|lease| lease.fencing).hash(hasher);
            }
            host.lease.as_ref().map(|lease| (lease.session, lease.fencing)).hash(hasher);
            write_records(&host.records, hasher);
        }
        for operator in &self.operators {
            (operator.fencing, operator.doubt, operator.rounds).hash(hasher);
            match &operator.at {
                At::Idle => 0u8.hash(hasher),
                At::Leasing { hosts, next, settling } => (1u8, hosts, next, settling).hash(hasher),
                At::Driving { course, heard, rest, settling } => {
                    (2u8, course, heard, settling).hash(hasher);
                    for (begin, hosts) in rest {
                        (&begin.transaction, hosts).hash(hasher);
                    }
                }
                At::Ended { good } => (3u8, good).hash(hasher),
                At::Dead => 4u8.hash(hasher),
            }
            // What it saw and began matters while it is at work.
            if matches!(operator.at, At::Leasing { .. } | At::Driving { .. }) {
                for (host, records) in &*operator.seen {
                    host.hash(hasher);
                    write_records(records, hasher);
                }
            }
            for (host, begin) in &*operator.begins {
                (host, begin.fencing).hash(hasher);
                for step in &begin.steps {
                    step.id.hash(hasher);
                }
            }
        }
    }
}

fn write_records(records: &HostRecords, hasher: &mut DefaultHasher) {
    records.fencing.hash(hasher);
    for release in &records.releases {
        release.number.hash(hasher);
    }
    let Some(transaction) = &records.transaction else { return };
    (&transaction.begin.transaction, transaction.settlement, transaction.concluded).hash(hasher);
    for (step, state) in transaction.begin.steps.iter().zip(&transaction.states) {
        let state = match state {
            StepState::Pending => 0u8,
            StepState::Unknown => 1,
            StepState::Ended(Outcome::Failed { .. }) => 2,
            StepState::Ended(_) => 3,
            StepState::Undone(Outcome::Failed { .. }) => 4,
            StepState::Undone(_) => 5,
        };
        (&step.id, state).hash(hasher);
    }
}

/// The release that a transaction makes.
pub fn release(begin: &Begin) -> jiji_model::transaction::Release {
    jiji_model::transaction::Release::of(begin)
}

impl Host {
    /// Whether the session of `operator` runs here.
    pub fn lives(&self, session: i32) -> bool {
        usize::try_from(session).is_ok_and(|session| self.sessions.get(session).is_some_and(Option::is_some))
    }

    pub fn journal(&self) -> Option<&Transaction> {
        self.records.transaction.as_ref()
    }

    /// It lost its power: its engine starts nothing again by itself.
    pub fn lose_power(&mut self) {
        self.up = false;
        self.stopped = self.runs | 1 << PROXY;
        // What a proxy was about to do, it does no more.
        self.late.clear();
        self.sessions.fill(None);
        self.expired = false;
    }

    /// It comes back. Where nothing is open, the next ship plans for what does not run, which is not played here.
    pub fn boot(&mut self) {
        self.up = true;
        if self.journal().is_none_or(|last| !last.is_open()) {
            self.stopped = 0;
        }
    }

    /// Whether the proxy and this version run.
    pub fn serves(&self, version: Id) -> bool {
        self.stopped & (1 << version | 1 << PROXY) == 0
    }

    /// What must be started for how `open` was settled.
    pub fn to_start(&self, open: &Transaction) -> Vec<Id> {
        let names: Vec<(Id, String)> = (0..=PROXY).map(|id| (id, format!("v{id}"))).collect();
        let here = names.iter().filter(|(id, _)| *id == PROXY || self.runs & 1 << id != 0);
        let standing = here.map(|(id, name)| Standing {
            name,
            shared: *id == PROXY,
            stopped: self.stopped & 1 << id != 0,
            restarts: true,
        });
        let due = serving::to_start(open, &standing.collect::<Vec<_>>());
        due.into_iter().map(|name| name[1..].parse().expect("a number")).collect()
    }

    /// Does what a step does.
    pub fn take_effect(&mut self, effect: Effect) {
        match effect {
            Effect::Run(version) => {
                self.runs |= 1 << version;
                self.stopped &= !(1 << version);
            }
            Effect::Remove(version) => {
                self.runs &= !(1 << version);
                self.stopped &= !(1 << version);
            }
            Effect::Route(version) => self.routed = version,
            Effect::Watch => {}
        }
    }
}
