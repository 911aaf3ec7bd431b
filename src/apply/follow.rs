//! Follows a course, move by move: asks the hosts, and tells the course what came of it.
//!
//! What comes next is never decided here, but by [`jiji_model::transaction::course`], which is explored with every fault. Here are
//! connections, people who want to stop, and what is kept to be shown.

use std::collections::BTreeMap;

use jiji_model::name::HostName;
use jiji_model::plan::Phase;
use jiji_model::transaction::{Course, Decision, Ending, Heard, Move};

use super::drive::{Detach, Drive, Run};
use super::error::{Cause, Failure};
use super::link::HostLink;
use super::points::Points;
use crate::fleet::FleetError;

/// How following a course ended.
#[derive(Debug)]
pub(super) struct Followed {
    pub(super) ending: Ending,
    /// Why it was taken back, if it was and had begun here.
    pub(super) cause: Option<Cause>,
    /// Steps after the decision that failed.
    pub(super) left: Vec<Failure>,
    /// What could not be taken back.
    pub(super) not_undone: Vec<Failure>,
}

/// Somebody asked twice to stop, and everything was left as it was.
#[derive(Debug)]
pub(super) struct Detached {
    /// What had been decided, or was being recorded.
    pub(super) decision: Option<Decision>,
}

/// Follows `course` to its end. `points`: where a test lets this process die.
pub(super) async fn follow<L: HostLink>(
    drive: &mut Drive<'_, L>,
    mut course: Course<HostName>,
    points: &Points,
) -> Result<Followed, Detached> {
    let mut end = Followed { ending: Ending::Waiting, cause: None, left: Vec::new(), not_undone: Vec::new() };
    let mut decision = None;
    loop {
        if course.can_stop() && drive.cancel.is_requested() {
            course.stop();
        }
        let next = course.next();
        match &next {
            Move::Settle { decision: way, .. } => decision = Some(*way),
            Move::End(ending) => return Ok(Followed { ending: *ending, ..end }),
            _ => {}
        }
        let heard = one(drive, &next, points, &mut end).await;
        let Ok(heard) = heard else { return Err(Detached { decision }) };
        if course.can_stop() && drive.cancel.is_requested() {
            course.stop();
            // Who asked to stop wants to hear that it stopped, not that waits were cut short by it.
            end.cause = Some(Cause::Interrupted);
        }
        course.hear(&heard);
        let back = matches!(course.next(), Move::Settle { decision: Decision::Revert, .. });
        if let Some(cause) = end.cause.as_ref().filter(|_| back) {
            drive.watch.reverting(&cause.to_string());
        }
        pass(points, &next, &course).await;
    }
}

/// Does one move. Gives what was heard of hosts on which it was not done.
async fn one<L: HostLink>(
    drive: &mut Drive<'_, L>,
    next: &Move<HostName>,
    points: &Points,
    end: &mut Followed,
) -> Result<BTreeMap<HostName, Heard>, Detach> {
    let before = drive.hosts();
    let mut heard = BTreeMap::new();
    match next {
        Move::Begin { .. } => {
            let ends = drive.begin().await?;
            end.cause = ends.cause.map(Cause::Host);
            heard.extend(ends.refused.into_iter().map(|host| (host, Heard::Refused)));
        }
        Move::Run { phase, batch, hosts } => {
            if let (Phase::Publish, Some(number)) = (*phase, *batch)
                && !drive.batch(number, hosts).await?
            {
                return Ok(heard);
            }
            let run = drive.run(*phase, hosts).await?;
            if phase.before_decided() {
                heard = told(&run);
                end.cause = cause(run);
            } else {
                refused(drive, &run.errors);
                end.left.extend(run.failures);
            }
        }
        Move::Settle { decision, hosts } => {
            let alone = points.is("settled-one") && *decision == Decision::Commit;
            let (first, others) = hosts.split_at(if alone { hosts.len().min(1) } else { 0 });
            drive.settle(*decision, first).await?;
            if alone {
                points.pass("settled-one").await;
            }
            drive.settle(*decision, others).await?;
        }
        Move::Undo { hosts } => {
            let run = drive.undo(hosts).await?;
            heard = told(&run);
            refused(drive, &run.errors);
            end.not_undone.extend(run.failures);
        }
        Move::Conclude { decision, hosts } => {
            let alone = points.is("concluded-one");
            let (first, others) = hosts.split_at(if alone { hosts.len().min(1) } else { 0 });
            drive.conclude(*decision, first).await?;
            if alone {
                points.pass("concluded-one").await;
            }
            drive.conclude(*decision, others).await?;
        }
        Move::End(_) => {}
    }
    for host in before.into_iter().filter(|host| !drive.links.contains_key(host)) {
        heard.entry(host).or_insert(Heard::Lost);
    }
    Ok(heard)
}

fn told(run: &Run) -> BTreeMap<HostName, Heard> {
    let failed = run.failures.iter().map(|failure| (failure.host.clone(), Heard::Failed));
    let errors = run
        .errors
        .iter()
        .filter_map(|error| Some((error.host()?.clone(), if error.is_lost() { Heard::Lost } else { Heard::Refused })));
    failed.chain(errors).collect()
}

fn cause(run: Run) -> Option<Cause> {
    match run.errors.into_iter().next() {
        Some(error) => Some(Cause::Host(error)),
        None if run.failures.is_empty() => None,
        None => Some(Cause::Step(run.failures)),
    }
}

/// Hosts that refuse where they must not are as good as lost.
fn refused<L: HostLink>(drive: &mut Drive<'_, L>, errors: &[FleetError]) {
    for error in errors {
        if let Some(host) = error.host().cloned()
            && drive.links.contains_key(&host)
        {
            drive.lose(host, error.clone());
        }
    }
}

/// Passes the points that come after a move, in the order of [`super::ABORT_POINTS`].
async fn pass(points: &Points, done: &Move<HostName>, course: &Course<HostName>) {
    let next = course.next();
    let back = matches!(next, Move::Settle { decision: Decision::Revert, .. });
    let passed: &[&str] = match done {
        Move::Begin { .. } if !back => &["begun"],
        Move::Run { phase: Phase::Boot, .. } if !back => &["booted"],
        Move::Run { phase: Phase::Prepare, .. } if !back => &["prepared", "before-cutover-1"],
        Move::Run { phase: Phase::Cutover, .. } if !back => match next {
            Move::Settle { .. } | Move::Run { phase: Phase::Hold, .. } => &["cut-over"],
            _ => &["between-cutovers"],
        },
        Move::Run { phase: Phase::Withdraw, .. } => &["withdrawn"],
        Move::Run { phase: Phase::Drain, .. } => &["drained"],
        Move::Run { phase: Phase::Finalize, .. } => &["finalized"],
        Move::Settle { decision: Decision::Commit, .. } => &["settled"],
        _ => &[],
    };
    for point in passed {
        points.pass(point).await;
    }
}
