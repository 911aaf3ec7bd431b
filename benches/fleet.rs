//! A fleet in memory: hosts that have shipped a project before and answer what they are asked.
//!
//! What one host runs is taken from a plan that was really made for it; all others run the same at addresses of their own. The proxy
//! answers as kamal-proxy v0.9.2 does: a table, and a state file with every option. Nothing of it is slower or faster than a host: there is
//! no host.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use jiji_model::digest::{CanonicalJson, Digest};
use jiji_model::image::{CONFIG, Descriptor, Image, LAYER_GZIP, MANIFEST, Platform};
use jiji_model::name::{ContainerName, HostName, ProjectName, SecretName, ServiceName};
use jiji_model::observation::{
    Answer, CommandFacts, ContainerFacts, EngineFacts, Fact, FileFacts, HostFacts, NetworkFacts, Query, Want,
};
use jiji_model::plan::{Action, LABEL_ADDRESS, LABEL_SECRETS, LABEL_SPEC, NETWORK, Plan, PlannedService, Word};
use jiji_model::project::{
    Build, Builder, Check, Engine, Environment, Frontend, HealthCheck, Plugins, Project, Proxy, Rollout, Server,
    Service, Source, Ssh,
};
use jiji_model::route::Route;
use jiji_model::shared::Shared;
use jiji_model::transaction::{HostRecords, Release, Roster, roster};

/// Images of services or of plugins, by name.
pub type Images<K> = BTreeMap<K, Vec<Image>>;

/// How large a fleet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Hosts.
    pub hosts: usize,
    /// Services of the project.
    pub services: usize,
    /// Services on each host.
    pub per_host: usize,
}

fn host(number: usize) -> HostName {
    HostName::new(format!("host-{number:04}")).expect("it is a server's name")
}

fn service(number: usize) -> ServiceName {
    ServiceName::new(format!("service-{number:02}")).expect("it is a service's name")
}

fn number_of(host: &HostName) -> usize {
    host.as_str().trim_start_matches("host-").parse().expect("a host of this fleet")
}

/// A project whose services are spread evenly over the hosts: each with a proxy's route, a health check, a secret and some variables.
pub fn project(shape: Shape) -> Project {
    let mut hosts: Vec<Vec<HostName>> = vec![Vec::new(); shape.services];
    for number in 0..shape.hosts {
        for slot in 0..shape.per_host {
            hosts[(number * shape.per_host + slot) % shape.services].push(host(number));
        }
    }
    let of = |(number, hosts): (usize, Vec<HostName>)| {
        let service_of = Service {
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
            hosts,
            environment: Environment {
                clear: [("MODE", "production"), ("REGION", "north"), ("WORKERS", "4")]
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .into(),
                secrets: vec![SecretName::new("DATABASE_URL").expect("it is a secret's name")],
            },
            command: None,
            volumes: Vec::new(),
            proxy: Some(Proxy {
                app_port: 8080,
                hosts: vec![format!("service-{number:02}.example.org")],
                path_prefix: "/".to_owned(),
                ssl: false,
                certificate: None,
            }),
            healthcheck: Some(HealthCheck {
                check: Check::Http { port: 8080, path: "/up".to_owned() },
                interval_ms: 500,
                timeout_ms: 2_000,
                deadline_ms: 30_000,
            }),
            retain: 1,
            stop_timeout: 10,
            drain_timeout: 30,
        };
        (service(number), service_of)
    };
    let server = |number| {
        let server = Server {
            address: format!("192.0.2.{}", number % 250),
            user: None,
            port: None,
            engine: None,
            rootless: false,
            endpoint: None,
        };
        (host(number), server)
    };
    Project {
        name: ProjectName::new("bench").expect("it is a project's name"),
        environment: None,
        builder: Builder::default(),
        ssh: Ssh::default(),
        servers: (0..shape.hosts).map(server).collect(),
        services: hosts.into_iter().enumerate().filter(|(_, hosts)| !hosts.is_empty()).map(of).collect(),
        rollout: Rollout::default(),
        plugins: Plugins::default(),
        network: None,
    }
}

fn image(repository: &str, version: &str) -> Image {
    let blob = |kind: &str, media_type: &str, size| Descriptor {
        media_type: media_type.to_owned(),
        digest: Digest::of(format!("{repository} {version} {kind}")),
        size,
    };
    Image {
        repository: repository.to_owned(),
        platform: Platform::linux_amd64(),
        manifest: blob("manifest", MANIFEST, 900),
        config: blob("config", CONFIG, 2_500),
        layers: (0..5).map(|layer| blob(&format!("layer {layer}"), LAYER_GZIP, 4_000_000)).collect(),
    }
}

