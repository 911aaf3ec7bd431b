//! What an interface is now, read from what `ip` and `wg` say, and how that differs from what it should be.
//!
//! Pure but for the clock that tells how long ago a handshake was. The first field of what `wg` says is the private key: it is dropped where
//! it is read.

use std::net::IpAddr;

use jiji_model::mesh::{Cidr, Endpoint, Interface, PeerFacts, PublicKey};
use serde::Deserialize;

use super::MeshError;
use crate::clock;

/// An interface as it is now. The default: there is none.
#[derive(Debug, Default)]
pub(super) struct Live {
    pub(super) link: Option<Link>,
    /// Routes over it that are not the kernel's own.
    pub(super) routes: Vec<Cidr>,
    /// What WireGuard says of it; none where nobody answers.
    pub(super) wg: Option<Wg>,
}

/// The link.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) up: bool,
    pub(super) mtu: u32,
    /// Whether the kernel does its work.
    pub(super) kernel: bool,
    pub(super) addresses: Vec<Cidr>,
}

/// WireGuard's side of it.
#[derive(Debug)]
pub(super) struct Wg {
    pub(super) key: Option<PublicKey>,
    pub(super) port: u16,
    pub(super) peers: Vec<WgPeer>,
}

/// A peer.
#[derive(Debug)]
pub(super) struct WgPeer {
    pub(super) allowed: Vec<Cidr>,
    pub(super) keepalive_s: u16,
    pub(super) facts: PeerFacts,
}

#[derive(Deserialize)]
struct LinkJson {
    // Other interfaces may lack what is not asked of them.
    ifname: Option<String>,
    #[serde(default)]
    flags: Vec<String>,
    #[serde(default)]
    mtu: u32,
    linkinfo: Option<LinkInfo>,
    #[serde(default)]
    addr_info: Vec<AddressJson>,
}

#[derive(Deserialize)]
struct LinkInfo {
    info_kind: Option<String>,
}

#[derive(Deserialize)]
struct AddressJson {
    local: Option<IpAddr>,
    prefixlen: Option<u8>,
    scope: Option<String>,
}

fn unreadable(what: &'static str) -> impl FnOnce(serde_json::Error) -> MeshError {
    move |error| MeshError::Unreadable { what, reason: error.to_string() }
}

/// The link of this name in what `ip -json -details address show` says.
pub(super) fn link(json: &[u8], name: &str) -> Result<Option<Link>, MeshError> {
    let links: Vec<LinkJson> = serde_json::from_slice(json).map_err(unreadable("ip address"))?;
    let Some(link) = links.into_iter().find(|link| link.ifname.as_deref() == Some(name)) else { return Ok(None) };
    // Addresses of the link's own come by themselves.
    let addresses = link.addr_info.iter().filter(|address| address.scope.as_deref() != Some("link"));
    let addresses = addresses.filter_map(|address| Some(Cidr { address: address.local?, prefix: address.prefixlen? }));
    Ok(Some(Link {
        up: link.flags.iter().any(|flag| flag == "UP"),
        mtu: link.mtu,
        kernel: link.linkinfo.and_then(|info| info.info_kind).as_deref() == Some("wireguard"),
        addresses: addresses.collect(),
    }))
}

#[derive(Deserialize)]
struct RouteJson {
    dst: Option<String>,
    protocol: Option<String>,
}

/// The routes in what `ip -json route show dev NAME` says.
pub(super) fn routes(json: &[u8]) -> Result<Vec<Cidr>, MeshError> {
    // Some versions say nothing at all where there is none.
    if json.iter().all(u8::is_ascii_whitespace) {
        return Ok(Vec::new());
    }
    let routes: Vec<RouteJson> = serde_json::from_slice(json).map_err(unreadable("ip route"))?;
    let told = routes.iter().filter(|route| route.protocol.as_deref() != Some("kernel"));
    Ok(told.filter_map(|route| network(route.dst.as_deref()?)).collect())
}

