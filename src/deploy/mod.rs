//! Turns what was observed on a fleet and what the project wants into a [plan](jiji_model::plan::Plan).
//!
//! Planning is pure: no I/O, no clock, no randomness. The same observation, project and plugin answers give the same bytes, which is what
//! lets a plan be saved, reviewed and applied later. Looking at hosts is [`crate::fleet`]'s work, changing them [`crate::apply`]'s, and
//! what a proxy or a health check needs is a plugin's: its answers come in as data.
//!
//! The order of calls: [`wants`] says what to ask; [`desired`] compares the answers with the project; the plugins are asked with what it
//! found; [`assemble`] puts everything into one plan; [`preflight`] says whether hosts are fit for it. [`rollback`] stands in for [`desired`]
//! where an earlier release is wanted, and for drift the present one; how hosts differ from that is [`findings`]'. A plan that is to be
//! applied later is [`Saved`] with the [`Basis`] that it stands on.

mod assemble;
mod basis;
mod changes;
mod desired;
mod drift;
mod error;
mod look;
mod network;
pub mod preflight;
mod rollback;
mod saved;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use jiji_model::digest::CanonicalJson;
use jiji_model::image::Image;
use jiji_model::name::{HostName, ServiceName};
use jiji_model::plan::Step;
use jiji_model::probe::ProbeSpec;

pub use assemble::{Assembled, Extra, assemble, assemble_with};
pub use basis::{Basis, HostBasis, basis};
pub use changes::{Changes, EnvChange, EnvKind, RouteChange, RouteKind, ServiceChange, changes};
pub use desired::{Change, Desired, HostDesired, Old, Reason, ServiceDesired, Trust, desired};
pub use drift::{
    Expected, Finding, Kind, Proxied, believe, compare_wants, distrusted, drift_wants, expected, findings, is_open,
    kept, mend, mend_wants, record_findings, recorded, repairs,
};
pub use error::{PlanError, Refused};
pub use look::{needs_secrets, records, wants, wants_for};
pub use network::{Numbered, network_plan, network_wants, numbered};
pub use rollback::{
    Choice, Histories, Ran, Sameness, Target, certificate, choose, current, history, history_want, release_wants,
    rollback, rollback_wants, secrets, secrets_of, target,
};
pub use saved::{MAX_BYTES as MAX_PLAN_BYTES, Origin, Saved, SavedError, configuration};

/// The image of each service, one for each platform.
pub type Images = BTreeMap<ServiceName, Vec<Image>>;

/// The images that plugins run, by the reference that they name, one for each platform.
pub type Seeds = BTreeMap<String, Vec<Image>>;

/// What plugins answered, by host. Steps were vetted against their grants.
pub type Answers = BTreeMap<HostName, HostAnswers>;

/// What plugins answered for one host.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HostAnswers {
    /// Steps of all plugins, in the order in which they are to run within each phase.
    pub steps: Vec<Step>,
    /// How the health of each service is told.
    pub probes: BTreeMap<ServiceName, ProbeSpec>,
    /// What the proxy plugin was asked to route for each service, as canonical JSON; none for one that is routed as it is recorded.
    pub routes: BTreeMap<ServiceName, CanonicalJson>,
    /// Whether the plugins' steps may replace containers of theirs that serve: a person asked for it.
    pub replaces: bool,
}
