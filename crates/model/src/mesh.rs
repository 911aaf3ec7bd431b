//! The mesh between servers: an interface as data, with all that a host must have around it, and what a host tells of it.
//!
//! Which servers are in the mesh and what each of them is told is a plugin's answer; how a host gets there is `jiji-host`'s. No value here
//! holds a private key: a specification names the file that holds it, on its own host.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::name::{AbsPath, HostName};

/// Where the mesh's keys and specifications lie on a host.
pub const DIR: &str = "/var/lib/jiji/network";

/// The scope of leases and journals of everything that projects share in a network. No project has it: a project's name ends with a letter or
/// a digit, and what follows a name in a scope begins with a dot.
pub const SCOPE: &str = "mesh-";

/// Longest name of an interface, from Linux (`IFNAMSIZ` in `linux/if.h`, the end's zero counted).
const NAME: usize = 15;

/// Why a text is none of what a mesh is made of.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("read {what} `{text}`: {rule}")]
pub struct MeshTextError {
    /// What the text was to be.
    pub what: &'static str,
    /// What was given, at most 80 characters of it.
    pub text: String,
    /// The grammar.
    pub rule: &'static str,
}

fn wrong(what: &'static str, text: &str, rule: &'static str) -> MeshTextError {
    let text = text.chars().filter(|c| !c.is_control()).take(80).collect();
    MeshTextError { what, text, rule }
}

/// A number in the one way to write it, of at most five digits: without a sign, which `parse` would take.
fn number<T: FromStr>(text: &str) -> Option<T> {
    let plain = (1..=5).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    let plain = plain && (text.len() == 1 || !text.starts_with('0'));
    text.parse().ok().filter(|_| plain)
}

/// Serializes a type as the text that it is shown as, and reads it by its grammar.
macro_rules! as_text {
    ($type:ident) => {
        impl Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

/// The public key of a host: 32 bytes in base64. It comes from a machine that may be hostile, and is put into the configuration of others: it
/// is read by its grammar or not at all.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(String);

impl PublicKey {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for PublicKey {
    type Err = MeshTextError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let base64 = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/');
        // The last character before the `=` holds four bits: the two that are left are zero in the one way to write a key. Another way
        // would be the same key under another text.
        let last = |b: u8| b"AEIMQUYcgkosw048".contains(&b);
        match text.as_bytes() {
            bytes
                if bytes.len() == 44
                    && bytes[..42].iter().all(|b| base64(*b))
                    && last(bytes[42])
                    && bytes[43] == b'=' =>
            {
                Ok(Self(text.to_owned()))
            }
            _ => Err(wrong("public key", text, "expected 32 bytes in base64")),
        }
    }
}

as_text!(PublicKey);

/// An address with a length of prefix: a network, or an interface's own address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    /// The address.
    pub address: IpAddr,
    /// How many of its bits are the network's.
    pub prefix: u8,
}

impl Cidr {
    fn bits(address: IpAddr) -> (u128, u8) {
        match address {
            IpAddr::V4(address) => (u128::from(u32::from(address)) << 96, 32),
            IpAddr::V6(address) => (u128::from(address), 128),
        }
    }

    /// Whether all addresses of `other` are in this network.
    pub fn contains(&self, other: &Self) -> bool {
        let ((mine, width), (theirs, other_width)) = (Self::bits(self.address), Self::bits(other.address));
        let kept = |bits: u128| bits.checked_shr(128 - u32::from(self.prefix)).unwrap_or(0);
        width == other_width && self.prefix <= other.prefix && kept(mine) == kept(theirs)
    }

    /// Whether the address is the network's first: nothing is set behind the prefix.
    pub fn is_network(&self) -> bool {
        let (bits, _) = Self::bits(self.address);
        bits.checked_shl(self.prefix.into()).unwrap_or(0) == 0
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = MeshTextError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || wrong("network", text, "expected ADDRESS/LENGTH");
        let (address, prefix) = text.split_once('/').ok_or_else(refused)?;
        let address: IpAddr = address.parse().map_err(|_| refused())?;
        let cidr = Self { address, prefix: number(prefix).ok_or_else(refused)? };
        let (_, width) = Self::bits(address);
        if cidr.prefix <= width { Ok(cidr) } else { Err(refused()) }
    }
}

as_text!(Cidr);

/// Where a server is reached by UDP: `HOST:PORT`, an IPv6 address in brackets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// A name or an address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl Endpoint {
    /// Whether a text is a name or an address that other servers can be told.
    pub fn is_host(text: &str) -> bool {
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        text.parse::<IpAddr>().is_ok() || ((1..=253).contains(&text.len()) && text.split('.').all(label))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for Endpoint {
    type Err = MeshTextError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || wrong("endpoint", text, "expected HOST:PORT, an IPv6 address in brackets");
        let (host, port) = text.rsplit_once(':').ok_or_else(refused)?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        if bare.is_some() != host.contains(':') {
            return Err(refused());
        }
        let host = bare.unwrap_or(host);
        let port = number(port).filter(|port| *port > 0).ok_or_else(refused)?;
        if Self::is_host(host) { Ok(Self { host: host.to_owned(), port }) } else { Err(refused()) }
    }
}

as_text!(Endpoint);

/// Whether a text can be an interface's name here: nothing that a program would take for an option or a path.
pub fn is_interface(name: &str) -> bool {
    (1..=NAME).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && name.as_bytes()[0].is_ascii_lowercase()
}

/// An interface of WireGuard with what belongs around it: addresses, peers, routes to what is behind them, forwarding, and a firewall that
/// lets through exactly that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interface {
    /// Format of this record, [`Interface::VERSION`].
    pub version: u32,
    /// Its name, see [`is_interface`].
    pub name: String,
    /// The file that holds its private key, on its own host.
    pub key: AbsPath,
    /// Its addresses.
    pub addresses: Vec<Cidr>,
    /// The UDP port that it listens on.
    pub port: u16,
    /// Most bytes of a packet inside.
    pub mtu: u16,
    /// This host's containers, which talk to those of peers under their own addresses.
    pub containers: Cidr,
    /// All addresses of the mesh: from elsewhere nobody may come with one of them, nor get to one.
    pub cluster: Vec<Cidr>,
    /// The other servers.
    pub peers: Vec<Peer>,
}

