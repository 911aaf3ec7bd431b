//! How two images, or two layers, differ: by stratum, from the manifest down to the bytes, with what makes such a difference.
//!
//! An image's digest is one number, and when it is another nobody knows why. This says why. It looks at blobs of the store alone, and
//! decides nothing: `--check` and `jiji diff` show what it finds, `--locked` adds it to its error.

mod cause;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, Read};

use jiji_model::digest::Digest;
use jiji_model::image::{Descriptor, Image, MANIFEST};
use jiji_sandbox::{UnpackLimits, each_entry};
use jiji_store::{Layer, Store, StoreError};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::layer::{Entry, Node, TarPath};
use super::rootfs::{IndexError, Layers, entry_of};

pub use cause::Cause;

/// Differences that are told one by one; more are counted.
pub const MOST: usize = 100;

/// Files of which bytes are compared, and how large they may be.
const FILES: usize = 20;
const FILE_LIMIT: u64 = 8 << 20;

/// The longest manifest or configuration that is read, in bytes.
const JSON_LIMIT: u64 = 8 << 20;

/// Characters shown before and after the first byte that differs.
const AROUND: usize = 24;

/// How deep a difference lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stratum {
    /// The manifest itself.
    Manifest,
    /// The configuration.
    Config,
    /// A layer as a whole.
    Layer,
    /// A file of a layer: that it is there, its mode, owner, time, what it links to.
    File,
    /// The bytes of a file.
    Bytes,
}

impl Stratum {
    /// Its name, for people and in events.
    pub fn name(self) -> &'static str {
        match self {
            Self::Manifest => "manifest",
            Self::Config => "config",
            Self::Layer => "layer",
            Self::File => "file",
            Self::Bytes => "bytes",
        }
    }
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// How deep it lies.
    pub stratum: Stratum,
    /// Where: a field, a layer's number, a path.
    pub place: String,
    /// What differs.
    pub what: String,
    /// What makes such a difference, where it can be told.
    pub cause: Option<Cause>,
}

impl Difference {
    fn new(stratum: Stratum, place: impl Into<String>, what: impl Into<String>) -> Self {
        Self { stratum, place: place.into(), what: what.into(), cause: None }
    }

    fn by(self, cause: Cause) -> Self {
        Self { cause: Some(cause), ..self }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<8} {}: {}", self.stratum.name(), self.place, self.what)?;
        match self.cause {
            Some(cause) => write!(f, " ({})", cause.name()),
            None => Ok(()),
        }
    }
}

/// Differences as lines, each cause's way out once at its end.
pub fn lines(differences: &[Difference]) -> Vec<String> {
    let mut lines: Vec<String> = differences.iter().take(MOST).map(ToString::to_string).collect();
    if differences.len() > MOST {
        lines.push(format!("and {} more", differences.len() - MOST));
    }
    let causes: BTreeSet<Cause> = differences.iter().filter_map(|difference| difference.cause).collect();
    lines.extend(causes.into_iter().map(|cause| format!("{}: {}", cause.name(), cause.hint())));
    lines
}

/// Why two images could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// A blob could not be had.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A layer could not be read.
    #[error(transparent)]
    Layer(#[from] IndexError),
    /// A manifest or a configuration is none.
    #[error("read `{digest}` as JSON: {reason}")]
    Json {
        /// The blob.
        digest: Digest,
        /// What is wrong with it.
        reason: String,
    },
}

