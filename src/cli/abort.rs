//! `jiji abort`: what an interrupted run left open comes to its end, from any machine, with the project's sources or without.

use std::sync::Arc;

use jiji_model::name::{HostName, ProjectName};
use jiji_model::transaction::Decision;

use super::args::{AbortArgs, Global};
use super::environment::{self, Environment};
use super::exit::Exit;
use super::failure::Failure;
use super::{hosts, ready, ship_failure, workplace};
use crate::apply::{Cancel, Settled};
use crate::config;
use crate::fleet::Target;
use crate::report::{Report, SettledSummary, Summary};
use crate::secrets::Secrets;
use crate::ship::{Abort, Aborted, Known};

/// Settles what is open on every host that answers. Hosts that do not are named, and make the exit code 9 where they took part in what
/// was settled, else 6.
pub async fn run(
    global: &Global,
    args: &AbortArgs,
    environment: &Environment,
    report: &Arc<dyn Report>,
) -> Result<Exit, Failure> {
    let (scope, known, secrets) = match &args.name {
        Some(name) => (
            scope(name, global.environment.as_deref())?,
            Known::Addresses { targets: targets(&args.hosts)?, config: args.ssh_config.clone() },
            None,
        ),
        None => {
            let loaded = workplace::load(&workplace::root(global)?, global.environment.as_deref())?;
            let secrets = Secrets::available(&loaded.secrets, &environment::variable);
            (loaded.project.scope(), Known::Project(Arc::new(loaded.project)), Some(secrets))
        }
    };
    let mut abort = Abort {
        scope,
        known,
        secrets: secrets.unwrap_or_default(),
        fleet: hosts::options(environment)?,
        apply: ready::options(environment, "abort")?,
        cancel: Cancel::default(),
        sink: ready::sink(report),
    };
    abort.apply.wait_lock = args.lock.wait_lock.unwrap_or_default();
    let signals = ready::on_signals(abort.cancel.clone());
    let aborted = abort.run().await;
    signals.abort();
    match aborted {
        Ok(aborted) => finish(&abort.scope, &aborted, report),
        Err(error) => Err(ship_failure::of(&error, &abort.secrets)),
    }
}

/// The scope of a project whose sources are not here.
fn scope(name: &str, environment: Option<&str>) -> Result<String, Failure> {
    let name = ProjectName::new(name).map_err(|error| Failure::new(Exit::Usage, &error))?;
    match environment {
        None => Ok(name.to_string()),
        Some(environment) if config::is_environment(environment) => Ok(format!("{name}.{environment}")),
        Some(environment) => {
            Err(Failure::text(Exit::Usage, format!("read `-e {environment}`: it names no environment")))
        }
    }
}

/// Servers by their addresses. What they are called is not known yet, so each gets a name of its own.
fn targets(addresses: &[String]) -> Result<Vec<Target>, Failure> {
    let target = |(number, address): (usize, &String)| {
        let host = HostName::new(format!("host{}", number + 1)).expect("letters and digits are a server's name");
        Target::at(&host, address).map_err(|error| hosts::failure(&error))
    };
    addresses.iter().enumerate().map(target).collect()
}

fn finish(scope: &str, aborted: &Aborted, report: &Arc<dyn Report>) -> Result<Exit, Failure> {
    let settled: Vec<_> = aborted.settled.iter().map(summary).collect();
    let hosts = match aborted.hosts.len() {
        1 => "1 host".to_owned(),
        count => format!("{count} hosts"),
    };
    let text = if settled.is_empty() {
        format!("nothing of `{scope}` was open on {hosts}")
    } else {
        settled.iter().map(|settled| settled.text.clone()).collect::<Vec<_>>().join("\n")
    };
    let summary = |exit: Exit, result: &str| Summary {
        result: result.to_owned(),
        exit: exit.code(),
        text: text.clone(),
        scope: scope.to_owned(),
        settled: settled.clone(),
        left: aborted
            .settled
            .iter()
            .flat_map(|settled| &settled.left)
            .map(|failure| format!("{}: {}", failure.host, failure.title))
            .collect(),
        ..Summary::default()
    };
    let in_doubt = aborted.in_doubt();
    if in_doubt.is_empty() && aborted.unreachable.is_empty() && aborted.unknown.is_empty() {
        report.summary(&summary(Exit::Done, if settled.is_empty() { "unchanged" } else { "settled" }));
        return Ok(Exit::Done);
    }
    Err(Failure { settled, ..missing(aborted) })
}

fn missing(aborted: &Aborted) -> Failure {
    let names = |hosts: &mut dyn Iterator<Item = &HostName>| {
        hosts.map(|host| format!("`{host}`")).collect::<Vec<_>>().join(", ")
    };
    let in_doubt = aborted.in_doubt();
    let mut failure = if in_doubt.is_empty() {
        let message = format!("reach {}", names(&mut aborted.unreachable.keys().chain(&aborted.unknown)));
        Failure::text(Exit::Unreachable, message)
            .hint("what is open there stays open; run `jiji abort` again once it answers")
    } else {
        let message = format!("settle every host: {} in doubt", names(&mut in_doubt.into_iter()));
        Failure::text(Exit::InDoubt, message)
            .hint("run `jiji abort` again once they answer; they follow what the others were settled to")
    };
    for (host, error) in &aborted.unreachable {
        failure = failure.detail(format!("{host}: failed to {}", hosts::failure(error).line()));
    }
    for host in &aborted.unknown {
        failure = failure.detail(format!("{host}: nobody recorded how it is reached"));
    }
    match aborted.unknown.is_empty() {
        true => failure,
        false => failure.hint("name its address with `--host`, or run `jiji abort` where the project's sources are"),
    }
}

/// A settled transaction for the last lines of a run.
pub fn summary(settled: &Settled) -> SettledSummary {
    let names = |hosts: &[HostName]| hosts.iter().map(ToString::to_string).collect::<Vec<_>>();
    let way = match settled.decision {
        Decision::Commit => "finished",
        Decision::Revert => "reverted",
    };
    let hosts = names(&settled.hosts);
    let text = format!("{way} the interrupted `{}` of {} on {}", settled.command, settled.who, hosts.join(", "));
    SettledSummary {
        transaction: settled.transaction.clone(),
        who: settled.who.clone(),
        command: settled.command.clone(),
        result: way.to_owned(),
        hosts,
        in_doubt: names(&settled.away),
        text,
    }
}
