//! What it takes to plan for a fleet in memory: wall time, processor time and memory, at 10, 100 and 1,000 hosts.
//!
//! Each run of a case has a process of its own, so that the most memory that it had is its own. Rows are medians of several runs, the
//! loading of the plugins counted (compiled code is cached, as for everybody who has planned once). What hosts answer is in
//! memory before the clock starts, as a look at them would have left it. Rows are what `cargo xtask bench` reads.

#![expect(clippy::print_stdout, reason = "a bench: rows are its output")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use jiji::plugin::Plugins;
use jiji::ship::Rehearsal;
use jiji_model::name::HostName;
use jiji_model::observation::{Answer, Fact, Observation, Want};
use jiji_model::project::Project;
use jiji_store::Store;
use serde_json::{Value, json};

mod fleet;

use fleet::{Fleet, Shape};

/// Runs of a case, of which the median counts.
const RUNS: usize = 5;

/// What a case measures.
#[derive(Debug, Clone, Copy)]
struct Case {
    name: &'static str,
    per_host: usize,
    /// Every which service has a new image.
    every: usize,
    /// Whether what 1,000 hosts may take at most is judged.
    judged: bool,
}

const SERVICES: usize = 50;

const CASES: [Case; 3] = [
    Case { name: "unchanged, 2 of 50 services on each host", per_host: 2, every: usize::MAX, judged: true },
    Case { name: "all changed, 2 of 50 services on each host", per_host: 2, every: 1, judged: true },
    Case { name: "1 of 50 changed, all 50 services on each host", per_host: 50, every: SERVICES, judged: true },
];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    match args.as_slice() {
        [case, hosts, compiled] => {
            let case = CASES[case.parse::<usize>().expect("a case's number")];
            println!("{}", measure(case, hosts.parse().expect("a number of hosts"), Path::new(compiled)));
        }
        _ => all(),
    }
}

fn all() {
    let dir = tempfile::tempdir().expect("a directory");
    load(&fleet::project(Shape { hosts: 1, services: 1, per_host: 1 }), dir.path());
    for (number, case) in CASES.into_iter().enumerate() {
        // `JIJI_BENCH_HOSTS` chooses what is measured.
        let sizes = std::env::var("JIJI_BENCH_HOSTS").unwrap_or_else(|_| "10,100,1000".to_owned());
        let mut before: Option<(usize, f64)> = None;
        for hosts in sizes.split(',').filter_map(|hosts| hosts.parse::<usize>().ok()) {
            let measured: Vec<Value> = (0..RUNS).map(|_| in_a_process(number, hosts, dir.path())).collect();
            let value = |key: &str| median(measured.iter().map(|run| run[key].as_f64().unwrap_or_default()).collect());
            let goal = |goal: f64| (case.judged && hosts == 1000).then_some(goal);
            let row = |what: &str, unit: &str, ours: f64, goal: Option<f64>| {
                let name = format!("{}: {hosts} hosts, {what}", case.name);
                println!("{}", json!({"name": name, "unit": unit, "ours": ours, "goal": goal}));
            };
            row("wall time", "s", value("wall"), goal(1.0));
            row("processor time", "s", value("cpu"), None);
            row("most memory", "MiB", value("rss"), goal(300.0));
            row("plugin calls", "calls", value("calls"), None);
            row("steps", "steps", value("steps"), None);
            if let Some((fewer, cpu)) = before {
                let growth = value("cpu") / cpu / (hosts as f64 / fewer as f64);
                // What is there once (loading plugins) makes it less than 1; a tenth is what runs differ by.
                row(&format!("processor time for each host, of that at {fewer}"), "times", growth, Some(1.1));
            }
            before = Some((hosts, value("cpu")));
        }
    }
}

fn in_a_process(case: usize, hosts: usize, compiled: &Path) -> Value {
    let program = std::env::current_exe().expect("this program has a path");
    let output = std::process::Command::new(program)
        .args([case.to_string(), hosts.to_string()])
        .arg(compiled)
        .stderr(std::process::Stdio::inherit())
        .output()
        .expect("this program starts");
    assert!(output.status.success(), "case {case} at {hosts} hosts: {}", output.status);
    serde_json::from_slice(&output.stdout).expect("a case prints JSON")
}

