//! A plan, from the leases to the last record.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};

use jiji_model::digest::Digest;
use jiji_model::event::Sink;
use jiji_model::name::HostName;
use jiji_model::plan::{Action, Phase, Plan, Step};
use jiji_model::transaction::evidence::moved;
use jiji_model::transaction::{Begin, Course, Decision, Ending};
use jiji_store::Store;

use super::cancel::{Cancel, REVERT};
use super::drive::Drive;
use super::error::{ApplyError, Cause};
use super::events::{Hearing, Watch};
use super::fan::{all, split};
use super::follow::{Detached, follow};
use super::lease::{self, Offers};
use super::link::HostLink;
use super::{Applied, Options, Seen, participants};
use crate::fleet::{BlobProgress, FleetError};

/// Bytes between two events about a host that is being sent blobs.
const TOLD_EVERY: u64 = 4 << 20;

/// Drives the fleet through a plan. `seen` is what every host had recorded when the plan was made; a host where something happened
/// since is not touched, and nor is any other.
///
/// Whatever goes wrong, all hosts that answer end alike: all new, or all old.
///
/// # Errors
/// [`ApplyError`] says how it ended instead.
pub async fn apply<L: HostLink>(
    plan: &Plan,
    seen: &Seen,
    links: &BTreeMap<HostName, L>,
    store: &Store,
    options: &Options,
    cancel: &Cancel,
    sink: &dyn Sink,
) -> Result<Applied, ApplyError> {
    if plan.is_empty() {
        return Ok(Applied::default());
    }
    let links = participants(plan, links)?;
    let watch = Watch::new(sink);
    let fencing = lease::next_fencing(seen);
    let offers = offers(plan);
    let now = lease::take(&links, &plan.scope, fencing, &offers, options, cancel, &watch).await?;
    watch.leased(fencing, links.len());
    options.points.pass("leased").await;
    let prepared = tokio::select! {
        biased;
        () = cancel.reached(REVERT) => Err(ApplyError::Stopped),
        prepared = before_beginning(plan, seen, now, &links, &offers, store, &watch) => prepared,
    };
    let sent = match prepared {
        Ok(sent) => sent,
        Err(error) => {
            lease::give_back(links.values().copied()).await;
            return Err(error);
        }
    };
    let begins = begins(plan, fencing, &links, options);
    let transaction = transaction_id(options, fencing);
    let mut batches = plan.rollout.batches(&plan.hosts());
    if options.points.is("between-cutovers") {
        batches = plan.hosts().into_iter().map(|host| vec![host]).collect();
    }
    let mut drive = Drive {
        hearing: Hearing::of(links.values().copied(), &plan.steps),
        links,
        lost: Vec::new(),
        begins,
        fencing,
        interruptible: true,
        gives_back: true,
        given_back: BTreeSet::new(),
        retain: plan.retain,
        command: &options.command,
        rollout: plan.rollout.clone(),
        batches: batches.len(),
        options,
        cancel,
        watch: &watch,
    };
    drive.watch.begun(&transaction, fencing, &drive.hosts());
    let course = Course::begin(batches);
    let course = if plan.steps.iter().any(|step| step.phase == Phase::Hold) { course.watched() } else { course };
    let followed = match follow(&mut drive, course, &options.points).await {
        Ok(followed) => followed,
        Err(Detached { decision }) => {
            return Err(ApplyError::Detached { hosts_left: drive.begins.keys().cloned().collect(), decision });
        }
    };
    let kept = drive.links.iter().filter(|(host, _)| !drive.given_back.contains(*host));
    lease::give_back(kept.map(|(_, link)| *link)).await;
    let lost = drive.lost;
    let cause = followed.cause.unwrap_or(Cause::Interrupted);
    match followed.ending {
        Ending::Concluded(Decision::Commit) if lost.is_empty() => {
            Ok(Applied { number: fencing, transaction, sent, left: followed.left })
        }
        Ending::Concluded(Decision::Commit) | Ending::Waiting => {
            Err(ApplyError::InDoubt { decision: Decision::Commit, cause: None, lost })
        }
        Ending::NotTakenBack => {
            let lost = lost.into_iter().map(|(host, _)| host).collect();
            Err(ApplyError::RevertFailed { cause, failures: followed.not_undone, lost })
        }
        Ending::Concluded(Decision::Revert) if lost.is_empty() => Err(ApplyError::Reverted { cause }),
        Ending::Concluded(Decision::Revert) => {
            Err(ApplyError::InDoubt { decision: Decision::Revert, cause: Some(cause), lost })
        }
    }
}

