//! Why a step is done: what of its key differs from that of the same step in the build before.
//!
//! The store keeps the parts of a key beside what the step gave, and of each image's last build which key each step had. Values of variables
//! are kept as digests, so that whoever reads the store learns none; secrets are in no key. Nothing here decides anything: a step
//! of which no parts are known is done or not as any other.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use jiji_model::digest::{Digest, canonical_json};
use jiji_store::{Layer, Store, StoreError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::turns::held;
use super::{Evaluation, Memory, State, keys};
use crate::build::dockerfile::Instruction;
use crate::build::error::StepError;
use crate::build::layer::TarPath;

/// The version of what is kept of a build's steps.
const VERSION: u32 = 1;
/// How many files of a context are kept one by one; the rest is kept as one digest.
const FILES: usize = 5000;
/// Characters of a value that are kept and shown.
const LONG: usize = 80;
/// Names of files that are shown.
const SHOWN: usize = 5;

/// The parts of a key by their names: `command`, `env NAME`, `file PATH` and so on, each with a value that tells whether it is the same.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Parts(BTreeMap<String, String>);

impl Parts {
    /// Those that every key has. Of the layers below, `base` are of the stage's base.
    pub(super) fn new(layers: &[Layer], base: usize, epoch: u64) -> Self {
        let diff_ids: Vec<Digest> = layers.iter().map(|layer| layer.diff_id).collect();
        let (base, above) = diff_ids.split_at(base.min(diff_ids.len()));
        let mut parts = Self::default();
        parts.add("base", &json!(Digest::of_json(&base).short()));
        parts.add("above", &json!(Digest::of_json(&above).short()));
        parts.add("epoch", &json!(epoch));
        parts.add("rules", &json!(keys::RULES));
        parts
    }

    /// A part that may be shown, unless it is nothing.
    pub(super) fn add(&mut self, name: &str, value: &Value) {
        let text = match value {
            Value::Null => return,
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let shown = match text.char_indices().nth(LONG) {
            None => text,
            Some((cut, _)) => format!("{}… ({})", &text[..cut], Digest::of(&text).short()),
        };
        self.0.insert(name.to_owned(), shown);
    }

    /// A part that is kept as a digest alone.
    pub(super) fn hide(&mut self, name: &str, value: &Value) {
        self.0.insert(name.to_owned(), Digest::of_json(value).short().to_string());
    }

    /// A command: its words as they would be typed.
    pub(super) fn command(&mut self, argv: &[String]) {
        self.add("command", &json!(argv.join(" ")));
        self.hide("words", &json!(argv));
    }

    /// Files that are taken, each with what the key says of it.
    pub(super) fn files(&mut self, files: impl Iterator<Item = (TarPath, Value)>) {
        let mut rest = Vec::new();
        for (number, (path, value)) in files.enumerate() {
            if number < FILES {
                self.hide(&format!("file {}", &path.to_string()[1..]), &value);
            } else {
                rest.push(json!([path.to_string(), value]));
            }
        }
        if !rest.is_empty() {
            self.hide("files", &json!(rest));
        }
    }
}

/// The part of a step that is done again since a URL that it asked for is pinned to another answer.
pub(super) const REPINNED: &str = "repinned";

/// How a part differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Change {
    Changed,
    Added,
    Removed,
}

/// Parts of one kind that differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Differs {
    /// The kind: `command`, `env`, `file`, …
    part: String,
    /// How many.
    count: usize,
    /// The first of them by name, where the kind has names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    names: Vec<(String, Change)>,
    /// What it was, where that can be shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    was: Option<String>,
    /// What it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    is: Option<String>,
}

/// Why a step is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "why")]
enum Why {
    /// It was asked for.
    Renewed,
    /// No build of this image had such a step.
    New,
    /// Its key is the same, and what it gave is not here.
    Gone,
    /// Its key is the same, and a URL that it asked for is pinned to another answer.
    Repinned,
    /// The step as it was before is not in the store any more.
    Unknown,
    /// The store knows the step as it was before, and not the parts of its key.
    NoParts,
    /// Parts of its key differ.
    Differs { differs: Vec<Differs> },
}

