//! Words of a line: where they end, and what quotes, escapes and `$` in them mean.
//!
//! The rules are those of the Dockerfile reference ("Environment replacement"), which are close to a POSIX shell's and not the same:
//! a variable that is not set is empty, and nothing is split again after it was replaced, except in EXPOSE.

use super::Problem;

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

/// Splits at blanks alone. With each word comes its byte offset.
pub(super) fn plain(text: &str) -> Vec<(usize, String)> {
    let start = text.as_ptr() as usize;
    text.split_whitespace().map(|word| (word.as_ptr() as usize - start, word.to_owned())).collect()
}

/// The here-documents that a line opens: delimiter, `<<-`, and whether variables in it are replaced.
pub(super) fn heredocs(text: &str, escape: char) -> Vec<(String, bool, bool)> {
    let mut found = Vec::new();
    for (_, word) in quoted(text, escape) {
        if let Some(heredoc) = heredoc(&word) {
            found.push(heredoc);
        }
    }
    found
}

/// Reads a word as the opening of a here-document: a file descriptor's digits, `<<`, perhaps `-`, and a delimiter.
pub(super) fn heredoc(word: &str) -> Option<(String, bool, bool)> {
    let rest = word.trim_start_matches(|ch: char| ch.is_ascii_digit()).strip_prefix("<<")?;
    let (strip_tabs, rest) = match rest.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    // `<<<` is a here-string, and `<<` alone is for the shell to complain about.
    if rest.is_empty() || rest.contains('<') {
        return None;
    }
    let name: String = rest.chars().filter(|ch| !matches!(ch, '"' | '\'' | '\\')).collect();
    (!name.is_empty()).then(|| (name.clone(), strip_tabs, name == rest))
}

/// Replaces variables and takes away quotes and escapes.
///
/// # Errors
/// When a quote or a substitution has no end, or a required variable is not set.
pub fn expand(word: &str, escape: char, environment: &dyn Environment) -> Result<String, Problem> {
    Expander::new(word, escape, environment).word(None)
}

/// As [`expand`], and splits what came of it at blanks that were not quoted: EXPOSE alone does so.
///
/// # Errors
/// As [`expand`].
pub fn expand_words(word: &str, escape: char, environment: &dyn Environment) -> Result<Vec<String>, Problem> {
    Ok(expand(word, escape, environment)?.split_whitespace().map(str::to_owned).collect())
}

struct Expander<'a> {
    whole: &'a str,
    chars: std::iter::Peekable<std::str::Chars<'a>>,
    escape: char,
    environment: &'a dyn Environment,
}

impl<'a> Expander<'a> {
    fn new(whole: &'a str, escape: char, environment: &'a dyn Environment) -> Self {
        Self { whole, chars: whole.chars().peekable(), escape, environment }
    }

    fn broken(&self, reason: &'static str) -> Problem {
        Problem::Substitution { word: self.whole.to_owned(), reason }
    }

    /// Reads up to `stop`, which is taken and must come, or to the end.
    fn word(&mut self, stop: Option<char>) -> Result<String, Problem> {
        let mut out = String::new();
        loop {
            let Some(ch) = self.chars.next() else {
                return match stop {
                    None => Ok(out),
                    Some(_) => Err(self.broken("`}` is missing")),
                };
            };
            match ch {
                _ if Some(ch) == stop => return Ok(out),
                '\'' => self.single(&mut out)?,
                '"' => self.double(&mut out)?,
                '$' => self.dollar(&mut out)?,
                _ if ch == self.escape => out.extend(self.chars.next()),
                _ => out.push(ch),
            }
        }
    }

    fn single(&mut self, out: &mut String) -> Result<(), Problem> {
        loop {
            match self.chars.next() {
                Some('\'') => return Ok(()),
                Some(ch) => out.push(ch),
                None => {
                    return Err(Problem::OpenQuote { mark: "single", word: self.whole.to_owned() });
                }
            }
        }
    }

