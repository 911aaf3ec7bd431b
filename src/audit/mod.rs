//! What the record of changes on each host says, and whether a copy of it is whole.
//!
//! The record itself lies on the hosts, one line per transaction, each with the digest of the line before it
//! ([`jiji_model::transaction::audit`]); `jiji-host` appends to it when a transaction is concluded. This room words the lines and
//! checks copies. It reads and writes nothing.

use std::collections::BTreeMap;

use jiji_model::name::ServiceName;
use jiji_model::plan::PlannedService;
use jiji_model::shared::Shared;

pub use jiji_model::transaction::audit::verify;

/// One line per service: its name and the digest of the manifest it runs.
pub fn service_lines(services: &BTreeMap<ServiceName, Shared<PlannedService>>) -> Vec<String> {
    let services = services.iter();
    services.map(|(name, service)| format!("{name} {}", service.image.manifest.digest)).collect()
}
