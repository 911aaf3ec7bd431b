//! The directory a step writes to.
//!
//! A scratch directory serves one step: the overlay's file system refuses a second use of its work directory, and a second step
//! would see the first one's clock in the files' times. It is closed to other users, since what a step leaves may be setuid.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// Room for one step's changes. Dropped, it is removed.
#[derive(Debug)]
pub struct Scratch {
    dir: TempDir,
}

impl Scratch {
    /// Creates one inside `parent`, which must lie on a file system that overlays can write to (ext4, xfs, btrfs, tmpfs; not an
    /// overlay), best on that of the layers.
    ///
    /// # Errors
    /// The directory could not be created.
    pub fn new(parent: &Path) -> io::Result<Self> {
        let closed = Permissions::from_mode(0o700);
        let dir = tempfile::Builder::new().prefix("step-").permissions(closed).tempdir_in(parent)?;
        for name in ["upper", "work", "below", "root"] {
            std::fs::create_dir(dir.path().join(name))?;
        }
        Ok(Self { dir })
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
