//! The plugin that makes the mesh: one call for a whole fleet, with limits that grow with it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use jiji_model::digest::Digest;
use jiji_model::mesh::DIR;
use jiji_model::name::{HostName, PluginName};
use jiji_model::observation::{Observation, Want};
use jiji_model::plan::vet::{MAX_WANTS, Refusal, json_length, vet, vet_wants};
use jiji_model::plan::{Action, Phase, Step};
use jiji_model::project::PluginChoice;
use jiji_model::transaction::roster;
use jiji_store::Store;

use super::bindings::mesh as mesh_bindings;
use super::bindings::mesh::exports::jiji::mesh::mesh as wit;
use super::engine::{Call, Runtime};
use super::inspect::Role;
use super::{Loader, MAX_FACTS, MAX_ROUNDS, PluginError, cache, loaded, text, translate};
use crate::lockfile::PluginSection;

/// A server that is to be in the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The server.
    pub host: HostName,
    /// Its architecture in Go's words.
    pub architecture: String,
    /// Its number in the roster.
    pub number: u16,
    /// A name or an address by which the other members reach it.
    pub endpoint: String,
    /// The UDP port there, where it is another one than the server listens on.
    pub endpoint_port: Option<u16>,
}

/// What the plugin answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MeshTurn {
    /// It must know this first, of each of these servers.
    Observe(BTreeMap<HostName, Vec<Want>>),
    /// This must be done first, vetted; then it is to be asked anew.
    First(Vec<Step>),
    /// What is to be done, vetted. Empty where all is as it should be.
    Done(Vec<Step>),
}

/// The plugin that makes the mesh.
pub struct Mesh {
    runtime: Arc<Runtime>,
    name: PluginName,
    settings: String,
    needs: loaded::Needs,
    pre: mesh_bindings::PluginPre<Call>,
}

