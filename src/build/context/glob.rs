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

fn matches(tokens: &[Token], text: &[char]) -> bool {
    let Some((token, rest)) = tokens.split_first() else {
        return text.is_empty();
    };
    match token {
        Token::Rest => true,
        Token::Any => {
            let longest = text.iter().position(|ch| *ch == '/').unwrap_or(text.len());
            (0..=longest).any(|skip| matches(rest, &text[skip..]))
        }
        Token::Directories => {
            let starts = text.iter().enumerate().filter(|(_, ch)| **ch == '/').map(|(at, _)| at + 1);
            std::iter::once(0).chain(starts).any(|start| matches(rest, &text[start..]))
        }
        one => match text.split_first() {
            Some((ch, text)) => one.takes(*ch) && matches(rest, text),
            None => false,
        },
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
