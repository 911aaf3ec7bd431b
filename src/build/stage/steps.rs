//! The instructions that make layers: RUN, COPY, WORKDIR. And the rules of some values that the others hold.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Cursor, Read};
use std::path::Path;

use jiji_model::digest::Digest;
use jiji_model::secret::Secret;
use jiji_sandbox::{Sandbox, UnpackLimits};
use jiji_store::{Layer, Store};
use serde_json::{Value, json};

use super::explain::{Known, Parts, REPINNED};
use super::mounts::Planned;
use super::named;
use super::scope::PREDEFINED;
use super::turns::held;
use super::unseen::Chosen;
use super::{Evaluation, Given, Memory, Result, State, keys, stage_named, step_error, urls};
use crate::build::BuildRequest;
use crate::build::archive::{Archive, ArchiveError};
use crate::build::compare;
use crate::build::contents::{Contents, File};
use crate::build::context::{self, Root};
use crate::build::copy::{self, About, Choice, CopyError, ModeChange, Ownership, Selected, Source};
use crate::build::dockerfile::{self, Command, Healthcheck, Instruction, Position, Problem, Run, RunNetwork, Word};
use crate::build::error::{BuildError, StepError};
use crate::build::execute::{Network, Ran, RunStep, Stream};
use crate::build::image::Draft;
use crate::build::layer::{self, Node, TarPath};
use crate::build::pack;
use crate::build::rootfs::{Accounts, Content, Found, Layers, Tree};
use crate::build::trees::Trees;
use crate::build::write::write_layer;

/// How many of the last lines of a failed step are shown.
const TAIL: usize = 30;
/// After which a clock says another second.
const ANOTHER_SECOND: std::time::Duration = std::time::Duration::from_millis(1100);

pub(super) type Stepped<T> = std::result::Result<T, StepError>;

/// A content that was opened.
pub(super) type Opened = Box<dyn Read>;