/// The plugins, with a store and compiled code in `dir`.
fn load(project: &Project, dir: &Path) -> Plugins {
    let store = Store::open(dir.join("store")).expect("a store");
    let none = jiji::lockfile::PluginSection::new();
    Plugins::load(&project.plugins, &none, &store, Some(&dir.join("compiled"))).expect("the defaults load")
}

fn measure(case: Case, hosts: usize, dir: &Path) -> Value {
    let one = fleet::project(Shape { hosts: 1, services: SERVICES, per_host: SERVICES });
    let old = fleet::images(&one, |_| false);
    let first = Rehearsal::new(&one, &old, load(&one, dir), fleet::seeds(), 1);
    let first = first.plan(&fleet::hosts(&one), fleet::empty).expect("a plan").planned.plan;
    let project = fleet::project(Shape { hosts, services: SERVICES, per_host: case.per_host });
    let fleet = Fleet::shipped(&project, &first);
    let new = fleet::images(&project, |number| number % case.every == case.every - 1 || case.every == 1);
    let all = fleet::hosts(&project);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let asked = Mutex::new(BTreeMap::<HostName, Vec<Want>>::new());
    let rehearsal = Rehearsal::new(&project, &new, load(&project, dir), fleet::seeds(), threads);
    let few = all.iter().take(if case.per_host == SERVICES { 1 } else { hosts });
    let few = few.map(|(host, architecture)| (host.clone(), architecture.clone())).collect();
    let record = |host: &HostName, wants: &[Want]| {
        asked.lock().expect("nobody panicked").entry(host.clone()).or_default().extend_from_slice(wants);
        fleet.answer(host, wants)
    };
    rehearsal.plan(&few, record).expect("a plan");
    let asked = asked.into_inner().expect("nobody panicked");
    let answers = answers(&fleet, all.keys(), &asked);
    let (start, before) = (Instant::now(), processor());
    let rehearsal = Rehearsal::new(&project, &new, load(&project, dir), fleet::seeds(), threads);
    let rehearsed = rehearsal.plan(&all, |host, wants| take(&answers, host, wants)).expect("a plan");
    let (wall, cpu) = (start.elapsed().as_secs_f64(), (processor() - before).as_secs_f64());
    json!({
        "wall": wall, "cpu": cpu, "rss": most_memory(), "calls": rehearsed.calls,
        "steps": rehearsed.planned.plan.steps.len(),
    })
}

/// What a look at the hosts leaves in memory, by host and want.
type Looked = BTreeMap<HostName, Mutex<BTreeMap<String, Answer>>>;

/// Answers of all hosts to what they will be asked: each to its own questions, or all to the same where one alone was tried.
fn answers<'h>(
    fleet: &Fleet,
    hosts: impl Iterator<Item = &'h HostName>,
    asked: &BTreeMap<HostName, Vec<Want>>,
) -> Looked {
    let same = asked.values().next().expect("a host was asked");
    let mut observation = Observation::default();
    for host in hosts {
        observation.add(host, fleet.answer(host, asked.get(host).unwrap_or(same)));
    }
    observation.hosts.into_iter().map(|(host, answers)| (host, Mutex::new(answers))).collect()
}

/// The answers to these wants, which are asked once.
fn take(answers: &Looked, host: &HostName, wants: &[Want]) -> Vec<Fact> {
    let mut answers = answers[host].lock().expect("nobody panicked");
    let answer = |want: &Want| {
        let answer = answers.remove(&want.id).unwrap_or_else(|| panic!("`{}` was not asked before", want.id));
        Fact { id: want.id.clone(), answer }
    };
    wants.iter().map(answer).collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Processor time of this process in its own code: `utime` and `stime` of proc(5), in ticks of 10 ms.
fn processor() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("there is a proc");
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 = after_name.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

/// The most memory that this process had, in MiB (`VmHWM` of proc(5)).
fn most_memory() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("there is a proc");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok());
    kib.unwrap_or_default() / 1024.0
}
