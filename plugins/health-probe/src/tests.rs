//! What a person reads, case by case.

use crate::Plugin;
use crate::bindings::exports::jiji::health::health::{
    Findings, Guest as _, JudgeInput, Listener, Probe, ProbesInput, Subject, Timeline, Verdict,
};
use crate::bindings::exports::jiji::plan::meta::Guest as _;
use crate::bindings::jiji::plan::types::*;
use crate::probes;

fn host() -> Server {
    Server { name: "one".to_owned(), architecture: "amd64".to_owned(), labels: Vec::new() }
}

fn subject(check: Option<Check>) -> Subject {
    Subject {
        service: "web".to_owned(),
        check,
        interval_ms: None,
        timeout_ms: None,
        deadline_ms: None,
        app_port: Some(3000),
        labels: Vec::new(),
    }
}

fn probe(subject: &Subject, settings: &str) -> Option<ProbeSpec> {
    let input = ProbesInput { host: host(), settings: settings.to_owned(), subjects: vec![subject.clone()] };
    let specs = Plugin::probes(input).expect("an answer");
    let [spec] = &specs[..] else { panic!("{specs:?}") };
    spec.clone()
}

fn up() -> Check {
    Check::Http(HttpCheck { port: 3000, path: "/up".to_owned() })
}

fn judge_with(check: Check, results: &[(ProbeResult, bool)], log: &str) -> Verdict {
    judge_found(check, results, log, None)
}

fn judge_found(check: Check, results: &[(ProbeResult, bool)], log: &str, findings: Option<Findings>) -> Verdict {
    let subject = subject(Some(check));
    let spec = probe(&subject, "{}").expect("a probe");
    let probe = |(at, (result, healthy)): (usize, &(ProbeResult, bool))| Probe {
        at_ms: u32::try_from(at).unwrap_or(0) * 250,
        took_ms: 2_000,
        result: result.clone(),
        healthy: *healthy,
    };
    let timeline = Timeline {
        healthy: false,
        took_ms: 30_012,
        made: u32::try_from(results.len()).unwrap_or(0),
        probes: results.iter().enumerate().map(probe).collect(),
        findings,
    };
    let settings = "{}".to_owned();
    Plugin::judge(JudgeInput { host: host(), settings, subject, spec, timeline, log: log.to_owned() })
        .expect("a verdict")
}

fn judge(result: ProbeResult) -> Verdict {
    judge_with(up(), &[(result, false)], "")
}

fn http(status: u16, body: &str, location: Option<&str>) -> ProbeResult {
    ProbeResult::Http(ProbeHttp { status, body: body.to_owned(), location: location.map(str::to_owned) })
}

fn ended(exit: Option<i32>, oom: bool) -> ProbeResult {
    ProbeResult::NotRunning(ProbeNotRunning { exit, oom })
}

/// The explanation, and that the hint says `hint`.
fn reads(verdict: &Verdict, explanation: &str, hint: &str) {
    assert!(!verdict.healthy);
    assert_eq!(verdict.explanation, explanation);
    let said = verdict.hint.as_deref().unwrap_or_default();
    assert!(said.contains(hint), "{said}");
}

#[test]
fn answers_that_are_not_healthy_say_what_to_change() {
    reads(&judge(http(404, "Not Found", None)), "`GET /up` on port 3000 answers 404: `Not Found`", "healthcheck.path");
    reads(&judge(http(500, "\n no database\nmore", None)), "`GET /up` on port 3000 answers 500: `no database`", "log");
    reads(&judge(http(401, "", None)), "`GET /up` on port 3000 answers 401", "login");
    reads(&judge(http(400, "", None)), "`GET /up` on port 3000 answers 400", "Host header");
    reads(
        &judge(http(400, "Invalid HTTP_HOST header: '10.210.0.140:3000'", None)),
        "`GET /up` on port 3000 refuses the Host header (400): `Invalid HTTP_HOST header: '10.210.0.140:3000'`",
        "ALLOWED_HOSTS",
    );
    reads(
        &judge(http(403, "Blocked hosts: 10.210.0.140:3000", None)),
        "`GET /up` on port 3000 refuses the Host header (403): `Blocked hosts: 10.210.0.140:3000`",
        "host_authorization",
    );
    let https = http(301, "", Some("https://shop.example/up"));
    reads(&judge(https), "`GET /up` on port 3000 redirects to `https://shop.example/up` (301)", "plain HTTP");
    reads(
        &judge(http(302, "", Some("/login"))),
        "`GET /up` on port 3000 redirects to `/login` (302)",
        "answers 200 by itself",
    );
}