impl Evaluation<'_> {
    /// What is below: headers of the layers so far.
    fn below(&self, draft: &Draft) -> Stepped<Tree> {
        Ok(Layers::new(self.builder.store).tree(&draft.layers)?)
    }

    pub(super) fn workdir(&self, instruction: &Instruction, path: &str, state: &mut State<'_>) -> Stepped<Given> {
        let path = if path.starts_with('/') {
            TarPath::normal(path)
        } else {
            TarPath::normal([state.workdir().as_bytes(), b"/", path.as_bytes()].concat())
        };
        state.draft.config.insert("WorkingDir".to_owned(), json!(path.to_string()));
        let user = state.draft.text("User").to_owned();
        let key = keys::workdir(&state.draft.layers, self.request.epoch, &path, &user);
        self.passed(instruction, &key, state);
        if let Some(layers) = self.recall(&key)? {
            self.hit(instruction, Known::Step, state);
            return Ok(Given { layers, cached: true });
        }
        let mut parts = Parts::new(&state.draft.layers, state.base, self.request.epoch);
        parts.add("destination", &json!(path.to_string()));
        parts.add("user", &json!(user));
        self.missed(instruction, &key, &parts, state)?;
        let below = self.below(&state.draft)?;
        let owner = owner(&user, below.accounts())?;
        let entries = copy::make_directory(&path, owner, &below)?;
        let layer = if entries.is_empty() {
            None
        } else {
            let open = |_: &Content, _: u64| -> io::Result<Opened> { Ok(Box::new(io::empty())) };
            Some(write_layer(&entries, self.request.form(), self.builder.store, &|_| None, &open)?)
        };
        self.remember(&key, layer.as_slice(), Some(parts))?;
        Ok(Given::one(layer, false))
    }

    pub(super) fn run(
        &self,
        instruction: &Instruction,
        run: &Run,
        planned: Planned,
        state: &State<'_>,
    ) -> Stepped<Given> {
        let user = state.draft.text("User");
        let mut step = RunStep {
            argv: state.argv(&run.command),
            env: state.scope.for_run(),
            user: (!user.is_empty()).then(|| user.to_owned()),
            workdir: state.workdir().to_string(),
            epoch: self.request.epoch,
            compression: self.request.compression,
            platform: state.draft.platform.clone(),
            layers: state.draft.layers.clone(),
            mounts: Vec::new(),
            network: match run.network {
                RunNetwork::None => Network::None,
                RunNetwork::Default => Network::Machine,
                RunNetwork::Record => Network::Recorded,
            },
            proxy: None,
            secrets: Vec::new(),
        };
        let key = keys::run(&step, &planned.key);
        self.passed(instruction, &key, state);
        // What another stage of this build is at is waited for: a step of one key is done once.
        self.running.take(key, || {
            if let Some(layer) = self.this_build(&key) {
                self.hit(instruction, Known::Build, state);
                return Ok(Given::one(layer, true));
            }
            let (layer, cached) = self.run_now(instruction, &key, planned, &mut step, state)?;
            held(&self.ran).insert(key, layer.clone());
            Ok(Given::one(layer, cached))
        })
    }

    /// What a RUN of this key gave earlier in this build. Where results are compared each is carried out.
    fn this_build(&self, key: &Digest) -> Option<Option<Layer>> {
        match self.memory {
            Memory::Use | Memory::Renew => held(&self.ran).get(key).cloned(),
            Memory::Compare(_) => None,
        }
    }

    /// What a RUN gives, and whether that was known.
    fn run_now(
        &self,
        instruction: &Instruction,
        key: &Digest,
        planned: Planned,
        step: &mut RunStep,
        state: &State<'_>,
    ) -> Stepped<(Option<Layer>, bool)> {
        let expected = held(&self.lock).run(key);
        let store = self.builder.store;
        if expected.is_none() && self.request.locked {
            return Err(StepError::NotLocked { what: format!("the step `{}`", first_line(&instruction.text)) });
        }
        // What the lock says is taken wherever it can be had; only then what this machine did before; only then the step is run.
        let made_of_pins = self.is_of_these_pins(key, step)?;
        let locked = match expected.filter(|_| matches!(self.memory, Memory::Use) && made_of_pins) {
            Some(diff_id) if diff_id == nothing() => Some(None),
            Some(diff_id) => layer::known(&diff_id, self.request.compression, store)?.map(Some),
            None => None,
        };
        let parts = || run_parts(step, &planned, state);
        let (layer, cached) = match locked {
            Some(layer) => {
                self.hit(instruction, Known::Lock, state);
                if self.recall_one(key)? != Some(layer.clone()) {
                    self.remember(key, layer.as_slice(), Some(parts()))?;
                }
                self.recorded_before(key, step)?;
                (layer, true)
            }
            None => match self.recall_one(key)?.filter(|_| made_of_pins) {
                Some(layer) => {
                    self.hit(instruction, Known::Step, state);
                    self.recorded_before(key, step)?;
                    (layer, true)
                }
                None => {
                    let parts = parts();
                    let mut told = parts.clone();
                    if !made_of_pins {
                        told.add(REPINNED, &json!(true));
                    }
                    self.missed(instruction, key, &told, state)?;
                    if step.network == Network::Machine {
                        let what = || format!("what `{}` gave", first_line(&instruction.text));
                        self.builder.sources.reachable(&what)?;
                        // As in Docker: which proxies there are is this machine's, and in no key.
                        let proxies = self.request.args.iter().filter(|(name, _)| is_proxy(name));
                        let proxies = proxies.filter(|(name, _)| !step.env.iter().any(|(own, _)| own == *name));
                        step.secrets.extend(proxies.map(|(name, value)| (name.clone(), Secret::new(value.as_str()))));
                    }
                    if !planned.key.is_empty() {
                        let below = self.below(&state.draft)?;
                        self.mount(planned, step, &below)?;
                    }
                    let layer = self.execute(instruction, key, step, state)?;
                    // What `--locked` refuses is no result to go on from.
                    let refused = self.request.locked && expected != Some(diff_id(layer.as_ref()));
                    if !refused {
                        self.remember(key, layer.as_slice(), Some(parts))?;
                        self.remember_recorded(key)?;
                    }
                    (layer, false)
                }
            },
        };
        let actual = diff_id(layer.as_ref());
        if let Some(expected) = expected.filter(|expected| *expected != actual) {
            if self.request.locked {
                let evidence = match layer::known(&expected, self.request.compression, store)? {
                    // All is done again: what it should have given is here.
                    Some(due) => compare::lines(&compare::layers(Some(&due), layer.as_ref(), store)?),
                    None if cached => Vec::new(),
                    None => self.varies(instruction, key, step, layer.as_ref(), state)?,
                };
                let network = step.network == Network::Machine;
                return Err(StepError::Locked { expected, actual, network, evidence });
            }
            let text = format!("{} gave another result than jiji.lock says", first_line(&instruction.text));
            self.tell("build.differs", text, json!({"key": key, "expected": expected, "actual": actual}));
        }
        Ok((layer, cached))
    }

    /// What a step that gave another layer than it should gives differently when it is run once more. The layer that it should give is
    /// not here, or it would have been taken; but what differs from run to run differs from machine to machine.
    fn varies(
        &self,
        instruction: &Instruction,
        key: &Digest,
        step: &RunStep,
        first: Option<&Layer>,
        state: &State<'_>,
    ) -> Stepped<Vec<String>> {
        // Most clocks are read to the second.
        std::thread::sleep(ANOTHER_SECOND);
        let second = self.execute(instruction, key, step, state)?;
        let differences = compare::layers(first, second.as_ref(), self.builder.store)?;
        Ok(match differences.is_empty() {
            true if step.network == Network::Machine => {
                vec!["it gave the same when it was run again, so what it fetches is another than it was".to_owned()]
            }
            true => vec![
                "it gave the same when it was run again, so it depends on something else of this machine".to_owned(),
            ],
            false => std::iter::once("when it was run again, these differed too:".to_owned())
                .chain(compare::lines(&differences))
                .collect(),
        })
    }

    fn execute(
        &self,
        instruction: &Instruction,
        key: &Digest,
        step: &RunStep,
        state: &State<'_>,
    ) -> Stepped<Option<Layer>> {
        let (place, whereabouts) = (state.place(), state.whereabouts(instruction));
        self.tell("build.run", format!("{place} running {}", first_line(&instruction.text)), whereabouts.clone());
        let mut tail = std::collections::VecDeque::with_capacity(TAIL);
        let mut output = |stream: Stream, line: &[u8]| {
            let text = String::from_utf8_lossy(line).into_owned();
            let name = match stream {
                Stream::Out => "stdout",
                Stream::Err => "stderr",
            };
            let mut data = whereabouts.clone();
            data["stream"] = json!(name);
            self.tell("build.output", text.clone(), data);
            if tail.len() == TAIL {
                tail.pop_front();
            }
            tail.push_back(text);
        };
        let (ran, refused) = self.carry_out(instruction, key, step, state.canceller, &mut output)?;
        match ran {
            Ran::Changed(layer) => Ok(layer),
            Ran::Failed(exit) => {
                tail.extend(refused);
                let command = instruction.text.split_once(char::is_whitespace).map_or("", |(_, rest)| rest.trim());
                let network = step.network != Network::None;
                Err(StepError::Failed { command: first_line(command), exit, network, output: tail.into() })
            }
        }
    }

    pub(super) fn copy(&self, instruction: &Instruction, copy: &dockerfile::Copy, state: &State<'_>) -> Result<Given> {
        let (file, scope) = (self.file, &state.scope);
        let optional = |word: &Option<Word>| word.as_ref().map(|word| self.expand(word, scope)).transpose();
        let from = optional(&copy.from)?;
        let chown = optional(&copy.chown)?;
        let mode = match (&copy.chmod, optional(&copy.chmod)?) {
            (Some(word), Some(text)) => Some(mode(&text).map_err(|problem| super::error(file, word.at, problem))?),
            _ => None,
        };
        let mut sources = Vec::with_capacity(copy.sources.len());
        let mut remote = Vec::new();
        for source in &copy.sources {
            sources.push(match source {
                dockerfile::Source::Path(word) => {
                    let text = self.expand(word, scope)?;
                    if copy.add && (urls::is_url(&text) || dockerfile::is_repository(&text)) {
                        remote.push((sources.len(), word.at, text.clone()));
                    }
                    Source::Path(text)
                }
                dockerfile::Source::Inline(inline) => {
                    let Word { text, at } = &inline.content;
                    let replaced = if inline.expand { dockerfile::expand_text(text, scope) } else { Ok(text.clone()) };
                    let text = replaced.map_err(|problem| super::error(file, *at, problem))?;
                    Source::Inline(inline.name.clone(), text.into_bytes())
                }
            });
        }
        let mut choice = Choice { parents: copy.parents, ..Choice::default() };
        let mut excluded = Vec::with_capacity(copy.exclude.len());
        for word in &copy.exclude {
            let text = self.expand(word, scope)?;
            let bad = |_| Problem::FlagValue { flag: "exclude", value: text.clone(), expected: "a pattern" };
            choice.exclude.add(&text).map_err(|cause| super::error(file, word.at, bad(cause)))?;
            excluded.push(text);
        }
        let destination = self.expand(&copy.destination, scope)?;
        let alone = remote.len() == 1 && sources.len() == 1;
        let checksum = copy.checksum.as_ref().zip(optional(&copy.checksum)?);
        let (repositories, remote): (Vec<_>, Vec<_>) =
            remote.into_iter().partition(|(_, _, url)| dockerfile::is_repository(url));
        let mut of_git = BTreeSet::new();
        for (number, at, text) in repositories {
            let sum = checksum.as_ref().map(|(word, text)| (word.at, if alone { text.as_str() } else { "" }));
            let (digest, size) = self.repository(instruction, &text, at, sum, copy.keep_git, state.canceller)?;
            of_git.insert(digest);
            sources[number] = Source::Fetched(text, digest, size);
        }
        let checksum = match checksum {
            Some((word, text)) if of_git.is_empty() => {
                let digest = urls::checksum(if alone { &text } else { "" });
                Some(digest.map_err(|problem| super::error(file, word.at, problem))?)
            }
            _ => None,
        };
        for (number, at, url) in remote {
            urls::check(&url, &destination).map_err(|problem| super::error(file, at, problem))?;
            let fetched = self.fetched(&url, checksum);
            let (digest, size) = fetched.map_err(|cause| step_error(file, at, instruction.name, cause))?;
            sources[number] = Source::Fetched(url, digest, size);
        }
        // The word that an error is about, or else the first that is copied.
        let words: Vec<(Position, String)> = copy.sources.iter().zip(&sources).filter_map(place_of).collect();
        let place = |cause: &StepError| {
            let first = words.first().map_or(instruction.at, |(at, _)| *at);
            match cause {
                StepError::Copy(error) => match error.about() {
                    About::Source(text) => words.iter().find(|(_, word)| word == text).map_or(first, |(at, _)| *at),
                    About::Destination => copy.destination.at,
                    About::All => first,
                },
                StepError::Archive { path, .. } => words
                    .iter()
                    .find(|(_, word)| TarPath::normal(word).to_string() == format!("/{path}"))
                    .map_or(first, |(at, _)| *at),
                StepError::Owner { .. } => copy.chown.as_ref().map_or(first, |word| word.at),
                _ => first,
            }
        };
        let chmod = mode.as_ref().map(|mode| mode.fixed().map_or_else(|| json!(mode.text()), |fixed| json!(fixed)));
        let mut to = json!({
            "path": destination,
            "workdir": state.draft.text("WorkingDir"),
            "chown": chown,
            "chmod": chmod,
        });
        if copy.parents {
            to["parents"] = json!(true);
        }
        if !excluded.is_empty() {
            to["exclude"] = json!(excluded);
        }
        let unpack = copy.add && copy.unpack.unwrap_or(true);
        if unpack {
            to["unpack"] = json!(true);
        }
        // What is fetched is unpacked only where it is asked for.
        let unpack = Unpack { context: unpack, fetched: copy.unpack.unwrap_or(false), always: of_git };
        if unpack.fetched {
            to["unpack-fetched"] = json!(true);
        }
        if !unpack.always.is_empty() {
            to["repositories"] = json!(unpack.always);
        }
        if let Some(most) = copy.packed {
            to["packing"] = json!({"most": most, "rules": pack::RULES});
        }
        let packed = copy.packed;
        let put = Put { instruction, state, destination, chown, mode, choice, packed, to };
        let failed = |cause: StepError| step_error(file, place(&cause), instruction.name, cause);
        match from {
            None => self.copy_context(&sources, &unpack, &put).map_err(failed),
            Some(name) => {
                let from = self.from(&name, state, failed)?;
                self.copy_layers(&sources, &name, &from, &put).map_err(failed)
            }
        }
    }

    /// What `--from` names: a context, a stage before this one by name or number, or an image.
    pub(super) fn from(
        &self,
        name: &str,
        state: &State<'_>,
        failed: impl Fn(StepError) -> BuildError,
    ) -> Result<Draft> {
        if let Some(context) = named::find(&self.request.contexts, name) {
            return self.named(name, context, &state.draft.platform).map_err(failed);
        }
        match stage_named(self.file, name, state.number) {
            Some(number) => Ok(self.schedule.stage(state.number, number)?.draft.clone()),
            None => self.image(name, &state.draft.platform).map_err(failed),
        }
    }

    /// Does something with the context, which is read once, and the digests of its files.
    pub(super) fn with_context<T>(&self, work: impl FnOnce(&Tree, &mut Contents) -> Stepped<T>) -> Stepped<T> {
        let mut context = held(&self.context);
        let (tree, contents) = match &mut *context {
            Some(context) => context,
            none => {
                let BuildRequest { context, file, target, threads, .. } = self.request;
                let tree = context::read(context, Some(file), *threads)?;
                none.insert((tree, Contents::new(context, &target.to_string(), *threads, self.builder.store)?))
            }
        };
        work(tree, contents)
    }

    /// What is taken from the context, with the digests of the files among it.
    pub(super) fn select(&self, sources: &[Source], choice: &Choice) -> Stepped<Vec<Selected>> {
        self.with_context(|tree, contents| {
            let selected = copy::select(sources, choice, tree, "the context")?;
            learn(&selected, contents)?;
            Ok(selected)
        })
    }

    fn copy_context(&self, sources: &[Source], unpack: &Unpack, put: &Put<'_>) -> Stepped<Given> {
        let selected = match self.choose(sources, put)? {
            Chosen::Unseen(selected, moment) => match self.copy_unseen(&selected, moment, put)? {
                Some(given) => return Ok(given),
                None => selected,
            },
            Chosen::Seen(selected) => selected,
        };
        self.with_context(|_, contents| learn(&selected, contents))?;
        let taken = keys::selected(&selected, &digest_of);
        let key = keys::copy(&put.state.draft.layers, self.request.epoch, &taken, &put.to);
        // Only where the layer is not remembered is an archive looked into.
        let mut archives = BTreeMap::new();
        let store = self.builder.store;
        self.passed(put.instruction, &key, put.state);
        let packed = unpack.context || unpack.fetched || !unpack.always.is_empty();
        let laid = match packed && self.recall(&key)?.is_none() {
            true => {
                let (root, exclude) = (&self.request.context, &put.choice.exclude);
                Cow::Owned(unpacked(selected.clone(), unpack, root, store, &mut archives, exclude)?)
            }
            false => Cow::Borrowed(&selected),
        };
        let root = Root::new(&self.request.context);
        let open = |content: &Content, size: u64| -> io::Result<Opened> {
            match content {
                Content::Context(file) => Ok(Box::new(root.open(&file.path)?.0)),
                Content::Bytes(bytes) => Ok(Box::new(Cursor::new(bytes.clone()))),
                Content::Part { of, offset } => {
                    let archive: &Archive = archives.get(of).ok_or(io::ErrorKind::NotFound)?;
                    Ok(Box::new(archive.part(*offset, size)))
                }
                Content::Blob(digest) => Ok(Box::new(store.open_blob(digest).map_err(io::Error::other)?.0)),
                Content::None | Content::Path(_) | Content::Layer(..) => Ok(Box::new(io::empty())),
            }
        };
        let parts = || {
            let mut parts = put.parts(self.request.epoch);
            parts.files(keys::files(&selected, &digest_of));
            parts
        };
        self.place(&Named { key, parts: &parts }, &laid, put, &digest_of, &|| Ok(()), &|(), content, size| {
            open(content, size)
        })
    }

    fn copy_layers(&self, sources: &[Source], name: &str, from: &Draft, put: &Put<'_>) -> Stepped<Given> {
        let diff_ids: Vec<Digest> = from.layers.iter().map(|layer| layer.diff_id).collect();
        let texts: Vec<Value> = sources
            .iter()
            .map(|source| match source {
                Source::Path(text) => json!({"path": text}),
                Source::Inline(name, bytes) => json!({"name": name, "content": Digest::of(bytes)}),
                Source::Fetched(url, digest, _) => json!({"url": url, "content": digest}),
            })
            .collect();
        let taken = json!({"layers": diff_ids, "paths": texts});
        let key = keys::copy(&put.state.draft.layers, self.request.epoch, &taken, &put.to);
        self.passed(put.instruction, &key, put.state);
        if let Some(layers) = self.recall(&key)? {
            self.hit(put.instruction, Known::Step, put.state);
            return Ok(Given { layers, cached: true });
        }
        let tree = self.below(from)?;
        let selected = copy::select(sources, &put.choice, &tree, &format!("`{name}`"))?;
        let digest = |content: &Content| match content {
            Content::Bytes(bytes) => Some(Digest::of(bytes)),
            _ => None,
        };
        let store = self.builder.store;
        let unpack = || Ok(Trees::of(&from.layers, store, &Sandbox::new())?);
        let open = |trees: &Trees, content: &Content, _: u64| -> io::Result<Opened> {
            match content {
                Content::Layer(diff_id, path) => Ok(Box::new(trees.open(diff_id, &path.below(Path::new("")))?)),
                Content::Bytes(bytes) => Ok(Box::new(Cursor::new(bytes.clone()))),
                Content::None | Content::Path(_) | Content::Context(_) | Content::Part { .. } | Content::Blob(_) => {
                    Ok(Box::new(io::empty()))
                }
            }
        };
        let parts = || {
            let mut parts = put.parts(self.request.epoch);
            parts.hide("from", &json!(diff_ids));
            parts.add("sources", &json!(sources.iter().filter_map(source_text).collect::<Vec<_>>().join(" ")));
            parts
        };
        self.place(&Named { key, parts: &parts }, &selected, put, &digest, &unpack, &open)
    }

    /// The entries of what a COPY puts over what is below.
    pub(super) fn entries(&self, selected: &[Selected], put: &Put<'_>) -> Stepped<BTreeMap<TarPath, Found>> {
        let below = self.below(&put.state.draft)?;
        let owned = put.chown.as_ref().map(|text| owner(text, below.accounts())).transpose()?;
        let ownership = Ownership { owner: owned, mode: put.mode.clone() };
        Ok(copy::place(selected, &put.destination, &put.state.workdir(), &ownership, &below)?)
    }

    /// The layers of a COPY: remembered under its key, or each under its entries, or written now. `prepare` makes ready what `open` needs.
    fn place<P>(
        &self,
        Named { key, parts }: &Named<'_>,
        selected: &[Selected],
        put: &Put<'_>,
        digest: &dyn Fn(&Content) -> Option<Digest>,
        prepare: &dyn Fn() -> Stepped<P>,
        open: &dyn Fn(&P, &Content, u64) -> io::Result<Opened>,
    ) -> Stepped<Given> {
        let (store, epoch) = (self.builder.store, self.request.epoch);
        if let Some(layers) = self.recall(key)? {
            self.hit(put.instruction, Known::Step, put.state);
            return Ok(Given { layers, cached: true });
        }
        let parts = parts();
        let entries = self.entries(selected, put)?;
        let entries = match put.packed {
            None => vec![entries],
            Some(most) => pack::pack(entries, most),
        };
        let mut all = Vec::with_capacity(entries.len());
        for entries in &entries {
            let by_entries = keys::entries(entries, epoch, digest);
            all.push((entries, by_entries, self.recall_one(&by_entries)?));
        }
        let cached = all.iter().all(|(.., known)| known.is_some());
        if cached {
            self.hit(put.instruction, Known::Files, put.state);
        } else {
            self.missed(put.instruction, key, &parts, put.state)?;
        }
        let mut prepared = None;
        let mut layers = Vec::with_capacity(all.len());
        for (entries, by_entries, known) in all {
            let layer = match known {
                Some(layer) => layer,
                None if entries.is_empty() => {
                    self.remember(&by_entries, &[], None)?;
                    None
                }
                None => {
                    let prepared = match &mut prepared {
                        Some(prepared) => prepared,
                        none => none.insert(prepare()?),
                    };
                    let open = |content: &Content, size: u64| open(prepared, content, size);
                    let layer = write_layer(entries, self.request.form(), store, digest, &open)?;
                    self.remember_entries(entries, &by_entries, &layer)?;
                    Some(layer)
                }
            };
            layers.extend(layer);
        }
        self.remember(key, &layers, Some(parts))?;
        Ok(Given { layers, cached })
    }
}

