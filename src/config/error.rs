//! What can be wrong with a configuration, where, and what to do about it.
//!
//! A [`ConfigError`] carries its file, line, column and source line, so that whoever shows it needs nothing else; how it is shown is
//! [`crate::report`]'s business. Values of the environment never get into a message, and a password that was written in plain is
//! blotted out of every source line.

use std::fmt;
use std::sync::Arc;

use jiji_model::name::ParseNameError;
use miette::{Diagnostic, LabeledSpan, NamedSource, SourceCode};

use super::Source;
use super::tree::Span;

/// The most errors that are reported: a file that has more is another kind of file.
const MOST_ERRORS: usize = 100;

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// No text was given to load.
    #[error("no configuration file")]
    NoFile,
    /// There is no such file.
    #[error("no such file")]
    FileMissing {
        /// The environments that have an overlay.
        environments: Vec<String>,
    },
    /// The file could not be read.
    #[error("{cause}")]
    FileUnreadable {
        /// What the operating system said.
        cause: String,
    },
    /// The path leads out of the project, by a symbolic link.
    #[error("it is a link that leads out of the project")]
    FileOutside,
    /// The path is no regular file.
    #[error("it is not a regular file")]
    FileIrregular,
    /// The file is not UTF-8.
    #[error("it is not UTF-8 text")]
    NotUtf8,
    /// The environment's name would not do as part of a file name.
    #[error("`{name}` is no environment name")]
    EnvironmentName {
        /// What was given.
        name: String,
    },
    /// The file is too large to be a configuration.
    #[error("it is larger than {limit} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// A character that YAML does not allow.
    #[error("the control character U+{code:04X} cannot stand in YAML")]
    ControlCharacter {
        /// The code point.
        code: u32,
    },
    /// The text is not YAML.
    #[error("{message}")]
    Syntax {
        /// What the parser said.
        message: String,
    },
    /// Lists and maps are nested too deep.
    #[error("it is nested deeper than {limit} levels")]
    TooDeep {
        /// The limit.
        limit: usize,
    },
    /// Too many scalars, lists and maps, aliases counted as what they stand for.
    #[error("it holds more than {limit} values, aliases counted as what they stand for")]
    TooManyNodes {
        /// The limit.
        limit: usize,
    },
    /// Variables bring in more text than a configuration can need.
    #[error("variables bring in more than {limit} bytes")]
    TooMuchPutIn {
        /// The limit in bytes.
        limit: usize,
    },
    /// An alias stands inside what it stands for.
    #[error("the alias stands inside its own anchor")]
    AliasWithin,
    /// `<<` has something else than a map or a list of maps.
    #[error("`<<` needs a map or a list of maps")]
    MergeNotMap,
    /// A YAML tag.
    #[error("the tag `{tag}` has no meaning here")]
    Tag {
        /// The tag.
        tag: String,
    },
    /// A key stands twice.
    #[error("the key `{key}` stands twice")]
    DuplicateKey {
        /// The key.
        key: String,
        /// The line of its first appearance.
        first_line: usize,
    },
    /// A key is a list or a map.
    #[error("a key must be a text")]
    KeyNotText,
    /// A second document in one file.
    #[error("a second document begins here")]
    ManyDocuments,
    /// A key that means nothing at its place.
    #[error("unknown key `{key}`")]
    UnknownKey {
        /// The key.
        key: String,
        /// The key that was probably meant.
        meant: Option<&'static str>,
        /// The keys there are.
        known: Vec<&'static str>,
    },
    /// A key that must be there is not.
    #[error("the key `{key}` is missing")]
    MissingKey {
        /// The key.
        key: &'static str,
        /// What it is for.
        purpose: &'static str,
    },
    /// A value of another kind than the key takes.
    #[error("expected {expected}, found {found}")]
    WrongKind {
        /// What the key takes.
        expected: String,
        /// What stands there.
        found: String,
        /// A better spelling, if one is known.
        advice: Option<&'static str>,
    },
    /// A list or map that must not be empty is.
    #[error("it is empty")]
    Empty {
        /// What it must have at least one of.
        needs: &'static str,
    },
    /// Two keys that cannot be together are.
    #[error("`{one}` and `{other}` cannot be together")]
    Together {
        /// One key.
        one: &'static str,
        /// The other.
        other: &'static str,
        /// Which to keep.
        advice: &'static str,
    },
    /// None of several keys is there.
    #[error("one of {} is needed", list(.keys))]
    NoneOf {
        /// The keys.
        keys: &'static [&'static str],
    },
    /// A variable that has no value.
    #[error("the variable `{variable}` is not set")]
    Unset {
        /// The variable.
        variable: String,
    },
    /// `${` that is no variable.
    #[error("`{text}` is no variable")]
    BadVariable {
        /// Its beginning.
        text: String,
    },
    /// A name breaks its grammar.
    #[error("`{}` is no {}", .0.text, .0.kind)]
    Name(ParseNameError),
    /// A text breaks the grammar of its key.
    #[error("`{text}` is no {what}")]
    Grammar {
        /// The text.
        text: String,
        /// What it was to be.
        what: &'static str,
        /// The grammar, for people.
        rule: &'static str,
    },
    /// A password that was written down instead of a secret's name. The value is not kept.
    #[error("the password is written down here")]
    PasswordInPlain,
    /// A server that is not under `servers`.
    #[error("there is no server `{server}`")]
    UnknownServer {
        /// The name.
        server: String,
        /// The name that was probably meant.
        meant: Option<String>,
        /// The servers there are, of many the first.
        known: Vec<String>,
    },
    /// Something stands twice in a list or over several services.
    #[error("{what} `{name}` stands twice")]
    Twice {
        /// What it is.
        what: &'static str,
        /// Its name.
        name: String,
        /// Why that cannot be.
        why: &'static str,
    },
    /// Two services on one host take the same requests.
    #[error("`{other}` takes the same requests on `{host}`")]
    SameRoute {
        /// The other service.
        other: String,
        /// The host.
        host: String,
    },
    /// A server that is to be used as a user who is not root cannot be.
    #[error("{0}")]
    Rootless(Rootless),
    /// The parts make no project, though each alone was accepted.
    #[error("it makes no project")]
    NoProject,
}

