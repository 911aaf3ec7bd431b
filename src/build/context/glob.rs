//! Patterns of paths: those of COPY (Go's `filepath.Match`) and those of `.dockerignore` (the same with `**`).

use crate::build::layer::TarPath;

/// A pattern that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob {
    tokens: Vec<Token>,
    /// `**` and plain text: what the path ends with, be it within a name.
    end: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// One character.
    Char(char),
    /// `?`: any character but `/`.
    One,
    /// `*`: any characters but `/`.
    Any,
    /// `**` with something after it: any directories, or none.
    Directories,
    /// `**` at the end: everything.
    Rest,
    /// `[a-z]`: one of these, or with `^` none of these.
    Class { negated: bool, ranges: Vec<(char, char)> },
}

/// A pattern that cannot be read: a class without its end, or an escape of nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadPattern;

impl Glob {
    /// Reads a pattern. `deep` says whether `**` crosses directories, as in `.dockerignore`.
    ///
    /// # Errors
    /// [`BadPattern`].
    pub fn parse(text: &str, deep: bool) -> Result<Self, BadPattern> {
        let mut tokens = Vec::new();
        let end = text.strip_prefix("**").filter(|rest| deep && !rest.is_empty() && !Self::is_pattern(rest));
        let mut chars = text.chars().peekable();
        while let Some(ch) = chars.next() {
            tokens.push(match ch {
                '*' if deep && chars.peek() == Some(&'*') => {
                    chars.next();
                    chars.next_if_eq(&'/');
                    if chars.peek().is_none() { Token::Rest } else { Token::Directories }
                }
                '*' => Token::Any,
                '?' => Token::One,
                '[' => class(&mut chars, deep)?,
                '\\' => Token::Char(chars.next().ok_or(BadPattern)?),
                ch => Token::Char(ch),
            });
        }
        Ok(Self { tokens, end: end.map(str::to_owned) })
    }

    /// Whether a COPY source is a pattern and not a plain path.
    pub fn is_pattern(text: &str) -> bool {
        text.contains(['*', '?', '[', '\\'])
    }

    /// Whether the pattern matches the whole path.
    pub fn matches(&self, path: &TarPath) -> bool {
        // Bytes that are no UTF-8 match `?` and `*`, and nothing else.
        let text = String::from_utf8_lossy(path.as_bytes());
        if let Some(end) = &self.end {
            return text.ends_with(end.as_str()) || end.strip_prefix('/') == Some(&text);
        }
        let text: Vec<char> = text.chars().collect();
        matches(&self.tokens, &text)
    }
}

/// `ordered` refuses a range whose end lies before its beginning, as `.dockerignore` does.
fn class(chars: &mut std::iter::Peekable<std::str::Chars<'_>>, ordered: bool) -> Result<Token, BadPattern> {
    let negated = chars.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    loop {
        let low = match chars.next().ok_or(BadPattern)? {
            ']' if !ranges.is_empty() => return Ok(Token::Class { negated, ranges }),
            ']' | '-' => return Err(BadPattern),
            '\\' => chars.next().ok_or(BadPattern)?,
            ch => ch,
        };
        let high = match chars.next_if_eq(&'-') {
            None => low,
            Some(_) => match chars.next().ok_or(BadPattern)? {
                ']' | '-' => return Err(BadPattern),
                '\\' => chars.next().ok_or(BadPattern)?,
                ch => ch,
            },
        };
        if ordered && high < low {
            return Err(BadPattern);
        }
        ranges.push((low, high));
    }
}

/// Whether tokens match a whole text. All ways are followed at once, so the time is bounded by the product of the two lengths, and nothing
/// is deeper than this.
fn matches(tokens: &[Token], text: &[char]) -> bool {
    // Which tokens may come next, and which `**` are within a directory's name.
    let mut next = vec![false; tokens.len() + 1];
    let mut within = vec![false; tokens.len()];
    next[0] = true;
    for ch in text.iter().map(Some).chain([None]) {
        for (at, token) in tokens.iter().enumerate().filter(|(_, token)| token.may_be_nothing()) {
            match token {
                Token::Rest if next[at] => return true,
                // Tokens are in order, so what is reached through one is looked at after it.
                _ => next[at + 1] |= next[at],
            }
        }
        let Some(ch) = ch else { break };
        let mut after = vec![false; next.len()];
        let mut deeper = vec![false; within.len()];
        for (at, token) in tokens.iter().enumerate() {
            match token {
                Token::Directories => {
                    deeper[at] = next[at] || within[at];
                    after[at + 1] |= deeper[at] && *ch == '/';
                }
                _ if !next[at] => {}
                Token::Any => after[at] |= *ch != '/',
                one => after[at + 1] |= one.takes(*ch),
            }
        }
        (next, within) = (after, deeper);
    }
    next[tokens.len()]
}

impl Token {
    fn may_be_nothing(&self) -> bool {
        matches!(self, Self::Any | Self::Directories | Self::Rest)
    }
}

impl Token {
    fn takes(&self, ch: char) -> bool {
        match self {
            Self::Char(own) => *own == ch,
            Self::One => ch != '/',
            Self::Class { negated, ranges } => {
                ch != '/' && ranges.iter().any(|(low, high)| (*low..=*high).contains(&ch)) != *negated
            }
            Self::Any | Self::Directories | Self::Rest => false,
        }
    }
}
