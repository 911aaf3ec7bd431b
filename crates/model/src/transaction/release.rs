//! What a host ran after a transaction was decided: the history that rollback chooses from.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::name::ServiceName;
use crate::plan::PlannedService;

/// One release on one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// Format of this record, [`Release::VERSION`].
    pub version: u32,
    /// The transaction's fencing number: the same on every host, and it only grows.
    pub number: u64,
    /// The transaction's id.
    pub transaction: String,
    /// Digest of the plan.
    pub plan: Digest,
    /// `user@machine`.
    pub who: String,
    /// What was typed.
    pub command: String,
    /// Seconds since 1970 by the operator's clock: shown, never trusted.
    pub at_s: u64,
    /// What runs.
    pub services: BTreeMap<ServiceName, PlannedService>,
}

impl Release {
    /// The version that this jiji writes and reads.
    pub const VERSION: u32 = 1;
}
