//! Runs plugins: pure functions in WebAssembly that say what a proxy or a health check needs, and can do nothing themselves.
//!
//! A plugin is called with its input and all facts that it asked for so far, and answers with more questions or with steps. What it
//! answers is translated into the shared words and vetted against its grants *here*, so a step that leaves this room is one that was
//! accepted. Each call has a fresh store and bounded fuel, memory and output; nothing is kept between two calls. No plugin is downloaded
//! here by itself: [`Plugins::load`] takes what is embedded or what [`install`] has put into the store, by digest.
//!
//! This is the only room that knows wasmtime and WIT. Looking at hosts is [`crate::fleet`]'s work, making a plan of the answers
//! [`crate::deploy`]'s, fetching from registries [`crate::registry`]'s (behind [`install::ArtifactSource`]).
//!
//! | door | what is behind it |
//! | --- | --- |
//! | [`Plugins`], [`Proxy`], [`Health`], [`Mesh`] | loading and calling |
//! | [`install`] | taking a plugin from a file or a registry, into the store and `jiji.lock` |
//! | `inspect` | what a component imports and exports, before anything of it runs |
//! | `engine`, `cache` | wasmtime, its limits, compiled code on disk |
//! | `translate` | WIT to the shared words and back |

mod bindings;
mod cache;
mod embedded;
mod engine;
mod error;
mod inspect;
pub mod install;
mod loaded;
mod mesh;
mod text;
mod translate;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use jiji_model::digest::Digest;
use jiji_model::name::{ContainerName, HostName, PluginName, ServiceName};
use jiji_model::observation::{Answer, Want};
use jiji_model::plan::vet::{Refusal, json_length, vet, vet_wants};
use jiji_model::plan::{Grants, NETWORK, Step};
use jiji_model::probe::{ProbeSpec, Timeline, Verdict};
use jiji_model::project::{HealthCheck, PluginChoice};
use jiji_model::reference::Reference;
use jiji_model::route::Route;
use jiji_model::transaction::roster;
use jiji_store::Store;
use wasmtime::component::Component;

use crate::lockfile::PluginSection;

use bindings::proxy::exports::jiji::proxy::proxy as proxy_wit;
use bindings::{health as health_bindings, proxy as proxy_bindings, types};
use engine::{Call, Runtime};
use translate::StepsOf;

pub use embedded::embedded;
pub use error::{Fault, PluginError};
pub use inspect::{Inspected, MAX_BYTES, Role};
pub use mesh::{Member, Mesh, MeshTurn};

/// Most rounds of questions that one call may take, the answer counted.
pub const MAX_ROUNDS: usize = 8;
/// Most bytes of facts that one call takes in: the facts of one host.
pub const MAX_FACTS: usize = 1024 * 1024;

/// Where everything of a plugin lies on a server, below [`STATE_DIR`]`/NAME`.
pub const STATE_DIR: &str = "/var/lib/jiji/plugins";

/// The plugins of a project, ready to be called. Calls may be made from several threads at once and take microseconds.
#[derive(Debug)]
pub struct Plugins {
    /// What moves requests.
    pub proxy: Proxy,
    /// What tells health.
    pub health: Health,
}

impl Plugins {
    /// Loads the plugins that a project chose: those that `pins` pins by name, from the store, else embedded ones. Settings are checked
    /// and grants compared; nothing is downloaded. `cache` is a directory for compiled code that must be the user's alone.
    ///
    /// # Errors
    /// [`PluginError`].
    pub fn load(
        choices: &jiji_model::project::Plugins,
        pins: &PluginSection,
        store: &Store,
        cache: Option<&Path>,
    ) -> Result<Self, PluginError> {
        let loader = Loader { runtime: Arc::new(Runtime::new()?), pins, store, cache: cache.map(cache::Cache::new) };
        Ok(Self { proxy: loader.proxy(&choices.proxy)?, health: loader.health(&choices.health)? })
    }
}

