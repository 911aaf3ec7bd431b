//! The names of steps: SHA-256 of everything that their results depend on, as canonical JSON.
//!
//! A key holds the content below (the layers' `diff_id`s), never how it came about: a step below that is done anew and gives the same
//! leaves everything above it cached. The texts of `Value`s built here are a format; [`FORMAT`] is its version.

use std::borrow::Cow;
use std::collections::BTreeMap;

use jiji_model::digest::Digest;
use jiji_model::image::Compression;
use jiji_store::{Layer, Store, StoreError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::explain::Parts;
use super::steps::digest_of;
use crate::build::copy::Selected;
use crate::build::execute::{CLEANUPS, Network, RunStep};
use crate::build::layer::{self, LAYER_FORMAT, Node, TarPath};
use crate::build::rootfs::{Content, Found};

/// The version of the keys' texts. Raised with any change to them, or to what a step of the same text does.
const FORMAT: u32 = 1;

/// The versions that are in every key: of keys, of layers, of the sandbox.
pub(super) const RULES: [u32; 3] = [FORMAT, LAYER_FORMAT, jiji_sandbox::VERSION];

/// What a key is the digest of, written as it is walked: a COPY may take a hundred thousand files.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Key<'a, S> {
    epoch: u64,
    format: u32,
    kind: &'a str,
    layer_format: u32,
    layers: Vec<Digest>,
    step: S,
}

fn key(kind: &str, layers: &[Layer], epoch: u64, step: &impl Serialize) -> Digest {
    let layers = layers.iter().map(|layer| layer.diff_id).collect();
    Digest::of_json(&Key { epoch, format: FORMAT, kind, layer_format: LAYER_FORMAT, layers, step })
}

/// RUN, and what is said of its mounts.
pub(super) fn run(step: &RunStep, mounts: &[Value]) -> Digest {
    let mut body = json!({
        "argv": step.argv,
        "env": step.env,
        "user": step.user,
        "workdir": step.workdir,
        "platform": step.platform,
        "network": "none",
        "sandbox": jiji_sandbox::VERSION,
    });
    let network = match step.network {
        Network::None => None,
        Network::Machine => Some("default"),
        Network::Recorded => Some("record"),
    };
    if let Some(network) = network {
        body["network"] = json!(network);
        body["clean-ups"] = json!(CLEANUPS);
    }
    if !mounts.is_empty() {
        body["mounts"] = json!(mounts);
    }
    key("run", &step.layers, step.epoch, &body)
}

/// WORKDIR: the directory and whose it is.
pub(super) fn workdir(layers: &[Layer], epoch: u64, path: &TarPath, user: &str) -> Digest {
    key("workdir", layers, epoch, &json!({"path": text(path.as_bytes()), "user": user}))
}

/// COPY.
pub(super) fn copy(layers: &[Layer], epoch: u64, sources: &impl Serialize, to: &Value) -> Digest {
    #[derive(Serialize)]
    struct Step<'a, S> {
        sources: S,
        to: &'a Value,
    }
    key("copy", layers, epoch, &Step { sources, to })
}

/// What a COPY takes from the context: every file's path, kind, mode and content.
pub(super) fn selected<'a>(
    selected: &'a [Selected],
    digest: &'a dyn Fn(&Content) -> Option<Digest>,
) -> impl Serialize + 'a {
    Each(move || {
        selected.iter().map(move |Selected { name, top, below, .. }| {
            let below =
                Each(move || below.iter().map(move |(path, found)| (text(path.as_bytes()), entry(found, digest))));
            (text(name), entry(top, digest), below)
        })
    })
}

/// A list whose items are made one after the other, as they are written.
struct Each<F>(F);

impl<F: Fn() -> I, I: Iterator<Item: Serialize>> Serialize for Each<F> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq((self.0)())
    }
}

/// The same, file by file.
pub(super) fn files<'a>(
    selected: &'a [Selected],
    digest: &'a dyn Fn(&Content) -> Option<Digest>,
) -> impl Iterator<Item = (TarPath, Value)> + 'a {
    selected.iter().flat_map(move |one| {
        let below = one.below.iter().map(|(path, found)| {
            let path = [one.path.as_bytes(), b"/", path.as_bytes()].concat();
            (TarPath::normal(path), value(entry(found, digest)))
        });
        let top = (!one.top.is_directory()).then(|| (one.path.clone(), value(entry(&one.top, digest))));
        top.into_iter().chain(below)
    })
}

