//! `jiji network` on four real hosts, two with Podman and two with Docker: containers reach each other by address, nothing of it can be read on
//! the way, nobody gets in without a key, and what is so already is left alone.
//!
//! This kernel has no WireGuard, so the interfaces are `wireguard-go`'s; the laboratory has no systemd, so after a reboot the test itself runs
//! the command that the unit would.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use jiji_e2e::look::{State, only};
use jiji_e2e::{Outcome, Project, Shared, Site};
use jiji_lab::command::{command, output, run};
use jiji_lab::{Engines, Host};
use serde_json::Value;

static LAB: Shared = Shared::new(4, Engines::Mixed);

/// What containers say to each other, and to nobody else.
const MARK: &str = "READABLE-ON-THE-WIRE";

/// Where containers listen for each other.
const PORT: &str = "9999";

/// Takes a number of connections, repeats what each says, and prints from which address it came.
const SERVER: &str = "
import socket, sys
s = socket.create_server(('', int(sys.argv[1])))
s.settimeout(60)
print('ready', flush=True)
for _ in range(int(sys.argv[2])):
    c, a = s.accept()
    c.sendall(c.recv(4096))
    c.close()
    print(a[0], flush=True)
";

/// Says something at addresses, and prints those that repeat it.
const CLIENT: &str = "
import socket, sys
for address in sys.argv[3:]:
    try:
        c = socket.create_connection((address, int(sys.argv[1])), timeout=5)
        c.settimeout(5)
        c.sendall(sys.argv[2].encode())
        if c.recv(4096).decode() == sys.argv[2]:
            print(address, flush=True)
    except OSError as error:
        print(address, error, file=sys.stderr, flush=True)
";

/// Writes whatever passes to standard output, as it is.
const CAPTURE: &str = "
import select, socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
print('ready', file=sys.stderr, flush=True)
while True:
    waiting, _, _ = select.select([s, sys.stdin], [], [])
    if s not in waiting:
        break
    sys.stdout.buffer.write(s.recv(65535))
";

/// A process that ends with this value.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The address of a container on every host, in the hosts' order.
fn addresses(hosts: &[Host], project: &str) -> Outcome<Vec<String>> {
    hosts.iter().map(|host| Ok(only(host, project)?.address)).collect()
}

fn in_container(host: &Host, project: &str, argv: &[&str]) -> Outcome<Command> {
    let name = only(host, project)?.name;
    let mut command = host.command(&[host.engine_cli()]);
    command.args(["exec", &name]).args(argv);
    Ok(command)
}

/// Which addresses answer in a container.
fn reached(host: &Host, project: &str, others: &[&str]) -> Outcome<BTreeSet<String>> {
    let argv = [["python3", "-c", CLIENT, PORT, MARK].as_slice(), others].concat();
    let out = output(&mut in_container(host, project, &argv)?, None)?;
    Ok(String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect())
}

/// Servers in the containers of all hosts, which take a connection from each other one.
struct Servers(Vec<Child>);

impl Servers {
    fn start(hosts: &[Host], project: &str, connections: usize) -> Outcome<Self> {
        let mut all = Vec::new();
        for host in hosts {
            let count = connections.to_string();
            let mut command = in_container(host, project, &["python3", "-c", SERVER, PORT, &count])?;
            let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).stdin(Stdio::null()).spawn()?;
            let out = child.stdout.as_mut().ok_or("a pipe")?;
            let mut ready = [0; 6];
            std::io::Read::read_exact(out, &mut ready)?;
            all.push(child);
        }
        Ok(Self(all))
    }

    /// From which addresses each was spoken to.
    fn heard(self) -> Outcome<Vec<BTreeSet<String>>> {
        let heard = self.0.into_iter().map(|child| {
            let out = child.wait_with_output()?;
            Ok(String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect())
        });
        heard.collect()
    }
}