impl Plugins {
    /// How many calls of guests were made so far.
    pub fn calls(&self) -> u64 {
        self.proxy.runtime.calls()
    }

    /// The digests of their bytes, by name.
    pub fn digests(&self) -> BTreeMap<PluginName, Digest> {
        BTreeMap::from([(self.proxy.name.clone(), self.proxy.digest), (self.health.name.clone(), self.health.digest)])
    }
}

struct Loader<'a> {
    runtime: Arc<Runtime>,
    pins: &'a PluginSection,
    store: &'a Store,
    cache: Option<cache::Cache>,
}

impl Loader<'_> {
    fn proxy(&self, choice: &PluginChoice) -> Result<Proxy, PluginError> {
        let (component, digest, accepted) = self.component(&choice.name, Role::Proxy)?;
        let pre = self.runtime.proxy(&component).map_err(|error| loaded::unfit(choice.name.as_str(), &error))?;
        let name = choice.name.as_str();
        let settings = loaded::settings_text(&choice.settings);
        let needs = self.runtime.call(name, "check-settings", |store| {
            pre.instantiate(&mut *store)?.jiji_plan_meta().call_check_settings(&mut *store, &settings)
        })?;
        let needs = loaded::Needs::accept(&choice.name, needs, accepted.as_ref())?;
        Ok(Proxy { runtime: Arc::clone(&self.runtime), name: choice.name.clone(), digest, settings, needs, pre })
    }

    fn health(&self, choice: &PluginChoice) -> Result<Health, PluginError> {
        let (component, digest, accepted) = self.component(&choice.name, Role::Health)?;
        let pre = self.runtime.health(&component).map_err(|error| loaded::unfit(choice.name.as_str(), &error))?;
        let name = choice.name.as_str();
        let settings = loaded::settings_text(&choice.settings);
        let needs = self.runtime.call(name, "check-settings", |store| {
            pre.instantiate(&mut *store)?.jiji_plan_meta().call_check_settings(&mut *store, &settings)
        })?;
        loaded::Needs::accept(&choice.name, needs, accepted.as_ref())?;
        Ok(Health { runtime: Arc::clone(&self.runtime), name: choice.name.clone(), digest, settings, pre })
    }

    /// The compiled component of this name, the digest of its bytes, and what it was granted; none for embedded ones, which are trusted
    /// as this program is.
    fn component(&self, name: &PluginName, role: Role) -> Result<(Component, Digest, Option<Grants>), PluginError> {
        let (bytes, accepted) = loaded::bytes(name, self.pins, self.store)?;
        let inspected = inspect::inspect(name.as_str(), &bytes)?;
        if inspected.role != role {
            let exports = [inspected.role.interface().to_owned()];
            return Err(PluginError::wrong_role(name.as_str(), Some(role), &exports));
        }
        let component = loaded::compile(&self.runtime, self.cache.as_ref(), name.as_str(), &inspected.digest, &bytes)?;
        Ok((component, inspected.digest, accepted))
    }
}

/// What a plugin answers: steps, or a list of steps for each service where it was asked about several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turn<T = Vec<Step>> {
    /// It must know this first. The same question of several calls has the same id, so it needs to be asked of a host once. To be called
    /// again with an answer to each.
    Observe(Vec<Want>),
    /// What is to be done, vetted. Empty where all is as it should be.
    Done(T),
}

/// What a guest said, before anything of it was looked at.
enum Said<T> {
    Wants(Vec<types::Want>),
    Done(T),
}

impl From<types::Turn> for Said<Vec<types::Step>> {
    fn from(turn: types::Turn) -> Self {
        match turn {
            types::Turn::Observe(wants) => Self::Wants(wants),
            types::Turn::Done(steps) => Self::Done(steps),
        }
    }
}

