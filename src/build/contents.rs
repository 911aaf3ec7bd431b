//! Digests of the files of a context, each file read no more often than it changes.
//!
//! What a file hashed to is remembered with its size, times and inode, as git's index does. Only files that had been quiet for a while
//! when they were read are remembered: a write in the same tick of the clock would leave no trace in the times.

mod known;

use std::fs::Metadata;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use jiji_model::digest::Digest;
use jiji_store::{Store, StoreError};
use sha2::{Digest as _, Sha256};

use super::context::{ContextError, Root};
use known::{Known, One};

/// Seconds that a file must have been quiet: more than the coarsest clock of a file system (FAT's is 2).
const QUIET: i64 = 3;

/// What tells that a file is as it was: its size, the times of its content and of itself, inode and device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat([i64; 7]);

impl Stat {
    /// That of a file's metadata.
    pub fn of(metadata: &Metadata) -> Self {
        let (modified, changed) = (metadata.mtime(), metadata.ctime());
        let (modified_part, changed_part) = (metadata.mtime_nsec(), metadata.ctime_nsec());
        let [size, inode, device] = [metadata.len(), metadata.ino(), metadata.dev()].map(u64::cast_signed);
        Self([size, modified, modified_part, changed, changed_part, inode, device])
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.0[0].cast_unsigned()
    }

    fn is_quiet(&self, now: i64) -> bool {
        self.0[1].max(self.0[3]) < now - QUIET
    }
}

/// A time before something was read, in seconds.
#[derive(Debug, Clone, Copy)]
pub struct Moment(i64);

/// What a file was when it was opened, and what its content hashed to then.
#[derive(Debug, Clone, Copy)]
pub struct Read {
    /// What it was.
    pub stat: Stat,
    /// The digest of its content.
    pub digest: Digest,
}

/// A file of a context. Whoever copies it shares it, so that it is learned once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Where it is.
    pub path: PathBuf,
    /// What it was when the context was looked at.
    pub stat: Stat,
    digest: OnceLock<Digest>,
    /// As how many files were asked for before it.
    turn: OnceLock<u32>,
}

impl File {
    /// One of which only this is known.
    pub fn new(path: PathBuf, stat: Stat) -> Self {
        Self { path, stat, digest: OnceLock::new(), turn: OnceLock::new() }
    }

    /// The digest of its content, once somebody learned it.
    pub fn digest(&self) -> Option<Digest> {
        self.digest.get().copied()
    }

    /// Takes what somebody read for the digest of its content. Within a build a file is what it was when it was read first: false where it was something else.
    pub fn is(&self, digest: Digest) -> bool {
        *self.digest.get_or_init(|| digest) == digest
    }
}

/// Whether these are the remembered digests of a context's files.
pub(super) fn is_record(bytes: &[u8]) -> bool {
    Known::read(bytes).is_some()
}