/// Every container reaches every other, and is known to it by its own address.
fn all_reach_all(hosts: &[Host], project: &str) -> Outcome {
    let addresses = addresses(hosts, project)?;
    let servers = Servers::start(hosts, project, hosts.len() - 1)?;
    for (host, own) in hosts.iter().zip(&addresses) {
        let others: Vec<&str> = addresses.iter().filter(|other| *other != own).map(String::as_str).collect();
        let due: BTreeSet<String> = others.iter().map(|&other| other.to_owned()).collect();
        assert_eq!(reached(host, project, &others)?, due, "from {}", host.name);
    }
    for (own, heard) in addresses.iter().zip(servers.heard()?) {
        let due: BTreeSet<String> = addresses.iter().filter(|other| *other != own).cloned().collect();
        assert_eq!(heard, due, "at {own}: addresses are not translated on the way");
    }
    Ok(())
}

/// The public keys of all hosts.
fn keys(hosts: &[Host]) -> Outcome<Vec<String>> {
    hosts.iter().map(|host| Ok(host.exec(&["wg", "show", "jiji0", "public-key"])?.trim().to_owned())).collect()
}

fn status(project: &Project<'_>, code: i32) -> Outcome<Value> {
    let run = project.run(&["network", "status"])?.expect(code)?;
    Ok(serde_json::from_str(&run.stdout)?)
}

/// What differs on a server, as `network status` tells it.
fn differs(state: &Value, server: &str) -> Vec<String> {
    let lines = state["servers"][server]["interfaces"]["jiji0"]["differs"].as_array().cloned().unwrap_or_default();
    lines.iter().filter_map(|line| line.as_str().map(str::to_owned)).collect()
}

fn states(hosts: &[Host]) -> Outcome<Vec<State>> {
    hosts.iter().map(State::of).collect()
}

/// What passes on the laboratory's bridge while something is done.
fn captured(site: &Site, work: impl FnOnce() -> Outcome) -> Outcome<Vec<u8>> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("capture");
    let net = format!("--net=/proc/{}/ns/net", site.lab.record().bridge_pid);
    let mut capture = command("nsenter", [net.as_str(), "--", "python3", "-c", CAPTURE]);
    let child = capture.stdin(Stdio::piped()).stdout(std::fs::File::create(&path)?).stderr(Stdio::piped()).spawn()?;
    let mut child = Ends(child);
    let mut ready = [0; 6];
    std::io::Read::read_exact(child.0.stderr.as_mut().ok_or("a pipe")?, &mut ready)?;
    work()?;
    // It ends once its input has and no frame waits any more.
    drop(child.0.stdin.take());
    assert!(child.0.wait()?.success(), "the capture goes to its end");
    Ok(std::fs::read(&path)?)
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// Says the mark to a host's own address, outside of the network, where all can read it.
fn speak_openly(from: &Host, to: &Host) -> Outcome {
    let mut server = to.command(&["python3", "-c", SERVER, PORT, "1"]);
    let mut child = Ends(server.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?);
    let mut ready = [0; 6];
    std::io::Read::read_exact(child.0.stdout.as_mut().ok_or("a pipe")?, &mut ready)?;
    let address = to.address.to_string();
    let out = from.exec(&["python3", "-c", CLIENT, PORT, MARK, &address])?;
    assert_eq!(out.trim(), address);
    Ok(())
}

/// Whether a neighbour on the same line who has no key gets an answer of a container, by leading packets for it to its host.
fn neighbour_gets_in(site: &Site, host: &Host, project: &str) -> Outcome<bool> {
    let address = only(host, project)?.address;
    let operator = |argv: &[&str]| {
        let mut command = site.lab.operator_command("/usr/bin/env");
        command.args(argv);
        command
    };
    run(&mut operator(&["ip", "route", "replace", &format!("{address}/32"), "via", &host.address.to_string()]))?;
    let out = output(&mut operator(&["python3", "-c", CLIENT, "8080", "GET / HTTP/1.0\r\n\r\n", &address]), None)?;
    run(&mut operator(&["ip", "route", "delete", &format!("{address}/32")]))?;
    // Whoever is refused by the kernel or hears nothing says so; a web server's answer is not what was said, and no complaint.
    Ok(out.stderr.is_empty())
}

