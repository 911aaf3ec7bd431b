//! Bringing to an end what a run of jiji that is gone left open.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiji_model::event::Sink;
use jiji_model::name::HostName;
use jiji_model::plan::Phase;
use jiji_model::transaction::journal::resolve;
use jiji_model::transaction::{Decision, HostRecords, Transaction};

use super::cancel::Cancel;
use super::drive::{Drive, Stop};
use super::error::{ApplyError, Cause, Failure};
use super::events::{Hearing, Watch};
use super::fan::split;
use super::lease;
use super::link::HostLink;
use super::{Options, Seen};
use crate::fleet::FleetError;

/// A transaction that was settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// Its id.
    pub transaction: String,
    /// Who had begun it.
    pub who: String,
    /// Which way it ended.
    pub decision: Decision,
    /// Hosts on which it was open and is concluded now.
    pub hosts: Vec<HostName>,
    /// Hosts that took part and could not be asked: they stay in doubt until they are reached.
    pub away: Vec<HostName>,
    /// Steps after the decision that failed.
    pub left: Vec<Failure>,
}

/// Settles every transaction that is open on a host, the oldest first: the way the highest settlement says that any host recorded, and
/// back where there is none. `seen` is what every host that answers had recorded; look again afterwards.
///
/// # Errors
/// [`ApplyError::Held`] where the run that began it is still at work, [`ApplyError::Unsettled`] where a step is in the way, and what
/// else stops a transaction.
pub async fn settle_open<L: HostLink>(
    scope: &str,
    seen: &Seen,
    links: &BTreeMap<HostName, L>,
    options: &Options,
    cancel: &Cancel,
    sink: &dyn Sink,
) -> Result<Vec<Settled>, ApplyError> {
    let open = |records: &HostRecords| records.transaction.as_ref().is_some_and(Transaction::is_open);
    let hosts: BTreeSet<&HostName> = seen.iter().filter(|(_, records)| open(records)).map(|(host, _)| host).collect();
    let with_open: BTreeMap<HostName, &L> =
        links.iter().filter(|(host, _)| hosts.contains(host)).map(|(host, link)| (host.clone(), link)).collect();
    if with_open.is_empty() {
        return Ok(Vec::new());
    }
    let watch = Watch::new(sink);
    let fencing = lease::next_fencing(seen);
    lease::take(&with_open, scope, fencing, options, cancel, &watch).await?;
    let settled = settle_leased(scope, seen, &with_open, fencing, options, cancel, &watch).await;
    lease::give_back(with_open.values().copied()).await;
    settled
}

async fn settle_leased<L: HostLink>(
    scope: &str,
    seen: &Seen,
    links: &BTreeMap<HostName, &L>,
    fencing: u64,
    options: &Options,
    cancel: &Cancel,
    watch: &Watch<'_>,
) -> Result<Vec<Settled>, ApplyError> {
    // Under the leases nothing moves any more: what the dead run's last step did is recorded by now.
    let (now, errors) = split(lease::look_again(links, scope).await);
    if let Some(error) = errors.into_values().next() {
        return Err(error.into());
    }
    let mut known = seen.clone();
    known.extend(now);
    let mut open: BTreeMap<(u64, String), Vec<HostName>> = BTreeMap::new();
    for (host, records) in &known {
        if let Some(transaction) = records.transaction.as_ref().filter(|transaction| transaction.is_open())
            && links.contains_key(host)
        {
            let begin = &transaction.begin;
            let key = (begin.fencing, begin.transaction.clone());
            open.entry(key).or_default().push(host.clone());
        }
    }
    let mut all_settled = Vec::new();
    for ((_, id), hosts) in open {
        let links =
            links.iter().filter(|(host, _)| hosts.contains(host)).map(|(host, link)| (host.clone(), *link)).collect();
        all_settled.push(settle_one(&id, &known, links, fencing, options, cancel, watch).await?);
    }
    Ok(all_settled)
}

/// Which way a transaction ends. Besides the settlements, a release that it made tells that it was decided: a host that is further on
/// keeps no journal of it.
fn way(id: &str, known: &Seen) -> Decision {
    let made = |records: &HostRecords| records.releases.iter().any(|release| release.transaction == id);
    let transactions = known.values().filter_map(|records| records.transaction.as_ref());
    let of_this: Vec<_> = transactions.filter(|transaction| transaction.begin.transaction == id).collect();
    let settled = of_this.iter().any(|transaction| transaction.settlement.is_some());
    if !settled && known.values().any(made) {
        return Decision::Commit;
    }
    resolve(of_this)
}

