//! Taking a plugin from a file or a registry, once, into the store and `jiji.lock`.
//!
//! Two steps, so that a person sees what a plugin asks for before it has it: [`fetch`] reads, checks and describes it, [`Candidate::accept`]
//! writes it down. What is pinned is the digest of the component's bytes: the same whether they came from a file or a registry. A
//! source that gives other bytes than those pinned is refused unless an update was asked for, and then the difference is shown.
//!
//! Nothing here speaks to a registry: the caller brings an [`ArtifactSource`].

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use jiji_model::digest::Digest;
use jiji_model::image::Descriptor;
use jiji_model::name::PluginName;
use jiji_model::plan::Grants;
use jiji_model::reference::{ParseReferenceError, Reference};
use jiji_store::Store;
use serde::Deserialize;

use super::bindings::types;
use super::cache::Cache;
use super::engine::Runtime;
use super::loaded::{self, Needs};
use super::{MAX_BYTES, PluginError, Role, inspect, text};
use crate::lockfile::{PluginPin, PluginSection};

/// Media type of the layer that is a component (CNCF TAG Runtime, "Wasm OCI artifact layout").
const LAYER: &str = "application/wasm";
/// What older tools call the same layer.
const LAYER_LEGACY: &str = "application/vnd.wasm.content.layer.v1+wasm";
/// Longest manifest of an artifact in bytes.
const MAX_MANIFEST: usize = 1024 * 1024;

/// Where a plugin is to be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A file on this machine.
    File(PathBuf),
    /// An artifact in a registry.
    Registry(Reference),
    /// What is embedded in this program. Cannot be installed: it is there.
    Embedded(PluginName),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Registry(reference) => write!(f, "{reference}"),
            Self::Embedded(name) => write!(f, "{name}"),
        }
    }
}

impl FromStr for Source {
    type Err = ParseReferenceError;

    /// What ends in `.wasm`, or begins with `./`, `../` or `/`, is a file; everything else is a registry's reference.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let file = text.ends_with(".wasm") || ["./", "../", "/"].iter().any(|start| text.starts_with(start));
        if file {
            return Ok(Self::File(PathBuf::from(text)));
        }
        text.parse().map(Self::Registry)
    }
}

/// What brings artifacts of registries. Implemented over [`crate::registry`] by whoever installs.
pub trait ArtifactSource {
    /// Why something could not be brought.
    type Error: std::error::Error + Send + Sync + 'static;

    /// The manifest that a reference names now.
    ///
    /// # Errors
    /// When it cannot be had.
    fn manifest(&mut self, reference: &Reference) -> Result<Vec<u8>, Self::Error>;

    /// A blob of the same repository, of at most `limit` bytes.
    ///
    /// # Errors
    /// When it cannot be had.
    fn blob(&mut self, reference: &Reference, blob: &Descriptor, limit: u64) -> Result<Vec<u8>, Self::Error>;
}

/// Why a plugin could not be installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The file cannot be read.
    #[error("read `{path}`: {source}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The registry did not give the artifact.
    #[error("fetch plugin `{reference}`")]
    Registry {
        /// The artifact.
        reference: Reference,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// What the reference names is no plugin.
    #[error("fetch plugin `{reference}`: {reason}")]
    NotAPlugin {
        /// The artifact.
        reference: Reference,
        /// What it is instead.
        reason: String,
    },
    /// The plugin's name is none.
    #[error("read plugin `{plugin}`: its name is no plugin name")]
    Name {
        /// What it calls itself.
        plugin: String,
    },
    /// The component is no plugin, or answers badly.
    #[error(transparent)]
    Plugin(#[from] PluginError),
}

impl InstallError {
    /// What a person can do, where it is not said by the error itself.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Plugin(error) => error.hint(),
            Self::NotAPlugin { .. } => Some(format!("a plugin's artifact has one layer of type `{LAYER}`")),
            Self::File { .. } | Self::Registry { .. } | Self::Name { .. } => None,
        }
    }
}

