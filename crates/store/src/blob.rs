//! Blobs: bytes under the SHA-256 of themselves.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use jiji_model::digest::Digest;
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use crate::{Store, StoreError, failed, place};

/// How much is read at once when a file is hashed, in bytes.
const BLOCK: usize = 256 * 1024;

/// After so many bytes of a blob each time it is brought to the disk as far as it is.
const AHEAD: u64 = 32 * 1024 * 1024;

impl Store {
    /// The length in bytes of a blob, or none if it is not here. One that is here stays while this store is open.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn has(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        let first = self.hold(digest)?;
        let path = self.blob_path(digest);
        match fs::symlink_metadata(&path) {
            Ok(metadata) => {
                if first {
                    self.touch(&path);
                }
                Ok(Some(metadata.len()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("look at", &path)(error)),
        }
    }

    /// Opens a blob for reading and says its length in bytes. Its bytes are not hashed again: [`Store::verify`] does that.
    ///
    /// # Errors
    /// [`StoreError::Missing`], [`StoreError::Io`].
    pub fn open_blob(&self, digest: &Digest) -> Result<(File, u64), StoreError> {
        let first = self.hold(digest)?;
        let opened = self.look_into(digest)?;
        if first {
            self.touch(&self.blob_path(digest));
        }
        Ok(opened)
    }

    /// Opens a blob without using it: nobody is kept from collecting it.
    fn look_into(&self, digest: &Digest) -> Result<(File, u64), StoreError> {
        let path = self.blob_path(digest);
        let file = File::open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => StoreError::Missing { digest: *digest },
            _ => failed("open", &path)(error),
        })?;
        let size = file.metadata().map_err(failed("look at", &path))?.len();
        Ok((file, size))
    }

    /// Reads a small blob (a manifest, a configuration) of at most `limit` bytes, and checks that it is what its name says.
    ///
    /// # Errors
    /// [`StoreError::Missing`], [`StoreError::TooLarge`], [`StoreError::Mismatch`] when the disk lost it, [`StoreError::Io`].
    pub fn read(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, StoreError> {
        let (mut file, size) = self.open_blob(digest)?;
        if size > limit {
            return Err(StoreError::TooLarge { digest: *digest, size, limit });
        }
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
        file.read_to_end(&mut bytes).map_err(failed("read", &self.blob_path(digest)))?;
        match Digest::of(&bytes) {
            actual if actual == *digest => Ok(bytes),
            actual => Err(StoreError::Mismatch { expected: *digest, actual }),
        }
    }

    /// Stores bytes and says their name.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn put(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let digest = Digest::of(bytes);
        if self.has(&digest)? != Some(bytes.len() as u64) {
            place::write_atomic(&self.tmp(), &self.blob_path(&digest), bytes)?;
            self.grow();
        }
        Ok(digest)
    }

    /// Begins a blob whose name is known at its end.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn writer(&self) -> Result<BlobWriter, StoreError> {
        Ok(BlobWriter {
            store: self.clone(),
            file: place::temp_file(&self.tmp())?,
            hash: Sha256::new(),
            written: 0,
            ahead: None,
        })
    }

    /// How many bytes of a blob's beginning were received before the sender went away. 0 if none.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn partial(&self, digest: &Digest) -> Result<u64, StoreError> {
        let path = self.partial_path(digest);
        match fs::symlink_metadata(&path) {
            Ok(metadata) => Ok(metadata.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(failed("look at", &path)(error)),
        }
    }

    /// Begins or resumes to receive a blob of known name and length. Send from [`PartialBlob::offset`] on; dropping it keeps what
    /// came for the next time.
    ///
    /// # Errors
    /// [`StoreError::Busy`] when another process receives the same blob, [`StoreError::Io`].
    pub fn receive(&self, digest: &Digest, size: u64) -> Result<PartialBlob, StoreError> {
        let path = self.partial_path(digest);
        let mut file = loop {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .mode(0o600)
                .open(&path)
                .map_err(failed("open", &path))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(fs::TryLockError::WouldBlock) => return Err(StoreError::Busy { path }),
                Err(fs::TryLockError::Error(error)) => return Err(failed("lock", &path)(error)),
            }
            // Whoever held it may have finished and renamed it just before.
            if place::is_at(&file, &path).map_err(failed("look at", &path))? {
                break file;
            }
        };
        let (mut hash, mut offset) = hash_all(&mut file).map_err(failed("read", &path))?;
        if offset > size {
            file.set_len(0).and_then(|()| file.rewind()).map_err(failed("truncate", &path))?;
            (hash, offset) = (Sha256::new(), 0);
        }
        Ok(PartialBlob { store: self.clone(), digest: *digest, size, path, file, hash, offset, placed: false })
    }

    /// Forgets what was received of a blob. True if there was something.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn forget_partial(&self, digest: &Digest) -> Result<bool, StoreError> {
        remove_file(&self.partial_path(digest))
    }

    /// The blobs that were begun and not finished.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn partials(&self) -> Result<Blobs, StoreError> {
        Blobs::of(self.root().join("partial"))
    }

    /// All blobs with their lengths in bytes, in no order.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn blobs(&self) -> Result<Blobs, StoreError> {
        Blobs::of(self.root().join("blobs/sha256"))
    }

    /// Hashes one blob again and says what it is, which should be its name. None if it is not here.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn rehash(&self, digest: &Digest) -> Result<Option<(Digest, u64)>, StoreError> {
        let mut file = match self.look_into(digest) {
            Ok((file, _)) => file,
            Err(StoreError::Missing { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let (hash, size) = hash_all(&mut file).map_err(failed("read", &self.blob_path(digest)))?;
        Ok(Some((Digest::from_bytes(hash.finalize().into()), size)))
    }

    /// Removes a blob. True if it was here. Whoever has it open keeps it.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn remove(&self, digest: &Digest) -> Result<bool, StoreError> {
        remove_file(&self.blob_path(digest))
    }

    /// Where a blob lies. For programs that must be given a path; they may not write to it.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root().join("blobs/sha256").join(digest.hex())
    }

    fn partial_path(&self, digest: &Digest) -> PathBuf {
        self.root().join("partial").join(digest.hex())
    }
}