impl From<proxy_wit::Turns> for Said<Vec<Vec<types::Step>>> {
    fn from(turns: proxy_wit::Turns) -> Self {
        match turns {
            proxy_wit::Turns::Observe(wants) => Self::Wants(wants),
            proxy_wit::Turns::Done(lists) => Self::Done(lists),
        }
    }
}

/// What a plugin is told of the host that it plans for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostContext {
    /// The host.
    pub host: HostName,
    /// Its architecture in Go's words.
    pub architecture: String,
    /// Subnet of the containers' network in CIDR form.
    pub subnet: String,
    /// Its gateway.
    pub gateway: Ipv4Addr,
    /// The address in it that is kept for the plugin.
    pub address: Ipv4Addr,
    /// The images of [`Proxy::images`], with the digest of the manifest for this host's architecture.
    pub images: BTreeMap<String, Reference>,
}

impl HostContext {
    /// The context of the host with this number in the roster. The proxy's address is the first after the gateway.
    pub fn new(host: HostName, architecture: String, number: u16, images: BTreeMap<String, Reference>) -> Self {
        let [a, b, c, d] = roster::gateway(number).octets();
        Self {
            host,
            architecture,
            subnet: roster::subnet(number),
            gateway: roster::gateway(number),
            address: Ipv4Addr::new(a, b, c, d + 1),
            images,
        }
    }
}

