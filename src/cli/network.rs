//! `jiji network`: the private network between a project's servers.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::Arc;

use jiji_model::event::{bytes, seconds};
use jiji_model::mesh::{Implementation, InterfaceFacts, PeerFacts};
use jiji_model::name::HostName;

use super::args::{Global, NetworkCommand, NetworkSetupArgs};
use super::environment::{self, Environment};
use super::exit::Exit;
use super::failure::Failure;
use super::workplace::Workplace;
use super::{abort, hosts, ready, ship_failure};
use crate::report::{Report, Summary};
use crate::secrets::Secrets;
use crate::ship::{NetworkState, Ship, Shipped};

/// Runs one of `jiji network …`.
pub async fn run(
    global: &Global,
    command: &NetworkCommand,
    environment: &Environment,
    report: &Arc<dyn Report>,
) -> Result<Exit, Failure> {
    match command {
        NetworkCommand::Setup(args) => setup(global, args, environment, report).await,
        NetworkCommand::Status => status(global, environment, report).await,
    }
}

fn ship(global: &Global, environment: &Environment, command: &str, report: &Arc<dyn Report>) -> Result<Ship, Failure> {
    let place = Workplace::open(global, environment)?;
    // The network has no secrets of the project's.
    let secrets = Secrets::available(&place.loaded.secrets, &environment::variable);
    ready::ship_with(&place, environment, command, secrets, report)
}

async fn setup(
    global: &Global,
    args: &NetworkSetupArgs,
    environment: &Environment,
    report: &Arc<dyn Report>,
) -> Result<Exit, Failure> {
    let mut ship = ship(global, environment, "network setup", report)?;
    ship.apply.wait_lock = args.lock.wait_lock.unwrap_or_default();
    let cancel = ready::on_signals(ship.cancel.clone());
    let set_up = ship.setup_network().await;
    cancel.abort();
    let set_up = set_up.map_err(|error| ship_failure::of(&error, &ship.secrets))?;
    report.summary(&summary(&ship, &set_up));
    Ok(Exit::Done)
}

fn summary(ship: &Ship, done: &Shipped) -> Summary {
    let total = seconds(done.durations.get("total").copied().unwrap_or_default());
    let servers = match done.hosts.len() {
        1 => "1 server".to_owned(),
        count => format!("{count} servers"),
    };
    let (result, text) = match done.changed {
        true => ("set-up", format!("{servers} are in the network, set up in {total}")),
        false => ("unchanged", format!("unchanged: the network of {servers} is as it should be, looked at in {total}")),
    };
    let settled: Vec<_> = done.settled.iter().map(abort::summary).collect();
    let text =
        settled.iter().map(|settled| settled.text.as_str()).chain([text.as_str()]).collect::<Vec<_>>().join("\n");
    Summary {
        result: result.to_owned(),
        exit: Exit::Done.code(),
        text,
        scope: ship.project.scope(),
        execs: done.counters.iter().map(|(host, counters)| (host.to_string(), counters.execs.into())).collect(),
        bytes_sent: done.counters.values().map(|counters| counters.sent).sum(),
        bytes_received: done.counters.values().map(|counters| counters.received).sum(),
        durations_ms: done.durations.iter().map(|(stage, ms)| ((*stage).to_owned(), *ms)).collect(),
        settled,
        ..Summary::default()
    }
}

async fn status(global: &Global, environment: &Environment, report: &Arc<dyn Report>) -> Result<Exit, Failure> {
    let ship = ship(global, environment, "network status", report)?;
    let state = ship.network_state().await.map_err(|error| ship_failure::of(&error, &ship.secrets))?;
    let text = if global.json { json(&state) } else { table(&state) };
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| Failure::text(Exit::Internal, format!("write to standard output: {error}")))?;
    match hosts::failures(&state.lost) {
        Some(failure) => Err(failure),
        None if differing(&state) => Ok(Exit::Drift),
        None => Ok(Exit::Done),
    }
}

/// Whether any server is not as it was told to be, or was never told.
fn differing(state: &NetworkState) -> bool {
    let all = state.servers.values().flat_map(BTreeMap::values);
    all.into_iter().any(|facts| !facts.as_ref().is_ok_and(|facts| facts.spec.is_some() && facts.differs.is_empty()))
}

fn table(state: &NetworkState) -> String {
    let mut out = String::new();
    for (host, interfaces) in &state.servers {
        for (name, facts) in interfaces {
            // Writing to a String does not fail.
            match facts {
                Ok(facts) => interface(&mut out, host, name, facts),
                Err(reason) => {
                    let _ = writeln!(out, "{host}  {name}: failed to {reason}");
                }
            }
        }
    }
    for (host, error) in &state.lost {
        let _ = writeln!(out, "{host}  failed to {}", hosts::failure(error).line());
    }
    out
}

