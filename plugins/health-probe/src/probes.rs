//! Which loop tells a container's health.

use serde_json::Value;

use crate::bindings::exports::jiji::health::health::Subject;
use crate::bindings::jiji::plan::types::{Check, Fault, ProbeSpec};

/// JSON Schema of the settings.
pub const SCHEMA: &str = r#"{"$schema":"https://json-schema.org/draft/2020-12/schema","additionalProperties":false,"properties":{"deadline_ms":{"default":30000,"description":"Milliseconds until a container must be healthy, where its service says nothing.","maximum":600000,"minimum":100,"type":"integer"},"healthy_after":{"default":1,"description":"Probes in a row that must succeed.","maximum":100,"minimum":1,"type":"integer"},"interval_ms":{"default":250,"description":"Milliseconds between two probes, where its service says nothing.","maximum":60000,"minimum":10,"type":"integer"},"timeout_ms":{"default":2000,"description":"Milliseconds one probe may take, where its service says nothing.","maximum":60000,"minimum":10,"type":"integer"}},"type":"object"}"#;

/// What a user can set for all services that do not say it themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Milliseconds between two probes.
    pub interval_ms: u32,
    /// Milliseconds one probe may take.
    pub timeout_ms: u32,
    /// Milliseconds until a container must be healthy.
    pub deadline_ms: u32,
    /// Probes in a row that must succeed.
    pub healthy_after: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { interval_ms: 250, timeout_ms: 2_000, deadline_ms: 30_000, healthy_after: 1 }
    }
}

impl Settings {
    /// Reads settings, or says everything that is wrong with them. At least one fault where any.
    pub fn read(json: &str) -> Result<Self, Vec<Fault>> {
        let Ok(Value::Object(map)) = serde_json::from_str(json) else {
            return Err(vec![bad("", "expected an object".to_owned())]);
        };
        let mut settings = Self::default();
        let mut faults = Vec::new();
        for (key, value) in &map {
            let (slot, from, to) = match key.as_str() {
                "interval_ms" => (&mut settings.interval_ms, 10, 60_000),
                "timeout_ms" => (&mut settings.timeout_ms, 10, 60_000),
                "deadline_ms" => (&mut settings.deadline_ms, 100, 600_000),
                "healthy_after" => (&mut settings.healthy_after, 1, 100),
                _ => {
                    let known =
                        "unknown setting; known are `deadline_ms`, `healthy_after`, `interval_ms` and `timeout_ms`";
                    faults.push(bad(key, known.to_owned()));
                    continue;
                }
            };
            match value.as_u64().and_then(|value| u32::try_from(value).ok()) {
                Some(value) if (from..=to).contains(&value) => *slot = value,
                _ => faults.push(bad(key, format!("expected {from} to {to}"))),
            }
        }
        if faults.is_empty() { Ok(settings) } else { Err(faults) }
    }
}

fn bad(key: &str, reason: String) -> Fault {
    Fault {
        code: "bad-setting".to_owned(),
        message: if key.is_empty() { reason } else { format!("`{key}`: {reason}") },
        hint: None,
        path: Some(if key.is_empty() {
            String::new()
        } else {
            format!("/{}", key.replace('~', "~0").replace('/', "~1"))
        }),
    }
}

/// The loop for a service: its own check; else a TCP connection to the port that requests go to; else none.
pub fn specification(subject: &Subject, settings: &Settings) -> Option<ProbeSpec> {
    let check = subject.check.clone().or(subject.app_port.map(Check::Tcp))?;
    Some(ProbeSpec {
        check,
        interval_ms: subject.interval_ms.unwrap_or(settings.interval_ms).max(10),
        timeout_ms: subject.timeout_ms.unwrap_or(settings.timeout_ms),
        healthy_after: settings.healthy_after,
        deadline_ms: subject.deadline_ms.unwrap_or(settings.deadline_ms),
        status_from: 200,
        status_to: 299,
    })
}
