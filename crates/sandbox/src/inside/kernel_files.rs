//! `/proc` and `/sys`: new ones, of which a step can read what any user could and write nothing but its own processes' files.
//!
//! The step's root is this machine's root to the kernel's permission checks, and some files here need no capability beyond that:
//! a write to `/proc/sys/kernel/core_pattern` would run a program of the step's choice outside. So everything that is not about
//! the step's processes becomes read-only, whatever it is called, and what the kernel keeps from other users is hidden.

use std::ffi::CStr;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, OpenTreeFlags};

use super::devices::{data_only, new};
use super::place::{DATA_ONLY, READ_ONLY, attach, bind, clone_flags, mount_point};
use crate::merged;
use crate::step::Network;
use crate::sys;
use crate::wire::{Doing, During as _, Failure};

/// Readable for everybody and about the host's users all the same.
const HIDDEN: [&[u8]; 2] = [b"keys", b"key-users"];

/// Mounts `/proc` for the pid namespace of this process.
///
/// With the machine's network nothing in it can be written to: below `net` of each process are files of the machine's packet filters and
/// file servers, some of which ask a writer for no capability (`xt_recent`, `rpc`).
pub(super) fn mount_proc(root: BorrowedFd<'_>, network: Network) -> Result<(), Failure> {
    let at = mount_point(root, "proc", Doing::Proc)?;
    let proc = new("proc", &[], data_only()).during(Doing::Proc)?;
    attach(proc.as_fd(), at.as_fd()).during(Doing::Proc)?;
    protect(proc.as_fd())
        .map_err(|e| Failure::System { doing: Doing::Proc, errno: e.raw_os_error().unwrap_or(libc::EIO) })?;
    match network {
        Network::None => Ok(()),
        Network::Machine => sys::mount_setattr(proc.as_fd(), false, READ_ONLY).during(Doing::Proc),
    }
}

fn protect(proc: BorrowedFd<'_>) -> std::io::Result<()> {
    let listed = rustix::fs::openat(proc, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let entries = Dir::new(listed)?.collect::<rustix::io::Result<Vec<_>>>()?;
    let mut names: Vec<&CStr> = entries.iter().map(|entry| entry.file_name()).collect();
    // In an order of their own, which the step's list of mounts would show.
    names.sort_unstable();
    for name in names {
        if name.to_bytes().iter().all(|byte| byte.is_ascii_digit() || *byte == b'.') {
            continue;
        }
        let at = rustix::fs::openat2(
            proc,
            name,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS,
        )?;
        let mode = rustix::fs::fstat(&at)?.st_mode;
        match FileType::from_raw_mode(mode) {
            FileType::Directory => read_only(at.as_fd())?,
            FileType::RegularFile if mode & 0o004 == 0 || HIDDEN.contains(&name.to_bytes()) => {
                let null = rustix::mount::open_tree(CWD, "/dev/null", clone_flags())?;
                sys::mount_setattr(null.as_fd(), false, READ_ONLY)?;
                attach(null.as_fd(), at.as_fd())?;
            }
            FileType::RegularFile if mode & 0o222 != 0 => read_only(at.as_fd())?,
            // `self`, `net`, `mounts`: links into the reader's own process.
            _ => {}
        }
    }
    Ok(())
}

/// Lays what `at` refers to over itself, read-only.
fn read_only(at: BorrowedFd<'_>) -> std::io::Result<()> {
    let flags = clone_flags() | OpenTreeFlags::AT_EMPTY_PATH;
    let copy = rustix::mount::open_tree(at, "", flags)?;
    sys::mount_setattr(copy.as_fd(), false, READ_ONLY | DATA_ONLY)?;
    Ok(attach(copy.as_fd(), at)?)
}

/// Mounts `/sys` for the network namespace of this process, read-only, with the step's number of processors.
pub(super) fn mount_sys(root: BorrowedFd<'_>, scratch: &Path, network: Network) -> Result<(), Failure> {
    let at = mount_point(root, "sys", Doing::Sys)?;
    let sysfs = match new("sysfs", &[], data_only() | MountAttrFlags::MOUNT_ATTR_RDONLY) {
        // It shows the network, and a new one can be mounted by those alone whose network it is.
        Err(Errno::PERM) if network == Network::Machine && merged::in_namespace() => {
            let flags = clone_flags() | OpenTreeFlags::AT_RECURSIVE;
            let own = rustix::mount::open_tree(CWD, "/sys", flags).during(Doing::Sys)?;
            sys::mount_setattr(own.as_fd(), true, READ_ONLY | DATA_ONLY).during(Doing::Sys)?;
            own
        }
        other => other.during(Doing::Sys)?,
    };
    attach(sysfs.as_fd(), at.as_fd()).during(Doing::Sys)?;
    // The machine's serial numbers and boot variables.
    if let Some(firmware) = open_if_there(sysfs.as_fd(), "firmware").during(Doing::Sys)? {
        let empty = new("tmpfs", &[("size", "4k"), ("mode", "0555")], data_only() | MountAttrFlags::MOUNT_ATTR_RDONLY);
        attach(empty.during(Doing::Sys)?.as_fd(), firmware.as_fd()).during(Doing::Sys)?;
    }
    // The C library's sysconf(_SC_NPROCESSORS_ONLN) and _CONF read these, whatever the affinity says.
    for file in ["online", "possible", "present"] {
        let path = Path::new("devices/system/cpu").join(file);
        if let Some(at) = open_if_there(sysfs.as_fd(), &path).during(Doing::Sys)? {
            bind(&scratch.join("bound/cpus"), at.as_fd(), READ_ONLY | DATA_ONLY).during(Doing::Sys)?;
        }
    }
    Ok(())
}

fn open_if_there(dir: BorrowedFd<'_>, path: impl AsRef<Path>) -> rustix::io::Result<Option<rustix::fd::OwnedFd>> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    match rustix::fs::openat2(dir, path.as_ref(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
        Err(Errno::NOENT) => Ok(None),
        other => other.map(Some),
    }
}