/// `ADDRESS` or `ADDRESS/LENGTH`.
fn network(text: &str) -> Option<Cidr> {
    text.parse().ok().or_else(|| {
        let address: IpAddr = text.parse().ok()?;
        Some(Cidr { address, prefix: if address.is_ipv4() { 32 } else { 128 } })
    })
}

impl Wg {
    /// Reads what `wg show NAME dump` says (wg(8)): fields with tabs between, the interface in the first line, a peer in each other.
    pub(super) fn read(dump: &[u8]) -> Result<Self, MeshError> {
        let now = clock::wall_clock_s();
        Self::at(dump, now).ok_or_else(|| MeshError::Unreadable { what: "wg show", reason: "another form".to_owned() })
    }

    fn at(dump: &[u8], now: u64) -> Option<Self> {
        let text = std::str::from_utf8(dump).ok()?;
        let mut lines = text.lines();
        let mut fields = lines.next()?.split('\t').skip(1);
        // `(none)` where it has no key yet.
        let key = fields.next()?.parse().ok();
        let port = fields.next()?.parse().ok()?;
        let peers = lines.map(|line| WgPeer::read(line, now)).collect::<Option<Vec<_>>>()?;
        Some(Self { key, port, peers })
    }

    fn peer(&self, key: &PublicKey) -> Option<&WgPeer> {
        self.peers.iter().find(|peer| peer.facts.key == *key)
    }

    /// How it differs from a specification, for people.
    pub(super) fn differences(&self, spec: &Interface, before: Option<&Interface>) -> Vec<String> {
        let mut differs = Vec::new();
        if self.port != spec.port {
            differs.push(format!("it listens on port {}, not {}", self.port, spec.port));
        }
        for peer in &spec.peers {
            let Some(have) = self.peer(&peer.key) else {
                differs.push(format!("peer `{}` is missing", peer.name));
                continue;
            };
            let (mut wanted, mut allowed) = (peer.allowed.clone(), have.allowed.clone());
            wanted.sort();
            allowed.sort();
            if wanted != allowed {
                differs.push(format!("peer `{}` has other addresses", peer.name));
            }
            if have.keepalive_s != peer.keepalive_s {
                differs.push(format!("peer `{}` has another keepalive", peer.name));
            }
            if peer.endpoint.is_some() && (have.facts.endpoint.is_none() || !was_told(peer, before)) {
                differs.push(format!("peer `{}` is looked for elsewhere", peer.name));
            }
        }
        let foreign = self.peers.iter().filter(|have| !spec.peers.iter().any(|peer| peer.key == have.facts.key));
        differs.extend(foreign.map(|have| format!("it has a peer `{}` that nobody told it of", have.facts.key)));
        differs
    }
}

/// Whether the host was told before that this peer is where it is told now: then it knows better by now.
fn was_told(peer: &jiji_model::mesh::Peer, before: Option<&Interface>) -> bool {
    let before = before.and_then(|before| before.peers.iter().find(|known| known.key == peer.key));
    before.is_some_and(|before| before.endpoint == peer.endpoint)
}

impl WgPeer {
    fn read(line: &str, now: u64) -> Option<Self> {
        let fields: Vec<&str> = line.split('\t').collect();
        let [key, _psk, endpoint, allowed, handshake, received, sent, keepalive] = fields[..] else { return None };
        let handshake: u64 = handshake.parse().ok()?;
        Some(Self {
            allowed: allowed
                .split(',')
                .filter(|text| *text != "(none)")
                .map(|text| text.parse().ok())
                .collect::<Option<_>>()?,
            keepalive_s: if keepalive == "off" { 0 } else { keepalive.parse().ok()? },
            facts: PeerFacts {
                key: key.parse().ok()?,
                endpoint: endpoint.parse::<Endpoint>().ok(),
                handshake_s: (handshake > 0).then(|| now.saturating_sub(handshake)),
                received: received.parse().ok()?,
                sent: sent.parse().ok()?,
            },
        })
    }
}

