//! Directories that steps keep for their successors, by name: what a package manager downloaded, what a compiler made.
//!
//! They are the one thing in the store that is not what its name says it is, so nothing that is named by a digest may come from
//! them unseen: whoever uses one knows that its content may be anything, and that it may begin empty again: what is used by nobody is
//! collected like everything else.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use jiji_model::digest::Digest;

use crate::{Store, StoreError, failed, place};

/// How a directory is used where two want it at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheUse {
    /// Both use it.
    Shared,
    /// The second gets another directory of the same name.
    Private,
    /// The second waits.
    Locked,
}

/// A directory in use.
#[derive(Debug)]
pub struct Cache {
    root: PathBuf,
    new: bool,
    _lock: File,
}

impl Cache {
    /// The directory.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Whether nobody has used it before.
    pub fn is_new(&self) -> bool {
        self.new
    }
}

impl Store {
    /// The directory of a name, made where there is none.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn cache(&self, name: &Digest, how: CacheUse) -> Result<Cache, StoreError> {
        let caches = self.root().join("caches");
        place::create_private(&caches)?;
        let mut number = 0_u32;
        loop {
            let dir = match number {
                0 => caches.join(name.hex()),
                more => caches.join(format!("{}.{more}", name.hex())),
            };
            place::create_private(&dir)?;
            let lock = match File::open(&dir) {
                Ok(lock) => lock,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed("open", &dir)(error)),
            };
            match how {
                CacheUse::Shared => lock.lock_shared().map_err(failed("lock", &dir))?,
                CacheUse::Locked => lock.lock().map_err(failed("lock", &dir))?,
                CacheUse::Private => match lock.try_lock() {
                    Ok(()) => {}
                    Err(fs::TryLockError::WouldBlock) => {
                        number += 1;
                        continue;
                    }
                    Err(fs::TryLockError::Error(error)) => return Err(failed("lock", &dir)(error)),
                },
            }
            // A collector may have been faster.
            if !place::is_at(&lock, &dir).map_err(failed("look at", &dir))? {
                continue;
            }
            self.touch(&dir);
            self.grow();
            let root = dir.join("root");
            let new = match DirBuilder::new().mode(0o755).create(&root) {
                Ok(()) => true,
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => false,
                Err(error) => return Err(failed("create", &root)(error)),
            };
            return Ok(Cache { root, new, _lock: lock });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_is_kept_shared_or_private() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path()).expect("a store");
        let name = Digest::of("pip");
        let first = store.cache(&name, CacheUse::Shared).expect("made");
        assert!(first.is_new());
        fs::write(first.path().join("x"), "").expect("written");
        let second = store.cache(&name, CacheUse::Shared).expect("shared");
        assert_eq!((second.path(), second.is_new()), (first.path(), false));
        let private = store.cache(&name, CacheUse::Private).expect("another");
        assert_ne!(private.path(), first.path());
        drop((first, second));
        let private = store.cache(&name, CacheUse::Private).expect("the first is free");
        assert!(private.path().join("x").exists());
        drop(private);
        assert!(store.cache(&name, CacheUse::Locked).expect("free").path().join("x").exists());
        store.collect(&Default::default()).expect("collected");
        assert!(!store.cache(&name, CacheUse::Shared).expect("kept").is_new());
    }
}
