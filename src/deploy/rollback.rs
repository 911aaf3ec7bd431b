//! Going back to an earlier release, from the hosts' own records: no sources, no registry.
//!
//! The order of calls: [`history`] reads what hosts remember in short, [`choose`] picks a release, [`release_wants`] asks for it whole,
//! [`target`] puts together what each host shall run. A host that remembers nothing of it (it was replaced by an empty one, or came
//! later) gets what other hosts ran of the services that the project puts there. [`rollback`] then compares that with what runs, as
//! [`super::desired`] does for a ship, so that going back takes the same path as going forward.

use std::collections::{BTreeMap, BTreeSet};

use jiji_model::name::{HostName, SecretName, ServiceName};
use jiji_model::observation::{Answer, Observation, Query, Want};
use jiji_model::plan::PlannedService;
use jiji_model::project::Project;
use jiji_model::route::Route;
use jiji_model::shared::Shared;
use jiji_model::transaction::{Release, ReleaseLine};

use super::desired::{Desired, Spec, Trust, Wish, compare};
use super::error::{PlanError, Refused};
use super::look::{architecture, images_want, mac, secrets_want, want};

const HISTORY: &str = "core.history";
const RELEASE: &str = "core.release";

/// Fewest digits that name a digest or a transaction.
const SHORTEST: usize = 4;

/// What hosts remember, newest first.
pub type Histories = BTreeMap<HostName, Vec<ReleaseLine>>;

/// Asks for everything that a host remembers.
pub fn history_want(scope: &str) -> Want {
    want(HISTORY, Query::History { scope: scope.to_owned() })
}

/// What hosts remember, as they answered.
///
/// # Errors
/// [`PlanError::Unknown`] for a host that could not tell.
pub fn history(observation: &Observation) -> Result<Histories, PlanError> {
    let hosts = observation.hosts.iter();
    hosts
        .map(|(host, answers)| match answers.get(HISTORY) {
            Some(Answer::History(lines)) => Ok((host.clone(), lines.clone())),
            other => Err(PlanError::Unknown {
                host: host.clone(),
                what: "which releases it had",
                cause: match other {
                    Some(Answer::Failed(cause)) => Some(cause.clone()),
                    _ => None,
                },
            }),
        })
        .collect()
}

/// A release that was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Its number.
    pub number: u64,
    /// The release in short, as the first host that has it tells it.
    pub line: ReleaseLine,
    /// The number of each host's newest release up to it: not every release changes every host. Hosts that remember none are not in it.
    pub own: BTreeMap<HostName, u64>,
}

/// What each host ran when release `number` was the fleet's newest.
fn at(histories: &Histories, number: u64) -> BTreeMap<&HostName, &ReleaseLine> {
    let hosts = histories.iter();
    hosts.filter_map(|(host, lines)| Some((host, lines.iter().find(|line| line.number <= number)?))).collect()
}

/// Whether two states of a fleet run the same, as far as hosts remember both.
fn same(one: &BTreeMap<&HostName, &ReleaseLine>, other: &BTreeMap<&HostName, &ReleaseLine>) -> bool {
    let content = |line: &ReleaseLine| -> BTreeMap<_, _> {
        line.services.iter().map(|(name, service)| (name.clone(), (service.image, service.spec))).collect()
    };
    one.iter().all(|(host, line)| other.get(host).is_none_or(|other| content(line) == content(other)))
}

/// Chooses a release: the one that `wanted` names, by its number or by the beginning of an image's digest, a plan's or a transaction's id;
/// without a name the newest before the current one that every host remembers and that ran something else. Hosts that remember nothing
/// at all have no say.
///
/// # Errors
/// [`PlanError::UnknownRelease`], [`PlanError::Ambiguous`], [`PlanError::NoRelease`].
pub fn choose(histories: &Histories, wanted: Option<&str>) -> Result<Choice, PlanError> {
    let known: BTreeSet<u64> = histories.values().flatten().map(|line| line.number).collect();
    let current = *known.last().ok_or(PlanError::NoRelease)?;
    let number = match wanted {
        Some(wanted) => named(histories, &known, wanted)?,
        None => {
            let now = at(histories, current);
            let everywhere = |number: u64| {
                let then = at(histories, number);
                let missing = histories.iter().any(|(host, lines)| !lines.is_empty() && !then.contains_key(host));
                (!missing).then_some(then)
            };
            let earlier = known.iter().rev().copied().filter(|number| *number < current);
            let mut good = earlier.filter(|number| everywhere(*number).is_some_and(|then| !same(&then, &now)));
            good.next().ok_or(PlanError::NoRelease)?
        }
    };
    Ok(chosen(histories, number).expect("a known number was chosen"))
}

