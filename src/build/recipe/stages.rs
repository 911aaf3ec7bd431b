//! Inputs, steps and layers as stages: what both frontends have in common.

use std::collections::{BTreeMap, BTreeSet};

use toml::Spanned;

use super::super::dockerfile::{
    Command as Argv, Copy, Declaration, From, Instruction, Kind, Pair, Position, Run, RunNetwork, STAGES, Source,
    Stage, Text, Word,
};
use super::super::image::DEFAULT_PATH;
use super::super::pack::MOST;
use super::error::position;
use super::read::{Command, Image, Input, Layer, Network, Recipe, Recorded, Step};
use super::{Found, Problem};

/// What escapes in words: a recipe has no variables, so all that a word could mean otherwise is escaped.
pub(super) const ESCAPE: char = '\\';

/// What may be where a name is due and is not one: it would mean something else to a stage.
const RESERVED: [&str; 2] = ["scratch", "context"];

/// The stages of a recipe, inputs and steps before what needs them, the image last.
pub(super) fn of(recipe: &Recipe, text: &Text) -> Found<Vec<Stage>> {
    let names = Names::of(recipe)?;
    let place = Places(&text.content);
    let mut stages = Vec::new();
    for (name, input) in &recipe.inputs {
        stages.push(place.input(name, input)?);
    }
    for name in names.order()? {
        let (key, step) = names.steps[name];
        stages.push(place.step(key, step, &names)?);
    }
    stages.push(place.image(&recipe.image, &recipe.layers, &names)?);
    Ok(stages)
}

/// What can be named.
struct Names<'a> {
    inputs: BTreeMap<&'a str, &'a Input>,
    steps: BTreeMap<&'a str, (&'a Spanned<String>, &'a Step)>,
}

impl<'a> Names<'a> {
    fn of(recipe: &'a Recipe) -> Found<Self> {
        for (number, name) in recipe.inputs.keys().chain(recipe.steps.keys()).enumerate() {
            if number == STAGES {
                return Err((name.span().start, Problem::TooMany { most: STAGES }));
            }
            check_name(name)?;
        }
        if let Some(twice) = recipe.steps.keys().find(|name| recipe.inputs.contains_key(*name)) {
            return Err((twice.span().start, Problem::Twice { name: twice.get_ref().clone() }));
        }
        Ok(Self {
            inputs: recipe.inputs.iter().map(|(name, input)| (name.get_ref().as_str(), input)).collect(),
            steps: recipe.steps.iter().map(|(name, step)| (name.get_ref().as_str(), (name, step))).collect(),
        })
    }

    /// An input or step, and a path of it, as `NAME` or `NAME:/PATH`.
    fn reference<'t>(&self, text: &'t Spanned<String>) -> Found<(&'t str, Option<&'t str>)> {
        let (name, path) = match text.get_ref().split_once(':') {
            Some((name, path)) => (name, Some(path)),
            None => (text.get_ref().as_str(), None),
        };
        if !self.inputs.contains_key(name) && !self.steps.contains_key(name) {
            return Err((text.span().start, Problem::Unknown { name: name.to_owned() }));
        }
        if let Some(path) = path.filter(|path| !path.starts_with('/')) {
            return Err((text.span().start, Problem::NotAbsolute { path: path.to_owned() }));
        }
        Ok((name, path))
    }

    /// The same as a stage's name and a path in it: a step's is below what it gives. What begins with `./` is the context's, which has no
    /// stage.
    fn place_in<'t>(&self, text: &'t Spanned<String>) -> Found<(Option<&'t str>, String)> {
        if let Some(path) = of_context(text.get_ref()) {
            return Ok((None, path.to_owned()));
        }
        let (name, path) = self.reference(text)?;
        let out = self.steps.get(name).and_then(|(_, step)| step.out.as_ref()).map_or("/", |out| out.get_ref());
        Ok((Some(name), format!("{}{}", out.trim_end_matches('/'), path.unwrap_or("/"))))
    }

    /// What something runs in or begins from: all of an input or step.
    fn system<'t>(&self, text: &'t Spanned<String>) -> Found<&'t str> {
        let name = text.get_ref().as_str();
        if self.inputs.contains_key(name) || self.steps.contains_key(name) {
            return Ok(name);
        }
        Err((text.span().start, Problem::Unknown { name: name.to_owned() }))
    }

    /// The steps, each after those that it needs.
    fn order(&self) -> Found<Vec<&'a str>> {
        let mut order = Vec::new();
        let mut done = BTreeSet::new();
        for name in self.steps.keys() {
            self.visit(name, &mut Vec::new(), &mut done, &mut order)?;
        }
        Ok(order)
    }

    fn visit(
        &self,
        name: &'a str,
        way: &mut Vec<&'a str>,
        done: &mut BTreeSet<&'a str>,
        order: &mut Vec<&'a str>,
    ) -> Found<()> {
        if done.contains(name) {
            return Ok(());
        }
        let (key, step) = self.steps[name];
        if let Some(begin) = way.iter().position(|earlier| *earlier == name) {
            let way = way[begin..].iter().chain([&name]).copied().collect::<Vec<_>>().join(" → ");
            return Err((key.span().start, Problem::Circle { name: name.to_owned(), way }));
        }
        way.push(name);
        let put = step.put.iter().map(|put| &put.get_ref().from);
        let files = step.see.values().chain(put).filter(|text| of_context(text.get_ref()).is_none());
        for needed in step.on.iter().chain(files) {
            let (needed, _) = self.reference(needed)?;
            // One of the map's own, which lives as long as the recipe.
            if let Some((needed, _)) = self.steps.get_key_value(needed) {
                self.visit(needed, way, done, order)?;
            }
        }
        way.pop();
        done.insert(name);
        order.push(name);
        Ok(())
    }
}

