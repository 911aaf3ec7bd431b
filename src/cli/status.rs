//! `jiji status`: what runs on each host, the last releases, and who is at work, in one exec per host.
//!
//! It looks, and chooses nothing. Only a host that was away while the others were brought to an end follows them, now that it is reached.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::Arc;

use jiji_model::digest::Digest;
use jiji_model::event::{Silent, seconds};
use jiji_model::name::HostName;
use jiji_model::observation::{Answer, ContainerFacts, HostFacts, Observation, Query, Want};
use jiji_model::plan::{LABEL_SCOPE, LABEL_SERVICE, NETWORK};
use jiji_model::transaction::{Decision, HostRecords};

use super::args::Global;
use super::environment::Environment;
use super::exit::Exit;
use super::failure::Failure;
use super::{abort, environment as variables, hosts, ready, ship_failure, workplace};
use crate::apply::{self, ApplyError, Cancel, Open};
use crate::config::Loaded;
use crate::report::SettledSummary;
use crate::secrets::Secrets;
use crate::ship::{Abort, Known, ShipError};

const HOST: &str = "host";
const CONTAINERS: &str = "containers";
const RECORDS: &str = "records";

/// Looks at all hosts and prints what it saw. Hosts that do not answer are named, and make the exit code 6; where a change was
/// interrupted and nobody is at work on it, the exit code is 9.
pub async fn run(global: &Global, environment: &Environment) -> Result<Exit, Failure> {
    let root = workplace::root(global)?;
    let loaded = workplace::load(&root, global.environment.as_deref())?;
    let scope = loaded.project.scope();
    let mut looked = look(&loaded, &scope, environment).await?;
    let (mut settled, mut failed) = (Vec::new(), None);
    if !looked.open.is_empty() && looked.open.iter().all(|open| open.ended_elsewhere && !open.at_work) {
        match follow(&loaded, &scope, environment).await {
            Ok(followed) => settled = followed,
            Err(failure) => failed = Some(failure),
        }
        looked = look(&loaded, &scope, environment).await?;
    }
    let Looked { observation, open, failures } = looked;
    let text = match global.json {
        true => json(&scope, &observation, &open, &settled),
        false => table(&observation, &open, &settled),
    };
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| Failure::text(Exit::Internal, format!("write to standard output: {error}")))?;
    match failures.or(failed) {
        Some(failure) => Err(failure),
        // Nobody is at work on it, so it stays as it is until somebody settles it.
        None if open.iter().any(|open| !open.at_work) => Err(in_doubt(&open)),
        None => Ok(Exit::Done),
    }
}

/// What a look saw.
struct Looked {
    observation: Observation,
    open: Vec<Open>,
    /// Hosts that do not answer.
    failures: Option<Failure>,
}

async fn look(loaded: &Loaded, scope: &str, environment: &Environment) -> Result<Looked, Failure> {
    let fleet = hosts::connect(&loaded.project, environment).await?;
    let wants: BTreeMap<_, _> = fleet.sessions.keys().map(|host| (host.clone(), wants(scope))).collect();
    let (observation, lost) = fleet.observe(&wants).await;
    let failures = hosts::failures(fleet.unreachable.iter().chain(&lost));
    fleet.close().await;
    let hosts = loaded.project.used_servers().map(|(host, _)| host.clone()).collect();
    let open = apply::open(&records(&observation), Some(&hosts));
    Ok(Looked { observation, open, failures })
}

/// Lets hosts follow what the others were brought to while they were away. Where somebody has begun to work meanwhile, it is theirs.
async fn follow(loaded: &Loaded, scope: &str, environment: &Environment) -> Result<Vec<SettledSummary>, Failure> {
    let mut abort = Abort {
        scope: scope.to_owned(),
        known: Known::Project(Arc::new(loaded.project.clone())),
        secrets: Secrets::available(&loaded.secrets, &variables::variable),
        fleet: hosts::options(environment)?,
        apply: ready::options(environment, "status")?,
        cancel: Cancel::default(),
        // Standard output has the state, and nothing else.
        sink: Arc::new(Silent),
    };
    abort.apply.follow_only = true;
    let signals = ready::on_signals(abort.cancel.clone());
    let followed = abort.run().await;
    signals.abort();
    match followed {
        Ok(aborted) => Ok(aborted.settled.iter().map(abort::summary).collect()),
        Err(ShipError::Apply { error, .. }) if matches!(*error, ApplyError::Held { .. }) => Ok(Vec::new()),
        Err(error) => Err(ship_failure::of(&error, &abort.secrets)),
    }
}

fn in_doubt(open: &[Open]) -> Failure {
    let left: Vec<_> = open.iter().filter(|open| !open.at_work).collect();
    let hosts: BTreeSet<_> = left.iter().flat_map(|open| open.hosts.iter().chain(&open.away)).collect();
    let hosts: Vec<_> = hosts.into_iter().map(|host| format!("`{host}`")).collect();
    let failure = Failure::text(Exit::InDoubt, format!("say how the last change ended on {}", hosts.join(", ")));
    let failure = left.iter().fold(failure, |failure, open| failure.detail(interrupted(open)));
    failure.hint("`jiji abort` settles it now; the next `jiji ship` does so first")
}

/// What was interrupted, and which way it goes.
fn interrupted(open: &Open) -> String {
    let names = |hosts: &[HostName]| hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let way = match open.decision {
        Some(Decision::Commit) => "it was decided and will be finished",
        Some(Decision::Revert) => "it was not decided and will be reverted",
        None => "it was decided, and hosts that do not answer must be reached before anything old goes",
    };
    let away = match open.away.as_slice() {
        [] => String::new(),
        away => format!("; {} took part and was not asked", names(away)),
    };
    format!("`{}` of {} was interrupted on {}: {way}{away}", open.command, open.who, names(&open.hosts))
}

fn records(observation: &Observation) -> apply::Seen {
    seen(observation).filter_map(|seen| Some((seen.host.clone(), seen.records?.clone()))).collect()
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

fn table(observation: &Observation, open: &[Open], settled: &[SettledSummary]) -> String {
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
        for open in open.iter().filter(|open| !open.at_work && open.hosts.contains(host)) {
            let way = match open.decision {
                Some(Decision::Commit) => "to be finished",
                Some(Decision::Revert) => "to be reverted",
                None => "to be finished once all hosts answer",
            };
            let _ = writeln!(out, "  in doubt: `{}` of {} was interrupted, {way}", open.command, open.who);
        }
        if let Some(lease) = records.lease.as_ref().filter(|lease| lease.live) {
            let since = lease.age_ms.map_or_else(String::new, |age| format!(" for {}", seconds(age)));
            let _ = writeln!(out, "  at work: {}{since}", lease.lease.who);
        }
    }
    for settled in settled {
        let _ = writeln!(out, "{}, as the others were", settled.text);
    }
    out
}

fn json(scope: &str, observation: &Observation, open: &[Open], settled: &[SettledSummary]) -> String {
    let hosts: BTreeMap<_, _> = seen(observation)
        .map(|Seen { host, facts, containers, records }| {
            let state = serde_json::json!({"host": facts, "containers": containers, "records": records});
            (host.to_string(), state)
        })
        .collect();
    let open: Vec<_> = open
        .iter()
        .map(|open| {
            serde_json::json!({
                "transaction": open.transaction, "who": open.who, "command": open.command, "decision": open.decision,
                "hosts": open.hosts, "away": open.away, "at_work": open.at_work,
            })
        })
        .collect();
    format!("{}\n", serde_json::json!({"v": 1, "scope": scope, "hosts": hosts, "open": open, "settled": settled}))
}
