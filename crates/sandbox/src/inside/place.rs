//! The files and directories a step counts on: mount points, `/etc/hosts` and its like, the working directory.
//!
//! None of them may show in the step's changes. Mount points therefore lie in a layer of their own below all others, where
//! nothing has to be created, and so nothing cleaned, for images that lack them.

use std::ffi::OsStr;
use std::fs;
use std::io::Read as _;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags};

use super::devices::{data_only, new};
use super::mounts;
use crate::step::Network;
use crate::sys;
use crate::wire::{Doing, During as _, Failure, Run, absolute};

/// Names of the image are resolved as if its root were `/`, and never through `/proc`'s links to open files.
pub(super) const IN_IMAGE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// What the three files say, unless the step has this machine's network and with it this machine's names and resolver. The host name is fixed,
/// there is no network, and a resolver that asks nobody fails at once.
const ETC: [(&str, &str); 3] = [
    ("hosts", "127.0.0.1\tlocalhost\n::1\tlocalhost\n"),
    ("hostname", "localhost\n"),
    ("resolv.conf", "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"),
];

/// The longest file of this machine's that a step with its network is shown, in bytes.
const MACHINES_LIMIT: u64 = 256 << 10;

/// Fills the lowest layer, and a small file system of its own with what will be bound into the image: bound from the scratch
/// directory, the step's list of mounts would show where that lies.
pub(super) fn prepare(scratch: &Path, run: &Run, mounts: &[mounts::Ready<'_>]) -> Result<(), Failure> {
    let below = scratch.join("below");
    for dir in ["proc", "sys", "dev", "etc"] {
        fs::create_dir(below.join(dir)).during(Doing::Etc)?;
    }
    let bound = scratch.join("bound");
    fs::create_dir(&bound).during(Doing::Etc)?;
    let files = new("tmpfs", &[("mode", "0755"), ("size", "1m")], data_only()).during(Doing::Etc)?;
    let at = rustix::fs::open(&bound, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).during(Doing::Etc)?;
    attach(files.as_fd(), at.as_fd()).during(Doing::Etc)?;
    let cpus = match run.cpus {
        1 => "0\n".to_owned(),
        many => format!("0-{}\n", many - 1),
    };
    fs::write(bound.join("cpus"), cpus).during(Doing::Sys)?;
    // None of these may show the time at which the step began.
    let time = UNIX_EPOCH + Duration::from_secs(run.source_date_epoch);
    for (name, text) in ETC {
        let own = match run.network {
            Network::Machine if name != "hostname" => machines(name),
            Network::Machine | Network::None => None,
        };
        let text = own.unwrap_or_else(|| text.as_bytes().to_vec());
        for (path, text) in [(below.join("etc").join(name), Vec::new()), (bound.join(name), text)] {
            fs::write(&path, text).during(Doing::Etc)?;
            set_time(&path, time).during(Doing::Etc)?;
        }
    }
    mounts::mount_points(mounts, &below, time).during(Doing::Mounts)?;
    set_time(&below.join("etc"), time).during(Doing::Etc)
}

/// What this machine's own file of this name says; none where there is no such file of bearable length.
fn machines(name: &str) -> Option<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = fs::File::from(rustix::fs::open(Path::new("/etc").join(name), flags, Mode::empty()).ok()?);
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut text = Vec::new();
    file.take(MACHINES_LIMIT + 1).read_to_end(&mut text).ok()?;
    (text.len() as u64 <= MACHINES_LIMIT).then_some(text)
}

fn set_time(path: &Path, time: SystemTime) -> std::io::Result<()> {
    fs::File::open(path)?.set_modified(time)
}

/// Lays the three files over the image's own. An image that has none there, a broken link or something else than a file keeps
/// what it has: without a network their absence costs nothing.
pub(super) fn bind_etc(root: BorrowedFd<'_>, scratch: &Path) -> Result<(), Failure> {
    for (name, _) in ETC {
        let at = match rustix::fs::openat2(
            root,
            Path::new("etc").join(name),
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
            IN_IMAGE,
        ) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => continue,
            other => other.during(Doing::Etc)?,
        };
        if is(at.as_fd(), FileType::RegularFile).during(Doing::Etc)? {
            // `/etc/hosts` may be a link to anywhere in the image, also into what is mounted by now.
            bind(&scratch.join("bound").join(name), at.as_fd(), NO_DEVICES).during(Doing::Etc)?;
        }
    }
    Ok(())
}

/// `MOUNT_ATTR_*` (linux/mount.h): the mount flags in the form of the newer mount calls.
pub(super) const READ_ONLY: u64 = 0x1;
/// Neither setuid programs nor devices.
pub(super) const NO_DEVICES: u64 = 0x2 | 0x4;
/// Neither setuid programs, devices nor programs.
pub(super) const DATA_ONLY: u64 = NO_DEVICES | 0x8;

/// Lays the host's file `from` over `at`.
pub(super) fn bind(from: &Path, at: BorrowedFd<'_>, attributes: u64) -> std::io::Result<()> {
    let tree = rustix::mount::open_tree(CWD, from, clone_flags())?;
    sys::mount_setattr(tree.as_fd(), false, attributes)?;
    Ok(attach(tree.as_fd(), at)?)
}

/// A copy of a mount, without following a link at its end.
pub(super) fn clone_flags() -> OpenTreeFlags {
    OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_SYMLINK_NOFOLLOW
}

/// Puts a mount that is not attached anywhere on what `at` refers to.
pub(super) fn attach(mount: BorrowedFd<'_>, at: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let both = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", at, "", both)
}

/// Opens one of the image's top directories to mount on. A link there could point anywhere, so it is refused, like anything that
/// is not a directory; one that a layer deleted is made again.
pub(super) fn mount_point(root: BorrowedFd<'_>, name: &str, doing: Doing) -> Result<OwnedFd, Failure> {
    let open = || {
        rustix::fs::openat2(
            root,
            name,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
        )
    };
    match open() {
        Err(Errno::NOENT) => {
            rustix::fs::mkdirat(root, name, Mode::from_raw_mode(0o755)).during(doing)?;
            open().during(doing)
        }
        Err(Errno::LOOP | Errno::NOTDIR) => Err(Failure::Obstructed { path: absolute(Path::new(name)) }),
        other => other.during(doing),
    }
}

/// Opens the working directory, creating what is missing of it.
pub(super) fn workdir(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Failure> {
    let failed = |errno: Errno| Failure::Workdir { path: path.to_owned(), errno: errno.raw_os_error() };
    let open = |below: &Path| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat2(root, below, flags, Mode::empty(), IN_IMAGE)
    };
    let mut so_far = PathBuf::from(".");
    let mut here = open(&so_far).map_err(failed)?;
    for component in path.components() {
        let name: &OsStr = match component {
            Component::RootDir | Component::CurDir => continue,
            Component::Normal(name) => name,
            // The image's root is its own parent for the kernel; a name like this is a mistake of the caller's.
            Component::ParentDir | Component::Prefix(_) => return Err(failed(Errno::INVAL)),
        };
        so_far.push(name);
        here = match open(&so_far) {
            Err(Errno::NOENT) => {
                rustix::fs::mkdirat(&here, name, Mode::from_raw_mode(0o755)).map_err(failed)?;
                open(&so_far).map_err(failed)?
            }
            other => other.map_err(failed)?,
        };
    }
    Ok(here)
}

/// Whether an open file is of this type.
pub(super) fn is(fd: BorrowedFd<'_>, wanted: FileType) -> rustix::io::Result<bool> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode) == wanted)
}
