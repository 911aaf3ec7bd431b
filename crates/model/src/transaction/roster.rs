//! Which server has which number, so that its subnet never depends on the order of a list.
//!
//! Numbers are given once and never reused: a server that left keeps its entry as a tombstone. Server N has 10.210.N.0/24; of that its
//! containers have the upper half, and the gateway is the first address of it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

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
    /// Its number, 0 to 255.
    pub number: u8,
    /// Whether it left.
    pub removed: bool,
}

impl Default for Roster {
    fn default() -> Self {
        Self { version: Self::VERSION, servers: BTreeMap::new() }
    }
}

/// All 256 numbers were given out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("number server `{host}`: all 256 subnets of 10.210.0.0/16 are taken")]
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
    /// [`RosterFull`] after 256 servers.
    pub fn number(&mut self, host: &HostName) -> Result<u8, RosterFull> {
        if let Some(entry) = self.servers.get(host) {
            return Ok(entry.number);
        }
        let highest = self.servers.values().map(|entry| entry.number).max();
        let number = match highest {
            None => Some(0),
            Some(highest) => highest.checked_add(1),
        };
        let number = number.ok_or_else(|| RosterFull { host: host.clone() })?;
        self.servers.insert(host.clone(), Entry { number, removed: false });
        Ok(number)
    }
}

/// The containers' subnet of server `number`.
pub fn subnet(number: u8) -> String {
    format!("10.210.{number}.128/25")
}

/// The gateway in the containers' subnet of server `number`.
pub fn gateway(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 210, number, 129)
}

/// The addresses that containers of server `number` may have. Addresses below `.140` are kept for plugins (proxy, DNS).
pub fn addresses(number: u8) -> impl Iterator<Item = Ipv4Addr> {
    (140..=254).map(move |last| Ipv4Addr::new(10, 210, number, last))
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
