//! A plan as Markdown, for a comment on a pull request.
//!
//! The first line is a mark by which a later run finds the comment that it is to replace. Comments have a limit (GitHub takes 65,536
//! characters), so a long list of steps is cut, and what was cut is said.

use std::fmt::Write as _;

use jiji_model::event::bytes;

use super::view::{HostView, ServiceView, View, count, hosts, short, sign, words};

/// Names of hosts that are written out where many are alike.
const NAMES: usize = 4;
/// Characters after which nothing more is listed.
const MOST: usize = 60_000;
/// Characters of the table, so that there is room for steps.
const MOST_OF_TABLE: usize = 40_000;

/// The whole plan.
pub fn render(view: &View) -> String {
    let mut out = String::new();
    // Writing to a String does not fail.
    let _ = writeln!(out, "<!-- jiji plan {} -->", view.project);
    if !view.changed {
        let _ = writeln!(out, "### jiji plan for {}: nothing to change", code(&view.project));
        notes(&mut out, view);
        return out;
    }
    let total = &view.total;
    let _ = writeln!(
        out,
        "### jiji plan for {}: {} of {} to change\n",
        code(&view.project),
        total.changed,
        count(total.hosts, "host")
    );
    let groups = view.alike();
    let changed: Vec<&Vec<&HostView>> =
        groups.iter().filter(|group| group.iter().any(|host| !host.steps.is_empty())).collect();
    table(&mut out, &changed);
    let sent = bytes(total.bytes);
    let _ = writeln!(out, "\n<details><summary>{}, {sent} to send</summary>\n", count(total.steps, "step"));
    steps(&mut out, &changed);
    let _ = writeln!(out, "</details>");
    notes(&mut out, view);
    let _ = writeln!(out, "\nplan {}", code(&view.digest));
    out
}

fn table(out: &mut String, groups: &[&Vec<&HostView>]) {
    let _ = writeln!(out, "| hosts | service | change | image | environment | route |");
    let _ = writeln!(out, "| --- | --- | --- | --- | --- | --- |");
    let mut left = 0;
    for group in groups {
        let Some(first) = group.first() else { continue };
        let names: Vec<String> = hosts(group, NAMES).iter().map(|name| cell(name)).collect();
        let names = names.join(", ");
        if first.services.is_empty() {
            let _ = writeln!(out, "| {names} | | {} | | | |", count(first.steps.len(), "step"));
        }
        for service in &first.services {
            if out.len() > MOST_OF_TABLE {
                left += 1;
                continue;
            }
            row(out, &names, service);
        }
    }
    if left > 0 {
        let _ = writeln!(out, "\nand {}", count(left, "more row"));
    }
}

fn row(out: &mut String, names: &str, service: &ServiceView) {
    let image = |digest: &Option<String>| digest.as_deref().map(|digest| cell(short(digest)));
    let images = match (image(&service.from), image(&service.to)) {
        (Some(from), Some(to)) if from == to => from,
        (Some(from), Some(to)) => format!("{from} → {to}"),
        (None, Some(to)) => to,
        (Some(from), None) => format!("{from} → none"),
        (None, None) => String::new(),
    };
    let env: Vec<String> = service
        .env
        .iter()
        .map(|env| {
            let secret = if env.secret { " (secret)" } else { "" };
            format!("{}{secret}", cell(&format!("{} {}", sign(&env.change), env.name)))
        })
        .collect();
    let route = service.route.as_ref().map(|route| {
        let at: Vec<String> = route.at.iter().map(|at| cell(at)).collect();
        format!("{} {}{}", route.change, at.join(", "), if route.tls { " with TLS" } else { "" })
    });
    let _ = writeln!(
        out,
        "| {names} | {} | {} | {images} | {} | {} |",
        cell(&service.service),
        words(service),
        env.join(", "),
        route.unwrap_or_default()
    );
}

fn steps(out: &mut String, groups: &[&Vec<&HostView>]) {
    let mut left = 0;
    for group in groups {
        let Some(first) = group.first() else { continue };
        if out.len() > MOST {
            left += group.len();
            continue;
        }
        let alike = match group.len() {
            1 => String::new(),
            many => format!(", and alike on {}", count(many - 1, "more host")),
        };
        let _ = writeln!(
            out,
            "**{}**: {}, {} to send{alike}\n",
            code(&first.host),
            count(first.steps.len(), "step"),
            bytes(first.bytes)
        );
        for (number, step) in first.steps.iter().enumerate() {
            if out.len() > MOST {
                let _ = writeln!(out, "1. and {}", count(first.steps.len() - number, "more step"));
                break;
            }
            let _ = writeln!(out, "1. {}: {}", step.phase, code(&step.title));
        }
        let _ = writeln!(out);
    }
    if left > 0 {
        let _ = writeln!(out, "and {}\n", count(left, "more host"));
    }
}

fn notes(out: &mut String, view: &View) {
    for note in &view.notes {
        let _ = writeln!(out, "\n> {}: {}", code(&note.host), plain(&note.text));
    }
}

/// A text in code, which nothing in it can end.
fn code(text: &str) -> String {
    let text = text.replace('`', "'").replace(['\n', '\r'], " ");
    format!("`{text}`")
}

/// The same in a table, where a bar would end the cell, also in code.
fn cell(text: &str) -> String {
    code(text).replace('|', "\\|")
}

/// A sentence in which nothing is markup but the code that it quotes.
fn plain(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('|', "\\|").replace(['\n', '\r'], " ")
}
