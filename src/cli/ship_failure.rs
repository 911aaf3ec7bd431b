//! How the errors of a ship are shown: exit code, evidence, hints.

use jiji_model::name::HostName;
use jiji_model::probe::Verdict;

use super::exit::Exit;
use super::failure::Failure;
use super::hosts;
use super::server;
use crate::apply::{self, ApplyError};
use crate::build::BuildError;
use crate::deploy::SavedError;
use crate::report::failure::Shown;
use crate::secrets::Secrets;
use crate::ship::ShipError;

/// What `error` means for the command. Values of secrets are blotted out of everything that came from a host or a build.
pub fn of(error: &ShipError, secrets: &Secrets) -> Failure {
    let failure = plain(error);
    let redactor = secrets.redactor();
    Failure {
        message: redactor.redact(&failure.message),
        causes: failure.causes.iter().map(|cause| redactor.redact(cause)).collect(),
        detail: redactor.redact(&failure.detail),
        ..failure
    }
}

fn exit(code: u8) -> Exit {
    Exit::ALL.into_iter().find(|exit| exit.code() == code).unwrap_or(Exit::Internal)
}

fn plain(error: &ShipError) -> Failure {
    match error {
        ShipError::Build { cause, .. } => build(error, cause),
        ShipError::Circle { .. } => Failure::new(Exit::Usage, error)
            .hint("a recipe takes from services that are not made from its own: let one of them take from an input or step instead"),
        ShipError::Registry(cause) => with_hint(Failure::new(Exit::Registry, error), cause.hint()),
        ShipError::Reference { .. } => Failure::new(Exit::Usage, error),
        ShipError::NotBuilt { .. } => {
            Failure::new(Exit::Refused, error).hint("`jiji build` makes one, `jiji ship` does everything")
        }
        ShipError::NotLocked { .. } => {
            Failure::new(Exit::Locked, error).hint("run without `--locked` once and commit jiji.lock")
        }
        ShipError::NoRegistry => Failure::new(Exit::Usage, error)
            .hint("set `builder.registry.server`, or `jiji ship`, which needs no registry: hosts get images from here"),
        ShipError::Lock(_) => Failure::new(Exit::Usage, error),
        ShipError::Store(_) | ShipError::Thread => Failure::new(Exit::Internal, error),
        ShipError::NoBlob { image, .. } => Failure::new(Exit::Refused, error).hint(format!(
            "check out the sources of that version and `jiji build`: it makes the same image again, `{image}`; \
             `builder.registry` keeps images beyond `retain`"
        )),
        ShipError::Plugin(cause) => with_hint(Failure::new(Exit::Plugin, error), cause.hint()),
        ShipError::NoNetwork => Failure::new(Exit::Usage, error).hint("add a section `network:` to deploy.yml"),
        ShipError::MeshRounds { .. } | ShipError::Rounds { .. } => Failure::new(Exit::Plugin, error),
        ShipError::Fleet(cause) => hosts::failure(cause),
        ShipError::Unreachable(errors) => {
            hosts::failures(errors).unwrap_or_else(|| Failure::new(Exit::Unreachable, error))
        }
        ShipError::Unfit { findings, errors } => {
            let mut failure = Failure::new(Exit::Refused, error).detail(server::findings(findings));
            for error in errors {
                failure = failure.detail(format!("also failed to {error}"));
                failure = with_hint(failure, error.hint());
            }
            failure
        }
        ShipError::Refused(refused) => {
            let failure = Failure::new(Exit::Refused, error);
            refused.hints().into_iter().fold(failure, Failure::hint)
        }
        ShipError::Saved(cause) => saved(cause),
        ShipError::Plan(cause) => with_hint(Failure::new(Exit::Refused, error), cause.hint()),
        ShipError::Release { .. } => {
            Failure::new(Exit::Refused, error).hint("it was made by another version of jiji; ship anew instead")
        }
        ShipError::NotAsReleased { .. } => Failure::new(Exit::Refused, error).hint("run `jiji ship` first"),
        ShipError::SecretsMissing { .. } => Failure::new(Exit::Secret, error)
            .hint("set them in the environment; hosts keep no secrets outside containers"),
        ShipError::Apply { error: cause, verdicts } => {
            cause.hints().into_iter().fold(steps(error, cause, verdicts), Failure::hint)
        }
    }
}

/// What is wrong with a kept plan.
pub fn saved(error: &SavedError) -> Failure {
    let code = match error {
        SavedError::Syntax { .. } | SavedError::TooLong { .. } => Exit::Usage,
        _ => Exit::Refused,
    };
    with_hint(Failure::new(code, error), error.hint())
}

/// A transaction that did not end well, with each failed step on a screen of its own. Hosts that failed for the same reason share one.
fn steps(error: &ShipError, cause: &ApplyError, verdicts: &[(HostName, Verdict)]) -> Failure {
    let mut failure = Failure::new(exit(cause.exit_code()), error);
    let failures = cause.failures();
    let verdict = |failed: &apply::Failure| {
        let of_host = verdicts.iter().find(|(host, _)| *host == failed.host && !failed.undo)?;
        failed.found.timeline.is_some().then_some(&of_host.1)
    };
    if let (Some(first), Some(ending)) = (failures.first(), ending(cause))
        && let (Some(service), Some(verdict)) = (&first.service, verdict(first))
    {
        failure.message = format!("make `{service}` healthy on `{}`: {}{ending}", first.host, verdict.explanation);
    }
    let mut said: Vec<(&str, bool)> = Vec::new();
    for failed in failures {
        let verdict = verdict(failed);
        let shown = Shown {
            host: &failed.host,
            service: failed.service.as_ref(),
            title: &failed.title,
            undo: failed.undo,
            found: &failed.found,
            verdict,
        };
        failure.steps.push(shown.json());
        let why = (verdict.map_or(failed.found.cause.as_str(), |verdict| &verdict.explanation), failed.undo);
        if said.contains(&why) {
            failure = failure.detail(format!("  {}: the same", failed.host));
            continue;
        }
        failure = failure.detail(shown.text(!said.is_empty()));
        failure = with_hint(failure, verdict.and_then(|verdict| verdict.hint.clone()));
        said.push(why);
    }
    match cause.lost() {
        lost if lost.is_empty() => failure,
        lost => failure.detail(lost),
    }
}

/// How a transaction ended that failed for a step, as the end of a sentence; none where its own words say more.
fn ending(cause: &ApplyError) -> Option<&'static str> {
    match cause {
        ApplyError::Reverted { .. } => Some("; all hosts were reverted"),
        _ => None,
    }
}

fn with_hint<T: Into<String>>(failure: Failure, hint: Option<T>) -> Failure {
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

fn build(error: &ShipError, cause: &BuildError) -> Failure {
    let code = if cause.is_locked_mismatch() { Exit::Locked } else { Exit::Build };
    let mut failure = Failure::new(code, error);
    if let Some(place) = cause.place() {
        failure = failure.detail(place.excerpt());
    }
    for line in cause.evidence() {
        failure = failure.detail(format!("  | {line}"));
    }
    with_hint(failure, cause.hint())
}