/// Small letters, digits, `-` and `_`, a letter first: nothing that a stage's number, an image or an option of a mount could be.
fn check_name(name: &Spanned<String>) -> Found<()> {
    let text = name.get_ref();
    let other = |byte: u8| !matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
    let fine = text.len() <= 64
        && text.bytes().next().is_some_and(|first| first.is_ascii_lowercase())
        && !text.bytes().any(other);
    if fine && !RESERVED.contains(&text.as_str()) {
        return Ok(());
    }
    Err((name.span().start, Problem::Name { name: text.clone() }))
}

/// A path of the context, `./PATH`, which needs no input of its own.
fn of_context(text: &str) -> Option<&str> {
    text.strip_prefix("./").map(|rest| if rest.is_empty() { "." } else { rest })
}

fn absolute(path: &Spanned<String>) -> Found<&str> {
    let text = path.get_ref();
    if text.starts_with('/') { Ok(text) } else { Err((path.span().start, Problem::NotAbsolute { path: text.clone() })) }
}

/// How many layers one may become.
fn packing(packed: &Spanned<u32>) -> Found<usize> {
    let count = usize::try_from(*packed.get_ref()).unwrap_or(usize::MAX);
    if (2..=MOST).contains(&count) {
        return Ok(count);
    }
    Err((packed.span().start, Problem::Packed { count }))
}

/// A text as a word that means exactly it.
fn escaped(text: &str) -> String {
    let mut word = String::with_capacity(text.len());
    for ch in text.chars() {
        if matches!(ch, '\\' | '$' | '"' | '\'') || ch.is_whitespace() {
            word.push(ESCAPE);
        }
        word.push(ch);
    }
    word
}

/// Makes instructions that stand where their keys do.
struct Places<'a>(&'a str);