async fn settle_one<'a, L: HostLink>(
    id: &str,
    known: &'a Seen,
    links: BTreeMap<HostName, &'a L>,
    fencing: u64,
    options: &'a Options,
    cancel: &'a Cancel,
    watch: &'a Watch<'a>,
) -> Result<Settled, ApplyError> {
    let decision = way(id, known);
    let transactions: BTreeMap<&HostName, &Transaction> =
        links.keys().filter_map(|host| Some((host, known.get(host)?.transaction.as_ref()?))).collect();
    let begins: BTreeMap<_, _> =
        transactions.iter().map(|(host, transaction)| ((*host).clone(), transaction.begin.clone())).collect();
    let (who, command, all_hosts) = match begins.values().next() {
        Some(begin) => (begin.who.clone(), begin.command.clone(), begin.hosts.clone()),
        None => (String::new(), String::new(), Vec::new()),
    };
    watch.settling(id, decision, &who);
    let quiet = transactions.values().map(|transaction| transaction.quiet_ms()).max();
    tokio::time::sleep(Duration::from_millis(quiet.unwrap_or(0).into())).await;
    let steps: Vec<_> = transactions.values().flat_map(|transaction| &transaction.begin.steps).collect();
    let mut drive = Drive {
        hearing: Hearing::of(links.values().copied(), steps),
        links,
        lost: Vec::new(),
        begins,
        fencing,
        interruptible: false,
        options,
        cancel,
        watch,
    };
    let command = format!("{command}, settled by {} of {}", options.command, options.who);
    let ended = match decision {
        Decision::Commit => finish(&mut drive, &command).await,
        Decision::Revert => take_back(&mut drive, &command).await,
    };
    let left = match ended {
        Ok(left) => left,
        Err(Stop::Detach) => {
            return Err(ApplyError::Detached {
                hosts_left: drive.begins.keys().cloned().collect(),
                decision: Some(decision),
            });
        }
        Err(Stop::Cause(cause)) => {
            return Err(ApplyError::Unsettled { transaction: id.to_owned(), decision, cause });
        }
    };
    if !drive.lost.is_empty() {
        return Err(ApplyError::InDoubt { decision, cause: None, lost: drive.lost });
    }
    Ok(Settled {
        transaction: id.to_owned(),
        who,
        decision,
        hosts: drive.hosts(),
        away: all_hosts.into_iter().filter(|host| !known.contains_key(host)).collect(),
        left,
    })
}

/// Why settling stops, if it does: a failure, or a host that refuses.
fn in_the_way(failures: Vec<Failure>, errors: Vec<FleetError>) -> Result<(), Stop> {
    if !failures.is_empty() {
        Err(Stop::Cause(Cause::Step(failures)))
    } else if let Some(error) = errors.into_iter().find(|error| !error.is_lost()) {
        Err(Stop::Cause(Cause::Host(error)))
    } else {
        Ok(())
    }
}

/// Everything that is left, forward. Steps up to the cutover are done where this was decided, but for a host that went the other way
/// before; there they must succeed.
async fn finish<L: HostLink>(drive: &mut Drive<'_, L>, command: &str) -> Result<Vec<Failure>, Stop> {
    drive.settle(Decision::Commit, &drive.hosts()).await?;
    let mut left = Vec::new();
    for phase in Phase::ALL {
        let run = drive.run(phase, &drive.hosts()).await?;
        if phase.before_decided() {
            in_the_way(run.failures, run.errors)?;
        } else {
            left.extend(run.failures);
            in_the_way(Vec::new(), run.errors)?;
        }
    }
    // How many releases should stay is the next plan's to say.
    drive.conclude(Decision::Commit, &drive.hosts(), u32::MAX, command).await?;
    Ok(left)
}

/// Everything that was done, back.
async fn take_back<L: HostLink>(drive: &mut Drive<'_, L>, command: &str) -> Result<Vec<Failure>, Stop> {
    let settled = drive.settle(Decision::Revert, &drive.hosts()).await?;
    let run = drive.undo(&settled).await?;
    let clean: Vec<_> =
        drive.hosts().into_iter().filter(|host| run.failures.iter().all(|failure| failure.host != *host)).collect();
    drive.conclude(Decision::Revert, &clean, u32::MAX, command).await?;
    in_the_way(run.failures, run.errors)?;
    Ok(Vec::new())
}
