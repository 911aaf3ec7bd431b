//! Several operators, stopped clocks and dead holders: never two writers, never a lock that needs a person.
//!
//! Ann and Bob have checkouts and directories of their own. Ann's clock is an hour ahead and Bob's an hour behind, in every test: what
//! the wall clock says must not matter to who may write. By hand, `RACE_ROUNDS` says how often they race, and with `RACE_LOAD=1` every test
//! is under a load of which no request may fail; `crash` has one always.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiji_e2e::{Outcome, Project, Run, Running, Shared, Site, look};
use jiji_lab::command::{command, run};
use jiji_lab::{Engines, Host};
use serde_json::Value;

static LAB: Shared = Shared::new(2, Engines::Mixed);

const LOAD: Duration = Duration::from_secs(600);

/// Seconds by which each one's clock is off.
const SKEW: [(&str, i64); 2] = [("ann", 3600), ("bob", -3600)];

/// Does something, under a load where that is wished for.
#[expect(clippy::print_stdout, reason = "part of what a test shows, outside of a test's own function")]
fn under_load<T>(site: &Site, authority: &str, work: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
    if std::env::var_os("RACE_LOAD").is_none() {
        return work();
    }
    let (done, report) = site.under_load(&site.brisk_load(authority, LOAD), work)?;
    println!("{report}");
    report.without_failure()?;
    Ok(done)
}

/// The library that shows a program another time.
fn faketime() -> Outcome<PathBuf> {
    for dir in ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib"] {
        let path = Path::new(dir).join("faketime/libfaketime.so.1");
        if path.is_file() {
            return Ok(path);
        }
    }
    Err("libfaketime is not installed; `cargo xtask test` brings it".into())
}

/// Somebody with a checkout of the project, on a machine whose clock is wrong.
struct Operator<'a> {
    name: &'static str,
    skew: i64,
    project: Project<'a>,
    library: PathBuf,
}

impl<'a> Operator<'a> {
    fn pair(site: &'a Site, project: &str) -> Outcome<[Self; 2]> {
        let of = |(name, skew)| -> Outcome<Self> {
            Ok(Self { name, skew, project: Project::new(site, project)?, library: faketime()? })
        };
        Ok([of(SKEW[0])?, of(SKEW[1])?])
    }

    fn start_with(&self, args: &[&str], variables: &[(&str, &str)]) -> Outcome<Running> {
        let mut command = self.project.command(args)?;
        command.arg("--json").env("USER", self.name).env("LD_PRELOAD", &self.library);
        command.env("FAKETIME", format!("{:+}", self.skew));
        // Both names: releases of the library differ.
        command.env("DONT_FAKE_MONOTONIC", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        command.envs(variables.iter().copied());
        Running::start(&mut command)
    }

    fn start(&self, args: &[&str]) -> Outcome<Running> {
        self.start_with(args, &[])
    }

    fn ship(&self, version: &str) -> Outcome<Run> {
        self.project.set_version(version)?;
        self.start(&["ship"])?.end()?.expect(0)
    }

    /// When a run held the leases, by a clock that is right: from the last lease to the last journal that it closed.
    fn at_work(&self, run: &Run) -> Outcome<Option<(f64, f64)>> {
        let skew = |time: f64| time - f64::from(i32::try_from(self.skew).unwrap_or_default());
        let (Some(from), Some(to)) = (run.time_of("apply.leased").next(), run.time_of("apply.concluded").last()) else {
            return Ok(None);
        };
        Ok(Some((skew(from?), skew(to?))))
    }
}

fn signal(pid: u32, name: &str) -> Outcome {
    run(&mut command("kill", [format!("-{name}"), pid.to_string()]))?;
    Ok(())
}

/// The lines of a host's audit log of a project.
fn audit(host: &Host, project: &str) -> Outcome<Vec<Value>> {
    let text = String::from_utf8(host.read_file(&format!("/var/lib/jiji/projects/{project}/audit.jsonl"))?)?;
    text.lines().map(|line| Ok(serde_json::from_str::<Value>(line)?["event"].clone())).collect()
}

/// Nothing is open and nobody is at work, on any host.
fn at_rest(site: &Site, project: &Project<'_>) -> Outcome {
    let status = project.run(&["status"])?.expect(0)?;
    assert_eq!(status.events[0]["open"], Value::Array(Vec::new()), "{status}");
    for server in ["one", "two"] {
        let records = &status.events[0]["hosts"][server]["records"];
        assert_ne!(records["lease"]["live"], true, "{status}");
    }
    for host in site.hosts() {
        let begun = Instant::now();
        let mut left = host.processes_below("/var/lib/jiji/bin")?;
        while !left.is_empty() && begun.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(100));
            left = host.processes_below("/var/lib/jiji/bin")?;
        }
        assert_eq!(left, Vec::<u32>::new(), "{}", host.name);
    }
    Ok(())
}

