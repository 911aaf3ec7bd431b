//! Gives instructions their meaning: from stages to layers and configuration.
//!
//! Only what the wanted stage needs is built. An instruction that makes a layer is a step: it has a key (see `keys`), and it is carried
//! out only where nothing is remembered under that key. What a step needs (files of the context, headers of layers, unpacked
//! layers) is looked at as late as possible, so that a build of which everything is remembered looks at the context and at nothing else.

mod keys;
mod mounts;
mod scope;
mod steps;
mod urls;

pub(super) use keys::read as recorded;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use jiji_model::digest::Digest;
use jiji_model::event::Record;
use jiji_model::image::Platform;
use jiji_store::Layer;
use serde_json::{Value, json};

use super::contents::Contents;
use super::dockerfile::{self, Command, Dockerfile, Environment, Instruction, Kind, Pair, Position, Word, expand};
use super::error::{BuildError, StepError};
use super::image::Draft;
use super::layer::TarPath;
use super::rootfs::Tree;
use super::{BuildRequest, Builder, Steps};
use crate::lockfile::BuildSection;

use scope::{Globals, PREDEFINED, Scope};

/// The shell of instructions in shell form, where SHELL says no other.
const SHELL: [&str; 2] = ["/bin/sh", "-c"];

/// A build under way.
pub(super) struct Evaluation<'a> {
    builder: &'a Builder<'a>,
    request: &'a BuildRequest,
    file: &'a Dockerfile,
    globals: Globals,
    lock: &'a mut BuildSection,
    /// Stages that are done.
    stages: BTreeMap<usize, Rc<Done>>,
    /// The context, once something was copied from it.
    context: Option<(Tree, Contents)>,
    /// Names that triggers of base images declare.
    trigger_args: BTreeSet<String>,
    /// RUN steps gone through, and what they gave.
    pub(super) runs: BTreeMap<Digest, Digest>,
    /// Counts.
    pub(super) steps: Steps,
    /// What is made of what was done before.
    memory: Memory<'a>,
    /// The steps gone through, in their order.
    pub(super) trace: Vec<Traced>,
}

/// What a build makes of what was done before.
#[derive(Debug, Clone, Copy)]
pub(super) enum Memory<'a> {
    /// What is remembered is not done again.
    Use,
    /// All is done again, and remembered.
    Renew,
    /// All is done again and compared with these steps, each on top of what was there below them. Nothing is remembered.
    Compare(&'a [Traced]),
}

/// A step that was gone through.
#[derive(Debug, Clone)]
pub(super) struct Traced {
    pub(super) at: Position,
    pub(super) text: String,
    pub(super) is_run: bool,
    /// What it gave now.
    pub(super) layer: Option<Layer>,
}

/// A stage that is done.
#[derive(Clone)]
struct Done {
    draft: Draft,
    /// Its variables, which a stage that begins from it sees.
    scope: Scope,
}

/// A stage under way.
struct State {
    draft: Draft,
    scope: Scope,
    /// Whether CMD was set in this stage: an ENTRYPOINT forgets the base image's.
    cmd_here: bool,
}

impl Done {
    fn begin(draft: Draft) -> Self {
        Self { scope: Scope::with_env(draft.env()), draft }
    }
}

impl State {
    fn shell(&self) -> Vec<String> {
        let own = self.draft.texts("Shell").filter(|shell| !shell.is_empty());
        own.unwrap_or_else(|| SHELL.map(str::to_owned).to_vec())
    }

    /// A command in its exec form.
    fn argv(&self, command: &Command) -> Vec<String> {
        match command {
            Command::Exec(list) => list.clone(),
            Command::Shell(text) => self.shell().into_iter().chain([text.clone()]).collect(),
        }
    }

    fn workdir(&self) -> TarPath {
        TarPath::normal(self.draft.text("WorkingDir"))
    }
}

type Result<T> = std::result::Result<T, BuildError>;

