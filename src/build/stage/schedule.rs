//! Which stages run when: as many side by side as there are processors, none that nobody needs, and one and the same error whoever is
//! faster.
//!
//! A stage begins when the one that it is built upon is done, and waits where it copies from another that is not. It knows nothing of
//! what stages do: that is the work that is handed in.
//!
//! **Order.** Though stages run side by side, what counts is the order in which one thread would go: the wanted stage from its first
//! instruction on, and each other stage in full where it is first asked for. A place in that order is a list of instructions: where the
//! wanted stage asks and whom, where that one asks and whom, and so on. The error that is told is the first in this order. When one stage has
//! failed, those that are behind it are ended, and those before it go on until they have passed or failed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::Scope;

use jiji_sandbox::Canceller;

use super::turns::held;
use super::{Done, Result};
use crate::build::error::BuildError;

/// What may be known of stages before they run.
pub(super) struct Needs {
    /// The stage that this one begins from, if it is one.
    pub(super) base: Option<usize>,
    /// What it asks for, and at which of its instructions: the base among them.
    pub(super) asked: BTreeSet<(usize, usize)>,
}

/// A place in the order of one thread: instruction and stage that is asked for there, again and again, and at last the instruction.
type Order = Vec<usize>;

/// The stages of a build under way.
pub(super) struct Schedule {
    /// By number: what each needs.
    needs: Vec<Needs>,
    /// How many may run at once.
    permits: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    stages: BTreeMap<usize, Stage>,
    /// Stages that run and do not wait.
    running: usize,
    /// Threads that have not ended.
    threads: usize,
    errors: BTreeMap<Order, BuildError>,
}

struct Stage {
    /// Where it is first asked for.
    asked_at: Order,
    /// The instruction that it is at.
    at: usize,
    phase: Phase,
    /// Whether it was told to end since it was of no interest. What comes of it then is no result, even where it is of interest again
    /// by the time when it ends.
    told: bool,
    /// What it has asked for, and at which of its instructions, whether that was known before or not.
    asked: BTreeSet<(usize, usize)>,
}

enum Phase {
    /// Somebody needs it.
    Wanted,
    /// It runs, or waits for another.
    Begun(Canceller),
    Finished(Arc<Done>),
    /// It, or one that it needs.
    Failed,
    /// It was ended, since another had failed before it.
    Ended,
}

impl Stage {
    fn place(&self) -> Order {
        self.asked_at.iter().copied().chain([self.at]).collect()
    }
}

impl State {
    /// Whether what this stage does can be of no interest any more.
    fn is_behind(&self, stage: &Stage) -> bool {
        self.errors.first_key_value().is_some_and(|(first, _)| *first < stage.place())
    }

    /// Wants a stage and all that it needs, as far as that is known.
    fn want(&mut self, number: usize, asked_at: Order, needs: &[Needs]) {
        let mut open = vec![(number, asked_at)];
        while let Some((number, asked_at)) = open.pop() {
            let stage = self.stages.entry(number).or_insert_with(|| Stage {
                // More than any place: the first that asks counts.
                asked_at: vec![usize::MAX],
                at: 0,
                phase: Phase::Wanted,
                told: false,
                asked: BTreeSet::new(),
            });
            if matches!(stage.phase, Phase::Ended) {
                stage.phase = Phase::Wanted;
                stage.at = 0;
            }
            if stage.asked_at <= asked_at {
                continue;
            }
            let before = stage.place();
            stage.asked_at.clone_from(&asked_at);
            // Who asks before all others finds a failure that came to pass for another's sake: it is told at the place of the first.
            if let Some(error) = self.errors.remove(&before) {
                self.errors.insert(stage.place(), error);
            }
            // The last is taken first, and so the first place of each is met first.
            let asked: BTreeSet<_> = needs[number].asked.union(&stage.asked).copied().collect();
            open.extend(asked.into_iter().rev().map(|(at, needed)| {
                let asked_at = asked_at.iter().copied().chain([at, needed]).collect();
                (needed, asked_at)
            }));
        }
    }

