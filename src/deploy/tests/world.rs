//! Fleets as values: a project, what is observed of it, and what a plan makes of that.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use jiji_model::digest::Digest;
use jiji_model::image::{CONFIG, Descriptor, Image, LAYER_GZIP, MANIFEST, Platform};
use jiji_model::name::{HostName, ProjectName, ServiceName};
use jiji_model::observation::{
    Answer, ContainerFacts, Difference, DiskFacts, EngineFacts, FitnessFacts, HostFacts, IntegrityFacts, NetworkFacts,
    Observation, Part, Query,
};
use jiji_model::plan::{
    Action, ContainerImage, ContainerSpec, LABEL_SCOPE, LABEL_SECRETS, LABEL_SPEC, NETWORK, Plan, Step,
};
use jiji_model::project::{
    Build, Builder, Engine, Environment, Frontend, Plugins, Project, Proxy, Rollout, Server, Service, Source, Ssh,
};
use jiji_model::transaction::{HostRecords, Release};

use crate::deploy::{Answers, Assembled, Images, Seeds, assemble, desired, wants};

pub(in crate::deploy) fn host(name: &str) -> HostName {
    HostName::new(name).expect("a name")
}

pub(in crate::deploy) fn service_name(name: &str) -> ServiceName {
    ServiceName::new(name).expect("a name")
}

pub(in crate::deploy) fn image(repository: &str, version: &str, architecture: &str) -> Image {
    let blob = |kind: &str, media_type: &str, size| Descriptor {
        media_type: media_type.to_owned(),
        digest: Digest::of(format!("{repository} {version} {architecture} {kind}")),
        size,
    };
    Image {
        repository: repository.to_owned(),
        platform: Platform { os: "linux".to_owned(), architecture: architecture.to_owned() },
        manifest: blob("manifest", MANIFEST, 500),
        config: blob("config", CONFIG, 1_500),
        layers: vec![blob("layer", LAYER_GZIP, 1_000_000)],
    }
}

pub(in crate::deploy) fn service(hosts: &[&str]) -> Service {
    Service {
        source: Source::Build(Build {
            context: ".".to_owned(),
            file: "Dockerfile".to_owned(),
            frontend: Frontend::Dockerfile,
            args: BTreeMap::new(),
            target: None,
            secrets: Vec::new(),
            contexts: Default::default(),
            ssh: Vec::new(),
            compression: Default::default(),
        }),
        hosts: hosts.iter().map(|name| host(name)).collect(),
        environment: Environment::default(),
        command: None,
        volumes: Vec::new(),
        proxy: Some(Proxy {
            app_port: 8080,
            hosts: Vec::new(),
            path_prefix: "/".to_owned(),
            ssl: false,
            certificate: None,
        }),
        healthcheck: None,
        retain: 2,
        stop_timeout: 15,
        drain_timeout: 30,
    }
}

pub(in crate::deploy) fn project(hosts: &[&str], services: &[(&str, Service)]) -> Project {
    let server = |name: &&str| {
        let server = Server {
            address: format!("{name}.example"),
            user: None,
            port: None,
            engine: None,
            rootless: false,
            endpoint: None,
        };
        (host(name), server)
    };
    Project {
        name: ProjectName::new("shop").expect("a name"),
        environment: None,
        builder: Builder::default(),
        ssh: Ssh::default(),
        servers: hosts.iter().map(server).collect(),
        services: services.iter().map(|(name, service)| (service_name(name), service.clone())).collect(),
        rollout: Rollout::default(),
        plugins: Plugins::default(),
        network: None,
    }
}

/// Images of this version for all services of a project.
pub(in crate::deploy) fn images(project: &Project, version: &str) -> Images {
    let names = project.services.keys();
    names.map(|name| (name.clone(), vec![image(&format!("shop/{name}"), version, "amd64")])).collect()
}

/// What a host is, so that it can answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::deploy) struct Machine {
    pub(in crate::deploy) engine: Option<Engine>,
    pub(in crate::deploy) containers: Vec<ContainerFacts>,
    pub(in crate::deploy) network: Option<NetworkFacts>,
    pub(in crate::deploy) images: BTreeSet<jiji_model::image::ImageId>,
    pub(in crate::deploy) records: HostRecords,
    /// Every release that it remembers, newest first.
    pub(in crate::deploy) history: Vec<Release>,
    /// What is damaged there.
    pub(in crate::deploy) integrity: IntegrityFacts,
    /// The keyed digest of whatever secrets are sent.
    pub(in crate::deploy) mac: String,
    pub(in crate::deploy) fitness: FitnessFacts,
}

/// A host with room for everything.
fn fit() -> FitnessFacts {
    let disk = |path: &str| DiskFacts { path: path.to_owned(), device: 1, free: 100 << 30, files_free: Some(1 << 20) };
    FitnessFacts {
        installed: vec![Engine::Podman],
        engine_problem: None,
        distribution: vec!["debian".to_owned()],
        kernel: "6.1.0-18-amd64".to_owned(),
        uid: 0,
        unprivileged_port: 1024,
        engine_disk: disk("/var/lib/containers/storage"),
        state_disk: disk("/var/lib/jiji"),
        memory_available: 4 << 30,
        wall_clock_ms: 1_000_000,
        rootless: None,
        starts_at_boot: None,
    }
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            engine: Some(Engine::Podman),
            containers: Vec::new(),
            network: None,
            images: BTreeSet::new(),
            records: HostRecords::default(),
            history: Vec::new(),
            integrity: IntegrityFacts::default(),
            mac: "mac of the first value".to_owned(),
            fitness: fit(),
        }
    }
}