impl<'a> Evaluation<'a> {
    pub(super) fn new(
        builder: &'a Builder<'a>,
        request: &'a BuildRequest,
        file: &'a Dockerfile,
        lock: &'a mut BuildSection,
        memory: Memory<'a>,
    ) -> Result<Self> {
        let mut globals = Globals::new(&request.platform, request.stage.as_deref(), &request.args);
        for instruction in &file.globals {
            let Kind::Arg(declarations) = &instruction.kind else { continue };
            for declaration in declarations {
                globals.declare(declaration, file.escape).map_err(|problem| error(file, declaration.at, problem))?;
            }
        }
        Ok(Self {
            builder,
            request,
            file,
            globals,
            lock,
            stages: BTreeMap::new(),
            context: None,
            trigger_args: BTreeSet::new(),
            runs: BTreeMap::new(),
            steps: Steps::default(),
            memory,
            trace: Vec::new(),
        })
    }

    /// Builds the stage that is wanted.
    pub(super) fn target(&mut self) -> Result<Draft> {
        let stage = match &self.request.stage {
            None => self.file.stages.len() - 1,
            Some(name) => self.stage_named(name, self.file.stages.len()).ok_or_else(|| BuildError::UnknownStage {
                name: name.clone(),
                dockerfile: self.file.text.name.clone(),
            })?,
        };
        let done = self.stage(stage)?;
        if let Some((_, contents)) = &mut self.context {
            contents.remember()?;
        }
        Ok(Rc::unwrap_or_clone(done).draft)
    }

