//! What can be wrong with a Dockerfile, and where.

use std::fmt;

/// Where in a file something stands, with the line itself, so that it can be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file's name, as people know it.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
    /// Column, from 1, in characters.
    pub column: u32,
    /// The line's text.
    pub text: String,
}

impl Place {
    /// The place with its line, in the form people know from compilers:
    ///
    /// ```text
    ///  ┌─ Dockerfile:3:6
    /// 3│ COPY --from=nowhere / /
    ///  │      ^
    /// ```
    pub fn excerpt(&self) -> String {
        let number = self.line.to_string();
        let margin = " ".repeat(number.len());
        let column = usize::try_from(self.column.saturating_sub(1)).unwrap_or(0);
        // What steers a terminal is no part of a line that is shown.
        let text: String =
            self.text.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect();
        let before: String = text.chars().take(column).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
        format!("{margin}┌─ {self}\n{number}│ {text}\n{margin}│ {before}^")
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// Why a Dockerfile was refused, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("read {place}: {problem}")]
pub struct DockerfileError {
    /// Where.
    pub place: Place,
    /// What.
    pub problem: Problem,
}

impl DockerfileError {
    /// What a person can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        self.problem.hint()
    }
}

/// What is wrong at a place of a Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The file is not text.
    #[error("the file is not UTF-8 here")]
    NotUtf8,
    /// There is no FROM.
    #[error("no stage: a Dockerfile needs at least one FROM")]
    NoStage,
    /// There are more stages than anybody needs.
    #[error("more than {most} stages")]
    TooManyStages {
        /// The most that there may be.
        most: usize,
    },
    /// Something other than ARG stands before the first FROM.
    #[error("`{instruction}` before the first FROM")]
    BeforeFrom {
        /// The instruction.
        instruction: &'static str,
    },
    /// A parser directive that has another value than the known ones.
    #[error("parser directive `{name}` cannot be `{value}`")]
    Directive {
        /// Its name.
        name: &'static str,
        /// Its value.
        value: String,
    },
    /// A parser directive that stands there twice.
    #[error("parser directive `{name}` was given before")]
    DirectiveTwice {
        /// Its name.
        name: &'static str,
    },
    /// A `syntax` directive that names another frontend.
    #[error("frontend `{name}` is a program that jiji does not run")]
    Frontend {
        /// The image that is named.
        name: String,
    },
    /// The first word of a line is no instruction.
    #[error("unknown instruction `{name}`")]
    UnknownInstruction {
        /// The word.
        name: String,
    },
    /// ONBUILD of an instruction that cannot be a trigger.
    #[error("`{instruction}` cannot stand after ONBUILD")]
    Trigger {
        /// The instruction.
        instruction: &'static str,
    },
    /// A trigger of a base image that cannot be one.
    #[error("the image's trigger `{text}` is not one instruction")]
    NotATrigger {
        /// The trigger.
        text: String,
    },
    /// A flag that the instruction does not have.
    #[error("unknown flag `--{flag}` of {instruction}")]
    UnknownFlag {
        /// The instruction.
        instruction: &'static str,
        /// The flag's name.
        flag: String,
    },
    /// A flag that Docker knows and jiji does not build.
    #[error("`{flag}` of {instruction} is not supported")]
    UnsupportedFlag {
        /// The instruction.
        instruction: &'static str,
        /// The flag, with its value where that matters.
        flag: String,
    },
    /// A flag that stands there twice.
    #[error("flag `--{flag}` was given before")]
    FlagTwice {
        /// The flag's name.
        flag: String,
    },
    /// A flag whose value cannot be read.
    #[error("`--{flag}` cannot be `{value}`: expected {expected}")]
    FlagValue {
        /// The flag's name.
        flag: &'static str,
        /// Its value.
        value: String,
        /// What would do.
        expected: &'static str,
    },
    /// A `--mount` that cannot be read.
    #[error("`--mount` cannot have `{option}`: {reason}")]
    Mount {
        /// The option, or all of them.
        option: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// An instruction without what it needs.
    #[error("{instruction} needs {what}")]
    Missing {
        /// The instruction.
        instruction: &'static str,
        /// What.
        what: &'static str,
    },
    /// Something that an instruction cannot have.
    #[error("{instruction} cannot have `{word}`: expected {expected}")]
    Unexpected {
        /// The instruction.
        instruction: &'static str,
        /// The word.
        word: String,
        /// What would do.
        expected: &'static str,
    },
    /// A word of ENV, LABEL or ARG without `=` or without a name.
    #[error("`{word}` is not `name=value`")]
    NotAPair {
        /// The word.
        word: String,
    },
    /// A heredoc whose end is nowhere.
    #[error("here-document `{name}` has no end")]
    OpenHeredoc {
        /// Its delimiter.
        name: String,
    },
    /// A quotation mark without its other.
    #[error("the {mark} quotation mark in `{word}` has no end")]
    OpenQuote {
        /// `single` or `double`.
        mark: &'static str,
        /// The word.
        word: String,
    },
    /// `${` without its end, without a name, or with something jiji does not know.
    #[error("`{word}` holds a substitution that cannot be read: {reason}")]
    Substitution {
        /// The word.
        word: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// `${name:?message}` of a variable that is not set.
    #[error("variable `{name}` is not set: {message}")]
    Required {
        /// The variable.
        name: String,
        /// What the Dockerfile says about it.
        message: String,
    },
    /// A stage's name that cannot be one.
    #[error("stage name `{name}` cannot be used: expected a-z, then a-z, 0-9, `-`, `_` and `.`; not `scratch`")]
    StageName {
        /// The name.
        name: String,
    },
}

impl Problem {
    /// What a person can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::NotUtf8 => "save the file as UTF-8",
            Self::NoStage => "begin with `FROM scratch` or `FROM image@sha256:…`",
            Self::BeforeFrom { .. } => "only ARG, comments and parser directives can stand before the first FROM",
            Self::Directive { name: "escape", .. } => "`escape` is a backslash or a backtick",
            Self::Frontend { .. } => {
                "jiji reads the language of docker/dockerfile itself; remove the `syntax` line if that is meant"
            }
            Self::UnknownInstruction { .. } => "a line that goes on needs a backslash at the end of the line before it",
            Self::UnsupportedFlag { flag, .. } if flag.starts_with("--network") => {
                "`RUN --network=default` has the network, runs once, and jiji.lock says what it gave; `--network=record` also what each URL gave"
            }
            Self::OpenHeredoc { .. } => "the delimiter must stand alone on its line, without blanks around it",
            Self::NotAPair { .. } => "put the value in quotation marks where it has blanks",
            _ => return None,
        })
    }
}
