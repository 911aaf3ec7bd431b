//! Who works with which blobs: what keeps collection away from a build that runs.
//!
//! A process that opened a store has a lease from its first blob on: a file, locked while the process lives, that names every blob it
//! asked for, found or made. A collector takes nothing that a living lease names. No clock is in it: one that was set back would make
//! what is in use look old.
//!
//! The gate puts both in an order. A name is added with the gate held shared; a collector reads all leases and removes with the gate held
//! alone. So whoever asks for a blob either is seen in time, or comes after and is told that the blob is gone.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::sync::PoisonError;

use jiji_model::digest::Digest;
use tempfile::NamedTempFile;

use crate::{Store, StoreError, failed, place};

/// The directory of leases.
pub(crate) const LEASES: &str = "leases";

/// Bytes of a name in a lease.
const NAME: usize = 32;

/// The lease of this process.
#[derive(Debug)]
pub(crate) struct Lease {
    file: NamedTempFile,
    gate: File,
    held: HashSet<Digest>,
}

impl Lease {
    fn begin(root: &Path) -> Result<Self, StoreError> {
        Ok(Self { file: place::temp_file(&root.join(LEASES))?, gate: open_gate(root)?, held: HashSet::new() })
    }
}

/// The gate, held by nobody yet.
pub(crate) fn open_gate(root: &Path) -> Result<File, StoreError> {
    place::lock_file(&root.join("gate"))
}

impl Store {
    /// Keeps a blob from being collected while this store is open. True the first time.
    pub(crate) fn hold(&self, digest: &Digest) -> Result<bool, StoreError> {
        if !self.uses || self.is_held(digest) {
            return Ok(false);
        }
        self.gated(|lease| {
            if !lease.held.insert(*digest) {
                return Ok(false);
            }
            let written = lease.file.as_file_mut().write_all(digest.as_bytes());
            written.map_err(failed("write", lease.file.path()))?;
            Ok(true)
        })
    }

    /// Does something that no collector may come between.
    pub(crate) fn gated<T>(&self, work: impl FnOnce(&mut Lease) -> Result<T, StoreError>) -> Result<T, StoreError> {
        // One thread at a time: a lock of the gate belongs to the open file, which all threads share.
        let mut lease = self.inner.lease.lock().unwrap_or_else(PoisonError::into_inner);
        let lease = match &mut *lease {
            Some(lease) => lease,
            none => none.insert(Lease::begin(self.root())?),
        };
        let gate = self.root().join("gate");
        lease.gate.lock_shared().map_err(failed("lock", &gate))?;
        let done = work(lease);
        lease.gate.unlock().map_err(failed("unlock", &gate))?;
        done
    }

    /// Whether this process holds the blob already.
    fn is_held(&self, digest: &Digest) -> bool {
        let lease = self.inner.lease.lock().unwrap_or_else(PoisonError::into_inner);
        lease.as_ref().is_some_and(|lease| lease.held.contains(digest))
    }

    /// The blobs that living processes work with, and how many such processes there are.
    pub(crate) fn leased(&self) -> Result<(HashSet<Digest>, u64), StoreError> {
        let dir = self.root().join(LEASES);
        let (mut held, mut living) = (HashSet::new(), 0);
        for entry in fs::read_dir(&dir).map_err(failed("list", &dir))? {
            let path = entry.map_err(failed("list", &dir))?.path();
            let names = match living_names(&path) {
                Ok(Some(names)) => names,
                Ok(None) => continue,
                Err(error) => return Err(failed("read", &path)(error)),
            };
            living += 1;
            // What a death in the middle of a write left of a name is none.
            held.extend(names.as_chunks::<NAME>().0.iter().map(|name| Digest::from_bytes(*name)));
        }
        Ok((held, living))
    }
}

/// What a lease names, or none where its process is dead.
fn living_names(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match file.try_lock_shared() {
        Err(fs::TryLockError::WouldBlock) => {}
        Ok(()) => return Ok(None),
        Err(fs::TryLockError::Error(error)) => return Err(error),
    }
    let mut names = Vec::new();
    file.read_to_end(&mut names)?;
    Ok(Some(names))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_names_what_was_asked_for_and_ends_with_its_store() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path()).expect("a store");
        assert_eq!(store.leased().expect("read"), (HashSet::new(), 0), "opening alone holds nothing");
        let digest = store.put(b"hello").expect("stored");
        let missing = Digest::of(b"missing");
        assert_eq!(store.has(&missing).expect("looked"), None);
        let other = Store::open(dir.path()).expect("a second opening");
        assert_eq!(other.leased().expect("read"), (HashSet::from([digest, missing]), 1));
        drop(store);
        assert_eq!(other.leased().expect("read"), (HashSet::new(), 0));
        assert_eq!(fs::read_dir(dir.path().join(LEASES)).expect("listed").count(), 0);
    }

    #[test]
    fn a_dead_lease_is_swept_and_holds_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path()).expect("a store");
        fs::write(dir.path().join(LEASES).join("dead"), Digest::of(b"x").as_bytes()).expect("written");
        assert_eq!(store.leased().expect("read"), (HashSet::new(), 0));
        store.sweep().expect("swept");
        assert_eq!(fs::read_dir(dir.path().join(LEASES)).expect("listed").count(), 0);
    }
}
