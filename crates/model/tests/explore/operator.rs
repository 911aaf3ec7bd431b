//! What an operator does: looks, takes leases, follows courses. The executor of `apply`, without its connections.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiji_model::plan::Phase;
use jiji_model::transaction::evidence::Next;
use jiji_model::transaction::{
    Begin, Course, Decision, Ending, Heard, HostRecords, LeaseDecision, Move, Settlement, Way, evidence,
};

use super::host::Reach;
use super::rules::Rules;
/// How often something new is settled before it is left to the next run.
const ROUNDS: u8 = 3;

use super::world::{Ask, At, Id, Script, Session, State, begin, host_id, steps};

impl State {
    fn ids(&self) -> impl Iterator<Item = Id> + use<> {
        0..Id::try_from(self.hosts.len()).expect("few")
    }

    fn session(&mut self, host: Id, operator: usize) -> Option<&mut Session> {
        self.hosts[usize::from(host)].sessions[operator].as_mut().filter(|session| !session.deaf)
    }

    /// Connects to every host that can be reached, and looks.
    pub fn look(&mut self, operator: usize) {
        for host in self.ids() {
            let here = &mut self.hosts[usize::from(host)];
            if here.up {
                here.sessions[operator] = Some(Session { asked: None, deaf: false });
            }
        }
        self.plan(operator);
    }

    /// What is recorded on the hosts that answer; on the given ones, or on all.
    fn records(&self, operator: usize, hosts: Option<&[Id]>) -> BTreeMap<Id, Arc<HostRecords>> {
        let all = self.ids().filter(|host| hosts.is_none_or(|hosts| hosts.contains(host)));
        let answer = |host: &Id| self.hosts[usize::from(*host)].sessions[operator].is_some_and(|session| !session.deaf);
        all.filter(answer).map(|host| (host, Arc::clone(&self.hosts[usize::from(host)].records))).collect()
    }

    /// After a look: settles what is open, or ships.
    fn plan(&mut self, operator: usize) {
        let seen = self.records(operator, None);
        let script = self.operators[operator].script;
        if script != Script::Abort && seen.len() < self.hosts.len() {
            return self.end(operator, false);
        }
        let next = evidence::next(seen.iter().map(|(host, records)| (*host, &**records)), |_| false);
        let (settling, mut hosts) = match next {
            Next::Lease(hosts) => (true, hosts),
            Next::Nothing | Next::Settle(_) => (false, Vec::new()),
        };
        if settling {
            self.operators[operator].rounds += 1;
            if self.operators[operator].rounds > ROUNDS {
                return self.end(operator, false);
            }
        }
        let fencing = evidence::next_fencing(seen.values().map(|records| &**records));
        if !settling {
            if script == Script::Abort {
                return self.end(operator, true);
            }
            let version = Id::try_from(operator + 1).expect("few");
            let of = |host: &Id| {
                let here = &self.hosts[usize::from(*host)];
                steps(*host, here.routed, here.runs, version, script == Script::Watched)
            };
            let planned: BTreeMap<_, _> =
                seen.keys().map(|host| (*host, of(host))).filter(|(_, s)| !s.is_empty()).collect();
            hosts = planned.keys().copied().collect();
            if hosts.is_empty() {
                return self.end(operator, true);
            }
            let begins = planned.into_iter();
            let begins =
                begins.map(|(host, steps)| (host, Arc::new(begin(operator, fencing, &hosts, host, version, steps))));
            self.operators[operator].begins = Arc::new(begins.collect());
        }
        let this = &mut self.operators[operator];
        this.fencing = fencing;
        this.seen = Arc::new(seen);
        this.at = At::Leasing { hosts, next: 0, settling };
    }

    /// The next host whose lease is wanted, and what it would answer. None: it does not answer at all.
    pub fn wanted(&self, operator: usize) -> Option<(Id, Option<LeaseDecision>)> {
        let At::Leasing { hosts, next, .. } = &self.operators[operator].at else { return None };
        let host = hosts[*next];
        let session = self.hosts[usize::from(host)].sessions[operator];
        let answers = session.is_some_and(|session| !session.deaf);
        Some((host, answers.then(|| self.lease_answer(host, operator))))
    }

    /// Lets the next but one of the leases that are asked for at once be answered before the next.
    pub fn overtake(&mut self, operator: usize) {
        if let At::Leasing { hosts, next, .. } = &mut self.operators[operator].at {
            hosts.swap(*next, *next + 1);
        }
    }

