//! The steps of loading that all roles share.

use std::collections::BTreeMap;

use jiji_model::digest::{Digest, canonical_json};
use jiji_model::name::PluginName;
use jiji_model::plan::Grants;
use jiji_model::reference::Reference;
use jiji_store::{Store, StoreError};
use wasmtime::component::Component;

use super::bindings::types;
use super::cache::Cache;
use super::engine::Runtime;
use super::{MAX_BYTES, PluginError, embedded, text, translate};
use crate::lockfile::PluginSection;

/// What a plugin needs with the settings it has, accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Needs {
    pub(super) grants: Grants,
    pub(super) images: BTreeMap<String, Reference>,
}

impl Needs {
    /// Takes what `check-settings` said. `accepted` is none for plugins that may have what they ask for.
    pub(super) fn accept(
        plugin: &PluginName,
        needs: Result<types::Needs, Vec<types::Fault>>,
        accepted: Option<&Grants>,
    ) -> Result<Self, PluginError> {
        let needs = needs.map_err(|faults| PluginError::Settings {
            plugin: plugin.clone(),
            faults: faults.into_iter().map(translate::fault).collect(),
        })?;
        let needs = Self::read(plugin.as_str(), &needs)?;
        let beyond = accepted.map(|accepted| needs.grants.beyond(accepted)).unwrap_or_default();
        if !beyond.is_empty() {
            return Err(PluginError::NotAccepted { plugin: plugin.clone(), beyond });
        }
        Ok(needs)
    }

    pub(super) fn read(plugin: &str, needs: &types::Needs) -> Result<Self, PluginError> {
        Ok(Self {
            grants: translate::grants(plugin, &needs.grants)?,
            images: translate::images(plugin, &needs.images)?,
        })
    }
}

/// Settings as the contract wants them.
pub(super) fn settings_text(settings: &serde_json::Value) -> String {
    String::from_utf8(canonical_json(settings)).expect("JSON is UTF-8")
}

/// The component of this name, verified, and what it was granted: none for embedded ones.
pub(super) fn bytes(
    name: &PluginName,
    pins: &PluginSection,
    store: &Store,
) -> Result<(Vec<u8>, Option<Grants>), PluginError> {
    let Some(pin) = pins.get(name) else {
        return Ok((bytes_of_embedded(name)?.to_vec(), None));
    };
    let grants = serde_json::from_value(serde_json::Value::Object(pin.grants.clone())).map_err(|error| {
        PluginError::BadGrant {
            plugin: name.to_string(),
            reason: text::sentence(&format!("`jiji.lock` has grants that this jiji does not know: {error}")),
        }
    })?;
    // The store hashes what it reads.
    let bytes = store.read(&pin.digest, MAX_BYTES as u64).map_err(|error| match error {
        StoreError::Missing { .. } => {
            PluginError::NotFetched { plugin: name.clone(), digest: pin.digest, source_text: pin.source.clone() }
        }
        StoreError::Mismatch { expected, actual } => PluginError::Changed { plugin: name.clone(), expected, actual },
        source => PluginError::Store { plugin: name.clone(), source },
    })?;
    Ok((bytes, Some(grants)))
}

/// The bytes of an embedded plugin.
pub(super) fn bytes_of_embedded(name: &PluginName) -> Result<&'static [u8], PluginError> {
    let found = embedded().find(|(embedded, _)| *embedded == name.as_str());
    found.map(|(_, bytes)| bytes).ok_or_else(|| PluginError::NotInstalled { plugin: name.clone() })
}

/// Compiles a component that was inspected, or takes what an earlier run compiled.
pub(super) fn compile(
    runtime: &Runtime,
    cache: Option<&Cache>,
    name: &str,
    digest: &Digest,
    bytes: &[u8],
) -> Result<Component, PluginError> {
    if let Some(component) = cache.and_then(|cache| cache.get(runtime.engine(), digest)) {
        return Ok(component);
    }
    let component = Component::from_binary(runtime.engine(), bytes).map_err(|error| unfit(name, &error))?;
    if let Some(cache) = cache {
        cache.put(runtime.engine(), digest, &component);
    }
    Ok(component)
}

/// A component that is valid and still no plugin: its functions have other types than the contract's.
pub(super) fn unfit(name: &str, error: &wasmtime::Error) -> PluginError {
    PluginError::NotAComponent { plugin: name.to_owned(), reason: text::sentence(&format!("{error:#}")) }
}
