//! A plan for a person at a terminal.

use std::fmt::Write as _;

use jiji_model::event::bytes;

use super::view::{HostView, ServiceView, View, count, hosts, short, sign, words};

/// Names of hosts that are written out where many are alike.
const NAMES: usize = 6;

/// The whole plan.
pub fn render(view: &View) -> String {
    let mut out = String::new();
    // Writing to a String does not fail.
    if view.changed {
        let total = &view.total;
        let _ = writeln!(
            out,
            "{}: {} of {} to change, {}, {} to send",
            view.project,
            total.changed,
            count(total.hosts, "host"),
            count(total.steps, "step"),
            bytes(total.bytes)
        );
        for group in view.alike() {
            hosts_alike(&mut out, &group);
        }
    } else {
        let _ = writeln!(out, "nothing to change");
    }
    for note in &view.notes {
        let _ = writeln!(out, "{}: {}", note.host, note.text);
    }
    if view.changed {
        let _ = writeln!(out, "plan {}", view.digest);
    }
    out
}

fn hosts_alike(out: &mut String, group: &[&HostView]) {
    let [first, ..] = group else { return };
    let names = hosts(group, NAMES).join(", ");
    if first.steps.is_empty() {
        let _ = writeln!(out, "\n{names}: nothing to change");
        return;
    }
    let each = if group.len() > 1 { " each" } else { "" };
    let sent = bytes(first.bytes);
    let _ = writeln!(out, "\n{names}: {}, {sent} to send{each}", count(first.steps.len(), "step"));
    for change in &first.services {
        service(out, change);
    }
    match first.unchanged {
        0 => {}
        1 => {
            let _ = writeln!(out, "  1 service stays");
        }
        many => {
            let _ = writeln!(out, "  {many} services stay");
        }
    }
    if group.len() > 1 {
        let _ = writeln!(out, "  steps on {}:", first.host);
    }
    for step in &first.steps {
        let _ = writeln!(out, "    {:<9} {}", step.phase, step.title);
    }
}

fn service(out: &mut String, change: &ServiceView) {
    let image = |digest: &Option<String>| digest.as_deref().map_or("-", short).to_owned();
    let (from, to) = (image(&change.from), image(&change.to));
    let images = if from == to { from } else { format!("{from} -> {to}") };
    let _ = writeln!(out, "  {} {}: {images}", change.service, words(change));
    for env in &change.env {
        let secret = if env.secret { " (secret)" } else { "" };
        let _ = writeln!(out, "    {} {}{secret}", sign(&env.change), env.name);
    }
    if change.env.iter().any(|env| env.change == "possible") {
        let _ = writeln!(out, "    (at least one of those with `?` has another value)");
    }
    if let Some(route) = &change.route {
        let tls = if route.tls { " with TLS" } else { "" };
        let _ = writeln!(out, "    route {}: {}{tls}", route.change, route.at.join(", "));
    }
}
