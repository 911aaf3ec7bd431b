//! Which way an interrupted transaction ends, from what the hosts that answer have recorded.
//!
//! A host is not asked what it would like: it is read. Nothing here changes a record; how the way is gone is [`super::course`]'s.
//!
//! The rule rests on one promise, which [`super::course`] keeps: nothing that cannot be taken back is done on any host before every host of
//! the transaction has recorded the commit. So whoever meets a host that recorded none knows that nobody went on, and whoever meets a host
//! that went on knows that all have recorded it. Where all that answer have recorded it and some do not answer, neither is known, and both
//! versions stay until they do.

use std::collections::BTreeSet;

use crate::name::HostName;

use super::{Begin, Decision, HostRecords, Transaction};

/// What one host's records tell about how a transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Trace {
    /// Nothing: it never began here, or the host was replaced by an empty one, or it is long ago.
    Nothing,
    /// It is open, and nothing is decided.
    Undecided,
    /// Its commit is recorded, and nothing was done since that cannot be taken back.
    Committed,
    /// Its revert is recorded, or the host is further on and did not keep it.
    Reverted,
    /// Its commit is recorded on every host: this one went on, or concluded it.
    Final,
}

/// Which way a transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Way {
    /// The new version stays. `known`: some host went on already, so all have recorded it; otherwise every host must record it first.
    Commit {
        /// Whether all are known to have recorded the commit.
        known: bool,
    },
    /// The old version stays.
    Revert,
    /// It was committed as far as can be seen, and hosts that do not answer may have been told so or may have taken it back: both
    /// versions stay until they are reached.
    Wait,
}

/// What `records` tell about the transaction `id`, which began under the number `fencing`.
pub fn trace(id: &str, fencing: u64, records: &HostRecords) -> Trace {
    let journal = records.transaction.as_ref();
    if let Some(this) = journal.filter(|last| last.begin.transaction == id) {
        return match this.settlement.map(|settlement| settlement.decision) {
            None => Trace::Undecided,
            Some(Decision::Revert) => Trace::Reverted,
            Some(Decision::Commit) if this.went_on() => Trace::Final,
            Some(Decision::Commit) => Trace::Committed,
        };
    }
    if records.releases.iter().any(|release| release.transaction == id) {
        return Trace::Final;
    }
    // A journal is written over only once its transaction was concluded, and one that was committed left a release. Releases go the
    // oldest first, so while an older one is there, or none ever was, this one was not among them.
    let further = journal.is_some_and(|last| last.begin.fencing > fencing);
    let kept = records.releases.is_empty() || records.releases.iter().any(|release| release.number < fencing);
    if further && kept { Trace::Reverted } else { Trace::Nothing }
}

/// Which way a transaction ends that is open somewhere. `traces` of its hosts that answer, those without a lease of this run too; `away`:
/// whether hosts of it do not answer which are still of the project.
pub fn way(traces: impl IntoIterator<Item = Trace>, away: bool) -> Way {
    let mut seen = [false; 5];
    for trace in traces {
        seen[trace as usize] = true;
    }
    let has = |trace: Trace| seen[trace as usize];
    if has(Trace::Final) {
        Way::Commit { known: true }
    } else if has(Trace::Reverted) || !has(Trace::Committed) {
        Way::Revert
    } else if !away {
        Way::Commit { known: false }
    } else if has(Trace::Undecided) {
        Way::Revert
    } else {
        Way::Wait
    }
}

/// Whether a transaction that is open on a host was brought to its end on another one, of those whose records are `known`. Then the way it
/// ends is nobody's choice any more, and the host follows the others when it is reached.
pub fn is_ended_elsewhere<'a>(begin: &Begin, known: impl IntoIterator<Item = &'a HostRecords>) -> bool {
    let id = begin.transaction.as_str();
    known.into_iter().any(|records| {
        let open = records.transaction.as_ref().filter(|last| last.begin.transaction == id);
        let ended = matches!(trace(id, begin.fencing, records), Trace::Final | Trace::Reverted);
        ended && open.is_none_or(|last| !last.is_open())
    })
}

/// The number for the next run: one more than the highest that any host has granted.
pub fn next_fencing<'a>(seen: impl IntoIterator<Item = &'a HostRecords>) -> u64 {
    seen.into_iter().map(|records| records.fencing).max().unwrap_or(0) + 1
}

