//! `jiji drift`: how hosts differ from what was decided last, and with `--fix` their mending. Exit code 13 where something differs.

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::Arc;

use jiji_model::event::Record;

use super::args::{DriftArgs, Global};
use super::environment::{self, Environment};
use super::exit::Exit;
use super::failure::Failure;
use super::ready;
use super::ship_failure;
use super::workplace::Workplace;
use crate::deploy::Finding;
use crate::report::{Report, Summary};
use crate::secrets::Secrets;
use crate::ship::{Drift, Mended, Ship};

/// Compares, and mends where that is asked for.
pub async fn run(
    global: &Global,
    args: &DriftArgs,
    environment: &Environment,
    report: &Arc<dyn Report>,
) -> Result<Exit, Failure> {
    let place = Workplace::open(global, environment)?;
    // Only containers that are replaced need secrets, and which those are is known only from the hosts.
    let secrets = Secrets::available(&place.loaded.secrets, &environment::variable);
    let mut ship = ready::ship_with(&place, environment, "drift --fix", secrets, report)?;
    ship.apply.wait_lock = args.wait_lock.unwrap_or_default();
    if args.fix {
        let cancel = ready::on_signals(ship.cancel.clone());
        let mended = ship.mend(&environment::variable).await;
        cancel.abort();
        let mended = mended.map_err(|error| ship_failure::of(&error, &ship.secrets))?;
        return show_mended(global, &ship, &mended, report);
    }
    let drift = ship.drift().await.map_err(|error| ship_failure::of(&error, &ship.secrets))?;
    show(global, &drift, "drift.found", report)?;
    let exit = if drift.findings.is_empty() { Exit::Done } else { Exit::Drift };
    let text = match drift.findings.len() {
        0 => format!("{} as release {} left {}", hosts(&drift), drift.release, them(&drift)),
        count => format!("{} on {}; `jiji drift --fix` mends what it can", differences(count), hosts(&drift)),
    };
    report.summary(&summary(&ship, &drift, exit, if exit == Exit::Done { "none" } else { "drift" }, text));
    Ok(exit)
}

fn show_mended(global: &Global, ship: &Ship, mended: &Mended, report: &Arc<dyn Report>) -> Result<Exit, Failure> {
    show(global, &mended.before, "drift.found", report)?;
    let left = &mended.left;
    let exit = if left.findings.is_empty() { Exit::Done } else { Exit::Drift };
    if !global.json && !left.findings.is_empty() && !mended.before.findings.is_empty() {
        print("left as it is:\n")?;
    }
    if !left.findings.is_empty() {
        show(global, left, "drift.left", report)?;
    }
    let count = mended.before.findings.iter().filter(|finding| !left.findings.contains(finding)).count();
    let (result, text) = match (mended.before.findings.is_empty(), left.findings.len()) {
        (true, _) => ("none", format!("{} as release {} left {}", hosts(left), left.release, them(left))),
        (false, 0) => ("fixed", format!("mended {} on {}", differences(count), hosts(left))),
        (false, rest) => {
            ("drift", format!("mended {} on {}, {} left", differences(count), hosts(left), differences(rest)))
        }
    };
    let mut summary = summary(ship, left, exit, result, text);
    summary.release = mended.shipped.number;
    summary.blob_bytes_sent = mended.shipped.blob_bytes;
    summary.left = mended.shipped.left.iter().map(|failure| format!("{}: {}", failure.host, failure.title)).collect();
    report.summary(&summary);
    Ok(exit)
}

fn hosts(drift: &Drift) -> String {
    match drift.hosts.len() {
        1 => "1 host".to_owned(),
        count => format!("{count} hosts"),
    }
}

fn them(drift: &Drift) -> &'static str {
    if drift.hosts.len() == 1 { "it" } else { "them" }
}

fn differences(count: usize) -> String {
    match count {
        1 => "1 difference".to_owned(),
        count => format!("{count} differences"),
    }
}

fn summary(ship: &Ship, drift: &Drift, exit: Exit, result: &str, text: String) -> Summary {
    Summary {
        result: result.to_owned(),
        exit: exit.code(),
        text,
        scope: ship.project.scope(),
        release: drift.release,
        ..Summary::default()
    }
}

/// One event for each difference, or a text on standard output.
fn show(global: &Global, drift: &Drift, event: &str, report: &Arc<dyn Report>) -> Result<(), Failure> {
    if !global.json {
        return print(&text(&drift.findings));
    }
    for finding in &drift.findings {
        let line = format!("{} {}: {}", finding.kind.name(), finding.what, finding.found);
        let mut record = Record::new(event, line).on(&finding.host);
        record.service.clone_from(&finding.service);
        report.emit(record.with(serde_json::to_value(finding).expect("a finding is JSON")));
    }
    Ok(())
}

fn print(text: &str) -> Result<(), Failure> {
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| Failure::text(Exit::Internal, format!("write to standard output: {error}")))
}

fn text(findings: &[Finding]) -> String {
    let mut out = String::new();
    for finding in findings {
        let service = finding.service.as_ref().map_or_else(String::new, |service| format!(" of {service}"));
        // Writing to a String does not fail.
        let _ = writeln!(out, "{}  {}  {}{service}", finding.host, finding.kind.name(), finding.what);
        let _ = writeln!(out, "    expected  {}", finding.expected);
        let _ = writeln!(out, "    found     {}", finding.found);
        let _ = writeln!(out, "    --fix     {}", finding.fix);
    }
    out
}

#[cfg(test)]
mod tests {
    use jiji_model::name::{HostName, ServiceName};

    use super::*;
    use crate::deploy::Kind;

    #[test]
    fn a_difference_is_what_was_expected_what_was_found_and_what_mends_it() {
        let finding = Finding {
            host: HostName::new("one").expect("a name"),
            kind: Kind::ContainerEnv,
            service: Some(ServiceName::new("web").expect("a name")),
            what: "shop-web-3f2a9c1b".into(),
            expected: "the release's variables".into(),
            found: "other value of `GREETING`".into(),
            fix: "replaces it".into(),
            fixable: true,
        };
        insta::assert_snapshot!(text(&[finding]), @r"
        one  container-env  shop-web-3f2a9c1b of web
            expected  the release's variables
            found     other value of `GREETING`
            --fix     replaces it
        ");
    }
}
