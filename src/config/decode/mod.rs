//! A checked tree → a [`Project`]: grammars of names, what fits together, defaults.
//!
//! Kinds and keys were checked by [`super::shape`]; here a value of the wrong kind is skipped in silence, since it has its error
//! already. Nothing stops at the first error: what can be read is read, and a project is made only from what is whole.

use std::collections::BTreeMap;

use jiji_model::name::{HostName, ParseNameError, PluginName, ProjectName, SecretName, ServiceName};
use jiji_model::project::{
    Builder, Engine, Environment, PluginChoice, Plugins, Project, Registry, RegistryServer, Rollout, Server,
    ServerEndpoint, Ssh,
};
use jiji_model::secret::Asked;

use super::error::{Place, Problem, Problems, Rootless};
use super::files::is_environment;
use super::shape::{duration_ms, join, nearest};
use super::tree::{Kind, Resolved, Scalar, Span, Value};

mod service;

/// Reads a project. `None`, or a problem reported, or both, where it is not whole.
pub(super) fn project(
    tree: &Value,
    environment: Option<&str>,
    problems: &mut Problems,
) -> Option<(Project, Vec<Asked>)> {
    let root = Node { value: tree, at: Span { end: tree.span.start, ..tree.span }, path: String::new() };
    let mut decoder = Decoder { problems, asked: Vec::new() };
    if let Some(name) = environment.filter(|name| !is_environment(name)) {
        decoder.problems.report(Problem::EnvironmentName { name: name.to_owned() }, None, "-e".to_owned());
    }
    let name = root.get("project").and_then(|node| decoder.name(&node, ProjectName::new));
    let builder = root.get("builder").map(|node| decoder.builder(&node)).unwrap_or_default();
    let ssh = root.get("ssh").map(|node| decoder.ssh(&node)).unwrap_or_default();
    let shared = root.get("environment").map(|node| decoder.environment(&node)).unwrap_or_default();
    let servers = decoder.servers(&root);
    let services = decoder.services(&root, &shared, &servers);
    let rollout = root.get("rollout").map(|node| decoder.rollout(&node, &servers)).unwrap_or_default();
    let plugins = decoder.plugins(&root);
    let network = decoder.network(&root, &servers);
    let asked = decoder.asked;
    let project = Project {
        name: name?,
        environment: environment.map(str::to_owned),
        builder,
        ssh,
        servers: servers.into_iter().map(|(name, server)| Some((name, server?))).collect::<Option<_>>()?,
        services: services?,
        rollout,
        plugins,
        network,
    };
    Some((project, asked))
}

/// A part of the tree with the keys that lead to it.
#[derive(Clone)]
struct Node<'a> {
    value: &'a Value,
    /// Where what is missing in it is reported: its key.
    at: Span,
    path: String,
}

impl<'a> Node<'a> {
    fn get(&self, key: &str) -> Option<Node<'a>> {
        self.entries().find(|(_, found)| *found == key).map(|(node, _)| node)
    }

    /// The entries of a map.
    fn entries(&self) -> impl Iterator<Item = (Node<'a>, &'a str)> + use<'a> {
        let entries = match &self.value.kind {
            Kind::Map(entries) => entries.as_slice(),
            _ => &[],
        };
        let path = self.path.clone();
        entries.iter().map(move |entry| {
            let node = Node { value: &entry.value, at: entry.key_span, path: join(&path, &entry.key) };
            (node, entry.key.as_str())
        })
    }

    /// The items of a list; a single scalar is a list of one.
    fn items(&self) -> Vec<Node<'a>> {
        match &self.value.kind {
            Kind::Seq(items) => items
                .iter()
                .enumerate()
                .map(|(at, value)| Node { value, at: value.span, path: join(&self.path, &at.to_string()) })
                .collect(),
            Kind::Scalar(_) => vec![self.clone()],
            Kind::Map(_) => Vec::new(),
        }
    }

    fn scalar(&self) -> Option<&'a Scalar> {
        match &self.value.kind {
            Kind::Scalar(scalar) if !scalar.broken && scalar.resolve() != Resolved::Null => Some(scalar),
            _ => None,
        }
    }

    fn text(&self) -> Option<&'a str> {
        self.scalar().map(|scalar| scalar.text.as_str())
    }

    fn integer<T: TryFrom<i64>>(&self) -> Option<T> {
        match self.scalar()?.resolve() {
            Resolved::Int(number) => T::try_from(number).ok(),
            _ => None,
        }
    }

    fn boolean(&self) -> Option<bool> {
        match self.scalar()?.resolve() {
            Resolved::Bool(is) => Some(is),
            _ => None,
        }
    }

    fn milliseconds(&self) -> Option<u32> {
        duration_ms(self.text()?, false).ok()
    }

    fn seconds(&self) -> Option<u32> {
        duration_ms(self.text()?, true).ok().map(|ms| ms / 1000)
    }
}

