//! What decides whether a change is begun at all: disk, memory, kernel, ports, clock.
//!
//! Everything is read from the kernel's files and none of it needs a program, so that asking costs an unchanged ship nothing; only who
//! has a port is asked of the engine too, and that is asked only where a container is to publish one. Nothing is judged here: what is
//! too little is the operator's to say (`deploy`).

use std::collections::HashMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use jiji_model::observation::{DiskFacts, FitnessFacts, PortFacts};
use jiji_model::project;

use crate::engine::Engine;
use crate::observe::Observer;
use crate::{clock, command, rootless};

/// Gathers everything but ports.
pub fn facts(observer: &Observer<'_>) -> FitnessFacts {
    let path = &observer.settings.path;
    let installed = [(project::Engine::Docker, "docker"), (project::Engine::Podman, "podman")];
    let installed = installed.into_iter().filter(|(_, program)| command::find(program, path).is_ok());
    let engine = observer.engine.as_ref().ok().and_then(Option::as_ref);
    let data = engine.map_or(Path::new("/var/lib"), |engine| engine.data.as_path());
    let start = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or_default();
    FitnessFacts {
        installed: installed.map(|(engine, _)| engine).collect(),
        engine_problem: observer.engine.as_ref().err().map(|error| command::one_line(&error.to_string())),
        distribution: distribution(&fs::read_to_string("/etc/os-release").unwrap_or_default()),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        uid: rustix::process::geteuid().as_raw(),
        unprivileged_port: start.trim().parse().unwrap_or(1024),
        engine_disk: disk(data),
        state_disk: disk(observer.place.root()),
        memory_available: memory_available(),
        wall_clock_ms: clock::wall_clock_ms(),
        rootless: observer.settings.rootless.then(|| rootless::facts(path)),
        starts_at_boot: engine
            .filter(|engine| engine.kind == project::Engine::Podman && !observer.settings.rootless)
            .and_then(|_| starts_at_boot(Path::new("/"))),
    }
}

/// `ID` and `ID_LIKE` of os-release(5).
fn distribution(text: &str) -> Vec<String> {
    let values = ["ID=", "ID_LIKE="].into_iter().filter_map(|key| text.lines().find_map(|line| line.strip_prefix(key)));
    let words = values.flat_map(|value| value.trim_matches(['"', '\'']).split_ascii_whitespace());
    words
        .filter(|word| word.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)))
        .map(str::to_owned)
        .collect()
}

/// The file system of a directory, or of the nearest one above it that is there already.
pub fn disk(path: &Path) -> DiskFacts {
    use std::os::unix::fs::MetadataExt as _;
    let there = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let stat = rustix::fs::statvfs(there).ok();
    DiskFacts {
        path: path.display().to_string(),
        device: fs::metadata(there).map_or(0, |metadata| metadata.dev()),
        free: stat.as_ref().map_or(0, |stat| stat.f_bavail.saturating_mul(stat.f_frsize)),
        // File systems that make inodes as they go say that they have none at all.
        files_free: stat.as_ref().filter(|stat| stat.f_files > 0).map(|stat| stat.f_favail),
    }
}

/// Whether systemd starts Podman's containers when the machine boots: its unit for that is wanted by something. None where there is no such unit,
/// as with another init system.
fn starts_at_boot(root: &Path) -> Option<bool> {
    const UNIT: &str = "podman-restart.service";
    let units = ["etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system"].map(|place| root.join(place));
    units.iter().find(|place| place.join(UNIT).exists())?;
    let targets = units.iter().filter_map(|place| fs::read_dir(place).ok()).flatten().flatten();
    let mut wants = targets.filter(|target| target.file_name().as_encoded_bytes().ends_with(b".wants"));
    // A link, which may lead to where only the host's own root has it.
    Some(wants.any(|target| target.path().join(UNIT).symlink_metadata().is_ok()))
}

/// `MemAvailable` of proc(5) `/proc/meminfo`, in bytes.
pub fn memory_available() -> u64 {
    kib(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemAvailable:").unwrap_or(0) * 1024
}

fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// Bytes that the control group of a container's process holds in anonymous memory: what the kernel cannot drop, unlike cached files.
/// None where that group is not the container's alone, as for a user's own engine that was given no groups.
pub fn held_memory(pid: i32, container: &str) -> Option<u64> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let (path, name) = memory_group(&groups).filter(|(path, _)| is_of(path, container))?;
    let stat = fs::read_to_string(Path::new("/sys/fs/cgroup").join(path).join("memory.stat")).ok()?;
    stat.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

/// Where the control group of a `/proc/PID/cgroup` accounts for memory, below `/sys/fs/cgroup`, and what its anonymous memory is called
/// there (cgroups(7)).
fn memory_group(text: &str) -> Option<(PathBuf, &'static str)> {
    let mut fields = text.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':');
        Some((parts.next()?, parts.next()?, parts.next()?.trim_start_matches('/')))
    });
    let of_memory = |controllers: &str| controllers.split(',').any(|controller| controller == "memory");
    if let Some((_, _, path)) = fields.clone().find(|(_, controllers, _)| of_memory(controllers)) {
        return Some((Path::new("memory").join(path), "total_rss "));
    }
    fields
        .find(|(id, controllers, _)| *id == "0" && controllers.is_empty())
        .map(|(.., path)| (PathBuf::from(path), "anon "))
}