    /// Whether a stage that is wanted is not run: it comes after a failure, if only by an instruction that asks for both.
    fn never_begins(&self, number: usize) -> bool {
        self.stages.get(&number).is_some_and(|stage| matches!(stage.phase, Phase::Wanted) && self.is_behind(stage))
    }

    /// A stage that may begin: its base is over, or it would begin only to wait.
    fn ready(&self, needs: &[Needs]) -> Option<usize> {
        let over = |number: &usize| match self.stages.get(number).map(|stage| &stage.phase) {
            Some(Phase::Finished(_) | Phase::Failed | Phase::Ended) => true,
            Some(Phase::Wanted | Phase::Begun(_)) | None => false,
        };
        let mut wanted = self.stages.iter().filter(|(number, stage)| {
            let base = needs[**number].base.as_ref();
            matches!(stage.phase, Phase::Wanted) && !self.is_behind(stage) && base.is_none_or(over)
        });
        wanted.next().map(|(number, _)| *number)
    }

    /// Ends the stages that are of no interest any more.
    fn end_those_behind(&mut self) {
        let Some((first, _)) = self.errors.first_key_value() else { return };
        for stage in self.stages.values_mut() {
            if let Phase::Begun(canceller) = &stage.phase
                && *first < stage.place()
            {
                canceller.cancel();
                stage.told = true;
            }
        }
    }

    /// Ends a stage that asks, if it is of no interest any more.
    fn ends(&mut self, number: usize) -> bool {
        let behind = self.stages.get(&number).is_some_and(|stage| self.is_behind(stage));
        if let Some(stage) = self.stages.get_mut(&number) {
            stage.told |= behind;
        }
        behind
    }
}

impl Schedule {
    /// Nothing is wanted yet. `needs` says of each stage what it needs.
    pub(super) fn new(needs: Vec<Needs>, permits: usize) -> Self {
        Self { needs, permits: permits.max(1), state: Mutex::default(), changed: Condvar::new() }
    }

    /// Runs a stage and all that it needs; `work` carries one out. Returns when no stage runs any more.
    ///
    /// # Errors
    /// The first of `work` in the order of one thread.
    pub(super) fn run(
        &self,
        target: usize,
        work: &(dyn Fn(usize, &Canceller) -> Result<Done> + Sync),
    ) -> Result<Arc<Done>> {
        std::thread::scope(|scope| {
            let mut state = held(&self.state);
            state.want(target, Vec::new(), &self.needs);
            loop {
                if state.running < self.permits
                    && let Some(number) = state.ready(&self.needs)
                {
                    if let Err(error) = self.begin(scope, &mut state, number, work) {
                        // Before everything else: nothing else can be done.
                        state.errors.insert(Order::new(), error);
                        state.end_those_behind();
                        self.changed.notify_all();
                    }
                    continue;
                }
                if state.threads == 0 {
                    break;
                }
                state = self.wait(state);
            }
            if let Some((_, error)) = state.errors.pop_first() {
                return Err(error);
            }
            match state.stages.get(&target) {
                Some(Stage { phase: Phase::Finished(done), .. }) => Ok(Arc::clone(done)),
                _ => Err(BuildError::Ended),
            }
        })
    }

