//! The image as the step sees it: layers below, scratch on top.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;

use crate::helper::{by_number, bytes};
use crate::merged;
use crate::wire::{Doing, During as _, Failure};

/// No feature that would leave in the upper directory what only this machine's overlay can read, none that follows what a hostile
/// layer could have put there. With `xino` off the inode numbers are those of the file system below.
const OPTIONS: &str = "redirect_dir=nofollow,metacopy=off,index=off,xino=off";

/// Bytes of options that mount(2) reads: a page, the smallest one there is. It drops what comes after without a word.
const PAGE: usize = 4096;

/// Mounts `layers` (lowest first) below `scratch/upper` on `scratch/root`, and opens its root.
///
/// Devices cannot be opened there (`nodev`), neither those of a hostile layer nor those that the step creates: with `CAP_MKNOD`
/// a step could otherwise read this machine's disks.
pub(super) fn mount(layers: &[&OsStr], scratch: &Path) -> Result<OwnedFd, Failure> {
    let upper = scratch.join("upper");
    if let Some(top) = layers.last() {
        take_root_metadata(Path::new(top), &upper).during(Doing::Layers)?;
    }
    // Descriptors rather than paths: short enough for more than a hundred layers in the page that mount(2) takes, free of the
    // colons and commas that would need quoting, and `/proc/mounts` inside tells nothing of the host's directories.
    let open = |path: &[u8]| {
        rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .during(Doing::Layers)
    };
    // The option lists the highest first.
    let lowers = layers.iter().rev().map(|layer| open(bytes(layer))).collect::<Result<Vec<_>, _>>()?;
    let (upper, work) = (open(bytes(upper.as_os_str()))?, open(bytes(scratch.join("work").as_os_str()))?);
    let lower = lowers.iter().map(by_number).collect::<Vec<_>>().join(":");
    // The marks of a user namespace's overlay lie among the attributes that its users may write; it shows them none of them.
    let marks = if merged::in_namespace() { ",userxattr" } else { "" };
    let data = format!("lowerdir={lower},upperdir={},workdir={},{OPTIONS}{marks}", by_number(&upper), by_number(&work));
    let volatile = format!("{data},volatile");
    if volatile.len() >= PAGE {
        return Err(Failure::TooManyLayers { layers: layers.len() });
    }
    let at = scratch.join("root");
    let attempt = |data: &str| {
        let data = std::ffi::CString::new(data).expect("descriptor numbers and constants hold no zero byte");
        rustix::mount::mount("overlay", &at, "overlay", MountFlags::NODEV, data.as_c_str())
    };
    // Without `volatile` every unmount would wait for the disk, and nothing in a scratch directory needs to survive a crash.
    match attempt(&volatile) {
        Err(Errno::INVAL) => attempt(&data),
        other => other,
    }
    .during(Doing::Overlay)?;
    open(bytes(at.as_os_str()))
}

/// The step sees mode, owner and time of `upper` as those of `/`.
fn take_root_metadata(from: &Path, to: &Path) -> std::io::Result<()> {
    let meta = fs::metadata(from)?;
    std::os::unix::fs::chown(to, Some(meta.uid()), Some(meta.gid()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(meta.mode() & 0o7777))?;
    fs::File::open(to)?.set_modified(meta.modified()?)
}
