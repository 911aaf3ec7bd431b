//! Moving a service's requests to new targets, and back.
//!
//! `kamal-proxy deploy` probes the candidate, moves the requests and drains the old target in one blocking command
//! (`DeployService` in internal/server/router.go). So the cutover step ends with the drain: it takes as long as the longest request that
//! was under way, at most the service's drain timeout. A shorter `--drain-timeout` would end the step earlier and cut those requests off.
//!
//! - **No `--force` while something serves.** It installs the target before its first probe has passed, and until then the proxy answers 503
//!   (`claimTarget` in internal/server/load_balancer.go has no healthy target to give). The gate stays on, short, because jiji's own probes
//!   passed before.
//! - **`--force` where what is routed is dead.** The proxy stops probing a single target once it was healthy (`updateHealthyTargets`), so
//!   requests go on to the dead one and each holds a connection until its dial gives up. Under load those use up the proxy's open files, and
//!   then its probe of the candidate fails too (`too many open files`). So the dead one is let go first, which cancels its requests, and the
//!   gate follows. A gate would refuse to put the dead one back, so the undo forces too: it restores what was, without a judgement.
//! - **Quiet time.** The command's server side goes on when its client is killed, and may move the requests until the deploy timeout is
//!   over; after that its outcome no longer changes.

use std::collections::BTreeMap;

use crate::bindings::exports::jiji::proxy::proxy::{RouteInput, RouteOptions, Routing, Turns, UnrouteInput};
use crate::bindings::jiji::plan::types::{
    Action, Answer, ContainerExec, Context, Evidence, Fault, Instance, Phase, Step, Word,
};
use crate::certificate::{self, Files};
use crate::live::{self, Live};
use crate::settings::Settings;
use crate::state::{self, Options, Saved, duration, milliseconds};
use crate::upgrade::{WANT_MARK, want_mark};
use crate::{CONTAINER, Facts, PROGRAM, WANT_LIST, WANT_STATE, fault, settings_of, want_list, want_state};

/// How long the proxy itself waits for a target that jiji's probes have found healthy.
const DEPLOY_TIMEOUT_MS: u32 = 3_000;
/// The same where there is nothing better to fall back to: when the previous target is put back, and when the one that was routed is dead.
const LAST_RESORT_TIMEOUT_MS: u32 = 10_000;
/// How long requests to a dead target may go on: they cannot succeed.
const DEAD_DRAIN_MS: u32 = 1_000;
/// On top of what a command is told to take at most.
const MARGIN_MS: u32 = 2_000;
/// The label of a route that says how many servers serve the same hosts.
const LABEL_SERVERS: &str = "servers";
/// What `remove` says when there is nothing to remove (internal/server/router.go).
const NOT_FOUND: &str = "service not found";

pub fn route(input: &RouteInput, facts: &Facts<'_>) -> Result<Turns, Fault> {
    let context = &input.context;
    let settings = settings_of(context)?;
    let files: Vec<Option<Files<'_>>> = input.routes.iter().map(|route| Files::of(context, route)).collect();
    let mut wants = vec![want_list(), want_state(context), want_mark(context)];
    wants.extend(files.iter().flatten().flat_map(Files::wants));
    if wants.iter().any(|want| facts.get(&want.id).is_none()) {
        return Ok(Turns::Observe(wants));
    }
    let (Some(list), Some(state)) = (facts.get(WANT_LIST), facts.get(WANT_STATE)) else {
        return Ok(Turns::Observe(wants));
    };
    let upgrading = matches!(facts.get(WANT_MARK), Some(Answer::File(_)));
    if let Some(route) = input.routes.iter().find(|route| upgrading && !route.targets.is_empty()) {
        return Err(fault(
            "upgrading",
            format!("route {}: the proxy is being replaced", route.service),
            "wait until that is done; if it was interrupted, `jiji proxy upgrade` ends it",
        ));
    }
    let lives = live::read(list).unwrap_or_default();
    let host =
        OfHost { context, settings, taken: taken(&lives), lives: by_service(&lives), saved: state::read(state), facts };
    let mut written = false;
    let mut moves = Vec::with_capacity(input.routes.len());
    for (route, files) in input.routes.iter().zip(&files) {
        let mut steps = host.route(route, files.as_ref())?;
        // The directory of all certificates is made once, before the first of them.
        if !written && files.is_some() && !steps.is_empty() {
            steps.insert(0, certificate::directory(context));
            written = true;
        }
        moves.push(steps);
    }
    Ok(Turns::Done(moves))
}

/// What the proxy of a host says about itself, read once for all routes.
struct OfHost<'a> {
    context: &'a Context,
    settings: Settings,
    /// Live routes, by service.
    lives: BTreeMap<&'a str, &'a Live>,
    /// Which service has a host (empty for all) and path.
    taken: BTreeMap<(&'a str, &'a str), &'a str>,
    /// Options, by service.
    saved: BTreeMap<String, Saved>,
    facts: &'a Facts<'a>,
}

fn by_service(lives: &[Live]) -> BTreeMap<&str, &Live> {
    // The first of a name counts.
    lives.iter().rev().map(|live| (live.service.as_str(), live)).collect()
}

