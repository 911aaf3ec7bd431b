//! One look at the fleet for the core and the plugins together, and the plan that comes of it.

use std::collections::{BTreeMap, BTreeSet};

use jiji_model::digest::Digest;
use jiji_model::image::Platform;
use jiji_model::name::{HostName, SecretName, ServiceName};
use jiji_model::observation::{Observation, Want};
use jiji_model::plan::{PlannedService, Step};
use jiji_model::project::Project;
use jiji_model::route::{Instance, Route, RouteOptions};
use jiji_model::secret::Secret;

use super::images::Pins;
use super::{Ship, ShipError};
use crate::deploy::{Answers, Change, Desired, HostAnswers, Old, Seeds};
use crate::fleet::Fleet;
use crate::plugin::{HostContext, MAX_ROUNDS, Plugins, Probes, Turn};

/// What is asked of each host.
pub(super) type Wants = BTreeMap<HostName, Vec<Want>>;

/// The plugins of a ship with the images they run.
pub(super) struct Ready {
    pub(super) plugins: Plugins,
    pub(super) pins: Pins,
    pub(super) seeds: Seeds,
}

/// The platforms of connected hosts, each once.
pub(super) fn platforms(fleet: &Fleet) -> Vec<Platform> {
    let architectures: BTreeSet<_> =
        fleet.sessions.values().map(|session| session.hello().architecture.clone()).collect();
    architectures.into_iter().map(|architecture| Platform { os: "linux".to_owned(), architecture }).collect()
}

impl Ship {
    /// Loads the plugins, and finds out about the images they run; those of a `kept` plan are taken where it has them.
    pub(super) async fn ready(&self, platforms: &[Platform], kept: Option<&Seeds>) -> Result<Ready, ShipError> {
        let pins = self.lock.read()?.plugins;
        let plugins = Plugins::load(&self.project.plugins, &pins, &self.store, Some(&self.compiled))?;
        let routed = self.project.services.values().any(|service| service.proxy.is_some());
        let (pins, seeds) =
            if routed { self.seeds(&plugins.proxy, platforms, kept).await? } else { (Pins::new(), Seeds::new()) };
        Ok(Ready { plugins, pins, seeds })
    }

    /// Asks hosts; one that does not answer is an error, since nothing may change while a host is not known.
    pub(super) async fn ask(&self, fleet: &Fleet, wants: &Wants, into: &mut Observation) -> Result<(), ShipError> {
        let (seen, lost) = self.unless_stopped(async { Ok(fleet.observe(wants).await) }).await?;
        if !lost.is_empty() {
            return Err(ShipError::Unreachable(lost));
        }
        for (host, answers) in seen.hosts {
            into.hosts.entry(host).or_default().extend(answers);
        }
        Ok(())
    }

    /// Sends each host the secrets of its services, and no others.
    pub(super) async fn send_secrets(
        &self,
        fleet: &Fleet,
        names: impl Fn(&HostName) -> BTreeSet<SecretName>,
    ) -> Result<(), ShipError> {
        let of_host = |host: &HostName| -> BTreeMap<SecretName, Secret> {
            let named = names(host).into_iter();
            named.filter_map(|name| self.secrets.get(&name).map(|secret| (name, secret.clone()))).collect()
        };
        let secrets = fleet.sessions.keys().map(|host| (host.clone(), of_host(host))).collect();
        let lost = fleet.send_secrets(&secrets).await;
        if lost.is_empty() { Ok(()) } else { Err(ShipError::Unreachable(lost)) }
    }

