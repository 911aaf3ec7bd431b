//! How hosts differ from what was last decided for them: each difference with what was expected, what was found and what would mend it.
//!
//! What is expected comes from the hosts' release records, so no sources are needed. A host whose record is lost is compared with what its
//! journal says, or with what other hosts ran, as after a rollback. Mending is a plan like any other ([`mend`]): it is journaled, it
//! replaces containers the way a ship does, and it leaves alone what is as it should be. Damaged records are set aside before, by
//! [`crate::ship`]; what a proxy routes is its plugin's to judge, whose steps come in as data.

use std::collections::{BTreeMap, BTreeSet};

use jiji_model::event::bytes;
use jiji_model::image::{Image, ImageId};
use jiji_model::name::{AbsPath, ContainerName, HostName, ServiceName};
use jiji_model::observation::{
    Answer, ContainerFacts, Damage, Difference, IntegrityFacts, Observation, Part, Query, RecordFile, Want,
};
use jiji_model::plan::{Action, LABEL_ADDRESS, LABEL_SERVICE, LABEL_SPEC, NETWORK, Phase, PlannedService, Step};
use jiji_model::project::Project;
use jiji_model::route::Route;
use jiji_model::shared::Shared;
use jiji_model::transaction::{Decision, Release, Transaction, roster};

use super::assemble::Extra;
use super::desired::{Change, Desired, Trust, decided_roster};
use super::error::{PlanError, Refused};
use super::look::{Look, RECORDS, images_want, secrets_want, want, wants_of};
use super::rollback::{Ran, Target, adopt};

const INTEGRITY: &str = "core.integrity";
const COMPARE: &str = "core.compare.";

/// Where everything of jiji's lies on a host.
const ROOT: &str = "/var/lib/jiji";

/// Seconds between SIGTERM and SIGKILL for a container of which nothing is known.
const STOP_TIMEOUT_S: u32 = 10;

/// What of a host differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A run of jiji was interrupted and left a transaction open.
    Transaction,
    /// A container is gone.
    ContainerMissing,
    /// A container has another name.
    ContainerRenamed,
    /// A container does not run.
    ContainerStopped,
    /// A container runs another image.
    ContainerImage,
    /// A container has other variables.
    ContainerEnv,
    /// A container has other values of its secrets.
    ContainerSecrets,
    /// A container has other labels.
    ContainerLabels,
    /// A container has other mounts.
    ContainerMounts,
    /// A container has another entry point, user, restart policy, other arguments or ports.
    ContainerSettings,
    /// A container is in another network or at another address.
    ContainerNetwork,
    /// A container that nobody decided.
    ContainerExtra,
    /// An image that is kept for a rollback is gone.
    ImageMissing,
    /// The proxy does not run or does not answer.
    Proxy,
    /// The proxy routes a service elsewhere, or not at all, or refuses to.
    Route,
    /// The containers' network is gone or another one.
    Network,
    /// A lease that a session left, or that is none.
    Lease,
    /// The number that only grows went back.
    Fencing,
    /// The journal of the last transaction.
    Journal,
    /// A release's record.
    Release,
    /// The audit log.
    Audit,
    /// The roster of servers.
    Roster,
    /// The record of the address leased last.
    LastAddress,
    /// The host's key.
    HostKey,
    /// A program of jiji's.
    Program,
    /// The mode of jiji's directory.
    Mode,
}

impl Kind {
    /// Its name in output, as in JSON.
    pub fn name(self) -> String {
        let json = serde_json::to_value(self).expect("a kind is JSON");
        json.as_str().unwrap_or_default().to_owned()
    }

    fn of_file(file: RecordFile) -> Self {
        match file {
            RecordFile::Lease => Self::Lease,
            RecordFile::Fencing => Self::Fencing,
            RecordFile::Journal => Self::Journal,
            RecordFile::Release(_) => Self::Release,
            RecordFile::Audit => Self::Audit,
            RecordFile::Roster => Self::Roster,
            RecordFile::LastAddress => Self::LastAddress,
            RecordFile::Key => Self::HostKey,
        }
    }

