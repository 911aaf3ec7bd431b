//! Who knows whom in the mesh, and under which addresses.
//!
//! Every member is told of every other. What a server knows besides, other projects brought in: it stays, since no project sees all of a
//! shared server's peers, and a server leaves by being removed and never by being absent from a list.

use std::collections::{BTreeMap, BTreeSet};

use crate::bindings::exports::jiji::mesh::mesh::{
    Action, Answer, Input, Known, Link, LinkFacts, Member, Peer, Plan, Query, Step, Turn, Want,
};
use crate::bindings::jiji::plan::types::{Fault, Phase};
use crate::settings::Settings;
use crate::{INTERFACE, fault, management};

const WANT_KEY: &str = "key";
const WANT_LINK: &str = "link";

/// Milliseconds that a server may take: names of endpoints may have to be asked for.
const TIMEOUT_MS: u32 = 120_000;

/// Steps that bring all members into the mesh.
pub fn join(input: &Input, known: &Known, settings: &Settings) -> Result<Turn, Fault> {
    let key_path = format!("{}/{INTERFACE}.key", input.state_dir);
    let facts: BTreeMap<(&str, &str), &Answer> =
        known.facts.iter().map(|fact| ((fact.host.as_str(), fact.id.as_str()), &fact.answer)).collect();
    let wants = wants(input, &facts, &key_path);
    if !wants.is_empty() {
        return Ok(Turn::Observe(wants));
    }
    let mut seen = Vec::with_capacity(input.members.len());
    let mut without_key = Vec::new();
    for member in &input.members {
        let link = link_facts(member, facts.get(&(member.name.as_str(), WANT_LINK)).copied())?;
        match facts.get(&(member.name.as_str(), WANT_KEY)) {
            Some(Answer::Key(key)) => seen.push(Seen { member, key, link }),
            Some(Answer::Absent) => without_key.push(member),
            other => return Err(unanswered(member, "its key", other.copied())),
        }
    }
    if !without_key.is_empty() {
        return Ok(Turn::First(without_key.into_iter().map(|member| make_key(member, &key_path)).collect()));
    }
    differ(&seen)?;
    let mut peers = Peers::default();
    let mut steps = Vec::new();
    let everyone = seen.iter().map(|one| as_peer(one, settings)).collect::<Result<Vec<_>, _>>()?;
    let told = Told::of(&everyone);
    for (one, own) in seen.iter().zip(&everyone) {
        let have = one.link.link.as_ref().map(|link| with_peers(link, known)).transpose()?;
        let known_to_it = have.iter().flat_map(|(_, peers)| peers);
        let others = others(one, own, &told, known_to_it)?;
        let link = wanted(input, one, own, settings, &key_path);
        let is_so = have.as_ref().is_some_and(|(have, known)| same_link(have, &link) && *known == others);
        if is_so && one.link.differs.is_empty() {
            continue;
        }
        let undo = match have {
            Some((have, known)) => Action::LinkEnsure(peers.put(have, known)),
            None => Action::LinkRemove(INTERFACE.to_owned()),
        };
        let title = match &undo {
            Action::LinkRemove(_) => format!("bring up {INTERFACE} with {}", count(others.len())),
            _ if is_so => format!("mend {INTERFACE}"),
            _ => format!("change {INTERFACE}, with {}", count(others.len())),
        };
        steps.push(Step {
            host: one.member.name.clone(),
            phase: Phase::Cutover,
            title,
            action: Action::LinkEnsure(peers.put(link, others)),
            timeout_ms: TIMEOUT_MS,
            undo: Some(undo),
        });
    }
    Ok(Turn::Done(Plan { steps, peers: peers.all }))
}

/// A member and what it said.
struct Seen<'a> {
    member: &'a Member,
    key: &'a str,
    link: &'a LinkFacts,
}