    fn double(&mut self, out: &mut String) -> Result<(), Problem> {
        loop {
            match self.chars.next() {
                Some('"') => return Ok(()),
                Some('$') => self.dollar(out)?,
                Some(ch) if ch == self.escape => match self.chars.peek() {
                    // Only these can be escaped between double quotes; before others the escape is itself.
                    Some(&next) if matches!(next, '"' | '$') || next == self.escape => {
                        out.push(next);
                        self.chars.next();
                    }
                    Some(_) => out.push(ch),
                    None => {}
                },
                Some(ch) => out.push(ch),
                None => {
                    return Err(Problem::OpenQuote { mark: "double", word: self.whole.to_owned() });
                }
            }
        }
    }

    fn dollar(&mut self, out: &mut String) -> Result<(), Problem> {
        if self.chars.peek() != Some(&'{') {
            let name = self.name();
            if name.is_empty() {
                out.push('$');
            } else {
                out.push_str(self.environment.get(&name).unwrap_or_default());
            }
            return Ok(());
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
            out.push_str(&value.unwrap_or_default());
            return Ok(());
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
        match operator {
            '-' | '+' | '?' => {
                let word = self.word(Some('}'))?;
                match operator {
                    '-' if set => out.push_str(&value.unwrap_or_default()),
                    '-' => out.push_str(&word),
                    '+' if set => out.push_str(&word),
                    '+' => {}
                    _ if set => out.push_str(&value.unwrap_or_default()),
                    _ => {
                        let message = if word.is_empty() { "the Dockerfile needs it".to_owned() } else { word };
                        return Err(Problem::Required { name, message });
                    }
                }
            }
            '#' | '%' => {
                let longest = self.chars.next_if_eq(&operator).is_some();
                let pattern: Vec<char> = self.word(Some('}'))?.chars().collect();
                let value: Vec<char> = value.unwrap_or_default().chars().collect();
                out.extend(trimmed(&value, &pattern, operator == '#', longest));
            }
            '/' => {
                let all = self.chars.next_if_eq(&'/').is_some();
                let pattern: Vec<char> = self.word(Some('/'))?.chars().collect();
                let replacement = self.word(Some('}'))?;
                let value: Vec<char> = value.unwrap_or_default().chars().collect();
                out.push_str(&replaced(&value, &pattern, &replacement, all));
            }
            _ => return Err(self.broken("its operator is not known")),
        }
        Ok(())
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        // A shell's special parameters are names of one character. They are never set here.
        if let Some(special) = self.chars.next_if(|ch| ch.is_ascii_digit() || "@*#?-$!".contains(*ch)) {
            name.push(special);
            return name;
        }
        while let Some(ch) = self.chars.next_if(|ch| ch.is_ascii_alphanumeric() || *ch == '_') {
            name.push(ch);
        }
        name
    }
}

/// `value` without the shortest or longest beginning or end that matches.
fn trimmed(value: &[char], pattern: &[char], beginning: bool, longest: bool) -> Vec<char> {
    let lengths: Vec<usize> = if longest { (0..=value.len()).rev().collect() } else { (0..=value.len()).collect() };
    for length in lengths {
        let (part, rest) = if beginning {
            value.split_at(length)
        } else {
            let (rest, part) = value.split_at(value.len() - length);
            (part, rest)
        };
        if matches(part, pattern) {
            return rest.to_vec();
        }
    }
    value.to_vec()
}

/// `value` with the first match, or all, replaced; at each place the longest.
fn replaced(value: &[char], pattern: &[char], replacement: &str, all: bool) -> String {
    let mut out = String::new();
    let mut at = 0;
    let mut done = false;
    while at < value.len() {
        let found = (at + 1..=value.len()).rev().find(|end| matches(&value[at..*end], pattern));
        match found {
            Some(end) if !done => {
                out.push_str(replacement);
                at = end;
                done = !all;
            }
            _ => {
                out.push(value[at]);
                at += 1;
            }
        }
    }
    out
}

/// Whether a shell pattern of `*`, `?` and plain characters matches the whole text.
fn matches(text: &[char], pattern: &[char]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some(('*', rest)) => (0..=text.len()).any(|skip| matches(&text[skip..], rest)),
        Some(('?', rest)) => !text.is_empty() && matches(&text[1..], rest),
        Some((ch, rest)) => text.first() == Some(ch) && matches(&text[1..], rest),
    }
}
