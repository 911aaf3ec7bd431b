//! A death or a fault at every step of a transaction, on real hosts under load, and what must hold afterwards.
//!
//! The program itself says where it can be struck: a ship is traced once per [`Scenario`], and every label that a host or the operator
//! passed becomes a [`Case`] for every [`Fault`]. After each the next `jiji ship` or `jiji abort` must settle the fleet, and [`check`]
//! asks the hosts whether it did. Requests must not fail on hosts that lived. Which cases are run, and in which order, a seed decides.

#![expect(clippy::print_stdout, reason = "it is what a person sees of a run that takes long")]

pub mod check;
pub mod point;
mod strike;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiji_lab::Host;

use crate::{Outcome, Project, Run, Site};
pub use point::Lot;
use point::{Case, Fault, Points, Scenario};

/// What to sweep.
#[derive(Debug, Clone)]
pub struct Order {
    /// At most so many cases, drawn by the seed; all without.
    pub points: Option<usize>,
    /// What is drawn and in which order.
    pub seed: u64,
    /// Only cases whose name has all of these words.
    pub only: Vec<String>,
    /// No case whose name has one of these words.
    pub without: Vec<String>,
    /// Every case on every host, and not on one that the seed draws.
    pub all_hosts: bool,
    /// Requests per second and host.
    pub rate: f64,
    /// No new case is begun when the first was begun so long ago.
    pub time: Option<Duration>,
    /// A file with the names of cases that have passed, one a line: those are not run again, and those that pass are added. Several
    /// sweeps may share one.
    pub passed: Option<PathBuf>,
}

/// What a sweep showed.
#[derive(Debug, Default)]
pub struct Summary {
    /// Labels that the program has, each counted once per scenario.
    pub labels: usize,
    /// Cases that there are.
    pub cases: usize,
    /// Cases that were run, and seconds that they took, by fault.
    pub run: BTreeMap<&'static str, (usize, f64)>,
    /// Cases whose label was not reached this time: hosts do not always come equally far.
    pub missed: Vec<String>,
    /// What was wrong, by case.
    pub wrong: Vec<(String, String)>,
    /// Requests that were sent.
    pub requests: u64,
    /// How runs ended that nobody killed, by exit code.
    pub codes: BTreeMap<i32, usize>,
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let run: usize = self.run.values().map(|(count, _)| count).sum();
        writeln!(f, "{} points, {} cases, {run} run, {} requests", self.labels, self.cases, self.requests)?;
        for (fault, (count, seconds)) in &self.run {
            #[expect(clippy::cast_precision_loss, reason = "a count of cases")]
            let mean = seconds / (*count).max(1) as f64;
            writeln!(f, "  {fault:>12}: {count} cases, {mean:.1} s each")?;
        }
        writeln!(f, "  exit codes of runs that were not killed: {:?}", self.codes)?;
        writeln!(f, "  labels not reached: {}", self.missed.len())?;
        for case in &self.missed {
            writeln!(f, "    {case}")?;
        }
        writeln!(f, "  wrong: {}", self.wrong.len())?;
        for (case, what) in &self.wrong {
            let what: Vec<_> = what.lines().take(6).collect();
            writeln!(f, "    {case}\n      {}", what.join("\n      "))?;
        }
        Ok(())
    }
}

/// A sweep under way.
pub struct Sweep<'a> {
    site: &'a Site,
    project: Project<'a>,
    name: String,
    hosts: Vec<Host>,
    version: std::cell::Cell<u32>,
    can_abort: bool,
}

/// The file that makes a version sick while it is there.
const SICK: &str = "/etc/hello/sick";

/// SIGABRT: how the operator's jiji dies at a point.
const ABORTED: i32 = 6;

/// The operator's first point at which the decision may be recorded.
const DECIDED: &str = "settled-one";

