//! A plan, from the leases to the last record.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};

use jiji_model::digest::Digest;
use jiji_model::event::Sink;
use jiji_model::name::HostName;
use jiji_model::plan::{Action, Phase, Plan, Step};
use jiji_model::transaction::{Begin, Decision};
use jiji_store::Store;

use super::cancel::{Cancel, REVERT};
use super::drive::{Drive, Stop};
use super::error::{ApplyError, Cause, Failure};
use super::events::{Hearing, Watch};
use super::fan::{all, split};
use super::lease;
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
    lease::take(&links, &plan.scope, fencing, options, cancel, &watch).await?;
    watch.leased(fencing, links.len());
    options.points.pass("leased").await;
    let prepared = tokio::select! {
        biased;
        () = cancel.reached(REVERT) => Err(ApplyError::Stopped),
        prepared = before_beginning(plan, seen, &links, store, &watch) => prepared,
    };
    let sent = match prepared {
        Ok(sent) => sent,
        Err(error) => {
            lease::give_back(links.values().copied()).await;
            return Err(error);
        }
    };
    let begins = begins(plan, fencing, options);
    let transaction = transaction_id(options, fencing);
    let mut drive = Drive {
        hearing: Hearing::of(links.values().copied(), &plan.steps),
        links,
        lost: Vec::new(),
        begins,
        fencing,
        interruptible: true,
        options,
        cancel,
        watch: &watch,
    };
    drive.watch.begun(&transaction, fencing, &drive.hosts());
    match forward(&mut drive).await {
        Ok(()) => {}
        Err(Stop::Detach) => return Err(detached(&drive, None)),
        Err(Stop::Cause(cause)) => return Err(revert(&mut drive, cause).await),
    }
    let left = match decide_and_finish(&mut drive, plan.retain).await {
        Ok(left) => left,
        Err(Stop::Detach) => return Err(detached(&drive, Some(Decision::Commit))),
        Err(Stop::Cause(cause)) => {
            return Err(ApplyError::InDoubt { decision: Decision::Commit, cause: Some(cause), lost: drive.lost });
        }
    };
    lease::give_back(drive.links.values().copied()).await;
    if drive.lost.is_empty() {
        Ok(Applied { number: fencing, transaction, sent, left })
    } else {
        Err(ApplyError::InDoubt { decision: Decision::Commit, cause: None, lost: drive.lost })
    }
}

fn transaction_id(options: &Options, fencing: u64) -> String {
    format!("{}-{fencing}", options.run)
}

fn begins(plan: &Plan, fencing: u64, options: &Options) -> BTreeMap<HostName, Begin> {
    let hosts = plan.hosts();
    let digest = plan.digest();
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
            host: host.clone(),
            steps: plan.steps.iter().filter(|step| step.host == *host).cloned().collect(),
            services: plan.releases.get(host).cloned().unwrap_or_default(),
        };
        (host.clone(), begin)
    });
    begins.collect()
}

/// Compares with what was seen, and brings blobs. Changes nothing that anybody runs.
async fn before_beginning<L: HostLink>(
    plan: &Plan,
    seen: &Seen,
    links: &BTreeMap<HostName, &L>,
    store: &Store,
    watch: &Watch<'_>,
) -> Result<BTreeMap<HostName, u64>, ApplyError> {
    let (now, errors) = split(lease::look_again(links, &plan.scope).await);
    if let Some(error) = errors.into_values().next() {
        return Err(error.into());
    }
    let gives = |step: &Step| matches!(&step.action, Action::ContainerRun(spec) if spec.address.is_some());
    let leasing: BTreeSet<&HostName> = plan.steps.iter().filter(|step| gives(step)).map(|step| &step.host).collect();
    for (host, now) in &now {
        let what = match seen.get(host) {
            Some(before) => lease::moved(before, now, leasing.contains(host)),
            None => Some("it was not part of the look"),
        };
        if let Some(what) = what {
            return Err(ApplyError::Moved { host: host.clone(), what });
        }
    }
    send_blobs(plan, links, store, watch).await.map_err(ApplyError::Before)
}