fn interface(out: &mut String, host: &HostName, name: &str, facts: &InterfaceFacts) {
    let Some(spec) = &facts.spec else {
        let lacks = facts.lacks.iter().map(|program| format!("`{program}`")).collect::<Vec<_>>().join(", ");
        let missing = if lacks.is_empty() { String::new() } else { format!("; it lacks {lacks}") };
        let _ = writeln!(out, "{host}  not in the network: `jiji network setup` brings it in{missing}");
        return;
    };
    let addresses = spec.addresses.iter().map(|address| address.address.to_string()).collect::<Vec<_>>().join(" ");
    let by = facts.by.map_or("nobody", word);
    let _ = writeln!(out, "{host}  {name} {addresses} by {by}, containers {}", spec.containers);
    for line in facts.differs.iter().chain(&facts.walls) {
        let _ = writeln!(out, "  ! {line}");
    }
    let rows: Vec<[String; 4]> = spec
        .peers
        .iter()
        .map(|peer| {
            let now = facts.peers.iter().find(|now| now.key == peer.key);
            let at = now.and_then(|now| now.endpoint.as_ref()).or(peer.endpoint.as_ref());
            [
                peer.name.to_string(),
                at.map_or_else(|| "-".to_owned(), ToString::to_string),
                heard(now),
                now.map_or_else(
                    || "-".to_owned(),
                    |now| format!("{} in, {} out", bytes(now.received), bytes(now.sent)),
                ),
            ]
        })
        .collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let (peer, at, last) = (width(0), width(1), width(2));
    for row in &rows {
        let _ = writeln!(out, "  {:peer$}  {:at$}  {:>last$}  {}", row[0], row[1], row[2], row[3]);
    }
}

fn heard(peer: Option<&PeerFacts>) -> String {
    match peer.and_then(|peer| peer.handshake_s) {
        Some(age) => format!("{age}s ago"),
        None => "never".to_owned(),
    }
}

fn word(by: Implementation) -> &'static str {
    match by {
        Implementation::Kernel => "the kernel",
        Implementation::Userspace => "a program",
    }
}

fn json(state: &NetworkState) -> String {
    let mut all = BTreeMap::new();
    for (host, interfaces) in &state.servers {
        let interfaces: BTreeMap<_, _> = interfaces
            .iter()
            .map(|(name, facts)| {
                let value = match facts {
                    Ok(facts) => serde_json::json!(facts),
                    Err(reason) => serde_json::json!({ "error": reason }),
                };
                (name, value)
            })
            .collect();
        all.insert(host.to_string(), serde_json::json!({ "reached": true, "interfaces": interfaces }));
    }
    for (host, error) in &state.lost {
        let line = hosts::failure(error).line();
        all.insert(host.to_string(), serde_json::json!({ "reached": false, "error": line, "hint": error.hint() }));
    }
    format!("{}\n", serde_json::json!({ "v": 1, "servers": all }))
}

#[cfg(test)]
mod tests {
    use jiji_model::mesh::{Interface, Peer};
    use jiji_model::name::AbsPath;

    use super::*;

    const KEY: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";

    fn facts() -> InterfaceFacts {
        let cidr = |text: &str| text.parse().expect("a network");
        let peer = |name: &str, key: &str, number: u8| Peer {
            name: HostName::new(name).expect("a name"),
            key: key.parse().expect("a key"),
            endpoint: Some(format!("198.51.100.{number}:51820").parse().expect("an endpoint")),
            allowed: vec![cidr(&format!("10.210.{number}.1/32"))],
            keepalive_s: 25,
        };
        InterfaceFacts {
            spec: Some(Interface {
                version: Interface::VERSION,
                name: "jiji0".to_owned(),
                key: AbsPath::new("/var/lib/jiji/network/jiji0.key").expect("a path"),
                addresses: vec![cidr("10.210.0.1/32"), cidr("fdcc::1/128")],
                port: 51820,
                mtu: 1420,
                containers: cidr("10.210.0.128/25"),
                cluster: vec![cidr("10.210.0.0/15")],
                peers: vec![peer("fra2", KEY, 1), peer("ams1", &KEY.replace('x', "y"), 2)],
            }),
            by: Some(Implementation::Kernel),
            peers: vec![PeerFacts {
                key: KEY.parse().expect("a key"),
                endpoint: Some("203.0.113.9:7000".parse().expect("an endpoint")),
                handshake_s: Some(31),
                received: 148,
                sent: 5 << 20,
            }],
            ..InterfaceFacts::default()
        }
    }

    fn state(of: InterfaceFacts) -> NetworkState {
        let host = |name: &str| HostName::new(name).expect("a name");
        let one = |facts| BTreeMap::from([("jiji0".to_owned(), Ok(facts))]);
        let servers = BTreeMap::from([(host("fra1"), one(of)), (host("new"), one(InterfaceFacts::default()))]);
        NetworkState { servers, lost: BTreeMap::new() }
    }

    #[test]
    fn a_server_shows_whom_it_heard_and_what_differs() {
        let mut facts = facts();
        facts.differs.push("it is down".to_owned());
        insta::assert_snapshot!(table(&state(facts)), @r"
        fra1  jiji0 10.210.0.1 fdcc::1 by the kernel, containers 10.210.0.128/25
          ! it is down
          fra2  203.0.113.9:7000    31s ago  148 B in, 5.0 MiB out
          ams1  198.51.100.2:51820    never  -
        new  not in the network: `jiji network setup` brings it in
        ");
    }

    #[test]
    fn what_differs_and_who_is_not_in_it_decide_the_exit_code() {
        let mut all = state(facts());
        assert!(differing(&all), "`new` is not in it");
        all.servers.retain(|host, _| host.as_str() == "fra1");
        assert!(!differing(&all));
        let json: serde_json::Value = serde_json::from_str(&json(&all)).expect("JSON");
        assert_eq!(json["servers"]["fra1"]["interfaces"]["jiji0"]["peers"][0]["received"], 148);
    }
}
