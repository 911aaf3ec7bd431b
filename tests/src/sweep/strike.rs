//! One case: a ship, what goes wrong in it, and what brings the fleet to rest again.

use std::time::{Duration, Instant};

use jiji_lab::command::{command, run};
use jiji_lab::{Engine, Host};

use super::point::{Case, Fault, Lot, Points, Scenario};
use super::{ABORTED, DECIDED, Summary, Sweep, check};
use crate::{Outcome, Run, Running};

/// How long a ship may take to its point.
const REACH: Duration = Duration::from_secs(60);

/// How long an engine stays frozen.
const FROZEN: Duration = Duration::from_secs(2);

/// SIGKILL.
const KILLED: i32 = 9;

/// The programs that engines consist of, as `/proc/PID/comm` names them.
pub(super) const ENGINES: [&str; 3] = ["dockerd", "containerd", "podman"];

/// Exit codes that a run may have in which something went wrong around it: done, a host not reached, unhealthy and reverted, revert
/// failed, in doubt, lease held, failed and reverted.
const HONEST: [i32; 7] = [0, 6, 7, 8, 9, 10, 16];

/// Exit codes which say that all hosts agree.
const AGREE: [i32; 3] = [0, 7, 16];

impl Sweep<'_> {
    /// Tries a case. False where its point was not reached.
    pub(super) fn strike(&self, case: &Case, lot: &mut Lot, summary: &mut Summary) -> Outcome<bool> {
        if let Some(at) = case.scenario.left_at() {
            self.leave_open(at)?;
        }
        let points = self.points()?;
        let version = self.fresh()?;
        if case.scenario == Scenario::Revert {
            self.sicken(self.hosts.len() - 1)?;
        }
        let reached = match case.host {
            None => {
                let died = Run::of(self.project.command(&["ship", "--json"])?.env("JIJI_ABORT_AT", &case.label))?;
                died.signal() == Some(ABORTED)
            }
            Some(place) => self.strike_at_host(case, place, &points[place], summary)?,
        };
        self.cure()?;
        self.settle(case, &version, reached, lot)?;
        Ok(reached)
    }

    fn strike_at_host(&self, case: &Case, place: usize, points: &Points, summary: &mut Summary) -> Outcome<bool> {
        let host = &self.hosts[place];
        if case.fault == Fault::Late {
            self.sicken(place)?;
        }
        points.arm(if case.fault == Fault::Die { "die" } else { "hold" }, &case.label)?;
        let mut ship = self.project.start(&["ship"])?;
        if !points.wait(REACH, || ship.is_over()) {
            points.clear()?;
            ship.end()?;
            return Ok(false);
        }
        let Some(run) = self.go_wrong(case.fault, host, points, ship)? else { return Ok(true) };
        let Some(code) = run.code() else { return Err(format!("it was killed by itself: {run}").into()) };
        *summary.codes.entry(code).or_default() += 1;
        if !HONEST.contains(&code) {
            return Err(format!("exit code {code} says something else than what happened: {run}").into());
        }
        if AGREE.contains(&code) && case.fault != Fault::Off {
            check::settled(self.site, &self.hosts, &self.name, patience(case.fault))
                .map_err(|error| format!("exit code {code}, and hosts do not agree: {error}\n{run}"))?;
        }
        Ok(true)
    }

    /// Makes it go wrong, and gives the run if nobody killed it.
    fn go_wrong(&self, fault: Fault, host: &Host, points: &Points, ship: Running) -> Outcome<Option<Run>> {
        match fault {
            Fault::Die | Fault::Abort => Ok(Some(ship.end()?)),
            Fault::Kill | Fault::Forget | Fault::Late => {
                let run = ship.kill()?;
                points.go()?;
                if fault == Fault::Forget {
                    self.forget()?;
                }
                if fault == Fault::Late {
                    std::thread::sleep(Duration::from_secs(1));
                }
                Ok(not_killed(run))
            }
            Fault::Cut => {
                cut(host)?;
                points.go()?;
                Ok(Some(ship.end()?))
            }
            Fault::Silence => {
                silence(host)?;
                points.go()?;
                let run = ship.end();
                speak_again(host)?;
                Ok(Some(run?))
            }
            Fault::Off => {
                host.kill()?;
                let run = ship.end();
                host.boot()?;
                Ok(Some(run?))
            }
            Fault::Freeze => {
                let frozen = Frozen::of(host)?;
                points.go()?;
                frozen.last(FROZEN)?;
                Ok(Some(ship.end()?))
            }
            Fault::FreezeKill => {
                let frozen = Frozen::of(host)?;
                points.go()?;
                frozen.last(FROZEN / 4)?;
                let frozen = Frozen::of(host)?;
                let run = ship.kill()?;
                frozen.last(FROZEN)?;
                Ok(not_killed(run))
            }
        }
    }

    /// Lets the next run settle what is left, and checks.
    fn settle(&self, case: &Case, version: &str, reached: bool, lot: &mut Lot) -> Outcome {
        let by_abort = self.can_abort && lot.draw().is_multiple_of(2);
        let args: &[&str] = if by_abort { &["abort"] } else { &["ship"] };
        let begun = Instant::now();
        let run = loop {
            let run = self.project.run(args)?;
            // The session that was cut may still be at work: it ends by itself and nobody needs to do anything.
            if run.code() == Some(10) && begun.elapsed() < Duration::from_secs(30) {
                std::thread::sleep(Duration::from_millis(500));
                continue;
            }
            break run.expect(0)?;
        };
        if case.host.is_none() && reached && !by_abort {
            way(&run, &case.label)?;
        }
        let answer = check::settled(self.site, &self.hosts, &self.name, patience(case.fault))
            .map_err(|error| format!("{error}\n{run}"))?;
        let due = format!("hello from {version}");
        if !by_abort && answer != due {
            return Err(format!("`{answer}` instead of `{due}` after {run}").into());
        }
        Ok(())
    }
}