struct Decoder<'p> {
    problems: &'p mut Problems,
    asked: Vec<Asked>,
}

type Servers = BTreeMap<HostName, Option<Server>>;

impl Decoder<'_> {
    fn report(&mut self, node: &Node<'_>, problem: Problem) {
        let place = if matches!(node.value.kind, Kind::Scalar(_)) { node.value.span } else { node.at };
        self.problems.report(problem, Some(place), node.path.clone());
    }

    fn report_at_key(&mut self, node: &Node<'_>, problem: Problem) {
        self.problems.report(problem, Some(node.at), node.path.clone());
    }

    /// A text that a grammar holds for.
    fn grammar(
        &mut self,
        node: &Node<'_>,
        what: &'static str,
        rule: &'static str,
        fits: fn(&str) -> bool,
    ) -> Option<String> {
        let scalar = node.scalar()?;
        if fits(&scalar.text) {
            return Some(scalar.text.clone());
        }
        let text = scalar.shown().chars().take(80).collect();
        self.report(node, Problem::Grammar { text, what, rule });
        None
    }

    fn name<T>(&mut self, node: &Node<'_>, new: fn(String) -> Result<T, ParseNameError>) -> Option<T> {
        let scalar = node.scalar()?;
        match new(scalar.text.clone()) {
            Ok(name) => Some(name),
            Err(error) => {
                let text = scalar.shown().chars().take(80).collect();
                self.report(node, Problem::Name(ParseNameError { text, ..error }));
                None
            }
        }
    }

    fn key<T>(&mut self, node: &Node<'_>, key: &str, new: fn(String) -> Result<T, ParseNameError>) -> Option<T> {
        match new(key.to_owned()) {
            Ok(name) => Some(name),
            Err(error) => {
                let text = error.text.chars().take(80).collect();
                self.report_at_key(node, Problem::Name(ParseNameError { text, ..error }));
                None
            }
        }
    }

    fn asks(&mut self, node: &Node<'_>, name: &SecretName, by: &str) {
        let place: Place = self.problems.place(node.value.span);
        self.asked.push(Asked { name: name.clone(), by: by.to_owned(), place: place.to_string() });
    }

    fn builder(&mut self, node: &Node<'_>) -> Builder {
        let mirrors = node.get("mirrors").map(|node| self.mirrors(&node)).unwrap_or_default();
        Builder {
            engine: node.get("engine").and_then(|node| engine(&node)),
            registry: node.get("registry").and_then(|node| self.registry(&node)),
            mirrors,
        }
    }

    fn mirrors(&mut self, node: &Node<'_>) -> BTreeMap<String, Vec<RegistryServer>> {
        let mut mirrors = BTreeMap::new();
        for (node, registry) in node.entries() {
            if !is_authority(registry) {
                let text = registry.chars().take(80).collect();
                self.report_at_key(&node, Problem::Grammar { text, what: "registry", rule: AUTHORITY });
            }
            let mut servers = Vec::new();
            for item in node.items() {
                if let Some((server, namespace)) = self.registry_server(&item) {
                    if namespace.is_some() {
                        let text = item.scalar().map(|scalar| scalar.shown().to_owned()).unwrap_or_default();
                        let rule =
                            "a mirror has no path: it holds repositories under the names they have in the registry";
                        self.report(&item, Problem::Grammar { text, what: "mirror", rule });
                    }
                    servers.push(server);
                }
            }
            mirrors.insert(registry.to_owned(), servers);
        }
        mirrors
    }

    fn registry(&mut self, node: &Node<'_>) -> Option<Registry> {
        let username = node.get("username").and_then(|node| node.text().map(str::to_owned));
        let password = node.get("password").and_then(|node| self.password(&node));
        let server = node.get("server").and_then(|node| self.registry_server(&node));
        if let (Some(password), None) = (node.get("password"), node.get("username")) {
            let problem = Problem::MissingKey { key: "username", purpose: "a password needs the user it belongs to" };
            self.report_at_key(&Node { path: node.path.clone(), ..password }, problem);
        }
        let (server, namespace) = server?;
        // Both registries keep a user's images below the user's name, so the name alone says where.
        let own = matches!(server.authority.as_str(), "ghcr.io" | "docker.io");
        let namespace = namespace.or_else(|| username.clone().filter(|_| own).map(|name| name.to_lowercase()));
        Some(Registry { server, namespace, username, password })
    }

    /// `[http[s]://]HOST[:PORT][/PATH]`
    fn registry_server(&mut self, node: &Node<'_>) -> Option<(RegistryServer, Option<String>)> {
        let scalar = node.scalar()?;
        let (scheme, rest) = scalar.text.split_once("://").map_or((None, scalar.text.as_str()), |(s, r)| (Some(s), r));
        let rest = rest.trim_end_matches('/');
        let (authority, path) = rest.split_once('/').map_or((rest, None), |(a, p)| (a, Some(p)));
        let known = matches!(scheme, None | Some("http" | "https"));
        if !known || !is_authority(authority) || !path.is_none_or(is_repository_path) {
            let text = scalar.shown().chars().take(80).collect();
            self.report(node, Problem::Grammar { text, what: "registry", rule: AUTHORITY });
            return None;
        }
        let plain_http = scheme.map_or_else(|| is_loopback(authority), |scheme| scheme == "http");
        Some((RegistryServer { authority: authority.to_owned(), plain_http }, path.map(str::to_owned)))
    }

    /// A password is the name of a secret. A text that is no such name is taken for the password itself and never shown.
    fn password(&mut self, node: &Node<'_>) -> Option<SecretName> {
        let text = node.text()?;
        let inner = text.strip_prefix("${").and_then(|text| text.strip_suffix('}'));
        let capitals = |text: &str| text.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
        let name = match inner {
            Some(name) => SecretName::new(name).ok(),
            None => SecretName::new(text).ok().filter(|name| capitals(name.as_str())),
        };
        match name {
            Some(name) => {
                self.asks(node, &name, &node.path);
                Some(name)
            }
            None => {
                self.problems.blot(node.value.span);
                self.report(node, Problem::PasswordInPlain);
                None
            }
        }
    }

    fn ssh(&mut self, node: &Node<'_>) -> Ssh {
        let keys = node.get("keys").map(|node| node.items()).unwrap_or_default();
        Ssh {
            user: node.get("user").and_then(|node| self.user(&node)),
            port: node.get("port").and_then(|node| node.integer()),
            proxy_jump: node.get("proxy").and_then(|node| {
                self.grammar(
                    &node,
                    "list of jump hosts",
                    "expected `[USER@]HOST[:PORT]`, several with commas between",
                    |text| text.split(',').all(is_jump),
                )
            }),
            keys: keys.iter().filter_map(|node| self.path(node)).collect(),
            config: node.get("config").and_then(|node| self.path(&node)),
            connect_timeout: node.get("connect_timeout").and_then(|node| node.seconds()),
        }
    }

    fn path(&mut self, node: &Node<'_>) -> Option<String> {
        self.grammar(node, "path", "expected a path that does not begin with `-`", |text| {
            !text.is_empty() && !text.starts_with('-') && !text.chars().any(char::is_control)
        })
    }

    fn user(&mut self, node: &Node<'_>) -> Option<String> {
        self.grammar(node, "user name", "expected A-Z, a-z, 0-9, `.`, `_` and `-`, not beginning with `-`", is_user)
    }

    fn servers(&mut self, root: &Node<'_>) -> Servers {
        let Some(node) = root.get("servers") else {
            return Servers::new();
        };
        let mut servers = Servers::new();
        let mut addresses: BTreeMap<(String, Option<u16>), ()> = BTreeMap::new();
        for (node, key) in node.entries() {
            let server = self.server(&node);
            if let Some(server) = &server
                && addresses.insert((server.address.clone(), server.port), ()).is_some()
                && let Some(host) = node.get("host")
            {
                let why = "two names for one machine would let two services of one name meet on it";
                self.report(&host, Problem::Twice { what: "the address", name: server.address.clone(), why });
            }
            if let Some(name) = self.key(&node, key, HostName::new) {
                servers.insert(name, server);
            }
        }
        self.rootless(root, &node, &servers);
        servers
    }

    /// A user's own Podman is for a project's only server, and there is no such Docker.
    fn rootless(&mut self, root: &Node<'_>, node: &Node<'_>, servers: &Servers) {
        let everywhere = root.get("builder").and_then(|node| node.get("engine")).and_then(|node| engine(&node));
        for (node, key) in node.entries() {
            let Some(place) = node.get("rootless") else { continue };
            let server = HostName::new(key).ok().and_then(|name| servers.get(&name)?.as_ref());
            let Some(server) = server.filter(|server| server.rootless) else { continue };
            if servers.len() > 1 {
                self.report(&place, Problem::Rootless(Rootless::NotAlone));
            }
            if server.engine.or(everywhere) == Some(Engine::Docker) {
                self.report(&place, Problem::Rootless(Rootless::Docker));
            }
            if server.user.as_deref() == Some("root") {
                self.report(&place, Problem::Rootless(Rootless::Root));
            }
        }
    }

    fn server(&mut self, node: &Node<'_>) -> Option<Server> {
        let user = node.get("user").and_then(|node| self.user(&node));
        let address = node.get("host").and_then(|node| {
            self.grammar(
                &node,
                "host",
                "expected a name or an address alone; `user` and `port` are keys of their own",
                is_address,
            )
        });
        Some(Server {
            address: address?,
            user,
            port: node.get("port").and_then(|node| node.integer()),
            engine: node.get("engine").and_then(|node| engine(&node)),
            rootless: node.get("rootless").and_then(|node| node.boolean()).unwrap_or(false),
            endpoint: node.get("endpoint").and_then(|node| self.endpoint(&node)),
        })
    }

    fn environment(&mut self, node: &Node<'_>) -> Environment {
        let mut environment = Environment::default();
        let clear = node.get("clear");
        for (node, key) in clear.iter().flat_map(Node::entries) {
            if !is_variable(key) {
                let text = key.chars().take(80).collect();
                let rule = "expected A-Z, a-z, 0-9, `_`, `.` and `-`, not beginning with a digit or `-`";
                self.report_at_key(&node, Problem::Grammar { text, what: "variable's name", rule });
            }
            if let Some(text) = node.text() {
                if text.contains('\0') {
                    let text = "…".to_owned();
                    self.report(
                        &node,
                        Problem::Grammar { text, what: "variable's value", rule: "it holds a zero byte" },
                    );
                }
                environment.clear.insert(key.to_owned(), text.to_owned());
            }
        }
        let secrets = node.get("secrets");
        for item in secrets.iter().flat_map(Node::items) {
            let Some(name) = self.name(&item, SecretName::new) else {
                continue;
            };
            if environment.secrets.contains(&name) {
                let why = "one of the two is enough";
                self.report(&item, Problem::Twice { what: "the secret", name: name.to_string(), why });
            } else if environment.clear.contains_key(name.as_str()) {
                let why = "it stands under `clear` too; a variable has one value";
                self.report(&item, Problem::Twice { what: "the variable", name: name.to_string(), why });
            } else {
                let by = item.path.rsplit_once('.').map_or(item.path.as_str(), |(by, _)| by).to_owned();
                self.asks(&item, &name, &by);
                environment.secrets.push(name);
            }
        }
        environment
    }

    fn services(
        &mut self,
        root: &Node<'_>,
        shared: &Environment,
        servers: &Servers,
    ) -> Option<BTreeMap<ServiceName, jiji_model::project::Service>> {
        let node = root.get("services")?;
        let mut services = BTreeMap::new();
        let mut routes = service::Routes::default();
        let mut whole = true;
        for (node, key) in node.entries() {
            let name = self.key(&node, key, ServiceName::new);
            let service = self.service(&node, shared, servers);
            match (name, service) {
                (Some(name), Some(service)) => {
                    self.routes(&node, &name, &service, &mut routes);
                    services.insert(name, service);
                }
                _ => whole = false,
            }
        }
        if node.entries().next().is_none() && matches!(node.value.kind, Kind::Map(_)) {
            self.report_at_key(&node, Problem::Empty { needs: "service" });
            return None;
        }
        whole.then_some(services)
    }

    fn rollout(&mut self, node: &Node<'_>, servers: &Servers) -> Rollout {
        let mut canary: Vec<HostName> = Vec::new();
        let written = node.get("canary");
        for item in written.iter().flat_map(Node::items) {
            let known = item.text().and_then(|text| servers.keys().find(|name| name.as_str() == text));
            match known {
                Some(name) if canary.contains(name) => {
                    let why = "once is enough";
                    self.report(&item, Problem::Twice { what: "the server", name: name.to_string(), why });
                }
                Some(name) => canary.push(name.clone()),
                None => self.unknown_server(&item, servers),
            }
        }
        Rollout {
            max_parallel: node.get("max_parallel").and_then(|node| node.integer()),
            canary,
            wait_ms: node.get("wait").and_then(|node| node.milliseconds()).unwrap_or(0),
            hold_ms: node.get("hold").and_then(|node| node.milliseconds()).unwrap_or(0),
        }
    }

    fn plugins(&mut self, root: &Node<'_>) -> Plugins {
        let mut plugins = Plugins::default();
        if let Some(node) = root.get("plugins") {
            for (key, choice) in [("proxy", &mut plugins.proxy), ("health", &mut plugins.health)] {
                if let Some(node) = node.get(key) {
                    self.plugin(&node, choice);
                }
            }
        }
        plugins
    }

    fn network(&mut self, root: &Node<'_>, servers: &Servers) -> Option<PluginChoice> {
        let node = root.get("network")?;
        let mut choice = Plugins::default_mesh();
        if let Some(name) = node.get("plugin").and_then(|node| self.name(&node, PluginName::new)) {
            choice.name = name;
        }
        if let Some(settings) = node.get("settings") {
            choice.settings = json(settings.value);
        }
        if !node.get("enabled").and_then(|node| node.boolean()).unwrap_or(true) {
            return None;
        }
        if servers.values().flatten().any(|server| server.rootless) {
            self.report_at_key(&node, Problem::Rootless(Rootless::Network));
        }
        Some(choice)
    }

    fn endpoint(&mut self, node: &Node<'_>) -> Option<ServerEndpoint> {
        let scalar = node.scalar()?;
        match scalar.text.parse() {
            Ok(endpoint) => Some(endpoint),
            Err(_) => {
                let text = scalar.shown().chars().take(80).collect();
                let rule = "expected `HOST[:PORT]`, an IPv6 address in brackets where a port follows";
                self.report(node, Problem::Grammar { text, what: "endpoint", rule });
                None
            }
        }
    }

    fn plugin(&mut self, node: &Node<'_>, choice: &mut PluginChoice) {
        if let Some(name) = node.get("name").and_then(|node| self.name(&node, PluginName::new)) {
            choice.name = name;
        }
        if let Some(settings) = node.get("settings") {
            choice.settings = json(settings.value);
        }
    }

    fn unknown_server(&mut self, node: &Node<'_>, servers: &Servers) {
        let Some(scalar) = node.scalar() else { return };
        if self.problems.is_full() {
            self.problems.count_one_more();
            return;
        }
        // Of a thousand servers, the name that was meant is not worth a search.
        let meant = nearest(&scalar.text, servers.keys().take(200).map(HostName::as_str)).map(str::to_owned);
        let known = servers.keys().take(20).map(ToString::to_string).collect();
        let server = scalar.shown().chars().take(80).collect();
        self.report(node, Problem::UnknownServer { server, meant, known });
    }
}