/// The fleet's newest release. None where no host remembers any.
pub fn current(histories: &Histories) -> Option<Choice> {
    let number = histories.values().flatten().map(|line| line.number).max()?;
    chosen(histories, number)
}

fn chosen(histories: &Histories, number: u64) -> Option<Choice> {
    let line = histories.values().flatten().find(|line| line.number == number)?.clone();
    let own = at(histories, number).into_iter().map(|(host, line)| (host.clone(), line.number)).collect();
    Some(Choice { number, line, own })
}

/// The number of the release that a text names.
fn named(histories: &Histories, known: &BTreeSet<u64>, wanted: &str) -> Result<u64, PlanError> {
    let unknown =
        || PlanError::UnknownRelease { wanted: wanted.to_owned(), known: known.iter().rev().copied().collect() };
    if let Some(number) = wanted.parse::<u64>().ok().filter(|number| known.contains(number)) {
        return Ok(number);
    }
    let beginning = wanted.strip_prefix("sha256:").unwrap_or(wanted).to_ascii_lowercase();
    if beginning.len() < SHORTEST || !beginning.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-') {
        return Err(unknown());
    }
    // Of each thing that is meant the newest release that has it.
    let mut meant: BTreeMap<String, u64> = BTreeMap::new();
    for line in histories.values().flatten() {
        let images = line.services.values().flat_map(|service| [service.image.manifest, service.image.config]);
        let digests = images.chain([line.plan]).map(|digest| digest.hex());
        for name in digests.chain([line.transaction.clone()]).filter(|name| name.starts_with(&beginning)) {
            let newest = meant.entry(name).or_default();
            *newest = line.number.max(*newest);
        }
    }
    let numbers: BTreeSet<u64> = meant.values().copied().collect();
    match (numbers.len(), numbers.last()) {
        (1, Some(number)) => Ok(*number),
        (0, _) => Err(unknown()),
        _ => Err(PlanError::Ambiguous { wanted: wanted.to_owned(), numbers: numbers.into_iter().rev().collect() }),
    }
}

/// What to ask of `host` to have its part of a release whole.
pub fn release_wants(scope: &str, choice: &Choice, host: &HostName) -> Vec<Want> {
    let own = choice.own.get(host);
    own.map(|at| want(RELEASE, Query::Release { scope: scope.to_owned(), at: *at })).into_iter().collect()
}

/// What a host ran.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ran {
    /// Its services.
    pub services: BTreeMap<ServiceName, Shared<PlannedService>>,
    /// The keyed digests of their secrets under the host's own key, as far as it recorded them.
    pub secrets: BTreeMap<ServiceName, String>,
}

impl From<&Release> for Ran {
    fn from(release: &Release) -> Self {
        Self { services: release.services.clone(), secrets: release.secrets.clone() }
    }
}

/// What a fleet ran at an earlier time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The release's number.
    pub number: u64,
    /// What each host ran then.
    pub hosts: BTreeMap<HostName, Ran>,
    /// Hosts that do not remember it and get what others ran, with those others by service.
    pub adopted: BTreeMap<HostName, BTreeMap<ServiceName, HostName>>,
}

impl Target {
    /// The secrets that `host` needs to run it, in order.
    pub fn secrets(&self, host: &HostName) -> BTreeSet<SecretName> {
        let services = self.hosts.get(host).into_iter().flat_map(|ran| ran.services.values());
        services.flat_map(|service| secrets(service)).collect()
    }
}

/// The secrets of a service's environment, and those of its certificate.
pub fn secrets(service: &PlannedService) -> Vec<SecretName> {
    service.container_spec.secrets().into_iter().chain(certificate(service)).collect()
}

/// The secrets that hold the certificate of a service's route, where it has one.
pub fn certificate(service: &PlannedService) -> Vec<SecretName> {
    let route = service.route.as_ref().and_then(|route| route.read::<Route>().ok());
    let certificate = route.and_then(|route| route.options.certificate);
    certificate.into_iter().flat_map(|certificate| [certificate.chain, certificate.key]).collect()
}

/// What each host shall run to be at a release: what it ran itself, or what other hosts ran of the services that the project puts there.
///
/// # Errors
/// [`PlanError::Unknown`] for a host that did not answer [`release_wants`], [`PlanError::Forgotten`] for a service that no host
/// remembers.
pub fn target(project: &Project, choice: &Choice, observation: &Observation) -> Result<Target, Refused> {
    let mut errors = Vec::new();
    let mut known = BTreeMap::new();
    for host in choice.own.keys() {
        match observation.answer(host, RELEASE) {
            Some(Answer::Release(release)) => {
                known.insert(host.clone(), Ran::from(&**release));
            }
            other => errors.push(PlanError::Unknown {
                host: host.clone(),
                what: "what its release was",
                cause: match other {
                    Some(Answer::Failed(cause)) => Some(cause.clone()),
                    _ => None,
                },
            }),
        }
    }
    if !errors.is_empty() {
        return Err(Refused(errors));
    }
    let (target, errors) = adopt(project, choice.number, known, observation);
    if errors.is_empty() { Ok(target) } else { Err(Refused(errors)) }
}

