//! Which manifests a repository has, and which tags stand for them: in memory for a session, or in files.
//!
//! On disk (version 1): `version` holds `jiji-names 1` and a newline; `REPOSITORY/manifests/HEX` and `REPOSITORY/tags/TAG` hold the
//! canonical JSON of a descriptor. A repository's slashes are written `%`, which no name contains.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use jiji_model::digest::{Digest, canonical_json};
use jiji_model::image::Descriptor;
use jiji_model::name::{RepositoryName, TagName};
use jiji_store::StoreError;

const VERSION: &str = "jiji-names 1\n";

/// Why tags could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum NamesError {
    /// A newer jiji wrote them, or the directory is something else.
    #[error("open names `{path}`: its version is `{found}`, this program knows `jiji-names 1`")]
    Version {
        /// The directory.
        path: PathBuf,
        /// What the version file says.
        found: String,
    },
    /// A tag should stand for what is no manifest in the store.
    #[error("find manifest `{digest}` in the store")]
    NotAManifest {
        /// The digest.
        digest: Digest,
    },
    /// A file is not a descriptor.
    #[error("read `{path}`")]
    Record {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
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

fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> NamesError + 'a {
    move |source| NamesError::Io { action, path: path.to_owned(), source }
}

#[derive(Debug)]
pub(crate) enum Names {
    Memory(RwLock<BTreeMap<RepositoryName, BTreeMap<TagName, Descriptor>>>),
    Disk(PathBuf),
}

impl Names {
    pub(crate) fn in_memory() -> Self {
        Self::Memory(RwLock::default())
    }

    pub(crate) fn on_disk(root: &Path) -> Result<Self, NamesError> {
        fs::create_dir_all(root).map_err(failed("create", root))?;
        let path = root.join("version");
        match fs::read(&path) {
            Ok(found) if found == VERSION.as_bytes() => {}
            Ok(found) => {
                let found = String::from_utf8_lossy(&found).trim().chars().take(60).collect();
                return Err(NamesError::Version { path: root.to_owned(), found });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => write_atomic(&path, VERSION.as_bytes())?,
            Err(error) => return Err(failed("read", &path)(error)),
        }
        Ok(Self::Disk(root.to_owned()))
    }

    /// Adds a manifest to a repository, and lets a tag stand for it.
    pub(crate) fn add(
        &self,
        repository: &RepositoryName,
        tag: Option<&TagName>,
        manifest: &Descriptor,
    ) -> Result<(), NamesError> {
        match self {
            Self::Memory(names) => {
                let mut names = names.write().unwrap_or_else(PoisonError::into_inner);
                let tags = names.entry(repository.clone()).or_default();
                if let Some(tag) = tag {
                    tags.insert(tag.clone(), manifest.clone());
                }
            }
            Self::Disk(root) => {
                let dir = directory(root, repository);
                let record = canonical_json(manifest);
                // The manifest first: a tag never stands for what the repository does not have.
                write_atomic(&dir.join("manifests").join(manifest.digest.hex()), &record)?;
                if let Some(tag) = tag {
                    write_atomic(&dir.join("tags").join(tag.as_str()), &record)?;
                }
            }
        }
        Ok(())
    }

    /// What a tag stands for.
    pub(crate) fn resolve(&self, repository: &RepositoryName, tag: &TagName) -> Result<Option<Descriptor>, NamesError> {
        match self {
            Self::Memory(names) => {
                let names = names.read().unwrap_or_else(PoisonError::into_inner);
                Ok(names.get(repository).and_then(|tags| tags.get(tag)).cloned())
            }
            Self::Disk(root) => read_record(&directory(root, repository).join("tags").join(tag.as_str())),
        }
    }

    /// A manifest's record in a repository. In memory every repository has every manifest, and there are no records.
    pub(crate) fn manifest(&self, repository: &RepositoryName, digest: &Digest) -> Result<Membership, NamesError> {
        match self {
            Self::Memory(_) => Ok(Membership::Everything),
            Self::Disk(root) => {
                let record = read_record(&directory(root, repository).join("manifests").join(digest.hex()))?;
                Ok(record.map_or(Membership::Absent, Membership::Recorded))
            }
        }
    }

    /// A repository's tags in order. None if there is no such repository.
    pub(crate) fn tags(&self, repository: &RepositoryName) -> Result<Option<Vec<TagName>>, NamesError> {
        match self {
            Self::Memory(names) => {
                let names = names.read().unwrap_or_else(PoisonError::into_inner);
                Ok(names.get(repository).map(|tags| tags.keys().cloned().collect()))
            }
            Self::Disk(root) => {
                let dir = directory(root, repository);
                if !dir.is_dir() {
                    return Ok(None);
                }
                Ok(Some(list(&dir.join("tags"))?.into_iter().filter_map(|name| TagName::new(name).ok()).collect()))
            }
        }
    }

    /// The digests of a repository's manifests, as far as they are recorded.
    pub(crate) fn manifests(&self, repository: &RepositoryName) -> Result<Vec<Digest>, NamesError> {
        match self {
            Self::Memory(names) => {
                let names = names.read().unwrap_or_else(PoisonError::into_inner);
                Ok(names.get(repository).into_iter().flat_map(BTreeMap::values).map(|found| found.digest).collect())
            }
            Self::Disk(root) => {
                let names = list(&directory(root, repository).join("manifests"))?;
                Ok(names.into_iter().filter_map(|name| format!("sha256:{name}").parse().ok()).collect())
            }
        }
    }

    /// All repositories in order.
    pub(crate) fn repositories(&self) -> Result<Vec<RepositoryName>, NamesError> {
        match self {
            Self::Memory(names) => Ok(names.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()),
            Self::Disk(root) => {
                let names = list(root)?.into_iter().filter(|name| name != "version");
                let mut found: Vec<_> =
                    names.filter_map(|name| RepositoryName::new(name.replace('%', "/")).ok()).collect();
                found.sort();
                Ok(found)
            }
        }
    }

    /// Takes a tag away. True if it was there.
    pub(crate) fn remove_tag(&self, repository: &RepositoryName, tag: &TagName) -> Result<bool, NamesError> {
        match self {
            Self::Memory(names) => {
                let mut names = names.write().unwrap_or_else(PoisonError::into_inner);
                Ok(names.get_mut(repository).is_some_and(|tags| tags.remove(tag).is_some()))
            }
            Self::Disk(root) => remove(&directory(root, repository).join("tags").join(tag.as_str())),
        }
    }

    /// Takes a manifest away from a repository, with the tags that stand for it. True if it was there.
    pub(crate) fn remove_manifest(&self, repository: &RepositoryName, digest: &Digest) -> Result<bool, NamesError> {
        for tag in self.tags(repository)?.into_iter().flatten() {
            if self.resolve(repository, &tag)?.is_some_and(|found| found.digest == *digest) {
                self.remove_tag(repository, &tag)?;
            }
        }
        match self {
            Self::Memory(_) => Ok(false),
            Self::Disk(root) => remove(&directory(root, repository).join("manifests").join(digest.hex())),
        }
    }
}

/// Whether a repository has a manifest.
#[derive(Debug)]
pub(crate) enum Membership {
    /// It was pushed there.
    Recorded(Descriptor),
    /// It was not.
    Absent,
    /// The repository has whatever the store has.
    Everything,
}

fn directory(root: &Path, repository: &RepositoryName) -> PathBuf {
    root.join(repository.as_str().replace('/', "%"))
}

fn read_record(path: &Path) -> Result<Option<Descriptor>, NamesError> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| NamesError::Record { path: path.to_owned(), source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}

fn remove(path: &Path) -> Result<bool, NamesError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed("remove", path)(error)),
    }
}

