//! Words of a line: where they end, and what quotes, escapes and `$` in them mean.
//!
//! The rules are those of the Dockerfile reference ("Environment replacement"), which are close to a POSIX shell's and not the same:
//! a variable that is not set is empty, and nothing is split again after it was replaced, except in EXPOSE.

use super::Problem;
use super::pattern::Pattern;

/// Looks up the value of a variable.
pub trait Environment {
    /// The value, or none where the variable is not set.
    fn get(&self, name: &str) -> Option<&str>;
}

impl Environment for std::collections::BTreeMap<String, String> {
    fn get(&self, name: &str) -> Option<&str> {
        Self::get(self, name).map(String::as_str)
    }
}

/// Splits at blanks outside of quotes, and leaves quotes and escapes in the words. With each word comes its byte offset.
pub(super) fn quoted(text: &str, escape: char) -> Vec<(usize, String)> {
    let mut words = Vec::new();
    let mut word: Option<(usize, String)> = None;
    let mut quote: Option<char> = None;
    let mut chars = text.char_indices();
    while let Some((at, ch)) = chars.next() {
        if quote.is_none() && ch.is_whitespace() {
            words.extend(word.take());
            continue;
        }
        let (_, text) = word.get_or_insert_with(|| (at, String::new()));
        text.push(ch);
        match quote {
            Some(open) if ch == open => quote = None,
            // In single quotes nothing is special.
            Some('\'') => {}
            None if ch == '\'' || ch == '"' => quote = Some(ch),
            _ if ch == escape => match chars.next() {
                Some((_, next)) => text.push(next),
                // An escape at the very end escapes nothing.
                None => {
                    text.pop();
                }
            },
            _ => {}
        }
    }
    words.extend(word.filter(|(_, text)| !text.is_empty()));
    words
}

/// What Docker's parser takes for a blank between words. A no-break space is part of a name.
pub(super) fn is_blank(ch: char) -> bool {
    matches!(ch, ' ' | '\t' | '\u{b}' | '\u{c}' | '\r')
}

/// Splits at blanks alone. With each word comes its byte offset.
pub(super) fn plain(text: &str) -> Vec<(usize, String)> {
    let start = text.as_ptr() as usize;
    let words = text.split(is_blank).filter(|word| !word.is_empty());
    words.map(|word| (word.as_ptr() as usize - start, word.to_owned())).collect()
}

/// Takes the first word as a flag's: quotes and escapes in it are undone. Gives it, and how many bytes it took.
pub(super) fn flag(text: &str, escape: char) -> Result<(String, usize), Problem> {
    let mut word = String::new();
    let mut quote: Option<char> = None;
    let mut chars = text.char_indices();
    while let Some((at, ch)) = chars.next() {
        match quote {
            None if ch.is_whitespace() => return Ok((word, at)),
            None if ch == '\'' || ch == '"' => quote = Some(ch),
            Some(open) if ch == open => quote = None,
            _ if ch == escape => word.extend(chars.next().map(|(_, next)| next)),
            _ => word.push(ch),
        }
    }
    match quote {
        None => Ok((word, text.len())),
        // Docker takes the rest of the line then, which is the command that was meant.
        Some(open) => Err(open_quote(open, text)),
    }
}

fn open_quote(mark: char, word: &str) -> Problem {
    Problem::OpenQuote { mark: if mark == '"' { "double" } else { "single" }, word: word.to_owned() }
}

/// The opening of a here-document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Opening {
    /// The delimiter.
    pub(super) name: String,
    /// `<<-`: leading tabs of the lines fall away.
    pub(super) strip_tabs: bool,
    /// Whether variables are replaced: nothing of the delimiter was quoted.
    pub(super) expand: bool,
}

/// The here-documents that a line opens, in order. Whatever escapes in the file, here it is the backslash.
pub(super) fn heredocs(text: &str) -> Result<Vec<Opening>, Problem> {
    let mut found = Vec::new();
    let mut word = String::new();
    let mut quote: Option<char> = None;
    let mut chars = text.chars().peekable();
    while let Some(ch) = chars.next() {
        if quote.is_none() && ch.is_whitespace() {
            found.extend(heredoc(&std::mem::take(&mut word))?);
            continue;
        }
        word.push(ch);
        match quote {
            Some(open) if ch == open => quote = None,
            Some('\'') => {}
            None if ch == '\'' || ch == '"' => quote = Some(ch),
            // There may be blanks before the delimiter.
            None if ch == '<' && chars.peek() == Some(&'<') => {
                word.extend(chars.next());
                while let Some(blank) = chars.next_if(|ch| is_blank(*ch)) {
                    word.push(blank);
                }
            }
            _ if ch == '\\' => word.extend(chars.next()),
            _ => {}
        }
    }
    // A quotation that does not end is the shell's to complain about, and nothing on the line is certain.
    if quote.is_some() {
        return Ok(Vec::new());
    }
    found.extend(heredoc(&word)?);
    Ok(found)
}

