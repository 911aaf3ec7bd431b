//! YAML text → a tree in which every part knows where it was written.
//!
//! Bounded on purpose, because the text may be a stranger's: [`LARGEST_TEXT`] bytes, [`DEEPEST`] levels, [`MOST_NODES`] nodes with every
//! alias counted as what it stands for. Aliases and the merge key `<<` are understood; tags other than `!!str` are not. Meaning is not
//! looked at here: that a scalar is a number shows only when somebody asks.

use std::collections::BTreeMap;

use saphyr_parser::{Event, Parser, ScalarStyle, StrInput};

use super::error::{Problem, Problems};

/// The largest file that is read, in bytes.
pub(super) const LARGEST_TEXT: usize = 1024 * 1024;
/// The deepest nesting.
pub(super) const DEEPEST: usize = 32;
/// The most scalars, lists and maps in one file, aliases counted as what they stand for.
pub(super) const MOST_NODES: usize = 50_000;

/// Where something was written: a file's number, and byte offsets into its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Span {
    /// The number of the source.
    pub file: usize,
    /// Where it begins, in bytes.
    pub start: usize,
    /// Where it ends, in bytes, not counted in.
    pub end: usize,
}

/// A part of the tree.
#[derive(Debug, Clone)]
pub(super) struct Value {
    /// Where it was written.
    pub span: Span,
    /// What it is.
    pub kind: Kind,
}

/// What a part of the tree is.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    /// One text.
    Scalar(Scalar),
    /// A list.
    Seq(Vec<Value>),
    /// A map in the order of the file, no key twice.
    Map(Vec<Entry>),
}

/// One key of a map with its value.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// The key.
    pub key: String,
    /// Where the key was written.
    pub key_span: Span,
    /// The value.
    pub value: Value,
}

/// A scalar as it was written.
#[derive(Debug, Clone)]
pub(super) struct Scalar {
    /// The text, variables substituted.
    pub text: String,
    /// Whether it stood without quotes, so that it may be a number, a boolean or null.
    pub plain: bool,
    /// The text before a variable's value was put in, if one was.
    pub written: Option<String>,
    /// Whether a variable in it could not be substituted: it has its error and means nothing more.
    pub broken: bool,
}

/// What a scalar means by YAML 1.2's core schema (section 10.3.2).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Resolved {
    /// Nothing.
    Null,
    /// A boolean.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number.
    Float(f64),
    /// A text.
    Text,
}

impl Scalar {
    /// What it means. A scalar that a variable was put into may be a number or a boolean even in quotes, because a flow map does not
    /// let it stand without; it is never null.
    pub fn resolve(&self) -> Resolved {
        if !self.plain && self.written.is_none() {
            return Resolved::Text;
        }
        match self.text.as_str() {
            "" | "~" | "null" | "Null" | "NULL" if self.written.is_none() => Resolved::Null,
            "true" | "True" | "TRUE" => Resolved::Bool(true),
            "false" | "False" | "FALSE" => Resolved::Bool(false),
            text => number(text).unwrap_or(Resolved::Text),
        }
    }

    /// The text to show people: as written, so that no value of the environment gets into a message.
    pub fn shown(&self) -> &str {
        self.written.as_deref().unwrap_or(&self.text)
    }
}

fn number(text: &str) -> Option<Resolved> {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if !unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    if let Some(octal) = text.strip_prefix("0o") {
        return i64::from_str_radix(octal, 8).ok().map(Resolved::Int);
    }
    if let Some(hex) = text.strip_prefix("0x") {
        return i64::from_str_radix(hex, 16).ok().map(Resolved::Int);
    }
    if unsigned.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse().ok().map(Resolved::Int);
    }
    if unsigned.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'-' | b'+')) {
        return text.parse().ok().map(Resolved::Float);
    }
    None
}

impl Value {
    /// Whether it is nothing: an empty or `null` scalar.
    pub fn is_null(&self) -> bool {
        matches!(&self.kind, Kind::Scalar(scalar) if scalar.resolve() == Resolved::Null)
    }
}

