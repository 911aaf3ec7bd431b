//! `jiji ship`, `jiji deploy` and `jiji rollback`: the fleet changes, and people watch it.

use std::sync::Arc;

use jiji_model::event::{bytes, seconds};

use super::abort;
use super::args::{DeployArgs, Global, ProxyUpgradeArgs, RollbackArgs, ShipArgs};
use super::environment::{self, Environment};
use super::exit::Exit;
use super::failure::Failure;
use super::ready;
use super::ship_failure;
use super::store::Tidy;
use super::workplace::Workplace;
use crate::report::{Report, Summary};
use crate::secrets::Secrets;
use crate::ship::{Ship, ShipError, Shipped, Source};

/// Builds, pushes what is missing, and moves the fleet.
pub async fn ship(
    global: &Global,
    args: &ShipArgs,
    environment: &Environment,
    report: &Arc<dyn Report>,
) -> Result<Exit, Failure> {
    let place = Workplace::open(global, environment)?;
    let mut ship = ready::ship(&place, environment, "ship", report)?;
    ship.locked = args.locked;
    ship.set_offline(args.offline);
    let tidy = Tidy::prepare(&place.store, environment)?;
    ship.push = !args.no_push && !args.offline;
    ship.apply.wait_lock = args.lock.wait_lock.unwrap_or_default();
    let cancel = ready::on_signals(ship.cancel.clone());
    let shipped = ship.ship(Source::Build).await;
    cancel.abort();
    tidy.after_build(report);
    finish(&ship, shipped, "shipped", report)
}

/// Moves the fleet to what the lock names.
pub async fn deploy(
    global: &Global,
    args: &DeployArgs,
    environment: &Environment,
    report: &Arc<dyn Report>,
) -> Result<Exit, Failure> {
    let place = Workplace::open(global, environment)?;
    let mut ship = ready::ship(&place, environment, "deploy", report)?;
    ship.locked = true;
    ship.push = false;
    ship.apply.wait_lock = args.lock.wait_lock.unwrap_or_default();
    let cancel = ready::on_signals(ship.cancel.clone());
    let shipped = ship.ship(Source::Lock).await;
    cancel.abort();
    finish(&ship, shipped, "deployed", report)
}

/// Moves the fleet to an earlier release.
pub async fn rollback(
    global: &Global,
    args: &RollbackArgs,
    environment: &Environment,
    report: &Arc<dyn Report>,
) -> Result<Exit, Failure> {
    let place = Workplace::open(global, environment)?;
    // What the release needs is known only from the hosts.
    let secrets = Secrets::available(&place.loaded.secrets, &environment::variable);
    let mut ship = ready::ship_with(&place, environment, "rollback", secrets, report)?;
    ship.apply.wait_lock = args.lock.wait_lock.unwrap_or_default();
    let cancel = ready::on_signals(ship.cancel.clone());
    let shipped = ship.rollback(args.release.as_deref(), &environment::variable).await;
    cancel.abort();
    finish(&ship, shipped, "rolled back", report)
}

/// Replaces the proxy where it is another than the project's.
pub async fn upgrade_proxy(
    global: &Global,
    args: &ProxyUpgradeArgs,
    environment: &Environment,
    report: &Arc<dyn Report>,
) -> Result<Exit, Failure> {
    let place = Workplace::open(global, environment)?;
    // What the release needs is known only from the hosts.
    let secrets = Secrets::available(&place.loaded.secrets, &environment::variable);
    let mut ship = ready::ship_with(&place, environment, "proxy upgrade", secrets, report)?;
    ship.apply.wait_lock = args.lock.wait_lock.unwrap_or_default();
    let cancel = ready::on_signals(ship.cancel.clone());
    let shipped = ship.upgrade_proxy(&environment::variable).await;
    cancel.abort();
    match shipped {
        Ok(shipped) => {
            report.summary(&summary_of_proxy(&ship, &shipped));
            Ok(Exit::Done)
        }
        Err(error) => Err(ship_failure::of(&error, &ship.secrets)),
    }
}

fn summary_of_proxy(ship: &Ship, shipped: &Shipped) -> Summary {
    let total = shipped.durations.get("total").copied().unwrap_or_default();
    let hosts = match shipped.hosts.len() {
        1 => "1 host".to_owned(),
        count => format!("{count} hosts"),
    };
    let text = if shipped.changed {
        format!("replaced the proxy on {hosts} in {}", seconds(total))
    } else {
        format!("unchanged: the proxy of {hosts} is as it should be, looked at in {}", seconds(total))
    };
    let result = if shipped.changed { "upgraded" } else { "unchanged" };
    Summary { result: result.to_owned(), text, ..summary(ship, shipped, result) }
}

/// Shows how it ended.
pub(super) fn finish(
    ship: &Ship,
    shipped: Result<Shipped, ShipError>,
    done: &str,
    report: &Arc<dyn Report>,
) -> Result<Exit, Failure> {
    match shipped {
        Ok(shipped) => {
            report.summary(&summary(ship, &shipped, done));
            Ok(Exit::Done)
        }
        Err(error) => Err(ship_failure::of(&error, &ship.secrets)),
    }
}

fn summary(ship: &Ship, shipped: &Shipped, done: &str) -> Summary {
    let total = shipped.durations.get("total").copied().unwrap_or_default();
    let images: Vec<String> = shipped
        .images
        .iter()
        .flat_map(|(service, images)| images.iter().map(move |image| format!("{service}@{}", image.manifest.digest)))
        .collect();
    let what = if images.is_empty() { "nothing".to_owned() } else { images.join(", ") };
    let hosts = match shipped.hosts.len() {
        1 => "1 host".to_owned(),
        count => format!("{count} hosts"),
    };
    let text = if shipped.changed {
        format!("{done} {what} to {hosts} in {}, {} sent", seconds(total), bytes(shipped.blob_bytes))
    } else {
        format!("unchanged: {hosts} run {what}, looked at in {}", seconds(total))
    };
    let left = shipped.left.iter().map(|failure| format!("{}: {}", failure.host, failure.title));
    let settled: Vec<_> = shipped.settled.iter().map(abort::summary).collect();
    // In the order in which it happened.
    let text =
        settled.iter().map(|settled| settled.text.as_str()).chain([text.as_str()]).collect::<Vec<_>>().join("\n");
    Summary {
        result: if shipped.changed { done.to_owned() } else { "unchanged".to_owned() },
        exit: Exit::Done.code(),
        text,
        release: shipped.number,
        images: shipped
            .images
            .iter()
            .map(|(service, images)| {
                (service.to_string(), images.iter().map(|image| image.manifest.digest.to_string()).collect())
            })
            .collect(),
        execs: shipped.counters.iter().map(|(host, counters)| (host.to_string(), counters.execs.into())).collect(),
        bytes_sent: shipped.counters.values().map(|counters| counters.sent).sum(),
        bytes_received: shipped.counters.values().map(|counters| counters.received).sum(),
        blob_bytes_sent: shipped.blob_bytes,
        bytes_pushed: shipped.pushed_bytes,
        durations_ms: shipped.durations.iter().map(|(stage, ms)| ((*stage).to_owned(), *ms)).collect(),
        settled,
        left: left.collect(),
        scope: ship.project.scope(),
    }
}