fn differs(was: &Parts, is: &Parts) -> Vec<Differs> {
    let mut found: BTreeMap<&str, Differs> = BTreeMap::new();
    let mut order = Vec::new();
    let names: BTreeSet<&String> = was.0.keys().chain(is.0.keys()).collect();
    for name in names {
        let (old, new) = (was.0.get(name), is.0.get(name));
        let change = match (old, new) {
            (Some(old), Some(new)) if old == new => continue,
            (Some(_), Some(_)) => Change::Changed,
            (None, _) => Change::Added,
            (_, None) => Change::Removed,
        };
        let (part, own) = name.split_once(' ').map_or((name.as_str(), None), |(part, own)| (part, Some(own)));
        let differs = found.entry(part).or_insert_with(|| {
            order.push(part);
            Differs { part: part.to_owned(), count: 0, names: Vec::new(), was: None, is: None }
        });
        differs.count += 1;
        match own {
            Some(own) if differs.names.len() < SHOWN => differs.names.push((own.to_owned(), change)),
            Some(_) => {}
            None if HIDDEN.contains(&part) => {}
            None => (differs.was, differs.is) = (old.cloned(), new.cloned()),
        }
    }
    // `words` tells commands apart that look alike; where the command itself differs it says nothing more.
    if found.contains_key("command") {
        found.remove("words");
    }
    order.into_iter().filter_map(|part| found.remove(part)).collect()
}

/// Parts whose values say nothing to people.
const HIDDEN: [&str; 5] = ["base", "above", "from", "words", "files"];

impl Differs {
    fn text(&self) -> String {
        let what = match self.part.as_str() {
            "base" => return "the base image is another".to_owned(),
            "above" => return "a step above gives something else".to_owned(),
            "from" => return "what it copies from gives something else".to_owned(),
            "words" => return "the command's words are others".to_owned(),
            "files" => return "files beyond the first 5000 are others".to_owned(),
            "rules" => "the rules of this jiji",
            "env" => "the environment",
            "file" if self.count == 1 => "1 file",
            "file" => return format!("{} files: {}", self.count, self.list()),
            "mount" => "the mounts",
            part => return self.values(&format!("the {part}")),
        };
        if self.names.is_empty() { self.values(what) } else { format!("{what}: {}", self.list()) }
    }

    fn list(&self) -> String {
        let name = |(name, change): &(String, Change)| match change {
            Change::Changed => format!("`{name}` changed"),
            Change::Added => format!("`{name}` is new"),
            Change::Removed => format!("`{name}` is gone"),
        };
        let mut text = self.names.iter().map(name).collect::<Vec<_>>().join(", ");
        if self.count > self.names.len() {
            let _ = write!(text, " and {} more", self.count - self.names.len());
        }
        text
    }

    fn values(&self, what: &str) -> String {
        let value = |value: &Option<String>| value.as_ref().map_or("nothing".to_owned(), |value| format!("`{value}`"));
        format!("{what} was {}, is {}", value(&self.was), value(&self.is))
    }
}

impl Why {
    fn text(&self) -> String {
        match self {
            Self::Renewed => "all is done again, as it was asked for".to_owned(),
            Self::New => "no build of this image had this step".to_owned(),
            Self::Gone => "nothing changed, and what it gave is not in the store".to_owned(),
            Self::Repinned => "jiji.lock says another answer to a URL that it asked for".to_owned(),
            Self::Unknown => "the step as it was before is not in the store".to_owned(),
            Self::NoParts => "the store has no record of the parts of the step as it was before".to_owned(),
            Self::Differs { differs } if differs.is_empty() => {
                "its key is another, and none of the parts that are kept".to_owned()
            }
            Self::Differs { differs } => differs.iter().map(Differs::text).collect::<Vec<_>>().join("; "),
        }
    }
}

/// How it came that a step need not be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// `jiji.lock` says what it gives, and the store has that.
    Lock,
    /// It was done before with all the same.
    Step,
    /// It was done before, or another step came to the same files.
    Files,
    /// Another stage of this build did it.
    Build,
}

/// A step of a build and the key that it had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Passed {
    stage: String,
    step: usize,
    instruction: String,
    key: Digest,
}

/// The steps of an image's last build.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Course {
    steps: Vec<Passed>,
}

/// Whether this is the record of a build's steps.
pub(in crate::build) fn is_record(bytes: &[u8]) -> bool {
    serde_json::from_slice::<Course>(bytes).is_ok()
}

/// The steps of the build before and of this one.
#[derive(Debug)]
pub(super) struct Courses {
    name: Digest,
    before: Vec<Passed>,
    now: Vec<Passed>,
}

