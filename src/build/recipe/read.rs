//! The text of a recipe as tables, each with its place.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

use super::{Found, Problem};

/// A recipe as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Recipe {
    #[serde(default)]
    pub(super) inputs: BTreeMap<Spanned<String>, Input>,
    #[serde(default)]
    pub(super) steps: BTreeMap<Spanned<String>, Step>,
    #[serde(default)]
    pub(super) layers: Vec<Spanned<Layer>>,
    #[serde(default)]
    pub(super) image: Image,
}

/// Something that an image is made from.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    /// An image of a registry.
    pub(super) image: Option<Spanned<String>>,
    /// The image of another service of the project.
    pub(super) service: Option<Spanned<String>>,
    /// A file or directory of the context.
    pub(super) path: Option<Spanned<String>>,
    /// A file of a server.
    pub(super) url: Option<Spanned<String>>,
    /// A git repository, `URL#REF`.
    pub(super) git: Option<Spanned<String>>,
    /// Of a path: patterns below it; all without.
    #[serde(default)]
    pub(super) only: Vec<Spanned<String>>,
    /// Of a path: patterns below it that are left out.
    #[serde(default)]
    pub(super) exclude: Vec<Spanned<String>>,
    /// Of a URL: the digest that the file must have, `sha256:…`.
    pub(super) checksum: Option<Spanned<String>>,
    /// Of a URL: whether the file is an archive that is unpacked.
    pub(super) unpack: Option<Spanned<bool>>,
}

/// A command, and what it gives.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Step {
    /// The input or step in whose file system it runs; an empty one without.
    pub(super) on: Option<Spanned<String>>,
    /// The command; without one the step is what is put together.
    pub(super) run: Option<Spanned<Command>>,
    /// What is put into its file system before it runs.
    #[serde(default)]
    pub(super) put: Vec<Spanned<Layer>>,
    /// What it sees: where, and an input or step, with a path of it after a colon.
    #[serde(default)]
    pub(super) see: BTreeMap<Spanned<String>, Spanned<String>>,
    /// Directories that outlive the build: where, and what they are called.
    #[serde(default)]
    pub(super) cache: BTreeMap<Spanned<String>, Spanned<String>>,
    /// Secrets that become variables.
    #[serde(default)]
    pub(super) secrets: Vec<Spanned<String>>,
    /// Variables.
    #[serde(default)]
    pub(super) env: BTreeMap<Spanned<String>, Spanned<String>>,
    /// Directories that programs are looked for in before those of what it runs on.
    #[serde(default)]
    pub(super) path: Vec<Spanned<String>>,
    /// The working directory.
    pub(super) dir: Option<Spanned<String>>,
    pub(super) user: Option<Spanned<String>>,
    /// Whether it has the network; then what it gives is pinned.
    #[serde(default)]
    pub(super) network: Network,
    /// The directory that is what it gives; all without.
    pub(super) out: Option<Spanned<String>>,
}

/// `true`, `false` or `"record"`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged, expecting = "expected true, false or \"record\"")]
pub(super) enum Network {
    Is(bool),
    As(Recorded),
}

/// The one word that a network may be.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Recorded {
    Record,
}

impl Default for Network {
    fn default() -> Self {
        Self::Is(false)
    }
}

/// A text for the shell, or words.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, expecting = "expected a text for the shell, or a list of words")]
pub(super) enum Command {
    Shell(String),
    Words(Vec<String>),
}

/// A layer of the image, or of what a step runs in.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Layer {
    /// What people call it.
    pub(super) name: Option<Spanned<String>>,
    /// The input or step that it is taken from, with a path of it after a colon.
    pub(super) from: Spanned<String>,
    /// Where it goes.
    pub(super) to: Spanned<String>,
    /// `USER[:GROUP]`.
    pub(super) owner: Option<Spanned<String>>,
    /// Octal digits, or changes.
    pub(super) mode: Option<Spanned<String>>,
    /// Patterns that are left out.
    #[serde(default)]
    pub(super) exclude: Vec<Spanned<String>>,
    /// How many layers it may become.
    pub(super) packed: Option<Spanned<u32>>,
}

/// What the image begins from, and how it is run.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Image {
    /// An input or step; nothing without.
    pub(super) on: Option<Spanned<String>>,
    pub(super) entrypoint: Option<Spanned<Vec<String>>>,
    pub(super) command: Option<Spanned<Vec<String>>>,
    #[serde(default)]
    pub(super) env: BTreeMap<Spanned<String>, Spanned<String>>,
    /// Directories that programs are looked for in before those of what it begins from.
    #[serde(default)]
    pub(super) path: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) labels: BTreeMap<Spanned<String>, Spanned<String>>,
    pub(super) dir: Option<Spanned<String>>,
    pub(super) user: Option<Spanned<String>>,
    /// `8080`, `53/udp`.
    #[serde(default)]
    pub(super) ports: Vec<Spanned<Port>>,
    #[serde(default)]
    pub(super) volumes: Vec<Spanned<String>>,
    pub(super) stop_signal: Option<Spanned<String>>,
}

/// A port, with its protocol where it is not TCP.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, expecting = "expected a port, such as 8080 or \"53/udp\"")]
pub(super) enum Port {
    Number(u16),
    Text(String),
}

impl std::fmt::Display for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => text.fmt(f),
        }
    }
}

/// Reads the tables.
pub(super) fn recipe(content: &str) -> Found<Recipe> {
    toml::from_str(content).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        (at, Problem::Syntax { message: error.message().to_owned() })
    })
}
