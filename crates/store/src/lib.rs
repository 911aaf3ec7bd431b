//! The content-addressed store: blobs by digest, what steps gave, how layers were compressed, and unpacked layers.
//!
//! Everything in it is named by the SHA-256 of what it is, or of what it was made from, and appears under its name complete or not at
//! all: a temporary name, fsync, rename, fsync of the directory. So any number of processes may use one store at once, and one that
//! is killed leaves nothing but a temporary file that the next [`Store::open`] sweeps away.
//!
//! The store never looks at the network, the environment or the clock, and knows nothing of registries (`registry` of the root
//! package, `registry-shim`) or of how layers are made (`build`). It is plain synchronous file I/O in pure Rust, because `jiji-host`
//! embeds it.
//!
//! # On disk (version 1)
//! | path | content |
//! | --- | --- |
//! | `version` | `jiji-store 1` and a newline; anything else is refused |
//! | `lock` | held shared by every open store, exclusively by [`Store::collect`] |
//! | `leases/NAME` | the blobs that one process works with, 32 bytes each; locked while it lives |
//! | `gate` | held shared while a name is added to a lease, exclusively while [`Store::shrink`] removes |
//! | `collector` | held by the one who shrinks |
//! | `blobs/sha256/HEX` | a blob, the layout of the OCI image-layout specification |
//! | `partial/HEX` | the beginning of a blob that is still being received |
//! | `actions/HEX` | what the step of that key gave, opaque here |
//! | `layers/HEX.CODEC` | canonical JSON of a [`Layer`]: how the tar of that `diff_id` was compressed |
//! | `trees/HEX/root` | an unpacked layer; `trees/HEX/boot` says in which boot of the machine it was unpacked, `trees/HEX/size` what it takes |
//! | `caches/HEX[.N]/root` | what steps keep for their successors under the name that hashes to HEX |
//! | `tmp/` | what is being written, each held by a lock of its writer |
//!
//! A file's modification time is its last use: that of a blob or a record its own, that of an unpacked layer its `boot`'s, that of a cache its
//! directory's.

pub mod archive;
mod blob;
mod cache;
mod layout;
mod lease;
mod place;
mod record;
mod shrink;
mod tree;
mod upkeep;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::{fs, io};

use jiji_model::digest::Digest;

pub use blob::{BlobWriter, Blobs, PartialBlob};
pub use cache::{Cache, CacheUse};
pub use record::Layer;
pub use shrink::{Kind, Share, Shrunk, Usage};
pub use tree::{Tree, TreeWriter};
pub use upkeep::{Collected, Verified};

/// The newest store format this code reads and writes.
pub const VERSION: u32 = 1;

const VERSION_WORD: &str = "jiji-store ";

/// A store on disk. Clones share it.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
    /// Whether what is read counts as used.
    uses: bool,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    lock: fs::File,
    /// Begins with the first blob that is asked for.
    lease: Mutex<Option<lease::Lease>>,
    grown: AtomicBool,
    hands: place::Hands,
}

/// Somebody who may do with unpacked layers and caches what the user who keeps them may not: files in them have owners of their own.
pub trait Caretaker: std::fmt::Debug + Send + Sync {
    /// Removes a directory with everything in it.
    ///
    /// # Errors
    /// It could not be removed.
    fn remove(&self, dir: &Path) -> io::Result<()>;

