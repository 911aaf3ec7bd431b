//! What a host ran after a transaction was decided: the history that rollback chooses from, and what drift is measured against.
//!
//! Version 2 of the record added `retain`, `secrets` and `seal`; a record of version 1 has none of them and is read as it is. A release
//! holds no value of a secret: which values it ran with is told by a digest under the host's own key alone.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Begin;
use crate::digest::{Digest, canonical_json};
use crate::image::ImageId;
use crate::name::ServiceName;
use crate::plan::PlannedService;
use crate::shared::Shared;

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
    /// What runs. Clear variables stand in it by value, secret ones by name.
    pub services: BTreeMap<ServiceName, Shared<PlannedService>>,
    /// How many releases' images the host kept when this one was made, this one counted. None in version 1: those of all it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retain: Option<u32>,
    /// The keyed digest of the values of each service's secrets, as in its container's label `jiji.secrets`. Services without secrets
    /// have none, and version 1 has none at all.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<ServiceName, String>,
    /// Shows a change that somebody made to the record. None in version 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal: Option<Seal>,
}

/// A keyed digest over a record, under the host's own key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seal {
    /// Which key: 16 hexadecimal digits that say nothing about it.
    pub key: String,
    /// HMAC-SHA256 over [`Release::sealed`], 64 hexadecimal digits.
    pub mac: String,
}

impl Release {
    /// The version that this jiji writes. It reads the ones before it too.
    pub const VERSION: u32 = 2;

    /// The release that a transaction makes once it is committed. What only the host knows, it adds when it keeps the record.
    pub fn of(begin: &Begin) -> Self {
        Self {
            version: Self::VERSION,
            number: begin.fencing,
            transaction: begin.transaction.clone(),
            plan: begin.plan,
            who: begin.who.clone(),
            command: begin.command.clone(),
            at_s: begin.at_s,
            services: begin.services.clone(),
            retain: None,
            secrets: BTreeMap::new(),
            seal: None,
        }
    }

    /// What a seal is made over: the record without it, as canonical JSON.
    pub fn sealed(&self) -> Vec<u8> {
        canonical_json(&Self { seal: None, ..self.clone() })
    }

    /// The record in short.
    pub fn line(&self) -> ReleaseLine {
        let service = |(name, service): (&ServiceName, &Shared<PlannedService>)| {
            let line = ServiceLine {
                image: service.image.id(),
                repository: service.image.repository.clone(),
                spec: service.spec,
                secrets: self.secrets.get(name).cloned(),
            };
            (name.clone(), line)
        };
        ReleaseLine {
            number: self.number,
            transaction: self.transaction.clone(),
            plan: self.plan,
            who: self.who.clone(),
            command: self.command.clone(),
            at_s: self.at_s,
            services: self.services.iter().map(service).collect(),
        }
    }
}

/// A release in short: what a list shows and a choice needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseLine {
    /// The number.
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
    /// What ran.
    pub services: BTreeMap<ServiceName, ServiceLine>,
}

/// A service of a release in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceLine {
    /// The image.
    pub image: ImageId,
    /// The repository the engine lists it under.
    pub repository: String,
    /// Digest of the container's specification.
    pub spec: Digest,
    /// The keyed digest of its secrets' values, where it has some and the host recorded it.
    pub secrets: Option<String>,
}
