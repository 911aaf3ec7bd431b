//! What a host lets an operator do, and what it answers instead.
//!
//! Everything here is decided from the journal, the lease and the request alone, so that a run of jiji that lost its mind can do no more
//! than the records allow. Whether the lease is the asker's comes first and is [`super::lease::guard`]'s; what an accepted request does is
//! `jiji-host`'s. Why an operator asks is [`super::course`]'s.

use crate::plan::{Phase, Repeat, Step};
use crate::protocol::RefusalKind;

use super::{Begin, Decision, Outcome, Release, Settlement, StepState, Transaction};

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The kind, for programs.
    pub why: RefusalKind,
    /// For people: a fragment that fits after "failed to".
    pub message: String,
}

/// A request that is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// It is to be written.
    New,
    /// It is so already: it is asked again, because the answer was lost.
    Already,
}

fn out_of_order<T>(message: impl Into<String>) -> Result<T, Refused> {
    Err(Refused { why: RefusalKind::OutOfOrder, message: message.into() })
}

/// The transaction that is open here.
///
/// # Errors
/// [`RefusalKind::NoTransaction`] where none is.
pub fn open(journal: Option<&Transaction>) -> Result<&Transaction, Refused> {
    match journal {
        Some(transaction) if transaction.is_open() => Ok(transaction),
        _ => Err(Refused {
            why: RefusalKind::NoTransaction,
            message: "find the transaction: none is open here".to_owned(),
        }),
    }
}

/// Whether a transaction may begin under a lease with the number `lease`.
///
/// # Errors
/// [`Refused`]: another one is open, it is not the lease's, or it is of a newer jiji.
pub fn begin(journal: Option<&Transaction>, begin: &Begin, lease: u64) -> Result<Accepted, Refused> {
    if begin.version > Begin::VERSION {
        let message = "begin: the journal's format is newer than this jiji's".to_owned();
        return Err(Refused { why: RefusalKind::NewerFormat, message });
    }
    if begin.fencing != lease {
        return out_of_order(format!("begin: number {} is not the lease's, {lease}", begin.fencing));
    }
    match journal {
        Some(last) if last.begin == *begin => Ok(Accepted::Already),
        Some(open) if open.is_open() => {
            let message = format!("begin: transaction `{}` of {} is open here", open.begin.transaction, open.begin.who);
            Err(Refused { why: RefusalKind::OpenTransaction, message })
        }
        _ => Ok(Accepted::New),
    }
}

/// Whether a settlement may be recorded under a lease with the number `lease`.
///
/// A commit is recorded only where everything before the decision was done, so a commit on every host means that every host serves the
/// new version. A revert is recorded only where nothing was done that cannot be taken back.
///
/// # Errors
/// [`Refused`].
pub fn settle(open: &Transaction, settlement: Settlement, lease: u64) -> Result<Accepted, Refused> {
    let begun = open.begin.fencing;
    if !(begun..=lease).contains(&settlement.fencing) {
        return out_of_order(format!(
            "settle: number {} is not between the transaction's, {begun}, and the lease's, {lease}",
            settlement.fencing
        ));
    }
    if open.settlement == Some(settlement) {
        return Ok(Accepted::Already);
    }
    if let Some(earlier) = open.settlement {
        if earlier.fencing > settlement.fencing {
            return out_of_order(format!("settle: it is settled under the higher number {}", earlier.fencing));
        }
        if earlier.fencing == settlement.fencing {
            return out_of_order("settle: it is settled the other way under this number");
        }
    }
    match settlement.decision {
        Decision::Commit if !open.is_cut_over() => out_of_order("settle: not all was done that comes before a commit"),
        Decision::Revert if open.went_on() => out_of_order("settle: what followed the commit cannot be taken back"),
        _ => Ok(Accepted::New),
    }
}

/// The steps of `phase` that are to be run, in order.
///
/// # Errors
/// [`Refused`]: what comes before has not ended, or it was decided otherwise.
pub fn run(open: &Transaction, phase: Phase) -> Result<Vec<&Step>, Refused> {
    match open.settlement.map(|settlement| settlement.decision) {
        Some(Decision::Revert) => return out_of_order(format!("run {phase}: it is settled to revert")),
        None if !phase.before_decided() => return out_of_order(format!("run {phase}: nothing is decided yet")),
        _ => {}
    }
    let mut earlier = Phase::ALL.into_iter().filter(|earlier| earlier.before_decided() && *earlier < phase);
    match earlier.find(|earlier| !open.to_finish(*earlier).is_empty()) {
        Some(earlier) => out_of_order(format!("run {phase}: {earlier} has not ended")),
        None => Ok(open.to_finish(phase)),
    }
}

