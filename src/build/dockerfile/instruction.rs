//! One logical line as an instruction.

use std::collections::BTreeMap;

use jiji_model::image::Platform;

use super::lines::Line;
use super::{Found, Position, Problem, words};

/// A text whose variables are not replaced yet, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// The text, with its quotes and escapes.
    pub text: String,
    /// Where it begins.
    pub at: Position,
}

/// A FROM line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct From {
    /// `scratch`, an earlier stage's name, or an image.
    pub base: Word,
    /// Whether `base` names a service of the project instead, whose image is meant. A Dockerfile has no word for it.
    pub service: bool,
    /// The stage's name, in lower case.
    pub name: Option<String>,
    /// `--platform`.
    pub platform: Option<Word>,
}

/// An instruction of a stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instruction {
    /// Where it begins.
    pub at: Position,
    /// Its name, in upper case.
    pub name: &'static str,
    /// The whole of it, continuation lines joined.
    pub text: String,
    /// What it says.
    pub kind: Kind,
}

impl Instruction {
    /// Whether it is a step: it can make a layer.
    pub fn is_step(&self) -> bool {
        matches!(self.kind, Kind::Run(_) | Kind::Copy(_) | Kind::Workdir(_))
    }
}

/// What an instruction says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// ARG.
    Arg(Vec<Declaration>),
    /// ENV.
    Env(Vec<Pair>),
    /// LABEL.
    Label(Vec<Pair>),
    /// COPY, and ADD of what is not fetched.
    Copy(Copy),
    /// RUN.
    Run(Run),
    /// WORKDIR.
    Workdir(Word),
    /// USER.
    User(Word),
    /// EXPOSE.
    Expose(Vec<Word>),
    /// VOLUME.
    Volume(Vec<Word>),
    /// STOPSIGNAL.
    StopSignal(Word),
    /// MAINTAINER, which sets the image's author.
    Maintainer(String),
    /// CMD.
    Cmd(Command),
    /// ENTRYPOINT.
    Entrypoint(Command),
    /// SHELL.
    Shell(Vec<String>),
    /// HEALTHCHECK; none for `HEALTHCHECK NONE`.
    Healthcheck(Option<Healthcheck>),
    /// ONBUILD: an instruction for the images that begin from this one, as text. It can be read.
    Onbuild(String),
}

/// One name of an ARG.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declaration {
    /// The name.
    pub name: String,
    /// What stands after `=`.
    pub default: Option<Word>,
    /// Whether it counts before what ENV says: the variables of a recipe's step do.
    pub first: bool,
    /// Where the name stands.
    pub at: Position,
}

/// A `name=value` of ENV or LABEL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The name.
    pub name: Word,
    /// The value.
    pub value: Word,
}

/// A command in one of its two forms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// A text for the shell.
    Shell(String),
    /// An argument list.
    Exec(Vec<String>),
}

/// Whom a RUN can talk to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RunNetwork {
    /// `none`: itself.
    #[default]
    None,
    /// `default`: whomever this machine can.
    Default,
    /// `record`: a proxy, which gives from then on what each URL gave the first time.
    Record,
}

/// RUN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// What is run. A here-document is part of the shell's text.
    pub command: Command,
    /// `--network`.
    pub network: RunNetwork,
    /// `--mount`, as often as it stands there, to be read with [`mount`](super::mount()) after variables are replaced.
    pub mounts: Vec<Word>,
    /// The program that `command` runs, where it is a here-document that begins with `#!`: its name and content.
    pub script: Option<(String, String)>,
}

/// Where a script that stands in the Dockerfile lies while it runs.
const SCRIPTS: &str = "/dev/pipes";

/// COPY or ADD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// Whether it is ADD, which unpacks archives.
    pub add: bool,
    /// `--from`: a stage's name or number, or an image.
    pub from: Option<Word>,
    /// `--chown`, to be read after variables are replaced.
    pub chown: Option<Word>,
    /// `--chmod`, to be read after variables are replaced.
    pub chmod: Option<Word>,
    /// `--parents`.
    pub parents: bool,
    /// `--exclude`, as often as it stands there.
    pub exclude: Vec<Word>,
    /// `--unpack` of ADD: whether archives are unpacked. Those of the context are where nothing is said.
    pub unpack: Option<bool>,
    /// `--checksum` of ADD, to be read after variables are replaced.
    pub checksum: Option<Word>,
    /// `--keep-git-dir` of ADD.
    pub keep_git: bool,
    /// How many layers it may become, where it is packed, which a recipe alone can say.
    pub packed: Option<usize>,
    /// What is copied, at least one.
    pub sources: Vec<Source>,
    /// Where to.
    pub destination: Word,
}