    /// Bytes that a directory takes on disk with everything in it.
    ///
    /// # Errors
    /// It could not be looked into.
    fn measure(&self, dir: &Path) -> io::Result<u64>;
}

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store was written by a newer jiji, or is none.
    #[error("open store `{root}`: its version is `{found}`, this jiji knows `jiji-store {VERSION}`")]
    Version {
        /// The store's directory.
        root: PathBuf,
        /// What the version file says.
        found: String,
    },
    /// The blob is not in the store.
    #[error("find blob `{digest}` in the store")]
    Missing {
        /// The blob's name.
        digest: Digest,
    },
    /// The bytes are not those that the name says.
    #[error("verify blob `{expected}`: got `{actual}`")]
    Mismatch {
        /// The name.
        expected: Digest,
        /// What the bytes hash to.
        actual: Digest,
    },
    /// A blob is longer than the reader allows.
    #[error("read blob `{digest}`: {size} bytes, at most {limit} are allowed")]
    TooLarge {
        /// The blob's name.
        digest: Digest,
        /// Its length in bytes.
        size: u64,
        /// What the reader allows, in bytes.
        limit: u64,
    },
    /// More bytes of a blob were received than it has.
    #[error("receive blob `{digest}`: more than its {size} bytes were sent")]
    Overrun {
        /// The blob's name.
        digest: Digest,
        /// The length that was announced.
        size: u64,
    },
    /// A blob that is being received was ended before all its bytes came.
    #[error("receive blob `{digest}`: {received} of {size} bytes came")]
    Short {
        /// The blob's name.
        digest: Digest,
        /// What came, in bytes.
        received: u64,
        /// The length that was announced.
        size: u64,
    },
    /// Another process is at work on the same thing.
    #[error("lock `{path}`: another process is using it")]
    Busy {
        /// What is in use.
        path: PathBuf,
    },
    /// A record in the store cannot be read.
    #[error("read record `{path}`: {reason}")]
    Record {
        /// The record's file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A codec's name is not lower-case letters, digits and dashes.
    #[error("name codec `{codec}`: expected lower-case letters, digits and dashes")]
    Codec {
        /// What was given.
        codec: String,
    },
    /// An image layout should be written into a directory that holds something else.
    #[error("write an image layout to `{path}`: the directory holds something else")]
    NotALayout {
        /// The directory.
        path: PathBuf,
    },
    /// A directory is no image layout with an image for this platform.
    #[error("read an image layout from `{path}`: {reason}")]
    NoImage {
        /// The directory.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// The operating system refused.
    #[error("{action} `{path}`")]
    Io {
        /// What was tried, an imperative.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Names an I/O error after what was tried and where.
fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> StoreError + 'a {
    move |source| StoreError::Io { action, path: path.to_owned(), source }
}

impl Store {
    /// Opens the store at `root`, creating it (mode 0700) where there is none, and sweeps away what dead writers left.
    ///
    /// # Errors
    /// [`StoreError::Version`] when a newer jiji wrote it, [`StoreError::Io`] when the directory cannot be used.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, StoreError> {
        Self::open_by(root.into(), place::Hands::default())
    }

    /// The same, with somebody who looks into and removes what this user may not.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with(root: impl Into<PathBuf>, caretaker: Arc<dyn Caretaker>) -> Result<Self, StoreError> {
        Self::open_by(root.into(), place::Hands::of(caretaker))
    }

    fn open_by(root: PathBuf, hands: place::Hands) -> Result<Self, StoreError> {
        place::create_private(&root)?;
        check_version(&root)?;
        for name in ["tmp", "blobs", "blobs/sha256", "partial", "actions", "layers", "trees", lease::LEASES] {
            place::create_private(&root.join(name))?;
        }
        let lock_path = root.join("lock");
        let lock = place::lock_file(&lock_path)?;
        lock.lock_shared().map_err(failed("lock", &lock_path))?;
        let inner = Inner { root, lock, lease: Mutex::new(None), grown: AtomicBool::new(false), hands };
        let store = Self { inner: Arc::new(inner), uses: true };
        if let Err(error) = store.sweep() {
            // What is left over is in nobody's way but the disk's.
            tracing::debug!(%error, "sweep of temporary files");
        }
        Ok(store)
    }

    /// The store's directory.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// The same store for looking around: what is read through it is neither kept from collectors nor younger for it.
    #[must_use]
    pub fn looking(&self) -> Self {
        Self { inner: Arc::clone(&self.inner), uses: false }
    }

    /// Whether anything large was added since the store was opened here.
    pub fn has_grown(&self) -> bool {
        self.inner.grown.load(Ordering::Relaxed)
    }

    fn grow(&self) {
        self.inner.grown.store(true, Ordering::Relaxed);
    }

    /// Says that something is used now.
    fn touch(&self, path: &Path) {
        if self.uses {
            place::touch(path);
        }
    }

    fn hands(&self) -> &place::Hands {
        &self.inner.hands
    }

    fn tmp(&self) -> PathBuf {
        self.inner.root.join("tmp")
    }
}

fn check_version(root: &Path) -> Result<(), StoreError> {
    let path = root.join("version");
    match fs::read(&path) {
        Ok(text) => {
            let text = String::from_utf8_lossy(&text);
            let found = text.strip_prefix(VERSION_WORD).and_then(|rest| rest.strip_suffix('\n'));
            if found.and_then(|number| number.parse().ok()) == Some(VERSION) {
                return Ok(());
            }
            Err(StoreError::Version { root: root.to_owned(), found: text.trim().chars().take(60).collect() })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            place::write_atomic(root, &path, format!("{VERSION_WORD}{VERSION}\n").as_bytes())
        }
        Err(error) => Err(failed("read", &path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_private_and_opens_again() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().join("a/store");
        let digest = Store::open(&root).expect("created").put(b"hello").expect("stored");
        assert_eq!(fs::metadata(&root).expect("there").permissions().mode() & 0o777, 0o700);
        assert_eq!(Store::open(&root).expect("opened").read(&digest, 10).expect("read"), b"hello");
    }

    #[test]
    fn a_newer_store_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("version"), "jiji-store 2\n").expect("written");
        let error = Store::open(dir.path()).expect_err("newer");
        assert!(matches!(&error, StoreError::Version { found, .. } if found == "jiji-store 2"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 1);
    }
}