/// Why a step cannot be run now, if something is in its way.
pub fn in_the_way(open: &Transaction, step: &Step) -> Option<String> {
    let pairs = || open.begin.steps.iter().zip(&open.states);
    let unknown = pairs().any(|(one, state)| one.id == step.id && *state == StepState::Unknown);
    if unknown && step.repeat == Repeat::AtMostOnce {
        return Some("run it again: how it ended is not known, and it may run only once".to_owned());
    }
    let done = |state: &StepState| matches!(state, StepState::Ended(outcome) if outcome.is_ok());
    let before = pairs().find(|(one, state)| step.after.contains(&one.id) && !done(state));
    before.map(|(one, _)| format!("begin: `{}`, which comes before, has not ended well", one.title))
}

/// The steps to take back, the last first. Before the first of them [`Transaction::quiet_ms`] has to pass.
///
/// # Errors
/// [`Refused`] where it is not settled to revert.
pub fn undo(open: &Transaction) -> Result<Vec<&Step>, Refused> {
    match open.settlement.map(|settlement| settlement.decision) {
        Some(Decision::Revert) => Ok(open.to_undo()),
        _ => out_of_order("take back: it is not settled to revert"),
    }
}

/// Why a step must not be taken back now, if something is in its way: what was built on it and could not be taken back. A candidate that
/// requests still go to is not removed.
pub fn undo_in_the_way(open: &Transaction, step: &Step) -> Option<String> {
    let failed = |state: &StepState| matches!(state, StepState::Undone(outcome) if !outcome.is_ok());
    let pairs = open.begin.steps.iter().zip(&open.states);
    let mut later = pairs.filter(|(later, state)| later.phase > step.phase && failed(state));
    later.next().map(|(later, _)| format!("take back: `{}`, which came after, is not taken back", later.title))
}

/// Whether `id` may be concluded with this release, or without one.
///
/// # Errors
/// [`Refused`]: it is not settled, something is left to take back, or the release does not go with how it was settled.
pub fn conclude(journal: Option<&Transaction>, id: &str, release: Option<&Release>) -> Result<Accepted, Refused> {
    if journal.is_some_and(|last| last.concluded && last.begin.transaction == id) {
        return Ok(Accepted::Already);
    }
    let open = open(journal)?;
    match (open.settlement.map(|settlement| settlement.decision), release) {
        (None, _) => out_of_order("conclude: it is not settled"),
        (Some(Decision::Revert), Some(_)) => out_of_order("conclude: what was taken back is no release"),
        (Some(Decision::Revert), None) if !open.to_undo().is_empty() => {
            out_of_order("conclude: not all was taken back")
        }
        (Some(Decision::Commit), None) => out_of_order("conclude: what was committed is a release"),
        (Some(Decision::Commit), Some(release))
            if release.version > Release::VERSION || release.transaction != open.begin.transaction =>
        {
            out_of_order("conclude: the release is of another transaction or a newer jiji")
        }
        _ => Ok(Accepted::New),
    }
}

impl Transaction {
    /// Whether everything before the decision was done here.
    pub fn is_cut_over(&self) -> bool {
        Phase::ALL.into_iter().filter(|phase| phase.before_decided()).all(|phase| self.to_finish(phase).is_empty())
    }

    /// Whether anything was begun here that cannot be taken back, which nobody does before every host recorded the commit.
    pub fn went_on(&self) -> bool {
        let pairs = self.begin.steps.iter().zip(&self.states);
        let committed = self.settlement.is_some_and(|settlement| settlement.decision == Decision::Commit);
        committed && self.concluded
            || pairs.into_iter().any(|(step, state)| !step.phase.before_decided() && *state != StepState::Pending)
    }

    /// The longest quiet time of steps whose effect may still come, in milliseconds: how long to wait before anything is taken back.
    /// Those are the steps whose end is not known, and those that failed: one that ran out of time is not stopped where it takes effect.
    pub fn quiet_ms(&self) -> u32 {
        let late = |state: &StepState| match state {
            StepState::Unknown => true,
            StepState::Ended(outcome) | StepState::Undone(outcome) => matches!(outcome, Outcome::Failed { .. }),
            StepState::Pending => false,
        };
        let pairs = self.begin.steps.iter().zip(&self.states);
        pairs.filter(|(_, state)| late(state)).map(|(step, _)| step.quiet_ms).max().unwrap_or(0)
    }
}