/// A plugin that was read and not accepted yet.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// What it calls itself, and how `deploy.yml` chooses it.
    pub name: PluginName,
    /// Its version.
    pub version: String,
    /// One line for people.
    pub summary: String,
    /// JSON Schema of its settings.
    pub schema: String,
    /// What it does.
    pub role: Role,
    /// The digest of its bytes.
    pub digest: Digest,
    /// What it asks for: to be shown before it is accepted.
    pub grants: Grants,
    /// The images that it brings, by the name it gives them.
    pub images: BTreeMap<String, Reference>,
    /// What it asks for beyond what the same plugin was granted so far; for one that is new, everything.
    pub beyond: Vec<String>,
    /// Whether `jiji.lock` pins these very bytes with these grants already, so that there is nothing to accept.
    pub pinned: bool,
    source: Source,
    bytes: Vec<u8>,
}

/// Reads a plugin from its source and asks it what it is and needs, with `settings` where the project has some for it. Nothing is kept but compiled
/// code, in `cache`.
///
/// # Errors
/// [`InstallError`]; [`PluginError::Changed`] where `pins` has other bytes from the same source, unless `update` says that this is wanted.
pub fn fetch<S: ArtifactSource>(
    source: &Source,
    registry: &mut S,
    pins: &PluginSection,
    settings: Option<&serde_json::Value>,
    update: bool,
    cache: Option<&Path>,
) -> Result<Candidate, InstallError> {
    let bytes = match source {
        Source::File(path) => read(path)?,
        Source::Registry(reference) => pull(reference, registry)?,
        Source::Embedded(name) => loaded::bytes_of_embedded(name)?.to_vec(),
    };
    let digest = Digest::of(&bytes);
    // Before anything of it runs: other bytes from a source that is pinned already.
    let of_source = pins.iter().find(|(_, pin)| pin.source == source.to_string());
    refuse_change(of_source, digest, update)?;
    let candidate = describe(source, bytes, pins, settings, cache)?;
    refuse_change(pins.get_key_value(&candidate.name), digest, update)?;
    Ok(candidate)
}

