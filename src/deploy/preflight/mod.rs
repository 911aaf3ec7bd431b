//! Whether hosts are fit for a change, judged before anything is begun.
//!
//! Pure: the facts came with the one look that planning needs anyway; who has a port is asked once more where a container is to publish
//! one, which a fleet that is as it should be never needs. Every host is judged whole, so that one screen names all there is to do. What
//! keeps a host from being reached at all (ssh, sudo) is told by [`crate::fleet`].
//!
//! | what | how much is enough |
//! | --- | --- |
//! | engine | Docker 20.10, Podman 4.0 (the first with netavark, whose addresses jiji leases); for layers in zstd Docker 23.0 |
//! | disk | `/var/lib/jiji`: missing layers once, as they are sent. The engine's storage: three times, once as they are pulled and twice for what is in them. Both together where they are one file system, and some room to work |
//! | memory | what the old containers of replaced services hold and the kernel cannot drop, once more |
//! | ports | nobody but the container itself has a port that it is to publish |
//! | user's own engine | ids below the user, programs, lingering, `/dev/net/tun`: see [`rootless`] |
//! | clock | within 30 seconds of the operator's; a warning |
//! | kernel | 4.18, RHEL 8's; a warning |
//! | boot | `podman-restart.service` is enabled, where Podman has one; a warning |

mod finding;
pub mod rootless;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use jiji_model::digest::Digest;
use jiji_model::event::bytes;
use jiji_model::image::{Image, LAYER_ZSTD};
use jiji_model::name::{HostName, ServiceName};
use jiji_model::observation::{
    Answer, ContainerFacts, DiskFacts, EngineFacts, FitnessFacts, HostFacts, Observation, PortFacts, Query, Want,
};
use jiji_model::plan::{Action, ContainerSpec, Plan};
use jiji_model::project::{Engine, Project};

pub use finding::{Finding, Owner, Packages, Severity, Unfit};

use super::desired::{Change, Desired};
use super::look;
use super::{Images, PlanError};

const FITNESS: &str = "core.fitness";
const PORTS: &str = "core.ports";

/// The oldest engines that jiji works with.
const DOCKER: (&str, [u32; 2]) = ("20.10", [20, 10]);
const PODMAN: (&str, [u32; 2]) = ("4.0", [4, 0]);

/// The oldest Docker that unpacks layers compressed with zstd (moby, pkg/archive, from 23.0 on). Podman does from before 4.0 on.
const DOCKER_ZSTD: (&str, [u32; 2]) = ("23.0", [23, 0]);

/// The oldest kernel that distributions with these engines have: RHEL 8's.
const KERNEL: (&str, [u32; 2]) = ("4.18", [4, 18]);

/// How far clocks may be apart: far more than a look takes, far less than a certificate minds.
const SKEW_MS: i64 = 30_000;

/// Bytes of disk, and files, that work needs beside the images: journal, records, a container's own layer.
const ROOM: u64 = 64 << 20;
const FILES: u64 = 2_000;

/// Bytes that an engine's storage takes for each byte of a compressed layer: itself while it is pulled, and what is in it, for which twice
/// its size is what images of programs come to.
const UNPACKED: u64 = 3;

/// What is asked of every host, beside what planning asks.
pub fn want() -> Want {
    Want { id: FITNESS.to_owned(), query: Query::Fitness }
}

/// What is asked of a host once it is known which ports containers are to publish there; nothing where none are.
pub fn ports_want(plan: &Plan, host: &HostName) -> Option<Want> {
    let ports: BTreeSet<u16> =
        published(plan, host).flat_map(|spec| spec.publish.iter().map(|publish| publish.host_port)).collect();
    let query = Query::Ports { ports: ports.into_iter().collect() };
    (query != Query::Ports { ports: Vec::new() }).then(|| Want { id: PORTS.to_owned(), query })
}

/// What is asked where nothing is to be planned: the host, and who has these ports.
pub fn wants_without_plan(ports: &[u16]) -> Vec<Want> {
    let mut wants = look::wants_of_host();
    if !ports.is_empty() {
        wants.push(Want { id: PORTS.to_owned(), query: Query::Ports { ports: ports.to_vec() } });
    }
    wants
}

fn published<'a>(plan: &'a Plan, host: &'a HostName) -> impl Iterator<Item = &'a ContainerSpec> {
    plan.steps.iter().filter(move |step| step.host == *host).filter_map(|step| match &step.action {
        Action::ContainerRun(spec) if !spec.publish.is_empty() => Some(&**spec),
        _ => None,
    })
}

