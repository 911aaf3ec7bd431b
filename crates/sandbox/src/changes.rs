//! What a step changed, as a sorted list.
//!
//! Only the scratch directory is walked; the layers are looked at where it has something. What a step merely touched is no change:
//! a directory that was copied up for a child's sake, a file rewritten with the same bytes, a new time. So a step that does
//! nothing of substance yields nothing, and the same step yields the same list twice. Times are not reported at all, for the same
//! reason; what time a file gets is the layer writer's decision.

use std::collections::{BTreeMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use serde::{Deserialize, Serialize};

use crate::deputy::Opener;
use crate::merged::{self, Found, MergedDir};
use crate::wire::{io_error, text_of_bytes};

/// What the sandbox mounts over. Nothing there is the step's, and if the image lacked it, neither is the directory.
const MOUNT_POINTS: [&str; 3] = ["proc", "sys", "dev"];

/// One difference between the image before and after a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Seen from the image's root, without a leading slash. Empty for the root directory itself, when its mode or owner changed.
    #[serde(with = "text_of_bytes")]
    pub path: PathBuf,
    /// What happened to it.
    pub kind: Kind,
}

/// What happened to a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// It was not there before.
    Added(Node, Meta),
    /// It was there with another content, type, mode, owner or capability.
    Modified(Node, Meta),
    /// It is gone, with all that was below it.
    Whiteout,
}

/// What a path is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Node {
    /// A directory. Where it stands in place of a file, the file is gone; where in place of a directory, whiteouts say what is gone.
    Directory,
    /// A regular file of this many bytes; [`Changes::open`] reads them.
    File {
        /// Its length in bytes.
        size: u64,
    },
    /// Another name of a file that comes before it in the list and that is a [`Node::File`].
    HardLink {
        /// That file's path.
        #[serde(with = "text_of_bytes")]
        to: PathBuf,
    },
    /// A symbolic link.
    Symlink {
        /// Its text.
        #[serde(with = "text_of_bytes")]
        to: OsString,
    },
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// Mode, owner, capability.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Permission bits with setuid, setgid and sticky: 0o7777 at most.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The extended attribute `security.capability`, version 2: the one attribute that is kept, since the others (SELinux labels,
    /// access lists, `user.*`) are this machine's or say nothing to an image.
    pub capability: Option<Vec<u8>>,
}

/// Why the changes could not be told.
#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
pub enum ChangeError {
    /// The file system failed.
    #[error("read `{path}`: {source}")]
    Io {
        /// Where.
        #[serde(with = "text_of_bytes")]
        path: PathBuf,
        /// Why.
        #[serde(with = "io_error")]
        source: io::Error,
    },
    /// The directory is in a form of overlayfs that the sandbox's mounts never create.
    #[error("read `{path}`: it was not written by a step (overlay redirect)")]
    Foreign {
        /// Where.
        #[serde(with = "text_of_bytes")]
        path: PathBuf,
    },
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> ChangeError + '_ {
    |source| ChangeError::Io { path: path.to_owned(), source }
}

/// Changes in the order of their paths' bytes, so that a directory comes before what is in it.
#[derive(Debug)]
pub struct Changes {
    upper: Upper,
    list: Vec<Change>,
}

/// Where the changed files are opened.
#[derive(Debug)]
enum Upper {
    /// Here.
    Directory(OwnedFd),
    /// By somebody who may look into all of them.
    Deputy(Opener),
}

impl Changes {
    /// What a deputy told.
    pub(crate) fn told(opener: Opener, list: Vec<Change>) -> Self {
        Self { upper: Upper::Deputy(opener), list }
    }

    /// All of them.
    pub fn list(&self) -> &[Change] {
        &self.list
    }

    /// Whether the step changed nothing.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Opens a changed file to read its bytes.
    ///
    /// # Errors
    /// It is not a regular file, or the file system failed.
    pub fn open(&self, path: &Path) -> io::Result<File> {
        match &self.upper {
            Upper::Directory(upper) => open_below(upper, path),
            Upper::Deputy(opener) => opener.open(path),
        }
    }
}

/// Opens a file below a directory, through no link, and waits for nothing.
pub(crate) fn open_below(directory: &OwnedFd, path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let file = File::from(rustix::fs::openat2(directory, path, flags, Mode::empty(), resolve)?);
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(file)
}

impl IntoIterator for Changes {
    type Item = Change;
    type IntoIter = std::vec::IntoIter<Change>;