    fn of_part(part: Part) -> Self {
        match part {
            Part::Existence => Self::ContainerMissing,
            Part::State => Self::ContainerStopped,
            Part::Image => Self::ContainerImage,
            Part::Env => Self::ContainerEnv,
            Part::Secrets => Self::ContainerSecrets,
            Part::Labels => Self::ContainerLabels,
            Part::Mounts => Self::ContainerMounts,
            Part::Settings => Self::ContainerSettings,
            Part::Network => Self::ContainerNetwork,
        }
    }
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// Where.
    pub host: HostName,
    /// What of.
    pub kind: Kind,
    /// The service that it concerns, where it concerns one.
    pub service: Option<ServiceName>,
    /// The thing itself: a container's name, a file.
    pub what: String,
    /// What was decided.
    pub expected: String,
    /// What is there.
    pub found: String,
    /// What `--fix` does about it, or what a person can do where it does nothing.
    pub fix: String,
    /// Whether `--fix` mends it.
    pub fixable: bool,
}

/// What hosts should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// What each host should run.
    pub target: Target,
    /// Releases that are to be kept again from a journal.
    pub lost: BTreeMap<HostName, Release>,
    /// Services that the project puts on hosts which remember nothing, and that no other host ran.
    pub forgotten: Vec<(HostName, ServiceName)>,
}

/// What the proxy plugin answered for a host whose services are as they were decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proxied {
    /// The steps that would make it so. None: it is so.
    Steps(Vec<Step>),
    /// It refuses.
    Refused {
        /// Why.
        message: String,
        /// What a person can do, where it says so.
        hint: Option<String>,
    },
}

/// What is asked of every host first.
pub fn drift_wants(scope: &str) -> Vec<Want> {
    let mut wants = wants_of(scope, BTreeSet::new());
    wants.retain(|want| want.id != RECORDS);
    wants.push(want(INTEGRITY, Query::Integrity { scope: scope.to_owned() }));
    wants
}

fn integrity<'a>(observation: &'a Observation, host: &HostName) -> Result<&'a IntegrityFacts, PlanError> {
    match observation.answer(host, INTEGRITY) {
        Some(Answer::Integrity(facts)) => Ok(facts),
        other => Err(PlanError::Unknown {
            host: host.clone(),
            what: "what jiji recorded there",
            cause: match other {
                Some(Answer::Failed(cause)) => Some(cause.clone()),
                _ => None,
            },
        }),
    }
}

/// Lets what is whole of the records stand for all of them, so that a look that found damage can be planned with.
///
/// # Errors
/// [`PlanError::Unknown`] for a host that could not tell.
pub fn believe(observation: &mut Observation) -> Result<(), PlanError> {
    let hosts: Vec<HostName> = observation.hosts.keys().cloned().collect();
    for host in hosts {
        let records = integrity(observation, &host)?.records.clone();
        let answers = observation.hosts.entry(host).or_default();
        answers.insert(RECORDS.to_owned(), Answer::Records(Box::new(records)));
    }
    Ok(())
}

/// Whether a transaction is open on some host: what runs can be judged only once it is settled.
pub fn is_open(observation: &Observation) -> bool {
    let open = |host| integrity(observation, host).is_ok_and(|facts| open(facts).is_some());
    observation.hosts.keys().any(open)
}

fn open(facts: &IntegrityFacts) -> Option<&Transaction> {
    facts.records.transaction.as_ref().filter(|transaction| transaction.is_open())
}

/// What each host should run: what its newest release says, or its journal, or other hosts where it lost both.
///
/// # Errors
/// [`PlanError::NothingShipped`], [`PlanError::Unknown`].
pub fn expected(project: &Project, observation: &Observation) -> Result<Expected, Refused> {
    let one = |error| Refused(vec![error]);
    let mut known = BTreeMap::new();
    let mut lost = BTreeMap::new();
    let mut number = 0;
    for host in observation.hosts.keys() {
        let facts = integrity(observation, host).map_err(one)?;
        let newest = facts.records.releases.first();
        let of_files = facts.damaged.iter().filter_map(|damage| match damage.file {
            RecordFile::Release(number) => Some(number),
            _ => None,
        });
        let least = of_files.chain(taken_part(host, observation)).max().unwrap_or(0);
        number = number.max(least).max(newest.map_or(0, |release| release.number));
        match (&facts.decided, newest) {
            (Some(decided), _) if decided.number >= least => {
                known.insert(host.clone(), Ran::from(&**decided));
                lost.insert(host.clone(), (**decided).clone());
            }
            // An older one is not what was decided last.
            (_, Some(newest)) if newest.number >= least => {
                known.insert(host.clone(), Ran::from(newest));
            }
            _ => {}
        }
    }
    if known.is_empty() {
        return Err(one(PlanError::NothingShipped));
    }
    let (target, errors) = adopt(project, number, known, observation);
    let forgotten = errors.into_iter().filter_map(|error| match error {
        PlanError::Forgotten { host, service, .. } => Some((host, service)),
        _ => None,
    });
    Ok(Expected { target, lost, forgotten: forgotten.collect() })
}

