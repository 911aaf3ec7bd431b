//! COPY of much that nobody has seen: its files are read once, and hashed while the layer is written.
//!
//! Otherwise they are read for the step's key, and again where nothing is remembered under it. That cannot be known before; but where no layer was
//! ever made of these paths, modes and sizes, nothing can be remembered of what is in them. This is asked by a record that has them all for its
//! name, the entries' shape. In the end the same is remembered, and the layer is what its key says, since both are of one reading.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiji_model::digest::Digest;
use jiji_store::Layer;

use super::steps::{Put, Stepped, digest_of, files, refuse_special};
use super::{Evaluation, Given, Memory, keys};
use crate::build::contents::{File, Moment, Read, Stat};
use crate::build::context::{ContextError, Root};
use crate::build::copy::{self, Selected, Source};
use crate::build::layer::{LayerError, LayerWriter, TarPath};
use crate::build::rootfs::{Content, Found};

/// Less is read twice without anybody noticing, in bytes.
const MUCH: u64 = 16 << 20;

/// What a COPY takes from the context.
pub(super) enum Chosen {
    /// Much of it is not known, and nothing of it was read before this moment.
    Unseen(Vec<Selected>, Option<Moment>),
    /// Little of it, or it has to be known before anything is written.
    Seen(Vec<Selected>),
}

/// What was read of files of the context.
type Reading = Vec<(Arc<File>, Read)>;

impl Evaluation<'_> {
    /// What a COPY takes from the context. Of its files those are known that are remembered.
    pub(super) fn choose(&self, sources: &[Source], put: &Put<'_>) -> Stepped<Chosen> {
        self.with_context(|tree, contents| {
            let selected = copy::select(sources, &put.choice, tree, "the context")?;
            refuse_special(&selected)?;
            let unknown: u64 = contents.recall(files(&selected)).iter().map(|file| file.stat.size()).sum();
            // Archives are looked into, what is packed becomes several layers, and who wants to know why a step is done is told before it is done.
            let plain =
                put.to.get("unpack").is_none() && !sources.iter().any(|source| matches!(source, Source::Fetched(..)));
            let first =
                matches!(self.memory, Memory::Compare(_)) || self.request.explain || !plain || put.packed.is_some();
            Ok(if first || unknown < MUCH {
                Chosen::Seen(selected)
            } else {
                Chosen::Unseen(selected, contents.moment())
            })
        })
    }

    /// The layer of a COPY of which much is not known, unless something may be remembered of it.
    pub(super) fn copy_unseen(
        &self,
        selected: &[Selected],
        moment: Option<Moment>,
        put: &Put<'_>,
    ) -> Stepped<Option<Given>> {
        let (epoch, below) = (self.request.epoch, &put.state.draft.layers);
        let entries = self.entries(selected, put)?;
        let shape = keys::shape(&entries, epoch);
        if self.recall_one(&shape)?.is_some() {
            return Ok(None);
        }
        let (layer, read) = self.write_unknown(&entries)?;
        self.with_context(|_, contents| {
            for (file, read) in &read {
                contents.take(file, read, moment);
            }
            Ok(())
        })?;
        let key = keys::copy(below, epoch, &keys::selected(selected, &digest_of), &put.to);
        self.passed(put.instruction, &key, put.state);
        let mut parts = put.parts(epoch);
        parts.files(keys::files(selected, &digest_of));
        self.remember_entries(&entries, &keys::entries(&entries, epoch, &digest_of), &layer)?;
        let layers = vec![layer];
        self.remember(&key, &layers, Some(parts))?;
        Ok(Some(Given { layers, cached: false }))
    }

    /// Writes a layer of files of the context, and says what was read of those that were not known.
    fn write_unknown(&self, entries: &BTreeMap<TarPath, Found>) -> Stepped<(Layer, Reading)> {
        let root = Root::new(&self.request.context);
        let mut layer = LayerWriter::new(self.builder.store, self.request.form())?;
        let mut known = Reading::new();
        for (path, Found { entry, content }) in entries {
            match content {
                Content::Context(file) => {
                    let failed = |source| ContextError::Read { path: file.path.clone(), source };
                    let (mut content, metadata) = root.open(&file.path).map_err(failed)?;
                    if let Some(digest) = file.digest() {
                        layer.file(path, entry, Some(&digest), &mut content)?;
                        continue;
                    }
                    let digest = layer.unknown(path, entry, &mut content)?;
                    // Another stage may have read it meanwhile.
                    if !file.is(digest) {
                        return Err(LayerError::Changed { path: path.clone() }.into());
                    }
                    known.push((Arc::clone(file), Read { stat: Stat::of(&metadata), digest }));
                }
                Content::Bytes(bytes) => layer.file(path, entry, None, &mut bytes.as_slice())?,
                _ => layer.entry(path, entry)?,
            }
        }
        Ok((layer.finish()?, known))
    }

    /// Remembers the layer of these entries under their name, and much of the context under its shape as well.
    pub(super) fn remember_entries(
        &self,
        entries: &BTreeMap<TarPath, Found>,
        name: &Digest,
        layer: &Layer,
    ) -> Stepped<()> {
        let layer = std::slice::from_ref(layer);
        self.remember(name, layer, None)?;
        let size = |found: &Found| match &found.content {
            Content::Context(file) => file.stat.size(),
            _ => 0,
        };
        if entries.values().map(size).sum::<u64>() < MUCH {
            return Ok(());
        }
        self.remember(&keys::shape(entries, self.request.epoch), layer, None)
    }
}
