//! Hosts: reaching them, and speaking with `jiji-host` there.
//!
//! [`Fleet::connect`] reaches every server of a project at once and starts one `jiji-host` on each; a [`Session`] then carries everything
//! that a command asks of that host, from the first look to the last step. This is the only room of the operator's side that touches
//! machines. It knows nothing of services, plans or transactions: what to ask is [`crate::deploy`]'s and [`crate::apply`]'s business.
//!
//! One host's trouble is its own: each has its session and its error, and none waits for another.

mod blobs;
mod bootstrap;
mod control;
mod diagnose;
pub mod embedded;
mod error;
mod local;
mod named;
mod pipes;
mod pool;
mod session;
mod ssh;
mod target;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiji_model::name::{HostName, SecretName};
use jiji_model::observation::{Fact, Observation, Want};
use jiji_model::protocol::{Reply, Request};
use jiji_model::secret::Secret;
use tokio::io::AsyncWriteExt as _;
use tokio::task::JoinSet;

pub use blobs::BlobProgress;
pub use bootstrap::{HostProgram, Programs};
pub use error::{FleetError, LostCause};
pub use pool::Bounds;
pub use session::{Counters, Listener, PATIENCE, Session};
pub use ssh::HostKeys;
pub use target::{ConfigFile, SshTarget, Target, Transport};

use bootstrap::Found;
use control::ControlDirectory;
use pipes::Pipes;
use pool::Pool;

/// How long the first line may take to answer, beyond the time to connect: login shells can be slow.
const FIRST_LINE: Duration = Duration::from_secs(30);

/// What reaching hosts takes from the operator's machine.
#[derive(Debug, Clone)]
pub struct Options {
    /// A directory that only this user may enter, with a short path, such as `/run/user/1000/jiji`. Made where it is missing.
    pub control_directory: PathBuf,
    /// Whether host keys that nobody has vouched for are believed.
    pub host_keys: HostKeys,
    /// How many connections there may be.
    pub bounds: Bounds,
    /// The builds of `jiji-host` that can be sent.
    pub programs: Programs,
    /// What `jiji-host` is on this machine: a program and what makes it `jiji-host`, such as `jiji host`.
    pub local: Vec<OsString>,
}

/// Sessions with the hosts that could be reached, and why the others could not.
#[derive(Default)]
pub struct Fleet {
    /// Sessions, by server.
    pub sessions: BTreeMap<HostName, Session>,
    /// Why the others could not be reached, by server.
    pub unreachable: BTreeMap<HostName, FleetError>,
    /// Host keys that were believed for the first time, such as `ED25519 SHA256:… of h`, by server.
    pub pinned: BTreeMap<HostName, Vec<String>>,
    /// The connections; closed after the sessions.
    pool: Option<Arc<Pool>>,
    /// The same of fleets that were taken in.
    others: Vec<Arc<Pool>>,
}

impl Fleet {
    /// Reaches `targets`, all at once.
    ///
    /// # Errors
    /// Only what concerns this machine: [`FleetError::ControlDirectory`], [`FleetError::ControlPath`]. What concerns one host is in
    /// [`Self::unreachable`].
    pub async fn connect(targets: Vec<Target>, options: &Options) -> Result<Self, FleetError> {
        let mut fleet = Self::default();
        if targets.iter().any(|target| matches!(target.transport, Transport::Ssh(_))) {
            let control = ControlDirectory::open(&options.control_directory).await?;
            fleet.pool = Some(Arc::new(Pool::new(control, options.host_keys, options.bounds)));
        }
        let options = Arc::new(options.clone());
        let mut tasks = JoinSet::new();
        for target in targets {
            let (options, pool) = (Arc::clone(&options), fleet.pool.clone());
            tasks.spawn(async move {
                let mut pinned = Vec::new();
                let session = match (&target.transport, pool) {
                    (Transport::Ssh(way), Some(pool)) => over_ssh(&target, way, &pool, &options, &mut pinned).await,
                    _ => locally(&target, &options).await,
                };
                let session = session.map(|session| session.reached_at(target.url()));
                (target.host, session, pinned)
            });
        }
        while let Some(ended) = tasks.join_next().await {
            match ended {
                Ok((host, session, pinned)) => {
                    if !pinned.is_empty() {
                        fleet.pinned.insert(host.clone(), pinned);
                    }
                    match session {
                        Ok(session) => drop(fleet.sessions.insert(host, session)),
                        Err(error) => drop(fleet.unreachable.insert(host, error)),
                    }
                }
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            }
        }
        Ok(fleet)
    }

