//! Steps that are recorded: what they asked for goes into the lock, and comes from there when they are done again.
//!
//! The store keeps beside what such a step gave what it asked for, so that a lock that does not say it learns it without the network.

use std::collections::BTreeMap;

use jiji_model::digest::{Digest, canonical_json};
use jiji_model::secret::Secret;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::steps::Stepped;
use super::turns::held;
use super::{Evaluation, Memory};
use crate::build::dockerfile::Instruction;
use crate::build::execute::{Canceller, Network, Ran, RunStep, StepMount, StepSource, Stream};
use crate::build::record::{Recorder, Recording, Told};
use crate::lockfile::{Asked, Recorded};

/// What a step asked for, as the store keeps it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    recorded: Vec<(Asked, Recorded)>,
}

/// Whether this is the record of what a step asked for.
pub(in crate::build) fn is_record(bytes: &[u8]) -> bool {
    serde_json::from_slice::<Kept>(bytes).is_ok()
}

/// What that record of a step is called.
fn name(key: &Digest) -> Digest {
    Digest::of_json(&json!({"recorded-of": key}))
}

impl Evaluation<'_> {
    /// Carries out a step: behind a proxy, if it is recorded. Gives also what it was refused there.
    pub(super) fn carry_out(
        &self,
        instruction: &Instruction,
        key: &Digest,
        step: &RunStep,
        canceller: &Canceller,
        output: &mut dyn FnMut(Stream, &[u8]),
    ) -> Stepped<(Ran, Vec<String>)> {
        let (executor, store) = (self.builder.executor, self.builder.store);
        if step.network != Network::Recorded {
            return Ok((executor.run(step, store, canceller, output)?, Vec::new()));
        }
        let room = store.new_tree()?;
        let known = held(&self.lock).recorded.clone();
        let secrets = secrets(step);
        let recorder = Recorder::new(self.builder.sources, store, known, self.request.locked, secrets);
        let run = |told: &Told| executor.run(&behind(step, told), store, canceller, output);
        let (ran, Recording { asked, failure, refused }) = recorder.around(&room.path(), run)?;
        for refused in &refused {
            let text = format!("{}: the proxy refused {refused}", instruction.name);
            self.tell("build.refused", text, json!({"line": instruction.at.line, "what": refused}));
        }
        let ran = ran?;
        // Whatever its programs made of it: what is pinned could not be had.
        if let Some(failure) = failure {
            return Err(failure);
        }
        if matches!(ran, Ran::Changed(_)) {
            self.pin(&asked);
            held(&self.recordings).insert(*key, asked);
        }
        Ok((ran, refused))
    }

    /// Says in the lock what was asked for, where it does not say it.
    fn pin(&self, asked: &BTreeMap<Asked, Recorded>) {
        let mut lock = held(&self.lock);
        for (asked, said) in asked {
            lock.recorded.entry(asked.clone()).or_insert_with(|| said.clone());
        }
    }

    /// Keeps what a step asked for, beside what it gave.
    pub(super) fn remember_recorded(&self, key: &Digest) -> Stepped<()> {
        let asked = held(&self.recordings).remove(key);
        let Some(asked) = asked.filter(|_| !matches!(self.memory, Memory::Compare(_))) else { return Ok(()) };
        let kept = Kept { recorded: asked.into_iter().collect() };
        Ok(self.builder.store.record_action(&name(key), &canonical_json(&kept))?)
    }

    /// Says in the lock what a step asked for when it was done, here and some time ago.
    pub(super) fn recorded_before(&self, key: &Digest, step: &RunStep) -> Stepped<()> {
        self.pin(&self.kept(key, step)?);
        Ok(())
    }

    /// Whether what a step gave is made of what is pinned now: since then somebody may have taken what a URL has now.
    pub(super) fn is_of_these_pins(&self, key: &Digest, step: &RunStep) -> Stepped<bool> {
        let kept = self.kept(key, step)?;
        let lock = held(&self.lock);
        Ok(kept.iter().all(|(asked, said)| lock.recorded.get(asked).is_none_or(|pinned| pinned == said)))
    }

    fn kept(&self, key: &Digest, step: &RunStep) -> Stepped<BTreeMap<Asked, Recorded>> {
        if step.network != Network::Recorded {
            return Ok(BTreeMap::new());
        }
        let record = self.builder.store.action(&name(key))?;
        let kept = record.and_then(|record| serde_json::from_slice(&record).ok());
        Ok(kept.map(|Kept { recorded }| recorded.into_iter().collect()).unwrap_or_default())
    }
}

/// A step with all that it is told of its proxy. What it says itself counts.
fn behind(step: &RunStep, told: &Told) -> RunStep {
    let mut step = step.clone();
    step.proxy = Some(told.socket.clone());
    for (name, value) in &told.env {
        if !step.env.iter().any(|(own, _)| own == name) {
            step.secrets.push(((*name).to_owned(), Secret::new(value.as_str())));
        }
    }
    for (path, content) in &told.files {
        let source = StepSource::Secret { value: Secret::new(content.as_str()), mode: 0o444, owner: (0, 0) };
        step.mounts.push(StepMount { target: (*path).to_owned(), source, read_only: true });
    }
    step
}

/// What no URL may hold.
fn secrets(step: &RunStep) -> Vec<Secret> {
    let mounted = step.mounts.iter().filter_map(|mount| match &mount.source {
        StepSource::Secret { value, .. } => Some(value.clone()),
        _ => None,
    });
    step.secrets.iter().map(|(_, value)| value.clone()).chain(mounted).collect()
}
