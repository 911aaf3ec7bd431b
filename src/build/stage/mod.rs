//! Gives instructions their meaning: from stages to layers and configuration.
//!
//! Only what the wanted stage needs is built. An instruction that makes a layer is a step: it has a key (see `keys`), and it is carried
//! out only where nothing is remembered under that key. What a step needs (files of the context, headers of layers, unpacked
//! layers) is looked at as late as possible, so that a build of which everything is remembered looks at the context and at nothing else.
//!
//! Stages that do not need each other are carried out side by side (see `schedule`). What they share is behind locks here.

mod explain;
mod keys;
mod mounts;
mod named;
mod recorded;
mod repositories;
mod schedule;
mod scope;
mod steps;
pub(super) mod turns;
mod unseen;
mod urls;

pub(super) use explain::is_record;
pub(super) use keys::read as result;
pub(super) use recorded::is_record as is_recording;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use jiji_model::digest::Digest;
use jiji_model::event::Record;
use jiji_model::image::Platform;
use jiji_sandbox::Canceller;
use jiji_store::Layer;
use serde_json::{Value, json};

use super::contents::Contents;
use super::dockerfile::{self, Command, Dockerfile, Environment, Instruction, Kind, Pair, Position, Word, expand};
use super::error::{BuildError, StepError};
use super::image::Draft;
use super::layer::{self, TarPath};
use super::rootfs::{Layers, Tree};
use super::{BuildRequest, Builder, ServiceImage, Steps};
use crate::lockfile::{Asked, BuildSection, Recorded};
use jiji_model::project::NamedContext;

use explain::{Courses, Parts};
use schedule::{Needs, Schedule};
use scope::{Globals, PREDEFINED, Scope};
use turns::{Turns, held};

/// The shell of instructions in shell form, where SHELL says no other.
const SHELL: [&str; 2] = ["/bin/sh", "-c"];

/// A build under way.
pub(super) struct Evaluation<'a> {
    builder: &'a Builder<'a>,
    request: &'a BuildRequest,
    file: &'a Dockerfile,
    globals: Globals,
    lock: Mutex<&'a mut BuildSection>,
    schedule: Schedule,
    /// The context, once something was copied from it.
    context: Mutex<Option<(Tree, Contents)>>,
    /// Images and URLs that are being looked for.
    asked: Turns<String>,
    /// RUN steps under way.
    running: Turns<Digest>,
    /// RUN steps that were carried out or taken, by their keys.
    ran: Mutex<BTreeMap<Digest, Option<Layer>>>,
    /// What steps that are recorded asked for in this build, by their keys.
    recordings: Mutex<BTreeMap<Digest, BTreeMap<Asked, Recorded>>>,
    /// What is made of what was done before.
    memory: Memory<'a>,
    /// Steps that are done, over all stages.
    steps: Mutex<Steps>,
    /// The keys that steps had in the build before, and have now.
    courses: Mutex<Courses>,
    /// By stage, once it is done.
    over: Mutex<BTreeMap<usize, Over>>,
}

/// What a build makes of what was done before.
#[derive(Debug, Clone, Copy)]
pub(super) enum Memory<'a> {
    /// What is remembered is not done again.
    Use,
    /// All is done again, and remembered.
    Renew,
    /// All is done again and compared with the steps of these stages, each on top of what was there below them. Nothing is remembered.
    Compare(&'a BTreeMap<usize, Vec<Traced>>),
}

/// A step that was gone through.
#[derive(Debug, Clone)]
pub(super) struct Traced {
    pub(super) at: Position,
    pub(super) text: String,
    pub(super) is_run: bool,
    /// What it gave now, lowest first.
    pub(super) layers: Vec<Layer>,
}

/// What is left of a stage besides what others take from it.
#[derive(Debug, Default)]
struct Over {
    trace: Vec<Traced>,
    /// Names that triggers of its base image declare.
    trigger_args: BTreeSet<String>,
}

/// What a build came to.
pub(super) struct Outcome {
    pub(super) draft: Draft,
    /// The steps gone through, by stage.
    pub(super) trace: BTreeMap<usize, Vec<Traced>>,
    /// RUN steps gone through, and what they gave.
    pub(super) runs: BTreeMap<Digest, Digest>,
    pub(super) steps: Steps,
    /// Names of arguments that were given and that no ARG declares.
    pub(super) undeclared: Vec<String>,
}

/// A stage that is done.
#[derive(Clone)]
struct Done {
    draft: Draft,
    /// Its variables, which a stage that begins from it sees.
    scope: Scope,
}

