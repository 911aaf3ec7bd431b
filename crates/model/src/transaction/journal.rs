//! The write-ahead journal of one transaction on one host, and what follows from it.
//!
//! Entries are appended and synced before what they announce. [`Transaction::replay`] turns them into a state; [`Transaction::to_undo`]
//! and [`Transaction::to_finish`] say what settling it one way or the other still takes. A step that was started and has no end counts as
//! done when undoing, and as not done when finishing: both are safe, since undos and later steps may run twice.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::name::{HostName, ServiceName};
use crate::plan::{Phase, PlannedService, Step};
use crate::shared::Shared;

/// The beginning of a transaction on a host: everything that settling it may need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Begin {
    /// Format of the journal, [`Begin::VERSION`].
    pub version: u32,
    /// Random id, the same on every host.
    pub transaction: String,
    /// The project's scope.
    pub scope: String,
    /// Fencing number under which it began: also the number of the release it makes.
    pub fencing: u64,
    /// `user@machine`, for people.
    pub who: String,
    /// What was typed, for people: `ship`, `rollback`.
    pub command: String,
    /// Seconds since 1970 by the operator's clock: shown, never trusted.
    pub at_s: u64,
    /// Digest of the whole plan.
    pub plan: Digest,
    /// All hosts of the transaction.
    pub hosts: Vec<HostName>,
    /// How those of them that ssh reaches were reached, as `ssh://[USER@]HOST[:PORT]`: for whoever settles it without the sources.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub addresses: BTreeMap<HostName, String>,
    /// This host.
    pub host: HostName,
    /// This host's steps, in order.
    pub steps: Vec<Step>,
    /// What this host will run once decided.
    pub services: BTreeMap<ServiceName, Shared<PlannedService>>,
}

impl Begin {
    /// The version that this jiji writes and reads.
    pub const VERSION: u32 = 1;
}

/// Which way a transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// The new version stays.
    Commit,
    /// The old version stays.
    Revert,
}

/// A decision with the fencing number it was made under. Of two, the higher number holds on every host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settlement {
    /// Which way.
    pub decision: Decision,
    /// Under which number.
    pub fencing: u64,
}

/// How a step or an undo ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It did what it says.
    Done {
        /// What it printed, where a later step uses it; at most 4 KiB.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        output: Option<String>,
    },
    /// What it says was so already.
    Unchanged,
    /// It failed.
    Failed {
        /// Why, for people; at most 4 KiB.
        cause: String,
    },
}

impl Outcome {
    /// Whether the step's postcondition holds.
    pub fn is_ok(&self) -> bool {
        !matches!(self, Self::Failed { .. })
    }
}

/// A line of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "entry", deny_unknown_fields)]
pub enum Entry {
    /// The transaction begins.
    Begin(Box<Begin>),
    /// A step is about to run.
    Started {
        /// Its id.
        step: String,
    },
    /// A step ended.
    Ended {
        /// Its id.
        step: String,
        /// How.
        outcome: Outcome,
    },
    /// A step's undo is about to run.
    UndoStarted {
        /// The step's id.
        step: String,
    },
    /// A step's undo ended.
    UndoEnded {
        /// The step's id.
        step: String,
        /// How.
        outcome: Outcome,
    },
    /// It was decided which way the transaction ends.
    Settled(Settlement),
    /// Nothing is left to do here.
    Concluded,
}

/// Where a step stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    /// Not begun.
    Pending,
    /// Begun, and no end is recorded: it may have happened, in whole or in part.
    Unknown,
    /// Ended.
    Ended(Outcome),
    /// Taken back, or its undo was tried.
    Undone(Outcome),
}

/// A transaction on one host as its journal tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transaction {
    /// How it began.
    pub begin: Begin,
    /// Where each step stands, in the order of `begin.steps`.
    pub states: Vec<StepState>,
    /// The settlement with the highest number.
    pub settlement: Option<Settlement>,
    /// Whether nothing is left to do here.
    pub concluded: bool,
}