/// Why a server cannot be used as a user who is not root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rootless {
    /// The project has other servers.
    #[error("a server without root is for a project of one server, and there are others")]
    NotAlone,
    /// Its engine is Docker.
    #[error("without root the engine is Podman, and this server's is Docker")]
    Docker,
    /// Its user is root.
    #[error("the user of this server is root")]
    Root,
    /// The project has a private network.
    #[error("a private network is root's to make, and nobody becomes root on this project's server")]
    Network,
}

impl Rootless {
    fn hint(self) -> &'static str {
        match self {
            Self::NotAlone => {
                "its containers live in a network namespace of the user's own, which nothing leads into but the ports that are published;                  leave the others out, or let the user become root with sudo and leave `rootless` out"
            }
            Self::Docker => {
                "the network namespace of a user's own Docker cannot be entered for health checks; say `engine: podman`, or leave \
                 `rootless` out"
            }
            Self::Root => "name the user whose Podman it is, or leave `rootless` out",
            Self::Network => "leave `network` out: a single server has nobody to talk to",
        }
    }
}

fn list(keys: &[&str]) -> String {
    keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ")
}

impl Problem {
    /// What to do about it, in one line.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoFile => "write `.jiji/deploy.yml` in the project's root".to_owned(),
            Self::FileMissing { environments } if environments.is_empty() => {
                "write it, or run the command in the project's root".to_owned()
            }
            Self::FileMissing { environments } => format!("there are overlays for: {}", environments.join(", ")),
            Self::FileUnreadable { .. } => return None,
            Self::FileOutside | Self::FileIrregular => "put a regular file there".to_owned(),
            Self::NotUtf8 => "save it as UTF-8".to_owned(),
            Self::EnvironmentName { .. } => {
                "expected 1 to 20 of a-z, 0-9 and `-`, beginning and ending with a letter or digit".to_owned()
            }
            Self::TooLarge { .. } | Self::TooDeep { .. } | Self::TooManyNodes { .. } | Self::TooMuchPutIn { .. } => {
                "the limits keep a stranger's file from exhausting the machine".to_owned()
            }
            Self::ControlCharacter { .. } => "write it as an escape in double quotes".to_owned(),
            Self::Syntax { .. } => {
                "check the indentation and quotes here and on the line before; a value that begins with one of \
                 `{ [ & * ! % @ ` or holds `: ` or ` #` needs quotes"
                    .to_owned()
            }
            Self::AliasWithin => "an alias can repeat what is complete before it, not what is around it".to_owned(),
            Self::MergeNotMap => "write `<<: *ANCHOR` with an anchor on a map".to_owned(),
            Self::Tag { .. } => "leave the tag out; quotes make a value a text".to_owned(),
            Self::DuplicateKey { first_line, .. } => format!("it stands first on line {first_line}; keep one"),
            Self::KeyNotText => "quote it if it is meant as a text".to_owned(),
            Self::ManyDocuments => {
                "one file holds one document; another environment is an overlay, `.jiji/deploy.ENVIRONMENT.yml`"
                    .to_owned()
            }
            Self::UnknownKey { meant: Some(meant), .. } => format!("did you mean `{meant}`?"),
            Self::UnknownKey { known, .. } => format!("the keys here are {}", list(known)),
            Self::MissingKey { key, purpose } => format!("add `{key}:`: {purpose}"),
            Self::WrongKind { advice, .. } => return advice.map(str::to_owned),
            Self::Empty { needs } => format!("give it at least one {needs}, or remove the key"),
            Self::Together { advice, .. } => (*advice).to_owned(),
            Self::NoneOf { .. } => return None,
            Self::Unset { variable } => {
                format!("set it, write `${{{variable}:-DEFAULT}}`, or `$${{` for a plain `${{`")
            }
            Self::BadVariable { .. } => {
                "write `${NAME}` or `${NAME:-DEFAULT}` with A-Z, a-z, 0-9 and `_`, or `$${` for a plain `${`".to_owned()
            }
            Self::Name(error) => error.rule.to_owned(),
            Self::Grammar { rule, .. } => (*rule).to_owned(),
            Self::PasswordInPlain => {
                "write the name of an environment variable in capitals, such as `REGISTRY_PASSWORD`, and change the \
                 password: whoever can read this file has it"
                    .to_owned()
            }
            Self::UnknownServer { meant: Some(meant), .. } => format!("did you mean `{meant}`?"),
            Self::UnknownServer { known, .. } if known.is_empty() => "`servers` is empty".to_owned(),
            Self::UnknownServer { known, .. } => format!("the servers are {}", known.join(", ")),
            Self::Twice { why, .. } => (*why).to_owned(),
            Self::SameRoute { .. } => "give one of them another `host` or `path_prefix`".to_owned(),
            Self::Rootless(why) => why.hint().to_owned(),
            Self::NoProject => "this is an error of jiji's own; please report it with the file".to_owned(),
        })
    }
}

