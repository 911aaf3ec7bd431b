//! Bringing to an end what a run of jiji that is gone left open.

use std::collections::{BTreeMap, BTreeSet};

use jiji_model::event::Sink;
use jiji_model::name::HostName;
use jiji_model::project::Rollout;
use jiji_model::transaction::evidence::Next;
use jiji_model::transaction::{Begin, Course, Decision, Ending, Transaction, Way, evidence};

use super::cancel::Cancel;
use super::drive::Drive;
use super::error::{ApplyError, Cause, Failure};
use super::events::{Hearing, Watch};
use super::fan::split;
use super::follow::{Detached, follow};
use super::lease;
use super::link::HostLink;
use super::points::Points;
use super::{Options, Seen};

/// How often something new that is open is settled before it is left to the next run.
const ROUNDS: u32 = 3;

/// A transaction that was settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// Its id.
    pub transaction: String,
    /// Who had begun it.
    pub who: String,
    /// What was typed to begin it.
    pub command: String,
    /// Which way it ended.
    pub decision: Decision,
    /// Hosts on which it was open and is concluded now.
    pub hosts: Vec<HostName>,
    /// Hosts that took part and could not be asked: they stay in doubt until they are reached.
    pub away: Vec<HostName>,
    /// Steps after the decision that failed.
    pub left: Vec<Failure>,
}

/// A transaction that is open on some host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    /// Its id.
    pub transaction: String,
    /// Who began it.
    pub who: String,
    /// What was typed to begin it.
    pub command: String,
    /// Which way it would be settled, from what these hosts know; none where hosts must be reached first.
    pub decision: Option<Decision>,
    /// Hosts on which it is open.
    pub hosts: Vec<HostName>,
    /// Hosts that take part and were not seen.
    pub away: Vec<HostName>,
    /// Whether it was brought to its end on another host already, which these only have to follow.
    pub ended_elsewhere: bool,
    /// Whether whoever began it, or whoever settles it, is at work on one of the hosts.
    pub at_work: bool,
}

/// Every transaction that is open on a host, the oldest first. `project`: its hosts, where they are known.
pub fn open(seen: &Seen, project: Option<&BTreeSet<HostName>>) -> Vec<Open> {
    let open = evidence::open(seen).into_iter().map(|(transaction, hosts)| {
        let begin = &transaction.begin;
        Open {
            transaction: begin.transaction.clone(),
            who: begin.who.clone(),
            command: begin.command.clone(),
            decision: match way(begin, seen, project) {
                Way::Commit { .. } => Some(Decision::Commit),
                Way::Revert => Some(Decision::Revert),
                Way::Wait => None,
            },
            away: begin.hosts.iter().filter(|host| !seen.contains_key(*host)).cloned().collect(),
            ended_elsewhere: ended_elsewhere(begin, seen),
            at_work: hosts.iter().any(|host| seen[*host].lease.as_ref().is_some_and(|lease| lease.live)),
            hosts: hosts.into_iter().cloned().collect(),
        }
    });
    open.collect()
}

/// Whether another host than those where it is open has brought it to its end.
fn ended_elsewhere(begin: &Begin, seen: &Seen) -> bool {
    evidence::is_ended_elsewhere(begin, begin.hosts.iter().filter_map(|host| seen.get(host)))
}

/// Whether everything that is open may be settled in the way that was wished for.
fn may(options: &Options, known: &Seen) -> bool {
    !options.follow_only || evidence::open(known).iter().all(|(open, _)| ended_elsewhere(&open.begin, known))
}

/// Settles every transaction that is open on a host, the oldest first, the way that the hosts' records tell ([`evidence`]). `seen` is what
/// every host that answers had recorded; look again afterwards.
///
/// # Errors
/// [`ApplyError::Held`] where the run that began it is still at work, [`ApplyError::Unsettled`] where a step is in the way,
/// [`ApplyError::Waiting`] where hosts must be reached first, and what else stops a transaction.
pub async fn settle_open<L: HostLink>(
    scope: &str,
    seen: &Seen,
    links: &BTreeMap<HostName, L>,
    options: &Options,
    cancel: &Cancel,
    sink: &dyn Sink,
) -> Result<Vec<Settled>, ApplyError> {
    let watch = Watch::new(sink);
    let all: BTreeMap<HostName, &L> = links.iter().map(|(host, link)| (host.clone(), link)).collect();
    let mut known = seen.clone();
    let mut all_settled = Vec::new();
    for _ in 0..ROUNDS {
        if !may(options, &known) {
            return Ok(all_settled);
        }
        let reached = known.iter().filter(|(host, _)| all.contains_key(*host));
        let hosts = match evidence::next(reached, |_| false) {
            Next::Lease(hosts) => hosts,
            Next::Nothing | Next::Settle(_) => return Ok(all_settled),
        };
        let with_open: BTreeMap<HostName, &L> = hosts.into_iter().map(|host| (host.clone(), all[host])).collect();
        let fencing = lease::next_fencing(&known);
        lease::take(&with_open, scope, fencing, &lease::Offers::new(), options, cancel, &watch).await?;
        let settled = settle_leased(scope, &all, &with_open, fencing, options, cancel, &watch).await;
        lease::give_back(with_open.values().copied()).await;
        all_settled.extend(settled?);
        // Whoever was at work may have left something open meanwhile, on hosts where nothing was.
        let (now, errors) = split(lease::look_again(&all, scope).await);
        if let Some(error) = errors.into_values().next() {
            return Err(error.into());
        }
        known.extend(now);
    }
    let open = evidence::open(&known).into_iter().flat_map(|(_, hosts)| hosts).next();
    match open {
        Some(host) => Err(ApplyError::Moved { host: host.clone(), what: "another transaction began there" }),
        None => Ok(all_settled),
    }
}