    fn begin<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        state: &mut State,
        number: usize,
        work: &'scope (dyn Fn(usize, &Canceller) -> Result<Done> + Sync),
    ) -> Result<()> {
        let canceller = Canceller::new().map_err(BuildError::Threads)?;
        let begun = Phase::Begun(canceller.clone());
        let thread = std::thread::Builder::new().name(format!("stage {number}"));
        let spawned = thread.spawn_scoped(scope, move || {
            let mut running = Running { schedule: self, number, result: Err(BuildError::Ended) };
            running.result = work(number, &canceller);
        });
        spawned.map_err(BuildError::Threads)?;
        // Its thread waits for the lock that is held here before it can end.
        state.running += 1;
        state.threads += 1;
        if let Some(stage) = state.stages.get_mut(&number) {
            stage.phase = begun;
            stage.told = false;
        }
        Ok(())
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A stage has come to this instruction.
    ///
    /// # Errors
    /// [`BuildError::Ended`] where it is of no interest any more.
    pub(super) fn reach(&self, number: usize, at: usize) -> Result<()> {
        let mut state = held(&self.state);
        if let Some(stage) = state.stages.get_mut(&number) {
            stage.at = at;
        }
        if state.ends(number) { Err(BuildError::Ended) } else { Ok(()) }
    }

    /// Another stage that this one needs, waited for if need be.
    ///
    /// # Errors
    /// [`BuildError::Ended`] where the other failed, or this one is of no interest any more.
    pub(super) fn stage(&self, by: usize, number: usize) -> Result<Arc<Done>> {
        let mut state = held(&self.state);
        let mut waits = false;
        if let Some(own) = state.stages.get_mut(&by) {
            own.asked.insert((own.at, number));
        }
        let result = loop {
            if state.ends(by) {
                break Err(BuildError::Ended);
            }
            match state.stages.get(&by) {
                Some(own) => match state.stages.get(&number).map(|stage| &stage.phase) {
                    Some(Phase::Finished(done)) => break Ok(Arc::clone(done)),
                    Some(Phase::Failed) => {
                        let asked_at = own.place().into_iter().chain([number]).collect();
                        state.want(number, asked_at, &self.needs);
                        state.end_those_behind();
                        break Err(BuildError::Ended);
                    }
                    Some(Phase::Wanted | Phase::Begun(_)) if waits => {}
                    _ => {
                        let asked_at = own.place().into_iter().chain([number]).collect();
                        state.want(number, asked_at, &self.needs);
                    }
                },
                None => break Err(BuildError::Ended),
            }
            if state.never_begins(number) {
                break Err(BuildError::Ended);
            }
            if !waits {
                waits = true;
                state.running -= 1;
            }
            self.changed.notify_all();
            state = self.wait(state);
        };
        if waits {
            while result.is_ok() && state.running >= self.permits {
                state = self.wait(state);
            }
            state.running += 1;
        }
        result
    }
}

