//! Digests of the files of a context, each file read no more often than it changes.
//!
//! What a file hashed to is remembered with its size, times and inode, as git's index does. Only files that had been quiet for a while
//! when they were read are remembered: a write in the same tick of the clock would leave no trace in the times.

use std::collections::HashMap;
use std::fs::Metadata;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use jiji_model::digest::Digest;
use jiji_store::{Store, StoreError};
use sha2::{Digest as _, Sha256};

use super::context::{self, ContextError};

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

    fn is_quiet(&self, now: i64) -> bool {
        self.0[1].max(self.0[3]) < now - QUIET
    }
}

/// A file of a context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Where it is.
    pub path: PathBuf,
    /// What it was when the context was looked at.
    pub stat: Stat,
    /// The digest of its content, once [`Contents::learn`] learned it.
    pub digest: Option<Digest>,
}

/// Whether these are the remembered digests of a context's files.
pub(super) fn is_record(bytes: &[u8]) -> bool {
    record::read(bytes).is_some()
}

/// What is known of a file.
#[derive(Debug, Clone, Copy)]
struct Known {
    stat: Stat,
    digest: Digest,
    /// Whether this build asked for it.
    asked: bool,
    /// Whether it may be remembered: it had been quiet when it was read.
    quiet: bool,
}

/// The digests of a context's files.
#[derive(Debug)]
pub struct Contents {
    root: PathBuf,
    store: Store,
    key: Digest,
    threads: usize,
    /// By path.
    known: HashMap<Vec<u8>, Known>,
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
            "file-digests": record::VERSION,
            "root": root.to_string_lossy(),
            "name": name,
        }));
        let remembered = store.action(&key)?.and_then(|bytes| record::read(&bytes)).unwrap_or_default();
        let known = |(path, stat, digest)| (path, Known { stat, digest, asked: false, quiet: true });
        let known = remembered.into_iter().map(known).collect();
        Ok(Self { root: root.to_owned(), store: store.clone(), key, threads, known, learned: false })
    }

    /// Learns the digests of these files.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn learn(&mut self, files: Vec<&mut File>) -> Result<(), ContextError> {
        let mut unknown = Vec::new();
        for file in files {
            match self.known.get_mut(file.path.as_os_str().as_bytes()) {
                Some(known) if known.stat == file.stat => {
                    known.asked = true;
                    file.digest = Some(known.digest);
                }
                _ => unknown.push(file),
            }
        }
        if unknown.is_empty() {
            return Ok(());
        }
        let now = self.now();
        let paths: Vec<&Path> = unknown.iter().map(|file| file.path.as_path()).collect();
        let hashed = hash_all(&self.root, &paths, self.threads)?;
        for (file, (stat, digest)) in unknown.into_iter().zip(hashed) {
            file.digest = Some(digest);
            let quiet = now.is_some_and(|now| stat.is_quiet(now));
            self.learned |= quiet;
            // Within a build a file is what it was when it was read first.
            let known = Known { stat: file.stat, digest, asked: true, quiet: quiet && stat == file.stat };
            self.known.insert(file.path.as_os_str().as_bytes().to_vec(), known);
        }
        Ok(())
    }

    /// Remembers what was learned for the next build. Files that were not asked for are forgotten.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn remember(&mut self) -> Result<(), StoreError> {
        if !std::mem::take(&mut self.learned) {
            return Ok(());
        }
        let kept = self.known.iter().filter(|(_, known)| known.asked && known.quiet);
        let bytes = record::write(kept.map(|(path, known)| (path.as_slice(), &known.stat, &known.digest)).collect());
        self.store.record_action(&self.key, &bytes)
    }

    /// The time of the file system, in seconds: that of a file written now.
    fn now(&self) -> Option<i64> {
        let file = tempfile::tempfile_in(self.store.root().join("tmp")).ok()?;
        Some(file.metadata().ok()?.mtime())
    }
}

/// The remembered form: a head, then for each file in the order of paths how many bytes of the path before it begins with too, how many follow
/// (16 bits each) and these, the seven numbers of its [`Stat`] (64 bits each) and its digest. All numbers have the lowest byte first. A context of
/// ten thousand files is read in a millisecond, which JSON is not.
mod record {
    use jiji_model::digest::Digest;

    use super::Stat;

    /// The version. Another one is not looked at.
    pub(super) const VERSION: u32 = 2;

    const HEAD: &[u8] = b"jiji file digests 2\n";