/// Why entries are no journal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// The first entry is not a beginning, or a later one is.
    #[error("read the journal: entry {index} is out of place")]
    OutOfPlace {
        /// Which entry, from 0.
        index: usize,
    },
    /// An entry names a step that the beginning does not have.
    #[error("read the journal: entry {index} names the unknown step `{step}`")]
    UnknownStep {
        /// Which entry, from 0.
        index: usize,
        /// The step's id.
        step: String,
    },
    /// It was written by a newer jiji.
    #[error("read the journal: its format {version} is newer than {supported}", supported = Begin::VERSION)]
    Newer {
        /// The journal's format.
        version: u32,
    },
}

impl Transaction {
    /// Reads the state off a journal. No entries: no transaction.
    ///
    /// # Errors
    /// [`ReplayError`] when the entries are not a journal that this jiji can read.
    pub fn replay(entries: impl IntoIterator<Item = Entry>) -> Result<Option<Self>, ReplayError> {
        let mut this: Option<Self> = None;
        for (index, entry) in entries.into_iter().enumerate() {
            match (entry, &mut this) {
                (Entry::Begin(begin), None) => {
                    if begin.version > Begin::VERSION {
                        return Err(ReplayError::Newer { version: begin.version });
                    }
                    this = Some(Self::new(*begin));
                }
                (Entry::Begin(_), Some(_)) | (_, None) => return Err(ReplayError::OutOfPlace { index }),
                (entry, Some(this)) => {
                    this.apply(entry).map_err(|step| ReplayError::UnknownStep { index, step })?;
                }
            }
        }
        Ok(this)
    }

    /// A transaction that has just begun.
    pub fn new(begin: Begin) -> Self {
        let states = vec![StepState::Pending; begin.steps.len()];
        Self { begin, states, settlement: None, concluded: false }
    }

    /// Takes one more entry in. Beginnings are ignored.
    ///
    /// # Errors
    /// The id of a step that the transaction does not have.
    pub fn apply(&mut self, entry: Entry) -> Result<(), String> {
        match entry {
            Entry::Begin(_) => {}
            Entry::Started { step } | Entry::UndoStarted { step } => *self.state(&step)? = StepState::Unknown,
            Entry::Ended { step, outcome } => *self.state(&step)? = StepState::Ended(outcome),
            Entry::UndoEnded { step, outcome } => *self.state(&step)? = StepState::Undone(outcome),
            Entry::Settled(settlement) => {
                if self.settlement.is_none_or(|earlier| settlement.fencing > earlier.fencing) {
                    self.settlement = Some(settlement);
                }
            }
            Entry::Concluded => self.concluded = true,
        }
        Ok(())
    }

    fn state(&mut self, id: &str) -> Result<&mut StepState, String> {
        match self.begin.steps.iter().position(|step| step.id == id) {
            Some(index) => Ok(&mut self.states[index]),
            None => Err(id.to_owned()),
        }
    }

    /// Whether something is left to settle here.
    pub fn is_open(&self) -> bool {
        !self.concluded
    }

    /// The steps whose undo must run for a revert, in the order to run them: the last first. Those undone already are left out unless
    /// their undo failed.
    pub fn to_undo(&self) -> Vec<&Step> {
        let touched = |state: &StepState| match state {
            StepState::Pending | StepState::Ended(Outcome::Unchanged) => false,
            StepState::Unknown | StepState::Ended(_) => true,
            StepState::Undone(outcome) => !outcome.is_ok(),
        };
        let pairs = self.begin.steps.iter().zip(&self.states).rev();
        pairs.filter(|(step, state)| step.undo.is_some() && touched(state)).map(|(step, _)| step).collect()
    }