fn wants(input: &Input, facts: &BTreeMap<(&str, &str), &Answer>, key_path: &str) -> Vec<Want> {
    let queries = [(WANT_KEY, Query::Key(key_path.to_owned())), (WANT_LINK, Query::Link(INTERFACE.to_owned()))];
    let all = input.members.iter().flat_map(|member| queries.iter().map(move |query| (member, query)));
    let open = all.filter(|(member, (id, _))| !facts.contains_key(&(member.name.as_str(), *id)));
    open.map(|(member, (id, query))| Want { host: member.name.clone(), id: (*id).to_owned(), query: query.clone() })
        .collect()
}

fn link_facts<'a>(member: &Member, answer: Option<&'a Answer>) -> Result<&'a LinkFacts, Fault> {
    match answer {
        Some(Answer::Link(facts)) if facts.lacks.is_empty() => Ok(facts),
        Some(Answer::Link(facts)) => Err(fault(
            "no-program",
            format!(
                "`{}` has no {}",
                member.name,
                facts.lacks.iter().map(|it| format!("`{it}`")).collect::<Vec<_>>().join(", ")
            ),
            "install the packages wireguard-tools, iproute2 and nftables there, and wireguard-go where the kernel has no WireGuard",
        )),
        other => Err(unanswered(member, "its interface", other)),
    }
}

fn unanswered(member: &Member, what: &str, answer: Option<&Answer>) -> Fault {
    let reason = match answer {
        Some(Answer::Failed(reason)) => reason.as_str(),
        _ => "it answered something else",
    };
    fault("cannot-look", format!("look at `{}` for {what}: {reason}", member.name), "`jiji network status` looks again")
}

fn make_key(member: &Member, path: &str) -> Step {
    Step {
        host: member.name.clone(),
        phase: Phase::Boot,
        title: format!("make a key for {INTERFACE}"),
        action: Action::KeyEnsure(path.to_owned()),
        timeout_ms: 30_000,
        // A key that nobody knows opens nothing, and to make another one would change the address that comes of it.
        undo: None,
    }
}

/// No two servers may be one to the others: packets for the one would go to the other.
fn differ(seen: &[Seen<'_>]) -> Result<(), Fault> {
    let (mut keys, mut numbers) = (BTreeMap::new(), BTreeMap::new());
    for one in seen {
        if let Some(other) = keys.insert(one.key, &one.member.name) {
            return Err(fault(
                "same-key",
                format!("`{other}` and `{}` say that they have one key", one.member.name),
                "they are one machine under two names, one was copied from the other, or one lies; keys are made anew where their file is removed",
            ));
        }
        if let Some(other) = numbers.insert(one.member.number, &one.member.name) {
            return Err(fault(
                "same-number",
                format!("`{other}` and `{}` have containers in one network", one.member.name),
                "they were numbered by projects that did not know of each other; remove the network `jiji` of one of them, with its containers, and ship anew",
            ));
        }
    }
    Ok(())
}

/// A member as the others are told of it.
fn as_peer(one: &Seen<'_>, settings: &Settings) -> Result<Peer, Fault> {
    let kept =
        one.link.link.as_ref().and_then(|link| link.addresses.iter().find(|address| management::is_one(address)));
    let management = match kept {
        Some(kept) => kept.clone(),
        None => {
            let address = management::address(one.key).ok_or_else(|| {
                fault("bad-fact", format!("`{}` has a key that is none", one.member.name), "report this")
            })?;
            format!("{address}/128")
        }
    };
    let member = one.member;
    if matches!(member.endpoint.as_str(), "localhost" | "127.0.0.1" | "::1") {
        return Err(fault(
            "no-endpoint",
            format!("`{}` is reached as `{}`, which is nowhere for others", member.name, member.endpoint),
            "set `endpoint` for that server, to an address by which the others reach it",
        ));
    }
    let host = if member.endpoint.contains(':') { format!("[{}]", member.endpoint) } else { member.endpoint.clone() };
    Ok(Peer {
        name: member.name.clone(),
        key: one.key.to_owned(),
        endpoint: Some(format!("{host}:{}", member.endpoint_port.unwrap_or(settings.port))),
        allowed: vec![format!("{}/32", member.address), member.containers.clone(), management],
        keepalive_s: settings.keepalive_s,
    })
}

/// What all members are told of each other.
struct Told<'a> {
    everyone: &'a [Peer],
    keys: BTreeSet<&'a str>,
    /// Whose each network is.
    networks: BTreeMap<&'a str, &'a str>,
}

