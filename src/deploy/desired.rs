//! What each host should run, compared with what it runs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use jiji_model::digest::Digest;
use jiji_model::image::{Image, ImageId};
use jiji_model::name::{ContainerName, HostName, ServiceName};
use jiji_model::observation::{ContainerFacts, EngineFacts, Observation};
use jiji_model::plan::{
    ContainerImage, ContainerSpec, LABEL_SCOPE, LABEL_SECRETS, LABEL_SERVICE, LABEL_SPEC, NETWORK, PlannedService, Word,
};
use jiji_model::project::{Project, Rollout, Service};
use jiji_model::shared::Shared;
use jiji_model::transaction::{Roster, roster};

use super::Images;
use super::error::{PlanError, Refused};
use super::look::Look;
use crate::side_by_side::on_all_processors;

/// What a fleet should become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// The project's scope.
    pub scope: String,
    /// The servers' numbers, as every host should have them stored.
    pub roster: Shared<Roster>,
    /// Each host.
    pub hosts: BTreeMap<HostName, HostDesired>,
    /// How the change goes over them.
    pub rollout: Rollout,
}

/// What a host should become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostDesired {
    /// Its number in the roster.
    pub number: u16,
    /// Its engine.
    pub engine: EngineFacts,
    /// Its architecture in Go's words.
    pub architecture: String,
    /// Each service that runs there now or should.
    pub services: BTreeMap<ServiceName, ServiceDesired>,
}

/// What a service should become on a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceDesired {
    /// What changes.
    pub change: Change,
    /// How many releases stay, this one counted.
    pub retain: u32,
}

/// What changes for a service on a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It runs as it should.
    Unchanged {
        /// What runs, as recorded.
        running: Shared<PlannedService>,
        /// Other containers of the service, which should be gone.
        stale: Vec<Old>,
    },
    /// A new container takes over.
    Replace {
        /// The new one. Its probe and route are put in by [`super::assemble`].
        candidate: Shared<PlannedService>,
        /// What was decided last, if there was something.
        previous: Option<Shared<PlannedService>>,
        /// Containers that it takes over from.
        old: Vec<Old>,
        /// Why.
        why: Vec<Reason>,
    },
    /// It should not run here any more.
    Remove {
        /// What was decided last, if there was something.
        previous: Option<Shared<PlannedService>>,
        /// Its containers.
        old: Vec<Old>,
    },
}

impl Change {
    /// What serves once the change is made.
    pub fn serving(&self) -> Option<&Shared<PlannedService>> {
        match self {
            Self::Unchanged { running, .. } => Some(running),
            Self::Replace { candidate, .. } => Some(candidate),
            Self::Remove { .. } => None,
        }
    }

    /// What serves before it.
    pub fn previous(&self) -> Option<&Shared<PlannedService>> {
        match self {
            Self::Unchanged { running, .. } => Some(running),
            Self::Replace { previous, .. } | Self::Remove { previous, .. } => previous.as_ref(),
        }
    }

    /// Containers that go.
    pub fn old(&self) -> &[Old] {
        match self {
            Self::Unchanged { stale: old, .. } | Self::Replace { old, .. } | Self::Remove { old, .. } => old,
        }
    }
}

/// A container that goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Old {
    /// Its name.
    pub name: ContainerName,
    /// Its address in the network `jiji`.
    pub address: Option<Ipv4Addr>,
    /// Whether it runs.
    pub running: bool,
    /// Seconds between SIGTERM and SIGKILL.
    pub stop_timeout_s: u32,
}

/// Why a container is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Nothing was decided here before.
    First,
    /// Another image.
    Image,
    /// Other environment, mounts, command or labels.
    Specification,
    /// Another value of a secret.
    Secrets,
    /// It should run and does not.
    NotRunning,
    /// It is not at the address that was decided.
    Address,
    /// It was changed behind jiji's back.
    Tampered,
}

/// How long a container may take to stop where nothing says so, in seconds.
const STOP_TIMEOUT_S: u32 = 10;

