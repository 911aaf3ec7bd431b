//! `jiji plan`: what a ship would change, host by host, without changing it.

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::Arc;

use jiji_model::event::bytes;

use super::args::Global;
use super::environment::Environment;
use super::exit::Exit;
use super::failure::Failure;
use super::ready;
use super::ship_failure;
use super::workplace::Workplace;
use crate::deploy::{EnvKind, ServiceChange};
use crate::report::Report;
use crate::ship::Planned;

/// Builds, looks, and prints the plan on standard output.
pub async fn run(global: &Global, environment: &Environment, report: &Arc<dyn Report>) -> Result<Exit, Failure> {
    let place = Workplace::open(global, environment)?;
    let ship = ready::ship(&place, environment, "plan", report)?;
    let planned = ship.plan().await.map_err(|error| ship_failure::of(&error, &ship.secrets))?;
    let text = if global.json {
        let plan = serde_json::json!({
            "v": 1, "digest": planned.plan.digest(), "changes": planned.changes, "plan": planned.plan,
        });
        format!("{plan}\n")
    } else {
        text(&planned)
    };
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| Failure::text(Exit::Internal, format!("write to standard output: {error}")))?;
    Ok(Exit::Done)
}

fn text(planned: &Planned) -> String {
    let mut out = String::new();
    // Writing to a String does not fail.
    if planned.plan.is_empty() {
        let _ = writeln!(out, "nothing to change");
        return out;
    }
    for (host, services) in &planned.changes.hosts {
        let most = planned.changes.bytes.get(host).copied().unwrap_or_default();
        let _ = writeln!(out, "{host}  at most {} to send", bytes(most));
        for change in services {
            service(&mut out, change);
        }
        for (phase, title) in planned.changes.steps.get(host).into_iter().flatten() {
            let _ = writeln!(out, "    {:<9} {title}", phase.to_string());
        }
    }
    for (host, note) in &planned.notes {
        let _ = writeln!(out, "{host}: {note}");
    }
    let _ = writeln!(out, "plan {}", planned.plan.digest());
    out
}

fn service(out: &mut String, change: &ServiceChange) {
    let image = |id: &Option<jiji_model::image::ImageId>| id.as_ref().map_or("-".to_owned(), |id| id.manifest.short());
    let what = match (&change.to, change.why.is_empty()) {
        (None, _) => "goes",
        (Some(_), true) => "stays",
        (Some(_), false) => "changes",
    };
    let _ = writeln!(out, "  {} {what}: {} -> {}", change.service, image(&change.from), image(&change.to));
    for env in &change.env {
        let sign = match env.kind {
            EnvKind::Added => '+',
            EnvKind::Changed => '~',
            EnvKind::Removed => '-',
        };
        let secret = if env.secret { " (secret)" } else { "" };
        let _ = writeln!(out, "    {sign} {}{secret}", env.name);
    }
    if let Some(route) = &change.route {
        let _ = writeln!(out, "    route {}", route.pointer("/options/hosts").unwrap_or(&serde_json::Value::Null));
    }
}
