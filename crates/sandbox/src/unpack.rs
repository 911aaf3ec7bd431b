//! Unpacks one layer's archive into a directory that overlays can stack.
//!
//! The archive is hostile. Whatever it names is looked up component by component below the directory, links are resolved by this
//! module as if the image's root were `/` and never by the kernel, and a layer's marks of deletion become overlayfs's own. Fetching,
//! decompressing and checking digests is done by whoever hands the bytes in.
//!
//! A layer is unpacked on top of the ones below it, because it may say less than a directory must: entries whose parents it does
//! not mention (these keep mode and owner from below), links whose file is below, paths through links that are below.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags};
use serde::{Deserialize, Serialize};
use tar::EntryType;

use crate::entries::{Entry, each_entry};
use crate::merged::{self, Found, MergedDir};
use crate::probe::Refusal;
use crate::wire::{io_error, text_of_bytes};

/// How many links a path may lead through; Linux's own number.
const LINKS: usize = 40;

/// How much an archive may unpack to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnpackLimits {
    /// Bytes in files.
    pub bytes: u64,
    /// Entries.
    pub entries: u64,
}

impl Default for UnpackLimits {
    /// 64 GiB in 4 million entries: more than any image has, less than fills a disk by accident.
    fn default() -> Self {
        Self { bytes: 64 << 30, entries: 4 << 20 }
    }
}

/// What was unpacked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpacked {
    /// Bytes in files.
    pub bytes: u64,
    /// Entries.
    pub entries: u64,
}

/// Why a layer could not be unpacked.
#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
pub enum UnpackError {
    /// The archive ends early or is none.
    #[error("read the layer's archive: {0}")]
    Archive(
        #[from]
        #[serde(with = "io_error")]
        io::Error,
    ),
    /// The file system failed.
    #[error("unpack `{path}`: {source}")]
    Io {
        /// The path in the image.
        #[serde(with = "text_of_bytes")]
        path: PathBuf,
        /// Why.
        #[serde(with = "io_error")]
        source: io::Error,
    },
    /// A name leads out of the image, or is none.
    #[error("unpack `{path}`: the name leads out of the image")]
    Outside {
        /// The name as the archive has it.
        #[serde(with = "text_of_bytes")]
        path: PathBuf,
    },
    /// A path leads through too many links, or through something that is not a directory.
    #[error("unpack `{path}`: its parent is not a directory")]
    NoDirectory {
        /// The name as the archive has it.
        #[serde(with = "text_of_bytes")]
        path: PathBuf,
    },
    /// A hard link to nothing, or to something that cannot be linked to.
    #[error("unpack `{path}`: it is a link to `{to}`, which is not there")]
    NoTarget {
        /// The name as the archive has it.
        #[serde(with = "text_of_bytes")]
        path: PathBuf,
        /// What it links to.
        #[serde(with = "text_of_bytes")]
        to: PathBuf,
    },
    /// A device that overlayfs would take for a mark of deletion, or an entry of a type that images do not have.
    #[error("unpack `{path}`: entries of this type cannot be in an image")]
    Type {
        /// The name as the archive has it.
        #[serde(with = "text_of_bytes")]
        path: PathBuf,
    },
    /// A device that only this machine's root can make, elsewhere than in `/dev`, where a step never sees it.
    #[error("unpack `{path}`: only this machine's root can make a device")]
    Device {
        /// The name as the archive has it.
        #[serde(with = "text_of_bytes")]
        path: PathBuf,
    },
    /// An owner that the user namespace does not have.
    #[error("unpack `{path}`: it belongs to user {uid} and group {gid}, and the user namespace does not have both")]
    Owner {
        /// The name as the archive has it.
        #[serde(with = "text_of_bytes")]
        path: PathBuf,
        /// The user.
        uid: u32,
        /// The group.
        gid: u32,
    },
    /// This machine cannot give files their owners.
    #[error(transparent)]
    #[serde(skip)]
    Refused(#[from] Refusal),
    /// The helper that gives files their owners was lost.
    #[error("have the layer unpacked: {0}")]
    Helper(
        #[source]
        #[serde(with = "io_error")]
        io::Error,
    ),
    /// The archive is larger than allowed.
    #[error("unpack the layer: it has more than {} bytes or {} entries", limits.bytes, limits.entries)]
    TooLarge {
        /// What was allowed.
        limits: UnpackLimits,
    },
    /// The directory can be entered by other users, who could run the setuid programs that layers contain.
    #[error("unpack into `{dir}`: its parent directory can be entered by other users")]
    Exposed {
        /// The directory.
        #[serde(with = "text_of_bytes")]
        dir: PathBuf,
    },
}

impl UnpackError {
    /// What would help.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Device { .. } => Some("build as root, or from an image without device nodes outside of `/dev`"),
            Self::Owner { .. } => Some(
                "build as root, or set more ids aside for the user: `sudo usermod --add-subuids FIRST-LAST --add-subgids FIRST-LAST USER`",
            ),
            Self::Refused(refusal) => Some(refusal.hint()),
            _ => None,
        }
    }
}

