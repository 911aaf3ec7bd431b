//! What a finished loop means, in words a person can act on.

use crate::bindings::exports::jiji::health::health::{JudgeInput, Probe, Timeline, Verdict};
use crate::bindings::jiji::plan::types::{Check, ProbeHttp, ProbeNotRunning, ProbeResult, ProbeSpec};

pub fn verdict(input: &JudgeInput) -> Verdict {
    let timeline = &input.timeline;
    if timeline.healthy {
        return Verdict {
            healthy: true,
            explanation: format!("healthy after {} ({})", time(timeline.took_ms), count(timeline.made)),
            hint: None,
        };
    }
    let Some(last) = timeline.probes.last() else {
        return unhealthy(
            format!("not probed once in {}", time(timeline.took_ms)),
            Some("give it more time with `healthcheck.deadline`".to_owned()),
        );
    };
    if let Some(verdict) = unsteady(timeline, &input.spec) {
        return verdict;
    }
    match &last.result {
        ProbeResult::NotRunning(ended) => not_running(ended),
        ProbeResult::Http(answer) => http(answer, input),
        ProbeResult::Refused => refused(input),
        ProbeResult::TimedOut => timed_out(last, input),
        ProbeResult::Broken(cause) => unhealthy(
            format!("{} breaks off: {cause}", target(&input.spec.check)),
            Some(
                "does it speak plain HTTP there? TLS is the proxy's work, and the port must be the one for HTTP"
                    .to_owned(),
            ),
        ),
        ProbeResult::Exit(exit) => unhealthy(
            format!("{} ended with code {}{}", target(&input.spec.check), exit.code, quoted(": ", &exit.output)),
            match exit.code {
                126 | 127 => Some("the command is not in the image, or cannot be run there".to_owned()),
                _ => None,
            },
        ),
        ProbeResult::Connected => unhealthy(
            format!("{} was reached, but not {} in a row", target(&input.spec.check), count(input.spec.healthy_after)),
            Some("give it more time with `healthcheck.deadline`".to_owned()),
        ),
    }
}

/// It was healthy at times: neither dead nor well.
fn unsteady(timeline: &Timeline, spec: &ProbeSpec) -> Option<Verdict> {
    let good = timeline.probes.iter().filter(|probe| probe.healthy).count();
    let last = timeline.probes.last()?;
    if good == 0 || last.healthy && spec.healthy_after <= 1 {
        return None;
    }
    if let ProbeResult::NotRunning(ended) = &last.result {
        let mut verdict = not_running(ended);
        verdict.explanation = format!("was healthy, then {}", verdict.explanation);
        return Some(verdict);
    }
    Some(unhealthy(
        format!(
            "comes and goes: {good} of the {} shown succeeded, {} in a row are wanted",
            count(u32::try_from(timeline.probes.len()).unwrap_or(u32::MAX)),
            spec.healthy_after
        ),
        Some("does it restart, or answer slowly under its own start? its log tells".to_owned()),
    ))
}

fn not_running(ended: &ProbeNotRunning) -> Verdict {
    if ended.oom {
        return unhealthy(
            "ended by the kernel: out of memory".to_owned(),
            Some("give the container more memory, or the application less to do at its start".to_owned()),
        );
    }
    let Some(code) = ended.exit else {
        return unhealthy("the container does not run".to_owned(), None);
    };
    let hint = match code {
        0 => "its command must stay in the foreground for as long as the service runs",
        126 => {
            "the image's command cannot be executed: is it a program for this architecture, with its executable bit set?"
        }
        127 => "the image's command was not found: is it in the image and on its PATH?",
        137 => "it was killed from outside (SIGKILL), often for memory",
        139 => "it crashed (segmentation fault)",
        143 => "it was asked to stop from outside (SIGTERM)",
        _ => "its last log lines tell why; a missing variable in `environment` is the most common cause",
    };
    unhealthy(format!("the container ended with exit code {code}"), Some(hint.to_owned()))
}

fn http(answer: &ProbeHttp, input: &JudgeInput) -> Verdict {
    let status = answer.status;
    let to = target(&input.spec.check);
    let hint = match status {
        300..=399 => {
            let location = answer.location.as_deref().unwrap_or("nowhere");
            return unhealthy(
                format!("{to} redirects to `{location}` ({status})"),
                Some(if location.starts_with("https:") {
                    "let the application answer this path without TLS: in its container it is asked by plain HTTP, and the proxy does \
                     the redirect"
                        .to_owned()
                } else {
                    "check a path that answers by itself: `healthcheck.path`".to_owned()
                }),
            );
        }
        400 | 421 => "does the application refuse requests by their Host header? probes ask by the container's address",
        401 | 403 => "the path asks for a login: check one that does not, with `healthcheck.path`",
        404 => "the application knows no such path: name one that answers 200 in `healthcheck.path`",
        405 => "the path does not take GET: check another, with `healthcheck.path`",
        500..=599 => "the application itself reports a failure; its last log lines tell more",
        _ => "200 to 299 is healthy",
    };
    unhealthy(format!("{to} answers {status}{}", quoted(": ", &answer.body)), Some(hint.to_owned()))
}

fn refused(input: &JudgeInput) -> Verdict {
    let port = match &input.spec.check {
        Check::Http(http) => http.port,
        Check::Tcp(port) => *port,
        Check::Exec(_) => 0,
    };
    let hint = match listening(&input.log, port) {
        Some(line) => format!("its log says `{line}`: is `proxy.app_port` the port that it listens on?"),
        None => format!(
            "does it listen on {port}, and on all addresses (0.0.0.0), not on 127.0.0.1? if it only starts slowly, raise \
             `healthcheck.deadline`"
        ),
    };
    unhealthy(
        format!("nothing listens on port {port} of the container after {}", time(input.timeline.took_ms)),
        Some(hint),
    )
}

fn timed_out(last: &Probe, input: &JudgeInput) -> Verdict {
    unhealthy(
        format!("{} does not answer within {}", target(&input.spec.check), time(last.took_ms.max(1))),
        Some(
            "it listens but is busy or waits for something, often a database; its last log lines tell more".to_owned(),
        ),
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

fn target(check: &Check) -> String {
    match check {
        Check::Http(http) => format!("`GET {}` on port {}", http.path, http.port),
        Check::Tcp(port) => format!("port {port}"),
        Check::Exec(argv) => format!("`{}`", short(&argv.join(" "))),
    }
}

fn unhealthy(explanation: String, hint: Option<String>) -> Verdict {
    Verdict { healthy: false, explanation, hint }
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
fn short(text: &str) -> &str {
    let text = text.trim();
    text.char_indices().nth(120).map_or(text, |(end, _)| &text[..end])
}
