//! Wishes for routes.

use jiji_model::route::{Instance, Route};

use super::super::bindings::proxy::exports::jiji::proxy::proxy as wit;
use super::super::bindings::types;

pub(in super::super) fn route(route: &Route) -> wit::Routing {
    let options = &route.options;
    wit::Routing {
        service: route.key.clone(),
        options: wit::RouteOptions {
            hosts: options.hosts.clone(),
            path_prefix: options.path_prefix.clone(),
            ssl: options.ssl,
            certificate: options.certificate.as_ref().map(|certificate| wit::Certificate {
                chain: certificate.chain.to_string(),
                key: certificate.key.to_string(),
                digest: certificate.digest.map(|digest| digest.hex()),
            }),
            drain_timeout_ms: options.drain_timeout_ms,
            health: options.health.as_ref().map(|(port, path)| wit::HealthPath { port: *port, path: path.clone() }),
            labels: options.labels.clone().into_iter().collect(),
        },
        targets: route.targets.iter().map(instance).collect(),
        previous: route.previous.iter().map(instance).collect(),
    }
}

fn instance(instance: &Instance) -> types::Instance {
    types::Instance {
        container: instance.container.to_string(),
        address: instance.address.to_string(),
        port: instance.port,
    }
}