pub(crate) fn remove_file(path: &Path) -> Result<bool, StoreError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed("remove", path)(error)),
    }
}

/// Hashes a file from where it stands to its end, and counts.
pub(crate) fn hash_all(file: &mut File) -> io::Result<(Sha256, u64)> {
    let mut hash = Sha256::new();
    let mut block = vec![0; BLOCK];
    let mut count = 0;
    loop {
        match file.read(&mut block) {
            Ok(0) => return Ok((hash, count)),
            Ok(read) => {
                hash.update(&block[..read]);
                count += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// A blob being written. Hashes what passes; dropped, it leaves nothing.
#[derive(Debug)]
pub struct BlobWriter {
    store: Store,
    file: NamedTempFile,
    hash: Sha256,
    written: u64,
    ahead: Option<Ahead>,
}

impl BlobWriter {
    /// Bytes so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// What the bytes so far hash to.
    pub fn digest(&self) -> Digest {
        Digest::from_bytes(self.hash.clone().finalize().into())
    }

    /// Puts the blob in its place and says its name and length in bytes.
    ///
    /// # Errors
    /// [`StoreError::Mismatch`] when it is not `expected`, [`StoreError::Io`]; nothing is stored then.
    pub fn finish(self, expected: Option<Digest>) -> Result<(Digest, u64), StoreError> {
        let actual = Digest::from_bytes(self.hash.finalize().into());
        if let Some(expected) = expected.filter(|expected| *expected != actual) {
            return Err(StoreError::Mismatch { expected, actual });
        }
        if let Some(ahead) = self.ahead {
            ahead.end().map_err(failed("sync", self.file.path()))?;
        }
        if self.store.has(&actual)? != Some(self.written) {
            place::rename_into_place(self.file, &self.store.blob_path(&actual))?;
            self.store.grow();
        }
        Ok((actual, self.written))
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.as_file_mut().write(bytes)?;
        self.hash.update(&bytes[..count]);
        let before = self.written;
        self.written += count as u64;
        if before / AHEAD < self.written / AHEAD {
            match &self.ahead {
                Some(ahead) => ahead.go(),
                None => self.ahead = Some(Ahead::begin(self.file.as_file().try_clone()?)),
            }
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Brings to the disk what was written of a large blob while the rest of it is made: whoever ends it would wait for all of it otherwise, with idle
/// processors. Dropped, it ends by itself.
#[derive(Debug)]
struct Ahead {
    more: SyncSender<()>,
    thread: JoinHandle<io::Result<()>>,
}

impl Ahead {
    fn begin(file: File) -> Self {
        let (more, wanted) = sync_channel(1);
        let ahead = Self {
            more,
            // An error is told once for all who have the file open: it has to be kept.
            thread: std::thread::spawn(move || wanted.iter().try_for_each(|()| file.sync_data())),
        };
        ahead.go();
        ahead
    }

    /// There is more. Whoever is at it already, or has failed, need not be told.
    fn go(&self) {
        let _ = self.more.try_send(());
    }

    fn end(self) -> io::Result<()> {
        drop(self.more);
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread that writes to the disk ended early")))
    }
}

/// A blob of known name and length being received, perhaps over several connections. Dropped, it keeps what came.
#[derive(Debug)]
pub struct PartialBlob {
    store: Store,
    digest: Digest,
    size: u64,
    path: PathBuf,
    file: File,
    hash: Sha256,
    offset: u64,
    placed: bool,
}

impl PartialBlob {
    /// How many bytes are here: where the sender goes on.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The length that was announced, in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Adds bytes at the end.
    ///
    /// # Errors
    /// [`StoreError::Overrun`] when they are more than the blob has, [`StoreError::Io`].
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        if self.size - self.offset < bytes.len() as u64 {
            return Err(StoreError::Overrun { digest: self.digest, size: self.size });
        }
        self.file.write_all(bytes).map_err(failed("write", &self.path))?;
        self.hash.update(bytes);
        self.offset += bytes.len() as u64;
        Ok(())
    }

    /// Throws away what came: the sender begins again.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn restart(&mut self) -> Result<(), StoreError> {
        self.file.set_len(0).and_then(|()| self.file.rewind()).map_err(failed("truncate", &self.path))?;
        (self.hash, self.offset) = (Sha256::new(), 0);
        Ok(())
    }

    /// Verifies the blob and puts it in its place.
    ///
    /// # Errors
    /// [`StoreError::Short`] when bytes are missing: they can still come. [`StoreError::Mismatch`] when the bytes are others: what
    /// came is thrown away, for nobody knows which of it is wrong. [`StoreError::Io`].
    pub fn finish(mut self) -> Result<(), StoreError> {
        if self.offset < self.size {
            return Err(StoreError::Short { digest: self.digest, received: self.offset, size: self.size });
        }
        let actual = Digest::from_bytes(self.hash.clone().finalize().into());
        if actual != self.digest {
            self.restart()?;
            return Err(StoreError::Mismatch { expected: self.digest, actual });
        }
        self.file.sync_all().map_err(failed("sync", &self.path))?;
        self.store.hold(&self.digest)?;
        let blob = self.store.blob_path(&self.digest);
        fs::rename(&self.path, &blob).map_err(failed("create", &blob))?;
        self.placed = true;
        self.store.grow();
        blob.parent().map_or(Ok(()), place::sync_dir)
    }
}

impl Drop for PartialBlob {
    fn drop(&mut self) {
        // An empty beginning is none. It is still locked, so that whoever opened it meanwhile sees that it is gone.
        if !self.placed && self.offset == 0 {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Names and lengths in bytes of blobs.
#[derive(Debug)]
pub struct Blobs {
    path: PathBuf,
    entries: fs::ReadDir,
}

impl Blobs {
    fn of(path: PathBuf) -> Result<Self, StoreError> {
        let entries = fs::read_dir(&path).map_err(failed("list", &path))?;
        Ok(Self { path, entries })
    }
}

impl Iterator for Blobs {
    type Item = Result<(Digest, u64), StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let entry = match self.entries.next()? {
                Ok(entry) => entry,
                Err(error) => return Some(Err(failed("list", &self.path)(error))),
            };
            let Some(digest) = name_of(&entry.file_name()) else {
                continue;
            };
            match entry.metadata() {
                Ok(metadata) => return Some(Ok((digest, metadata.len()))),
                // Removed by somebody else since.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Some(Err(failed("look at", &entry.path())(error))),
            }
        }
    }
}

/// The digest that a file name is the hexadecimal form of.
pub(crate) fn name_of(name: &std::ffi::OsStr) -> Option<Digest> {
    format!("sha256:{}", name.to_str()?).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path().join("store")).expect("a store");
        (dir, store)
    }

    fn temporaries(store: &Store) -> usize {
        fs::read_dir(store.tmp()).expect("listed").count()
    }

    #[test]
    fn what_is_written_is_read_under_its_digest() {
        let (_dir, store) = store();
        let mut writer = store.writer().expect("begun");
        writer.write_all(b"hello ").expect("written");
        writer.write_all(b"world").expect("written");
        let digest = Digest::of(b"hello world");
        assert_eq!(writer.digest(), digest);
        assert_eq!(writer.finish(Some(digest)).expect("stored"), (digest, 11));
        assert_eq!(store.has(&digest).expect("looked"), Some(11));
        assert_eq!(store.read(&digest, 11).expect("read"), b"hello world");
        assert!(matches!(store.read(&digest, 10), Err(StoreError::TooLarge { size: 11, limit: 10, .. })));
        assert_eq!(store.blobs().expect("listed").collect::<Result<Vec<_>, _>>().expect("read"), [(digest, 11)]);
        assert!(store.remove(&digest).expect("removed"));
        assert!(matches!(store.open_blob(&digest), Err(StoreError::Missing { .. })));
        assert_eq!(temporaries(&store), 0);
    }

    #[test]
    fn a_blob_that_is_brought_to_the_disk_while_it_is_written_is_whole() {
        let (_dir, store) = store();
        let mut writer = store.writer().expect("begun");
        let block: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
        let mut hash = Sha256::new();
        for _ in 0..2 * AHEAD / block.len() as u64 + 1 {
            writer.write_all(&block).expect("written");
            hash.update(&block);
        }
        assert!(writer.ahead.is_some());
        let due = (Digest::from_bytes(hash.finalize().into()), 2 * AHEAD + block.len() as u64);
        assert_eq!(writer.finish(None).expect("stored"), due);
        assert_eq!(store.rehash(&due.0).expect("hashed"), Some(due));
    }

    #[test]
    fn a_wrong_digest_and_an_abandoned_writer_leave_nothing() {
        let (_dir, store) = store();
        let mut writer = store.writer().expect("begun");
        writer.write_all(b"other").expect("written");
        assert!(matches!(writer.finish(Some(Digest::of(b"this"))), Err(StoreError::Mismatch { .. })));
        drop(store.writer().expect("begun"));
        assert_eq!(temporaries(&store), 0);
        assert_eq!(store.blobs().expect("listed").count(), 0);
    }

    #[test]
    fn a_blob_is_received_in_parts_by_several_openings() {
        let (_dir, store) = store();
        let content = vec![7; 700_000];
        let digest = Digest::of(&content);
        let mut part = store.receive(&digest, 700_000).expect("begun");
        part.append(&content[..300_000]).expect("appended");
        assert!(matches!(store.receive(&digest, 700_000), Err(StoreError::Busy { .. })));
        drop(part);
        assert_eq!(store.partial(&digest).expect("looked"), 300_000);
        let mut part = store.receive(&digest, 700_000).expect("resumed");
        assert_eq!(part.offset(), 300_000);
        part.append(&content[300_000..]).expect("appended");
        assert!(matches!(part.append(b"x"), Err(StoreError::Overrun { .. })));
        part.finish().expect("finished");
        assert_eq!(store.read(&digest, 700_000).expect("read"), content);
        assert_eq!(store.partial(&digest).expect("looked"), 0);
    }

    #[test]
    fn a_short_part_is_kept_and_a_wrong_one_is_thrown_away() {
        let (_dir, store) = store();
        let digest = Digest::of(b"right");
        let mut part = store.receive(&digest, 5).expect("begun");
        part.append(b"wro").expect("appended");
        assert!(matches!(part.finish(), Err(StoreError::Short { received: 3, .. })));
        let mut part = store.receive(&digest, 5).expect("resumed");
        part.append(b"ng").expect("appended");
        assert!(matches!(part.finish(), Err(StoreError::Mismatch { .. })));
        assert_eq!((store.partial(&digest).expect("looked"), store.has(&digest).expect("looked")), (0, None));
        assert_eq!(store.partials().expect("listed").count(), 0, "an empty beginning is none");
    }

    #[test]
    fn a_blob_that_the_disk_changed_is_not_read() {
        let (_dir, store) = store();
        let digest = store.put(b"good").expect("stored");
        fs::write(store.blob_path(&digest), b"evil").expect("changed");
        assert!(matches!(store.read(&digest, 10), Err(StoreError::Mismatch { .. })));
        assert_eq!(store.rehash(&digest).expect("hashed"), Some((Digest::of(b"evil"), 4)));
        fs::write(store.blob_path(&digest), b"go").expect("truncated");
        store.put(b"good").expect("stored again");
        assert_eq!(store.read(&digest, 10).expect("read"), b"good");
    }
}
