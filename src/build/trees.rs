//! Layers as directories: unpacked into the store where something has to read files or run in them.
//!
//! Most builds of most days need none of this. A layer is unpacked over those below it, so a directory is named by the whole stack.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use jiji_model::digest::Digest;
use jiji_sandbox::{Reader, Sandbox};
use jiji_store::{Layer, Store, StoreError, Tree};
use sha2::{Digest as _, Sha256};

use super::rootfs::{IndexError, Layers};
use super::stage::turns::Turns;

/// Stages that begin from the same image want the same directory at once: one of them unpacks.
static UNPACKING: LazyLock<Turns<Digest>> = LazyLock::new(Turns::default);

/// Why a layer could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The store could not give or take it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] IndexError),
    /// This machine cannot give files the owners that an image names.
    #[error(transparent)]
    Refused(#[from] jiji_sandbox::Refusal),
    /// It cannot be unpacked.
    #[error("unpack layer `{digest}`")]
    Unpack {
        /// The layer's blob.
        digest: Digest,
        /// What went wrong.
        source: jiji_sandbox::UnpackError,
    },
    /// Its tar is another than the image's configuration says.
    #[error("unpack layer `{digest}`: its content is `{actual}`, the image's configuration says `{expected}`")]
    DiffId {
        /// The layer's blob.
        digest: Digest,
        /// What the configuration says.
        expected: Digest,
        /// What the tar hashes to.
        actual: Digest,
    },
}

impl TreeError {
    /// What a person can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Refused(refusal) => Some(refusal.hint()),
            Self::Unpack { source, .. } => source.hint(),
            Self::Store(_) | Self::Read(_) | Self::DiffId { .. } => None,
        }
    }
}

/// Unpacked layers in use, lowest first.
#[derive(Debug)]
pub struct Trees {
    trees: Vec<(Digest, Tree)>,
    reader: Reader,
}

impl Trees {
    /// Unpacks what is not unpacked yet. Files get their owners in the way that `sandbox` takes.
    ///
    /// # Errors
    /// When a layer cannot be read or unpacked.
    pub fn of(layers: &[Layer], store: &Store, sandbox: &Sandbox) -> Result<Self, TreeError> {
        let owners = sandbox.way()?.mark();
        let mut trees: Vec<(Digest, Tree)> = Vec::with_capacity(layers.len());
        for (number, layer) in layers.iter().enumerate() {
            let diff_ids: Vec<Digest> = layers[..=number].iter().map(|layer| layer.diff_id).collect();
            let mut name = serde_json::json!({"tree": 1, "layers": diff_ids});
            if let Some(owners) = &owners {
                name["owners"] = owners.clone().into();
            }
            let name = Digest::of_json(&name);
            let tree = UNPACKING.take(name, || match store.tree(&name)? {
                Some(tree) => Ok::<_, TreeError>(tree),
                None => {
                    let writer = store.new_tree()?;
                    let below: Vec<&Path> = trees.iter().map(|(_, tree)| tree.path()).collect();
                    unpack(layer, &writer.path(), &below, store, sandbox)?;
                    Ok(writer.publish(&name)?)
                }
            })?;
            trees.push((layer.diff_id, tree));
        }
        Ok(Self { trees, reader: sandbox.reader() })
    }

    /// The directories, lowest first.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.trees.iter().map(|(_, tree)| tree.path().to_owned()).collect()
    }

    /// Opens a file that one of the layers has, through no link.
    ///
    /// # Errors
    /// When it is not there, no file, or cannot be opened.
    pub fn open(&self, diff_id: &Digest, path: &Path) -> io::Result<File> {
        let found = self.trees.iter().find(|(own, _)| own == diff_id);
        let (_, tree) = found.ok_or(io::ErrorKind::NotFound)?;
        self.reader.open(tree.path(), path)
    }
}

fn unpack(layer: &Layer, into: &Path, below: &[&Path], store: &Store, sandbox: &Sandbox) -> Result<(), TreeError> {
    let digest = layer.blob.digest;
    let mut tar = Hashing { inner: Layers::new(store).open(&layer.blob)?, hash: Sha256::new() };
    let limits = jiji_sandbox::UnpackLimits::default();
    let broken = |source| TreeError::Unpack { digest, source };
    sandbox.unpack(&mut tar, into, below, limits).map_err(broken)?;
    // What comes after the archive's end belongs to the digest all the same.
    io::copy(&mut tar, &mut io::sink()).map_err(|source| IndexError::Read { digest, source })?;
    let actual = Digest::from_bytes(tar.hash.finalize().into());
    if actual != layer.diff_id {
        return Err(TreeError::DiffId { digest, expected: layer.diff_id, actual });
    }
    Ok(())
}

struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}