/// How two images differ. Empty if their manifests are equal, and never else.
///
/// # Errors
/// When a blob of one of them is not in the store or cannot be read.
pub fn images(one: &Image, other: &Image, store: &Store) -> Result<Vec<Difference>, CompareError> {
    if one.manifest.digest == other.manifest.digest {
        return Ok(Vec::new());
    }
    let digests = format!("{} → {}", one.manifest.digest, other.manifest.digest);
    let mut found = vec![Difference::new(Stratum::Manifest, "digest", digests)];
    let (first, second) = (json(&one.manifest.digest, store)?, json(&other.manifest.digest, store)?);
    values(Stratum::Manifest, "", &first, &second, &["/config", "/layers"], &mut found);
    let (first, second) = (json(&one.config.digest, store)?, json(&other.config.digest, store)?);
    values(Stratum::Config, "", &first, &second, &["/rootfs/diff_ids"], &mut found);
    let diff_ids = |config: &Value| -> Vec<Digest> {
        let list = config.pointer("/rootfs/diff_ids").cloned();
        list.and_then(|list| serde_json::from_value(list).ok()).unwrap_or_default()
    };
    let (ours, theirs) = (diff_ids(&first), diff_ids(&second));
    if one.layers.len() != other.layers.len() {
        let counts = format!("{} → {}", one.layers.len(), other.layers.len());
        found.push(Difference::new(Stratum::Layer, "count", counts));
    }
    let layers = |image: &Image, diff_ids: &[Digest]| -> Vec<Layer> {
        let pairs = diff_ids.iter().zip(&image.layers);
        pairs.map(|(diff_id, blob)| Layer { diff_id: *diff_id, blob: blob.clone() }).collect()
    };
    let history = instructions(&first);
    for (number, (ours, theirs)) in layers(one, &ours).iter().zip(&layers(other, &theirs)).enumerate() {
        let by = history.get(number).map_or(String::new(), |text| format!(", {text}"));
        let place = format!("{}{by}", number + 1);
        if ours.diff_id != theirs.diff_id {
            found.push(Difference::new(Stratum::Layer, place, format!("{} → {}", ours.diff_id, theirs.diff_id)));
            found.extend(self::layers(Some(ours), Some(theirs), store)?);
        } else if ours.blob != theirs.blob {
            let how = |layer: &Layer| layer.blob.media_type.rsplit(['.', '+']).next().unwrap_or_default().to_owned();
            let (ours, theirs) = ((ours.blob.digest, how(ours)), (theirs.blob.digest, how(theirs)));
            let otherwise = if ours.1 == theirs.1 { String::new() } else { format!(", {} → {}", ours.1, theirs.1) };
            let what = format!("{} → {}: the same files, compressed otherwise{otherwise}", ours.0, theirs.0);
            found.push(Difference::new(Stratum::Layer, place, what).by(Cause::Compression));
        }
    }
    Ok(found)
}

/// How an image differs from one whose manifest is in the store, as lines; none where that one is not here as a whole.
pub(super) fn with_stored(expected: &Digest, image: &Image, store: &Store) -> Vec<String> {
    let compared = stored(expected, image, store).and_then(|expected| images(&expected, image, store));
    // What cannot be looked at cannot be shown; that they differ is said all the same.
    compared.map(|differences| lines(&differences)).unwrap_or_default()
}

/// The image of a manifest in the store. It takes the names of another, which it does not say itself.
///
/// # Errors
/// When the manifest is not in the store or is none.
pub fn stored(manifest: &Digest, like: &Image, store: &Store) -> Result<Image, CompareError> {
    let value = json(manifest, store)?;
    let wrong = |reason: String| CompareError::Json { digest: *manifest, reason };
    let descriptor = |value: &Value| -> Result<Descriptor, CompareError> {
        let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
        let digest = text("digest").parse().map_err(|_| wrong("a digest is missing".to_owned()))?;
        let size = value.get("size").and_then(Value::as_u64).ok_or_else(|| wrong("a size is missing".to_owned()))?;
        Ok(Descriptor { media_type: text("mediaType").to_owned(), digest, size })
    };
    let config = value.get("config").ok_or_else(|| wrong("it names no configuration".to_owned()))?;
    let layers = value.get("layers").and_then(Value::as_array).into_iter().flatten();
    let size = store.has(manifest)?.unwrap_or_default();
    let media_type = value.get("mediaType").and_then(Value::as_str).unwrap_or(MANIFEST).to_owned();
    Ok(Image {
        manifest: Descriptor { media_type, digest: *manifest, size },
        config: descriptor(config)?,
        layers: layers.map(descriptor).collect::<Result<_, _>>()?,
        ..like.clone()
    })
}

