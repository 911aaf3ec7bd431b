//! `jiji server check`: whether servers are fit for a ship, without building or changing anything.
//!
//! It looks in one exec per host, like `jiji status`, and judges by the same rules as a ship ([`crate::deploy::preflight`]) what can be
//! judged without an image: the way in, sudo, engine, kernel, clock, some room on disk, and who has the proxy's ports.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use jiji_model::name::HostName;
use jiji_model::observation::Observation;
use jiji_model::project::Project;

use super::args::{Global, ServerCommand};
use super::environment::Environment;
use super::exit::Exit;
use super::failure::Failure;
use super::hosts;
use super::workplace;
use crate::deploy::Images;
use crate::deploy::preflight::{self, Finding, Now, Severity};
use crate::fleet::FleetError;

/// This machine's clock, in milliseconds since 1970.
pub fn clock() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Runs one of `jiji server …`.
pub async fn run(global: &Global, command: &ServerCommand, environment: &Environment) -> Result<Exit, Failure> {
    match command {
        ServerCommand::Check => check(global, environment).await,
    }
}

async fn check(global: &Global, environment: &Environment) -> Result<Exit, Failure> {
    let root = workplace::root(global)?;
    let project = workplace::load(&root, global.environment.as_deref())?.project;
    let fleet = hosts::connect(&project, environment).await?;
    let wants = fleet.sessions.keys().map(|host| (host.clone(), preflight::wants_without_plan(&ports(&project, host))));
    let (observation, lost) = fleet.observe(&wants.collect()).await;
    let now = Now(clock());
    let mut findings = preflight::hosts(&project, &observation, now);
    findings.extend(preflight::without_plan(&project, &Images::new(), &observation));
    findings.extend(preflight::taken(&observation));
    findings.sort_by(|one, other| one.host.cmp(&other.host));
    let unreached: BTreeMap<_, _> = fleet.unreachable.iter().chain(&lost).collect();
    let text = match global.json {
        true => json(&observation, &findings, &unreached),
        false => table(&observation, &findings, &unreached),
    };
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| Failure::text(Exit::Internal, format!("write to standard output: {error}")))?;
    let failure = hosts::failures(unreached.iter().map(|(host, error)| (*host, *error)));
    let refused: BTreeSet<_> =
        findings.iter().filter(|finding| refuses(finding)).map(|finding| &finding.host).collect();
    let unfit = !refused.is_empty();
    let names = refused.iter().map(|host| format!("`{host}`")).collect::<Vec<_>>().join(", ");
    fleet.close().await;
    match failure {
        Some(failure) => Err(failure),
        None if unfit => Err(Failure::text(Exit::Refused, format!("find all servers fit for a ship: not {names}"))),
        None => Ok(Exit::Done),
    }
}

fn refuses(finding: &Finding) -> bool {
    finding.what.severity() == Severity::Refusal
}

/// The ports that the proxy takes on a host: HTTP and HTTPS where something is routed there, at other ports where the plugin's settings
/// say so as the default plugin's do.
fn ports(project: &Project, host: &HostName) -> Vec<u16> {
    if !project.services_on(host).any(|(_, service)| service.proxy.is_some()) {
        return Vec::new();
    }
    let settings = &project.plugins.proxy.settings;
    let port = |name: &str, otherwise: u16| {
        let set = settings.get(name).and_then(serde_json::Value::as_u64).and_then(|port| port.try_into().ok());
        set.unwrap_or(otherwise)
    };
    vec![port("http_port", 80), port("https_port", 443)]
}

/// Findings by host, each with its hint below it, as a ship that is refused shows them too.
pub fn findings(findings: &[Finding]) -> String {
    let mut out = String::new();
    let mut last = None;
    for finding in findings {
        // Writing to a String does not fail.
        if last != Some(&finding.host) {
            let _ = writeln!(out, "{}", finding.host);
            last = Some(&finding.host);
        }
        finding_lines(&mut out, finding);
    }
    out
}

fn finding_lines(out: &mut String, finding: &Finding) {
    let mark = if refuses(finding) { "" } else { "warning: " };
    let _ = writeln!(out, "  {mark}{}", finding.what);
    let _ = writeln!(out, "    hint: {}", finding.what.hint());
}

fn table(observation: &Observation, findings: &[Finding], unreached: &BTreeMap<&HostName, &FleetError>) -> String {
    let mut out = String::new();
    for host in observation.hosts.keys() {
        let _ = writeln!(out, "{host}  {}", preflight::described(observation, host));
        let of_host: Vec<_> = findings.iter().filter(|finding| finding.host == *host).collect();
        if of_host.is_empty() {
            let _ = writeln!(out, "  fit");
        }
        of_host.into_iter().for_each(|finding| finding_lines(&mut out, finding));
    }
    for (host, error) in unreached {
        let _ = writeln!(out, "{host}\n  failed to {}", hosts::failure(error).line());
        if let Some(hint) = error.hint() {
            let _ = writeln!(out, "    hint: {hint}");
        }
    }
    out
}

fn json(observation: &Observation, findings: &[Finding], unreached: &BTreeMap<&HostName, &FleetError>) -> String {
    let mut all = BTreeMap::new();
    for (host, facts) in &observation.hosts {
        let of_host: Vec<_> = findings.iter().filter(|finding| finding.host == *host).collect();
        let lines: Vec<_> = of_host
            .iter()
            .map(|finding| {
                serde_json::json!({
                    "code": finding.what.code(),
                    "severity": if refuses(finding) { "refusal" } else { "warning" },
                    "text": finding.what.to_string(),
                    "hint": finding.what.hint(),
                })
            })
            .collect();
        let fit = !of_host.iter().any(|finding| refuses(finding));
        all.insert(
            host.to_string(),
            serde_json::json!({"reached": true, "fit": fit, "findings": lines, "facts": facts}),
        );
    }
    for (host, error) in unreached {
        let entry = serde_json::json!({
            "reached": false, "fit": false, "error": hosts::failure(error).line(), "hint": error.hint(),
        });
        all.insert(host.to_string(), entry);
    }
    format!("{}\n", serde_json::json!({"v": 1, "hosts": all}))
}
