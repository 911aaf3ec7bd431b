//! Reads a Dockerfile into stages and instructions, each with its place.
//!
//! Parsing is pure: no file is looked at and no variable is replaced, since what `$x` means depends on the instructions before it
//! and on the base image. `build::stage` gives the instructions their meaning.
//!
//! What is read is what the Dockerfile reference of BuildKit describes (docs/reference.md of Dockerfile 1.x). What jiji does not
//! build is refused here, with its place, and never skipped: a line that is ignored is an image that differs from what its author
//! wrote.

mod error;
mod instruction;
mod lines;
mod mount;
mod pattern;
mod words;

pub use error::{DockerfileError, Place, Problem};
pub use instruction::{
    Command, Copy, Deadline, Declaration, From, Healthcheck, Inline, Instruction, Kind, Pair, Run, RunNetwork, Source,
    Word, is_repository, platform,
};
pub use mount::{Mount, MountKind, Sharing, mount};
pub use words::{Environment, expand, expand_text, expand_words};

/// A place in a Dockerfile's text, both counted from 1. Columns count characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Line.
    pub line: u32,
    /// Column.
    pub column: u32,
}

/// A Dockerfile that was read.
#[derive(Debug, Clone)]
pub struct Dockerfile {
    /// Its name and text, for the places of later errors.
    pub text: Text,
    /// The character that escapes: `\`, or the backtick where a directive says so.
    pub escape: char,
    /// ARG instructions before the first FROM.
    pub globals: Vec<Instruction>,
    /// The stages in order, at least one.
    pub stages: Vec<Stage>,
}

/// A FROM line and what follows it.
#[derive(Debug, Clone)]
pub struct Stage {
    /// Where FROM stands.
    pub at: Position,
    /// What it begins from.
    pub from: From,
    /// The instructions after it, in order.
    pub instructions: Vec<Instruction>,
}

/// The text of a Dockerfile and what it is called.
#[derive(Debug, Clone)]
pub struct Text {
    /// The file's name as people know it, relative to the project.
    pub name: String,
    /// Its content.
    pub content: String,
}

impl Text {
    /// A position of this text, with its line.
    pub fn place(&self, at: Position) -> Place {
        let line = self.content.lines().nth(at.line.saturating_sub(1) as usize).unwrap_or_default();
        let text = line.chars().take(SHOWN).collect();
        Place { file: self.name.clone(), line: at.line, column: at.column, text }
    }

    /// An error at a position of this text.
    pub fn error(&self, at: Position, problem: Problem) -> DockerfileError {
        DockerfileError { place: self.place(at), problem }
    }
}

/// Reads a Dockerfile. `name` is what errors call it.
///
/// # Errors
/// At the first thing that cannot be read, or that jiji does not build.
pub fn parse(name: &str, content: &[u8]) -> Result<Dockerfile, Box<DockerfileError>> {
    let content = match std::str::from_utf8(content) {
        Ok(content) => content.strip_prefix('\u{feff}').unwrap_or(content).to_owned(),
        Err(error) => {
            let before = String::from_utf8_lossy(&content[..error.valid_up_to()]).into_owned();
            let line = before.split('\n').count();
            let column = before.rsplit('\n').next().map_or(0, |last| last.chars().count()) + 1;
            let text = Text { name: name.to_owned(), content: String::from_utf8_lossy(content).into_owned() };
            return Err(Box::new(text.error(Position { line: line as u32, column: column as u32 }, Problem::NotUtf8)));
        }
    };
    let text = Text { name: name.to_owned(), content };
    match stages_of(&text.content) {
        Ok((escape, globals, stages)) => Ok(Dockerfile { text, escape, globals, stages }),
        Err((at, problem)) => Err(Box::new(text.error(at, problem))),
    }
}

/// Reads the trigger of an image (`ONBUILD`), to be carried out as if it stood at `at`: at the FROM that names the image.
///
/// # Errors
/// When it is not one instruction that a stage can have.
pub fn trigger(text: &str, at: Position) -> Result<Instruction, Problem> {
    let not_one = || Problem::NotATrigger { text: text.to_owned() };
    let (escape, mut lines) = lines::split(text).map_err(|(_, problem)| problem)?;
    let line = lines.pop().filter(|_| lines.is_empty()).ok_or_else(not_one)?;
    match instruction::read(&line.placed(at), escape) {
        Ok(instruction::Item::Step(Instruction { kind: Kind::Onbuild(_) | Kind::Maintainer(_), .. }))
        | Ok(instruction::Item::From(_)) => Err(not_one()),
        Ok(instruction::Item::Step(step)) => Ok(step),
        Err((_, problem)) => Err(problem),
    }
}

/// Characters of a line that an error shows.
const SHOWN: usize = 2000;

/// The most stages of a Dockerfile: each that is needed may have a thread that waits.
pub(super) const STAGES: usize = 1000;

/// A problem before it knows the text it stands in.
type Found<T> = Result<T, (Position, Problem)>;

fn stages_of(content: &str) -> Found<(char, Vec<Instruction>, Vec<Stage>)> {
    let (escape, lines) = lines::split(content)?;
    let mut globals = Vec::new();
    let mut stages: Vec<Stage> = Vec::new();
    for line in &lines {
        match instruction::read(line, escape)? {
            instruction::Item::From(_) if stages.len() == STAGES => {
                return Err((line.position(0), Problem::TooManyStages { most: STAGES }));
            }
            instruction::Item::From(from) => {
                stages.push(Stage { at: line.position(0), from, instructions: Vec::new() });
            }
            instruction::Item::Step(step) => match stages.last_mut() {
                Some(stage) => stage.instructions.push(step),
                None if matches!(step.kind, Kind::Arg(_)) => globals.push(step),
                None => return Err((step.at, Problem::BeforeFrom { instruction: step.name })),
            },
        }
    }
    if stages.is_empty() {
        return Err((Position { line: 1, column: 1 }, Problem::NoStage));
    }
    Ok((escape, globals, stages))
}

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;
