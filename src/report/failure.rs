//! A step that failed, on one screen: what was asked and met over time, and what containers say of themselves. The same as JSON.
//!
//! Nothing is judged here: the sentence that names the cause is a health plugin's ([`Verdict`]) or the host's, and is the headline
//! above this. What is the same again and again is shown once.

use std::fmt::Write as _;

use jiji_model::event::seconds;
use jiji_model::name::{HostName, ServiceName};
use jiji_model::probe::{Findings, ProbeResult, Timeline, Verdict};
use jiji_model::protocol::{EvidenceFound, StepFailure};
use serde_json::{Value, json};

/// Most rows of a timeline. The first and the last are shown.
const ROWS: usize = 6;

/// Most lines of one container's log. The last are shown; all that were gathered are in the JSON.
const LINES: usize = 12;

/// Width of what a probe met, in a row of 80.
const MET: usize = 52;

/// Longest line of a log.
const LOG_WIDTH: usize = 200;

/// A failed step and what is known of it.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a> {
    /// Where.
    pub host: &'a HostName,
    /// For which service, if for one.
    pub service: Option<&'a ServiceName>,
    /// The step's title.
    pub title: &'a str,
    /// Whether it was being taken back.
    pub undo: bool,
    /// What the host found.
    pub found: &'a StepFailure,
    /// What the health plugin says of it, if it was asked.
    pub verdict: Option<&'a Verdict>,
}

/// Probes in a row that met the same.
struct Run<'a> {
    at_ms: u32,
    probes: u32,
    result: &'a ProbeResult,
}

impl Shown<'_> {
    /// Several lines, indented, without a line break at the end. The cause is said where `cause` is set: the headline says that of the
    /// first failure.
    pub fn text(&self, cause: bool) -> String {
        let mut out = format!("  {}: {}", self.host, self.title);
        if self.undo {
            out.push_str(" (taking back)");
        }
        if cause {
            let _ = write!(out, ": {}", self.verdict.map_or(&self.found.cause, |verdict| &verdict.explanation));
        }
        out.push('\n');
        let findings = self.found.timeline.as_ref().and_then(|timeline| timeline.findings.as_ref());
        if let Some(timeline) = &self.found.timeline {
            rows(timeline, &mut out);
        }
        for (index, evidence) in self.found.evidence.iter().enumerate() {
            container(evidence, findings.filter(|_| index == 0), &mut out);
        }
        out.truncate(out.trim_end().len());
        out
    }

    /// The same as fields.
    pub fn json(&self) -> Value {
        let timeline = self.found.timeline.as_ref().map(|timeline| {
            let runs = runs(timeline);
            let runs: Vec<_> = runs
                .iter()
                .map(|run| json!({"at_ms": run.at_ms, "probes": run.probes, "result": run.result}))
                .collect();
            let findings = timeline.findings.clone().unwrap_or_default();
            json!({
                "took_ms": timeline.took_ms,
                "probes": timeline.made,
                "met": runs,
                "healthy_at_ms": findings.healthy_at_ms,
                "listens": findings.listens,
                "engine": findings.engine,
            })
        });
        let containers: Vec<_> = self
            .found
            .evidence
            .iter()
            .map(|evidence| {
                json!({
                    "name": evidence.container,
                    "state": evidence.state,
                    "exit": evidence.exit,
                    "oom": evidence.oom,
                    "log": evidence.log.lines().collect::<Vec<_>>(),
                })
            })
            .collect();
        json!({
            "host": self.host,
            "service": self.service,
            "step": self.title,
            "undo": self.undo,
            "cause": self.found.cause,
            "explanation": self.verdict.map(|verdict| &verdict.explanation),
            "hint": self.verdict.and_then(|verdict| verdict.hint.as_ref()),
            "timeline": timeline,
            "containers": containers,
        })
    }
}

/// Whether two probes met the same, whatever else their bodies say.
fn alike(one: &ProbeResult, other: &ProbeResult) -> bool {
    match (one, other) {
        (ProbeResult::Http { status, .. }, ProbeResult::Http { status: other, .. }) => status == other,
        (ProbeResult::Exit { code, .. }, ProbeResult::Exit { code: other, .. }) => code == other,
        (one, other) => one == other,
    }
}

