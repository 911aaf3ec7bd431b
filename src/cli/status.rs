//! `jiji status`: what runs on each host, the last releases, and who is at work. Looks only, in one exec per host.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;

use jiji_model::digest::Digest;
use jiji_model::name::HostName;
use jiji_model::observation::{Answer, ContainerFacts, HostFacts, Observation, Query, Want};
use jiji_model::plan::{LABEL_SCOPE, LABEL_SERVICE, NETWORK};
use jiji_model::transaction::HostRecords;

use super::args::Global;
use super::environment::Environment;
use super::exit::Exit;
use super::failure::Failure;
use super::hosts;
use super::workplace;

const HOST: &str = "host";
const CONTAINERS: &str = "containers";
const RECORDS: &str = "records";

/// Looks at all hosts and prints what it saw. Hosts that do not answer are named, and make the exit code 6.
pub async fn run(global: &Global, environment: &Environment) -> Result<Exit, Failure> {
    let root = workplace::root(global)?;
    let loaded = workplace::load(&root, global.environment.as_deref())?;
    let scope = loaded.project.scope();
    let fleet = hosts::connect(&loaded.project, environment).await?;
    let wants: BTreeMap<_, _> = fleet.sessions.keys().map(|host| (host.clone(), wants(&scope))).collect();
    let (observation, lost) = fleet.observe(&wants).await;
    let failures = hosts::failures(fleet.unreachable.iter().chain(&lost));
    let text = if global.json { json(&scope, &observation) } else { table(&observation) };
    fleet.close().await;
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| Failure::text(Exit::Internal, format!("write to standard output: {error}")))?;
    failures.map_or(Ok(Exit::Done), Err)
}

fn wants(scope: &str) -> Vec<Want> {
    let want = |id: &str, query| Want { id: id.to_owned(), query };
    vec![
        want(HOST, Query::Host),
        want(CONTAINERS, Query::Containers { labels: BTreeMap::from([(LABEL_SCOPE.to_owned(), scope.to_owned())]) }),
        want(RECORDS, Query::Records { scope: scope.to_owned() }),
    ]
}

/// What one host answered, as far as it did.
struct Seen<'a> {
    host: &'a HostName,
    facts: Option<&'a HostFacts>,
    containers: &'a [ContainerFacts],
    records: Option<&'a HostRecords>,
}

fn seen(observation: &Observation) -> impl Iterator<Item = Seen<'_>> {
    observation.hosts.keys().map(|host| Seen {
        host,
        facts: match observation.answer(host, HOST) {
            Some(Answer::Host(facts)) => Some(facts),
            _ => None,
        },
        containers: match observation.answer(host, CONTAINERS) {
            Some(Answer::Containers(containers)) => containers,
            _ => &[],
        },
        records: match observation.answer(host, RECORDS) {
            Some(Answer::Records(records)) => Some(records),
            _ => None,
        },
    })
}

fn engine(facts: Option<&HostFacts>) -> String {
    match facts.and_then(|facts| facts.engine.as_ref()) {
        Some(engine) => format!("{} {}", engine.kind, engine.version),
        None => "no engine".to_owned(),
    }
}

/// The manifest of the image that a container runs. Docker's classic store knows an image by its configuration alone; the release that made
/// the container says which manifest that was.
fn manifest(container: &ContainerFacts, records: Option<&HostRecords>) -> Option<Digest> {
    let releases = records.map_or(&[][..], |records| &records.releases);
    let images = releases.iter().flat_map(|release| release.services.values()).map(|service| &service.image);
    let mut of_config = images.filter(|image| Some(image.config.digest) == container.config);
    container.manifest.or_else(|| of_config.next().map(|image| image.manifest.digest))
}

fn table(observation: &Observation) -> String {
    let mut out = String::new();
    // Writing to a String does not fail.
    for Seen { host, facts, containers, records } in seen(observation) {
        let _ = writeln!(out, "{host}  {}", engine(facts));
        let mut containers: Vec<_> = containers.iter().collect();
        containers.sort_by(|one, other| one.name.cmp(&other.name));
        if containers.is_empty() {
            let _ = writeln!(out, "  nothing of this project");
        }
        for container in containers {
            let service = container.labels.get(LABEL_SERVICE).map_or("-", String::as_str);
            let image = manifest(container, records).map_or_else(|| "-".to_owned(), |digest| digest.short());
            let address = container.addresses.get(NETWORK).map_or_else(|| "-".to_owned(), ToString::to_string);
            let state = match container.exit {
                Some(code) if !container.running() => format!("{} ({code})", container.state),
                _ => container.state.clone(),
            };
            let _ = writeln!(out, "  {service:<16} {state:<12} {image:<12}  {address:<15} {}", container.name);
        }
        let Some(records) = records else { continue };
        for release in records.releases.iter().take(3) {
            let _ = writeln!(out, "  release {:<4} {} by {}", release.number, release.command, release.who);
        }
        if let Some(transaction) = records.transaction.as_ref().filter(|transaction| transaction.is_open()) {
            let begin = &transaction.begin;
            let _ = writeln!(out, "  open: `{}` of {}; the next ship settles it", begin.command, begin.who);
        }
        if let Some(lease) = records.lease.as_ref().filter(|lease| lease.live) {
            let _ = writeln!(out, "  at work: {}", lease.lease.who);
        }
    }
    out
}

fn json(scope: &str, observation: &Observation) -> String {
    let hosts: BTreeMap<_, _> = seen(observation)
        .map(|Seen { host, facts, containers, records }| {
            let state = serde_json::json!({"host": facts, "containers": containers, "records": records});
            (host.to_string(), state)
        })
        .collect();
    format!("{}\n", serde_json::json!({"v": 1, "scope": scope, "hosts": hosts}))
}