/// Which archives ADD unpacks.
#[derive(Debug, Clone)]
struct Unpack {
    /// Those of the context.
    context: bool,
    /// Those of URLs.
    fetched: bool,
    /// Those of repositories, which were packed here.
    always: BTreeSet<Digest>,
}

/// The key of a COPY, and its parts for those who want to know.
struct Named<'a> {
    key: Digest,
    parts: &'a dyn Fn() -> Parts,
}

/// Where a COPY puts what it takes.
pub(super) struct Put<'a> {
    pub(super) instruction: &'a Instruction,
    pub(super) state: &'a State<'a>,
    destination: String,
    chown: Option<String>,
    mode: Option<ModeChange>,
    pub(super) choice: Choice,
    /// How many layers it may become, where it is packed.
    pub(super) packed: Option<usize>,
    /// All of it, for the key.
    pub(super) to: Value,
}

impl Put<'_> {
    /// What a key says of it.
    pub(super) fn parts(&self, epoch: u64) -> Parts {
        let mut parts = Parts::new(&self.state.draft.layers, self.state.base, epoch);
        for (name, value) in self.to.as_object().into_iter().flatten() {
            parts.add(if name == "path" { "destination" } else { name }, value);
        }
        parts
    }
}

/// What a key says of a RUN.
fn run_parts(step: &RunStep, planned: &Planned, state: &State<'_>) -> Parts {
    let mut parts = Parts::new(&step.layers, state.base, step.epoch);
    parts.command(&step.argv);
    for (name, value) in &step.env {
        parts.hide(&format!("env {name}"), &json!(value));
    }
    parts.add("user", &json!(step.user));
    parts.add("workdir", &json!(step.workdir));
    parts.add("platform", &json!(step.platform.to_string()));
    match step.network {
        Network::None => {}
        Network::Machine => parts.add("network", &json!("default")),
        Network::Recorded => parts.add("network", &json!("record")),
    }
    planned.parts(&mut parts);
    parts
}