/// The names in a directory, sorted by bytes; none if there is no directory.
fn list(path: &Path) -> Result<Vec<String>, NamesError> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed("list", path)(error)),
    };
    let names = entries.filter_map(|entry| entry.map(|entry| entry.file_name().into_string().ok()).transpose());
    let mut names = names.collect::<io::Result<Vec<_>>>().map_err(failed("list", path))?;
    // Temporary files begin with a percent sign, which no tag, digest or repository does.
    names.retain(|name| !name.starts_with('%'));
    names.sort();
    Ok(names)
}

fn write_atomic(path: &Path, content: &[u8]) -> Result<(), NamesError> {
    let dir = path.parent().unwrap_or_else(|| Path::new("/"));
    let write = || -> io::Result<()> {
        fs::create_dir_all(dir)?;
        let mut file = tempfile::Builder::new().prefix("%").tempfile_in(dir)?;
        file.write_all(content)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        fs::File::open(dir)?.sync_all()
    };
    write().map_err(failed("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(content: &[u8]) -> Descriptor {
        Descriptor {
            media_type: jiji_model::image::MANIFEST.to_owned(),
            digest: Digest::of(content),
            size: content.len() as u64,
        }
    }

    #[test]
    fn names_in_memory_and_on_disk_behave_alike() {
        let dir = tempfile::tempdir().expect("a directory");
        for names in [Names::in_memory(), Names::on_disk(dir.path()).expect("opened")] {
            let repository = RepositoryName::new("shop/web").expect("a name");
            let [old, new] = ["v1", "v2"].map(|tag| TagName::new(tag).expect("a tag"));
            assert_eq!(names.tags(&repository).expect("listed"), None);
            names.add(&repository, Some(&new), &descriptor(b"new")).expect("added");
            names.add(&repository, Some(&old), &descriptor(b"old")).expect("added");
            assert_eq!(names.tags(&repository).expect("listed"), Some(vec![old.clone(), new.clone()]));
            assert_eq!(names.resolve(&repository, &new).expect("resolved"), Some(descriptor(b"new")));
            assert_eq!(names.repositories().expect("listed"), std::slice::from_ref(&repository));
            names.add(&repository, Some(&old), &descriptor(b"new")).expect("moved");
            names.remove_manifest(&repository, &Digest::of(b"new")).expect("removed");
            assert_eq!(names.tags(&repository).expect("listed"), Some(vec![]));
        }
    }

    #[test]
    fn names_of_a_newer_version_are_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("version"), "jiji-names 2\n").expect("written");
        assert!(
            matches!(Names::on_disk(dir.path()), Err(NamesError::Version { found, .. }) if found == "jiji-names 2")
        );
    }
}
