//! Reaching the project's hosts from a command.

use std::io::Write as _;

use jiji_model::name::HostName;
use jiji_model::project::Project;

use super::environment::Environment;
use super::exit::Exit;
use super::failure::Failure;
use crate::fleet::{Bounds, Fleet, FleetError, HostKeys, Options, Programs, Target};

/// What the fleet takes from this machine.
///
/// # Errors
/// Exit 1 where the program cannot tell its own path.
pub fn options(environment: &Environment) -> Result<Options, Failure> {
    let own = std::env::current_exe()
        .map_err(|error| Failure::text(Exit::Internal, format!("tell the path of this program: {error}")))?;
    Ok(Options {
        control_directory: environment.sockets.clone(),
        host_keys: if environment.accept_new { HostKeys::AcceptNew } else { HostKeys::Known },
        bounds: Bounds::default(),
        programs: Programs::embedded(),
        local: vec![own.into_os_string(), "host".into()],
    })
}

/// How the servers that the project uses are reached.
///
/// # Errors
/// Exit 2 for an address that could be taken for something else.
pub fn targets(project: &Project) -> Result<Vec<Target>, Failure> {
    let targets = project.used_servers().map(|(host, _)| Target::of(project, host));
    targets.collect::<Result<_, _>>().map_err(|error| failure(&error))
}

/// Reaches every server that the project uses.
///
/// # Errors
/// What concerns this machine alone. Hosts that could not be reached are in [`Fleet::unreachable`].
pub async fn connect(project: &Project, environment: &Environment) -> Result<Fleet, Failure> {
    let options = options(environment)?;
    let fleet = Fleet::connect(targets(project)?, &options).await.map_err(|error| failure(&error))?;
    for (host, keys) in &fleet.pinned {
        // Nobody to tell is no reason to stop.
        let _ = writeln!(std::io::stderr(), "{host}: pinned the host key {}", keys.join(", "));
    }
    Ok(fleet)
}

/// An error of the fleet as a command's.
pub fn failure(error: &FleetError) -> Failure {
    let exit = Exit::ALL.into_iter().find(|exit| exit.code() == error.exit_code()).unwrap_or(Exit::Internal);
    let failure = Failure::new(exit, error);
    match error.hint() {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// The first of several hosts' errors as the command's, the others below it.
pub fn failures<'a>(errors: impl IntoIterator<Item = (&'a HostName, &'a FleetError)>) -> Option<Failure> {
    let mut errors = errors.into_iter();
    let (_, first) = errors.next()?;
    Some(errors.fold(failure(first), |all, (_, error)| all.detail(format!("also failed to {}", failure(error).line()))))
}
