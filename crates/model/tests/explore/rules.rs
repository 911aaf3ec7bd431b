//! The rules as they are, and each of them weakened: an explorer that does not find what a weakened rule breaks proves nothing.

use jiji_model::transaction::{Entry, Outcome, Settlement, StepState, Trace, Transaction, Way, evidence};

/// What is weakened. Nothing by default.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rules {
    /// Of two settlements of a host, the lower number holds.
    pub lower_wins: bool,
    /// The host removes what is old as it moves the route.
    pub remove_at_cutover: bool,
    /// Nobody waits until what was begun can take effect no more.
    pub no_quiet: bool,
    /// Steps that failed are taken back at once; only those whose end is not known are waited for.
    pub quiet_for_unknown_only: bool,
    /// Every undo is tried, also of what another one that failed was built on.
    pub undo_all: bool,
    /// The operator goes on with those hosts that recorded the commit, and so does who settles.
    pub go_on_without_all: bool,
    /// Who holds the lease is not asked, and nobody ends an older session.
    pub no_guard: bool,
    /// Who settles goes by what it saw of the other hosts before it had a lease.
    pub stale_evidence: bool,
    /// A host runs phases in any order, decided or not.
    pub no_order: bool,
    /// The operator drains before it moves the route.
    pub drain_first: bool,
    /// After a loss of power nobody starts what must run.
    pub no_start: bool,
    /// It is started once everything else was done.
    pub start_last: bool,
}

impl Rules {
    pub fn journal(&self, transaction: &mut Transaction, entry: Entry) {
        let earlier: Option<Settlement> = transaction.settlement;
        transaction.apply(entry).expect("the step is known");
        if self.lower_wins && earlier.is_some() {
            transaction.settlement = earlier;
        }
    }

    pub fn quiet_ms(&self, open: &Transaction) -> u32 {
        let failed = |state: &StepState| {
            matches!(state, StepState::Ended(Outcome::Failed { .. }) | StepState::Undone(Outcome::Failed { .. }))
        };
        if self.no_quiet {
            0
        } else if self.quiet_for_unknown_only {
            let mut only = open.clone();
            for state in only.states.iter_mut().filter(|state| failed(state)) {
                *state = StepState::Pending;
            }
            only.quiet_ms()
        } else {
            open.quiet_ms()
        }
    }

    pub fn way(&self, traces: impl IntoIterator<Item = Trace>, away: bool) -> Way {
        match evidence::way(traces, away) {
            Way::Wait | Way::Commit { .. } if self.go_on_without_all => Way::Commit { known: true },
            way => way,
        }
    }
}
