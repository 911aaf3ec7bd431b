//! Puts the environment's values in for `${NAME}`, scalar by scalar, after parsing.
//!
//! A value can therefore never become a key, a list or a second line of YAML, whatever it holds. `${NAME:-default}` stands for the
//! default where the variable is unset or empty, `$${` for a plain `${`; a lone `$` means itself. `builder.registry.password` names a
//! secret and is left alone: its value is not this room's to read.

use super::error::{Problem, Problems};
use super::tree::{Kind, Scalar, Span, Value};

/// Substitutes in every scalar of the tree.
pub(super) fn substitute(value: &mut Value, lookup: &dyn Fn(&str) -> Option<String>, problems: &mut Problems) {
    let mut substitution = Substitution { lookup, problems, put_in: 0 };
    substitution.walk(value, &mut Vec::new());
}

/// The most bytes that variables may bring in, all together: a short file that names a long variable often is refused.
const MOST_PUT_IN: usize = 4 * 1024 * 1024;

struct Substitution<'a> {
    lookup: &'a dyn Fn(&str) -> Option<String>,
    problems: &'a mut Problems,
    put_in: usize,
}

impl Substitution<'_> {
    fn walk(&mut self, value: &mut Value, path: &mut Vec<String>) {
        let span = value.span;
        if self.put_in > MOST_PUT_IN {
            return;
        }
        match &mut value.kind {
            Kind::Scalar(scalar) => {
                if path.iter().map(String::as_str).eq(["builder", "registry", "password"]) {
                    return;
                }
                self.scalar(scalar, span, &path.join("."));
            }
            Kind::Seq(items) => {
                for (at, item) in items.iter_mut().enumerate() {
                    path.push(at.to_string());
                    self.walk(item, path);
                    path.pop();
                }
            }
            Kind::Map(entries) => {
                for entry in entries {
                    if path.is_empty() && entry.key.starts_with("x-") {
                        continue;
                    }
                    path.push(entry.key.clone());
                    self.walk(&mut entry.value, path);
                    path.pop();
                }
            }
        }
    }

    fn scalar(&mut self, scalar: &mut Scalar, span: Span, path: &str) {
        if !scalar.text.contains("${") {
            return;
        }
        let mut text = String::with_capacity(scalar.text.len());
        let mut any = false;
        let mut broken = false;
        let mut rest = scalar.text.as_str();
        while let Some(at) = rest.find("${") {
            if rest[..at].ends_with('$') {
                text.push_str(&rest[..at - 1]);
                text.push_str("${");
                rest = &rest[at + 2..];
                continue;
            }
            text.push_str(&rest[..at]);
            let end = rest[at..].find('}').map(|end| at + end);
            let whole = end.map_or(&rest[at..], |end| &rest[at..=end]);
            let (name, default) = match whole[2..].trim_end_matches('}').split_once(":-") {
                Some((name, default)) => (name, Some(default)),
                None => (whole[2..].trim_end_matches('}'), None),
            };
            let Some(end) = end.filter(|_| is_variable(name)) else {
                let problem = Problem::BadVariable { text: whole.chars().take(40).collect() };
                let place = self.problems.find_in(span, whole);
                self.problems.report(problem, Some(place), path.to_owned());
                scalar.broken = true;
                return;
            };
            let before = text.len();
            match ((self.lookup)(name), default) {
                (Some(value), Some(default)) if value.is_empty() => text.push_str(default),
                (Some(value), _) => text.push_str(&value),
                (None, Some(default)) => text.push_str(default),
                (None, None) => {
                    broken = true;
                    let place = self.problems.find_in(span, whole);
                    self.problems.report(Problem::Unset { variable: name.to_owned() }, Some(place), path.to_owned());
                }
            }
            self.put_in += text.len() - before;
            if self.put_in > MOST_PUT_IN {
                scalar.broken = true;
                self.problems.report(Problem::TooMuchPutIn { limit: MOST_PUT_IN }, Some(span), path.to_owned());
                return;
            }
            any = true;
            rest = &rest[end + 1..];
        }
        text.push_str(rest);
        scalar.broken = broken;
        let written = std::mem::replace(&mut scalar.text, text);
        if any {
            scalar.written = Some(written);
        }
    }
}

fn is_variable(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}