/// Reads a word as the opening of a here-document: a file descriptor's digits, `<<`, perhaps `-`, and a delimiter.
///
/// # Errors
/// When a quotation in the delimiter has no end.
pub(super) fn heredoc(word: &str) -> Result<Option<Opening>, Problem> {
    let Some(rest) = word.trim_start_matches(|ch: char| ch.is_ascii_digit()).strip_prefix("<<") else {
        return Ok(None);
    };
    let (strip_tabs, rest) = match rest.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    let rest = rest.trim_start();
    // `<<<` is a here-string, and `<<` alone is for the shell to complain about.
    if rest.is_empty() || rest.contains('<') {
        return Ok(None);
    }
    let mut name = String::new();
    let mut expand = true;
    let mut quote: Option<char> = None;
    let mut chars = rest.chars().peekable();
    while let Some(ch) = chars.next() {
        match quote {
            Some(open) if ch == open => quote = None,
            Some('"') if ch == '\\' => {
                let escaped = chars.next_if(|next| matches!(next, '"' | '$' | '\\'));
                name.push(escaped.unwrap_or(ch));
            }
            Some(_) => name.push(ch),
            None if ch == '\'' || ch == '"' => {
                (quote, expand) = (Some(ch), false);
            }
            None if ch == '\\' => name.extend(chars.next()),
            // More than one word is no delimiter.
            None if ch.is_whitespace() => return Ok(None),
            None => name.push(ch),
        }
    }
    if let Some(open) = quote {
        return Err(open_quote(open, word));
    }
    Ok((!name.is_empty()).then_some(Opening { name, strip_tabs, expand }))
}

/// Replaces variables and takes away quotes and escapes.
///
/// # Errors
/// When a quote or a substitution has no end, or a required variable is not set.
pub fn expand(word: &str, escape: char, environment: &dyn Environment) -> Result<String, Problem> {
    let mut expander = Expander::new(word, escape, environment);
    expander.until(None, false).map(|words| words.text)
}

/// As [`expand`], and splits what came of it at blanks that were not quoted: EXPOSE alone does so.
///
/// # Errors
/// As [`expand`].
pub fn expand_words(word: &str, escape: char, environment: &dyn Environment) -> Result<Vec<String>, Problem> {
    let mut expander = Expander::new(word, escape, environment);
    expander.until(None, false).map(Words::finish)
}

/// Replaces the variables of a here-document, in which quotes are text and a backslash escapes.
///
/// # Errors
/// As [`expand`], but for quotes.
pub fn expand_text(text: &str, environment: &dyn Environment) -> Result<String, Problem> {
    let mut expander = Expander { quotes: false, ..Expander::new(text, '\\', environment) };
    expander.until(None, false).map(|words| words.text)
}

/// A text, and the same split at blanks that were not quoted.
#[derive(Default)]
struct Words {
    text: String,
    done: Vec<String>,
    word: String,
}

impl Words {
    /// What is kept together, blanks or not.
    fn quoted(&mut self, text: &str) {
        self.text.push_str(text);
        self.word.push_str(text);
    }

    /// What is split at its blanks.
    fn plain(&mut self, text: &str) {
        self.text.push_str(text);
        for ch in text.chars() {
            if !ch.is_whitespace() {
                self.word.push(ch);
            } else if !self.word.is_empty() {
                self.done.push(std::mem::take(&mut self.word));
            }
        }
    }

    fn finish(mut self) -> Vec<String> {
        if !self.word.is_empty() {
            self.done.push(self.word);
        }
        self.done
    }
}

/// How much longer than it is written a word may become, in bytes; a system call takes 128 KiB.
const LONGEST: usize = 1 << 20;
/// How deep substitutions may be nested.
const DEEPEST: usize = 100;

/// The beginning of a word that is shown.
fn shown(word: &str) -> String {
    match word.char_indices().nth(200) {
        None => word.to_owned(),
        Some((end, _)) => format!("{}…", &word[..end]),
    }
}

struct Expander<'a> {
    whole: &'a str,
    chars: std::iter::Peekable<std::str::Chars<'a>>,
    escape: char,
    /// Whether quotation marks quote.
    quotes: bool,
    environment: &'a dyn Environment,
    /// How many substitutions this one stands in.
    depth: usize,
}

impl<'a> Expander<'a> {
    fn new(whole: &'a str, escape: char, environment: &'a dyn Environment) -> Self {
        Self { whole, chars: whole.chars().peekable(), escape, quotes: true, environment, depth: 0 }
    }

    fn broken(&self, reason: &'static str) -> Problem {
        Problem::Substitution { word: shown(self.whole), reason }
    }

    /// What was put together so far is no longer than can be borne: variables that hold each other twice grow without end.
    fn bounded(&self, text: &str) -> Result<(), Problem> {
        if text.len() > LONGEST + self.whole.len() {
            Err(self.broken("what comes of it is longer than 1 MiB"))
        } else {
            Ok(())
        }
    }