/// The numbers of committed transactions of which other hosts say that `host` took part.
fn taken_part(host: &HostName, observation: &Observation) -> impl Iterator<Item = u64> {
    let others = observation.hosts.keys().filter(move |other| *other != host);
    others.filter_map(move |other| {
        let transaction = integrity(observation, other).ok()?.records.transaction.as_ref()?;
        let committed = transaction.settlement.is_some_and(|settlement| settlement.decision == Decision::Commit);
        let begin = &transaction.begin;
        (committed && transaction.concluded && begin.hosts.contains(host)).then_some(begin.fencing)
    })
}

/// What is asked of `host` once it is known what it should be.
pub fn compare_wants(
    expected: &Expected,
    seeds: &super::Seeds,
    observation: &Observation,
    host: &HostName,
) -> Vec<Want> {
    let none = Ran::default();
    let ran = expected.target.hosts.get(host).unwrap_or(&none);
    let compare = ran.services.iter().map(|(name, service)| {
        let query = Query::Compare { service: service.clone(), secrets: ran.secrets.get(name).cloned() };
        want(format!("{COMPARE}{name}"), query)
    });
    let mut wants: Vec<Want> = compare.collect();
    let kept = kept_images(observation, host).into_values().map(|(image, _)| image.id());
    let running = ran.services.values().map(|service| service.image.id());
    let images: BTreeSet<ImageId> = kept.chain(running).chain(seeds.values().flatten().map(Image::id)).collect();
    if !images.is_empty() {
        wants.push(images_want(images));
    }
    wants
}

/// The images of the releases that a host keeps, with the newest release that ran each.
fn kept_images(observation: &Observation, host: &HostName) -> BTreeMap<ImageId, (Shared<Image>, u64)> {
    let mut kept = BTreeMap::new();
    let Ok(facts) = integrity(observation, host) else { return kept };
    for release in &facts.records.releases {
        for service in release.services.values() {
            kept.entry(service.image.id()).or_insert_with(|| (service.image.clone(), release.number));
        }
    }
    kept
}

/// How many releases' images hosts keep now, at most: mending makes a release of what runs already, which shall push none out.
pub fn kept(observation: &Observation) -> u32 {
    let kept = |host| integrity(observation, host).map_or(0, |facts| facts.records.releases.len());
    let most = observation.hosts.keys().map(kept).max().unwrap_or(0);
    u32::try_from(most).unwrap_or(u32::MAX)
}

/// The fleet as it should be, with every service unchanged: what plugins are asked about.
///
/// # Errors
/// Every host that was not looked at well enough.
pub fn recorded(scope: &str, expected: &Expected, observation: &Observation) -> Result<Desired, Refused> {
    let trust = |_: &HostName, _: &ServiceName| Trust::Blind;
    let mut desired = super::rollback::rollback(scope, &expected.target, 1, &trust, observation)?;
    for (host, wanted) in &mut desired.hosts {
        for (name, service) in &mut wanted.services {
            if let Some(running) = expected.target.hosts.get(host).and_then(|ran| ran.services.get(name)) {
                service.change = Change::Unchanged { running: running.clone(), stale: Vec::new() };
            }
        }
        wanted.services.retain(|_, service| matches!(service.change, Change::Unchanged { .. }));
    }
    Ok(desired)
}

struct Finder<'a> {
    host: &'a HostName,
    findings: &'a mut Vec<Finding>,
}