/// Unpacks an uncompressed layer into `dir`, which exists and is empty, to be stacked on `below` (lowest first). Reads `archive` to
/// its end. Needs root, for owners, devices and overlayfs's attributes.
///
/// The result depends on `below`, so it is to be kept under a name for both.
///
/// # Errors
/// [`UnpackError`]; `dir` then holds a part and is to be removed.
pub fn unpack(
    archive: impl Read,
    dir: &Path,
    below: &[impl AsRef<Path>],
    limits: UnpackLimits,
) -> Result<Unpacked, UnpackError> {
    closed(dir)?;
    let mut layer = Layer { root: dir.to_owned(), below: MergedDir::root(below), times: BTreeMap::new(), parent: None };
    if let Some(top) = below.last() {
        layer.copy_meta(&found(top.as_ref())?, dir)?;
    }
    let mut done = Unpacked::default();
    let bounds = UnpackLimits { entries: u64::MAX, ..limits };
    let mut rest = each_entry(archive, bounds, |entry| {
        done.entries += 1;
        done.bytes = done.bytes.saturating_add(entry.size());
        if done.entries > limits.entries || done.bytes > limits.bytes {
            return Err(UnpackError::TooLarge { limits });
        }
        layer.entry(entry)
    })?;
    layer.finish()?;
    io::copy(&mut rest, &mut io::sink()).map_err(UnpackError::Archive)?;
    Ok(done)
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> UnpackError + '_ {
    |source| UnpackError::Io { path: path.to_owned(), source }
}

fn errno_at(path: &Path) -> impl FnOnce(rustix::io::Errno) -> UnpackError + '_ {
    |errno| at(path)(errno.into())
}

/// A directory among whose ancestors' modes there is one that keeps other users out; the nearest is what callers control.
fn closed(dir: &Path) -> Result<(), UnpackError> {
    let dir = fs::canonicalize(dir).map_err(at(dir))?;
    for ancestor in dir.ancestors().skip(1) {
        if fs::metadata(ancestor).map_err(at(ancestor))?.mode() & 0o011 == 0 {
            return Ok(());
        }
    }
    Err(UnpackError::Exposed { dir })
}

fn found(path: &Path) -> Result<Found, UnpackError> {
    let meta = fs::metadata(path).map_err(at(path))?;
    Ok(Found { path: path.to_owned(), meta, dir: None })
}

struct Layer {
    root: PathBuf,
    below: MergedDir,
    /// Directories' times are set last, since filling them changes them.
    times: BTreeMap<PathBuf, u64>,
    /// The parent that the last entry had, as named and as found: archives come directory by directory.
    parent: Option<(PathBuf, Place)>,
}

/// A directory of this layer, and what the layers below have there.
#[derive(Clone)]
struct Place {
    /// Below the root of this layer, all its components real directories.
    path: PathBuf,
    below: MergedDir,
}

