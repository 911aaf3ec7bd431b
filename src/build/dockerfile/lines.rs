//! From text to logical lines: directives, comments, continuation lines and here-documents.

use super::{Found, Position, Problem, words};

/// One instruction's text with continuation lines joined, and where each part came from.
#[derive(Debug, Clone)]
pub(super) struct Line {
    /// The joined text, without blanks at its ends.
    pub(super) text: String,
    /// Where the parts of `text` that begin at an offset stand, in order.
    parts: Vec<(usize, Position)>,
    /// The here-documents that follow the line.
    pub(super) heredocs: Vec<Heredoc>,
    /// Where all of it stands, if that is one place.
    all_at: Option<Position>,
}

/// A here-document: `<<NAME` and the lines up to `NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Heredoc {
    /// The delimiter.
    pub(super) name: String,
    /// Whether variables are replaced: the delimiter was not quoted.
    pub(super) expand: bool,
    /// The lines, each with its line feed, as they stand in the file.
    pub(super) raw: String,
    /// `<<-`: leading tabs are not part of the content.
    pub(super) strip_tabs: bool,
    /// The closing line as it stands in the file.
    pub(super) end: String,
    /// Where the first line stands.
    pub(super) at: Position,
}

impl Heredoc {
    /// The content, without the tabs that `<<-` takes away.
    pub(super) fn content(&self) -> String {
        if !self.strip_tabs {
            return self.raw.clone();
        }
        self.raw.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
    }
}

impl Line {
    /// Where the byte at `offset` of the text stands in the file.
    pub(super) fn position(&self, offset: usize) -> Position {
        if let Some(at) = self.all_at {
            return at;
        }
        let part = self.parts.partition_point(|(start, _)| *start <= offset).saturating_sub(1);
        let (start, at) = self.parts[part];
        let offset = offset.min(self.text.len());
        Position { line: at.line, column: at.column + self.text[start..offset].chars().count() as u32 }
    }
}

impl Line {
    /// What follows an offset, as a line of its own.
    pub(super) fn after(&self, offset: usize) -> Self {
        let rest = &self.text[offset..];
        let text = rest.trim();
        let start = offset + rest.len() - rest.trim_start().len();
        let first = (0, self.position(start));
        let later = self.parts.iter().filter(|(at, _)| *at > start).map(|(at, place)| (at - start, *place));
        Self { text: text.to_owned(), parts: std::iter::once(first).chain(later).collect(), ..self.clone() }
    }

    /// The same line, of which everything stands at one place of another file.
    pub(super) fn placed(mut self, at: Position) -> Self {
        for heredoc in &mut self.heredocs {
            heredoc.at = at;
        }
        self.parts = Vec::new();
        Self { all_at: Some(at), ..self }
    }
}

/// Splits a file into its logical lines, and says which character escapes.
pub(super) fn split(content: &str) -> Found<(char, Vec<Line>)> {
    let mut physical = content.split('\n').enumerate().map(|(n, line)| (n as u32 + 1, line.trim_end_matches('\r')));
    let escape = directives(physical.clone())?;
    let mut lines = Vec::new();
    while let Some((number, first)) = physical.next() {
        let trimmed = first.trim_start();
        if trimmed.is_empty() || trimmed.starts_with('#') {
            continue;
        }
        let column = (first[..first.len() - trimmed.len()].chars().count() + 1) as u32;
        let mut line = Line { text: String::new(), parts: Vec::new(), heredocs: Vec::new(), all_at: None };
        let mut more = line.push(trimmed, Position { line: number, column }, escape);
        while more {
            let Some((number, next)) = physical.next() else { break };
            let blank = next.trim_start();
            // A comment or an empty line between the parts is no part, and does not end the line.
            if blank.is_empty() || blank.starts_with('#') {
                continue;
            }
            more = line.push(next, Position { line: number, column: 1 }, escape);
        }
        line.text.truncate(line.text.trim_end().len());
        if takes_heredocs(&line.text) {
            let openings = words::heredocs(&line.text).map_err(|problem| (line.position(0), problem))?;
            for opening in openings {
                let heredoc = heredoc(&line, opening, &mut physical)?;
                line.heredocs.push(heredoc);
            }
        }
        lines.push(line);
    }
    Ok((escape, lines))
}

