//! A third-party proxy plugin, as small as one can be and still be right: one container `edge` that runs kamal-proxy on a port of the
//! user's choice.
//!
//! Everything it does is here to be read in one go. It asks what runs and what is routed, and answers with the steps that are missing;
//! when nothing is missing it answers with none, which is how an unchanged ship changes nothing. It knows neither TLS nor path
//! prefixes, and says so instead of guessing.

wit_bindgen::generate!({
    path: ["../../wit/next/plan", "../../wit/next/proxy"],
    world: "jiji:proxy/plugin",
    generate_all,
});

use std::collections::BTreeMap;

use exports::jiji::plan::meta;
use exports::jiji::proxy::proxy::{self, RouteInput, Routing, Turns, UnrouteInput};
use jiji::plan::types::{
    Action, Answer, Check, ContainerExec, ContainerSpec, Context, Description, Evidence, ExecGrant, ExecQuery, Fact,
    Fault, Grant, ImageRef, Instance, Mount, MountSource, Needs, Phase, ProbeSpec, Publish, Query, Step, Turn,
    WaitProbe, Want, Word,
};

const CONTAINER: &str = "edge";
const PROGRAM: &str = "kamal-proxy";
const IMAGE: &str = "kamal-proxy";
const SCHEMA: &str = r#"{"additionalProperties":false,"properties":{"image":{"default":"docker.io/basecamp/kamal-proxy:v0.9.2","description":"The image to run, with kamal-proxy v0.9.2 on its PATH.","type":"string"},"port":{"default":8088,"description":"Port of the host for HTTP.","maximum":65535,"minimum":1,"type":"integer"}},"type":"object"}"#;

struct Edge;

struct Settings {
    image: String,
    port: u16,
}

impl Settings {
    fn read(json: &str) -> Result<Self, Fault> {
        let mut settings = Self { image: "docker.io/basecamp/kamal-proxy:v0.9.2".to_owned(), port: 8088 };
        let Ok(serde_json::Value::Object(map)) = serde_json::from_str(json) else {
            return Err(fault("bad-setting", "expected an object".to_owned(), Some(String::new())));
        };
        for (key, value) in &map {
            let place = Some(format!("/{key}"));
            let port = value.as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
            match (key.as_str(), value.as_str(), port) {
                ("image", Some(image), _) if !image.is_empty() => settings.image = image.to_owned(),
                ("port", _, Some(port)) => settings.port = port,
                ("image" | "port", ..) => {
                    return Err(fault("bad-setting", format!("`{key}` has no such value"), place));
                }
                _ => {
                    return Err(fault(
                        "bad-setting",
                        format!("no setting `{key}`; there are `image` and `port`"),
                        place,
                    ));
                }
            }
        }
        Ok(settings)
    }

    /// What must be granted for these settings. jiji refuses every step beyond it.
    fn needs(&self) -> Needs {
        let exec = |command: &str| {
            let argv = vec![PROGRAM.to_owned(), command.to_owned()];
            Grant::Exec(ExecGrant { container: CONTAINER.to_owned(), argv })
        };
        let repository = self.image.split('@').next().unwrap_or_default();
        let last = repository.rfind('/').map_or(0, |slash| slash + 1);
        let end = repository[last..].find(':').map_or(repository.len(), |colon| last + colon);
        Needs {
            grants: vec![
                Grant::Container(CONTAINER.to_owned()),
                exec("list"),
                exec("deploy"),
                exec("remove"),
                Grant::Image(repository[..end].to_owned()),
                Grant::Port(self.port),
            ],
            images: vec![ImageRef { name: IMAGE.to_owned(), reference: self.image.clone() }],
        }
    }
}

impl meta::Guest for Edge {
    fn describe() -> Description {
        let defaults = Settings::read("{}").expect("no settings are good settings");
        Description {
            name: "proxy-edge".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            summary: "routes requests on a port of its own through a kamal-proxy called edge".to_owned(),
            schema: SCHEMA.to_owned(),
            needs: defaults.needs(),
        }
    }

