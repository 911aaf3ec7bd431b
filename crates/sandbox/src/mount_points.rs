//! Takes away what was made in the scratch directory only so that something could be mounted there.
//!
//! Mount points that an image lacks come from a layer of their own below all others, of which the scratch directory never hears.
//! Where the image removed what is above one, they have to be made in the scratch directory itself, and are no change of the step's.

use std::ffi::OsStr;
use std::io;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::merged::MergedDir;

/// Removes every mount point from `upper`, and the directories it is in, where they are empty and the image lacks them.
pub(crate) fn forget(upper: &Path, layers: &[PathBuf], targets: &[PathBuf]) -> io::Result<()> {
    for target in targets {
        let names = target.components().filter_map(|part| match part {
            Component::Normal(name) => Some(name),
            _ => None,
        });
        let mut names: Vec<&OsStr> = names.collect();
        while let Some(name) = names.pop() {
            if is_there(layers, &names, name)? || !remove(upper, &names, name)? {
                break;
            }
        }
    }
    Ok(())
}

/// Whether the image has this name.
fn is_there(layers: &[PathBuf], parents: &[&OsStr], name: &OsStr) -> io::Result<bool> {
    let mut dir = MergedDir::root(layers);
    for parent in parents {
        match dir.get(parent)?.and_then(|found| found.dir) {
            Some(found) => dir = found,
            None => return Ok(false),
        }
    }
    Ok(dir.get(name)?.is_some())
}

/// Removes an empty directory or file. False where something else is there. The step may have put links anywhere, so none is followed.
fn remove(upper: &Path, parents: &[&OsStr], name: &OsStr) -> io::Result<bool> {
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = rustix::fs::openat(CWD, upper, directory, Mode::empty())?;
    let parent: PathBuf = std::iter::once(OsStr::new(".")).chain(parents.iter().copied()).collect();
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let parent = match rustix::fs::openat2(&top, &parent, directory, Mode::empty(), resolve) {
        // Nothing was made there: what is above may have been.
        Err(Errno::NOENT) => return Ok(true),
        Err(Errno::LOOP | Errno::NOTDIR) => return Ok(false),
        other => other?,
    };
    match rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        Err(Errno::NOTDIR) => {
            let stat = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let empty = rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::RegularFile
                && stat.st_size == 0;
            if empty {
                rustix::fs::unlinkat(&parent, name, AtFlags::empty())?;
            }
            Ok(empty)
        }
        Err(errno) => Err(errno.into()),
    }
}