/// The plugin that moves requests.
pub struct Proxy {
    runtime: Arc<Runtime>,
    name: PluginName,
    digest: Digest,
    settings: String,
    needs: loaded::Needs,
    pre: proxy_bindings::PluginPre<Call>,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Proxy {
    /// Its name.
    pub fn name(&self) -> &PluginName {
        &self.name
    }

    /// The images that it runs, by the name it gives them. To be resolved to digests, per architecture, before it is called.
    pub fn images(&self) -> &BTreeMap<String, Reference> {
        &self.needs.images
    }

    /// What it may ask for.
    pub fn grants(&self) -> &Grants {
        &self.needs.grants
    }

    /// Steps of `boot` that make the proxy run on a host. `facts` are all answers of the host so far, by want.
    ///
    /// # Errors
    /// [`PluginError`].
    pub fn boot(&self, host: &HostContext, facts: &BTreeMap<String, Answer>) -> Result<Turn, PluginError> {
        let context = self.context(host);
        let talk = Conversation { proxy: self, call: "boot", host, facts, services: 0 };
        talk.hold(
            |store, plugin, facts| plugin.jiji_proxy_proxy().call_boot(store, &context, facts),
            |steps: Vec<types::Step>| self.vetted(host, None, &steps),
        )
    }

    /// Steps that put a proxy with these settings in the place of one that runs with others on a host, while connections go on. Empty
    /// where it runs as it should.
    ///
    /// # Errors
    /// [`PluginError`], also where the plugin cannot do it.
    pub fn upgrade(&self, host: &HostContext, facts: &BTreeMap<String, Answer>) -> Result<Turn, PluginError> {
        let context = self.context(host);
        let talk = Conversation { proxy: self, call: "upgrade", host, facts, services: 0 };
        talk.hold(
            |store, plugin, facts| plugin.jiji_proxy_proxy().call_upgrade(store, &context, facts),
            |steps: Vec<types::Step>| self.vetted(host, None, &steps),
        )
    }

    /// Steps that move the requests of services on a host, with their undo: a list for each route, in their order. While targets are not
    /// known yet, `targets` of the routes are empty: then only the questions count.
    ///
    /// # Errors
    /// [`PluginError`].
    pub fn route(
        &self,
        host: &HostContext,
        routes: &[Route],
        facts: &BTreeMap<String, Answer>,
    ) -> Result<Turn<Vec<Vec<Step>>>, PluginError> {
        let input = proxy_wit::RouteInput {
            context: self.context(host),
            routes: routes.iter().map(translate::route).collect(),
        };
        let talk = Conversation { proxy: self, call: "route", host, facts, services: routes.len() };
        talk.hold(
            |store, plugin, facts| plugin.jiji_proxy_proxy().call_route(store, &input, facts),
            |lists: Vec<Vec<types::Step>>| {
                self.each(&lists, routes.len(), |at, steps| self.vetted(host, routes.get(at), steps))
            },
        )
    }

    /// Steps of `withdraw` after which no request on a host goes to the services that the proxy knows by these keys ([`Route::key`]): a
    /// list for each, in their order.
    ///
    /// # Errors
    /// [`PluginError`].
    pub fn unroute(
        &self,
        host: &HostContext,
        keys: &[String],
        facts: &BTreeMap<String, Answer>,
    ) -> Result<Turn<Vec<Vec<Step>>>, PluginError> {
        let input = proxy_wit::UnrouteInput { context: self.context(host), services: keys.to_vec() };
        let talk = Conversation { proxy: self, call: "unroute", host, facts, services: keys.len() };
        talk.hold(
            |store, plugin, facts| plugin.jiji_proxy_proxy().call_unroute(store, &input, facts),
            |lists: Vec<Vec<types::Step>>| self.each(&lists, keys.len(), |_, steps| self.vetted(host, None, steps)),
        )
    }

    /// Vets the lists of an answer about several services: there must be one for each.
    fn each(
        &self,
        lists: &[Vec<types::Step>],
        asked: usize,
        vetted: impl Fn(usize, &[types::Step]) -> Result<Vec<Step>, Vec<Refusal>>,
    ) -> Result<Vec<Vec<Step>>, Vec<Refusal>> {
        if lists.len() != asked {
            let reason = format!("{} lists of steps for {asked} services", lists.len());
            return Err(vec![Refusal { step: "answer".to_owned(), reason, grantable: false }]);
        }
        lists.iter().enumerate().map(|(at, steps)| vetted(at, steps)).collect()
    }

    fn context(&self, host: &HostContext) -> types::Context {
        types::Context {
            host: types::Server {
                name: host.host.to_string(),
                architecture: host.architecture.clone(),
                labels: Vec::new(),
            },
            network: types::Network {
                name: NETWORK.to_owned(),
                subnet: host.subnet.clone(),
                gateway: host.gateway.to_string(),
            },
            address: host.address.to_string(),
            state_dir: format!("{STATE_DIR}/{}", self.name),
            settings: self.settings.clone(),
            images: host
                .images
                .iter()
                .map(|(name, reference)| types::ImageRef { name: name.clone(), reference: reference.to_string() })
                .collect(),
        }
    }

    fn check_images(&self, host: &HostContext) -> Result<(), PluginError> {
        for (name, wanted) in &self.needs.images {
            let pinned = host.images.get(name).is_some_and(|image| {
                image.digest.is_some() && image.registry == wanted.registry && image.repository == wanted.repository
            });
            if !pinned {
                return Err(PluginError::ImageNotPinned { plugin: self.name.clone(), image: name.clone() });
            }
        }
        Ok(())
    }

    /// Questions with the plugin's id and the host's: `PLUGIN/` and the beginning of the question's digest.
    fn wants(
        &self,
        asked: &[types::Want],
        known: &[types::Fact],
        services: usize,
    ) -> Result<Vec<(String, Want)>, Vec<Refusal>> {
        let refuse = |step: &str, reason: &str| {
            vec![Refusal { step: text::sentence(step), reason: reason.to_owned(), grantable: false }]
        };
        if asked.is_empty() {
            return Err(refuse("wants", "it wants to know nothing and gives no answer"));
        }
        let mut seen: BTreeSet<&str> = known.iter().map(|fact| fact.id.as_str()).collect();
        let mut out = Vec::with_capacity(asked.len());
        for want in asked {
            if !seen.insert(&want.id) {
                return Err(refuse(&want.id, "asked for twice"));
            }
            let query = translate::query(want).map_err(|refusal| vec![refusal])?;
            let id = format!("{}/{}", self.name, &Digest::of_json(&query).hex()[..16]);
            out.push((want.id.clone(), Want { id, query }));
        }
        let wants: Vec<Want> = out.iter().map(|(_, want)| want.clone()).collect();
        vet_wants(&wants, &self.needs.grants, services)?;
        Ok(out)
    }

    fn vetted(
        &self,
        host: &HostContext,
        route: Option<&Route>,
        steps: &[types::Step],
    ) -> Result<Vec<Step>, Vec<Refusal>> {
        if steps.is_empty() {
            return Ok(Vec::new());
        }
        let containers: Vec<ContainerName> = route
            .iter()
            .flat_map(|route| route.targets.iter().chain(&route.previous))
            .map(|instance| instance.container.clone())
            .collect();
        let of = StepsOf {
            plugin: &self.name,
            host: &host.host,
            service: route.map(|route| &route.service),
            containers: &containers,
            own: &self.needs.grants.containers,
        };
        let steps = translate::steps(&of, steps)?;
        // What a route names was written there for its proxy.
        let mut grants = self.needs.grants.clone();
        let certificate = route.iter().filter_map(|route| route.options.certificate.as_ref());
        grants.secrets.extend(certificate.flat_map(|certificate| [certificate.chain.clone(), certificate.key.clone()]));
        vet(&steps, &self.name, &grants, &BTreeSet::from([host.host.clone()]))?;
        Ok(steps)
    }
}

/// A function of a role that is asked about one host.
struct Conversation<'a> {
    proxy: &'a Proxy,
    call: &'static str,
    host: &'a HostContext,
    /// What is known of the host.
    facts: &'a BTreeMap<String, Answer>,
    /// About how many services it is asked.
    services: usize,
}

