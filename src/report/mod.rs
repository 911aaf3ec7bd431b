//! Renderers of events: lines and moving progress for people, NDJSON for machines; and of failed steps, one screen each.
//!
//! Rooms say what happens by [`Record`]s without a time; a renderer stamps them, since it alone knows a clock. Progress goes to standard
//! error, so that standard output carries data only; with `--json` the events are the data. Used by `cli` alone.

pub mod failure;
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
    /// The project's scope.
    pub scope: String,
    /// The release's number; 0 where nothing changed.
    pub release: u64,
    /// Manifest digests by service, one for each platform.
    pub images: std::collections::BTreeMap<String, Vec<String>>,
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
    /// Interrupted transactions that were settled.
    pub settled: Vec<SettledSummary>,
    /// Old things that could not be removed; the next ship takes them up again.
    pub left: Vec<String>,
}

/// An interrupted transaction that was settled.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct SettledSummary {
    /// Its id.
    pub transaction: String,
    /// Who had begun it, `user@machine`.
    pub who: String,
    /// What was typed to begin it.
    pub command: String,
    /// `finished` or `reverted`.
    pub result: String,
    /// Hosts on which it was open.
    pub hosts: Vec<String>,
    /// Hosts that took part and were not reached.
    pub in_doubt: Vec<String>,
    /// One sentence for people.
    #[serde(skip)]
    pub text: String,
}

impl Summary {
    /// The summary as the last event.
    pub fn record(&self) -> Record {
        Record::new("summary", self.text.clone()).with(serde_json::to_value(self).expect("a summary is JSON"))
    }
}
