//! Many ships in a row under load: none fails a request, and nothing piles up.

#![expect(clippy::print_stdout, reason = "it is what a person sees of a run that takes long")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jiji_lab::Host;

use crate::census::Census;
use crate::{Outcome, Project, Site, look};

/// How to ship many times.
#[derive(Debug, Clone)]
pub struct Deploys {
    /// How many ships are counted.
    pub count: usize,
    /// Requests per second and host meanwhile.
    pub rate: f64,
    /// The name of the project, which nobody else may use on this site.
    pub project: String,
    /// How many hosts it is on.
    pub hosts: usize,
}

/// Ships before the first census: one more than `retain`, so that everything that is kept is there.
const WARM: usize = 3;

/// KiB by which the proxy's memory may grow: its collector lets the heap double before it runs.
const PROXY_GROWTH_KIB: u64 = 32 * 1024;

/// File descriptors by which the proxy may grow: connections that the load keeps.
const PROXY_FDS: u64 = 64;

/// What a run of many ships showed.
#[derive(Debug)]
pub struct Shown {
    /// Seconds that each counted ship took.
    pub took: Vec<f64>,
    /// What grew, by host.
    pub grown: Vec<String>,
    /// The censuses before and after, by host.
    pub census: BTreeMap<String, (Census, Census)>,
}

impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut sorted = self.took.clone();
        sorted.sort_by(f64::total_cmp);
        if let (Some(least), Some(middle), Some(most)) = (sorted.first(), sorted.get(sorted.len() / 2), sorted.last()) {
            writeln!(f, "{} ships: {least:.1} / {middle:.1} / {most:.1} s (least, median, most)", sorted.len())?;
        }
        for (host, (before, after)) in &self.census {
            writeln!(
                f,
                "  {host}: {} KiB below /var/lib/jiji instead of {}; the proxy has {} KiB instead of {}, {} file descriptors instead of {}",
                after.bytes / 1024,
                before.bytes / 1024,
                after.proxy_kib,
                before.proxy_kib,
                after.proxy_fds,
                before.proxy_fds
            )?;
        }
        writeln!(f, "  piled up: {}", self.grown.len())?;
        for line in &self.grown {
            writeln!(f, "    {line}")?;
        }
        Ok(())
    }
}

/// Ships many times, and says what piled up.
///
/// # Errors
/// When a ship or a request fails.
pub fn run(site: &Site, order: &Deploys) -> Outcome<Shown> {
    let project = Project::new(site, &order.project)?;
    project.spread(order.hosts)?;
    let authority = project.authority();
    let ship = |number: usize| -> Outcome<f64> {
        project.set_version(&format!("v{number}"))?;
        Ok(project.ship()?.took.as_secs_f64())
    };
    for number in 1..=WARM {
        ship(number)?;
    }
    let limit = Duration::from_secs(60 + 60 * order.count as u64);
    let mut load = site.load(&authority, limit);
    load.rate = order.rate;
    let mut quiet = load.clone();
    quiet.seconds = 5.0;
    println!("baseline: {}", site.lab.baseline(&quiet)?);
    let hosts = site.hosts();
    let before = hosts.iter().map(settled_census).collect::<Outcome<Vec<_>>>()?;
    let operator_before = operator(site, &project)?;
    let (took, report) = site.under_load(&load, || {
        let mut took = Vec::new();
        for number in 0..order.count {
            let seconds = ship(WARM + 1 + number)?;
            took.push(seconds);
            if (number + 1) % 10 == 0 {
                println!("{} ships, the last in {seconds:.1} s", number + 1);
            }
        }
        Ok(took)
    })?;
    println!("{report}");
    report.without_failure()?;
    let last = format!("v{}", WARM + order.count);
    assert_eq!(site.versions(&authority)?, vec![vec![last]; hosts.len()], "afterwards only the last answers");
    let mut shown = Shown { took, grown: Vec::new(), census: BTreeMap::new() };
    for (host, before) in hosts.iter().zip(before) {
        look::only(host, &order.project)?;
        let after = settled_census(host)?;
        shown.grown.extend(grown(&before, &after).into_iter().map(|line| format!("{}: {line}", host.name)));
        shown.census.insert(host.name.clone(), (before, after));
    }
    let operator_after = operator(site, &project)?;
    shown.grown.extend(operator_after.since(&operator_before).into_iter().map(|line| format!("operator: {line}")));
    Ok(shown)
}

fn grown(before: &Census, after: &Census) -> Vec<String> {
    let mut lines = after.since(before);
    if after.proxy_kib > before.proxy_kib + PROXY_GROWTH_KIB {
        lines.push(format!("the proxy's memory: {} KiB instead of {}", after.proxy_kib, before.proxy_kib));
    }
    if after.proxy_fds > before.proxy_fds + PROXY_FDS {
        lines.push(format!("the proxy's file descriptors: {} instead of {}", after.proxy_fds, before.proxy_fds));
    }
    lines
}

/// A census once what ends by itself has ended: an engine's helper, a session that says goodbye.
fn settled_census(host: &Host) -> Outcome<Census> {
    let begun = Instant::now();
    let mut last = Census::of(host)?;
    loop {
        std::thread::sleep(Duration::from_millis(700));
        let now = Census::of(host)?;
        if now.since(&last).is_empty() || begun.elapsed() > Duration::from_secs(15) {
            return Ok(now);
        }
        last = now;
    }
}

/// What the operator's machine has of the project's: its processes and files, but not the store and the load's own.
fn operator(site: &Site, project: &Project<'_>) -> Outcome<Census> {
    // A master may live on for 20 s where nobody closed it; one that was closed is gone at once.
    std::thread::sleep(Duration::from_millis(300));
    let mut census = Census::default();
    let script = r#"find "$1" -path "$1/cache/jiji/store" -prune -o -printf 'entry %y %P\n'"#;
    let text = jiji_lab::command::run(jiji_lab::command::command("sh", ["-c", script, "operator"]).arg(project.dir()))?;
    for line in String::from_utf8_lossy(&text).lines() {
        census.count(line);
    }
    let ours = project.dir().to_string_lossy().into_owned();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Ok(argv) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let argv = String::from_utf8_lossy(&argv).replace('\0', " ");
        if argv.contains(&ours) || argv.contains(&*site.lab.ssh_config().to_string_lossy()) {
            census.count(&format!("process {}", argv.split(' ').next().unwrap_or_default()));
        }
    }
    Ok(census)
}