/// How the files of two layers differ; none is a layer without any.
///
/// # Errors
/// When one is not in the store or cannot be read.
pub fn layers(one: Option<&Layer>, other: Option<&Layer>, store: &Store) -> Result<Vec<Difference>, CompareError> {
    let read = |layer: Option<&Layer>| layer.map_or_else(|| Ok(Files::default()), |layer| Files::read(layer, store));
    let (ours, theirs) = (read(one)?, read(other)?);
    let mut found = Vec::new();
    let mut contents = BTreeSet::new();
    let paths: BTreeSet<&TarPath> = ours.by_path.keys().chain(theirs.by_path.keys()).collect();
    for path in paths {
        match (ours.by_path.get(path), theirs.by_path.get(path)) {
            (Some(_), None) => found.push(Difference::new(Stratum::File, path.to_string(), "only in the first")),
            (None, Some(_)) => found.push(Difference::new(Stratum::File, path.to_string(), "only in the second")),
            (Some(ours), Some(theirs)) => {
                if ours.differ(theirs, path, &mut found) {
                    contents.insert(path.clone());
                }
            }
            (None, None) => {}
        }
    }
    if found.is_empty() && contents.is_empty() && ours.order != theirs.order {
        found.push(Difference::new(Stratum::Layer, "entries", "in another order").by(Cause::Order));
    }
    let some: BTreeSet<TarPath> = contents.iter().take(FILES).cloned().collect();
    let bytes = |layer: Option<&Layer>| layer.map_or_else(|| Ok(BTreeMap::new()), |layer| take(layer, &some, store));
    let (our_bytes, their_bytes) = (bytes(one)?, bytes(other)?);
    for path in contents {
        let (ours, theirs) = (&ours.by_path[&path], &theirs.by_path[&path]);
        let mut sizes = format!("{} bytes each", ours.size());
        if ours.size() != theirs.size() {
            sizes = format!("{} → {} bytes", ours.size(), theirs.size());
        }
        found.push(Difference::new(Stratum::File, path.to_string(), format!("other content, {sizes}")));
        if let (Some(ours), Some(theirs)) = (our_bytes.get(&path), their_bytes.get(&path)) {
            let (at, what) = first_difference(ours, theirs);
            let difference = Difference::new(Stratum::Bytes, format!("{path} at {at}"), what);
            found.push(difference.by(cause::of(&path.to_string(), ours, theirs)));
        }
    }
    Ok(found)
}

/// The files of a layer that hold one of these texts, with the text: what should be in no layer.
///
/// # Errors
/// When it is not in the store or cannot be read.
pub fn holding(layer: &Layer, texts: &[String], store: &Store) -> Result<Vec<(TarPath, String)>, CompareError> {
    let mut found = Vec::new();
    each(layer, store, &mut |path, _, content| {
        let mut bytes = Vec::new();
        // What is written by hand or by a shell is short.
        content.take(64 << 10).read_to_end(&mut bytes)?;
        let holds = |text: &&String| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        found.extend(texts.iter().find(holds).map(|text| (path.clone(), text.clone())));
        Ok(())
    })?;
    Ok(found)
}

fn json(digest: &Digest, store: &Store) -> Result<Value, CompareError> {
    let bytes = store.read(digest, JSON_LIMIT)?;
    serde_json::from_slice(&bytes).map_err(|error| CompareError::Json { digest: *digest, reason: error.to_string() })
}

/// The instructions that made layers, in their order.
fn instructions(config: &Value) -> Vec<String> {
    let history = config.get("history").and_then(Value::as_array).into_iter().flatten();
    let made = history.filter(|entry| entry.get("empty_layer") != Some(&Value::Bool(true)));
    let text = |entry: &Value| entry.get("created_by").and_then(Value::as_str).unwrap_or_default().to_owned();
    made.map(|entry| text(entry).lines().next().unwrap_or_default().to_owned()).collect()
}

