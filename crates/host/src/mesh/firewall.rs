//! What is let through for the mesh, and nothing else: a table of nftables that is this interface's alone, and the few rules that must stand
//! in chains of others, since what they drop no table of ours can let in again.
//!
//! The table keeps mesh addresses out that come from elsewhere, keeps the engines from hiding containers behind their host when they talk to
//! containers of a peer, and keeps TCP's segments to what fits into the tunnel. Seen with netavark 1.4 and Docker 20.10
//! (docs/design/network.md): both masquerade whatever leaves their bridge, and Docker's FORWARD drops what was not published.

use std::fs;
use std::path::{Path, PathBuf};

use jiji_model::mesh::{Cidr, Interface};
use serde::Deserialize;

use super::{Mesh, MeshError};
use crate::command;
use crate::place::{self, Durability, failed};

/// A rule that must stand in a chain of somebody else.
#[derive(Debug, PartialEq, Eq)]
struct Opening {
    program: &'static str,
    chain: &'static str,
    rule: Vec<String>,
    /// For people.
    what: String,
}

/// The name of an interface's own table.
fn table(name: &str) -> String {
    format!("jiji_{}", name.replace('-', "_"))
}

/// The whole table, which takes the place of the one before in one step (nft(8), "delete table" needs one to be there).
fn ruleset(spec: &Interface) -> String {
    let (table, name, containers) = (table(&spec.name), &spec.name, spec.containers);
    let all: Vec<String> = spec.cluster.iter().filter(|all| all.address.is_ipv4()).map(ToString::to_string).collect();
    let (all, management) = (all.join(", "), Interface::management());
    // A source that belongs to the mesh must come in where the way back to it leads: over the interface from a peer, over the bridge from
    // a container of this host.
    format!(
        "table inet {table}\n\
         delete table inet {table}\n\
         table inet {table} {{\n\
         \tchain guard {{\n\
         \t\ttype filter hook prerouting priority raw; policy accept;\n\
         \t\tiifname \"lo\" accept\n\
         \t\tiifname != \"{name}\" ip saddr != {containers} ip daddr {{ {all} }} drop\n\
         \t\tip saddr {{ {all} }} fib saddr . iif oif missing drop\n\
         \t\tiifname != \"{name}\" ip6 daddr {management} drop\n\
         \t\tiifname != \"{name}\" ip6 saddr {management} drop\n\
         \t}}\n\
         \tchain plain {{\n\
         \t\ttype nat hook postrouting priority srcnat - 10; policy accept;\n\
         \t\toifname \"{name}\" ip saddr {containers} snat ip prefix to {containers}\n\
         \t}}\n\
         \tchain clamp {{\n\
         \t\ttype filter hook forward priority mangle; policy accept;\n\
         \t\toifname \"{name}\" tcp flags syn tcp option maxseg size set rt mtu\n\
         \t}}\n\
         }}\n"
    )
}

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

/// The rules in chains of others. `forward` is the chain for what is passed on.
fn openings(name: &str, port: u16, containers: &Cidr, forward: &'static str) -> Vec<Opening> {
    let udp = |program| Opening {
        program,
        chain: "INPUT",
        rule: words(&format!("-p udp -m udp --dport {port} -j ACCEPT")),
        what: format!("UDP port {port} is not let in ({program})"),
    };
    let passed = |rule: String, what: &str| Opening {
        program: "iptables",
        chain: forward,
        rule: words(&rule),
        what: format!("what {what} is not passed on (iptables)"),
    };
    vec![
        udp("iptables"),
        udp("ip6tables"),
        passed(format!("-i {name} -d {containers} -j ACCEPT"), "comes from peers to containers"),
        passed(format!("-o {name} -s {containers} -j ACCEPT"), "goes from containers to peers"),
    ]
}

/// A chain as `nft -json list chains` tells it.
#[derive(Deserialize)]
struct ChainJson {
    family: String,
    table: String,
    #[serde(rename = "type")]
    kind: Option<String>,
    hook: Option<String>,
    policy: Option<String>,
}

