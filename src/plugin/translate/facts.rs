//! Questions of plugins, and the answers of hosts.

use jiji_model::name::{AbsPath, ContainerName};
use jiji_model::observation::{Answer, ContainerFacts, Query};
use jiji_model::plan::vet::Refusal;

use super::super::bindings::types;
use super::{result_to_wit, wrong};

/// Most bytes of a file, and lines of a log, that one question may ask for.
const MAX_FILE: u32 = 256 * 1024;
const MAX_LINES: u32 = 1_000;
/// Longest time that a command which only reads may take, in milliseconds.
const MAX_EXEC_MS: u32 = 30_000;

/// What a plugin wants to know.
pub(in super::super) fn query(want: &types::Want) -> Result<Query, Refusal> {
    let refuse = |reason: &dyn std::fmt::Display| wrong(&want.id, reason);
    let container = |name: &String| ContainerName::new(name.clone()).map_err(|error| refuse(&error));
    Ok(match &want.query {
        types::Query::Host => Query::Host,
        types::Query::Containers(labels) => Query::Containers { labels: labels.iter().cloned().collect() },
        types::Query::Container(name) => Query::Container { name: container(name)? },
        types::Query::Exec(exec) => Query::Exec {
            container: container(&exec.container)?,
            argv: exec.argv.clone(),
            timeout_ms: exec.timeout_ms.clamp(1, MAX_EXEC_MS),
        },
        types::Query::Logs(logs) => {
            Query::Logs { container: container(&logs.container)?, lines: logs.lines.min(MAX_LINES) }
        }
        types::Query::File(file) => Query::File {
            path: AbsPath::new(file.path.clone()).map_err(|error| refuse(&error))?,
            limit: file.limit.min(MAX_FILE),
        },
        types::Query::Network(name) => Query::Network { name: name.clone() },
        types::Query::Http(http) => {
            if !http.path.starts_with('/')
                || [&http.path].into_iter().chain(&http.host).any(|text| text.chars().any(char::is_control))
            {
                return Err(refuse(&"an HTTP request that is none"));
            }
            Query::Http {
                address: http.address.parse().map_err(|error| refuse(&error))?,
                port: http.port,
                path: http.path.clone(),
                host: http.host.clone(),
            }
        }
        types::Query::Other(other) => return Err(refuse(&format_args!("unknown question `{}`", other.kind))),
    })
}

/// What a host answered.
pub(in super::super) fn answer(answer: &Answer) -> types::Answer {
    match answer {
        Answer::Absent => types::Answer::Absent,
        Answer::Failed(reason) => types::Answer::Failed(reason.clone()),
        Answer::Host(host) => types::Answer::Host(types::HostFacts {
            engine: host.engine.as_ref().map(|engine| engine.kind.to_string()),
            engine_version: host.engine.as_ref().map(|engine| engine.version.clone()).unwrap_or_default(),
            architecture: host.architecture.clone(),
            boot_id: host.boot_id.clone(),
        }),
        Answer::Containers(all) => types::Answer::Containers(all.iter().map(container).collect()),
        Answer::Container(one) => types::Answer::Container(container(one)),
        Answer::Command(command) => types::Answer::Command(types::CommandFacts {
            exit: command.exit,
            stdout: command.stdout.clone(),
            stderr: command.stderr.clone(),
            truncated: command.truncated,
        }),
        Answer::Text(text) => types::Answer::Text(text.clone()),
        Answer::File(file) => types::Answer::File(types::FileFacts {
            sha256: file.sha256.to_string(),
            mode: file.mode,
            size: file.size,
            content: file.content.clone(),
        }),
        Answer::Network(network) => types::Answer::Network(types::NetworkFacts {
            name: network.name.clone(),
            subnet: network.subnet.clone(),
            gateway: network.gateway.map(|gateway| gateway.to_string()),
        }),
        Answer::Http(http) => {
            types::Answer::Http(types::HttpFacts { result: result_to_wit(&http.result), took_ms: http.took_ms })
        }
        // No plugin can ask for these.
        Answer::Images(_)
        | Answer::PublicKey(_)
        | Answer::Interface(_)
        | Answer::Blobs(_)
        | Answer::Records(_)
        | Answer::Mac(_)
        | Answer::History(_)
        | Answer::Release(_)
        | Answer::Integrity(_)
        | Answer::Differences(_)
        | Answer::Fitness(_)
        | Answer::Ports(_) => types::Answer::Failed("not for plugins".to_owned()),
    }
}

fn container(facts: &ContainerFacts) -> types::ContainerFacts {
    types::ContainerFacts {
        id: facts.id.clone(),
        name: facts.name.clone(),
        manifest: facts.manifest.map(|digest| digest.to_string()),
        config: facts.config.map(|digest| digest.to_string()),
        state: facts.state.clone(),
        exit: facts.exit,
        oom: facts.oom,
        started: facts.started.clone(),
        addresses: facts.addresses.iter().map(|(network, address)| (network.clone(), address.to_string())).collect(),
        labels: facts.labels.clone().into_iter().collect(),
    }
}
