//! Puts what the core does and what plugins answered into one plan.

use std::collections::{BTreeMap, BTreeSet};

use jiji_model::digest::canonical_json;
use jiji_model::image::{Image, ImageId};
use jiji_model::name::{AbsPath, ContainerName, HostName, ServiceName};
use jiji_model::observation::Observation;
use jiji_model::plan::vet::{MAX_TIMEOUT_MS, vet_form};
use jiji_model::plan::{
    Action, ContainerImage, ContainerSpec, Evidence, LABEL_SPEC, NETWORK, Phase, Plan, PlannedImage, PlannedService,
    Step, Word,
};
use jiji_model::probe::ProbeSpec;
use jiji_model::shared::Shared;
use jiji_model::transaction::roster;

use super::desired::{Change, Desired, HostDesired, Old};
use super::error::{PlanError, Refused};
use super::look::Look;
use super::{Answers, HostAnswers, Seeds};
use crate::side_by_side::on_all_processors;

/// Milliseconds that bringing an image into an engine may take.
const IMAGE_TIMEOUT_MS: u32 = 10 * 60 * 1000;

/// Milliseconds that an engine may take for anything else.
const ENGINE_TIMEOUT_MS: u32 = 60 * 1000;

/// Lines of a candidate's log that are gathered when it fails.
const LOG_LINES: u32 = 50;

/// A plan, and what a person should know beside it.
#[derive(Debug, Clone, PartialEq)]
pub struct Assembled {
    /// The plan. Empty where the fleet is as it should be.
    pub plan: Plan,
    /// What was left alone, by host: one line each.
    pub notes: Vec<(HostName, String)>,
}

/// Puts everything into one plan: the core's own steps and those that plugins answered with, in their phases. What is so already is
/// left out, so a fleet that is as it should be gives an empty plan.
///
/// Images that plugins name are taken from `seeds` and become images that jiji brings to the host.
///
/// # Errors
/// Every reason why there is no plan.
pub fn assemble(
    desired: &Desired,
    seeds: &Seeds,
    answers: &Answers,
    observation: &Observation,
) -> Result<Assembled, Refused> {
    assemble_with(desired, seeds, answers, observation, &Extra::default())
}

/// What a plan does beside what its services take.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Extra {
    /// Images that hosts are brought.
    pub images: BTreeMap<HostName, Vec<Image>>,
    /// Steps, each run after the others of its phase.
    pub steps: BTreeMap<HostName, Vec<Step>>,
}

/// [`assemble`] with more to do.
///
/// # Errors
/// As [`assemble`].
pub fn assemble_with(
    desired: &Desired,
    seeds: &Seeds,
    answers: &Answers,
    observation: &Observation,
    extra: &Extra,
) -> Result<Assembled, Refused> {
    let mut errors = Vec::new();
    let mut notes = Vec::new();
    let mut plan = Plan {
        version: Plan::VERSION,
        scope: desired.scope.clone(),
        steps: Vec::new(),
        images: Vec::new(),
        retain: desired.retain(),
        rollout: desired.rollout.clone(),
        releases: BTreeMap::new(),
    };
    let none = HostAnswers::default();
    let roster = String::from_utf8(canonical_json(&desired.roster)).expect("JSON is UTF-8");
    let retain = usize::try_from(plan.retain).unwrap_or(usize::MAX);
    let mut images: BTreeMap<ImageId, PlannedImage> = BTreeMap::new();
    let hosts: Vec<_> = desired.hosts.iter().collect();
    let built = on_all_processors(&hosts, |&(host, wanted)| {
        let look = Look::of(observation, host).map_err(|error| vec![error])?;
        let mut builder = Builder {
            host,
            desired,
            roster: &roster,
            retain,
            wanted,
            look: &look,
            seeds,
            answers: answers.get(host).unwrap_or(&none),
            steps: Vec::new(),
            needed: Vec::new(),
            notes: Vec::new(),
            errors: Vec::new(),
        };
        let services = builder.build(extra);
        if !builder.errors.is_empty() {
            return Err(builder.errors);
        }
        builder.needed.retain(|image| !look.has(image));
        Ok((builder.steps, builder.needed, builder.notes, services))
    });
    for ((host, _), built) in hosts.into_iter().zip(built) {
        let (steps, needed, told, services) = match built {
            Ok(built) => built,
            Err(refused) => {
                errors.extend(refused);
                continue;
            }
        };
        notes.extend(told);
        if steps.is_empty() {
            continue;
        }
        for image in needed {
            let planned = images.entry(image.id()).or_insert_with(|| PlannedImage { image, hosts: Vec::new() });
            planned.hosts.push(host.clone());
        }
        plan.steps.extend(steps);
        plan.releases.insert(host.clone(), services);
    }
    plan.images = images.into_values().collect();
    let hosts: BTreeSet<_> = desired.hosts.keys().cloned().collect();
    if let Err(refusals) = vet_form(&plan.steps, &hosts) {
        errors.extend(refusals.into_iter().map(PlanError::Form));
    }
    if errors.is_empty() { Ok(Assembled { plan, notes }) } else { Err(Refused(errors)) }
}