fn runs(timeline: &Timeline) -> Vec<Run<'_>> {
    let kept = timeline.probes.len();
    // Those that were not kept are from the middle.
    let missing = timeline.made.saturating_sub(u32::try_from(kept).unwrap_or(u32::MAX));
    let mut runs: Vec<Run<'_>> = Vec::new();
    for (index, probe) in timeline.probes.iter().enumerate() {
        let before = if index == kept / 2 { missing } else { 0 };
        match runs.last_mut() {
            Some(last) if alike(last.result, &probe.result) => {
                last.probes += 1 + before;
                last.result = &probe.result;
            }
            last => {
                if let Some(last) = last {
                    last.probes += before;
                }
                runs.push(Run { at_ms: probe.at_ms, probes: 1, result: &probe.result });
            }
        }
    }
    runs
}

fn rows(timeline: &Timeline, out: &mut String) {
    let runs = runs(timeline);
    let hidden = runs.len().saturating_sub(ROWS);
    for (index, run) in runs.iter().enumerate() {
        if hidden > 0 && (ROWS / 2..ROWS / 2 + hidden).contains(&index) {
            if index == ROWS / 2 {
                let _ = writeln!(out, "{:>10}  … {hidden} changes more", "");
            }
            continue;
        }
        let probes = if run.probes == 1 { "1 probe".to_owned() } else { format!("{} probes", run.probes) };
        let met = cut(&met(run.result), MET);
        let _ = writeln!(out, "{:>10}  {met:<MET$}  {probes:>10}", seconds(run.at_ms.into()));
    }
    let ended = matches!(runs.last(), Some(Run { result: ProbeResult::NotRunning { .. }, .. }));
    if !ended && !timeline.healthy {
        let _ = writeln!(out, "{:>10}  given up", seconds(timeline.took_ms.into()));
    }
    if let Some(at) = timeline.findings.as_ref().and_then(|findings| findings.healthy_at_ms) {
        let _ = writeln!(out, "{:>10}  healthy, too late", seconds(at.into()));
    }
}

/// What a probe met, in a few words.
fn met(result: &ProbeResult) -> String {
    let quoted = |text: &str| {
        let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
        if line.is_empty() { line } else { format!("  {line}") }
    };
    match result {
        ProbeResult::Http { status, location: Some(location), .. } => format!("{status}  to {location}"),
        ProbeResult::Http { status, body, .. } => format!("{status}{}", quoted(body)),
        ProbeResult::Connected => "connected".to_owned(),
        ProbeResult::Exit { code, output } => format!("exit code {code}{}", quoted(output)),
        ProbeResult::Refused => "connection refused".to_owned(),
        ProbeResult::TimedOut => "no answer in time".to_owned(),
        ProbeResult::Broken { cause } => format!("broken off: {cause}"),
        ProbeResult::NotRunning { oom: true, .. } => "ended by the kernel for memory".to_owned(),
        ProbeResult::NotRunning { exit: Some(exit), .. } => format!("the container ended with exit code {exit}"),
        ProbeResult::NotRunning { exit: None, .. } => "the container does not run".to_owned(),
    }
}

fn container(evidence: &EvidenceFound, findings: Option<&Findings>, out: &mut String) {
    let _ = write!(out, "  {} is {}", evidence.container, evidence.state.as_deref().unwrap_or("gone"));
    if let Some(exit) = evidence.exit {
        let _ = write!(out, ", exit code {exit}");
    }
    if evidence.oom {
        out.push_str(", ended by the kernel for memory");
    }
    if let Some(listens) = findings.and_then(|findings| findings.listens.as_ref()).filter(|_| evidence.exit.is_none()) {
        let all: Vec<_> = listens.iter().map(ToString::to_string).collect();
        let _ = write!(out, ", listens on {}", if all.is_empty() { "no port".to_owned() } else { all.join(", ") });
    }
    out.push('\n');
    if let Some(findings) = findings.filter(|findings| !findings.engine.is_empty()) {
        let _ = writeln!(out, "    | {}", cut(&findings.engine, LOG_WIDTH));
    }
    let lines: Vec<_> = evidence.log.lines().collect();
    for line in &lines[lines.len().saturating_sub(LINES)..] {
        let _ = writeln!(out, "    | {}", cut(line, LOG_WIDTH));
    }
}