/// Waits until a step of a phase begins, somewhere.
fn wait_for_phase(run: &mut Running, phase: &str) -> Outcome {
    run.wait_for(phase, |event| event["event"] == "apply.step-started" && event["phase"] == phase)
}

#[test]
fn two_operators_who_ship_at_once_are_never_at_work_at_once() -> Outcome {
    let rounds: u32 = std::env::var("RACE_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(4);
    let site = LAB.take()?;
    let operators = Operator::pair(&site, "race")?;
    let authority = operators[0].project.authority();
    operators[0].ship("v1")?;
    let endings = under_load(&site, &authority, || {
        let mut endings = Vec::new();
        for round in 1..=rounds {
            // Every other round both are willing to wait.
            let waits = round % 2 == 0;
            let args: &[&str] = if waits { &["ship", "--wait-lock", "3m"] } else { &["ship"] };
            for operator in &operators {
                operator.project.set_version(&format!("{}-{round}", operator.name))?;
            }
            let first = operators[0].start(args)?;
            std::thread::sleep(Duration::from_millis(u64::from(round * 97 % 700)));
            let second = operators[1].start(args)?;
            let runs = [first.end()?, second.end()?];
            let codes = [runs[0].code(), runs[1].code()];
            for run in &runs {
                let due: &[i32] = if waits { &[0] } else { &[0, 10, 15] };
                assert!(run.code().is_some_and(|code| due.contains(&code)), "round {round}: {run}");
            }
            assert!(codes.contains(&Some(0)), "round {round}: somebody ships: {codes:?}");
            if let (Some(one), Some(other)) = (operators[0].at_work(&runs[0])?, operators[1].at_work(&runs[1])?) {
                assert!(one.1 <= other.0 || other.1 <= one.0, "round {round}: {one:?} and {other:?} overlap");
            }
            let mut last = (0, String::new());
            for (operator, run) in operators.iter().zip(&runs).filter(|(_, run)| run.code() == Some(0)) {
                let release = run.summary()?["release"].as_u64().unwrap_or_default();
                last = last.max((release, format!("{}-{round}", operator.name)));
            }
            assert_eq!(site.versions(&authority)?, [[last.1.clone()], [last.1]], "round {round}");
            at_rest(&site, &operators[0].project)?;
            endings.push(codes.map(|code| code.unwrap_or(-1)));
        }
        Ok(endings)
    })?;
    println!("{rounds} rounds ended with {endings:?}");
    let logs = site.hosts().iter().map(|host| audit(host, "race")).collect::<Outcome<Vec<_>>>()?;
    assert_eq!(logs[0], logs[1], "both hosts tell the same");
    let numbers: Vec<_> = logs[0].iter().filter_map(|event| event["fencing"].as_u64()).collect();
    assert!(numbers.is_sorted_by(|one, other| one < other), "numbers only grow: {numbers:?}");
    let clock = |name: &str| {
        let line = logs[0].iter().rfind(|event| event["who"].as_str().is_some_and(|who| who.starts_with(name)));
        line.and_then(|event| event["at_s"].as_i64())
    };
    if let (Some(ann), Some(bob)) = (clock("ann@"), clock("bob@")) {
        assert!(ann - bob > 3600, "the clocks are two hours apart: {ann} and {bob}");
    }
    Ok(())
}

#[test]
fn who_is_refused_is_told_who_is_at_work_since_when_and_what_to_type() -> Outcome {
    let site = LAB.take()?;
    let [ann, bob] = Operator::pair(&site, "held")?;
    // Ann is at work as long as there is a file.
    for host in site.hosts() {
        host.exec(&["mkdir", "-p", "/etc/hello"])?;
        host.write_file("/etc/hello/sick", b"for now\n")?;
    }
    ann.project.edit("GREETING: hello\n", "GREETING: hello\n        UNHEALTHY_IF: /etc/hello/sick\n")?;
    ann.project.edit("    retain: 2\n", "    retain: 2\n    volumes: [\"/etc/hello:/etc/hello:ro\"]\n")?;
    ann.project.edit("interval: 200ms\n", "interval: 200ms\n        deploy_timeout: 2m\n")?;
    let mut at_work = ann.start(&["ship"])?;
    at_work.wait_for("a probe", |event| event["event"] == "apply.probed")?;
    bob.project.set_version("v3")?;
    let mut waiting = bob.start(&["ship", "--wait-lock", "1s"])?;
    waiting.wait_for("a line about the lease", |event| event["event"] == "apply.waiting")?;
    let refused = waiting.end()?.expect(10)?;
    for host in site.hosts() {
        host.remove_file("/etc/hello/sick")?;
    }
    at_work.end()?.expect(0)?;
    for due in ["ann@", "has held it for", "--wait-lock", "jiji status"] {
        assert!(refused.stderr.contains(due), "the message shows `{due}`: {refused}");
    }
    bob.ship("v3")?;
    at_rest(&site, &bob.project)
}

#[test]
fn a_holder_that_freezes_loses_its_lease_and_changes_nothing_when_it_thaws() -> Outcome {
    let site = LAB.take()?;
    let [ann, bob] = Operator::pair(&site, "frozen")?;
    let authority = ann.project.authority();
    ann.ship("v0")?;
    under_load(&site, &authority, || {
        for (round, phase) in (1..).zip(["prepare", "cutover", "drain"]) {
            ann.project.set_version(&format!("ann-{round}"))?;
            let mut frozen = ann.start_with(&["ship"], &[("JIJI_LEASE_MS", "6000")])?;
            wait_for_phase(&mut frozen, phase)?;
            signal(frozen.pid(), "STOP")?;
            let begun = Instant::now();
            let version = format!("bob-{round}");
            let taken = bob.ship(&version)?;
            let way = if phase == "drain" { "commit" } else { "revert" };
            let settled: Vec<_> = taken.events_of("apply.settling").collect();
            // Where its hosts had ended everything before it froze, there is nothing to settle.
            for event in &settled {
                assert_eq!(event["data"]["decision"], way, "{phase}: {taken}");
                assert!(event["data"]["who"].as_str().is_some_and(|who| who.starts_with("ann@")), "{taken}");
            }
            println!("frozen at {phase}: taken over and shipped in {:.1}s", begun.elapsed().as_secs_f64());
            let before = site.hosts().iter().map(|host| look::only(host, "frozen")).collect::<Outcome<Vec<_>>>()?;
            signal(frozen.pid(), "CONT")?;
            let thawed = frozen.end()?;
            println!("thawed at {phase}: {:?}", thawed.code());
            assert!(matches!(thawed.code(), Some(9 | 16)), "{phase}: {thawed}");
            let after = site.hosts().iter().map(|host| look::only(host, "frozen")).collect::<Outcome<Vec<_>>>()?;
            assert_eq!(before, after, "{phase}: who thawed changed nothing");
            assert_eq!(site.versions(&authority)?, [[version.clone()], [version]]);
            at_rest(&site, &bob.project)?;
        }
        Ok(())
    })
}

#[test]
fn a_dead_holder_whose_jiji_host_is_frozen_is_followed_by_the_next() -> Outcome {
    let site = LAB.take()?;
    let [ann, bob] = Operator::pair(&site, "stuck")?;
    let authority = ann.project.authority();
    ann.ship("v1")?;
    let hosts = site.hosts();
    let run = under_load(&site, &authority, || {
        ann.project.set_version("v2")?;
        let mut dead = ann.start_with(&["ship"], &[("JIJI_LEASE_MS", "6000")])?;
        wait_for_phase(&mut dead, "prepare")?;
        let stuck = hosts[1].processes_below("/var/lib/jiji/bin")?;
        assert!(!stuck.is_empty(), "jiji-host runs");
        for pid in &stuck {
            signal(*pid, "STOP")?;
        }
        signal(dead.pid(), "KILL")?;
        assert_eq!(dead.end()?.signal(), Some(9));
        let run = bob.ship("v3")?;
        let left = hosts[1].processes_below("/var/lib/jiji/bin")?;
        assert!(stuck.iter().all(|pid| !left.contains(pid)), "the frozen session was ended");
        Ok(run)
    })?;
    println!("shipped in {:.1}s", run.took.as_secs_f64());
    assert_eq!(site.versions(&authority)?, [["v3"], ["v3"]]);
    at_rest(&site, &bob.project)
}