/// How two JSON values differ, but for what stands below `without`.
fn values(stratum: Stratum, pointer: &str, one: &Value, other: &Value, without: &[&str], found: &mut Vec<Difference>) {
    if one == other || without.contains(&pointer) {
        return;
    }
    let nothing = Value::Null;
    match (one, other) {
        (Value::Object(ours), Value::Object(theirs)) => {
            let keys: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
            for key in keys {
                let (one, other) = (ours.get(key).unwrap_or(&nothing), theirs.get(key).unwrap_or(&nothing));
                values(stratum, &format!("{pointer}/{key}"), one, other, without, found);
            }
        }
        (Value::Array(ours), Value::Array(theirs)) => {
            for number in 0..ours.len().max(theirs.len()) {
                let (one, other) = (ours.get(number).unwrap_or(&nothing), theirs.get(number).unwrap_or(&nothing));
                values(stratum, &format!("{pointer}/{number}"), one, other, without, found);
            }
        }
        _ => {
            let difference = Difference::new(stratum, pointer, format!("{one} → {other}"));
            let texts = one.as_str().zip(other.as_str());
            let cause = texts.map(|(one, other)| cause::of(pointer, one.as_bytes(), other.as_bytes()));
            found.push(Difference { cause: cause.filter(|cause| *cause == Cause::Time), ..difference });
        }
    }
}

/// What a header says, and what the content hashes to.
#[derive(Debug, PartialEq, Eq)]
struct File {
    entry: Entry,
    time: u64,
    content: Digest,
}

impl File {
    fn size(&self) -> u64 {
        match self.entry.node {
            Node::File { size } => size,
            _ => 0,
        }
    }

    /// Tells how the headers differ. True if both are files and their contents are to be compared.
    fn differ(&self, other: &Self, path: &TarPath, found: &mut Vec<Difference>) -> bool {
        let mut tell = |what: String, cause: Option<Cause>| {
            found.push(Difference { cause, ..Difference::new(Stratum::File, path.to_string(), what) });
        };
        let (ours, theirs) = (&self.entry, &other.entry);
        let both = matches!((&ours.node, &theirs.node), (Node::File { .. }, Node::File { .. }));
        if !both && ours.node != theirs.node {
            tell(format!("{} → {}", kind(&ours.node), kind(&theirs.node)), None);
        }
        if ours.mode != theirs.mode {
            tell(format!("mode {:04o} → {:04o}", ours.mode, theirs.mode), Some(Cause::Mode));
        }
        if (ours.uid, ours.gid) != (theirs.uid, theirs.gid) {
            let owners = format!("owner {}:{} → {}:{}", ours.uid, ours.gid, theirs.uid, theirs.gid);
            tell(owners, Some(Cause::Owner));
        }
        if ours.xattrs != theirs.xattrs {
            tell("other extended attributes".to_owned(), None);
        }
        if self.time != other.time {
            tell(format!("modified at {} → {}", self.time, other.time), Some(Cause::Time));
        }
        both && self.content != other.content
    }
}

fn kind(node: &Node) -> String {
    match node {
        Node::Directory => "a directory".to_owned(),
        Node::File { .. } => "a file".to_owned(),
        Node::Symlink(to) => format!("a link to `{}`", String::from_utf8_lossy(to)),
        Node::Hardlink(to) => format!("another name of `{to}`"),
        Node::Character { major, minor } => format!("a character device {major}:{minor}"),
        Node::Block { major, minor } => format!("a block device {major}:{minor}"),
        Node::Fifo => "a named pipe".to_owned(),
    }
}

#[derive(Debug, Default)]
struct Files {
    by_path: BTreeMap<TarPath, File>,
    order: Vec<TarPath>,
}

impl Files {
    fn read(layer: &Layer, store: &Store) -> Result<Self, CompareError> {
        let mut files = Self::default();
        each(layer, store, &mut |path, (entry, time), content| {
            let mut hash = Sha256::new();
            let mut block = [0; 16 << 10];
            loop {
                match content.read(&mut block)? {
                    0 => break,
                    count => hash.update(&block[..count]),
                }
            }
            let content = Digest::from_bytes(hash.finalize().into());
            files.order.push(path.clone());
            files.by_path.insert(path.clone(), File { entry, time, content });
            Ok(())
        })?;
        Ok(files)
    }
}

type Visit<'a> = dyn FnMut(&TarPath, (Entry, u64), &mut dyn Read) -> io::Result<()> + 'a;

