//! The tar dialect of layer format 2: POSIX ustar headers, with a PAX header before an entry where a value does not fit.
//!
//! Fixed where tar leaves a choice: numbers are octal with leading zeros and a NUL; user and group names are empty; device numbers of
//! what is no device are 0; PAX records are sorted by key and there are no others than those needed; no global header; no padding
//! beyond the two zero blocks at the end.

use super::{Entry, Node, TarPath};

/// Headers and content come in blocks of this size.
pub(super) const BLOCK: usize = 512;

/// The largest number that fits 7 octal digits: for mode, user and group.
const LARGEST_SMALL: u64 = 0o7_777_777;
/// The largest number that fits 11 octal digits: for size and time.
const LARGEST_LONG: u64 = 0o77_777_777_777;

/// The headers of an entry: all that stands before its content.
pub(super) fn header(path: &TarPath, entry: &Entry, mtime: u64) -> Vec<u8> {
    let mut name = path.as_bytes().to_vec();
    if matches!(entry.node, Node::Directory) {
        name.push(b'/');
    }
    let link: &[u8] = match &entry.node {
        Node::Symlink(target) => target,
        Node::Hardlink(target) => target.as_bytes(),
        _ => b"",
    };
    let size = match &entry.node {
        Node::File { size } => *size,
        _ => 0,
    };
    let (kind, major, minor) = match entry.node {
        Node::File { .. } => (b'0', 0, 0),
        Node::Hardlink(_) => (b'1', 0, 0),
        Node::Symlink(_) => (b'2', 0, 0),
        Node::Character { major, minor } => (b'3', major, minor),
        Node::Block { major, minor } => (b'4', major, minor),
        Node::Directory => (b'5', 0, 0),
        Node::Fifo => (b'6', 0, 0),
    };

    let mut pax: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let (prefix, short) = match split(&name) {
        Some(parts) => parts,
        None => {
            pax.push((b"path".to_vec(), name.clone()));
            // Readers that know no PAX at least see an end of the name.
            (&b""[..], &name[name.len().saturating_sub(100)..])
        }
    };
    if link.len() > 100 || !link.is_ascii() {
        pax.push((b"linkpath".to_vec(), link.to_vec()));
    }
    let mut number = |key: &str, value: u64, largest: u64| {
        if value <= largest {
            return value;
        }
        pax.push((key.as_bytes().to_vec(), value.to_string().into_bytes()));
        0
    };
    let uid = number("uid", entry.uid.into(), LARGEST_SMALL);
    let gid = number("gid", entry.gid.into(), LARGEST_SMALL);
    let size = number("size", size, LARGEST_LONG);
    let mtime = number("mtime", mtime, LARGEST_LONG);
    for (key, value) in &entry.xattrs {
        pax.push(([b"SCHILY.xattr.", key.as_slice()].concat(), value.clone()));
    }
    // A name that is not UTF-8 is said to be bytes (POSIX pax, "hdrcharset"); readers that do not know the word take it as it is.
    let names = pax.iter().filter(|(key, _)| key == b"path" || key == b"linkpath");
    if names.clone().any(|(_, value)| std::str::from_utf8(value).is_err()) {
        pax.push((b"hdrcharset".to_vec(), b"BINARY".to_vec()));
    }
    pax.sort();

    let mut out = Vec::with_capacity(BLOCK);
    if !pax.is_empty() {
        let records: Vec<u8> = pax.iter().flat_map(|(key, value)| record(key, value)).collect();
        let fields = Fields {
            prefix: b"",
            name: b"././@PaxHeader",
            mode: 0o644,
            uid: 0,
            gid: 0,
            size: records.len() as u64,
            mtime: 0,
            kind: b'x',
            link: b"",
            major: 0,
            minor: 0,
        };
        out.extend(fields.block());
        out.extend(&records);
        out.resize(out.len().next_multiple_of(BLOCK), 0);
    }
    let link = &link[..link.len().min(100)];
    let mode = u64::from(entry.mode);
    out.extend(Fields { prefix, name: short, mode, uid, gid, size, mtime, kind, link, major, minor }.block());
    out
}

/// Splits a name at a slash so that it fits the prefix and name fields, if it is ASCII and there is such a slash.
fn split(name: &[u8]) -> Option<(&[u8], &[u8])> {
    if !name.is_ascii() {
        return None;
    }
    if name.len() <= 100 {
        return Some((b"", name));
    }
    // The last slash that leaves something on both sides and a prefix that fits: one rule, so that there is one split.
    let slash = (1..name.len() - 1).rev().filter(|at| name[*at] == b'/').find(|at| *at <= 155)?;
    let (prefix, rest) = (&name[..slash], &name[slash + 1..]);
    (rest.len() <= 100).then_some((prefix, rest))
}

/// A PAX record: its own length in decimal, a blank, `key=value`, a line feed.
fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

struct Fields<'a> {
    prefix: &'a [u8],
    name: &'a [u8],
    mode: u64,
    uid: u64,
    gid: u64,
    size: u64,
    mtime: u64,
    kind: u8,
    link: &'a [u8],
    major: u32,
    minor: u32,
}

impl Fields<'_> {
    /// The block of POSIX.1-1988 "ustar".
    fn block(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let mut text = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        text(0, self.name);
        text(100, format!("{:07o}", self.mode).as_bytes());
        text(108, format!("{:07o}", self.uid).as_bytes());
        text(116, format!("{:07o}", self.gid).as_bytes());
        text(124, format!("{:011o}", self.size).as_bytes());
        text(136, format!("{:011o}", self.mtime).as_bytes());
        text(148, b"        ");
        text(156, &[self.kind]);
        text(157, self.link);
        text(257, b"ustar\x0000");
        text(329, format!("{:07o}", self.major).as_bytes());
        text(337, format!("{:07o}", self.minor).as_bytes());
        text(345, self.prefix);
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }
}