/// Another server in the mesh.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// What the project calls it that brought it in.
    pub name: HostName,
    /// Its public key.
    pub key: PublicKey,
    /// Where it is reached; none where it is heard of only once it speaks itself.
    pub endpoint: Option<Endpoint>,
    /// What is behind it: its own addresses and its containers.
    pub allowed: Vec<Cidr>,
    /// Seconds between two signs of life; 0 for none.
    pub keepalive_s: u16,
}

impl Interface {
    /// The version that this jiji writes and reads.
    pub const VERSION: u32 = 1;

    /// The management addresses of all servers are in it.
    pub fn management() -> Cidr {
        Cidr { address: IpAddr::from([0xfdcc, 0, 0, 0, 0, 0, 0, 0]), prefix: 16 }
    }

    /// What is wrong with it, if anything: a form that no host may be brought into, whoever asks for it.
    pub fn fault(&self) -> Option<String> {
        let inside = |cidr: &Cidr| self.cluster.iter().chain([&Self::management()]).any(|all| all.contains(cidr));
        if self.version != Self::VERSION {
            return Some(format!("version {} of an interface, this jiji knows {}", self.version, Self::VERSION));
        }
        if !is_interface(&self.name) {
            return Some(format!("`{}` is no interface's name", self.name.escape_default()));
        }
        if self.port == 0 || !(1280..=9000).contains(&self.mtu) {
            return Some(format!(
                "port {} and packets of {} bytes, expected a port and 1280 to 9000",
                self.port, self.mtu
            ));
        }
        if self.cluster.iter().any(|all| all.prefix < 8 || !all.is_network()) {
            return Some("addresses of the mesh that are no network of at most 2^24".to_owned());
        }
        let own = self.addresses.iter().chain([&self.containers]);
        if let Some(outside) = own.clone().find(|cidr| !inside(cidr)) {
            return Some(format!("{outside} is outside of the mesh"));
        }
        let mut seen: Vec<(&Cidr, &str)> = own.map(|cidr| (cidr, "this host")).collect();
        for (at, peer) in self.peers.iter().enumerate() {
            if let Some(other) = self.peers[..at].iter().find(|other| other.key == peer.key) {
                return Some(format!("`{}` and `{}` have one key", other.name, peer.name));
            }
            for cidr in &peer.allowed {
                if !inside(cidr) || !cidr.is_network() {
                    return Some(format!("{cidr} of `{}` is no network of the mesh", peer.name));
                }
                // WireGuard gives an address to the peer that is told last.
                let shared = seen.iter().find(|(other, _)| other.contains(cidr) || cidr.contains(other));
                if let Some((other, whose)) = shared {
                    return Some(format!("{cidr} of `{}` is {other} of {whose} too", peer.name));
                }
            }
            seen.extend(peer.allowed.iter().map(|cidr| (cidr, peer.name.as_str())));
        }
        None
    }

    /// The networks that are reached through it.
    pub fn routes(&self) -> impl Iterator<Item = &Cidr> {
        self.peers.iter().flat_map(|peer| &peer.allowed)
    }
}

/// An interface as its host tells it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InterfaceFacts {
    /// What it was told to be last.
    pub spec: Option<Interface>,
    /// How it differs from that, for people: one line each.
    pub differs: Vec<String>,
    /// Programs that are needed and not installed.
    pub lacks: Vec<String>,
    /// Firewalls of the host that may drop what the mesh needs, and that jiji does not open: one line each, for people.
    pub walls: Vec<String>,
    /// Who does the work; none where there is no such interface.
    pub by: Option<Implementation>,
    /// The public key that it has.
    pub key: Option<PublicKey>,
    /// Its peers as they are now.
    pub peers: Vec<PeerFacts>,
}