impl<'a> Told<'a> {
    fn of(everyone: &'a [Peer]) -> Self {
        let networks = everyone.iter().flat_map(|peer| peer.allowed.iter().map(|it| (it.as_str(), peer.name.as_str())));
        Self { everyone, keys: everyone.iter().map(|peer| peer.key.as_str()).collect(), networks: networks.collect() }
    }
}

/// The peers of a member, by name: all other members, and those that other projects told it of.
fn others<'a>(
    one: &Seen<'_>,
    own: &Peer,
    told: &Told<'_>,
    known: impl Iterator<Item = &'a Peer>,
) -> Result<Vec<Peer>, Fault> {
    let mut others: Vec<Peer> = told.everyone.iter().filter(|peer| peer.key != own.key).cloned().collect();
    let mut names = BTreeMap::new();
    for peer in known {
        // A member, perhaps under the name that another project gives it.
        if told.keys.contains(peer.key.as_str()) {
            names.insert(peer.key.as_str(), &peer.name);
            continue;
        }
        if let Some((network, name)) = peer.allowed.iter().find_map(|it| Some((it, told.networks.get(it.as_str())?))) {
            if *name == peer.name {
                // It has another key now.
                continue;
            }
            return Err(fault(
                "collision",
                format!(
                    "`{name}` has the network {network}, which `{}` has too, whom another project brought to `{}`",
                    peer.name, one.member.name
                ),
                "two clusters that share a server must number their servers together: remove the network `jiji` of one of the two, with its containers, and ship anew",
            ));
        }
        others.push(peer.clone());
    }
    for other in &mut others {
        if let Some(name) = names.get(other.key.as_str()) {
            other.name.clone_from(name);
        }
    }
    others.sort_by(|one, other| (&one.name, &one.key).cmp(&(&other.name, &other.key)));
    Ok(others)
}

/// A member's interface, without its peers.
fn wanted(input: &Input, one: &Seen<'_>, own: &Peer, settings: &Settings, key_path: &str) -> Link {
    // All but the containers' network, which the engine's bridge has.
    let addresses = own.allowed.iter().filter(|network| **network != one.member.containers).cloned().collect();
    Link {
        name: INTERFACE.to_owned(),
        key: key_path.to_owned(),
        addresses,
        port: settings.port,
        mtu: settings.mtu,
        containers: one.member.containers.clone(),
        cluster: input.cluster.clone(),
        peers: Vec::new(),
    }
}

fn same_link(one: &Link, other: &Link) -> bool {
    Link { peers: Vec::new(), ..one.clone() } == Link { peers: Vec::new(), ..other.clone() }
}

fn with_peers(link: &Link, known: &Known) -> Result<(Link, Vec<Peer>), Fault> {
    let peer = |index: &u32| usize::try_from(*index).ok().and_then(|index| known.peers.get(index)).cloned();
    let peers: Option<Vec<Peer>> = link.peers.iter().map(peer).collect();
    let peers =
        peers.ok_or_else(|| fault("bad-fact", "an interface with an unknown peer".to_owned(), "report this"))?;
    Ok((link.clone(), peers))
}

/// The peers of all steps, each once.
#[derive(Default)]
struct Peers {
    all: Vec<Peer>,
    places: BTreeMap<(String, String, Option<String>, Vec<String>, u16), u32>,
}

impl Peers {
    fn put(&mut self, link: Link, peers: Vec<Peer>) -> Link {
        let place = |peer: Peer| {
            let same =
                (peer.name.clone(), peer.key.clone(), peer.endpoint.clone(), peer.allowed.clone(), peer.keepalive_s);
            *self.places.entry(same).or_insert_with(|| {
                self.all.push(peer);
                u32::try_from(self.all.len() - 1).unwrap_or(u32::MAX)
            })
        };
        Link { peers: peers.into_iter().map(place).collect(), ..link }
    }
}

fn count(peers: usize) -> String {
    match peers {
        1 => "1 peer".to_owned(),
        count => format!("{count} peers"),
    }
}