/// The operator's clock when a look came back, in milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now(pub u64);

/// Judges hosts by what they are alone: engine, kernel, clock, and whether there is any room at all. `engine` says which engine the
/// project names for a host.
pub fn hosts(project: &Project, observation: &Observation, now: Now) -> Vec<Finding> {
    let mut findings = Vec::new();
    for host in observation.hosts.keys() {
        let Some(fitness) = fitness(observation, host) else { continue };
        let mut add = |what| findings.push(Finding { host: host.clone(), what });
        engine(project, host, fitness, facts(observation, host), &mut add);
        rootless::judge(fitness, facts(observation, host).and_then(|facts| facts.engine.as_ref()), &mut add);
        let release: Vec<u32> = version(&fitness.kernel);
        if !release.is_empty() && release[..] < KERNEL.1[..] {
            add(Unfit::KernelOld { release: fitness.kernel.clone(), least: KERNEL.0 });
        }
        if fitness.starts_at_boot == Some(false) {
            add(Unfit::DownAtBoot);
        }
        let ahead_ms = i64::try_from(fitness.wall_clock_ms).unwrap_or(i64::MAX).saturating_sub_unsigned(now.0);
        if ahead_ms.abs() > SKEW_MS {
            add(Unfit::Clock { ahead_ms });
        }
    }
    findings
}

/// Judges hosts by what a plan is to do there: disk, memory, ports. A host that nothing happens on is not judged.
pub fn plan(plan: &Plan, desired: &Desired, observation: &Observation) -> Vec<Finding> {
    let mut findings = Vec::new();
    for host in desired.hosts.keys().filter(|host| plan.steps.iter().any(|step| step.host == **host)) {
        let Some(fitness) = fitness(observation, host) else { continue };
        let images = plan.images.iter().filter(|planned| planned.hosts.contains(host)).map(|planned| &planned.image);
        let engine = facts(observation, host).and_then(|facts| facts.engine.as_ref());
        let mut add = |what| findings.push(Finding { host: host.clone(), what });
        unreadable(engine, images.clone(), fitness, &mut add);
        disks(fitness, layers(images), engine.map(|engine| engine.kind), &mut add);
        memory(host, fitness, desired, observation, &mut add);
        if let Some(own) = &fitness.rootless {
            rootless::programs(plan, host, own, &mut add);
        }
        for spec in published(plan, host) {
            // What jiji runs for all projects is in nobody's way: its plugin knows what follows on it.
            let shared = look::shared_containers(observation, host);
            let others = owners(observation, host).iter().filter(|facts| !ours(facts, shared)).cloned();
            ports(spec, fitness, &others.collect::<Vec<_>>(), &mut add);
        }
    }
    findings
}

/// Judges hosts where there is no plan, by what the project would bring if they had nothing of it.
pub fn without_plan(project: &Project, images: &Images, observation: &Observation) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (host, answers) in &observation.hosts {
        let Some(fitness) = fitness(observation, host) else { continue };
        let has = |image: &Image| look::has_image(answers, image);
        let of_host = facts(observation, host);
        let fits = |image: &&Image| {
            of_host.is_none_or(|facts| facts.architecture == image.platform.architecture) && !has(image)
        };
        let services = project.services_on(host).filter_map(|(name, _)| images.get(name));
        let images: Vec<&Image> = services.flatten().filter(fits).collect();
        let engine = of_host.and_then(|facts| facts.engine.as_ref());
        let mut add = |what| findings.push(Finding { host: host.clone(), what });
        unreadable(engine, images.iter().copied(), fitness, &mut add);
        disks(fitness, layers(images.into_iter()), engine.map(|engine| engine.kind), &mut add);
    }
    findings
}

/// Judges who has the ports that a look asked for, where no plan says which container is to publish them: whatever jiji runs for all
/// projects may have them.
pub fn taken(observation: &Observation) -> Vec<Finding> {
    let mut findings = Vec::new();
    // Without an engine that answers nobody can tell whose a container's port is.
    let answers = |host: &&HostName| facts(observation, host).is_some_and(|facts| facts.engine.is_some());
    for host in observation.hosts.keys().filter(answers) {
        let shared = look::shared_containers(observation, host);
        for facts in owners(observation, host).iter().filter(|facts| !ours(facts, shared)) {
            let what = Unfit::Port { port: facts.port, owner: owner(facts), container: "the proxy".to_owned() };
            findings.push(Finding { host: host.clone(), what });
        }
    }
    findings
}

