//! What a host does with what it is asked, one durable thing after the other, so that it can die between any two.
//!
//! What it accepts is [`accept`]'s and [`lease`]'s, what its journal means is the model's: this is the executor around them.

use std::sync::Arc;

use jiji_model::transaction::lease::{self, Moment};
use jiji_model::transaction::{
    Accepted, Decision, Entry, Heard, Lease, LeaseDecision, LeaseRequest, Outcome, Transaction, accept,
};

use super::rules::Rules;
use super::world::{Ask, Effect, Id, State, began, effect, release};

/// Something that is done or not, and never in half.
#[derive(Debug, Clone)]
enum Durable {
    Begin,
    Entry(Entry),
    Effect(Effect),
    Start(Id),
    Release,
}

/// What goes wrong with a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Failure {
    /// It fails, and does nothing.
    Plain,
    /// It fails for lack of time, and its effect may still come.
    Late,
}

/// How far a host gets with what it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reach {
    /// To its end.
    Whole,
    /// Its first step fails.
    Fails(Failure),
    /// It is killed after so many durable things.
    Dies(u8),
    /// It is killed after so many, the next of which is an effect that may still come.
    DiesLate(u8),
}

const NOW: u64 = 0;
const EXPIRES: u64 = 1;
const LATER: u64 = 2;

impl State {
    fn now(&self, host: Id) -> u64 {
        if self.hosts[usize::from(host)].expired { LATER } else { NOW }
    }

    /// Whether a session may change something, by its lease.
    fn guarded(&self, rules: &Rules, host: Id, operator: usize) -> bool {
        let here = &self.hosts[usize::from(host)];
        let Some(held) = &here.held[operator] else { return false };
        rules.no_guard || lease::guard(held, here.lease.as_deref(), self.now(host)).is_ok()
    }

    /// How many ways there are to die while an ask is worked on.
    pub fn deaths(&self, rules: &Rules, host: Id, operator: usize) -> Vec<Reach> {
        let Some(ask) = self.hosts[usize::from(host)].sessions[operator].and_then(|session| session.asked) else {
            return vec![Reach::Dies(0)];
        };
        let Ok(things) = self.things(rules, host, operator, ask, None) else { return vec![Reach::Dies(0)] };
        let mut deaths: Vec<_> =
            (0..=things.len()).map(|count| Reach::Dies(u8::try_from(count).expect("few"))).collect();
        for (index, thing) in things.iter().enumerate() {
            // Containers are made and removed while one waits; a route is asked of a proxy.
            if matches!(thing, Durable::Effect(Effect::Route(_))) {
                deaths.push(Reach::DiesLate(u8::try_from(index).expect("few")));
            }
        }
        deaths
    }

    /// Whether a step would be run, which could fail.
    pub fn can_fail(&self, rules: &Rules, host: Id, operator: usize) -> Vec<Failure> {
        let session = self.hosts[usize::from(host)].sessions[operator];
        let Some(ask @ (Ask::Run(_) | Ask::Undo)) = session.and_then(|session| session.asked) else {
            return Vec::new();
        };
        let things = self.things(rules, host, operator, ask, None).unwrap_or_default();
        let first = things.iter().find_map(|thing| match thing {
            Durable::Effect(effect) => Some(*effect),
            _ => None,
        });
        match first {
            Some(Effect::Route(_)) => vec![Failure::Plain, Failure::Late],
            Some(_) => vec![Failure::Plain],
            None => Vec::new(),
        }
    }

