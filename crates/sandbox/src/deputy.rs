//! Work on directories whose files belong to users that this process is not: unpacked layers, what steps changed, caches.
//!
//! This machine's root does it himself. For everybody else a helper in the user namespace does, in which all those users are its own, and
//! tells of it or hands over opened files. What is asked is decided on this side; [`crate::errands`] is the other.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{Mode, OFlags};

use crate::changes::{ChangeError, Changes, changes, open_below};
use crate::mount_points::forget;
use crate::run::{Helper, RunError, Sandbox};
use crate::scratch::empty;
use crate::unpack::{UnpackError, UnpackLimits, Unpacked, unpack};
use crate::ways::Way;
use crate::wire::{self, Answer, Errand, Name, Reply, Request, Told};

/// A helper that opens files below a directory.
#[derive(Debug)]
pub(crate) struct Opener(Mutex<Helper>);

impl Opener {
    pub(crate) fn open(&self, path: &Path) -> io::Result<File> {
        let mut helper = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let control = helper.control();
        wire::send(control, &Name(path.to_owned()))?;
        match receive(control)? {
            Answer::Opened(Ok(())) => Ok(File::from(wire::receive_fd(control)?)),
            Answer::Opened(Err(Told(error))) => Err(error),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// Files of unpacked layers: opened here where that is allowed, else by a helper that is started when it is needed first.
#[derive(Debug)]
pub struct Reader {
    sandbox: Sandbox,
    opener: Mutex<Option<(PathBuf, Opener)>>,
}

impl Reader {
    /// Opens a file below `root`, through no link. `path` is relative to it.
    ///
    /// # Errors
    /// It is not a regular file, or the file system failed.
    pub fn open(&self, root: &Path, path: &Path) -> io::Result<File> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(root, flags, Mode::empty())?;
        match open_below(&directory, path) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            other => return other,
        }
        let mut held = self.opener.lock().unwrap_or_else(PoisonError::into_inner);
        if held.as_ref().is_none_or(|(known, _)| known != root) {
            let errand = Errand::Open { root: root.as_os_str().to_owned() };
            let helper = self.sandbox.deputy(errand).map_err(io::Error::other)?;
            *held = helper.map(|helper| (root.to_owned(), Opener(Mutex::new(helper))));
        }
        match &*held {
            Some((_, opener)) => opener.open(path),
            None => Err(io::ErrorKind::PermissionDenied.into()),
        }
    }
}

impl Sandbox {
    /// Unpacks a layer as [`unpack()`] does, with the owners that it names whoever this process is.
    ///
    /// # Errors
    /// [`UnpackError`]; `dir` then holds a part and is to be removed.
    pub fn unpack(
        &self,
        mut archive: impl Read,
        dir: &Path,
        below: &[impl AsRef<Path>],
        limits: UnpackLimits,
    ) -> Result<Unpacked, UnpackError> {
        let errand = Errand::Unpack {
            dir: dir.as_os_str().to_owned(),
            below: below.iter().map(|layer| layer.as_ref().as_os_str().to_owned()).collect(),
            bytes: limits.bytes,
            entries: limits.entries,
        };
        let deputy = self.deputy(errand).map_err(|error| match error {
            RunError::Refused(refusal) => UnpackError::Refused(refusal),
            other => UnpackError::Helper(io::Error::other(other)),
        });
        let Some(mut helper) = deputy? else { return unpack(archive, dir, below, limits) };
        let control = helper.control();
        let mut buffer = vec![0; 128 << 10];
        loop {
            let read = match archive.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(UnpackError::Archive(error)),
            };
            // One that does not listen any more has said why.
            if io::Write::write_all(control, &buffer[..read]).is_err() {
                break;
            }
        }
        let _ = control.shutdown(std::net::Shutdown::Write);
        match receive(control).map_err(UnpackError::Helper)? {
            Answer::Unpacked(done) => done,
            _ => Err(UnpackError::Helper(io::ErrorKind::InvalidData.into())),
        }
    }