impl std::fmt::Debug for Mesh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mesh").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Mesh {
    /// Loads the plugin that a project chose, as [`super::Plugins::load`] does the others. Apart from them, since a ship needs no mesh.
    ///
    /// # Errors
    /// [`PluginError`].
    pub fn load(
        choice: &PluginChoice,
        pins: &PluginSection,
        store: &Store,
        cache: Option<&Path>,
    ) -> Result<Self, PluginError> {
        let loader = Loader { runtime: Arc::new(Runtime::new()?), pins, store, cache: cache.map(cache::Cache::new) };
        let (component, _, accepted) = loader.component(&choice.name, Role::Mesh)?;
        let pre = loader.runtime.mesh(&component).map_err(|error| loaded::unfit(choice.name.as_str(), &error))?;
        let settings = loaded::settings_text(&choice.settings);
        let needs = loader.runtime.call(choice.name.as_str(), "check-settings", |store| {
            pre.instantiate(&mut *store)?.jiji_plan_meta().call_check_settings(&mut *store, &settings)
        })?;
        let needs = loaded::Needs::accept(&choice.name, needs, accepted.as_ref())?;
        Ok(Self { runtime: loader.runtime, name: choice.name.clone(), settings, needs, pre })
    }

    /// Its name.
    pub fn name(&self) -> &PluginName {
        &self.name
    }

    /// The interfaces that it may make: those to look at where the mesh's state is told.
    pub fn interfaces(&self) -> &[String] {
        &self.needs.grants.interfaces
    }

    /// Steps that bring all members into the mesh. `observation` has all answers so far.
    ///
    /// # Errors
    /// [`PluginError`].
    pub fn join(&self, members: &[Member], observation: &Observation) -> Result<MeshTurn, PluginError> {
        let call = "join";
        let refused = |refusals| PluginError::Refused { plugin: self.name.clone(), call, refusals };
        let hosts: BTreeSet<HostName> = members.iter().map(|member| member.host.clone()).collect();
        let input = self.input(members);
        let mut facts = translate::MeshFacts::default();
        let mut size = 0;
        for round in 1..=MAX_ROUNDS {
            let known = facts.known();
            let turn = self.runtime.call_for(self.name.as_str(), call, members.len(), |store| {
                let plugin = self.pre.instantiate(&mut *store)?;
                plugin.jiji_mesh_mesh().call_join(&mut *store, &input, &known)
            })?;
            let turn = turn.map_err(|fault| PluginError::Fault {
                plugin: self.name.clone(),
                call,
                fault: translate::fault(fault),
            })?;
            let wants = match turn {
                wit::Turn::Observe(wants) => wants,
                wit::Turn::First(steps) => {
                    let steps = self.vetted(&steps, &[], &hosts).map_err(refused)?;
                    return first(steps).map(MeshTurn::First).map_err(refused);
                }
                wit::Turn::Done(plan) => {
                    let steps = self.vetted(&plan.steps, &plan.peers, &hosts).map_err(refused)?;
                    return undoable(steps).map(MeshTurn::Done).map_err(refused);
                }
            };
            if round == MAX_ROUNDS {
                break;
            }
            let mut missing: BTreeMap<HostName, Vec<Want>> = BTreeMap::new();
            for (host, id, want) in self.wants(&wants, &facts, &hosts).map_err(refused)? {
                match observation.answer(&host, &want.id) {
                    Some(answer) => {
                        size += json_length(answer).expect("an answer is JSON");
                        let limit = MAX_FACTS.saturating_mul(members.len().max(1));
                        if size > limit {
                            return Err(PluginError::TooManyFacts { plugin: self.name.clone(), call, size, limit });
                        }
                        facts.add(&host, &id, answer);
                    }
                    None => missing.entry(host).or_default().push(want),
                }
            }
            if !missing.is_empty() {
                return Ok(MeshTurn::Observe(missing));
            }
        }
        Err(PluginError::TooManyRounds { plugin: self.name.clone(), call, rounds: MAX_ROUNDS })
    }

    fn input(&self, members: &[Member]) -> wit::Input {
        let member = |member: &Member| wit::Member {
            name: member.host.to_string(),
            number: member.number,
            architecture: member.architecture.clone(),
            address: roster::mesh_address(member.number).to_string(),
            containers: roster::subnet(member.number),
            endpoint: member.endpoint.clone(),
            endpoint_port: member.endpoint_port,
            labels: Vec::new(),
        };
        wit::Input {
            settings: self.settings.clone(),
            cluster: roster::CLUSTER.iter().map(ToString::to_string).collect(),
            state_dir: DIR.to_owned(),
            members: members.iter().map(member).collect(),
        }
    }

    /// Questions with the host they are for, the plugin's id, and the host's: `PLUGIN/` and the beginning of the question's digest.
    fn wants(
        &self,
        asked: &[wit::Want],
        known: &translate::MeshFacts,
        hosts: &BTreeSet<HostName>,
    ) -> Result<Vec<(HostName, String, Want)>, Vec<Refusal>> {
        let refuse = |step: &str, reason: &str| {
            vec![Refusal { step: text::sentence(step), reason: reason.to_owned(), grantable: false }]
        };
        if asked.is_empty() {
            return Err(refuse("wants", "it wants to know nothing and gives no answer"));
        }
        if asked.len() > MAX_WANTS.saturating_mul(hosts.len()) {
            return Err(refuse("wants", "more wants than any mesh needs"));
        }
        let mut seen = BTreeSet::new();
        let mut out = Vec::with_capacity(asked.len());
        for want in asked {
            let host = hosts.get(want.host.as_str()).ok_or_else(|| refuse(&want.host, "no member of that name"))?;
            if known.has(host, &want.id) || !seen.insert((host, &want.id)) {
                return Err(refuse(&want.id, "asked for twice"));
            }
            let query = translate::mesh_query(want).map_err(|refusal| vec![refusal])?;
            let id = format!("{}/{}", self.name, &Digest::of_json(&query).hex()[..16]);
            let question = Want { id, query };
            vet_wants(std::slice::from_ref(&question), &self.needs.grants, 0)?;
            out.push((host.clone(), want.id.clone(), question));
        }
        Ok(out)
    }

    fn vetted(
        &self,
        steps: &[wit::Step],
        peers: &[wit::Peer],
        hosts: &BTreeSet<HostName>,
    ) -> Result<Vec<Step>, Vec<Refusal>> {
        let steps = translate::mesh_steps(steps, peers)?;
        vet(&steps, &self.name, &self.needs.grants, hosts)?;
        Ok(steps)
    }
}

fn refuse(step: &Step, reason: &str) -> Refusal {
    Refusal { step: step.title.clone(), reason: reason.to_owned(), grantable: false }
}

/// What comes first must be of a kind that is kept, whatever comes of the rest.
fn first(steps: Vec<Step>) -> Result<Vec<Step>, Vec<Refusal>> {
    let keeps = |step: &&Step| {
        step.phase == Phase::Boot && matches!(step.action, Action::KeypairEnsure { .. } | Action::Note { .. })
    };
    let refusals: Vec<_> = steps
        .iter()
        .filter(|step| !keeps(step))
        .map(|step| refuse(step, "only keys can be made before the rest is known"))
        .collect();
    if steps.is_empty() {
        return Err(vec![Refusal {
            step: "answer".to_owned(),
            reason: "nothing comes first".to_owned(),
            grantable: false,
        }]);
    }
    if refusals.is_empty() { Ok(steps) } else { Err(refusals) }
}

/// What changes a server's network before the change is decided must be taken back where it fails elsewhere.
fn undoable(steps: Vec<Step>) -> Result<Vec<Step>, Vec<Refusal>> {
    let lacks = |step: &&Step| {
        let changes = matches!(step.action, Action::InterfaceEnsure(_) | Action::InterfaceRemove { .. });
        changes && step.phase.before_decided() && step.undo.is_none()
    };
    let refusals: Vec<_> = steps.iter().filter(lacks).map(|step| refuse(step, "nothing takes it back")).collect();
    if refusals.is_empty() { Ok(steps) } else { Err(refusals) }
}