impl Conversation<'_> {
    /// Calls the plugin anew with ever more facts, until it answers or wants something that is not known.
    fn hold<A, S: Into<Said<A>>, T>(
        &self,
        ask: impl Fn(
            &mut wasmtime::Store<Call>,
            &proxy_bindings::Plugin,
            &[types::Fact],
        ) -> wasmtime::Result<Result<S, types::Fault>>,
        vet: impl FnOnce(A) -> Result<T, Vec<Refusal>>,
    ) -> Result<Turn<T>, PluginError> {
        let Self { proxy, call, .. } = *self;
        proxy.check_images(self.host)?;
        let refused = |refusals| PluginError::Refused { plugin: proxy.name.clone(), call, refusals };
        let mut known: Vec<types::Fact> = Vec::new();
        let mut size = 0;
        for round in 1..=MAX_ROUNDS {
            let turn = proxy.runtime.call(proxy.name.as_str(), call, |store| {
                let plugin = proxy.pre.instantiate(&mut *store)?;
                ask(store, &plugin, &known)
            })?;
            let wants = match turn.map(Into::into) {
                Ok(Said::Done(answer)) => return vet(answer).map(Turn::Done).map_err(refused),
                Ok(Said::Wants(wants)) => wants,
                Err(fault) => {
                    let fault = translate::fault(fault);
                    return Err(PluginError::Fault { plugin: proxy.name.clone(), call, fault });
                }
            };
            if round == MAX_ROUNDS {
                break;
            }
            let wants = proxy.wants(&wants, &known, self.services).map_err(refused)?;
            let mut missing: Vec<Want> = Vec::new();
            for (id, want) in wants {
                match self.facts.get(&want.id) {
                    Some(answer) => {
                        size += json_length(answer).expect("an answer is JSON");
                        if size > MAX_FACTS {
                            let (plugin, limit) = (proxy.name.clone(), MAX_FACTS);
                            return Err(PluginError::TooManyFacts { plugin, call, size, limit });
                        }
                        known.push(types::Fact { id, answer: translate::answer(answer) });
                    }
                    None if missing.contains(&want) => {}
                    None => missing.push(want),
                }
            }
            if !missing.is_empty() {
                return Ok(Turn::Observe(missing));
            }
        }
        Err(PluginError::TooManyRounds { plugin: proxy.name.clone(), call, rounds: MAX_ROUNDS })
    }
}