    /// Takes in the hosts of another fleet.
    pub fn absorb(&mut self, other: Self) {
        let Self { sessions, unreachable, pinned, pool, others } = other;
        self.sessions.extend(sessions);
        self.unreachable.extend(unreachable);
        self.pinned.extend(pinned);
        self.others.extend(pool.into_iter().chain(others));
    }

    /// Asks hosts what they want to be asked, all at once. Gives what they answered, and the errors of those that did not.
    pub async fn observe(
        &self,
        wants: &BTreeMap<HostName, Vec<Want>>,
    ) -> (Observation, BTreeMap<HostName, FleetError>) {
        let looks = self.sessions.iter().filter_map(|(host, session)| {
            let wants = wants.get(host)?.clone();
            Some(async move { (host, session.observe(wants).await) })
        });
        let mut observation = Observation::default();
        let mut errors = BTreeMap::new();
        for (host, facts) in futures_util::future::join_all(looks).await {
            match facts {
                Ok(facts) => observation.add(host, facts),
                Err(error) => {
                    errors.insert(host.clone(), error);
                }
            }
        }
        (observation, errors)
    }

    /// Sends secrets to hosts, before the first look that needs them. Gives the errors.
    pub async fn send_secrets(
        &self,
        secrets: &BTreeMap<HostName, BTreeMap<SecretName, Secret>>,
    ) -> BTreeMap<HostName, FleetError> {
        let mut errors = BTreeMap::new();
        for (host, session) in &self.sessions {
            if let Some(secrets) = secrets.get(host).filter(|secrets| !secrets.is_empty())
                && let Err(error) = session.send_secrets(secrets).await
            {
                errors.insert(host.clone(), error);
            }
        }
        errors
    }

    /// What has passed, by host.
    pub fn counters(&self) -> BTreeMap<HostName, Counters> {
        let sessions = self.sessions.iter();
        sessions.map(|(host, session)| (host.clone(), session.counters())).collect()
    }

    /// Ends all sessions, and waits some seconds for those that have a step to finish.
    pub async fn close(self) {
        let sessions = self.sessions.into_values().map(Session::close);
        futures_util::future::join_all(sessions).await;
        for pool in self.pool.into_iter().chain(self.others) {
            pool.close().await;
        }
    }
}

impl std::fmt::Debug for Fleet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fleet")
            .field("sessions", &self.sessions)
            .field("unreachable", &self.unreachable)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Looks at the host.
    ///
    /// # Errors
    /// As [`Session::ask`].
    pub async fn observe(&self, wants: Vec<Want>) -> Result<Vec<Fact>, FleetError> {
        match self.ask(Request::Observe { wants }, PATIENCE).await? {
            Reply::Facts(facts) => Ok(facts),
            _ => Err(FleetError::Unexpected { host: self.host().clone(), doing: "observe" }),
        }
    }
}

async fn locally(target: &Target, options: &Options) -> Result<Session, FleetError> {
    let pipes = local::start(&target.host, &options.local, target.manner())?;
    Session::begin(&target.host, pipes, Vec::new(), 1, 0).await
}

