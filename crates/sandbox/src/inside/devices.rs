//! `/dev`: the six devices that are the same everywhere, terminals and shared memory of the step's own.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, makedev};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::place::{attach, clone_flags, mount_point};
use crate::sys;
use crate::wire::{Doing, During as _, Failure};

/// Name, major and minor number (Linux's devices.txt).
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// `MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC`: a device, and nothing but that.
const DEVICE: u64 = 0x2 | 0x8;

/// Mounts `/dev` and fills it.
///
/// The directory itself is `nodev`: each device is a mount of the host's node, so that one which the step creates beside them
/// cannot be opened.
pub(super) fn fill(root: BorrowedFd<'_>, highest: Option<(u32, u32)>) -> Result<(), Failure> {
    let at = mount_point(root, "dev", Doing::Dev)?;
    let dev = new("tmpfs", &[("mode", "0755"), ("size", "64m")], data_only()).during(Doing::Dev)?;
    attach(dev.as_fd(), at.as_fd()).during(Doing::Dev)?;
    for (name, major, minor) in DEVICES {
        device(dev.as_fd(), name, makedev(major, minor)).during(Doing::Dev)?;
    }
    for (name, target) in LINKS {
        rustix::fs::symlinkat(target, &dev, name).during(Doing::Dev)?;
    }
    // Group 5 is `tty` in every distribution, and a constant so that the terminals do not depend on the image.
    let mut options = vec![("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620")];
    if highest.is_none_or(|(_, group)| group >= 5) {
        options.push(("gid", "5"));
    }
    let pts = new("devpts", &options, MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC);
    let shm = new("tmpfs", &[("mode", "1777"), ("size", "64m")], data_only());
    for (name, mount) in [("pts", pts), ("shm", shm)] {
        rustix::fs::mkdirat(&dev, name, Mode::from_raw_mode(0o755)).during(Doing::Dev)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let at = rustix::fs::openat(&dev, name, flags, Mode::empty()).during(Doing::Dev)?;
        attach(mount.during(Doing::Dev)?.as_fd(), at.as_fd()).during(Doing::Dev)?;
    }
    Ok(())
}

fn device(dev: BorrowedFd<'_>, name: &str, number: u64) -> rustix::io::Result<()> {
    let host = rustix::mount::open_tree(rustix::fs::CWD, Path::new("/dev").join(name), clone_flags())?;
    let stat = rustix::fs::fstat(&host)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice || stat.st_rdev != number {
        return Err(Errno::NODEV);
    }
    sys::mount_setattr(host.as_fd(), false, DEVICE).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let at = rustix::fs::openat(dev, name, flags, Mode::from_raw_mode(0o666))?;
    attach(host.as_fd(), at.as_fd())
}

/// Neither setuid programs, devices nor programs.
pub(super) fn data_only() -> MountAttrFlags {
    MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC
}

/// A new file system, attached nowhere. An option with an empty value is a flag.
pub(super) fn new(kind: &str, options: &[(&str, &str)], attributes: MountAttrFlags) -> rustix::io::Result<OwnedFd> {
    let fs = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        if value.is_empty() {
            rustix::mount::fsconfig_set_flag(&fs, *key)?;
        } else {
            rustix::mount::fsconfig_set_string(&fs, *key, *value)?;
        }
    }
    rustix::mount::fsconfig_create(&fs)?;
    rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}
