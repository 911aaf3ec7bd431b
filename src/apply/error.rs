//! How a transaction ends when it does not end well, with what a person needs to see.

use std::fmt::{self, Write as _};

use jiji_model::name::{HostName, ServiceName};
use jiji_model::plan::Phase;
use jiji_model::probe::{Probe, ProbeResult, Timeline};
use jiji_model::protocol::StepFailure;
use jiji_model::transaction::{Decision, Lease};

use super::events::span;
use crate::fleet::FleetError;

/// A step that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Where.
    pub host: HostName,
    /// For which service, if for one.
    pub service: Option<ServiceName>,
    /// In which phase.
    pub phase: Phase,
    /// The step's title; its id where the plan does not have it.
    pub title: String,
    /// Whether it was being taken back.
    pub undo: bool,
    /// What the host found.
    pub found: StepFailure,
}

/// Why a transaction did not go on.
#[derive(Debug, Clone)]
pub enum Cause {
    /// A step failed, perhaps on several hosts.
    Step(Vec<Failure>),
    /// A host refused, or was lost.
    Host(FleetError),
    /// Somebody asked to stop.
    Interrupted,
}

/// How a transaction ended when it did not end well.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The plan changes a host that there is no session with. Nothing was done.
    #[error("change `{host}`: it is not connected")]
    NotConnected {
        /// The host.
        host: HostName,
    },
    /// Somebody else is at work. Nothing was done.
    #[error("take the lease of `{host}`: {}", held(lease, *age_ms))]
    Held {
        /// The host.
        host: HostName,
        /// Who.
        lease: Box<Lease>,
        /// Milliseconds since it was taken, where the host says.
        age_ms: Option<u64>,
    },
    /// Something happened on the host since it was looked at. Nothing was done.
    #[error("change `{host}`: {what} since it was looked at")]
    Moved {
        /// The host.
        host: HostName,
        /// What, past tense.
        what: &'static str,
    },
    /// Something failed before the transaction began. Nothing was changed.
    #[error(transparent)]
    Before(#[from] FleetError),
    /// Somebody asked to stop before the transaction began. Nothing was changed.
    #[error("finish: interrupted before anything was changed")]
    Stopped,
    /// It failed, and all hosts are as they were.
    #[error("{cause}; all hosts were reverted")]
    Reverted {
        /// Why.
        cause: Cause,
    },
    /// It failed, and taking it back failed too.
    #[error("{cause}; the revert failed on {}", hosts(failures.iter().map(|failure| &failure.host)))]
    RevertFailed {
        /// Why it was to be reverted.
        cause: Cause,
        /// What could not be taken back.
        failures: Vec<Failure>,
        /// Hosts that were lost besides.
        lost: Vec<HostName>,
    },
    /// It is not known how some hosts stand; all others were settled as said.
    #[error("{}; {} in doubt", decided(*decision, cause.as_ref()), hosts(lost.iter().map(|(host, _)| host)))]
    InDoubt {
        /// Which way the others ended.
        decision: Decision,
        /// Why it was reverted, if it was.
        cause: Option<Cause>,
        /// The hosts, and how each was lost.
        lost: Vec<(HostName, FleetError)>,
    },
    /// Somebody asked twice to stop: the hosts finish the step in hand and keep their journals.
    #[error("finish: let go of {} in the middle", hosts(hosts_left.iter()))]
    Detached {
        /// The hosts with an open transaction.
        hosts_left: Vec<HostName>,
        /// Whether it was decided already.
        decision: Option<Decision>,
    },
    /// An interrupted transaction was committed on every host that answers, and hosts that do not may have taken it back: the new version
    /// serves, and the old one is kept until they are reached.
    #[error("settle transaction `{transaction}`: it was decided, and {} must be reached before anything old may go", hosts(away.iter()))]
    Waiting {
        /// Its id.
        transaction: String,
        /// The hosts that do not answer.
        away: Vec<HostName>,
    },
    /// An interrupted transaction could not be brought to its end.
    #[error("settle transaction `{transaction}`: {cause}")]
    Unsettled {
        /// Its id.
        transaction: String,
        /// Which way it is to end.
        decision: Decision,
        /// What is in the way.
        cause: Cause,
    },
}

fn held(lease: &Lease, age_ms: Option<u64>) -> String {
    match age_ms {
        Some(age) => format!("{} has held it for {}", lease.who, span(age)),
        None => format!("{} holds it", lease.who),
    }
}