/// The beginning of a line, with a sign that more was there.
fn cut(line: &str, most: usize) -> String {
    if line.chars().count() <= most {
        return line.to_owned();
    }
    let mut beginning: String = line.chars().take(most - 1).collect();
    beginning.push('…');
    beginning
}

#[cfg(test)]
mod tests {
    use jiji_model::name::ContainerName;
    use jiji_model::probe::Probe;

    use super::*;

    fn http(status: u16, body: &str) -> ProbeResult {
        ProbeResult::Http { status, body: body.to_owned(), location: None }
    }

    fn failure(results: &[ProbeResult], made: u32, findings: Option<Findings>, log: &str) -> StepFailure {
        let probe = |(index, result): (usize, &ProbeResult)| Probe {
            at_ms: u32::try_from(index).unwrap_or(0) * 200,
            took_ms: 1,
            result: result.clone(),
            healthy: false,
        };
        let probes = results.iter().enumerate().map(probe).collect();
        StepFailure {
            step: "s".to_owned(),
            cause: "find it healthy".to_owned(),
            timeline: Some(Timeline { healthy: false, took_ms: 4_012, made, probes, findings }),
            evidence: vec![EvidenceFound {
                container: ContainerName::new("shop-web-3f2a").expect("a name"),
                state: Some("running".to_owned()),
                exit: None,
                oom: false,
                log: log.to_owned(),
            }],
        }
    }

    fn shown<'a>(host: &'a HostName, found: &'a StepFailure) -> Shown<'a> {
        Shown { host, service: None, title: "wait until shop-web-3f2a is healthy", undo: false, found, verdict: None }
    }

    #[test]
    fn what_was_met_again_and_again_is_one_row_with_the_probes_that_were_not_kept() {
        let host = HostName::new("two").expect("a name");
        let mut results = vec![ProbeResult::Refused, ProbeResult::Refused];
        results.extend((0..30).map(|number| http(503, &format!("no database, request {number}"))));
        let findings =
            Findings { listens: Some(vec!["0.0.0.0:8080".parse().expect("an address")]), ..Findings::default() };
        let found = failure(&results, 120, Some(findings), "listening on 8080\nno database  (118 times)\n");
        insta::assert_snapshot!(shown(&host, &found).text(false), @r"
        two: wait until shop-web-3f2a is healthy
            0.0s  connection refused                                      2 probes
            0.4s  503  no database, request 29                          118 probes
            4.0s  given up
        shop-web-3f2a is running, listens on 0.0.0.0:8080
          | listening on 8080
          | no database  (118 times)
        ");
        let json = shown(&host, &found).json();
        assert_eq!(json["timeline"]["met"][1]["probes"], 118);
        assert_eq!(json["timeline"]["listens"][0], "0.0.0.0:8080");
        assert_eq!(json["containers"][0]["log"][0], "listening on 8080");
    }

    #[test]
    fn long_stories_keep_their_beginning_and_their_end() {
        let host = HostName::new("two").expect("a name");
        let results: Vec<_> = (0..9).map(|number| http(500 + number, &"x".repeat(80))).collect();
        let log: String = (0..40).map(|number| format!("line {number}\n")).collect();
        let found = failure(&results, 9, None, &log);
        let text = shown(&host, &found).text(true);
        assert!(text.starts_with("  two: wait until shop-web-3f2a is healthy: find it healthy\n"), "{text}");
        assert!(text.contains("… 3 changes more\n") && text.contains("line 39") && !text.contains("line 27"), "{text}");
        assert!(text.lines().count() < 24 && text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }

    #[test]
    fn one_that_ended_says_when_and_is_not_given_up() {
        let host = HostName::new("two").expect("a name");
        let ended = ProbeResult::NotRunning { exit: Some(1), oom: false };
        let mut found = failure(&[ProbeResult::Refused, ended], 2, Some(Findings::default()), "KeyError: 'A_B'\n");
        found.evidence[0].state = Some("exited".to_owned());
        found.evidence[0].exit = Some(1);
        insta::assert_snapshot!(shown(&host, &found).text(false), @r"
        two: wait until shop-web-3f2a is healthy
            0.0s  connection refused                                       1 probe
            0.2s  the container ended with exit code 1                     1 probe
        shop-web-3f2a is exited, exit code 1
          | KeyError: 'A_B'
        ");
    }
}
