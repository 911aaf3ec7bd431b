//! Where the processes of a container listen by TCP, as the kernel tells it of their network namespace.
//!
//! Nothing is entered and no program is run: proc(5) shows a process's own namespace under `/proc/PID/net`. What is found explains a
//! health check that failed; nothing is decided by it.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Most sockets that are told.
const MOST: usize = 32;

/// The state of a socket that is a connection (`TCP_ESTABLISHED`, the same file).
const ESTABLISHED: &str = "01";

/// The state of a socket that takes connections (`TCP_LISTEN` in the kernel's `include/net/tcp_states.h`).
const LISTEN: &str = "0A";

/// Docker answers names on this address of every container, which is no port of the application.
const DOCKERS_NAMES: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11));

/// Where the processes in the network namespace of process `pid` listen. None where that cannot be read, or nothing runs.
pub fn of(pid: i32) -> Option<Vec<SocketAddr>> {
    if pid <= 0 {
        return None;
    }
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/net/{file}"));
    let mut found = listening(&read("tcp").ok()?);
    // A kernel without IPv6 has no such file.
    found.extend(read("tcp6").map(|table| listening(&table)).unwrap_or_default());
    Some(found.into_iter().take(MOST).collect())
}

/// How many connections the processes in the network namespace of process `pid` have on ports that they listen on. None as for [`of`].
pub fn connections(pid: i32) -> Option<usize> {
    let ports: BTreeSet<u16> = of(pid)?.iter().map(SocketAddr::port).collect();
    let count = |file: &str| {
        let table = fs::read_to_string(format!("/proc/{pid}/net/{file}")).unwrap_or_default();
        sockets(&table, ESTABLISHED).filter(|at| ports.contains(&at.port())).count()
    };
    Some(count("tcp") + count("tcp6"))
}

/// The listening sockets of a table.
fn listening(table: &str) -> BTreeSet<SocketAddr> {
    sockets(table, LISTEN).filter(|at| at.ip() != DOCKERS_NAMES).collect()
}

/// The own ends of the sockets of a table in the form of proc(5) `/proc/net/tcp` or `tcp6` that are in a state.
fn sockets<'a>(table: &'a str, wanted: &'a str) -> impl Iterator<Item = SocketAddr> + 'a {
    table.lines().skip(1).filter_map(move |line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (local, _remote, state) = (fields.next()?, fields.next()?, fields.next()?);
        let (address, port) = local.split_once(':')?;
        let at = SocketAddr::new(ip(address)?, u16::from_str_radix(port, 16).ok()?);
        (state == wanted).then_some(at)
    })
}

/// An address as the kernel prints it: 32 bits at a time, each in the machine's own byte order.
fn ip(hex: &str) -> Option<IpAddr> {
    let word = |from: usize| Some(u32::from_str_radix(hex.get(from..from + 8)?, 16).ok()?.to_ne_bytes());
    match hex.len() {
        8 => Some(IpAddr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (part, from) in bytes.chunks_exact_mut(4).zip([0, 8, 16, 24]) {
                part.copy_from_slice(&word(from)?);
            }
            let address = Ipv6Addr::from(bytes);
            // A socket for both kinds of addresses that was bound to one of IPv4.
            Some(address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_endian = "little")]
    #[test]
    fn listening_sockets_are_read_and_connections_and_dockers_own_are_not() {
        let tcp = "  sl  local_address rem_address   st tx_queue rx_queue\n\
                   0: 0100007F:0BB8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1\n\
                   1: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1\n\
                   2: 0B00007F:9C41 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1\n\
                   3: 8C00D20A:1F90 8100D20A:D431 01 00000000:00000000 00:00000000 00000000     0        0 1\n";
        let at = |text: &str| text.parse::<SocketAddr>().expect("an address");
        assert_eq!(listening(tcp), BTreeSet::from([at("0.0.0.0:8080"), at("127.0.0.1:3000")]));
        assert_eq!(sockets(tcp, ESTABLISHED).collect::<Vec<_>>(), [at("10.210.0.140:8080")]);
        let tcp6 = "  sl  local_address\n\
                    0: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 0\n\
                    1: 00000000000000000000000001000000:0051 00000000000000000000000000000000:0000 0A 0\n\
                    2: 0000000000000000FFFF00000100007F:0052 00000000000000000000000000000000:0000 0A 0\n\
                    torn\n";
        assert_eq!(listening(tcp6), BTreeSet::from([at("[::]:80"), at("[::1]:81"), at("127.0.0.1:82")]));
    }

    #[test]
    fn this_process_has_a_namespace_and_none_has_the_number_0() {
        let own = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        let pid = i32::try_from(std::process::id()).expect("a number");
        let found = of(pid).expect("this process runs");
        assert!(found.len() == MOST || found.contains(&own.local_addr().expect("an address")), "{found:?}");
        assert_eq!(of(0), None);
    }
}