impl Finder<'_> {
    fn add(
        &mut self,
        kind: Kind,
        what: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> &mut Finding {
        self.findings.push(Finding {
            host: self.host.clone(),
            kind,
            service: None,
            what: what.into(),
            expected: expected.into(),
            found: found.into(),
            fix: String::new(),
            fixable: true,
        });
        self.findings.last_mut().expect("one was just pushed")
    }
}

/// Differences of records and files, which are told whatever runs.
///
/// # Errors
/// [`PlanError::Unknown`] for a host that could not tell.
pub fn record_findings(observation: &Observation) -> Result<Vec<Finding>, PlanError> {
    let mut findings = Vec::new();
    for host in observation.hosts.keys() {
        let facts = integrity(observation, host)?;
        let mut finder = Finder { host, findings: &mut findings };
        if let Some(transaction) = open(facts) {
            let begin = &transaction.begin;
            let at_work = facts.records.lease.as_ref().is_some_and(|lease| lease.live);
            let how = if at_work { "is at work" } else { "was interrupted" };
            let found = format!("`{}` of {} {how}", begin.command, begin.who);
            let finding = finder.add(Kind::Transaction, &begin.transaction, "no open transaction", found);
            finding.fixable = !at_work;
            finding.fix = match at_work {
                true => "cannot: it ends by itself".to_owned(),
                false => "settles it, as the next ship would; what runs is compared after that".to_owned(),
            };
        }
        for Damage { file, reason } in &facts.damaged {
            let fix = match file {
                RecordFile::Release(number)
                    if facts.decided.as_ref().is_some_and(|decided| decided.number == *number) =>
                {
                    "sets it aside and keeps the release again as the journal tells it".to_owned()
                }
                RecordFile::Release(_) => "sets it aside: what it said cannot be told any more".to_owned(),
                RecordFile::Audit => "sets it aside and begins a new log".to_owned(),
                RecordFile::Key => "draws a new key and replaces containers that have secrets".to_owned(),
                _ => "sets it aside and writes it anew".to_owned(),
            };
            finder.add(Kind::of_file(*file), file.to_string(), "as jiji wrote it", reason).fix = fix;
        }
        // That of an interrupted run is its transaction's.
        if let Some(lease) = facts.records.lease.as_ref().filter(|lease| !lease.live && open(facts).is_none()) {
            let found = format!("left by {}, whose session is gone", lease.lease.who);
            finder.add(Kind::Lease, "lease.json", "no lease while nobody is at work", found).fix =
                "takes it over and gives it back".to_owned();
        }
        for program in &facts.programs {
            let found = match program.sha256.hex() == program.name {
                true => format!("mode {:o}", program.mode),
                false => format!("{}, mode {:o}", program.sha256.short(), program.mode),
            };
            let short: String = program.name.chars().take(12).collect();
            finder.add(Kind::Program, format!("bin/{}", program.name), format!("{short}, mode 700"), found).fix =
                "removes it; it is sent again at the next contact".to_owned();
        }
        if let Some(mode) = facts.mode.filter(|mode| *mode != 0o700) {
            finder.add(Kind::Mode, ROOT, "mode 700", format!("mode {mode:o}")).fix = "sets it".to_owned();
        }
    }
    Ok(findings)
}