/// Whether an argument says which proxies there are.
fn is_proxy(name: &str) -> bool {
    PREDEFINED.contains(&name) && name.to_ascii_lowercase().ends_with("_proxy")
}

/// The `diff_id` of what a step gave.
pub(super) fn diff_id(layer: Option<&Layer>) -> Digest {
    layer.map_or_else(nothing, |layer| layer.diff_id)
}

fn source_text(source: &Source) -> Option<&str> {
    match source {
        Source::Path(text) | Source::Fetched(text, ..) => Some(text),
        Source::Inline(..) => None,
    }
}

/// Where a source stands, and what it became when variables were replaced.
fn place_of((written, replaced): (&dockerfile::Source, &Source)) -> Option<(Position, String)> {
    match (written, replaced) {
        (dockerfile::Source::Path(word), Source::Path(text) | Source::Fetched(text, ..)) => {
            Some((word.at, text.clone()))
        }
        _ => None,
    }
}

/// The digest of a content that a key says more of than where it is.
pub(super) fn digest_of(content: &Content) -> Option<Digest> {
    match content {
        Content::Context(file) => Some(file.digest().expect("all files that are copied were learned before")),
        Content::Bytes(bytes) => Some(Digest::of(bytes)),
        Content::Blob(digest) => Some(*digest),
        Content::None | Content::Path(_) | Content::Layer(..) | Content::Part { .. } => None,
    }
}

