//! Writes a layer: the same entries give the same bytes, on every machine.
//!
//! One pass: entries are written as tar, the tar is hashed (its `diff_id`) and compressed, and what comes of it is hashed (its digest)
//! on its way into the store. Nothing is held but some MiB.
//!
//! What belongs into a layer is not decided here: [`crate::build::copy`] and [`crate::build::execute`] do. This room only knows how
//! entries become bytes: [`LAYER_FORMAT`] names the rules, which are
//! - entries sorted as [`TarPath`] says, none twice, the root itself never;
//! - every entry's modification time is the build's epoch; no other times;
//! - numeric owners alone; modes as given; extended attributes as given (callers pass `security.capability` alone);
//! - the tar dialect of `tar.rs` and the compressions of `gzip.rs` and `zstd.rs`, in pieces that `compress.rs` cuts.
//!
//! The tests hold digests of known layers. A change that alters one is a new layer format.

mod compress;
mod gzip;
mod path;
mod sha;
mod tar;
mod zstd;

use std::collections::BTreeMap;
use std::io::{self, Read, Write as _};

use jiji_model::digest::Digest;
use jiji_model::image::{Compression, Descriptor};
use jiji_store::{BlobWriter, Layer, Store, StoreError};
use sha::Sha;

pub use jiji_model::image::LAYER_FORMAT;
pub use path::{TarPath, WHITEOUT};

/// How much of a content is read at once, in bytes: it stays in a core's own cache while it is hashed and copied.
const BUFFER: usize = 128 * 1024;

/// The name of a compression in the store's records of layers.
pub fn codec(compression: Compression) -> &'static str {
    match compression {
        Compression::Gzip => "gzip-2",
        Compression::Zstd => "zstd-1",
    }
}

/// The layer of this `diff_id` as it was compressed here: as it is wanted, or else in another way.
///
/// # Errors
/// When the store cannot be read.
pub fn known(diff_id: &Digest, wanted: Compression, store: &Store) -> Result<Option<Layer>, StoreError> {
    let others = Compression::ALL.into_iter().filter(|other| *other != wanted);
    for compression in [wanted].into_iter().chain(others) {
        if let Some(layer) = store.layer(diff_id, codec(compression))? {
            return Ok(Some(layer));
        }
    }
    Ok(None)
}

/// What is one for all entries of a layer, and how it becomes a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    /// The modification time of every entry, in seconds since 1970.
    pub epoch: u64,
    /// How it is compressed.
    pub compression: Compression,
    /// On how many cores it is compressed, which changes nothing but how long it takes.
    pub threads: usize,
}

/// One entry of a layer, without its path and its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub node: Node,
    /// Permissions, with the set-user, set-group and sticky bits: at most 0o7777.
    pub mode: u32,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A directory.
    Directory,
    /// A file of so many bytes. A whiteout is an empty one with a name that says so.
    File {
        /// Bytes.
        size: u64,
    },
    /// A symbolic link and what it says.
    Symlink(Vec<u8>),
    /// Another name of a file that came before it in the same layer.
    Hardlink(TarPath),
    /// A character device.
    Character {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    Block {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

impl Entry {
    /// A directory of root's.
    pub fn directory(mode: u32) -> Self {
        Self { node: Node::Directory, mode, uid: 0, gid: 0, xattrs: BTreeMap::new() }
    }

    /// A file of root's.
    pub fn file(mode: u32, size: u64) -> Self {
        Self { node: Node::File { size }, mode, uid: 0, gid: 0, xattrs: BTreeMap::new() }
    }

    /// What removes the path it is the whiteout of.
    pub fn whiteout() -> Self {
        Self::file(0, 0)
    }
}

/// Why a layer could not be written.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The store did not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store's disk did not take it.
    #[error("write a layer")]
    Write(#[source] io::Error),
    /// A file's content could not be read.
    #[error("read the content of `{path}`")]
    Content {
        /// Its path in the layer.
        path: TarPath,
        /// What the system said.
        source: io::Error,
    },
    /// A file had another length or other bytes than when it was looked at.
    #[error("copy `{path}`: it changed while it was read")]
    Changed {
        /// Its path in the layer.
        path: TarPath,
    },
    /// A layer that is to be compressed otherwise cannot be read.
    #[error("read layer `{diff_id}`")]
    Tar {
        /// The layer.
        diff_id: Digest,
        /// What is wrong with it.
        source: io::Error,
    },
    /// A layer that is to be compressed otherwise is another than its record says.
    #[error("read layer `{expected}`: its content is `{actual}`")]
    Other {
        /// The layer.
        expected: Digest,
        /// What its tar hashes to.
        actual: Digest,
    },
}

impl LayerError {
    /// What a person can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Changed { .. } => {
                Some("something writes to the context while it is built; build again when it is done")
            }
            Self::Tar { .. } | Self::Other { .. } => {
                Some("`jiji store verify` removes what is damaged; the step is done again then")
            }
            Self::Store(_) | Self::Write(_) | Self::Content { .. } => None,
        }
    }
}

/// A layer being written. Dropped, it leaves nothing.
pub struct LayerWriter {
    store: Store,
    form: Form,
    /// Of the tar.
    hash: Sha,
    out: compress::Compress<BlobWriter>,
    last: TarPath,
    /// Room for what is read.
    buffer: Vec<u8>,
}