/// What a COPY takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A path or pattern.
    Path(Word),
    /// A here-document.
    Inline(Inline),
}

/// A file whose content stands in the Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inline {
    /// The file's name: the here-document's delimiter.
    pub name: String,
    /// The content.
    pub content: Word,
    /// Whether variables in it are replaced.
    pub expand: bool,
}

/// HEALTHCHECK with a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Healthcheck {
    /// The command.
    pub command: Command,
    /// `--interval`.
    pub interval: Option<Deadline>,
    /// `--timeout`.
    pub timeout: Option<Deadline>,
    /// `--start-period`.
    pub start_period: Option<Deadline>,
    /// `--start-interval`.
    pub start_interval: Option<Deadline>,
    /// `--retries`.
    pub retries: Option<u32>,
}

/// A duration in nanoseconds, as Docker's configuration counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline(pub u64);

/// What a line is.
pub(super) enum Item {
    From(From),
    Step(Instruction),
}

const NAMES: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// Flags that may stand there more than once.
const REPEATED: [&str; 2] = ["mount", "exclude"];

/// Reads one logical line.
pub(super) fn read(line: &Line, escape: char) -> Found<Item> {
    let word = line.text.split(words::is_blank).next().unwrap_or_default();
    let at = line.position(0);
    let Some(name) = NAMES.into_iter().find(|name| word.eq_ignore_ascii_case(name)) else {
        return Err((at, Problem::UnknownInstruction { name: word.to_owned() }));
    };
    let mut reader = Reader { line, escape, name, offset: word.len(), flags: Vec::new() };
    reader.take_flags()?;
    if !matches!(name, "FROM" | "COPY" | "ADD" | "RUN" | "HEALTHCHECK") {
        reader.flags(&[], &[])?;
    }
    let kind = match name {
        "FROM" => return reader.from().map(Item::From),
        "ARG" => Kind::Arg(reader.declarations()?),
        "ENV" => Kind::Env(reader.pairs()?),
        "LABEL" => Kind::Label(reader.pairs()?),
        "COPY" => Kind::Copy(reader.copy(false)?),
        "ADD" => Kind::Copy(reader.copy(true)?),
        "RUN" => Kind::Run(reader.run()?),
        "WORKDIR" => Kind::Workdir(reader.single("a path")?),
        "USER" => Kind::User(reader.single("a user")?),
        "STOPSIGNAL" => Kind::StopSignal(reader.single("a signal")?),
        "MAINTAINER" => Kind::Maintainer(reader.single("a name")?.text),
        "EXPOSE" => Kind::Expose(reader.list("a port")?),
        "VOLUME" => Kind::Volume(reader.json_or_list("a path")?),
        "CMD" => Kind::Cmd(reader.command()?),
        "ENTRYPOINT" => Kind::Entrypoint(reader.command()?),
        "SHELL" => Kind::Shell(reader.shell()?),
        "ONBUILD" => Kind::Onbuild(reader.trigger()?),
        _ => Kind::Healthcheck(reader.healthcheck()?),
    };
    let text = line.text.clone();
    Ok(Item::Step(Instruction { at, name, text, kind }))
}

struct Flag {
    name: String,
    value: Option<String>,
    at: Position,
}