impl Courses {
    /// Those of an image.
    pub(super) fn read(image: &str, store: &Store) -> Result<Self, StoreError> {
        let name = Digest::of_json(&json!({"steps-of": image, "version": VERSION}));
        let record = store.action(&name)?;
        let before = record.and_then(|record| serde_json::from_slice::<Course>(&record).ok());
        Ok(Self { name, before: before.map(|course| course.steps).unwrap_or_default(), now: Vec::new() })
    }

    /// Keeps the steps of this build for the next. Where it did not come to its end, those of the one before stay for what is missing.
    pub(super) fn keep(&mut self, whole: bool, store: &Store) -> Result<(), StoreError> {
        let mut steps = std::mem::take(&mut self.now);
        if !whole {
            let missing = |old: &&Passed| !steps.iter().any(|new| (&new.stage, new.step) == (&old.stage, old.step));
            let old: Vec<_> = self.before.iter().filter(missing).cloned().collect();
            steps.extend(old);
        }
        steps.sort_by(|a, b| (&a.stage, a.step).cmp(&(&b.stage, b.step)));
        if steps != self.before {
            store.record_action(&self.name, &canonical_json(&Course { steps }))?;
        }
        Ok(())
    }

    /// The step as it was: at the same place, or with the same text wherever it stood, or at the same place with another text.
    fn nearest(&self, own: &Passed) -> Option<&Passed> {
        let place = |old: &&Passed| (&old.stage, old.step) == (&own.stage, own.step);
        let same = |old: &&Passed| old.instruction == own.instruction;
        let kind = |text: &str| text.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
        let mut all = self.before.iter();
        all.clone()
            .find(|old| place(old) && same(old))
            .or_else(|| all.clone().find(|old| old.stage == own.stage && same(old)))
            .or_else(|| all.clone().find(same))
            .or_else(|| all.find(|old| place(old) && kind(&old.instruction) == kind(&own.instruction)))
    }
}

impl Evaluation<'_> {
    /// Notes the key of a step.
    pub(super) fn passed(&self, instruction: &Instruction, key: &Digest, state: &State<'_>) {
        held(&self.courses).now.push(Passed {
            stage: state.label.clone(),
            step: state.trace.len() + 1,
            instruction: instruction.text.clone(),
            key: *key,
        });
    }

    /// Says why a step is known, where that is asked for.
    pub(super) fn hit(&self, instruction: &Instruction, known: Known, state: &State<'_>) {
        let (name, text) = match known {
            Known::Lock => ("lock", "jiji.lock says what it gives"),
            Known::Step => ("step", "it was done before, and nothing changed"),
            Known::Files => ("files", "its files were laid out before"),
            Known::Build => ("build", "another stage did it"),
        };
        self.explained(instruction, "hit", text, json!({"hit": true, "known": name}), state);
    }

    /// Says why a step is done, where that is asked for.
    pub(super) fn missed(
        &self,
        instruction: &Instruction,
        key: &Digest,
        parts: &Parts,
        state: &State<'_>,
    ) -> Result<(), StepError> {
        if !self.request.explain {
            return Ok(());
        }
        let why = self.why(instruction, key, parts, state)?;
        let mut data = json!(why);
        data["hit"] = json!(false);
        self.explained(instruction, "miss", &why.text(), data, state);
        Ok(())
    }

    fn why(&self, instruction: &Instruction, key: &Digest, parts: &Parts, state: &State<'_>) -> Result<Why, StepError> {
        if matches!(self.memory, Memory::Renew) {
            return Ok(Why::Renewed);
        }
        let own = Passed {
            stage: state.label.clone(),
            step: state.trace.len() + 1,
            instruction: instruction.text.clone(),
            key: *key,
        };
        let Some(old) = held(&self.courses).nearest(&own).cloned() else { return Ok(Why::New) };
        if old.key == *key {
            return Ok(if parts.0.contains_key(REPINNED) { Why::Repinned } else { Why::Gone });
        }
        Ok(match keys::parts(&old.key, self.builder.store)? {
            None => Why::Unknown,
            Some(None) => Why::NoParts,
            Some(Some(before)) => Why::Differs { differs: differs(&before, parts) },
        })
    }

    fn explained(&self, instruction: &Instruction, word: &str, text: &str, data: Value, state: &State<'_>) {
        if !self.request.explain {
            return;
        }
        let first = instruction.text.lines().next().unwrap_or_default();
        let mut all = state.whereabouts(instruction);
        if let (Some(all), Value::Object(data)) = (all.as_object_mut(), data) {
            all.extend(data);
        }
        self.tell("build.explained", format!("{} {first}: {word}: {text}", state.place()), all);
    }
}
