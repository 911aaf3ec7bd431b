//! Reading manifests: of which kind they are, and which blobs they need.

use jiji_model::digest::Digest;
use jiji_model::image::{Descriptor, INDEX, MANIFEST};
use jiji_store::{Store, StoreError};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// The longest manifest that is taken or served, in bytes (spec.md, "Pushing Manifests": at least 4 MiB).
pub(crate) const LIMIT: u64 = 4 * 1024 * 1024;

/// A manifest that was read.
#[derive(Debug)]
pub(crate) struct Manifest {
    pub(crate) descriptor: Descriptor,
    pub(crate) bytes: Vec<u8>,
    content: Content,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Content {
    schema_version: u32,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<Part>,
    layers: Option<Vec<Part>>,
    manifests: Option<Vec<Part>>,
    subject: Option<Part>,
    annotations: Option<Map<String, Value>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Part {
    media_type: String,
    digest: String,
    #[serde(default)]
    urls: Vec<String>,
}

impl Manifest {
    /// Reads a manifest.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub(crate) fn parse(bytes: Vec<u8>) -> Result<Self, String> {
        let content: Content = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
        if content.schema_version != 2 {
            return Err(format!("schema version {} is not 2", content.schema_version));
        }
        let media_type = match (&content.media_type, &content.manifests, &content.layers, &content.config) {
            (Some(media_type), ..) => media_type.clone(),
            (None, Some(_), None, None) => INDEX.to_owned(),
            (None, None, _, Some(_)) => MANIFEST.to_owned(),
            _ => return Err("it has neither a configuration nor manifests".to_owned()),
        };
        let descriptor = Descriptor { media_type, digest: Digest::of(&bytes), size: bytes.len() as u64 };
        Ok(Self { descriptor, bytes, content })
    }

    /// The media type that the manifest itself gives.
    pub(crate) fn own_media_type(&self) -> Option<&str> {
        self.content.media_type.as_deref()
    }

    /// The blobs that must be here before the manifest: configuration and layers, but not those that are had from elsewhere.
    pub(crate) fn needs(&self) -> impl Iterator<Item = &str> {
        let layers = self.content.layers.iter().flatten();
        self.content.config.iter().chain(layers).filter(|part| part.urls.is_empty()).map(|part| part.digest.as_str())
    }

    /// The manifest that this one refers to.
    pub(crate) fn subject(&self) -> Option<&str> {
        self.content.subject.as_ref().map(|part| part.digest.as_str())
    }

    /// What kind of artifact it is, as the referrers API says it: its own word, else its configuration's media type.
    pub(crate) fn artifact_type(&self) -> Option<&str> {
        let own = self.content.artifact_type.as_deref().filter(|text| !text.is_empty());
        own.or_else(|| self.content.config.as_ref().map(|part| part.media_type.as_str()))
    }

    /// Its entry in a list of referrers.
    pub(crate) fn referrer(&self) -> Value {
        let mut entry = json!({
            "mediaType": self.descriptor.media_type,
            "digest": self.descriptor.digest,
            "size": self.descriptor.size,
        });
        if let Some(artifact_type) = self.artifact_type() {
            entry["artifactType"] = artifact_type.into();
        }
        if let Some(annotations) = &self.content.annotations {
            entry["annotations"] = Value::Object(annotations.clone());
        }
        entry
    }
}

/// Reads a manifest from the store. None if there is no blob of that digest, or one that is no manifest.
pub(crate) fn read(store: &Store, digest: &Digest) -> Result<Option<Manifest>, StoreError> {
    match store.read(digest, LIMIT) {
        Ok(bytes) => Ok(Manifest::parse(bytes).ok()),
        Err(StoreError::Missing { .. } | StoreError::TooLarge { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