/// Completes what hosts know of themselves by what others know, for all hosts that were looked at. Also gives a
/// [`PlanError::Forgotten`] for each service that no host remembers; the target is without it.
pub(super) fn adopt(
    project: &Project,
    number: u64,
    known: BTreeMap<HostName, Ran>,
    observation: &Observation,
) -> (Target, Vec<PlanError>) {
    let mut target = Target { number, hosts: known.clone(), adopted: BTreeMap::new() };
    let mut errors = Vec::new();
    for host in observation.hosts.keys().filter(|host| !known.contains_key(*host)) {
        let here = architecture(observation, host);
        let mut ran = Ran::default();
        let adopted = target.adopted.entry(host.clone()).or_default();
        for (name, _) in project.services_on(host) {
            let others = || known.iter().filter_map(|(other, ran)| Some((other, ran.services.get(name)?)));
            let fits = |service: &PlannedService| Some(service.image.platform.architecture.as_str()) == here;
            match others().find(|(_, service)| fits(service)) {
                Some((other, service)) => {
                    // Its digest of secrets is made with the other host's key and says nothing here.
                    ran.services.insert(name.clone(), service.clone());
                    adopted.insert(name.clone(), other.clone());
                }
                None => errors.push(PlanError::Forgotten {
                    host: host.clone(),
                    service: name.clone(),
                    number,
                    elsewhere: others()
                        .next()
                        .map(|(other, service)| (other.clone(), service.image.platform.architecture.clone())),
                }),
            }
        }
        target.hosts.insert(host.clone(), ran);
    }
    (target, errors)
}

/// What to ask of `host` beside the core's wants before [`rollback`]. Secrets must have been sent before.
pub fn rollback_wants(target: &Target, host: &HostName) -> Vec<Want> {
    let Some(ran) = target.hosts.get(host) else {
        return Vec::new();
    };
    let mut wants = vec![images_want(ran.services.values().map(|service| service.image.id()).collect())];
    let services = ran.services.iter();
    wants.extend(
        services
            .map(|(name, service)| (name, service.container_spec.secrets()))
            .filter(|(_, secrets)| !secrets.is_empty())
            .map(|(name, secrets)| secrets_want(name, secrets)),
    );
    wants
}

/// Whether the secrets that were sent now are those that a release ran with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Sameness {
    /// They are.
    Same,
    /// They are not.
    Differ,
    /// The host did not record what they were, or does not remember the release.
    Unknown,
}

/// For each host and service with secrets: which they are, and whether they are those that the release ran with.
pub fn secrets_of(
    target: &Target,
    observation: &Observation,
) -> Vec<(HostName, ServiceName, Vec<SecretName>, Sameness)> {
    let mut all = Vec::new();
    for (host, ran) in &target.hosts {
        for (name, service) in &ran.services {
            let secrets = service.container_spec.secrets();
            if secrets.is_empty() {
                continue;
            }
            let sameness = match (mac(observation, host, name), ran.secrets.get(name)) {
                (Some(now), Some(then)) if now == then => Sameness::Same,
                (Some(_), Some(_)) => Sameness::Differ,
                _ => Sameness::Unknown,
            };
            all.push((host.clone(), name.clone(), secrets, sameness));
        }
    }
    all
}

/// Compares an earlier release with what runs. Probes and routes of the candidates are those of the earlier release; the proxy plugin
/// is asked again with its routes, because addresses are new. `trust` says how what runs is judged.
///
/// # Errors
/// Every reason why there is no plan.
pub fn rollback(
    scope: &str,
    target: &Target,
    retain: u32,
    trust: &dyn Fn(&HostName, &ServiceName) -> Trust,
    observation: &Observation,
) -> Result<Desired, Refused> {
    let hosts = target.hosts.iter();
    let wishes = hosts
        .map(|(host, ran)| {
            let services = ran.services.iter();
            let services = services
                .map(|(name, service)| {
                    let wish = Wish {
                        image: service.image.clone(),
                        spec: Spec::of(service.container_spec.clone()),
                        retain: retain.max(1),
                        earlier: Some(service.clone()),
                        trust: trust(host, name),
                    };
                    (name.clone(), Shared::new(wish))
                })
                .collect();
            (host.clone(), services)
        })
        .collect();
    compare(scope, wishes, observation, Vec::new())
}
