//! Taking blobs: streamed into the store, verified, continued where a connection broke.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use jiji_model::event::Record;
use jiji_model::image::Descriptor;
use jiji_model::reference::Reference;
use jiji_store::{PartialBlob, Store, StoreError};
use oci_distribution::RegistryOperation;
use oci_distribution::client::{BlobResponse, SizedStream};
use serde_json::json;
use tokio::sync::mpsc;

use super::client::{Client, Repository};
use super::error::RegistryError;
use super::wire::{Patience, wire_reference};

/// How often a blob is asked for again without getting on.
const ATTEMPTS: u32 = 3;
/// How much must have come for an attempt to have got on, in bytes.
const PROGRESS: u64 = 1024 * 1024;
/// How many chunks may wait for the disk.
const WAITING: usize = 16;
/// How long to wait before looking again whether another process has the blob.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

impl Client {
    /// Brings a blob into the store, unless it is there: from the mirrors of the reference's registry or from itself.
    ///
    /// # Errors
    /// [`RegistryError`]: that of the registry itself, where a mirror failed too.
    pub async fn fetch(&self, reference: &Reference, blob: &Descriptor, store: &Store) -> Result<(), RegistryError> {
        self.fetch_from(&self.places(reference), blob, store).await
    }

    pub(super) async fn fetch_from(
        &self,
        places: &[Repository],
        blob: &Descriptor,
        store: &Store,
    ) -> Result<(), RegistryError> {
        let (last, mirrors) = places.split_last().expect("a reference has a registry");
        if store.has(&blob.digest)? == Some(blob.size) {
            return Ok(());
        }
        self.online(|| format!("blob `{}` of `{}`", blob.digest, last.name))?;
        for mirror in mirrors {
            match self.fetch_blob(mirror, blob, store, Patience::new(0)).await {
                Ok(()) => return Ok(()),
                Err(error) => self.passed_over(mirror, error)?,
            }
        }
        self.fetch_blob(last, blob, store, Patience::new(ATTEMPTS)).await
    }

    /// Says that a mirror could not be used. Where it is the store that failed, no other place helps.
    pub(super) fn passed_over(&self, mirror: &Repository, error: RegistryError) -> Result<(), RegistryError> {
        if let RegistryError::Store(_) = error {
            return Err(error);
        }
        let authority = &mirror.server.authority;
        self.emit(
            Record::new("registry.mirror-passed-over", format!("mirror {authority} passed over: failed to {error}"))
                .with(json!({"mirror": authority, "error": error.to_string()})),
        );
        Ok(())
    }

    async fn fetch_blob(
        &self,
        repository: &Repository,
        blob: &Descriptor,
        store: &Store,
        mut patience: Patience,
    ) -> Result<(), RegistryError> {
        loop {
            let Some(part) = self.receive_when_free(repository, blob, store).await? else { return Ok(()) };
            let before = part.offset();
            match self.fetch_once(repository, blob, store, part).await {
                Ok(()) => break,
                // What was kept from an earlier time was wrong. It is gone now: once more from the beginning.
                Err(RegistryError::DigestMismatch { .. }) if before > 0 => {}
                Err(error) => {
                    if store.partial(&blob.digest)? >= before + PROGRESS {
                        patience = Patience::new(ATTEMPTS);
                    }
                    if !patience.allows(&error).await {
                        return Err(error);
                    }
                }
            }
        }
        let (registry, size) = (&repository.server.authority, blob.size);
        let line = format!("pulled {} from {registry}, {size} bytes", blob.digest.short());
        self.emit(
            Record::new("registry.pulled", line)
                .with(json!({"registry": registry, "digest": blob.digest, "bytes": size})),
        );
        Ok(())
    }