async fn send_blobs<L: HostLink>(
    plan: &Plan,
    links: &BTreeMap<HostName, &L>,
    store: &Store,
    watch: &Watch<'_>,
) -> Result<BTreeMap<HostName, u64>, FleetError> {
    let mut needs: BTreeMap<&HostName, BTreeMap<Digest, u64>> = BTreeMap::new();
    for image in &plan.images {
        for host in &image.hosts {
            let blobs = image.image.blobs().map(|blob| (blob.digest, blob.size));
            needs.entry(host).or_default().extend(blobs);
        }
    }
    let receivers = links.iter().filter(|(host, _)| needs.contains_key(host));
    let ends = all(receivers.map(|(_, link)| *link), async |link| {
        let blobs: Vec<_> = needs[link.host()].iter().map(|(digest, size)| (*digest, *size)).collect();
        let host = link.host().clone();
        // A line for each piece would say the same a hundred times a second.
        let told = AtomicU64::new(0);
        let progress = |progress: BlobProgress| {
            if progress.sent == progress.bytes || progress.sent >= told.load(Ordering::Relaxed) + TOLD_EVERY {
                told.store(progress.sent, Ordering::Relaxed);
                watch.sending(&host, progress);
            }
        };
        link.send_blobs(store, &blobs, &progress).await
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

/// From the beginning to the last cutover.
async fn forward<L: HostLink>(drive: &mut Drive<'_, L>) -> Result<(), Stop> {
    let points = &drive.options.points;
    drive.begin().await?;
    points.pass("begun").await;
    let hosts = drive.hosts();
    for (phase, point) in [(Phase::Boot, "booted"), (Phase::Prepare, "prepared")] {
        drive.run(phase, &hosts).await?.stop(drive.cancel)?;
        points.pass(point).await;
    }
    points.pass("before-cutover-1").await;
    for (number, batch) in hosts.chunks(drive.options.batch.max(1)).enumerate() {
        if number > 0 {
            points.pass("between-cutovers").await;
        }
        for phase in [Phase::Publish, Phase::Cutover] {
            drive.run(phase, batch).await?.stop(drive.cancel)?;
        }
    }
    points.pass("cut-over").await;
    if drive.cancel.is_requested() {
        return Err(Stop::Cause(Cause::Interrupted));
    }
    Ok(())
}

/// Decides, and then only goes forward. Gives the steps that failed after the decision.
///
/// From the first attempt to record the decision on, nothing may be reverted by this run: a host that was lost meanwhile may have
/// recorded it.
async fn decide_and_finish<L: HostLink>(drive: &mut Drive<'_, L>, retain: u32) -> Result<Vec<Failure>, Stop> {
    let points = &drive.options.points;
    let hosts = drive.hosts();
    let (first, others) = if points.is("settled-one") { hosts.split_at(1) } else { (&[][..], &hosts[..]) };
    let mut settled = drive.settle(Decision::Commit, first).await?;
    points.pass("settled-one").await;
    settled.extend(drive.settle(Decision::Commit, others).await?);
    points.pass("settled").await;
    if settled.is_empty() {
        let error = drive.lost.first().map(|(_, error)| error.clone());
        return Err(Stop::Cause(error.map_or(Cause::Interrupted, Cause::Host)));
    }
    let mut left = Vec::new();
    for (phase, point) in [(Phase::Withdraw, "withdrawn"), (Phase::Drain, "drained"), (Phase::Finalize, "finalized")] {
        let run = drive.run(phase, &drive.hosts()).await?;
        left.extend(run.failures);
        refused(drive, run.errors);
        points.pass(point).await;
    }
    let hosts = drive.hosts();
    let (first, others) =
        if points.is("concluded-one") { hosts.split_at(hosts.len().min(1)) } else { (&[][..], &hosts[..]) };
    let command = drive.options.command.clone();
    drive.conclude(Decision::Commit, first, retain, &command).await?;
    points.pass("concluded-one").await;
    drive.conclude(Decision::Commit, others, retain, &command).await?;
    Ok(left)
}

/// Hosts that refuse where they must not are as good as lost.
fn refused<L: HostLink>(drive: &mut Drive<'_, L>, errors: Vec<FleetError>) {
    for error in errors {
        if let Some(host) = error.host().cloned()
            && drive.links.contains_key(&host)
        {
            drive.lose(host, error);
        }
    }
}

fn detached<L: HostLink>(drive: &Drive<'_, L>, decision: Option<Decision>) -> ApplyError {
    ApplyError::Detached { hosts_left: drive.begins.keys().cloned().collect(), decision }
}

/// Takes everything back on every host that answers, and says how it ended.
async fn revert<L: HostLink>(drive: &mut Drive<'_, L>, cause: Cause) -> ApplyError {
    drive.watch.reverting(&cause.to_string());
    match try_revert(drive, &cause).await {
        Err(_) => detached(drive, Some(Decision::Revert)),
        Ok(failures) => {
            lease::give_back(drive.links.values().copied()).await;
            let lost = std::mem::take(&mut drive.lost);
            if !failures.is_empty() {
                let lost = lost.into_iter().map(|(host, _)| host).collect();
                ApplyError::RevertFailed { cause, failures, lost }
            } else if !lost.is_empty() {
                ApplyError::InDoubt { decision: Decision::Revert, cause: Some(cause), lost }
            } else {
                ApplyError::Reverted { cause }
            }
        }
    }
}

async fn try_revert<L: HostLink>(drive: &mut Drive<'_, L>, cause: &Cause) -> Result<Vec<Failure>, Stop> {
    let hosts = drive.hosts();
    let settled = drive.settle(Decision::Revert, &hosts).await?;
    tokio::time::sleep(drive.quiet(cause)).await;
    let run = drive.undo(&settled).await?;
    refused(drive, run.errors);
    // Where something could not be taken back the journal stays open, so that the next run tries again.
    let clean: Vec<_> = drive
        .hosts()
        .into_iter()
        .filter(|host| settled.contains(host) && run.failures.iter().all(|failure| failure.host != *host))
        .collect();
    let command = drive.options.command.clone();
    drive.conclude(Decision::Revert, &clean, u32::MAX, &command).await?;
    Ok(run.failures)
}