impl LayerWriter {
    /// Begins a layer.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn new(store: &Store, form: Form) -> Result<Self, LayerError> {
        let out = compress::Compress::new(store.writer()?, form.compression, form.threads);
        Ok(Self { store: store.clone(), form, hash: Sha::new(), out, last: TarPath::root(), buffer: Vec::new() })
    }

    /// Adds an entry that has no content: all but files that are not empty.
    ///
    /// # Errors
    /// When the store cannot be written.
    ///
    /// # Panics
    /// When the entries do not come in their order.
    pub fn entry(&mut self, path: &TarPath, entry: &Entry) -> Result<(), LayerError> {
        self.file(path, entry, None, &mut io::empty())
    }

    /// Adds an entry with its content. Where `expected` is given, the content must hash to it.
    ///
    /// # Errors
    /// When the content cannot be read, is not as long as the entry says or not what was expected, or the store cannot be written.
    ///
    /// # Panics
    /// When the entries do not come in their order.
    pub fn file(
        &mut self,
        path: &TarPath,
        entry: &Entry,
        expected: Option<&Digest>,
        content: &mut dyn Read,
    ) -> Result<(), LayerError> {
        let actual = self.put(path, entry, expected.map(|_| Sha::new()), content)?;
        if matches!(entry.node, Node::File { .. }) && actual.as_ref() != expected {
            return Err(LayerError::Changed { path: path.clone() });
        }
        Ok(())
    }

    /// Adds a file of which nobody knows yet what its content hashes to, and says that.
    ///
    /// # Errors
    /// As [`Self::file`].
    ///
    /// # Panics
    /// When the entries do not come in their order.
    pub fn unknown(&mut self, path: &TarPath, entry: &Entry, content: &mut dyn Read) -> Result<Digest, LayerError> {
        let digest = self.put(path, entry, Some(Sha::new()), content)?;
        Ok(digest.unwrap_or_else(|| Digest::of([])))
    }

    /// Adds an entry with its content. The digest is that of a file's content, where a hash for it is given.
    fn put(
        &mut self,
        path: &TarPath,
        entry: &Entry,
        mut hash: Option<Sha>,
        content: &mut dyn Read,
    ) -> Result<Option<Digest>, LayerError> {
        assert!(*path > self.last, "{path:?} was written after {:?}", self.last);
        self.last.clone_from(path);
        self.write(&tar::header(path, entry, self.form.epoch))?;
        let Node::File { size } = entry.node else { return Ok(None) };
        let mut buffer = std::mem::take(&mut self.buffer);
        if buffer.is_empty() {
            buffer.resize(BUFFER, 0);
        }
        let mut left = size;
        while left > 0 {
            let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let count = match content.read(&mut buffer[..most]) {
                Ok(0) => return Err(LayerError::Changed { path: path.clone() }),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => {
                    return Err(LayerError::Content { path: path.clone(), source });
                }
            };
            let bytes = &buffer[..count];
            match &mut hash {
                Some(hash) => self.hash.update_with(hash, bytes),
                None => self.hash.update(bytes),
            }
            self.out.write_all(bytes).map_err(LayerError::Write)?;
            left -= count as u64;
        }
        let more = content.read(&mut buffer[..1]);
        self.buffer = buffer;
        if more.map_err(|source| LayerError::Content { path: path.clone(), source })? > 0 {
            return Err(LayerError::Changed { path: path.clone() });
        }
        let padding = size.next_multiple_of(tar::BLOCK as u64) - size;
        self.write(&[0; tar::BLOCK][..padding as usize])?;
        Ok(hash.map(Sha::finish))
    }

    /// Adds bytes to the tar.
    fn write(&mut self, bytes: &[u8]) -> Result<(), LayerError> {
        self.hash.update(bytes);
        self.out.write_all(bytes).map_err(LayerError::Write)
    }

    /// Ends the layer, puts it into the store and records it there.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn finish(mut self) -> Result<Layer, LayerError> {
        self.write(&[0; 2 * tar::BLOCK])?;
        self.end(None)
    }

    fn end(self, expected: Option<&Digest>) -> Result<Layer, LayerError> {
        let diff_id = self.hash.finish();
        if let Some(expected) = expected.filter(|expected| **expected != diff_id) {
            return Err(LayerError::Other { expected: *expected, actual: diff_id });
        }
        let compression = self.form.compression;
        let blob = self.out.finish().map_err(LayerError::Write)?;
        let (digest, size) = blob.finish(None)?;
        let layer =
            Layer { diff_id, blob: Descriptor { media_type: compression.media_type().to_owned(), digest, size } };
        self.store.record_layer(&layer, codec(compression))?;
        Ok(layer)
    }
}

/// Compresses the tar of a layer as it would be if the layer were written now, and records it. `form` says how; times are as they are.
///
/// # Errors
/// When it cannot be read, is not the tar of this `diff_id`, or the store cannot be written.
pub fn recompress(tar: &mut dyn Read, diff_id: &Digest, form: Form, store: &Store) -> Result<Layer, LayerError> {
    let mut writer = LayerWriter::new(store, form)?;
    let mut buffer = vec![0; BUFFER];
    loop {
        match tar.read(&mut buffer) {
            Ok(0) => return writer.end(Some(diff_id)),
            Ok(count) => writer.write(&buffer[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(LayerError::Tar { diff_id: *diff_id, source }),
        }
    }
}

#[cfg(test)]
mod tests;
