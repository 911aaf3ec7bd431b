//! Putting files and directories in their place, whole or not at all.
//!
//! A temporary file or directory is locked by its writer from before anybody could take it for abandoned until it is renamed or
//! removed, so that [`remove_abandoned`] needs neither process numbers (which differ between PID namespaces) nor ages.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::{NamedTempFile, TempDir};

use crate::{Caretaker, StoreError, failed};

/// Creates a directory of mode 0700, and its parents with the usual mode, where there is none.
pub(crate) fn create_private(path: &Path) -> Result<(), StoreError> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed("create", parent))?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        other => other.map_err(failed("create", path)),
    }
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(failed("sync", path))
}

/// Whether `file` is what `path` names. A sweeper may have removed it between its creation and its lock.
pub(crate) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let own = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (own.dev(), own.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// A locked temporary file in `tmp`.
pub(crate) fn temp_file(tmp: &Path) -> Result<NamedTempFile, StoreError> {
    let attempt = || loop {
        let file = NamedTempFile::new_in(tmp)?;
        file.as_file().lock()?;
        if is_at(file.as_file(), file.path())? {
            return Ok(file);
        }
    };
    attempt().map_err(failed("create a file in", tmp))
}

/// A temporary directory. Dropped, it is removed, unless it was renamed.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    hands: Hands,
}

impl Scratch {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn remove(self) -> Result<(), StoreError> {
        self.hands.remove_tree(&self.path).map_err(failed("remove", &self.path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        match self.hands.remove_tree(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                // The next sweep tries again.
                tracing::debug!(%error, path = %self.path.display(), "remove a temporary directory");
            }
            _ => {}
        }
    }
}

/// A locked temporary directory in `tmp`, and its lock.
pub(crate) fn temp_dir(tmp: &Path, hands: &Hands) -> Result<(Scratch, File), StoreError> {
    let attempt = || loop {
        let dir = Scratch { path: TempDir::new_in(tmp)?.keep(), hands: hands.clone() };
        let lock = match File::open(dir.path()) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        lock.lock()?;
        if is_at(&lock, dir.path())? {
            return Ok((dir, lock));
        }
    };
    attempt().map_err(failed("create a directory in", tmp))
}

/// A file that is there to be locked, made where there is none.
pub(crate) fn lock_file(path: &Path) -> Result<File, StoreError> {
    let options = File::options().create(true).truncate(false).write(true).open(path);
    options.map_err(failed("open", path))
}

/// Locks what is at `path`, if nobody else has; none if somebody has, or it is gone.
pub(crate) fn lock_unused(path: &Path) -> io::Result<Option<File>> {
    let held = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match held.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => return Ok(None),
        Err(fs::TryLockError::Error(error)) => return Err(error),
    }
    Ok(is_at(&held, path)?.then_some(held))
}

/// Says that something is used now: sets its modification time, where that can be set.
pub(crate) fn touch(path: &Path) {
    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, utimensat};
    let time = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
    let times = Timestamps { last_access: time(UTIME_OMIT), last_modification: time(UTIME_NOW) };
    // It may belong to somebody else; then it only looks older than it is.
    let _ = utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW);
}

/// Bytes that a directory takes on disk with everything in it, and whether all of it could be entered: what cannot counts nothing.
fn disk_usage(dir: &Path) -> io::Result<(u64, bool)> {
    let mut whole = true;
    let own = fs::symlink_metadata(dir)?;
    let mut bytes = own.blocks() * 512;
    let mut linked = std::collections::HashSet::new();
    let mut open = vec![dir.to_owned()];
    while let Some(next) = open.pop() {
        let entries = match fs::read_dir(&next) {
            Ok(entries) => entries,
            // Others may be at work in it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                whole = false;
                continue;
            }
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            let meta = match entry.metadata() {
                Ok(meta) => meta,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    whole = false;
                    continue;
                }
                Err(error) => return Err(error),
            };
            if meta.is_dir() {
                open.push(entry.path());
            } else if meta.nlink() > 1 && !linked.insert((meta.dev(), meta.ino())) {
                continue;
            }
            bytes += meta.blocks() * 512;
        }
    }
    Ok((bytes, whole))
}

/// Who looks into directories and removes them: this process, and where it may not, its caretaker.
#[derive(Debug, Clone, Default)]
pub(crate) struct Hands(Option<Arc<dyn Caretaker>>);

impl Hands {
    pub(crate) fn of(caretaker: Arc<dyn Caretaker>) -> Self {
        Self(Some(caretaker))
    }

    /// Bytes that a directory takes on disk with everything in it. What nobody may enter counts nothing.
    pub(crate) fn disk_usage(&self, dir: &Path) -> io::Result<u64> {
        let (bytes, whole) = disk_usage(dir)?;
        match &self.0 {
            // Who is at work in it may change it meanwhile.
            Some(caretaker) if !whole => Ok(caretaker.measure(dir).unwrap_or(bytes)),
            _ => Ok(bytes),
        }
    }

    /// Removes what is at `path` in a `tmp` if no writer holds it. True if it was removed.
    pub(crate) fn remove_abandoned(&self, path: &Path) -> io::Result<bool> {
        let Some(held) = lock_unused(path)? else { return Ok(false) };
        if held.metadata()?.is_dir() {
            self.remove_tree(path)?
        } else {
            fs::remove_file(path)?
        }
        Ok(true)
    }

    /// Removes a directory with everything in it, also where a layer brought directories that its owner may not enter, or owners of
    /// its own.
    pub(crate) fn remove_tree(&self, path: &Path) -> io::Result<()> {
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            other => return other,
        }
        match open_up(path).and_then(|()| fs::remove_dir_all(path)) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => match &self.0 {
                Some(caretaker) => caretaker.remove(path),
                None => Err(error),
            },
            other => other,
        }
    }
}

fn open_up(dir: &Path) -> io::Result<()> {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            open_up(&entry.path())?;
        }
    }
    Ok(())
}

/// Writes a small file so that `path` holds its old content or its new content, whatever happens.
pub(crate) fn write_atomic(tmp: &Path, path: &Path, content: &[u8]) -> Result<(), StoreError> {
    let mut file = temp_file(tmp)?;
    file.write_all(content).map_err(failed("write", path))?;
    rename_into_place(file, path)
}

/// Makes a temporary file's bytes durable, gives it its name, and makes the name durable.
pub(crate) fn rename_into_place(file: NamedTempFile, path: &Path) -> Result<(), StoreError> {
    file.as_file().sync_all().map_err(failed("sync", path))?;
    file.persist(path).map_err(|error| failed("create", path)(error.error))?;
    path.parent().map_or(Ok(()), sync_dir)
}