/// Learns the digests of all files that are taken.
pub(super) fn learn(selected: &[Selected], contents: &mut Contents) -> Stepped<()> {
    refuse_special(selected)?;
    Ok(contents.learn(files(selected))?)
}

/// The files of the context that are taken.
pub(super) fn files(selected: &[Selected]) -> impl Iterator<Item = &File> {
    let found =
        selected.iter().flat_map(|one| std::iter::once(&one.top).chain(one.below.iter().map(|(_, found)| found)));
    found.filter_map(|found| match &found.content {
        Content::Context(file) => Some(&**file),
        _ => None,
    })
}

/// Named pipes and devices are not copied.
pub(super) fn refuse_special(selected: &[Selected]) -> Stepped<()> {
    if let Some(Selected { name, .. }) = selected.iter().find(|one| {
        one.top.entry.node == Node::Fifo || one.below.iter().any(|(_, found)| found.entry.node == Node::Fifo)
    }) {
        return Err(CopyError::Special { path: TarPath::normal(name) }.into());
    }
    Ok(())
}

/// What `jiji.lock` says of a step that changed nothing: the digest of a tar without entries.
fn nothing() -> Digest {
    Digest::of([0; 1024])
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// `user[:group]` as numbers. A user's name brings its own group, a number the group of the same number.
fn owner(text: &str, accounts: &Accounts) -> Stepped<(u32, u32)> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (text, None),
    };
    let unknown = |kind, name: &str, file| StepError::Owner { kind, name: name.to_owned(), file };
    let (uid, own) = match user.parse::<u32>() {
        Ok(number) => (number, number),
        Err(_) if user.is_empty() || user == "root" => (0, 0),
        Err(_) => accounts.user(user).ok_or_else(|| unknown("user", user, "passwd"))?,
    };
    let gid = match group.map(|group| (group, group.parse::<u32>())) {
        None => own,
        Some((_, Ok(number))) => number,
        Some(("root", Err(_))) => 0,
        Some((name, Err(_))) => accounts.group(name).ok_or_else(|| unknown("group", name, "group"))?,
    };
    Ok((uid, gid))
}