impl<'a> Sweep<'a> {
    /// Ships a project of this name for the first time.
    ///
    /// # Errors
    /// When that fails.
    pub fn new(site: &'a Site, name: &str, hosts: usize) -> Outcome<Self> {
        let project = Project::new(site, name)?;
        project.spread(hosts)?;
        project.edit("GREETING: hello\n", &format!("GREETING: hello\n        UNHEALTHY_IF: {SICK}\n"))?;
        project.edit("    retain: 2\n", "    retain: 2\n    volumes: [\"/etc/hello:/etc/hello:ro\"]\n")?;
        project.edit("interval: 200ms\n", "interval: 200ms\n        deploy_timeout: 6s\n")?;
        // One after the other, so that there is a between.
        project.edit("\nplugins:\n", "\nrollout:\n  max_parallel: 1\n\nplugins:\n")?;
        let all = site.hosts();
        let hosts: Vec<Host> = all.into_iter().take(hosts).collect();
        for host in &hosts {
            host.exec(&["mkdir", "-p", "/etc/hello"])?;
        }
        let can_abort = project.show(&["abort", "--help"])?.code() == Some(0);
        let sweep = Self { site, project, name: name.to_owned(), hosts, version: 1.into(), can_abort };
        sweep.project.ship()?;
        Ok(sweep)
    }

    /// The Host header of the project.
    pub fn authority(&self) -> String {
        self.project.authority()
    }

    fn fresh(&self) -> Outcome<String> {
        self.version.set(self.version.get() + 1);
        let version = format!("v{}", self.version.get());
        self.project.set_version(&version)?;
        Ok(version)
    }

    fn sicken(&self, place: usize) -> Outcome {
        Ok(self.hosts[place].write_file(SICK, b"on this host only\n")?)
    }

    fn cure(&self) -> Outcome {
        for host in &self.hosts {
            host.remove_file(SICK)?;
        }
        Ok(())
    }

    /// Deletes everything that the operator has but the project and the store.
    fn forget(&self) -> Outcome {
        let empty = |dir: &Path| -> Outcome {
            std::fs::remove_dir_all(dir)?;
            Ok(std::fs::create_dir(dir)?)
        };
        empty(&self.project.home())?;
        empty(&self.project.dir().join("run"))?;
        for entry in std::fs::read_dir(self.project.cache().join("jiji"))? {
            let path = entry?.path();
            if path.ends_with("store") {
                continue;
            }
            if path.is_dir() { std::fs::remove_dir_all(path)? } else { std::fs::remove_file(path)? }
        }
        Ok(())
    }

    fn points(&self) -> Outcome<Vec<Points>> {
        let points = self.hosts.iter().map(Points::of).collect::<Outcome<Vec<_>>>()?;
        for one in &points {
            one.clear()?;
        }
        Ok(points)
    }

    /// Leaves a transaction open: a run that dies at this point of the operator's.
    fn leave_open(&self, at: &str) -> Outcome {
        self.fresh()?;
        let died = Run::of(self.project.command(&["ship", "--json"])?.env("JIJI_ABORT_AT", at))?;
        if died.signal() != Some(ABORTED) {
            return Err(format!("it did not die at `{at}`: {died}").into());
        }
        // Sessions finish what they have in hand.
        std::thread::sleep(Duration::from_millis(300));
        Ok(())
    }

    /// Asks the program where it can be struck.
    ///
    /// # Errors
    /// When a ship does not end as it should.
    pub fn list(&self) -> Outcome<Vec<Case>> {
        let mut cases = Vec::new();
        let trace = self.project.dir().join("operator-trace");
        for scenario in Scenario::ALL {
            if let Some(at) = scenario.left_at() {
                self.leave_open(at)?;
            }
            self.fresh()?;
            if scenario == Scenario::Revert {
                self.sicken(self.hosts.len() - 1)?;
            }
            let points = self.points()?;
            std::fs::write(&trace, "")?;
            let mut command = self.project.command(&["ship", "--json"])?;
            command.env("JIJI_ABORT_AT", format!("trace:{}", trace.display()));
            Run::of(&mut command)?.expect(if scenario == Scenario::Revert { 7 } else { 0 })?;
            self.cure()?;
            for (place, points) in points.iter().enumerate() {
                let mut labels = points.trace();
                if scenario.left_at().is_some() {
                    // What comes after it is the ship's own transaction.
                    let settled = labels.iter().position(|label| label == "released lease#1").map(|last| last + 1);
                    labels.truncate(settled.ok_or("the trace of a settlement has no end")?);
                }
                let waits = labels.iter().position(|label| label == "synced started prepare wait#1");
                for (number, label) in labels.into_iter().enumerate() {
                    let case = |fault| Case { scenario, host: Some(place), label: label.clone(), fault };
                    let torn = label.starts_with("torn ");
                    cases.extend(Fault::AT_HOSTS.into_iter().filter(|fault| !torn || *fault == Fault::Die).map(case));
                    let before_health = waits.is_some_and(|waits| number <= waits) && label.contains("prepare");
                    if scenario == Scenario::Update && before_health && !torn {
                        cases.push(case(Fault::Late));
                    }
                }
            }
            if scenario.left_at().is_none() {
                let text = std::fs::read_to_string(&trace)?;
                // The second of two passes is never the one at which it dies.
                for label in text.lines().collect::<BTreeSet<_>>() {
                    cases.push(Case { scenario, host: None, label: label.to_owned(), fault: Fault::Abort });
                }
            }
        }
        Ok(cases)
    }

