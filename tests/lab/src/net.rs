//! The lab's network: a bridge in a namespace of its own, and a veth pair for the operator and for each host.
//!
//! The bridge's namespace has no way out, so nothing in a lab reaches the machine's own network, and no address of a lab can
//! clash with one outside.

use std::net::Ipv4Addr;

use crate::{
    LabError,
    command::{command, run},
};

/// Runs `ip` in the network namespace of a process.
fn ip(pid: u32, args: &str) -> Result<(), LabError> {
    let mut command = command("nsenter", [format!("--net=/proc/{pid}/ns/net"), "--".to_owned(), "ip".to_owned()]);
    run(command.args(args.split(' '))).map(drop)
}

/// Makes the bridge in the namespace of `bridge`, with these addresses.
pub(crate) fn make_bridge(bridge: u32, addresses: &[Ipv4Addr]) -> Result<(), LabError> {
    ip(bridge, "link set lo up")?;
    ip(bridge, "link add lab0 address 02:6c:61:62:00:01 type bridge forward_delay 0 stp_state 0")?;
    for address in addresses {
        ip(bridge, &format!("addr add {address}/24 dev lab0"))?;
    }
    ip(bridge, "link set lab0 up")
}

/// Gives the namespace of `pid` an `eth0` on the bridge.
pub(crate) fn attach(bridge: u32, pid: u32, address: Ipv4Addr) -> Result<(), LabError> {
    let port = port(address);
    // A host that just died takes its end of the pair with it, but a moment later; both ends go together.
    drop(ip(bridge, &format!("link del {port}")));
    ip(bridge, &format!("link add {port} type veth peer name eth0 address {} netns {pid}", mac(address)))?;
    ip(bridge, &format!("link set {port} master lab0 up"))?;
    ip(pid, "link set lo up")?;
    ip(pid, &format!("addr add {address}/24 dev eth0"))?;
    ip(pid, "link set eth0 up")
}

/// Refuses connections to the sshd of `pid`'s namespace that come from this address.
pub(crate) fn refuse_ssh(pid: u32, from: Ipv4Addr) -> Result<(), LabError> {
    let net = format!("--net=/proc/{pid}/ns/net");
    let rule = format!("-A INPUT -p tcp --dport 22 -s {from} -j REJECT --reject-with tcp-reset");
    run(command("nsenter", [net.as_str(), "--", "iptables", "--wait"]).args(rule.split(' '))).map(drop)
}

/// Cuts or restores the line of an address at the bridge's end: packets are lost in both directions, nobody is told.
pub(crate) fn set_link(bridge: u32, address: Ipv4Addr, up: bool) -> Result<(), LabError> {
    // Leaving the bridge loses packets without a carrier change on the host's side, as a cut further away would.
    let state = if up { "master lab0" } else { "nomaster" };
    ip(bridge, &format!("link set {} {state}", port(address)))
}

/// The name of the bridge's end for an address.
fn port(address: Ipv4Addr) -> String {
    format!("lab{}", address.octets()[3])
}

/// The hardware address for an address: a host that boots again is the same to its neighbours.
fn mac(address: Ipv4Addr) -> String {
    let [_, _, number, last] = address.octets();
    format!("02:6c:61:62:{number:02x}:{last:02x}")
}
