//! Drives a fleet through a plan as one transaction.
//!
//! Every host is prepared before any host is cut over; all are cut over before anything is decided; nothing old is stopped before that.
//! A failure before the decision takes everything back on all hosts, a failure after it is carried forward. The hosts keep the journals;
//! this room remembers nothing, so a run that dies anywhere is settled by the next one from what the hosts say ([`settle_open`]). The
//! rules themselves are [`jiji_model::transaction`]'s.
//!
//! What to do is in the plan ([`crate::deploy`]); how it is done on a host is `jiji-host`'s; how a host is reached is
//! [`crate::fleet`]'s, seen here as a [`HostLink`].

mod cancel;
mod drive;
mod error;
mod events;
mod fan;
mod follow;
mod lease;
mod link;
mod points;
mod settle;
#[cfg(test)]
mod tests;
mod transaction;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiji_model::name::HostName;
use jiji_model::plan::{Phase, Plan};
use jiji_model::transaction::{Decision, HostRecords};

pub use cancel::Cancel;
pub use error::{ApplyError, Cause, Failure};
pub use lease::wait_until_free;
pub use link::HostLink;
pub use settle::{Open, Settled, open, settle_open};
pub use transaction::apply;

use points::Points;

/// Places at which `abort_at` lets the operator die, in the order in which a transaction passes them.
pub const ABORT_POINTS: [&str; 13] = [
    "leased",
    "begun",
    "booted",
    "prepared",
    "before-cutover-1",
    "between-cutovers",
    "cut-over",
    "settled-one",
    "settled",
    "withdrawn",
    "drained",
    "finalized",
    "concluded-one",
];

/// Who runs a transaction, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// A random id of this run of jiji; transactions get theirs from it.
    pub run: String,
    /// `user@machine`, for people.
    pub who: String,
    /// What was typed, for people: `ship`, `rollback`.
    pub command: String,
    /// Seconds since 1970 by this machine's clock, for people.
    pub at_s: u64,
    /// Milliseconds that a lease lasts without a sign of life: how long a run that was killed keeps others out.
    pub lease_ms: u64,
    /// The project's hosts, where they are known: a host of an older transaction that is none of them is not waited for.
    pub project: Option<BTreeSet<HostName>>,
    /// How long to wait for somebody else who is at work.
    pub wait_lock: Duration,
    /// Whether only that is settled which others brought to its end already: hosts that were away follow them, and nothing is chosen.
    pub follow_only: bool,
    points: Points,
}

impl Options {
    /// With a lease of 20 seconds, and without waiting for anybody.
    pub fn new(run: impl Into<String>, who: impl Into<String>, command: impl Into<String>, at_s: u64) -> Self {
        Self {
            run: run.into(),
            who: who.into(),
            command: command.into(),
            at_s,
            lease_ms: 20_000,
            project: None,
            wait_lock: Duration::ZERO,
            follow_only: false,
            points: Points::default(),
        }
    }

    /// The same, but dying at one of [`ABORT_POINTS`].
    #[cfg(any(test, feature = "abort-points"))]
    #[must_use]
    pub fn abort_at(mut self, point: Option<String>) -> Self {
        self.points = Points::at(point);
        self
    }
}

/// 128 random bits as hexadecimal digits, for [`Options::run`].
///
/// # Errors
/// What the system says where it has no randomness.
pub fn random_id() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A transaction that was decided and concluded on every host.
#[derive(Debug, Clone, Default)]
pub struct Applied {
    /// The number of the release it made; 0 where the plan was empty.
    pub number: u64,
    /// Its id.
    pub transaction: String,
    /// Bytes of blobs that were sent, by host.
    pub sent: BTreeMap<HostName, u64>,
    /// Steps after the decision that failed: something old is left, and the next ship takes it up again.
    pub left: Vec<Failure>,
}

/// What a whole transaction is about, for those who show it.
fn phase_text(phase: Phase) -> &'static str {
    match phase {
        Phase::Boot => "preparing the host",
        Phase::Prepare => "starting candidates",
        Phase::Publish => "publishing",
        Phase::Cutover => "moving traffic",
        Phase::Hold => "watching the new version",
        Phase::Withdraw => "withdrawing old routes",
        Phase::Drain => "stopping old containers",
        Phase::Finalize => "removing old containers and images",
    }
}

/// What each host has recorded.
pub type Seen = BTreeMap<HostName, HostRecords>;

fn result_word(decision: Decision) -> &'static str {
    match decision {
        Decision::Commit => "committed",
        Decision::Revert => "reverted",
    }
}

/// The hosts that a plan changes, with their links.
fn participants<'a, L: HostLink>(
    plan: &Plan,
    links: &'a BTreeMap<HostName, L>,
) -> Result<BTreeMap<HostName, &'a L>, ApplyError> {
    let hosts = plan.hosts().into_iter();
    hosts
        .map(|host| match links.get(&host) {
            Some(link) => Ok((host, link)),
            None => Err(ApplyError::NotConnected { host }),
        })
        .collect()
}