/// Whether a control group is a container's: both engines name them after their ids, by themselves and through systemd.
fn is_of(group: &Path, container: &str) -> bool {
    !container.is_empty() && group.to_str().is_some_and(|path| path.contains(container))
}

/// A socket that listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Listener {
    port: u16,
    address: Option<IpAddr>,
    inode: u64,
}

/// Who has these ports: whoever listens, and containers that publish them, also where the kernel passes packets on and nobody listens.
pub async fn ports(ports: &[u16], engine: Option<&Engine>) -> Vec<PortFacts> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    let mut listeners: Vec<Listener> = tables.iter().flat_map(|table| table.lines().filter_map(listener)).collect();
    listeners.retain(|listener| ports.contains(&listener.port));
    let processes = processes(&listeners);
    let mut found: Vec<PortFacts> = Vec::new();
    for listener in listeners {
        let process = processes.get(&listener.inode).cloned();
        found.push(PortFacts { port: listener.port, address: listener.address, process, container: None });
    }
    for (port, container) in published(engine).await.into_iter().filter(|(port, _)| ports.contains(port)) {
        let mut of_port = found.iter_mut().filter(|facts| facts.port == port).peekable();
        if of_port.peek().is_none() {
            found.push(PortFacts { port, address: None, process: None, container: Some(container) });
        } else {
            of_port.for_each(|facts| facts.container = Some(container.clone()));
        }
    }
    found.sort_by_key(|facts| facts.port);
    // One that listens at IPv4 and IPv6 is one.
    found.dedup_by(|one, other| {
        let known = one.process.is_some() || one.container.is_some();
        one.port == other.port && known && one.process == other.process && one.container == other.container
    });
    found
}

/// Reads a line of `/proc/net/tcp` or `tcp6` (proc(5)): address and port in hexadecimal, state `0A` for one that listens.
fn listener(line: &str) -> Option<Listener> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let [_, local, _, "0A", _, _, _, _, _, inode, ..] = fields[..] else { return None };
    let (address, port) = local.split_once(':')?;
    // Words of four bytes each, in the machine's order.
    let words: Option<Vec<[u8; 4]>> = (0..address.len() / 8)
        .map(|index| Some(u32::from_str_radix(address.get(index * 8..index * 8 + 8)?, 16).ok()?.to_ne_bytes()))
        .collect();
    let address = match words?[..] {
        [word] => IpAddr::V4(Ipv4Addr::from(word)),
        [one, two, three, four] => {
            let bytes: Vec<u8> = [one, two, three, four].concat();
            IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?))
        }
        _ => return None,
    };
    let address = Some(address.to_canonical()).filter(|address| !address.is_unspecified());
    Some(Listener { port: u16::from_str_radix(port, 16).ok()?, address, inode: inode.parse().ok()? })
}

/// Number and name of the processes that hold these sockets open, by inode.
fn processes(listeners: &[Listener]) -> HashMap<u64, (u32, String)> {
    let mut found = HashMap::new();
    if listeners.is_empty() {
        return found;
    }
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        for descriptor in fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
            let Ok(target) = fs::read_link(descriptor.path()) else { continue };
            let inode = target.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            if let Some(inode) = inode.filter(|inode| listeners.iter().any(|listener| listener.inode == *inode)) {
                let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                found.entry(inode).or_insert((pid, command::one_line(&name)));
            }
        }
    }
    found
}

/// TCP ports of the host that containers publish, with the containers' names.
async fn published(engine: Option<&Engine>) -> Vec<(u16, String)> {
    let Some(engine) = engine else { return Vec::new() };
    let command = engine.command(["ps", "--format", "{{.Names}}\t{{.Ports}}"]);
    match engine.must("ps", command).await {
        Ok(output) => output.text().lines().flat_map(published_by).collect(),
        // Who listens is known all the same, only not which container that is.
        Err(_) => Vec::new(),
    }
}