    /// The steps of `phase` that have not ended well, in order.
    pub fn to_finish(&self, phase: Phase) -> Vec<&Step> {
        let done = |state: &StepState| matches!(state, StepState::Ended(outcome) if outcome.is_ok());
        let pairs = self.begin.steps.iter().zip(&self.states);
        pairs.filter(|(step, state)| step.phase == phase && !done(state)).map(|(step, _)| step).collect()
    }

    /// The output that step `id` left, where it ended well with one.
    pub fn output(&self, id: &str) -> Option<&str> {
        let index = self.begin.steps.iter().position(|step| step.id == id)?;
        match &self.states[index] {
            StepState::Ended(Outcome::Done { output }) => output.as_deref(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Action;

    fn step(name: &str, phase: Phase, undo: bool) -> Step {
        let host = HostName::new("one").expect("a name");
        let note = Action::Note { text: name.to_owned() };
        let mut step = Step::new(&host, phase, name, note.clone());
        step.undo = undo.then_some(note);
        step
    }

    fn begin() -> Begin {
        Begin {
            version: Begin::VERSION,
            transaction: "t".into(),
            scope: "shop".into(),
            fencing: 4,
            who: "a@b".into(),
            command: "ship".into(),
            at_s: 0,
            plan: Digest::of("plan"),
            hosts: vec![HostName::new("one").expect("a name")],
            addresses: BTreeMap::new(),
            host: HostName::new("one").expect("a name"),
            steps: vec![
                step("boot", Phase::Boot, false),
                step("run", Phase::Prepare, true),
                step("route", Phase::Cutover, true),
                step("stop", Phase::Drain, false),
            ],
            services: BTreeMap::new(),
        }
    }

    fn replay(entries: &[Entry]) -> Transaction {
        let all = [Entry::Begin(Box::new(begin()))].into_iter().chain(entries.iter().cloned());
        Transaction::replay(all).expect("a journal").expect("a transaction")
    }

    fn started(index: usize) -> Entry {
        Entry::Started { step: begin().steps[index].id.clone() }
    }

    fn ended(index: usize) -> Entry {
        Entry::Ended { step: begin().steps[index].id.clone(), outcome: Outcome::Done { output: None } }
    }

    fn titles(steps: &[&Step]) -> Vec<String> {
        steps.iter().map(|step| step.title.clone()).collect()
    }

    #[test]
    fn what_was_started_is_undone_the_last_first_even_if_its_end_is_unknown() {
        let transaction = replay(&[started(0), ended(0), started(1), ended(1), started(2)]);
        assert_eq!(titles(&transaction.to_undo()), ["route", "run"]);
    }

    #[test]
    fn an_undo_that_ended_well_is_not_repeated() {
        let undone = Entry::UndoEnded { step: begin().steps[2].id.clone(), outcome: Outcome::Done { output: None } };
        let transaction = replay(&[started(1), ended(1), started(2), ended(2), undone]);
        assert_eq!(titles(&transaction.to_undo()), ["run"]);
    }

    #[test]
    fn the_settlement_with_the_higher_number_holds_in_whatever_order_they_come() {
        let commit = Settlement { decision: Decision::Commit, fencing: 4 };
        let revert = Settlement { decision: Decision::Revert, fencing: 5 };
        for pair in [[commit, revert], [revert, commit]] {
            let transaction = replay(&pair.map(Entry::Settled));
            assert_eq!(transaction.settlement, Some(revert));
        }
    }

    #[test]
    fn a_journal_of_a_newer_jiji_is_refused() {
        let newer = Begin { version: Begin::VERSION + 1, ..begin() };
        let read = Transaction::replay([Entry::Begin(Box::new(newer))]);
        assert_eq!(read, Err(ReplayError::Newer { version: Begin::VERSION + 1 }));
    }

    #[test]
    fn steps_left_to_finish_are_those_without_a_good_end() {
        let transaction = replay(&[started(3)]);
        assert_eq!(titles(&transaction.to_finish(Phase::Drain)), ["stop"]);
        assert!(replay(&[started(3), ended(3)]).to_finish(Phase::Drain).is_empty());
    }
}