/// What a service wants on a host, apart from its container's name and address.
#[derive(Debug, Clone)]
pub(super) struct Wish {
    pub(super) image: Shared<Image>,
    pub(super) spec: Spec,
    pub(super) retain: u32,
    /// Where it is what an earlier release ran: that.
    pub(super) earlier: Option<Shared<PlannedService>>,
    /// Whether what runs is judged.
    pub(super) trust: Trust,
}

/// A specification with what containers are compared by.
#[derive(Debug, Clone)]
pub(super) struct Spec {
    container: ContainerSpec,
    digest: Digest,
    /// The digest as it stands in a container's label.
    label: String,
    has_secrets: bool,
}

impl Spec {
    pub(super) fn of(container: ContainerSpec) -> Self {
        let digest = container.digest();
        Self { digest, label: digest.to_string(), has_secrets: !container.secrets().is_empty(), container }
    }
}

/// What is wished for on a host. Most hosts wish for the same, so that each wish is made once.
type Wishes = BTreeMap<ServiceName, Shared<Wish>>;

/// How a container that runs is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// By its state, its image, its labels and its address, as they were seen.
    Looks,
    /// It was changed behind jiji's back: it is replaced whatever it looks like.
    Never,
    /// It was found to be as decided, and stays.
    Blind,
}

/// Compares what `project` wants on the hosts that were looked at with what they run.
///
/// # Errors
/// Every reason why there is no plan.
pub fn desired(project: &Project, images: &Images, observation: &Observation) -> Result<Desired, Refused> {
    let mut errors = Vec::new();
    let mut wishes: BTreeMap<HostName, Wishes> = BTreeMap::new();
    let placement = project.placement();
    let of_service = |(name, service): (&'_ ServiceName, &Service)| -> Vec<Shared<Wish>> {
        let images = images.get(name).into_iter().flatten();
        images.map(|image| Shared::new(wish(project, name, service, image))).collect()
    };
    let all: BTreeMap<&ServiceName, Vec<Shared<Wish>>> =
        project.services.iter().map(|(name, service)| (name, of_service((name, service)))).collect();
    for host in observation.hosts.keys() {
        let services = placement.on(host);
        let wished = wishes.entry(host.clone()).or_default();
        errors.extend(route_conflicts(services, host));
        let Ok(look) = Look::of(observation, host) else {
            // Said by `compare`.
            continue;
        };
        let architecture = &look.facts.architecture;
        for &(name, _) in services {
            match all[name].iter().find(|wish| wish.image.platform.architecture == *architecture) {
                Some(wish) => {
                    wished.insert(name.clone(), wish.clone());
                }
                None => errors.push(PlanError::NoImage {
                    host: host.clone(),
                    service: name.clone(),
                    architecture: architecture.clone(),
                }),
            }
        }
    }
    let desired = compare(&project.scope(), wishes, observation, errors)?;
    Ok(Desired { rollout: project.rollout.clone(), ..desired })
}

fn wish(project: &Project, name: &ServiceName, service: &Service, image: &Image) -> Wish {
    let clear = service.environment.clear.iter();
    let secrets = service.environment.secrets.iter();
    let env = clear
        .map(|(name, value)| (name.clone(), Word::lit(value.clone())))
        .chain(secrets.map(|name| (name.to_string(), Word::Secret(name.clone()))))
        .collect();
    Wish {
        image: Shared::new(image.clone()),
        spec: Spec::of(ContainerSpec {
            name: unnamed(),
            image: ContainerImage::Seeded { id: image.id(), repository: image.repository.clone() },
            network: NETWORK.to_owned(),
            address: None,
            env,
            labels: BTreeMap::from([
                (LABEL_SCOPE.to_owned(), project.scope()),
                (LABEL_SERVICE.to_owned(), name.to_string()),
            ])
            .into(),
            mounts: service.volumes.clone(),
            publish: Vec::new(),
            entrypoint: None,
            command: service.command.clone(),
            user: None,
            restart: true,
            stop_timeout_s: service.stop_timeout,
        }),
        retain: service.retain.max(1),
        earlier: None,
        trust: Trust::Looks,
    }
}

