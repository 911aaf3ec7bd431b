//! What is left out of a context: `.dockerignore`, with the meaning it has in Docker, and what is never part of one.

use crate::build::layer::TarPath;

use super::glob::{BadPattern, Glob};

/// Names that are left out at any depth and cannot be brought back: what git and jiji themselves write while a project is worked
/// with. They would make every build another build.
const NEVER: [&[u8]; 3] = [b".git", b".jiji", b"jiji.lock"];

/// The rules of one context.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ignore {
    rules: Vec<Rule>,
    /// Whether what is never part of a context is left out, too.
    context: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    glob: Glob,
    /// The rule began with `!`: it brings back what a rule before it left out.
    back: bool,
}

/// A line of an ignore file that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRule {
    /// Its number, from 1.
    pub line: u32,
    /// Its text.
    pub text: String,
}

impl Ignore {
    /// Reads an ignore file.
    ///
    /// # Errors
    /// [`BadRule`] for a pattern that cannot be read.
    pub fn parse(text: &str) -> Result<Self, BadRule> {
        let mut rules = Vec::new();
        for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
            // Only a `#` in the first column begins a comment.
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let bad = |BadPattern| BadRule { line: number as u32 + 1, text: line.to_owned() };
            rules.push(Rule::parse(line).map_err(bad)?);
        }
        Ok(Self { rules, context: true })
    }

    /// Adds a rule of a COPY's `--exclude`.
    ///
    /// # Errors
    /// [`BadPattern`].
    pub fn add(&mut self, text: &str) -> Result<(), BadPattern> {
        self.rules.push(Rule::parse(text)?);
        Ok(())
    }

    /// Whether nothing is left out.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty() && !self.context
    }

    /// Whether a path is left out. A rule that matches a directory holds for all that is in it; the last rule that matches counts.
    pub fn leaves_out(&self, path: &TarPath) -> bool {
        if self.is_never(path) {
            return true;
        }
        if self.rules.is_empty() {
            return false;
        }
        let parents = path.parents();
        let matched = |rule: &&Rule| rule.glob.matches(path) || parents.iter().any(|parent| rule.glob.matches(parent));
        self.rules.iter().rev().find(matched).is_some_and(|rule| !rule.back)
    }

    /// The same of what lies in a directory of which `above` is known and which is not left out whole. For a walk: no rule is asked about the
    /// same directory twice.
    pub(super) fn leaves_out_in(&self, above: &Above, path: &TarPath) -> bool {
        if self.context && NEVER.contains(&path.name()) {
            return true;
        }
        let matched = |(at, rule): &(usize, &Rule)| above.has(*at) || rule.glob.matches(path);
        self.rules.iter().enumerate().rev().find(matched).is_some_and(|(_, rule)| !rule.back)
    }

    /// What holds for all that is in a directory, which itself is in one of which `above` is known.
    pub(super) fn above(&self, above: &Above, directory: &TarPath) -> Above {
        let matched = |(at, rule): (usize, &Rule)| above.has(at) || rule.glob.matches(directory);
        Above(self.rules.iter().enumerate().map(matched).collect())
    }

    /// Whether a directory that is left out need not be looked at: nothing in it can be brought back.
    pub(super) fn is_final(&self, directory: &TarPath) -> bool {
        self.is_never(directory) || !self.rules.iter().any(|rule| rule.back)
    }

    fn is_never(&self, path: &TarPath) -> bool {
        self.context && path.parts().any(|part| NEVER.contains(&part))
    }
}

/// Which rules matched a directory or one of those that it is in.
#[derive(Debug, Clone, Default)]
pub(super) struct Above(Vec<bool>);

impl Above {
    fn has(&self, rule: usize) -> bool {
        self.0.get(rule).is_some_and(|matched| *matched)
    }
}

impl Rule {
    fn parse(text: &str) -> Result<Self, BadPattern> {
        let text = text.trim();
        let (back, pattern) = match text.strip_prefix('!') {
            Some(rest) => (true, rest.trim()),
            None => (false, text),
        };
        if pattern.is_empty() {
            return Err(BadPattern);
        }
        Ok(Self { glob: Glob::parse(&clean(pattern), true)?, back })
    }
}

/// A pattern's path without `.`, `..` and slashes at its ends, as Go's `filepath.Clean` makes it. What leads out of the context stays,
/// and matches nothing in it.
fn clean(pattern: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in pattern.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if pattern.starts_with('/') => {}
            part => parts.push(part),
        }
    }
    if parts.is_empty() { ".".to_owned() } else { parts.join("/") }
}
