//! What the step asks to be laid over the image: directories, files of other images, memory, files that nobody else sees.
//!
//! Everything is opened and prepared before the image is, by descriptor, and attached when the image is whole. Where it goes is
//! resolved below the image's root without following any link; where it comes from, below that image's root.

use std::fs;
use std::io::Write as _;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, OpenTreeFlags};

use super::devices::new;
use super::overlay;
use super::place::{IN_IMAGE, READ_ONLY, attach, is};
use crate::step::{Mount, Source};
use crate::sys;
use crate::wire::{Doing, During as _, Failure, Run, absolute};

/// `MOUNT_ATTR_NODEV` (linux/mount.h): what comes from other images may hold devices.
const NO_DEVICES: u64 = 0x4;

/// A mount that is attached nowhere yet.
pub(super) struct Ready<'a> {
    mount: &'a Mount,
    tree: OwnedFd,
    directory: bool,
}

/// Prepares all mounts of a step, those above others first.
pub(super) fn prepare(run: &Run) -> Result<Vec<Ready<'_>>, Failure> {
    let mut mounts: Vec<&Mount> = run.mounts.iter().collect();
    mounts.sort_by_key(|mount| mount.target.components().count());
    let time = UNIX_EPOCH + Duration::from_secs(run.source_date_epoch);
    mounts.into_iter().enumerate().map(|(number, mount)| open(number, mount, Path::new(&run.scratch), time)).collect()
}

fn open<'a>(number: usize, mount: &'a Mount, scratch: &Path, time: SystemTime) -> Result<Ready<'a>, Failure> {
    let room = scratch.join(format!("mount-{number}"));
    fs::create_dir(&room).during(Doing::Mounts)?;
    let tree = match &mount.source {
        Source::Directory(path) => copy_of(CWD, path).during(Doing::Mounts)?,
        Source::Layers { layers, path, keep: None } => of_layers(layers, path, &room)?,
        Source::Layers { layers, path, keep: Some(keep) } => {
            // What overlayfs notes there says that the mount before was not synced, which nothing here counts on.
            for name in ["work", "root"] {
                match fs::remove_dir_all(keep.join(name)) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(error).during(Doing::Mounts);
                    }
                    _ => {}
                }
            }
            of_layers(layers, path, keep)?
        }
        Source::Socket(path) => {
            let tree = copy_of(CWD, path).during(Doing::Mounts)?;
            if !is(tree.as_fd(), FileType::Socket).during(Doing::Mounts)? {
                return Err(Errno::NOTSOCK).during(Doing::Mounts);
            }
            tree
        }
        Source::Memory { size } => {
            let size = size.map(|size| size.to_string());
            let mut options = vec![("mode", "1777")];
            options.extend(size.as_deref().map(|size| ("size", size)));
            let flags = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
            new("tmpfs", &options, flags).during(Doing::Mounts)?
        }
        Source::File { content, mode, uid, gid } => {
            // Never on a disk: a secret must not be found there later.
            let memory = new("tmpfs", &[("mode", "0700")], MountAttrFlags::MOUNT_ATTR_NODEV).during(Doing::Mounts)?;
            let at = rustix::fs::open(&room, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).during(Doing::Mounts)?;
            attach(memory.as_fd(), at.as_fd()).during(Doing::Mounts)?;
            let path = room.join("file");
            let write = || {
                let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
                file.write_all(&content.0)?;
                std::os::unix::fs::chown(&path, Some(*uid), Some(*gid))?;
                file.set_permissions(fs::Permissions::from_mode(mode & 0o7777))?;
                file.set_modified(time)
            };
            write().during(Doing::Mounts)?;
            copy_of(CWD, &path).during(Doing::Mounts)?
        }
    };
    let read_only = if mount.read_only { READ_ONLY } else { 0 };
    sys::mount_setattr(tree.as_fd(), false, NO_DEVICES | read_only).during(Doing::Mounts)?;
    let directory = is(tree.as_fd(), FileType::Directory).during(Doing::Mounts)?;
    Ok(Ready { mount, tree, directory })
}