/// Stands where a container's name will: no part of a specification's digest.
fn unnamed() -> ContainerName {
    ContainerName::new("unnamed").expect("it is a container's name")
}

fn route_conflicts(services: &[(&ServiceName, &Service)], host: &HostName) -> Vec<PlanError> {
    let mut taken: BTreeMap<(String, String), &ServiceName> = BTreeMap::new();
    let mut errors = Vec::new();
    for &(name, service) in services {
        let Some(proxy) = &service.proxy else { continue };
        let all = [String::new()];
        let names = if proxy.hosts.is_empty() { &all[..] } else { &proxy.hosts[..] };
        for route in names {
            let path = proxy.path_prefix.trim_end_matches('/').to_owned();
            if let Some(first) = taken.insert((route.to_ascii_lowercase(), path.clone()), name)
                && first != name
            {
                let shown = if route.is_empty() { "*" } else { route };
                errors.push(PlanError::Route {
                    host: host.clone(),
                    first: first.clone(),
                    second: name.clone(),
                    route: format!("{shown}{path}/"),
                });
            }
        }
    }
    errors
}

/// Compares wishes with what runs, and gives names and addresses to what is new.
pub(super) fn compare(
    scope: &str,
    wishes: BTreeMap<HostName, Wishes>,
    observation: &Observation,
    mut errors: Vec<PlanError>,
) -> Result<Desired, Refused> {
    let mut looks = BTreeMap::new();
    for host in wishes.keys() {
        match Look::of(observation, host) {
            Ok(look) => {
                looks.insert(host.clone(), look);
            }
            Err(error) => errors.push(error),
        }
    }
    let roster = numbers(&looks, &mut errors);
    let known = looks.values().find_map(|look| look.records.roster.as_ref());
    let roster = known.filter(|known| **known == roster).cloned().unwrap_or_else(|| Shared::new(roster));
    let numbered: Vec<_> =
        looks.iter().filter_map(|(host, look)| Some((host, look, roster.servers.get(host)?))).collect();
    let compared = on_all_processors(&numbered, |&(host, look, entry)| {
        let mut errors = Vec::new();
        (of_host(scope, host, entry.number, look, &wishes[host], &mut errors), errors)
    });
    let mut hosts = BTreeMap::new();
    for ((host, ..), (desired, refused)) in numbered.into_iter().zip(compared) {
        hosts.insert(host.clone(), desired);
        errors.extend(refused);
    }
    if errors.is_empty() {
        let scope = scope.to_owned();
        Ok(Desired { scope, roster, hosts, rollout: Rollout::default() })
    } else {
        Err(Refused(errors))
    }
}

fn of_host(
    scope: &str,
    host: &HostName,
    number: u16,
    look: &Look<'_>,
    wishes: &Wishes,
    errors: &mut Vec<PlanError>,
) -> HostDesired {
    let mut here = Here { look, ran: Ran::of(look), addresses: None, number };
    let mut services = BTreeMap::new();
    for (name, wish) in wishes {
        match service(scope, host, name, wish, &mut here) {
            Ok(change) => {
                let retain = wish.retain;
                services.insert(name.clone(), ServiceDesired { change, retain });
            }
            Err(error) => errors.push(error),
        }
    }
    for name in here.ran.by_service.keys().filter(|name| !wishes.contains_key(**name)) {
        let Ok(name) = ServiceName::new(*name) else { continue };
        let previous = decided(look, &name).cloned();
        let old = here.others(&name, None);
        let change = Change::Remove { previous, old };
        services.insert(name, ServiceDesired { change, retain: 1 });
    }
    HostDesired { number, engine: look.engine.clone(), architecture: look.facts.architecture.clone(), services }
}

