//! Every way that things can go: a breadth-first search over all states, so that the first thing found wrong is the shortest way to it.

use std::collections::HashSet;

use jiji_model::transaction::{Heard, LeaseDecision};

use super::host::{Failure, Reach};
use super::rules::Rules;
use super::world::{Ask, At, Id, State};

/// Something that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// An operator starts: it connects and looks.
    Look(usize),
    /// It asks for the next lease; an older session there is ended, as far into what it was doing as said.
    Acquire(usize, Reach),
    /// Of the leases that it asks for at once, another is answered first.
    Overtake(usize),
    /// It does not wait for a lease that somebody holds.
    GiveUp(usize),
    /// A host works on what it was asked, to its end, and answers.
    Serve(Id, usize),
    /// A session whose operator does not hear it, or is gone, ends: after what it has in hand, or before.
    Leave(Id, usize, Reach),
    /// The same ends what it has in hand and goes on with what was asked ahead, since no end of its input came yet.
    GoOn(Id, usize),
    /// An effect that was asked for by somebody who is gone takes place.
    Land(Id, usize),
    /// The lease of a session that its operator does not prolong expires.
    Expire(Id),
    /// A host comes back.
    Revive(Id),
    /// A fault: the operator is killed.
    OperatorDies(usize),
    /// A fault: the line is cut, and neither end knows whether the other lives.
    Cut(Id, usize),
    /// A fault: a session is killed in the middle of what it does.
    SessionDies(Id, usize, Reach),
    /// A fault: the host dies in the middle of what somebody asked it.
    HostDies(Id, Option<(usize, Reach)>),
    /// A fault: a step fails.
    Fails(Id, usize, Failure),
    /// A fault: an operator is frozen, or a clock jumps, for longer than a lease lasts.
    Frozen(Id),
    /// It is thawed, and prolongs the lease that nobody took.
    Thawed(Id),
}

