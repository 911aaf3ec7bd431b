//! Where packages, programs and images are kept between labs: `JIJI_LAB_CACHE`, else `target/lab-cache` of this checkout.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use crate::LabError;

/// The cache, locked: one process builds at a time, the others wait and then find what it built.
pub(super) struct Cache {
    dir: PathBuf,
    _lock: File,
}

impl Cache {
    /// Waits for the cache.
    pub(super) fn open() -> Result<Self, LabError> {
        let dir = std::env::var_os("JIJI_LAB_CACHE").map_or_else(|| checkout().join("target/lab-cache"), PathBuf::from);
        fs::create_dir_all(&dir).map_err(LabError::file("create", &dir))?;
        let dir = fs::canonicalize(&dir).map_err(LabError::file("find", &dir))?;
        let path = dir.join("lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(LabError::file("open", &path))?;
        lock.lock().map_err(LabError::file("lock", &path))?;
        Ok(Self { dir, _lock: lock })
    }

    /// A path in the cache.
    pub(super) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.join(name)
    }

    /// A directory in the cache; `make` fills a fresh one if there is none, and it appears whole or not at all.
    pub(super) fn directory(
        &self,
        name: &str,
        make: impl FnOnce(&Path) -> Result<(), LabError>,
    ) -> Result<PathBuf, LabError> {
        let path = self.path(name);
        if path.is_dir() {
            return Ok(path);
        }
        let fresh = self.path(format!("{name}.new"));
        if fresh.exists() {
            fs::remove_dir_all(&fresh).map_err(LabError::file("remove", &fresh))?;
        }
        fs::create_dir_all(&fresh).map_err(LabError::file("create", &fresh))?;
        make(&fresh)?;
        fs::rename(&fresh, &path).map_err(LabError::file("replace", &path))?;
        Ok(path)
    }
}

/// The checkout that this laboratory was built from: it is a program for its own developers.
pub(super) fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}
