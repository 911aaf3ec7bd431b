//! `RUN --mount`: what a step finds besides the image, and what of it is in the step's key.
//!
//! Files of the context are mounted as COPY would copy them, and files of stages by the layers they are in, so a key can name them by
//! content. A secret is in a key by its name alone, a cache by its name alone: with either a step must give the same whatever
//! it finds there.

use std::path::Path;

use jiji_store::{CacheUse, Layer};
use serde_json::{Value, json};

use super::explain::Parts;
use super::steps::{Opened, Stepped, digest_of};
use super::{Evaluation, Result, State, error, keys, step_error};
use crate::build::context::Root;
use crate::build::copy::{self, Choice, Ownership, Selected, Source};
use crate::build::dockerfile::{
    self, Instruction, Mount, MountKind, Position, Problem, Run, RunNetwork, Sharing, expand,
};
use crate::build::error::StepError;
use crate::build::execute::{RunStep, StepMount, StepSource};
use crate::build::layer::TarPath;
use crate::build::rootfs::{Content, Tree};
use crate::build::write::write_layer;

/// The variable that says where an agent's socket is.
const AGENT: &str = "SSH_AUTH_SOCK";

/// The most that a secret or a script may hold, in bytes.
const FILE_LIMIT: usize = 1 << 20;

/// The mounts of a RUN, as far as its key needs them.
pub(super) struct Planned {
    mounts: Vec<(String, bool, PlannedSource)>,
    /// Variables that are secrets.
    secrets: Vec<(String, jiji_model::secret::Secret)>,
    /// Where the first socket of an agent goes.
    agent: Option<String>,
    /// What the key says of them.
    pub(super) key: Vec<Value>,
}

enum PlannedSource {
    /// Files of the context.
    Context { selected: Vec<Selected>, path: String },
    /// Anything else.
    Ready(StepSource),
}

impl Planned {
    /// What a key says of them: what is mounted where, and of files of the context which.
    pub(super) fn parts(&self, parts: &mut Parts) {
        for mount in &self.key {
            let target = mount.pointer("/mount/target").or_else(|| mount.get("target"));
            let name = format!("mount {}", target.and_then(Value::as_str).unwrap_or_default());
            let mut rest = mount.clone();
            if let Some(rest) = rest.as_object_mut() {
                rest.remove("taken");
            }
            parts.hide(&name, &rest);
        }
        for (_, _, source) in &self.mounts {
            if let PlannedSource::Context { selected, .. } = source {
                parts.files(keys::files(selected, &digest_of));
            }
        }
    }
}

