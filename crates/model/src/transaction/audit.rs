//! A record of what happened that cannot be changed without showing: each line holds the digest of the line before it.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// One line of a host's audit log of a project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditLine {
    /// Format of this record, [`AuditLine::VERSION`].
    pub version: u32,
    /// Digest of the line before, as written without its line break; of nothing for the first.
    pub previous: Digest,
    /// What happened.
    pub event: AuditEvent,
}

/// What an audit line says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditEvent {
    /// The transaction's id.
    pub transaction: String,
    /// Its fencing number.
    pub fencing: u64,
    /// `user@machine`, as told by the operator.
    pub who: String,
    /// What was typed.
    pub command: String,
    /// How it ended: `committed`, `reverted`.
    pub result: String,
    /// Seconds since 1970 by the operator's clock.
    pub at_s: u64,
    /// One line per service: `web sha256:…`.
    pub services: Vec<String>,
}

impl AuditLine {
    /// The version that this jiji writes and reads.
    pub const VERSION: u32 = 1;

    /// The line that follows `previous` (without its line break), as it is written.
    pub fn after(previous: Option<&[u8]>, event: AuditEvent) -> Vec<u8> {
        let line = Self { version: Self::VERSION, previous: Digest::of(previous.unwrap_or_default()), event };
        crate::digest::canonical_json(&line)
    }
}

/// Checks a log. Gives the number of lines, or the first line (from 1) that does not follow from the one before it.
///
/// # Errors
/// The number of the first line that does not fit.
pub fn verify(log: &[u8]) -> Result<usize, usize> {
    let mut previous: &[u8] = b"";
    let mut count = 0;
    for line in log.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        count += 1;
        let read: AuditLine = serde_json::from_slice(line).map_err(|_| count)?;
        if read.version > AuditLine::VERSION || read.previous != Digest::of(previous) {
            return Err(count);
        }
        previous = line;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(result: &str) -> AuditEvent {
        AuditEvent {
            transaction: "t".into(),
            fencing: 1,
            who: "a@b".into(),
            command: "ship".into(),
            result: result.into(),
            at_s: 0,
            services: Vec::new(),
        }
    }

    #[test]
    fn a_changed_or_missing_line_shows() {
        let first = AuditLine::after(None, event("committed"));
        let second = AuditLine::after(Some(&first), event("reverted"));
        let third = AuditLine::after(Some(&second), event("committed"));
        let log = [first.clone(), second.clone(), third.clone()].join(&b'\n');
        assert_eq!(verify(&log), Ok(3));
        assert_eq!(verify(&[first.clone(), third].join(&b'\n')), Err(2));
        let forged = String::from_utf8(second).expect("JSON").replace("reverted", "committed").into_bytes();
        let log = [first, forged, AuditLine::after(Some(b"x"), event("x"))].join(&b'\n');
        assert_eq!(verify(&log), Err(3));
    }
}