    /// Asks for the next lease. `reach`: how far an older session gets with what it was doing, where it is ended for it.
    pub fn acquire(&mut self, rules: &Rules, operator: usize, reach: Reach) {
        let Some((host, answer)) = self.wanted(operator) else { return };
        let Some(LeaseDecision::Granted(lease)) = answer else {
            return self.end(operator, false);
        };
        self.grant(rules, host, lease, reach);
        let At::Leasing { hosts, next, settling } = &mut self.operators[operator].at else { return };
        *next += 1;
        if *next < hosts.len() {
            return;
        }
        let (mut hosts, settling) = (std::mem::take(hosts), *settling);
        hosts.sort_unstable();
        // Under the leases nothing moves any more. Who settles looks at the others too.
        let now = self.records(operator, (!settling).then_some(&hosts));
        let seen = Arc::clone(&self.operators[operator].seen);
        if now.len() < if settling { seen.len() } else { hosts.len() } {
            return self.end(operator, false);
        }
        if settling {
            let now = if rules.stale_evidence {
                let mut known = (*seen).clone();
                known.extend(now.into_iter().filter(|(host, _)| hosts.contains(host)));
                known
            } else {
                now
            };
            let known = now.iter().map(|(host, records)| (*host, &**records));
            let leased = |host: Id| hosts.contains(&host) || rules.stale_evidence;
            let Next::Settle(open) = evidence::next(known, leased) else {
                self.give_back(operator);
                return self.plan(operator);
            };
            let rest = open.into_iter().map(|(open, hosts)| (Arc::new(open.begin.clone()), hosts)).collect();
            self.operators[operator].seen = Arc::new(now);
            self.settle_next(rules, operator, rest);
        } else if now.iter().any(|(host, now)| evidence::moved(&seen[host], now, false).is_some()) {
            self.end(operator, false);
        } else {
            let batches = hosts.iter().map(|host| vec![*host]).collect();
            let course = Course::begin(batches);
            let watched = self.operators[operator].script == Script::Watched;
            let course = if watched { course.watched() } else { course };
            self.drive(rules, operator, course, Vec::new(), false);
        }
    }

    fn settle_next(&mut self, rules: &Rules, operator: usize, mut rest: Vec<(Arc<Begin>, Vec<Id>)>) {
        while !rest.is_empty() {
            let (open, hosts) = rest.remove(0);
            let known = Arc::clone(&self.operators[operator].seen);
            let here: Vec<Id> = open.hosts.iter().map(host_id).collect();
            let traces = here.iter().filter_map(|host| known.get(host));
            let traces = traces.map(|records| evidence::trace(&open.transaction, open.fencing, records));
            let away = evidence::away(&open, |host| known.contains_key(&host_id(host)), None);
            let (decision, sure) = match rules.way(traces, !away.is_empty()) {
                Way::Commit { known } => (Decision::Commit, known),
                Way::Revert => (Decision::Revert, false),
                Way::Wait => {
                    self.operators[operator].doubt = true;
                    continue;
                }
            };
            return self.drive(rules, operator, Course::settle(hosts, decision, sure), rest, true);
        }
        self.give_back(operator);
        if self.operators[operator].doubt {
            self.end(operator, false);
        } else {
            // Something may have been left open meanwhile where nothing was.
            self.plan(operator);
        }
    }

    fn drive(
        &mut self,
        rules: &Rules,
        operator: usize,
        course: Course<Id>,
        rest: Vec<(Arc<Begin>, Vec<Id>)>,
        settling: bool,
    ) {
        self.operators[operator].at = At::Driving { course, heard: BTreeMap::new(), rest, settling };
        self.go_on(rules, operator);
    }

    /// Asks the hosts of the next move. Those that cannot be asked are lost at once.
    fn go_on(&mut self, rules: &Rules, operator: usize) {
        loop {
            let At::Driving { course, .. } = &self.operators[operator].at else { return };
            let fencing = self.operators[operator].fencing;
            let (ask, hosts) = match course.next() {
                Move::Begin { hosts } => (Ask::Begin, hosts),
                Move::Run { phase, hosts, .. } => {
                    let phase = if rules.drain_first && phase == Phase::Cutover { Phase::Drain } else { phase };
                    // Hosts without a step of it are not asked, as in `apply`.
                    let hosts = hosts.into_iter().filter(|host| self.has_steps(*host, operator, phase)).collect();
                    (Ask::Run(phase), hosts)
                }
                Move::Settle { decision, hosts } => (Ask::Settle(Settlement { decision, fencing }), hosts),
                Move::Undo { hosts } => (Ask::Undo, hosts),
                Move::Conclude { decision, hosts } => (Ask::Conclude(decision), hosts),
                Move::End(ending) => return self.ended(rules, operator, ending),
            };
            let mut heard = BTreeMap::new();
            for host in hosts {
                let asked = self.session(host, operator).map(|session| session.asked = Some(ask));
                heard.insert(host, if asked.is_some() { None } else { Some(Heard::Lost) });
            }
            let all = heard.values().all(Option::is_some);
            if let At::Driving { heard: waiting, .. } = &mut self.operators[operator].at {
                *waiting = heard;
            }
            if !all {
                return;
            }
            self.take_in(rules, operator);
        }
    }

