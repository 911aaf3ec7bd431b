//! `jiji plan`: what a ship would change, host by host, without changing it; and the plan in a file, for `jiji apply`.
//!
//! Three forms of one [`view::View`]: for people, as JSON, and as Markdown for a pull request. No value of a variable is in any.

mod markdown;
#[cfg(test)]
mod tests;
mod text;
mod view;

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use super::args::{Global, PlanArgs};
use super::environment::Environment;
use super::exit::Exit;
use super::failure::Failure;
use super::ready;
use super::ship_failure;
use super::store::Tidy;
use super::workplace::Workplace;
use crate::deploy::{Origin, Saved};
use crate::report::Report;

/// Builds, looks, and prints the plan on standard output.
pub async fn run(
    global: &Global,
    args: &PlanArgs,
    environment: &Environment,
    report: &Arc<dyn Report>,
) -> Result<Exit, Failure> {
    let place = Workplace::open(global, environment)?;
    let mut ship = ready::ship(&place, environment, "plan", report)?;
    ship.locked = args.locked;
    ship.set_offline(args.offline);
    ship.push = !args.no_push && !args.offline;
    let keep = args.out.is_some().then(|| Origin {
        jiji: env!("CARGO_PKG_VERSION").to_owned(),
        who: environment.who.clone(),
        at_s: ready::now_s(),
    });
    let tidy = Tidy::prepare(&place.store, environment)?;
    let planned = ship.plan(keep).await;
    tidy.after_build(report);
    let planned = planned.map_err(|error| ship_failure::of(&error, &ship.secrets))?;
    if let (Some(out), Some(saved)) = (&args.out, &planned.saved) {
        write(out, saved)?;
    }
    let view = view::View::of(&ship.project.scope(), &planned);
    let text = if global.json {
        view.json()
    } else if args.markdown {
        markdown::render(&view)
    } else {
        text::render(&view)
    };
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| Failure::text(Exit::Internal, format!("write to standard output: {error}")))?;
    let changes = args.detailed_exitcode && !planned.plan.is_empty();
    Ok(if changes { Exit::Changes } else { Exit::Done })
}

/// Writes the file whole or not at all, for its user alone.
fn write(out: &Path, saved: &Saved) -> Result<(), Failure> {
    let failed =
        |error: std::io::Error| Failure::text(Exit::Usage, format!("write the plan to `{}`: {error}", out.display()));
    let bytes = saved.to_bytes().map_err(|error| ship_failure::saved(&error))?;
    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(parent).map_err(failed)?;
    file.write_all(&bytes).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
    file.persist(out).map_err(|error| failed(error.error))?;
    Ok(())
}
