//! Keeping a store sound: sweeping, hashing everything again, collecting all but what is named. Making it smaller is [`crate::shrink`]'s.

use std::collections::BTreeSet;
use std::{fs, io};

use jiji_model::digest::Digest;
use rustix::fs::FlockOperation;

use crate::lease::LEASES;
use crate::{Store, StoreError, failed};

/// What hashing every blob again found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// How many blobs were hashed.
    pub blobs: u64,
    /// Their lengths together, in bytes.
    pub bytes: u64,
    /// The blobs that are not what their names say, and what they are instead.
    pub damaged: Vec<(Digest, Digest)>,
}

/// What was collected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// How many blobs were removed.
    pub blobs: u64,
    /// Their lengths together with those of beginnings of blobs, in bytes.
    pub bytes: u64,
    /// How many unpacked layers were removed.
    pub trees: u64,
}

impl Store {
    /// Removes temporary files, directories and leases whose owners are dead, and says how many.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn sweep(&self) -> Result<u64, StoreError> {
        let mut removed = 0;
        for dir in [self.tmp(), self.root().join(LEASES)] {
            for entry in fs::read_dir(&dir).map_err(failed("list", &dir))? {
                let path = entry.map_err(failed("list", &dir))?.path();
                match self.hands().remove_abandoned(&path) {
                    // It belongs to users that nobody here can be any more; that must not keep the rest from being removed.
                    Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                        tracing::debug!(%error, path = %path.display(), "remove what a dead writer left");
                    }
                    done => removed += u64::from(done.map_err(failed("remove", &path))?),
                }
            }
        }
        Ok(removed)
    }

    /// Hashes every blob again.
    ///
    /// # Errors
    /// [`StoreError::Io`]. A damaged blob is no error but a finding.
    pub fn verify(&self) -> Result<Verified, StoreError> {
        let mut found = Verified { blobs: 0, bytes: 0, damaged: Vec::new() };
        for entry in self.blobs()? {
            let (digest, _) = entry?;
            let Some((actual, size)) = self.rehash(&digest)? else { continue };
            found.blobs += 1;
            found.bytes += size;
            if actual != digest {
                found.damaged.push((digest, actual));
            }
        }
        found.damaged.sort_unstable();
        Ok(found)
    }

    /// Removes all blobs, beginnings of blobs and unpacked layers but those in `keep`. What steps gave stays recorded: whoever reads
    /// it sees by [`Store::has`] that it must be made again.
    ///
    /// # Errors
    /// [`StoreError::Busy`] while another process has the store open: it may be about to use what is removed. Within this process
    /// that is the caller's to know. [`StoreError::Io`].
    pub fn collect(&self, keep: &BTreeSet<Digest>) -> Result<Collected, StoreError> {
        let lock = &self.inner.lock;
        let path = self.root().join("lock");
        rustix::fs::flock(lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
            rustix::io::Errno::WOULDBLOCK => StoreError::Busy { path: path.clone() },
            other => failed("lock", &path)(other.into()),
        })?;
        let collected = self.collect_alone(keep);
        rustix::fs::flock(lock, FlockOperation::LockShared).map_err(|error| failed("lock", &path)(error.into()))?;
        collected
    }

    fn collect_alone(&self, keep: &BTreeSet<Digest>) -> Result<Collected, StoreError> {
        let mut collected = Collected::default();
        for entry in self.blobs()? {
            let (digest, size) = entry?;
            if !keep.contains(&digest) && self.remove(&digest)? {
                collected.blobs += 1;
                collected.bytes += size;
            }
        }
        for entry in self.partials()? {
            let (digest, size) = entry?;
            if !keep.contains(&digest) && self.forget_partial(&digest)? {
                collected.bytes += size;
            }
        }
        for digest in self.trees()? {
            if !keep.contains(&digest) {
                match self.remove_tree(&digest) {
                    Ok(removed) => collected.trees += u64::from(removed),
                    Err(StoreError::Busy { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(collected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_living_writer_holds_is_not_swept_and_what_a_dead_one_left_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path()).expect("a store");
        let writer = store.writer().expect("begun");
        let tree = store.new_tree().expect("begun");
        fs::write(store.tmp().join("left"), "over").expect("written");
        fs::create_dir_all(store.tmp().join("left-tree/root/etc")).expect("created");
        assert_eq!(store.sweep().expect("swept"), 2);
        drop(Store::open(dir.path()).expect("a second opening sweeps too"));
        assert!(tree.path().is_dir());
        writer.finish(None).expect("finished");
    }

    #[test]
    fn verify_finds_the_blob_that_changed() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path()).expect("a store");
        let [good, bad] = [b"good", b"evil"].map(|bytes| store.put(bytes).expect("stored"));
        fs::write(store.blob_path(&bad), b"1234").expect("changed");
        let found = store.verify().expect("verified");
        assert_eq!((found.blobs, found.bytes), (2, 8));
        assert_eq!(found.damaged, [(bad, Digest::of(b"1234"))]);
        assert!(store.read(&good, 4).is_ok());
    }

    #[test]
    fn collect_keeps_what_is_named_and_waits_for_nobody() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path()).expect("a store");
        let [kept, gone] = [&b"kept"[..], b"gone!"].map(|bytes| store.put(bytes).expect("stored"));
        let other = Store::open(dir.path()).expect("a second opening");
        assert!(matches!(store.collect(&BTreeSet::from([kept])), Err(StoreError::Busy { .. })));
        drop(other);
        let collected = store.collect(&BTreeSet::from([kept])).expect("collected");
        assert_eq!(collected, Collected { blobs: 1, bytes: 5, trees: 0 });
        assert_eq!((store.has(&kept).expect("looked"), store.has(&gone).expect("looked")), (Some(4), None));
        drop(Store::open(dir.path()).expect("the lock is shared again"));
    }
}
