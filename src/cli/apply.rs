//! `jiji apply FILE`: what was planned before, and nothing else.

use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use super::args::{ApplyArgs, Global};
use super::environment::Environment;
use super::exit::Exit;
use super::failure::Failure;
use super::workplace::Workplace;
use super::{ready, ship, ship_failure};
use crate::deploy::{MAX_PLAN_BYTES, Saved};
use crate::report::Report;

/// Reads the plan, and moves the fleet to it where nothing has moved since.
pub async fn run(
    global: &Global,
    args: &ApplyArgs,
    environment: &Environment,
    report: &Arc<dyn Report>,
) -> Result<Exit, Failure> {
    let saved = read(&args.file)?;
    if let Some(wanted) = &args.digest {
        saved.is(wanted).map_err(|error| ship_failure::saved(&error))?;
    }
    // The plan says for which environment it is, so that nobody has to type it again; whoever does means it.
    let mut global = global.clone();
    if global.environment.is_none() {
        global.environment.clone_from(&saved.environment);
    }
    let place = Workplace::open(&global, environment)?;
    saved.check(place.project()).map_err(|error| ship_failure::saved(&error))?;
    let mut with = ready::ship(&place, environment, "apply", report)?;
    with.locked = false;
    with.push = false;
    with.apply.wait_lock = args.lock.wait_lock.unwrap_or_default();
    let cancel = ready::on_signals(with.cancel.clone());
    let shipped = with.apply_saved(&saved).await;
    cancel.abort();
    ship::finish(&with, shipped, "applied", report)
}

/// Reads a file of at most as many bytes as a plan may have.
fn read(path: &Path) -> Result<Saved, Failure> {
    let failed = |error: std::io::Error| {
        Failure::text(Exit::Usage, format!("read the plan `{}`: {error}", path.display()))
            .hint("`jiji plan --out FILE` writes one")
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(MAX_PLAN_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    Saved::parse(&bytes).map_err(|error| ship_failure::saved(&error))
}