/// What a host said of itself, for people: engine, architecture, kernel, free disk and memory.
pub fn described(observation: &Observation, host: &HostName) -> String {
    let mut parts = Vec::new();
    if let Some(facts) = facts(observation, host) {
        let engine = facts.engine.as_ref();
        parts.push(engine.map_or("no engine".to_owned(), |engine| format!("{} {}", engine.kind, engine.version)));
        parts.push(facts.architecture.clone());
    }
    if let Some(fitness) = fitness(observation, host) {
        parts.push(format!("kernel {}", fitness.kernel));
        parts.push(format!(
            "{} of disk and {} of memory free",
            bytes(fitness.engine_disk.free),
            bytes(fitness.memory_available)
        ));
    }
    parts.join(", ")
}

/// What a plan's errors are as findings, and those that are none.
pub fn of_errors(errors: Vec<PlanError>) -> (Vec<Finding>, Vec<PlanError>) {
    let mut findings = Vec::new();
    let mut others = Vec::new();
    for error in errors {
        match error {
            // Told by `hosts`, with the cause.
            PlanError::NoEngine { .. } => {}
            PlanError::Unknown { what, .. } if what == look::ENGINE => {}
            PlanError::NoImage { host, service, architecture } => {
                findings.push(Finding { host, what: Unfit::Architecture { service, architecture } });
            }
            other => others.push(other),
        }
    }
    (findings, others)
}

fn fitness<'a>(observation: &'a Observation, host: &HostName) -> Option<&'a FitnessFacts> {
    match observation.answer(host, FITNESS) {
        Some(Answer::Fitness(facts)) => Some(facts),
        _ => None,
    }
}

fn facts<'a>(observation: &'a Observation, host: &HostName) -> Option<&'a HostFacts> {
    match observation.answer(host, look::HOST) {
        Some(Answer::Host(facts)) => Some(facts),
        _ => None,
    }
}

fn owners<'a>(observation: &'a Observation, host: &HostName) -> &'a [PortFacts] {
    match observation.answer(host, PORTS) {
        Some(Answer::Ports(ports)) => ports,
        _ => &[],
    }
}

/// The numbers that a version begins with.
fn version(text: &str) -> Vec<u32> {
    let numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    numbers.map_while(Result::ok).take(2).collect()
}

fn packages(distribution: &[String]) -> Packages {
    let like = |names: &[&str]| distribution.iter().any(|name| names.contains(&name.as_str()));
    if like(&["debian", "ubuntu"]) {
        Packages::Apt
    } else if like(&["fedora", "rhel", "centos"]) {
        Packages::Dnf
    } else {
        Packages::Other
    }
}

fn engine(
    project: &Project,
    host: &HostName,
    fitness: &FitnessFacts,
    facts: Option<&HostFacts>,
    add: &mut impl FnMut(Unfit),
) {
    let wanted = project.servers.get(host).and_then(|server| server.engine).or(project.builder.engine);
    let packages = packages(&fitness.distribution);
    match facts.and_then(|facts| facts.engine.as_ref()) {
        Some(engine) => {
            let (least, numbers) = match engine.kind {
                Engine::Docker => DOCKER,
                Engine::Podman => PODMAN,
            };
            if version(&engine.version)[..] < numbers[..] {
                add(Unfit::EngineOld { engine: engine.kind, version: engine.version.clone(), least, packages });
            }
        }
        None => {
            let engine = match (wanted, &fitness.installed[..]) {
                (None, []) => return add(Unfit::NoEngine { wanted: None, packages }),
                (None, [engine]) => *engine,
                (None, _) => return add(Unfit::TwoEngines),
                (Some(engine), installed) if installed.contains(&engine) => engine,
                (wanted, _) => return add(Unfit::NoEngine { wanted, packages }),
            };
            let problem = fitness.engine_problem.clone().unwrap_or_else(|| "it gives no answer".to_owned());
            add(Unfit::EngineSilent { engine, problem });
        }
    }
}

/// Tells the images whose layers the engine cannot unpack.
fn unreadable<'a>(
    engine: Option<&EngineFacts>,
    images: impl Iterator<Item = &'a Image>,
    fitness: &FitnessFacts,
    add: &mut impl FnMut(Unfit),
) {
    let Some(EngineFacts { kind: Engine::Docker, version: found }) = engine else { return };
    if version(found)[..] >= DOCKER_ZSTD.1[..] {
        return;
    }
    let in_zstd = |image: &&Image| image.layers.iter().any(|layer| layer.media_type == LAYER_ZSTD);
    let images: BTreeSet<String> = images.filter(in_zstd).map(|image| image.repository.clone()).collect();
    if !images.is_empty() {
        let packages = packages(&fitness.distribution);
        add(Unfit::Zstd { version: found.clone(), least: DOCKER_ZSTD.0, images, packages });
    }
}