impl Layer {
    fn entry(&mut self, entry: &mut Entry<'_, impl Read>) -> Result<(), UnpackError> {
        let named = PathBuf::from(OsStr::from_bytes(&entry.path_bytes()));
        let components = components(&named)?;
        let mut kind = entry.header().entry_type();
        if kind == EntryType::Regular && named.as_os_str().as_bytes().ends_with(b"/") {
            // How archives said it before they had a type for it.
            kind = EntryType::Directory;
        }
        if matches!(kind, EntryType::XGlobalHeader) {
            return Ok(());
        }
        let Some((name, parents)) = components.split_last() else {
            // The root itself.
            return if kind.is_dir() {
                self.set_meta(entry, kind, &PathBuf::new(), &named)
            } else {
                Err(UnpackError::Outside { path: named })
            };
        };
        let place = self.parent_of(parents, &named)?;
        if let Some(hidden) = name.as_bytes().strip_prefix(b".wh.") {
            return self.whiteout(&place, OsStr::from_bytes(hidden), &named);
        }
        let path = place.path.join(name);
        let target = self.root.join(&path);
        self.make_way(&target, kind.is_dir(), &named)?;
        let mode = Mode::from_raw_mode(0o600);
        match kind {
            EntryType::Directory => self.directory(&target, &named)?,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = rustix::fs::openat(CWD, &target, flags, mode).map_err(errno_at(&named))?;
                copy(entry, File::from(file), &named)?;
            }
            EntryType::Symlink => {
                let to = entry.link_name_bytes().ok_or_else(|| UnpackError::Type { path: named.clone() })?;
                rustix::fs::symlinkat(OsStr::from_bytes(&to), CWD, &target).map_err(errno_at(&named))?;
            }
            EntryType::Link => {
                let to = PathBuf::from(OsStr::from_bytes(&entry.link_name_bytes().unwrap_or_default()));
                // What the header says of mode and owner is the file's, which has them already.
                return self.hard_link(&to, &target, &named);
            }
            EntryType::Char | EntryType::Block => {
                let header = entry.header();
                let number = |field: io::Result<Option<u32>>| field.map(Option::unwrap_or_default);
                let major = number(header.device_major()).map_err(UnpackError::Archive)?;
                let minor = number(header.device_minor()).map_err(UnpackError::Archive)?;
                let kind = if kind == EntryType::Char { FileType::CharacterDevice } else { FileType::BlockDevice };
                if kind == FileType::CharacterDevice && (major, minor) == (0, 0) {
                    return Err(UnpackError::Type { path: named });
                }
                let device = rustix::fs::makedev(major, minor);
                match rustix::fs::mknodat(CWD, &target, kind, mode, device) {
                    Err(rustix::io::Errno::PERM) if merged::in_namespace() => {
                        // A step's own `/dev` lies over it, and what is copied from a layer is not read from here.
                        let covered = components.first().is_some_and(|first| first == "dev");
                        return if covered { Ok(()) } else { Err(UnpackError::Device { path: named }) };
                    }
                    other => other.map_err(errno_at(&named))?,
                }
            }
            EntryType::Fifo => rustix::fs::mknodat(CWD, &target, FileType::Fifo, mode, 0).map_err(errno_at(&named))?,
            _ => return Err(UnpackError::Type { path: named }),
        }
        self.set_meta(entry, kind, &path, &named)
    }

    /// Removes what this layer itself put there before, unless a directory meets a directory.
    fn make_way(&mut self, target: &Path, for_directory: bool, named: &Path) -> Result<(), UnpackError> {
        let Some(meta) = merged::lstat(target).map_err(at(named))? else {
            return Ok(());
        };
        if meta.is_dir() {
            if !for_directory {
                fs::remove_dir_all(target).map_err(at(named))?;
                self.parent = None;
                self.times.retain(|path, _| !self.root.join(path).starts_with(target));
            }
        } else if !(for_directory && merged::is_whiteout(&meta)) {
            fs::remove_file(target).map_err(at(named))?;
        }
        Ok(())
    }

    /// Makes a directory. One that this layer deleted before is a new one that shows nothing of what is below.
    fn directory(&self, target: &Path, named: &Path) -> Result<(), UnpackError> {
        match merged::lstat(target).map_err(at(named))? {
            Some(meta) if meta.is_dir() => Ok(()),
            Some(_) => {
                fs::remove_file(target).map_err(at(named))?;
                fs::create_dir(target).map_err(at(named))?;
                opaque(target, named)
            }
            None => fs::create_dir(target).map_err(at(named)),
        }
    }

    /// A layer's marks (OCI image-spec, layer.md, "Whiteouts"): `.wh.NAME` deletes what lower layers have under that name,
    /// `.wh..wh..opq` all that they have in the directory. Neither touches this layer's own entries.
    fn whiteout(&mut self, place: &Place, hidden: &OsStr, named: &Path) -> Result<(), UnpackError> {
        let dir = self.root.join(&place.path);
        if hidden == ".wh..opq" {
            self.parent = None;
            if !place.path.as_os_str().is_empty() {
                return opaque(&dir, named);
            }
            // Overlayfs merges the roots of all layers, whatever they are marked with.
            for name in place.below.names().map_err(at(named))? {
                self.gone(place, &name, named)?;
            }
            return Ok(());
        }
        // The other doubled marks are aufs's own book-keeping.
        if hidden.as_bytes().starts_with(b".wh.") {
            return Ok(());
        }
        if hidden.is_empty() || hidden == "." || hidden == ".." {
            return Err(UnpackError::Outside { path: named.to_owned() });
        }
        self.gone(place, hidden, named)
    }

    /// Hides a name of the layers below. Where there is none nothing is marked: in a directory that only this layer has, overlayfs
    /// would list the mark itself.
    fn gone(&mut self, place: &Place, name: &OsStr, named: &Path) -> Result<(), UnpackError> {
        if place.below.get(name).map_err(at(named))?.is_none() {
            return Ok(());
        }
        let target = self.root.join(&place.path).join(name);
        self.parent = None;
        match merged::lstat(&target).map_err(at(named))? {
            Some(meta) if meta.is_dir() => opaque(&target, named),
            Some(_) => Ok(()),
            None => {
                let nothing = FileType::CharacterDevice;
                rustix::fs::mknodat(CWD, &target, nothing, Mode::empty(), 0).map_err(errno_at(named))
            }
        }
    }

    fn parent_of(&mut self, parents: &[OsString], named: &Path) -> Result<Place, UnpackError> {
        let key: PathBuf = parents.iter().collect();
        if let Some((known, place)) = &self.parent
            && *known == key
        {
            return Ok(place.clone());
        }
        let place = self.descend(parents, named)?;
        self.parent = Some((key, place.clone()));
        Ok(place)
    }

    /// Walks to a directory, making those that this layer lacks with mode and owner from below. A link is followed as if the
    /// image's root were `/`.
    fn descend(&mut self, parents: &[OsString], named: &Path) -> Result<Place, UnpackError> {
        let lost = || UnpackError::NoDirectory { path: named.to_owned() };
        let mut todo: Vec<OsString> = parents.iter().rev().cloned().collect();
        let mut trail = vec![Place { path: PathBuf::new(), below: self.below.clone() }];
        let mut links = 0;
        while let Some(name) = todo.pop() {
            if name == ".." {
                // Only out of a link's text; the root is its own parent.
                if trail.len() > 1 {
                    trail.pop();
                }
                continue;
            }
            let here = trail.last().expect("the root is never popped").clone();
            let path = here.path.join(&name);
            let own = merged::lstat(&self.root.join(&path)).map_err(at(named))?;
            let gone = own.as_ref().is_some_and(merged::is_whiteout);
            let lower = if gone { None } else { here.below.get(&name).map_err(at(named))? };
            let link = match (&own, &lower) {
                (Some(meta), _) if meta.is_symlink() => Some(self.root.join(&path)),
                (None, Some(found)) if found.meta.is_symlink() => Some(found.path.clone()),
                _ => None,
            };
            if let Some(link) = link {
                links += 1;
                if links > LINKS {
                    return Err(lost());
                }
                let to = fs::read_link(link).map_err(at(named))?;
                if to.is_absolute() {
                    trail.truncate(1);
                }
                let text = to.as_os_str().as_bytes().split(|&byte| byte == b'/');
                let names: Vec<_> = text.filter(|name| !name.is_empty() && *name != b".").collect();
                todo.extend(names.into_iter().rev().map(|name| OsStr::from_bytes(name).to_owned()));
                continue;
            }
            match own {
                Some(meta) if meta.is_dir() => {}
                Some(_) if !gone => return Err(lost()),
                _ => {
                    let target = self.root.join(&path);
                    self.directory(&target, named)?;
                    match &lower {
                        Some(found) if found.dir.is_some() => self.copy_meta(found, &target)?,
                        // New, or in place of something that is not a directory. Its time must not be now.
                        _ => {
                            let mode = Mode::from_raw_mode(0o755);
                            rustix::fs::chmod(&target, mode).map_err(errno_at(named))?;
                            self.times.insert(path.clone(), 0);
                        }
                    }
                }
            }
            let hides = merged::is_opaque(&self.root.join(&path)).map_err(at(named))?;
            let below = lower.and_then(|found| found.dir).filter(|_| !hides).unwrap_or_default();
            trail.push(Place { path, below });
        }
        Ok(trail.pop().expect("the root is never popped"))
    }

    /// Gives a directory that the layer does not mention what the one below has.
    fn copy_meta(&mut self, from: &Found, to: &Path) -> Result<(), UnpackError> {
        let (uid, gid) = (Uid::from_raw(from.meta.uid()), Gid::from_raw(from.meta.gid()));
        rustix::fs::chown(to, Some(uid), Some(gid)).map_err(errno_at(to))?;
        rustix::fs::chmod(to, Mode::from_raw_mode(from.meta.mode() & 0o7777)).map_err(errno_at(to))?;
        let path = to.strip_prefix(&self.root).expect("made below the root").to_owned();
        self.times.insert(path, u64::try_from(from.meta.mtime()).unwrap_or(0));
        Ok(())
    }

    fn hard_link(&mut self, to: &Path, target: &Path, named: &Path) -> Result<(), UnpackError> {
        let missing = || UnpackError::NoTarget { path: named.to_owned(), to: to.to_owned() };
        let components = components(to)?;
        let (name, parents) = components.split_last().ok_or_else(missing)?;
        let place = self.descend(parents, named)?;
        let own = self.root.join(&place.path).join(name);
        match merged::lstat(&own).map_err(at(named))? {
            Some(meta) if meta.is_dir() || merged::is_whiteout(&meta) => return Err(missing()),
            Some(_) => {}
            None => {
                let found = place.below.get(name).map_err(at(named))?.filter(|found| found.meta.is_file());
                copy_up(&found.ok_or_else(missing)?, &own).map_err(at(named))?;
            }
        }
        if own == target {
            return Err(missing());
        }
        // Without AT_SYMLINK_FOLLOW the link itself is linked to, if it is one.
        rustix::fs::linkat(CWD, &own, CWD, target, rustix::fs::AtFlags::empty()).map_err(errno_at(named))
    }

    fn set_meta(
        &mut self,
        entry: &mut Entry<'_, impl Read>,
        kind: EntryType,
        path: &Path,
        named: &Path,
    ) -> Result<(), UnpackError> {
        let target = self.root.join(path);
        let header = entry.header();
        let (uid, gid) = (header.uid().map_err(UnpackError::Archive)?, header.gid().map_err(UnpackError::Archive)?);
        let mode = header.mode().map_err(UnpackError::Archive)? & 0o7777;
        let mtime = header.mtime().map_err(UnpackError::Archive)?;
        let mut attributes = Attributes { uid, gid, mtime, capability: None };
        attributes.pax(entry).map_err(UnpackError::Archive)?;
        let id = |id: u64| u32::try_from(id).ok().filter(|&id| id != u32::MAX);
        let (Some(uid), Some(gid)) = (id(attributes.uid), id(attributes.gid)) else {
            return Err(UnpackError::Type { path: named.to_owned() });
        };
        match std::os::unix::fs::lchown(&target, Some(uid), Some(gid)) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput && merged::in_namespace() => {
                return Err(UnpackError::Owner { path: named.to_owned(), uid, gid });
            }
            other => other.map_err(at(named))?,
        }
        if kind != EntryType::Symlink {
            // Nobody but root can be in this directory, and the target is not a link: it was just made here.
            rustix::fs::chmod(&target, Mode::from_raw_mode(mode)).map_err(errno_at(named))?;
        }
        if let Some(value) = &attributes.capability
            && !kind.is_dir()
            && kind != EntryType::Symlink
        {
            // After the owner: a change of owner removes it.
            rustix::fs::lsetxattr(&target, "security.capability", value, XattrFlags::empty())
                .map_err(errno_at(named))?;
        }
        if kind.is_dir() {
            self.times.insert(path.to_owned(), attributes.mtime);
            return Ok(());
        }
        set_time(&target, attributes.mtime).map_err(at(named))
    }

    fn finish(self) -> Result<(), UnpackError> {
        for (path, mtime) in &self.times {
            set_time(&self.root.join(path), *mtime).map_err(at(path))?;
        }
        Ok(())
    }
}