/// The digests of a context's files.
#[derive(Debug)]
pub struct Contents {
    root: PathBuf,
    store: Store,
    key: Digest,
    threads: usize,
    known: Known,
    /// How many files were asked for.
    asked: u32,
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
            "file-digests": known::VERSION,
            "root": root.to_string_lossy(),
            "name": name,
        }));
        let known = store.action(&key)?.and_then(|bytes| Known::read(&bytes)).unwrap_or_default();
        Ok(Self { root: root.to_owned(), store: store.clone(), key, threads, known, asked: 0, learned: false })
    }

    /// Finds the digests of those of these files that are remembered, and gives the others.
    pub fn recall<'a>(&mut self, files: impl Iterator<Item = &'a File>) -> Vec<&'a File> {
        let mut unknown = Vec::new();
        for file in files.filter(|file| file.digest.get().is_none()) {
            let turn = *file.turn.get_or_init(|| {
                self.asked += 1;
                self.asked
            });
            match self.known.find(file.path.as_os_str().as_bytes()) {
                Some(one) if one.stat == file.stat => {
                    one.turn.get_or_insert(turn);
                    file.digest.get_or_init(|| one.digest);
                }
                _ => unknown.push(file),
            }
        }
        unknown
    }

    /// Learns the digests of these files.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn learn<'a>(&mut self, files: impl Iterator<Item = &'a File>) -> Result<(), ContextError> {
        let unknown = self.recall(files);
        if unknown.is_empty() {
            return Ok(());
        }
        let moment = self.moment();
        let paths: Vec<&Path> = unknown.iter().map(|file| file.path.as_path()).collect();
        let hashed = hash_all(&self.root, &paths, self.threads)?;
        for (file, read) in unknown.into_iter().zip(hashed) {
            self.take(file, &read, moment);
        }
        Ok(())
    }

    /// Takes what was read of a file after a moment of [`Self::moment`].
    pub fn take(&mut self, file: &File, read: &Read, moment: Option<Moment>) {
        // Within a build a file is what it was when it was read first.
        let digest = *file.digest.get_or_init(|| read.digest);
        let quiet = moment.is_some_and(|Moment(now)| read.stat.is_quiet(now));
        self.learned |= quiet;
        let turn = file.turn.get().copied().or(Some(u32::MAX));
        let one = One { stat: file.stat, digest, turn, quiet: quiet && read.stat == file.stat };
        self.known.put(file.path.as_os_str().as_bytes(), one);
    }

    /// Remembers what was learned for the next build. Files that were not asked for are forgotten.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn remember(&mut self) -> Result<(), StoreError> {
        if !std::mem::take(&mut self.learned) {
            return Ok(());
        }
        self.store.record_action(&self.key, &self.known.write())
    }

    /// The time before something is read, by the file system's clock: that of a file written now. None where it does not tell.
    pub fn moment(&self) -> Option<Moment> {
        let file = tempfile::tempfile_in(self.store.root().join("tmp")).ok()?;
        Some(Moment(file.metadata().ok()?.mtime()))
    }
}

fn hash_all(root: &Path, files: &[&Path], threads: usize) -> Result<Vec<Read>, ContextError> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(files.len()));
    let root = Root::new(root);
    let work = || {
        let mut buffer = vec![0; 256 * 1024];
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(file) = files.get(at) else { return };
            let hashed = hash(&root, file, &mut buffer);
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

fn hash(root: &Root<'_>, path: &Path, buffer: &mut [u8]) -> io::Result<Read> {
    let (mut file, metadata) = root.open(path)?;
    let stat = Stat::of(&metadata);
    let mut hash = Sha256::new();
    loop {
        match file.read(buffer) {
            Ok(0) => return Ok(Read { stat, digest: Digest::from_bytes(hash.finalize().into()) }),
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
        let path = root.join("file");
        fs::write(&path, "one").expect("written");
        let digest = || {
            let mut contents = Contents::new(&root, "web", 2, &store).expect("begun");
            let stat = Stat::of(&path.metadata().expect("there"));
            let file = File::new(path.clone(), stat);
            contents.learn([&file].into_iter()).expect("learned");
            contents.remember().expect("remembered");
            (file.digest().expect("known"), Contents::new(&root, "web", 2, &store).expect("begun").known.len())
        };
        assert_eq!(digest(), (Digest::of("one"), 0), "too young to be remembered");
        fs::write(&path, "two").expect("written");
        assert_eq!(digest().0, Digest::of("two"));

        let quiet = Stat::of(&path.metadata().expect("there"));
        let changed = quiet.0[3];
        assert!(!quiet.is_quiet(changed) && !quiet.is_quiet(changed + QUIET) && quiet.is_quiet(changed + QUIET + 1));
        // As if it had been quiet, with a digest that shows where it came from.
        let key = Contents::new(&root, "web", 2, &store).expect("begun").key;
        let mut known = Known::default();
        let one = One { stat: quiet, digest: Digest::of("remembered"), turn: Some(0), quiet: true };
        known.put(path.as_os_str().as_bytes(), one);
        store.record_action(&key, &known.write()).expect("recorded");
        assert_eq!(digest(), (Digest::of("remembered"), 1));
        fs::write(&path, "six").expect("written");
        assert_eq!(digest().0, Digest::of("six"), "its times tell that it changed");
    }
}
