//! Unpacked layers: directories under the digest of what they were unpacked from.
//!
//! A tree is a cache of a blob that is here or can be had, and syncing its many small files would cost more than unpacking them
//! again. So nothing of it is synced; instead it says in which boot of the machine it was unpacked, and counts only within that boot.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use jiji_model::digest::Digest;

use crate::place::{self, Scratch};
use crate::{Store, StoreError, failed};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The file that says what a tree takes on disk, in bytes.
pub(crate) const SIZE: &str = "size";

/// An unpacked layer in use: it is not removed while this lives.
#[derive(Debug)]
pub struct Tree {
    root: PathBuf,
    _lock: File,
}

impl Tree {
    /// The directory that corresponds to the layer's `/`. Nobody may write to it.
    pub fn path(&self) -> &Path {
        &self.root
    }
}

/// A directory being filled. Dropped, it is removed.
#[derive(Debug)]
pub struct TreeWriter {
    store: Store,
    dir: Scratch,
    lock: File,
    boot: String,
}

impl Store {
    /// The unpacked layer of this name, if there is one that can be trusted.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn tree(&self, digest: &Digest) -> Result<Option<Tree>, StoreError> {
        let path = self.tree_path(digest);
        let boot = boot_id()?;
        let lock = match File::open(&path) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("open", &path)(error)),
        };
        lock.lock_shared().map_err(failed("lock", &path))?;
        let there = place::is_at(&lock, &path).map_err(failed("look at", &path))?;
        let trusted = there && fs::read_to_string(path.join("boot")).is_ok_and(|found| found == boot);
        if trusted {
            self.touch(&path.join("boot"));
        }
        Ok(trusted.then(|| Tree { root: path.join("root"), _lock: lock }))
    }

    /// Begins a directory on the store's file system: for a layer to unpack, or as room to work in.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn new_tree(&self) -> Result<TreeWriter, StoreError> {
        let boot = boot_id()?;
        let (dir, lock) = place::temp_dir(&self.tmp(), self.hands())?;
        let root = dir.path().join("root");
        // What a container sees as the mode of `/`, where the layer says nothing.
        DirBuilder::new().mode(0o755).create(&root).map_err(failed("create", &root))?;
        Ok(TreeWriter { store: self.clone(), dir, lock, boot })
    }

    /// Removes an unpacked layer. True if it was here.
    ///
    /// # Errors
    /// [`StoreError::Busy`] while somebody uses it, [`StoreError::Io`].
    pub fn remove_tree(&self, digest: &Digest) -> Result<bool, StoreError> {
        let path = self.tree_path(digest);
        let lock = match File::open(&path) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(failed("open", &path)(error)),
        };
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(StoreError::Busy { path }),
            Err(fs::TryLockError::Error(error)) => return Err(failed("lock", &path)(error)),
        }
        if !place::is_at(&lock, &path).map_err(failed("look at", &path))? {
            return Ok(false);
        }
        // Out of its place first, so that nobody ever finds half of it.
        let (dir, _held) = place::temp_dir(&self.tmp(), self.hands())?;
        fs::rename(&path, dir.path().join("removed")).map_err(failed("rename", &path))?;
        dir.remove()?;
        Ok(true)
    }

    /// The names of all unpacked layers, in no order.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn trees(&self) -> Result<Vec<Digest>, StoreError> {
        let path = self.root().join("trees");
        let entries = fs::read_dir(&path).map_err(failed("list", &path))?;
        let names = entries.filter_map(|entry| entry.map(|e| crate::blob::name_of(&e.file_name())).transpose());
        names.collect::<io::Result<_>>().map_err(failed("list", &path))
    }

    fn tree_path(&self, digest: &Digest) -> PathBuf {
        self.root().join("trees").join(digest.hex())
    }
}

