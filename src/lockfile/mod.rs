//! `jiji.lock`: what was resolved once, so that the network is not asked again and every machine builds and runs the same bytes.
//!
//! The file belongs to the project and is committed. It holds two sections with one owner each: [`BuildSection`] (base images, outputs
//! of RUN steps, images) and [`PluginSection`] (plugins with their grants). A writer changes its own section only, in one read,
//! change and rename under a lock of the directory, so two commands at once lose nothing.
//!
//! This room never resolves anything: it does not know registries, builds or plugins, and nothing here asks the network. It keeps
//! what [`crate::build`] and [`crate::plugin`] resolved.
//!
//! # Format, version 1
//! TOML with `version = 1`, `layer-format = N` and the arrays `[[base]]`, `[[image]]`, `[[run]]`, `[[url]]`, `[[recorded]]`, `[[git]]` and `[[plugin]]`; every key that is not
//! named in [`format`](self) is refused, as are newer versions, so that an older jiji never drops what a newer one wrote.
//! Entries are sorted, and equal content has equal bytes. The fixtures in `fixtures/` are read by every later version.

mod file;
mod format;

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiji_model::commit::Commit;
use jiji_model::digest::Digest;
use jiji_model::image::Platform;
use jiji_model::name::{PluginName, ServiceName};
use serde::{Deserialize, Serialize};

pub use file::LockFile;

/// The newest version of the format that this jiji reads, and the one it writes.
pub const VERSION: u32 = 1;

/// The file's name, in the project's root directory.
pub const FILE_NAME: &str = "jiji.lock";

/// Everything `jiji.lock` says. A project without the file has the default value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lock {
    /// What the build resolved and made.
    pub build: BuildSection,
    /// What plugins were accepted.
    pub plugins: PluginSection,
}

/// The part of the lock that [`crate::build`] owns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BuildSection {
    /// References resolved to the digest of one platform's manifest.
    pub bases: BTreeMap<BaseKey, Digest>,
    /// URLs that ADD names, and what they had: the SHA-256 of the file.
    pub urls: BTreeMap<String, Digest>,
    /// What steps that are recorded asked for, and what they were answered.
    pub recorded: BTreeMap<Asked, Recorded>,
    /// Repositories that ADD names, and the commits that they were resolved to.
    pub repositories: BTreeMap<RepositoryKey, Commit>,
    /// The manifest digest that each target had when it was built last.
    pub images: BTreeMap<Target, Digest>,
    /// What each RUN step gave: the diff ID of its layer, by the step's key.
    pub runs: BTreeMap<RunKey, Digest>,
}

impl BuildSection {
    /// Takes what a build of `target` found: its image, and the RUN steps it went through instead of those it went through before.
    ///
    /// Steps of other targets stay, so that a build of one service does not forget another's.
    pub fn record(&mut self, target: &Target, image: Digest, runs: &BTreeMap<Digest, Digest>) {
        self.images.insert(target.clone(), image);
        self.runs.retain(|key, _| key.target != *target);
        self.runs.extend(runs.iter().map(|(step, diff_id)| (RunKey { target: target.clone(), step: *step }, *diff_id)));
    }

    /// The diff ID that the RUN step named `step` gave when any target went through it, or none if it is not known.
    ///
    /// The key of a step covers everything that can reach its output, so it does not matter which target the entry is of.
    pub fn run(&self, step: &Digest) -> Option<Digest> {
        self.runs.iter().find(|(key, _)| key.step == *step).map(|(_, diff_id)| *diff_id)
    }
}

/// A reference, as a FROM line or a service spells it, on one platform.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct BaseKey {
    /// Such as `docker.io/library/debian:bookworm`, spelled out.
    pub reference: String,
    /// The platform.
    pub platform: Platform,
}

/// What a step that is recorded asked for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// The URL.
    pub url: String,
    /// The forms of it that were wanted, where not any would do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accept: Option<String>,
}

/// What a step that is recorded was answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recorded {
    /// 200 for a file; another where there is none, or where it is elsewhere.
    pub status: u16,
    /// What the server calls the kind of file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Where it is instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
    /// SHA-256 of the file, or of nothing.
    pub digest: Digest,
}

