//! How a transaction ends when it does not end well, with what a person needs to see.

use std::fmt;

use jiji_model::name::{HostName, ServiceName};
use jiji_model::plan::Phase;
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

    /// The hosts that were lost and how, one line each, without a line break at the end; empty where none was. What was found where
    /// steps failed is in [`Self::failures`].
    pub fn lost(&self) -> String {
        match self {
            Self::InDoubt { lost, .. } => {
                lost.iter().map(|(host, error)| format!("{host}: {error}")).collect::<Vec<_>>().join("\n")
            }
            _ => String::new(),
        }
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
