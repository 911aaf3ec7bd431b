//! What a run of load saw, and whether it counts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::LabError;

/// How a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// Nobody took the connection.
    Refused,
    /// There is no way to the host.
    Unreachable,
    /// The connection was reset, or closed before an answer began.
    Reset,
    /// The answer ended before its end.
    Truncated,
    /// No answer in time.
    TimedOut,
    /// A kept connection was closed by the other side just as the request was given to it.
    ClosedIdle,
    /// A status from 500 to 599.
    ServerError,
    /// Status 404.
    NotFound,
    /// Another status than 200.
    OtherStatus,
    /// Status 200, but not the content that was due.
    WrongContent,
    /// The generator itself could not send: too many requests under way. The run is void.
    Saturated,
    /// Something else; see the detail.
    Other,
}

/// What was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestKind {
    /// `GET /`.
    Get,
    /// `POST /echo`.
    Post,
    /// `GET /chunked`.
    Chunked,
    /// `GET /slow`.
    Slow,
}

/// One failed request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// When it was sent, in seconds since 1970.
    pub sent: f64,
    /// When it failed, in seconds since 1970.
    pub ended: f64,
    /// What was asked.
    pub request: RequestKind,
    /// Whether it had a connection of its own.
    pub fresh: bool,
    /// How it failed.
    pub kind: FailureKind,
    /// The status, if there was one.
    pub status: Option<u16>,
    /// The version that answered, if one did.
    pub version: Option<String>,
    /// What the system or the protocol said.
    pub detail: String,
}

/// When a version answered. Times are in seconds since 1970, and those at which the requests were sent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// How many good answers.
    pub answers: u64,
    /// The first request that it answered.
    pub first_sent: f64,
    /// The last request that it answered.
    pub last_sent: f64,
}

/// What one target did.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TargetReport {
    /// The target's name.
    pub name: String,
    /// Requests that were sent.
    pub sent: u64,
    /// Good answers.
    pub good: u64,
    /// Failures by kind.
    pub failed: BTreeMap<FailureKind, u64>,
    /// Good answers by version.
    pub versions: BTreeMap<String, Seen>,
    /// The first failures, in the order of their ends; all counts are in `failed`.
    pub failures: Vec<Failure>,
    /// Requests sent in each tenth of a second since the run's start.
    pub sent_by_tenth: Vec<u32>,
    /// Latencies of good answers that were due at once, in milliseconds from the time at which each was due to be sent: the
    /// 50th, 99th and 100th percentile.
    pub latency_ms: [f64; 3],
}

/// What a run of load saw.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// When the run began, in seconds since 1970.
    pub started: f64,
    /// How long requests were sent, in seconds.
    pub seconds: f64,
    /// The longest that the generator was behind its schedule, in milliseconds.
    pub worst_lag_ms: f64,
    /// The targets, in the order of the spec.
    pub targets: Vec<TargetReport>,
}

/// Counts while a run goes on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Requests that were sent, over all targets.
    pub sent: u64,
    /// Good answers.
    pub good: u64,
    /// Failures.
    pub failed: u64,
    /// By target: the version of the last good answer.
    pub last_version: Vec<Option<String>>,
}

/// Requests to a host that are due in the two seconds around its cutover, else the run is void.
const LEAST_AROUND_CUTOVER: u64 = 500;

impl TargetReport {
    /// How many requests failed.
    pub fn failed(&self) -> u64 {
        self.failed.values().sum()
    }
}

impl Report {
    /// How many requests were sent.
    pub fn sent(&self) -> u64 {
        self.targets.iter().map(|target| target.sent).sum()
    }

    /// How many requests failed.
    pub fn failed(&self) -> u64 {
        self.targets.iter().map(TargetReport::failed).sum()
    }

    /// The target of that name.
    pub fn target(&self, name: &str) -> Result<&TargetReport, LabError> {
        self.targets
            .iter()
            .find(|target| target.name == name)
            .ok_or_else(|| LabError::NoSuchHost { name: name.to_owned() })
    }

    /// How many requests were sent to a target in the two seconds around a time, given in seconds since 1970.
    pub fn sent_around(&self, target: &TargetReport, time: f64) -> u64 {
        let middle = (time - self.started) * 10.0;
        #[expect(clippy::cast_precision_loss, reason = "tenths of a second of a bounded run")]
        let near = |place: usize| ((place as f64) - middle).abs() <= 10.0;
        target
            .sent_by_tenth
            .iter()
            .enumerate()
            .filter(|(place, _)| near(*place))
            .map(|(_, count)| u64::from(*count))
            .sum()
    }

    /// Refuses a run in which anything failed: what a baseline must pass, and a ship.
    pub fn without_failure(&self) -> Result<(), LabError> {
        self.counts()?;
        if self.failed() == 0 {
            return Ok(());
        }
        Err(LabError::Load { reason: self.to_string() })
    }