/// Whether lines that follow can belong to this one: those of RUN, COPY and ADD, also as a trigger.
fn takes_heredocs(text: &str) -> bool {
    let mut words = text.split(words::is_blank).filter(|word| !word.is_empty());
    let name = words.next().filter(|name| !name.eq_ignore_ascii_case("ONBUILD")).or_else(|| words.next());
    name.is_some_and(|name| ["RUN", "COPY", "ADD"].iter().any(|known| name.eq_ignore_ascii_case(known)))
}

fn heredoc<'a>(
    line: &Line,
    words::Opening { name, strip_tabs, expand }: words::Opening,
    physical: &mut impl Iterator<Item = (u32, &'a str)>,
) -> Found<Heredoc> {
    let mut raw = String::new();
    let mut at = None;
    for (number, text) in physical {
        let at = *at.get_or_insert(Position { line: number, column: 1 });
        let candidate = if strip_tabs { text.trim_start_matches('\t') } else { text };
        if candidate == name {
            return Ok(Heredoc { name, expand, raw, strip_tabs, end: text.to_owned(), at });
        }
        raw.push_str(text);
        raw.push('\n');
    }
    Err((line.position(0), Problem::OpenHeredoc { name }))
}

impl Line {
    /// Adds a physical line, and says whether it goes on in the next.
    fn push(&mut self, text: &str, at: Position, escape: char) -> bool {
        let trimmed = text.trim_end_matches([' ', '\t']);
        let body = trimmed.strip_suffix(escape);
        // Two escapes at the end are one escaped escape.
        let body = body.filter(|body| !body.ends_with(escape));
        self.parts.push((self.text.len(), at));
        self.text.push_str(body.unwrap_or(text));
        body.is_some()
    }
}

/// Reads the parser directives at the file's beginning: comments of the form `# name=value`, up to the first line that is none.
fn directives<'a>(lines: impl Iterator<Item = (u32, &'a str)>) -> Found<char> {
    let mut seen: Vec<&'static str> = Vec::new();
    let mut escape = '\\';
    let mut lines = lines.peekable();
    // After `#!` only what chooses a frontend is looked for, and it is another tool that looks.
    let script = lines.next_if(|(_, line)| line.starts_with("#!")).is_some();
    for (number, line) in lines {
        let Some((name, value)) = line.trim_start().strip_prefix('#').and_then(|comment| comment.split_once('='))
        else {
            break;
        };
        let (name, value) = (name.trim(), value.trim());
        let known = ["escape", "syntax", "check"].into_iter().find(|known| name.eq_ignore_ascii_case(known));
        let Some(name) = known.filter(|_| !value.is_empty()) else { break };
        let at = Position { line: number, column: 1 };
        if seen.contains(&name) {
            return Err((at, Problem::DirectiveTwice { name }));
        }
        seen.push(name);
        match name {
            "escape" => match value {
                _ if script => {}
                "\\" => escape = '\\',
                "`" => escape = '`',
                _ => {
                    return Err((at, Problem::Directive { name, value: value.to_owned() }));
                }
            },
            "syntax" => {
                // What follows the first word are options of the frontend.
                let image = value.split(' ').next().unwrap_or_default();
                let image = image.strip_prefix("docker.io/").unwrap_or(image);
                let repository = image.split([':', '@']).next().unwrap_or_default();
                if !matches!(repository, "docker/dockerfile" | "docker/dockerfile-upstream") {
                    return Err((at, Problem::Frontend { name: value.to_owned() }));
                }
            }
            // `check` configures a linter and changes no image.
            _ => {}
        }
    }
    Ok(escape)
}
