//! The patterns of `${name#pattern}` and its like: a shell's, without `[…]`.

/// A pattern that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern(Vec<Part>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// This character.
    Char(char),
    /// `?`: any character.
    One,
    /// `*`: any characters.
    Any,
}

impl Pattern {
    /// Reads a pattern. None where a backslash stands before something that needs none.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts = Vec::new();
        let mut chars = text.chars();
        while let Some(ch) = chars.next() {
            parts.push(match ch {
                '*' => Part::Any,
                '?' => Part::One,
                '\\' => match chars.next() {
                    Some(next @ ('*' | '?' | '\\' | '}' | '/')) => Part::Char(next),
                    _ => return None,
                },
                ch => Part::Char(ch),
            });
        }
        Some(Self(parts))
    }

    /// `text` without the shortest or longest beginning that matches.
    pub(super) fn without_beginning(&self, text: &str, longest: bool) -> String {
        let text: Vec<char> = text.chars().collect();
        let end = self.end(&text, longest).unwrap_or(0);
        text[end..].iter().collect()
    }

    /// `text` without the shortest or longest end that matches.
    pub(super) fn without_end(&self, text: &str, longest: bool) -> String {
        let backwards = Self(self.0.iter().rev().copied().collect());
        let reversed: String = text.chars().rev().collect();
        backwards.without_beginning(&reversed, longest).chars().rev().collect()
    }

    /// `text` with the first match replaced, or all; at each place the longest counts.
    pub(super) fn replaced(&self, text: &str, replacement: &str, all: bool) -> String {
        let text: Vec<char> = text.chars().collect();
        let mut out = String::new();
        let mut at = 0;
        let mut done = false;
        // An empty match directly after another match is none.
        let mut matched_to = None;
        while at <= text.len() {
            let found = if done { None } else { self.end(&text[at..], true) };
            let found = found.filter(|length| *length > 0 || matched_to != Some(at));
            if let Some(length) = found {
                out.push_str(replacement);
                done = !all;
                if length > 0 {
                    at += length;
                    matched_to = Some(at);
                    continue;
                }
            }
            out.extend(text.get(at));
            at += 1;
        }
        out
    }

    /// Where the shortest or longest match that begins at the text's beginning ends. All ways are followed at once, so the time is
    /// bounded by the product of the two lengths.
    fn end(&self, text: &[char], longest: bool) -> Option<usize> {
        let mut states = vec![false; self.0.len() + 1];
        states[0] = true;
        let mut found = None;
        for at in 0..=text.len() {
            // `*` may stand for nothing.
            for part in 0..self.0.len() {
                if states[part] && self.0[part] == Part::Any {
                    states[part + 1] = true;
                }
            }
            if states[self.0.len()] {
                found = Some(at);
                if !longest {
                    return found;
                }
            }
            let Some(ch) = text.get(at) else { break };
            let mut next = vec![false; states.len()];
            for (part, known) in self.0.iter().enumerate() {
                match known {
                    _ if !states[part] => {}
                    Part::Any => next[part] = true,
                    Part::One => next[part + 1] = true,
                    Part::Char(own) if own == ch => next[part + 1] = true,
                    Part::Char(_) => {}
                }
            }
            if !next.contains(&true) {
                break;
            }
            states = next;
        }
        found
    }
}