/// What moved on a host between two looks, past tense, if something did. The lease between them is this run's own. With `leases`, the plan
/// gives out addresses there, which must not be somebody else's meanwhile.
pub fn moved(before: &HostRecords, now: &HostRecords, leases: bool) -> Option<&'static str> {
    let transaction = |records: &HostRecords| {
        let transaction = records.transaction.as_ref()?;
        Some((transaction.begin.transaction.clone(), transaction.concluded))
    };
    let release = |records: &HostRecords| records.releases.first().map(|release| release.number);
    if transaction(before) != transaction(now) {
        Some("another transaction ran there")
    } else if release(before) != release(now) {
        Some("another release was made there")
    } else if before.roster != now.roster {
        Some("another project changed the roster of servers there")
    } else if leases && before.last_address != now.last_address {
        Some("another project gave out container addresses there")
    } else {
        None
    }
}

/// The transactions that are open on hosts, the oldest first, each with the hosts on which it is.
pub fn open<'a, H: Copy>(known: impl IntoIterator<Item = (H, &'a HostRecords)>) -> Vec<(&'a Transaction, Vec<H>)> {
    let mut found: Vec<(&Transaction, Vec<H>)> = Vec::new();
    for (host, records) in known {
        let Some(transaction) = records.transaction.as_ref().filter(|transaction| transaction.is_open()) else {
            continue;
        };
        match found.iter_mut().find(|(one, _)| one.begin.transaction == transaction.begin.transaction) {
            Some((_, hosts)) => hosts.push(host),
            None => found.push((transaction, vec![host])),
        }
    }
    found.sort_by(|(one, _), (other, _)| {
        let key = |transaction: &Transaction| (transaction.begin.fencing, transaction.begin.transaction.clone());
        key(one).cmp(&key(other))
    });
    found
}

/// What who settles does next.
#[derive(Debug, Clone, PartialEq)]
pub enum Next<'a, H> {
    /// Nothing is open anywhere.
    Nothing,
    /// These leases are needed, and no others: what is open there moves without them. Then look again at every host.
    Lease(Vec<H>),
    /// These can be settled, in this order, each on the hosts with which it stands.
    Settle(Vec<(&'a Transaction, Vec<H>)>),
}

/// What who settles does next after a look at every host that answers, which was made with the leases of `leased`. What is not under a
/// lease may be older than what is, unless nothing is open there: then it stays as it is.
pub fn next<'a, H: Copy + Ord>(
    known: impl IntoIterator<Item = (H, &'a HostRecords)>,
    leased: impl Fn(H) -> bool,
) -> Next<'a, H> {
    let open = open(known);
    let mut hosts: Vec<H> = open.iter().flat_map(|(_, hosts)| hosts.iter().copied()).collect();
    hosts.sort();
    match hosts.iter().all(|host| leased(*host)) {
        _ if hosts.is_empty() => Next::Nothing,
        true => Next::Settle(open),
        false => Next::Lease(hosts),
    }
}

