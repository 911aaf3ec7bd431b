//! One service: its source, hosts, mounts, routes and health.

use std::collections::BTreeMap;

use jiji_model::image::Compression;
use jiji_model::name::{AbsPath, HostName, SecretName, ServiceName};
use jiji_model::project::{
    Build, Certificate, Check, Environment, Frontend, HealthCheck, Mount, MountSource, NamedContext, Proxy, Service,
    Source,
};
use jiji_model::reference::Reference;

use super::{Decoder, Node, Servers, is_domain};
use crate::config::error::Problem;
use crate::config::tree::Kind;

/// What a proxied service without a health check of its own must answer: Kamal's convention, which the seed system follows.
const DEFAULT_PATH: &str = "/up";
const INTERVAL_MS: u32 = 500;
const TIMEOUT_MS: u32 = 5_000;
const DEADLINE_MS: u32 = 30_000;
const RETAIN: u32 = 3;
const STOP_TIMEOUT: u32 = 10;
const DRAIN_TIMEOUT: u32 = 30;

/// Which service takes the requests of a host, a host name and a path prefix.
#[derive(Default)]
pub(super) struct Routes(BTreeMap<(HostName, Option<String>, String), ServiceName>);

impl Decoder<'_> {
    pub(super) fn service(&mut self, node: &Node<'_>, shared: &Environment, servers: &Servers) -> Option<Service> {
        if !matches!(node.value.kind, Kind::Map(_)) {
            return None;
        }
        let source = self.source(node);
        let hosts = self.hosts(node, servers);
        let own = node.get("environment").map(|node| self.environment(&node)).unwrap_or_default();
        let command = node.get("command").map(|node| self.argv(&node));
        let mounts = node.get("volumes").map(|node| self.mounts(&node)).unwrap_or_default();
        let proxy = node.get("proxy").map(|node| self.proxy(&node));
        let healthcheck = self.healthcheck(node, proxy.as_ref().and_then(Option::as_ref));
        Some(Service {
            source: source?,
            hosts: hosts?,
            environment: merged(shared, own),
            command: match command {
                Some(argv) => Some(argv?),
                None => None,
            },
            volumes: mounts,
            proxy: match proxy {
                Some(proxy) => Some(proxy?),
                None => None,
            },
            healthcheck,
            retain: node.get("retain").and_then(|node| node.integer()).unwrap_or(RETAIN),
            stop_timeout: node.get("stop_timeout").and_then(|node| node.seconds()).unwrap_or(STOP_TIMEOUT),
            drain_timeout: node.get("drain_timeout").and_then(|node| node.seconds()).unwrap_or(DRAIN_TIMEOUT),
        })
    }

    fn source(&mut self, node: &Node<'_>) -> Option<Source> {
        match (node.get("image"), node.get("build")) {
            (Some(image), None) => {
                let rule = "expected `[REGISTRY/]NAME[:TAG][@sha256:DIGEST]`, the name in small letters";
                self.grammar(&image, "image", rule, is_image).map(Source::Image)
            }
            (None, Some(build)) => self.build(&build).map(Source::Build),
            (Some(image), Some(_)) => {
                let advice = "keep `image` to run what a registry has, `build` to make it";
                self.report_at_key(&image, Problem::Together { one: "image", other: "build", advice });
                None
            }
            (None, None) => {
                self.report_at_key(node, Problem::NoneOf { keys: &["image", "build"] });
                None
            }
        }
    }

    fn build(&mut self, node: &Node<'_>) -> Option<Build> {
        let rule = "expected a relative path that stays inside, without `..`";
        if matches!(node.value.kind, Kind::Scalar(_)) {
            let context = self.grammar(node, "context directory", rule, is_inside)?;
            let (file, frontend, args) = ("Dockerfile".to_owned(), Frontend::Dockerfile, BTreeMap::new());
            let (secrets, contexts, ssh) = (Vec::new(), BTreeMap::new(), Vec::new());
            let compression = Compression::default();
            return Some(Build { context, file, frontend, args, target: None, secrets, contexts, ssh, compression });
        }
        let context = match node.get("context") {
            Some(node) => self.grammar(&node, "context directory", rule, is_inside),
            None => Some(".".to_owned()),
        };
        let (file, frontend) = match (node.get("dockerfile"), node.get("recipe")) {
            (Some(_), Some(recipe)) => {
                let advice = "keep `dockerfile` or `recipe`: one file says how the image is built";
                self.report_at_key(&recipe, Problem::Together { one: "dockerfile", other: "recipe", advice });
                (None, Frontend::Recipe)
            }
            (Some(node), None) => (self.grammar(&node, "Dockerfile", rule, is_inside), Frontend::Dockerfile),
            (None, Some(node)) => (self.grammar(&node, "recipe", rule, is_inside), Frontend::Recipe),
            (None, None) => (Some("Dockerfile".to_owned()), Frontend::Dockerfile),
        };
        let mut args = BTreeMap::new();
        let written = node.get("args");
        for (node, key) in written.iter().flat_map(Node::entries) {
            if !super::is_variable(key) {
                let text = key.chars().take(80).collect();
                let rule = "expected A-Z, a-z, 0-9 and `_`, not beginning with a digit";
                self.report_at_key(&node, Problem::Grammar { text, what: "build argument's name", rule });
            }
            if let Some(text) = node.text() {
                args.insert(key.to_owned(), text.to_owned());
            }
        }
        let target = node.get("target").and_then(|node| node.text().map(str::to_owned));
        let mut secrets = Vec::new();
        for item in node.get("secrets").iter().flat_map(Node::items) {
            let Some(name) = self.name(&item, SecretName::new) else { continue };
            if secrets.contains(&name) {
                let why = "one of the two is enough";
                self.report(&item, Problem::Twice { what: "the secret", name: name.to_string(), why });
                continue;
            }
            let by = item.path.rsplit_once('.').map_or(item.path.as_str(), |(by, _)| by).to_owned();
            self.asks(&item, &name, &by);
            secrets.push(name);
        }
        let mut contexts = BTreeMap::new();
        for (node, key) in node.get("contexts").iter().flat_map(Node::entries) {
            if key.is_empty() || key.len() > 255 || key.chars().any(|ch| ch.is_whitespace() || ch.is_control()) {
                let text = key.chars().take(80).collect();
                let rule = "expected a name without blanks";
                self.report_at_key(&node, Problem::Grammar { text, what: "context's name", rule });
            }
            let rule = "expected a directory inside of the project, `docker-image://REFERENCE` or `oci-layout://DIRECTORY[:TAG]`";
            if let Some(text) = self.grammar(&node, "context", rule, is_context)
                && let Ok(context) = text.parse()
            {
                contexts.insert(key.to_owned(), context);
            }
        }
        let mut ssh: Vec<String> = Vec::new();
        for item in node.get("ssh").iter().flat_map(Node::items) {
            let rule = "expected a-z, A-Z, 0-9, `-`, `_` and `.`";
            let Some(id) = self.grammar(&item, "agent's id", rule, is_agent) else { continue };
            if ssh.contains(&id) {
                self.report(&item, Problem::Twice { what: "the agent", name: id, why: "one of the two is enough" });
                continue;
            }
            ssh.push(id);
        }
        let compression = match node.get("compression").as_ref().and_then(Node::text) {
            Some("zstd") => Compression::Zstd,
            _ => Compression::Gzip,
        };
        Some(Build { context: context?, file: file?, frontend, args, target, secrets, contexts, ssh, compression })
    }

    fn hosts(&mut self, node: &Node<'_>, servers: &Servers) -> Option<Vec<HostName>> {
        let node = node.get("hosts")?;
        let items = node.items();
        if items.is_empty() && matches!(node.value.kind, Kind::Seq(_)) {
            self.report_at_key(&node, Problem::Empty { needs: "server" });
            return None;
        }
        let mut hosts = Vec::new();
        let mut whole = true;
        for item in &items {
            let known = item.text().and_then(|text| servers.keys().find(|name| name.as_str() == text));
            match known {
                Some(name) if hosts.contains(name) => {
                    let why = "a service runs once on each of its hosts";
                    self.report(item, Problem::Twice { what: "the server", name: name.to_string(), why });
                }
                Some(name) => hosts.push(name.clone()),
                None => {
                    whole = false;
                    self.unknown_server(item, servers);
                }
            }
        }
        (whole && !hosts.is_empty()).then_some(hosts)
    }

    /// A list of arguments, or a text that is split at spaces as long as no shell would do more than that.
    fn argv(&mut self, node: &Node<'_>) -> Option<Vec<String>> {
        let argv: Vec<String> = match &node.value.kind {
            Kind::Seq(_) => node.items().iter().filter_map(|item| item.text().map(str::to_owned)).collect(),
            _ => {
                let rule = "no shell reads it: write a list of arguments, `[sh, -c, \"…\"]` if a shell is meant";
                let text = self.grammar(node, "plain command", rule, |text| {
                    !text.contains(['\'', '"', '\\', '`', '$', '|', '&', ';', '<', '>', '*', '?', '(', ')', '#', '~'])
                })?;
                text.split_whitespace().map(str::to_owned).collect()
            }
        };
        if argv.first().is_none_or(String::is_empty) {
            self.report(node, Problem::Empty { needs: "argument" });
            return None;
        }
        if argv.iter().any(|argument| argument.contains('\0')) {
            let rule = "an argument cannot hold a zero byte";
            self.report(node, Problem::Grammar { text: "…".to_owned(), what: "argument", rule });
            return None;
        }
        Some(argv)
    }

    fn mounts(&mut self, node: &Node<'_>) -> Vec<Mount> {
        let mut mounts: Vec<Mount> = Vec::new();
        for item in node.items() {
            let Some(scalar) = item.scalar() else { continue };
            match mount(&scalar.text) {
                Some(mount) if mounts.iter().any(|known| known.target == mount.target) => {
                    let why = "one path of the container shows one thing";
                    self.report(&item, Problem::Twice { what: "the path", name: mount.target.to_string(), why });
                }
                Some(mount) => mounts.push(mount),
                None => {
                    let text = scalar.shown().chars().take(80).collect();
                    let rule = "expected `NAME:/PATH`, `/HOST/PATH:/PATH` or `tmpfs:/PATH`, then `:ro` or nothing";
                    self.report(&item, Problem::Grammar { text, what: "volume", rule });
                }
            }
        }
        mounts
    }

    fn proxy(&mut self, node: &Node<'_>) -> Option<Proxy> {
        let names = match (node.get("host"), node.get("hosts")) {
            (Some(host), Some(_)) => {
                let advice = "keep `hosts` and put all names there";
                self.report_at_key(&host, Problem::Together { one: "host", other: "hosts", advice });
                Vec::new()
            }
            (Some(one), None) | (None, Some(one)) => one.items(),
            (None, None) => Vec::new(),
        };
        let mut hosts: Vec<String> = Vec::new();
        for item in &names {
            let rule = "expected a host name alone, such as `shop.example.com` or `*.example.com`";
            let Some(name) = self.grammar(item, "host name", rule, |text| {
                text == text.to_lowercase() && is_domain(text.strip_prefix("*.").unwrap_or(text))
            }) else {
                continue;
            };
            if hosts.contains(&name) {
                self.report(item, Problem::Twice { what: "the host name", name, why: "one of the two is enough" });
            } else {
                hosts.push(name);
            }
        }
        let certificate = node.get("certificate");
        let ssl = node.get("ssl").and_then(|node| node.boolean()).unwrap_or(certificate.is_some());
        if let Some(node) = certificate.as_ref().filter(|_| !ssl) {
            let advice = "keep `certificate` to speak TLS, `ssl: false` to speak none";
            self.report_at_key(node, Problem::Together { one: "ssl: false", other: "certificate", advice });
        }
        let certificate = certificate.as_ref();
        if let Some(node) = node.get("ssl").as_ref().or(certificate).filter(|_| ssl && names.is_empty()) {
            let problem = Problem::MissingKey { key: "host", purpose: "a certificate is for a host name" };
            self.report_at_key(node, problem);
        }
        let certificate = match certificate {
            Some(node) => Some(self.certificate(node)?),
            None => None,
        };
        let path_prefix = match node.get("path_prefix") {
            Some(node) => self.grammar(&node, "path prefix", "expected a path that begins with `/`", is_url_path),
            None => Some("/".to_owned()),
        };
        Some(Proxy {
            app_port: node.get("app_port").and_then(|node| node.integer())?,
            hosts,
            path_prefix: path_prefix.map(|prefix| match prefix.trim_end_matches('/') {
                "" => "/".to_owned(),
                prefix => prefix.to_owned(),
            })?,
            ssl,
            certificate,
        })
    }

    fn certificate(&mut self, node: &Node<'_>) -> Option<Certificate> {
        let mut secret = |key: &str| {
            let item = node.get(key)?;
            let name = self.name(&item, SecretName::new)?;
            self.asks(&item, &name, &item.path);
            Some(name)
        };
        let (chain, key) = (secret("chain"), secret("key"));
        Some(Certificate { chain: chain?, key: key? })
    }

    fn healthcheck(&mut self, service: &Node<'_>, proxy: Option<&Proxy>) -> Option<HealthCheck> {
        let inner = service.get("proxy").and_then(|node| node.get("healthcheck"));
        let outer = service.get("healthcheck");
        if let (Some(_), Some(outer)) = (&inner, &outer) {
            let advice = "keep the one under `proxy`";
            let problem = Problem::Together { one: "proxy.healthcheck", other: "healthcheck", advice };
            self.report_at_key(outer, problem);
            return None;
        }
        let app_port = proxy.map(|proxy| proxy.app_port);
        let Some(node) = inner.or(outer) else {
            return app_port.map(|port| HealthCheck {
                check: Check::Http { port, path: DEFAULT_PATH.to_owned() },
                interval_ms: INTERVAL_MS,
                timeout_ms: TIMEOUT_MS,
                deadline_ms: DEADLINE_MS,
            });
        };
        let port = node.get("port").and_then(|node| node.integer::<u16>());
        let check = match (node.get("path"), node.get("cmd")) {
            (Some(_), Some(cmd)) => {
                let advice = "keep `path` to ask over HTTP, `cmd` to run a command in the container";
                self.report_at_key(&cmd, Problem::Together { one: "path", other: "cmd", advice });
                None
            }
            (Some(path), None) => {
                let path =
                    self.grammar(&path, "path", "expected a path that begins with `/`, without spaces", is_url_path);
                match port.or(app_port) {
                    Some(port) => path.map(|path| Check::Http { port, path }),
                    // A proxy without a port, or a port of the wrong kind, has its error already.
                    None if service.get("proxy").is_some() || node.get("port").is_some() => None,
                    None => {
                        let problem =
                            Problem::MissingKey { key: "port", purpose: "a service without a proxy has no `app_port`" };
                        self.report_at_key(&node, problem);
                        None
                    }
                }
            }
            (None, Some(cmd)) => {
                if let Some(port) = node.get("port") {
                    let advice = "keep `port` to connect, `cmd` to run a command in the container";
                    self.report_at_key(&port, Problem::Together { one: "port", other: "cmd", advice });
                }
                self.argv(&cmd).map(|argv| Check::Exec { argv })
            }
            (None, None) => match (port, app_port) {
                (Some(port), _) => Some(Check::Tcp { port }),
                // Times alone change the times of the default.
                (None, Some(port)) => Some(Check::Http { port, path: DEFAULT_PATH.to_owned() }),
                (None, None) if service.get("proxy").is_some() || node.get("port").is_some() => None,
                (None, None) => {
                    self.report_at_key(&node, Problem::NoneOf { keys: &["path", "port", "cmd"] });
                    None
                }
            },
        };
        let mut time = |key: &str, default: u32| match node.get(key) {
            Some(node) => {
                let ms = node.milliseconds().unwrap_or(default);
                if ms == 0 {
                    let text = "0".to_owned();
                    self.report(
                        &node,
                        Problem::Grammar { text, what: "time to wait", rule: "expected more than nothing" },
                    );
                }
                ms
            }
            None => default,
        };
        let interval_ms = time("interval", INTERVAL_MS);
        let timeout_ms = time("timeout", TIMEOUT_MS);
        let deadline_ms = time("deploy_timeout", DEADLINE_MS);
        Some(HealthCheck { check: check?, interval_ms, timeout_ms, deadline_ms })
    }

    /// Reports requests that two services of one host would take.
    pub(super) fn routes(&mut self, node: &Node<'_>, name: &ServiceName, service: &Service, routes: &mut Routes) {
        let Some(proxy) = &service.proxy else { return };
        let names: Vec<Option<String>> = match proxy.hosts.as_slice() {
            [] => vec![None],
            hosts => hosts.iter().cloned().map(Some).collect(),
        };
        for host in &service.hosts {
            for requested in &names {
                let route = (host.clone(), requested.clone(), proxy.path_prefix.clone());
                if let Some(other) = routes.0.get(&route) {
                    let problem = Problem::SameRoute { other: other.to_string(), host: host.to_string() };
                    let place = node.get("proxy").unwrap_or_else(|| node.clone());
                    self.report_at_key(&place, problem);
                    return;
                }
                routes.0.insert(route, name.clone());
            }
        }
    }
}