    /// What plugins want to know before anything of the host is known.
    pub(super) fn first_wants(
        &self,
        ready: &Ready,
        host: &HostName,
        architecture: &str,
    ) -> Result<Vec<Want>, ShipError> {
        let context = self.context(ready, host, architecture, 0);
        let nothing = BTreeMap::new();
        let mut wants = Vec::new();
        let mut take = |turn: Turn| {
            if let Turn::Observe(more) = turn {
                wants.extend(more);
            }
        };
        let routes: Vec<_> = self
            .project
            .services_on(host)
            .filter_map(|(name, service)| {
                let options = self.with_digest(RouteOptions::of(service)?);
                Some(route(&self.project.scope(), name, options, None, Vec::new()))
            })
            .collect();
        if routes.is_empty() {
            return Ok(wants);
        }
        take(ready.plugins.proxy.boot(&context, &nothing)?);
        for route in &routes {
            take(ready.plugins.proxy.route(&context, route, &nothing)?);
        }
        wants.sort_by(|one, other| one.id.cmp(&other.id));
        wants.dedup_by(|one, other| one.id == other.id);
        Ok(wants)
    }

    /// With the digest of the certificate that its secret holds now, also where an old release is routed again: the certificate that it
    /// had then is kept nowhere.
    fn with_digest(&self, mut options: RouteOptions) -> RouteOptions {
        if let Some(certificate) = &mut options.certificate {
            // Without its value, as where drift is looked for, it is taken to be what it was.
            if let Some(chain) = self.secrets.get(&certificate.chain) {
                certificate.digest = Some(Digest::of(chain.reveal()));
            }
        }
        options
    }

    pub(super) fn context(&self, ready: &Ready, host: &HostName, architecture: &str, number: u8) -> HostContext {
        let images = ready.pins.get(architecture).cloned().unwrap_or_default();
        HostContext::new(host.clone(), architecture.to_owned(), number, images)
    }

    /// Talks with the plugins until each has answered, asking hosts what they want to know.
    pub(super) async fn answers(
        &self,
        fleet: &Fleet,
        ready: &Ready,
        desired: &Desired,
        observation: &mut Observation,
        wish: Wish<'_>,
    ) -> Result<Answers, ShipError> {
        for _ in 0..MAX_ROUNDS {
            let mut answers = Answers::new();
            let mut wants = Wants::new();
            for host in desired.hosts.keys() {
                let mut open = Vec::new();
                let answer = self.host_answers(ready, desired, host, observation, wish, &mut open)?;
                open.sort_by(|one: &Want, other| one.id.cmp(&other.id));
                open.dedup_by(|one, other| one.id == other.id);
                if open.is_empty() {
                    answers.insert(host.clone(), answer);
                } else {
                    wants.insert(host.clone(), open);
                }
            }
            if wants.is_empty() {
                return Ok(answers);
            }
            self.ask(fleet, &wants, observation).await?;
        }
        Err(self.endless(desired))
    }

    /// That a plugin does not stop asking.
    pub(super) fn endless(&self, desired: &Desired) -> ShipError {
        let host = desired.hosts.keys().next().cloned();
        let host = host.unwrap_or_else(|| HostName::new("localhost").expect("it is a server's name"));
        ShipError::Rounds { host, rounds: MAX_ROUNDS }
    }

    pub(super) fn host_answers(
        &self,
        ready: &Ready,
        desired: &Desired,
        host: &HostName,
        observation: &Observation,
        wish: Wish<'_>,
        open: &mut Vec<Want>,
    ) -> Result<HostAnswers, ShipError> {
        let wanted = &desired.hosts[host];
        let context = self.context(ready, host, &wanted.architecture, wanted.number);
        let nothing = BTreeMap::new();
        let facts = observation.hosts.get(host).unwrap_or(&nothing);
        let mut answer = HostAnswers::default();
        let mut routes = Vec::new();
        let mut steps: Vec<Step> = Vec::new();
        let mut take = |turn: Turn| match turn {
            Turn::Observe(wants) => open.extend(wants),
            Turn::Done(done) => steps.extend(done),
        };
        for (name, service) in &wanted.services {
            let change = &service.change;
            let before = change.previous();
            let Some(after) = change.serving() else {
                if let Some(route) = before.and_then(|before| before.route.as_ref()) {
                    let route = parse_route(route, host, name)?;
                    take(ready.plugins.proxy.unroute(&context, &route.key, facts)?);
                }
                continue;
            };
            if let Some(probe) = self.probe(ready, host, &wanted.architecture, name, after, wish)? {
                answer.probes.insert(name.clone(), probe);
            }
            match options(name, after, host, wish)?.map(|options| self.with_digest(options)) {
                Some(options) => {
                    let port = options.app_port;
                    let previous = serving_before(change, port);
                    routes.push(route(&desired.scope, name, options, instance(after, port), previous));
                }
                None => {
                    // It had a route, and has none any more.
                    if let Some(route) = before.and_then(|before| before.route.as_ref()) {
                        let route = parse_route(route, host, name)?;
                        take(ready.plugins.proxy.unroute(&context, &route.key, facts)?);
                    }
                }
            }
        }
        if !routes.is_empty() {
            take(ready.plugins.proxy.boot(&context, facts)?);
        }
        for route in routes {
            take(ready.plugins.proxy.route(&context, &route, facts)?);
            let json = serde_json::to_value(&route).expect("a route is JSON");
            answer.routes.insert(route.service, json);
        }
        answer.steps = steps;
        Ok(answer)
    }

