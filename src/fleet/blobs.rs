//! Blobs on their way to a host: only those that are missing, only the bytes that are missing, never more in memory than a few pieces.

use std::io::SeekFrom;
use std::sync::Arc;
use std::time::Duration;

use jiji_model::digest::Digest;
use jiji_model::observation::BlobFacts;
use jiji_model::protocol::{BLOB_CHUNK, Reply, Request, encode_blob};
use jiji_store::{Store, StoreError};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

use super::error::FleetError;
use super::session::{PATIENCE, Session};

/// How long a host may take to verify what came, without a word in between.
const VERIFY: Duration = Duration::from_secs(180);

/// How far a transfer is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BlobProgress {
    /// Blobs that were missing.
    pub blobs: u64,
    /// Bytes that were missing.
    pub bytes: u64,
    /// Bytes sent so far.
    pub sent: u64,
}

impl Session {
    /// Brings a blob from the host's store to this one's, and verifies it. Gives the bytes that came.
    ///
    /// # Errors
    /// [`FleetError::Refused`] where the host does not have it, [`FleetError::Store`] where what came is not the blob, and
    /// [`FleetError::Lost`].
    pub async fn fetch_blob(&self, store: &Store, digest: &Digest, size: u64) -> Result<u64, FleetError> {
        let failed = |source: StoreError| FleetError::Store { host: self.host().clone(), source: Arc::new(source) };
        let mut blob = store.receive(digest, size).map_err(failed)?;
        let begun = blob.offset();
        while blob.offset() < size {
            let piece = self.ask_piece(*digest, blob.offset()).await?;
            if piece.is_empty() {
                return Err(failed(StoreError::Short { digest: *digest, received: blob.offset(), size }));
            }
            blob.append(&piece).map_err(failed)?;
        }
        blob.finish().map_err(failed)?;
        Ok(size - begun)
    }

    /// Brings blobs from the store to the host: those it does not have, from where an earlier transfer was cut. Gives what was sent.
    ///
    /// `progress` is called after the offer and after each piece, and must not block.
    ///
    /// # Errors
    /// [`FleetError::Store`] where the store lacks a blob that the host lacks too, [`FleetError::Blob`] where one did not arrive
    /// whole, [`FleetError::Lost`], [`FleetError::Refused`].
    pub async fn send_blobs(
        &self,
        store: &Store,
        blobs: &[(Digest, u64)],
        progress: &(dyn Fn(BlobProgress) + Send + Sync),
    ) -> Result<BlobProgress, FleetError> {
        let mut so_far = BlobProgress::default();
        if blobs.is_empty() {
            return Ok(so_far);
        }
        let offer = Request::Offer { blobs: blobs.to_vec() };
        let facts = self.blob_facts(self.ask(offer, PATIENCE).await?, "offer blobs")?;
        let missing: Vec<_> = blobs
            .iter()
            .filter_map(|(digest, size)| {
                let fact = facts.iter().find(|fact| fact.digest == *digest);
                match fact {
                    Some(fact) if fact.complete => None,
                    Some(fact) => Some((*digest, *size, fact.have.min(*size))),
                    None => Some((*digest, *size, 0)),
                }
            })
            .collect();
        if missing.is_empty() {
            return Ok(so_far);
        }
        so_far.blobs = missing.len() as u64;
        so_far.bytes = missing.iter().map(|(_, size, have)| size - have).sum();
        progress(so_far);
        for (digest, size, have) in &missing {
            self.send_blob(store, digest, *size, *have, &mut |sent| {
                so_far.sent += sent;
                progress(so_far);
            })
            .await?;
        }
        let digests = missing.iter().map(|(digest, ..)| *digest).collect();
        let reply = self.ask_after_blobs(Request::Received { digests }, VERIFY).await?;
        let facts = self.blob_facts(reply, "verify blobs")?;
        let whole = |digest: &Digest| facts.iter().any(|fact| fact.digest == *digest && fact.complete);
        match missing.iter().find(|(digest, ..)| !whole(digest)) {
            Some((digest, ..)) => Err(FleetError::Blob { host: self.host().clone(), digest: *digest }),
            None => Ok(so_far),
        }
    }

    fn blob_facts(&self, reply: Reply, doing: &'static str) -> Result<Vec<BlobFacts>, FleetError> {
        match reply {
            Reply::Blobs(facts) => Ok(facts),
            Reply::Refused { why, message } => {
                Err(FleetError::Refused { host: self.host().clone(), doing, why, message })
            }
            _ => Err(FleetError::Unexpected { host: self.host().clone(), doing }),
        }
    }

    async fn send_blob(
        &self,
        store: &Store,
        digest: &Digest,
        size: u64,
        have: u64,
        sent: &mut (dyn FnMut(u64) + Send),
    ) -> Result<(), FleetError> {
        let failed = |source: StoreError| FleetError::Store { host: self.host().clone(), source: Arc::new(source) };
        let unreadable =
            |source: std::io::Error| failed(StoreError::Io { action: "read", path: store.blob_path(digest), source });
        let (file, length) = store.open_blob(digest).map_err(failed)?;
        if length != size {
            return Err(failed(StoreError::Short { digest: *digest, received: length, size }));
        }
        let mut file = tokio::fs::File::from_std(file);
        file.seek(SeekFrom::Start(have)).await.map_err(unreadable)?;
        let mut offset = have;
        let mut piece = vec![0; BLOB_CHUNK];
        while offset < size {
            let mut filled = 0;
            while filled < piece.len() {
                match file.read(&mut piece[filled..]).await.map_err(unreadable)? {
                    0 => break,
                    count => filled += count,
                }
            }
            if filled == 0 {
                return Err(failed(StoreError::Short { digest: *digest, received: offset, size }));
            }
            self.send_piece(encode_blob(digest, offset, &piece[..filled])).await?;
            offset += filled as u64;
            sent(filled as u64);
        }
        Ok(())
    }
}