/// Parses one file. `None` when it holds an error, which is then among the problems.
pub(super) fn parse(file: usize, text: &str, problems: &mut Problems) -> Option<Value> {
    let before = problems.len();
    let whole = Span { file, start: 0, end: 0 };
    if text.len() > LARGEST_TEXT {
        problems.report(Problem::TooLarge { limit: LARGEST_TEXT }, Some(whole), String::new());
        return None;
    }
    if let Some((at, c)) = text.char_indices().find(|(at, c)| {
        (c.is_control() && !matches!(c, '\n' | '\r' | '\t' | '\u{85}')) || (*c == '\u{feff}' && *at != 0)
    }) {
        let span = Span { file, start: at, end: at + c.len_utf8() };
        problems.report(Problem::ControlCharacter { code: c as u32 }, Some(span), String::new());
        return None;
    }
    let mark = if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
    let mut builder = Builder {
        file,
        text,
        skipped: mark,
        offsets: char_offsets(&text[mark..]),
        parser: Parser::new_from_str(&text[mark..]),
        anchors: BTreeMap::new(),
        nodes: 0,
        problems,
    };
    let value = builder.document();
    match value {
        Ok(value) if problems.len() == before => Some(value),
        Ok(_) => None,
        Err(Stop(problem, span)) => {
            problems.report(problem, Some(span), String::new());
            None
        }
    }
}

/// Byte offsets of the characters, where they differ from their numbers.
fn char_offsets(text: &str) -> Option<Vec<usize>> {
    (!text.is_ascii()).then(|| text.char_indices().map(|(at, _)| at).chain([text.len()]).collect())
}

/// An error after which the rest of a file cannot be read.
struct Stop(Problem, Span);

struct Anchor {
    value: Value,
    nodes: usize,
    depth: usize,
}

struct Builder<'a, 'p> {
    file: usize,
    text: &'a str,
    /// Bytes of a byte order mark, which the parser does not see.
    skipped: usize,
    offsets: Option<Vec<usize>>,
    parser: Parser<'a, StrInput<'a>>,
    anchors: BTreeMap<usize, Anchor>,
    nodes: usize,
    problems: &'p mut Problems,
}

type Spanned<'a> = (Event<'a>, Span);