    fn check_settings(settings: String) -> Result<Needs, Vec<Fault>> {
        Settings::read(&settings).map(|settings| settings.needs()).map_err(|fault| vec![fault])
    }
}

impl proxy::Guest for Edge {
    fn boot(context: Context, facts: Vec<Fact>) -> Result<Turn, Fault> {
        let settings = Settings::read(&context.settings)?;
        let Some(container) = answer(&facts, "container") else {
            return Ok(Turn::Observe(vec![want("container", Query::Container(CONTAINER.to_owned())), want_list()]));
        };
        if matches!(container, Answer::Container(container) if container.state == "running") {
            return Ok(Turn::Done(Vec::new()));
        }
        let Some(image) = context.images.iter().find(|image| image.name == IMAGE) else {
            return Err(fault("no-image", format!("the image `{IMAGE}` was not resolved"), None));
        };
        let tmpfs = |target: &str| Mount { source: MountSource::Tmpfs, target: target.to_owned(), read_only: false };
        let run = ContainerSpec {
            name: CONTAINER.to_owned(),
            image: image.reference.clone(),
            network: context.network.name.clone(),
            address: Some(context.address.clone()),
            env: ["HOME", "XDG_RUNTIME_DIR"].map(|name| (name.to_owned(), Word::Lit("/run/edge".to_owned()))).to_vec(),
            labels: Vec::new(),
            mounts: vec![tmpfs("/run/edge"), tmpfs("/tmp")],
            publish: vec![Publish { address: None, host_port: settings.port, container_port: 80 }],
            entrypoint: Some(PROGRAM.to_owned()),
            command: Some(vec!["run".to_owned()]),
            user: Some("0:0".to_owned()),
            restart: true,
            stop_timeout_s: 10,
            more: Vec::new(),
        };
        let probe = ProbeSpec {
            check: Check::Exec(vec![PROGRAM.to_owned(), "list".to_owned()]),
            interval_ms: 200,
            timeout_ms: 5_000,
            healthy_after: 1,
            deadline_ms: 20_000,
            status_from: 200,
            status_to: 299,
        };
        let wait = WaitProbe { container: CONTAINER.to_owned(), network: context.network.name, probe };
        Ok(Turn::Done(vec![
            step(Phase::Boot, format!("run {CONTAINER}"), Action::ContainerRun(run), None),
            step(Phase::Boot, format!("wait until {CONTAINER} answers"), Action::WaitProbe(wait), None),
        ]))
    }

    fn route(input: RouteInput, facts: Vec<Fact>) -> Result<Turns, Fault> {
        if input.routes.iter().any(|route| route.options.ssl || route.options.path_prefix != "/") {
            return Err(fault("bad-route", "this proxy knows neither TLS nor path prefixes".to_owned(), None));
        }
        let Some(list) = answer(&facts, "list") else {
            return Ok(Turns::Observe(vec![want_list()]));
        };
        let live = live(list);
        let steps = |route: &Routing| {
            let now = addresses(&route.targets);
            if now.is_empty() || live.get(&route.service) == Some(&now) {
                return Vec::new();
            }
            let before = addresses(&route.previous);
            let undo = if before.is_empty() { remove(&route.service) } else { deploy(route, &before) };
            let title = format!("route {} to {now}", route.service);
            let mut step = step(Phase::Cutover, title, deploy(route, &now), Some(undo));
            step.timeout_ms = route.options.drain_timeout_ms.saturating_add(10_000);
            // The proxy goes on with a deploy whose client is gone, until the deploy timeout is over.
            step.quiet_ms = 5_000;
            vec![step]
        };
        Ok(Turns::Done(input.routes.iter().map(steps).collect()))
    }