/// Images of all services, in version 2 those for which `changed` holds.
pub fn images(project: &Project, changed: impl Fn(usize) -> bool) -> Images<ServiceName> {
    let of = |(number, name): (usize, &ServiceName)| {
        let version = if changed(number) { "2" } else { "1" };
        (name.clone(), vec![image(&format!("bench/{name}"), version)])
    };
    project.services.keys().enumerate().map(of).collect()
}

/// The image of the default proxy plugin.
pub fn seeds() -> Images<String> {
    let image = image("basecamp/kamal-proxy", "0.9.2");
    [(format!("docker.io/basecamp/kamal-proxy@{}", image.manifest.digest), vec![image])].into()
}

/// All hosts of a project with their architecture.
pub fn hosts(project: &Project) -> BTreeMap<HostName, String> {
    project.servers.keys().map(|host| (host.clone(), "amd64".to_owned())).collect()
}

/// What a host says that has nothing of jiji yet.
pub fn empty(_: &HostName, wants: &[Want]) -> Vec<Fact> {
    let answer = |query: &Query| match query {
        Query::Host => Answer::Host(host_facts()),
        Query::Containers { .. } => Answer::Containers(Vec::new()),
        Query::Records { .. } => Answer::Records(Box::default()),
        Query::Images { .. } => Answer::Images(Vec::new()),
        Query::SecretsMac { .. } => Answer::Mac("a keyed digest".to_owned()),
        _ => Answer::Absent,
    };
    wants.iter().map(|want| Fact { id: want.id.clone(), answer: answer(&want.query) }).collect()
}

fn host_facts() -> HostFacts {
    HostFacts {
        engine: Some(EngineFacts { kind: Engine::Podman, version: "5.4.0".to_owned() }),
        architecture: "amd64".to_owned(),
        hostname: "host".to_owned(),
        boot_id: "6ff0f9a2-0b3c-4b3e-8b0e-1f2d3c4b5a69".to_owned(),
        boottime_ms: 86_400_000,
        wall_clock_s: 1_795_000_000,
        disk_free: 1 << 38,
        memory_available: 1 << 33,
    }
}

/// Hosts that run what one of them was planned to.
pub struct Fleet {
    placement: BTreeMap<HostName, Vec<ServiceName>>,
    services: BTreeMap<ServiceName, Running>,
    proxy: ContainerFacts,
    images: BTreeSet<jiji_model::image::ImageId>,
    roster: Shared<Roster>,
}

/// A service as it runs on a host, but for names and addresses.
struct Running {
    planned: Shared<PlannedService>,
    /// How it is routed.
    route: Option<Route>,
    facts: ContainerFacts,
    /// Its entry in the proxy's state file, before and after the address that it is routed to.
    state: [String; 2],
}

impl Fleet {
    /// A fleet of `project`, of which every host runs what `first`, the plan of a single host with all services, made it run.
    pub fn shipped(project: &Project, first: &Plan) -> Self {
        let planned = first.releases.values().next().expect("one host was planned");
        let mut images = BTreeSet::new();
        let mut proxy = None;
        let mut states = BTreeMap::new();
        for step in &first.steps {
            match &step.action {
                Action::ImageEnsure { image } => {
                    images.insert(image.id());
                }
                Action::ContainerRun(spec) if step.service.is_none() => {
                    let mut labels = BTreeMap::clone(&spec.labels);
                    labels.insert(LABEL_SPEC.to_owned(), spec.digest().to_string());
                    proxy = Some(facts(spec.name.as_str(), labels, Ipv4Addr::LOCALHOST));
                }
                Action::ContainerExec { argv, .. } => {
                    if let Some(service) = &step.service {
                        let mut entry = state(argv);
                        entry["name"] = format!("bench-{service}").into();
                        entry["active_targets"] = serde_json::json!(["ADDRESS"]);
                        let text = entry.to_string();
                        let (before, after) = text.split_once("ADDRESS").expect("it was just put there");
                        states.insert(service.clone(), [before.to_owned(), after.to_owned()]);
                    }
                }
                _ => {}
            }
        }
        let services = planned.iter().map(|(name, planned)| {
            let mut labels = BTreeMap::clone(&planned.container_spec.labels);
            labels.insert(LABEL_SPEC.to_owned(), planned.spec.to_string());
            labels.insert(LABEL_SECRETS.to_owned(), "a keyed digest".to_owned());
            // Every host has its own.
            labels.insert(LABEL_ADDRESS.to_owned(), String::new());
            let mut facts = facts(planned.container.as_str(), labels, Ipv4Addr::LOCALHOST);
            (facts.manifest, facts.config) = (Some(planned.image.manifest.digest), Some(planned.image.config.digest));
            let state = states.get(name).cloned().expect("every service is routed");
            let route = planned.route.as_ref().map(|route| route.read().expect("a route"));
            (name.clone(), Running { planned: planned.clone(), route, facts, state })
        });
        let mut roster = Roster::default();
        roster.give(project.servers.keys()).expect("there are as many numbers");
        let placement = project.placement();
        Self {
            placement: project
                .servers
                .keys()
                .map(|host| (host.clone(), placement.on(host).iter().map(|(name, _)| (*name).clone()).collect()))
                .collect(),
            services: services.collect(),
            proxy: proxy.expect("the proxy is run"),
            images,
            roster: roster.into(),
        }
    }

