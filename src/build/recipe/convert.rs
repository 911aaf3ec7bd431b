//! A Dockerfile as a recipe that gives the same files.
//!
//! Each RUN becomes a step on the one before it, each COPY before a RUN is put into what it runs in, and what the last stage copies after its
//! last RUN becomes layers. Arguments and variables are replaced by what the file says of them. What a recipe has no word for is refused with its
//! place, and never left out.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use toml::Value;

use super::super::dockerfile::{
    Command, Copy, Dockerfile, Environment, Instruction, Kind, MountKind, Pair, Position, Problem, Run, RunNetwork,
    Sharing, Source, Word, expand, expand_words, is_repository, mount,
};
use super::error::NoRecipe;

/// Arguments that have a value without being given one, which depends on the build.
const AUTOMATIC: [&str; 2] = ["TARGET", "BUILD"];

/// Ends of names that ADD unpacks.
const ARCHIVES: [&str; 9] = [".tar", ".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".tzst"];

/// Writes a Dockerfile as a recipe.
///
/// # Errors
/// At the first thing that a recipe has no word for.
pub fn from_dockerfile(file: &Dockerfile) -> Result<String, Box<NoRecipe>> {
    let mut recipe =
        Converter { file, inputs: Vec::new(), steps: Vec::new(), taken: BTreeSet::new(), ends: Vec::new() };
    recipe.convert().map_err(|(at, what)| Box::new(NoRecipe { place: file.text.place(at), what }))
}

/// What has no word, before it knows its text.
type Converted<T> = Result<T, (Position, String)>;

struct Converter<'a> {
    file: &'a Dockerfile,
    /// Names, and what the inputs are: a key and a text.
    inputs: Vec<(String, Vec<(&'static str, Value)>)>,
    steps: Vec<(String, StepText)>,
    taken: BTreeSet<String>,
    /// What the stages before ended as.
    ends: Vec<State>,
}

/// A step, as its keys.
#[derive(Default)]
struct StepText {
    on: Option<String>,
    put: Vec<LayerText>,
    see: BTreeMap<String, String>,
    cache: BTreeMap<String, String>,
    secrets: Vec<String>,
    env: BTreeMap<String, String>,
    path: Vec<String>,
    dir: Option<String>,
    user: Option<String>,
    network: RunNetwork,
    run: Option<Value>,
}

/// A layer, or what is put into a step.
#[derive(Clone)]
struct LayerText {
    from: String,
    to: String,
    owner: Option<String>,
    mode: Option<String>,
    exclude: Vec<String>,
}

/// Where a stage is.
#[derive(Clone, Default)]
struct State {
    /// What the recipe calls what it is so far; none for nothing.
    on: Option<String>,
    /// What was copied since.
    put: Vec<LayerText>,
    /// What `$x` means.
    scope: BTreeMap<String, String>,
    /// Arguments that steps see and the image does not have.
    args: BTreeSet<String>,
    env: BTreeMap<String, String>,
    /// What stands before the `PATH` of the image that it began from.
    path: Vec<String>,
    /// How many of those, from the last on, the step that it is upon has already.
    path_of_step: usize,
    labels: BTreeMap<String, String>,
    dir: Option<String>,
    user: Option<String>,
    shell: Option<Vec<String>>,
    ports: Vec<String>,
    volumes: Vec<String>,
    stop_signal: Option<String>,
    entrypoint: Option<Vec<String>>,
    command: Option<Vec<String>>,
}

/// Variables that are known, and whether another was asked for.
struct Known<'a> {
    scope: &'a BTreeMap<String, String>,
    unknown: RefCell<Option<String>>,
}

impl Environment for Known<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        let value = self.scope.get(name).map(String::as_str);
        if value.is_none() {
            self.unknown.borrow_mut().get_or_insert_with(|| name.to_owned());
        }
        value
    }
}