/// Files of a host that hold a text.
fn holders(host: &Host, text: &str) -> Outcome<Vec<String>> {
    let out = host.output(&["grep", "-rlF", "--", text, "/var/lib/jiji", "/etc/systemd", "/root"])?;
    Ok(String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect())
}

#[test]
fn containers_of_four_hosts_reach_each_other_and_nobody_else_reads_or_gets_in() -> Outcome {
    let site = LAB.take()?;
    let name = "meshed";
    let project = Project::new(&site, name)?;
    project.spread(4)?;
    project.run(&["network", "status"])?.expect(2)?;
    // One server is told of by an address and a port of its own.
    project.edit("    host: ${LAB_HOST_2}\n", "    host: ${LAB_HOST_2}\n    endpoint: ${LAB_ADDRESS_2}:51820\n")?;
    project.edit("\nplugins:\n", "\nnetwork:\n  enabled: true\n\nplugins:\n")?;
    project.ship()?;
    let hosts = site.hosts();
    let all = addresses(&hosts, name)?;
    status(&project, 13)?;
    assert_eq!(reached(&hosts[0], name, &[&all[1]])?, BTreeSet::new(), "there is no network yet");
    let before: Vec<Vec<String>> = states(&hosts)?.into_iter().map(|state| state.containers).collect();

    let set_up = project.run(&["network", "setup"])?.expect(0)?;
    assert_eq!(set_up.summary()?["result"], "set-up", "{set_up}");
    println!("set up on 4 hosts in {:.1}s", set_up.took.as_secs_f64());
    let now: Vec<Vec<String>> = states(&hosts)?.into_iter().map(|state| state.containers).collect();
    assert_eq!(now, before, "no container is touched");

    let begun = Instant::now();
    let wire = captured(&site, || all_reach_all(&hosts, name))?;
    println!(
        "12 of 12 ways between containers in {:.1}s, {} bytes on the wire",
        begun.elapsed().as_secs_f64(),
        wire.len()
    );
    assert!(wire.len() > 10_000, "something passed: {} bytes", wire.len());
    for (text, what) in [(MARK, "what was said"), ("HTTP/1", "a request")] {
        assert!(!holds(&wire, text), "{what} can be read on the wire");
    }
    let open = captured(&site, || speak_openly(&hosts[0], &hosts[1]))?;
    assert!(holds(&open, MARK), "what is said openly is captured");

    nothing_is_done_twice(&project, &hosts)?;
    keys_stay_where_they_are(&project, &hosts)?;
    who_has_no_key_gets_nothing(&site, &project, &hosts, name)?;
    a_host_that_was_off_is_back(&project, &hosts, name)
}

#[expect(clippy::print_stdout, reason = "part of what a test shows, outside of a test's own function")]
fn nothing_is_done_twice(project: &Project<'_>, hosts: &[Host]) -> Outcome {
    let (before, known) = (states(hosts)?, keys(hosts)?);
    let again = project.run(&["network", "setup"])?.expect(0)?;
    assert_eq!(again.summary()?["result"], "unchanged", "{again}");
    assert_eq!(states(hosts)?, before, "a second setup writes nothing");
    assert_eq!(keys(hosts)?, known);
    let state = status(project, 0)?;
    for server in ["one", "two", "three", "four"] {
        let interface = &state["servers"][server]["interfaces"]["jiji0"];
        let peers = interface["peers"].as_array().cloned().unwrap_or_default();
        let heard = peers.iter().filter(|peer| peer["handshake_s"].is_u64() && peer["received"].as_u64() > Some(0));
        assert_eq!((peers.len(), heard.count()), (3, 3), "{server}: {interface}");
        assert_eq!(interface["by"], "userspace");
    }
    println!("a second setup: unchanged in {:.1}s, no file written on 4 hosts", again.took.as_secs_f64());
    Ok(())
}

