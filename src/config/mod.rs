//! Turns the texts of `.jiji/deploy.yml` and its overlay into a [`Project`], or into every error they hold, each at its place.
//!
//! Loading runs nothing, asks no network and reads no file but the two that [`find`] names below the project's root: a file from a
//! stranger's pull request can be loaded safely. Values of the environment come through a lookup that the caller hands in; values of
//! secrets are never asked for, only their names. What the words mean to hosts and builders is decided in other rooms:
//! [`crate::secrets`] gets the values, [`crate::build`] reads contexts, [`crate::deploy`] plans.
//!
//! The way in: text → spanned tree ([`tree`]) → overlay merged ([`overlay`]) → `${VAR}` substituted ([`substitute`]) → shape checked
//! against the one table of keys ([`table`]) → meaning checked ([`decode`]). The JSON Schema and the reference page come from the
//! same table ([`schema`]).

use std::sync::Arc;

use jiji_model::project::Project;
use jiji_model::secret::Asked;

mod decode;
mod error;
mod files;
mod overlay;
mod schema;
mod shape;
mod substitute;
mod table;
mod tree;

pub use error::{ConfigError, ConfigErrors, Place, Problem, Rootless};
pub use files::{FILE, find, find_root, is_environment, overlay_file};
pub use schema::{json_schema, reference};
pub use shape::duration_ms;

use error::Problems;
use tree::{Kind, Span, Value};

/// A configuration file's name, as people are to see it, and its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The name, relative to the project's root.
    pub name: String,
    /// The text.
    pub text: String,
}

/// What loading gives: the project, which secrets it asks for and where, and where each part of it was written.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The project.
    pub project: Project,
    /// The secrets that it names, in the order of the file; one that is named twice stands here twice.
    pub secrets: Vec<Asked>,
    tree: Value,
    sources: Arc<[Source]>,
}

impl Loaded {
    /// Where a part of the configuration was written, by its keys: `["services", "web", "build"]`. Where the last keys are not
    /// written anywhere, the nearest part around them that is.
    pub fn locate(&self, keys: &[&str]) -> Option<Place> {
        let mut found: Option<Span> = None;
        let mut value = &self.tree;
        for key in keys {
            let Kind::Map(entries) = &value.kind else { break };
            let Some(entry) = entries.iter().find(|entry| entry.key == *key) else {
                break;
            };
            found = Some(match entry.value.kind {
                Kind::Scalar(_) => entry.value.span,
                Kind::Seq(_) | Kind::Map(_) => entry.key_span,
            });
            value = &entry.value;
        }
        found.map(|span| Place::new(&self.sources, span))
    }
}

/// Loads a project from the base file's text and any overlays, the strongest last.
///
/// `lookup` gives the value of an environment variable for `${NAME}`; `environment` is the name given with `-e`, which becomes part of
/// the project's scope.
///
/// # Errors
/// [`ConfigErrors`] with every error that could be found in one go. A file that is not YAML hides what depends on it.
pub fn load(
    sources: Vec<Source>,
    lookup: &dyn Fn(&str) -> Option<String>,
    environment: Option<&str>,
) -> Result<Loaded, ConfigErrors> {
    let sources: Arc<[Source]> = sources.into();
    let mut problems = Problems::new(Arc::clone(&sources));
    let trees: Vec<Option<Value>> =
        (0..sources.len()).map(|file| tree::parse(file, &sources[file].text, &mut problems)).collect();
    let Some(trees) = trees.into_iter().collect::<Option<Vec<Value>>>() else {
        return Err(problems.into_errors());
    };
    let mut trees = trees.into_iter();
    let Some(mut merged) = trees.next() else {
        problems.report(Problem::NoFile, None, String::new());
        return Err(problems.into_errors());
    };
    for overlay in trees {
        overlay::merge(&mut merged, overlay);
    }
    substitute::substitute(&mut merged, lookup, &mut problems);
    shape::check(&merged, &table::PROJECT, &mut problems);
    let decoded = decode::project(&merged, environment, &mut problems);
    match decoded {
        Some((project, secrets)) if problems.is_empty() => Ok(Loaded { project, secrets, tree: merged, sources }),
        _ => Err(problems.into_errors()),
    }
}

#[cfg(test)]
mod tests;