    fn upgrade(_: Context, _: Vec<Fact>) -> Result<Turn, Fault> {
        Err(fault("no-upgrade", "this proxy cannot be replaced while it runs".to_owned(), None))
    }

    fn unroute(input: UnrouteInput, facts: Vec<Fact>) -> Result<Turns, Fault> {
        let Some(list) = answer(&facts, "list") else {
            return Ok(Turns::Observe(vec![want_list()]));
        };
        let live = live(list);
        let steps = |service: &String| {
            let title = format!("stop routing {service}");
            let routed = live.contains_key(service);
            routed.then(|| step(Phase::Withdraw, title, remove(service), None)).into_iter().collect()
        };
        Ok(Turns::Done(input.services.iter().map(steps).collect()))
    }
}

export!(Edge);

/// Where each service's requests go now, as `kamal-proxy list` says: a table with colours, a line for each service, the target fourth.
fn live(list: &Answer) -> BTreeMap<String, String> {
    let Answer::Command(command) = list else { return BTreeMap::new() };
    let cell = |cell: &str| {
        // What is left of a colour sequence, whatever became of its escape character on the way.
        let text = cell.rsplit_once("[0m").map_or(cell, |(text, _)| text);
        let text = text.rsplit('m').next().filter(|_| text.contains('[')).unwrap_or(text);
        text.trim_matches(|c: char| !c.is_ascii_graphic()).to_owned()
    };
    let lines = command.stdout.lines().filter_map(|line| {
        let mut cells = line.split_whitespace().map(cell);
        Some((cells.next()?, cells.nth(2)?))
    });
    lines.collect()
}

fn addresses(instances: &[Instance]) -> String {
    let all: Vec<_> = instances.iter().map(|instance| format!("{}:{}", instance.address, instance.port)).collect();
    all.join(",")
}

fn deploy(route: &Routing, targets: &str) -> Action {
    let mut argv = vec!["deploy".to_owned(), route.service.clone(), format!("--target={targets}")];
    argv.extend(route.options.hosts.iter().map(|host| format!("--host={host}")));
    argv.push("--deploy-timeout=3s".to_owned());
    argv.push(format!("--drain-timeout={}ms", route.options.drain_timeout_ms));
    if let Some(health) = &route.options.health {
        argv.push(format!("--health-check-path={}", health.path));
    }
    exec(argv, &[])
}

fn remove(service: &str) -> Action {
    exec(vec!["remove".to_owned(), service.to_owned()], &["service not found"])
}

fn exec(argv: Vec<String>, tolerate: &[&str]) -> Action {
    let argv = std::iter::once(PROGRAM.to_owned()).chain(argv).map(Word::Lit).collect();
    let tolerate = tolerate.iter().map(|text| (*text).to_owned()).collect();
    Action::ContainerExec(ContainerExec { container: CONTAINER.to_owned(), argv, tolerate })
}

fn step(phase: Phase, title: String, action: Action, undo: Option<Action>) -> Step {
    Step {
        phase,
        title,
        action,
        after: Vec::new(),
        timeout_ms: 60_000,
        repeatable: true,
        quiet_ms: 0,
        undo,
        evidence: vec![Evidence::State(CONTAINER.to_owned()), Evidence::Logs((CONTAINER.to_owned(), 20))],
        labels: Vec::new(),
    }
}

fn answer<'a>(facts: &'a [Fact], id: &str) -> Option<&'a Answer> {
    facts.iter().find(|fact| fact.id == id).map(|fact| &fact.answer)
}

fn want(id: &str, query: Query) -> Want {
    Want { id: id.to_owned(), query }
}

fn want_list() -> Want {
    let argv = vec![PROGRAM.to_owned(), "list".to_owned()];
    want("list", Query::Exec(ExecQuery { container: CONTAINER.to_owned(), argv, timeout_ms: 5_000 }))
}

fn fault(code: &str, message: String, path: Option<String>) -> Fault {
    Fault { code: code.to_owned(), message, hint: None, path }
}
