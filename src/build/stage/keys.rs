//! The names of steps: SHA-256 of everything that their results depend on, as canonical JSON.
//!
//! A key holds the content below (the layers' `diff_id`s), never how it came about: a step below that is done anew and gives the same
//! leaves everything above it cached. The texts of `Value`s built here are a format; [`FORMAT`] is its version.

use std::collections::BTreeMap;

use jiji_model::digest::Digest;
use jiji_store::{Layer, Store, StoreError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::explain::Parts;
use crate::build::copy::Selected;
use crate::build::execute::{CLEANUPS, Network, RunStep};
use crate::build::layer::{LAYER_FORMAT, Node, TarPath};
use crate::build::rootfs::{Content, Found};

/// The version of the keys' texts. Raised with any change to them, or to what a step of the same text does.
const FORMAT: u32 = 1;

/// The versions that are in every key: of keys, of layers, of the sandbox.
pub(super) const RULES: [u32; 3] = [FORMAT, LAYER_FORMAT, jiji_sandbox::VERSION];

fn key(kind: &str, layers: &[Layer], epoch: u64, step: &Value) -> Digest {
    let layers: Vec<Digest> = layers.iter().map(|layer| layer.diff_id).collect();
    Digest::of_json(&json!({
        "format": FORMAT,
        "layer-format": LAYER_FORMAT,
        "kind": kind,
        "layers": layers,
        "epoch": epoch,
        "step": step,
    }))
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
    if step.network == Network::Machine {
        body["network"] = json!("default");
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
pub(super) fn copy(layers: &[Layer], epoch: u64, sources: &Value, to: &Value) -> Digest {
    key("copy", layers, epoch, &json!({"sources": sources, "to": to}))
}

/// What a COPY takes from the context: every file's path, kind, mode and content.
pub(super) fn selected(selected: &[Selected], digest: &dyn Fn(&Content) -> Option<Digest>) -> Value {
    let source = |Selected { name, top, below, .. }: &Selected| {
        let below: Vec<Value> =
            below.iter().map(|(path, found)| json!([text(path.as_bytes()), entry(found, digest)])).collect();
        json!([text(name), entry(top, digest), below])
    };
    selected.iter().map(source).collect()
}

/// The same, file by file.
pub(super) fn files<'a>(
    selected: &'a [Selected],
    digest: &'a dyn Fn(&Content) -> Option<Digest>,
) -> impl Iterator<Item = (TarPath, Value)> + 'a {
    selected.iter().flat_map(move |one| {
        let below = one.below.iter().map(|(path, found)| {
            let path = [one.path.as_bytes(), b"/", path.as_bytes()].concat();
            (TarPath::normal(path), entry(found, digest))
        });
        let top = (!one.top.is_directory()).then(|| (one.path.clone(), entry(&one.top, digest)));
        top.into_iter().chain(below)
    })
}

/// A layer's entries: two COPYs that come to the same entries share the layer, whatever lies below.
pub(super) fn entries(
    entries: &BTreeMap<TarPath, Found>,
    epoch: u64,
    digest: &dyn Fn(&Content) -> Option<Digest>,
) -> Digest {
    let list: Vec<Value> =
        entries.iter().map(|(path, found)| json!([text(path.as_bytes()), entry(found, digest)])).collect();
    key("entries", &[], epoch, &json!(list))
}

fn entry(found: &Found, digest: &dyn Fn(&Content) -> Option<Digest>) -> Value {
    let node = match &found.entry.node {
        Node::Directory => json!("directory"),
        Node::File { size } => match &found.content {
            Content::Layer(diff_id, path) => json!({"of": diff_id, "path": text(path.as_bytes())}),
            Content::Part { of, offset } => json!({"archive": of, "offset": offset, "size": size}),
            content => json!({"size": size, "content": digest(content)}),
        },
        Node::Symlink(target) => json!({"symlink": text(target)}),
        Node::Hardlink(target) => json!({"hardlink": text(target.as_bytes())}),
        Node::Character { major, minor } => json!({"character": [major, minor]}),
        Node::Block { major, minor } => json!({"block": [major, minor]}),
        Node::Fifo => json!("fifo"),
    };
    let xattrs: BTreeMap<String, String> =
        found.entry.xattrs.iter().map(|(name, value)| (text(name), text(value))).collect();
    json!([node, found.entry.mode, found.entry.uid, found.entry.gid, xattrs])
}

/// Bytes as the characters of the same numbers, so that JSON can say them.
fn text(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

/// What the store remembers of a step.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    /// None where the step changed nothing.
    layer: Option<Layer>,
    /// The parts of its key. Records of earlier versions have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parts: Option<Parts>,
}

/// The layer that a record of a step names; none within where the step changed nothing, none where it is no such record.
pub(in crate::build) fn read(record: &[u8]) -> Option<Option<Layer>> {
    serde_json::from_slice::<Record>(record).ok().map(|record| record.layer)
}

/// What the step of this key gave, if that is remembered and still in the store.
pub(super) fn recall(key: &Digest, store: &Store) -> Result<Option<Option<Layer>>, StoreError> {
    let Some(record) = store.action(key)? else { return Ok(None) };
    // A record that cannot be read is a step that is done again.
    let Ok(Record { layer, .. }) = serde_json::from_slice(&record) else { return Ok(None) };
    match &layer {
        Some(Layer { blob, .. }) if store.has(&blob.digest)? != Some(blob.size) => Ok(None),
        _ => Ok(Some(layer)),
    }
}

/// The parts of a key, as they were remembered with what its step gave: none where there is no such record, none within where it is one without them.
pub(super) fn parts(key: &Digest, store: &Store) -> Result<Option<Option<Parts>>, StoreError> {
    let Some(record) = store.action(key)? else { return Ok(None) };
    Ok(serde_json::from_slice::<Record>(&record).ok().map(|record| record.parts))
}

/// Remembers what the step of this key gave.
pub(super) fn remember(
    key: &Digest,
    layer: Option<&Layer>,
    parts: Option<Parts>,
    store: &Store,
) -> Result<(), StoreError> {
    let record = Record { layer: layer.cloned(), parts };
    store.record_action(key, &jiji_model::digest::canonical_json(&record))
}
