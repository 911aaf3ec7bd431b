//! Files by path, without the files: what an image or a context holds, as far as copying needs to know.
//!
//! A COPY has to know what is at its destination (a directory, a link that leads elsewhere, whose owner) long before anything is
//! unpacked; the headers of the layers say it. Contents are opened elsewhere and late.

mod index;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::Arc;

use jiji_model::digest::Digest;

use super::contents;
use super::layer::{Entry, Node, TarPath};

pub use index::{IndexError, Layers};
pub(in crate::build) use index::{entry_of, is_record};

/// How many symbolic links a path may lead through, as in Linux.
const LINKS: usize = 40;

/// Something at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What it is.
    pub entry: Entry,
    /// Where its content is.
    pub content: Content,
}

/// Where the content of a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// It has none.
    None,
    /// A file of this machine.
    Path(PathBuf),
    /// A file of the context.
    Context(Arc<contents::File>),
    /// These bytes.
    Bytes(Vec<u8>),
    /// A path in the unpacked layer of this `diff_id`.
    Layer(Digest, TarPath),
    /// A blob of the store.
    Blob(Digest),
    /// A file that lies in the archive of this digest, from this byte of its tar on.
    Part {
        /// The archive's own digest.
        of: Digest,
        /// In bytes.
        offset: u64,
    },
}

impl Found {
    /// A directory of root's.
    pub fn directory(mode: u32) -> Self {
        Self { entry: Entry::directory(mode), content: Content::None }
    }

    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        self.entry.node == Node::Directory
    }
}

/// A path that leads through too many symbolic links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TooManyLinks(pub TarPath);

/// Files by path. The root is always a directory.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    entries: BTreeMap<TarPath, Found>,
    accounts: Accounts,
}

/// The texts of `/etc/passwd` and `/etc/group`, where a tree has them: names of owners are looked up there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accounts {
    /// `/etc/passwd`.
    pub passwd: String,
    /// `/etc/group`.
    pub group: String,
}

impl Accounts {
    /// The number of a user and of its group.
    pub fn user(&self, name: &str) -> Option<(u32, u32)> {
        let line = self.passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
        let fields = line.into_iter().find(|fields| fields.first() == Some(&name))?;
        Some((fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?))
    }

    /// The number of a group.
    pub fn group(&self, name: &str) -> Option<u32> {
        let line = self.group.lines().map(|line| line.split(':').collect::<Vec<_>>());
        let fields = line.into_iter().find(|fields| fields.first() == Some(&name))?;
        fields.get(2)?.parse().ok()
    }
}

impl Tree {
    /// A tree of these entries.
    pub fn new(entries: BTreeMap<TarPath, Found>) -> Self {
        Self { entries, accounts: Accounts::default() }
    }

    /// All entries, in the order of layers.
    pub fn entries(&self) -> impl Iterator<Item = (&TarPath, &Found)> {
        self.entries.iter()
    }

    /// What is at a path, without following a link. None for the root, which is always a directory.
    pub fn get(&self, path: &TarPath) -> Option<&Found> {
        self.entries.get(path)
    }

    /// Whether something is at a path, the root included.
    pub fn has(&self, path: &TarPath) -> bool {
        path.is_root() || self.entries.contains_key(path)
    }

    /// Whether a directory is at a path, the root included.
    pub fn is_directory(&self, path: &TarPath) -> bool {
        path.is_root() || self.get(path).is_some_and(Found::is_directory)
    }

    /// Everything below a directory, parents first.
    pub fn below<'a>(&'a self, directory: &'a TarPath) -> impl Iterator<Item = (&'a TarPath, &'a Found)> {
        let start = if directory.is_root() { Bound::Unbounded } else { Bound::Excluded(directory.clone()) };
        self.entries.range((start, Bound::Unbounded)).take_while(|(path, _)| path.is_below(directory))
    }

    /// The users and groups that it knows.
    pub fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    /// Where a path leads when all symbolic links in it are followed, without ever leaving the root. Parts that are not there stay.
    ///
    /// # Errors
    /// [`TooManyLinks`].
    pub fn resolve(&self, path: &TarPath) -> Result<TarPath, TooManyLinks> {
        let mut left: Vec<Vec<u8>> = path.parts().map(<[u8]>::to_vec).collect();
        left.reverse();
        let mut done = TarPath::root();
        let mut links = 0;
        while let Some(part) = left.pop() {
            match part.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    done = done.parent().unwrap_or_default();
                    continue;
                }
                _ => {}
            }
            let next = done.join(&part);
            let Some(Found { entry: Entry { node: Node::Symlink(target), .. }, .. }) = self.get(&next) else {
                done = next;
                continue;
            };
            links += 1;
            if links > LINKS {
                return Err(TooManyLinks(path.clone()));
            }
            if target.first() == Some(&b'/') {
                done = TarPath::root();
            }
            left.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
        }
        Ok(done)
    }

    /// Puts a layer over what is there.
    fn apply(&mut self, layer: &index::Index, diff_id: &Digest) {
        for gone in &layer.whiteouts {
            self.remove(gone);
        }
        for directory in &layer.opaque {
            let below: Vec<TarPath> = self.below(directory).map(|(path, _)| path.clone()).collect();
            for path in below {
                self.entries.remove(&path);
            }
        }
        for (path, entry) in &layer.entries {
            let found = match &entry.node {
                Node::Hardlink(target) => match self.get(target) {
                    // The same file under another name.
                    Some(found) => found.clone(),
                    // A link to nothing: the layer is broken there, and nothing can be copied from it.
                    None => continue,
                },
                Node::File { .. } => Found { entry: entry.clone(), content: Content::Layer(*diff_id, path.clone()) },
                _ => Found { entry: entry.clone(), content: Content::None },
            };
            if !found.is_directory() {
                self.remove(path);
            }
            for parent in path.parents() {
                if !self.is_directory(&parent) {
                    self.entries.insert(parent, Found::directory(0o755));
                }
            }
            self.entries.insert(path.clone(), found);
        }
        for (text, own) in
            [(&layer.accounts.passwd, &mut self.accounts.passwd), (&layer.accounts.group, &mut self.accounts.group)]
        {
            if !text.is_empty() {
                own.clone_from(text);
            }
        }
    }

    fn remove(&mut self, path: &TarPath) {
        if self.is_directory(path) {
            let below: Vec<TarPath> = self.below(path).map(|(path, _)| path.clone()).collect();
            for path in below {
                self.entries.remove(&path);
            }
        }
        self.entries.remove(path);
    }
}

#[cfg(test)]
mod tests;