/// The roster as all hosts together know it, with a number for every host. What a host's network has already counts most: two projects
/// may call one server by two names, and its containers cannot move.
pub(super) fn numbers(looks: &BTreeMap<HostName, Look<'_>>, errors: &mut Vec<PlanError>) -> Roster {
    let mut numbers = Roster::default();
    let mut last = None;
    for known in looks.values().filter_map(|look| look.records.roster.as_ref()) {
        // Nearly always all hosts know the same, and to merge it a thousand times would take a million steps.
        if last != Some(known) {
            numbers = numbers.merged(known);
            last = Some(known);
        }
    }
    for (host, look) in looks {
        match look.numbered() {
            Some(Ok(number)) => {
                numbers.servers.insert(host.clone(), roster::Entry { number, removed: false });
            }
            Some(Err(subnet)) => errors.push(PlanError::Network { host: host.clone(), subnet }),
            None => {}
        }
    }
    if let Err(full) = numbers.give(looks.keys()) {
        errors.push(PlanError::RosterFull { host: full.host });
    }
    numbers
}

/// The roster that all hosts should have.
///
/// # Errors
/// Every host that was not looked at well enough.
pub(super) fn decided_roster(observation: &Observation) -> Result<Roster, Vec<PlanError>> {
    let looks: Result<BTreeMap<_, _>, PlanError> =
        observation.hosts.keys().map(|host| Ok((host.clone(), Look::of(observation, host)?))).collect();
    // A network that is none of jiji's has no number, and is told of apart.
    Ok(numbers(&looks.map_err(|error| vec![error])?, &mut Vec::new()))
}

/// Addresses for new containers of a host: the next after the one leased last that nobody has, so that an address rests for long before
/// somebody else answers at it.
struct Addresses {
    number: u16,
    last: Ipv4Addr,
    used: BTreeSet<Ipv4Addr>,
}

impl Addresses {
    fn of(number: u16, look: &Look<'_>) -> Self {
        let gateway = roster::gateway(number);
        Self { number, last: look.records.last_address.unwrap_or(gateway), used: look.used() }
    }

    fn lease(&mut self) -> Option<Ipv4Addr> {
        let all = || roster::addresses(self.number);
        let (after, before) =
            (all().filter(|address| *address > self.last), all().filter(|address| *address <= self.last));
        let free = after.chain(before).find(|address| !self.used.contains(address))?;
        self.used.insert(free);
        self.last = free;
        Some(free)
    }
}

/// What was decided for a service here last.
fn decided<'a>(look: &'a Look<'_>, name: &ServiceName) -> Option<&'a Shared<PlannedService>> {
    look.records.releases.first()?.services.get(name)
}

/// A host's containers of the project, where they are looked for service by service.
struct Ran<'a> {
    by_name: BTreeMap<&'a str, &'a ContainerFacts>,
    by_service: BTreeMap<&'a str, Vec<&'a ContainerFacts>>,
}

impl<'a> Ran<'a> {
    fn of(look: &Look<'a>) -> Self {
        let by_name = look.ours.iter().map(|facts| (facts.name.as_str(), facts)).collect();
        let mut by_service: BTreeMap<&str, Vec<&ContainerFacts>> = BTreeMap::new();
        for facts in look.ours {
            if let Some(service) = facts.labels.get(LABEL_SERVICE) {
                by_service.entry(service).or_default().push(facts);
            }
        }
        Self { by_name, by_service }
    }
}

/// A host whose services are compared.
struct Here<'a> {
    look: &'a Look<'a>,
    ran: Ran<'a>,
    number: u16,
    /// What is free; looked at once something needs an address.
    addresses: Option<Addresses>,
}

impl Here<'_> {
    /// Containers of a service but for the one of this name.
    fn others(&self, name: &ServiceName, but: Option<&ContainerName>) -> Vec<Old> {
        let of_service = self.ran.by_service.get(name.as_str()).into_iter().flatten();
        let mut old: Vec<_> = of_service
            .filter(|facts| but.is_none_or(|but| but.as_str() != facts.name))
            .filter_map(|facts| {
                let timeouts = self.look.records.releases.iter().filter_map(|release| {
                    let service = release.services.get(name)?;
                    (service.container.as_str() == facts.name).then_some(service.container_spec.stop_timeout_s)
                });
                Some(Old {
                    name: ContainerName::new(facts.name.clone()).ok()?,
                    address: facts.addresses.get(NETWORK).copied(),
                    running: facts.running(),
                    stop_timeout_s: timeouts.into_iter().next().unwrap_or(STOP_TIMEOUT_S),
                })
            })
            .collect();
        old.sort_by(|a, b| a.name.cmp(&b.name));
        old
    }
}

