//! The private network of a project's servers: set up as one transaction, and looked at.
//!
//! All servers of the project are in it, also those that run no service yet. What it takes from services is nothing, so nothing is built,
//! and no lease of a project is taken: the network has a scope of its own, which all projects share. What a server is told is the mesh
//! plugin's.

use std::collections::BTreeMap;
use std::time::Instant;

use jiji_model::digest::Digest;
use jiji_model::mesh::{InterfaceFacts, SCOPE};
use jiji_model::name::HostName;
use jiji_model::observation::{Answer, Observation, Query, Want};
use jiji_model::plan::Step;
use jiji_model::transaction::Transaction;

use super::look::Wants;
use super::pipeline::{Durations, SETTLED_AT_MOST, applied, is_taken, since};
use super::{Ship, ShipError, Shipped};
use crate::apply::{self, Settled, settle_open, wait_until_free};
use crate::deploy::{self, Numbered};
use crate::fleet::{Fleet, FleetError, Target};
use crate::plugin::{MAX_ROUNDS, Member, Mesh, MeshTurn};

/// What servers say of the network.
#[derive(Debug, Default)]
pub struct NetworkState {
    /// Each server that answered: its interfaces by name, or why it could not tell.
    pub servers: BTreeMap<HostName, BTreeMap<String, Result<InterfaceFacts, String>>>,
    /// Servers that did not answer.
    pub lost: BTreeMap<HostName, FleetError>,
}

impl Ship {
    fn mesh(&self) -> Result<Mesh, ShipError> {
        let choice = self.project.network.as_ref().ok_or(ShipError::NoNetwork)?;
        let pins = self.lock.read()?.plugins;
        Ok(Mesh::load(choice, &pins, &self.store, Some(&self.compiled))?)
    }

    async fn connect_all(&self) -> Result<Fleet, ShipError> {
        self.connect_to(self.project.servers.keys().map(|host| Target::of(&self.project, host))).await
    }

    /// Brings all servers of the project into its network.
    ///
    /// # Errors
    /// As [`Self::ship`].
    pub async fn setup_network(&self) -> Result<Shipped, ShipError> {
        let start = Instant::now();
        let mut durations = Durations::new();
        let mesh = self.mesh()?;
        let fleet = self.unless_stopped(self.connect_all()).await?;
        let until = self.until();
        let set_up = loop {
            if !self.apply.wait_lock.is_zero() {
                let free = wait_until_free(SCOPE, &fleet.sessions, &self.apply, until, &self.cancel, &*self.sink).await;
                if let Err(error) = free {
                    break Err(applied(error));
                }
            }
            let set_up = self.join(&fleet, &mesh, &mut durations).await;
            if !is_taken(&set_up, until) {
                break set_up;
            }
        };
        self.end(fleet, set_up, durations, start).await
    }

    async fn join(&self, fleet: &Fleet, mesh: &Mesh, durations: &mut Durations) -> Result<Shipped, ShipError> {
        let start = Instant::now();
        let (mut observation, mut settled) = (Observation::default(), Vec::new());
        let wants: Wants = fleet.sessions.keys().map(|host| (host.clone(), deploy::network_wants())).collect();
        self.ask(fleet, &wants, &mut observation).await?;
        for _ in 0..SETTLED_AT_MOST {
            let is_open = |transaction: &Transaction| transaction.is_open();
            if !deploy::records(&observation).values().any(|it| it.transaction.as_ref().is_some_and(is_open)) {
                break;
            }
            settled.extend(self.settle_network(fleet, &observation).await?);
            observation = Observation::default();
            self.ask(fleet, &wants, &mut observation).await?;
        }
        let (mut number, mut keys_made) = (0, false);
        loop {
            let numbered = deploy::numbered(&observation)?;
            let (steps, is_first) = self.talk_of_mesh(fleet, mesh, &numbered, &mut observation).await?;
            if is_first && keys_made {
                return Err(self.mesh_gives_no_answer(mesh));
            }
            let plan = deploy::network_plan(&numbered, &steps, &observation)?;
            durations.insert("look", since(start));
            if plan.is_empty() {
                return Ok(Shipped { changed: number > 0, number, settled, ..Shipped::default() });
            }
            let seen = deploy::records(&observation);
            let done =
                apply::apply(&plan, &seen, &fleet.sessions, &self.store, &self.apply, &self.cancel, &*self.sink).await;
            number = done.map_err(applied)?.number;
            durations.insert("apply", since(start));
            if !is_first {
                return Ok(Shipped { changed: true, number, settled, ..Shipped::default() });
            }
            // What was made first is looked at like everything else: what a server says of its key is checked before others are told.
            keys_made = true;
            observation = Observation::default();
            self.ask(fleet, &wants, &mut observation).await?;
        }
    }

