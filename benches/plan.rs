//! What it takes to plan for a fleet in memory: wall time, processor time and memory, at 10, 100 and 1,000 hosts.
//!
//! Each case runs in a process of its own, so that the most memory that it had is its own. Times are medians of several runs in that
//! process, the loading of the plugins counted (compiled code is cached, as for everybody who has planned once). Rows are what
//! `cargo xtask bench` reads.

#![expect(clippy::print_stdout, reason = "a bench: rows are its output")]

use std::time::{Duration, Instant};

use jiji::plugin::Plugins;
use jiji::ship::Rehearsal;
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
        [case, hosts] => {
            let case = CASES[case.parse::<usize>().expect("a case's number")];
            println!("{}", measure(case, hosts.parse().expect("a number of hosts")));
        }
        _ => all(),
    }
}

fn all() {
    for (number, case) in CASES.into_iter().enumerate() {
        // `JIJI_BENCH_HOSTS` chooses what is measured.
        let sizes = std::env::var("JIJI_BENCH_HOSTS").unwrap_or_else(|_| "10,100,1000".to_owned());
        let mut before: Option<(usize, f64)> = None;
        for hosts in sizes.split(',').filter_map(|hosts| hosts.parse::<usize>().ok()) {
            let measured = in_a_process(number, hosts);
            let value = |key: &str| measured[key].as_f64().unwrap_or_default();
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

fn in_a_process(case: usize, hosts: usize) -> Value {
    let program = std::env::current_exe().expect("this program has a path");
    let output = std::process::Command::new(program)
        .args([case.to_string(), hosts.to_string()])
        .stderr(std::process::Stdio::inherit())
        .output()
        .expect("this program starts");
    assert!(output.status.success(), "case {case} at {hosts} hosts: {}", output.status);
    serde_json::from_slice(&output.stdout).expect("a case prints JSON")
}

fn load(project: &Project, dir: &std::path::Path) -> Plugins {
    let store = Store::open(dir.join("store")).expect("a store");
    let none = jiji::lockfile::PluginSection::new();
    Plugins::load(&project.plugins, &none, &store, Some(&dir.join("compiled"))).expect("the defaults load")
}

fn measure(case: Case, hosts: usize) -> Value {
    let dir = tempfile::tempdir().expect("a directory");
    let one = fleet::project(Shape { hosts: 1, services: SERVICES, per_host: SERVICES });
    let old = fleet::images(&one, |_| false);
    let first = Rehearsal::new(&one, &old, load(&one, dir.path()), fleet::seeds(), 1);
    let first = first.plan(&fleet::hosts(&one), fleet::empty).expect("a plan").planned.plan;
    let project = fleet::project(Shape { hosts, services: SERVICES, per_host: case.per_host });
    let fleet = Fleet::shipped(&project, &first);
    let new = fleet::images(&project, |number| number % case.every == case.every - 1 || case.every == 1);
    let all = fleet::hosts(&project);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let runs = if hosts * case.per_host > 10_000 { 1 } else { RUNS };
    let (mut walls, mut cpus, mut calls, mut steps) = (Vec::new(), Vec::new(), 0, 0);
    for _ in 0..runs {
        let (start, before) = (Instant::now(), processor());
        let rehearsal = Rehearsal::new(&project, &new, load(&project, dir.path()), fleet::seeds(), threads);
        let rehearsed = rehearsal.plan(&all, |host, wants| fleet.answer(host, wants)).expect("a plan");
        walls.push(start.elapsed());
        cpus.push(processor() - before);
        (calls, steps) = (rehearsed.calls, rehearsed.planned.plan.steps.len());
    }
    json!({"wall": median(walls), "cpu": median(cpus), "rss": most_memory(), "calls": calls, "steps": steps})
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64()
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