fn hosts<'a>(hosts: impl Iterator<Item = &'a HostName>) -> String {
    let mut names: Vec<_> = hosts.map(|host| format!("`{host}`")).collect();
    names.dedup();
    names.join(", ")
}

fn decided(decision: Decision, cause: Option<&Cause>) -> String {
    match (decision, cause) {
        (Decision::Commit, _) => "finish on every host: the new version was decided".to_owned(),
        (Decision::Revert, Some(cause)) => format!("{cause}; reverted where possible"),
        (Decision::Revert, None) => "finish on every host: reverted where possible".to_owned(),
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Step(failures) => match failures.first() {
                Some(failure) => {
                    write!(f, "{} on `{}`: {}", failure.title, failure.host, failure.found.cause)?;
                    match failures.len() - 1 {
                        0 => Ok(()),
                        1 => write!(f, ", and 1 step more"),
                        more => write!(f, ", and {more} steps more"),
                    }
                }
                None => f.write_str("run a step"),
            },
            Self::Host(error) => error.fmt(f),
            Self::Interrupted => f.write_str("finish: somebody asked to stop"),
        }
    }
}

impl Cause {
    /// Whether a candidate was not healthy, and not something else in the way.
    pub fn is_unhealthy(&self) -> bool {
        match self {
            Self::Step(failures) => failures.iter().any(|failure| failure.found.timeline.is_some()),
            Self::Host(_) | Self::Interrupted => false,
        }
    }

    fn failures(&self) -> &[Failure] {
        match self {
            Self::Step(failures) => failures,
            Self::Host(_) | Self::Interrupted => &[],
        }
    }

    fn exit_code(&self) -> u8 {
        match self {
            _ if self.is_unhealthy() => 7,
            Self::Interrupted => 14,
            Self::Step(_) | Self::Host(_) => 16,
        }
    }
}

impl ApplyError {
    /// The exit code that a command ends with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotConnected { .. } => 6,
            Self::Held { .. } => 10,
            Self::Moved { .. } => 15,
            Self::Before(error) => error.exit_code(),
            Self::Stopped => 14,
            Self::Reverted { cause } => cause.exit_code(),
            Self::RevertFailed { .. } => 8,
            Self::InDoubt { .. } | Self::Detached { .. } | Self::Waiting { .. } => 9,
            Self::Unsettled { cause, .. } => match cause {
                Cause::Step(_) => 8,
                Cause::Host(_) | Cause::Interrupted => 9,
            },
        }
    }

    /// Whether somebody else was there first, so that the same may go well later.
    pub fn is_taken(&self) -> bool {
        matches!(self, Self::Held { .. } | Self::Moved { .. })
    }

    /// Steps that failed, first those for which it was reverted, then those that could not be taken back.
    pub fn failures(&self) -> Vec<&Failure> {
        match self {
            Self::Reverted { cause } | Self::InDoubt { cause: Some(cause), .. } | Self::Unsettled { cause, .. } => {
                cause.failures().iter().collect()
            }
            Self::RevertFailed { cause, failures, .. } => cause.failures().iter().chain(failures).collect(),
            _ => Vec::new(),
        }
    }

    /// What was found where steps failed: status codes, the beginning of bodies, ends of logs. Several lines, without a line break at
    /// the end; empty where there is nothing.
    pub fn evidence(&self) -> String {
        let mut text = String::new();
        for failure in self.failures() {
            failure.describe(&mut text);
        }
        if let Self::InDoubt { lost, .. } = self {
            for (host, error) in lost {
                let _ = writeln!(text, "{host}: {error}");
            }
        }
        text.truncate(text.trim_end().len());
        text
    }

    /// What a person can do, one line each, with the next command to type.
    pub fn hints(&self) -> Vec<String> {
        let one = |text: &str| vec![text.to_owned()];
        match self {
            Self::NotConnected { .. } => Vec::new(),
            Self::Held { .. } => one(
                "`--wait-lock 10m` waits for it; `jiji status` shows who is at work. A run that is gone loses it by itself",
            ),
            Self::Moved { .. } => one("somebody else changed it; look with `jiji plan` and ship again"),
            Self::Before(error) => error.hint().into_iter().collect(),
            Self::Stopped => Vec::new(),
            Self::Reverted { cause } => match cause {
                Cause::Interrupted => one("the old version serves; `jiji ship` starts anew"),
                Cause::Host(error) => error.hint().into_iter().collect(),
                Cause::Step(_) => one("the old version serves; mend the cause and run `jiji ship` again"),
            },
            Self::RevertFailed { .. } => {
                one("`jiji status` shows what each host runs; `jiji abort` takes up the revert where it failed")
            }
            Self::InDoubt { .. } => one("`jiji abort` settles what is in doubt as soon as those hosts answer"),
            Self::Waiting { .. } => vec![
                "the new version serves, and the old one is kept: run `jiji abort` once the missing hosts answer"
                    .to_owned(),
                "a host that is gone for good is not waited for once it is taken out of `deploy.yml`".to_owned(),
            ],
            Self::Detached { .. } => one("`jiji abort` settles what was left open, and so does the next `jiji ship`"),
            Self::Unsettled { .. } => one("mend the cause and run `jiji abort`; `jiji status` shows what is open"),
        }
    }
}

