//! One JSON object per line on standard output: `v`, `time`, `seq`, then the record's fields. Lines end with the run's `summary`.

use std::io::Write;
use std::sync::Mutex;

use jiji_model::event::{Record, Sink, VERSION};
use serde::Serialize;

use super::{Report, Summary};

/// Writes events as NDJSON.
pub struct Ndjson<W> {
    state: Mutex<State<W>>,
}

struct State<W> {
    out: W,
    seq: u64,
}

#[derive(Serialize)]
struct Line<'a> {
    v: u32,
    time: String,
    seq: u64,
    #[serde(flatten)]
    record: &'a Record,
}

impl<W: Write + Send> Ndjson<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Self { state: Mutex::new(State { out, seq: 0 }) }
    }
}

impl<W: Write + Send> Sink for Ndjson<W> {
    fn emit(&self, record: Record) {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let time = format!("{:.3}", jiff::Timestamp::now());
        let line = Line { v: VERSION, time, seq: state.seq, record: &record };
        state.seq += 1;
        let mut bytes = serde_json::to_vec(&line).expect("a record is JSON");
        bytes.push(b'\n');
        // A reader that went away must not stop a transaction half-way; the exit code still tells how it ended.
        let _ = state.out.write_all(&bytes).and_then(|()| state.out.flush());
    }
}

impl<W: Write + Send> Report for Ndjson<W> {
    fn summary(&self, summary: &Summary) {
        self.emit(summary.record());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_has_version_time_and_a_growing_number() {
        let mut out = Vec::new();
        {
            let ndjson = Ndjson::new(&mut out);
            ndjson.emit(Record::new("build.started", "building web"));
            ndjson.summary(&Summary { result: "unchanged".into(), ..Summary::default() });
        }
        let lines: Vec<serde_json::Value> = String::from_utf8(out)
            .expect("UTF-8")
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        assert_eq!(lines.len(), 2);
        assert_eq!((lines[0]["v"].clone(), lines[1]["seq"].clone()), (1.into(), 1.into()));
        assert!(lines[0]["time"].as_str().is_some_and(|time| time.ends_with('Z')), "{}", lines[0]["time"]);
        assert_eq!(lines[1]["data"]["result"], "unchanged");
    }
}
