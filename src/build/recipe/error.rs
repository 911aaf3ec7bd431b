//! What can be wrong with a recipe, and where.

use super::super::dockerfile::{Place, Position, Text};

/// Why a recipe was refused, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("read {place}: {problem}")]
pub struct RecipeError {
    /// Where.
    pub place: Place,
    /// What.
    pub problem: Problem,
}

impl RecipeError {
    /// At a byte of a text.
    pub(super) fn at(text: &Text, offset: usize, problem: Problem) -> Box<Self> {
        Box::new(Self { place: text.place(position(&text.content, offset)), problem })
    }

    /// What a person can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match &self.problem {
            Problem::Syntax { .. } | Problem::NotUtf8 | Problem::TooMany { .. } => None,
            Problem::Name { .. } => Some("begin with a small letter; small letters, digits, `-` and `_` may follow"),
            Problem::Twice { .. } => Some("inputs and steps share their names: call one of the two something else"),
            Problem::Unknown { .. } => Some("declare it below `[inputs]` or as `[steps.NAME]`"),
            Problem::Circle { .. } => Some("a step can see only what does not need it"),
            Problem::Kinds { .. } => Some("write one of `image`, `service`, `path`, `url` and `git`"),
            Problem::Misplaced { .. } => Some("docs/recipe.md lists which key belongs to which kind of input"),
            Problem::Nothing => {
                Some("write a text for the shell, or a list of words; only a step with `put` needs no `run`")
            }
            Problem::Packed { .. } => Some("write how many layers it may become, from 2 to 64"),
            Problem::Colon { .. } => Some("a colon stands between directories there: name each by itself"),
            Problem::NotAbsolute { .. } => Some("begin it with `/`"),
        }
    }
}

/// What is wrong at a place of a recipe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The file is not text.
    #[error("the file is not UTF-8 here")]
    NotUtf8,
    /// It is no TOML, or has keys or types that a recipe has not.
    #[error("{message}")]
    Syntax {
        /// What the reader of TOML says.
        message: String,
    },
    /// There are more inputs and steps than anybody needs.
    #[error("more than {most} inputs and steps")]
    TooMany {
        /// The most that there may be.
        most: usize,
    },
    /// A name is none.
    #[error("`{name}` is no name")]
    Name {
        /// What was written.
        name: String,
    },
    /// Two things have one name.
    #[error("`{name}` is an input and a step")]
    Twice {
        /// The name.
        name: String,
    },
    /// Something is named that there is not.
    #[error("there is no input and no step `{name}`")]
    Unknown {
        /// The name.
        name: String,
    },
    /// Steps need each other.
    #[error("`{name}` needs itself: {way}")]
    Circle {
        /// A step.
        name: String,
        /// From it to itself.
        way: String,
    },
    /// An input says not exactly one of what it may be.
    #[error("input `{name}` is {count} things")]
    Kinds {
        /// Its name.
        name: String,
        /// How many it says.
        count: usize,
    },
    /// A key that this kind of input has not.
    #[error("`{key}` says nothing about {of}")]
    Misplaced {
        /// The key.
        key: &'static str,
        /// The kind.
        of: &'static str,
    },
    /// A command without words, or a step without a command and without files.
    #[error("nothing is run")]
    Nothing,
    /// A layer is packed into one, or into more than an image should have.
    #[error("`packed` is {count}")]
    Packed {
        /// What was written.
        count: usize,
    },
    /// A directory of `path` that would be two.
    #[error("`{path}` cannot be in `PATH`")]
    Colon {
        /// The path.
        path: String,
    },
    /// A path inside an image that does not say from where.
    #[error("`{path}` is not an absolute path")]
    NotAbsolute {
        /// The path.
        path: String,
    },
}

/// Why a Dockerfile cannot be a recipe, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("convert {place}: a recipe has no word for {what}")]
pub struct NoRecipe {
    /// Where in the Dockerfile.
    pub place: Place,
    /// What it says there.
    pub what: String,
}

/// Line and column of a byte.
pub(super) fn position(content: &str, offset: usize) -> Position {
    let before = content.get(..offset.min(content.len())).unwrap_or(content);
    let line = before.split('\n').count();
    let column = before.rsplit('\n').next().map_or(0, |last| last.chars().count()) + 1;
    Position { line: u32::try_from(line).unwrap_or(u32::MAX), column: u32::try_from(column).unwrap_or(u32::MAX) }
}
