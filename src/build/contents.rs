//! Digests of the files of a context, each file read no more often than it changes.
//!
//! What a file hashed to is remembered with its size, times and inode, as git's index does. Only files that had been quiet for a while
//! when they were read are remembered: a write in the same tick of the clock would leave no trace in the times.

use std::collections::{BTreeMap, HashMap};
use std::fs::Metadata;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use jiji_model::digest::{Digest, canonical_json};
use jiji_store::{Store, StoreError};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::context::{self, ContextError};

/// The version of the remembered form. Another version is not looked at.
const VERSION: u32 = 1;
/// Seconds that a file must have been quiet: more than the coarsest clock of a file system (FAT's is 2).
const QUIET: i64 = 3;

/// What tells that a file is as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Stat(u64, i64, i64, i64, i64, u64, u64);

impl Stat {
    fn of(metadata: &Metadata) -> Self {
        let (modified, changed) = (metadata.mtime(), metadata.ctime());
        let (modified_part, changed_part) = (metadata.mtime_nsec(), metadata.ctime_nsec());
        Self(metadata.len(), modified, modified_part, changed, changed_part, metadata.ino(), metadata.dev())
    }

    fn is_quiet(&self, now: i64) -> bool {
        self.1.max(self.3) < now - QUIET
    }
}

/// Whether these are the remembered digests of a context's files.
pub(super) fn is_record(bytes: &[u8]) -> bool {
    serde_json::from_slice::<Remembered>(bytes).is_ok()
}

#[derive(Serialize, Deserialize)]
struct Remembered {
    files: BTreeMap<String, (Stat, Digest)>,
}

/// The digests of a context's files.
#[derive(Debug)]
pub struct Contents {
    root: PathBuf,
    store: Store,
    key: Digest,
    threads: usize,
    remembered: BTreeMap<String, (Stat, Digest)>,
    known: HashMap<PathBuf, Digest>,
    learned: bool,
}

impl Contents {
    /// Digests of files below `root`, of which some may be remembered in the store. Builds that copy other files from one root have
    /// other names, so that they do not forget each other's.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn new(root: &Path, name: &str, threads: usize, store: &Store) -> Result<Self, StoreError> {
        let key = Digest::of_json(&serde_json::json!({
            "file-digests": VERSION,
            "root": root.to_string_lossy(),
            "name": name,
        }));
        let record = store.action(&key)?;
        let remembered = record.and_then(|record| serde_json::from_slice::<Remembered>(&record).ok());
        let remembered = remembered.map(|record| record.files).unwrap_or_default();
        Ok(Self {
            root: root.to_owned(),
            store: store.clone(),
            key,
            threads,
            remembered,
            known: HashMap::new(),
            learned: false,
        })
    }

    /// The digest of a file, if [`Self::learn`] learned it.
    pub fn get(&self, path: &Path) -> Option<&Digest> {
        self.known.get(path)
    }

    /// Learns the digests of these files.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn learn(&mut self, files: &[&Path]) -> Result<(), ContextError> {
        let mut unknown = Vec::new();
        for file in files {
            if self.known.contains_key(*file) {
                continue;
            }
            let failed = |source| ContextError::Read { path: (*file).to_owned(), source };
            let stat = Stat::of(&file.symlink_metadata().map_err(failed)?);
            match file.to_str().and_then(|name| self.remembered.get(name)) {
                Some((then, digest)) if *then == stat => {
                    self.known.insert((*file).to_owned(), *digest);
                }
                _ => unknown.push(*file),
            }
        }
        if unknown.is_empty() {
            return Ok(());
        }
        let now = self.now();
        for (file, (stat, digest)) in unknown.iter().zip(hash_all(&self.root, &unknown, self.threads)?) {
            self.known.insert((*file).to_owned(), digest);
            if let (Some(name), Some(now)) = (file.to_str(), now)
                && stat.is_quiet(now)
            {
                self.remembered.insert(name.to_owned(), (stat, digest));
                self.learned = true;
            }
        }
        Ok(())
    }

    /// Remembers what was learned for the next build. Files that were not asked for are forgotten.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn remember(&mut self) -> Result<(), StoreError> {
        if !self.learned {
            return Ok(());
        }
        self.remembered.retain(|name, _| self.known.contains_key(Path::new(name)));
        let record = Remembered { files: std::mem::take(&mut self.remembered) };
        self.store.record_action(&self.key, &canonical_json(&record))?;
        self.learned = false;
        Ok(())
    }

    /// The time of the file system, in seconds: that of a file written now.
    fn now(&self) -> Option<i64> {
        let file = tempfile::tempfile_in(self.store.root().join("tmp")).ok()?;
        Some(file.metadata().ok()?.mtime())
    }
}

fn hash_all(root: &Path, files: &[&Path], threads: usize) -> Result<Vec<(Stat, Digest)>, ContextError> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(files.len()));
    let work = || {
        let mut buffer = vec![0; 256 * 1024];
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(file) = files.get(at) else { return };
            let hashed = hash(root, file, &mut buffer);
            done.lock().unwrap_or_else(PoisonError::into_inner).push((at, hashed));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.clamp(1, files.len()) {
            scope.spawn(work);
        }
        work();
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(at, _)| *at);
    let failed = |at: usize| move |source| ContextError::Read { path: files[at].to_owned(), source };
    done.into_iter().map(|(at, hashed)| hashed.map_err(failed(at))).collect()
}

fn hash(root: &Path, path: &Path, buffer: &mut [u8]) -> io::Result<(Stat, Digest)> {
    let mut file = context::open(root, path)?;
    let stat = Stat::of(&file.metadata()?);
    let mut hash = Sha256::new();
    loop {
        match file.read(buffer) {
            Ok(0) => return Ok((stat, Digest::from_bytes(hash.finalize().into()))),
            Ok(count) => hash.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_file_that_was_just_written_is_read_again_and_a_quiet_one_is_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path().join("store")).expect("a store");
        let root = dir.path().join("context");
        fs::create_dir(&root).expect("created");
        let file = root.join("file");
        fs::write(&file, "one").expect("written");
        let digest = || {
            let mut contents = Contents::new(&root, "web", 2, &store).expect("begun");
            contents.learn(&[&file]).expect("learned");
            let digest = *contents.get(&file).expect("known");
            contents.remember().expect("remembered");
            (digest, contents.learned, Contents::new(&root, "web", 2, &store).expect("begun").remembered.len())
        };
        assert_eq!(digest(), (Digest::of("one"), false, 0), "too young to be remembered");
        fs::write(&file, "two").expect("written");
        assert_eq!(digest().0, Digest::of("two"));

        let quiet = Stat::of(&file.metadata().expect("there"));
        assert!(!quiet.is_quiet(quiet.3) && !quiet.is_quiet(quiet.3 + QUIET) && quiet.is_quiet(quiet.3 + QUIET + 1));
        // As if it had been quiet, with a digest that shows where it came from.
        let files = BTreeMap::from([(file.to_str().expect("UTF-8").to_owned(), (quiet, Digest::of("remembered")))]);
        let key = Contents::new(&root, "web", 2, &store).expect("begun").key;
        store.record_action(&key, &canonical_json(&Remembered { files })).expect("recorded");
        assert_eq!(digest().0, Digest::of("remembered"));
        fs::write(&file, "six").expect("written");
        assert_eq!(digest().0, Digest::of("six"), "its times tell that it changed");
    }
}
