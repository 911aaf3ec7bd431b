//! A proxy plugin for jiji: Caddy in a container on every host.
//!
//! An example of a plugin by somebody else: everything it knows of jiji is the contract in `wit/`. Each service is a file below
//! `routes/`, which the Caddyfile imports; a route is moved by writing the file and asking Caddy to reload.
//!
//! What a plugin cannot see it must remember: Caddy's live configuration is behind its admin interface, which only the container itself
//! can reach. So a copy of each file is written to `applied/` after the reload. A route is settled where file and copy are as wanted;
//! if anything ended in between, they differ, and the next ship does it again.

/// The contract's types. Generated: see `wit/next`.
#[expect(clippy::all, reason = "generated from the WIT, which has the documentation")]
pub mod bindings {
    wit_bindgen::generate!({
        path: ["../../wit/next/plan", "../../wit/next/proxy"],
        world: "jiji:proxy/plugin",
        generate_all,
        additional_derives: [PartialEq],
    });
}

use bindings::exports::jiji::plan::meta;
use bindings::exports::jiji::proxy::proxy::{self, RouteInput, Routing, Turns, UnrouteInput};
use bindings::jiji::plan::types::*;
use serde_json::Value;

const CONTAINER: &str = "caddy-proxy";
const IMAGE: &str = "caddy";
const DEFAULT_IMAGE: &str = "docker.io/library/caddy:2.6.4";
const STATE_DIR: &str = "/var/lib/jiji/plugins/proxy-caddy";
/// The state directory as the container sees it.
const CONFIG_DIR: &str = "/etc/caddy";
/// The container's label that says with which ports it was started.
const LABEL: &str = "proxy-caddy.settings";

const SCHEMA: &str = r#"{"additionalProperties":false,"properties":{"http_port":{"default":80,"maximum":65535,"minimum":1,"type":"integer"},"https_port":{"default":443,"maximum":65535,"minimum":1,"type":"integer"},"image":{"default":"docker.io/library/caddy:2.6.4","description":"The image to run, with Caddy 2.6 or later on its PATH.","type":"string"}},"type":"object"}"#;

/// The plugin.
pub struct Plugin;

struct Settings {
    http_port: u16,
    https_port: u16,
    image: String,
}

impl Settings {
    fn read(json: &str) -> Result<Self, Vec<Fault>> {
        let mut settings = Self { http_port: 80, https_port: 443, image: DEFAULT_IMAGE.to_owned() };
        let mut faults = Vec::new();
        let Ok(Value::Object(map)) = serde_json::from_str(json) else {
            return Err(vec![fault("bad-setting", "expected an object".to_owned())]);
        };
        for (key, value) in &map {
            let port = value.as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
            match (key.as_str(), port, value.as_str()) {
                ("http_port", Some(port), _) => settings.http_port = port,
                ("https_port", Some(port), _) => settings.https_port = port,
                ("image", _, Some(image)) if !image.is_empty() => settings.image = image.to_owned(),
                _ => faults.push(Fault {
                    path: Some(format!("/{key}")),
                    ..fault("bad-setting", format!("`{key}`: no setting of this plugin, or not of its type"))
                }),
            }
        }
        if faults.is_empty() { Ok(settings) } else { Err(faults) }
    }

    fn needs(&self) -> Needs {
        let exec = |command: &str| {
            Grant::Exec(ExecGrant {
                container: CONTAINER.to_owned(),
                argv: vec!["caddy".to_owned(), command.to_owned()],
            })
        };
        Needs {
            grants: vec![
                Grant::Container(CONTAINER.to_owned()),
                exec("reload"),
                exec("validate"),
                Grant::Image(repository(&self.image).to_owned()),
                Grant::Port(self.http_port),
                Grant::Port(self.https_port),
                Grant::Path(STATE_DIR.to_owned()),
            ],
            images: vec![ImageRef { name: IMAGE.to_owned(), reference: self.image.clone() }],
        }
    }
}

impl meta::Guest for Plugin {
    fn describe() -> Description {
        let defaults = Settings { http_port: 80, https_port: 443, image: DEFAULT_IMAGE.to_owned() };
        Description {
            name: "proxy-caddy".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            summary: "routes requests through Caddy, in a container of its own on every host".to_owned(),
            schema: SCHEMA.to_owned(),
            needs: defaults.needs(),
        }
    }

