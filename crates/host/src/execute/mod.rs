//! Runs every kind of action.
//!
//! An action is run to its end or to the end of its time, says whether it changed anything, and says for people why it failed. Order,
//! journal and lease are [`crate::session`]'s; what the actions mean is said in [`jiji_model::plan::Action`].

mod container;
mod error;
mod file;
mod image;
mod wait;
mod words;

use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use jiji_model::log;
use jiji_model::plan::{Action, ContainerImage, Evidence, Step, Word};
use jiji_model::probe::Probe;
use jiji_model::protocol::EvidenceFound;
use jiji_model::transaction::{Outcome, Transaction};
use jiji_store::{Store, StoreError};

pub use error::ActionError;

use crate::Settings;
use crate::command::{self, Command, CommandError, Output};
use crate::engine::{Engine, EngineError};
use crate::mesh::Mesh;
use crate::place::Place;
use crate::probe::Until;
use crate::secrets::Secrets;

/// How much of a log is evidence, in bytes.
const LOG: usize = 16 * 1024;

/// How many lines of a log are read for each that is kept as evidence, at most 1000: most of a proxy's are requests.
const LOG_READ: u32 = 20;

/// How many bytes of a log are read.
const LOG_READ_BYTES: usize = 512 * 1024;

/// How much of what a step printed is kept for later steps, in bytes.
const OUTPUT: usize = 4 * 1024;

/// It was done, and nobody needs to know more.
const DONE: Outcome = Outcome::Done { output: None };

/// What running an action needs.
pub struct Executor<'a> {
    /// Where programs are.
    pub settings: &'a Settings,
    /// Where everything lies.
    pub place: &'a Place,
    /// The engine, or why there is none.
    pub engine: &'a Result<Option<Engine>, EngineError>,
    /// The session's secrets.
    pub secrets: &'a Secrets,
    /// The transaction that the step is of: its steps and what they printed.
    pub transaction: &'a Transaction,
    /// Opens the store.
    pub store: &'a dyn Fn() -> Result<Store, StoreError>,
    /// Hears every probe.
    pub probed: &'a dyn Fn(Probe),
    /// Ends when waits for health should end.
    pub stop: &'a dyn Fn() -> LocalBoxFuture<'a, ()>,
}

fn changed(changed: bool) -> Outcome {
    if changed { DONE } else { Outcome::Unchanged }
}

/// The kind of action that this `jiji-host` cannot run, if it is one.
pub fn unsupported(action: &Action) -> Option<String> {
    match action {
        Action::Other { kind, .. } => Some(kind.clone()),
        Action::ContainerRun(spec) => match &spec.image {
            ContainerImage::Pinned { reference } => Some(format!("run of `{reference}`, which nobody brought here")),
            ContainerImage::Seeded { .. } => None,
        },
        _ => None,
    }
}