struct Reader<'a> {
    line: &'a Line,
    escape: char,
    name: &'static str,
    offset: usize,
    flags: Vec<Flag>,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.line.text[self.offset..]
    }

    fn here(&self) -> Position {
        let blank = self.rest().len() - self.rest().trim_start().len();
        self.line.position(self.offset + blank)
    }

    fn missing(&self, what: &'static str) -> (Position, Problem) {
        (self.line.position(0), Problem::Missing { instruction: self.name, what })
    }

    /// Takes the words that begin with `--`, up to the first that does not, or to `--` alone.
    fn take_flags(&mut self) -> Found<()> {
        loop {
            let rest = self.rest();
            let text = rest.trim_start();
            if !text.starts_with("--") {
                return Ok(());
            }
            self.offset += rest.len() - text.len();
            let position = self.line.position(self.offset);
            let (word, length) = words::flag(text, self.escape).map_err(|problem| (position, problem))?;
            self.offset += length;
            let Some(word) = word.strip_prefix("--").filter(|word| !word.is_empty()) else {
                return Ok(());
            };
            let (name, value) = match word.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (word.to_owned(), None),
            };
            if !REPEATED.contains(&name.as_str()) && self.flags.iter().any(|flag| flag.name == name) {
                return Err((position, Problem::FlagTwice { flag: name }));
            }
            self.flags.push(Flag { name, value, at: position });
        }
    }

    /// The values of the known flags. Of `unsupported` it is known what they mean, and that jiji does not do it.
    fn flags(&mut self, known: &[&'static str], unsupported: &[&str]) -> Found<BTreeMap<&'static str, Word>> {
        let mut values = BTreeMap::new();
        for Flag { name, value, at } in std::mem::take(&mut self.flags) {
            if let Some(known) = known.iter().copied().find(|known| *known == name) {
                let Some(text) = value else {
                    return Err((at, Problem::FlagValue { flag: known, value: String::new(), expected: "a value" }));
                };
                let at = Position { line: at.line, column: at.column + name.chars().count() as u32 + 3 };
                values.insert(known, Word { text, at });
            } else if unsupported.contains(&name.as_str()) {
                return Err((at, Problem::UnsupportedFlag { instruction: self.name, flag: format!("--{name}") }));
            } else {
                return Err((at, Problem::UnknownFlag { instruction: self.name, flag: name }));
            }
        }
        Ok(values)
    }

    /// Takes a flag that is there or not, or says so.
    fn switch(&mut self, name: &'static str) -> Found<Option<bool>> {
        let Some(at) = self.flags.iter().position(|flag| flag.name == name) else { return Ok(None) };
        let Flag { value, at, .. } = self.flags.remove(at);
        match value.as_deref() {
            None | Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(other) => {
                let (value, expected) = (other.to_owned(), "`true` or `false`");
                Err((at, Problem::FlagValue { flag: name, value, expected }))
            }
        }
    }

    /// Takes all values of a flag that may stand there more than once.
    fn repeated(&mut self, name: &'static str) -> Found<Vec<Word>> {
        let (wanted, others) = std::mem::take(&mut self.flags).into_iter().partition(|flag| flag.name == name);
        self.flags = others;
        let value = |Flag { value, at, .. }: Flag| match value {
            Some(text) => Ok(after(&Word { text: String::new(), at }, name.len() + 3, &text)),
            None => Err((at, Problem::FlagValue { flag: name, value: String::new(), expected: "a value" })),
        };
        Vec::into_iter(wanted).map(value).collect()
    }

    fn words(&self, split: Vec<(usize, String)>) -> Vec<Word> {
        split.into_iter().map(|(at, text)| Word { text, at: self.line.position(self.offset + at) }).collect()
    }

    fn list(&self, what: &'static str) -> Found<Vec<Word>> {
        let list = self.words(words::plain(self.rest()));
        if list.is_empty() { Err(self.missing(what)) } else { Ok(list) }
    }

    /// A JSON array of strings, where the rest of the line is one. What is no JSON is meant for the shell.
    fn json(&self) -> Found<Option<Vec<String>>> {
        let rest = self.rest().trim();
        if !rest.starts_with('[') {
            return Ok(None);
        }
        match serde_json::from_str::<Vec<serde_json::Value>>(rest) {
            Err(_) => Ok(None),
            Ok(list) => {
                let strings = list.into_iter().map(|value| match value {
                    serde_json::Value::String(text) => Ok(text),
                    other => {
                        let expected = "strings alone in an array";
                        let (instruction, word) = (self.name, other.to_string());
                        Err((self.here(), Problem::Unexpected { instruction, word, expected }))
                    }
                });
                strings.collect::<Found<Vec<String>>>().map(Some)
            }
        }
    }

    fn json_or_list(&self, what: &'static str) -> Found<Vec<Word>> {
        match self.json()? {
            Some(list) if list.is_empty() => Err(self.missing(what)),
            Some(list) => {
                let at = self.here();
                Ok(list.into_iter().map(|text| Word { text, at }).collect())
            }
            None => self.list(what),
        }
    }

    fn single(&self, what: &'static str) -> Found<Word> {
        let text = self.rest().trim().to_owned();
        if text.is_empty() { Err(self.missing(what)) } else { Ok(Word { text, at: self.here() }) }
    }

    fn from(&mut self) -> Found<From> {
        let platform = self.flags(&["platform"], &[])?.remove("platform");
        let mut list = self.list("an image, a stage or `scratch`")?.into_iter();
        let base = list.next().ok_or_else(|| self.missing("an image, a stage or `scratch`"))?;
        let name = match (list.next(), list.next(), list.next()) {
            (None, ..) => None,
            (Some(word), Some(name), None) if word.text.eq_ignore_ascii_case("as") => {
                let lower = name.text.to_ascii_lowercase();
                let good = lower.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b))
                    && lower.as_bytes().first().is_some_and(u8::is_ascii_lowercase)
                    && lower != "scratch";
                if !good {
                    return Err((name.at, Problem::StageName { name: name.text }));
                }
                Some(lower)
            }
            (Some(word), ..) => {
                let expected = "one image, and after it `AS name` or nothing";
                return Err((word.at, Problem::Unexpected { instruction: self.name, word: word.text, expected }));
            }
        };
        Ok(From { base, service: false, name, platform })
    }

    fn declarations(&self) -> Found<Vec<Declaration>> {
        let list = self.words(words::quoted(self.rest(), self.escape));
        if list.is_empty() {
            return Err(self.missing("a name"));
        }
        list.into_iter()
            .map(|word| {
                let (name, default) = match word.text.split_once('=') {
                    Some((name, value)) => (name, Some(after(&word, name.chars().count() + 1, value))),
                    None => (word.text.as_str(), None),
                };
                if name.is_empty() {
                    return Err((word.at, Problem::NotAPair { word: word.text }));
                }
                Ok(Declaration { name: name.to_owned(), default, first: false, at: word.at })
            })
            .collect()
    }

    fn pairs(&self) -> Found<Vec<Pair>> {
        let list = self.words(words::quoted(self.rest(), self.escape));
        let Some(first) = list.first() else {
            return Err(self.missing("`name=value`"));
        };
        if !first.text.contains('=') {
            // The old form: one name, and all the rest is the value.
            let rest = self.rest().trim();
            let Some((name, value)) = rest.split_once(char::is_whitespace) else {
                return Err((first.at, Problem::NotAPair { word: first.text.clone() }));
            };
            let value = value.trim_start();
            let offset = self.line.text.len() - value.len();
            return Ok(vec![Pair {
                name: Word { text: name.to_owned(), at: first.at },
                value: Word { text: value.to_owned(), at: self.line.position(offset) },
            }]);
        }
        list.into_iter()
            .map(|word| match word.text.split_once('=') {
                Some((name, value)) if !name.is_empty() => Ok(Pair {
                    value: after(&word, name.chars().count() + 1, value),
                    name: Word { text: name.to_owned(), at: word.at },
                }),
                _ => Err((word.at, Problem::NotAPair { word: word.text })),
            })
            .collect()
    }

    fn command(&self) -> Found<Command> {
        Ok(match self.json()? {
            Some(list) => Command::Exec(list),
            None => Command::Shell(self.rest().trim().to_owned()),
        })
    }

    fn shell(&self) -> Found<Vec<String>> {
        match self.json()? {
            Some(list) if !list.is_empty() => Ok(list),
            _ => Err(self.missing("a JSON array, such as `[\"/bin/bash\", \"-c\"]`")),
        }
    }

    fn run(&mut self) -> Found<Run> {
        for flag in &self.flags {
            let value = flag.value.as_deref().unwrap_or_default();
            if flag.name == "network" && !matches!(value, "none" | "default" | "record")
                || flag.name == "security" && value != "sandbox"
            {
                let flag_text = format!("--{}={value}", flag.name);
                return Err((flag.at, Problem::UnsupportedFlag { instruction: self.name, flag: flag_text }));
            }
        }
        let mounts = self.repeated("mount")?;
        let flags = self.flags(&["network", "security"], &["device"])?;
        let network = match flags.get("network").map(|word| word.text.as_str()) {
            Some("default") => RunNetwork::Default,
            Some("record") => RunNetwork::Record,
            _ => RunNetwork::None,
        };
        let mut command = self.command()?;
        let mut script = None;
        match &mut command {
            Command::Exec(list) if list.is_empty() => return Err(self.missing("a command")),
            Command::Shell(text) if text.is_empty() => return Err(self.missing("a command")),
            Command::Exec(_) => {}
            Command::Shell(text) => script = self.append_heredocs(text)?,
        }
        if let Some((name, _)) = &script {
            command = Command::Shell(format!("{SCRIPTS}/{name}"));
        }
        Ok(Run { command, network, mounts, script })
    }

    /// A here-document of RUN is the shell's to read, except where it is the whole command: then it is the script itself.
    fn append_heredocs(&self, text: &mut String) -> Found<Option<(String, String)>> {
        match self.line.heredocs.as_slice() {
            [] => {}
            [only] if self.heredoc(text)?.is_some() => {
                *text = only.content();
                if text.starts_with("#!") {
                    let good = |ch: char| ch.is_ascii_alphanumeric() || matches!(ch, '.' | '_' | '-');
                    if !only.name.chars().all(good) || only.name.starts_with('.') {
                        let expected = "a delimiter that can be a program's name, of letters, digits, `.`, `_` and `-`";
                        let (instruction, word) = (self.name, only.name.clone());
                        return Err((self.here(), Problem::Unexpected { instruction, word, expected }));
                    }
                    return Ok(Some((only.name.clone(), text.clone())));
                }
            }
            heredocs => {
                for heredoc in heredocs {
                    *text = format!("{text}\n{}{}", heredoc.raw, heredoc.end);
                }
            }
        }
        Ok(None)
    }

    fn heredoc(&self, word: &str) -> Found<Option<words::Opening>> {
        words::heredoc(word).map_err(|problem| (self.line.position(0), problem))
    }

    fn copy(&mut self, add: bool) -> Found<Copy> {
        // `--link` says how layers are cached elsewhere: here every layer stands alone, so it changes nothing and is taken.
        self.switch("link")?;
        let parents = !add && self.switch("parents")?.unwrap_or(false);
        let exclude = self.repeated("exclude")?;
        let known: &[&str] = if add { &["chown", "chmod", "checksum"] } else { &["from", "chown", "chmod"] };
        let unpack = if add { self.switch("unpack")? } else { None };
        let keep_git = add && self.switch("keep-git-dir")?.unwrap_or(false);
        let mut flags = self.flags(known, &[])?;
        let mut list = self.json_or_list("a source and a destination")?;
        let destination = list.pop().ok_or_else(|| self.missing("a source and a destination"))?;
        if list.is_empty() {
            return Err(self.missing("a source and a destination"));
        }
        if self.heredoc(&destination.text)?.is_some() {
            let expected = "a path as its last word";
            let problem = Problem::Unexpected { instruction: self.name, word: destination.text, expected };
            return Err((destination.at, problem));
        }
        let mut heredocs = self.line.heredocs.iter();
        let mut sources = Vec::with_capacity(list.len());
        for word in list {
            if self.heredoc(&word.text)?.is_some()
                && let Some(heredoc) = heredocs.next()
            {
                sources.push(Source::Inline(Inline {
                    name: heredoc.name.clone(),
                    content: Word { text: heredoc.content(), at: heredoc.at },
                    expand: heredoc.expand,
                }));
                continue;
            }
            sources.push(Source::Path(word));
        }
        Ok(Copy {
            add,
            from: flags.remove("from"),
            chown: flags.remove("chown"),
            chmod: flags.remove("chmod"),
            parents,
            exclude,
            unpack,
            checksum: flags.remove("checksum"),
            keep_git,
            packed: None,
            sources,
            destination,
        })
    }

    /// The instruction of an ONBUILD, which must be one that a stage can have.
    fn trigger(&self) -> Found<String> {
        let line = self.line.after(self.offset);
        if line.text.is_empty() {
            return Err(self.missing("an instruction"));
        }
        match read(&line, self.escape)? {
            Item::Step(Instruction { kind: Kind::Onbuild(_) | Kind::Maintainer(_), name, at, .. }) => {
                Err((at, Problem::Trigger { instruction: name }))
            }
            Item::From(_) => Err((line.position(0), Problem::Trigger { instruction: "FROM" })),
            Item::Step(_) => {
                let heredocs = line.heredocs.iter().map(|heredoc| format!("\n{}{}", heredoc.raw, heredoc.end));
                Ok(std::iter::once(line.text.clone()).chain(heredocs).collect())
            }
        }
    }

    fn healthcheck(&mut self) -> Found<Option<Healthcheck>> {
        let names = ["interval", "timeout", "start-period", "start-interval", "retries"];
        let flags = self.flags(&names, &[])?;
        let list = self.list("`CMD` or `NONE`")?;
        let first = &list[0];
        if first.text.eq_ignore_ascii_case("none") && list.len() == 1 {
            return Ok(None);
        }
        if !first.text.eq_ignore_ascii_case("cmd") {
            let expected = "`CMD` or `NONE`";
            let problem = Problem::Unexpected { instruction: self.name, word: first.text.clone(), expected };
            return Err((first.at, problem));
        }
        self.offset += self.rest().find(first.text.as_str()).unwrap_or_default() + first.text.len();
        let command = self.command()?;
        if matches!(&command, Command::Shell(text) if text.is_empty()) {
            return Err(self.missing("a command after `CMD`"));
        }
        let duration = |flag: &'static str| {
            let value = |word: &Word| {
                let expected = "a duration of 1ms or more, such as `1m30s`, or 0";
                let bad = || (word.at, Problem::FlagValue { flag, value: word.text.clone(), expected });
                duration(&word.text).map(Deadline).ok_or_else(bad)
            };
            flags.get(flag).map(value).transpose()
        };
        let retries = |word: &Word| {
            let bad = Problem::FlagValue { flag: "retries", value: word.text.clone(), expected: "a number" };
            word.text.parse().map_err(|_| (word.at, bad))
        };
        Ok(Some(Healthcheck {
            command,
            interval: duration("interval")?,
            timeout: duration("timeout")?,
            start_period: duration("start-period")?,
            start_interval: duration("start-interval")?,
            retries: flags.get("retries").map(retries).transpose()?,
        }))
    }
}