/// Bytes of the layers of images, each once.
fn layers<'a>(images: impl Iterator<Item = &'a Image>) -> u64 {
    let layers: BTreeMap<Digest, u64> =
        images.flat_map(|image| &image.layers).map(|layer| (layer.digest, layer.size)).collect();
    layers.values().sum()
}

fn disks(fitness: &FitnessFacts, layers: u64, engine: Option<Engine>, add: &mut impl FnMut(Unfit)) {
    let (state, storage) = (&fitness.state_disk, &fitness.engine_disk);
    let (for_state, for_storage) = (layers, layers.saturating_mul(UNPACKED));
    let mut judge = |disk: &DiskFacts, paths: String, needed: u64| {
        if disk.free < needed {
            add(Unfit::Disk { paths, free: disk.free, needed, engine });
        }
        if let Some(files) = disk.files_free.filter(|files| *files < FILES) {
            add(Unfit::Files { path: disk.path.clone(), files });
        }
    };
    if state.device == storage.device {
        let paths = format!("{} and {} (one file system)", state.path, storage.path);
        judge(state, paths, for_state.saturating_add(for_storage).saturating_add(ROOM));
    } else {
        judge(state, state.path.clone(), for_state.saturating_add(ROOM));
        judge(storage, storage.path.clone(), for_storage.saturating_add(ROOM));
    }
}

fn memory(
    host: &HostName,
    fitness: &FitnessFacts,
    desired: &Desired,
    observation: &Observation,
    add: &mut impl FnMut(Unfit),
) {
    let Some(wanted) = desired.hosts.get(host) else { return };
    let containers = look::own_containers(observation, host);
    let mut services: Vec<ServiceName> = Vec::new();
    let mut needed: u64 = 0;
    for (name, service) in &wanted.services {
        let Change::Replace { old, .. } = &service.change else { continue };
        let held = old.iter().filter(|old| old.running).filter_map(|old| {
            let facts = containers.iter().find(|facts| facts.name == old.name.as_str())?;
            facts.memory
        });
        // The one that holds most is what the new one will be like; others that run beside it are left over.
        if let Some(most) = held.max().filter(|most| *most > 0) {
            needed = needed.saturating_add(most);
            services.push(name.clone());
        }
    }
    if needed > fitness.memory_available {
        add(Unfit::Memory { available: fitness.memory_available, needed, services });
    }
}

/// Whether a container that jiji runs for all projects has the port.
fn ours(facts: &PortFacts, shared: &[ContainerFacts]) -> bool {
    facts.container.as_ref().is_some_and(|name| shared.iter().any(|container| container.name == *name))
}

fn owner(facts: &PortFacts) -> Owner {
    match (&facts.container, &facts.process) {
        (Some(name), _) => Owner::Container(name.clone()),
        (None, Some((number, name))) => Owner::Process(name.clone(), *number),
        (None, None) => Owner::Unknown,
    }
}

fn ports(spec: &ContainerSpec, fitness: &FitnessFacts, taken: &[PortFacts], add: &mut impl FnMut(Unfit)) {
    let lowest = spec.publish.iter().map(|publish| publish.host_port).min().unwrap_or_default();
    for publish in &spec.publish {
        let port = publish.host_port;
        if fitness.uid != 0 && port < fitness.unprivileged_port {
            add(Unfit::Privileged { port, first: fitness.unprivileged_port, lowest });
        }
        // A listener at another address than the one that is asked for is in nobody's way.
        let clashes = |facts: &&PortFacts| {
            let (theirs, ours) = (facts.address, publish.address.map(std::net::IpAddr::V4));
            facts.port == port && (theirs.is_none() || ours.is_none() || theirs == ours)
        };
        // The container itself is replaced, and its port with it.
        let own = |facts: &PortFacts| facts.container.as_deref() == Some(spec.name.as_str());
        if let Some(facts) = taken.iter().filter(clashes).find(|facts| !own(facts)) {
            add(Unfit::Port { port, owner: owner(facts), container: format!("`{}`", spec.name) });
        }
    }
}