impl Machine {
    fn labelled(&self, labels: &BTreeMap<String, String>) -> Vec<ContainerFacts> {
        let fits = |facts: &&ContainerFacts| labels.iter().all(|(key, value)| facts.labels.get(key) == Some(value));
        self.containers.iter().filter(fits).cloned().collect()
    }

    pub(in crate::deploy) fn answer(&self, query: &Query) -> Answer {
        match query {
            Query::Host => Answer::Host(HostFacts {
                engine: self.engine.map(|kind| EngineFacts { kind, version: "4.3.1".to_owned() }),
                architecture: "amd64".to_owned(),
                hostname: "h".to_owned(),
                boot_id: "boot".to_owned(),
                boottime_ms: 1,
                wall_clock_s: 1,
                disk_free: 1,
                memory_available: 1,
            }),
            Query::Fitness => Answer::Fitness(Box::new(self.fitness.clone())),
            Query::Containers { labels } => Answer::Containers(self.labelled(labels)),
            Query::Network { .. } => self.network.clone().map_or(Answer::Absent, Answer::Network),
            Query::Records { .. } => Answer::Records(Box::new(self.records.clone())),
            Query::Images { images } => {
                Answer::Images(images.iter().filter(|image| self.images.contains(image)).copied().collect())
            }
            Query::SecretsMac { .. } => Answer::Mac(self.mac.clone()),
            Query::History { .. } => Answer::History(self.history.iter().map(Release::line).collect()),
            Query::Release { at, .. } => match self.history.iter().find(|release| release.number <= *at) {
                Some(release) => Answer::Release(Box::new(release.clone())),
                None => Answer::Absent,
            },
            Query::Integrity { .. } => Answer::Integrity(Box::new(IntegrityFacts {
                records: self.records.clone(),
                mode: Some(0o700),
                ..self.integrity.clone()
            })),
            Query::Compare { service, .. } => {
                let found = self.containers.iter().find(|facts| facts.name == service.container.as_str());
                let differs = |part, found: &str| {
                    vec![Difference { part, expected: "as decided".to_owned(), found: found.to_owned() }]
                };
                Answer::Differences(match found {
                    None => differs(Part::Existence, "none of that name"),
                    Some(facts) if !facts.running() => differs(Part::State, &facts.state),
                    Some(_) => Vec::new(),
                })
            }
            other => panic!("the core does not ask {other:?}"),
        }
    }

    fn run(&mut self, spec: &ContainerSpec) {
        let ContainerImage::Seeded { id, .. } = &spec.image else { panic!("a host runs seeded images alone") };
        assert!(self.images.contains(id), "{} runs an image that is not there", spec.name);
        let address = spec.address.unwrap_or(Ipv4Addr::new(10, 210, 0, 130));
        let mut labels = BTreeMap::clone(&spec.labels);
        labels.insert(LABEL_SPEC.to_owned(), spec.digest().to_string());
        if !spec.secrets().is_empty() {
            labels.insert(LABEL_SECRETS.to_owned(), self.mac.clone());
        }
        self.containers.retain(|facts| facts.name != spec.name.as_str());
        self.containers.push(ContainerFacts {
            id: Digest::of(spec.name.as_str()).hex(),
            name: spec.name.to_string(),
            manifest: Some(id.manifest),
            config: Some(id.config),
            state: "running".to_owned(),
            exit: None,
            oom: false,
            started: None,
            addresses: [(NETWORK.to_owned(), address)].into_iter().collect(),
            labels: labels.into_iter().collect(),
            memory: None,
        });
        let network = self.network.as_mut().expect("the network was made before");
        network.used.push(address);
        if spec.labels.get(LABEL_SCOPE).is_some_and(|scope| scope != "*") {
            self.records.last_address = Some(address);
        }
    }

