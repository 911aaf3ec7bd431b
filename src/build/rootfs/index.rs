//! What the layers of an image hold, read from their headers and remembered.

use std::io::{self, BufReader, Read};

use jiji_model::digest::{Digest, canonical_json};
use jiji_model::image::Descriptor;
use jiji_sandbox::{UnpackLimits, each_entry};
use jiji_store::{Layer, Store, StoreError};
use serde::{Deserialize, Serialize};

use super::{Accounts, Tree};
use crate::build::layer::{Entry, Node, TarPath, WHITEOUT};

/// The version of the remembered form. Another version is read again from the layer.
const VERSION: u32 = 1;
/// A larger `/etc/passwd` or `/etc/group` is not looked at, in bytes.
const ACCOUNTS_LIMIT: u64 = 1 << 20;
/// The remembered form is a record of the store, which reads no more than this, in bytes.
const RECORD_LIMIT: usize = 15 << 20;

/// Why a layer could not be looked into.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The store could not give it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is compressed in a way that jiji does not know.
    #[error("read layer `{digest}`: its media type `{media_type}` is not known")]
    MediaType {
        /// The layer.
        digest: Digest,
        /// Its media type.
        media_type: String,
    },
    /// It is no tar, or a broken one.
    #[error("read layer `{digest}`")]
    Read {
        /// The layer.
        digest: Digest,
        /// What is wrong with it.
        source: io::Error,
    },
}

/// The headers of one layer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Index {
    pub(super) entries: Vec<(TarPath, Entry)>,
    pub(super) whiteouts: Vec<TarPath>,
    /// Directories of which nothing below stays.
    pub(super) opaque: Vec<TarPath>,
    pub(super) accounts: Accounts,
}

/// Looks into layers of a store.
#[derive(Debug, Clone)]
pub struct Layers {
    store: Store,
}

impl Layers {
    /// Looks into the layers of this store.
    pub fn new(store: &Store) -> Self {
        Self { store: store.clone() }
    }

    /// What an image of these layers holds, lowest first.
    ///
    /// # Errors
    /// When a layer is not in the store or cannot be read.
    pub fn tree(&self, layers: &[Layer]) -> Result<Tree, IndexError> {
        let mut tree = Tree::default();
        for Layer { diff_id, blob } in layers {
            tree.apply(&self.index(diff_id, blob)?, diff_id);
        }
        Ok(tree)
    }

    /// The tar of a layer.
    ///
    /// # Errors
    /// When it is not in the store, or its compression is not known.
    pub fn open(&self, blob: &Descriptor) -> Result<Box<dyn Read>, IndexError> {
        let (file, _) = self.store.open_blob(&blob.digest)?;
        let file = BufReader::with_capacity(128 * 1024, file);
        match blob.media_type.rsplit(['.', '+']).next() {
            Some("gzip") => Ok(Box::new(flate2::bufread::MultiGzDecoder::new(file))),
            Some("zstd") => {
                let decoder = zstd::Decoder::with_buffer(file);
                Ok(Box::new(decoder.map_err(|source| IndexError::Read { digest: blob.digest, source })?))
            }
            Some("tar") => Ok(Box::new(file)),
            _ => Err(IndexError::MediaType { digest: blob.digest, media_type: blob.media_type.clone() }),
        }
    }

    fn index(&self, diff_id: &Digest, blob: &Descriptor) -> Result<Index, IndexError> {
        let key = Digest::of_json(&serde_json::json!({"layer-index": VERSION, "diff-id": diff_id}));
        if let Some(index) = self.store.action(&key)?.and_then(|record| remembered(&record)) {
            return Ok(index);
        }
        let index = read(self.open(blob)?).map_err(|source| IndexError::Read { digest: blob.digest, source })?;
        let record = canonical_json(&Record::of(&index));
        let mut compressor = libdeflater::Compressor::new(libdeflater::CompressionLvl::fastest());
        let mut packed = vec![0; 8 + compressor.deflate_compress_bound(record.len())];
        packed[..8].copy_from_slice(&(record.len() as u64).to_le_bytes());
        if let Ok(length) = compressor.deflate_compress(&record, &mut packed[8..])
            && length + 8 <= RECORD_LIMIT
        {
            packed.truncate(8 + length);
            self.store.record_action(&key, &packed)?;
        }
        Ok(index)
    }
}

/// Whether these are the remembered headers of a layer.
pub(in crate::build) fn is_record(bytes: &[u8]) -> bool {
    remembered(bytes).is_some()
}

fn remembered(record: &[u8]) -> Option<Index> {
    let (length, packed) = record.split_first_chunk::<8>()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok().filter(|length| *length < 1 << 30)?;
    let mut json = vec![0; length];
    let read = libdeflater::Decompressor::new().deflate_decompress(packed, &mut json).ok()?;
    serde_json::from_slice::<Record>(json.get(..read)?).ok()?.index()
}

/// Reads the headers of a tar.
fn read(tar: impl Read) -> io::Result<Index> {
    let mut index = Index::default();
    each_entry(tar, UnpackLimits::default(), |entry| {
        let path = TarPath::normal(&*entry.path_bytes());
        let name = path.name().to_vec();
        if let Some(gone) = name.strip_prefix(WHITEOUT) {
            let parent = path.parent().unwrap_or_default();
            if gone == b".wh..opq" {
                index.opaque.push(parent);
            } else if !gone.starts_with(WHITEOUT) && !gone.is_empty() {
                index.whiteouts.push(parent.join(gone));
            }
            return Ok(());
        }
        if path.is_root() {
            return Ok(());
        }
        let Some(known) = entry_of(entry)? else { return Ok(()) };
        if matches!(known.node, Node::File { size } if size <= ACCOUNTS_LIMIT) {
            let text = match path.as_bytes() {
                b"etc/passwd" => Some(&mut index.accounts.passwd),
                b"etc/group" => Some(&mut index.accounts.group),
                _ => None,
            };
            if let Some(text) = text {
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes)?;
                *text = String::from_utf8_lossy(&bytes).into_owned();
            }
        }
        index.entries.push((path, known));
        Ok::<_, io::Error>(())
    })?;
    Ok(index)
}

