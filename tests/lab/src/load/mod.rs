//! An honest load: requests at a fixed rate whatever the answers are, no retry of any kind, and every failure kept with its
//! time and kind.
//!
//! The generator is a process of its own where the operator is, so neither the test nor the deploy tool slows it. It speaks
//! to the service in `examples/hello` and checks every answer to the byte: status, version, length, content. What a run
//! means is said by [`Report`]; a run that was too thin around a cutover is void rather than good.
//!
//! Three runs belong together: a baseline without any change, which must show no failure; the run itself; and a negative
//! control in which something is done wrong on purpose, which must show failures, else the generator proves nothing.

mod client;
mod handle;
mod report;
mod tally;
mod worker;

use std::{net::SocketAddr, time::Duration};

use serde::{Deserialize, Serialize};

pub use handle::{Load, unix_time};
pub use report::{Failure, FailureKind, Progress, Report, RequestKind, Seen, TargetReport};
pub(crate) use worker::serve;

use crate::Lab;

/// What load to put on which targets.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LoadSpec {
    /// Where requests go; each target gets the whole rate.
    pub targets: Vec<Target>,
    /// Requests per second and target.
    pub rate: f64,
    /// How long, in seconds; the run may be stopped before.
    pub seconds: f64,
    /// How requests are shared out.
    pub mix: Mix,
    /// Seconds after which an answer counts as missing, beyond what a slow one takes by itself.
    pub timeout: f64,
    /// Two runs with the same seed send the same sequence of requests.
    pub seed: u64,
}

/// Where requests go.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Target {
    /// The host's name, for the report.
    pub name: String,
    /// Where its proxy listens.
    pub address: SocketAddr,
    /// The Host header.
    pub authority: String,
    /// Whom to trust where TLS is spoken, as PEM; without it, plain HTTP is.
    #[serde(default)]
    pub authorities: Option<String>,
}

/// How requests are shared out, in parts of all parts together.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Mix {
    /// `GET /`, answered at once.
    pub get: u32,
    /// `POST /echo` with up to 16 KiB, half of them in chunks.
    pub post: u32,
    /// `GET /chunked`, answered in chunks.
    pub chunked: u32,
    /// `GET /slow`, answered after `slow_least` to `slow_most` seconds.
    pub slow: u32,
    /// The shortest that a slow answer takes, in seconds.
    pub slow_least: f64,
    /// The longest that a slow answer takes, in seconds.
    pub slow_most: f64,
    /// How many of 100 requests have a connection of their own; the others use kept ones.
    pub fresh_percent: u32,
}

impl Default for Mix {
    fn default() -> Self {
        Self { get: 60, post: 20, chunked: 17, slow: 3, slow_least: 1.0, slow_most: 5.0, fresh_percent: 50 }
    }
}

/// The least rate at which a run says something: 500 requests in the 2 s around a cutover, and some more.
pub const LEAST_RATE: f64 = 300.0;

impl LoadSpec {
    /// 300 requests per second on port 80 of every host of the lab, under this Host header, for so long.
    pub fn new(lab: &Lab, authority: &str, duration: Duration) -> Self {
        let targets = lab
            .hosts()
            .into_iter()
            .map(|host| Target {
                name: host.name,
                address: (host.address, 80).into(),
                authority: authority.to_owned(),
                authorities: None,
            })
            .collect();
        Self { targets, rate: LEAST_RATE, seconds: duration.as_secs_f64(), mix: Mix::default(), timeout: 15.0, seed: 1 }
    }

    /// The same over TLS on port 443, where a certificate for the Host header from one of these authorities (PEM) is due.
    #[must_use]
    pub fn over_tls(mut self, authorities: &str) -> Self {
        for target in &mut self.targets {
            target.address.set_port(443);
            target.authorities = Some(authorities.to_owned());
        }
        self
    }
}