    /// Runs the cases that the order wants, under load after a baseline.
    ///
    /// # Errors
    /// When the laboratory fails; what is wrong with a case stands in the summary.
    pub fn run(&self, order: &Order) -> Outcome<Summary> {
        let all = self.list()?;
        let begun = Instant::now();
        let labels: BTreeSet<_> = all.iter().map(|case| (case.scenario, case.host, &case.label)).collect();
        let mut summary = Summary { labels: labels.len(), cases: all.len(), ..Summary::default() };
        println!("seed {}: {} points, {} cases", order.seed, summary.labels, summary.cases);
        let mut passed = Passed::read(order.passed.as_deref(), &all, order.all_hosts)?;
        let chosen = choose(all, order, &passed);
        println!("{} of them to run", chosen.len());
        let mut load = self.site.brisk_load(&self.authority(), Duration::from_secs(24 * 3600));
        load.rate = order.rate;
        load.targets.truncate(self.hosts.len());
        let mut quiet = load.clone();
        quiet.seconds = 4.0;
        println!("baseline: {}", self.site.lab.baseline(&quiet)?);
        // A host that goes away fails its own requests, so the load leaves it out while that is tried.
        let mut groups: BTreeMap<Option<usize>, Vec<Case>> = BTreeMap::new();
        for case in chosen {
            let away = if case.strikes_host() { case.host } else { None };
            groups.entry(away).or_default().push(case);
        }
        let over = || order.time.is_some_and(|time| begun.elapsed() >= time);
        for (away, cases) in groups {
            if over() {
                break;
            }
            let mut here = load.clone();
            if let Some(place) = away {
                here.targets.retain(|target| target.name != self.hosts[place].name);
            }
            self.group(&here, cases, &over, &mut summary, &mut passed)?;
        }
        for points in self.points()? {
            points.remove()?;
        }
        Ok(summary)
    }

    fn group(
        &self,
        load: &jiji_lab::load::LoadSpec,
        cases: Vec<Case>,
        over: &dyn Fn() -> bool,
        summary: &mut Summary,
        passed: &mut Passed,
    ) -> Outcome {
        let running = self.site.lab.start_load(load)?;
        let mut failed = 0;
        let mut lot = Lot(cases.len() as u64);
        for case in cases {
            if over() {
                break;
            }
            passed.hear()?;
            if passed.has(&case) {
                continue;
            }
            let started = Instant::now();
            let name = case.to_string();
            let end = self.strike(&case, &mut lot, summary);
            // The generator tells its counts every tenth of a second.
            std::thread::sleep(Duration::from_millis(150));
            let now = running.progress().failed;
            let mut word = "ok".to_owned();
            match end {
                Ok(true) => {}
                Ok(false) => {
                    word = "not reached".to_owned();
                    summary.missed.push(name.clone());
                }
                Err(error) => {
                    word = format!("WRONG: {error}");
                    summary.wrong.push((name.clone(), error.to_string()));
                    self.heal()?;
                }
            }
            if now > failed {
                word = format!("{word}; {} requests FAILED", now - failed);
                summary.wrong.push((name.clone(), format!("{} requests failed", now - failed)));
                failed = now;
            }
            if word == "ok" {
                passed.add(&case)?;
            }
            let seconds = started.elapsed().as_secs_f64();
            let entry = summary.run.entry(case.fault.name()).or_default();
            entry.0 += 1;
            entry.1 += seconds;
            println!("{seconds:>5.1} s  {name}: {word}");
        }
        let report = running.stop()?;
        summary.requests += report.sent();
        if report.failed() > 0 {
            println!("{report}");
        }
        report.counts()?;
        Ok(())
    }

