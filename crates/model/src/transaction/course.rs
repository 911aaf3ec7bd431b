//! What an operator does next, after each answer, failure, loss or wish to stop.
//!
//! A [`Course`] is one transaction as the run of jiji sees it that drives it: forward from its beginning, or to its end after somebody else
//! left it open. It tells the next [`Move`], hears what came of it on each host, and knows nothing of connections, time or people: those
//! are `apply`'s, which follows it step by step. What a host lets it do is [`super::accept`]'s, which way it settles [`super::evidence`]'s.
//!
//! Three promises, which the explorer of `tests/explore` checks:
//! - every host is prepared before any is cut over, and all are before a commit is recorded on any;
//! - from the first attempt to record a commit on, this run takes nothing back;
//! - nothing that cannot be taken back is asked for before every host has recorded the commit.

use std::collections::BTreeMap;

use crate::plan::Phase;

use super::Decision;

/// What came of a move on one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Heard {
    /// It was done.
    Done,
    /// A step failed.
    Failed,
    /// The host refused, and nothing was done.
    Refused,
    /// It is not known: the host does not answer, or could not write it down.
    Lost,
}

/// What comes next.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Move<H> {
    /// Begin on these hosts.
    Begin {
        /// The hosts, all at once.
        hosts: Vec<H>,
    },
    /// Run what is left of a phase.
    Run {
        /// The phase.
        phase: Phase,
        /// Which batch it is, from 0, where hosts are cut over one batch after the other.
        batch: Option<usize>,
        /// The hosts, all at once.
        hosts: Vec<H>,
    },
    /// Record a settlement.
    Settle {
        /// Which way.
        decision: Decision,
        /// The hosts, all at once.
        hosts: Vec<H>,
    },
    /// Take back what was done.
    Undo {
        /// The hosts, all at once.
        hosts: Vec<H>,
    },
    /// Close the journals.
    Conclude {
        /// Which way it was settled.
        decision: Decision,
        /// The hosts, all at once.
        hosts: Vec<H>,
    },
    /// Nothing more is to be done but to give the leases back.
    End(Ending),
}

/// How a run of a transaction ends. Hosts that were lost on the way are in doubt in every case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ending {
    /// It was settled this way and concluded on every host that still answers.
    Concluded(Decision),
    /// It was committed, and it is not known whether every host recorded it: those that answer serve the new version and keep the old.
    Waiting,
    /// It was settled to revert, and something could not be taken back: the journals there stay open.
    NotTakenBack,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Stage {
    Begin,
    Run(Phase),
    Batch(usize, Phase),
    Settle(Decision),
    /// A phase after the decision.
    Further(Phase),
    Undo,
    Conclude(Decision),
    End(Ending),
}

/// How a host stands in a course.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Standing {
    /// It answers.
    Here,
    /// It answers, and something could not be taken back there.
    Marred,
    /// It does not, or did not do what it had to: how it stands is not known until it is reached again.
    Lost,
    /// It refused to begin.
    Never,
}

/// One transaction as its operator sees it. `H` names a host.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Course<H> {
    hosts: BTreeMap<H, Standing>,
    batches: Vec<Vec<H>>,
    /// Whether candidates are watched once all hosts are cut over.
    watched: bool,
    stage: Stage,
    /// Whether every host is known to have recorded the commit.
    known: bool,
    stopped: bool,
}

impl<H: Ord + Clone> Course<H> {
    /// A transaction from its beginning. Every host is in one batch; the batches are cut over one after the other.
    pub fn begin(batches: Vec<Vec<H>>) -> Self {
        let hosts = batches.iter().flatten().map(|host| (host.clone(), Standing::Here)).collect();
        Self { hosts, batches, watched: false, stage: Stage::Begin, known: false, stopped: false }
    }

    /// The same, but what serves once all hosts are cut over is watched for a while before it is decided.
    #[must_use]
    pub fn watched(self) -> Self {
        Self { watched: true, ..self }
    }

    /// A transaction that somebody left open on these hosts, to its end. `known`: every host recorded the commit already.
    pub fn settle(hosts: impl IntoIterator<Item = H>, decision: Decision, known: bool) -> Self {
        let hosts = hosts.into_iter().map(|host| (host, Standing::Here)).collect();
        Self { hosts, batches: Vec::new(), watched: false, stage: Stage::Settle(decision), known, stopped: false }
    }

    /// The hosts that answer.
    pub fn hosts(&self) -> Vec<H> {
        let here = self.hosts.iter().filter(|(_, standing)| matches!(standing, Standing::Here | Standing::Marred));
        here.map(|(host, _)| host.clone()).collect()
    }