fn transaction_id(options: &Options, fencing: u64) -> String {
    format!("{}-{fencing}", options.run)
}

fn begins<L: HostLink>(
    plan: &Plan,
    fencing: u64,
    links: &BTreeMap<HostName, &L>,
    options: &Options,
) -> BTreeMap<HostName, Begin> {
    let hosts = plan.hosts();
    let digest = plan.digest();
    let addresses: BTreeMap<_, _> =
        links.iter().filter_map(|(host, link)| Some((host.clone(), link.address()?.to_owned()))).collect();
    let begins = hosts.iter().map(|host| {
        let begin = Begin {
            version: Begin::VERSION,
            transaction: transaction_id(options, fencing),
            scope: plan.scope.clone(),
            fencing,
            who: options.who.clone(),
            command: options.command.clone(),
            at_s: options.at_s,
            plan: digest,
            hosts: hosts.clone(),
            addresses: addresses.clone(),
            host: host.clone(),
            steps: plan.steps.iter().filter(|step| step.host == *host).cloned().collect(),
            services: plan.releases.get(host).cloned().unwrap_or_default(),
        };
        (host.clone(), begin)
    });
    begins.collect()
}

/// Compares what is so `now`, under the leases, with what was seen, and brings blobs. Changes nothing that anybody runs.
async fn before_beginning<L: HostLink>(
    plan: &Plan,
    seen: &Seen,
    now: Seen,
    links: &BTreeMap<HostName, &L>,
    offers: &Offers,
    store: &Store,
    watch: &Watch<'_>,
) -> Result<BTreeMap<HostName, u64>, ApplyError> {
    let gives = |step: &Step| matches!(&step.action, Action::ContainerRun(spec) if spec.address.is_some());
    let leasing: BTreeSet<&HostName> = plan.steps.iter().filter(|step| gives(step)).map(|step| &step.host).collect();
    for (host, now) in &now {
        let what = match seen.get(host) {
            Some(before) => moved(before, now, leasing.contains(host)),
            None => Some("it was not part of the look"),
        };
        if let Some(what) = what {
            return Err(ApplyError::Moved { host: host.clone(), what });
        }
    }
    send_blobs(offers, links, store, watch).await.map_err(ApplyError::Before)
}

/// The blobs that each host runs from.
fn offers(plan: &Plan) -> Offers {
    let mut needs: BTreeMap<&HostName, BTreeMap<Digest, u64>> = BTreeMap::new();
    for image in &plan.images {
        for host in &image.hosts {
            let blobs = image.image.blobs().map(|blob| (blob.digest, blob.size));
            needs.entry(host).or_default().extend(blobs);
        }
    }
    needs.into_iter().map(|(host, blobs)| (host.clone(), blobs.into_iter().collect())).collect()
}

async fn send_blobs<L: HostLink>(
    offers: &Offers,
    links: &BTreeMap<HostName, &L>,
    store: &Store,
    watch: &Watch<'_>,
) -> Result<BTreeMap<HostName, u64>, FleetError> {
    let receivers = links.iter().filter(|(host, _)| offers.contains_key(*host));
    let ends = all(receivers.map(|(_, link)| *link), async |link| {
        let host = link.host().clone();
        // A line for each piece would say the same a hundred times a second.
        let told = AtomicU64::new(0);
        let progress = |progress: BlobProgress| {
            if progress.sent == progress.bytes || progress.sent >= told.load(Ordering::Relaxed) + TOLD_EVERY {
                told.store(progress.sent, Ordering::Relaxed);
                watch.sending(&host, progress);
            }
        };
        link.send_blobs(store, &offers[link.host()], &progress).await
    })
    .await;
    let (sent, errors) = split(ends);
    for (host, progress) in &sent {
        watch.sent(host, *progress);
    }
    match errors.into_values().next() {
        Some(error) => Err(error),
        None => Ok(sent.into_iter().map(|(host, progress)| (host, progress.sent)).collect()),
    }
}