    async fn fetch_once(
        &self,
        repository: &Repository,
        blob: &Descriptor,
        store: &Store,
        mut part: PartialBlob,
    ) -> Result<(), RegistryError> {
        let what = format!("blob `{}`", blob.digest);
        if part.offset() < blob.size || blob.size == 0 {
            self.wire().authorize(repository, RegistryOperation::Pull).await?;
            let refused = |error| self.wire().refusal(repository, &what, error);
            let client = self.wire().protocol(repository)?.oci;
            let reference = wire_reference(repository, "latest");
            let digest = blob.digest.to_string();
            let mut stream = match part.offset() {
                0 => client.pull_blob_stream(&reference, digest.as_str()).await.map_err(refused)?,
                offset => {
                    match client.pull_blob_stream_partial(&reference, digest.as_str(), offset, None).await {
                        Ok(BlobResponse::Partial(stream)) => stream,
                        // It does not do ranges, and sends everything again.
                        Ok(BlobResponse::Full(stream)) => {
                            part.restart()?;
                            stream
                        }
                        Err(error) => return Err(refused(error)),
                    }
                }
            };
            let announced = stream.content_length.map(|length| length + part.offset());
            if let Some(actual) = announced.filter(|announced| *announced != blob.size) {
                return Err(self.size_mismatch(repository, blob, actual));
            }
            part = self.pour(repository, blob, store, part, &mut stream).await?;
        }
        let registry = || repository.server.authority.clone();
        let received = part.offset();
        let finished =
            tokio::task::spawn_blocking(move || part.finish()).await.expect("finishing a blob does not panic");
        finished.map_err(|error| match error {
            StoreError::Mismatch { expected, actual } => {
                RegistryError::DigestMismatch { registry: registry(), what, expected, actual }
            }
            StoreError::Short { .. } => {
                RegistryError::Interrupted { registry: registry(), digest: blob.digest, received, size: blob.size }
            }
            other => other.into(),
        })
    }

    /// Writes what comes, on a thread that may block, with a bounded number of chunks in between. That the stream broke is seen by
    /// what is missing.
    async fn pour(
        &self,
        repository: &Repository,
        blob: &Descriptor,
        store: &Store,
        mut part: PartialBlob,
        stream: &mut SizedStream,
    ) -> Result<PartialBlob, RegistryError> {
        let (sender, mut receiver) = mpsc::channel::<Bytes>(WAITING);
        let writing = tokio::task::spawn_blocking(move || {
            let mut written = Ok(());
            while let Some(chunk) = receiver.blocking_recv() {
                written = part.append(&chunk);
                if written.is_err() {
                    break;
                }
            }
            (part, written)
        });
        while let Some(chunk) = stream.next().await {
            let Ok(chunk) = chunk.inspect_err(|error| tracing::debug!(%error, "a blob's stream broke")) else { break };
            if sender.send(chunk).await.is_err() {
                break;
            }
        }
        drop(sender);
        let (part, written) = writing.await.expect("writing a blob does not panic");
        match written {
            Ok(()) => Ok(part),
            Err(StoreError::Overrun { .. }) => {
                drop(part);
                store.forget_partial(&blob.digest)?;
                Err(self.size_mismatch(repository, blob, blob.size + 1))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn size_mismatch(&self, repository: &Repository, blob: &Descriptor, actual: u64) -> RegistryError {
        RegistryError::SizeMismatch {
            registry: repository.server.authority.clone(),
            digest: blob.digest,
            expected: blob.size,
            actual,
        }
    }

    /// Begins to receive a blob as soon as nobody else does. None if it is in the store by then.
    async fn receive_when_free(
        &self,
        repository: &Repository,
        blob: &Descriptor,
        store: &Store,
    ) -> Result<Option<PartialBlob>, RegistryError> {
        loop {
            match store.has(&blob.digest)? {
                Some(size) if size == blob.size => return Ok(None),
                // Either the manifest lies about the length, or the disk lost some of it.
                Some(size) => match store.rehash(&blob.digest)? {
                    Some((actual, _)) if actual == blob.digest => {
                        return Err(self.size_mismatch(repository, blob, size));
                    }
                    _ => store.remove(&blob.digest).map(drop)?,
                },
                None => {}
            }
            let (store, digest, size) = (store.clone(), blob.digest, blob.size);
            let begun = tokio::task::spawn_blocking(move || store.receive(&digest, size)).await;
            match begun.expect("beginning a blob does not panic") {
                Ok(part) => return Ok(Some(part)),
                Err(StoreError::Busy { .. }) => tokio::time::sleep(LOOK_AGAIN).await,
                Err(error) => return Err(error.into()),
            }
        }
    }
}