/// A repository, as ADD spells it, and what of it is meant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RepositoryKey {
    /// Where it is.
    pub url: String,
    /// A branch or tag; none for what the repository itself takes.
    pub reference: Option<String>,
}

/// What is built: a service of the project in one environment, on one platform.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// The service.
    pub service: ServiceName,
    /// The environment (`-e`), or none for the base file alone: another environment may build with other arguments.
    pub environment: Option<String>,
    /// The platform.
    pub platform: Platform,
}

/// A RUN step as a target goes through it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RunKey {
    /// Who goes through it.
    pub target: Target,
    /// The step's key: what it depends on.
    pub step: Digest,
}

/// The part of the lock that [`crate::plugin`] owns: accepted plugins by name.
pub type PluginSection = BTreeMap<PluginName, PluginPin>;

/// A plugin as it was accepted: these bytes, this contract, these grants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginPin {
    /// Where it came from: a path, an `https` URL or a registry reference. Only for people and for updates; the bytes are named
    /// by `digest`.
    pub source: String,
    /// The version it calls itself.
    pub version: Option<String>,
    /// SHA-256 of the WASM component's bytes.
    pub digest: Digest,
    /// The world it was written for, with its version, such as `jiji:proxy/plugin@0.1.0`.
    pub world: String,
    /// What it may ask of the core, as the plugin room spells it. An object without `null`, which TOML cannot say.
    pub grants: serde_json::Map<String, serde_json::Value>,
    /// Images that it brings, pinned per platform.
    pub images: BTreeMap<BaseKey, Digest>,
}

/// Why `jiji.lock` could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum LockfileError {
    /// The file is there and cannot be read.
    #[error("read `{path}`", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file cannot be replaced.
    #[error("write `{path}`", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The directory cannot be locked against other writers.
    #[error("lock `{path}` for writing", path = path.display())]
    Guard {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The text is not TOML, or not this format: an unknown key, a value of the wrong type, a digest that is none.
    #[error("read `{path}` at line {line}, column {column}: {message}", path = path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1, in characters.
        column: usize,
        /// What is wrong there.
        message: String,
    },
    /// A newer jiji wrote the file.
    #[error("read `{path}`: it has version {found}, this jiji reads up to {VERSION}", path = path.display())]
    NewerVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// A newer jiji wrote layers by other rules.
    #[error("read `{path}`: it has layer format {found}, this jiji writes {known}", path = path.display(), known = jiji_model::image::LAYER_FORMAT)]
    NewerLayerFormat {
        /// The file.
        path: PathBuf,
        /// Its layer format.
        found: u32,
    },
    /// Two entries say what only one may say.
    #[error("read `{path}`: two `[[{section}]]` entries for {entry}", path = path.display())]
    Duplicate {
        /// The file.
        path: PathBuf,
        /// The array's name.
        section: &'static str,
        /// What both are for.
        entry: String,
    },
    /// A plugin's grants hold a value that TOML has no form for.
    #[error("write `{path}`: the grants of plugin `{plugin}` hold {what}, which TOML cannot say", path = path.display())]
    Grants {
        /// The file.
        path: PathBuf,
        /// The plugin.
        plugin: PluginName,
        /// What they hold: "a null", "an integer above 2^63".
        what: &'static str,
    },
}

impl LockfileError {
    /// What a person can do, where it is not said by the error itself.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Read { .. } | Self::Grants { .. } => None,
            Self::Write { .. } | Self::Guard { .. } => {
                Some("jiji writes its lock beside `.jiji/`; check who owns the directory")
            }
            Self::Syntax { .. } => Some(
                "the file is written by jiji alone; take the committed version back, or delete it to resolve everything again",
            ),
            Self::NewerVersion { .. } | Self::NewerLayerFormat { .. } => {
                Some("a newer jiji wrote it; update jiji, so that all who build this project agree")
            }
            Self::Duplicate { .. } => Some("this is what a merge of two branches leaves; keep one of the two entries"),
        }
    }
}

#[cfg(test)]
mod tests;