    /// What a session was asked along with what it has in hand, as `apply` does where a transaction is of one host alone: up to the
    /// decision, or from it to the conclusion. Hosts that are heard are asked one thing after the other here, which comes to the same.
    pub fn asked_ahead(&self, host: Id, operator: usize) -> Option<Ask> {
        let here = &self.hosts[usize::from(host)];
        let asked = here.sessions[operator]?.asked?;
        let begin = match asked {
            Ask::Begin => self.operators[operator].begins.get(&host).map(|begin| &**begin),
            _ => here.journal().map(|last| &last.begin),
        };
        let begin = begin.filter(|begin| begin.hosts.len() == 1)?;
        let after = |earlier: Option<Phase>, decided: bool| {
            let mut phases = Phase::ALL.into_iter().filter(|phase| phase.before_decided() != decided);
            let has = |phase: &Phase| begin.steps.iter().any(|step| step.phase == *phase);
            let phase = phases.find(|phase| earlier.is_none_or(|earlier| earlier < *phase) && has(phase));
            phase.map(Ask::Run).or(decided.then_some(Ask::Conclude(Decision::Commit)))
        };
        match asked {
            Ask::Begin => after(None, false),
            Ask::Run(phase) => after(Some(phase), !phase.before_decided()),
            Ask::Settle(settlement) if settlement.decision == Decision::Commit => after(None, true),
            _ => None,
        }
    }

    fn has_steps(&self, host: Id, operator: usize, phase: Phase) -> bool {
        let settling = matches!(&self.operators[operator].at, At::Driving { settling: true, .. });
        if settling {
            let open = self.operators[operator].seen.get(&host).and_then(|records| records.transaction.as_ref());
            return open.is_some_and(|open| open.begin.steps.iter().any(|step| step.phase == phase));
        }
        self.operators[operator].begins[&host].steps.iter().any(|step| step.phase == phase)
    }

    /// Takes in what all hosts of a move answered.
    fn take_in(&mut self, rules: &Rules, operator: usize) {
        let At::Driving { course, heard, .. } = &mut self.operators[operator].at else { return };
        let mut answers: BTreeMap<Id, Heard> =
            std::mem::take(heard).into_iter().map(|(host, heard)| (host, heard.unwrap_or(Heard::Lost))).collect();
        if rules.go_on_without_all && matches!(course.next(), Move::Settle { decision: Decision::Commit, .. }) {
            answers.clear();
        }
        course.hear(&answers);
    }

    /// A host answered, or is lost to its operator.
    pub fn answered(&mut self, rules: &Rules, host: Id, operator: usize, answer: Heard) {
        let At::Driving { heard, .. } = &mut self.operators[operator].at else { return };
        let Some(waiting) = heard.get_mut(&host) else { return };
        *waiting = Some(answer);
        if heard.values().all(Option::is_some) {
            self.take_in(rules, operator);
            self.go_on(rules, operator);
        }
    }

    fn ended(&mut self, rules: &Rules, operator: usize, ending: Ending) {
        let At::Driving { course, rest, settling, .. } = &mut self.operators[operator].at else { return };
        let (hosts, lost) = (course.hosts(), !course.lost().is_empty());
        let (rest, settling) = (std::mem::take(rest), *settling);
        let doubt = match ending {
            Ending::Concluded(_) => {
                if hosts.iter().any(|host| self.hosts[usize::from(*host)].journal().is_none_or(|last| last.is_open())) {
                    self.wrong.get_or_insert("a settled run left a journal open on a host that answers");
                }
                false
            }
            Ending::Waiting | Ending::NotTakenBack => true,
        };
        self.operators[operator].doubt |= doubt || lost;
        if settling {
            if self.operators[operator].doubt {
                return self.end(operator, false);
            }
            self.settle_next(rules, operator, rest)
        } else {
            let good = ending == Ending::Concluded(Decision::Commit) && !self.operators[operator].doubt;
            self.end(operator, good);
        }
    }

