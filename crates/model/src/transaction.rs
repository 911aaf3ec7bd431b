//! Lease, journal, settlement, release and audit records, and their transitions.
//!
//! These are the rules by which a fleet changes as one, without I/O: `jiji-host` keeps the records and `apply` drives them, both through
//! the functions here. The hosts' journals alone suffice to settle a transaction: the operator may be a machine that is gone.
//!
//! | room | what it decides |
//! | --- | --- |
//! | [`lease`] | who may change a project on a host |
//! | [`accept`] | what a host lets an operator do |
//! | [`journal`] | what happened on a host, and what is left to do or to take back |
//! | [`course`] | what an operator does next |
//! | [`evidence`] | which way an interrupted transaction ends |
//! | [`serving`] | which containers must run for that on a host that lost power |
//!
//! `tests/explore` puts hosts, operators and faults around these functions and searches every way that they can go together.

pub mod accept;
pub mod audit;
pub mod course;
pub mod evidence;
pub mod journal;
pub mod lease;
pub mod release;
pub mod roster;
pub mod serving;

pub use accept::{Accepted, Refused};
pub use course::{Course, Ending, Heard, Move};
pub use evidence::{Trace, Way};
pub use journal::{Begin, Decision, Entry, Outcome, Settlement, StepState, Transaction};
pub use lease::{Lease, LeaseDecision, LeaseRequest};
pub use release::{Release, ReleaseLine, Seal, ServiceLine};
pub use roster::Roster;

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::observation::LeaseFacts;
use crate::shared::Shared;

/// What jiji keeps on a host about a project, as an observer sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRecords {
    /// The highest fencing number that this host has granted for the project. 0: none.
    pub fencing: u64,
    /// The current lease.
    pub lease: Option<LeaseFacts>,
    /// The transaction that is open here or, where none is, the last one.
    pub transaction: Option<Transaction>,
    /// Releases whose images this host keeps, newest first. Older ones are told by [`crate::observation::Query::History`].
    pub releases: Vec<Release>,
    /// The address leased last on this host, by any project: the next one is looked for after it, so that an address rests long
    /// before it is used again.
    pub last_address: Option<Ipv4Addr>,
    /// The roster of servers and subnets as stored here.
    pub roster: Option<Shared<Roster>>,
}