    fn check_settings(settings: String) -> Result<Needs, Vec<Fault>> {
        Settings::read(&settings).map(|settings| settings.needs())
    }
}

impl proxy::Guest for Plugin {
    fn boot(context: Context, facts: Vec<Fact>) -> Result<Turn, Fault> {
        let settings = Settings::read(&context.settings).map_err(|mut faults| faults.remove(0))?;
        let path = format!("{}/Caddyfile", context.state_dir);
        let (Some(container), Some(file)) = (answer(&facts, "container"), answer(&facts, "caddyfile")) else {
            let container = Query::Container(CONTAINER.to_owned());
            return Ok(Turn::Observe(vec![want("container", container), want_file("caddyfile", &path)]));
        };
        let ports = format!("http_port {}, https_port {}", settings.http_port, settings.https_port);
        let runs = match container {
            Answer::Container(container) if container.state == "running" => {
                let label = container.labels.iter().find(|(key, _)| key == LABEL);
                if label.is_none_or(|(_, value)| *value != ports) {
                    return Err(fault(
                        "not-ours",
                        format!(
                            "a container `{CONTAINER}` runs with other settings, or was not started by this plugin"
                        ),
                    ));
                }
                true
            }
            Answer::Failed(reason) => return Err(fault("cannot-look", format!("look at `{CONTAINER}`: {reason}"))),
            _ => false,
        };
        if runs && content(file) == Some(CADDYFILE) {
            return Ok(Turn::Done(Vec::new()));
        }
        let mut steps: Vec<Step> = ["", "/routes", "/applied", "/data"]
            .iter()
            .map(|below| {
                let path = format!("{}{below}", context.state_dir);
                step(Phase::Boot, format!("make `{path}`"), Action::Directory(Directory { path, mode: 0o700 }))
            })
            .collect();
        steps.push(step(Phase::Boot, "write the Caddyfile".to_owned(), write(&path, CADDYFILE)));
        let container = Action::ContainerRun(container_of(&context, &settings, ports)?);
        steps.push(step(Phase::Boot, format!("run {CONTAINER}"), container));
        steps.push(step(
            Phase::Boot,
            format!("wait until {CONTAINER} answers"),
            Action::WaitProbe(WaitProbe {
                container: CONTAINER.to_owned(),
                network: context.network.name.clone(),
                // To reload what is loaded changes nothing, and it fails until Caddy listens.
                probe: ProbeSpec {
                    check: Check::Exec(reload_argv()),
                    interval_ms: 300,
                    timeout_ms: 5_000,
                    healthy_after: 1,
                    deadline_ms: 20_000,
                    status_from: 200,
                    status_to: 299,
                },
            }),
        ));
        Ok(Turn::Done(steps))
    }

    fn route(input: RouteInput, facts: Vec<Fact>) -> Result<Turns, Fault> {
        let services = input.routes.iter().map(|route| route.service.as_str());
        let wants = wants(&input.context, services);
        if wants.iter().any(|want| answer(&facts, &want.id).is_none()) {
            return Ok(Turns::Observe(wants));
        }
        let steps: Result<_, Fault> = input.routes.iter().map(|route| move_to(&input.context, route, &facts)).collect();
        steps.map(Turns::Done)
    }

    fn upgrade(_: Context, _: Vec<Fact>) -> Result<Turn, Fault> {
        Err(fault("no-upgrade", "this plugin cannot replace a proxy that runs".to_owned()))
    }

    fn unroute(input: UnrouteInput, facts: Vec<Fact>) -> Result<Turns, Fault> {
        let wants = wants(&input.context, input.services.iter().map(String::as_str));
        if wants.iter().any(|want| answer(&facts, &want.id).is_none()) {
            return Ok(Turns::Observe(wants));
        }
        Ok(Turns::Done(input.services.iter().map(|service| withdraw(&input.context, service, &facts)).collect()))
    }
}

#[cfg(target_arch = "wasm32")]
bindings::export!(Plugin with_types_in bindings);