#[test]
fn a_port_that_nothing_listens_on_is_compared_with_the_log() {
    let refused = [(ProbeResult::Refused, false)];
    let explanation = "nothing listens on port 3000 of the container after 30.0 s";
    reads(&judge_with(up(), &refused, ""), explanation, "0.0.0.0");
    let log = "booting\nListening on http://0.0.0.0:8000\nready";
    reads(&judge_with(up(), &refused, log), explanation, "`Listening on http://0.0.0.0:8000`");
    reads(&judge_with(up(), &refused, "Listening on 127.0.0.1:3000"), explanation, "`Listening on 127.0.0.1:3000`");
    reads(&judge_with(up(), &refused, "Listening on 0.0.0.0:3000"), explanation, "healthcheck.deploy_timeout");
    reads(&judge_with(Check::Tcp(3000), &refused, ""), explanation, "0.0.0.0");
}

fn listens(all: &[(&str, u16)]) -> Option<Findings> {
    let listener = |(address, port): &(&str, u16)| Listener { address: (*address).to_owned(), port: *port };
    Some(Findings { healthy_at_ms: None, listens: Some(all.iter().map(listener).collect()), engine: String::new() })
}

#[test]
fn a_refused_port_is_compared_with_those_that_it_listens_on() {
    let refused = |all: &[(&str, u16)]| judge_found(up(), &[(ProbeResult::Refused, false)], "", listens(all));
    reads(
        &refused(&[("127.0.0.1", 3000), ("::1", 3000)]),
        "port 3000 is bound to loopback: the application listens on `127.0.0.1:3000` alone",
        "0.0.0.0:3000",
    );
    reads(
        &refused(&[("127.0.0.1", 9000), ("::", 8000)]),
        "nothing listens on port 3000 of the container after 30.0 s; the application listens on `127.0.0.1:9000`, `[::]:8000`",
        "`proxy.app_port: 8000`",
    );
    reads(
        &refused(&[("127.0.0.1", 8000)]),
        "nothing listens on port 3000 of the container after 30.0 s; the application listens on `127.0.0.1:8000`",
        "0.0.0.0:3000",
    );
    reads(
        &refused(&[]),
        "nothing listens on port 3000 of the container after 30.0 s, nor on any other port",
        "database",
    );
    reads(
        &refused(&[("0.0.0.0", 3000)]),
        "nothing listens on port 3000 of the container after 30.0 s",
        "deploy_timeout",
    );
    let other = Check::Http(HttpCheck { port: 4000, path: "/up".to_owned() });
    let found = judge_found(other, &[(ProbeResult::Refused, false)], "", listens(&[("0.0.0.0", 3000)]));
    assert!(found.hint.is_some_and(|hint| hint.contains("`healthcheck.port: 3000`")));
}

#[test]
fn one_that_became_healthy_after_its_deadline_needs_a_later_one() {
    let findings = Findings { healthy_at_ms: Some(33_200), listens: None, engine: String::new() };
    reads(
        &judge_found(up(), &[(ProbeResult::Refused, false)], "", Some(findings)),
        "starts too slowly: it became healthy after 33.2 s, and 30.0 s were given",
        "`healthcheck.deploy_timeout: 50s`",
    );
}

#[test]
fn a_container_that_ended_says_how() {
    reads(&judge(ended(Some(1), false)), "the container ended with exit code 1", "environment");
    reads(&judge(ended(Some(0), false)), "the container ended with exit code 0 (it ended by itself)", "foreground");
    reads(
        &judge(ended(Some(126), false)),
        "the container ended with exit code 126 (its command cannot be executed)",
        "bit",
    );
    reads(
        &judge(ended(Some(127), false)),
        "the container ended with exit code 127 (its command was not found)",
        "PATH",
    );
    reads(&judge(ended(Some(137), false)), "the container ended with exit code 137 (SIGKILL)", "memory");
    reads(&judge(ended(Some(137), true)), "ended by the kernel: out of memory", "memory");
    reads(&judge(ended(Some(139), false)), "the container ended with exit code 139 (SIGSEGV: it crashed)", "C library");
    reads(&judge(ended(Some(143), false)), "the container ended with exit code 143 (SIGTERM)", "asked it to stop");
    reads(&judge(ended(None, false)), "the container does not run", "log");
    let after = [(http(200, "", None), true), (ended(Some(3), false), false)];
    reads(&judge_with(up(), &after, ""), "was healthy, then the container ended with exit code 3", "log");
}

#[test]
fn a_missing_variable_is_named_as_the_log_names_it() {
    let with = |log: &str| judge_with(up(), &[(ended(Some(1), false), false)], log);
    let explanation = "the container ended with exit code 1: its log says that `DATABASE_URL` is missing";
    for log in [
        "Traceback (most recent call last):\n  File \"app.py\", line 3\nKeyError: 'DATABASE_URL'  (3 times)\n",
        "fetch': key not found: \"DATABASE_URL\" (KeyError)",
        "FATAL: environment variable DATABASE_URL not set",
        "error: DATABASE_URL is required",
        "sh: DATABASE_URL: unbound variable",
    ] {
        reads(&with(log), explanation, "environment.secrets");
    }
    reads(
        &judge_with(up(), &[(ended(None, false), false)], "KeyError: 'DATABASE_URL'"),
        "the container ends again and again: its log says that `DATABASE_URL` is missing",
        "environment.clear",
    );
    for log in ["FATAL: no such file", "KeyError: 'user'", "ERROR: MISSING CONFIG", "DATABASE_URL is fine"] {
        reads(&with(log), "the container ended with exit code 1", "log lines");
    }
}