    pub(in crate::deploy) fn act(&mut self, action: &Action) {
        match action {
            Action::NetworkEnsure { name, subnet, gateway } => {
                self.network = Some(NetworkFacts {
                    name: name.clone(),
                    subnet: Some(subnet.clone()),
                    gateway: Some(*gateway),
                    used: Vec::new(),
                });
            }
            Action::ImageEnsure { image } => {
                self.images.insert(image.id());
            }
            Action::ImageRemove { image, .. } => {
                let in_use = |facts: &ContainerFacts| facts.manifest == Some(image.manifest);
                assert!(!self.containers.iter().any(in_use), "an image in use is removed");
                self.images.remove(image);
            }
            Action::ContainerRun(spec) => self.run(spec),
            Action::ContainerStop { name, .. } => {
                for facts in self.containers.iter_mut().filter(|facts| facts.name == name.as_str()) {
                    facts.state = "exited".to_owned();
                }
            }
            Action::ContainerRemove { name } => {
                let gone = self.containers.iter().find(|facts| facts.name == name.as_str());
                let address = gone.and_then(|facts| facts.addresses.get(NETWORK).copied());
                self.containers.retain(|facts| facts.name != name.as_str());
                if let Some(network) = &mut self.network {
                    network.used.retain(|used| Some(*used) != address);
                }
            }
            Action::File { content, .. } => {
                let [jiji_model::plan::Word::Lit(json)] = content.as_slice() else { panic!("one literal") };
                self.records.roster = Some(serde_json::from_str(json).expect("a roster"));
            }
            Action::WaitProbe { .. } | Action::Hold { .. } | Action::ContainerExec { .. } | Action::Note { .. } => {}
            other => panic!("no plan here does {other:?}"),
        }
    }
}

/// A fleet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::deploy) struct World(pub(in crate::deploy) BTreeMap<HostName, Machine>);

impl World {
    pub(in crate::deploy) fn of(hosts: &[&str]) -> Self {
        Self(hosts.iter().map(|name| (host(name), Machine::default())).collect())
    }

    pub(in crate::deploy) fn machine(&mut self, name: &str) -> &mut Machine {
        self.0.get_mut(&host(name)).expect("it is in the world")
    }

    pub(in crate::deploy) fn observe(&self, project: &Project, images: &Images, seeds: &Seeds) -> Observation {
        let mut observation = Observation::default();
        for (host, machine) in &self.0 {
            let wants = wants(project, host, images, seeds).into_iter();
            let answers = wants.map(|want| (want.id, machine.answer(&want.query)));
            observation.hosts.insert(host.clone(), answers.collect());
        }
        observation
    }

    /// What a ship of this project would do, with what plugins answered.
    pub(in crate::deploy) fn plan_with(
        &self,
        project: &Project,
        images: &Images,
        seeds: &Seeds,
        answers: &Answers,
    ) -> Assembled {
        let observation = self.observe(project, images, seeds);
        let desired = desired(project, images, &observation).unwrap_or_else(|refused| panic!("{refused}"));
        assemble(&desired, seeds, answers, &observation).unwrap_or_else(|refused| panic!("{refused}"))
    }

    pub(in crate::deploy) fn plan(&self, project: &Project, images: &Images) -> Plan {
        self.plan_with(project, images, &Seeds::new(), &Answers::new()).plan
    }

    /// The steps of a plan in the order in which a fleet runs them.
    pub(in crate::deploy) fn ordered(plan: &Plan) -> Vec<&Step> {
        let mut steps: Vec<_> = plan.steps.iter().collect();
        steps.sort_by_key(|step| step.phase);
        steps
    }

    /// Does a whole plan.
    pub(in crate::deploy) fn apply(&mut self, plan: &Plan) {
        let number = 1 + self.0.values().map(|machine| machine.records.fencing).max().unwrap_or(0);
        for step in Self::ordered(plan) {
            self.0.get_mut(&step.host).expect("a known host").act(&step.action);
        }
        for (host, services) in &plan.releases {
            let machine = self.0.get_mut(host).expect("a known host");
            let with_secrets = services.iter().filter(|(_, service)| !service.container_spec.secrets().is_empty());
            let release = Release {
                version: Release::VERSION,
                number,
                transaction: format!("t{number}"),
                plan: plan.digest(),
                who: "ann@laptop".to_owned(),
                command: "ship".to_owned(),
                at_s: 0,
                services: services.clone(),
                retain: Some(plan.retain),
                secrets: with_secrets.map(|(name, _)| (name.clone(), machine.mac.clone())).collect(),
                seal: None,
            };
            machine.records.fencing = number;
            machine.history.insert(0, release);
            machine.records.releases = machine.history.clone();
            machine.records.releases.truncate(plan.retain as usize);
        }
    }

    /// Plans and does it.
    pub(in crate::deploy) fn ship(&mut self, project: &Project, images: &Images) -> Plan {
        let plan = self.plan(project, images);
        self.apply(&plan);
        plan
    }
}

/// One line per step. Digits of digests are numbered in the order in which they come, so that a line does not change with the format.
pub(in crate::deploy) fn lines(plan: &Plan) -> String {
    let line = |step: &&Step| {
        let undo = if step.undo.is_some() { " (has an undo)" } else { "" };
        format!("{} {}: {}{undo}", step.host, step.phase, step.title)
    };
    let text = World::ordered(plan).iter().map(line).collect::<Vec<_>>().join("\n");
    let mut seen: Vec<&str> = Vec::new();
    let digits = |word: &&str| word.len() >= 8 && word.bytes().all(|b| b.is_ascii_hexdigit());
    for word in text.split(|c: char| !c.is_ascii_alphanumeric()).filter(digits) {
        if !seen.contains(&word) {
            seen.push(word);
        }
    }
    let numbered = seen.iter().enumerate();
    numbered.fold(text.clone(), |text, (index, word)| text.replace(word, &format!("#{}", index + 1)))
}