fn mode(text: &str) -> std::result::Result<ModeChange, Problem> {
    ModeChange::parse(text).ok_or_else(|| Problem::FlagValue {
        flag: "chmod",
        value: text.to_owned(),
        expected: "octal digits such as `755`, or changes such as `u+x,go=rX`",
    })
}

/// The ports that a word of EXPOSE says: `PORT[-PORT][/tcp|udp|sctp]`, each as `PORT/PROTOCOL`.
pub(super) fn ports(text: &str) -> std::result::Result<Vec<String>, Problem> {
    let bad = || Problem::Unexpected {
        instruction: "EXPOSE",
        word: text.to_owned(),
        expected: "a port from 1 to 65535 or a range of ports, and after it `/tcp`, `/udp`, `/sctp` or nothing",
    };
    let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let (first, last) = (first.parse::<u16>().map_err(|_| bad())?, last.parse::<u16>().map_err(|_| bad())?);
    if first == 0 || last < first || !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(bad());
    }
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

/// HEALTHCHECK in Docker's configuration, which OCI's does not have: Docker reads it, Podman warns and ignores it.
pub(super) fn healthcheck(check: Option<&Healthcheck>, state: &State<'_>) -> Value {
    let Some(check) = check else { return json!({"Test": ["NONE"]}) };
    let test: Vec<String> = match &check.command {
        Command::Exec(list) => std::iter::once("CMD".to_owned()).chain(list.clone()).collect(),
        Command::Shell(text) if state.shell() == super::SHELL => vec!["CMD-SHELL".to_owned(), text.clone()],
        command @ Command::Shell(_) => std::iter::once("CMD".to_owned()).chain(state.argv(command)).collect(),
    };
    let mut value = json!({"Test": test});
    for (name, duration) in [
        ("Interval", check.interval),
        ("Timeout", check.timeout),
        ("StartPeriod", check.start_period),
        ("StartInterval", check.start_interval),
    ] {
        if let Some(duration) = duration.filter(|duration| duration.0 > 0) {
            value[name] = json!(duration.0);
        }
    }
    if let Some(retries) = check.retries.filter(|retries| *retries > 0) {
        value["Retries"] = json!(retries);
    }
    value
}