/// What was explored.
#[derive(Debug)]
pub struct Explored {
    /// Different states.
    pub states: usize,
    /// Transitions between them.
    pub transitions: usize,
    /// States in which nobody is at work, each of which the next run was shown to settle.
    pub resting: usize,
    /// The longest way from the beginning.
    pub depth: usize,
    /// What is wrong, with the shortest way to it.
    pub wrong: Option<(&'static str, Vec<Action>)>,
}

fn actions(state: &State, rules: &Rules) -> Vec<Action> {
    let mut all = Vec::new();
    let fault = state.faults > 0;
    for (number, operator) in state.operators.iter().enumerate() {
        match &operator.at {
            At::Idle => all.push(Action::Look(number)),
            At::Leasing { hosts, next, .. } => {
                if *next > 0 && matches!(hosts[*next..], [one, other, ..] if one < other) {
                    all.push(Action::Overtake(number));
                }
                let Some((host, answer)) = state.wanted(number) else { continue };
                match answer {
                    Some(LeaseDecision::Held(_)) => all.push(Action::GiveUp(number)),
                    Some(LeaseDecision::Granted(_)) => {
                        let here = &state.hosts[usize::from(host)];
                        let old = here.lease.as_ref().map(|lease| usize::try_from(lease.session).expect("an operator"));
                        let old = old.filter(|old| *old != number && here.sessions[*old].is_some());
                        let reaches = old.map_or(vec![Reach::Dies(0)], |old| state.deaths(rules, host, old));
                        all.extend(reaches.into_iter().map(|reach| Action::Acquire(number, reach)));
                    }
                    _ => all.push(Action::Acquire(number, Reach::Dies(0))),
                }
            }
            At::Driving { .. } | At::Ended { .. } | At::Dead => {}
        }
        if fault && matches!(operator.at, At::Leasing { .. } | At::Driving { .. }) {
            all.push(Action::OperatorDies(number));
        }
    }
    for (place, here) in state.hosts.iter().enumerate() {
        let host = Id::try_from(place).expect("few");
        if !here.up {
            all.push(Action::Revive(host));
        }
        all.extend((0..here.late.len()).map(|late| Action::Land(host, late)));
        let holder = here.lease.as_ref().map(|lease| usize::try_from(lease.session).expect("an operator"));
        let session = holder.and_then(|holder| here.sessions.get(holder).copied().flatten());
        if let Some(session) = session {
            match (session.deaf, here.expired) {
                (true, false) => all.push(Action::Expire(host)),
                (false, true) => all.push(Action::Thawed(host)),
                (false, false) if fault && state.operators.len() > 1 => all.push(Action::Frozen(host)),
                _ => {}
            }
        }
        let mut working = false;
        for (number, session) in here.sessions.iter().enumerate() {
            let Some(session) = session else { continue };
            if session.deaf {
                all.push(Action::Leave(host, number, Reach::Dies(0)));
                if session.asked.is_some() {
                    all.push(Action::Leave(host, number, Reach::Whole));
                }
                if state.asked_ahead(host, number).is_some() {
                    all.push(Action::GoOn(host, number));
                }
                continue;
            }
            let at_work = matches!(state.operators[number].at, At::Leasing { .. } | At::Driving { .. });
            if fault && at_work {
                all.push(Action::Cut(host, number));
            }
            if session.asked.is_none() {
                continue;
            }
            all.push(Action::Serve(host, number));
            if fault {
                working = true;
                for reach in state.deaths(rules, host, number) {
                    all.push(Action::SessionDies(host, number, reach));
                    if !matches!(reach, Reach::DiesLate(_)) {
                        all.push(Action::HostDies(host, Some((number, reach))));
                    }
                }
                let failures = state.can_fail(rules, host, number);
                all.extend(failures.into_iter().map(|failure| Action::Fails(host, number, failure)));
            }
        }
        let noticed = here.sessions.iter().any(Option::is_some) || here.journal().is_some_and(|last| last.is_open());
        if fault && here.up && !working && noticed {
            all.push(Action::HostDies(host, None));
        }
    }
    all
}

impl State {
    /// The state after something happened.
    pub fn after(&self, action: Action, rules: &Rules) -> Self {
        let mut next = self.clone();
        match action {
            Action::Look(operator) => next.look(operator),
            Action::Acquire(operator, reach) => next.acquire(rules, operator, reach),
            Action::Overtake(operator) => next.overtake(operator),
            Action::GiveUp(operator) => next.acquire(rules, operator, Reach::Dies(0)),
            Action::Serve(host, operator) => {
                let heard = next.work(rules, host, operator, Reach::Whole);
                next.answered(rules, host, operator, heard);
            }
            Action::Fails(host, operator, failure) => {
                next.faults -= 1;
                let heard = next.work(rules, host, operator, Reach::Fails(failure));
                next.answered(rules, host, operator, heard);
            }
            Action::Leave(host, operator, reach) => {
                next.work(rules, host, operator, reach);
                next.hosts[usize::from(host)].sessions[operator] = None;
            }
            Action::GoOn(host, operator) => {
                let ahead = next.asked_ahead(host, operator);
                next.work(rules, host, operator, Reach::Whole);
                if let Some(session) = next.hosts[usize::from(host)].sessions[operator].as_mut() {
                    session.asked = ahead;
                }
            }
            Action::Land(host, late) => {
                let here = &mut next.hosts[usize::from(host)];
                let effect = here.late.remove(late);
                here.take_effect(effect);
            }
            Action::Expire(host) => next.hosts[usize::from(host)].expired = true,
            Action::Frozen(host) => {
                next.faults -= 1;
                next.hosts[usize::from(host)].expired = true;
            }
            Action::Thawed(host) => next.hosts[usize::from(host)].expired = false,
            Action::Revive(host) => next.hosts[usize::from(host)].boot(),
            Action::OperatorDies(operator) => {
                next.faults -= 1;
                next.operators[operator].at = At::Dead;
                next.operators[operator].seen = std::sync::Arc::default();
                for host in &mut next.hosts {
                    let session = &mut host.sessions[operator];
                    match session {
                        // What was in hand may still be done.
                        Some(one) if one.asked.is_some_and(|ask| ask != Ask::Begin || host.up) => one.deaf = true,
                        _ => *session = None,
                    }
                }
            }
            Action::Cut(host, operator) => {
                next.faults -= 1;
                if let Some(session) = next.hosts[usize::from(host)].sessions[operator].as_mut() {
                    session.deaf = true;
                }
                next.answered(rules, host, operator, Heard::Lost);
            }
            Action::SessionDies(host, operator, reach) => {
                next.faults -= 1;
                next.work(rules, host, operator, reach);
                next.hosts[usize::from(host)].sessions[operator] = None;
                next.answered(rules, host, operator, Heard::Lost);
            }
            Action::HostDies(host, working) => {
                next.faults -= 1;
                if let Some((operator, reach)) = working {
                    next.work(rules, host, operator, reach);
                }
                next.hosts[usize::from(host)].lose_power();
                for operator in 0..next.operators.len() {
                    next.answered(rules, host, operator, Heard::Lost);
                }
            }
        }
        next
    }

