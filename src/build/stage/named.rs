//! Named contexts: what a name stands for in FROM, `COPY --from` and `RUN --mount=from=`, whatever the Dockerfile or a registry calls so.
//!
//! Each becomes what a stage is: layers and a configuration. A directory's files become one layer, in which they lie as COPY would lay them; so
//! they are in keys by their content, and whatever can be taken from a stage can be taken from a directory.

use std::collections::BTreeMap;
use std::path::Path;

use jiji_model::image::Platform;
use jiji_model::project::NamedContext;
use jiji_model::reference::Reference;
use serde_json::Value;

use super::Evaluation;
use super::steps::{Stepped, learn};
use crate::build::contents::Contents;
use crate::build::context;
use crate::build::copy::{self, Choice, Source};
use crate::build::error::StepError;
use crate::build::image::Draft;

/// The longest configuration of an image, in bytes.
const CONFIG_LIMIT: u64 = 4 << 20;

/// The context of a name: stages are called alike whatever the case of their letters, images by any way to write one reference.
pub(super) fn find<'a>(contexts: &'a BTreeMap<String, NamedContext>, name: &str) -> Option<&'a NamedContext> {
    if contexts.is_empty() {
        return None;
    }
    let spelled = |text: &str| text.parse::<Reference>().ok();
    let reference = spelled(name);
    let same = |own: &String| own.eq_ignore_ascii_case(name) || reference.is_some() && spelled(own) == reference;
    contexts.get(name).or_else(|| contexts.iter().find(|(own, _)| same(own)).map(|(_, context)| context))
}

impl Evaluation<'_> {
    /// What a named context holds, as an image to begin from or to take from.
    pub(super) fn named(&self, name: &str, context: &NamedContext, platform: &Platform) -> Stepped<Draft> {
        match context {
            NamedContext::Image(reference) => self.image(reference, platform),
            NamedContext::Layout { directory, version } => {
                let store = self.builder.store;
                let image = store.import_layout(directory, version.as_deref(), platform)?;
                let config = store.read(&image.config.digest, CONFIG_LIMIT)?;
                let config: Value = serde_json::from_slice(&config).unwrap_or_default();
                let part = |key: &str| config.get(key).and_then(Value::as_str).unwrap_or("an unknown").to_owned();
                let actual = format!("{}/{}", part("os"), part("architecture"));
                if actual != platform.to_string() {
                    return Err(StepError::ContextPlatform { name: name.to_owned(), actual });
                }
                Ok(Draft::from_base(&image, store)?)
            }
            NamedContext::Directory(directory) => self
                .asked
                .take(format!("context {}", directory.display()), || self.directory(name, directory, platform)),
        }
    }

    fn directory(&self, name: &str, directory: &Path, platform: &Platform) -> Stepped<Draft> {
        let of = format!("{} with {name}", self.request.target);
        let tree = context::read(directory, None, self.request.threads)?;
        let mut contents = Contents::new(directory, &of, self.request.threads, self.builder.store)?;
        let all = [Source::Path(".".to_owned())];
        let selected = copy::select(&all, &Choice::default(), &tree, &format!("the context `{name}`"))?;
        learn(&selected, &mut contents)?;
        contents.remember()?;
        let mut draft = Draft::scratch(platform.clone());
        let layer = self.files_layer(&selected, directory)?;
        draft.record(&format!("FROM {name}"), vec![layer]);
        Ok(draft)
    }
}