    /// The hosts that are in doubt.
    pub fn lost(&self) -> Vec<H> {
        let lost = self.hosts.iter().filter(|(_, standing)| **standing == Standing::Lost);
        lost.map(|(host, _)| host.clone()).collect()
    }

    /// What comes next. The same until [`Self::hear`] is called.
    pub fn next(&self) -> Move<H> {
        let hosts = self.hosts();
        match self.stage {
            Stage::Begin => Move::Begin { hosts },
            Stage::Run(phase) | Stage::Further(phase) => Move::Run { phase, batch: None, hosts },
            Stage::Batch(number, phase) => {
                Move::Run { phase, batch: Some(number), hosts: self.batches[number].clone() }
            }
            Stage::Settle(decision) => Move::Settle { decision, hosts },
            Stage::Undo => Move::Undo { hosts },
            Stage::Conclude(decision) => {
                let clean = self.hosts.iter().filter(|(_, standing)| **standing == Standing::Here);
                Move::Conclude { decision, hosts: clean.map(|(host, _)| host.clone()).collect() }
            }
            Stage::End(ending) => Move::End(ending),
        }
    }

    /// Somebody wants it to stop: before the decision it is taken back, after it this means nothing.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    /// Whether a wish to stop is still in time.
    pub fn can_stop(&self) -> bool {
        matches!(self.stage, Stage::Begin | Stage::Run(_) | Stage::Batch(..))
    }

    /// Takes in what came of the move that [`Self::next`] told, on each host that it was for. A host that is left out did it.
    pub fn hear(&mut self, heard: &BTreeMap<H, Heard>) {
        let all_done = heard.values().all(|heard| *heard == Heard::Done);
        for (host, heard) in heard {
            let standing = match (self.stage, heard) {
                (_, Heard::Done) => continue,
                (Stage::Begin, Heard::Refused) => Standing::Never,
                // A step that failed is taken back, or left for the next run.
                (Stage::Undo, Heard::Failed) => Standing::Marred,
                (Stage::Run(_) | Stage::Batch(..), Heard::Failed | Heard::Refused) => continue,
                (Stage::Further(_), Heard::Failed) => continue,
                _ => Standing::Lost,
            };
            self.hosts.insert(host.clone(), standing);
        }
        self.stage = self.after(all_done);
    }