impl Converter<'_> {
    fn convert(&mut self) -> Converted<String> {
        let mut globals = BTreeMap::new();
        for instruction in &self.file.globals {
            if let Kind::Arg(declarations) = &instruction.kind {
                for declaration in declarations {
                    if let Some(default) = &declaration.default {
                        let value = self.expand(default, &globals)?;
                        globals.insert(declaration.name.clone(), value);
                    }
                }
            }
        }
        for (number, stage) in self.file.stages.iter().enumerate() {
            if let Some(platform) = &stage.from.platform {
                return Err((platform.at, "`--platform`".to_owned()));
            }
            let base = self.expand(&stage.from.base, &globals)?;
            let mut state = match self.stage(&base, number) {
                Some(end) => State { scope: BTreeMap::new(), args: BTreeSet::new(), ..self.ends[end].clone() },
                None if base == "scratch" => State::default(),
                None => State { on: Some(self.input(&base, "image", &base)), ..State::default() },
            };
            state.scope.clone_from(&state.env);
            let name = stage.from.name.clone().unwrap_or_else(|| format!("stage-{number}"));
            for instruction in &stage.instructions {
                self.instruction(instruction, &name, &globals, &mut state)?;
            }
            self.ends.push(state);
        }
        let last = self.ends.pop().unwrap_or_default();
        Ok(self.text(&last))
    }

    /// The number of an earlier stage of this name or number.
    fn stage(&self, name: &str, before: usize) -> Option<usize> {
        let named = |stage: &usize| self.file.stages[*stage].from.name.as_deref() == Some(&name.to_lowercase());
        (0..before).rev().find(named).or_else(|| name.parse().ok().filter(|number| *number < before))
    }

    /// A name that nothing has, as close to a text as a recipe allows.
    fn name(&mut self, text: &str) -> String {
        let last = text.split(['@', '#', '?']).next().unwrap_or_default();
        let last = last.trim_end_matches(".git").rsplit('/').next().unwrap_or_default();
        let plain = last.split(':').next().unwrap_or_default().to_lowercase();
        let mut name: String = plain
            .chars()
            .map(|ch| if ch.is_ascii_lowercase() || ch.is_ascii_digit() || ch == '_' { ch } else { '-' })
            .take(48)
            .collect();
        if !name.starts_with(|ch: char| ch.is_ascii_lowercase()) || name == "scratch" || name == "context" {
            name = format!("x-{name}");
        }
        let first = name.clone();
        let mut number = 2;
        while !self.taken.insert(name.clone()) {
            name = format!("{first}-{number}");
            number += 1;
        }
        name
    }

    /// The name of an input, which is made if it is not there.
    fn input(&mut self, text: &str, key: &'static str, call: &str) -> String {
        let known = self.inputs.iter().find(|(_, keys)| keys.first() == Some(&(key, Value::String(text.to_owned()))));
        if let Some((name, _)) = known {
            return name.clone();
        }
        let name = self.name(call);
        self.inputs.push((name.clone(), vec![(key, Value::String(text.to_owned()))]));
        name
    }

    fn expand(&self, word: &Word, scope: &BTreeMap<String, String>) -> Converted<String> {
        self.expand_text(&word.text, word.at, scope)
    }

    fn expand_text(&self, text: &str, at: Position, scope: &BTreeMap<String, String>) -> Converted<String> {
        let known = Known { scope, unknown: RefCell::new(None) };
        let value =
            expand(text, self.file.escape, &known).map_err(|problem: Problem| (at, format!("this: {problem}")))?;
        match known.unknown.into_inner() {
            Some(name) => Err((at, format!("`${name}`, whose value nobody says here"))),
            None => Ok(value),
        }
    }

    fn pairs(&self, pairs: &[Pair], state: &State) -> Converted<Vec<(String, String)>> {
        let pair = |pair: &Pair| Ok((self.expand(&pair.name, &state.scope)?, self.expand(&pair.value, &state.scope)?));
        pairs.iter().map(pair).collect()
    }

    fn instruction(
        &mut self,
        instruction: &Instruction,
        stage: &str,
        globals: &BTreeMap<String, String>,
        state: &mut State,
    ) -> Converted<()> {
        let at = instruction.at;
        match &instruction.kind {
            Kind::Arg(declarations) => {
                for declaration in declarations {
                    let name = &declaration.name;
                    if AUTOMATIC.iter().any(|prefix| name.starts_with(prefix)) {
                        return Err((declaration.at, format!("`{name}`, whose value depends on the build")));
                    }
                    let value = match &declaration.default {
                        Some(default) => Some(self.expand(default, &state.scope)?),
                        None => globals.get(name).cloned(),
                    };
                    if let Some(value) = value.filter(|_| !state.env.contains_key(name)) {
                        state.scope.insert(name.clone(), value);
                        state.args.insert(name.clone());
                    }
                }
            }
            Kind::Env(pairs) => {
                let (paths, rest) = self.longer_paths(pairs, state)?;
                state.path.splice(0..0, paths);
                for (name, value) in self.pairs(&rest, state)? {
                    if name == "PATH" {
                        state.path.clear();
                        state.path_of_step = 0;
                    }
                    state.args.remove(&name);
                    state.scope.insert(name.clone(), value.clone());
                    state.env.insert(name, value);
                }
            }
            Kind::Label(pairs) => state.labels.extend(self.pairs(pairs, state)?),
            Kind::Copy(copy) => self.copy(copy, at, state)?,
            Kind::Run(run) => self.run(run, stage, at, state)?,
            Kind::Workdir(word) => state.dir = Some(in_dir(state, &self.expand(word, &state.scope)?, word.at)?),
            Kind::User(word) => state.user = Some(self.expand(word, &state.scope)?),
            Kind::Expose(words) => {
                for word in words {
                    let known = Known { scope: &state.scope, unknown: RefCell::new(None) };
                    let ports = expand_words(&word.text, self.file.escape, &known);
                    state.ports.extend(ports.map_err(|problem| (word.at, format!("this: {problem}")))?);
                }
            }
            Kind::Volume(words) => {
                for word in words {
                    let path = self.expand(word, &state.scope)?;
                    if !path.starts_with('/') {
                        return Err((word.at, "a volume that is no absolute path".to_owned()));
                    }
                    state.volumes.push(path);
                }
            }
            Kind::StopSignal(word) => state.stop_signal = Some(self.expand(word, &state.scope)?),
            Kind::Cmd(command) => state.command = Some(argv(command, state)),
            Kind::Entrypoint(command) => state.entrypoint = Some(argv(command, state)),
            Kind::Shell(shell) => state.shell = Some(shell.clone()),
            Kind::Maintainer(_) | Kind::Healthcheck(_) | Kind::Onbuild(_) => {
                return Err((at, instruction.name.to_owned()));
            }
        }
        Ok(())
    }

    /// The directories that `PATH=/x:$PATH` puts before those of a base image, and the pairs that say something else.
    fn longer_paths(&self, pairs: &[Pair], state: &State) -> Converted<(Vec<String>, Vec<Pair>)> {
        let (mut directories, mut rest) = (Vec::new(), Vec::new());
        for pair in pairs {
            let text = pair.value.text.trim_matches('"');
            let before = [":$PATH", ":${PATH}"].iter().find_map(|end| text.strip_suffix(end));
            let of_base = pair.name.text == "PATH" && !state.scope.contains_key("PATH");
            let Some(before) = before.filter(|_| of_base) else {
                rest.push(pair.clone());
                continue;
            };
            let before = self.expand_text(before, pair.value.at, &state.scope)?;
            directories.extend(before.split(':').map(str::to_owned));
            if !directories.iter().all(|directory| directory.starts_with('/')) {
                return Err((pair.value.at, "a directory of `PATH` that is no absolute path".to_owned()));
            }
        }
        Ok((directories, rest))
    }

    /// What a stage or image is called, which `--from` names.
    fn from(&mut self, name: &str) -> String {
        match self.stage(name, self.ends.len()) {
            None => self.input(name, "image", name),
            Some(stage) => {
                if !self.ends[stage].put.is_empty() {
                    // What was copied last is in no step yet.
                    let called = self.file.stages[stage].from.name.clone().unwrap_or_else(|| format!("stage-{stage}"));
                    let step = self.name(&called);
                    let end = &mut self.ends[stage];
                    let text = StepText { on: end.on.take(), put: std::mem::take(&mut end.put), ..StepText::default() };
                    end.on = Some(step.clone());
                    self.steps.push((step, text));
                }
                self.ends[stage].on.clone().unwrap_or_default()
            }
        }
    }

    fn copy(&mut self, copy: &Copy, at: Position, state: &mut State) -> Converted<()> {
        if copy.parents {
            return Err((at, "`--parents`".to_owned()));
        }
        let scope = &state.scope;
        let optional = |word: &Option<Word>| word.as_ref().map(|word| self.expand(word, scope)).transpose();
        let (from, owner, mode, checksum) =
            (optional(&copy.from)?, optional(&copy.chown)?, optional(&copy.chmod)?, optional(&copy.checksum)?);
        let exclude = copy.exclude.iter().map(|word| self.expand(word, scope)).collect::<Converted<Vec<_>>>()?;
        let to = in_dir(state, &self.expand(&copy.destination, scope)?, copy.destination.at)?;
        let to = if copy.sources.len() > 1 && !to.ends_with('/') { format!("{to}/") } else { to };
        let from = from.map(|name| (self.from(&name), name));
        if let Some((_, name)) = from.as_ref().filter(|(called, _)| called.is_empty()) {
            return Err((at, format!("`{name}`, which is empty")));
        }
        for source in &copy.sources {
            let Source::Path(word) = source else {
                return Err((at, "a file that stands in the Dockerfile".to_owned()));
            };
            let path = self.expand(word, &state.scope)?;
            let from = match &from {
                Some((name, _)) => format!("{name}:/{}", path.trim_start_matches('/')),
                None if copy.add && path.contains("://") && !is_repository(&path) => {
                    self.fetched(&path, copy.unpack, checksum.as_deref())
                }
                None if copy.add && is_repository(&path) && (copy.keep_git || checksum.is_some()) => {
                    return Err((word.at, "`--keep-git-dir` or `--checksum` of a repository".to_owned()));
                }
                None if copy.add && is_repository(&path) => self.input(&path, "git", &path),
                None if copy.add && copy.unpack != Some(false) && ARCHIVES.iter().any(|end| path.ends_with(end)) => {
                    return Err((word.at, "an archive that is unpacked".to_owned()));
                }
                None => format!("./{}", path.trim_start_matches("./").trim_start_matches('/')),
            };
            let (owner, mode, exclude) = (owner.clone(), mode.clone(), exclude.clone());
            state.put.push(LayerText { from, to: to.clone(), owner, mode, exclude });
        }
        Ok(())
    }

    /// A file of a server, as a reference.
    fn fetched(&mut self, url: &str, unpack: Option<bool>, checksum: Option<&str>) -> String {
        let name = self.input(url, "url", url);
        let Some((_, keys)) = self.inputs.iter_mut().find(|(known, _)| *known == name) else { return name };
        keys.truncate(1);
        keys.extend(checksum.map(|sum| ("checksum", Value::String(sum.to_owned()))));
        if unpack == Some(true) {
            keys.push(("unpack", Value::Boolean(true)));
            return name;
        }
        let file = url.split(['#', '?']).next().and_then(|path| path.rsplit('/').next()).unwrap_or_default();
        format!("{name}:/{file}")
    }

    fn run(&mut self, run: &Run, stage: &str, at: Position, state: &mut State) -> Converted<()> {
        if run.script.is_some() {
            return Err((at, "a script that stands in the Dockerfile".to_owned()));
        }
        let mut step =
            StepText { network: run.network, dir: state.dir.clone(), user: state.user.clone(), ..StepText::default() };
        for word in &run.mounts {
            self.mount(word, &mut step, state)?;
        }
        let words = |words: &[String]| Value::Array(words.iter().cloned().map(Value::String).collect());
        step.run = Some(match &run.command {
            // A recipe's shell ends at the first command that fails, which one command does anyhow.
            Command::Shell(text) if state.shell.is_none() && !text.contains([';', '\n', '|', '&']) => {
                Value::String(text.clone())
            }
            command => words(&argv(command, state)),
        });
        let args = state.args.iter().filter_map(|name| Some((name.clone(), state.scope.get(name)?.clone())));
        step.env = state.env.iter().map(|(name, value)| (name.clone(), value.clone())).chain(args).collect();
        step.path = state.path[..state.path.len() - state.path_of_step].to_vec();
        state.path_of_step = state.path.len();
        step.on = state.on.take();
        step.put = std::mem::take(&mut state.put);
        let name = self.name(stage);
        state.on = Some(name.clone());
        self.steps.push((name, step));
        Ok(())
    }

    fn mount(&mut self, word: &Word, step: &mut StepText, state: &State) -> Converted<()> {
        let known = Known { scope: &state.scope, unknown: RefCell::new(None) };
        let read = mount(&word.text, &|text| expand(text, self.file.escape, &known));
        let read = read.map_err(|problem| (word.at, format!("this: {problem}")))?;
        let target = in_dir(state, &read.target, word.at)?;
        match read.kind {
            MountKind::Bind { from: None, source } => {
                let source = source.trim_start_matches('/').to_owned();
                step.see.insert(target, format!("./{source}"));
            }
            MountKind::Bind { from: Some(from), source } => {
                let name = self.from(&from);
                step.see.insert(target, format!("{name}:/{}", source.trim_start_matches('/')));
            }
            MountKind::Cache { from: None, id, sharing: Sharing::Shared, mode: 0o755, owner: (0, 0) } => {
                step.cache.insert(target, id);
            }
            MountKind::Secret { id, env: Some(env), file: false, .. } if env == id => step.secrets.push(id),
            MountKind::Cache { .. } => return Err((word.at, "the options of this cache".to_owned())),
            _ => return Err((word.at, "this kind of mount".to_owned())),
        }
        Ok(())
    }

    /// The recipe.
    fn text(&self, last: &State) -> String {
        let mut out = String::new();
        if !self.inputs.is_empty() {
            out.push_str("[inputs]\n");
        }
        for (name, keys) in &self.inputs {
            let keys: Vec<String> = keys.iter().map(|(key, value)| format!("{key} = {value}")).collect();
            out.push_str(&format!("{name} = {{ {} }}\n", keys.join(", ")));
        }
        for (name, step) in &self.steps {
            out.push_str(&format!("\n[steps.{name}]\n"));
            line(&mut out, "on", step.on.as_deref().map(string));
            line(&mut out, "put", list(step.put.iter().map(LayerText::inline)));
            line(&mut out, "see", table(&step.see));
            line(&mut out, "cache", table(&step.cache));
            line(&mut out, "secrets", list(step.secrets.iter().map(|name| string(name))));
            line(&mut out, "env", table(&step.env));
            line(&mut out, "path", list(step.path.iter().map(|path| string(path))));
            line(&mut out, "dir", step.dir.as_deref().map(string));
            line(&mut out, "user", step.user.as_deref().map(string));
            line(&mut out, "network", network(step.network));
            line(&mut out, "run", step.run.as_ref().map(ToString::to_string));
        }
        for layer in &last.put {
            out.push_str("\n[[layers]]\n");
            for (key, value) in layer.keys() {
                line(&mut out, key, Some(value));
            }
        }
        out.push_str("\n[image]\n");
        line(&mut out, "on", last.on.as_deref().map(string));
        line(&mut out, "env", table(&last.env));
        line(&mut out, "path", list(last.path.iter().map(|path| string(path))));
        line(&mut out, "labels", table(&last.labels));
        line(&mut out, "dir", last.dir.as_deref().map(string));
        line(&mut out, "user", last.user.as_deref().map(string));
        let port =
            |port: &String| if port.bytes().all(|byte| byte.is_ascii_digit()) { port.clone() } else { string(port) };
        line(&mut out, "ports", list(last.ports.iter().map(port)));
        line(&mut out, "volumes", list(last.volumes.iter().map(|path| string(path))));
        line(&mut out, "stop_signal", last.stop_signal.as_deref().map(string));
        let words =
            |words: &Vec<String>| list(words.iter().map(|word| string(word))).unwrap_or_else(|| "[]".to_owned());
        line(&mut out, "entrypoint", last.entrypoint.as_ref().map(words));
        line(&mut out, "command", last.command.as_ref().map(words));
        out.trim_start().to_owned()
    }
}

