//! Sending images: only what the registry lacks.

use std::io::Read as _;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use jiji_model::digest::Digest;
use jiji_model::event::Record;
use jiji_model::image::{Descriptor, Image};
use jiji_model::name::TagName;
use jiji_model::reference::Reference;
use jiji_store::Store;
use oci_distribution::RegistryOperation;
use oci_distribution::errors::OciDistributionError;
use reqwest::header::HeaderValue;
use serde_json::json;
use tokio::sync::mpsc;

use super::client::{Client, Repository};
use super::error::RegistryError;
use super::manifest;
use super::wire::{Patience, wire_reference};

/// How often a blob is sent again.
const ATTEMPTS: u32 = 2;
/// How many blobs are on their way at once.
const AT_ONCE: usize = 4;
/// How much is read from a file at once, in bytes. Also the size of a piece, where a blob is sent in pieces.
const BLOCK: usize = 4 * 1024 * 1024;

/// What to push, and where.
#[derive(Debug, Clone, Copy)]
pub struct Push<'a> {
    /// The image. Its manifest and configuration must be in the store.
    pub image: &'a Image,
    /// The repository.
    pub to: &'a Repository,
    /// The tag, if the image should have one beside its digest.
    pub tag: Option<&'a TagName>,
    /// Where layers came from that the store may lack: on the same server they are mounted, from another one they are fetched.
    pub bases: &'a [Reference],
}

/// What a push did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushReport {
    /// The manifest's digest, by which the image can be pulled now.
    pub manifest: Digest,
    /// Blobs that were sent.
    pub sent: u64,
    /// Bytes of blobs that were sent. The manifest does not count.
    pub sent_bytes: u64,
    /// Blobs that the registry took from another of its repositories.
    pub mounted: u64,
    /// Blobs that the registry had.
    pub present: u64,
    /// The registry had the whole image under this name already: nothing was sent at all.
    pub unchanged: bool,
}

#[derive(Debug, Clone, Copy)]
enum Outcome {
    Present,
    Mounted,
    Sent(u64),
}