impl<'a> Builder<'a, '_> {
    fn offset(&self, characters: usize) -> usize {
        let at = match &self.offsets {
            Some(offsets) => offsets.get(characters).copied().unwrap_or(self.text.len()),
            None => characters,
        };
        (at + self.skipped).min(self.text.len())
    }

    fn next(&mut self) -> Result<Spanned<'a>, Stop> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => {
                let (start, end) = (self.offset(span.start.index()), self.offset(span.end.index()));
                Ok((event, Span { file: self.file, start, end: end.max(start) }))
            }
            Some(Err(error)) => {
                let start = self.offset(error.marker().index());
                let end = self.text[start..].chars().next().map_or(start, |c| start + c.len_utf8());
                Err(Stop(Problem::Syntax { message: error.info().to_owned() }, Span { file: self.file, start, end }))
            }
            None => Ok((Event::StreamEnd, Span { file: self.file, start: self.text.len(), end: self.text.len() })),
        }
    }

    fn document(&mut self) -> Result<Value, Stop> {
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamStart | Event::DocumentStart(_) | Event::Nothing => {}
                // A file of comments alone is an empty map: an overlay may be one.
                Event::StreamEnd | Event::DocumentEnd => {
                    return Ok(Value { span: Span { start: 0, end: 0, ..span }, kind: Kind::Map(Vec::new()) });
                }
                event => {
                    let value = self.node((event, span), 0)?.0;
                    return self.end_of_document(value);
                }
            }
        }
    }

    fn end_of_document(&mut self, value: Value) -> Result<Value, Stop> {
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::DocumentEnd | Event::Nothing => {}
                Event::StreamEnd => return Ok(value),
                _ => return Err(Stop(Problem::ManyDocuments, span)),
            }
        }
    }

    /// Builds one node and says how deep it is.
    fn node(&mut self, (event, span): Spanned<'a>, depth: usize) -> Result<(Value, usize), Stop> {
        self.count(1, span)?;
        if depth >= DEEPEST {
            return Err(Stop(Problem::TooDeep { limit: DEEPEST }, span));
        }
        let nodes_before = self.nodes;
        let (value, anchor, deep) = match event {
            Event::Alias(id) => {
                let Some(anchor) = self.anchors.get(&id) else {
                    return Err(Stop(Problem::AliasWithin, span));
                };
                let (nodes, deep) = (anchor.nodes, anchor.depth);
                if depth + deep > DEEPEST {
                    return Err(Stop(Problem::TooDeep { limit: DEEPEST }, span));
                }
                // Counted before it is copied, so that a nest of aliases costs nothing.
                self.count(nodes, span)?;
                let value = self.anchors[&id].value.clone();
                return Ok((value, deep));
            }
            Event::Scalar(text, style, anchor, tag) => {
                let text_tag = self.tag(tag.as_deref(), span);
                let plain = style == ScalarStyle::Plain && !text_tag;
                let scalar = Scalar { text: text.into_owned(), plain, written: None, broken: false };
                (Value { span: self.trim(span), kind: Kind::Scalar(scalar) }, anchor, 1)
            }
            Event::SequenceStart(anchor, tag) => {
                self.tag(tag.as_deref(), span);
                let mut items = Vec::new();
                let mut deepest = 0;
                loop {
                    let next = self.next()?;
                    if next.0 == Event::SequenceEnd {
                        break;
                    }
                    let (value, deep) = self.node(next, depth + 1)?;
                    deepest = deepest.max(deep);
                    items.push(value);
                }
                (Value { span, kind: Kind::Seq(items) }, anchor, deepest + 1)
            }
            Event::MappingStart(anchor, tag) => {
                self.tag(tag.as_deref(), span);
                let (entries, deepest) = self.entries(depth)?;
                (Value { span, kind: Kind::Map(entries) }, anchor, deepest + 1)
            }
            _ => {
                return Err(Stop(Problem::Syntax { message: "a value is missing here".to_owned() }, span));
            }
        };
        if anchor != 0 {
            let nodes = self.nodes - nodes_before + 1;
            self.anchors.insert(anchor, Anchor { value: value.clone(), nodes, depth: deep });
            // The copy that is kept for aliases is counted too: it takes as much memory.
            self.count(nodes, span)?;
        }
        Ok((value, deep))
    }

    fn entries(&mut self, depth: usize) -> Result<(Vec<Entry>, usize), Stop> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut places: BTreeMap<String, Span> = BTreeMap::new();
        let mut merged: Vec<Value> = Vec::new();
        let mut deepest = 0;
        loop {
            let next = self.next()?;
            if next.0 == Event::MappingEnd {
                break;
            }
            let (key, deep) = self.node(next, depth + 1)?;
            deepest = deepest.max(deep);
            let next = self.next()?;
            let (value, deep) = self.node(next, depth + 1)?;
            deepest = deepest.max(deep);
            let Kind::Scalar(scalar) = key.kind else {
                self.problems.report(Problem::KeyNotText, Some(key.span), String::new());
                continue;
            };
            if scalar.text == "<<" && scalar.plain {
                merged.push(value);
                continue;
            }
            match places.get(&scalar.text) {
                Some(_) if self.problems.is_full() => self.problems.count_one_more(),
                Some(first) => {
                    let problem =
                        Problem::DuplicateKey { key: scalar.text, first_line: line_of(self.text, first.start) };
                    self.problems.report(problem, Some(key.span), String::new());
                }
                None => {
                    places.insert(scalar.text.clone(), key.span);
                    entries.push(Entry { key: scalar.text, key_span: key.span, value });
                }
            }
        }
        for value in merged {
            self.merge(&mut entries, &mut places, value);
        }
        Ok((entries, deepest))
    }

    /// What `<<` brings: keys that the map itself does not have; of several maps the first wins
    /// (<https://yaml.org/type/merge.html>).
    fn merge(&mut self, entries: &mut Vec<Entry>, places: &mut BTreeMap<String, Span>, value: Value) {
        let span = value.span;
        match value.kind {
            Kind::Map(more) => {
                for entry in more {
                    if !places.contains_key(&entry.key) {
                        places.insert(entry.key.clone(), entry.key_span);
                        entries.push(entry);
                    }
                }
            }
            Kind::Seq(items) if items.iter().all(|item| matches!(item.kind, Kind::Map(_))) => {
                for item in items {
                    self.merge(entries, places, item);
                }
            }
            _ => self.problems.report(Problem::MergeNotMap, Some(span), String::new()),
        }
    }

    fn count(&mut self, nodes: usize, span: Span) -> Result<(), Stop> {
        self.nodes += nodes;
        if self.nodes > MOST_NODES { Err(Stop(Problem::TooManyNodes { limit: MOST_NODES }, span)) } else { Ok(()) }
    }

    /// Says whether a tag makes a scalar a text; other tags are problems.
    fn tag(&mut self, tag: Option<&saphyr_parser::Tag>, span: Span) -> bool {
        match tag {
            None => false,
            Some(tag) if tag.is_yaml_core_schema() && tag.suffix == "str" => true,
            Some(tag) => {
                self.problems.report(Problem::Tag { tag: tag.to_string() }, Some(span), String::new());
                false
            }
        }
    }

    /// A plain scalar's span without the white space and comments after it.
    fn trim(&self, span: Span) -> Span {
        let text = &self.text[span.start..span.end];
        Span { end: span.start + text.trim_end().len(), ..span }
    }
}

/// The line of an offset, counted from 1.
pub(super) fn line_of(text: &str, offset: usize) -> usize {
    text[..offset].matches('\n').count() + 1
}
