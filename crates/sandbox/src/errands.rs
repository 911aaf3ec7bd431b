//! What a helper does with directories whose files belong to users of its namespace. Asked for by [`crate::deputy`].

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::changes::{changes, open_below};
use crate::mount_points::forget;
use crate::scratch::empty;
use crate::unpack::{UnpackLimits, unpack};
use crate::wire::{self, Answer, Errand, Name, Reply, Told};

/// How many changes are told at once: a frame holds as many of the longest names.
const AT_ONCE: usize = 1024;

/// Runs one errand and tells what became of it. Errors mean that there is nobody to tell.
pub(crate) fn run(errand: Errand, control: &mut UnixStream) -> io::Result<()> {
    // The modes of what is made are said by whoever asks.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    match errand {
        Errand::Unpack { dir, below, bytes, entries } => {
            let below: Vec<PathBuf> = below.into_iter().map(PathBuf::from).collect();
            let limits = UnpackLimits { bytes, entries };
            let done = unpack(&mut *control, Path::new(&dir), &below, limits);
            answer(control, Answer::Unpacked(done))
        }
        Errand::Changes { upper, layers } => tell_changes(&upper, layers, control),
        Errand::Forget { upper, layers, targets } => {
            let paths = |list: Vec<OsString>| list.into_iter().map(PathBuf::from).collect::<Vec<_>>();
            let done = forget(Path::new(&upper), &paths(layers), &paths(targets)).map(|()| 0);
            answer(control, Answer::Done(done.map_err(Told)))
        }
        Errand::Open { root } => {
            let directory = directory(Path::new(&root))?;
            open_files(&directory, control)
        }
        Errand::Remove { dir } => {
            let done = empty(Path::new(&dir)).and_then(|()| fs::remove_dir(&dir)).map(|()| 0);
            answer(control, Answer::Done(done.map_err(Told)))
        }
        Errand::Measure { dir } => answer(control, Answer::Done(disk_usage(Path::new(&dir)).map_err(Told))),
        Errand::Give { path, uid, gid, mode } => {
            let give = || {
                std::os::unix::fs::lchown(&path, Some(uid), Some(gid))?;
                fs::set_permissions(&path, fs::Permissions::from_mode(mode))
            };
            answer(control, Answer::Done(give().map(|()| 0).map_err(Told)))
        }
    }
}

fn answer(control: &mut UnixStream, answer: Answer) -> io::Result<()> {
    wire::send(control, &Reply::Answer(answer))
}

fn directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

fn tell_changes(upper: &OsString, layers: Vec<OsString>, control: &mut UnixStream) -> io::Result<()> {
    let layers: Vec<PathBuf> = layers.into_iter().map(PathBuf::from).collect();
    let found = match changes(Path::new(upper), &layers) {
        Ok(found) => found,
        Err(error) => return answer(control, Answer::NoChanges(error)),
    };
    let list = found.list();
    let mut told = 0;
    loop {
        let part = &list[told..list.len().min(told + AT_ONCE)];
        told += part.len();
        answer(control, Answer::Changes(part.to_vec(), told < list.len()))?;
        if told == list.len() {
            break;
        }
    }
    open_files(&directory(Path::new(upper))?, control)
}

/// Opens what is asked for below a directory until the caller is done.
fn open_files(directory: &OwnedFd, control: &mut UnixStream) -> io::Result<()> {
    loop {
        let Name(path) = match wire::receive(control) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        };
        let opened: io::Result<File> = open_below(directory, &path);
        match opened {
            Ok(file) => {
                answer(control, Answer::Opened(Ok(())))?;
                wire::send_fd(control, file.as_fd())?;
            }
            Err(error) => answer(control, Answer::Opened(Err(Told(error))))?,
        }
    }
}

/// Bytes that a directory takes on disk with everything in it.
fn disk_usage(dir: &Path) -> io::Result<u64> {
    let mut bytes = fs::symlink_metadata(dir)?.blocks() * 512;
    let mut linked = std::collections::HashSet::new();
    let mut open = vec![dir.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(&next)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            if meta.is_dir() {
                open.push(entry.path());
            } else if meta.nlink() > 1 && !linked.insert((meta.dev(), meta.ino())) {
                continue;
            }
            bytes += meta.blocks() * 512;
        }
    }
    Ok(bytes)
}
