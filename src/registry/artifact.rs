//! Taking what is no image: a manifest with a configuration and blobs of kinds that the caller knows.

use jiji_model::digest::Digest;
use jiji_model::image::Descriptor;
use jiji_model::reference::Reference;
use jiji_store::Store;

use super::client::{Client, Repository};
use super::error::RegistryError;
use super::manifest::Document;
use super::pull::fault_of;

/// A manifest of any kind, verified. Its blobs are fetched by [`Client::artifact_blob`].
#[derive(Debug, Clone)]
pub struct Artifact {
    /// The manifest's digest.
    pub digest: Digest,
    /// The manifest's bytes.
    pub manifest: Vec<u8>,
    /// The configuration.
    pub config: Descriptor,
    /// The blobs.
    pub layers: Vec<Descriptor>,
    places: Vec<Repository>,
}

impl Client {
    /// Reads the manifest of an artifact, by digest where the reference has one.
    ///
    /// # Errors
    /// [`RegistryError`]; [`RegistryError::Malformed`] when it is an index: an artifact for all platforms has none.
    pub async fn pull_artifact(&self, reference: &Reference) -> Result<Artifact, RegistryError> {
        let (places, fetched) = self.find(reference, &reference.version(), reference.digest.as_ref()).await?;
        let registry = || places[0].server.authority.clone();
        let what = format!("artifact `{reference}`");
        match Document::parse(&fetched.bytes).map_err(|fault| fault_of(fault, registry(), what.clone()))? {
            Document::Manifest(manifest) => Ok(Artifact {
                digest: fetched.digest,
                manifest: fetched.bytes,
                config: manifest.config,
                layers: manifest.layers,
                places,
            }),
            Document::Index(_) => Err(RegistryError::Malformed {
                registry: registry(),
                what,
                reason: "it is an index of several".to_owned(),
            }),
        }
    }

    /// Brings one of an artifact's blobs of at most `limit` bytes into the store and reads it.
    ///
    /// # Errors
    /// [`RegistryError`]; [`RegistryError::TooLarge`] before anything is asked for when the manifest says so.
    pub async fn artifact_blob(
        &self,
        artifact: &Artifact,
        blob: &Descriptor,
        limit: u64,
        store: &Store,
    ) -> Result<Vec<u8>, RegistryError> {
        if blob.size > limit {
            let registry = artifact.places[0].server.authority.clone();
            return Err(RegistryError::TooLarge { registry, what: format!("blob `{}`", blob.digest), limit });
        }
        self.fetch_from(&artifact.places, blob, store).await?;
        Ok(store.read(&blob.digest, limit)?)
    }
}
