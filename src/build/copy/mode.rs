//! `--chmod`: a mode in octal digits, or changes of the mode that a file has.

/// What is done to the mode of everything that a COPY takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModeChange {
    text: String,
    clauses: Vec<Clause>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Clause {
    /// The bits of those whom it is about: user, group, others, with the special bit of each.
    who: u32,
    sign: Sign,
    bits: Bits,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sign {
    Add,
    Remove,
    Set,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bits {
    /// These, for everybody.
    Fixed(u32),
    /// Execution, where it is a directory or somebody may execute it already; and these.
    Conditional(u32),
    /// What the user, the group or others have: the shift to its three bits.
    Copied(u32),
}

const USER: u32 = 0o4700;
const GROUP: u32 = 0o2070;
const OTHERS: u32 = 0o1007;

impl ModeChange {
    /// Reads `755`, `u+x`, `go-w,a=rX` and their like. None where it is neither.
    pub fn parse(text: &str) -> Option<Self> {
        let clauses = if text.starts_with(|ch: char| ch.is_ascii_digit()) {
            let octal = text.len() <= 5 && text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
            let mode = octal.then(|| u32::from_str_radix(text, 8).ok()).flatten().filter(|mode| *mode <= 0o7777)?;
            vec![Clause { who: 0o7777, sign: Sign::Set, bits: Bits::Fixed(mode) }]
        } else {
            let mut clauses = Vec::new();
            for part in text.split(',') {
                clause(part, &mut clauses)?;
            }
            clauses
        };
        Some(Self { text: text.to_owned(), clauses })
    }

    /// The mode in one number, where it does not depend on what was there before.
    pub fn fixed(&self) -> Option<u32> {
        match self.clauses.as_slice() {
            [Clause { who: 0o7777, sign: Sign::Set, bits: Bits::Fixed(mode) }] => Some(*mode),
            _ => None,
        }
    }

    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The mode that comes of `mode`.
    pub fn apply(&self, mode: u32, directory: bool) -> u32 {
        self.clauses.iter().fold(mode, |mode, Clause { who, sign, bits }| {
            let bits = match bits {
                Bits::Fixed(bits) => *bits,
                Bits::Conditional(bits) if directory || mode & 0o111 != 0 => bits | 0o111,
                Bits::Conditional(bits) => *bits,
                Bits::Copied(shift) => {
                    let three = mode >> shift & 0o7;
                    three << 6 | three << 3 | three
                }
            };
            match sign {
                Sign::Add => mode | bits & who,
                Sign::Remove => mode & !(bits & who),
                Sign::Set => mode & !who | bits & who,
            }
        })
    }
}

fn clause(text: &str, clauses: &mut Vec<Clause>) -> Option<()> {
    let start = text.find(['+', '-', '='])?;
    let mut who = 0;
    for ch in text[..start].chars() {
        who |= match ch {
            'u' => USER,
            'g' => GROUP,
            'o' => OTHERS,
            'a' => 0o7777,
            _ => return None,
        };
    }
    let who = if who == 0 { 0o7777 } else { who };
    let mut rest = &text[start..];
    while let Some(sign) = rest.chars().next() {
        let sign = match sign {
            '+' => Sign::Add,
            '-' => Sign::Remove,
            _ => Sign::Set,
        };
        let end = rest[1..].find(['+', '-', '=']).map_or(rest.len(), |at| at + 1);
        clauses.push(Clause { who, sign, bits: bits(&rest[1..end])? });
        rest = &rest[end..];
    }
    Some(())
}

fn bits(text: &str) -> Option<Bits> {
    match text {
        "u" => return Some(Bits::Copied(6)),
        "g" => return Some(Bits::Copied(3)),
        "o" => return Some(Bits::Copied(0)),
        _ => {}
    }
    let (mut bits, mut conditional) = (0, false);
    for ch in text.chars() {
        bits |= match ch {
            'r' => 0o444,
            'w' => 0o222,
            'x' => 0o111,
            's' => 0o6000,
            't' => 0o1000,
            'X' => {
                conditional = true;
                0
            }
            _ => return None,
        };
    }
    Some(if conditional { Bits::Conditional(bits) } else { Bits::Fixed(bits) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_set_and_changed_as_by_chmod() {
        for (text, before, directory, after) in [
            ("755", 0o644, false, 0o755),
            ("0", 0o644, false, 0),
            ("07777", 0o644, false, 0o7777),
            ("u+x", 0o644, false, 0o744),
            ("+x", 0o644, false, 0o755),
            ("go-rwx", 0o755, false, 0o700),
            ("u=rwX,go=rX", 0o644, false, 0o644),
            ("u=rwX,go=rX", 0o744, false, 0o755),
            ("u=rwX,go=rX", 0o600, true, 0o755),
            ("a=r", 0o4755, false, 0o444),
            ("u+s,g+s", 0o755, false, 0o6755),
            ("+t", 0o777, true, 0o1777),
            ("o+t", 0o777, true, 0o1777),
            ("g=u", 0o740, false, 0o770),
            ("go=u-w", 0o744, false, 0o755),
            ("u=", 0o755, false, 0o055),
        ] {
            let change = ModeChange::parse(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(change.apply(before, directory), after, "{text} of {before:o}");
        }
        for text in ["", "8", "0x1", "77777", "u", "x", "q+x", "u+q", "u+x,", "+rq", "u+ug"] {
            assert_eq!(ModeChange::parse(text), None, "{text}");
        }
    }
}
