//! `cargo xtask bench deploy`: jiji beside Kamal with its proxy, and beside the engine's own floor, on the same Docker hosts.
//!
//! The same image by the same digest everywhere. jiji builds it before the clock runs and sends it from the operator's store; Kamal and
//! the floor pull it from the lab's registry. Each is measured alone, after a deploy that nobody counts, and the median counts. Execs are
//! counted in sshd's log; bytes and changes of direction by the relay before each sshd, which stands there at no round trip time too.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "rows are what it is for, and people wait long for them"
)]

mod floor;
mod kamal;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jiji_e2e::{Outcome, Project, Site};
use jiji_lab::command::command;
use jiji_lab::{Engine, Engines, Host, Spec};
use serde_json::{Value, json};

/// Round trip times between operator and hosts. The first is none that could be noticed: it makes the lab put its relay there.
const RTTS: [Duration; 2] = [Duration::from_micros(1), Duration::from_millis(50)];

/// On how many hosts.
const HOSTS: [usize; 2] = [1, 3];

/// The project, and with `.test` its Host header.
const PROJECT: &str = "bench";

/// What one deploy took.
#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    seconds: f64,
    /// Sessions that sshd started, of the host with most.
    execs: f64,
    /// Changes of direction, of the host with most.
    turns: f64,
    /// Bytes both ways, of the host with most, in KiB.
    kib: f64,
}

/// The median of each quantity.
fn median(costs: &[Cost]) -> Cost {
    let middle = |of: fn(&Cost) -> f64| {
        let mut values: Vec<f64> = costs.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or_default()
    };
    Cost {
        seconds: middle(|cost| cost.seconds),
        execs: middle(|cost| cost.execs),
        turns: middle(|cost| cost.turns),
        kib: middle(|cost| cost.kib),
    }
}

/// Measures what `work` does to these hosts. What was written before is on the disk then: none of the tools waits for another's writes.
fn measured(hosts: &[Host], work: impl FnOnce() -> Outcome) -> Outcome<Cost> {
    let counts = || -> Outcome<Vec<_>> {
        // The relay writes its counts down 50 times a second.
        std::thread::sleep(Duration::from_millis(60));
        hosts.iter().map(|host| Ok((host.ssh_sessions()?, host.ssh_traffic()?))).collect()
    };
    drop(jiji_lab::command::output(&mut command("sync", [] as [&str; 0]), None)?);
    // An engine still takes names away after a deploy has ended.
    std::thread::sleep(Duration::from_millis(200));
    let before = counts()?;
    let begun = Instant::now();
    work()?;
    let seconds = begun.elapsed().as_secs_f64();
    let mut cost = Cost { seconds, ..Cost::default() };
    for ((sessions, traffic), (sessions_before, traffic_before)) in counts()?.into_iter().zip(before) {
        #[expect(clippy::cast_precision_loss, reason = "counts of one deploy")]
        let number = |now: u64, then: u64| (now - then) as f64;
        let bytes = number(traffic.sent + traffic.received, traffic_before.sent + traffic_before.received);
        cost.execs = cost.execs.max(number(sessions.sessions, sessions_before.sessions));
        cost.turns = cost.turns.max(number(traffic.turns, traffic_before.turns));
        cost.kib = cost.kib.max(bytes / 1024.0);
    }
    Ok(cost)
}

/// How often each deploy is measured.
fn rounds() -> usize {
    std::env::var("JIJI_BENCH_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(5)
}

/// The round trip times that are measured: all, or those whose milliseconds `JIJI_BENCH_RTTS` lists with commas.
fn rtts() -> Vec<Duration> {
    let wanted = std::env::var("JIJI_BENCH_RTTS").ok();
    let is = |rtt: &Duration, text: &str| text.split(',').any(|ms| ms.trim().parse() == Ok(rtt.as_millis()));
    RTTS.into_iter().filter(|rtt| wanted.as_ref().is_none_or(|text| is(rtt, text))).collect()
}

/// What one tool took, by the number of hosts and by whether there was a new version.
type Costs = BTreeMap<(usize, bool), Cost>;

/// Versions in the registry as `hello:vN`, each pushed by jiji.
fn publish(site: &Site, count: usize) -> Outcome<()> {
    let project = image_project(site)?;
    project.edit("builder:\n", "builder:\n  registry:\n    server: http://${LAB_REGISTRY}\n")?;
    let registry = &site.lab.registry()?.address;
    for number in 1..=count {
        project.set_version(&format!("v{number}"))?;
        let built = project.run(&["build"])?.expect(0)?;
        let digest = built.events_of("build.done").filter_map(|event| event["data"]["image"].as_str()).next();
        let digest = digest.ok_or("a build without an image")?;
        project.run(&["push"])?.expect(0)?;
        let mut copy = site.lab.operator_command("/usr/bin/skopeo");
        copy.args(["copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false"]);
        copy.arg(format!("docker://{registry}/{PROJECT}/web@{digest}"));
        copy.arg(format!("docker://{registry}/hello:v{number}"));
        jiji_lab::command::run(&mut copy)?;
    }
    Ok(())
}

/// The example with the label that Kamal asks of an image.
fn image_project(site: &Site) -> Outcome<Project<'_>> {
    let project = Project::new(site, PROJECT)?;
    let path = project.root().join("Dockerfile");
    let text = std::fs::read_to_string(&path)?;
    std::fs::write(&path, format!("{text}LABEL service=\"hello\"\n"))?;
    Ok(project)
}

