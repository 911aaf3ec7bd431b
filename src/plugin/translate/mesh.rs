//! The mesh role's questions, answers and steps. Peers stand in one list and are named by their place: most servers of a mesh know the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::str::FromStr;

use jiji_model::mesh::{Interface, Peer};
use jiji_model::name::{AbsPath, HostName};
use jiji_model::observation::{Answer, Query};
use jiji_model::plan::vet::Refusal;
use jiji_model::plan::{Action, Step};

use super::super::bindings::mesh::exports::jiji::mesh::mesh as wit;
use super::super::text::sentence;
use super::steps::phase;
use super::wrong;

/// What a plugin wants to know of a server.
pub(in super::super) fn mesh_query(want: &wit::Want) -> Result<Query, Refusal> {
    match &want.query {
        wit::Query::Key(path) => {
            let path = AbsPath::new(path.clone()).map_err(|error| wrong(&want.id, error))?;
            Ok(Query::PublicKey { path })
        }
        wit::Query::Link(name) => Ok(Query::Interface { name: name.clone() }),
    }
}

/// The facts of a call, with each peer once.
#[derive(Debug, Default)]
pub(in super::super) struct MeshFacts {
    facts: Vec<wit::Fact>,
    asked: BTreeSet<(HostName, String)>,
    peers: Vec<wit::Peer>,
    places: BTreeMap<Peer, u32>,
}

impl MeshFacts {
    /// What the plugin is handed.
    pub(in super::super) fn known(&self) -> wit::Known {
        wit::Known { facts: self.facts.clone(), peers: self.peers.clone() }
    }

    pub(in super::super) fn has(&self, host: &HostName, id: &str) -> bool {
        self.asked.contains(&(host.clone(), id.to_owned()))
    }

    pub(in super::super) fn add(&mut self, host: &HostName, id: &str, answer: &Answer) {
        let answer = match answer {
            Answer::Absent => wit::Answer::Absent,
            Answer::Failed(reason) => wit::Answer::Failed(reason.clone()),
            Answer::PublicKey(key) => wit::Answer::Key(key.to_string()),
            Answer::Interface(facts) => wit::Answer::Link(wit::LinkFacts {
                link: facts.spec.as_ref().map(|spec| self.link(spec)),
                differs: facts.differs.clone(),
                lacks: facts.lacks.clone(),
            }),
            // No mesh plugin can ask for anything else.
            _ => wit::Answer::Failed("not for a mesh".to_owned()),
        };
        self.asked.insert((host.clone(), id.to_owned()));
        self.facts.push(wit::Fact { host: host.to_string(), id: id.to_owned(), answer });
    }

    fn link(&mut self, spec: &Interface) -> wit::Link {
        let peers = spec.peers.iter().map(|peer| self.place(peer)).collect();
        let texts = |all: &[jiji_model::mesh::Cidr]| all.iter().map(ToString::to_string).collect();
        wit::Link {
            name: spec.name.clone(),
            key: spec.key.to_string(),
            addresses: texts(&spec.addresses),
            port: spec.port,
            mtu: spec.mtu,
            containers: spec.containers.to_string(),
            cluster: texts(&spec.cluster),
            peers,
        }
    }

    fn place(&mut self, peer: &Peer) -> u32 {
        if let Some(place) = self.places.get(peer) {
            return *place;
        }
        let place = u32::try_from(self.peers.len()).unwrap_or(u32::MAX);
        self.places.insert(peer.clone(), place);
        self.peers.push(wit::Peer {
            name: peer.name.to_string(),
            key: peer.key.to_string(),
            endpoint: peer.endpoint.as_ref().map(ToString::to_string),
            allowed: peer.allowed.iter().map(ToString::to_string).collect(),
            keepalive_s: peer.keepalive_s,
        });
        place
    }
}

/// Translates a plugin's whole answer, or says everything in it that is none.
pub(in super::super) fn mesh_steps(steps: &[wit::Step], peers: &[wit::Peer]) -> Result<Vec<Step>, Vec<Refusal>> {
    let peers = peers.iter().map(peer).collect::<Result<Vec<_>, _>>().map_err(|reason| vec![wrong("peers", reason)])?;
    let translated = steps.iter().map(|one| step(one, &peers).map_err(|reason| wrong(&sentence(&one.title), reason)));
    let (mut out, mut refusals) = (Vec::new(), Vec::new());
    for step in translated {
        match step {
            Ok(step) => out.push(step),
            Err(refusal) => refusals.push(refusal),
        }
    }
    if refusals.is_empty() { Ok(out) } else { Err(refusals) }
}

fn read<T: FromStr<Err: Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: T::Err| error.to_string())
}

fn read_all<T: FromStr<Err: Display>>(texts: &[String]) -> Result<Vec<T>, String> {
    texts.iter().map(|text| read(text)).collect()
}

fn peer(peer: &wit::Peer) -> Result<Peer, String> {
    Ok(Peer {
        name: read(&peer.name)?,
        key: read(&peer.key)?,
        endpoint: peer.endpoint.as_deref().map(read).transpose()?,
        allowed: read_all(&peer.allowed)?,
        keepalive_s: peer.keepalive_s,
    })
}

fn step(step: &wit::Step, peers: &[Peer]) -> Result<Step, String> {
    let host = HostName::new(step.host.clone()).map_err(|error| error.to_string())?;
    let mut out = Step::new(&host, phase(step.phase), sentence(&step.title), action(&step.action, peers)?);
    out.timeout_ms = step.timeout_ms;
    out.undo = step.undo.as_ref().map(|undo| action(undo, peers)).transpose()?;
    Ok(out)
}

fn action(action: &wit::Action, peers: &[Peer]) -> Result<Action, String> {
    Ok(match action {
        wit::Action::KeyEnsure(path) => Action::KeypairEnsure { path: absolute(path)? },
        wit::Action::LinkEnsure(link) => Action::InterfaceEnsure(Box::new(interface(link, peers)?)),
        wit::Action::LinkRemove(name) => Action::InterfaceRemove { name: name.clone() },
        wit::Action::Note(text) => Action::Note { text: sentence(text) },
    })
}

fn absolute(path: &str) -> Result<AbsPath, String> {
    AbsPath::new(path).map_err(|error| error.to_string())
}

fn interface(link: &wit::Link, peers: &[Peer]) -> Result<Interface, String> {
    let peer = |index: &u32| {
        let peer = usize::try_from(*index).ok().and_then(|index| peers.get(index));
        peer.cloned().ok_or_else(|| format!("peer {index}, of {}", peers.len()))
    };
    Ok(Interface {
        version: Interface::VERSION,
        name: link.name.clone(),
        key: absolute(&link.key)?,
        addresses: read_all(&link.addresses)?,
        port: link.port,
        mtu: link.mtu,
        containers: read(&link.containers)?,
        cluster: read_all(&link.cluster)?,
        peers: link.peers.iter().map(peer).collect::<Result<_, _>>()?,
    })
}