/// The hosts of a transaction that do not answer and count: all of them, or where `project` is known those that are still of it. A person
/// who takes a dead host out of the project says that nobody waits for it.
pub fn away<'a>(
    begin: &'a Begin,
    answers: impl Fn(&HostName) -> bool,
    project: Option<&BTreeSet<HostName>>,
) -> Vec<&'a HostName> {
    let counts = |host: &&HostName| !answers(host) && project.is_none_or(|project| project.contains(*host));
    begin.hosts.iter().filter(counts).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::transaction::{Release, Settlement};

    fn begin(id: &str, fencing: u64) -> Begin {
        let host = HostName::new("one").expect("a name");
        Begin {
            version: Begin::VERSION,
            transaction: id.to_owned(),
            scope: "shop".to_owned(),
            fencing,
            who: String::new(),
            command: String::new(),
            at_s: 0,
            plan: Digest::of(""),
            hosts: vec![host.clone()],
            addresses: std::collections::BTreeMap::new(),
            host,
            steps: Vec::new(),
            services: std::collections::BTreeMap::new(),
        }
    }

    fn release(id: &str, number: u64) -> Release {
        Release::of(&begin(id, number))
    }

    fn records(last: Option<(&str, u64)>, settled: Option<Decision>, releases: &[(&str, u64)]) -> HostRecords {
        let transaction = last.map(|(id, fencing)| {
            let settlement = settled.map(|decision| Settlement { decision, fencing });
            Transaction { settlement, ..Transaction::new(begin(id, fencing)) }
        });
        let releases = releases.iter().map(|(id, number)| release(id, *number)).collect();
        HostRecords { transaction, releases, ..HostRecords::default() }
    }

    #[test]
    fn a_host_that_is_further_on_tells_what_became_of_an_older_transaction() {
        for (records, due) in [
            (records(None, None, &[]), Trace::Nothing),
            (records(Some(("t3", 3)), None, &[("t2", 2)]), Trace::Undecided),
            (records(Some(("t3", 3)), Some(Decision::Commit), &[("t2", 2)]), Trace::Committed),
            (records(Some(("t3", 3)), Some(Decision::Revert), &[("t2", 2)]), Trace::Reverted),
            // Its journal was written over: by one after a release of it, by one after none.
            (records(Some(("t4", 4)), None, &[("t3", 3), ("t2", 2)]), Trace::Final),
            (records(Some(("t4", 4)), None, &[("t2", 2)]), Trace::Reverted),
            (records(Some(("t4", 4)), Some(Decision::Commit), &[("t4", 4), ("t2", 2)]), Trace::Reverted),
            (records(Some(("t4", 4)), None, &[]), Trace::Reverted),
            // Older releases are not kept any more, so it may have been one of them.
            (records(Some(("t9", 9)), None, &[("t8", 8), ("t7", 7)]), Trace::Nothing),
            // It never was here.
            (records(Some(("t2", 2)), None, &[("t1", 1)]), Trace::Nothing),
        ] {
            assert_eq!(trace("t3", 3, &records), due, "{records:?}");
        }
    }

    #[test]
    fn a_host_follows_only_what_was_brought_to_its_end_on_another() {
        let here = begin("t3", 3);
        let open = |settled| records(Some(("t3", 3)), settled, &[("t2", 2)]);
        let concluded = |settled| {
            let mut records = open(Some(settled));
            records.transaction.as_mut().expect("there").concluded = true;
            records
        };
        let further = records(Some(("t4", 4)), None, &[("t2", 2)]);
        for (others, due) in [
            (vec![], false),
            (vec![open(None)], false),
            // Somebody may be about to mend by hand what kept it from its end there.
            (vec![open(Some(Decision::Commit)), open(Some(Decision::Revert))], false),
            (vec![concluded(Decision::Commit)], true),
            (vec![open(None), concluded(Decision::Revert)], true),
            (vec![further], true),
        ] {
            let known = [open(None)].into_iter().chain(others).collect::<Vec<_>>();
            assert_eq!(is_ended_elsewhere(&here, &known), due, "{known:?}");
        }
    }

    #[test]
    fn a_transaction_ends_one_way_whichever_hosts_are_asked() {
        use Trace::{Committed, Final, Nothing, Reverted, Undecided};
        let all = Way::Commit { known: false };
        for (traces, away, due) in [
            (&[Undecided, Undecided][..], false, Way::Revert),
            (&[Undecided], true, Way::Revert),
            (&[Undecided, Nothing], false, Way::Revert),
            // Every host can be told, so it is finished.
            (&[Committed, Undecided], false, all),
            (&[Committed, Committed], false, all),
            (&[Committed, Nothing], false, all),
            // Not all had recorded it, so nobody went on, and whoever is away may have taken it back.
            (&[Committed, Undecided], true, Way::Revert),
            // Whoever is away may have gone on, or taken it back.
            (&[Committed], true, Way::Wait),
            (&[Committed, Committed], true, Way::Wait),
            // Somebody took it back, so nobody went on.
            (&[Committed, Reverted], true, Way::Revert),
            (&[Undecided, Reverted], false, Way::Revert),
            // Somebody went on, so all had recorded it.
            (&[Committed, Final], true, Way::Commit { known: true }),
            (&[Final, Nothing], true, Way::Commit { known: true }),
        ] {
            assert_eq!(way(traces.iter().copied(), away), due, "{traces:?}, away: {away}");
        }
    }
}