fn engine(node: &Node<'_>) -> Option<Engine> {
    match node.text()? {
        "docker" => Some(Engine::Docker),
        "podman" => Some(Engine::Podman),
        _ => None,
    }
}

/// A plugin's settings as JSON, scalars by YAML's core schema.
fn json(value: &Value) -> serde_json::Value {
    match &value.kind {
        Kind::Scalar(scalar) => match scalar.resolve() {
            Resolved::Null => serde_json::Value::Null,
            Resolved::Bool(is) => is.into(),
            Resolved::Int(number) => number.into(),
            // What JSON has no number for stays a text.
            Resolved::Float(number) => serde_json::Number::from_f64(number)
                .map_or_else(|| scalar.text.clone().into(), serde_json::Value::Number),
            Resolved::Text => scalar.text.clone().into(),
        },
        Kind::Seq(items) => items.iter().map(json).collect(),
        Kind::Map(entries) => {
            serde_json::Value::Object(entries.iter().map(|entry| (entry.key.clone(), json(&entry.value))).collect())
        }
    }
}

const AUTHORITY: &str =
    "expected `HOST[:PORT]`, such as `ghcr.io` or `10.0.0.5:5000`, with `http://` before it where there is no TLS";

fn is_authority(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|text| text.split_once(']')) {
        Some((address, port)) => {
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            (None, port.strip_prefix(':').or((!port.is_empty()).then_some("?")))
        }
        None => text.split_once(':').map_or((Some(text), None), |(host, port)| (Some(host), Some(port))),
    };
    host.is_none_or(is_domain) && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

fn is_domain(text: &str) -> bool {
    (1..=253).contains(&text.len())
        && text.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

fn is_repository_path(text: &str) -> bool {
    text.split('/').all(|part| {
        !part.is_empty()
            && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.'))
            && part.as_bytes()[0].is_ascii_alphanumeric()
    })
}

fn is_loopback(authority: &str) -> bool {
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    host == "localhost" || authority == "[::1]" || host == "[::1]" || {
        host.parse::<std::net::Ipv4Addr>().is_ok_and(|address| address.is_loopback())
    }
}

fn is_user(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with('-')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// What ssh connects to: a name of DNS or of the ssh configuration, or an address.
fn is_address(text: &str) -> bool {
    is_domain(text) || text.parse::<std::net::IpAddr>().is_ok()
}

fn is_jump(text: &str) -> bool {
    let (user, host) = text.rsplit_once('@').map_or((None, text), |(user, host)| (Some(user), host));
    user.is_none_or(is_user) && is_authority(host)
}

fn is_variable(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
        && !text.starts_with(|c: char| c.is_ascii_digit() || c == '-')
}