fn refuse_change(pin: Option<(&PluginName, &PluginPin)>, actual: Digest, update: bool) -> Result<(), PluginError> {
    match pin {
        Some((name, pin)) if pin.digest != actual && !update => {
            Err(PluginError::Changed { plugin: name.clone(), expected: pin.digest, actual })
        }
        _ => Ok(()),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, InstallError> {
    let failed = |source| InstallError::File { path: path.to_owned(), source };
    let length = std::fs::metadata(path).map_err(failed)?.len();
    if length > MAX_BYTES as u64 {
        return Err(failed(std::io::Error::other(format!("{length} bytes, at most {MAX_BYTES} are allowed"))));
    }
    std::fs::read(path).map_err(failed)
}

/// The parts of an artifact's manifest that count here (image-spec, manifest.md).
#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    layers: Vec<Layer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    media_type: String,
    digest: Digest,
    size: u64,
}

fn pull<S: ArtifactSource>(reference: &Reference, registry: &mut S) -> Result<Vec<u8>, InstallError> {
    let failed = |source: S::Error| InstallError::Registry { reference: reference.clone(), source: Box::new(source) };
    let not = |reason: String| InstallError::NotAPlugin { reference: reference.clone(), reason };
    let manifest = registry.manifest(reference).map_err(failed)?;
    if manifest.len() > MAX_MANIFEST {
        return Err(not(format!("a manifest of {} bytes", manifest.len())));
    }
    let manifest: Manifest =
        serde_json::from_slice(&manifest).map_err(|error| not(format!("its manifest is none: {error}")))?;
    let mut layers =
        manifest.layers.iter().filter(|layer| layer.media_type == LAYER || layer.media_type == LAYER_LEGACY);
    let (Some(layer), None) = (layers.next(), layers.next()) else {
        let types: Vec<_> =
            manifest.layers.iter().map(|layer| format!("`{}`", text::sentence(&layer.media_type))).collect();
        return Err(not(format!(
            "its layers are {}",
            if types.is_empty() { "none".to_owned() } else { types.join(", ") }
        )));
    };
    if layer.size > MAX_BYTES as u64 {
        return Err(not(format!("a component of {} bytes, at most {MAX_BYTES} are allowed", layer.size)));
    }
    let descriptor = Descriptor { media_type: layer.media_type.clone(), digest: layer.digest, size: layer.size };
    let bytes = registry.blob(reference, &descriptor, MAX_BYTES as u64).map_err(failed)?;
    let actual = Digest::of(&bytes);
    if actual != layer.digest {
        return Err(not(format!("its layer is `{actual}`, and the manifest says `{}`", layer.digest)));
    }
    Ok(bytes)
}

fn describe(
    source: &Source,
    bytes: Vec<u8>,
    pins: &PluginSection,
    settings: Option<&serde_json::Value>,
    cache: Option<&Path>,
) -> Result<Candidate, InstallError> {
    let shown = source.to_string();
    let inspected = inspect::inspect(&shown, &bytes)?;
    let runtime = Runtime::new()?;
    let bad = |error: &wasmtime::Error| PluginError::NotAComponent {
        plugin: shown.clone(),
        reason: text::sentence(&format!("{error:#}")),
    };
    let component = loaded::compile(&runtime, cache.map(Cache::new).as_ref(), &shown, &inspected.digest, &bytes)?;
    let settings = settings.map(loaded::settings_text);
    type Asked = (types::Description, Option<Result<types::Needs, Vec<types::Fault>>>);
    macro_rules! ask {
        ($pre:expr) => {{
            let pre = $pre.map_err(|error| bad(&error))?;
            let description = runtime.call(&shown, "describe", |store| {
                pre.instantiate(&mut *store)?.jiji_plan_meta().call_describe(&mut *store)
            })?;
            let needs = match &settings {
                Some(settings) => Some(runtime.call(&shown, "check-settings", |store| {
                    pre.instantiate(&mut *store)?.jiji_plan_meta().call_check_settings(&mut *store, settings)
                })?),
                None => None,
            };
            (description, needs)
        }};
    }
    let (description, with_settings): Asked = match inspected.role {
        Role::Proxy => ask!(runtime.proxy(&component)),
        Role::Health => ask!(runtime.health(&component)),
        Role::Mesh => ask!(runtime.mesh(&component)),
    };
    let name = PluginName::new(description.name.clone())
        .map_err(|_| InstallError::Name { plugin: text::sentence(&description.name) })?;
    let needs = match with_settings {
        Some(needs) => Needs::accept(&name, needs, None)?,
        None => Needs::read(name.as_str(), &description.needs)?,
    };
    let pin = pins.get(&name);
    let had = pin
        .map(|pin| serde_json::from_value::<Grants>(serde_json::Value::Object(pin.grants.clone())).unwrap_or_default())
        .unwrap_or_default();
    let beyond = needs.grants.beyond(&had);
    Ok(Candidate {
        name,
        version: text::sentence(&description.version),
        summary: text::sentence(&description.summary),
        schema: description.schema,
        role: inspected.role,
        digest: inspected.digest,
        pinned: pin.is_some_and(|pin| pin.digest == inspected.digest) && beyond.is_empty(),
        grants: needs.grants,
        images: needs.images,
        beyond,
        source: source.clone(),
        bytes,
    })
}

impl Candidate {
    /// Puts the bytes into the store and says what `jiji.lock` shall pin. What is granted is what was shown: [`Candidate::grants`].
    ///
    /// # Errors
    /// [`PluginError::Store`].
    pub fn accept(self, store: &Store, before: Option<&PluginPin>) -> Result<(PluginName, PluginPin), PluginError> {
        store.put(&self.bytes).map_err(|source| PluginError::Store { plugin: self.name.clone(), source })?;
        let grants = match serde_json::to_value(&self.grants) {
            // What is empty need not stand in the lock.
            Ok(serde_json::Value::Object(map)) => {
                map.into_iter().filter(|(_, value)| value.as_array().is_none_or(|list| !list.is_empty())).collect()
            }
            _ => serde_json::Map::new(),
        };
        let pin = PluginPin {
            source: self.source.to_string(),
            version: (!self.version.is_empty()).then_some(self.version),
            digest: self.digest,
            world: self.role.world().to_owned(),
            grants,
            // Images that were pinned before and are still the same reference stay what they were.
            images: before
                .map(|pin| {
                    let kept = |reference: &str| self.images.values().any(|image| image.to_string() == reference);
                    pin.images
                        .iter()
                        .filter(|(key, _)| kept(&key.reference))
                        .map(|(key, digest)| (key.clone(), *digest))
                        .collect()
                })
                .unwrap_or_default(),
        };
        Ok((self.name, pin))
    }
}
