//! What a finished loop means, in words a person can act on: one sentence that names the cause, one that names the cure.
//!
//! Facts come before guesses: what the host found ([`Findings`]), then what the last probe met, then what the log says. What a
//! container that ended says of itself is [`crate::ended`]'s.

use crate::bindings::exports::jiji::health::health::{Findings, JudgeInput, Listener, Probe, Timeline, Verdict};
use crate::bindings::jiji::plan::types::{Check, ProbeHttp, ProbeResult, ProbeSpec};
use crate::ended;

pub fn verdict(input: &JudgeInput) -> Verdict {
    let timeline = &input.timeline;
    if timeline.healthy {
        return Verdict {
            healthy: true,
            explanation: format!("healthy after {} ({})", time(timeline.took_ms), count(timeline.made)),
            hint: None,
        };
    }
    if let Some(at) = timeline.findings.as_ref().and_then(|findings| findings.healthy_at_ms) {
        return late(at, &input.spec);
    }
    let Some(last) = timeline.probes.last() else {
        return unhealthy(
            format!("not probed once in {}", time(timeline.took_ms)),
            "give it more time with `healthcheck.deploy_timeout`",
        );
    };
    if let Some(verdict) = unsteady(input) {
        return verdict;
    }
    match &last.result {
        ProbeResult::NotRunning(state) => ended::verdict(state, input),
        ProbeResult::Http(answer) => http(answer, input),
        ProbeResult::Refused => refused(input),
        ProbeResult::TimedOut => timed_out(last, input),
        ProbeResult::Broken(cause) => unhealthy(
            format!("{} breaks off: {cause}", target(&input.spec.check)),
            "does it speak plain HTTP there? TLS is the proxy's work, and the port must be the one for HTTP",
        ),
        ProbeResult::Exit(exit) => unhealthy(
            format!("{} ended with code {}{}", target(&input.spec.check), exit.code, quoted(": ", &exit.output)),
            match exit.code {
                126 | 127 => "the command of `healthcheck.cmd` is not in the image, or cannot be run there",
                _ => "run the command of `healthcheck.cmd` in the container by hand; its last log lines tell more",
            },
        ),
        ProbeResult::Connected => unhealthy(
            format!("{} was reached, but not {} in a row", target(&input.spec.check), count(input.spec.healthy_after)),
            "give it more time with `healthcheck.deploy_timeout`",
        ),
    }
}

/// It became healthy when it was given up already.
fn late(at: u32, spec: &ProbeSpec) -> Verdict {
    // Half as long again, in whole seconds: a start takes longer on a busy host.
    let enough = at.saturating_mul(3).div_ceil(2_000);
    unhealthy(
        format!("starts too slowly: it became healthy after {}, and {} were given", time(at), time(spec.deadline_ms)),
        &format!("give it more time with `healthcheck.deploy_timeout: {enough}s`"),
    )
}

/// It was healthy at times: neither dead nor well.
fn unsteady(input: &JudgeInput) -> Option<Verdict> {
    let (timeline, spec): (&Timeline, &ProbeSpec) = (&input.timeline, &input.spec);
    let good = timeline.probes.iter().filter(|probe| probe.healthy).count();
    let last = timeline.probes.last()?;
    if good == 0 || last.healthy && spec.healthy_after <= 1 {
        return None;
    }
    if let ProbeResult::NotRunning(state) = &last.result {
        let mut verdict = ended::verdict(state, input);
        verdict.explanation = format!("was healthy, then {}", verdict.explanation);
        return Some(verdict);
    }
    Some(unhealthy(
        format!(
            "comes and goes: {good} of the {} shown succeeded, {} in a row are wanted",
            count(u32::try_from(timeline.probes.len()).unwrap_or(u32::MAX)),
            spec.healthy_after
        ),
        "does it restart, or answer slowly under its own start? its log tells",
    ))
}

fn http(answer: &ProbeHttp, input: &JudgeInput) -> Verdict {
    let status = answer.status;
    let to = target(&input.spec.check);
    let body = answer.body.to_ascii_lowercase();
    let host_header = ["host header", "http_host", "allowed_hosts", "blocked host", "invalid host", "disallowedhost"];
    let hint = match status {
        300..=399 => {
            let location = answer.location.as_deref().unwrap_or("nowhere");
            return unhealthy(
                format!("{to} redirects to `{location}` ({status})"),
                if location.starts_with("https:") {
                    "the application wants TLS, which ends at the proxy: let it answer this path by plain HTTP (Rails: exclude it in \
                     `ssl_options`, Django: `SECURE_REDIRECT_EXEMPT`), or name another in `healthcheck.path`"
                } else {
                    "name a path in `healthcheck.path` that answers 200 by itself; the target of a redirect is not asked"
                },
            );
        }
        _ if (400..500).contains(&status) && host_header.iter().any(|words| body.contains(words)) => {
            return unhealthy(
                format!("{to} refuses the Host header ({status}){}", quoted(": ", &answer.body)),
                "probes ask by the container's address: let the application take it as Host on this path (Rails: exclude the path in \
                 `host_authorization`, Django: `ALLOWED_HOSTS`), or name a path outside that check in `healthcheck.path`",
            );
        }
        400 | 421 => {
            "probes ask by the container's address: an application that checks the Host header must take it on this path, or \
             `healthcheck.path` must name another"
        }
        401 | 403 => "the path asks for a login: name one in `healthcheck.path` that does not",
        404 => "the application knows no such path: name one in `healthcheck.path` that answers 200",
        405 => "the path does not take GET: name another in `healthcheck.path`",
        429 => "the application limits how often it may be asked: exempt this path, or raise `healthcheck.interval`",
        500..=599 => "the application itself reports a failure; its last log lines tell more",
        _ => "200 to 299 is healthy: name a path in `healthcheck.path` that answers so",
    };
    unhealthy(format!("{to} answers {status}{}", quoted(": ", &answer.body)), hint)
}