async fn settle_leased<L: HostLink>(
    scope: &str,
    all: &BTreeMap<HostName, &L>,
    links: &BTreeMap<HostName, &L>,
    fencing: u64,
    options: &Options,
    cancel: &Cancel,
    watch: &Watch<'_>,
) -> Result<Vec<Settled>, ApplyError> {
    // Under the leases nothing moves any more where something is open: what the dead run's last step did is recorded by now. The others
    // are looked at again too: what they tell must not be older than what the leased ones do.
    let (known, errors) = split(lease::look_again(all, scope).await);
    if let Some(error) = errors.into_values().next() {
        return Err(error.into());
    }
    if !may(options, &known) {
        return Ok(Vec::new());
    }
    let open = match evidence::next(&known, |host| links.contains_key(host)) {
        Next::Settle(open) => open,
        // It began on more hosts meanwhile, whose leases are needed too; or it has ended.
        Next::Lease(_) | Next::Nothing => return Ok(Vec::new()),
    };
    let mut all_settled = Vec::new();
    let mut waits = None;
    for (transaction, hosts) in open {
        let links = hosts.into_iter().map(|host| (host.clone(), links[host])).collect();
        match settle_one(&transaction.begin, &known, links, fencing, options, cancel, watch).await {
            Ok(settled) => all_settled.push(settled),
            // Others may be open beside it, on other hosts.
            Err(error @ ApplyError::Waiting { .. }) => waits = Some(error),
            Err(error) => return Err(error),
        }
    }
    waits.map_or(Ok(all_settled), Err)
}

/// Which way a transaction ends, from what these hosts know of it.
fn way(begin: &Begin, seen: &Seen, project: Option<&BTreeSet<HostName>>) -> Way {
    let traces = begin.hosts.iter().filter_map(|host| seen.get(host));
    let traces = traces.map(|records| evidence::trace(&begin.transaction, begin.fencing, records));
    let away = evidence::away(begin, |host| seen.contains_key(host), project);
    evidence::way(traces, !away.is_empty())
}

async fn settle_one<'a, L: HostLink>(
    begin: &'a Begin,
    known: &'a Seen,
    links: BTreeMap<HostName, &'a L>,
    fencing: u64,
    options: &'a Options,
    cancel: &'a Cancel,
    watch: &'a Watch<'a>,
) -> Result<Settled, ApplyError> {
    let id = &begin.transaction;
    let (decision, sure) = match way(begin, known, options.project.as_ref()) {
        Way::Commit { known } => (Decision::Commit, known),
        Way::Revert => (Decision::Revert, false),
        Way::Wait => {
            let away = evidence::away(begin, |host| known.contains_key(host), options.project.as_ref());
            return Err(ApplyError::Waiting { transaction: id.clone(), away: away.into_iter().cloned().collect() });
        }
    };
    let transactions: BTreeMap<&HostName, &Transaction> =
        links.keys().filter_map(|host| Some((host, known.get(host)?.transaction.as_ref()?))).collect();
    let begins: BTreeMap<_, _> =
        transactions.iter().map(|(host, transaction)| ((*host).clone(), transaction.begin.clone())).collect();
    let (who, command) = (begin.who.clone(), begin.command.clone());
    watch.settling(id, decision, &who, &command);
    let steps: Vec<_> = transactions.values().flat_map(|transaction| &transaction.begin.steps).collect();
    let typed = format!("{command}, settled by {} of {}", options.command, options.who);
    let mut drive = Drive {
        hearing: Hearing::of(links.values().copied(), steps),
        links,
        lost: Vec::new(),
        begins,
        fencing,
        interruptible: false,
        // More than one transaction may be settled under them.
        gives_back: false,
        given_back: BTreeSet::new(),
        // How many releases should stay is the next plan's to say.
        retain: u32::MAX,
        command: &typed,
        rollout: Rollout::default(),
        batches: 0,
        options,
        cancel,
        watch,
    };
    let course = Course::settle(drive.hosts(), decision, sure);
    let followed = match follow(&mut drive, course, &Points::default()).await {
        Ok(followed) => followed,
        Err(Detached { .. }) => {
            let hosts_left = drive.begins.keys().cloned().collect();
            return Err(ApplyError::Detached { hosts_left, decision: Some(decision) });
        }
    };
    if followed.ending == Ending::NotTakenBack {
        let cause = Cause::Step(followed.not_undone);
        return Err(ApplyError::Unsettled { transaction: id.clone(), decision, cause });
    }
    if !drive.lost.is_empty() {
        return Err(ApplyError::InDoubt { decision, cause: None, lost: drive.lost });
    }
    Ok(Settled {
        transaction: id.clone(),
        who,
        command,
        decision,
        hosts: drive.hosts(),
        away: begin.hosts.iter().filter(|host| !known.contains_key(*host)).cloned().collect(),
        left: followed.left,
    })
}
