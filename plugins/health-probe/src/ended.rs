//! What it means that a container ended, or that its command could not be run at all.

use crate::bindings::exports::jiji::health::health::{JudgeInput, Verdict};
use crate::bindings::jiji::plan::types::ProbeNotRunning;
use crate::judge::{short, unhealthy};

pub fn verdict(state: &ProbeNotRunning, input: &JudgeInput) -> Verdict {
    let engine = input.timeline.findings.as_ref().map_or("", |findings| findings.engine.as_str());
    if [engine, &input.log].iter().any(|said| said.to_ascii_lowercase().contains("exec format error")) {
        let host = &input.host;
        return unhealthy(
            format!("the image's command is no program for this host ({}): exec format error", host.architecture),
            &format!(
                "build or name an image for `linux/{}`; a script needs `#!` and its interpreter in its first line",
                host.architecture
            ),
        );
    }
    if state.oom {
        return unhealthy(
            "ended by the kernel: out of memory".to_owned(),
            "give the container more memory, or the application less to do at its start",
        );
    }
    let Some(code) = state.exit else {
        if let Some(variable) = missing(&input.log) {
            return unhealthy(
                format!("the container ends again and again: its log says that `{variable}` is missing"),
                &set(variable),
            );
        }
        return unhealthy("the container does not run".to_owned(), "its last log lines tell why, if it wrote any");
    };
    let what = if engine.is_empty() { "the container ended with exit code" } else { "it could not be run: exit code" };
    let explanation = match meaning(code) {
        Some(meaning) => format!("{what} {code} ({meaning})"),
        None => format!("{what} {code}"),
    };
    if let Some(variable) = missing(&input.log).filter(|_| !matches!(code, 126 | 127 | 137 | 139 | 143)) {
        return unhealthy(format!("{explanation}: its log says that `{variable}` is missing"), &set(variable));
    }
    let hint = match code {
        0 => "its command must stay in the foreground for as long as the service runs",
        126 => "is the image's command a program, with its executable bit set?",
        127 => {
            "is the image's command in the image and on its PATH, with the libraries or the interpreter that it needs?"
        }
        137 => "something outside killed it, often for memory: look at the limits of the host",
        139 => "a native part of the application crashed: is it built for the C library of its base image?",
        143 => "something outside asked it to stop: another tool that manages the container?",
        _ => "its last log lines tell why; a missing variable in `environment` is the most common cause",
    };
    unhealthy(explanation, hint)
}

fn set(variable: &str) -> String {
    format!("set `{variable}` under `environment.clear`, or name it under `environment.secrets`")
}

/// What an exit code says by convention: those of shells and engines, and 128 and the number of a signal.
fn meaning(code: i32) -> Option<&'static str> {
    Some(match code {
        0 => "it ended by itself",
        126 => "its command cannot be executed",
        127 => "its command was not found",
        132 => "SIGILL: an instruction that this processor lacks",
        134 => "SIGABRT: it gave up",
        135 => "SIGBUS",
        136 => "SIGFPE",
        137 => "SIGKILL",
        139 => "SIGSEGV: it crashed",
        143 => "SIGTERM",
        _ => return None,
    })
}

/// The environment variable that the log's last words miss.
fn missing(log: &str) -> Option<&str> {
    const WORDS: [&str; 12] = [
        "keyerror",
        "key not found",
        "environment variable",
        "env var",
        "environment",
        "not set",
        "unset",
        "unbound variable",
        "must be set",
        "is required",
        "missing",
        "undefined",
    ];
    log.lines().rev().take(20).find_map(|line| {
        let lower = line.to_ascii_lowercase();
        if !WORDS.iter().any(|words| lower.contains(words)) {
            return None;
        }
        let mut names = line.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        names.find(|name| variable(name)).map(short)
    })
}

/// Whether a word looks like a variable's name and not like a word in capitals.
fn variable(name: &str) -> bool {
    let capitals = name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
    capitals && name.len() > 3 && name.contains('_') && name.starts_with(|c: char| c.is_ascii_uppercase())
}