impl Failure {
    fn describe(&self, text: &mut String) {
        let undo = if self.undo { " (taking back)" } else { "" };
        let _ = write!(text, "{}", self.host);
        if let Some(service) = &self.service {
            let _ = write!(text, " {service}");
        }
        match &self.found.timeline {
            // It says the cause, and more.
            Some(timeline) => {
                let _ = writeln!(text, ": {}{undo}", self.title);
                describe_timeline(timeline, text);
            }
            None => {
                let _ = writeln!(text, ": {}{undo}: {}", self.title, self.found.cause);
            }
        }
        for evidence in &self.found.evidence {
            let state = evidence.state.as_deref().unwrap_or("gone");
            let _ = write!(text, "  container {} is {state}", evidence.container);
            if let Some(exit) = evidence.exit {
                let _ = write!(text, ", exit code {exit}");
            }
            if evidence.oom {
                text.push_str(", ended by the kernel for memory");
            }
            text.push('\n');
            let log = evidence.log.trim_end();
            if !log.is_empty() {
                text.push_str("  its log ends with\n");
                for line in log.lines() {
                    let _ = writeln!(text, "    {line}");
                }
            }
        }
    }
}

fn describe_timeline(timeline: &Timeline, text: &mut String) {
    let seconds = f64::from(timeline.took_ms) / 1000.0;
    let probes = match timeline.made {
        1 => "1 probe".to_owned(),
        made => format!("{made} probes"),
    };
    let _ = writeln!(text, "  {probes} in {seconds:.1}s");
    // The same answer again and again says no more than once.
    let mut last: Option<&ProbeResult> = None;
    for Probe { at_ms, result, .. } in &timeline.probes {
        if last == Some(result) {
            continue;
        }
        last = Some(result);
        let at = f64::from(*at_ms) / 1000.0;
        let _ = writeln!(text, "  at {at:.1}s {}", describe_result(result));
    }
}

fn describe_result(result: &ProbeResult) -> String {
    match result {
        ProbeResult::Http { status, body, location } => {
            let mut text = format!("status {status}");
            if let Some(location) = location {
                let _ = write!(text, " to {location}");
            }
            let body = one_line(body);
            if !body.is_empty() {
                let _ = write!(text, ", body `{body}`");
            }
            text
        }
        ProbeResult::Connected => "connected".to_owned(),
        ProbeResult::Exit { code, output } if output.trim().is_empty() => format!("exit code {code}"),
        ProbeResult::Exit { code, output } => format!("exit code {code}, output `{}`", one_line(output)),
        ProbeResult::Refused => "connection refused: nothing listens on the port".to_owned(),
        ProbeResult::TimedOut => "no answer in time".to_owned(),
        ProbeResult::Broken { cause } => format!("connection broken: {cause}"),
        ProbeResult::NotRunning { exit, oom } => {
            let mut text = "the container does not run".to_owned();
            if let Some(exit) = exit {
                let _ = write!(text, ", exit code {exit}");
            }
            if *oom {
                text.push_str(", ended by the kernel for memory");
            }
            text
        }
    }
}

/// The beginning of a text on one line.
fn one_line(text: &str) -> String {
    const LONGEST: usize = 160;
    let words: Vec<_> = text.split_whitespace().collect();
    let line = words.join(" ");
    if line.chars().count() <= LONGEST {
        return line;
    }
    let beginning: String = line.chars().take(LONGEST).collect();
    format!("{beginning}…")
}
