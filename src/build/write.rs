//! Entries and where their contents are, as a layer.

use std::collections::BTreeMap;
use std::io::{self, Read};

use jiji_model::digest::Digest;
use jiji_store::{Layer, Store};

use super::layer::{Form, LayerError, LayerWriter, Node, TarPath};
use super::rootfs::{Content, Found};

/// Opens a content, given its length in bytes.
pub(super) type Open<'a> = dyn Fn(&Content, u64) -> io::Result<Box<dyn Read>> + 'a;

/// Writes a layer of these entries. `digest` says what a content must hash to, where that is
/// known; `open` opens it.
///
/// # Errors
/// When a content cannot be read, or is another than expected, or the store cannot be written.
pub(super) fn write_layer(
    entries: &BTreeMap<TarPath, Found>,
    form: Form,
    store: &Store,
    digest: &dyn Fn(&Content) -> Option<Digest>,
    open: &Open<'_>,
) -> Result<Layer, LayerError> {
    let mut layer = LayerWriter::new(store, form)?;
    for (path, found) in entries {
        let Node::File { size } = found.entry.node else {
            layer.entry(path, &found.entry)?;
            continue;
        };
        if found.content == Content::None {
            layer.entry(path, &found.entry)?;
            continue;
        }
        let failed = |source| LayerError::Content { path: path.clone(), source };
        let mut content = open(&found.content, size).map_err(failed)?;
        layer.file(path, &found.entry, digest(&found.content).as_ref(), &mut content)?;
    }
    layer.finish()
}