/// A stage under way.
struct State<'a> {
    number: usize,
    canceller: &'a Canceller,
    draft: Draft,
    scope: Scope,
    /// Whether CMD was set in this stage: an ENTRYPOINT forgets the base image's.
    cmd_here: bool,
    /// What people call it: its name, or its number where there are several.
    label: String,
    /// Layers of its base.
    base: usize,
    /// Steps that it has.
    of: usize,
    trace: Vec<Traced>,
}

/// What a step gave, and whether that was known before.
struct Given {
    /// Lowest first; several of a COPY that is packed alone.
    layers: Vec<Layer>,
    cached: bool,
}

impl Given {
    fn one(layer: Option<Layer>, cached: bool) -> Self {
        Self { layers: layer.into_iter().collect(), cached }
    }
}

impl Done {
    fn begin(draft: Draft) -> Self {
        Self { scope: Scope::with_env(draft.env()), draft }
    }
}

impl State<'_> {
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

    /// Where the build is, for people: stage, step, of how many.
    fn place(&self) -> String {
        let step = self.trace.len() + 1;
        let label = if self.label.is_empty() { String::new() } else { format!("{} ", self.label) };
        format!("[{label}{step}/{}]", self.of)
    }

    /// The same for programs.
    fn whereabouts(&self, instruction: &Instruction) -> Value {
        json!({"stage": self.label, "step": self.trace.len() + 1, "of": self.of, "line": instruction.at.line})
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
        let needs = (0..file.stages.len()).map(|number| needs(file, &globals, number, &request.contexts)).collect();
        Ok(Self {
            builder,
            request,
            file,
            globals,
            lock: Mutex::new(lock),
            schedule: Schedule::new(needs, request.threads),
            context: Mutex::default(),
            asked: Turns::default(),
            running: Turns::default(),
            ran: Mutex::default(),
            recordings: Mutex::default(),
            memory,
            steps: Mutex::default(),
            courses: Mutex::new(Courses::read(&format!("{}@{}", request.repository, request.target), builder.store)?),
            over: Mutex::default(),
        })
    }

    /// Builds the stage that is wanted, and those that it needs.
    pub(super) fn target(self) -> Result<Outcome> {
        let stage = wanted(self.file, self.request)?;
        let done = self.schedule.run(stage, &|number, canceller| self.stage(number, canceller));
        if !matches!(self.memory, Memory::Compare(_)) {
            held(&self.courses).keep(done.is_ok(), self.builder.store)?;
        }
        let done = done?;
        if let Some((_, contents)) = &mut *held(&self.context) {
            contents.remember()?;
        }
        let draft = self.compressed(done.draft.clone())?;
        let over = std::mem::take(&mut *held(&self.over));
        let (ran, steps) = (held(&self.ran), *held(&self.steps));
        Ok(Outcome {
            draft,
            undeclared: self.undeclared(&over),
            trace: over.into_iter().map(|(number, over)| (number, over.trace)).collect(),
            runs: ran.iter().map(|(key, layer)| (*key, steps::diff_id(layer.as_ref()))).collect(),
            steps,
        })
    }

    /// The image with its own layers compressed as it is wanted: what is remembered of an earlier build may be compressed otherwise.
    fn compressed(&self, mut draft: Draft) -> Result<Draft> {
        let (store, form) = (self.builder.store, self.request.form());
        for layer in draft.own_mut().iter_mut().filter(|own| own.blob.media_type != form.compression.media_type()) {
            let known = store.layer(&layer.diff_id, layer::codec(form.compression))?;
            *layer = match known {
                Some(known) => known,
                None => {
                    let text = format!("compressing {} with {}", layer.diff_id.short(), form.compression);
                    self.tell("build.compress", text, json!({"diff_id": layer.diff_id, "size": layer.blob.size}));
                    let mut tar = Layers::new(store).open(&layer.blob)?;
                    layer::recompress(&mut tar, &layer.diff_id, form, store)?
                }
            };
        }
        Ok(draft)
    }

    /// Names of arguments that were given and that no ARG declares: of the file, or of a trigger that was carried out.
    fn undeclared(&self, over: &BTreeMap<usize, Over>) -> Vec<String> {
        let stages = self.file.stages.iter().flat_map(|stage| &stage.instructions);
        let declared: BTreeSet<&str> = stages
            .chain(&self.file.globals)
            .filter_map(|instruction| match &instruction.kind {
                Kind::Arg(declarations) => Some(declarations),
                _ => None,
            })
            .flatten()
            .map(|declaration| declaration.name.as_str())
            .chain(over.values().flat_map(|over| &over.trigger_args).map(String::as_str))
            .collect();
        let given = self.request.args.keys().map(String::as_str);
        given.filter(|name| !declared.contains(name) && !PREDEFINED.contains(name)).map(str::to_owned).collect()
    }

    /// Carries out a stage.
    fn stage(&self, number: usize, canceller: &Canceller) -> Result<Done> {
        let file = self.file;
        let stage = &file.stages[number];
        let Done { mut draft, scope } = self.base(number)?;
        let (triggers, trigger_args) = self.triggers(stage, draft.take_triggers())?;
        let instructions = || triggers.iter().chain(&stage.instructions);
        let label = match &stage.from.name {
            Some(name) => name.clone(),
            None if file.stages.len() == 1 => String::new(),
            None => number.to_string(),
        };
        let of = instructions().filter(|instruction| instruction.is_step()).count();
        let base = draft.layers.len();
        let mut state = State { number, canceller, draft, scope, cmd_here: false, label, base, of, trace: Vec::new() };
        for (at, instruction) in instructions().enumerate() {
            self.schedule.reach(number, schedule_place(at, triggers.len()))?;
            self.instruction(instruction, &mut state)?;
        }
        held(&self.over).insert(number, Over { trace: state.trace, trigger_args });
        Ok(Done { draft: state.draft, scope: state.scope })
    }

    /// What a stage begins from.
    fn base(&self, number: usize) -> Result<Done> {
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
        if from.service {
            let draft = self.service(&name, &platform);
            return draft.map(Done::begin).map_err(|cause| step_error(file, from.base.at, "FROM", cause));
        }
        if name == "scratch" {
            return Ok(Done::begin(Draft::scratch(platform)));
        }
        if let Some(context) = named::find(&self.request.contexts, &name) {
            let draft = self.named(&name, context, &platform);
            return draft.map(Done::begin).map_err(|cause| step_error(file, from.base.at, "FROM", cause));
        }
        if let Some(stage) = base_named(file, &name, number) {
            let mut done = Done::clone(&*self.schedule.stage(number, stage)?);
            // As in BuildKit, what a stage of this file says with ONBUILD is for images that begin from the finished one.
            done.draft.take_triggers();
            return Ok(done);
        }
        let draft = self.image(&name, &platform);
        draft.map(Done::begin).map_err(|cause| step_error(file, from.base.at, "FROM", cause))
    }

    /// The instructions that a base image has for those who begin from it, and the names that they declare.
    fn triggers(&self, stage: &dockerfile::Stage, texts: Vec<String>) -> Result<(Vec<Instruction>, BTreeSet<String>)> {
        let at = stage.from.base.at;
        let read = |text: &String| dockerfile::trigger(text, at).map_err(|problem| error(self.file, at, problem));
        let triggers = texts.iter().map(read).collect::<Result<Vec<_>>>()?;
        let mut names = BTreeSet::new();
        for trigger in &triggers {
            if let Kind::Arg(declarations) = &trigger.kind {
                names.extend(declarations.iter().map(|declaration| declaration.name.clone()));
            }
        }
        Ok((triggers, names))
    }

    /// The image of another service.
    fn service(&self, name: &str, platform: &Platform) -> std::result::Result<Draft, StepError> {
        match self.request.services.get(name) {
            Some(ServiceImage::Built(image)) => Ok(Draft::from_base(image, self.builder.store)?),
            Some(ServiceImage::Named(reference)) => self.image(reference, platform),
            None => Err(StepError::NoService { name: name.to_owned() }),
        }
    }

    /// An image of a registry, by a digest that the reference or the lock says.
    fn image(&self, name: &str, platform: &Platform) -> std::result::Result<Draft, StepError> {
        let image = self.asked.take(format!("{platform} {name}"), || {
            let known = BuildSection { bases: held(&self.lock).bases.clone(), ..BuildSection::default() };
            let mut section = known;
            let image = self.builder.image(name, platform, self.request.locked, &mut section)?;
            held(&self.lock).bases.append(&mut section.bases);
            Ok::<_, StepError>(image)
        })?;
        Ok(Draft::from_base(&image, self.builder.store)?)
    }

    fn instruction(&self, instruction: &Instruction, state: &mut State<'_>) -> Result<()> {
        let file = self.file;
        let failed = |cause: StepError| step_error(file, instruction.at, instruction.name, cause);
        let given = match &instruction.kind {
            Kind::Run(run) => {
                let planned = self.mounts(instruction, run, state)?;
                Some(self.run(instruction, run, planned, state).map_err(failed)?)
            }
            Kind::Copy(copy) => Some(self.copy(instruction, copy, state)?),
            Kind::Workdir(word) => {
                let path = self.expand(word, &state.scope)?;
                Some(self.workdir(instruction, &path, state).map_err(failed)?)
            }
            _ => {
                self.configure(instruction, state)?;
                None
            }
        };
        match given {
            Some(given) => {
                let layers = self.done(instruction, given, state);
                state.draft.record(&instruction.text, layers);
            }
            // An ARG is the build's and no part of the image.
            None if matches!(instruction.kind, Kind::Arg(_)) => {}
            None => state.draft.record(&instruction.text, Vec::new()),
        }
        Ok(())
    }

    /// An instruction that changes the configuration and makes no layer.
    fn configure(&self, instruction: &Instruction, state: &mut State<'_>) -> Result<()> {
        let file = self.file;
        match &instruction.kind {
            Kind::Arg(declarations) => {
                for declaration in declarations {
                    let value = self.globals.value(declaration, file.escape, &state.scope);
                    let value = value.map_err(|problem| error(file, declaration.at, problem))?;
                    state.scope.declare(declaration, value);
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
    fn recall(&self, key: &Digest) -> std::result::Result<Option<Vec<Layer>>, StepError> {
        match self.memory {
            Memory::Use => Ok(keys::recall(key, self.request.compression, self.builder.store)?),
            Memory::Renew | Memory::Compare(_) => Ok(None),
        }
    }

    /// The same of a step that gives one layer, or none where it changes nothing.
    fn recall_one(&self, key: &Digest) -> std::result::Result<Option<Option<Layer>>, StepError> {
        Ok(self.recall(key)?.map(|layers| layers.into_iter().next()))
    }

    fn remember(&self, key: &Digest, layers: &[Layer], parts: Option<Parts>) -> std::result::Result<(), StepError> {
        match self.memory {
            Memory::Use | Memory::Renew => Ok(keys::remember(key, layers, parts, self.builder.store)?),
            Memory::Compare(_) => Ok(()),
        }
    }

    /// Counts a step, says that it is done, and gives the layers that what comes after it is built upon.
    fn done(&self, instruction: &Instruction, given: Given, state: &mut State<'_>) -> Vec<Layer> {
        let Given { layers, cached } = given;
        let (place, mut data) = (state.place(), state.whereabouts(instruction));
        let at = state.trace.len();
        state.trace.push(Traced {
            at: instruction.at,
            text: instruction.text.clone(),
            is_run: matches!(instruction.kind, Kind::Run(_)),
            layers: layers.clone(),
        });
        let number = {
            let mut steps = held(&self.steps);
            steps.total += 1;
            steps.cached += u32::from(cached);
            steps.total
        };
        let first = instruction.text.lines().next().unwrap_or_default();
        if let Memory::Compare(before) = self.memory {
            let Some(Traced { layers: due, .. }) = before.get(&state.number).and_then(|steps| steps.get(at)) else {
                return layers;
            };
            let same = due.iter().map(|layer| layer.diff_id).eq(layers.iter().map(|layer| layer.diff_id));
            let text = format!("{} {first}", if same { "the same again:" } else { "differs:" });
            self.tell("build.checked", text, json!({"number": number, "same": same}));
            return due.clone();
        }
        let how = if cached { " (cached)" } else { "" };
        data["number"] = json!(number);
        data["instruction"] = json!(instruction.text);
        data["cached"] = json!(cached);
        // Of a step that gave several layers, the lowest and those above it.
        data["diff_id"] = json!(layers.first().map(|layer| layer.diff_id));
        data["size"] = json!((!layers.is_empty()).then(|| layers.iter().map(|layer| layer.blob.size).sum::<u64>()));
        if let [_, more @ ..] = layers.as_slice()
            && !more.is_empty()
        {
            data["more"] = json!(more.iter().map(|layer| layer.diff_id).collect::<Vec<_>>());
        }
        self.tell("build.step", format!("{place} {first}{how}"), data);
        layers
    }
}

/// The stage that is wanted.
fn wanted(file: &Dockerfile, request: &BuildRequest) -> Result<usize> {
    let unknown = |name: &String| BuildError::UnknownStage { name: name.clone(), dockerfile: file.text.name.clone() };
    match &request.stage {
        None => Ok(file.stages.len() - 1),
        Some(name) => stage_named(file, name, file.stages.len()).ok_or_else(|| unknown(name)),
    }
}

/// The services that the wanted stage and those that it needs begin from.
pub(super) fn services(file: &Dockerfile, request: &BuildRequest) -> Result<BTreeSet<String>> {
    let globals = Globals::new(&request.platform, request.stage.as_deref(), &request.args);
    let mut open = vec![wanted(file, request)?];
    let mut seen = BTreeSet::new();
    let mut services = BTreeSet::new();
    while let Some(number) = open.pop() {
        if !seen.insert(number) {
            continue;
        }
        open.extend(needs(file, &globals, number, &request.contexts).asked.iter().map(|(_, needed)| *needed));
        let from = &file.stages[number].from;
        if from.service {
            let name = expand(&from.base.text, file.escape, &globals);
            services.insert(name.map_err(|problem| error(file, from.base.at, problem))?);
        }
    }
    Ok(services)
}

/// Where an instruction stands among those of its stage, FROM and the triggers of its base image included. How many of these there are is known
/// only when the base image is here, and order must be told before.
fn schedule_place(at: usize, triggers: usize) -> usize {
    const TRIGGERS: usize = 1 << 20;
    match at.checked_sub(triggers) {
        Some(own) => TRIGGERS + own,
        None => 1 + at.min(TRIGGERS - 2),
    }
}

/// What a stage needs, as far as that is known before variables have values.
fn needs(file: &Dockerfile, globals: &Globals, number: usize, contexts: &BTreeMap<String, NamedContext>) -> Needs {
    let stage = &file.stages[number];
    let base = expand(&stage.from.base.text, file.escape, globals).ok();
    let of_file = |name: &String| named::find(contexts, name).is_none();
    let base =
        base.filter(|name| !stage.from.service && of_file(name)).and_then(|name| base_named(file, &name, number));
    let mut asked: BTreeSet<(usize, usize)> = base.iter().map(|base| (0, *base)).collect();
    for (at, instruction) in stage.instructions.iter().enumerate() {
        let names: Vec<String> = match &instruction.kind {
            Kind::Copy(copy) => copy.from.iter().filter_map(|word| fixed(&word.text, file.escape)).collect(),
            Kind::Run(run) => run.mounts.iter().filter_map(|word| mounted_from(&word.text, file.escape)).collect(),
            _ => Vec::new(),
        };
        let stages = names.iter().filter(|name| of_file(name)).filter_map(|name| stage_named(file, name, number));
        asked.extend(stages.map(|stage| (schedule_place(at, 0), stage)));
    }
    Needs { base, asked }
}

/// What a word means, if no variable is in it.
fn fixed(text: &str, escape: char) -> Option<String> {
    let unset = Scope::with_env([]);
    (!text.contains('$')).then(|| expand(text, escape, &unset).ok()).flatten()
}

/// What a mount is from, if that is known without variables.
fn mounted_from(text: &str, escape: char) -> Option<String> {
    let unset = Scope::with_env([]);
    if text.contains('$') {
        return None;
    }
    match dockerfile::mount(text, &|text| expand(text, escape, &unset)).ok()?.kind {
        dockerfile::MountKind::Bind { from, .. } => from,
        dockerfile::MountKind::Cache { from, .. } => from.map(|(name, _)| name),
        _ => None,
    }
}

/// The number of a stage before `before`, by name or number.
fn stage_named(file: &Dockerfile, name: &str, before: usize) -> Option<usize> {
    base_named(file, name, before).or_else(|| name.parse().ok().filter(|number| *number < before))
}

/// The number of a stage before `before`, by name alone, as FROM has it: a number is an image's name there.
fn base_named(file: &Dockerfile, name: &str, before: usize) -> Option<usize> {
    let own = |stage: &dockerfile::Stage| stage.from.name.as_deref().is_some_and(|own| own.eq_ignore_ascii_case(name));
    file.stages[..before].iter().rposition(own)
}

fn error(file: &Dockerfile, at: Position, problem: dockerfile::Problem) -> BuildError {
    BuildError::Dockerfile(Box::new(file.text.error(at, problem)))
}

fn step_error(file: &Dockerfile, at: Position, instruction: &'static str, cause: StepError) -> BuildError {
    BuildError::Step { place: Box::new(file.text.place(at)), instruction, cause: Box::new(cause) }
}