/// The project's environment under a service's own: of a variable that both have, the service's stays.
fn merged(shared: &Environment, own: Environment) -> Environment {
    let mut merged = Environment { clear: shared.clear.clone(), secrets: Vec::new() };
    for secret in &own.secrets {
        merged.clear.remove(secret.as_str());
    }
    let kept = shared.secrets.iter().filter(|secret| !own.clear.contains_key(secret.as_str()));
    merged.secrets = kept.cloned().collect();
    merged.clear.extend(own.clear);
    for secret in own.secrets {
        if !merged.secrets.contains(&secret) {
            merged.secrets.push(secret);
        }
    }
    merged
}

fn mount(text: &str) -> Option<Mount> {
    let mut parts = text.split(':');
    let (source, target) = (parts.next()?, parts.next()?);
    let read_only = match (parts.next(), parts.next()) {
        (None, _) | (Some("rw"), None) => false,
        (Some("ro"), None) => true,
        _ => return None,
    };
    let target = AbsPath::new(target).ok().filter(|path| path.as_str() != "/")?;
    let source = if source.starts_with('/') {
        MountSource::Bind(AbsPath::new(source).ok()?)
    } else if source == "tmpfs" {
        MountSource::Tmpfs
    } else {
        let bytes = source.as_bytes();
        let fits = (2..=64).contains(&bytes.len())
            && bytes[0].is_ascii_alphanumeric()
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        MountSource::Volume(fits.then(|| source.to_owned())?)
    };
    Some(Mount { source, target, read_only })
}

fn is_image(text: &str) -> bool {
    text.parse::<Reference>().is_ok()
}

/// A relative path that stays below where it begins.
fn is_inside(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 4096
        && !text.starts_with('/')
        && !text.chars().any(char::is_control)
        && text.split('/').all(|part| part != "..")
}

/// A context of a name, whose directory is one of the project's.
fn is_context(text: &str) -> bool {
    let context = text.parse::<NamedContext>();
    context.is_ok_and(|context| context.directory().is_none_or(|directory| directory.to_str().is_some_and(is_inside)))
}

fn is_agent(text: &str) -> bool {
    !text.is_empty() && text.len() <= 64 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

fn is_url_path(text: &str) -> bool {
    text.starts_with('/') && text.len() <= 2048 && text.bytes().all(|b| b.is_ascii_graphic())
}