/// Whether ADD would take a source for a git repository (BuildKit, `ParseGitRef`).
pub fn is_repository(text: &str) -> bool {
    let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
    match scheme {
        "" => rest.starts_with("git@") || rest.starts_with("github.com/"),
        "http" | "https" => rest.split(['#', '?']).next().is_some_and(|path| path.ends_with(".git")),
        "git" | "ssh" => true,
        _ => false,
    }
}

/// A part of a word that begins some characters after it.
fn after(word: &Word, characters: usize, text: &str) -> Word {
    Word { text: text.to_owned(), at: Position { line: word.at.line, column: word.at.column + characters as u32 } }
}

/// Reads a duration as Go does (`time.ParseDuration`), in nanoseconds: numbers with units, one after the other.
fn duration(text: &str) -> Option<u64> {
    if text == "0" {
        return Some(0);
    }
    let mut total = 0.0_f64;
    let mut rest = text;
    if text.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|ch: char| !ch.is_ascii_digit() && ch != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let end = rest.find(|ch: char| ch.is_ascii_digit() || ch == '.').unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "ns" => 1.0,
            "us" | "µs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return None,
        };
        rest = &rest[end..];
        total += number * unit;
    }
    (total == 0.0 || (1e6..9e18).contains(&total)).then_some(total as u64)
}

/// The platform that a `--platform` word says after its variables were replaced.
///
/// # Errors
/// When jiji does not build for it.
pub fn platform(text: &str) -> Result<Platform, Problem> {
    text.parse().map_err(|_| Problem::FlagValue {
        flag: "platform",
        value: text.to_owned(),
        expected: "`linux/amd64` or `linux/arm64`",
    })
}