/// All differences of a fleet on which no transaction is open.
///
/// # Errors
/// Every host that was not looked at well enough.
pub fn findings(
    scope: &str,
    expected: &Expected,
    observation: &Observation,
    proxied: &BTreeMap<HostName, Proxied>,
) -> Result<Vec<Finding>, Refused> {
    let mut findings = record_findings(observation).map_err(|error| Refused(vec![error]))?;
    let roster = decided_roster(observation).map_err(Refused)?;
    for (host, ran) in &expected.target.hosts {
        let look = Look::of(observation, host).map_err(|error| Refused(vec![error]))?;
        let facts = integrity(observation, host).map_err(|error| Refused(vec![error]))?;
        let mut finder = Finder { host, findings: &mut findings };
        if let Some(services) = expected.target.adopted.get(host).filter(|services| !services.is_empty()) {
            let others: BTreeSet<_> = services.values().map(|other| format!("`{other}`")).collect();
            let others = others.into_iter().collect::<Vec<_>>().join(", ");
            let told = format!("release {}", expected.target.number);
            finder.add(Kind::Release, "releases", told, "no record of it").fix =
                format!("makes the host what {others} ran");
        }
        for (_, service) in expected.forgotten.iter().filter(|(of, _)| of == host) {
            let finding =
                finder.add(Kind::Release, "releases", format!("`{service}`"), "no host remembers what it ran");
            finding.service = Some(service.clone());
            finding.fix = "cannot: `jiji deploy` or `jiji ship` brings the project's version there".to_owned();
            finding.fixable = false;
        }
        let number = roster.servers.get(host).map(|entry| entry.number);
        match (look.network, number) {
            (None, Some(number)) => {
                finder.add(Kind::Network, NETWORK, roster::subnet(number), "no network of that name").fix =
                    "makes it".to_owned();
            }
            (Some(network), Some(number)) if network.subnet.as_deref() != Some(&roster::subnet(number)) => {
                let found = network.subnet.clone().unwrap_or_else(|| "another kind of network".to_owned());
                let finding = finder.add(Kind::Network, NETWORK, roster::subnet(number), found);
                finding.fix = format!("cannot: remove network `{NETWORK}` there when nothing is in it, and ship");
                finding.fixable = false;
            }
            _ => {}
        }
        let damaged = facts.damaged.iter().any(|damage| damage.file == RecordFile::Roster);
        if !damaged && look.records.roster.as_ref().is_none_or(|known| *known != roster) {
            let found = match &look.records.roster {
                None => "none",
                Some(_) => "other numbers",
            };
            finder.add(Kind::Roster, roster::PATH, "the numbers that all hosts agree on", found).fix =
                "writes it anew".to_owned();
        }
        containers(&mut finder, ran, &look, observation).map_err(|error| Refused(vec![error]))?;
        for (image, release) in kept_images(observation, host).into_values().filter(|(image, _)| !look.has(image)) {
            let what = format!("{}@{}", image.repository, image.manifest.digest.short());
            finder.add(Kind::ImageMissing, what, format!("kept for release {release}"), "not in the engine").fix =
                format!("takes it again, at most {}", bytes(image.size()));
        }
        if let Some(proxied) = proxied.get(host) {
            proxy(&mut finder, scope, ran, proxied, &look);
        }
    }
    findings.sort_by(|one, other| (&one.host, one.kind, &one.what).cmp(&(&other.host, other.kind, &other.what)));
    Ok(findings)
}

fn containers(finder: &mut Finder<'_>, ran: &Ran, look: &Look<'_>, observation: &Observation) -> Result<(), PlanError> {
    // With another key every digest of secrets is another one, which is told of the key.
    let damaged = |facts: &IntegrityFacts| facts.damaged.iter().any(|damage| damage.file == RecordFile::Key);
    let keyed = !integrity(observation, finder.host).is_ok_and(damaged);
    let mut explained: BTreeSet<&str> = BTreeSet::new();
    for (name, service) in &ran.services {
        explained.insert(service.container.as_str());
        let differences = match observation.answer(finder.host, &format!("{COMPARE}{name}")) {
            Some(Answer::Differences(differences)) => differences.as_slice(),
            // A container that was not looked at is not one that differs in nothing.
            other => {
                return Err(PlanError::Unknown {
                    host: finder.host.clone(),
                    what: "how its containers were made",
                    cause: match other {
                        Some(Answer::Failed(cause)) => Some(cause.clone()),
                        _ => None,
                    },
                });
            }
        };
        let differences = differences.iter().filter(|difference| keyed || difference.part != Part::Secrets);
        for Difference { part, expected, found } in differences {
            let renamed = || look.ours.iter().find(|facts| is_renamed(facts, name, service));
            let finding = match (part, renamed()) {
                (Part::Existence, Some(other)) => {
                    explained.insert(&other.name);
                    finder.add(
                        Kind::ContainerRenamed,
                        service.container.as_str(),
                        expected,
                        format!("`{}`", other.name),
                    )
                }
                _ => finder.add(Kind::of_part(*part), service.container.as_str(), expected, found),
            };
            finding.service = Some(name.clone());
            finding.fix =
                "replaces it: a new container is started, probed and routed before the old one goes".to_owned();
        }
    }
    for facts in look.ours.iter().filter(|facts| !explained.contains(facts.name.as_str())) {
        let service = facts.labels.get(LABEL_SERVICE).and_then(|name| ServiceName::new(name.clone()).ok());
        let finding = finder.add(Kind::ContainerExtra, &facts.name, "no such container", &facts.state);
        finding.service = service;
        finding.fix = "stops and removes it".to_owned();
    }
    Ok(())
}