fn ours(site: &Site) -> Outcome<Costs> {
    let mut costs = Costs::new();
    for count in HOSTS {
        let project = image_project(site)?;
        project.spread(count)?;
        let hosts: Vec<Host> = site.hosts().into_iter().take(count).collect();
        project.ship()?;
        let mut taken: BTreeMap<bool, Vec<Cost>> = BTreeMap::new();
        for round in 0..rounds() {
            project.set_version(&format!("v{}", round + 2))?;
            project.run(&["build"])?.expect(0)?;
            for new in [true, false] {
                let cost = measured(&hosts, || project.ship().map(drop))?;
                eprintln!("jiji, {count} hosts, new version {new}: {cost:?}");
                taken.entry(new).or_default().push(cost);
            }
        }
        for (new, taken) in taken {
            costs.insert((count, new), median(&taken));
        }
    }
    Ok(costs)
}

/// Removes every container, so that the next tool finds ports and names free.
fn clear(site: &Site) -> Outcome {
    for host in site.hosts() {
        let ids = host.engine(&["ps", "--all", "--quiet"])?;
        let ids: Vec<&str> = ids.split_whitespace().collect();
        if !ids.is_empty() {
            host.engine(&[["rm", "--force"].as_slice(), ids.as_slice()].concat())?;
        }
    }
    Ok(())
}

fn row(name: String, unit: &str, ours: f64, peer: (f64, &str), goal: Option<f64>) {
    let row: Value =
        json!({ "name": name, "unit": unit, "ours": ours, "peer": peer.0, "peer_name": peer.1, "goal": goal });
    println!("{row}");
}

fn main() -> Outcome {
    for rtt in rtts() {
        let far = rtt >= Duration::from_millis(1);
        let place = if far { format!("{} ms", rtt.as_millis()) } else { "0 ms".to_owned() };
        let hosts = HOSTS.into_iter().max().unwrap_or(1);
        let site = Site::of(&Spec::new(hosts, Engines::Docker).rtt(rtt))?;
        assert!(site.hosts().iter().all(|host| host.engine == Engine::Docker), "Kamal knows Docker alone");
        publish(&site, rounds() + 1)?;
        let jiji = ours(&site)?;
        let floor = floor::costs(&site)?;
        clear(&site)?;
        let kamal = kamal::costs(&site)?;
        for count in HOSTS {
            let of = if count == 1 { "1 host".to_owned() } else { format!("{count} hosts") };
            let (new, same) = (jiji[&(count, true)], jiji[&(count, false)]);
            let (kamal_new, kamal_same) = (kamal[&(count, true)], kamal[&(count, false)]);
            let (least, least_same) = (floor[&(count, true)], floor[&(count, false)]);
            let rtt = if far { rtt.as_secs_f64() } else { 0.0 };
            let name = |what: &str| format!("{what}, {of}, {place}");
            let limit = least.seconds * 1.3 + 10.0 * rtt;
            row(name("new version"), "s", new.seconds, (least.seconds, "floor"), Some(limit));
            let limit = far.then_some(kamal_new.seconds / 5.0);
            row(name("new version"), "s", new.seconds, (kamal_new.seconds, "kamal"), limit);
            let limit = kamal_same.seconds / if far { 10.0 } else { 8.0 };
            row(name("unchanged"), "s", same.seconds, (kamal_same.seconds, "kamal"), Some(limit));
            row(name("unchanged"), "s", same.seconds, (least_same.seconds, "floor"), None);
            for (what, ours, peer) in [("new version", new, kamal_new), ("unchanged", same, kamal_same)] {
                row(name(&format!("{what}: execs")), "per host", ours.execs, (peer.execs, "kamal"), Some(1.0));
                row(name(&format!("{what}: turns")), "per host", ours.turns, (peer.turns, "kamal"), None);
                row(name(&format!("{what}: bytes")), "KiB per host", ours.kib, (peer.kib, "kamal"), None);
            }
            row(name("new version: turns"), "per host", new.turns, (least.turns, "floor"), None);
        }
    }
    Ok(())
}