/// A layer's entries: two COPYs that come to the same entries share the layer, whatever lies below.
pub(super) fn entries(
    entries: &BTreeMap<TarPath, Found>,
    epoch: u64,
    digest: &dyn Fn(&Content) -> Option<Digest>,
) -> Digest {
    key("entries", &[], epoch, &listed(entries, digest))
}

/// What a layer's entries look like before files of the context are read: everything but what these hold.
pub(super) fn shape(entries: &BTreeMap<TarPath, Found>, epoch: u64) -> Digest {
    let digest = |content: &Content| match content {
        Content::Context(_) => None,
        other => digest_of(other),
    };
    key("shape", &[], epoch, &listed(entries, &digest))
}

fn listed<'a>(
    entries: &'a BTreeMap<TarPath, Found>,
    digest: &'a dyn Fn(&Content) -> Option<Digest>,
) -> impl Serialize + 'a {
    Each(move || entries.iter().map(move |(path, found)| (text(path.as_bytes()), entry(found, digest))))
}

/// What an entry is, as far as keys say: kind, mode, owner, group, extended attributes.
#[derive(Serialize)]
struct Entry<'a>(Kind<'a>, u32, u32, u32, BTreeMap<Cow<'a, str>, Cow<'a, str>>);

/// Its kind, with what it is the kind of.
#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Kind<'a> {
    Directory,
    Fifo,
    Symlink(Cow<'a, str>),
    Hardlink(Cow<'a, str>),
    Character([u32; 2]),
    Block([u32; 2]),
    #[serde(untagged)]
    File {
        content: Option<Digest>,
        size: u64,
    },
    #[serde(untagged)]
    OfLayer {
        of: Digest,
        path: Cow<'a, str>,
    },
    #[serde(untagged)]
    OfArchive {
        archive: Digest,
        offset: u64,
        size: u64,
    },
}

fn entry<'a>(found: &'a Found, digest: &dyn Fn(&Content) -> Option<Digest>) -> Entry<'a> {
    let kind = match &found.entry.node {
        Node::Directory => Kind::Directory,
        Node::File { size } => match &found.content {
            Content::Layer(of, path) => Kind::OfLayer { of: *of, path: text(path.as_bytes()) },
            Content::Part { of, offset } => Kind::OfArchive { archive: *of, offset: *offset, size: *size },
            content => Kind::File { content: digest(content), size: *size },
        },
        Node::Symlink(target) => Kind::Symlink(text(target)),
        Node::Hardlink(target) => Kind::Hardlink(text(target.as_bytes())),
        Node::Character { major, minor } => Kind::Character([*major, *minor]),
        Node::Block { major, minor } => Kind::Block([*major, *minor]),
        Node::Fifo => Kind::Fifo,
    };
    let xattrs = found.entry.xattrs.iter().map(|(name, value)| (text(name), text(value))).collect();
    Entry(kind, found.entry.mode, found.entry.uid, found.entry.gid, xattrs)
}

pub(super) fn value(written: impl Serialize) -> Value {
    serde_json::to_value(written).expect("keys are texts")
}

/// Bytes as the characters of the same numbers, so that JSON can say them.
fn text(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) if text.is_ascii() => Cow::Borrowed(text),
        _ => bytes.iter().map(|byte| char::from(*byte)).collect(),
    }
}

/// What the store remembers of a step.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    /// None where the step changed nothing.
    layer: Option<Layer>,
    /// Those above it, where the step gave several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    more: Vec<Layer>,
    /// The parts of its key. Records of earlier versions have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parts: Option<Parts>,
}

/// The layers that a record of a step names, lowest first; none where it is no such record.
pub(in crate::build) fn read(record: &[u8]) -> Option<Vec<Layer>> {
    let Record { layer, more, .. } = serde_json::from_slice::<Record>(record).ok()?;
    Some(layer.into_iter().chain(more).collect())
}