impl Live {
    /// How it differs from a specification, for people.
    pub(super) fn differences(&self, spec: &Interface, before: Option<&Interface>) -> Vec<String> {
        let Some(link) = &self.link else { return vec!["there is no such interface".to_owned()] };
        let mut differs = Vec::new();
        if !link.up {
            differs.push("it is down".to_owned());
        }
        if link.mtu != u32::from(spec.mtu) {
            differs.push(format!("its packets have {} bytes at most, not {}", link.mtu, spec.mtu));
        }
        for address in spec.addresses.iter().filter(|address| !link.addresses.contains(address)) {
            differs.push(format!("address {address} is missing"));
        }
        for address in link.addresses.iter().filter(|address| !spec.addresses.contains(address)) {
            differs.push(format!("address {address} is none of it"));
        }
        let (wanted, have): (Vec<&Cidr>, &[Cidr]) = (spec.routes().collect(), &self.routes);
        for route in wanted.iter().filter(|route| !have.contains(route)) {
            differs.push(format!("the route to {route} is missing"));
        }
        for route in have.iter().filter(|route| !wanted.contains(route)) {
            differs.push(format!("the route to {route} is none of it"));
        }
        match &self.wg {
            Some(wg) => differs.extend(wg.differences(spec, before)),
            None => differs.push("nobody does its work".to_owned()),
        }
        differs
    }
}

