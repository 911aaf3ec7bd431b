//! Resolving tags and taking images.

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use jiji_model::digest::Digest;
use jiji_model::image::{Descriptor, Image, Platform};
use jiji_model::reference::Reference;
use jiji_store::{Store, StoreError};

use super::client::{Client, Repository};
use super::error::RegistryError;
use super::manifest::{self, Document, Fault, Manifest};
use super::wire::{Fetched, Patience};

/// How often a manifest is asked for again.
const ATTEMPTS: u32 = 2;
/// The longest configuration that is taken, in bytes.
const CONFIG_LIMIT: u64 = 4 * 1024 * 1024;
/// The longest layer that is taken, in bytes: 64 GiB.
const LAYER_LIMIT: u64 = 64 << 30;
/// How many layers are pulled at once.
const AT_ONCE: usize = 4;
/// How deep an index may point to indexes.
const DEPTH: u32 = 2;

/// How much of an image is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// The manifest and the configuration: what a build on top of the image needs that runs nothing in it.
    ManifestOnly,
    /// The layers too.
    WithLayers,
}

impl Client {
    /// What a reference means for a platform: the digest of one image's manifest. An index is followed to the platform's image.
    ///
    /// This asks the network each time. Write the answer to `jiji.lock` and pull by digest.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn resolve(&self, reference: &Reference, platform: &Platform) -> Result<Digest, RegistryError> {
        let (places, fetched) = self.find(reference, &reference.version(), reference.digest.as_ref()).await?;
        let (fetched, _) = self.follow(reference, &places, fetched, platform).await?;
        Ok(fetched.digest)
    }

    /// Takes the image with this digest into the store, as much of it as is wanted and not there yet. Only what is missing is asked
    /// for: an image that the store has costs no request.
    ///
    /// `reference` says where; its own tag and digest do not matter. `digest` may be an index's.
    ///
    /// # Errors
    /// [`RegistryError`]: every digest, size and media type is checked, and that the image is made for the platform.
    pub async fn pull(
        &self,
        reference: &Reference,
        digest: &Digest,
        platform: &Platform,
        store: &Store,
        depth: Depth,
    ) -> Result<Image, RegistryError> {
        let (places, fetched) = match stored_manifest(store, digest)? {
            Some(fetched) => (self.places(reference), fetched),
            None => self.find(reference, &digest.to_string(), Some(digest)).await?,
        };
        let named = fetched.digest;
        store.put(&fetched.bytes)?;
        let (fetched, parsed) = match stored_follow(store, &fetched, platform)? {
            Some(found) => found,
            None => self.follow(reference, &places, fetched, platform).await?,
        };
        if fetched.digest != named {
            store.put(&fetched.bytes)?;
        }
        let registry = || reference.registry.clone();
        let what = format!("image `{}`", reference.at(fetched.digest));
        parsed.is_image().map_err(|fault| fault_of(fault, registry(), what.clone()))?;
        for (part, limit) in
            [(&parsed.config, CONFIG_LIMIT)].into_iter().chain(parsed.layers.iter().map(|l| (l, LAYER_LIMIT)))
        {
            if part.size > limit {
                return Err(RegistryError::TooLarge {
                    registry: registry(),
                    what: format!("blob `{}`", part.digest),
                    limit,
                });
            }
        }
        self.fetch_from(&places, &parsed.config, store).await?;
        let config = store.read(&parsed.config.digest, CONFIG_LIMIT)?;
        let made_for = manifest::check_config(&config, parsed.layers.len())
            .map_err(|reason| RegistryError::Malformed { registry: registry(), what: what.clone(), reason })?;
        if made_for != *platform {
            return Err(RegistryError::NoPlatform {
                registry: registry(),
                what,
                platform: platform.clone(),
                available: made_for.to_string(),
            });
        }
        if depth == Depth::WithLayers {
            let pulls = parsed.layers.iter().map(|layer| self.fetch_from(&places, layer, store));
            stream::iter(pulls).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        }
        Ok(Image {
            repository: reference.repository.to_string(),
            platform: platform.clone(),
            manifest: Descriptor {
                media_type: parsed.media_type,
                digest: fetched.digest,
                size: fetched.bytes.len() as u64,
            },
            config: parsed.config,
            layers: parsed.layers,
        })
    }

    /// Reads a manifest from the first place that has it, and says which places are worth asking for the rest: that one first.
    pub(super) async fn find(
        &self,
        reference: &Reference,
        version: &str,
        expected: Option<&Digest>,
    ) -> Result<(Vec<Repository>, Fetched), RegistryError> {
        self.online(|| format!("`{reference}`"))?;
        let mut places = self.places(reference);
        while places.len() > 1 {
            match self.wire().manifest(&places[0], version, expected).await {
                Ok(fetched) => return Ok((places, fetched)),
                Err(error) => {
                    self.passed_over(&places[0], error)?;
                    places.remove(0);
                }
            }
        }
        let mut patience = Patience::new(ATTEMPTS);
        loop {
            match self.wire().manifest(&places[0], version, expected).await {
                Ok(fetched) => return Ok((places, fetched)),
                Err(error) if patience.allows(&error).await => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Follows an index to the platform's manifest.
    async fn follow(
        &self,
        reference: &Reference,
        places: &[Repository],
        mut fetched: Fetched,
        platform: &Platform,
    ) -> Result<(Fetched, Manifest), RegistryError> {
        let registry = || places[0].server.authority.clone();
        for _ in 0..=DEPTH {
            let what = format!("manifest `{}`", reference.at(fetched.digest));
            match Document::parse(&fetched.bytes).map_err(|fault| fault_of(fault, registry(), what.clone()))? {
                Document::Manifest(manifest) => return Ok((fetched, manifest)),
                Document::Index(entries) => {
                    let digest = manifest::choose(&entries, platform).map_err(|available| {
                        RegistryError::NoPlatform { registry: registry(), what, platform: platform.clone(), available }
                    })?;
                    fetched = self.find(reference, &digest.to_string(), Some(&digest)).await?.1;
                }
            }
        }
        Err(RegistryError::Malformed {
            registry: registry(),
            what: format!("manifest `{}`", reference.at(fetched.digest)),
            reason: "indexes point to indexes too deeply".to_owned(),
        })
    }
}

pub(super) fn fault_of(fault: Fault, registry: String, what: String) -> RegistryError {
    match fault {
        Fault::Malformed(reason) => RegistryError::Malformed { registry, what, reason },
        Fault::MediaType(media_type) => RegistryError::Unsupported { registry, what, media_type },
    }
}

/// A manifest that the store has.
fn stored_manifest(store: &Store, digest: &Digest) -> Result<Option<Fetched>, StoreError> {
    match store.read(digest, manifest::LIMIT) {
        Ok(bytes) => Ok(Some(Fetched { bytes, digest: *digest })),
        Err(StoreError::Missing { .. } | StoreError::TooLarge { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Follows an index without asking anybody, as far as the store reaches to the end.
fn stored_follow(
    store: &Store,
    fetched: &Fetched,
    platform: &Platform,
) -> Result<Option<(Fetched, Manifest)>, StoreError> {
    let mut found = Fetched { bytes: fetched.bytes.clone(), digest: fetched.digest };
    for _ in 0..=DEPTH {
        match Document::parse(&found.bytes) {
            Ok(Document::Manifest(manifest)) => return Ok(Some((found, manifest))),
            Ok(Document::Index(entries)) => {
                let Ok(digest) = manifest::choose(&entries, platform) else { return Ok(None) };
                let Some(next) = stored_manifest(store, &digest)? else { return Ok(None) };
                found = next;
            }
            // Said by whoever asks the registry.
            Err(_) => return Ok(None),
        }
    }
    Ok(None)
}