impl TreeWriter {
    /// The directory to fill: what corresponds to the layer's `/`.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// Gives the directory its name. Where somebody else was faster, theirs is kept and this one removed.
    ///
    /// # Errors
    /// [`StoreError::Busy`] when an untrusted tree of that name is in use, [`StoreError::Missing`] when it was removed at once by
    /// somebody else, [`StoreError::Io`].
    pub fn publish(self, digest: &Digest) -> Result<Tree, StoreError> {
        let path = self.store.tree_path(digest);
        let mark = self.dir.path().join("boot");
        fs::write(&mark, &self.boot).map_err(failed("write", &mark))?;
        let measure = self.dir.path().join(SIZE);
        let bytes = self.store.hands().disk_usage(self.dir.path()).map_err(failed("measure", self.dir.path()))?;
        fs::write(&measure, bytes.to_string()).map_err(failed("write", &measure))?;
        let store = self.store.clone();
        // A collector may not come between the name and the lock of the one who uses it.
        store.gated(|_| self.publish_now(digest, &path))
    }

    fn publish_now(self, digest: &Digest, path: &Path) -> Result<Tree, StoreError> {
        loop {
            match fs::rename(self.dir.path(), path) {
                Ok(()) => break,
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) =>
                {
                    if let Some(tree) = self.store.tree(digest)? {
                        return Ok(tree);
                    }
                    self.store.remove_tree(digest)?;
                }
                Err(error) => return Err(failed("create", path)(error)),
            }
        }
        let Self { store, lock, .. } = self;
        store.grow();
        drop(lock);
        store.tree(digest)?.ok_or(StoreError::Missing { digest: *digest })
    }
}

/// Whether the tree in this directory was unpacked in this boot of the machine.
pub(crate) fn is_of_this_boot(path: &Path) -> Result<bool, StoreError> {
    let boot = boot_id()?;
    Ok(fs::read_to_string(path.join("boot")).is_ok_and(|found| found == boot))
}

fn boot_id() -> Result<String, StoreError> {
    let path = Path::new(BOOT_ID);
    fs::read_to_string(path).map_err(failed("read", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path().join("store")).expect("a store");
        (dir, store)
    }

    fn unpacked(store: &Store, content: &str) -> TreeWriter {
        let writer = store.new_tree().expect("begun");
        fs::write(writer.path().join("file"), content).expect("written");
        writer
    }

    #[test]
    fn a_published_tree_is_found_and_a_second_one_gives_way() {
        let (_dir, store) = store();
        let name = Digest::of(b"layer");
        assert!(store.tree(&name).expect("looked").is_none());
        let tree = unpacked(&store, "first").publish(&name).expect("published");
        let second = unpacked(&store, "second").publish(&name).expect("given way");
        assert_eq!(tree.path(), second.path());
        assert_eq!(fs::read_to_string(tree.path().join("file")).expect("read"), "first");
        assert_eq!(fs::read_dir(store.tmp()).expect("listed").count(), 0);
    }

    #[test]
    fn a_tree_in_use_is_not_removed() {
        let (_dir, store) = store();
        let name = Digest::of(b"layer");
        let tree = unpacked(&store, "x").publish(&name).expect("published");
        assert!(matches!(store.remove_tree(&name), Err(StoreError::Busy { .. })));
        drop(tree);
        assert!(store.remove_tree(&name).expect("removed"));
        assert!(store.tree(&name).expect("looked").is_none());
    }

    #[test]
    fn a_tree_of_a_former_boot_is_replaced() {
        let (_dir, store) = store();
        let name = Digest::of(b"layer");
        drop(unpacked(&store, "torn").publish(&name).expect("published"));
        fs::write(store.tree_path(&name).join("boot"), "another boot").expect("written");
        assert!(store.tree(&name).expect("looked").is_none());
        let tree = unpacked(&store, "whole").publish(&name).expect("published");
        assert_eq!(fs::read_to_string(tree.path().join("file")).expect("read"), "whole");
    }

    #[test]
    fn an_abandoned_tree_with_closed_directories_leaves_nothing() {
        use std::os::unix::fs::PermissionsExt as _;
        let (_dir, store) = store();
        let writer = unpacked(&store, "x");
        let closed = writer.path().join("closed");
        fs::create_dir(&closed).expect("created");
        fs::write(closed.join("file"), "").expect("written");
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).expect("closed");
        drop(writer);
        assert_eq!(fs::read_dir(store.tmp()).expect("listed").count(), 0);
    }
}