/// No name of a host stands for all hosts.
fn hosts_of(hosts: &[String]) -> impl Iterator<Item = &str> {
    hosts.is_empty().then_some("").into_iter().chain(hosts.iter().map(String::as_str))
}

fn taken(lives: &[Live]) -> BTreeMap<(&str, &str), &str> {
    let mut taken = BTreeMap::new();
    for live in lives {
        for host in hosts_of(&live.hosts) {
            taken.extend(live.paths.iter().map(|path| ((host, path.as_str()), live.service.as_str())));
        }
    }
    taken
}

impl OfHost<'_> {
    fn route(&self, route: &Routing, files: Option<&Files<'_>>) -> Result<Vec<Step>, Fault> {
        if route.targets.is_empty() {
            return Ok(Vec::new());
        }
        let options = options(route, files, &self.settings)?;
        self.check_free(&route.service, &options)?;

        let targets = addresses(&route.targets);
        let live = self.lives.get(route.service.as_str()).copied();
        let saved = self.saved.get(&route.service);
        let settled = live.is_some_and(|live| same_set(&live.targets, &targets))
            && saved.is_some_and(|saved| saved.options.same(&options))
            && files.is_none_or(|files| files.are_there(self.facts));
        if settled {
            return Ok(Vec::new());
        }
        let dead = live.filter(|live| route.previous.is_empty() && !same_set(&live.targets, &targets));
        // There is nothing that can be healthy, and nothing better to put back.
        let back = if dead.is_some() { Gate::Open } else { Gate::Healthy(LAST_RESORT_TIMEOUT_MS) };
        let undo = undo(route, live, saved, &options, &back);
        let drain_timeout_ms = route.options.drain_timeout_ms;
        let step = |title, gate: &Gate, drain_ms: u32| Step {
            phase: Phase::Cutover,
            title,
            action: deploy(&route.service, &targets, &options, gate, drain_ms),
            after: Vec::new(),
            // Long enough for the undo too, which may be given more time.
            timeout_ms: drain_timeout_ms.max(drain_ms).saturating_add(LAST_RESORT_TIMEOUT_MS + 2 * MARGIN_MS),
            repeatable: true,
            quiet_ms: gate.timeout_ms() + MARGIN_MS,
            undo: Some(undo.clone()),
            evidence: vec![Evidence::Logs((CONTAINER.to_owned(), 20))],
            labels: Vec::new(),
        };
        let title = format!("route {} to {}", route.service, targets.join(", "));
        let mut steps = files.map(|files| files.write(saved)).unwrap_or_default();
        steps.extend(match dead {
            Some(dead) => vec![
                step(format!("let go of {}, which is gone", dead.targets.join(", ")), &Gate::Open, DEAD_DRAIN_MS),
                step(title, &Gate::Healthy(LAST_RESORT_TIMEOUT_MS), drain_timeout_ms),
            ],
            None => vec![step(title, &Gate::Healthy(DEPLOY_TIMEOUT_MS), drain_timeout_ms)],
        });
        steps.extend(certificate::forget(self.context, &route.service, saved, Some(&options)));
        Ok(steps)
    }

    /// A host and path that another service has is refused by the proxy (`CheckAvailability` in internal/server/service_map.go). It is
    /// known before anything was done, so nothing is done.
    fn check_free(&self, service: &str, options: &Options) -> Result<(), Fault> {
        for host in hosts_of(&options.hosts) {
            for path in &options.path_prefixes {
                let Some(other) = self.taken.get(&(host, path.as_str())).filter(|other| **other != service) else {
                    continue;
                };
                let host = if host.is_empty() { "all hosts".to_owned() } else { format!("host `{host}`") };
                return Err(fault(
                    "route-taken",
                    format!("route {service} at {host} and path `{path}`: {other} has them"),
                    "give one of the two another `proxy.host` or `proxy.path_prefix`",
                ));
            }
        }
        Ok(())
    }
}

/// What a target must be before requests go to it.
enum Gate {
    /// Healthy to the proxy itself within so many milliseconds.
    Healthy(u32),
    /// Nothing.
    Open,
}

impl Gate {
    fn timeout_ms(&self) -> u32 {
        match self {
            Self::Healthy(timeout_ms) => *timeout_ms,
            Self::Open => 0,
        }
    }
}

pub fn unroute(input: &UnrouteInput, facts: &Facts<'_>) -> Result<Turns, Fault> {
    let (Some(list), Some(state)) = (facts.get(WANT_LIST), facts.get(WANT_STATE)) else {
        return Ok(Turns::Observe(vec![want_list(), want_state(&input.context)]));
    };
    let lives = live::read(list);
    let lives = lives.as_deref().map(by_service);
    let saved = state::read(state);
    let steps = |service: &String| {
        // A proxy that does not answer is asked to remove all the same: nobody knows what it will route when it comes back.
        if lives.as_ref().is_some_and(|lives| !lives.contains_key(service.as_str())) {
            return Vec::new();
        }
        let mut steps = vec![Step {
            phase: Phase::Withdraw,
            title: format!("stop routing {service}"),
            action: remove(service),
            after: Vec::new(),
            timeout_ms: 30_000,
            repeatable: true,
            quiet_ms: MARGIN_MS,
            undo: None,
            evidence: vec![Evidence::Logs((CONTAINER.to_owned(), 20))],
            labels: Vec::new(),
        }];
        steps.extend(certificate::forget(&input.context, service, saved.get(service), None));
        steps
    };
    Ok(Turns::Done(input.services.iter().map(steps).collect()))
}