    pub(super) fn write(mut files: Vec<(&[u8], &Stat, &Digest)>) -> Vec<u8> {
        files.sort_unstable_by_key(|(path, ..)| *path);
        let mut bytes = HEAD.to_vec();
        let mut before: &[u8] = &[];
        for (path, stat, digest) in files {
            let same = before.iter().zip(path).take_while(|(one, other)| one == other).count();
            // Longer paths cannot be opened: PATH_MAX is 4096.
            let (Ok(shared), Ok(rest)) = (u16::try_from(same), u16::try_from(path.len() - same)) else { continue };
            bytes.extend(shared.to_le_bytes());
            bytes.extend(rest.to_le_bytes());
            bytes.extend(&path[same..]);
            bytes.extend(stat.0.iter().flat_map(|number| number.to_le_bytes()));
            bytes.extend(digest.as_bytes());
            before = path;
        }
        bytes
    }

    pub(super) fn read(bytes: &[u8]) -> Option<Vec<(Vec<u8>, Stat, Digest)>> {
        let mut rest = bytes.strip_prefix(HEAD)?;
        let mut files: Vec<(Vec<u8>, Stat, Digest)> = Vec::new();
        while !rest.is_empty() {
            let shared = usize::from(u16::from_le_bytes(*take(&mut rest)?));
            let length = usize::from(u16::from_le_bytes(*take(&mut rest)?));
            let (end, after) = rest.split_at_checked(length)?;
            rest = after;
            let before = files.last().map_or(&[][..], |(path, ..)| path);
            let path = [before.get(..shared)?, end].concat();
            let mut stat = [0; 7];
            for number in &mut stat {
                *number = i64::from_le_bytes(*take(&mut rest)?);
            }
            files.push((path, Stat(stat), Digest::from_bytes(*take(&mut rest)?)));
        }
        Some(files)
    }

    fn take<'a, const LENGTH: usize>(rest: &mut &'a [u8]) -> Option<&'a [u8; LENGTH]> {
        let (first, after) = rest.split_first_chunk()?;
        *rest = after;
        Some(first)
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
        let path = root.join("file");
        fs::write(&path, "one").expect("written");
        let digest = || {
            let mut contents = Contents::new(&root, "web", 2, &store).expect("begun");
            let stat = Stat::of(&path.metadata().expect("there"));
            let mut file = File { path: path.clone(), stat, digest: None };
            contents.learn(vec![&mut file]).expect("learned");
            contents.remember().expect("remembered");
            (file.digest.expect("known"), Contents::new(&root, "web", 2, &store).expect("begun").known.len())
        };
        assert_eq!(digest(), (Digest::of("one"), 0), "too young to be remembered");
        fs::write(&path, "two").expect("written");
        assert_eq!(digest().0, Digest::of("two"));

        let quiet = Stat::of(&path.metadata().expect("there"));
        let changed = quiet.0[3];
        assert!(!quiet.is_quiet(changed) && !quiet.is_quiet(changed + QUIET) && quiet.is_quiet(changed + QUIET + 1));
        // As if it had been quiet, with a digest that shows where it came from.
        let key = Contents::new(&root, "web", 2, &store).expect("begun").key;
        let record = record::write(vec![(path.as_os_str().as_bytes(), &quiet, &Digest::of("remembered"))]);
        store.record_action(&key, &record).expect("recorded");
        assert_eq!(digest(), (Digest::of("remembered"), 1));
        fs::write(&path, "six").expect("written");
        assert_eq!(digest().0, Digest::of("six"), "its times tell that it changed");
    }

    #[test]
    fn what_is_remembered_is_read_as_it_was_written_and_what_is_damaged_is_not_believed() {
        let stat = |number| Stat([number, -1, 2, i64::MAX, 4, 5, 6]);
        let digests = [Digest::of("1"), Digest::of("2"), Digest::of("3")];
        let files = [(&b"/c/a/one"[..], stat(1)), (b"/c/a/o\xff\n", stat(2)), (b"/c/b", stat(3))];
        let given = || files.iter().zip(&digests).map(|((path, stat), digest)| (*path, stat, digest)).collect();
        let bytes = record::write(given());
        let mut read = record::read(&bytes).expect("a record");
        read.sort_by_key(|(_, stat, _)| stat.0[0]);
        let read: Vec<_> = read.iter().map(|(path, stat, digest)| (path.as_slice(), stat, digest)).collect();
        assert_eq!(read, given());
        assert!(bytes.len() < files.len() * 120, "{}", bytes.len());
        for length in 0..bytes.len() {
            let cut = record::read(&bytes[..length]);
            assert!(cut.is_none_or(|files| files.len() < 3), "{length}");
        }
        assert!(record::read(b"{}").is_none());
    }
}