/// What a PAX header can say better than the old header.
struct Attributes {
    uid: u64,
    gid: u64,
    mtime: u64,
    capability: Option<Vec<u8>>,
}

impl Attributes {
    fn pax(&mut self, entry: &Entry<'_, impl Read>) -> io::Result<()> {
        for (key, value) in entry.records()? {
            let whole = || std::str::from_utf8(value).ok().and_then(|value| value.split('.').next()?.parse().ok());
            match key {
                b"uid" => self.uid = whole().unwrap_or(self.uid),
                b"gid" => self.gid = whole().unwrap_or(self.gid),
                b"mtime" => self.mtime = whole().unwrap_or(self.mtime),
                b"SCHILY.xattr.security.capability" => self.capability = Some(value.to_vec()),
                // Above all none of overlayfs's own, with which a layer could point anywhere.
                _ => {}
            }
        }
        Ok(())
    }
}

/// The components of a name in an archive: absolute ones are meant from the image's root, and none may climb.
fn components(path: &Path) -> Result<Vec<OsString>, UnpackError> {
    let outside = || UnpackError::Outside { path: path.to_owned() };
    let text = path.as_os_str().as_bytes();
    if text.is_empty() || text.contains(&0) {
        return Err(outside());
    }
    let names = text.split(|&byte| byte == b'/').filter(|name| !name.is_empty() && *name != b".");
    names.map(|name| if name == b".." { Err(outside()) } else { Ok(OsStr::from_bytes(name).to_owned()) }).collect()
}

