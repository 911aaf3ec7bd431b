//! How the errors of a ship are shown: exit code, evidence, hints.

use super::exit::Exit;
use super::failure::Failure;
use super::hosts;
use crate::build::BuildError;
use crate::deploy::SavedError;
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
        ShipError::Rounds { .. } => Failure::new(Exit::Plugin, error),
        ShipError::Fleet(cause) => hosts::failure(cause),
        ShipError::Unreachable(errors) => {
            hosts::failures(errors).unwrap_or_else(|| Failure::new(Exit::Unreachable, error))
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
        ShipError::SecretsMissing { .. } => Failure::new(Exit::Secret, error)
            .hint("set them in the environment; hosts keep no secrets outside containers"),
        ShipError::Apply { error: cause, verdicts } => {
            let mut failure = Failure::new(exit(cause.exit_code()), error).detail(cause.evidence());
            for (host, verdict) in verdicts {
                failure = failure.detail(format!("{host}: {}", verdict.explanation));
                failure = with_hint(failure, verdict.hint.clone());
            }
            cause.hints().into_iter().fold(failure, Failure::hint)
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