fn of_layers(layers: &[PathBuf], path: &Path, room: &Path) -> Result<OwnedFd, Failure> {
    for name in ["upper", "work", "root"] {
        match fs::create_dir(room.join(name)) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && name == "upper" => {}
            other => other.during(Doing::Mounts)?,
        }
    }
    let layers: Vec<&std::ffi::OsStr> = layers.iter().map(|layer| layer.as_os_str()).collect();
    let root = overlay::mount(&layers, room)?;
    let below = path.strip_prefix("/").unwrap_or(path);
    let below = if below.as_os_str().is_empty() { Path::new(".") } else { below };
    let failed = |errno: Errno| Failure::MountSource { path: absolute(below), errno: errno.raw_os_error() };
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let from = rustix::fs::openat2(&root, below, flags, Mode::empty(), IN_IMAGE).map_err(failed)?;
    copy_of(from.as_fd(), Path::new("")).during(Doing::Mounts)
}

/// A copy of the mount that a path or descriptor is in, which shows that path.
fn copy_of(at: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW
        | OpenTreeFlags::AT_EMPTY_PATH;
    rustix::mount::open_tree(at, path, flags)
}

/// Fills the layer of mount points with those of these mounts. What is covered by a mount of its own (`/dev`) needs none.
pub(super) fn mount_points(ready: &[Ready<'_>], below: &Path, time: SystemTime) -> std::io::Result<()> {
    let mut made = Vec::new();
    for Ready { mount, directory, .. } in ready {
        let names: Vec<_> = names(&mount.target).collect();
        if names.first().is_some_and(|first| *first == "dev") {
            continue;
        }
        let mut path = below.to_owned();
        for (number, name) in names.iter().enumerate() {
            path.push(name);
            if fs::symlink_metadata(&path).is_ok() {
                continue;
            }
            if *directory || number + 1 < names.len() {
                fs::create_dir(&path)?;
            } else {
                fs::File::create_new(&path)?;
            }
            made.push(path.clone());
        }
    }
    // At the end, since what is made in a directory is seen in its time.
    made.iter().try_for_each(|path| fs::File::open(path)?.set_modified(time))
}

fn names(path: &Path) -> impl Iterator<Item = &std::ffi::OsStr> {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name),
        _ => None,
    })
}

/// Attaches the mounts to the image.
pub(super) fn attach_all(ready: &[Ready<'_>], root: BorrowedFd<'_>) -> Result<(), Failure> {
    for Ready { mount, tree, directory } in ready {
        let at = target(root, &mount.target, *directory)?;
        attach(tree.as_fd(), at.as_fd()).during(Doing::Mounts)?;
    }
    Ok(())
}

/// Opens what is mounted on, making what is missing of it.
fn target(root: BorrowedFd<'_>, path: &Path, directory: bool) -> Result<OwnedFd, Failure> {
    let refused = |link| Failure::MountTarget { path: path.to_owned(), link };
    let names: Vec<_> = names(path).collect();
    let covered = names.first().is_some_and(|first| *first == "proc" || *first == "sys");
    if names.is_empty() || covered || path.components().any(|part| part == Component::ParentDir) {
        return Err(refused(false));
    }
    let open = |path: &Path| {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        rustix::fs::openat2(root, path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), resolve)
    };
    let mut so_far = PathBuf::from(".");
    let mut here = open(&so_far).during(Doing::Mounts)?;
    for (number, name) in names.iter().enumerate() {
        so_far.push(name);
        here = match open(&so_far) {
            Err(Errno::NOENT) if directory || number + 1 < names.len() => {
                rustix::fs::mkdirat(&here, *name, Mode::from_raw_mode(0o755)).during(Doing::Mounts)?;
                open(&so_far).during(Doing::Mounts)?
            }
            Err(Errno::NOENT) => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                rustix::fs::openat(&here, *name, flags, Mode::from_raw_mode(0o644)).during(Doing::Mounts)?;
                open(&so_far).during(Doing::Mounts)?
            }
            Err(Errno::LOOP) => return Err(refused(true)),
            Err(Errno::NOTDIR) => return Err(refused(false)),
            other => other.during(Doing::Mounts)?,
        };
    }
    let found = FileType::from_raw_mode(rustix::fs::fstat(&here).during(Doing::Mounts)?.st_mode);
    match (found, directory) {
        (FileType::Directory, true) | (FileType::RegularFile, false) => Ok(here),
        (FileType::Symlink, _) => Err(refused(true)),
        _ => Err(refused(false)),
    }
}
