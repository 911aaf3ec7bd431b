//! Checks a tree against the table of keys: kinds, unknown keys, missing keys. What values mean is [`super::decode`]'s.

use super::error::{Problem, Problems};
use super::tree::{Entry, Kind, Resolved, Span, Value};

/// What may stand somewhere.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shape {
    /// A text; numbers and booleans are taken as they are written.
    Text,
    /// `true` or `false`.
    Bool,
    /// A whole number.
    Integer {
        /// The least.
        least: i64,
        /// The most.
        most: i64,
    },
    /// A duration: `500ms`, `2s`, `1m`.
    Duration {
        /// Whether it is kept in whole seconds. Then a bare number means seconds too.
        seconds: bool,
    },
    /// One of a few words.
    Word(&'static [&'static str]),
    /// A list.
    List(&'static Shape),
    /// A map with keys of the user's own.
    Map {
        /// What a key names.
        keys: &'static str,
        /// What stands under each.
        values: &'static Shape,
    },
    /// A map with known keys.
    Object(&'static Object),
    /// One of several, told apart by their kind: text, list or map.
    Either(&'static [Shape]),
    /// Anything.
    Anything,
}

/// A map with known keys.
#[derive(Debug)]
pub(super) struct Object {
    /// Its keys in the order of the documentation.
    pub fields: &'static [Field],
    /// Whether keys that begin with `x-` are let through, for anchors.
    pub extensions: bool,
}

/// One key of an [`Object`].
#[derive(Debug)]
pub(super) struct Field {
    /// The key.
    pub name: &'static str,
    /// What stands under it.
    pub shape: Shape,
    /// Whether it must be there.
    pub required: bool,
    /// What it is for, one sentence without a full stop.
    pub doc: &'static str,
    /// What it is when it is not there, for people.
    pub default: Option<&'static str>,
    /// What people call it who mean it.
    pub also: &'static [&'static str],
}

/// Checks a whole project.
pub(super) fn check(value: &Value, object: &'static Object, problems: &mut Problems) {
    let at = Span { end: value.span.start, ..value.span };
    check_value(value, at, &Shape::Object(object), "", problems);
}

/// `key` is where a missing key is reported: at the key that the map stands under.
fn check_value(value: &Value, key: Span, shape: &Shape, path: &str, problems: &mut Problems) {
    if matches!(&value.kind, Kind::Scalar(scalar) if scalar.broken) {
        return;
    }
    if value.is_null() && !matches!(shape, Shape::Anything) {
        let advice = Some("give it a value or remove the key; `\"\"` is an empty text");
        let problem = Problem::WrongKind { expected: shape.describe(), found: "nothing".to_owned(), advice };
        let place = if value.span.start == value.span.end { key } else { value.span };
        problems.report(problem, Some(place), path.to_owned());
        return;
    }
    let wrong = |problems: &mut Problems, advice| {
        let problem = Problem::WrongKind { expected: shape.describe(), found: describe(value), advice };
        // A map or a list goes over many lines: its key says better which one is meant.
        let place = if matches!(value.kind, Kind::Scalar(_)) { value.span } else { key };
        problems.report(problem, Some(place), path.to_owned());
    };
    match (shape, &value.kind) {
        (Shape::Anything, _) | (Shape::Text, Kind::Scalar(_)) => {}
        (Shape::Bool, Kind::Scalar(scalar)) => {
            if !matches!(scalar.resolve(), Resolved::Bool(_)) {
                let known = ["yes", "no", "on", "off"].contains(&scalar.text.to_lowercase().as_str());
                let quoted = !scalar.plain && matches!(scalar.text.as_str(), "true" | "false");
                let advice = match (known, quoted) {
                    (true, _) => Some("YAML 1.2 knows `true` and `false` alone"),
                    (_, true) => Some("leave the quotes out"),
                    _ => None,
                };
                wrong(problems, advice);
            }
        }
        (Shape::Integer { least, most }, Kind::Scalar(scalar)) => match scalar.resolve() {
            Resolved::Int(number) if (*least..=*most).contains(&number) => {}
            Resolved::Text if scalar.text.parse::<i64>().is_ok() => wrong(problems, Some("leave the quotes out")),
            _ => wrong(problems, None),
        },
        (Shape::Duration { seconds }, Kind::Scalar(scalar)) => match duration_ms(&scalar.text, *seconds) {
            Ok(_) => {}
            Err(advice) => wrong(problems, Some(advice)),
        },
        (Shape::Word(words), Kind::Scalar(scalar)) => {
            if !words.contains(&scalar.text.as_str()) {
                wrong(problems, None);
            }
        }
        (Shape::List(inner), Kind::Seq(items)) => {
            for (at, item) in items.iter().enumerate() {
                check_value(item, item.span, inner, &join(path, &at.to_string()), problems);
            }
        }
        (Shape::Map { values, .. }, Kind::Map(entries)) => {
            for entry in entries {
                check_value(&entry.value, entry.key_span, values, &join(path, &entry.key), problems);
            }
        }
        (Shape::Object(object), Kind::Map(entries)) => check_object(entries, key, object, path, problems),
        (Shape::Either(shapes), kind) => match shapes.iter().find(|shape| shape.takes(kind)) {
            Some(shape) => check_value(value, key, shape, path, problems),
            None => wrong(problems, None),
        },
        (Shape::List(_), Kind::Scalar(_)) => wrong(problems, Some("write a list: `- ` before each, or `[a, b]`")),
        _ => wrong(problems, None),
    }
}

fn check_object(entries: &[Entry], key: Span, object: &'static Object, path: &str, problems: &mut Problems) {
    let mut misspelt = Vec::new();
    for entry in entries {
        if object.extensions && entry.key.starts_with("x-") {
            continue;
        }
        match object.fields.iter().find(|field| field.name == entry.key) {
            Some(field) => {
                check_value(&entry.value, entry.key_span, &field.shape, &join(path, field.name), problems);
            }
            // Guessing costs more than counting.
            None if problems.is_full() => problems.count_one_more(),
            None => {
                let absent = |field: &&Field| !entries.iter().any(|entry| entry.key == field.name);
                let known: Vec<&'static str> = object.fields.iter().map(|field| field.name).collect();
                let meant = object
                    .fields
                    .iter()
                    .filter(absent)
                    .find(|field| field.also.contains(&entry.key.as_str()))
                    .map(|field| field.name)
                    .or_else(|| nearest(&entry.key, known.iter().copied()));
                misspelt.extend(meant);
                let problem = Problem::UnknownKey { key: entry.key.clone(), meant, known };
                problems.report(problem, Some(entry.key_span), path.to_owned());
            }
        }
    }
    for field in object.fields.iter().filter(|field| field.required) {
        if !entries.iter().any(|entry| entry.key == field.name) && !misspelt.contains(&field.name) {
            let problem = Problem::MissingKey { key: field.name, purpose: field.doc };
            problems.report(problem, Some(key), path.to_owned());
        }
    }
}

/// Joins keys with dots.
pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn describe(value: &Value) -> String {
    match &value.kind {
        Kind::Seq(_) => "a list".to_owned(),
        Kind::Map(_) => "a map".to_owned(),
        Kind::Scalar(scalar) if scalar.written.is_some() => format!("what `{}` stands for", scalar.shown()),
        Kind::Scalar(scalar) => {
            let shown: String = scalar.shown().chars().take(60).collect();
            match scalar.resolve() {
                Resolved::Text if scalar.plain => format!("`{shown}`"),
                Resolved::Text => format!("the text `{shown}`"),
                _ => format!("`{shown}`"),
            }
        }
    }
}

impl Shape {
    /// Whether a value of this kind could have the shape.
    fn takes(&self, kind: &Kind) -> bool {
        match self {
            Self::Anything => true,
            Self::Text | Self::Bool | Self::Integer { .. } | Self::Duration { .. } | Self::Word(_) => {
                matches!(kind, Kind::Scalar(_))
            }
            Self::List(_) => matches!(kind, Kind::Seq(_)),
            Self::Map { .. } | Self::Object(_) => matches!(kind, Kind::Map(_)),
            Self::Either(shapes) => shapes.iter().any(|shape| shape.takes(kind)),
        }
    }

    /// The shape in words, with an article.
    pub fn describe(&self) -> String {
        match self {
            Self::Text => "a text".to_owned(),
            Self::Bool => "`true` or `false`".to_owned(),
            Self::Integer { least, most } => format!("a whole number from {least} to {most}"),
            Self::Duration { .. } => "a duration such as `500ms`, `2s` or `1m`".to_owned(),
            Self::Word(words) => words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(" or "),
            Self::List(inner) => format!("a list of {}", inner.describe_many()),
            Self::Map { keys, .. } => format!("a map of {keys}"),
            Self::Object(_) => "a map".to_owned(),
            Self::Either(shapes) => shapes.iter().map(Self::describe).collect::<Vec<_>>().join(" or "),
            Self::Anything => "anything".to_owned(),
        }
    }

    fn describe_many(&self) -> String {
        match self {
            Self::Text => "texts".to_owned(),
            other => other.describe(),
        }
    }
}

/// A duration in milliseconds, at most a day; `seconds` allows a bare number and forbids parts of a second.
///
/// # Errors
/// What would fit, for people.
pub fn duration_ms(text: &str, seconds: bool) -> Result<u32, &'static str> {
    const DAY: u64 = 24 * 60 * 60 * 1000;
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err("write a whole number and a unit: `ms`, `s`, `m` or `h`");
    }
    let factor = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "" if seconds => 1000,
        "" => return Err("add a unit: `ms`, `s`, `m` or `h`"),
        _ => return Err("the units are `ms`, `s`, `m` and `h`"),
    };
    let ms = number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    let Some(ms) = ms.filter(|ms| *ms <= DAY) else {
        return Err("a day is the most");
    };
    if seconds && ms % 1000 != 0 {
        return Err("this one is counted in whole seconds");
    }
    u32::try_from(ms).map_err(|_| "a day is the most")
}

/// The candidate that differs least from a word, if it differs little.
pub(super) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > 64 {
        return None;
    }
    candidates
        .into_iter()
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.chars().count().min(word.chars().count()).div_ceil(3))
        .min()
        .map(|(_, candidate)| candidate)
}

/// Letters to insert, remove, replace or swap with their neighbour (optimal string alignment).
fn distance(one: &str, other: &str) -> usize {
    let one: Vec<char> = one.to_lowercase().chars().collect();
    let other: Vec<char> = other.to_lowercase().chars().collect();
    let mut rows: Vec<Vec<usize>> = vec![(0..=other.len()).collect()];
    for i in 1..=one.len() {
        let mut row = vec![i];
        for j in 1..=other.len() {
            let cost = usize::from(one[i - 1] != other[j - 1]);
            let mut best = (rows[i - 1][j] + 1).min(row[j - 1] + 1).min(rows[i - 1][j - 1] + cost);
            if i > 1 && j > 1 && one[i - 1] == other[j - 2] && one[i - 2] == other[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[one.len()][other.len()]
}