    fn probe(
        &self,
        ready: &Ready,
        host: &HostName,
        architecture: &str,
        name: &ServiceName,
        after: &PlannedService,
        wish: Wish<'_>,
    ) -> Result<Option<jiji_model::probe::ProbeSpec>, ShipError> {
        let Wish::Project(project) = wish else { return Ok(after.probe.clone()) };
        let Some(service) = project.services.get(name) else { return Ok(after.probe.clone()) };
        let probes = Probes {
            host: host.clone(),
            architecture: architecture.to_owned(),
            service: name.clone(),
            healthcheck: service.healthcheck.clone(),
            app_port: service.proxy.as_ref().map(|proxy| proxy.app_port),
        };
        Ok(ready.plugins.health.probes(&probes)?)
    }
}

/// What says how services are routed and probed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wish<'a> {
    /// The project's configuration.
    Project(&'a Project),
    /// The records of the release that is wanted again.
    Release,
}

fn options(
    name: &ServiceName,
    after: &PlannedService,
    host: &HostName,
    wish: Wish<'_>,
) -> Result<Option<RouteOptions>, ShipError> {
    match wish {
        Wish::Project(project) => Ok(project.services.get(name).and_then(RouteOptions::of)),
        Wish::Release => match &after.route {
            Some(route) => Ok(Some(parse_route(route, host, name)?.options)),
            None => Ok(None),
        },
    }
}

fn parse_route(route: &serde_json::Value, host: &HostName, service: &ServiceName) -> Result<Route, ShipError> {
    serde_json::from_value(route.clone())
        .map_err(|_| ShipError::Release { host: host.clone(), service: service.clone() })
}

/// The instances that serve before a change. One that went away cannot be routed back to; one of which nothing is recorded can.
fn serving_before(change: &Change, port: u16) -> Vec<Instance> {
    let recorded = change.previous();
    let port_of = |before: &PlannedService| {
        let route = before.route.clone().and_then(|route| serde_json::from_value::<Route>(route).ok());
        route.map_or(port, |route| route.options.app_port)
    };
    match change {
        Change::Replace { old, .. } => {
            let running = old.iter().filter(|old| old.running);
            let instance = |old: &Old| {
                let recorded = recorded.filter(|before| before.container == old.name);
                let address = old.address.or_else(|| recorded?.address)?;
                Some(Instance { container: old.name.clone(), address, port: recorded.map_or(port, port_of) })
            };
            running.filter_map(instance).collect()
        }
        Change::Unchanged { running, .. } => instance(running, port_of(running)).into_iter().collect(),
        Change::Remove { .. } => Vec::new(),
    }
}

fn instance(service: &PlannedService, port: u16) -> Option<Instance> {
    Some(Instance { container: service.container.clone(), address: service.address?, port })
}

fn route(
    scope: &str,
    service: &ServiceName,
    options: RouteOptions,
    target: Option<Instance>,
    previous: Vec<Instance>,
) -> Route {
    Route {
        service: service.clone(),
        key: Route::key(scope, service),
        options,
        targets: target.into_iter().collect(),
        previous,
    }
}
