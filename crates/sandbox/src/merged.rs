//! A stack of layer directories seen as one tree, without mounting it.
//!
//! Follows overlayfs's own rules (Documentation/filesystems/overlayfs.rst): the highest layer that has a name decides; directories
//! merge until one is opaque; a character device 0:0 says that the name is gone. Links are never followed: a name is looked up in
//! directories only. The directories must not change meanwhile, and nobody but their owner may be able to.

use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::ways;

/// Overlayfs's mark of a directory that hides what is below it, and of one that stands for another.
pub(crate) fn marks() -> Marks {
    const ROOT: Marks = Marks { opaque: "trusted.overlay.opaque", redirect: "trusted.overlay.redirect" };
    // What its option `userxattr` makes of them: attributes of the other kind need a right that no user namespace has.
    const USER: Marks = Marks { opaque: "user.overlay.opaque", redirect: "user.overlay.redirect" };
    if in_namespace() { USER } else { ROOT }
}

/// Names of attributes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Marks {
    pub(crate) opaque: &'static str,
    pub(crate) redirect: &'static str,
}

/// Whether this process is in a user namespace.
pub(crate) fn in_namespace() -> bool {
    static INSIDE: OnceLock<bool> = OnceLock::new();
    *INSIDE.get_or_init(ways::in_user_namespace)
}

/// One directory of the merged tree: the directories it is made of, highest first.
#[derive(Debug, Clone, Default)]
pub(crate) struct MergedDir {
    parts: Vec<PathBuf>,
}

/// What a name refers to in the merged tree.
#[derive(Debug)]
pub(crate) struct Found {
    /// Where it lies.
    pub(crate) path: PathBuf,
    /// `lstat` of it.
    pub(crate) meta: Metadata,
    /// What it contains, if it is a directory.
    pub(crate) dir: Option<MergedDir>,
}

impl MergedDir {
    /// The root of `layers`, lowest first. Overlayfs merges all roots, whatever they are marked with.
    pub(crate) fn root(layers: &[impl AsRef<Path>]) -> Self {
        let parts = layers.iter().rev().map(|layer| layer.as_ref().to_owned()).collect();
        Self { parts }
    }

    /// Looks one name up.
    pub(crate) fn get(&self, name: &OsStr) -> io::Result<Option<Found>> {
        let mut found: Option<Found> = None;
        for part in &self.parts {
            let path = part.join(name);
            let Some(meta) = lstat(&path)? else { continue };
            match &mut found {
                // A directory ends where something else lies below it.
                Some(_) if !meta.is_dir() => break,
                None if is_whiteout(&meta) => return Ok(None),
                None if !meta.is_dir() => return Ok(Some(Found { path, meta, dir: None })),
                Some(Found { dir: Some(dir), .. }) => dir.parts.push(path.clone()),
                _ => {
                    let dir = Some(Self { parts: vec![path.clone()] });
                    found = Some(Found { path: path.clone(), meta, dir });
                }
            }
            if is_opaque(&path)? {
                break;
            }
        }
        Ok(found)
    }

    /// All names, sorted by their bytes.
    pub(crate) fn names(&self) -> io::Result<Vec<std::ffi::OsString>> {
        let mut names = std::collections::BTreeMap::new();
        for part in &self.parts {
            for entry in fs::read_dir(part)? {
                let entry = entry?;
                let gone = entry.file_type()?.is_char_device() && is_whiteout(&entry.metadata()?);
                names.entry(entry.file_name()).or_insert(!gone);
            }
        }
        Ok(names.into_iter().filter_map(|(name, there)| there.then_some(name)).collect())
    }
}

/// `lstat`; nothing where there is nothing.
pub(crate) fn lstat(path: &Path) -> io::Result<Option<Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(meta) => Ok(Some(meta)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether this is overlayfs's mark of a name that is gone.
pub(crate) fn is_whiteout(meta: &Metadata) -> bool {
    meta.file_type().is_char_device() && meta.rdev() == 0
}

/// Whether a directory hides what is below it.
pub(crate) fn is_opaque(dir: &Path) -> io::Result<bool> {
    Ok(xattr(dir, marks().opaque)?.as_deref() == Some(b"y"))
}

/// An extended attribute, without following a link.
pub(crate) fn xattr(path: &Path, name: &str) -> io::Result<Option<Vec<u8>>> {
    // The attributes asked for are small; ERANGE would mean somebody else's idea of them.
    let mut value = [0; 256];
    match rustix::fs::lgetxattr(path, name, &mut value[..]) {
        Ok(length) => Ok(Some(value[..length].to_vec())),
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}