/// Whether a container is what was decided for a service, under another name.
fn is_renamed(facts: &ContainerFacts, name: &ServiceName, service: &PlannedService) -> bool {
    let label = |label: &str| facts.labels.get(label).map(String::as_str);
    let address = service.address.map(|address| address.to_string());
    facts.name != service.container.as_str()
        && label(LABEL_SERVICE) == Some(name.as_str())
        && label(LABEL_SPEC) == Some(service.spec.to_string().as_str())
        && label(LABEL_ADDRESS) == address.as_deref()
}

fn proxy(finder: &mut Finder<'_>, scope: &str, ran: &Ran, proxied: &Proxied, look: &Look<'_>) {
    let steps = match proxied {
        Proxied::Steps(steps) => steps,
        Proxied::Refused { message, hint } => {
            let finding = finder.add(Kind::Route, "proxy", "the routes of the release", message);
            finding.fix = format!("cannot: {}", hint.as_deref().unwrap_or("the proxy plugin refuses"));
            finding.fixable = false;
            return;
        }
    };
    let runs = steps.iter().filter(|step| step.phase == Phase::Boot).find_map(|step| match &step.action {
        Action::ContainerRun(spec) => Some(&spec.name),
        _ => None,
    });
    if let Some(name) = runs {
        let found = match look.shared.iter().find(|facts| facts.name == name.as_str()) {
            None => "no such container".to_owned(),
            Some(facts) if facts.running() => "running, and it does not answer".to_owned(),
            Some(facts) => facts.state.clone(),
        };
        finder.add(Kind::Proxy, name.as_str(), "running and answering", found).fix =
            "starts it and gives it its routes again".to_owned();
        // What it routes follows from that.
        return;
    }
    for step in steps.iter().filter(|step| step.phase != Phase::Boot) {
        let service = step.service.clone();
        let route = service.as_ref().and_then(|name| ran.services.get(name)?.route.as_ref());
        let route = route.and_then(|route| route.read::<Route>().ok());
        let what = service.as_ref().map_or_else(|| "proxy".to_owned(), |name| Route::key(scope, name));
        let found = step.labels.get("found").cloned().unwrap_or_else(|| "another route, or none".to_owned());
        let finding = finder.add(Kind::Route, what, route.as_ref().map_or_else(String::new, shown), found);
        finding.service = service;
        finding.fix = format!("does: {}", step.title);
    }
}

/// A route for people: `hello.test/ to 10.210.0.140:8080`.
fn shown(route: &Route) -> String {
    let hosts = if route.options.hosts.is_empty() { "*".to_owned() } else { route.options.hosts.join(", ") };
    let targets: Vec<_> =
        route.targets.iter().map(|instance| format!("{}:{}", instance.address, instance.port)).collect();
    format!("{hosts}{} to {}", route.options.path_prefix, targets.join(", "))
}

/// The services whose containers are to be replaced, by host.
pub fn distrusted(findings: &[Finding], expected: &Expected) -> BTreeSet<(HostName, ServiceName)> {
    let mut distrusted = BTreeSet::new();
    for finding in findings.iter().filter(|finding| finding.fixable) {
        match (finding.kind, &finding.service) {
            (Kind::ContainerExtra | Kind::Route, _) => {}
            // Their digests were made with a key that is gone.
            (Kind::HostKey, _) => {
                let services = expected.target.hosts.get(&finding.host).into_iter().flat_map(|ran| &ran.services);
                let with_secrets = services.filter(|(_, service)| !service.container_spec.secrets().is_empty());
                distrusted.extend(with_secrets.map(|(name, _)| (finding.host.clone(), name.clone())));
            }
            (_, Some(service)) => {
                distrusted.insert((finding.host.clone(), service.clone()));
            }
            _ => {}
        }
    }
    for (host, services) in &expected.target.adopted {
        distrusted.extend(services.keys().map(|service| (host.clone(), service.clone())));
    }
    distrusted
}

