//! WIT to the shared words and back. What a plugin says is text until it has passed through here; what does not fit a type of the shared
//! words is a refusal like any other.

mod facts;
mod health;
mod mesh;
mod route;
mod steps;

use std::collections::BTreeMap;

use jiji_model::name::{AbsPath, SecretName};
use jiji_model::plan::vet::Refusal;
use jiji_model::plan::{ExecGrant, Grants};
use jiji_model::project::Check;
use jiji_model::reference::Reference;

use super::bindings::types;
use super::text::sentence;
use super::{Fault, PluginError};

pub(super) use facts::{answer, query};
pub(super) use health::{judge_input, probes_input, verdict};
pub(super) use mesh::{MeshFacts, mesh_query, mesh_steps};
pub(super) use route::route;
pub(super) use steps::{StepsOf, steps};

/// A refusal that no grant would lift.
fn wrong(step: &str, reason: impl std::fmt::Display) -> Refusal {
    Refusal { step: step.to_owned(), reason: sentence(&reason.to_string()), grantable: false }
}

/// A fault in words for people.
pub(super) fn fault(fault: types::Fault) -> Fault {
    Fault {
        code: sentence(&fault.code),
        message: sentence(&fault.message),
        hint: fault.hint.as_deref().map(sentence),
        path: fault.path.as_deref().map(sentence),
    }
}

/// The grants that a plugin asks for.
pub(super) fn grants(plugin: &str, asked: &[types::Grant]) -> Result<Grants, PluginError> {
    let bad = |reason: String| PluginError::BadGrant { plugin: plugin.to_owned(), reason: sentence(&reason) };
    let mut grants = Grants::default();
    for grant in asked {
        match grant {
            types::Grant::Container(name) => grants.containers.push(name.clone()),
            types::Grant::Exec(exec) if exec.argv.is_empty() => {
                return Err(bad(format!("it asks for any command in container `{}`", exec.container)));
            }
            types::Grant::Exec(exec) => {
                grants.exec.push(ExecGrant { container: exec.container.clone(), argv: exec.argv.clone() })
            }
            types::Grant::Image(name) => {
                let reference: Reference =
                    name.parse().map_err(|error| bad(format!("it asks for an image: {error}")))?;
                grants.images.push(format!("{}/{}", reference.registry, reference.repository));
            }
            types::Grant::Port(port) => grants.ports.push(*port),
            types::Grant::Path(path) => {
                let path =
                    AbsPath::new(path.clone()).map_err(|error| bad(format!("it asks for a directory: {error}")))?;
                grants.paths.push(path);
            }
            types::Grant::Volume(name) => grants.volumes.push(name.clone()),
            types::Grant::Run(argv) if argv.is_empty() => {
                return Err(bad("it asks for any program of the host".to_owned()));
            }
            types::Grant::Run(argv) => grants.run.push(argv.clone()),
            types::Grant::Secret(name) => {
                let name =
                    SecretName::new(name.clone()).map_err(|error| bad(format!("it asks for a secret: {error}")))?;
                grants.secrets.push(name);
            }
            types::Grant::Other(other) if other.kind == "interface" => {
                let name: String = serde_json::from_str(&other.content).unwrap_or_default();
                if !jiji_model::mesh::is_interface(&name) {
                    return Err(bad(format!("it asks for interface `{}`", other.content)));
                }
                grants.interfaces.push(name);
            }
            types::Grant::Other(other) if other.kind == "udp-port" => {
                let port = serde_json::from_str(&other.content).ok().filter(|port| *port > 0);
                let port = port.ok_or_else(|| bad(format!("it asks for UDP port `{}`", other.content)))?;
                grants.udp_ports.push(port);
            }
            types::Grant::Other(other) => {
                return Err(bad(format!("it asks for `{}`, which this jiji does not know", other.kind)));
            }
        }
    }
    // Texts that are shown before they are accepted must read as what they are.
    let texts = grants.containers.iter().chain(&grants.volumes).chain(grants.run.iter().flatten());
    let exec = grants.exec.iter().flat_map(|exec| exec.argv.iter().chain([&exec.container]));
    if let Some(text) = texts.chain(exec).find(|text| **text != sentence(text)) {
        return Err(bad(format!("it asks for `{text}`, which has characters that cannot be shown")));
    }
    Ok(grants)
}

/// The images that a plugin needs.
pub(super) fn images(plugin: &str, asked: &[types::ImageRef]) -> Result<BTreeMap<String, Reference>, PluginError> {
    asked
        .iter()
        .map(|image| match image.reference.parse() {
            Ok(reference) => Ok((sentence(&image.name), reference)),
            Err(error) => Err(PluginError::BadGrant {
                plugin: plugin.to_owned(),
                reason: sentence(&format!("it needs an image: {error}")),
            }),
        })
        .collect()
}

fn check_to_wit(check: &Check) -> types::Check {
    match check {
        Check::Http { port, path } => types::Check::Http(types::HttpCheck { port: *port, path: path.clone() }),
        Check::Tcp { port } => types::Check::Tcp(*port),
        Check::Exec { argv } => types::Check::Exec(argv.clone()),
    }
}

/// A probe loop, if its numbers make one.
pub(super) fn probe(spec: &types::ProbeSpec) -> Result<jiji_model::probe::ProbeSpec, String> {
    let check = match &spec.check {
        types::Check::Http(http) if !http.path.starts_with('/') || http.path.chars().any(char::is_control) => {
            return Err(format!("a probe of `{}`, which is no path", http.path));
        }
        types::Check::Http(http) => Check::Http { port: http.port, path: http.path.clone() },
        types::Check::Tcp(port) => Check::Tcp { port: *port },
        types::Check::Exec(argv) if argv.is_empty() => return Err("a probe by no command".to_owned()),
        types::Check::Exec(argv) => Check::Exec { argv: argv.clone() },
    };
    if spec.interval_ms < 10 || spec.healthy_after == 0 || spec.timeout_ms == 0 || spec.deadline_ms == 0 {
        return Err("a probe that asks too often, never ends or never begins".to_owned());
    }
    if spec.deadline_ms > jiji_model::plan::vet::MAX_TIMEOUT_MS {
        return Err(format!("a probe of {} ms", spec.deadline_ms));
    }
    Ok(jiji_model::probe::ProbeSpec {
        check,
        interval_ms: spec.interval_ms,
        timeout_ms: spec.timeout_ms,
        healthy_after: spec.healthy_after,
        deadline_ms: spec.deadline_ms,
        status_from: spec.status_from,
        status_to: spec.status_to,
    })
}

fn result_to_wit(result: &jiji_model::probe::ProbeResult) -> types::ProbeResult {
    use jiji_model::probe::ProbeResult as Model;
    match result {
        Model::Http { status, body, location } => types::ProbeResult::Http(types::ProbeHttp {
            status: *status,
            body: body.clone(),
            location: location.clone(),
        }),
        Model::Connected => types::ProbeResult::Connected,
        Model::Exit { code, output } => {
            types::ProbeResult::Exit(types::ProbeExit { code: *code, output: output.clone() })
        }
        Model::Refused => types::ProbeResult::Refused,
        Model::TimedOut => types::ProbeResult::TimedOut,
        Model::Broken { cause } => types::ProbeResult::Broken(cause.clone()),
        Model::NotRunning { exit, oom } => {
            types::ProbeResult::NotRunning(types::ProbeNotRunning { exit: *exit, oom: *oom })
        }
    }
}