/// Reads a line such as `web<TAB>0.0.0.0:8080-8081->80-81/tcp, :::443->443/tcp, 53/udp`.
fn published_by(line: &str) -> Vec<(u16, String)> {
    let Some((name, ports)) = line.split_once('\t') else { return Vec::new() };
    let one = |mapping: &str| {
        let (host, container) = mapping.trim().split_once("->")?;
        let (_, range) = host.rsplit_once(':')?;
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let range = first.parse::<u16>().ok()?..=last.parse::<u16>().ok()?;
        container.ends_with("/tcp").then_some(range)
    };
    let ports = ports.split(',').filter_map(one).flatten();
    ports.map(|port| (port, name.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_starts_at_boot_is_what_a_target_wants() {
        let dir = tempfile::tempdir().expect("a directory");
        let make = |name: &str| fs::create_dir_all(dir.path().join(name)).expect("created");
        make("usr/lib/systemd/system");
        make("etc/systemd/system/multi-user.target.wants");
        assert_eq!(starts_at_boot(dir.path()), None, "no such unit");
        fs::write(dir.path().join("usr/lib/systemd/system/podman-restart.service"), "").expect("written");
        assert_eq!(starts_at_boot(dir.path()), Some(false));
        make("etc/systemd/system/default.target.wants");
        let link = dir.path().join("etc/systemd/system/default.target.wants/podman-restart.service");
        std::os::unix::fs::symlink("/lib/systemd/system/podman-restart.service", link).expect("linked");
        assert_eq!(starts_at_boot(dir.path()), Some(true));
    }

    #[test]
    fn those_who_listen_are_read_from_the_kernels_tables() {
        let one = "   0: 0100007F:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 0000 100 0 0 10 0";
        let expected = Listener { port: 80, address: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)), inode: 4242 };
        if cfg!(target_endian = "little") {
            assert_eq!(listener(one), Some(expected));
        }
        let all =
            "   1: 00000000000000000000000000000000:01BB 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 7 1";
        assert_eq!(listener(all), Some(Listener { port: 443, address: None, inode: 7 }));
        let connected =
            "   0: 0100007F:0050 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 4242 1";
        assert_eq!(listener(connected), None);
        assert_eq!(listener("  sl  local_address rem_address   st tx_queue"), None);
    }

    #[tokio::test]
    async fn a_port_is_told_with_the_process_that_has_it() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = socket.local_addr().expect("bound").port();
        let found = ports(&[port], None).await;
        let [facts] = &found[..] else { panic!("one has it: {found:?}") };
        assert_eq!(facts.address, Some(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        assert_eq!(facts.process.as_ref().map(|(pid, _)| *pid), Some(std::process::id()));
        drop(socket);
        assert_eq!(ports(&[port], None).await, []);
    }

    #[test]
    fn ports_that_containers_publish_are_read_in_both_engines_words() {
        let name = |ports: &[u16]| ports.iter().map(|port| (*port, "web".to_owned())).collect::<Vec<_>>();
        assert_eq!(published_by("web\t0.0.0.0:80->80/tcp, :::80->80/tcp, 0.0.0.0:53->53/udp, 9/tcp"), name(&[80, 80]));
        assert_eq!(published_by("web\t0.0.0.0:8080-8082->80-82/tcp"), name(&[8080, 8081, 8082]));
        assert_eq!(published_by("web\t"), []);
    }

    #[test]
    fn memory_is_asked_of_the_control_group_of_either_version() {
        assert_eq!(memory_group("0::/system.slice/x.scope\n"), Some((PathBuf::from("system.slice/x.scope"), "anon ")));
        let first = "12:cpu,cpuacct:/a\n5:memory:/docker/abc\n0::/\n";
        assert_eq!(memory_group(first), Some((PathBuf::from("memory/docker/abc"), "total_rss ")));
        assert_eq!(memory_group(""), None);
        for own in ["memory/docker/abc", "machine.slice/libpod-abc.scope/container", "libpod_parent/libpod-abc"] {
            assert!(is_of(Path::new(own), "abc"), "{own}");
        }
        assert!(!is_of(Path::new("user.slice/user-1000.slice/session-3.scope"), "abc"));
        assert!(!is_of(Path::new("memory/docker"), ""));
        assert_eq!(kib("MemTotal:  9 kB\nMemAvailable:    123 kB\n", "MemAvailable:"), Some(123));
    }

    #[test]
    fn a_distribution_is_its_own_name_and_those_it_is_like() {
        assert_eq!(distribution("NAME=\"U\"\nID=ubuntu\nID_LIKE=\"debian x\"\n"), ["ubuntu", "debian", "x"]);
        assert_eq!(distribution(""), Vec::<String>::new());
    }

    #[test]
    fn a_directory_that_is_not_there_yet_is_on_the_disk_of_the_one_above() {
        let dir = tempfile::tempdir().expect("a directory");
        let (there, below) = (disk(dir.path()), disk(&dir.path().join("a/b")));
        assert_eq!((there.device, there.free > 0), (below.device, true));
        assert!(below.path.ends_with("a/b"));
    }
}
