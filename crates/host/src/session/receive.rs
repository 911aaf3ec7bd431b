//! Blobs that come in beside the asks.
//!
//! Pieces are appended where the last ones ended, also those of an earlier session that was cut, and a blob appears in the store when it is
//! whole and verified. The store is opened with the first offer, so that a session that only looks writes nothing.

use std::collections::{BTreeMap, BTreeSet};

use jiji_model::digest::Digest;
use jiji_model::observation::BlobFacts;
use jiji_store::{PartialBlob, Store, StoreError};

use crate::abort;
use crate::place::Place;

/// What takes blobs in.
#[derive(Debug)]
pub(super) struct Receiver {
    place: Place,
    store: Option<Store>,
    /// Lengths of the blobs that were offered.
    expected: BTreeMap<Digest, u64>,
    open: BTreeMap<Digest, PartialBlob>,
    /// Blobs that another session is receiving at the same time: what comes here of them is thrown away.
    elsewhere: BTreeSet<Digest>,
    /// The first thing that went wrong since the last answer.
    trouble: Option<StoreError>,
}

impl Receiver {
    pub(super) fn new(place: Place) -> Self {
        Self {
            place,
            store: None,
            expected: BTreeMap::new(),
            open: BTreeMap::new(),
            elsewhere: BTreeSet::new(),
            trouble: None,
        }
    }

    /// The store, opened now if it was not.
    pub(super) fn store(&mut self) -> Result<Store, StoreError> {
        match &self.store {
            Some(store) => Ok(store.clone()),
            None => {
                let store = Store::open(self.place.store())?;
                Ok(self.store.insert(store).clone())
            }
        }
    }

    /// Blobs with their lengths may come.
    pub(super) fn expect(&mut self, blobs: &[(Digest, u64)]) {
        self.expected.extend(blobs.iter().copied());
    }

    /// A piece of a blob came. What goes wrong is told with the next answer; the operator cannot be stopped in the middle anyway.
    pub(super) fn append(&mut self, digest: &Digest, offset: u64, content: &[u8]) {
        if let Err(error) = self.try_append(digest, offset, content) {
            self.open.remove(digest);
            self.trouble.get_or_insert(error);
        }
    }

    fn try_append(&mut self, digest: &Digest, offset: u64, content: &[u8]) -> Result<(), StoreError> {
        let Some(size) = self.expected.get(digest).copied() else {
            return Err(StoreError::Missing { digest: *digest });
        };
        if self.elsewhere.contains(digest) {
            return Ok(());
        }
        let store = self.store()?;
        let mut blob = match self.open.remove(digest) {
            Some(blob) => blob,
            None if store.has(digest)?.is_some() => return Ok(()),
            None => match store.receive(digest, size) {
                Err(StoreError::Busy { .. }) => {
                    self.elsewhere.insert(*digest);
                    return Ok(());
                }
                other => other?,
            },
        };
        // Pieces that came before are passed over; after a gap nothing fits until the sender begins again at the end.
        let skip = usize::try_from(blob.offset().saturating_sub(offset)).unwrap_or(usize::MAX);
        if offset <= blob.offset() && skip < content.len() {
            blob.append(&content[skip..])?;
        }
        abort::point("received", || "piece".to_owned());
        if blob.offset() == size {
            blob.finish()
        } else {
            self.open.insert(*digest, blob);
            Ok(())
        }
    }

    /// Whether another session is still receiving a blob that was sent here too.
    pub(super) fn is_waiting(&mut self) -> Result<bool, StoreError> {
        let store = self.store()?;
        let mut still = BTreeSet::new();
        for digest in std::mem::take(&mut self.elsewhere) {
            let size = self.expected.get(&digest).copied().unwrap_or_default();
            let busy = || matches!(store.receive(&digest, size), Err(StoreError::Busy { .. }));
            if store.has(&digest)?.is_none() && busy() {
                still.insert(digest);
            }
        }
        self.elsewhere = still;
        Ok(!self.elsewhere.is_empty())
    }

    /// How much of these blobs is here.
    pub(super) fn state(&mut self, digests: &[Digest]) -> Result<Vec<BlobFacts>, StoreError> {
        if let Some(error) = self.trouble.take() {
            return Err(error);
        }
        let store = self.store()?;
        let mut facts = Vec::new();
        for digest in digests {
            self.finish_if_all_came(&store, digest)?;
            facts.push(match store.has(digest)? {
                Some(have) => BlobFacts { digest: *digest, have, complete: true },
                None => BlobFacts { digest: *digest, have: store.partial(digest)?, complete: false },
            });
        }
        Ok(facts)
    }

    /// Finishes a blob of which all bytes came and nobody finished it: an empty one, or one whose session died just before. Nothing more
    /// of it will be sent. Bytes that are others are thrown away, to be sent anew.
    fn finish_if_all_came(&self, store: &Store, digest: &Digest) -> Result<(), StoreError> {
        let Some(size) = self.expected.get(digest).copied().filter(|_| !self.open.contains_key(digest)) else {
            return Ok(());
        };
        if store.has(digest)?.is_some() || store.partial(digest)? < size {
            return Ok(());
        }
        let finished = store.receive(digest, size).and_then(PartialBlob::finish);
        match finished {
            // Too long, so that it begins anew; or wrong; or another session is just finishing it.
            Err(StoreError::Short { .. } | StoreError::Mismatch { .. } | StoreError::Busy { .. }) => Ok(()),
            other => other,
        }
    }

    /// Drops what is in the store and not in `keep`, and the beginnings of blobs that never came whole, unless another session has the
    /// store open. What cannot be dropped now is dropped the next time.
    pub(super) fn tidy(&mut self, keep: &BTreeSet<Digest>) {
        if !self.place.store().is_dir() {
            return;
        }
        // A store that cannot be opened is told of when it is needed.
        let Ok(store) = self.store() else { return };
        self.open.clear();
        if store.collect(keep).is_ok() {
            for (digest, _) in store.partials().into_iter().flatten().flatten() {
                // The next tidying finds it again.
                let _ = store.forget_partial(&digest);
            }
        }
    }
}
