//! `jiji recipe …`: recipes from what was there before.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use jiji_model::event::Record;
use jiji_model::project::Frontend;
use serde_json::json;

use super::args::{Global, RecipeCommand};
use super::exit::Exit;
use super::failure::Failure;
use crate::build::dockerfile::Place;
use crate::build::{self, recipe};
use crate::report::Report;

/// Runs one of the commands.
pub fn run(global: &Global, command: &RecipeCommand, report: &Arc<dyn Report>) -> Result<Exit, Failure> {
    let RecipeCommand::From { dockerfile } = command;
    let text = convert(dockerfile)?;
    if global.json {
        report.emit(Record::new("recipe.converted", text.clone()).with(json!({"recipe": text})));
        return Ok(Exit::Done);
    }
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| Failure::text(Exit::Internal, format!("write to standard output: {error}")))?;
    Ok(Exit::Done)
}

fn convert(path: &Path) -> Result<String, Failure> {
    let file = build::read(path, Frontend::Dockerfile, &path.display().to_string()).map_err(|error| {
        let exit = if error.place().is_some() { Exit::Build } else { Exit::Usage };
        let failure = placed(Failure::new(exit, &error), error.place());
        match error.hint().filter(|_| exit == Exit::Build) {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    })?;
    recipe::from_dockerfile(&file).map_err(|error| {
        let hint = "a service may go on with its Dockerfile; docs/recipe.md lists what a recipe can say";
        placed(Failure::new(Exit::Build, &*error), Some(&error.place)).hint(hint)
    })
}

fn placed(failure: Failure, place: Option<&Place>) -> Failure {
    match place {
        Some(place) => failure.detail(place.excerpt()),
        None => failure,
    }
}