/// What `wg syncconf` is given. A peer that stays where it was told to be is left where it was heard last.
pub(super) fn configuration(spec: &Interface, private: &[u8], wg: Option<&Wg>, before: Option<&Interface>) -> Vec<u8> {
    use std::fmt::Write as _;
    let mut text = String::from("[Interface]\nPrivateKey = ");
    text.push_str(String::from_utf8_lossy(private).trim_end());
    // Writing to a String does not fail.
    let _ = writeln!(text, "\nListenPort = {}", spec.port);
    for peer in &spec.peers {
        let allowed: Vec<String> = peer.allowed.iter().map(ToString::to_string).collect();
        let _ = writeln!(text, "[Peer]\nPublicKey = {}\nAllowedIPs = {}", peer.key, allowed.join(", "));
        let heard = wg.and_then(|wg| wg.peer(&peer.key)?.facts.endpoint.as_ref()).filter(|_| was_told(peer, before));
        if let Some(endpoint) = heard.or(peer.endpoint.as_ref()) {
            let _ = writeln!(text, "Endpoint = {endpoint}");
        }
        let _ = writeln!(text, "PersistentKeepalive = {}", peer.keepalive_s);
    }
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use jiji_model::mesh::Peer;
    use jiji_model::name::{AbsPath, HostName};

    use super::*;

    const KEY: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
    const OTHER: &str = "yTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";

    /// As wireguard-tools 1.0.20210914 says it.
    fn dump(endpoint: &str, allowed: &str) -> String {
        format!("SECRET\t{KEY}\t51820\toff\n{OTHER}\t(none)\t{endpoint}\t{allowed}\t100\t148\t92\t25\n")
    }

    fn spec(endpoint: &str) -> Interface {
        let cidr = |text: &str| text.parse().expect("a network");
        Interface {
            version: Interface::VERSION,
            name: "jiji0".to_owned(),
            key: AbsPath::new("/var/lib/jiji/network/key").expect("a path"),
            addresses: vec![cidr("10.210.0.1/32"), cidr("fdcc::1/128")],
            port: 51820,
            mtu: 1420,
            containers: cidr("10.210.0.128/25"),
            cluster: vec![cidr("10.210.0.0/15")],
            peers: vec![Peer {
                name: HostName::new("b").expect("a name"),
                key: OTHER.parse().expect("a key"),
                endpoint: Some(endpoint.parse().expect("an endpoint")),
                allowed: vec![cidr("10.210.1.1/32"), cidr("10.210.1.128/25")],
                keepalive_s: 25,
            }],
        }
    }

    fn live(endpoint: &str, allowed: &str) -> Live {
        let json =
            br#"[{"ifname":"lo","flags":["UP"],"mtu":65536,"addr_info":[]},{"ifname":"jiji0","flags":["UP"],"mtu":1420,
            "linkinfo":{"info_kind":"tun"},"addr_info":[{"local":"10.210.0.1","prefixlen":32,"scope":"global"},
            {"local":"fdcc::1","prefixlen":128,"scope":"global"},{"local":"fe80::1","prefixlen":64,"scope":"link"}]}]"#;
        let route = br#"[{"dst":"10.210.1.1","protocol":"static"},{"dst":"10.210.1.128/25","protocol":"static"},
            {"dst":"10.210.0.0/24","protocol":"kernel"}]"#;
        Live {
            link: link(json, "jiji0").expect("JSON"),
            routes: routes(route).expect("JSON"),
            wg: Some(Wg::at(dump(endpoint, allowed).as_bytes(), 130).expect("a dump")),
        }
    }

    #[test]
    fn an_interface_that_is_as_it_was_told_to_be_differs_in_nothing() {
        let spec = spec("198.51.100.7:51820");
        let live = live("198.51.100.7:51820", "10.210.1.128/25,10.210.1.1/32");
        assert_eq!(live.differences(&spec, Some(&spec)), Vec::<String>::new());
        assert!(!live.link.as_ref().expect("a link").kernel);
        let peer = &live.wg.as_ref().expect("peers").peers[0].facts;
        assert_eq!((peer.handshake_s, peer.received, peer.sent), (Some(30), 148, 92));
        assert_eq!(link(b"[]", "jiji0").expect("JSON"), None);
    }

    #[test]
    fn each_difference_is_told() {
        let mut spec = spec("198.51.100.7:51820");
        let live = live("198.51.100.7:51820", "10.210.1.1/32");
        spec.mtu = 1380;
        spec.port = 4000;
        spec.addresses[0] = "10.210.0.2/32".parse().expect("an address");
        spec.peers[0].keepalive_s = 0;
        let differs = live.differences(&spec, Some(&spec));
        assert_eq!(
            differs,
            [
                "its packets have 1420 bytes at most, not 1380",
                "address 10.210.0.2/32 is missing",
                "address 10.210.0.1/32 is none of it",
                "it listens on port 51820, not 4000",
                "peer `b` has other addresses",
                "peer `b` has another keepalive",
            ]
        );
        assert_eq!(Live::default().differences(&spec, None), ["there is no such interface"]);
    }

    #[test]
    fn a_peer_that_moved_by_itself_is_left_where_it_is_and_one_that_is_told_to_is_moved() {
        let (told, moved) = (spec("198.51.100.7:51820"), spec("203.0.113.9:51820"));
        let live = live("192.0.2.1:7000", "10.210.1.1/32,10.210.1.128/25");
        let wg = live.wg.as_ref().expect("peers");
        assert_eq!(wg.differences(&told, Some(&told)), Vec::<String>::new());
        let text =
            |spec: &Interface| String::from_utf8(configuration(spec, b"K\n", Some(wg), Some(&told))).expect("text");
        assert!(text(&told).contains("Endpoint = 192.0.2.1:7000\n"), "{}", text(&told));
        assert_eq!(wg.differences(&moved, Some(&told)), ["peer `b` is looked for elsewhere"]);
        assert!(text(&moved).contains("Endpoint = 203.0.113.9:51820\n"), "{}", text(&moved));
        assert!(
            text(&told).starts_with("[Interface]\nPrivateKey = K\nListenPort = 51820\n[Peer]\n"),
            "{}",
            text(&told)
        );
    }
}
