//! Lease, journal, settlement, release and audit records, and their transitions.
//!
//! These are the rules by which a fleet changes as one, without I/O: `jiji-host` keeps the records and `apply` drives them, both through
//! the functions here. The hosts' journals alone suffice to settle a transaction: the operator may be a machine that is gone.

pub mod audit;
pub mod journal;
pub mod lease;
pub mod release;
pub mod roster;

pub use journal::{Begin, Decision, Entry, Outcome, Settlement, StepState, Transaction};
pub use lease::{Lease, LeaseDecision, LeaseRequest};
pub use release::Release;
pub use roster::Roster;

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::observation::LeaseFacts;

/// What jiji keeps on a host about a project, as an observer sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRecords {
    /// The highest fencing number that this host has granted for the project. 0: none.
    pub fencing: u64,
    /// The current lease.
    pub lease: Option<LeaseFacts>,
    /// The transaction that is open here or, where none is, the last one.
    pub transaction: Option<Transaction>,
    /// Releases, newest first.
    pub releases: Vec<Release>,
    /// The address leased last on this host, by any project: the next one is looked for after it, so that an address rests long
    /// before it is used again.
    pub last_address: Option<Ipv4Addr>,
    /// The roster of servers and subnets as stored here.
    pub roster: Option<Roster>,
}