    /// Brings the fleet to rest after something was wrong, so that the next case begins like the others.
    fn heal(&self) -> Outcome {
        for host in &self.hosts {
            if host.record()?.pid == 0 {
                host.boot()?;
            }
            strike::speak_again(host)?;
            for program in strike::ENGINES {
                host.thaw(program)?;
            }
        }
        for points in self.points()? {
            points.clear()?;
        }
        self.cure()?;
        self.fresh()?;
        let deadline = Instant::now() + Duration::from_secs(90);
        loop {
            match self.project.ship() {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_secs(3)),
            }
        }
    }
}

/// What of a case counts where it need pass on one host alone.
type Kind = (Scenario, String, Fault);

fn kind(case: &Case) -> Kind {
    (case.scenario, case.label.clone(), case.fault)
}

/// Cases that have passed, here or in another sweep, before or meanwhile.
struct Passed {
    names: BTreeSet<String>,
    /// Where a case that passed on one host need not be run on others: what has.
    kinds: Option<BTreeSet<Kind>>,
    known: BTreeMap<String, Kind>,
    file: Option<File>,
    /// How much of the file is taken in.
    heard: u64,
}

impl Passed {
    fn read(path: Option<&Path>, all: &[Case], all_hosts: bool) -> Outcome<Self> {
        let open = |path| File::options().create(true).read(true).append(true).open(path);
        let file = path.map(open).transpose()?;
        let known = all.iter().map(|case| (case.to_string(), kind(case))).collect();
        let mut passed =
            Self { names: BTreeSet::new(), kinds: (!all_hosts).then(BTreeSet::new), known, file, heard: 0 };
        passed.hear()?;
        Ok(passed)
    }

    /// Takes in what came into the file since.
    fn hear(&mut self) -> Outcome {
        let mut text = String::new();
        if let Some(file) = &mut self.file {
            // Whoever appends is at the end afterwards.
            file.seek(SeekFrom::Start(self.heard))?;
            self.heard += file.read_to_string(&mut text)? as u64;
        }
        for name in text.lines() {
            self.names.insert(name.to_owned());
            if let (Some(kinds), Some(kind)) = (&mut self.kinds, self.known.get(name)) {
                kinds.insert(kind.clone());
            }
        }
        Ok(())
    }

    fn has(&self, case: &Case) -> bool {
        self.names.contains(&case.to_string()) || self.kinds.as_ref().is_some_and(|kinds| kinds.contains(&kind(case)))
    }

    fn add(&mut self, case: &Case) -> Outcome {
        if let Some(file) = &mut self.file {
            file.write_all(format!("{case}\n").as_bytes())?;
        }
        Ok(())
    }
}

/// The cases that an order wants and that have not passed yet, in the order in which the seed puts them.
fn choose(all: Vec<Case>, order: &Order, passed: &Passed) -> Vec<Case> {
    let mut lot = Lot(order.seed);
    let wanted = |case: &Case| {
        let name = case.to_string();
        order.only.iter().all(|word| name.contains(word.as_str()))
            && !order.without.iter().any(|word| name.contains(word.as_str()))
            && !passed.has(case)
    };
    let mut chosen: Vec<Case> = all.into_iter().filter(wanted).collect();
    lot.shuffle(&mut chosen);
    if !order.all_hosts {
        let mut seen = BTreeSet::new();
        chosen.retain(|case| seen.insert(kind(case)));
    }
    if let Some(points) = order.points {
        chosen.truncate(points);
    }
    chosen
}