    /// Whether nobody is at work.
    fn rests(&self) -> bool {
        let idle = |at: &At| matches!(at, At::Ended { .. } | At::Dead | At::Idle);
        self.operators.iter().all(|operator| idle(&operator.at))
            && self.hosts.iter().all(|host| host.sessions.iter().all(Option::is_none))
    }
}

/// Explores everything that can come of a beginning. Stops at what is found wrong first, or after `most` states.
pub fn explore(start: State, rules: &Rules, most: usize) -> Explored {
    let mut seen: HashSet<u128> = HashSet::from([start.key()]);
    let mut ways: Vec<(u32, Option<Action>)> = vec![(0, None)];
    let mut layer = vec![(0u32, start)];
    let mut explored = Explored { states: 1, transitions: 0, resting: 0, depth: 0, wrong: None };
    let way = |ways: &[(u32, Option<Action>)], mut node: u32| {
        let mut actions = Vec::new();
        while let (before, Some(action)) = ways[node as usize] {
            actions.push(action);
            node = before;
        }
        actions.reverse();
        actions
    };
    while !layer.is_empty() {
        let mut next_layer = Vec::new();
        for (node, state) in layer {
            let mut wrong = state.broken();
            if wrong.is_none() && state.rests() {
                explored.resting += 1;
                wrong = state.can_be_settled(rules).err();
            }
            if let Some(wrong) = wrong {
                explored.wrong = Some((wrong, way(&ways, node)));
                return explored;
            }
            for action in actions(&state, rules) {
                let next = state.after(action, rules);
                explored.transitions += 1;
                if seen.insert(next.key()) {
                    let number = u32::try_from(ways.len()).expect("fewer than four billion");
                    ways.push((node, Some(action)));
                    next_layer.push((number, next));
                }
            }
            if seen.len() > most {
                panic!("more than {most} states: the bounds are too wide");
            }
        }
        explored.states = seen.len();
        explored.depth += usize::from(!next_layer.is_empty());
        layer = next_layer;
    }
    explored
}

/// Follows one way, chosen by numbers, to where nothing more can happen or the numbers end.
///
/// # Errors
/// What is wrong, with the way to it.
pub fn walk(start: State, rules: &Rules, choices: &[u16]) -> Result<(), (&'static str, Vec<Action>)> {
    let mut state = start;
    let mut way = Vec::new();
    for choice in choices {
        let possible = actions(&state, rules);
        if possible.is_empty() {
            break;
        }
        let action = possible[usize::from(*choice) % possible.len()];
        way.push(action);
        state = state.after(action, rules);
        let settled = if state.rests() { state.can_be_settled(rules) } else { Ok(()) };
        if let Some(wrong) = state.broken().or(settled.err()) {
            return Err((wrong, way));
        }
    }
    Ok(())
}