/// A place in a configuration file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file's name.
    pub file: String,
    /// The line, counted from 1.
    pub line: usize,
    /// The column in characters, counted from 1.
    pub column: usize,
    /// Where it begins, in bytes from the file's beginning.
    pub offset: usize,
    /// Its length in bytes. What goes over several lines ends at the first.
    pub length: usize,
    /// The line's text, control characters replaced; of a long line the part around the place.
    pub text: String,
    /// How many more characters the line has before `text` than `text` has for them.
    skipped: usize,
}

/// The most characters of a line that are shown.
const LONGEST_LINE: usize = 160;

/// A text in which nothing steers the terminal.
fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

impl Place {
    pub(super) fn new(sources: &[Source], span: Span) -> Self {
        let source = &sources[span.file];
        let start = span.start.min(source.text.len());
        let line_start = source.text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = source.text[start..].find('\n').map_or(source.text.len(), |at| start + at);
        let text = source.text[line_start..line_end].trim_end_matches('\r');
        let end = span.end.clamp(start, (line_start + text.len()).max(start));
        let before = source.text[line_start..start].chars().count();
        // Room for what stands before the place, the rest for the place itself and what follows.
        let skipped = if text.chars().count() > LONGEST_LINE { before.saturating_sub(LONGEST_LINE / 4) } else { 0 };
        let mut shown: String = harmless(text).chars().skip(skipped).take(LONGEST_LINE).collect();
        if skipped > 0 {
            shown.insert(0, '…');
        }
        if text.chars().count() > skipped + LONGEST_LINE {
            shown.push('…');
        }
        Self {
            file: source.name.clone(),
            line: source.text[..start].matches('\n').count() + 1,
            column: before + 1,
            offset: start,
            length: end - start,
            text: shown,
            skipped: skipped.saturating_sub(1),
        }
    }

    /// The place with its source line, in the form people know from compilers, without colour:
    ///
    /// ```text
    ///   ┌─ .jiji/deploy.yml:14:12
    /// 14│     image: ghcr.io/acme/web
    ///   │            ^^^^^^^^^^^^^^^^
    /// ```
    pub fn excerpt(&self) -> String {
        let number = self.line.to_string();
        let margin = " ".repeat(number.len());
        let at = self.column - 1 - self.skipped;
        let before: String = self.text.chars().take(at).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
        let from = self.text.char_indices().nth(at).map_or(self.text.len(), |(at, _)| at);
        let marked = self.text[from..].char_indices().take_while(|(at, _)| *at < self.length).count().max(1);
        format!("{margin}┌─ {self}\n{number}│ {}\n{margin}│ {before}{}", self.text, "^".repeat(marked))
    }
}

/// One error of a configuration.
#[derive(Debug, Clone)]
pub struct ConfigError {
    /// What is wrong.
    pub problem: Problem,
    /// Where. A file that could not be read has no place in it.
    pub place: Option<Place>,
    /// What it concerns: the keys that lead there, joined by dots, or the file's name.
    pub subject: String,
    source: Option<Arc<NamedSource<String>>>,
}