    fn after(&mut self, all_done: bool) -> Stage {
        let back = Stage::Settle(Decision::Revert);
        match self.stage {
            Stage::Begin | Stage::Run(_) | Stage::Batch(..) if !all_done || self.stopped => back,
            Stage::Begin => Stage::Run(Phase::Boot),
            Stage::Run(Phase::Boot) => Stage::Run(Phase::Prepare),
            Stage::Run(Phase::Hold) => Stage::Settle(Decision::Commit),
            Stage::Run(_) if self.batches.is_empty() => Stage::Settle(Decision::Commit),
            Stage::Run(_) => Stage::Batch(0, Phase::Publish),
            Stage::Batch(number, Phase::Publish) => Stage::Batch(number, Phase::Cutover),
            Stage::Batch(number, _) if number + 1 < self.batches.len() => Stage::Batch(number + 1, Phase::Publish),
            Stage::Batch(..) if self.watched => Stage::Run(Phase::Hold),
            Stage::Batch(..) => Stage::Settle(Decision::Commit),
            Stage::Settle(Decision::Commit) => {
                self.known |= all_done;
                if self.known { Stage::Further(Phase::Withdraw) } else { Stage::End(Ending::Waiting) }
            }
            Stage::Further(Phase::Withdraw) => Stage::Further(Phase::Drain),
            Stage::Further(Phase::Drain) => Stage::Further(Phase::Finalize),
            Stage::Further(_) => Stage::Conclude(Decision::Commit),
            Stage::Settle(Decision::Revert) => Stage::Undo,
            Stage::Undo => Stage::Conclude(Decision::Revert),
            Stage::Conclude(decision) => {
                let marred = self.hosts.values().any(|standing| *standing == Standing::Marred);
                Stage::End(if marred { Ending::NotTakenBack } else { Ending::Concluded(decision) })
            }
            Stage::End(_) => self.stage,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(heard: Heard) -> BTreeMap<u8, Heard> {
        BTreeMap::from([(1, heard), (2, heard)])
    }

    /// Follows a course; on the given move, what is heard of each host is said.
    fn follow(mut course: Course<u8>, on: impl Fn(&Move<u8>) -> BTreeMap<u8, Heard>) -> (Vec<String>, Ending) {
        let mut moves = Vec::new();
        loop {
            let next = course.next();
            let text = match &next {
                Move::Begin { hosts } => format!("begin {hosts:?}"),
                Move::Run { phase, hosts, .. } => format!("{phase} {hosts:?}"),
                Move::Settle { decision, hosts } => format!("{decision:?} {hosts:?}"),
                Move::Undo { hosts } => format!("undo {hosts:?}"),
                Move::Conclude { hosts, .. } => format!("conclude {hosts:?}"),
                Move::End(ending) => return (moves, *ending),
            };
            moves.push(text);
            course.hear(&on(&next));
        }
    }

    fn ship() -> Course<u8> {
        Course::begin(vec![vec![1], vec![2]])
    }

    #[test]
    fn all_are_prepared_then_cut_over_batch_by_batch_then_decided() {
        let (moves, ending) = follow(ship(), |_| all(Heard::Done));
        let due = [
            "begin [1, 2]",
            "boot [1, 2]",
            "prepare [1, 2]",
            "publish [1]",
            "cutover [1]",
            "publish [2]",
            "cutover [2]",
            "Commit [1, 2]",
            "withdraw [1, 2]",
            "drain [1, 2]",
            "finalize [1, 2]",
            "conclude [1, 2]",
        ];
        assert_eq!(
            (moves.iter().map(String::as_str).collect::<Vec<_>>(), ending),
            (due.to_vec(), Ending::Concluded(Decision::Commit))
        );
    }

    #[test]
    fn what_serves_is_watched_after_the_last_batch_and_taken_back_everywhere_if_it_sickens() {
        let sick = |step: &Move<u8>| match step {
            Move::Run { phase: Phase::Hold, .. } => BTreeMap::from([(1, Heard::Failed)]),
            _ => all(Heard::Done),
        };
        let (moves, ending) = follow(ship().watched(), sick);
        let due = ["cutover [2]", "hold [1, 2]", "Revert [1, 2]", "undo [1, 2]", "conclude [1, 2]"];
        assert_eq!(
            (moves[6..].iter().map(String::as_str).collect::<Vec<_>>(), ending),
            (due.to_vec(), Ending::Concluded(Decision::Revert))
        );
    }

    #[test]
    fn nothing_old_goes_while_one_host_has_not_recorded_the_commit() {
        let lost = |step: &Move<u8>| match step {
            Move::Settle { .. } => BTreeMap::from([(1, Heard::Done), (2, Heard::Lost)]),
            _ => all(Heard::Done),
        };
        let (moves, ending) = follow(ship(), lost);
        assert_eq!((moves.last().map(String::as_str), ending), (Some("Commit [1, 2]"), Ending::Waiting));
        // Unless all are known to have recorded it: then the others are brought to their end.
        let (moves, ending) = follow(Course::settle([1, 2], Decision::Commit, true), lost);
        assert_eq!(
            (moves.last().map(String::as_str), ending),
            (Some("conclude [1]"), Ending::Concluded(Decision::Commit))
        );
    }

    #[test]
    fn what_could_not_be_taken_back_is_not_concluded() {
        let failed = |step: &Move<u8>| match step {
            Move::Run { phase: Phase::Prepare, .. } => BTreeMap::from([(2, Heard::Failed)]),
            Move::Undo { .. } => BTreeMap::from([(1, Heard::Failed)]),
            _ => all(Heard::Done),
        };
        let (moves, ending) = follow(ship(), failed);
        let due = ["begin [1, 2]", "boot [1, 2]", "prepare [1, 2]", "Revert [1, 2]", "undo [1, 2]", "conclude [2]"];
        assert_eq!(
            (moves.iter().map(String::as_str).collect::<Vec<_>>(), ending),
            (due.to_vec(), Ending::NotTakenBack)
        );
    }

    #[test]
    fn a_wish_to_stop_counts_until_the_decision() {
        let mut course = ship();
        course.hear(&all(Heard::Done));
        course.stop();
        assert!(course.can_stop());
        course.hear(&all(Heard::Done));
        assert_eq!(course.next(), Move::Settle { decision: Decision::Revert, hosts: vec![1, 2] });
        let mut course = Course::settle([1], Decision::Commit, false);
        course.stop();
        course.hear(&BTreeMap::new());
        assert!(matches!(course.next(), Move::Run { phase: Phase::Withdraw, .. }));
    }
}
