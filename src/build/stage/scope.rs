//! Variables: what ARG and ENV mean where they stand.

use std::collections::BTreeMap;

use jiji_model::image::Platform;

use crate::build::dockerfile::{Declaration, Environment, Problem, expand};

/// The variables that an instruction sees.
#[derive(Debug, Clone, Default)]
pub(super) struct Scope {
    /// ARG: declared names, and their values where they have one.
    args: BTreeMap<String, Option<String>>,
    /// ENV, the base image's included.
    env: BTreeMap<String, String>,
    /// What counts before both: variables of a recipe's steps.
    first: BTreeMap<String, String>,
}

impl Environment for Scope {
    fn get(&self, name: &str) -> Option<&str> {
        // ENV counts before ARG, wherever they stand.
        self.env.get(name).or_else(|| self.args.get(name)?.as_ref()).map(String::as_str)
    }
}

/// What a step of a recipe sees. What an image says with ENV does not see it.
struct OfStep<'a>(&'a Scope);

impl Environment for OfStep<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.first.get(name).map(String::as_str).or_else(|| self.0.get(name))
    }
}

impl Scope {
    pub(super) fn with_env(env: impl IntoIterator<Item = (String, String)>) -> Self {
        Self { env: env.into_iter().collect(), ..Self::default() }
    }

    pub(super) fn set_env(&mut self, name: &str, value: &str) {
        self.env.insert(name.to_owned(), value.to_owned());
    }

    pub(super) fn declare(&mut self, declaration: &Declaration, value: Option<String>) {
        let name = declaration.name.clone();
        match value {
            Some(value) if declaration.first => drop(self.first.insert(name, value)),
            value => drop(self.args.insert(name, value)),
        }
    }

    /// The environment of a command, sorted by name.
    pub(super) fn for_run(&self) -> Vec<(String, String)> {
        let args = self.args.iter().filter_map(|(name, value)| Some((name.clone(), value.clone()?)));
        let mut all: BTreeMap<String, String> = args.collect();
        all.extend(self.env.clone());
        all.extend(self.first.clone());
        all.into_iter().collect()
    }
}

/// Arguments that may be given though nothing declares them: they are about the build. Those of proxies reach steps that have the network.
pub(super) const PREDEFINED: [&str; 11] = [
    "ALL_PROXY",
    "FTP_PROXY",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_PROXY",
    "SOURCE_DATE_EPOCH",
    "all_proxy",
    "ftp_proxy",
    "http_proxy",
    "https_proxy",
    "no_proxy",
];

/// The ARGs before the first FROM, which FROM lines see, and which a stage sees where it declares them again.
#[derive(Debug, Clone)]
pub(super) struct Globals {
    values: BTreeMap<String, String>,
    given: BTreeMap<String, String>,
}

impl Environment for Globals {
    fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }
}

impl Globals {
    /// The platform's variables, to begin with. `given` are the build's own arguments.
    ///
    /// `BUILDPLATFORM` is the target's: every step runs on the platform it is for, whatever machine builds.
    pub(super) fn new(platform: &Platform, stage: Option<&str>, given: &BTreeMap<String, String>) -> Self {
        let stage = stage.unwrap_or("default").to_owned();
        let mut values = BTreeMap::from([("TARGETSTAGE".to_owned(), stage)]);
        for side in ["TARGET", "BUILD"] {
            for (name, value) in [
                ("PLATFORM", platform.to_string()),
                ("OS", platform.os.clone()),
                ("ARCH", platform.architecture.clone()),
                ("VARIANT", String::new()),
            ] {
                values.insert(format!("{side}{name}"), value);
            }
        }
        Self { values, given: given.clone() }
    }

    /// Takes an ARG before the first FROM.
    pub(super) fn declare(&mut self, declaration: &Declaration, escape: char) -> Result<(), Problem> {
        let value = match (self.given.get(&declaration.name), &declaration.default) {
            (Some(given), _) => Some(given.clone()),
            (None, Some(default)) => Some(expand(&default.text, escape, self)?),
            (None, None) => None,
        };
        if let Some(value) = value {
            self.values.insert(declaration.name.clone(), value);
        }
        Ok(())
    }

    /// What an ARG of a stage means: the build's own argument, its default, or what stands before the first FROM.
    pub(super) fn value(
        &self,
        declaration: &Declaration,
        escape: char,
        scope: &Scope,
    ) -> Result<Option<String>, Problem> {
        if let Some(given) = self.given.get(&declaration.name) {
            return Ok(Some(given.clone()));
        }
        match &declaration.default {
            Some(default) if declaration.first => expand(&default.text, escape, &OfStep(scope)).map(Some),
            Some(default) => expand(&default.text, escape, scope).map(Some),
            None => Ok(self.values.get(&declaration.name).cloned()),
        }
    }
}
