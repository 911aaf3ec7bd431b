//! Which server has which number, so that its subnet never depends on the order of a list.
//!
//! Numbers are given once and never reused: a server that left keeps its entry as a tombstone. The first 256 servers have 10.210.N.0/24,
//! the next 256 have 10.211.N.0/24 and so on up to 10.213; of that its containers have the upper half, and the gateway is the first
//! address of it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use crate::mesh::Cidr;
use crate::name::HostName;

/// Where the roster lies on a host, as JSON: written by a step of the plan like every other file.
pub const PATH: &str = "/var/lib/jiji/roster.json";

/// The roster as stored on every host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Roster {
    /// Format of this record, [`Roster::VERSION`].
    pub version: u32,
    /// Numbers by server.
    pub servers: BTreeMap<HostName, Entry>,
}

/// A server's entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its number, less than [`SERVERS`].
    pub number: u16,
    /// Whether it left.
    pub removed: bool,
}

impl Default for Roster {
    fn default() -> Self {
        Self { version: Self::VERSION, servers: BTreeMap::new() }
    }
}

/// How many servers can have a number.
pub const SERVERS: u16 = 1024;

/// All numbers were given out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("number server `{host}`: all {SERVERS} subnets from 10.210.0.0 to 10.213.255.0 are taken")]
pub struct RosterFull {
    /// The server that got none.
    pub host: HostName,
}

impl Roster {
    /// The version that this jiji writes and reads.
    pub const VERSION: u32 = 1;

    /// What two hosts know, together. Where they disagree about a server, the lower number holds: both were written by somebody, and one
    /// rule must choose.
    #[must_use]
    pub fn merged(mut self, other: &Self) -> Self {
        for (host, entry) in &other.servers {
            self.servers
                .entry(host.clone())
                .and_modify(|mine| {
                    mine.number = mine.number.min(entry.number);
                    mine.removed |= entry.removed;
                })
                .or_insert_with(|| entry.clone());
        }
        self
    }

    /// The number of `host`, given to it now if it has none.
    ///
    /// # Errors
    /// [`RosterFull`] after [`SERVERS`] servers.
    pub fn number(&mut self, host: &HostName) -> Result<u16, RosterFull> {
        match self.servers.get(host) {
            Some(entry) => Ok(entry.number),
            None => self.give([host]).map(|last| last.unwrap_or_default()),
        }
    }

    /// Gives the next numbers to those of `hosts` that have none, in their order. Gives back the last one that was given.
    ///
    /// # Errors
    /// [`RosterFull`] for the first that gets none.
    pub fn give<'h>(&mut self, hosts: impl IntoIterator<Item = &'h HostName>) -> Result<Option<u16>, RosterFull> {
        let mut highest = self.servers.values().map(|entry| entry.number).max();
        for host in hosts {
            if self.servers.contains_key(host) {
                continue;
            }
            let number = highest.map_or(0, |highest| highest.saturating_add(1));
            if number >= SERVERS {
                return Err(RosterFull { host: host.clone() });
            }
            self.servers.insert(host.clone(), Entry { number, removed: false });
            highest = Some(number);
        }
        Ok(highest)
    }
}

/// The number of the server whose containers have this address, if it is one of jiji's networks.
pub fn number_of(address: Ipv4Addr) -> Option<u16> {
    let [10, second @ 210..=213, third, _] = address.octets() else { return None };
    Some(u16::from(second - 210) << 8 | u16::from(third))
}

/// The second and third byte of a server's addresses.
fn bytes(number: u16) -> [u8; 2] {
    let [high, low] = (number % SERVERS).to_be_bytes();
    [210 + high, low]
}

/// All addresses that servers and their containers can have: 10.210.0.0 to 10.213.255.255.
pub const CLUSTER: [Cidr; 2] = [
    Cidr { address: IpAddr::V4(Ipv4Addr::new(10, 210, 0, 0)), prefix: 15 },
    Cidr { address: IpAddr::V4(Ipv4Addr::new(10, 212, 0, 0)), prefix: 15 },
];

/// The address of server `number` in the mesh.
pub fn mesh_address(number: u16) -> Ipv4Addr {
    let [second, third] = bytes(number);
    Ipv4Addr::new(10, second, third, 1)
}

/// The containers' subnet of server `number`.
pub fn subnet(number: u16) -> String {
    let [second, third] = bytes(number);
    format!("10.{second}.{third}.128/25")
}

/// The gateway in the containers' subnet of server `number`.
pub fn gateway(number: u16) -> Ipv4Addr {
    let [second, third] = bytes(number);
    Ipv4Addr::new(10, second, third, 129)
}

/// The addresses that containers of server `number` may have. Addresses below `.140` are kept for plugins (proxy, DNS).
pub fn addresses(number: u16) -> impl Iterator<Item = Ipv4Addr> {
    let [second, third] = bytes(number);
    (140..=254).map(move |last| Ipv4Addr::new(10, second, third, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_kept_and_never_given_twice_even_after_its_server_left() {
        let (a, b, c) = ("a", "b", "c");
        let mut roster = Roster::default();
        let name = |text: &str| HostName::new(text).expect("a name");
        assert_eq!(roster.number(&name(b)), Ok(0));
        assert_eq!(roster.number(&name(a)), Ok(1));
        roster.servers.get_mut(&name(a)).expect("just added").removed = true;
        assert_eq!(roster.number(&name(c)), Ok(2));
        assert_eq!(roster.number(&name(b)), Ok(0));
    }

    #[test]
    fn a_thousand_servers_have_networks_of_their_own_and_no_more_have() {
        let hosts: Vec<HostName> = (0..SERVERS).map(|n| HostName::new(format!("h{n}")).expect("a name")).collect();
        let mut roster = Roster::default();
        assert_eq!(roster.give(&hosts), Ok(Some(SERVERS - 1)));
        let more = HostName::new("more").expect("a name");
        assert_eq!(roster.number(&more), Err(RosterFull { host: more }));
        let subnets: std::collections::BTreeSet<_> = (0..SERVERS).map(subnet).collect();
        assert_eq!(subnets.len(), usize::from(SERVERS));
        assert_eq!((subnet(255), subnet(256)), ("10.210.255.128/25".to_owned(), "10.211.0.128/25".to_owned()));
        assert_eq!(gateway(1023), Ipv4Addr::new(10, 213, 255, 129));
        assert!((0..SERVERS).all(|number| addresses(number).all(|address| number_of(address) == Some(number))));
        assert_eq!(number_of(Ipv4Addr::new(10, 214, 0, 140)), None);
        let in_cluster = |text: &str| CLUSTER.iter().any(|all| all.contains(&text.parse().expect("a network")));
        assert!(
            (0..SERVERS).all(|number| in_cluster(&subnet(number))),
            "the mesh's addresses are those of all servers"
        );
        assert!(!in_cluster("10.209.255.0/24") && !in_cluster("10.214.0.0/24"));
        assert_eq!(mesh_address(257), Ipv4Addr::new(10, 211, 1, 1));
    }

    #[test]
    fn merging_does_not_depend_on_the_order() {
        let name = |text: &str| HostName::new(text).expect("a name");
        let entry = |number| Entry { number, removed: false };
        let one =
            Roster { servers: BTreeMap::from([(name("a"), entry(0)), (name("b"), entry(3))]), ..Roster::default() };
        let two =
            Roster { servers: BTreeMap::from([(name("b"), entry(1)), (name("c"), entry(2))]), ..Roster::default() };
        assert_eq!(one.clone().merged(&two), two.merged(&one));
    }
}
