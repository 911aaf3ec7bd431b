//! Debian packages that are pinned by their hashes, and the files in them.
//!
//! The packages come through `apt-get download`, so from wherever the machine's own come. Debian serves a version until the
//! next one replaces it; when that happens the error says so, and a directory named by `JIJI_LAB_DEBS` may hold the files.

use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use super::{cache::Cache, layer::Node, sha256_hex};
use crate::{
    LabError,
    command::{command, run},
};

/// A Debian package of one version, for amd64.
#[derive(Debug, Clone, Copy)]
pub(super) struct Package {
    /// Its name.
    pub name: &'static str,
    /// Its version, with the epoch.
    pub version: &'static str,
    /// The SHA-256 of the .deb file, in hex.
    pub sha256: &'static str,
}

impl Package {
    /// The .deb file, fetched if it is not in the cache, with its hash checked.
    pub(super) fn fetch(&self, cache: &Cache) -> Result<PathBuf, LabError> {
        // The name apt gives the file: the epoch's colon is escaped.
        let file = format!("{}_{}_amd64.deb", self.name, self.version.replace(':', "%3a"));
        let dir = cache.path("debs");
        fs::create_dir_all(&dir).map_err(LabError::file("create", &dir))?;
        let path = dir.join(&file);
        if self.verify(&path).is_ok() {
            return Ok(path);
        }
        if let Some(given) = std::env::var_os("JIJI_LAB_DEBS") {
            let given = Path::new(&given).join(&file);
            self.verify(&given)?;
            return Ok(given);
        }
        let wanted = format!("{}:amd64={}", self.name, self.version);
        run(command("apt-get", ["download", "--quiet", "--quiet", &wanted]).current_dir(&dir)).map_err(|error| {
            self.refuse(format!(
                "{error} (Debian may have replaced this version: pin its successor, or name a directory that holds `{file}` in \
                 JIJI_LAB_DEBS)"
            ))
        })?;
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

    /// All files of the package, by their paths without the leading `./`. Times and owners are left out.
    pub(super) fn files(&self, cache: &Cache) -> Result<BTreeMap<String, Node>, LabError> {
        let deb = self.fetch(cache)?;
        let tar = run(command("dpkg-deb", ["--fsys-tarfile"]).arg(&deb))?;
        let bad = |source| LabError::File { action: "read", path: deb.clone(), source };
        let mut files = BTreeMap::new();
        let mut archive = tar::Archive::new(tar.as_slice());
        for entry in archive.entries().map_err(bad)? {
            let mut entry = entry.map_err(bad)?;
            let path =
                entry.path().map_err(bad)?.to_string_lossy().trim_start_matches("./").trim_end_matches('/').to_owned();
            if path.is_empty() {
                continue;
            }
            let mode = entry.header().mode().map_err(bad)? & 0o7777;
            let kind = entry.header().entry_type();
            let node = if kind.is_dir() {
                Node::Directory { mode }
            } else if kind.is_symlink() {
                let target = entry.link_name().map_err(bad)?.unwrap_or_default().to_string_lossy().into_owned();
                Node::Link { target }
            } else if kind.is_hard_link() {
                let target = entry.link_name().map_err(bad)?.unwrap_or_default();
                let target = target.to_string_lossy().trim_start_matches("./").to_owned();
                files.get(&target).cloned().ok_or_else(|| self.refuse(format!("`{path}` links to nothing")))?
            } else if kind.is_file() {
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes).map_err(bad)?;
                Node::File { mode, bytes }
            } else {
                return Err(self.refuse(format!("`{path}` is neither file, directory nor link")));
            };
            files.insert(path, node);
        }
        Ok(files)
    }
}