impl Desired {
    /// How many releases stay on each host: what the service that keeps most wants.
    pub fn retain(&self) -> u32 {
        let services = self.hosts.values().flat_map(|host| host.services.values());
        services.map(|service| service.retain).max().unwrap_or(1)
    }
}

struct Builder<'a> {
    host: &'a HostName,
    desired: &'a Desired,
    /// The roster as JSON.
    roster: &'a str,
    /// How many releases stay, counted once for all hosts.
    retain: usize,
    wanted: &'a HostDesired,
    look: &'a Look<'a>,
    seeds: &'a Seeds,
    answers: &'a HostAnswers,
    steps: Vec<Step>,
    needed: Vec<Image>,
    notes: Vec<(HostName, String)>,
    errors: Vec<PlanError>,
}

impl Builder<'_> {
    /// All steps of the host, in the order in which it runs them, and what it runs once they are done.
    fn build(&mut self, extra: &Extra) -> BTreeMap<ServiceName, Shared<PlannedService>> {
        let services = self.services();
        self.boot();
        self.prepare(&services);
        for image in extra.images.get(self.host).into_iter().flatten() {
            self.ensure_image(None, Phase::Prepare, image);
        }
        for phase in [Phase::Publish, Phase::Cutover] {
            self.plugins(phase);
        }
        self.hold(&services);
        self.plugins(Phase::Withdraw);
        self.drain();
        self.steps.extend(extra.steps.get(self.host).into_iter().flatten().cloned());
        self.finalize(&services);
        services
    }

    /// What the host runs once all is done, with what the plugins say of each.
    fn services(&self) -> BTreeMap<ServiceName, Shared<PlannedService>> {
        let services = self.wanted.services.iter().filter_map(|(name, service)| {
            let mut serving = service.change.serving()?.clone();
            // Nearly always they say what is recorded.
            if let Some(probe) = self.answers.probes.get(name).filter(|probe| serving.probe.as_ref() != Some(probe)) {
                serving.to_mut().probe = Some(probe.clone());
            }
            if let Some(route) = self.answers.routes.get(name).filter(|route| serving.route.as_ref() != Some(route)) {
                serving.to_mut().route = Some(route.clone());
            }
            Some((name.clone(), serving))
        });
        services.collect()
    }

    fn step(&mut self, service: Option<&ServiceName>, phase: Phase, title: String, action: Action) -> &mut Step {
        let mut step = Step::new(self.host, phase, title, action);
        step.service = service.cloned();
        step.timeout_ms = ENGINE_TIMEOUT_MS;
        self.steps.push(step);
        self.steps.last_mut().expect("one was just pushed")
    }

    /// What every later step stands on.
    fn boot(&mut self) {
        let is_stored = self.look.records.roster.as_ref() == Some(&self.desired.roster);
        self.steps.extend(foundation(self.host, self.wanted.number, self.look, (!is_stored).then_some(self.roster)));
        self.plugins(Phase::Boot);
    }

    fn ensure_image(&mut self, service: Option<&ServiceName>, phase: Phase, image: &Image) {
        if self.needed.iter().any(|needed| needed.id() == image.id()) {
            return;
        }
        self.needed.push(image.clone());
        let title = format!("take image {}@{}", image.repository, image.manifest.digest.short());
        let action = Action::ImageEnsure { image: image.clone() };
        self.step(service, phase, title, action).timeout_ms = IMAGE_TIMEOUT_MS;
    }

    /// Candidates: brought, run, and healthy before anything is routed to them.
    fn prepare(&mut self, services: &BTreeMap<ServiceName, Shared<PlannedService>>) {
        for (name, service) in &self.wanted.services {
            if !matches!(service.change, Change::Replace { .. }) {
                continue;
            }
            let Some(candidate) = services.get(name) else { continue };
            let container = &candidate.container;
            self.ensure_image(Some(name), Phase::Prepare, &candidate.image);
            let action = Action::ContainerRun(Box::new(candidate.container_spec.clone()));
            let step = self.step(Some(name), Phase::Prepare, format!("run {container}"), action);
            step.undo = Some(Action::ContainerRemove { name: container.clone() });
            step.evidence = evidence(container);
            if let Some(probe) = &candidate.probe {
                self.wait(name, container, probe);
            }
        }
        self.plugins(Phase::Prepare);
    }

    fn wait(&mut self, service: &ServiceName, container: &ContainerName, probe: &ProbeSpec) {
        let action =
            Action::WaitProbe { container: container.clone(), network: NETWORK.to_owned(), probe: probe.clone() };
        let title = format!("wait until {container} is healthy");
        let longest = probe.deadline_ms.saturating_add(probe.timeout_ms).saturating_add(10_000);
        let step = self.step(Some(service), Phase::Prepare, title, action);
        step.timeout_ms = longest.min(MAX_TIMEOUT_MS);
        step.evidence = evidence(container);
    }

    /// Candidates are watched while they serve and the old ones still stand by.
    fn hold(&mut self, services: &BTreeMap<ServiceName, Shared<PlannedService>>) {
        let for_ms = self.desired.rollout.hold_ms;
        if for_ms == 0 {
            return;
        }
        for (name, service) in &self.wanted.services {
            let Some(candidate) = services.get(name) else { continue };
            let (Change::Replace { .. }, Some(probe)) = (&service.change, &candidate.probe) else { continue };
            let container = candidate.container.clone();
            let action = Action::Hold {
                container: container.clone(),
                network: NETWORK.to_owned(),
                probe: probe.clone(),
                for_ms,
            };
            let title = format!("watch {container} for {}s", for_ms.div_ceil(1000));
            let step = self.step(Some(name), Phase::Hold, title, action);
            step.timeout_ms = for_ms.saturating_add(probe.timeout_ms).saturating_add(10_000).min(MAX_TIMEOUT_MS);
            step.evidence = evidence(&container);
        }
    }

    fn old(&self) -> Vec<(ServiceName, Old)> {
        let services = self.wanted.services.iter();
        services
            .flat_map(|(name, service)| service.change.old().iter().map(|old| (name.clone(), old.clone())))
            .collect()
    }

    fn drain(&mut self) {
        self.plugins(Phase::Drain);
        for (service, old) in self.old().into_iter().filter(|(_, old)| old.running) {
            let action = Action::ContainerStop { name: old.name.clone(), timeout_s: old.stop_timeout_s };
            let step = self.step(Some(&service), Phase::Drain, format!("stop {}", old.name), action);
            let longest = old.stop_timeout_s.saturating_mul(1000).saturating_add(30_000);
            step.timeout_ms = longest.min(MAX_TIMEOUT_MS);
        }
    }

    fn finalize(&mut self, services: &BTreeMap<ServiceName, Shared<PlannedService>>) {
        self.plugins(Phase::Finalize);
        for (service, old) in self.old() {
            let title = format!("remove {}", old.name);
            let action = Action::ContainerRemove { name: old.name };
            self.step(Some(&service), Phase::Finalize, title, action);
        }
        // Images are looked after when something else is done too: an unchanged ship stays one look.
        if self.steps.is_empty() {
            return;
        }
        let kept = self.retain.saturating_sub(1);
        let kept_releases = self.look.records.releases.iter().take(kept);
        let kept_services = kept_releases.flat_map(|release| release.services.values());
        let kept_images: BTreeSet<ImageId> =
            services.values().chain(kept_services).map(|service| service.image.id()).collect();
        let mut gone = BTreeMap::new();
        for release in self.look.records.releases.iter().skip(kept) {
            for service in release.services.values() {
                if !kept_images.contains(&service.image.id()) {
                    gone.insert(service.image.id(), service.image.repository.clone());
                }
            }
        }
        for (image, repository) in gone {
            let title = format!("remove image {repository}@{}", image.manifest.short());
            let action = Action::ImageRemove { image, repository };
            self.step(None, Phase::Finalize, title, action);
        }
    }

    /// The plugins' steps of a phase. Their pinned images become images that jiji brings.
    fn plugins(&mut self, phase: Phase) {
        let steps: Vec<Step> = self.answers.steps.iter().filter(|step| step.phase == phase).cloned().collect();
        for mut step in steps {
            let mut seed = None;
            if let Action::ContainerRun(spec) = &mut step.action {
                if let ContainerImage::Pinned { reference } = &spec.image {
                    let Some(image) = self.seed(reference) else {
                        self.errors.push(PlanError::NoSeed {
                            host: self.host.clone(),
                            reference: reference.clone(),
                            architecture: self.wanted.architecture.clone(),
                        });
                        continue;
                    };
                    spec.image = ContainerImage::Seeded { id: image.id(), repository: image.repository.clone() };
                    seed = Some(image);
                }
                if self.stands(spec) {
                    continue;
                }
            }
            if let Some(image) = seed {
                self.ensure_image(None, phase, &image);
            }
            // What was left out is so already: nobody needs to wait for it.
            let here: BTreeSet<&String> = self.steps.iter().map(|step| &step.id).collect();
            step.after.retain(|id| here.contains(id));
            self.steps.push(step);
        }
    }

    fn seed(&self, reference: &str) -> Option<Image> {
        let images = self.seeds.get(reference)?;
        let fits = images.iter().find(|image| image.platform.architecture == self.wanted.architecture);
        fits.cloned()
    }

    /// Whether a plugin's container stands already. One that serves with another specification is left alone: all projects on the host
    /// go through it, and to make it anew would drop their requests.
    fn stands(&mut self, spec: &ContainerSpec) -> bool {
        let shared = self.look.shared.iter().chain(self.look.ours);
        let Some(facts) = shared.into_iter().find(|facts| facts.name == spec.name.as_str() && facts.running()) else {
            return false;
        };
        if self.answers.replaces {
            return false;
        }
        if facts.labels.get(LABEL_SPEC) != Some(&spec.digest().to_string()) {
            let note = format!(
                "`{}` runs with other settings than this project's; it was left as it is, `jiji proxy upgrade` replaces it",
                spec.name
            );
            self.notes.push((self.host.clone(), note));
        }
        true
    }
}

/// What every change of a host stands on: the roster, where `roster` is one to be stored there, and the containers' network.
pub(super) fn foundation(host: &HostName, number: u16, look: &Look<'_>, roster: Option<&str>) -> Vec<Step> {
    let store = roster.map(|roster| {
        let action = Action::File {
            path: AbsPath::new(roster::PATH).expect("it is an absolute path"),
            mode: 0o644,
            content: vec![Word::lit(roster)],
        };
        ("store the roster of servers".to_owned(), action)
    });
    let make = look.network.is_none().then(|| {
        let (subnet, gateway) = (roster::subnet(number), roster::gateway(number));
        (format!("make network {NETWORK}"), Action::NetworkEnsure { name: NETWORK.to_owned(), subnet, gateway })
    });
    let steps = store.into_iter().chain(make).map(|(title, action)| {
        let mut step = Step::new(host, Phase::Boot, title, action);
        step.timeout_ms = ENGINE_TIMEOUT_MS;
        step
    });
    steps.collect()
}

fn evidence(container: &ContainerName) -> Vec<Evidence> {
    vec![
        Evidence::State { container: container.clone() },
        Evidence::Logs { container: container.clone(), lines: LOG_LINES },
    ]
}