    /// The durable things that an ask comes to; with a failure, its first step fails and is the last before the decision.
    fn things(
        &self,
        rules: &Rules,
        host: Id,
        operator: usize,
        ask: Ask,
        failure: Option<Failure>,
    ) -> Result<Vec<Durable>, Heard> {
        let here = &self.hosts[usize::from(host)];
        if !self.guarded(rules, host, operator) {
            return Err(Heard::Refused);
        }
        let refused = |_| Heard::Refused;
        let fencing = self.operators[operator].fencing;
        if ask == Ask::Begin {
            let begin = &self.operators[operator].begins[&host];
            return match accept::begin(here.journal(), begin, fencing).map_err(refused)? {
                Accepted::New => Ok(vec![Durable::Begin]),
                Accepted::Already => Ok(Vec::new()),
            };
        }
        let open = accept::open(here.journal()).map_err(refused)?;
        let done = Outcome::Done { output: None };
        let failed = || Outcome::Failed { cause: String::new() };
        let mut things = Vec::new();
        let settling = match ask {
            Ask::Run(phase) => !phase.before_decided() && !rules.start_last,
            Ask::Undo => !rules.start_last,
            Ask::Conclude(_) => true,
            Ask::Begin | Ask::Settle(_) => false,
        };
        if settling && !rules.no_start {
            things.extend(here.to_start(open).into_iter().map(Durable::Start));
        }
        match ask {
            Ask::Begin => {}
            Ask::Run(phase) => {
                let steps =
                    if rules.no_order { open.to_finish(phase) } else { accept::run(open, phase).map_err(refused)? };
                for step in steps {
                    let id = || step.id.clone();
                    if accept::in_the_way(open, step).is_some() {
                        return Err(Heard::Failed);
                    }
                    things.push(Durable::Entry(Entry::Started { step: id() }));
                    if failure.is_some() {
                        things.push(Durable::Effect(effect(&step.action)));
                        things.push(Durable::Entry(Entry::Ended { step: id(), outcome: failed() }));
                        break;
                    }
                    things.push(Durable::Effect(effect(&step.action)));
                    things.push(Durable::Entry(Entry::Ended { step: id(), outcome: done.clone() }));
                }
            }
            Ask::Undo => {
                // What is in the way of a step depends on how those before it ended.
                let mut before = open.clone();
                for (index, step) in accept::undo(open).map_err(refused)?.into_iter().enumerate() {
                    if !rules.undo_all && accept::undo_in_the_way(&before, step).is_some() {
                        continue;
                    }
                    let undo = step.undo.as_ref().expect("only those that have one");
                    let id = || step.id.clone();
                    things.push(Durable::Entry(Entry::UndoStarted { step: id() }));
                    things.push(Durable::Effect(effect(undo)));
                    let outcome = if index == 0 && failure.is_some() { failed() } else { done.clone() };
                    let ended = Entry::UndoEnded { step: id(), outcome };
                    before.apply(ended.clone()).expect("the step is known");
                    things.push(Durable::Entry(ended));
                }
            }
            Ask::Settle(settlement) => match accept::settle(open, settlement, fencing).map_err(refused)? {
                Accepted::New => things.push(Durable::Entry(Entry::Settled(settlement))),
                Accepted::Already => {}
            },
            Ask::Conclude(decision) => {
                let made = (decision == Decision::Commit).then(|| release(&open.begin));
                let id = &open.begin.transaction;
                if accept::conclude(Some(open), id, made.as_ref()).map_err(refused)? == Accepted::New {
                    things.extend(made.map(|_| Durable::Release));
                    things.push(Durable::Entry(Entry::Concluded));
                }
            }
        }
        Ok(things)
    }

    /// Works on what a session was asked, as far as it gets. Gives what is answered, which the operator may not hear.
    pub fn work(&mut self, rules: &Rules, host: Id, operator: usize, reach: Reach) -> Heard {
        let place = usize::from(host);
        let Some(ask) = self.hosts[place].sessions[operator].as_mut().and_then(|session| session.asked.take()) else {
            return Heard::Lost;
        };
        let failure = match reach {
            Reach::Fails(failure) => Some(failure),
            _ => None,
        };
        let things = match self.things(rules, host, operator, ask, failure) {
            Ok(things) => things,
            Err(heard) => return heard,
        };
        if ask == Ask::Undo && !things.is_empty() {
            self.wait_quiet(rules, host);
        }
        let mut failing = failure;
        for (index, thing) in things.into_iter().enumerate() {
            let count = u8::try_from(index).expect("few");
            match (reach, &thing) {
                (Reach::Dies(last), _) if count >= last => return Heard::Lost,
                (Reach::DiesLate(last), Durable::Effect(effect)) if count >= last => {
                    self.hosts[place].late.push(*effect);
                    self.hosts[place].late.sort_by_key(|late| format!("{late:?}"));
                    return Heard::Lost;
                }
                _ => {}
            }
            match (&thing, failing) {
                (Durable::Effect(_), Some(Failure::Plain)) => failing = None,
                (Durable::Effect(effect), Some(Failure::Late)) => {
                    self.hosts[place].late.push(*effect);
                    self.hosts[place].late.sort_by_key(|late| format!("{late:?}"));
                    failing = None;
                }
                _ => self.one(rules, host, operator, thing),
            }
        }
        if failure.is_some() { Heard::Failed } else { Heard::Done }
    }

    /// The effects that may still come have come, or never will, once the quiet time of what was begun is over.
    fn wait_quiet(&mut self, rules: &Rules, host: Id) {
        let here = &mut self.hosts[usize::from(host)];
        let quiet = here.journal().map_or(0, |open| rules.quiet_ms(open));
        if quiet > 0 {
            for effect in std::mem::take(&mut here.late) {
                here.take_effect(effect);
            }
        }
    }