#[cfg(test)]
mod tests {
    use jiji_model::mesh::{Interface, InterfaceFacts};
    use jiji_model::observation::{Answer, Query};
    use jiji_model::project::Plugins;

    use super::*;

    fn host(name: &str) -> HostName {
        HostName::new(name).expect("a name")
    }

    fn member(name: &str, number: u16) -> Member {
        Member {
            host: host(name),
            architecture: "amd64".to_owned(),
            number,
            endpoint: format!("198.51.100.{number}"),
            endpoint_port: (number == 1).then_some(4000),
        }
    }

    fn loaded(settings: serde_json::Value) -> Result<Mesh, PluginError> {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path().join("store")).expect("a store");
        Mesh::load(&PluginChoice { settings, ..Plugins::default_mesh() }, &PluginSection::new(), &store, None)
    }

    /// A fleet whose servers have keys, or have none, and what they were told to be.
    #[derive(Default)]
    struct World {
        keys: BTreeMap<HostName, String>,
        told: BTreeMap<HostName, Interface>,
    }

    impl World {
        fn answer(&self, host: &HostName, query: &Query) -> Answer {
            match query {
                Query::PublicKey { .. } => match self.keys.get(host) {
                    Some(key) => Answer::PublicKey(key.parse().expect("a key")),
                    None => Answer::Absent,
                },
                Query::Interface { .. } => {
                    let facts = InterfaceFacts { spec: self.told.get(host).cloned(), ..InterfaceFacts::default() };
                    Answer::Interface(Box::new(facts))
                }
                other => panic!("no mesh asks {other:?}"),
            }
        }

        /// Asks until there is an answer.
        fn settle(&self, mesh: &Mesh, members: &[Member]) -> Result<MeshTurn, PluginError> {
            let mut observation = Observation::default();
            for _ in 0..MAX_ROUNDS {
                match mesh.join(members, &observation)? {
                    MeshTurn::Observe(wants) => {
                        for (host, wants) in wants {
                            let answers = observation.hosts.entry(host.clone()).or_default();
                            answers.extend(wants.into_iter().map(|want| (want.id, self.answer(&host, &want.query))));
                        }
                    }
                    turn => return Ok(turn),
                }
            }
            panic!("no answer");
        }
    }

    fn key(of: char) -> String {
        format!("{of}{}=", "A".repeat(42))
    }

    #[test]
    fn keys_come_first_then_everyone_is_told_of_everyone_and_then_there_is_nothing_to_do() {
        let mesh = loaded(serde_json::json!({"mtu": 1380})).expect("loaded");
        let members = [member("a", 0), member("b", 1)];
        let mut world = World::default();
        world.keys.insert(host("a"), key('a'));
        let MeshTurn::First(steps) = world.settle(&mesh, &members).expect("an answer") else { panic!("a key first") };
        assert_eq!((steps.len(), &steps[0].host, steps[0].phase), (1, &host("b"), Phase::Boot));
        world.keys.insert(host("b"), key('b'));
        let MeshTurn::Done(steps) = world.settle(&mesh, &members).expect("an answer") else { panic!("steps") };
        assert_eq!(steps.len(), 2);
        for step in steps {
            assert_eq!(step.undo, Some(Action::InterfaceRemove { name: "jiji0".to_owned() }));
            let Action::InterfaceEnsure(told) = step.action else { panic!("{:?}", step.action) };
            assert_eq!((told.mtu, told.peers.len(), told.fault()), (1380, 1, None));
            if step.host == host("a") {
                let endpoint = told.peers[0].endpoint.as_ref().map(ToString::to_string);
                assert_eq!(endpoint.as_deref(), Some("198.51.100.1:4000"));
            }
            world.told.insert(step.host, *told);
        }
        assert_eq!(world.settle(&mesh, &members).expect("an answer"), MeshTurn::Done(Vec::new()));
    }

    #[test]
    fn a_server_that_shows_another_ones_key_and_bad_settings_are_faults() {
        let mesh = loaded(serde_json::json!({})).expect("loaded");
        let keys = BTreeMap::from([(host("a"), key('a')), (host("b"), key('a'))]);
        let world = World { keys, ..World::default() };
        let error = world.settle(&mesh, &[member("a", 0), member("b", 1)]).expect_err("a fault");
        assert!(matches!(&error, PluginError::Fault { fault, .. } if fault.code == "same-key"), "{error}");
        assert!(matches!(loaded(serde_json::json!({"port": 0})), Err(PluginError::Settings { .. })));
    }

    #[test]
    fn what_changes_a_network_is_taken_back_and_nothing_but_keys_comes_first() {
        let remove = Action::InterfaceRemove { name: "jiji0".to_owned() };
        let mut step = Step::new(&host("a"), Phase::Cutover, "remove it", remove.clone());
        assert!(undoable(vec![step.clone()]).is_err());
        assert!(first(vec![step.clone()]).is_err() && first(Vec::new()).is_err());
        step.undo = Some(remove);
        assert!(undoable(vec![step]).is_ok());
    }
}