/// Goes through the entries of a layer: path, header, time, content.
fn each(layer: &Layer, store: &Store, visit: &mut Visit<'_>) -> Result<(), CompareError> {
    let tar = Layers::new(store).open(&layer.blob)?;
    let show = |entry: &mut jiji_sandbox::Entry<'_, _>| -> io::Result<()> {
        let path = TarPath::normal(&*entry.path_bytes());
        if let Some(known) = entry_of(entry)? {
            let time = entry.header().mtime().unwrap_or_default();
            visit(&path, (known, time), entry)?;
        }
        Ok(())
    };
    let read = each_entry(tar, UnpackLimits::default(), show).map(drop);
    read.map_err(|source| IndexError::Read { digest: layer.blob.digest, source }.into())
}

/// The contents of some files of a layer, where they are not too large.
fn take(layer: &Layer, paths: &BTreeSet<TarPath>, store: &Store) -> Result<BTreeMap<TarPath, Vec<u8>>, CompareError> {
    let mut taken = BTreeMap::new();
    each(layer, store, &mut |path, (entry, _), content| {
        if paths.contains(path) && matches!(entry.node, Node::File { size } if size <= FILE_LIMIT) {
            let mut bytes = Vec::new();
            content.read_to_end(&mut bytes)?;
            taken.insert(path.clone(), bytes);
        }
        Ok(())
    })?;
    Ok(taken)
}

/// Where two contents part, and what stands there.
fn first_difference(one: &[u8], other: &[u8]) -> (usize, String) {
    let at = one.iter().zip(other).position(|(a, b)| a != b).unwrap_or(one.len().min(other.len()));
    let around = |bytes: &[u8]| {
        let window = &bytes[at.saturating_sub(AROUND).min(bytes.len())..(at + AROUND).min(bytes.len())];
        window.escape_ascii().to_string()
    };
    (at, format!("`{}` → `{}`", around(one), around(other)))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use jiji_model::image::Compression;

    use super::*;
    use crate::build::layer::{Form, LayerWriter};

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path()).expect("a store");
        (dir, store)
    }

    fn layer(store: &Store, files: &[(&str, u32, &str)]) -> Layer {
        let mut writer =
            LayerWriter::new(store, Form { epoch: 0, compression: Compression::Gzip, threads: 1 }).expect("begun");
        for (name, mode, text) in files {
            let entry = Entry::file(*mode, text.len() as u64);
            writer.file(&TarPath::normal(name), &entry, None, &mut Cursor::new(text)).expect("written");
        }
        writer.finish().expect("finished")
    }

    #[test]
    fn files_that_differ_are_told_down_to_their_bytes_and_with_the_cause() {
        let (_dir, store) = store();
        let one = layer(&store, &[("list", 0o644, "b\na\n"), ("now", 0o644, "at 13:04:11\n"), ("old", 0o644, "")]);
        let other = layer(&store, &[("list", 0o644, "a\nb\n"), ("new", 0o644, ""), ("now", 0o600, "at 13:04:12\n")]);
        let told = lines(&layers(Some(&one), Some(&other), &store).expect("compared"));
        assert_eq!(
            told[..7],
            [
                "file     /new: only in the second",
                "file     /now: mode 0644 → 0600 (mode)",
                "file     /old: only in the first",
                "file     /list: other content, 4 bytes each",
                r"bytes    /list at 0: `b\na\n` → `a\nb\n` (order)",
                "file     /now: other content, 12 bytes each",
                r"bytes    /now at 10: `at 13:04:11\n` → `at 13:04:12\n` (time)",
            ]
        );
        assert!(told.iter().any(|line| line.starts_with("time: ") && line.contains("SOURCE_DATE_EPOCH")), "{told:?}");
        assert!(layers(Some(&one), Some(&one), &store).expect("compared").is_empty());
        let gone = layers(Some(&one), None, &store).expect("compared");
        assert_eq!(gone.len(), 3);
    }

    #[test]
    fn a_text_that_should_be_in_no_layer_is_found() {
        let (_dir, store) = store();
        let one = layer(&store, &[("day", 0o644, "built on 2026-11-28\n"), ("other", 0o644, "x")]);
        let found = holding(&one, &["2026-11-28".to_owned()], &store).expect("read");
        assert_eq!(found, [(TarPath::normal("day"), "2026-11-28".to_owned())]);
    }
}