    /// Names of arguments that were given and that no ARG declares: of the file, or of a trigger that was carried out.
    pub(super) fn undeclared(&self) -> Vec<&'a str> {
        let stages = self.file.stages.iter().flat_map(|stage| &stage.instructions);
        let declared: BTreeSet<&str> = stages
            .chain(&self.file.globals)
            .filter_map(|instruction| match &instruction.kind {
                Kind::Arg(declarations) => Some(declarations),
                _ => None,
            })
            .flatten()
            .map(|declaration| declaration.name.as_str())
            .chain(self.trigger_args.iter().map(String::as_str))
            .collect();
        let given = self.request.args.keys().map(String::as_str);
        given.filter(|name| !declared.contains(name) && !PREDEFINED.contains(name)).collect()
    }

    /// The number of a stage before `before`, by name or number.
    fn stage_named(&self, name: &str, before: usize) -> Option<usize> {
        let named = self.file.stages[..before]
            .iter()
            .rposition(|stage| stage.from.name.as_deref().is_some_and(|own| own.eq_ignore_ascii_case(name)));
        named.or_else(|| name.parse().ok().filter(|number| *number < before))
    }

    fn stage(&mut self, number: usize) -> Result<Rc<Done>> {
        if let Some(done) = self.stages.get(&number) {
            return Ok(Rc::clone(done));
        }
        let file = self.file;
        let stage = &file.stages[number];
        let Done { mut draft, scope } = self.base(number)?;
        let triggers = self.triggers(stage, draft.take_triggers())?;
        let mut state = State { draft, scope, cmd_here: false };
        for instruction in triggers.iter().chain(&stage.instructions) {
            self.instruction(number, instruction, &mut state)?;
        }
        let done = Rc::new(Done { draft: state.draft, scope: state.scope });
        self.stages.insert(number, Rc::clone(&done));
        Ok(done)
    }

    /// What a stage begins from.
    fn base(&mut self, number: usize) -> Result<Done> {
        let file = self.file;
        let from = &file.stages[number].from;
        let replaced = |word: &Word| {
            expand(&word.text, file.escape, &self.globals).map_err(|problem| error(file, word.at, problem))
        };
        let name = replaced(&from.base)?;
        let platform = match &from.platform {
            None => self.request.platform.clone(),
            Some(word) => dockerfile::platform(&replaced(word)?).map_err(|problem| error(file, word.at, problem))?,
        };
        if name == "scratch" {
            return Ok(Done::begin(Draft::scratch(platform)));
        }
        // By name alone: a number is an image's name here.
        let stage = file.stages[..number]
            .iter()
            .rposition(|stage| stage.from.name.as_deref().is_some_and(|own| own.eq_ignore_ascii_case(&name)));
        if let Some(stage) = stage {
            let mut done = Rc::unwrap_or_clone(self.stage(stage)?);
            // As in BuildKit, what a stage of this file says with ONBUILD is for images that begin from the finished one.
            done.draft.take_triggers();
            return Ok(done);
        }
        let draft = self.image(&name, &platform);
        draft.map(Done::begin).map_err(|cause| step_error(file, from.base.at, "FROM", cause))
    }

    /// The instructions that a base image has for those who begin from it.
    fn triggers(&mut self, stage: &dockerfile::Stage, texts: Vec<String>) -> Result<Vec<Instruction>> {
        let at = stage.from.base.at;
        let read = |text: &String| dockerfile::trigger(text, at).map_err(|problem| error(self.file, at, problem));
        let triggers = texts.iter().map(read).collect::<Result<Vec<_>>>()?;
        for trigger in &triggers {
            if let Kind::Arg(declarations) = &trigger.kind {
                self.trigger_args.extend(declarations.iter().map(|declaration| declaration.name.clone()));
            }
        }
        Ok(triggers)
    }

    /// An image of a registry, by a digest that the reference or the lock says.
    fn image(&mut self, name: &str, platform: &Platform) -> std::result::Result<Draft, StepError> {
        let image = self.builder.image(name, platform, self.request.locked, self.lock)?;
        Ok(Draft::from_base(&image, self.builder.store)?)
    }

    fn instruction(&mut self, stage: usize, instruction: &Instruction, state: &mut State) -> Result<()> {
        let file = self.file;
        let failed = |cause: StepError| step_error(file, instruction.at, instruction.name, cause);
        let layer = match &instruction.kind {
            Kind::Run(run) => {
                let planned = self.mounts(stage, instruction, run, state)?;
                Some(self.run(instruction, run, planned, state).map_err(failed)?)
            }
            Kind::Copy(copy) => Some(self.copy(stage, instruction, copy, state)?),
            Kind::Workdir(word) => {
                let path = self.expand(word, &state.scope)?;
                Some(self.workdir(instruction, &path, state).map_err(failed)?)
            }
            _ => {
                self.configure(instruction, state)?;
                None
            }
        };
        match layer {
            Some(layer) => state.draft.record(&instruction.text, layer),
            // An ARG is the build's and no part of the image.
            None if matches!(instruction.kind, Kind::Arg(_)) => {}
            None => state.draft.record(&instruction.text, None),
        }
        Ok(())
    }

    /// An instruction that changes the configuration and makes no layer.
    fn configure(&mut self, instruction: &Instruction, state: &mut State) -> Result<()> {
        let file = self.file;
        match &instruction.kind {
            Kind::Arg(declarations) => {
                for declaration in declarations {
                    let value = self.globals.value(declaration, file.escape, &state.scope);
                    let value = value.map_err(|problem| error(file, declaration.at, problem))?;
                    state.scope.declare(&declaration.name, value);
                }
            }
            Kind::Env(pairs) => {
                // All values see what was set before the instruction, none what it sets itself.
                for (name, value) in self.pairs(pairs, &state.scope)? {
                    state.scope.set_env(&name, &value);
                    state.draft.set_env(&name, &value);
                }
            }
            Kind::Label(pairs) => {
                for (name, value) in self.pairs(pairs, &state.scope)? {
                    state.draft.set_in("Labels", &name, json!(value));
                }
            }
            Kind::User(word) => {
                let user = self.expand(word, &state.scope)?;
                state.draft.config.insert("User".to_owned(), json!(user));
            }
            Kind::StopSignal(word) => {
                let signal = self.expand(word, &state.scope)?;
                state.draft.config.insert("StopSignal".to_owned(), json!(signal));
            }
            Kind::Expose(words) => {
                for word in words {
                    let ports = dockerfile::expand_words(&word.text, file.escape, &state.scope);
                    for text in ports.map_err(|problem| error(file, word.at, problem))? {
                        for port in steps::ports(&text).map_err(|problem| error(file, word.at, problem))? {
                            state.draft.set_in("ExposedPorts", &port, json!({}));
                        }
                    }
                }
            }
            Kind::Volume(words) => {
                for word in words {
                    let path = self.expand(word, &state.scope)?;
                    state.draft.set_in("Volumes", &path, json!({}));
                }
            }
            Kind::Maintainer(name) => state.draft.set_author(name),
            Kind::Cmd(command) => {
                let argv = state.argv(command);
                state.draft.config.insert("Cmd".to_owned(), json!(argv));
                state.cmd_here = true;
            }
            Kind::Entrypoint(command) => {
                let argv = state.argv(command);
                state.draft.config.insert("Entrypoint".to_owned(), json!(argv));
                if !state.cmd_here {
                    state.draft.config.remove("Cmd");
                }
            }
            Kind::Shell(shell) => {
                state.draft.config.insert("Shell".to_owned(), json!(shell));
            }
            Kind::Healthcheck(check) => {
                let check = steps::healthcheck(check.as_ref(), state);
                state.draft.config.insert("Healthcheck".to_owned(), check);
            }
            Kind::Onbuild(text) => state.draft.add_trigger(text),
            Kind::Run(_) | Kind::Copy(_) | Kind::Workdir(_) => {}
        }
        Ok(())
    }

    fn expand(&self, word: &Word, environment: &dyn Environment) -> Result<String> {
        expand(&word.text, self.file.escape, environment).map_err(|problem| error(self.file, word.at, problem))
    }

    fn pairs(&self, pairs: &[Pair], scope: &Scope) -> Result<Vec<(String, String)>> {
        pairs.iter().map(|pair| Ok((self.expand(&pair.name, scope)?, self.expand(&pair.value, scope)?))).collect()
    }

    fn tell(&self, event: &str, text: String, data: Value) {
        // Whoever compares has seen all this once.
        if !matches!(self.memory, Memory::Compare(_)) || event == "build.checked" {
            let record = Record::new(event, text).service(&self.request.target.service).with(data);
            self.builder.events.emit(record);
        }
    }

    /// What the step of this key gave, if what is remembered counts.
    fn recall(&self, key: &Digest) -> std::result::Result<Option<Option<Layer>>, StepError> {
        match self.memory {
            Memory::Use => Ok(keys::recall(key, self.builder.store)?),
            Memory::Renew | Memory::Compare(_) => Ok(None),
        }
    }

    fn remember(&self, key: &Digest, layer: Option<&Layer>) -> std::result::Result<(), StepError> {
        match self.memory {
            Memory::Use | Memory::Renew => Ok(keys::remember(key, layer, self.builder.store)?),
            Memory::Compare(_) => Ok(()),
        }
    }

    /// Counts a step, says that it is done, and gives the layer that what comes after it is built upon.
    fn done(&mut self, instruction: &Instruction, cached: bool, layer: Option<Layer>) -> Option<Layer> {
        self.steps.total += 1;
        let at = self.trace.len();
        self.trace.push(Traced {
            at: instruction.at,
            text: instruction.text.clone(),
            is_run: matches!(instruction.kind, Kind::Run(_)),
            layer: layer.clone(),
        });
        if let Memory::Compare(before) = self.memory {
            let Some(Traced { layer: due, .. }) = before.get(at) else { return layer };
            let same = due.as_ref().map(|layer| layer.diff_id) == layer.as_ref().map(|layer| layer.diff_id);
            let first = instruction.text.lines().next().unwrap_or_default();
            let text = format!("{} {first}", if same { "the same again:" } else { "differs:" });
            self.tell("build.checked", text, json!({"number": self.steps.total, "same": same}));
            return due.clone();
        }
        self.steps.cached += u32::from(cached);
        let how = if cached { " (cached)" } else { "" };
        let first = instruction.text.lines().next().unwrap_or_default();
        let data = json!({
            "number": self.steps.total,
            "instruction": instruction.text,
            "line": instruction.at.line,
            "cached": cached,
            "diff_id": layer.as_ref().map(|layer| layer.diff_id),
            "size": layer.as_ref().map(|layer| layer.blob.size),
        });
        self.tell("build.step", format!("{first}{how}"), data);
        layer
    }
}

fn error(file: &Dockerfile, at: Position, problem: dockerfile::Problem) -> BuildError {
    BuildError::Dockerfile(Box::new(file.text.error(at, problem)))
}

fn step_error(file: &Dockerfile, at: Position, instruction: &'static str, cause: StepError) -> BuildError {
    BuildError::Step { place: Box::new(file.text.place(at)), instruction, cause: Box::new(cause) }
}