/// What the step of this key gave, if that is remembered and all of it still in the store: compressed as it is `wanted` where it is here so,
/// or else in another way.
pub(super) fn recall(key: &Digest, wanted: Compression, store: &Store) -> Result<Option<Vec<Layer>>, StoreError> {
    /// A record, of which the parts are for those alone who want to know why a step is done.
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Result {
        layer: Option<Layer>,
        #[serde(default)]
        more: Vec<Layer>,
        #[serde(default, rename = "parts")]
        _parts: Option<serde::de::IgnoredAny>,
    }
    let Some(record) = store.action(key)? else { return Ok(None) };
    // A record that cannot be read is a step that is done again.
    let Ok(Result { layer, more, .. }) = serde_json::from_slice(&record) else { return Ok(None) };
    layer.into_iter().chain(more).map(|layer| in_store(layer, wanted, store)).collect()
}

/// A layer as it is in the store, if it is.
fn in_store(layer: Layer, wanted: Compression, store: &Store) -> Result<Option<Layer>, StoreError> {
    let here = store.has(&layer.blob.digest)? == Some(layer.blob.size);
    if here && layer.blob.media_type == wanted.media_type() {
        return Ok(Some(layer));
    }
    let known = layer::known(&layer.diff_id, wanted, store)?;
    Ok(known.or_else(|| here.then_some(layer)))
}

/// The parts of a key, as they were remembered with what its step gave: none where there is no such record, none within where it is one without them.
pub(super) fn parts(key: &Digest, store: &Store) -> Result<Option<Option<Parts>>, StoreError> {
    let Some(record) = store.action(key)? else { return Ok(None) };
    Ok(serde_json::from_slice::<Record>(&record).ok().map(|record| record.parts))
}

/// Remembers what the step of this key gave.
pub(super) fn remember(key: &Digest, layers: &[Layer], parts: Option<Parts>, store: &Store) -> Result<(), StoreError> {
    let mut layers = layers.iter().cloned();
    let record = Record { layer: layers.next(), more: layers.collect(), parts };
    store.record_action(key, &jiji_model::digest::canonical_json(&record))
}

#[cfg(test)]
mod tests {
    use jiji_model::digest::canonical_json;

    use super::*;

    #[test]
    fn what_is_written_as_it_is_walked_is_what_a_tree_would_say() {
        let found = |node, content| Found { entry: layer::Entry { node, ..layer::Entry::directory(0o755) }, content };
        let blob = Digest::of("x");
        let below = [
            found(Node::Directory, Content::None),
            found(Node::File { size: 3 }, Content::Blob(blob)),
            found(Node::File { size: 3 }, Content::Layer(blob, TarPath::normal("a/\u{e9}"))),
            found(Node::File { size: 3 }, Content::Part { of: blob, offset: 512 }),
            found(Node::Symlink(b"../\xff".to_vec()), Content::None),
            found(Node::Hardlink(TarPath::normal("b")), Content::None),
            found(Node::Character { major: 1, minor: 3 }, Content::None),
            found(Node::Fifo, Content::None),
        ];
        let below = below.into_iter().map(|found| (TarPath::normal("p"), found)).collect();
        let top = Found::directory(0o755);
        let all = [Selected { name: b"n".to_vec(), path: TarPath::normal("n"), top, below, unpacked: false }];
        let digest = |content: &Content| matches!(content, Content::Blob(_)).then_some(blob);
        let written = canonical_json(&selected(&all, &digest));
        assert_eq!(written, canonical_json(&value(selected(&all, &digest))));
        // The text is a format: keys in lock files and stores are digests of it.
        assert_eq!(
            String::from_utf8(written).expect("JSON"),
            format!(
                r#"[["n",["directory",493,0,0,{{}}],[{}]]]"#,
                [
                    r#""directory""#.to_owned(),
                    format!(r#"{{"content":"{blob}","size":3}}"#),
                    format!(r#"{{"of":"{blob}","path":"a/Ã©"}}"#),
                    format!(r#"{{"archive":"{blob}","offset":512,"size":3}}"#),
                    r#"{"symlink":"../ÿ"}"#.to_owned(),
                    r#"{"hardlink":"b"}"#.to_owned(),
                    r#"{"character":[1,3]}"#.to_owned(),
                    r#""fifo""#.to_owned(),
                ]
                .map(|kind| format!(r#"["p",[{kind},493,0,0,{{}}]]"#))
                .join(",")
            )
        );
    }
}