fn refused(input: &JudgeInput) -> Verdict {
    let port = match &input.spec.check {
        Check::Http(http) => http.port,
        Check::Tcp(port) => *port,
        Check::Exec(_) => 0,
    };
    let key = if input.subject.app_port == Some(port) { "proxy.app_port" } else { "healthcheck.port" };
    let after = time(input.timeline.took_ms);
    let listens = input.timeline.findings.as_ref().and_then(|findings: &Findings| findings.listens.as_ref());
    if let Some(listens) = listens {
        let here: Vec<&Listener> = listens.iter().filter(|listener| listener.port == port).collect();
        if let Some(first) = here.first().filter(|_| here.iter().all(|listener| loopback(&listener.address))) {
            return unhealthy(
                format!("port {port} is bound to loopback: the application listens on `{}` alone", at(first)),
                &format!(
                    "let it listen on all addresses, `0.0.0.0:{port}`: nothing outside the container reaches loopback"
                ),
            );
        }
        if here.is_empty() && listens.is_empty() {
            return unhealthy(
                format!("nothing listens on port {port} of the container after {after}, nor on any other port"),
                "it runs and serves nothing yet: does it wait for something, often a database, or is its command no server? its last \
                 log lines tell more",
            );
        }
        if here.is_empty() {
            let ports: Vec<String> = listens.iter().map(at).collect();
            let open = listens.iter().find(|listener| !loopback(&listener.address));
            let hint = match open {
                Some(open) => format!("is it the wrong port? `{key}: {}` is one that it listens on", open.port),
                None => format!("let it listen on `0.0.0.0:{port}`: nothing outside the container reaches loopback"),
            };
            return unhealthy(
                format!(
                    "nothing listens on port {port} of the container after {after}; the application listens on `{}`",
                    ports.join("`, `")
                ),
                &hint,
            );
        }
    }
    let hint = match listening(&input.log, port) {
        Some(line) => format!("its log says `{line}`: is `{key}` the port that it listens on?"),
        None => format!(
            "does it listen on {port}, and on all addresses (0.0.0.0), not on 127.0.0.1? if it only starts slowly, raise \
             `healthcheck.deploy_timeout`"
        ),
    };
    unhealthy(format!("nothing listens on port {port} of the container after {after}"), &hint)
}

fn timed_out(last: &Probe, input: &JudgeInput) -> Verdict {
    unhealthy(
        format!("{} does not answer within {}", target(&input.spec.check), time(last.took_ms.max(1))),
        "it listens but is busy or waits for something, often a database; its last log lines tell more",
    )
}

/// The log's line about where it listens, if that names another port than the one probed.
fn listening(log: &str, port: u16) -> Option<&str> {
    let line = log.lines().rev().find(|line| {
        let lower = line.to_ascii_lowercase();
        ["listening", "running on", "serving on", "serving http", "started server on", "ready on"]
            .iter()
            .any(|words| lower.contains(words))
    })?;
    let numbers = line.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse::<u32>().ok());
    let mut any = false;
    for number in numbers {
        if number == u32::from(port) {
            return line.contains("127.0.0.1").then(|| short(line));
        }
        any |= number > 79;
    }
    any.then(|| short(line))
}

fn loopback(address: &str) -> bool {
    address.starts_with("127.") || address == "::1"
}

fn at(listener: &Listener) -> String {
    let Listener { address, port } = listener;
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

fn target(check: &Check) -> String {
    match check {
        Check::Http(http) => format!("`GET {}` on port {}", http.path, http.port),
        Check::Tcp(port) => format!("port {port}"),
        Check::Exec(argv) => format!("`{}`", short(&argv.join(" "))),
    }
}

pub fn unhealthy(explanation: String, hint: &str) -> Verdict {
    Verdict { healthy: false, explanation, hint: Some(hint.to_owned()).filter(|hint| !hint.is_empty()) }
}

fn count(probes: u32) -> String {
    if probes == 1 { "1 probe".to_owned() } else { format!("{probes} probes") }
}

fn time(milliseconds: u32) -> String {
    if milliseconds < 1_000 {
        format!("{milliseconds} ms")
    } else {
        format!("{}.{} s", milliseconds / 1_000, milliseconds % 1_000 / 100)
    }
}

/// The first line of a text in quotes, or nothing where there is none.
fn quoted(before: &str, text: &str) -> String {
    match text.lines().map(str::trim).find(|line| !line.is_empty()) {
        Some(line) => format!("{before}`{}`", short(line)),
        None => String::new(),
    }
}

/// At most 120 characters.
pub fn short(text: &str) -> &str {
    let text = text.trim();
    text.char_indices().nth(120).map_or(text, |(end, _)| &text[..end])
}
