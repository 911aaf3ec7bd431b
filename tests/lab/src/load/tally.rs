//! Counts what a run sees, in bounded memory: a report holds counts for all requests and the first failures in full.

use std::time::Duration;

use super::report::{Failure, FailureKind, Progress, Report, Seen, TargetReport};

/// How many failures of a target are kept in full.
const KEPT_FAILURES: usize = 1000;

/// Latencies are counted in steps of a tenth of a millisecond up to this many steps (10 s).
const LATENCY_STEPS: usize = 100_000;

/// The counts of one target.
pub(super) struct Tally {
    report: TargetReport,
    latency: Vec<u32>,
    last_version: Option<String>,
}

impl Tally {
    pub(super) fn new(name: String) -> Self {
        Self {
            report: TargetReport { name, ..TargetReport::default() },
            latency: vec![0; LATENCY_STEPS + 1],
            last_version: None,
        }
    }

    /// A request is sent, so long after the start.
    pub(super) fn sent(&mut self, since_start: Duration) {
        self.report.sent += 1;
        let place = usize::try_from(since_start.as_millis() / 100).unwrap_or(usize::MAX);
        if self.report.sent_by_tenth.len() <= place {
            self.report.sent_by_tenth.resize(place + 1, 0);
        }
        self.report.sent_by_tenth[place] += 1;
    }

    /// A good answer to a request sent at that time (seconds since 1970); `latency` is given where it was due at once.
    pub(super) fn good(&mut self, version: String, sent: f64, latency: Option<Duration>) {
        self.report.good += 1;
        if let Some(latency) = latency {
            let step = usize::try_from(latency.as_micros() / 100).unwrap_or(usize::MAX);
            self.latency[step.min(LATENCY_STEPS)] += 1;
        }
        if let Some(seen) = self.report.versions.get_mut(&version) {
            seen.answers += 1;
            seen.first_sent = seen.first_sent.min(sent);
            seen.last_sent = seen.last_sent.max(sent);
        } else {
            self.report.versions.insert(version.clone(), Seen { answers: 1, first_sent: sent, last_sent: sent });
        }
        if self.last_version.as_ref() != Some(&version) {
            self.last_version = Some(version);
        }
    }

    pub(super) fn failed(&mut self, failure: Failure) {
        self.count(failure.kind);
        if self.report.failures.len() < KEPT_FAILURES {
            self.report.failures.push(failure);
        }
    }

    /// A failure of which only the kind is known.
    pub(super) fn count(&mut self, kind: FailureKind) {
        *self.report.failed.entry(kind).or_default() += 1;
    }

    fn percentile(&self, share: f64) -> f64 {
        let total: u64 = self.latency.iter().map(|count| u64::from(*count)).sum();
        if total == 0 {
            return 0.0;
        }
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "counts"
        )]
        let due = (share * total as f64).ceil().max(1.0) as u64;
        let mut below = 0;
        for (step, count) in self.latency.iter().enumerate() {
            below += u64::from(*count);
            if below >= due {
                #[expect(clippy::cast_precision_loss, reason = "at most 100000")]
                return step as f64 / 10.0;
            }
        }
        0.0
    }

    fn finish(mut self) -> TargetReport {
        self.report.latency_ms = [0.5, 0.99, 1.0].map(|share| self.percentile(share));
        self.report
    }
}

/// Counts so far.
pub(super) fn progress(tallies: &[Tally]) -> Progress {
    let mut progress = Progress::default();
    for tally in tallies {
        progress.sent += tally.report.sent;
        progress.good += tally.report.good;
        progress.failed += tally.report.failed();
        progress.last_version.push(tally.last_version.clone());
    }
    progress
}

/// The report of a run that is over.
pub(super) fn report(tallies: Vec<Tally>, started: f64, seconds: f64, worst_lag: Duration) -> Report {
    Report {
        started,
        seconds,
        worst_lag_ms: worst_lag.as_secs_f64() * 1e3,
        targets: tallies.into_iter().map(Tally::finish).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_come_from_the_counts() {
        let mut tally = Tally::new("one".to_owned());
        for millis in 1..=100 {
            tally.good("v1".to_owned(), 0.0, Some(Duration::from_millis(millis)));
        }
        assert_eq!(tally.finish().latency_ms, [50.0, 99.0, 100.0]);
    }

    #[test]
    fn a_version_is_seen_from_its_first_to_its_last_request_in_whatever_order_they_end() {
        let mut tally = Tally::new("one".to_owned());
        for sent in [5.0, 3.0, 9.0, 4.0] {
            tally.good("v1".to_owned(), sent, None);
        }
        assert_eq!(tally.finish().versions["v1"], Seen { answers: 4, first_sent: 3.0, last_sent: 9.0 });
    }
}