/// Who does the work of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Implementation {
    /// The kernel.
    Kernel,
    /// A program.
    Userspace,
}

/// A peer as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerFacts {
    /// Its key.
    pub key: PublicKey,
    /// From where it was heard last, or where it is looked for.
    pub endpoint: Option<Endpoint>,
    /// Seconds since the last handshake; none where there was none.
    pub handshake_s: Option<u64>,
    /// Bytes that came from it.
    pub received: u64,
    /// Bytes that went to it.
    pub sent: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";

    fn cidr(text: &str) -> Cidr {
        text.parse().expect("a network")
    }

    fn peer(name: &str, key: &str, number: u8) -> Peer {
        Peer {
            name: HostName::new(name).expect("a name"),
            key: key.parse().expect("a key"),
            endpoint: Some("198.51.100.7:51820".parse().expect("an endpoint")),
            allowed: vec![cidr(&format!("10.210.{number}.1/32")), cidr(&format!("10.210.{number}.128/25"))],
            keepalive_s: 25,
        }
    }

    fn interface() -> Interface {
        Interface {
            version: Interface::VERSION,
            name: "jiji0".to_owned(),
            key: AbsPath::new("/var/lib/jiji/network/key").expect("a path"),
            addresses: vec![cidr("10.210.0.1/32"), cidr("fdcc::1/128")],
            port: 51820,
            mtu: 1420,
            containers: cidr("10.210.0.128/25"),
            cluster: vec![cidr("10.210.0.0/15"), cidr("10.212.0.0/15")],
            peers: vec![peer("b", KEY, 1), peer("c", &KEY.replace('x', "y"), 2)],
        }
    }

    #[test]
    fn a_key_is_read_in_the_one_way_to_write_it_and_smuggles_nothing() {
        assert!(KEY.parse::<PublicKey>().is_ok());
        // The same bytes with other bits behind them, one too few, a line after it, another alphabet.
        for text in [
            "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dh=",
            &KEY[1..],
            &format!("{}\nx", &KEY[2..]),
            &KEY.replace('5', "-"),
        ] {
            assert!(text.parse::<PublicKey>().is_err(), "{text}");
        }
    }

    #[test]
    fn networks_hold_what_is_inside_of_them() {
        for (network, inside, outside) in [
            ("10.210.0.0/15", "10.211.255.128/25", "10.212.0.0/32"),
            ("fdcc::/16", "fdcc:1::1/128", "fdcd::/128"),
            ("0.0.0.0/0", "1.2.3.4/32", "::/0"),
        ] {
            assert!(cidr(network).contains(&cidr(inside)) && !cidr(network).contains(&cidr(outside)), "{network}");
        }
        assert!(!cidr("10.210.0.0/16").contains(&cidr("10.210.0.0/15")), "it is larger");
        assert!(
            cidr("10.210.0.128/25").is_network()
                && !cidr("10.210.0.129/25").is_network()
                && cidr("::1/128").is_network()
        );
        for text in ["10.210.0.0", "10.210.0.0/33", "::/129", "10.210.0.0/+1", "x/8"] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_endpoint_is_a_host_and_a_port_and_nothing_more() {
        for text in ["198.51.100.7:51820", "[2001:db8::7]:51820", "fra1.example.com:443"] {
            assert_eq!(text.parse::<Endpoint>().expect("an endpoint").to_string(), text);
        }
        for text in
            ["fra1", "fra1:0", "fra1:+1", "fra1:01", "2001:db8::7:51820", "[fra1]:1", "a b:1", "-x:1", "fra1:1\n"]
        {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_interface_reaches_into_the_mesh_and_nowhere_else() {
        assert_eq!(interface().fault(), None);
        let faulty = |change: &dyn Fn(&mut Interface)| {
            let mut changed = interface();
            change(&mut changed);
            changed.fault().expect("a fault")
        };
        for (change, told) in [
            (
                &(|it: &mut Interface| it.peers[0].allowed = vec![cidr("0.0.0.0/0")]) as &dyn Fn(&mut Interface),
                "no network of the mesh",
            ),
            (&|it: &mut Interface| it.peers[1].allowed[0] = cidr("10.210.1.0/24"), "of b too"),
            (&|it: &mut Interface| it.peers[1].allowed[0] = cidr("10.210.0.1/32"), "of this host too"),
            (&|it: &mut Interface| it.peers[1].key = it.peers[0].key.clone(), "have one key"),
            (&|it: &mut Interface| it.addresses.push(cidr("192.0.2.1/32")), "outside of the mesh"),
            (&|it: &mut Interface| it.cluster = vec![cidr("0.0.0.0/0")], "no network of at most"),
            (&|it: &mut Interface| it.name = "-j".to_owned(), "no interface's name"),
            (&|it: &mut Interface| it.mtu = 1279, "expected a port"),
        ] {
            let fault = faulty(change);
            assert!(fault.contains(told), "{fault}");
        }
    }
}