    /// What a host answers.
    pub fn answer(&self, host: &HostName, wants: &[Want]) -> Vec<Fact> {
        let of_host = OfHost { fleet: self, number: u16::try_from(number_of(host)).expect("few hosts"), host };
        wants.iter().map(|want| Fact { id: want.id.clone(), answer: of_host.answer(&want.query) }).collect()
    }
}

struct OfHost<'a> {
    fleet: &'a Fleet,
    number: u16,
    host: &'a HostName,
}

impl OfHost<'_> {
    /// Services with the addresses that they have here.
    fn services(&self) -> impl Iterator<Item = (&ServiceName, &Running, Ipv4Addr)> {
        let names = &self.fleet.placement[self.host];
        names.iter().zip(roster::addresses(self.number)).map(|(name, address)| {
            let (name, running) = self.fleet.services.get_key_value(name).expect("it was planned");
            (name, running, address)
        })
    }

    fn container(&self, name: &ServiceName) -> ContainerName {
        ContainerName::new(format!("bench-{name}-{:08x}", self.number)).expect("it is a container's name")
    }

    fn answer(&self, query: &Query) -> Answer {
        match query {
            Query::Host => Answer::Host(host_facts()),
            Query::Containers { labels } if labels.values().any(|scope| scope == "*") => {
                Answer::Containers(vec![self.proxy()])
            }
            Query::Containers { .. } => Answer::Containers(
                self.services()
                    .map(|(name, running, address)| {
                        let mut facts = running.facts.clone();
                        facts.name = self.container(name).to_string();
                        facts.addresses.insert(NETWORK.to_owned(), address);
                        facts.labels.insert(LABEL_ADDRESS.to_owned(), address.to_string());
                        facts
                    })
                    .collect(),
            ),
            Query::Container { .. } => Answer::Container(Box::new(self.proxy())),
            Query::Network { .. } => Answer::Network(NetworkFacts {
                name: NETWORK.to_owned(),
                subnet: Some(roster::subnet(self.number)),
                gateway: Some(roster::gateway(self.number)),
                used: self.services().map(|(_, _, address)| address).collect(),
            }),
            Query::Images { images } => {
                Answer::Images(images.iter().filter(|image| self.fleet.images.contains(image)).copied().collect())
            }
            Query::Records { .. } => Answer::Records(Box::new(self.records())),
            Query::SecretsMac { .. } => Answer::Mac("a keyed digest".to_owned()),
            Query::Exec { .. } => Answer::Command(CommandFacts {
                exit: Some(0),
                stdout: self.table(),
                stderr: String::new(),
                truncated: false,
            }),
            // Nothing else is there, so no proxy is being replaced.
            Query::File { path, .. } if path.as_str().ends_with(".state") => {
                let content = self.state_file();
                Answer::File(FileFacts {
                    sha256: Digest::of(&content),
                    mode: 0o600,
                    size: content.len() as u64,
                    content: Some(content),
                })
            }
            _ => Answer::Absent,
        }
    }

    fn proxy(&self) -> ContainerFacts {
        let mut facts = self.fleet.proxy.clone();
        let [a, b, c, d] = roster::gateway(self.number).octets();
        facts.addresses.insert(NETWORK.to_owned(), Ipv4Addr::new(a, b, c, d + 1));
        facts
    }

    fn records(&self) -> HostRecords {
        let services = self.services().map(|(name, running, address)| {
            let mut planned = PlannedService::clone(&running.planned);
            planned.container = self.container(name);
            planned.address = Some(address);
            planned.container_spec.name = planned.container.clone();
            planned.container_spec.address = Some(address);
            planned.route = running.route.as_ref().map(|route| {
                let mut route = route.clone();
                for target in &mut route.targets {
                    (target.container, target.address) = (planned.container.clone(), address);
                }
                CanonicalJson::of(&route)
            });
            (name.clone(), Shared::new(planned))
        });
        let services: BTreeMap<_, _> = services.collect();
        let mut records = HostRecords {
            fencing: 1,
            last_address: self.services().last().map(|(_, _, address)| address),
            roster: Some(self.fleet.roster.clone()),
            ..HostRecords::default()
        };
        records.releases.push(Release {
            version: Release::VERSION,
            number: 1,
            transaction: "0123456789abcdef-1".to_owned(),
            plan: Digest::of("plan"),
            who: "ann@laptop".to_owned(),
            command: "ship".to_owned(),
            at_s: 1_795_000_000,
            secrets: services.keys().map(|name| (name.clone(), "a keyed digest".to_owned())).collect(),
            services,
            retain: Some(1),
            seal: None,
        });
        records
    }

    /// `kamal-proxy list` (internal/cmd/list.go).
    fn table(&self) -> String {
        let mut out = String::from("\u{1b}[3mService\u{1b}[0m  Host  Path  Target  State  TLS\n");
        for (name, _, address) in self.services() {
            out.push_str(&format!("bench-{name}  {name}.example.org  /  {address}:8080  running  no\n"));
        }
        out
    }

    fn state_file(&self) -> String {
        let entry = |(_, running, address): (&ServiceName, &Running, Ipv4Addr)| {
            let [before, after] = &running.state;
            format!("{before}{address}:8080{after}")
        };
        format!("[{}]", self.services().map(entry).collect::<Vec<_>>().join(","))
    }
}