/// A stage's thread: whatever becomes of it, its end is noted.
struct Running<'a> {
    schedule: &'a Schedule,
    number: usize,
    result: Result<Done>,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let result = std::mem::replace(&mut self.result, Err(BuildError::Ended));
        let mut state = held(&self.schedule.state);
        state.running -= 1;
        state.threads -= 1;
        let Some(stage) = state.stages.get(&self.number) else { return };
        let (ended, place) = (stage.told || state.is_behind(stage), stage.place());
        let phase = match result {
            Ok(done) => Phase::Finished(Arc::new(done)),
            Err(_) if ended => Phase::Ended,
            Err(BuildError::Ended) => Phase::Failed,
            Err(error) => {
                state.errors.insert(place, error);
                Phase::Failed
            }
        };
        if let Some(stage) = state.stages.get_mut(&self.number) {
            stage.phase = phase;
        }
        state.end_those_behind();
        drop(state);
        self.schedule.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use jiji_model::image::Platform;
    use proptest::prelude::*;

    use super::super::Draft;
    use super::*;

    fn done() -> Done {
        Done::begin(Draft::scratch(Platform::linux_amd64()))
    }

    /// What a stage of a test does, one after the other.
    #[derive(Debug, Clone)]
    enum Doing {
        Takes(u8),
        Asks(usize),
        /// Asks for it, though nobody could know before.
        AsksSuddenly(usize),
        Fails,
    }

    fn needs(stages: &[Vec<Doing>]) -> Vec<Needs> {
        let of = |doing: &Vec<Doing>| Needs {
            base: None,
            asked: doing
                .iter()
                .enumerate()
                .filter_map(|(at, one)| match one {
                    Doing::Asks(number) => Some((at, *number)),
                    _ => None,
                })
                .collect(),
        };
        stages.iter().map(of).collect()
    }

    /// A name for what failed where.
    fn failure(stage: usize, at: usize) -> BuildError {
        BuildError::UnknownStage { name: format!("{stage}.{at}"), dockerfile: String::new() }
    }

    fn carry_out(stages: &[Vec<Doing>], permits: usize) -> (std::result::Result<(), String>, usize) {
        let schedule = Schedule::new(needs(stages), permits);
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let work = |number: usize, _: &Canceller| {
            for (at, doing) in stages[number].iter().enumerate() {
                schedule.reach(number, at)?;
                match doing {
                    Doing::Takes(time) => {
                        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        std::thread::sleep(Duration::from_micros(u64::from(*time) * 10));
                        now.fetch_sub(1, Ordering::SeqCst);
                    }
                    Doing::Asks(other) | Doing::AsksSuddenly(other) => drop(schedule.stage(number, *other)?),
                    Doing::Fails => return Err(failure(number, at)),
                }
            }
            Ok(done())
        };
        let result = schedule.run(stages.len() - 1, &work);
        (result.map(drop).map_err(|error| error.to_string()), most.into_inner())
    }

    /// What one thread would come to.
    fn one_by_one(stages: &[Vec<Doing>], number: usize, over: &mut Vec<usize>) -> std::result::Result<(), String> {
        if over.contains(&number) {
            return Ok(());
        }
        for (at, doing) in stages[number].iter().enumerate() {
            match doing {
                Doing::Takes(_) => {}
                Doing::Asks(other) | Doing::AsksSuddenly(other) => one_by_one(stages, *other, over)?,
                Doing::Fails => return Err(failure(number, at).to_string()),
            }
        }
        over.push(number);
        Ok(())
    }

    fn stages() -> impl Strategy<Value = Vec<Vec<Doing>>> {
        let one = prop_oneof![
            6 => any::<u8>().prop_map(Doing::Takes),
            5 => any::<usize>().prop_map(Doing::Asks),
            2 => any::<usize>().prop_map(Doing::AsksSuddenly),
            1 => Just(Doing::Fails),
        ];
        prop::collection::vec(prop::collection::vec(one, 0..5), 1..8).prop_map(|mut stages| {
            for (number, stage) in stages.iter_mut().enumerate() {
                // Stages ask for those above them alone.
                stage.retain(|doing| number > 0 || !matches!(doing, Doing::Asks(_) | Doing::AsksSuddenly(_)));
                for doing in stage {
                    if let Doing::Asks(other) | Doing::AsksSuddenly(other) = doing {
                        *other %= number;
                    }
                }
            }
            stages
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn whoever_is_faster_the_end_is_that_of_one_thread(stages in stages(), permits in 1_usize..4) {
            let due = one_by_one(&stages, stages.len() - 1, &mut Vec::new());
            let (result, most) = carry_out(&stages, permits);
            prop_assert_eq!(result, due);
            prop_assert!(most <= permits, "{} at once", most);
        }
    }

    #[test]
    fn who_asks_unexpectedly_for_what_has_failed_is_told_of_it_in_its_place() {
        // The last asks for the first before all others do, when the failures of both are known already.
        let stages =
            [vec![Doing::Fails], vec![Doing::Fails, Doing::Asks(0)], vec![Doing::AsksSuddenly(0), Doing::Asks(1)]];
        let schedule = Schedule::new(needs(&stages), 3);
        let result = schedule.run(2, &|number, _| {
            // One after the other: the first, which is behind the second's failure once that is known, and the second.
            while held(&schedule.state).errors.len() < number {
                std::thread::sleep(Duration::from_millis(1));
            }
            if number < 2 {
                return Err(failure(number, 0));
            }
            schedule.reach(2, 0)?;
            drop(schedule.stage(2, 0)?);
            schedule.reach(2, 1)?;
            drop(schedule.stage(2, 1)?);
            Ok(done())
        });
        assert_eq!(result.err().map(|error| error.to_string()), Some(failure(0, 0).to_string()));
    }

    #[test]
    fn one_instruction_that_asks_for_two_does_not_wait_for_what_a_failure_of_one_has_ended() {
        let none = || Needs { base: None, asked: BTreeSet::new() };
        let needs = vec![none(), none(), none(), Needs { base: None, asked: BTreeSet::from([(0, 1), (0, 2)]) }];
        let schedule = Schedule::new(needs, 1);
        let result = schedule.run(3, &|number, _| {
            if number < 3 {
                return Err(failure(number, 0));
            }
            schedule.reach(3, 0)?;
            // The other way round than their numbers: the second is not run any more.
            drop(schedule.stage(3, 2)?);
            drop(schedule.stage(3, 1)?);
            Ok(done())
        });
        assert_eq!(result.err().map(|error| error.to_string()), Some(failure(1, 0).to_string()));
    }

    #[test]
    fn a_failure_ends_those_behind_it_and_waits_for_those_before_it() {
        // The first waits to be ended; the second goes on and fails, before the third in order though after it in time.
        let needs = vec![
            Needs { base: None, asked: BTreeSet::new() },
            Needs { base: None, asked: BTreeSet::new() },
            Needs { base: None, asked: BTreeSet::new() },
            Needs { base: None, asked: BTreeSet::from([(0, 1), (1, 2), (2, 0)]) },
        ];
        let schedule = Schedule::new(needs, 4);
        let ended = AtomicUsize::new(0);
        let error = schedule.run(3, &|number, canceller| match number {
            0 => {
                assert!(canceller.is_cancelled_within(Duration::from_secs(20)), "it is ended");
                ended.fetch_add(1, Ordering::SeqCst);
                Err(failure(0, 0))
            }
            1 => {
                while ended.load(Ordering::SeqCst) == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(failure(1, 0))
            }
            2 => Err(failure(2, 0)),
            _ => {
                for (at, other) in [1, 2, 0].into_iter().enumerate() {
                    schedule.reach(3, at)?;
                    schedule.stage(3, other)?;
                }
                Ok(done())
            }
        });
        assert_eq!(error.err().map(|error| error.to_string()), Some(failure(1, 0).to_string()));
    }

    #[test]
    fn what_was_told_to_end_and_is_of_interest_again_before_it_has_ended_is_done_again() {
        let none = || Needs { base: None, asked: BTreeSet::new() };
        // What the first time ends with: as it was told, or by what it could not go on with.
        for killed in [false, true] {
            let last = Needs { base: None, asked: BTreeSet::from([(0, 1), (1, 2), (2, 0)]) };
            let schedule = Schedule::new(vec![none(), none(), none(), last], 4);
            let until = |reached: &dyn Fn(&State) -> bool| {
                while !reached(&held(&schedule.state)) {
                    std::thread::sleep(Duration::from_millis(1));
                }
            };
            let (times, told) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let error = schedule.run(3, &|number, _| match number {
                // Comes after the third, which fails, until the second asks for it, which comes before.
                0 if times.fetch_add(1, Ordering::SeqCst) == 0 => {
                    until(&|state| !state.errors.is_empty());
                    let ended = schedule.reach(0, 0);
                    told.store(usize::from(ended.is_err()), Ordering::SeqCst);
                    until(&|state| state.stages[&0].asked_at == [0, 1, 0, 0]);
                    Err(if killed { failure(0, 9) } else { BuildError::Ended })
                }
                0 => Err(failure(0, 0)),
                1 => {
                    schedule.reach(1, 0)?;
                    until(&|_| told.load(Ordering::SeqCst) == 1);
                    schedule.stage(1, 0).map(|done| Done::clone(&done))
                }
                2 => Err(failure(2, 0)),
                _ => {
                    for (at, other) in [1, 2, 0].into_iter().enumerate() {
                        schedule.reach(3, at)?;
                        schedule.stage(3, other)?;
                    }
                    Ok(done())
                }
            });
            assert_eq!(error.err().map(|error| error.to_string()), Some(failure(0, 0).to_string()));
            assert_eq!(times.into_inner(), 2);
        }
    }

    #[test]
    fn a_stage_that_panics_ends_the_build_and_hangs_nobody() {
        let stages = [vec![], vec![Doing::Asks(0)]];
        let schedule = Schedule::new(needs(&stages), 2);
        let work = |number: usize, _: &Canceller| {
            assert_ne!(number, 0, "as it is meant");
            schedule.stage(number, 0)?;
            Ok(done())
        };
        let run = std::panic::AssertUnwindSafe(|| schedule.run(1, &work).map(drop));
        assert!(std::panic::catch_unwind(run).is_err());
    }
}