    /// What the plugin answers in the end, and whether it must be asked anew afterwards.
    async fn talk_of_mesh(
        &self,
        fleet: &Fleet,
        mesh: &Mesh,
        numbered: &Numbered,
        observation: &mut Observation,
    ) -> Result<(Vec<Step>, bool), ShipError> {
        let members = self.members(numbered);
        for _ in 0..MAX_ROUNDS {
            match mesh.join(&members, observation)? {
                MeshTurn::Observe(wants) => self.ask(fleet, &wants, observation).await?,
                MeshTurn::First(steps) => return Ok((steps, true)),
                MeshTurn::Done(steps) => return Ok((steps, false)),
            }
        }
        Err(self.mesh_gives_no_answer(mesh))
    }

    fn mesh_gives_no_answer(&self, mesh: &Mesh) -> ShipError {
        ShipError::MeshRounds { plugin: mesh.name().clone(), rounds: MAX_ROUNDS }
    }

    fn members(&self, numbered: &Numbered) -> Vec<Member> {
        let member = |(host, (number, architecture)): (&HostName, &(u16, String))| {
            let server = self.project.servers.get(host)?;
            let (endpoint, endpoint_port) = match &server.endpoint {
                Some(endpoint) => (endpoint.host.clone(), endpoint.port),
                None => (server.address.clone(), None),
            };
            Some(Member {
                host: host.clone(),
                architecture: architecture.clone(),
                number: *number,
                endpoint,
                endpoint_port,
            })
        };
        numbered.servers.iter().filter_map(member).collect()
    }

    async fn settle_network(&self, fleet: &Fleet, observation: &Observation) -> Result<Vec<Settled>, ShipError> {
        let records = deploy::records(observation);
        let mut options = self.apply.clone();
        options.project = Some(self.project.servers.keys().cloned().collect());
        settle_open(SCOPE, &records, &fleet.sessions, &options, &self.cancel, &*self.sink).await.map_err(applied)
    }

    /// Looks at the network of all servers of the project, without changing anything.
    ///
    /// # Errors
    /// [`ShipError`] where there is no network, or this machine is in the way. Servers that do not answer are none.
    pub async fn network_state(&self) -> Result<NetworkState, ShipError> {
        let mesh = self.mesh()?;
        let targets = self.project.servers.keys().map(|host| Target::of(&self.project, host));
        let targets = targets.collect::<Result<Vec<_>, _>>().map_err(ShipError::Fleet)?;
        let mut fleet = Fleet::connect(targets, &self.fleet).await.map_err(ShipError::Fleet)?;
        let queries: Vec<(String, Want)> = mesh
            .interfaces()
            .iter()
            .map(|name| {
                let query = Query::Interface { name: name.clone() };
                (name.clone(), Want { id: Digest::of_json(&query).to_string(), query })
            })
            .collect();
        let of_host: Vec<Want> = queries.iter().map(|(_, want)| want.clone()).collect();
        let wants = fleet.sessions.keys().map(|host| (host.clone(), of_host.clone())).collect();
        let (observation, mut lost) = fleet.observe(&wants).await;
        lost.append(&mut fleet.unreachable);
        fleet.close().await;
        let facts = |host: &HostName, want: &Want| match observation.answer(host, &want.id) {
            Some(Answer::Interface(facts)) => Ok((**facts).clone()),
            Some(Answer::Failed(reason)) => Err(reason.clone()),
            _ => Err("it answered something else".to_owned()),
        };
        let server = |host: &HostName| {
            let interfaces = queries.iter().map(|(name, want)| (name.clone(), facts(host, want)));
            (host.clone(), interfaces.collect())
        };
        Ok(NetworkState { servers: observation.hosts.keys().map(server).collect(), lost })
    }
}
