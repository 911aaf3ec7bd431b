//! Packages of PyPI that are pinned by their hashes, and the files in them. They come through pip, so from wherever the machine's own come.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use super::{cache::Cache, layer::Node, sha256_hex};
use crate::{
    LabError,
    command::{command, run},
};

/// A wheel of one version.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wheel {
    /// The package's name.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    /// The file's name.
    pub file: &'static str,
    /// The SHA-256 of the file, in hex.
    pub sha256: &'static str,
}

impl Wheel {
    /// The file, fetched if it is not in the cache, with its hash checked.
    pub(super) fn fetch(&self, cache: &Cache) -> Result<PathBuf, LabError> {
        let dir = cache.path("wheels");
        let path = dir.join(self.file);
        if self.verify(&path).is_ok() {
            return Ok(path);
        }
        let wanted = format!("{}=={}", self.name, self.version);
        run(command("python3", ["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"])
            .args(["--only-binary=:all:", "--python-version", "3.11", "--platform", "manylinux_2_28_x86_64", "--dest"])
            .arg(&dir)
            .arg(&wanted)
            .env("PIP_ROOT_USER_ACTION", "ignore"))
        .map_err(|error| self.refuse(error.to_string()))?;
        self.verify(&path)?;
        Ok(path)
    }

    fn verify(&self, path: &Path) -> Result<(), LabError> {
        let bytes = fs::read(path).map_err(LabError::file("read", path))?;
        let actual = sha256_hex(&bytes);
        if actual == self.sha256 { Ok(()) } else { Err(self.refuse(format!("got sha256 {actual}"))) }
    }

    fn refuse(&self, reason: String) -> LabError {
        LabError::Pinned {
            package: self.name.to_owned(),
            version: self.version.to_owned(),
            sha256: self.sha256.to_owned(),
            reason,
        }
    }

    /// The wheel unpacked in the cache.
    pub(super) fn unpacked(&self, cache: &Cache) -> Result<PathBuf, LabError> {
        let file = self.fetch(cache)?;
        cache.directory(&format!("wheel-{}", &self.sha256[..16]), |dir| {
            run(command("python3", ["-m", "zipfile", "--extract"]).arg(&file).arg(dir)).map(drop)
        })
    }

    /// All files of the wheel, by their paths. What lies in a directory `bin` may be executed.
    pub(super) fn files(&self, cache: &Cache) -> Result<BTreeMap<String, Node>, LabError> {
        let root = self.unpacked(cache)?;
        let mut files = BTreeMap::new();
        let mut open = vec![String::new()];
        while let Some(below) = open.pop() {
            let dir = root.join(&below);
            for entry in fs::read_dir(&dir).map_err(LabError::file("list", &dir))? {
                let entry = entry.map_err(LabError::file("list", &dir))?;
                let path = format!("{below}{}", entry.file_name().to_string_lossy());
                if entry.path().is_dir() {
                    files.insert(path.clone(), Node::Directory { mode: 0o755 });
                    open.push(format!("{path}/"));
                } else {
                    let bytes = fs::read(entry.path()).map_err(LabError::file("read", entry.path()))?;
                    let mode = if below.ends_with("bin/") { 0o755 } else { 0o644 };
                    files.insert(path, Node::File { mode, bytes });
                }
            }
        }
        Ok(files)
    }
}
