//! Compiled plugins on disk: with the store's, the only place where bytes become machine code without being compiled first.
//!
//! An entry is named by the digest of the component and by everything that decides what its machine code looks like (wasmtime's version,
//! settings and target), and begins with the digest of its own content. Nothing is ever taken from anywhere but this directory, which
//! belongs to the user and is closed to others. Whatever is wrong with an entry is a miss: the plugin is compiled again.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use jiji_model::digest::Digest;
use wasmtime::Engine;
use wasmtime::component::Component;

/// Longest entry in bytes.
const MAX_ENTRY: u64 = 512 * 1024 * 1024;

/// A directory of compiled plugins.
#[derive(Debug, Clone)]
pub(super) struct Cache {
    dir: PathBuf,
}

impl Cache {
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// The compiled form of the component with this digest, if it is here and fits this engine.
    pub(super) fn get(&self, engine: &Engine, component: &Digest) -> Option<Component> {
        let content = self.read(engine, component).inspect_err(|error| miss(error)).ok()?;
        deserialize(engine, &content).inspect_err(|error| miss(error)).ok()
    }

    fn read(&self, engine: &Engine, component: &Digest) -> io::Result<Vec<u8>> {
        self.check_private()?;
        let mut file = fs::File::open(self.path(engine, component))?;
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.uid() != user() || metadata.mode() & 0o022 != 0 || metadata.len() > MAX_ENTRY
        {
            return Err(io::Error::other("the entry is not the user's alone"));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or_default());
        file.read_to_end(&mut bytes)?;
        match bytes.split_first_chunk::<32>() {
            Some((head, content)) if Digest::of(content).as_bytes() == head => Ok(content.to_vec()),
            _ => Err(io::Error::other("the entry is torn")),
        }
    }

    /// Keeps a compiled component. Failing to is no failure: it is compiled again next time.
    pub(super) fn put(&self, engine: &Engine, component: &Digest, compiled: &Component) {
        let kept = compiled
            .serialize()
            .map_err(io::Error::other)
            .and_then(|content| self.write(&self.path(engine, component), &content));
        if let Err(error) = kept {
            tracing::debug!(%error, "a compiled plugin was not kept");
        }
    }

    fn write(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        self.check_private()?;
        // Files of `tempfile` are the user's alone (0600).
        let mut file = tempfile::NamedTempFile::new_in(&self.dir)?;
        file.write_all(Digest::of(content).as_bytes())?;
        file.write_all(content)?;
        file.persist(path)?;
        Ok(())
    }

    fn check_private(&self) -> io::Result<()> {
        let metadata = fs::symlink_metadata(&self.dir)?;
        if metadata.is_dir() && metadata.uid() == user() && metadata.mode() & 0o077 == 0 {
            return Ok(());
        }
        Err(io::Error::other("the directory is not the user's alone"))
    }

    fn path(&self, engine: &Engine, component: &Digest) -> PathBuf {
        let mut hasher = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        self.dir.join(format!("{}-{:016x}.cwasm", component.hex(), hasher.finish()))
    }
}

fn user() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn miss(error: &dyn std::fmt::Display) {
    tracing::debug!(%error, "no compiled plugin in the cache");
}

#[expect(unsafe_code, reason = "machine code cannot be checked, only trusted: see the comment")]
fn deserialize(engine: &Engine, content: &[u8]) -> wasmtime::Result<Component> {
    // SAFETY: `deserialize` runs what it is given, so the bytes must be what `Component::serialize` wrote. They come from a file that only
    // this user can write, in a directory that only this user can enter (`read`), where only `write` puts anything, renamed into place
    // whole; their digest was compared, so they are not torn. Who can act as this user can replace this program as well. Another version
    // of wasmtime or another configuration has another file name, and `deserialize` compares both again.
    unsafe { Component::deserialize(engine, content) }
}
