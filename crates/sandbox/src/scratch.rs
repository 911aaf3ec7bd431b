//! The directory a step writes to.
//!
//! A scratch directory serves one step: the overlay's file system refuses a second use of its work directory, and a second step
//! would see the first one's clock in the files' times. It is closed to other users, since what a step leaves may be setuid.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::run::Sandbox;

/// Room for one step's changes. Dropped, it is removed.
#[derive(Debug)]
pub struct Scratch {
    dir: TempDir,
    sandbox: Sandbox,
}

impl Scratch {
    /// Creates one for a step of `sandbox` inside `parent`, which must lie on a file system that overlays can write to (ext4, xfs, btrfs, tmpfs; not an
    /// overlay), best on that of the layers.
    ///
    /// # Errors
    /// The directory could not be created.
    pub fn new(sandbox: &Sandbox, parent: &Path) -> io::Result<Self> {
        let closed = Permissions::from_mode(0o700);
        let dir = tempfile::Builder::new().prefix("step-").permissions(closed).tempdir_in(parent)?;
        for name in ["upper", "work", "below", "root"] {
            fs::create_dir(dir.path().join(name))?;
        }
        Ok(Self { dir, sandbox: sandbox.clone() })
    }

    /// What the step changed, in overlayfs's own form. [`changes`](crate::changes()) reads it.
    pub fn upper(&self) -> PathBuf {
        self.dir.path().join("upper")
    }

    /// The whole directory.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left, the directory's own drop removes, or nobody can.
        if empty(self.dir.path()).is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied) {
            let _ = self.sandbox.remove(self.dir.path());
        }
    }
}

/// Removes everything in a directory, however deep: a step can nest directories deeper than there are descriptors and than a
/// stack has room, so each comes up to the top before it is emptied itself.
pub(crate) fn empty(top: &Path) -> io::Result<()> {
    let mut moved = 0_u64;
    let mut dirs = Vec::new();
    for entry in fs::read_dir(top)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => dirs.push(entry.path()),
            false => fs::remove_file(entry.path())?,
        }
    }
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                let at = top.join(format!(".{moved}"));
                moved += 1;
                fs::rename(entry.path(), &at)?;
                dirs.push(at);
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        fs::remove_dir(&dir)?;
    }
    Ok(())
}
