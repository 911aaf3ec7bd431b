//! The files that a build may copy: a directory without what `.dockerignore` leaves out, in a form that says nothing about the machine.
//!
//! Owner, group, times, link counts and all of the mode but the executable bit fall away here: two checkouts of one commit are one
//! context. Nothing outside of the directory is ever reached: symbolic links are kept as links and never followed on this machine.

mod glob;
mod ignore;
mod walk;

use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::build::contents::{self, Stat};
use crate::build::layer::{Entry, Node};
use crate::build::rootfs::{Content, Found, Tree};

pub use glob::{BadPattern, Glob};
pub use ignore::{BadRule, Ignore};

/// The longest ignore file, in bytes.
const IGNORE_LIMIT: u64 = 1 << 20;

/// Why a context could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// A file or directory cannot be read.
    #[error("read `{path}`", path = path.display())]
    Read {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The context is no directory.
    #[error("read the context `{path}`: it is not a directory", path = path.display())]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// A line of the ignore file cannot be read.
    #[error("read {file}:{line}: `{text}` is no pattern", file = file.display(), line = rule.line, text = rule.text)]
    Ignore {
        /// The file.
        file: PathBuf,
        /// The line.
        rule: BadRule,
    },
}

impl ContextError {
    /// What a person can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Read { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("make it readable, or leave it out in `.dockerignore`")
            }
            Self::Ignore { .. } => Some("a `[` needs its `]`, a backslash something after it, and `!` a pattern"),
            _ => None,
        }
    }
}

/// Looks at a context directory. `dockerfile` is the Dockerfile's path, if there is one; an ignore file beside it, named as it is with
/// `.dockerignore` added, counts instead of the context's own. On as many as `threads` cores.
///
/// # Errors
/// When something in it cannot be looked at. Contents are not read yet.
pub fn read(root: &Path, dockerfile: Option<&Path>, threads: usize) -> Result<Tree, ContextError> {
    let metadata = fs::metadata(root).map_err(|source| ContextError::Read { path: root.to_owned(), source })?;
    if !metadata.is_dir() {
        return Err(ContextError::NotADirectory { path: root.to_owned() });
    }
    let ignore = ignore_file(root, dockerfile)?;
    Ok(Tree::new(walk::walk(root, &ignore, threads)?))
}

fn ignore_file(root: &Path, dockerfile: Option<&Path>) -> Result<Ignore, ContextError> {
    let beside = dockerfile.map(|dockerfile| {
        let mut beside = dockerfile.as_os_str().to_owned();
        beside.push(".dockerignore");
        PathBuf::from(beside)
    });
    for file in beside.into_iter().chain([root.join(".dockerignore")]) {
        match read_small(&file, IGNORE_LIMIT) {
            Ok(text) => {
                return Ignore::parse(&String::from_utf8_lossy(&text))
                    .map_err(|rule| ContextError::Ignore { file, rule });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(ContextError::Read { path: file, source }),
        }
    }
    Ok(Ignore::parse("").unwrap_or_default())
}

/// What a file of a context is, without what differs from checkout to checkout.
fn look(path: &Path, metadata: &Metadata) -> io::Result<Found> {
    let kind = metadata.file_type();
    if kind.is_symlink() {
        let target = fs::read_link(path)?.as_os_str().as_bytes().to_vec();
        let entry = Entry { node: Node::Symlink(target), ..Entry::directory(0o777) };
        return Ok(Found { entry, content: Content::None });
    }
    if !kind.is_file() {
        // Named pipes and devices: known, so that a COPY of one can say what it is.
        return Ok(Found { entry: Entry { node: Node::Fifo, ..Entry::directory(0o644) }, content: Content::None });
    }
    // git keeps of a mode whether the owner may execute, and so does a context.
    let mode = if metadata.permissions().mode() & 0o100 != 0 { 0o755 } else { 0o644 };
    let file = contents::File::new(path.to_owned(), Stat::of(metadata));
    Ok(Found { entry: Entry::file(mode, metadata.len()), content: Content::Context(Arc::new(file)) })
}

/// Opens a file below `root`, of a context or of an unpacked layer. Who opens many has a [`Root`].
///
/// # Errors
/// As [`Root::open`].
pub(in crate::build) fn open(root: &Path, path: &Path) -> io::Result<File> {
    Ok(Root::new(root).open(path)?.0)
}

/// A directory of whose files many are opened. It is opened itself with the first of them.
pub(in crate::build) struct Root<'a> {
    path: &'a Path,
    directory: OnceLock<File>,
}

impl<'a> Root<'a> {
    pub(in crate::build) fn new(path: &'a Path) -> Self {
        Self { path, directory: OnceLock::new() }
    }

    /// Opens a file below it and says what it is: nothing of the way below may be a link, should it have become one meanwhile, and nothing is
    /// waited for.
    ///
    /// # Errors
    /// When it cannot be opened or is no file.
    pub(in crate::build) fn open(&self, path: &Path) -> io::Result<(File, Metadata)> {
        let outside = |_| io::Error::new(io::ErrorKind::InvalidInput, "it lies outside");
        let below = path.strip_prefix(self.path).map_err(outside)?;
        let directory = match self.directory.get() {
            Some(directory) => directory,
            None => {
                let opened = File::open(self.path)?;
                self.directory.get_or_init(|| opened)
            }
        };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let way = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let file = File::from(rustix::fs::openat2(directory, below, flags, Mode::empty(), way)?);
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file"));
        }
        Ok((file, metadata))
    }
}

/// Reads a whole file that somebody else may have made: a file, and no longer than `most` bytes.
///
/// # Errors
/// When it cannot be read, is no file or is longer.
pub(in crate::build) fn read_small(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let file = File::options().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file"));
    }
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is longer than {} MiB", most >> 20)));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