impl LayerText {
    fn keys(&self) -> Vec<(&'static str, String)> {
        let mut keys = vec![("from", string(&self.from)), ("to", string(&self.to))];
        keys.extend(self.owner.as_deref().map(|owner| ("owner", string(owner))));
        keys.extend(self.mode.as_deref().map(|mode| ("mode", string(mode))));
        keys.extend(list(self.exclude.iter().map(|pattern| string(pattern))).map(|list| ("exclude", list)));
        keys
    }

    fn inline(&self) -> String {
        let keys: Vec<String> = self.keys().into_iter().map(|(key, value)| format!("{key} = {value}")).collect();
        format!("{{ {} }}", keys.join(", "))
    }
}

fn network(network: RunNetwork) -> Option<String> {
    match network {
        RunNetwork::None => None,
        RunNetwork::Default => Some("true".to_owned()),
        RunNetwork::Record => Some(string("record")),
    }
}

fn line(out: &mut String, key: &str, value: Option<String>) {
    out.extend(value.map(|value| format!("{key} = {value}\n")));
}

fn string(text: &str) -> String {
    Value::String(text.to_owned()).to_string()
}

fn list(items: impl Iterator<Item = String>) -> Option<String> {
    let items: Vec<String> = items.collect();
    (!items.is_empty()).then(|| format!("[{}]", items.join(", ")))
}

