//! Makes a [`Ship`] of a project's configuration and this machine.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use jiji_model::event::{Record, Sink};
use jiji_model::secret::Secret;

use super::environment::{self, Environment};
use super::exit::Exit;
use super::failure::Failure;
use super::hosts;
use super::server;
use super::workplace::Workplace;
use crate::apply::{self, Cancel};
use crate::registry::{Client, Credentials, Setup};
use crate::report::Report;
use crate::secrets::Secrets;
use crate::ship::{Given, Ship};

/// Hands events on to whoever shows them, since a trait object of one trait is none of another here.
struct Shown(Arc<dyn Report>);

impl Sink for Shown {
    fn emit(&self, record: Record) {
        self.0.emit(record);
    }
}

/// The events' way to `report`.
pub fn sink(report: &Arc<dyn Report>) -> Arc<dyn Sink> {
    Arc::new(Shown(Arc::clone(report)))
}

/// Everything that a command which changes or plans needs.
///
/// # Errors
/// Exit 12 where a secret is missing, exit 1 where this machine is in the way.
pub fn ship(
    place: &Workplace,
    environment: &Environment,
    command: &str,
    report: &Arc<dyn Report>,
) -> Result<Ship, Failure> {
    ship_with(place, environment, command, secrets(place)?, report)
}

/// The same with these secrets.
///
/// # Errors
/// Exit 1 where this machine is in the way.
pub fn ship_with(
    place: &Workplace,
    environment: &Environment,
    command: &str,
    secrets: Secrets,
    report: &Arc<dyn Report>,
) -> Result<Ship, Failure> {
    Ok(Ship {
        project: Arc::new(place.project().clone()),
        root: place.root.clone(),
        store: place.store.clone(),
        lock: place.lock.clone(),
        client: client(place, &secrets, report),
        secrets,
        compiled: environment.cache.join("plugins"),
        fleet: hosts::options(environment)?,
        apply: options(environment, command)?,
        cancel: Cancel::default(),
        locked: false,
        renew: false,
        explain: false,
        push: true,
        given: Given { agent: environment.agent.clone(), ..Given::default() },
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        clock: server::clock,
        sink: sink(report),
    })
}

/// Seconds since 1970 by this machine's clock.
pub fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Who runs a transaction, and how.
///
/// # Errors
/// Exit 1 where the system has no randomness.
pub fn options(environment: &Environment, command: &str) -> Result<apply::Options, Failure> {
    let run =
        apply::random_id().map_err(|error| Failure::text(Exit::Internal, format!("draw a random number: {error}")))?;
    let options = apply::Options::new(run, &environment.who, command, now_s());
    #[cfg(feature = "abort-points")]
    let mut options = options.abort_at(environment.abort_at.clone());
    #[cfg(feature = "abort-points")]
    if let Some(lease_ms) = environment.lease_ms {
        options.lease_ms = lease_ms;
    }
    Ok(options)
}

/// The values of the project's secrets.
///
/// # Errors
/// Exit 12, naming all that are missing and where each is asked for.
pub fn secrets(place: &Workplace) -> Result<Secrets, Failure> {
    Secrets::from_lookup(&place.loaded.secrets, &environment::variable)
        .map_err(|missing| Failure::new(Exit::Secret, &missing).hint(missing.hint()))
}

/// A client of registries that knows the project's credentials and mirrors.
pub fn client(place: &Workplace, secrets: &Secrets, report: &Arc<dyn Report>) -> Client {
    let builder = &place.project().builder;
    let credentials = builder.registry.as_ref().and_then(|registry| {
        let password = secrets.get(registry.password.as_ref()?)?;
        let password = Secret::new(password.reveal());
        Some((registry.server.authority.clone(), Credentials { username: registry.username.clone()?, password }))
    });
    let servers = builder.registry.iter().map(|registry| registry.server.clone());
    let servers = servers.chain(builder.mirrors.values().flatten().cloned()).collect();
    Client::new(Setup {
        credentials: Arc::new(move |authority: &str| match &credentials {
            Some((server, credentials)) if server == authority => Some(credentials.clone()),
            _ => None,
        }),
        mirrors: builder.mirrors.clone(),
        servers,
        sink: sink(report),
    })
}

/// Ctrl-C, SIGTERM and a CI system's cancel ask `cancel` to stop: once reverts in order, twice lets go.
pub fn on_signals(cancel: Cancel) -> tokio::task::JoinHandle<()> {
    use tokio::signal::unix::{SignalKind, signal};
    tokio::spawn(async move {
        let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            return;
        };
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            cancel.request();
        }
    })
}