/// The sources with archives in place of the files that are some. They are kept in `archives`.
fn unpacked(
    selected: Vec<Selected>,
    wanted: &Unpack,
    root: &Path,
    store: &Store,
    archives: &mut BTreeMap<Digest, Archive>,
    exclude: &context::Ignore,
) -> Stepped<Vec<Selected>> {
    let room = store.root().join("tmp");
    let unpack = |one: Selected| {
        let of_git = matches!(&one.top.content, Content::Blob(digest) if wanted.always.contains(digest));
        let is_wanted = match &one.top.content {
            Content::Context(_) => wanted.context,
            Content::Blob(_) => wanted.fetched || of_git,
            _ => false,
        };
        if !is_wanted {
            return Ok(one);
        }
        let name = || String::from_utf8_lossy(one.path.as_bytes()).into_owned();
        let failed = |source| StepError::Archive { path: name(), source };
        let digest = digest_of(&one.top.content).ok_or(ArchiveError::Changed).map_err(failed)?;
        let file = match &one.top.content {
            Content::Context(file) => context::open(root, &file.path).map_err(|source| failed(source.into()))?,
            _ => store.open_blob(&digest)?.0,
        };
        match Archive::open(file, &digest, &room, UnpackLimits::default()).map_err(failed)? {
            None => Ok(one),
            Some(archive) => {
                let mut one = one.unpacked(archive.entries.clone());
                archives.insert(digest, archive);
                if of_git && !exclude.is_empty() {
                    copy::leave_out(exclude, &mut one);
                }
                Ok(one)
            }
        }
    };
    selected.into_iter().map(unpack).collect()
}
