//! Taking the hosts for one run alone. Two runs that want the same hosts meet at the first of them by name, and only who has that one goes
//! on to the others, which are then taken at once: two round trips, however many hosts there are.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use jiji_model::digest::Digest;
use jiji_model::event::Sink;
use jiji_model::name::HostName;
use jiji_model::observation::{Answer, Query, Want};
use jiji_model::protocol::{Reply, Request};
use jiji_model::transaction::{HostRecords, Lease, LeaseDecision, LeaseRequest, evidence};
use tokio::time::Instant;

use super::cancel::{Cancel, REVERT};
use super::error::ApplyError;
use super::events::Watch;
use super::fan::{all, done, split};
use super::link::HostLink;
use super::{Options, Seen};
use crate::fleet::{FleetError, PATIENCE};

/// Time between two questions for a lease that somebody holds.
const AGAIN: Duration = Duration::from_millis(400);

/// Blobs with their lengths in bytes, by the host that needs them.
pub(super) type Offers = BTreeMap<HostName, Vec<(Digest, u64)>>;

/// Time between two lines about a lease that is waited for.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// The number after the highest that any host has granted.
pub(super) fn next_fencing(seen: &Seen) -> u64 {
    evidence::next_fencing(seen.values())
}

/// Takes the lease of every host: that of the first by name, then those of the others at once. Gives what each had recorded once its
/// lease was held. On a failure those taken are given back. `offers`: the blobs that are offered to each host next, so that the offer is
/// asked along with the lease.
pub(super) async fn take<L: HostLink>(
    links: &BTreeMap<HostName, &L>,
    scope: &str,
    fencing: u64,
    offers: &Offers,
    options: &Options,
    cancel: &Cancel,
    watch: &Watch<'_>,
) -> Result<Seen, ApplyError> {
    let request = LeaseRequest {
        scope: scope.to_owned(),
        holder: options.run.clone(),
        who: options.who.clone(),
        fencing,
        ttl_ms: options.lease_ms,
    };
    let one = async |link: &&L| {
        let offer = offers.get(link.host()).map(|blobs| Request::Offer { blobs: blobs.clone() });
        let ahead = [Some(Request::Acquire(request.clone())), Some(records_of(scope)), offer];
        link.ask_ahead(ahead.into_iter().flatten().collect()).await;
        (link.host().clone(), take_one(*link, &request, options, watch).await)
    };
    let in_order: Vec<&L> = links.values().copied().collect();
    let (first, others) = in_order.split_at(in_order.len().min(1));
    let mut seen = Seen::new();
    let mut failed = None;
    for hosts in [first, others] {
        let ends = tokio::select! {
            biased;
            () = cancel.reached(REVERT) => {
                // A host may grant it all the same, or have granted it.
                give_back(links.values().copied()).await;
                return Err(ApplyError::Stopped);
            }
            ends = join_all(hosts.iter().map(one)) => ends,
        };
        for (host, end) in ends {
            match end {
                Ok(records) => {
                    seen.insert(host, records);
                }
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        if let Some(error) = failed {
            give_back(seen.keys().map(|host| links[host])).await;
            return Err(error);
        }
    }
    Ok(seen)
}

/// Takes one lease, and gives what was recorded under it.
async fn take_one<L: HostLink>(
    link: &L,
    request: &LeaseRequest,
    options: &Options,
    watch: &Watch<'_>,
) -> Result<HostRecords, ApplyError> {
    let host = link.host();
    let begun = Instant::now();
    let mut first: Option<Lease> = None;
    loop {
        // The host answers in order, so what is asked along with the lease is answered under it, without another round trip.
        let (lease, records) =
            tokio::join!(link.ask(Request::Acquire(request.clone()), PATIENCE), records(link, &request.scope));
        match lease? {
            Reply::Lease(LeaseDecision::Granted(_)) => return Ok(records?),
            Reply::Lease(LeaseDecision::Stale { .. }) => {
                return Err(ApplyError::Moved { host: host.clone(), what: "another run of jiji took its lease" });
            }
            Reply::Lease(LeaseDecision::Held(lease)) => {
                let earlier = first.get_or_insert_with(|| {
                    watch.waiting_for_expiry(host, &lease);
                    lease.clone()
                });
                // A lease that is prolonged has a holder who is at work. One that is not belongs to a run that is gone, and is free
                // as soon as it expires or its last step has ended.
                let prolonged = (&earlier.holder, earlier.fencing) != (&lease.holder, lease.fencing)
                    || lease.expires_ms > earlier.expires_ms;
                let longest = Duration::from_millis(options.lease_ms.saturating_mul(2));
                if prolonged || begun.elapsed() > longest {
                    let age_ms = age(link, &request.scope).await;
                    return Err(ApplyError::Held { host: host.clone(), lease: Box::new(lease), age_ms });
                }
                tokio::time::sleep(AGAIN).await;
            }
            _ => {
                return Err(ApplyError::Before(FleetError::Unexpected { host: host.clone(), doing: "take the lease" }));
            }
        }
    }
}

/// For how long the lease of a host has been held, as the host says.
async fn age<L: HostLink>(link: &L, scope: &str) -> Option<u64> {
    let links = BTreeMap::from([(link.host().clone(), link)]);
    let (seen, _) = split(look_again(&links, scope).await);
    seen.into_values().next()?.lease?.age_ms
}

/// Waits until nobody else is at work on any of the hosts, and takes nothing: whoever looks next may take it. Gives whether that is so;
/// at `until` it may still not be. Whether the holder is alive is not judged here but where the lease is taken.
///
/// # Errors
/// [`ApplyError::Stopped`] when somebody asked to stop, and what a host that is lost gives.
pub async fn wait_until_free<L: HostLink>(
    scope: &str,
    links: &BTreeMap<HostName, L>,
    options: &Options,
    until: Instant,
    cancel: &Cancel,
    sink: &dyn Sink,
) -> Result<bool, ApplyError> {
    let watch = Watch::new(sink);
    let links: BTreeMap<_, _> = links.iter().map(|(host, link)| (host.clone(), link)).collect();
    let mut told: Option<(String, Instant)> = None;
    loop {
        let (seen, errors) = split(look_again(&links, scope).await);
        if let Some(error) = errors.into_values().next() {
            return Err(error.into());
        }
        let others = seen.into_iter().filter_map(|(host, records)| Some((host, records.lease?)));
        let mut others = others.filter(|(_, facts)| facts.live && facts.lease.holder != options.run);
        let Some((host, facts)) = others.next() else {
            return Ok(true);
        };
        let now = Instant::now();
        if now >= until {
            return Ok(false);
        }
        if told.as_ref().is_none_or(|(holder, at)| *holder != facts.lease.holder || now - *at >= TOLD_EVERY) {
            watch.waiting_for_lease(&host, &facts.lease, facts.age_ms, until - now);
            told = Some((facts.lease.holder, now));
        }
        tokio::select! {
            biased;
            () = cancel.reached(REVERT) => return Err(ApplyError::Stopped),
            () = tokio::time::sleep(AGAIN.min(until - now)) => {}
        }
    }
}

/// Gives leases back. A host that does not answer frees its own when the session ends.
pub(super) async fn give_back<'a, L: HostLink + 'a>(links: impl IntoIterator<Item = &'a L>) {
    let ends = all(links, |link| done(link, Request::Release, PATIENCE, "give the lease back")).await;
    for (host, error) in split(ends).1 {
        tracing::debug!(%host, %error, "give the lease back");
    }
}

/// What hosts recorded, read under their leases.
pub(super) async fn look_again<L: HostLink>(
    links: &BTreeMap<HostName, &L>,
    scope: &str,
) -> super::fan::Ends<HostRecords> {
    all(links.values().copied(), |link| records(link, scope)).await
}

fn records_of(scope: &str) -> Request {
    let want = Want { id: "records".to_owned(), query: Query::Records { scope: scope.to_owned() } };
    Request::Observe { wants: vec![want] }
}

async fn records<L: HostLink>(link: &L, scope: &str) -> Result<HostRecords, FleetError> {
    let reply = link.ask(records_of(scope), PATIENCE).await?;
    let answer = match reply {
        Reply::Facts(facts) => facts.into_iter().next().map(|fact| fact.answer),
        _ => None,
    };
    match answer {
        Some(Answer::Records(records)) => Ok(*records),
        _ => Err(FleetError::Unexpected { host: link.host().clone(), doing: "observe" }),
    }
}
