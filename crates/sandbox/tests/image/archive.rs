//! Archives as a registry could send them, well-formed or not.

use std::io::Read as _;

use jiji_sandbox::{Changes, Kind, Node};
use tar::{EntryType, Header};

/// One entry.
#[derive(Debug)]
pub struct Entry {
    name: Vec<u8>,
    kind: EntryType,
    link: Vec<u8>,
    content: Vec<u8>,
    mode: u32,
    owner: (u64, u64),
    mtime: u64,
    device: (u32, u32),
    attributes: Vec<(String, Vec<u8>)>,
}

fn entry(name: &str, kind: EntryType, mode: u32) -> Entry {
    Entry {
        name: name.as_bytes().to_vec(),
        kind,
        link: Vec::new(),
        content: Vec::new(),
        mode,
        owner: (0, 0),
        mtime: 0,
        device: (0, 0),
        attributes: Vec::new(),
    }
}

pub fn file(name: &str, content: impl AsRef<[u8]>) -> Entry {
    Entry { content: content.as_ref().to_vec(), ..entry(name, EntryType::Regular, 0o644) }
}

pub fn dir(name: &str) -> Entry {
    entry(name, EntryType::Directory, 0o755)
}

pub fn symlink(name: &str, to: &str) -> Entry {
    Entry { link: to.as_bytes().to_vec(), ..entry(name, EntryType::Symlink, 0o777) }
}

pub fn hard_link(name: &str, to: &str) -> Entry {
    Entry { link: to.as_bytes().to_vec(), ..entry(name, EntryType::Link, 0o644) }
}

pub fn char_device(name: &str, major: u32, minor: u32) -> Entry {
    Entry { device: (major, minor), ..entry(name, EntryType::Char, 0o666) }
}

pub fn fifo(name: &str) -> Entry {
    entry(name, EntryType::Fifo, 0o644)
}

/// What a layer of these changes would be.
pub fn of(changes: &Changes) -> Archive {
    changes.list().iter().fold(Archive::new(), |archive, change| {
        let name = change.path.to_str().expect("utf-8");
        let (node, meta) = match &change.kind {
            Kind::Whiteout => {
                let marked = format!(".wh.{}", change.path.file_name().expect("a name").display());
                return archive.put(file(change.path.with_file_name(marked).to_str().expect("utf-8"), ""));
            }
            Kind::Added(node, meta) | Kind::Modified(node, meta) => (node, meta),
        };
        let entry = match node {
            Node::Directory => dir(if name.is_empty() { "./" } else { name }),
            Node::File { size } => {
                let mut content = Vec::new();
                changes.open(&change.path).expect("opens").read_to_end(&mut content).expect("reads");
                assert_eq!(content.len() as u64, *size);
                file(name, content)
            }
            Node::HardLink { to } => hard_link(name, to.to_str().expect("utf-8")),
            Node::Symlink { to } => symlink(name, to.to_str().expect("utf-8")),
            Node::CharDevice { major, minor } => char_device(name, *major, *minor),
            Node::Fifo => fifo(name),
            Node::BlockDevice { .. } => panic!("no test makes one"),
        };
        let entry = entry.mode(meta.mode).owner(meta.uid.into(), meta.gid.into());
        archive.put(match &meta.capability {
            Some(value) => entry.attribute("security.capability", value),
            None => entry,
        })
    })
}

impl Entry {
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    pub fn owner(mut self, uid: u64, gid: u64) -> Self {
        self.owner = (uid, gid);
        self
    }

    pub fn mtime(mut self, mtime: u64) -> Self {
        self.mtime = mtime;
        self
    }

    pub fn attribute(mut self, name: &str, value: &[u8]) -> Self {
        self.attributes.push((name.to_owned(), value.to_vec()));
        self
    }
}

#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
}

impl Archive {
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends an entry with its names as they are: `tar::Builder` would refuse those that matter here.
    pub fn put(mut self, entry: Entry) -> Self {
        let mut records = Vec::new();
        for (name, value) in &entry.attributes {
            let rest = [b" SCHILY.xattr.", name.as_bytes(), b"=", value, b"\n"].concat();
            // A record's length counts its own digits.
            let mut length = rest.len();
            while length != rest.len() + length.to_string().len() {
                length = rest.len() + length.to_string().len();
            }
            records.extend(length.to_string().as_bytes());
            records.extend(rest);
        }
        for (key, value, limit) in [("path", &entry.name, 100), ("linkpath", &entry.link, 100)] {
            if value.len() > limit {
                let rest = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
                let mut length = rest.len();
                while length != rest.len() + length.to_string().len() {
                    length = rest.len() + length.to_string().len();
                }
                records.extend(length.to_string().as_bytes());
                records.extend(rest);
            }
        }
        if !records.is_empty() {
            let mut header = Header::new_ustar();
            header.set_entry_type(EntryType::XHeader);
            self.append(header, b"pax", &records);
        }
        let mut header = Header::new_ustar();
        header.set_entry_type(entry.kind);
        header.set_mode(entry.mode);
        header.set_uid(entry.owner.0);
        header.set_gid(entry.owner.1);
        header.set_mtime(entry.mtime);
        if entry.kind == EntryType::Char {
            header.set_device_major(entry.device.0).expect("fits");
            header.set_device_minor(entry.device.1).expect("fits");
        }
        let link = &entry.link[..entry.link.len().min(100)];
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link);
        self.append(header, &entry.name[..entry.name.len().min(100)], &entry.content);
        self
    }

    fn append(&mut self, mut header: Header, name: &[u8], content: &[u8]) {
        header.as_mut_bytes()[..name.len()].copy_from_slice(name);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.bytes.extend(header.as_bytes());
        self.bytes.extend(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
    }

    pub fn bytes(mut self) -> Vec<u8> {
        self.bytes.extend([0; 1024]);
        self.bytes
    }
}
