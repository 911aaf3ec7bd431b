//! A layer out of a tree of files: the same tree gives the same bytes.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use flate2::{Compression, GzBuilder};

/// A file, directory or link of an image, owned by root and without a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Node {
    /// A directory.
    Directory {
        /// Its permissions.
        mode: u32,
    },
    /// A regular file.
    File {
        /// Its permissions.
        mode: u32,
        /// What is in it.
        bytes: Vec<u8>,
    },
    /// A symbolic link.
    Link {
        /// Where it leads.
        target: String,
    },
}

/// A tree of files by path, without a leading slash.
pub(super) type Tree = BTreeMap<String, Node>;

/// Adds the directories that paths of the tree need and that nobody named.
pub(super) fn complete(tree: &mut Tree) {
    let paths: Vec<String> = tree.keys().cloned().collect();
    for path in paths {
        for (end, _) in path.match_indices('/') {
            tree.entry(path[..end].to_owned()).or_insert(Node::Directory { mode: 0o755 });
        }
    }
}

/// The tar of a tree: sorted by path, time 0, owner 0, ustar headers and GNU long names where a path needs them.
pub(super) fn tar(tree: &Tree) -> io::Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, node) in tree {
        let mut header = tar::Header::new_gnu();
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        match node {
            Node::Directory { mode } => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(*mode);
                header.set_size(0);
                builder.append_data(&mut header, format!("{path}/"), io::empty())?;
            }
            Node::File { mode, bytes } => {
                header.set_entry_type(tar::EntryType::Regular);
                header.set_mode(*mode);
                header.set_size(bytes.len() as u64);
                builder.append_data(&mut header, path, bytes.as_slice())?;
            }
            Node::Link { target } => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_mode(0o777);
                header.set_size(0);
                builder.append_link(&mut header, path, target)?;
            }
        }
    }
    builder.into_inner()
}

/// Compresses a layer. The compressor is Rust's own, of the version in Cargo.lock; another one may give other bytes, which the
/// digests in `base` would show.
pub(super) fn gzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    // 255: no operating system is named in the header.
    let mut encoder = GzBuilder::new().mtime(0).operating_system(255).write(Vec::new(), Compression::new(6));
    encoder.write_all(bytes)?;
    encoder.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> Tree {
        let mut tree = Tree::new();
        tree.insert("usr/bin/tool".to_owned(), Node::File { mode: 0o755, bytes: b"#!/bin/sh\n".to_vec() });
        tree.insert("bin".to_owned(), Node::Link { target: "usr/bin".to_owned() });
        complete(&mut tree);
        tree
    }

    #[test]
    fn the_same_tree_gives_the_same_bytes() {
        let bytes = gzip(&tar(&tree()).expect("to memory")).expect("to memory");
        assert_eq!(bytes, gzip(&tar(&tree()).expect("to memory")).expect("to memory"));
    }

    #[test]
    fn directories_nobody_named_come_before_what_is_in_them() {
        let bytes = tar(&tree()).expect("to memory");
        let mut archive = tar::Archive::new(bytes.as_slice());
        let paths: Vec<String> = archive
            .entries()
            .expect("a tar")
            .map(|entry| entry.expect("an entry").path().expect("a path").display().to_string())
            .collect();
        assert_eq!(paths, ["bin", "usr/", "usr/bin/", "usr/bin/tool"]);
    }
}