impl Places<'_> {
    fn at(&self, offset: usize) -> Position {
        position(self.0, offset)
    }

    fn word(&self, text: &Spanned<String>) -> Word {
        self.word_of(text.get_ref(), text.span().start)
    }

    fn word_of(&self, text: &str, offset: usize) -> Word {
        Word { text: escaped(text), at: self.at(offset) }
    }

    fn instruction(&self, offset: usize, name: &'static str, text: String, kind: Kind) -> Instruction {
        Instruction { at: self.at(offset), name, text: format!("{name} {text}"), kind }
    }

    fn stage(&self, name: &Spanned<String>, base: Word, instructions: Vec<Instruction>) -> Stage {
        let at = self.at(name.span().start);
        let from = From { base, service: false, name: Some(name.get_ref().clone()), platform: None };
        Stage { at, from, instructions }
    }

    fn input(&self, name: &Spanned<String>, input: &Input) -> Found<Stage> {
        let Input { image, service, path, url, git, only, exclude, checksum, unpack } = input;
        let count = [image, service, path, url, git].into_iter().flatten().count();
        if count != 1 {
            return Err((name.span().start, Problem::Kinds { name: name.get_ref().clone(), count }));
        }
        let first = |texts: &[Spanned<String>]| texts.first().map(|text| text.span().start);
        let foreign =
            |of, keys: &[(&'static str, Option<usize>)]| match keys.iter().find_map(|(key, at)| Some((*key, (*at)?))) {
                Some((key, at)) => Err((at, Problem::Misplaced { key, of })),
                None => Ok(()),
            };
        let files = [("only", first(only)), ("exclude", first(exclude))];
        let file = [
            ("checksum", checksum.as_ref().map(|value| value.span().start)),
            ("unpack", unpack.as_ref().map(|value| value.span().start)),
        ];
        if let Some(image) = image {
            foreign("an image", &[files, file].concat())?;
            return Ok(self.stage(name, self.word(image), Vec::new()));
        }
        if let Some(service) = service {
            foreign("a service", &[files, file].concat())?;
            let mut stage = self.stage(name, self.word(service), Vec::new());
            stage.from.service = true;
            return Ok(stage);
        }
        let nothing = Word { text: "scratch".to_owned(), at: self.at(name.span().start) };
        let instruction = if let Some(path) = path {
            foreign("a path", &file)?;
            self.files(path, only, exclude)
        } else {
            foreign("what is fetched", &files)?;
            let (source, copy) = match (url, git) {
                (Some(url), _) => {
                    (url, Copy { checksum: checksum.as_ref().map(|sum| self.word(sum)), ..self.copy(url, "/") })
                }
                (None, Some(git)) => (git, self.copy(git, "/")),
                (None, None) => {
                    return Err((name.span().start, Problem::Kinds { name: name.get_ref().clone(), count: 0 }));
                }
            };
            if git.is_some() {
                foreign("a repository", &file)?;
            }
            let copy = Copy { add: true, unpack: unpack.as_ref().map(|unpack| *unpack.get_ref()), ..copy };
            self.instruction(source.span().start, "ADD", format!("{} /", source.get_ref()), Kind::Copy(copy))
        };
        Ok(self.stage(name, nothing, vec![instruction]))
    }

    /// Files of the context: a directory's content, or one file.
    fn files(&self, path: &Spanned<String>, only: &[Spanned<String>], exclude: &[Spanned<String>]) -> Instruction {
        let base = path.get_ref().trim_end_matches('/');
        let mut copy = Copy { exclude: exclude.iter().map(|text| self.word(text)).collect(), ..self.copy(path, "/") };
        let mut text = path.get_ref().clone();
        if !only.is_empty() {
            // What stands before the pivot is left away, what stands after it is kept.
            let below = |pattern: &Spanned<String>| format!("{base}/./{}", pattern.get_ref().trim_start_matches('/'));
            copy.parents = true;
            copy.sources = only.iter().map(|one| Source::Path(self.word_of(&below(one), one.span().start))).collect();
            text = only.iter().map(below).collect::<Vec<_>>().join(" ");
        }
        self.instruction(path.span().start, "COPY", format!("{text} /"), Kind::Copy(copy))
    }

    /// A copy of one source from the context.
    fn copy(&self, source: &Spanned<String>, destination: &str) -> Copy {
        Copy {
            add: false,
            from: None,
            chown: None,
            chmod: None,
            parents: false,
            exclude: Vec::new(),
            unpack: None,
            checksum: None,
            keep_git: false,
            packed: None,
            sources: vec![Source::Path(self.word(source))],
            destination: self.word_of(destination, source.span().start),
        }
    }

    fn step(&self, name: &Spanned<String>, step: &Step, names: &Names<'_>) -> Found<Stage> {
        let begin = name.span().start;
        let base = self.base(step.on.as_ref(), begin, names)?;
        if let Some(packed) = step.put.iter().find_map(|put| put.get_ref().packed.as_ref()) {
            let of = "what is put into a step";
            return Err((packed.span().start, Problem::Misplaced { key: "packed", of }));
        }
        let mut instructions = step.put.iter().map(|put| self.layer(put, names)).collect::<Found<Vec<_>>>()?;
        for (name, value) in &step.env {
            instructions.push(self.variable(name.get_ref(), self.word(value), name.span().start));
        }
        if let Some(path) = self.path(&step.path)? {
            instructions.push(self.variable("PATH", path, step.path[0].span().start));
        }
        instructions.extend(self.where_and_who(step.dir.as_ref(), step.user.as_ref())?);
        if let Some(run) = &step.run {
            instructions.push(self.run(run, step, names)?);
        } else if step.put.is_empty() {
            return Err((begin, Problem::Nothing));
        }
        if let Some(out) = &step.out {
            absolute(out)?;
        }
        Ok(self.stage(name, base, instructions))
    }

    /// A variable of a step, which its command sees and no image has.
    fn variable(&self, name: &str, value: Word, begin: usize) -> Instruction {
        let text = format!("{name}={}", value.text);
        let declaration = Declaration { name: name.to_owned(), default: Some(value), first: true, at: self.at(begin) };
        self.instruction(begin, "ARG", text, Kind::Arg(vec![declaration]))
    }

    /// `PATH` with these directories before those that are there: the only word of a recipe that has a variable.
    fn path(&self, directories: &[Spanned<String>]) -> Found<Option<Word>> {
        let Some(first) = directories.first() else { return Ok(None) };
        let mut text = String::new();
        for directory in directories {
            let path = absolute(directory)?;
            if path.contains(':') {
                return Err((directory.span().start, Problem::Colon { path: path.to_owned() }));
            }
            text.push_str(&escaped(path));
            text.push(':');
        }
        // Where nobody says otherwise, engines and shells look here.
        text.push_str(&format!("${{PATH:-{DEFAULT_PATH}}}"));
        Ok(Some(Word { text, at: self.at(first.span().start) }))
    }

    /// What something begins from: nothing, where nothing is named.
    fn base(&self, on: Option<&Spanned<String>>, at: usize, names: &Names<'_>) -> Found<Word> {
        match on {
            Some(on) => Ok(self.word_of(names.system(on)?, on.span().start)),
            None => Ok(Word { text: "scratch".to_owned(), at: self.at(at) }),
        }
    }

    fn run(&self, run: &Spanned<Command>, step: &Step, names: &Names<'_>) -> Found<Instruction> {
        let at = run.span().start;
        let (argv, text) = match run.get_ref() {
            Command::Shell(text) if !text.trim().is_empty() => {
                (["/bin/sh", "-ec", text].map(str::to_owned).to_vec(), text.trim().to_owned())
            }
            Command::Words(words) if !words.is_empty() => (words.clone(), words.join(" ")),
            Command::Shell(_) | Command::Words(_) => return Err((at, Problem::Nothing)),
        };
        let mounts = self.mounts(step, names)?;
        let network = match step.network {
            Network::Is(false) => RunNetwork::None,
            Network::Is(true) => RunNetwork::Default,
            Network::As(Recorded::Record) => RunNetwork::Record,
        };
        let kind = Kind::Run(Run { command: Argv::Exec(argv), network, mounts, script: None });
        Ok(self.instruction(at, "RUN", text, kind))
    }

    fn where_and_who(&self, dir: Option<&Spanned<String>>, user: Option<&Spanned<String>>) -> Found<Vec<Instruction>> {
        let mut instructions = Vec::new();
        if let Some(dir) = dir {
            let kind = Kind::Workdir(self.word_of(absolute(dir)?, dir.span().start));
            instructions.push(self.instruction(dir.span().start, "WORKDIR", dir.get_ref().clone(), kind));
        }
        if let Some(user) = user {
            let kind = Kind::User(self.word(user));
            instructions.push(self.instruction(user.span().start, "USER", user.get_ref().clone(), kind));
        }
        Ok(instructions)
    }

    /// What a step sees, as `RUN --mount` would say it.
    fn mounts(&self, step: &Step, names: &Names<'_>) -> Found<Vec<Word>> {
        let mut mounts = Vec::new();
        let mut add = |fields: &[(&str, &str)], at: usize| {
            mounts.push(self.word_of(&fields_of(fields), at));
        };
        for (target, what) in &step.see {
            let (from, source) = names.place_in(what)?;
            let target = absolute(target)?;
            // What is written there goes nowhere, so that programs which write beside their sources can.
            let mut fields = vec![("type", "bind")];
            fields.extend(from.map(|from| ("from", from)));
            fields.extend([("source", source.as_str()), ("target", target), ("rw", "true")]);
            add(&fields, what.span().start);
        }
        for (target, id) in &step.cache {
            add(&[("type", "cache"), ("id", id.get_ref()), ("target", absolute(target)?)], target.span().start);
        }
        for name in &step.secrets {
            let id = name.get_ref();
            add(&[("type", "secret"), ("id", id), ("env", id), ("required", "true")], name.span().start);
        }
        Ok(mounts)
    }

    fn image(&self, image: &Image, layers: &[Spanned<Layer>], names: &Names<'_>) -> Found<Stage> {
        let base = self.base(image.on.as_ref(), 0, names)?;
        let mut instructions = layers.iter().map(|layer| self.layer(layer, names)).collect::<Found<Vec<_>>>()?;
        for (name, value) in &image.env {
            instructions.push(self.pair("ENV", Kind::Env, name, value));
        }
        if let Some(value) = self.path(&image.path)? {
            let begin = image.path[0].span().start;
            let text = format!("PATH={}", value.text);
            let name = self.word_of("PATH", begin);
            instructions.push(self.instruction(begin, "ENV", text, Kind::Env(vec![Pair { name, value }])));
        }
        for (name, value) in &image.labels {
            instructions.push(self.pair("LABEL", Kind::Label, name, value));
        }
        instructions.extend(self.where_and_who(image.dir.as_ref(), image.user.as_ref())?);
        for port in &image.ports {
            let text = port.get_ref().to_string();
            let word = self.word_of(&text, port.span().start);
            instructions.push(self.instruction(port.span().start, "EXPOSE", text, Kind::Expose(vec![word])));
        }
        for path in &image.volumes {
            let word = self.word_of(absolute(path)?, path.span().start);
            let text = path.get_ref().clone();
            instructions.push(self.instruction(path.span().start, "VOLUME", text, Kind::Volume(vec![word])));
        }
        if let Some(signal) = &image.stop_signal {
            let kind = Kind::StopSignal(self.word(signal));
            instructions.push(self.instruction(signal.span().start, "STOPSIGNAL", signal.get_ref().clone(), kind));
        }
        // The entrypoint first: it takes away what the base says with CMD.
        for (name, kind, argv) in [
            ("ENTRYPOINT", Kind::Entrypoint as fn(Argv) -> Kind, &image.entrypoint),
            ("CMD", Kind::Cmd as fn(Argv) -> Kind, &image.command),
        ] {
            if let Some(argv) = argv {
                let text = serde_json::to_string(argv.get_ref()).unwrap_or_default();
                let kind = kind(Argv::Exec(argv.get_ref().clone()));
                instructions.push(self.instruction(argv.span().start, name, text, kind));
            }
        }
        let from = From { base, service: false, name: None, platform: None };
        Ok(Stage { at: from.base.at, from, instructions })
    }

    fn pair(
        &self,
        word: &'static str,
        kind: fn(Vec<Pair>) -> Kind,
        name: &Spanned<String>,
        value: &Spanned<String>,
    ) -> Instruction {
        let pair = Pair { name: self.word(name), value: self.word(value) };
        let text = format!("{}={}", name.get_ref(), value.get_ref());
        self.instruction(name.span().start, word, text, kind(vec![pair]))
    }

    fn layer(&self, layer: &Spanned<Layer>, names: &Names<'_>) -> Found<Instruction> {
        let at = layer.span().start;
        let Layer { name, from, to, owner, mode, exclude, packed } = layer.get_ref();
        let (stage, path) = names.place_in(from)?;
        absolute(to)?;
        let words = |texts: &[Spanned<String>]| texts.iter().map(|text| self.word(text)).collect();
        let copy = Copy {
            from: stage.map(|stage| self.word_of(stage, from.span().start)),
            chown: owner.as_ref().map(|owner| self.word(owner)),
            chmod: mode.as_ref().map(|mode| self.word(mode)),
            exclude: words(exclude),
            packed: packed.as_ref().map(packing).transpose()?,
            sources: vec![Source::Path(self.word_of(&path, from.span().start))],
            destination: self.word(to),
            ..self.copy(from, "/")
        };
        let called = name.as_ref().map_or(String::new(), |name| format!("{}: ", name.get_ref()));
        Ok(self.instruction(at, "COPY", format!("{called}{} {}", from.get_ref(), to.get_ref()), Kind::Copy(copy)))
    }
}

/// `NAME=VALUE` with commas between, as one line of CSV (RFC 4180): what `RUN --mount` says.
fn fields_of(fields: &[(&str, &str)]) -> String {
    let field = |(name, value): &(&str, &str)| {
        let field = format!("{name}={value}");
        if field.contains([',', '"']) { format!("\"{}\"", field.replace('"', "\"\"")) } else { field }
    };
    fields.iter().map(field).collect::<Vec<_>>().join(",")
}