fn table(entries: &BTreeMap<String, String>) -> Option<String> {
    let entries: Vec<String> =
        entries.iter().map(|(name, value)| format!("{} = {}", string(name), string(value))).collect();
    (!entries.is_empty()).then(|| format!("{{ {} }}", entries.join(", ")))
}

/// A command in its exec form.
fn argv(command: &Command, state: &State) -> Vec<String> {
    match command {
        Command::Exec(words) => words.clone(),
        Command::Shell(text) => {
            let shell = state.shell.clone().unwrap_or_else(|| ["/bin/sh", "-c"].map(str::to_owned).to_vec());
            shell.into_iter().chain([text.clone()]).collect()
        }
    }
}

/// A path from the working directory on. That of an image is not known.
fn in_dir(state: &State, path: &str, at: Position) -> Converted<String> {
    if path.starts_with('/') {
        return Ok(path.to_owned());
    }
    let dir = match (&state.dir, &state.on) {
        (Some(dir), _) => dir.trim_end_matches('/'),
        (None, None) => "",
        (None, Some(_)) => return Err((at, format!("`{path}` from the working directory of an image"))),
    };
    Ok(match path.trim_start_matches("./") {
        "" | "." => format!("{dir}/"),
        path => format!("{dir}/{path}"),
    })
}