fn facts(name: &str, labels: BTreeMap<String, String>, address: Ipv4Addr) -> ContainerFacts {
    ContainerFacts {
        id: Digest::of(name).hex(),
        name: name.to_owned(),
        manifest: None,
        config: None,
        state: "running".to_owned(),
        exit: None,
        oom: false,
        started: Some("2026-11-25T02:00:00.123456789Z".to_owned()),
        addresses: [(NETWORK.to_owned(), address)].into_iter().collect(),
        labels: labels.into_iter().collect(),
        memory: None,
    }
}

/// A service's entry in the proxy's state file (`marshalledService` in internal/server/service.go) after `kamal-proxy deploy` with these
/// arguments.
fn state(argv: &[Word]) -> serde_json::Value {
    let mut flags: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for word in argv {
        if let Word::Lit(text) = word
            && let Some((name, value)) = text.strip_prefix("--").and_then(|flag| flag.split_once('='))
        {
            flags.entry(name).or_default().push(value);
        }
    }
    let texts = |name: &str| flags.get(name).cloned().unwrap_or_default();
    let text = |name: &str| texts(name).first().copied().unwrap_or_default();
    let yes = |name: &str| text(name) == "true";
    let number = |name: &str| text(name).parse::<u64>().unwrap_or_default();
    let time = |name: &str| {
        let text = text(name);
        let (digits, unit) = match text.strip_suffix("ms") {
            Some(digits) => (digits, 1_000_000),
            None => (text.trim_end_matches('s'), 1_000_000_000),
        };
        digits.parse::<u64>().unwrap_or_default() * unit
    };
    serde_json::json!({
        "options": {
            "hosts": texts("host"), "path_prefixes": texts("path-prefix"), "strip_prefix": yes("strip-path-prefix"),
            "tls_enabled": yes("tls"), "tls_redirect": true, "tls_certificate_path": "", "tls_private_key_path": "",
            "acme_directory": "", "acme_cache_path": "/home/kamal-proxy/.config/kamal-proxy/certs",
            "canonical_host": text("canonical-host"),
            "error_page_path": text("error-pages"), "writer_affinity_timeout": time("writer-affinity-timeout"),
            "read_targets_accept_websockets": yes("read-target-websockets"),
        },
        "target_options": {
            "health_check_config": {
                "path": text("health-check-path"), "port": number("health-check-port"),
                "interval": time("health-check-interval"), "timeout": time("health-check-timeout"),
                "host": text("health-check-host"),
            },
            "response_timeout": time("target-timeout"), "buffer_requests": yes("buffer-requests"),
            "buffer_responses": yes("buffer-responses"), "max_memory_buffer_size": number("buffer-memory"),
            "max_request_body_size": 0, "max_response_body_size": 0, "log_request_headers": null,
            "log_response_headers": null, "forward_headers": yes("forward-headers"),
            "scope_cookie_paths": yes("scope-cookie-paths"),
        },
    })
}
