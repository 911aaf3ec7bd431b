//! Reads a recipe, jiji's own way to say how an image is made: inputs, steps, layers, an image, in TOML.
//!
//! A recipe says what a Dockerfile leaves to the order of its lines. Every input has a name and is pinned; a step names what it sees, and
//! gives one directory; a layer names what it takes, so that it changes with that and nothing else. What is read becomes the stages of a
//! [`Dockerfile`]: an input and a step each one, the layers and the image the last. From there on both frontends are the same, and so are
//! keys, pins, checks and digests. `docs/recipe.md` is the reference.

mod convert;
mod error;
mod read;
mod stages;
#[cfg(test)]
mod tests;

use super::dockerfile::{Dockerfile, Text};

pub use convert::from_dockerfile;
pub use error::{NoRecipe, Problem, RecipeError};

/// Reads a recipe. `name` is what errors call it.
///
/// # Errors
/// At the first thing that cannot be read or names what is not there.
pub fn parse(name: &str, content: &[u8]) -> Result<Dockerfile, Box<RecipeError>> {
    let text = |content: String| Text { name: name.to_owned(), content };
    let content = match std::str::from_utf8(content) {
        Ok(content) => content.to_owned(),
        Err(error) => {
            let lossy = text(String::from_utf8_lossy(content).into_owned());
            return Err(RecipeError::at(&lossy, error.valid_up_to(), Problem::NotUtf8));
        }
    };
    let text = text(content);
    match read::recipe(&text.content).and_then(|recipe| stages::of(&recipe, &text)) {
        Ok(stages) => Ok(Dockerfile { text, escape: stages::ESCAPE, globals: Vec::new(), stages }),
        Err((offset, problem)) => Err(RecipeError::at(&text, offset, problem)),
    }
}

/// A problem before it knows the text it stands in: a byte of it, and what.
type Found<T> = Result<T, (usize, Problem)>;