/// What a header says of its entry; none where it is of a kind that is no file.
///
/// # Errors
/// When it is broken.
pub(in crate::build) fn entry_of<R: Read>(entry: &jiji_sandbox::Entry<'_, R>) -> io::Result<Option<Entry>> {
    let header = entry.header();
    let device = |number: io::Result<Option<u32>>| number.ok().flatten().unwrap_or_default();
    let (major, minor) = (device(header.device_major()), device(header.device_minor()));
    let link = entry.link_name_bytes().unwrap_or_default().into_owned();
    let node = match header.entry_type() {
        tar::EntryType::Directory => Node::Directory,
        tar::EntryType::Symlink => Node::Symlink(link),
        tar::EntryType::Link => Node::Hardlink(TarPath::normal(link)),
        tar::EntryType::Char => Node::Character { major, minor },
        tar::EntryType::Block => Node::Block { major, minor },
        tar::EntryType::Fifo => Node::Fifo,
        tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
            Node::File { size: entry.size() }
        }
        _ => return Ok(None),
    };
    let small = |value: io::Result<u64>| value.map(|value| u32::try_from(value).unwrap_or(u32::MAX));
    let mut known = Entry {
        node,
        mode: header.mode()? & 0o7777,
        uid: small(header.uid())?,
        gid: small(header.gid())?,
        xattrs: Default::default(),
    };
    for (key, value) in entry.records()? {
        let number = || std::str::from_utf8(value).ok().and_then(|value| value.parse().ok());
        match key {
            b"uid" => known.uid = number().unwrap_or(known.uid),
            b"gid" => known.gid = number().unwrap_or(known.gid),
            b"SCHILY.xattr.security.capability" => {
                known.xattrs.insert(b"security.capability".to_vec(), value.to_vec());
            }
            _ => {}
        }
    }
    Ok(Some(known))
}

/// The remembered form: bytes as the characters of the same numbers, so that JSON can say them.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    entries: Vec<Row>,
    whiteouts: Vec<String>,
    opaque: Vec<String>,
    passwd: String,
    group: String,
}

/// Path, kind, mode, user, group; then size, or major and minor number; link; capability.
#[derive(Serialize, Deserialize)]
struct Row(String, char, u32, u32, u32, u64, u32, String, String);

fn text(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

fn bytes(text: &str) -> Option<Vec<u8>> {
    text.chars().map(|ch| u8::try_from(u32::from(ch)).ok()).collect()
}

impl Record {
    fn of(index: &Index) -> Self {
        let row = |(path, entry): &(TarPath, Entry)| {
            let (kind, number, minor, link) = match &entry.node {
                Node::Directory => ('d', 0, 0, String::new()),
                Node::File { size } => ('f', *size, 0, String::new()),
                Node::Symlink(target) => ('l', 0, 0, text(target)),
                Node::Hardlink(target) => ('h', 0, 0, text(target.as_bytes())),
                Node::Character { major, minor } => ('c', u64::from(*major), *minor, String::new()),
                Node::Block { major, minor } => ('b', u64::from(*major), *minor, String::new()),
                Node::Fifo => ('p', 0, 0, String::new()),
            };
            let capability = entry.xattrs.get(&b"security.capability"[..]).map(|value| text(value)).unwrap_or_default();
            Row(text(path.as_bytes()), kind, entry.mode, entry.uid, entry.gid, number, minor, link, capability)
        };
        let texts = |paths: &[TarPath]| paths.iter().map(|path| text(path.as_bytes())).collect();
        Self {
            entries: index.entries.iter().map(row).collect(),
            whiteouts: texts(&index.whiteouts),
            opaque: texts(&index.opaque),
            passwd: index.accounts.passwd.clone(),
            group: index.accounts.group.clone(),
        }
    }

    fn index(self) -> Option<Index> {
        let row = |Row(path, kind, mode, uid, gid, number, minor, link, capability)| {
            let small = u32::try_from(number);
            let node = match kind {
                'd' => Node::Directory,
                'f' => Node::File { size: number },
                'l' => Node::Symlink(bytes(&link)?),
                'h' => Node::Hardlink(TarPath::normal(bytes(&link)?)),
                'c' => Node::Character { major: small.ok()?, minor },
                'b' => Node::Block { major: small.ok()?, minor },
                'p' => Node::Fifo,
                _ => return None,
            };
            let mut entry = Entry { node, mode, uid, gid, xattrs: Default::default() };
            if !capability.is_empty() {
                entry.xattrs.insert(b"security.capability".to_vec(), bytes(&capability)?);
            }
            Some((TarPath::normal(bytes(&path)?), entry))
        };
        let paths =
            |texts: Vec<String>| texts.iter().map(|text| bytes(text).map(TarPath::normal)).collect::<Option<Vec<_>>>();
        Some(Index {
            entries: self.entries.into_iter().map(row).collect::<Option<_>>()?,
            whiteouts: paths(self.whiteouts)?,
            opaque: paths(self.opaque)?,
            accounts: Accounts { passwd: self.passwd, group: self.group },
        })
    }
}
