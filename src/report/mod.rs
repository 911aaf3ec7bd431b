//! Renderers of events: lines and moving progress for people, NDJSON for machines.
//!
//! Rooms say what happens by [`Record`]s without a time; a renderer stamps them, since it alone knows a clock. Progress goes to standard
//! error, so that standard output carries data only; with `--json` the events are the data. Used by `cli` alone.

pub mod ndjson;
pub mod terminal;

use jiji_model::event::{Record, Sink};

/// How a run is shown.
pub trait Report: Sink {
    /// The run has ended with this summary. Shown last, and always.
    fn summary(&self, summary: &Summary);
}

/// What a run did, for its last line.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct Summary {
    /// `shipped`, `unchanged`, `reverted` and so on.
    pub result: String,
    /// The exit code.
    pub exit: u8,
    /// One sentence for people.
    #[serde(skip)]
    pub text: String,
    /// Manifest digest by service.
    pub images: std::collections::BTreeMap<String, String>,
    /// SSH execs by host.
    pub execs: std::collections::BTreeMap<String, u64>,
    /// Bytes sent to hosts.
    pub bytes_sent: u64,
    /// Bytes received from hosts.
    pub bytes_received: u64,
    /// Bytes of image blobs sent to hosts.
    pub blob_bytes_sent: u64,
    /// Bytes pushed to the registry.
    pub bytes_pushed: u64,
    /// Milliseconds by stage, and `total`.
    pub durations_ms: std::collections::BTreeMap<String, u64>,
}

impl Summary {
    /// The summary as the last event.
    pub fn record(&self) -> Record {
        Record::new("summary", self.text.clone()).with(serde_json::to_value(self).expect("a summary is JSON"))
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