/// A run that had ended before it was to be killed: it counts like one that nobody wanted to kill.
fn not_killed(run: Run) -> Option<Run> {
    (run.signal() != Some(KILLED)).then_some(run)
}

/// How long what ends by itself may take.
fn patience(fault: Fault) -> Duration {
    Duration::from_secs(if fault == Fault::Silence { 90 } else { 15 })
}

/// Which way a run was settled that died at a point of the operator's: forward from the first record of the decision on.
fn way(run: &Run, label: &str) -> Outcome {
    const AFTER: [&str; 6] = [DECIDED, "settled", "withdrawn", "drained", "finalized", "concluded-one"];
    let due: &[&str] = match label {
        "leased" => &[],
        label if AFTER.contains(&label) => &["commit"],
        _ => &["revert"],
    };
    let found: Vec<_> =
        run.events_of("apply.settling").filter_map(|event| event["data"]["decision"].as_str()).collect();
    if found == due { Ok(()) } else { Err(format!("settled {found:?} instead of {due:?}: {run}").into()) }
}

/// Ends the host's ssh sessions, and not the sshd that listens.
fn cut(host: &Host) -> Outcome {
    for pid in host.processes("sshd")? {
        let argv = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if argv.starts_with(b"sshd: ") && !argv.starts_with(b"sshd: /") {
            // It may have ended with the one before it.
            drop(run(&mut command("kill", ["-KILL", &pid.to_string()])));
        }
    }
    Ok(())
}

/// The rules that let nothing pass to and from sshd.
const RULES: [[&str; 7]; 2] =
    [["INPUT", "-p", "tcp", "--dport", "22", "-j", "DROP"], ["OUTPUT", "-p", "tcp", "--sport", "22", "-j", "DROP"]];

fn silence(host: &Host) -> Outcome {
    for rule in RULES {
        host.exec(&[&["iptables", "-I"], rule.as_slice()].concat())?;
    }
    Ok(())
}

/// Takes those rules away, if they are there.
pub(super) fn speak_again(host: &Host) -> Outcome {
    for rule in RULES {
        while host.output(&[&["iptables", "-D"], rule.as_slice()].concat())?.status.success() {}
    }
    Ok(())
}

/// A host whose engine is stopped in the middle of what it does. Podman has no daemon: every podman that runs, or starts meanwhile, is.
struct Frozen<'a> {
    host: &'a Host,
}

impl<'a> Frozen<'a> {
    fn of(host: &'a Host) -> Outcome<Self> {
        if host.engine == Engine::Docker {
            host.freeze("dockerd")?;
            host.freeze("containerd")?;
        }
        Ok(Self { host })
    }

    /// Stays frozen so long, and goes on.
    fn last(self, time: Duration) -> Outcome {
        let begun = Instant::now();
        while begun.elapsed() < time {
            if self.host.engine == Engine::Podman {
                self.host.freeze("podman")?;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        for program in ENGINES {
            self.host.thaw(program)?;
        }
        Ok(())
    }
}