/// What is asked of `host` before [`mend`]: the digests of the secrets that were sent for containers that are replaced.
pub fn mend_wants(expected: &Expected, replaced: &BTreeSet<(HostName, ServiceName)>, host: &HostName) -> Vec<Want> {
    let services = expected.target.hosts.get(host).into_iter().flat_map(|ran| &ran.services);
    services
        .filter(|(name, _)| replaced.contains(&(host.clone(), (*name).clone())))
        .map(|(name, service)| (name, service.container_spec.secrets()))
        .filter(|(_, secrets)| !secrets.is_empty())
        .map(|(name, secrets)| secrets_want(name, secrets))
        .collect()
}

/// What a plan does beside what a rollback to the present release would: images, files and containers that no service explains, and a word
/// on hosts where the records alone are written anew.
pub fn mend(findings: &[Finding], observation: &Observation, desired: &Desired) -> Extra {
    let mut extra = Extra::default();
    for finding in findings.iter().filter(|finding| finding.fixable) {
        let host = &finding.host;
        let steps = extra.steps.entry(host.clone()).or_default();
        let mut add = |phase, title: String, action| steps.push(Step::new(host, phase, title, action));
        match finding.kind {
            Kind::ImageMissing => {
                let kept = kept_images(observation, host).into_values().map(|(image, _)| Image::clone(&image));
                let named =
                    |image: &Image| format!("{}@{}", image.repository, image.manifest.digest.short()) == finding.what;
                extra.images.entry(host.clone()).or_default().extend(kept.filter(named));
            }
            Kind::Program => {
                if let Ok(path) = AbsPath::new(format!("{ROOT}/{}", finding.what)) {
                    add(Phase::Finalize, format!("remove {path}"), Action::Remove { path });
                }
            }
            Kind::Mode => {
                let path = AbsPath::new(ROOT).expect("it is an absolute path");
                add(Phase::Boot, format!("set the mode of {path}"), Action::Directory { path, mode: 0o700 });
            }
            Kind::ContainerExtra if !is_planned(finding, desired) => {
                if let Ok(name) = ContainerName::new(finding.what.clone()) {
                    let stop = Action::ContainerStop { name: name.clone(), timeout_s: STOP_TIMEOUT_S };
                    add(Phase::Drain, format!("stop {name}"), stop);
                    add(Phase::Finalize, format!("remove {name}"), Action::ContainerRemove { name });
                }
            }
            Kind::Lease
            | Kind::Fencing
            | Kind::Journal
            | Kind::Release
            | Kind::Audit
            | Kind::LastAddress
            | Kind::HostKey => {
                let text = "write the records anew".to_owned();
                if steps.iter().all(|step| step.title != text) {
                    steps.push(Step::new(host, Phase::Finalize, text.clone(), Action::Note { text }));
                }
            }
            // Mended by what makes the services so.
            _ => {}
        }
    }
    extra
}

/// Whether the plan of the services takes an extra container away already.
fn is_planned(finding: &Finding, desired: &Desired) -> bool {
    let Some(host) = desired.hosts.get(&finding.host) else { return false };
    host.services.values().any(|service| service.change.old().iter().any(|old| old.name.as_str() == finding.what))
}

/// What is to be repaired on each host before a lease can be taken: damaged records, and a release that its journal tells.
pub fn repairs(
    expected: Option<&Expected>,
    observation: &Observation,
) -> BTreeMap<HostName, (Vec<RecordFile>, Option<Release>)> {
    let of = |host: &HostName| {
        let facts = integrity(observation, host).ok()?;
        let files: Vec<RecordFile> = facts.damaged.iter().map(|damage| damage.file).collect();
        let release = expected.and_then(|expected| expected.lost.get(host).cloned());
        (!files.is_empty() || release.is_some()).then(|| (host.clone(), (files, release)))
    };
    observation.hosts.keys().filter_map(of).collect()
}