fn keys_stay_where_they_are(project: &Project<'_>, hosts: &[Host]) -> Outcome {
    let path = "/var/lib/jiji/network/jiji0.key";
    let mut management = BTreeSet::new();
    for host in hosts {
        assert_eq!(host.exec(&["stat", "-c", "%a %u", path])?.trim(), "600 0");
        let private = String::from_utf8(host.read_file(path)?)?.trim().to_owned();
        assert_eq!(private.len(), 44);
        for other in hosts {
            let due: &[&str] = if other.name == host.name { &[path] } else { &[] };
            assert_eq!(holders(other, &private)?, due, "the private key of {} on {}", host.name, other.name);
        }
        let kept = output(command("grep", ["-rlF", "--", private.as_str()]).arg(project.dir()), None)?;
        assert!(kept.stdout.is_empty(), "the operator has a private key");
        let addresses = host.exec(&["ip", "-6", "-o", "address", "show", "dev", "jiji0"])?;
        let own = addresses.split_whitespace().find(|word| word.starts_with("fdcc:")).ok_or("a management address")?;
        management.insert(own.to_owned());
    }
    assert_eq!(management.len(), hosts.len(), "{management:?}");
    Ok(())
}

fn who_has_no_key_gets_nothing(site: &Site, project: &Project<'_>, hosts: &[Host], name: &str) -> Outcome {
    for host in hosts {
        assert!(!neighbour_gets_in(site, host, name)?, "{} lets a neighbour in", host.name);
    }
    // Podman lets everybody in by itself: without the table the neighbour is there, so the attempt proves something.
    let podman = hosts.iter().find(|host| host.engine == jiji_lab::Engine::Podman).ok_or("a host with Podman")?;
    podman.exec(&["nft", "delete", "table", "inet", "jiji_jiji0"])?;
    assert!(neighbour_gets_in(site, podman, name)?, "nothing but the table keeps a neighbour out");
    hosts[1].exec(&["ip", "link", "set", "jiji0", "down"])?;
    let state = status(project, 13)?;
    let found: BTreeMap<&str, Vec<String>> = ["one", "two", "three", "four"].map(|it| (it, differs(&state, it))).into();
    assert!(found["one"].iter().any(|line| line.contains("`inet jiji_jiji0`")), "{found:?}");
    assert!(found["two"].iter().any(|line| line == "it is down"), "{found:?}");
    assert!(found["three"].is_empty() && found["four"].is_empty(), "{found:?}");
    let known = keys(hosts)?;
    let mended = project.run(&["network", "setup"])?.expect(0)?;
    assert_eq!(mended.summary()?["result"], "set-up", "{mended}");
    assert_eq!(keys(hosts)?, known, "mending makes no keys");
    status(project, 0)?;
    assert!(!neighbour_gets_in(site, podman, name)?);
    all_reach_all(hosts, name)
}

fn a_host_that_was_off_is_back(project: &Project<'_>, hosts: &[Host], name: &str) -> Outcome {
    let known = keys(hosts)?;
    // A host with Docker, which starts its containers itself.
    let host = hosts.iter().find(|host| host.engine == jiji_lab::Engine::Docker).ok_or("a host with Docker")?;
    host.kill()?;
    host.boot()?;
    host.exec(&["/var/lib/jiji/network/jiji-host", "mesh-up"])?;
    let deadline = Instant::now() + Duration::from_secs(30);
    while only(host, name).is_err() {
        assert!(Instant::now() < deadline, "the container does not start again");
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(keys(hosts)?, known, "a reboot makes no keys");
    all_reach_all(hosts, name)?;
    status(project, 0)?;
    Ok(())
}