/// Whether a container runs this image, as far as its engine can tell. One that can tell nothing contradicts nothing.
fn runs(facts: &ContainerFacts, image: ImageId) -> bool {
    facts.manifest.is_none_or(|manifest| manifest == image.manifest)
        && facts.config.is_none_or(|config| config == image.config)
}

/// Why what was decided does not do; empty where it does.
fn reasons(name: &ServiceName, wish: &Wish, decided: Option<&PlannedService>, here: &Here<'_>) -> Vec<Reason> {
    let Some(decided) = decided else {
        return vec![Reason::First];
    };
    if wish.trust == Trust::Blind {
        return Vec::new();
    }
    let facts = here.ran.by_name.get(decided.container.as_str());
    let Some(facts) = facts.filter(|facts| facts.running()) else {
        return vec![Reason::NotRunning];
    };
    let mut why = Vec::new();
    let image = wish.image.id();
    if decided.image.id() != image || !runs(facts, image) {
        why.push(Reason::Image);
    } else if facts.labels.get(LABEL_SPEC) != Some(&wish.spec.label) {
        why.push(Reason::Specification);
    }
    if wish.spec.has_secrets {
        let now = here.look.secrets(name);
        if now.is_none() || facts.labels.get(LABEL_SECRETS).map(String::as_str) != now {
            why.push(Reason::Secrets);
        }
    }
    if facts.addresses.get(NETWORK).copied() != decided.address {
        why.push(Reason::Address);
    }
    if wish.trust == Trust::Never && why.is_empty() {
        why.push(Reason::Tampered);
    }
    why
}

fn service(
    scope: &str,
    host: &HostName,
    name: &ServiceName,
    wish: &Wish,
    here: &mut Here<'_>,
) -> Result<Change, PlanError> {
    let (look, spec) = (here.look, wish.spec.digest);
    let decided = decided(look, name);
    let why = reasons(name, wish, decided.map(|decided| &**decided), here);
    if why.is_empty()
        && let Some(running) = decided
    {
        return Ok(Change::Unchanged { stale: here.others(name, Some(&running.container)), running: running.clone() });
    }
    let number = here.number;
    let addresses = here.addresses.get_or_insert_with(|| Addresses::of(number, look));
    let last = addresses.last;
    let address =
        addresses.lease().ok_or_else(|| PlanError::NoAddress { host: host.clone(), service: name.clone(), last })?;
    let container = container_name(scope, host, name, spec, address, here)?;
    let container_spec =
        ContainerSpec { name: container.clone(), address: Some(address), ..wish.spec.container.clone() };
    let earlier = wish.earlier.as_ref();
    Ok(Change::Replace {
        candidate: Shared::new(PlannedService {
            image: wish.image.clone(),
            container,
            address: Some(address),
            spec,
            container_spec,
            probe: earlier.and_then(|earlier| earlier.probe.clone()),
            route: earlier.and_then(|earlier| earlier.route.clone()),
        }),
        previous: decided.cloned(),
        old: here.others(name, None),
        why,
    })
}

/// `SCOPE-SERVICE-` and eight digits of everything that makes this container another one than those before it.
fn container_name(
    scope: &str,
    host: &HostName,
    service: &ServiceName,
    spec: Digest,
    address: Ipv4Addr,
    here: &Here<'_>,
) -> Result<ContainerName, PlanError> {
    let taken = |name: &str| here.ran.by_name.contains_key(name);
    let numbers = 0u32..;
    let names = numbers.map(|attempt| {
        let content = Digest::of_json(&(scope, host, service, spec, address, here.look.records.fencing, attempt));
        format!("{scope}-{service}-{}", &content.hex()[..8])
    });
    let name = names.into_iter().find(|name| !taken(name)).expect("a host has fewer containers than there are numbers");
    ContainerName::new(name.clone()).map_err(|_| PlanError::Name { host: host.clone(), service: service.clone(), name })
}