/// Chains that drop what they do not know and that no rule of iptables reaches: (hook, table).
fn walls(json: &[u8]) -> Vec<(String, String)> {
    #[derive(Deserialize)]
    struct Item {
        chain: Option<ChainJson>,
    }
    #[derive(Deserialize)]
    struct List {
        nftables: Vec<Item>,
    }
    let Ok(list) = serde_json::from_slice::<List>(json) else { return Vec::new() };
    let chains = list.nftables.into_iter().filter_map(|item| item.chain);
    let dropping = chains.filter(|chain| {
        let of_iptables = matches!(chain.family.as_str(), "ip" | "ip6") && chain.table == "filter";
        chain.kind.as_deref() == Some("filter") && chain.policy.as_deref() == Some("drop") && !of_iptables
    });
    let told = dropping.filter_map(|chain| Some((chain.hook?, format!("{} {}", chain.family, chain.table))));
    told.filter(|(hook, _)| matches!(hook.as_str(), "input" | "forward")).collect()
}

impl Mesh<'_> {
    /// What the table looked like when it was made, in the words of the `nft` that was there then.
    fn table_path(&self, name: &str) -> PathBuf {
        self.dir().join(format!("{name}.nft"))
    }

    async fn listed(&self, name: &str) -> Result<Option<Vec<u8>>, MeshError> {
        let list = self.program("nft")?.args(["list", "table", "inet", &table(name)]).run().await?;
        Ok(list.ok().then_some(list.stdout))
    }

    /// The chain that decides about what is passed on to containers. Docker looks at its own first and drops at the end; it leaves this one
    /// to others (docs.docker.com, "Docker and iptables").
    async fn forward_chain(&self) -> Result<&'static str, MeshError> {
        let user = self.program("iptables")?.args(["--wait", "--list-rules", "DOCKER-USER"]).run().await?;
        Ok(if user.ok() { "DOCKER-USER" } else { "FORWARD" })
    }

    /// The rules in chains of others, as far as their programs are here.
    async fn openings(&self, spec: &Interface) -> Result<Vec<Opening>, MeshError> {
        let here = |program: &str| command::find(program, &self.settings.path).is_ok();
        if !here("iptables") {
            return Ok(Vec::new());
        }
        let forward = self.forward_chain().await?;
        let all = openings(&spec.name, spec.port, &spec.containers, forward);
        Ok(all.into_iter().filter(|opening| here(opening.program)).collect())
    }

    async fn stands(&self, opening: &Opening) -> Result<bool, MeshError> {
        let check =
            self.program(opening.program)?.args(["--wait", "--check", opening.chain]).args(opening.rule.clone());
        Ok(check.run().await?.ok())
    }

    /// What of it does not stand, for people.
    pub(super) async fn closed(&self, spec: &Interface) -> Result<Vec<String>, MeshError> {
        let mut closed = Vec::new();
        let made = place::read(&self.table_path(&spec.name), 64 * 1024)?;
        let listed = self.listed(&spec.name).await?;
        if listed.is_none() || listed != made {
            closed.push(format!("table `inet {}` of nftables is not as it was made", table(&spec.name)));
        }
        for opening in self.openings(spec).await? {
            if !self.stands(&opening).await? {
                closed.push(opening.what);
            }
        }
        Ok(closed)
    }

    /// Firewalls that drop what the mesh needs and are not opened by [`Self::open`], for people.
    ///
    /// # Errors
    /// [`MeshError`].
    pub(super) async fn walls(&self, spec: &Interface) -> Result<Vec<String>, MeshError> {
        let chains = self.program("nft")?.args(["-json", "list", "chains"]).run().await?;
        let walls = walls(&chains.stdout).into_iter().map(|(hook, table)| match hook.as_str() {
            "input" => format!("table `{table}` may drop UDP port {}: let it in there", spec.port),
            _ => format!(
                "table `{table}` may drop what goes between `{}` and containers: let it through there",
                spec.name
            ),
        });
        Ok(walls.collect())
    }

    /// All of it stands.
    pub(super) async fn open(&self, spec: &Interface) -> Result<(), MeshError> {
        self.must("nft", &["-f", "/dev/stdin"], ruleset(spec).into_bytes()).await?;
        let listed = self.listed(&spec.name).await?.unwrap_or_default();
        place::write(&self.table_path(&spec.name), &listed, 0o600, Durability::Synced)?;
        for opening in self.openings(spec).await? {
            if !self.stands(&opening).await? {
                let rule = opening.rule.iter().map(String::as_str);
                let args: Vec<&str> = ["--wait", "--insert", opening.chain].into_iter().chain(rule).collect();
                self.must(opening.program, &args, Vec::new()).await?;
            }
        }
        Ok(())
    }

    /// Nothing of it stands. `spec` is what it was made for, as far as that is known.
    pub(super) async fn close(&self, name: &str, spec: Option<&Interface>) -> Result<(), MeshError> {
        if self.listed(name).await?.is_some() {
            self.must("nft", &["delete", "table", "inet", &table(name)], Vec::new()).await?;
        }
        if let Some(spec) = spec {
            for opening in self.openings(spec).await? {
                self.take_back(&opening).await?;
            }
        }
        self.forget(name)
    }

    /// The rules that stand only for an older specification go.
    pub(super) async fn close_old(&self, before: &Interface, spec: &Interface) -> Result<(), MeshError> {
        let wanted = self.openings(spec).await?;
        for opening in self.openings(before).await?.iter().filter(|old| !wanted.contains(old)) {
            self.take_back(opening).await?;
        }
        Ok(())
    }

    async fn take_back(&self, opening: &Opening) -> Result<(), MeshError> {
        if self.stands(opening).await? {
            let rule = opening.rule.iter().map(String::as_str);
            let args: Vec<&str> = ["--wait", "--delete", opening.chain].into_iter().chain(rule).collect();
            self.must(opening.program, &args, Vec::new()).await?;
        }
        Ok(())
    }

    fn forget(&self, name: &str) -> Result<(), MeshError> {
        let path: &Path = &self.table_path(name);
        match fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed("remove", path)(error).into()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wall_is_a_chain_that_drops_and_that_no_rule_of_iptables_reaches() {
        // As nft 1.0.6 says it, shortened.
        let json = br#"{"nftables":[{"metainfo":{"version":"1.0.6"}},
            {"chain":{"family":"ip","table":"filter","name":"FORWARD","type":"filter","hook":"forward","prio":0,"policy":"drop"}},
            {"chain":{"family":"inet","table":"fw","name":"in","type":"filter","hook":"input","prio":0,"policy":"drop"}},
            {"chain":{"family":"inet","table":"fw","name":"out","type":"filter","hook":"output","prio":0,"policy":"drop"}},
            {"chain":{"family":"inet","table":"fw","name":"fwd","type":"filter","hook":"forward","prio":0,"policy":"accept"}},
            {"chain":{"family":"inet","table":"fw","name":"helper"}}]}"#;
        assert_eq!(walls(json), [("input".to_owned(), "inet fw".to_owned())]);
        assert_eq!(walls(b"no JSON"), []);
    }

    #[test]
    fn only_the_port_and_what_is_between_peers_and_containers_is_opened() {
        let containers = "10.210.0.128/25".parse().expect("a network");
        let lines: Vec<String> = openings("jiji0", 51820, &containers, "DOCKER-USER")
            .iter()
            .map(|opening| format!("{} {} {}", opening.program, opening.chain, opening.rule.join(" ")))
            .collect();
        assert_eq!(
            lines,
            [
                "iptables INPUT -p udp -m udp --dport 51820 -j ACCEPT",
                "ip6tables INPUT -p udp -m udp --dport 51820 -j ACCEPT",
                "iptables DOCKER-USER -i jiji0 -d 10.210.0.128/25 -j ACCEPT",
                "iptables DOCKER-USER -o jiji0 -s 10.210.0.128/25 -j ACCEPT",
            ]
        );
    }
}
