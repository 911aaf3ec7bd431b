//! What is said between the core and the plugins about each host: no host is asked here, and nothing is changed.
//!
//! Hosts are talked about side by side on as many threads as there are, since a plugin's call for one host knows nothing of another.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use jiji_model::digest::Digest;
use jiji_model::name::{HostName, ServiceName};
use jiji_model::observation::{Observation, Want};
use jiji_model::plan::{PlannedService, Step};
use jiji_model::project::{Project, Service};
use jiji_model::route::{Instance, Route, RouteOptions};

use super::ShipError;
use super::look::{Ready, Wants};
use crate::deploy::{Answers, Change, Desired, HostAnswers, Old};
use crate::plugin::{HostContext, MAX_ROUNDS, Probes, Turn};
use crate::secrets::Secrets;

/// Fewer hosts than this are not worth a thread.
const HOSTS_PER_THREAD: usize = 8;

/// A talk with the plugins of a project.
#[derive(Clone, Copy)]
pub(super) struct Talk<'a> {
    pub(super) project: &'a Project,
    pub(super) secrets: &'a Secrets,
    pub(super) ready: &'a Ready,
    /// How many hosts at once, at least 1.
    pub(super) threads: usize,
}

impl Talk<'_> {
    /// What plugins want to know before anything of the host is known. The first route speaks for all: what another one wants besides is
    /// asked in the next round.
    pub(super) fn first_wants<'s>(
        &self,
        host: &HostName,
        architecture: &str,
        services: impl IntoIterator<Item = (&'s ServiceName, &'s Service)>,
    ) -> Result<Vec<Want>, ShipError> {
        let mut routed = services.into_iter().filter_map(|(name, service)| {
            let options = self.with_digest(RouteOptions::of(service)?);
            Some(route(&self.project.scope(), name, options, None, Vec::new()))
        });
        let Some(route) = routed.next() else { return Ok(Vec::new()) };
        let context = self.context(host, architecture, 0);
        let nothing = BTreeMap::new();
        let proxy = &self.ready.plugins.proxy;
        let mut wants = Vec::new();
        for turn in [proxy.boot(&context, &nothing)?, proxy.route(&context, &route, &nothing)?] {
            if let Turn::Observe(more) = turn {
                wants.extend(more);
            }
        }
        Ok(once(wants))
    }

    pub(super) fn context(&self, host: &HostName, architecture: &str, number: u16) -> HostContext {
        let images = self.ready.pins.get(architecture).cloned().unwrap_or_default();
        HostContext::new(host.clone(), architecture.to_owned(), number, images)
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

    /// Asks the plugins about every host with what is known. Gives the answers for hosts of which enough was known, and what is to be
    /// asked of the others.
    pub(super) fn round(
        &self,
        desired: &Desired,
        observation: &Observation,
        wish: Wish<'_>,
    ) -> Result<(Answers, Wants), ShipError> {
        let hosts: Vec<&HostName> = desired.hosts.keys().collect();
        let talked = side_by_side(self.threads, &hosts, |host| {
            let mut open = Vec::new();
            let answer = self.host_answers(desired, host, observation, wish, &mut open)?;
            Ok::<_, ShipError>((answer, once(open)))
        });
        let (mut answers, mut wants) = (Answers::new(), Wants::new());
        for (host, talked) in hosts.into_iter().zip(talked) {
            let (answer, open) = talked?;
            if open.is_empty() {
                answers.insert(host.clone(), answer);
            } else {
                wants.insert(host.clone(), open);
            }
        }
        Ok((answers, wants))
    }

    pub(super) fn host_answers(
        &self,
        desired: &Desired,
        host: &HostName,
        observation: &Observation,
        wish: Wish<'_>,
        open: &mut Vec<Want>,
    ) -> Result<HostAnswers, ShipError> {
        let wanted = &desired.hosts[host];
        let context = self.context(host, &wanted.architecture, wanted.number);
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
                    take(self.ready.plugins.proxy.unroute(&context, &route.key, facts)?);
                }
                continue;
            };
            if let Some(probe) = self.probe(host, &wanted.architecture, name, after, wish)? {
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
                        take(self.ready.plugins.proxy.unroute(&context, &route.key, facts)?);
                    }
                }
            }
        }
        if !routes.is_empty() {
            take(self.ready.plugins.proxy.boot(&context, facts)?);
        }
        for route in routes {
            take(self.ready.plugins.proxy.route(&context, &route, facts)?);
            let json = serde_json::to_value(&route).expect("a route is JSON");
            answer.routes.insert(route.service, json);
        }
        answer.steps = steps;
        Ok(answer)
    }

    fn probe(
        &self,
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
        Ok(self.ready.plugins.health.probes(&probes)?)
    }
}

/// Every want once: the same question has the same id.
fn once(mut wants: Vec<Want>) -> Vec<Want> {
    wants.sort_by(|one, other| one.id.cmp(&other.id));
    wants.dedup_by(|one, other| one.id == other.id);
    wants
}

/// A plugin that asks again and again.
pub(super) fn too_many_rounds(desired: &Desired) -> ShipError {
    let host = desired.hosts.keys().next().cloned();
    let host = host.unwrap_or_else(|| HostName::new("localhost").expect("it is a server's name"));
    ShipError::Rounds { host, rounds: MAX_ROUNDS }
}

/// Does the same with all items on some threads. Results come in the order of the items.
fn side_by_side<T: Sync, R: Send>(threads: usize, items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let threads = threads.min(items.len().div_ceil(HOSTS_PER_THREAD));
    if threads < 2 {
        return items.iter().map(work).collect();
    }
    let next = AtomicUsize::new(0);
    let take = || {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(at) else { return done };
            done.push((at, work(item)));
        }
    };
    let mut results: Vec<(usize, R)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (1..threads).map(|_| scope.spawn(take)).collect();
        let mut results = take();
        for worker in workers {
            match worker.join() {
                Ok(done) => results.extend(done),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        results
    });
    results.sort_by_key(|(at, _)| *at);
    results.into_iter().map(|(_, result)| result).collect()
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