/// Marks a directory as showing nothing of what is below. The marks of deletion that are in it already go: they have nothing to hide
/// any more, and overlayfs would list them.
fn opaque(dir: &Path, named: &Path) -> Result<(), UnpackError> {
    rustix::fs::lsetxattr(dir, merged::marks().opaque, b"y", XattrFlags::empty()).map_err(errno_at(named))?;
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).map_err(at(named))? {
            let path = entry.map_err(at(named))?.path();
            let meta = fs::symlink_metadata(&path).map_err(at(named))?;
            if meta.is_dir() {
                dirs.push(path);
            } else if merged::is_whiteout(&meta) {
                fs::remove_file(&path).map_err(at(named))?;
            }
        }
    }
    Ok(())
}

fn copy(from: &mut impl Read, mut to: File, named: &Path) -> Result<(), UnpackError> {
    let mut buffer = vec![0; 128 << 10];
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(UnpackError::Archive(error)),
        };
        io::Write::write_all(&mut to, &buffer[..read]).map_err(at(named))?;
    }
}

/// Copies a file of a lower layer into this one, as overlayfs would before linking to it.
fn copy_up(from: &Found, to: &Path) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(CWD, to, flags, Mode::from_raw_mode(0o600))?);
    let source =
        rustix::fs::openat(CWD, &from.path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    io::copy(&mut File::from(source), &mut file)?;
    let (uid, gid) = (Uid::from_raw(from.meta.uid()), Gid::from_raw(from.meta.gid()));
    rustix::fs::fchown(&file, Some(uid), Some(gid))?;
    rustix::fs::fchmod(file.as_fd(), Mode::from_raw_mode(from.meta.mode() & 0o7777))?;
    if let Some(value) = merged::xattr(&from.path, "security.capability")? {
        rustix::fs::fsetxattr(&file, "security.capability", &value, XattrFlags::empty())?;
    }
    set_time(to, u64::try_from(from.meta.mtime()).unwrap_or(0))
}

fn set_time(path: &Path, seconds: u64) -> io::Result<()> {
    let time = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: i64::try_from(seconds).unwrap_or(i64::MAX), tv_nsec: 0 },
    };
    Ok(rustix::fs::utimensat(CWD, path, &time, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?)
}
