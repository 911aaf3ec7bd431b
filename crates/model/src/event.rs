//! The envelope of everything that people and machines watch.
//!
//! Each room owns its events and turns them into a [`Record`]; whoever runs the room hands it a [`Sink`]. Time is not in a record: the
//! command line stamps it, since no room reads a clock. The NDJSON form is a stable interface: fields are added, never changed.

use serde::{Deserialize, Serialize};

use crate::name::{HostName, ServiceName};
use crate::plan::Phase;

/// Version of the NDJSON envelope.
pub const VERSION: u32 = 1;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// What, as `room.event`: `build.step`, `apply.step-done`.
    pub event: String,
    /// Where, if on one host.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub host: Option<HostName>,
    /// For which service, if for one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub service: Option<ServiceName>,
    /// In which phase, if a transaction runs.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub phase: Option<Phase>,
    /// One line for people: present tense for progress, past for results. Empty for machines alone.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub text: String,
    /// The event's own fields.
    #[serde(skip_serializing_if = "serde_json::Value::is_null", default)]
    pub data: serde_json::Value,
}

impl Record {
    /// An event of this name with this line for people.
    pub fn new(event: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            event: event.into(),
            host: None,
            service: None,
            phase: None,
            text: text.into(),
            data: serde_json::Value::Null,
        }
    }

    /// The same on this host.
    #[must_use]
    pub fn on(mut self, host: &HostName) -> Self {
        self.host = Some(host.clone());
        self
    }

    /// The same for this service.
    #[must_use]
    pub fn service(mut self, service: &ServiceName) -> Self {
        self.service = Some(service.clone());
        self
    }

    /// The same in this phase.
    #[must_use]
    pub fn phase(mut self, phase: Phase) -> Self {
        self.phase = Some(phase);
        self
    }

    /// The same with these fields.
    #[must_use]
    pub fn with(mut self, data: serde_json::Value) -> Self {
        self.data = data;
        self
    }
}

/// Where events go.
pub trait Sink: Send + Sync {
    /// Takes one event. Must not block for long and must not fail.
    fn emit(&self, record: Record);
}

/// Drops everything: for callers that watch nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Sink for Silent {
    fn emit(&self, _record: Record) {}
}

impl<F: Fn(Record) + Send + Sync> Sink for F {
    fn emit(&self, record: Record) {
        self(record);
    }
}

/// Bytes for people: one unit, at most one decimal.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let (mut value, mut unit) = (count as f64 / 1024.0, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A duration for people: seconds with one decimal.
pub fn seconds(milliseconds: u64) -> String {
    format!("{:.1}s", milliseconds as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_one_unit_and_at_most_one_decimal() {
        let shown: Vec<_> = [0, 1023, 1024, 1536, 1 << 20, 5 << 30].into_iter().map(bytes).collect();
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "5.0 GiB"]);
    }
}
