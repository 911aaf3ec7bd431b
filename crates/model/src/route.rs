//! How requests reach a service: what a proxy plugin is asked for.
//!
//! The planner decides *which* instances shall serve and with which options; how that is done is the plugin's. A release keeps the
//! [`Route`] it was made with, so that a rollback routes the same way without the project's sources.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::name::{ContainerName, SecretName, ServiceName};
use crate::project::{Check, Service};

/// A wish: requests for a service go to these instances.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// The service.
    pub service: ServiceName,
    /// What the proxy calls it, unique on a host: [`Route::key`].
    pub key: String,
    /// How.
    pub options: RouteOptions,
    /// The instances that requests shall go to. May be empty while it is only asked what the plugin wants to know.
    pub targets: Vec<Instance>,
    /// The instances that serve now and still run until the change is decided. Empty the first time.
    pub previous: Vec<Instance>,
}

impl Route {
    /// `SCOPE-SERVICE`: one name per service of all projects on a host.
    pub fn key(scope: &str, service: &ServiceName) -> String {
        format!("{scope}-{service}")
    }

    /// Whether requests go the same way with both: what served before them is no part of that.
    pub fn leads_as(&self, other: &Self) -> bool {
        (&self.service, &self.key, &self.options, &self.targets)
            == (&other.service, &other.key, &other.options, &other.targets)
    }
}

/// How requests are routed to a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteOptions {
    /// Host names that are routed to it. Empty: all that no other service takes.
    pub hosts: Vec<String>,
    /// A path prefix that is routed to it, `/` for everything.
    pub path_prefix: String,
    /// Whether the proxy speaks TLS for these hosts.
    pub ssl: bool,
    /// The certificate to speak it with. None: the proxy gets one by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<RouteCertificate>,
    /// The port the application listens on in its container.
    pub app_port: u16,
    /// Milliseconds that requests under way get to end after the cutover.
    pub drain_timeout_ms: u32,
    /// Where the service answers `GET` with 200 to 299 while it is healthy: port and path. None where it is not checked by HTTP.
    pub health: Option<(u16, String)>,
    /// Room for growth that needs no new format.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl RouteOptions {
    /// Label with the number of servers that serve the same host names, where each would have to get a certificate of its own.
    pub const LABEL_SERVERS: &str = "servers";

    /// The options of a service, or none where it is not reached from outside.
    pub fn of(service: &Service) -> Option<Self> {
        let proxy = service.proxy.as_ref()?;
        let mut labels = BTreeMap::new();
        if proxy.ssl && proxy.certificate.is_none() && service.hosts.len() > 1 {
            labels.insert(Self::LABEL_SERVERS.to_owned(), service.hosts.len().to_string());
        }
        let health = match service.healthcheck.as_ref().map(|health| &health.check) {
            Some(Check::Http { port, path }) => Some((*port, path.clone())),
            _ => None,
        };
        Some(Self {
            hosts: proxy.hosts.clone(),
            path_prefix: proxy.path_prefix.clone(),
            ssl: proxy.ssl,
            certificate: proxy.certificate.as_ref().map(|certificate| RouteCertificate {
                chain: certificate.chain.clone(),
                key: certificate.key.clone(),
                digest: None,
            }),
            app_port: proxy.app_port,
            drain_timeout_ms: service.drain_timeout.saturating_mul(1_000),
            health,
            labels,
        })
    }
}

/// A certificate that is handed in, by the names of the secrets that hold it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteCertificate {
    /// The chain of certificates, as PEM.
    pub chain: SecretName,
    /// The private key, as PEM.
    pub key: SecretName,
    /// Digest of the chain, which is no secret: it tells a renewed certificate from the one before. None while values are not known.
    pub digest: Option<Digest>,
}

/// A container of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Instance {
    /// The container.
    pub container: ContainerName,
    /// Its address in the `jiji` network.
    pub address: Ipv4Addr,
    /// The port that the application listens on.
    pub port: u16,
}