    /// Refuses a run in which nothing failed: what a negative control must pass. Requests that the generator could not send, since others
    /// hang that were due to fail, are no failures and spoil nothing here.
    pub fn with_failures(&self) -> Result<(), LabError> {
        let kinds = self.targets.iter().flat_map(|target| &target.failed);
        if kinds.into_iter().any(|(kind, count)| *kind != FailureKind::Saturated && *count > 0) {
            return Ok(());
        }
        Err(LabError::Load {
            reason: "the negative control shows no failure, so the generator proves nothing".to_owned(),
        })
    }

    /// Refuses a run that says nothing, because the generator could not keep up.
    pub fn counts(&self) -> Result<(), LabError> {
        let saturated: u64 = self.targets.iter().filter_map(|target| target.failed.get(&FailureKind::Saturated)).sum();
        if self.sent() == 0 || saturated > 0 {
            return Err(LabError::Load { reason: format!("void: {saturated} requests could not be sent; {self}") });
        }
        Ok(())
    }

    /// Refuses a cutover of one target at a time (seconds since 1970) after which `old` still answered a request that was
    /// sent later, around which too few requests were sent to say anything, or after which `new` never answered.
    pub fn cutover(&self, name: &str, time: f64, old: &str, new: &str) -> Result<(), LabError> {
        self.counts()?;
        let refuse = |reason: String| Err(LabError::Load { reason: format!("{name}: {reason}") });
        let target = self.target(name)?;
        let around = self.sent_around(target, time);
        if around < LEAST_AROUND_CUTOVER {
            return refuse(format!(
                "void: {around} requests in the 2 s around the cutover, {LEAST_AROUND_CUTOVER} are due"
            ));
        }
        if let Some(seen) = target.versions.get(old)
            && seen.last_sent > time
        {
            return refuse(format!("{old} answered a request sent {:.3} s after the cutover", seen.last_sent - time));
        }
        match target.versions.get(new) {
            Some(seen) if seen.last_sent > time => Ok(()),
            _ => refuse(format!("{new} never answered after the cutover")),
        }
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "{} requests in {:.1} s, {} failed, at most {:.0} ms behind schedule",
            self.sent(),
            self.seconds,
            self.failed(),
            self.worst_lag_ms
        )?;
        for target in &self.targets {
            write!(f, "  {}: {} sent, {} good, {} failed", target.name, target.sent, target.good, target.failed())?;
            for (kind, count) in &target.failed {
                write!(f, ", {count} {kind:?}")?;
            }
            for (version, seen) in &target.versions {
                write!(f, ", {version} {}", seen.answers)?;
            }
            let [half, most, all] = target.latency_ms;
            writeln!(f, "; latency {half:.1} / {most:.1} / {all:.1} ms")?;
            for failure in target.failures.iter().take(5) {
                writeln!(
                    f,
                    "    {:.3} s {:?} {}: {:?} {} {}",
                    failure.sent - self.started,
                    failure.request,
                    if failure.fresh { "fresh" } else { "kept" },
                    failure.kind,
                    failure.status.map(|status| status.to_string()).unwrap_or_default(),
                    failure.detail
                )?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(old_last: f64, per_tenth: u32) -> Report {
        let seen = |first_sent, last_sent| Seen { answers: 1, first_sent, last_sent };
        Report {
            started: 1000.0,
            seconds: 10.0,
            worst_lag_ms: 0.0,
            targets: vec![TargetReport {
                name: "one".to_owned(),
                sent: 3000,
                good: 3000,
                versions: [("v1".to_owned(), seen(1000.0, old_last)), ("v2".to_owned(), seen(1004.9, 1010.0))].into(),
                sent_by_tenth: vec![per_tenth; 100],
                ..TargetReport::default()
            }],
        }
    }

    #[test]
    fn an_old_answer_to_a_request_sent_after_the_cutover_is_refused() {
        assert!(report(1005.0, 30).cutover("one", 1005.0, "v1", "v2").is_ok());
        let late = report(1005.2, 30).cutover("one", 1005.0, "v1", "v2").expect_err("v1 answered late");
        assert!(late.to_string().contains("0.200 s after"), "{late}");
    }

    #[test]
    fn a_thin_run_is_void_rather_than_good() {
        let void = report(1004.0, 20).cutover("one", 1005.0, "v1", "v2").expect_err("420 requests only");
        assert!(void.to_string().contains("void: 420"), "{void}");
    }

    #[test]
    fn a_new_version_that_never_answers_is_refused() {
        assert!(report(1004.0, 30).cutover("one", 1005.0, "v1", "v3").is_err());
    }

    #[test]
    fn a_negative_control_without_a_failure_is_refused() {
        assert!(report(1004.0, 30).with_failures().is_err());
        assert!(report(1004.0, 30).without_failure().is_ok());
    }

    #[test]
    fn a_saturated_generator_makes_the_run_void() {
        let mut thin = report(1004.0, 30);
        thin.targets[0].failed.insert(FailureKind::Saturated, 1);
        assert!(thin.with_failures().is_err());
    }
}
