//! The file itself: read whole, replaced whole, one writer at a time.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::{BuildSection, FILE_NAME, Lock, LockfileError, PluginSection, format};

/// The longest lock, in bytes: some 100,000 steps.
const LIMIT: u64 = 32 << 20;

/// The text of a file that somebody else may have made: it must be a file, and nothing is waited for.
fn read(path: &Path) -> io::Result<String> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file"));
    }
    let mut text = String::new();
    file.take(LIMIT + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LIMIT {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is longer than 32 MiB"));
    }
    Ok(text)
}

/// Where a project's `jiji.lock` is.
#[derive(Debug, Clone)]
pub struct LockFile {
    path: PathBuf,
}

impl LockFile {
    /// The lock of the project in `root`.
    pub fn of_project(root: &Path) -> Self {
        Self { path: root.join(FILE_NAME) }
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the file says now; the default where there is none.
    ///
    /// # Errors
    /// When it cannot be read, or says something that this jiji does not know.
    pub fn read(&self) -> Result<Lock, LockfileError> {
        self.read_text().and_then(|text| self.parse(text.as_deref()))
    }

    /// Changes the build's section and nothing else, and returns what the file says after.
    ///
    /// The file is read again under the lock, so `change` sees what others wrote meanwhile. It is left untouched, its modification
    /// time included, where nothing changed.
    ///
    /// # Errors
    /// As [`Self::read`], or when it cannot be written; it then holds what it held before.
    pub fn update_build(&self, change: impl FnOnce(&mut BuildSection)) -> Result<Lock, LockfileError> {
        self.update(|lock| change(&mut lock.build))
    }

    /// As [`Self::update_build`], of the plugins' section.
    ///
    /// # Errors
    /// As [`Self::update_build`].
    pub fn update_plugins(&self, change: impl FnOnce(&mut PluginSection)) -> Result<Lock, LockfileError> {
        self.update(|lock| change(&mut lock.plugins))
    }

    fn update(&self, change: impl FnOnce(&mut Lock)) -> Result<Lock, LockfileError> {
        let _guard = self.guard().map_err(|source| LockfileError::Guard { path: self.path.clone(), source })?;
        let before = self.read_text()?;
        let mut lock = self.parse(before.as_deref())?;
        change(&mut lock);
        let after = format::render(&lock, &self.path)?;
        let unchanged = match &before {
            Some(text) => *text == after,
            // A project that resolved nothing needs no file.
            None => lock == Lock::default(),
        };
        if !unchanged {
            self.replace(&after).map_err(|source| LockfileError::Write { path: self.path.clone(), source })?;
        }
        Ok(lock)
    }

    fn read_text(&self) -> Result<Option<String>, LockfileError> {
        match read(&self.path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(LockfileError::Read { path: self.path.clone(), source }),
        }
    }

    fn parse(&self, text: Option<&str>) -> Result<Lock, LockfileError> {
        text.map_or_else(|| Ok(Lock::default()), |text| format::parse(text, &self.path))
    }

    fn directory(&self) -> &Path {
        self.path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
    }

    /// Waits for other writers. The directory is locked and not the file, because the file is replaced, and a lock on what was
    /// replaced would guard nothing. The system lets go of it when the guard is dropped or its process dies.
    fn guard(&self) -> io::Result<File> {
        let directory = File::open(self.directory())?;
        loop {
            match rustix::fs::flock(&directory, rustix::fs::FlockOperation::LockExclusive) {
                Ok(()) => return Ok(directory),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Writes beside the file and renames over it, so that a reader sees the old text or the new one, whole, also after a crash.
    fn replace(&self, text: &str) -> io::Result<()> {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(&self.path).map_or(0o644, |old| old.permissions().mode() & 0o7777);
        let mut new = tempfile::Builder::new()
            .prefix(".jiji.lock.")
            .permissions(std::fs::Permissions::from_mode(mode))
            .tempfile_in(self.directory())?;
        new.write_all(text.as_bytes())?;
        new.as_file().sync_all()?;
        new.persist(&self.path).map_err(|error| error.error)?;
        File::open(self.directory())?.sync_all()
    }
}