impl Client {
    /// Pushes what the registry lacks. An image that is there under the same name costs one request.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn push(&self, push: Push<'_>, store: &Store) -> Result<PushReport, RegistryError> {
        let Push { image, to, tag, .. } = push;
        let manifest = image.manifest.digest;
        self.online(|| format!("repository `{}` on `{}`", to.name, to.server.authority))?;
        let version = tag.map_or_else(|| manifest.to_string(), TagName::to_string);
        let mut report = PushReport { manifest, sent: 0, sent_bytes: 0, mounted: 0, present: 0, unchanged: false };
        let mut patience = Patience::new(ATTEMPTS);
        let there = loop {
            match self.wire().manifest_digest(to, &version).await {
                Err(error) if patience.allows(&error).await => {}
                other => break other?,
            }
        };
        if there == Some(manifest) {
            report.unchanged = true;
            return Ok(report);
        }
        // One token for all: asked for before the blobs ask at once.
        self.wire().authorize(to, RegistryOperation::Push).await?;
        let mut blobs: Vec<&Descriptor> = image.layers.iter().chain([&image.config]).collect();
        blobs.sort_by_key(|blob| blob.digest);
        blobs.dedup_by_key(|blob| blob.digest);
        let sending = blobs.into_iter().map(|blob| self.push_blob(push, blob, store));
        let outcomes: Vec<Outcome> = stream::iter(sending).buffer_unordered(AT_ONCE).try_collect().await?;
        for outcome in outcomes {
            match outcome {
                Outcome::Present => report.present += 1,
                Outcome::Mounted => report.mounted += 1,
                Outcome::Sent(bytes) => {
                    report.sent += 1;
                    report.sent_bytes += bytes;
                }
            }
        }
        self.push_manifest(image, to, &version, store).await?;
        Ok(report)
    }

    async fn push_manifest(
        &self,
        image: &Image,
        to: &Repository,
        version: &str,
        store: &Store,
    ) -> Result<(), RegistryError> {
        let what = format!("manifest `{}:{version}`", to.name);
        let bytes = store.read(&image.manifest.digest, manifest::LIMIT)?;
        let media_type = HeaderValue::try_from(&image.manifest.media_type).map_err(|_| RegistryError::Unsupported {
            registry: to.server.authority.clone(),
            what: what.clone(),
            media_type: image.manifest.media_type.clone(),
        })?;
        let mut patience = Patience::new(ATTEMPTS);
        loop {
            self.wire().authorize(to, RegistryOperation::Push).await?;
            let client = self.wire().protocol(to)?.oci;
            let pushed =
                client.push_manifest_raw(&wire_reference(to, version), bytes.clone(), media_type.clone()).await;
            match pushed.map_err(|error| self.wire().refusal(to, &what, error)) {
                Ok(_) => return Ok(()),
                Err(error) if patience.allows(&error).await => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn push_blob(&self, push: Push<'_>, blob: &Descriptor, store: &Store) -> Result<Outcome, RegistryError> {
        let to = push.to;
        let mut patience = Patience::new(ATTEMPTS);
        loop {
            match self.try_blob(push, blob, store).await {
                Err(error) if patience.allows(&error).await => {}
                Err(error) => return Err(error),
                Ok(outcome) => {
                    let (event, word, bytes) = match outcome {
                        Outcome::Present => ("registry.present", "has", 0),
                        Outcome::Mounted => ("registry.mounted", "mounted", 0),
                        Outcome::Sent(bytes) => ("registry.pushed", "took", bytes),
                    };
                    let registry = &to.server.authority;
                    let line = format!("{registry} {word} {}, {bytes} bytes sent", blob.digest.short());
                    self.emit(
                        Record::new(event, line)
                            .with(json!({"registry": registry, "digest": blob.digest, "bytes": bytes})),
                    );
                    return Ok(outcome);
                }
            }
        }
    }

    async fn try_blob(&self, push: Push<'_>, blob: &Descriptor, store: &Store) -> Result<Outcome, RegistryError> {
        let to = push.to;
        let what = format!("blob `{}`", blob.digest);
        let digest = blob.digest.to_string();
        self.wire().authorize(to, RegistryOperation::Pull).await?;
        self.wire().authorize(to, RegistryOperation::Push).await?;
        let protocol = self.wire().protocol(to)?;
        let target = wire_reference(to, "latest");
        // A registry that cannot say (some answer a HEAD with a redirect to where only GET goes) is sent the blob.
        match protocol.oci.blob_exists(&target, &digest).await {
            Ok(true) => return Ok(Outcome::Present),
            Ok(false) => {}
            Err(error) => tracing::debug!(%error, "ask whether a blob exists"),
        }
        for base in push.bases {
            let source = self.repository(base);
            if source.server == to.server && source.name != to.name {
                match protocol.oci.mount_blob(&target, &wire_reference(&source, "latest"), &digest).await {
                    Ok(()) => return Ok(Outcome::Mounted),
                    // An upload was begun instead (202), or the registry does not mount: the blob is sent as any other.
                    Err(error) => tracing::debug!(%error, "mount a blob"),
                }
            }
        }
        self.have(push, blob, store).await?;
        let (_, size) = store.open_blob(&blob.digest)?;
        let sent = protocol.oci.push_blob_stream(&target, read(store, &blob.digest)?, &digest, Some(size)).await;
        match sent {
            Ok(_) => Ok(Outcome::Sent(size)),
            // Proxies before registries limit what one request may hold.
            Err(OciDistributionError::ServerError { code: 413, .. }) if size > BLOCK as u64 => {
                let client = self.wire().in_pieces(to).await?;
                let sent = client.push_blob_stream(&target, read(store, &blob.digest)?, &digest, None).await;
                sent.map_err(|error| self.wire().refusal(to, &what, error))?;
                Ok(Outcome::Sent(size))
            }
            Err(error) => Err(self.wire().refusal(to, &what, error)),
        }
    }

    /// Makes sure that the store has a blob that is to be sent.
    async fn have(&self, push: Push<'_>, blob: &Descriptor, store: &Store) -> Result<(), RegistryError> {
        if store.has(&blob.digest)?.is_some() {
            return Ok(());
        }
        let mut failure = None;
        for base in push.bases {
            match self.fetch(base, blob, store).await {
                Ok(()) => return Ok(()),
                Err(RegistryError::NotFound { .. }) => {}
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or_else(|| RegistryError::NothingToPush {
            registry: push.to.server.authority.clone(),
            digest: blob.digest,
        }))
    }
}

/// A blob's bytes as a stream, read by a thread that may block, with one block waiting.
fn read(
    store: &Store,
    digest: &Digest,
) -> Result<impl stream::Stream<Item = Result<Bytes, OciDistributionError>> + Send + 'static, RegistryError> {
    let (mut file, _) = store.open_blob(digest)?;
    let (sender, receiver) = mpsc::channel(1);
    tokio::task::spawn_blocking(move || {
        loop {
            let mut block = Vec::new();
            let item = match (&mut file).take(BLOCK as u64).read_to_end(&mut block) {
                Ok(0) => return,
                Ok(_) => Ok(Bytes::from(block)),
                Err(error) => Err(OciDistributionError::IoError(error)),
            };
            let failed = item.is_err();
            if sender.blocking_send(item).is_err() || failed {
                return;
            }
        }
    });
    Ok(stream::unfold(receiver, |mut receiver| async move { receiver.recv().await.map(|item| (item, receiver)) }))
}