    /// Compares what a step left in `upper` with the layers it ran on, as [`changes()`] does.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub fn changes(&self, upper: &Path, layers: &[impl AsRef<Path>]) -> Result<Changes, ChangeError> {
        let errand = Errand::Changes {
            upper: upper.as_os_str().to_owned(),
            layers: layers.iter().map(|layer| layer.as_ref().as_os_str().to_owned()).collect(),
        };
        let failed = |source| ChangeError::Io { path: upper.to_owned(), source };
        let Some(mut helper) = self.deputy(errand).map_err(|error| failed(io::Error::other(error)))? else {
            return changes(upper, layers);
        };
        let mut list = Vec::new();
        loop {
            match receive(helper.control()).map_err(failed)? {
                Answer::Changes(part, more) => {
                    list.extend(part);
                    if !more {
                        return Ok(Changes::told(Opener(Mutex::new(helper)), list));
                    }
                }
                Answer::NoChanges(error) => return Err(error),
                _ => return Err(failed(io::ErrorKind::InvalidData.into())),
            }
        }
    }

    /// Opens files of unpacked layers.
    pub fn reader(&self) -> Reader {
        Reader { sandbox: self.clone(), opener: Mutex::new(None) }
    }

    /// Removes a directory with everything in it, whoever it belongs to.
    ///
    /// # Errors
    /// The file system failed, or no helper could be had.
    pub fn remove(&self, dir: &Path) -> io::Result<()> {
        match self.done(Errand::Remove { dir: dir.as_os_str().to_owned() })? {
            Some(_) => Ok(()),
            None => empty(dir).and_then(|()| fs::remove_dir(dir)),
        }
    }

    /// What a directory takes on disk with everything in it, in bytes, where a helper has to look; none where this process can do so itself.
    ///
    /// # Errors
    /// The file system failed, or no helper could be had.
    pub fn measure(&self, dir: &Path) -> io::Result<Option<u64>> {
        self.done(Errand::Measure { dir: dir.as_os_str().to_owned() })
    }

    /// Gives a file or directory an owner of an image's, and a mode.
    ///
    /// # Errors
    /// The file system failed, or no helper could be had.
    pub fn give(&self, path: &Path, uid: u32, gid: u32, mode: u32) -> io::Result<()> {
        match self.done(Errand::Give { path: path.as_os_str().to_owned(), uid, gid, mode })? {
            Some(_) => Ok(()),
            None => {
                std::os::unix::fs::lchown(path, Some(uid), Some(gid))?;
                fs::set_permissions(path, fs::Permissions::from_mode(mode))
            }
        }
    }

    /// Takes away again what was made in a step's scratch directory only to mount on.
    pub(crate) fn forget(&self, upper: &Path, layers: &[PathBuf], targets: &[PathBuf]) -> io::Result<()> {
        if targets.is_empty() {
            return Ok(());
        }
        let names = |list: &[PathBuf]| list.iter().map(|path| path.as_os_str().to_owned()).collect();
        let upper_name = upper.as_os_str().to_owned();
        let errand = Errand::Forget { upper: upper_name, layers: names(layers), targets: names(targets) };
        match self.done(errand)? {
            Some(_) => Ok(()),
            None => forget(upper, layers, targets),
        }
    }

    fn done(&self, errand: Errand) -> io::Result<Option<u64>> {
        let Some(mut helper) = self.deputy(errand).map_err(io::Error::other)? else { return Ok(None) };
        match receive(helper.control())? {
            Answer::Done(Ok(number)) => Ok(Some(number)),
            Answer::Done(Err(Told(error))) => Err(error),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// A helper that runs an errand; none where this process is root and needs none.
    fn deputy(&self, errand: Errand) -> Result<Option<Helper>, RunError> {
        match self.way()? {
            Way::Root => Ok(None),
            way => self.start(way, &Request::Deputy(errand)).map(|(helper, _)| Some(helper)),
        }
    }
}

fn receive(control: &mut std::os::unix::net::UnixStream) -> io::Result<Answer> {
    match wire::receive(control)? {
        Reply::Answer(answer) => Ok(answer),
        Reply::Failed(failure) => Err(io::Error::other(failure)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}