    /// Reads up to `stop`, which is taken and must come, or to the end. In a pattern escapes stay, for the pattern's own use.
    fn until(&mut self, stop: Option<char>, pattern: bool) -> Result<Words, Problem> {
        let mut out = Words::default();
        // What is in the word as it stands is bounded by the file.
        let mut grown = false;
        loop {
            if grown {
                self.bounded(&out.text)?;
            }
            grown = false;
            let Some(ch) = self.chars.next() else {
                return match stop {
                    None => Ok(out),
                    Some('/') => Err(self.broken("`/` is missing")),
                    Some(_) => Err(self.broken("`}` is missing")),
                };
            };
            match ch {
                _ if Some(ch) == stop => return Ok(out),
                '\'' if self.quotes => out.quoted(&self.single()?),
                '"' if self.quotes => {
                    grown = true;
                    out.quoted(&self.double(pattern)?);
                }
                '$' => {
                    grown = true;
                    out.plain(&self.dollar()?);
                }
                _ if ch == self.escape => {
                    let kept = pattern.then_some(ch);
                    out.quoted(&kept.into_iter().chain(self.chars.next()).collect::<String>());
                }
                _ => out.plain(ch.encode_utf8(&mut [0; 4])),
            }
        }
    }

    fn single(&mut self) -> Result<String, Problem> {
        let mut out = String::new();
        loop {
            match self.chars.next() {
                Some('\'') => return Ok(out),
                Some(ch) => out.push(ch),
                None => return Err(open_quote('\'', self.whole)),
            }
        }
    }

    fn double(&mut self, pattern: bool) -> Result<String, Problem> {
        let mut out = String::new();
        loop {
            match self.chars.next() {
                Some('"') => return Ok(out),
                Some('$') => {
                    out.push_str(&self.dollar()?);
                    self.bounded(&out)?;
                }
                Some(ch) if ch == self.escape => {
                    out.extend(pattern.then_some(ch));
                    match self.chars.peek() {
                        // Only these can be escaped between double quotes; before others the escape is itself.
                        Some(&next) if matches!(next, '"' | '$') || next == self.escape => {
                            out.push(next);
                            self.chars.next();
                        }
                        Some(_) => out.push(ch),
                        None => {}
                    }
                }
                Some(ch) => out.push(ch),
                None => return Err(open_quote('"', self.whole)),
            }
        }
    }

    fn dollar(&mut self) -> Result<String, Problem> {
        if self.depth == DEEPEST {
            return Err(self.broken("it is nested more than 100 times"));
        }
        self.depth += 1;
        let value = self.variable();
        self.depth -= 1;
        value
    }

    fn variable(&mut self) -> Result<String, Problem> {
        if self.chars.peek() != Some(&'{') {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".to_owned());
            }
            return Ok(self.environment.get(&name).unwrap_or_default().to_owned());
        }
        self.chars.next();
        let name = self.name();
        if name.is_empty() {
            return Err(self.broken("it has no variable"));
        }
        let value = self.environment.get(&name).map(str::to_owned);
        let Some(mut operator) = self.chars.next() else {
            return Err(self.broken("`}` is missing"));
        };
        if operator == '}' {
            return Ok(value.unwrap_or_default());
        }
        // With a colon, a variable that is empty counts as not set.
        let mut set = value.is_some();
        if operator == ':' {
            set = value.as_ref().is_some_and(|value| !value.is_empty());
            operator = match self.chars.next() {
                Some(next @ ('-' | '+' | '?')) => next,
                _ => return Err(self.broken("after `:` only `-`, `+` and `?` are known")),
            };
        }
        let value = value.unwrap_or_default();
        match operator {
            '-' | '+' | '?' => {
                let word = self.until(Some('}'), false)?.text;
                match operator {
                    '-' if set => Ok(value),
                    '-' => Ok(word),
                    '+' if set => Ok(word),
                    '+' => Ok(String::new()),
                    _ if set => Ok(value),
                    _ => {
                        let message = if word.is_empty() { "the Dockerfile needs it".to_owned() } else { word };
                        Err(Problem::Required { name, message })
                    }
                }
            }
            '#' | '%' => {
                let longest = self.chars.next_if_eq(&operator).is_some();
                let pattern = self.pattern('}')?;
                Ok(if operator == '#' {
                    pattern.without_beginning(&value, longest)
                } else {
                    pattern.without_end(&value, longest)
                })
            }
            '/' => {
                let all = self.chars.next_if_eq(&'/').is_some();
                let pattern = self.pattern('/')?;
                let replacement = self.until(Some('}'), true)?.text;
                Ok(pattern.replaced(&value, &replacement, all))
            }
            _ => Err(self.broken("its operator is not known")),
        }
    }

    fn pattern(&mut self, stop: char) -> Result<Pattern, Problem> {
        let text = self.until(Some(stop), true)?.text;
        Pattern::parse(&text).ok_or_else(|| self.broken("an escape in its pattern is not known"))
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        // A shell's positional and special parameters. They are never set here.
        while let Some(digit) = self.chars.next_if(|ch| ch.is_numeric()) {
            name.push(digit);
        }
        if !name.is_empty() {
            return name;
        }
        if let Some(special) = self.chars.next_if(|ch| "@*#?-$!".contains(*ch)) {
            return special.to_string();
        }
        while let Some(ch) = self.chars.next_if(|ch| ch.is_alphanumeric() || *ch == '_') {
            name.push(ch);
        }
        name
    }
}