impl Executor<'_> {
    /// Runs an action of a step, its own or its undo, within the step's time.
    ///
    /// # Errors
    /// [`ActionError`].
    pub async fn run(&self, step: &Step, action: &Action) -> Result<Outcome, ActionError> {
        let limit = Duration::from_millis(step.timeout_ms.max(1).into());
        match tokio::time::timeout(limit, self.act(step, action, limit)).await {
            Ok(result) => result,
            Err(_) => Err(ActionError::TimedOut(limit)),
        }
    }

    async fn act(&self, step: &Step, action: &Action, limit: Duration) -> Result<Outcome, ActionError> {
        match action {
            Action::NetworkEnsure { name, subnet, gateway } => self.network(name, subnet, *gateway).await,
            Action::ImageEnsure { image } => self.ensure_image(image, limit).await,
            Action::ImageRemove { image, repository } => self.remove_image(image, repository).await,
            Action::ContainerRun(spec) => self.run_container(spec, limit).await,
            Action::ContainerStart { name } => self.start_container(name.as_str(), limit).await,
            Action::ContainerStop { name, timeout_s } => self.stop_container(name.as_str(), *timeout_s, limit).await,
            Action::ContainerRemove { name } => self.remove_container(name.as_str(), limit).await,
            Action::ContainerExec { container, argv, tolerate } => {
                self.exec(step, container.as_str(), argv, tolerate, limit).await
            }
            Action::WaitProbe { container, network, probe } => {
                self.wait(container.as_str(), network, probe, Until::Healthy).await
            }
            Action::Hold { container, network, probe, for_ms } => {
                self.wait(container.as_str(), network, probe, Until::Passed(Duration::from_millis((*for_ms).into())))
                    .await
            }
            Action::VolumeEnsure { name } => self.volume(name).await,
            Action::Directory { path, mode } => file::directory(&self.place.locate(path), *mode),
            Action::File { path, mode, content } => {
                file::write(&self.place.locate(path), *mode, self.text(content)?.as_bytes())
            }
            Action::Remove { path } => file::remove(&self.place.locate(path)),
            Action::HttpWait { address, probe } => self.wait_http(*address, probe).await,
            Action::KeypairEnsure { path } => Ok(changed(self.mesh()?.ensure_key(path).await?)),
            Action::InterfaceEnsure(spec) => Ok(changed(self.mesh()?.ensure(spec).await?)),
            Action::InterfaceRemove { name } => Ok(changed(self.mesh()?.remove(name).await?)),
            Action::Run { argv, stdin } => self.program(step, argv, stdin, limit).await,
            Action::Note { .. } => Ok(Outcome::Unchanged),
            Action::Other { kind, .. } => Err(ActionError::Unsupported { kind: kind.clone() }),
        }
    }

    fn mesh(&self) -> Result<Mesh<'_>, ActionError> {
        if self.settings.rootless {
            return Err(ActionError::NeedsRoot);
        }
        Ok(Mesh { settings: self.settings, place: self.place })
    }

    fn engine(&self) -> Result<&Engine, ActionError> {
        match self.engine {
            Ok(Some(engine)) => Ok(engine),
            Ok(None) => Err(EngineError::None.into()),
            Err(error) => Err(ActionError::NoEngine { why: error.to_string() }),
        }
    }

    async fn program(
        &self,
        step: &Step,
        argv: &[Word],
        stdin: &[Word],
        limit: Duration,
    ) -> Result<Outcome, ActionError> {
        let argv = self.argv(argv)?;
        let (program, args) = argv
            .split_first()
            .ok_or_else(|| CommandError::NotFound { program: String::new(), path: self.settings.path.clone() })?;
        let command = Command::new(command::find(program, &self.settings.path)?)
            .args(args)
            .stdin(self.text(stdin)?.into_bytes())
            .timeout(limit);
        let output = command.run().await?;
        if output.ok() {
            Ok(self.printed(step, &output))
        } else {
            Err(ActionError::exited(format!("run `{program}`"), &output))
        }
    }

    /// The outcome of a command that succeeded: with what it printed, where a later step uses it.
    fn printed(&self, step: &Step, output: &Output) -> Outcome {
        let used = words::uses_output(&self.transaction.begin.steps, &step.id);
        let text = output.text().trim().to_owned();
        Outcome::Done { output: (used && text.len() <= OUTPUT).then_some(text) }
    }

    /// Gathers what a step wants shown when it fails. What cannot be gathered is left out: the failure is told in any case.
    pub async fn evidence(&self, wanted: &[Evidence]) -> Vec<EvidenceFound> {
        let Ok(engine) = self.engine() else { return Vec::new() };
        let mut found: Vec<EvidenceFound> = Vec::new();
        for evidence in wanted {
            let (Evidence::Logs { container, .. } | Evidence::State { container }) = evidence;
            let index = match found.iter().position(|found| found.container == *container) {
                Some(index) => index,
                None => {
                    let inspected = engine.inspect_container(container.as_str()).await.ok().flatten();
                    let facts = inspected.as_ref().map(|inspected| engine.facts(inspected));
                    found.push(EvidenceFound {
                        container: container.clone(),
                        state: facts.as_ref().map(|facts| facts.state.clone()),
                        exit: facts.as_ref().and_then(|facts| facts.exit),
                        oom: facts.is_some_and(|facts| facts.oom),
                        log: String::new(),
                    });
                    found.len() - 1
                }
            };
            if let Evidence::Logs { lines, .. } = evidence {
                let read = lines.saturating_mul(LOG_READ).min(1000);
                let log = engine.logs(container.as_str(), read, LOG_READ_BYTES).await;
                let log = self.secrets.redact(&log.unwrap_or_default());
                let log = log::distill(&log, usize::try_from(*lines).unwrap_or(usize::MAX));
                found[index].log = end(&log, LOG).to_owned();
            }
        }
        found
    }
}

/// The last whole lines of a text in at most `most` bytes.
fn end(text: &str, most: usize) -> &str {
    let mut from = text.len().saturating_sub(most);
    if from > 0 {
        while !text.is_char_boundary(from) {
            from += 1;
        }
        from += text[from..].find('\n').map_or(0, |line| line + 1);
    }
    &text[from..]
}