    fn into_iter(self) -> Self::IntoIter {
        self.list.into_iter()
    }
}

impl<'a> IntoIterator for &'a Changes {
    type Item = &'a Change;
    type IntoIter = std::slice::Iter<'a, Change>;

    fn into_iter(self) -> Self::IntoIter {
        self.list.iter()
    }
}

/// Compares what a step left in `upper` with the layers it ran on, lowest first.
///
/// # Errors
/// [`ChangeError`].
pub fn changes(upper: &Path, layers: &[impl AsRef<Path>]) -> Result<Changes, ChangeError> {
    let lower = MergedDir::root(layers);
    let mut walk = Walk::default();
    walk.root(upper, layers.last().map(AsRef::as_ref))?;
    walk.pending.push(Pending { path: PathBuf::new(), upper: upper.to_owned(), lower, opaque: false });
    while let Some(dir) = walk.pending.pop() {
        walk.directory(&dir)?;
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(upper, flags, Mode::empty()).map_err(|errno| at(upper)(errno.into()))?;
    Ok(Changes { upper: Upper::Directory(opened), list: walk.finish() })
}

/// A directory still to be walked.
struct Pending {
    path: PathBuf,
    upper: PathBuf,
    /// What was there before; empty where nothing was, or something else.
    lower: MergedDir,
    /// Whether it hides what was there: it is marked so, or it was made in one that is, which needs no mark.
    opaque: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Was {
    Absent,
    Different,
    Same,
}

/// One of several names of a file.
struct Name {
    path: PathBuf,
    was: Was,
    /// The file that had this name before, by device and inode.
    before: Option<(u64, u64)>,
    size: u64,
    meta: Meta,
}

#[derive(Default)]
struct Walk {
    pending: Vec<Pending>,
    list: Vec<Change>,
    /// Names of one file, by device and inode.
    links: BTreeMap<(u64, u64), Vec<Name>>,
}

impl Walk {
    fn root(&mut self, upper: &Path, top: Option<&Path>) -> Result<(), ChangeError> {
        let Some(top) = top else { return Ok(()) };
        let now = meta(upper, &fs::metadata(upper).map_err(at(upper))?)?;
        let before = meta(top, &fs::metadata(top).map_err(at(top))?)?;
        if now != before {
            self.list.push(Change { path: PathBuf::new(), kind: Kind::Modified(Node::Directory, now) });
        }
        Ok(())
    }

    fn directory(&mut self, dir: &Pending) -> Result<(), ChangeError> {
        let mut seen: HashSet<OsString> = HashSet::new();
        for entry in fs::read_dir(&dir.upper).map_err(at(&dir.upper))? {
            let name = entry.map_err(at(&dir.upper))?.file_name();
            if dir.path.as_os_str().is_empty() && MOUNT_POINTS.iter().any(|mount| name == *mount) {
                seen.insert(name);
                continue;
            }
            self.entry(dir, &name)?;
            seen.insert(name);
        }
        if dir.opaque {
            for name in dir.lower.names().map_err(at(&dir.upper))? {
                if !seen.contains(&name) {
                    self.list.push(Change { path: dir.path.join(name), kind: Kind::Whiteout });
                }
            }
        }
        Ok(())
    }

    fn entry(&mut self, dir: &Pending, name: &OsStr) -> Result<(), ChangeError> {
        let upper = dir.upper.join(name);
        let path = dir.path.join(name);
        let stat = fs::symlink_metadata(&upper).map_err(at(&upper))?;
        let before = dir.lower.get(name).map_err(at(&upper))?;
        let kind = stat.file_type();
        if merged::is_whiteout(&stat) || kind.is_socket() {
            // A socket is an endpoint of a process that is gone.
            if before.is_some() {
                self.list.push(Change { path, kind: Kind::Whiteout });
            }
            return Ok(());
        }
        let now = meta(&upper, &stat)?;
        let node = node(&upper, &stat)?;
        let was = match &before {
            None => Was::Absent,
            Some(before) if same(&upper, &stat, &now, before)? => Was::Same,
            Some(_) => Was::Different,
        };
        let file = before.as_ref().map(|before| (before.meta.dev(), before.meta.ino()));
        if stat.is_dir() {
            if merged::xattr(&upper, merged::marks().redirect).map_err(at(&upper))?.is_some() {
                return Err(ChangeError::Foreign { path: upper });
            }
            let lower = before.and_then(|found| found.dir).unwrap_or_default();
            let opaque = dir.opaque || merged::is_opaque(&upper).map_err(at(&upper))?;
            self.pending.push(Pending { path: path.clone(), upper, lower, opaque });
        }
        if let (Node::File { size }, true) = (&node, stat.nlink() > 1) {
            let names = self.links.entry((stat.dev(), stat.ino())).or_default();
            names.push(Name { path, was, before: file, size: *size, meta: now });
            return Ok(());
        }
        self.put(path, was, node, now);
        Ok(())
    }

    fn put(&mut self, path: PathBuf, was: Was, node: Node, meta: Meta) {
        let kind = match was {
            Was::Same => return,
            Was::Absent => Kind::Added(node, meta),
            Was::Different => Kind::Modified(node, meta),
        };
        self.list.push(Change { path, kind });
    }

    fn finish(mut self) -> Vec<Change> {
        for mut names in std::mem::take(&mut self.links).into_values() {
            // One name that is news takes the others with it: a link needs its file in the same layer. That they are one file now
            // is news, too.
            if names.iter().all(|name| name.was == Was::Same && name.before == names[0].before) {
                continue;
            }
            names.sort_by(|a, b| bytes(&a.path).cmp(bytes(&b.path)));
            let first = names[0].path.clone();
            for Name { path, was, size, meta, .. } in names {
                let was = if was == Was::Same { Was::Different } else { was };
                let node = if path == first { Node::File { size } } else { Node::HardLink { to: first.clone() } };
                self.put(path, was, node, meta);
            }
        }
        self.list.sort_by(|a, b| bytes(&a.path).cmp(bytes(&b.path)));
        self.list
    }
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

fn node(path: &Path, stat: &Metadata) -> Result<Node, ChangeError> {
    let (major, minor) = (rustix::fs::major(stat.rdev()), rustix::fs::minor(stat.rdev()));
    let kind = stat.file_type();
    Ok(if kind.is_dir() {
        Node::Directory
    } else if kind.is_symlink() {
        Node::Symlink { to: fs::read_link(path).map_err(at(path))?.into_os_string() }
    } else if kind.is_char_device() {
        Node::CharDevice { major, minor }
    } else if kind.is_block_device() {
        Node::BlockDevice { major, minor }
    } else if kind.is_fifo() {
        Node::Fifo
    } else {
        Node::File { size: stat.len() }
    })
}

fn meta(path: &Path, stat: &Metadata) -> Result<Meta, ChangeError> {
    let capability = if stat.is_file() {
        merged::xattr(path, "security.capability").map_err(at(path))?.map(version_2)
    } else {
        None
    };
    Ok(Meta { mode: stat.mode() & 0o7777, uid: stat.uid(), gid: stat.gid(), capability })
}

/// Version 3 of the attribute is version 2 with the user namespace's root appended (linux/capability.h).
fn version_2(mut value: Vec<u8>) -> Vec<u8> {
    const REVISION: usize = 3;
    if value.len() == 24 && value[REVISION] == 3 {
        value.truncate(20);
        value[REVISION] = 2;
    }
    value
}

fn same(upper: &Path, stat: &Metadata, now: &Meta, before: &Found) -> Result<bool, ChangeError> {
    let old = &before.meta;
    if stat.file_type() != old.file_type() || *now != meta(&before.path, old)? {
        return Ok(false);
    }
    let kind = stat.file_type();
    if kind.is_symlink() {
        let text = |path: &Path| fs::read_link(path).map_err(at(path));
        return Ok(text(upper)? == text(&before.path)?);
    }
    if kind.is_char_device() || kind.is_block_device() {
        return Ok(stat.rdev() == old.rdev());
    }
    if kind.is_file() {
        return Ok(stat.len() == old.len() && same_bytes(upper, &before.path)?);
    }
    Ok(true)
}

fn same_bytes(a: &Path, b: &Path) -> Result<bool, ChangeError> {
    let (mut left, mut right) = (open(a)?, open(b)?);
    let (mut one, mut other) = (vec![0; 128 << 10], vec![0; 128 << 10]);
    loop {
        let read = left.read(&mut one).map_err(at(a))?;
        if read == 0 {
            // Their lengths were equal.
            return Ok(true);
        }
        match right.read_exact(&mut other[..read]) {
            Ok(()) if one[..read] == other[..read] => {}
            Ok(()) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(at(b)(error)),
        }
    }
}

fn open(path: &Path) -> Result<File, ChangeError> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| at(path)(errno.into()))?;
    Ok(File::from(file))
}
