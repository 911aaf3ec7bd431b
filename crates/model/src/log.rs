//! Logs made short: what is said again and again is said once, with how often.
//!
//! A log is evidence when something failed, and a person reads it on one screen. Pure: text in, text out. Which containers' logs are
//! gathered is said by a step ([`crate::plan::Evidence`]).

use std::collections::HashMap;
use std::fmt::Write as _;

use serde_json::{Map, Value};

/// Fields of a structured line that are shown beside its message: what a request or a check was about.
const SHOWN: [&str; 6] = ["method", "path", "url", "status", "target", "service"];

/// The last `most` different lines of a log, oldest first. Lines that differ in times, numbers with many digits and identifiers alone
/// are the same; the last of them stands for all, with their number. Lines of JSON become their message.
///
/// ```
/// let log = "10:00:01 GET /up 503\n10:00:02 GET /up 503\nno database\n";
/// assert_eq!(jiji_model::log::distill(log, 10), "10:00:02 GET /up 503  (2 times)\nno database\n");
/// ```
pub fn distill(log: &str, most: usize) -> String {
    let mut kinds: HashMap<String, (usize, usize, String)> = HashMap::new();
    for (index, line) in log.lines().map(str::trim_end).enumerate().filter(|(_, line)| !line.is_empty()) {
        let (kind, text) = match structured(line) {
            Some((kind, text)) => (kind, text),
            None => (kind(line), line.to_owned()),
        };
        let seen = kinds.entry(kind).or_insert((0, 0, String::new()));
        *seen = (index, seen.1 + 1, text);
    }
    let mut lines: Vec<_> = kinds.into_values().collect();
    lines.sort_unstable_by_key(|(index, ..)| *index);
    let mut out = String::new();
    for (_, times, text) in &lines[lines.len().saturating_sub(most)..] {
        out.push_str(text);
        if *times > 1 {
            let _ = write!(out, "  ({times} times)");
        }
        out.push('\n');
    }
    out
}

/// A line without what differs each time: runs of digits that are part of a time, a fraction or an identifier.
fn kind(line: &str) -> String {
    let mut kind = String::with_capacity(line.len());
    for word in
        line.split_inclusive(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '[' | ']' | '(' | ')' | '='))
    {
        let digits = word.bytes().filter(u8::is_ascii_digit).count();
        let parted = word.bytes().any(|byte| matches!(byte, b':' | b'.' | b'-' | b'/'));
        // A bare number such as that of a line in a file says something; a time, a duration or an identifier does not.
        if digits > 4
            || (digits > 0
                && parted
                && word.trim().bytes().all(|byte| !byte.is_ascii_alphabetic() || b"TZmsu".contains(&byte)))
        {
            kind.extend(word.chars().filter(|c| !c.is_ascii_hexdigit()));
        } else {
            kind.push_str(word);
        }
    }
    kind
}

/// A line of JSON with a message: its kind and what a person reads.
fn structured(line: &str) -> Option<(String, String)> {
    let fields: Map<String, Value> =
        serde_json::from_str(line.trim()).ok().filter(|_| line.trim_start().starts_with('{'))?;
    let text = |keys: &[&str]| keys.iter().find_map(|key| fields.get(*key)).and_then(Value::as_str);
    let message = text(&["msg", "message"])?;
    let level = text(&["level", "severity"]).unwrap_or_default().to_ascii_lowercase();
    let error = text(&["error", "err"]).unwrap_or_default();
    let kind = format!("{level} {message} {} {}", kind(error), fields.get("status").unwrap_or(&Value::Null));
    let mut out = String::new();
    if !level.is_empty() && level != "info" {
        let _ = write!(out, "{level}: ");
    }
    out.push_str(message);
    if !error.is_empty() {
        let _ = write!(out, ": {error}");
    }
    for key in SHOWN {
        match fields.get(key) {
            Some(Value::String(value)) if !value.is_empty() => {
                let _ = write!(out, " {key}={value}");
            }
            Some(Value::Number(value)) => {
                let _ = write!(out, " {key}={value}");
            }
            _ => {}
        }
    }
    Some((kind, out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_again_is_said_once_in_the_order_of_its_last_time() {
        let log = "start\nTraceback:\n  File \"app.py\", line 3\nKeyError: 'A'\nTraceback:\n  File \"app.py\", line 3\nKeyError: 'A'\n";
        assert_eq!(
            distill(log, 10),
            "start\nTraceback:  (2 times)\n  File \"app.py\", line 3  (2 times)\nKeyError: 'A'  (2 times)\n"
        );
    }

    #[test]
    fn frames_of_a_stack_are_no_repeats_and_times_are_no_difference() {
        let log = "  at line 3\n  at line 4\n2026-11-25T02:37:35.123Z up 12ms\n2026-11-25T02:37:36.001Z up 7ms\n";
        let log = distill(log, 10);
        assert_eq!(log.lines().count(), 4, "{log}");
        let log = distill("02:37:35 GET /up 503 1.23ms\n02:37:36 GET /up 503 0.8ms\n", 10);
        assert_eq!(log, "02:37:36 GET /up 503 0.8ms  (2 times)\n");
    }

    #[test]
    fn a_proxys_requests_are_one_line_and_its_complaints_are_shown() {
        let request = |path: &str| {
            format!(
                r#"{{"time":"2026-11-25T02:37:35.1Z","level":"INFO","msg":"Request","host":"a.test","path":"{path}","status":200}}"#
            )
        };
        let failed = r#"{"time":"x","level":"INFO","msg":"Healthcheck failed","url":"http://10.210.0.141:80/up","error":"unexpected status (500)"}"#;
        let log = [request("/"), request("/echo"), failed.to_owned(), failed.to_owned(), request("/x")].join("\n");
        assert_eq!(
            distill(&log, 10),
            "Healthcheck failed: unexpected status (500) url=http://10.210.0.141:80/up  (2 times)\nRequest path=/x status=200  (3 times)\n"
        );
    }

    #[test]
    fn the_last_lines_are_kept_and_what_is_no_message_stays_as_it_is() {
        assert_eq!(distill("a\nb\n\nc\n", 2), "b\nc\n");
        assert_eq!(distill("{\"a\":1}\n[1]\n{torn\n", 9), "{\"a\":1}\n[1]\n{torn\n");
        assert_eq!(distill("", 9), "");
    }
}