    fn one(&mut self, rules: &Rules, host: Id, operator: usize, thing: Durable) {
        let here = &mut self.hosts[usize::from(host)];
        if here.lease.as_ref().is_none_or(|lease| lease.session != i32::try_from(operator).expect("few")) {
            self.wrong.get_or_insert("two writers on one host");
        }
        match thing {
            Durable::Begin => {
                let begin = (*self.operators[operator].begins[&host]).clone();
                Arc::make_mut(&mut here.records).transaction = Some(Transaction::new(begin));
            }
            Durable::Entry(entry) => {
                let serves = here.serves(here.routed);
                let records = Arc::make_mut(&mut here.records);
                let transaction = records.transaction.as_mut().expect("it is open");
                if let Entry::Settled(settlement) = &entry {
                    let highest = &mut self.histories[began(&transaction.begin.transaction)].highest;
                    if highest.is_none_or(|earlier| settlement.fencing > earlier.fencing) {
                        *highest = Some(*settlement);
                    }
                }
                rules.journal(transaction, entry);
                let decision = transaction.settlement.map(|settlement| settlement.decision);
                if transaction.concluded && !serves {
                    self.wrong.get_or_insert("a transaction was concluded where what serves does not run");
                }
                let history = &mut self.histories[began(&transaction.begin.transaction)];
                history.committed |= transaction.went_on();
                history.reverted |= transaction.concluded && decision == Some(Decision::Revert);
            }
            Durable::Start(id) => here.stopped &= !(1 << id),
            Durable::Effect(effect) => {
                if let Effect::Route(version) = effect
                    && !here.serves(version)
                {
                    self.wrong.get_or_insert("a route was asked of what does not run");
                }
                here.take_effect(effect);
                if let (Effect::Route(version), true) = (effect, rules.remove_at_cutover) {
                    here.runs &= 1 << version;
                }
                let removes = matches!(effect, Effect::Remove(_));
                let open = here.journal().cloned();
                if let Some(open) =
                    open.filter(|open| removes && open.settlement.is_some_and(|s| s.decision == Decision::Commit))
                {
                    self.check_removal(&open);
                }
            }
            Durable::Release => {
                let records = Arc::make_mut(&mut here.records);
                let made = release(&records.transaction.as_ref().expect("it is open").begin);
                if records.releases.iter().all(|release| release.number != made.number) {
                    records.releases.insert(0, made);
                }
            }
        }
    }

    /// Something old goes: every host of the transaction must have recorded the commit.
    fn check_removal(&mut self, open: &Transaction) {
        let all = open.begin.hosts.iter().all(|name| {
            let records = &self.hosts[usize::from(super::world::host_id(name))].records;
            let id = &open.begin.transaction;
            let settled = |last: &Transaction| last.settlement.is_some_and(|s| s.decision == Decision::Commit);
            records.transaction.as_ref().is_some_and(|last| last.begin.transaction == *id && settled(last))
                || records.releases.iter().any(|release| release.transaction == *id)
        });
        if !all {
            self.wrong.get_or_insert("an old container was removed before every host had recorded the commit");
        }
    }

    /// What a host says to who wants its lease, without a change.
    pub fn lease_answer(&self, host: Id, operator: usize) -> LeaseDecision {
        let here = &self.hosts[usize::from(host)];
        let request = LeaseRequest {
            scope: "shop".to_owned(),
            holder: operator.to_string(),
            who: String::new(),
            fencing: self.operators[operator].fencing,
            ttl_ms: EXPIRES,
        };
        let session = i32::try_from(operator).expect("few");
        let current = here.lease.as_ref().map(|lease| (&**lease, here.lives(lease.session)));
        let now_ms = self.now(host);
        let moment = Moment { boot_id: "boot", now_ms, session: (session, 0) };
        lease::decide(&request, current, here.records.fencing, &moment)
    }

    /// Grants a lease. The session that held it before is ended first, as far into what it was doing as `reach` says.
    pub fn grant(&mut self, rules: &Rules, host: Id, granted: Lease, reach: Reach) {
        let place = usize::from(host);
        if let Some(old) = self.hosts[place].lease.clone().filter(|old| old.session != granted.session)
            && self.hosts[place].lives(old.session)
            && !rules.no_guard
        {
            let old = usize::try_from(old.session).expect("an operator");
            // What it did, it did before: the lease was its own until now.
            let expired = std::mem::replace(&mut self.hosts[place].expired, false);
            self.work(rules, host, old, reach);
            self.hosts[place].expired = expired;
            self.hosts[place].sessions[old] = None;
        }
        let here = &mut self.hosts[place];
        Arc::make_mut(&mut here.records).fencing = granted.fencing;
        let holder = usize::try_from(granted.session).expect("an operator");
        let granted = Arc::new(Lease { expires_ms: EXPIRES, ..granted });
        here.held[holder] = Some(Arc::clone(&granted));
        here.lease = Some(granted);
        here.expired = false;
    }
}