/// How long requests of an old configuration may go on, in seconds. It is one for all services.
const GRACE_S: u32 = 30;

/// Relative imports are relative to the file. Its text is part of the plugin: another text is another boot.
const CADDYFILE: &str = "{\n\tgrace_period 30s\n}\nimport routes/*.caddy\n";

/// The questions about the files of services.
fn wants<'a>(context: &Context, services: impl Iterator<Item = &'a str>) -> Vec<Want> {
    let of_service = |service: &'a str| {
        let (path, copy) = files(context, service);
        let [file, applied] = ids(service);
        [want_file(&file, &path), want_file(&applied, &copy)]
    };
    services.flat_map(of_service).collect()
}

/// The ids of the questions about a service's file and its copy.
fn ids(service: &str) -> [String; 2] {
    ["file", "applied"].map(|what| format!("{what} {service}"))
}

/// Steps that move a service's requests.
fn move_to(context: &Context, route: &Routing, facts: &[Fact]) -> Result<Vec<Step>, Fault> {
    let (path, copy) = files(context, &route.service);
    let [file, applied] = ids(&route.service).map(|id| answer(facts, &id).and_then(content));
    if route.targets.is_empty() {
        return Ok(Vec::new());
    }
    let site = site(route)?;
    if file == Some(&site) && applied == Some(&site) {
        return Ok(Vec::new());
    }
    let before = match file {
        Some(before) => write(&path, before),
        None => Action::Remove(path.clone()),
    };
    // Undone from the last to the first: the copy goes, the file comes back, and the first step's undo makes Caddy read it.
    let first = with_undo(
        step(
            Phase::Cutover,
            format!("check the configuration before {}", route.service),
            exec(&["caddy", "validate", "--config", &caddyfile()]),
        ),
        reload(),
    );
    let second = with_undo(step(Phase::Cutover, format!("write `{path}`"), write(&path, &site)), before);
    let mut third = step(Phase::Cutover, format!("route {}", route.service), reload());
    // Caddy answers once the old configuration's requests have ended, or its grace period has.
    third.timeout_ms = GRACE_S * 1_000 + 15_000;
    third.quiet_ms = 5_000;
    let last = with_undo(
        step(Phase::Cutover, format!("note what {} is routed to", route.service), write(&copy, &site)),
        Action::Remove(copy),
    );
    Ok(vec![first, second, third, last])
}

/// Steps after which nothing is routed to a service.
fn withdraw(context: &Context, service: &str, facts: &[Fact]) -> Vec<Step> {
    let (path, copy) = files(context, service);
    if ids(service).iter().all(|id| matches!(answer(facts, id), Some(Answer::Absent))) {
        return Vec::new();
    }
    vec![
        step(Phase::Withdraw, format!("remove `{path}`"), Action::Remove(path)),
        step(Phase::Withdraw, format!("stop routing {service}"), reload()),
        step(Phase::Withdraw, format!("remove `{copy}`"), Action::Remove(copy)),
    ]
}

/// The site of a service.
fn site(route: &Routing) -> Result<String, Fault> {
    let options = &route.options;
    if options.path_prefix != "/" {
        return Err(fault("bad-route", "this plugin routes whole hosts, not paths".to_owned()));
    }
    let plain =
        |host: &String| !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.*".contains(&b));
    if let Some(host) = options.hosts.iter().find(|host| !plain(host)) {
        return Err(fault("bad-route", format!("`{host}` is no host name")));
    }
    if options.certificate.is_some() {
        return Err(fault("bad-route", "this plugin leaves certificates to Caddy and takes none".to_owned()));
    }
    let scheme = if options.ssl { "https://" } else { "http://" };
    let addresses = match options.hosts.as_slice() {
        [] if options.ssl => return Err(fault("bad-route", "TLS needs to know for which hosts".to_owned())),
        [] => scheme.to_owned(),
        hosts => hosts.iter().map(|host| format!("{scheme}{host}")).collect::<Vec<_>>().join(", "),
    };
    let targets: Vec<String> =
        route.targets.iter().map(|target| format!("{}:{}", target.address, target.port)).collect();
    Ok(format!("{addresses} {{\n\treverse_proxy {}\n}}\n", targets.join(" ")))
}