impl ConfigError {
    /// What to do about it, in one line.
    pub fn hint(&self) -> Option<String> {
        self.problem.hint().map(|hint| harmless(&hint))
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&harmless(&format!("read `{}`: {}", self.subject, self.problem)))
    }
}

impl std::error::Error for ConfigError {}

impl Diagnostic for ConfigError {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.hint().map(|hint| Box::new(hint) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.source.as_deref().map(|source| source as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let place = self.place.as_ref()?;
        Some(Box::new([LabeledSpan::new(None, place.offset, place.length)].into_iter()))
    }
}

/// Every error of a configuration, in the order of the files: at least one.
#[derive(Debug, Clone)]
pub struct ConfigErrors {
    errors: Vec<ConfigError>,
    more: usize,
}

impl ConfigErrors {
    /// An error that concerns a file as a whole.
    pub(super) fn of_file(name: &str, problem: Problem) -> Self {
        let error = ConfigError { problem, place: None, subject: name.to_owned(), source: None };
        Self { errors: vec![error], more: 0 }
    }

    /// The errors.
    pub fn errors(&self) -> &[ConfigError] {
        &self.errors
    }

    /// How many errors were found and not kept.
    pub fn more(&self) -> usize {
        self.more
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.errors.as_slice(), self.more) {
            ([one], 0) => one.fmt(f),
            (several, more) => write!(f, "read the configuration: {} errors", several.len() + more),
        }
    }
}

impl std::error::Error for ConfigErrors {}

impl Diagnostic for ConfigErrors {
    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn Diagnostic> + 'a>> {
        Some(Box::new(self.errors.iter().map(|error| error as &dyn Diagnostic)))
    }
}

/// Collects problems while a configuration is read.
pub(super) struct Problems {
    sources: Arc<[Source]>,
    found: Vec<(Problem, Option<Span>, String)>,
    more: usize,
    blots: Vec<Span>,
}

impl Problems {
    pub fn new(sources: Arc<[Source]>) -> Self {
        Self { sources, found: Vec::new(), more: 0, blots: Vec::new() }
    }

    pub fn len(&self) -> usize {
        self.found.len() + self.more
    }

    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Whether no more problems are kept.
    pub fn is_full(&self) -> bool {
        self.found.len() >= MOST_ERRORS
    }

    /// Counts a problem that is not kept.
    pub fn count_one_more(&mut self) {
        self.more += 1;
    }

    /// Adds a problem. An empty subject stands for the file's name.
    pub fn report(&mut self, problem: Problem, span: Option<Span>, subject: String) {
        if self.is_full() { self.more += 1 } else { self.found.push((problem, span, subject)) }
    }

    /// Keeps a part of the text out of everything that is shown.
    pub fn blot(&mut self, span: Span) {
        self.blots.push(span);
    }

    /// The place of a span.
    pub fn place(&self, span: Span) -> Place {
        Place::new(&self.sources, span)
    }

    /// The place of `part` within a span, or the whole span where it is not written literally.
    pub fn find_in(&self, span: Span, part: &str) -> Span {
        let text = &self.sources[span.file].text[span.start..span.end];
        match text.find(part) {
            Some(at) => Span { start: span.start + at, end: span.start + at + part.len(), ..span },
            None => span,
        }
    }

    /// Everything that was reported, in the order of the files.
    pub fn into_errors(self) -> ConfigErrors {
        let Self { sources, mut found, more, blots } = self;
        let shown: Vec<Source> = sources
            .iter()
            .enumerate()
            .map(|(file, source)| {
                let mut text = source.text.clone();
                for blot in blots.iter().filter(|blot| blot.file == file) {
                    let stars: String = text[blot.start..blot.end]
                        .chars()
                        .flat_map(|c| if c == '\n' { vec!['\n'] } else { vec!['*'; c.len_utf8()] })
                        .collect();
                    text.replace_range(blot.start..blot.end, &stars);
                }
                Source { name: source.name.clone(), text }
            })
            .collect();
        let named: Vec<Arc<NamedSource<String>>> =
            shown.iter().map(|source| Arc::new(NamedSource::new(&source.name, source.text.clone()))).collect();
        found.sort_by_key(|(_, span, _)| *span);
        if found.is_empty() {
            let span = (!shown.is_empty()).then_some(Span { file: 0, start: 0, end: 0 });
            found.push((Problem::NoProject, span, String::new()));
        }
        let errors = found
            .into_iter()
            .map(|(problem, span, subject)| {
                let place = span.map(|span| Place::new(&shown, span));
                let subject = match (&place, subject.is_empty()) {
                    (Some(place), true) => place.file.clone(),
                    (None, true) => super::FILE.to_owned(),
                    (_, false) => subject,
                };
                ConfigError { problem, place, subject, source: span.map(|span| Arc::clone(&named[span.file])) }
            })
            .collect();
        ConfigErrors { errors, more }
    }
}