#[test]
fn a_command_that_cannot_be_run_is_told_by_the_engines_words() {
    let with = |exit: i32, engine: &str, log: &str| {
        let findings = Findings { healthy_at_ms: None, listens: None, engine: engine.to_owned() };
        judge_found(up(), &[(ended(Some(exit), false), false)], log, Some(findings))
    };
    let wrong = "the image's command is no program for this host (amd64): exec format error";
    reads(&with(126, "crun: open executable: Exec format error: OCI runtime error", ""), wrong, "linux/amd64");
    reads(
        &with(1, "", "standard_init_linux.go:228: exec user process caused: exec format error"),
        wrong,
        "linux/amd64",
    );
    reads(
        &with(127, "executable file `serve` not found in $PATH", ""),
        "it could not be run: exit code 127 (its command was not found)",
        "PATH",
    );
}

#[test]
fn slow_broken_and_unsteady_are_told_apart() {
    reads(&judge(ProbeResult::TimedOut), "`GET /up` on port 3000 does not answer within 2.0 s", "busy");
    reads(&judge(ProbeResult::Broken("not HTTP".to_owned())), "`GET /up` on port 3000 breaks off: not HTTP", "TLS");
    let unsteady = [(http(200, "", None), true), (http(503, "", None), false)];
    reads(
        &judge_with(up(), &unsteady, ""),
        "comes and goes: 1 of the 2 probes shown succeeded, 1 in a row are wanted",
        "log",
    );
    let command = Check::Exec(vec!["pg_isready".to_owned()]);
    let exit = ProbeResult::Exit(ProbeExit { code: 2, output: "no response\n".to_owned() });
    reads(&judge_with(command.clone(), &[(exit, false)], ""), "`pg_isready` ended with code 2: `no response`", "");
    let absent = ProbeResult::Exit(ProbeExit { code: 127, output: String::new() });
    reads(&judge_with(command, &[(absent, false)], ""), "`pg_isready` ended with code 127", "not in the image");
    reads(&judge_with(up(), &[], ""), "not probed once in 30.0 s", "deploy_timeout");
}

#[test]
fn a_healthy_timeline_is_healthy() {
    let subject = subject(Some(up()));
    let spec = probe(&subject, "{}").expect("a probe");
    let timeline = Timeline { healthy: true, took_ms: 812, made: 4, probes: Vec::new(), findings: None };
    let settings = "{}".to_owned();
    let verdict = Plugin::judge(JudgeInput { host: host(), settings, subject, spec, timeline, log: String::new() })
        .expect("a verdict");
    assert!(verdict.healthy);
    assert_eq!(verdict.explanation, "healthy after 812 ms (4 probes)");
}

#[test]
fn a_services_own_numbers_win_over_settings_and_settings_over_defaults() {
    let mut asked = subject(None);
    let spec = probe(&asked, "{}").expect("a probe");
    assert_eq!((spec.check, spec.interval_ms), (Check::Tcp(3000), 250));
    let settings = r#"{"interval_ms":500,"healthy_after":3}"#;
    let spec = probe(&asked, settings).expect("a probe");
    assert_eq!((spec.interval_ms, spec.healthy_after), (500, 3));
    asked.interval_ms = Some(100);
    assert_eq!(probe(&asked, settings).expect("a probe").interval_ms, 100);
    asked.app_port = None;
    assert_eq!(probe(&asked, settings), None);
}

#[test]
fn each_subject_has_its_answer_at_its_place() {
    let silent = Subject { app_port: None, ..subject(None) };
    let subjects = vec![subject(Some(up())), silent, subject(None)];
    let input = ProbesInput { host: host(), settings: "{}".to_owned(), subjects };
    let checks: Vec<_> =
        Plugin::probes(input).expect("an answer").into_iter().map(|spec| spec.map(|spec| spec.check)).collect();
    assert_eq!(checks, [Some(up()), None, Some(Check::Tcp(3000))]);
}

#[test]
fn bad_settings_are_refused_all_at_once() {
    let faults = Plugin::check_settings(r#"{"interval_ms":1,"x":1,"healthy_after":"a"}"#.to_owned()).expect_err("bad");
    assert_eq!(faults.len(), 3);
    serde_json::from_str::<serde_json::Value>(probes::SCHEMA).expect("the schema is JSON");
}