/// A service whose health is to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subject<'a> {
    /// The service.
    pub service: &'a ServiceName,
    /// What the service's configuration says, if anything.
    pub healthcheck: Option<&'a HealthCheck>,
    /// The port that the proxy sends requests to, if the service has a proxy.
    pub app_port: Option<u16>,
}

/// A finished loop to be judged.
#[derive(Debug, Clone, Copy)]
pub struct Judge<'a> {
    /// Where it ran.
    pub host: &'a HostName,
    /// The host's architecture in Go's words.
    pub architecture: &'a str,
    /// What the loop was made for.
    pub subject: &'a Subject<'a>,
    /// The loop.
    pub spec: &'a ProbeSpec,
    /// What it left.
    pub timeline: &'a Timeline,
    /// The container's last log lines, as far as they were gathered.
    pub log: &'a str,
}

/// The plugin that tells health.
pub struct Health {
    runtime: Arc<Runtime>,
    name: PluginName,
    digest: Digest,
    settings: String,
    pre: health_bindings::PluginPre<Call>,
}

impl std::fmt::Debug for Health {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Health").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Health {
    /// Its name.
    pub fn name(&self) -> &PluginName {
        &self.name
    }

    /// The loops that tell the health of services' containers on a host, in the order of the subjects. None: running is healthy.
    ///
    /// # Errors
    /// [`PluginError`].
    pub fn probes(
        &self,
        host: &HostName,
        architecture: &str,
        subjects: &[Subject<'_>],
    ) -> Result<Vec<Option<ProbeSpec>>, PluginError> {
        let call = "probes";
        let question = translate::probes_input(host, architecture, subjects, &self.settings);
        let answer = self.runtime.call(self.name.as_str(), call, |store| {
            let plugin = self.pre.instantiate(&mut *store)?;
            plugin.jiji_health_health().call_probes(&mut *store, &question)
        })?;
        let specs = answer.map_err(|fault| self.fault(call, fault))?;
        let refused = |step: String, reason: &str| {
            let refusals = vec![Refusal { step, reason: text::sentence(reason), grantable: false }];
            PluginError::Refused { plugin: self.name.clone(), call, refusals }
        };
        if specs.len() != subjects.len() {
            let reason = format!("{} probes for {} services", specs.len(), subjects.len());
            return Err(refused("answer".to_owned(), &reason));
        }
        let probe = |(subject, spec): (&Subject<'_>, &Option<types::ProbeSpec>)| {
            let spec = spec.as_ref().map(translate::probe).transpose();
            spec.map_err(|reason| refused(subject.service.to_string(), &reason))
        };
        subjects.iter().zip(&specs).map(probe).collect()
    }

    /// What a finished loop means. A plugin can call a loop unhealthy that the host found healthy, and not the other way round: what was
    /// not healthy is never routed.
    ///
    /// # Errors
    /// [`PluginError`].
    pub fn judge(&self, judge: Judge<'_>) -> Result<Verdict, PluginError> {
        let call = "judge";
        let question = translate::judge_input(&judge, &self.settings);
        let answer = self.runtime.call(self.name.as_str(), call, |store| {
            let plugin = self.pre.instantiate(&mut *store)?;
            plugin.jiji_health_health().call_judge(&mut *store, &question)
        })?;
        let mut verdict = translate::verdict(&answer.map_err(|fault| self.fault(call, fault))?);
        verdict.healthy &= judge.timeline.healthy;
        Ok(verdict)
    }

    fn fault(&self, call: &'static str, fault: types::Fault) -> PluginError {
        PluginError::Fault { plugin: self.name.clone(), call, fault: translate::fault(fault) }
    }
}

#[cfg(test)]
mod tests;