impl Evaluation<'_> {
    /// Reads the mounts of a RUN, and builds the stages that they are from.
    pub(super) fn mounts(&self, instruction: &Instruction, run: &Run, state: &State<'_>) -> Result<Planned> {
        let file = self.file;
        let mut planned = Planned { mounts: Vec::new(), secrets: Vec::new(), agent: None, key: Vec::new() };
        for word in &run.mounts {
            let mount = dockerfile::mount(&word.text, &|text| expand(text, file.escape, &state.scope));
            let mount = mount.map_err(|problem| error(file, word.at, problem))?;
            self.plan_mount((instruction, run), word.at, mount, state, &mut planned)?;
        }
        if let (Some((_, text)), dockerfile::Command::Shell(path)) = (&run.script, &run.command) {
            planned.key.push(json!({"type": "script", "target": path, "content": text}));
            let source = PlannedSource::Ready(StepSource::Script(text.clone()));
            planned.mounts.push((path.clone(), true, source));
        }
        Ok(planned)
    }

    fn plan_mount(
        &self,
        (instruction, run): (&Instruction, &Run),
        at: Position,
        mount: Mount,
        state: &State<'_>,
        planned: &mut Planned,
    ) -> Result<()> {
        let Mount { target, read_only, kind } = mount;
        let file = self.file;
        let failed = |cause: StepError| step_error(file, at, instruction.name, cause);
        let target = match &kind {
            // As in BuildKit (sshprovider.go): the first is agent.0, and so on.
            MountKind::Ssh { .. } if target.is_empty() => {
                let others = planned.key.iter().filter(|mount| mount["type"] == "ssh").count();
                format!("/run/buildkit/ssh_agent.{others}")
            }
            _ => target,
        };
        let target = if target.starts_with('/') { target } else { format!("{}/{target}", state.workdir()) };
        let target = TarPath::normal(target).to_string();
        let rest = json!({"target": target, "read-only": read_only});
        let source = match kind {
            MountKind::Bind { from: None, source } => {
                let (selected, taken) = self.selected(&source).map_err(failed)?;
                planned.key.push(json!({"type": "context", "source": source, "taken": taken, "mount": rest}));
                PlannedSource::Context { selected, path: source }
            }
            MountKind::Bind { from: Some(name), source } => {
                let from = self.from(&name, state, failed)?;
                let diff_ids: Vec<_> = from.layers.iter().map(|layer| layer.diff_id).collect();
                planned.key.push(json!({"type": "layers", "layers": diff_ids, "source": source, "mount": rest}));
                PlannedSource::Ready(StepSource::Layers {
                    layers: self.at_least_one(from.layers).map_err(failed)?,
                    path: source,
                })
            }
            MountKind::Cache { from, id, sharing, mode, owner } => {
                let mut key = json!({"type": "cache", "id": id, "mode": mode, "owner": owner, "mount": rest});
                let from = match from {
                    None => None,
                    Some((name, source)) => {
                        let from = self.from(&name, state, failed)?;
                        let diff_ids: Vec<_> = from.layers.iter().map(|layer| layer.diff_id).collect();
                        key["from"] = json!({"layers": diff_ids, "source": source});
                        Some((self.at_least_one(from.layers).map_err(failed)?, source))
                    }
                };
                planned.key.push(key);
                let sharing = match sharing {
                    Sharing::Shared => CacheUse::Shared,
                    Sharing::Private => CacheUse::Private,
                    Sharing::Locked => CacheUse::Locked,
                };
                PlannedSource::Ready(StepSource::Cache { id, from, sharing, mode, owner })
            }
            MountKind::Ssh { id, required, mode, owner } => {
                if run.network != RunNetwork::Default {
                    let reason = "a key is of use on a network: `RUN --network=default`";
                    let problem = Problem::Mount { option: "type=ssh".to_owned(), reason };
                    return Err(error(file, at, problem));
                }
                let socket = self.request.ssh.get(&id).cloned();
                planned.key.push(json!({
                    "type": "ssh", "id": id, "mode": mode, "owner": owner, "given": socket.is_some(), "mount": rest,
                }));
                let Some(socket) = socket else {
                    if required {
                        return Err(failed(StepError::Agent { id }));
                    }
                    return Ok(());
                };
                if planned.agent.is_none() {
                    planned.agent = Some(target.clone());
                }
                PlannedSource::Ready(StepSource::Agent { socket, mode, owner })
            }
            MountKind::Tmpfs { size } => {
                planned.key.push(json!({"type": "tmpfs", "size": size, "mount": rest}));
                PlannedSource::Ready(StepSource::Memory { size })
            }
            MountKind::Secret { id, env, file: as_file, required, mode, owner } => {
                let value = self.request.secrets.get(&id).cloned();
                planned.key.push(json!({
                    "type": "secret", "id": id, "env": env, "file": as_file, "mode": mode, "owner": owner,
                    "given": value.is_some(), "mount": rest,
                }));
                let Some(value) = value else {
                    if required {
                        return Err(failed(StepError::Secret { id }));
                    }
                    return Ok(());
                };
                if value.reveal().len() > FILE_LIMIT {
                    return Err(failed(StepError::LargeSecret { id }));
                }
                planned.secrets.extend(env.map(|name| (name, value.clone())));
                if !as_file {
                    return Ok(());
                }
                PlannedSource::Ready(StepSource::Secret { value, mode, owner })
            }
        };
        planned.mounts.push((target, read_only, source));
        Ok(())
    }

    /// What a bind mount shows of the context, and what a key says of it.
    fn selected(&self, source: &str) -> Stepped<(Vec<Selected>, Value)> {
        let path = if source.is_empty() { "." } else { source };
        let selected = self.select(&[Source::Path(path.to_owned())], &Choice::default())?;
        let taken = keys::value(keys::selected(&selected, &digest_of));
        Ok((selected, taken))
    }

    /// Makes the mounts ready for a step that is about to run.
    pub(super) fn mount(&self, planned: Planned, step: &mut RunStep, below: &Tree) -> Stepped<()> {
        for (target, read_only, source) in planned.mounts {
            let target = below.resolve(&TarPath::normal(&target)).map_err(copy::CopyError::from)?.to_string();
            let source = match source {
                PlannedSource::Ready(source) => source,
                PlannedSource::Context { selected, path } => self.context_layer(&selected, &path)?,
            };
            step.mounts.push(StepMount { target, source, read_only });
        }
        step.secrets.extend(planned.secrets);
        if let Some(socket) = planned.agent.filter(|_| !step.env.iter().any(|(name, _)| name == AGENT)) {
            step.env.push((AGENT.to_owned(), socket));
        }
        Ok(())
    }

    /// Files of the context as a layer of their own, and where in it they are.
    fn context_layer(&self, selected: &[Selected], path: &str) -> Stepped<StepSource> {
        let file = selected.iter().all(|one| !one.top.is_directory());
        let layer = self.files_layer(selected, &self.request.context)?;
        let name = TarPath::normal(path).name().to_vec();
        let path = if file { TarPath::root().join(&name).to_string() } else { "/".to_owned() };
        Ok(StepSource::Layers { layers: vec![layer], path })
    }

    /// Files of a directory as a layer of their own, in which they lie as COPY would lay them.
    pub(super) fn files_layer(&self, selected: &[Selected], root: &Path) -> Stepped<Layer> {
        let (store, epoch) = (self.builder.store, self.request.epoch);
        let entries = copy::place(selected, "/", &TarPath::root(), &Ownership::default(), &Tree::default())?;
        let by_entries = keys::entries(&entries, epoch, &digest_of);
        match self.recall_one(&by_entries)?.flatten() {
            Some(layer) => Ok(layer),
            None => {
                let root = Root::new(root);
                let open = |content: &Content, _: u64| -> std::io::Result<Opened> {
                    match content {
                        Content::Context(file) => Ok(Box::new(root.open(&file.path)?.0)),
                        _ => Ok(Box::new(std::io::empty())),
                    }
                };
                let layer = write_layer(&entries, self.request.form(), store, &digest_of, &open)?;
                self.remember_entries(&entries, &by_entries, &layer)?;
                Ok(layer)
            }
        }
    }

    /// The layers, or one that holds nothing.
    fn at_least_one(&self, layers: Vec<Layer>) -> Stepped<Vec<Layer>> {
        if !layers.is_empty() {
            return Ok(layers);
        }
        let (store, request) = (self.builder.store, self.request);
        let nothing = |_: &Content, _: u64| -> std::io::Result<Opened> { Ok(Box::new(std::io::empty())) };
        let layer = write_layer(&Default::default(), request.form(), store, &|_| None, &nothing)?;
        Ok(vec![layer])
    }
}