fn container_of(context: &Context, settings: &Settings, ports: String) -> Result<ContainerSpec, Fault> {
    let image = context.images.iter().find(|image| image.name == IMAGE);
    let image = image.ok_or_else(|| fault("no-image", "the image was not resolved".to_owned()))?;
    let bind = |below: &str, target: &str| Mount {
        source: MountSource::Bind(format!("{}{below}", context.state_dir)),
        target: target.to_owned(),
        read_only: false,
    };
    let publish = |host_port, container_port| Publish { address: None, host_port, container_port };
    let variable = |name: &str, value: &str| (name.to_owned(), Word::Lit(value.to_owned()));
    Ok(ContainerSpec {
        name: CONTAINER.to_owned(),
        image: image.reference.clone(),
        network: context.network.name.clone(),
        address: Some(context.address.clone()),
        env: vec![variable("XDG_CONFIG_HOME", "/tmp"), variable("XDG_DATA_HOME", "/data")],
        labels: vec![(LABEL.to_owned(), ports)],
        mounts: vec![
            bind("", CONFIG_DIR),
            bind("/data", "/data"),
            Mount { source: MountSource::Tmpfs, target: "/tmp".to_owned(), read_only: false },
        ],
        publish: vec![publish(settings.http_port, 80), publish(settings.https_port, 443)],
        entrypoint: Some("caddy".to_owned()),
        command: Some(vec!["run".to_owned(), "--config".to_owned(), caddyfile()]),
        user: None,
        restart: true,
        stop_timeout_s: 10,
        more: Vec::new(),
    })
}

/// A service's file and its copy, on the host.
fn files(context: &Context, service: &str) -> (String, String) {
    let dir = &context.state_dir;
    (format!("{dir}/routes/{service}.caddy"), format!("{dir}/applied/{service}.caddy"))
}

fn caddyfile() -> String {
    format!("{CONFIG_DIR}/Caddyfile")
}

fn reload_argv() -> Vec<String> {
    vec!["caddy".to_owned(), "reload".to_owned(), "--config".to_owned(), caddyfile()]
}

fn reload() -> Action {
    exec(&["caddy", "reload", "--config", &caddyfile()])
}

fn exec(argv: &[&str]) -> Action {
    Action::ContainerExec(ContainerExec {
        container: CONTAINER.to_owned(),
        argv: argv.iter().map(|text| Word::Lit((*text).to_owned())).collect(),
        tolerate: Vec::new(),
    })
}

fn write(path: &str, content: &str) -> Action {
    Action::File(File { path: path.to_owned(), mode: 0o600, content: vec![Word::Lit(content.to_owned())] })
}

fn step(phase: Phase, title: String, action: Action) -> Step {
    Step {
        phase,
        title,
        action,
        after: Vec::new(),
        timeout_ms: 60_000,
        repeatable: true,
        quiet_ms: 0,
        undo: None,
        evidence: vec![Evidence::Logs((CONTAINER.to_owned(), 20))],
        labels: Vec::new(),
    }
}

fn with_undo(mut step: Step, undo: Action) -> Step {
    step.undo = Some(undo);
    step
}

fn want(id: &str, query: Query) -> Want {
    Want { id: id.to_owned(), query }
}

fn want_file(id: &str, path: &str) -> Want {
    want(id, Query::File(FileQuery { path: path.to_owned(), limit: 64 * 1024 }))
}

fn answer<'a>(facts: &'a [Fact], id: &str) -> Option<&'a Answer> {
    facts.iter().find(|fact| fact.id == id).map(|fact| &fact.answer)
}

fn content(answer: &Answer) -> Option<&str> {
    match answer {
        Answer::File(file) => file.content.as_deref(),
        _ => None,
    }
}

fn fault(code: &str, message: String) -> Fault {
    Fault { code: code.to_owned(), message, hint: None, path: None }
}

/// An image reference without its tag and digest.
fn repository(reference: &str) -> &str {
    let name = reference.split_once('@').map_or(reference, |(name, _)| name);
    let last = name.rfind('/').map_or(0, |slash| slash + 1);
    name[last..].find(':').map_or(name, |colon| &name[..last + colon])
}