    /// Gives back the leases of the hosts that hear it.
    fn give_back(&mut self, operator: usize) {
        for host in self.ids() {
            if self.session(host, operator).is_none() {
                continue;
            }
            let here = &mut self.hosts[usize::from(host)];
            if here.lease.as_ref().is_some_and(|lease| usize::try_from(lease.session) == Ok(operator)) {
                here.lease = None;
                here.expired = false;
            }
        }
    }

    /// The run is over. Sessions that hear end; those that do not are left to themselves.
    fn end(&mut self, operator: usize, good: bool) {
        self.give_back(operator);
        let answer: Vec<Id> = self.ids().filter(|host| self.session(*host, operator).is_some()).collect();
        for host in &answer {
            self.hosts[usize::from(*host)].sessions[operator] = None;
        }
        let this = &mut self.operators[operator];
        this.at = At::Ended { good };
        this.seen = Arc::default();
        if good {
            self.check_good(operator, &answer);
        }
    }

    /// A run that ended well: all hosts that it reached agree, none is open, and none holds its lease.
    fn check_good(&mut self, operator: usize, answer: &[Id]) {
        let hosts = || answer.iter().map(|host| &self.hosts[usize::from(*host)]);
        let mut routed: Vec<Id> = hosts().map(|host| host.routed).collect();
        routed.dedup();
        let leased =
            hosts().any(|host| host.lease.as_ref().is_some_and(|lease| usize::try_from(lease.session) == Ok(operator)));
        // Where another operator is at work by now, it has the word.
        let at_work = self.hosts.iter().any(|host| host.sessions.iter().any(Option::is_some));
        if leased {
            self.wrong.get_or_insert("a settled run left a lease");
        } else if !at_work && hosts().any(|host| host.journal().is_some_and(|last| last.is_open())) {
            self.wrong.get_or_insert("a settled run left a journal open on a host that it reached");
        } else if routed.len() > 1 && !at_work {
            self.wrong.get_or_insert("after a settled run the hosts that it reached do not agree");
        }
    }

    /// What the next run would do, with every host reached and nothing going wrong, must end well.
    pub fn can_be_settled(&self, rules: &Rules) -> Result<(), &'static str> {
        let mut later = self.clone();
        later.faults = 0;
        for host in &mut later.hosts {
            if !host.up {
                host.boot();
            }
            host.sessions.fill(None);
            host.sessions.push(None);
            host.held.push(None);
        }
        let settler = later.operators.len();
        let mut run = later.operators[0].clone();
        run.script = Script::Abort;
        run.at = At::Idle;
        run.begins = Arc::default();
        run.doubt = false;
        run.rounds = 0;
        later.operators.push(run);
        later.look(settler);
        for _ in 0..1000 {
            match &later.operators[settler].at {
                At::Leasing { .. } => later.acquire(rules, settler, Reach::Dies(0)),
                At::Driving { .. } => {
                    let asked = later.ids().find(|host| {
                        later.hosts[usize::from(*host)].sessions[settler].is_some_and(|session| session.asked.is_some())
                    });
                    let Some(host) = asked else { return Err("the next run gets stuck") };
                    let heard = later.work(rules, host, settler, Reach::Whole);
                    later.answered(rules, host, settler, heard);
                }
                At::Ended { good: true } => break,
                _ => return Err("the next run cannot settle what was left"),
            }
        }
        for host in &mut later.hosts {
            for effect in std::mem::take(&mut host.late) {
                host.take_effect(effect);
            }
            if host.runs & (1 << host.routed) == 0 {
                return Err("requests go to a container that is gone");
            }
            if host.journal().is_some_and(|last| last.is_open()) {
                return Err("the next run left a journal open");
            }
        }
        later.operators.pop();
        if later.hosts.iter().any(|host| host.routed != later.hosts[0].routed) {
            return Err("after the next run the hosts do not agree");
        }
        later.broken().map_or(Ok(()), Err)
    }

    /// The invariant that does not hold, if one does not.
    pub fn broken(&self) -> Option<&'static str> {
        if self.wrong.is_some() {
            return self.wrong;
        }
        if self.hosts.iter().any(|host| host.runs & (1 << host.routed) == 0) {
            return Some("requests go to a container that is gone");
        }
        for history in &self.histories {
            if history.committed && history.reverted {
                return Some("a transaction ended both ways");
            }
            let highest = history.highest.map(|settlement| settlement.decision);
            if history.committed && highest != Some(Decision::Commit)
                || history.reverted && highest != Some(Decision::Revert)
            {
                return Some("the settlement with the highest number does not hold everywhere");
            }
        }
        None
    }
}
