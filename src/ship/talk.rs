//! What is said between the core and the plugins about each host: no host is asked here, and nothing is changed.
//!
//! Hosts are talked about side by side on as many threads as there are, since a plugin's call for one host knows nothing of another.

use std::collections::BTreeMap;

use jiji_model::digest::{CanonicalJson, Digest};
use jiji_model::name::{HostName, ServiceName};
use jiji_model::observation::{Observation, Want};
use jiji_model::plan::{PlannedService, Step};
use jiji_model::probe::ProbeSpec;
use jiji_model::project::{Project, Service};
use jiji_model::route::{Instance, Route, RouteOptions};

use super::ShipError;
use super::look::{Ready, Wants};
use crate::deploy::{Answers, Change, Desired, HostAnswers, HostDesired, Old};
use crate::plugin::{HostContext, MAX_ROUNDS, Subject, Turn};
use crate::secrets::Secrets;
use crate::side_by_side::side_by_side;

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
    /// What plugins want to know before anything of the host is known.
    pub(super) fn first_wants<'s>(
        &self,
        host: &HostName,
        architecture: &str,
        services: impl IntoIterator<Item = (&'s ServiceName, &'s Service)>,
    ) -> Result<Vec<Want>, ShipError> {
        let scope = self.project.scope();
        let routed = services.into_iter().filter_map(|(name, service)| {
            let options = self.with_digest(RouteOptions::of(service)?);
            Some(route(&scope, name, options, None, Vec::new()))
        });
        let routes: Vec<Route> = routed.collect();
        if routes.is_empty() {
            return Ok(Vec::new());
        }
        let context = self.context(host, architecture, 0);
        let nothing = BTreeMap::new();
        let proxy = &self.ready.plugins.proxy;
        let mut wants = Vec::new();
        if let Turn::Observe(more) = proxy.boot(&context, &nothing)? {
            wants.extend(more);
        }
        if let Turn::Observe(more) = proxy.route(&context, &routes, &nothing)? {
            wants.extend(more);
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
        let (mut gone, mut routes) = (Vec::new(), Vec::new());
        for (name, service) in &wanted.services {
            let change = &service.change;
            let options = match change.serving() {
                Some(after) => options(name, after, host, wish)?,
                None => None,
            };
            match (change.serving(), options) {
                (Some(after), Some(options)) => {
                    let options = self.with_digest(options);
                    let port = options.app_port;
                    let recorded = change.previous().and_then(|before| before.route.as_ref()?.read::<Route>().ok());
                    let previous = serving_before(change, port, recorded.as_ref());
                    let route = route(&desired.scope, name, options, instance(after, port), previous);
                    // What runs on and is routed on keeps its record.
                    let kept = matches!(change, Change::Unchanged { .. })
                        && recorded.is_some_and(|recorded| recorded.leads_as(&route));
                    if !kept {
                        answer.routes.insert(name.clone(), CanonicalJson::of(&route));
                    }
                    routes.push(route);
                }
                // It goes, or had a route and has none any more.
                _ => {
                    if let Some(route) = change.previous().and_then(|before| before.route.as_ref()) {
                        gone.push(parse_route(route, host, name)?.key);
                    }
                }
            }
        }
        let proxy = &self.ready.plugins.proxy;
        let mut steps: Vec<Step> = Vec::new();
        if !gone.is_empty() {
            match proxy.unroute(&context, &gone, facts)? {
                Turn::Observe(wants) => open.extend(wants),
                Turn::Done(lists) => steps.extend(lists.into_iter().flatten()),
            }
        }
        if !routes.is_empty() {
            match proxy.boot(&context, facts)? {
                Turn::Observe(wants) => open.extend(wants),
                Turn::Done(done) => steps.extend(done),
            }
            match proxy.route(&context, &routes, facts)? {
                Turn::Observe(wants) => open.extend(wants),
                Turn::Done(lists) => steps.extend(lists.into_iter().flatten()),
            }
        }
        answer.probes = self.probes(host, wanted, wish)?;
        answer.steps = steps;
        Ok(answer)
    }

    /// How the health of what will serve is told: as the project says now, or as it was when a release is wanted again.
    fn probes(
        &self,
        host: &HostName,
        wanted: &HostDesired,
        wish: Wish<'_>,
    ) -> Result<BTreeMap<ServiceName, ProbeSpec>, ShipError> {
        let mut probes = BTreeMap::new();
        let mut subjects = Vec::new();
        for (name, service) in &wanted.services {
            let Some(after) = service.change.serving() else { continue };
            let configured = match wish {
                Wish::Project(project) => project.services.get(name),
                Wish::Release => None,
            };
            match configured {
                Some(configured) => subjects.push(Subject {
                    service: name,
                    healthcheck: configured.healthcheck.as_ref(),
                    app_port: configured.proxy.as_ref().map(|proxy| proxy.app_port),
                }),
                None => probes.extend(after.probe.clone().map(|probe| (name.clone(), probe))),
            }
        }
        if !subjects.is_empty() {
            let specs = self.ready.plugins.health.probes(host, &wanted.architecture, &subjects)?;
            let told = subjects.iter().zip(specs);
            probes.extend(told.filter_map(|(subject, spec)| Some((subject.service.clone(), spec?))));
        }
        Ok(probes)
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

fn parse_route(route: &CanonicalJson, host: &HostName, service: &ServiceName) -> Result<Route, ShipError> {
    route.read().map_err(|_| ShipError::Release { host: host.clone(), service: service.clone() })
}

/// The instances that serve before a change, `route` being how they were. One that went away cannot be routed back to; one of which nothing is recorded can.
fn serving_before(change: &Change, port: u16, route: Option<&Route>) -> Vec<Instance> {
    let recorded = change.previous();
    let port_then = route.map_or(port, |route| route.options.app_port);
    match change {
        Change::Replace { old, .. } => {
            let running = old.iter().filter(|old| old.running);
            let instance = |old: &Old| {
                let recorded = recorded.filter(|before| before.container == old.name);
                let address = old.address.or_else(|| recorded?.address)?;
                Some(Instance { container: old.name.clone(), address, port: recorded.map_or(port, |_| port_then) })
            };
            running.filter_map(instance).collect()
        }
        Change::Unchanged { running, .. } => instance(running, port_then).into_iter().collect(),
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