/// What puts the requests back: to the targets that were live, with the options they had; where those cannot be read, with the new
/// ones. A service that was not routed before is removed again.
fn undo(route: &Routing, live: Option<&Live>, saved: Option<&Saved>, options: &Options, gate: &Gate) -> Action {
    let targets = match (live, saved) {
        (Some(live), _) => live.targets.clone(),
        (None, Some(saved)) if !saved.targets.is_empty() => saved.targets.clone(),
        (None, _) => addresses(&route.previous),
    };
    if targets.is_empty() {
        return remove(&route.service);
    }
    let options = saved.map_or(options, |saved| &saved.options);
    deploy(&route.service, &targets, options, gate, route.options.drain_timeout_ms)
}

fn deploy(service: &str, targets: &[String], options: &Options, gate: &Gate, drain_ms: u32) -> Action {
    let mut argv = vec![PROGRAM.to_owned(), "deploy".to_owned(), service.to_owned()];
    argv.extend(targets.iter().map(|target| format!("--target={target}")));
    argv.push(match gate {
        Gate::Healthy(timeout_ms) => format!("--deploy-timeout={}", duration(milliseconds(*timeout_ms))),
        Gate::Open => "--force=true".to_owned(),
    });
    argv.push(format!("--drain-timeout={}", duration(milliseconds(drain_ms))));
    argv.extend(options.flags());
    exec(argv, Vec::new())
}

fn remove(service: &str) -> Action {
    exec(vec![PROGRAM.to_owned(), "remove".to_owned(), service.to_owned()], vec![NOT_FOUND.to_owned()])
}

fn exec(argv: Vec<String>, tolerate: Vec<String>) -> Action {
    Action::ContainerExec(ContainerExec {
        container: CONTAINER.to_owned(),
        argv: argv.into_iter().map(Word::Lit).collect(),
        tolerate,
    })
}

fn options(route: &Routing, files: Option<&Files<'_>>, settings: &Settings) -> Result<Options, Fault> {
    let route: &RouteOptions = &route.options;
    // Lists of hosts and paths are read as CSV (pflag's StringSlice), so what CSV gives a meaning to cannot be sent.
    let plain = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() && b != b',' && b != b'"');
    for text in route.hosts.iter().chain([&route.path_prefix]) {
        if !plain(text) {
            return Err(fault(
                "bad-route",
                format!("route `{text}`: kamal-proxy takes no spaces, commas and quotes in hosts and paths"),
                "an international host name is written in its `xn--` form",
            ));
        }
    }
    let path_prefix = format!("/{}", route.path_prefix.trim_matches('/'));
    if route.ssl && route.hosts.is_empty() {
        return Err(fault(
            "bad-route",
            "TLS needs to know for which hosts".to_owned(),
            "name them in `proxy.host`, or leave `proxy.ssl` out",
        ));
    }
    let automatic = route.ssl && route.certificate.is_none();
    if automatic && route.hosts.iter().any(|host| host.contains('*')) {
        return Err(fault(
            "bad-route",
            "automatic TLS does not support wildcard hosts".to_owned(),
            "name each host in `proxy.host`, or hand a certificate in with `proxy.certificate`",
        ));
    }
    let servers = route.labels.iter().find(|(key, _)| key == LABEL_SERVERS);
    if let Some((_, servers)) = servers.filter(|_| automatic) {
        return Err(fault(
            "bad-route",
            format!(
                "{servers} servers would each ask for a certificate for the same host, and the authority reaches one of them"
            ),
            "hand a certificate in with `proxy.certificate`, or run the service on one server",
        ));
    }
    let mut options = Options {
        hosts: route.hosts.clone(),
        path_prefixes: vec![path_prefix],
        strip_prefix: settings.strip_path_prefix,
        tls: route.ssl,
        tls_certificate: files.map(Files::chain_in_container).unwrap_or_default(),
        tls_private_key: files.map(Files::key_in_container).unwrap_or_default(),
        response_timeout: state::seconds(settings.response_timeout),
        forward_headers: settings.forward_headers.unwrap_or(!route.ssl),
        ..Options::default()
    };
    if let Some(health) = &route.health {
        options.health_path.clone_from(&health.path);
        options.health_port = u64::from(health.port);
    }
    Ok(options)
}

fn addresses(instances: &[Instance]) -> Vec<String> {
    instances.iter().map(|instance| format!("{}:{}", instance.address, instance.port)).collect()
}

pub fn same_set(one: &[String], other: &[String]) -> bool {
    if one == other {
        return true;
    }
    let sorted = |list: &[String]| {
        let mut list = list.to_vec();
        list.sort();
        list
    };
    sorted(one) == sorted(other)
}