/// One program on the server where `jiji-host` is installed, two where it is not.
async fn over_ssh(
    target: &Target,
    way: &SshTarget,
    pool: &Pool,
    options: &Options,
    pinned: &mut Vec<String>,
) -> Result<Session, FleetError> {
    let host = &target.host;
    let connection = pool.get(host, way).await?;
    pinned.extend(connection.pinned.iter().cloned());
    let line = bootstrap::first_line(&options.programs, target.manner());
    let mut pipes = connection.start(host, &line).await?;
    let (found, early) = mark(host, &mut pipes).await?;
    let machine = match found {
        Found::Ready(machine) => match Session::begin(host, pipes, early, 1, 0).await {
            // A program that is there and says nothing is not what its name says, or no program: it is sent again.
            Err(FleetError::NotStarted { .. }) => machine,
            session => return session,
        },
        Found::Missing(machine) => machine,
        Found::NoSudo(user) => {
            // What sudo says comes by another way than the mark.
            tokio::time::sleep(Duration::from_millis(100)).await;
            let cause = last_line(&pipes.stderr.text(), "`sudo -n` ended without a word");
            return Err(FleetError::NoSudo { host: host.clone(), user, cause });
        }
        Found::SudoMissing(user) => return Err(FleetError::SudoMissing { host: host.clone(), user }),
        Found::Root => return Err(FleetError::IsRoot { host: host.clone() }),
        Found::Damaged | Found::NotWritten => {
            return Err(FleetError::Shell { host: host.clone(), said: "an answer to another line".to_owned() });
        }
    };
    let Some(program) = options.programs.for_machine(&machine.machine) else {
        return Err(FleetError::NoProgram { host: host.clone(), architecture: machine.machine });
    };
    let line = bootstrap::second_line(program, machine.root, target.manner());
    let mut pipes = connection.start(host, &line).await?;
    // Read while writing: the line may answer before it took everything, when the disk is full.
    let Pipes { stdin, stdout, .. } = &mut pipes;
    let send = async {
        let sent = stdin.write_all(&program.bytes).await;
        let _ = stdin.flush().await;
        sent
    };
    let longest = FIRST_LINE + Duration::from_secs(program.bytes.len() as u64 / (16 * 1024));
    let answer = tokio::time::timeout(longest, async { tokio::join!(send, bootstrap::read_until_mark(stdout)) }).await;
    let directory = if target.rootless { bootstrap::USERS_DIRECTORY } else { bootstrap::DIRECTORY };
    let install = |cause: &str| match cause.contains("No space left") {
        true => FleetError::DiskFull { host: host.clone(), directory },
        false => FleetError::Install { host: host.clone(), cause: cause.to_owned(), directory },
    };
    if !matches!(answer, Ok((_, Ok((Found::Ready(_), _))))) {
        // What the shell says comes by another way than the mark.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    match answer {
        Err(_) => Err(install(&format!("no answer within {} seconds", longest.as_secs()))),
        Ok((_, Ok((Found::Ready(_), early)))) => {
            Session::begin(host, pipes, early, 2, program.bytes.len() as u64).await
        }
        Ok((_, Ok((Found::Damaged, _)))) => Err(install("other bytes arrived than were sent")),
        Ok((_, Ok(_))) => Err(install(&last_line(&pipes.stderr.text(), "it could not be written"))),
        Ok((Err(error), Err(_))) => Err(install(&last_line(&pipes.stderr.text(), &error.to_string()))),
        Ok((Ok(()), Err(said))) => Err(install(&last_line(&pipes.stderr.text(), &said))),
    }
}

fn last_line(stderr: &str, otherwise: &str) -> String {
    let last = stderr.lines().rev().find(|line| !line.trim().is_empty());
    last.map_or_else(|| otherwise.to_owned(), |line| line.trim().to_owned())
}

async fn mark(host: &HostName, pipes: &mut Pipes) -> Result<(Found, Vec<u8>), FleetError> {
    let said = match tokio::time::timeout(FIRST_LINE, bootstrap::read_until_mark(&mut pipes.stdout)).await {
        Ok(Ok(found)) => return Ok(found),
        Ok(Err(said)) => said,
        Err(_) => format!("nothing within {} seconds", FIRST_LINE.as_secs()),
    };
    // What a shell that cannot run the line says stands on standard error.
    let said = if said.is_empty() { last_line(&pipes.stderr.text(), "nothing") } else { said };
    // The text is cloud-init's (`disable_root_opts`), which takes the place of every command.
    if let Some((user, _)) = said.split_once("login as the user \"").and_then(|(_, rest)| rest.split_once('"')) {
        return Err(FleetError::WrongUser { host: host.clone(), user: user.to_owned() });
    }
    Err(FleetError::Shell { host: host.clone(), said })
}
