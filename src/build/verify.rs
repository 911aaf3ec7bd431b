//! Whether the store still holds what builds put into it: every blob is hashed, every record read and compared with the layer it names.
//!
//! What is damaged is removed, since all of it can be made or fetched again; what is not there is no damage. Nothing here counts as use, so
//! that looking does not keep old things young.

use std::collections::HashMap;
use std::io::{self, Read as _};

use jiji_model::digest::Digest;
use jiji_store::{Layer, Store, StoreError};
use sha2::{Digest as _, Sha256};

use super::rootfs::Layers;
use super::{contents, git, rootfs, stage};

/// What was looked at, and what was wrong with it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// Blobs that were hashed.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Records that were read.
    pub records: u64,
    /// What was damaged. It is removed.
    pub damaged: Vec<Damage>,
}

/// Something that was damaged, and was removed for it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// A blob has other bytes.
    #[error("blob `{digest}` has other bytes: they are `{actual}`")]
    Blob {
        /// Its name.
        digest: Digest,
        /// What it was.
        actual: Digest,
    },
    /// What a step gave cannot be read, or is not the layer that it names.
    #[error("what the step `{key}` gave: {reason}")]
    Step {
        /// The step's key.
        key: Digest,
        /// What is wrong with it.
        reason: String,
    },
    /// How a layer was compressed cannot be read, or is another layer.
    #[error("how the layer `{diff_id}` was compressed with {codec}: {reason}")]
    Layer {
        /// The layer.
        diff_id: Digest,
        /// How it was compressed.
        codec: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Looks through the whole store and removes what is damaged.
///
/// # Errors
/// When the store cannot be read or written.
pub fn verify(store: &Store) -> Result<Verified, StoreError> {
    let store = &store.looking();
    let blobs = store.verify()?;
    let mut verified = Verified { blobs: blobs.blobs, bytes: blobs.bytes, ..Verified::default() };
    for (digest, actual) in blobs.damaged {
        store.remove(&digest)?;
        verified.damaged.push(Damage::Blob { digest, actual });
    }
    let mut known = HashMap::new();
    let mut names = store.layers()?;
    names.sort();
    for (diff_id, codec) in names {
        verified.records += 1;
        let reason = match store.layer(&diff_id, &codec) {
            Ok(None) => None,
            Ok(Some(layer)) => wrong(&layer, store, &mut known),
            Err(StoreError::Record { reason, .. }) => Some(reason),
            Err(error) => return Err(error),
        };
        if let Some(reason) = reason {
            store.forget_layer(&diff_id, &codec)?;
            verified.damaged.push(Damage::Layer { diff_id, codec, reason });
        }
    }
    let mut keys = store.actions()?;
    keys.sort();
    for key in keys {
        // Another process may have removed it since.
        let Some(record) = store.action(&key)? else { continue };
        verified.records += 1;
        let reason = match stage::result(&record) {
            Some(layers) => {
                let mut reason = None;
                for layer in layers {
                    if store.has(&layer.blob.digest)? == Some(layer.blob.size) {
                        reason = reason.or_else(|| wrong(&layer, store, &mut known));
                    }
                }
                reason
            }
            None if contents::is_record(&record)
                || rootfs::is_record(&record)
                || stage::is_record(&record)
                || stage::is_recording(&record)
                || git::is_record(&record) =>
            {
                None
            }
            None => Some("it cannot be read".to_owned()),
        };
        if let Some(reason) = reason {
            store.forget_action(&key)?;
            verified.damaged.push(Damage::Step { key, reason });
        }
    }
    Ok(verified)
}

/// What is wrong with what a record says of a layer whose blob is here.
fn wrong(layer: &Layer, store: &Store, known: &mut HashMap<Digest, Result<Digest, String>>) -> Option<String> {
    let blob = &layer.blob;
    let actual = known.entry(blob.digest).or_insert_with(|| {
        let mut tar = Layers::new(store).open(blob).map_err(|error| error.to_string())?;
        let mut hash = Sha256::new();
        let mut block = vec![0; 256 * 1024];
        loop {
            match tar.read(&mut block) {
                Ok(0) => return Ok(Digest::from_bytes(hash.finalize().into())),
                Ok(count) => hash.update(&block[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(format!("blob `{}` cannot be unpacked: {error}", blob.digest)),
            }
        }
    });
    match actual {
        Ok(actual) if *actual == layer.diff_id => None,
        Ok(actual) => Some(format!("blob `{}` is the layer `{actual}`", blob.digest)),
        // Collected since it was asked for: nothing is wrong with the record.
        Err(_) if matches!(store.has(&blob.digest), Ok(None)) => None,
        Err(reason) => Some(reason.clone()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Cursor;

    use jiji_model::image::Compression;

    use super::*;
    use crate::build::layer::{Entry, Form, LayerWriter, TarPath, codec};

    fn layer(store: &Store, text: &str, compression: Compression) -> Layer {
        let mut writer = LayerWriter::new(store, Form { epoch: 0, compression, threads: 1 }).expect("begun");
        let entry = Entry::file(0o644, text.len() as u64);
        writer.file(&TarPath::normal("file"), &entry, None, &mut Cursor::new(text)).expect("written");
        writer.finish().expect("finished")
    }

    #[test]
    fn what_is_damaged_is_named_and_removed_and_the_rest_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path()).expect("a store");
        let [good, bad, other] =
            [("good", Compression::Zstd), ("bad", Compression::Gzip), ("other", Compression::Gzip)]
                .map(|(text, compression)| layer(&store, text, compression));
        let record = |layer: &Layer| jiji_model::digest::canonical_json(&serde_json::json!({"layer": layer}));
        let [right, wrong, torn] = ["right", "wrong", "torn"].map(Digest::of);
        store.record_action(&right, &record(&good)).expect("recorded");
        store.record_action(&wrong, &record(&Layer { diff_id: good.diff_id, ..other.clone() })).expect("recorded");
        store.record_action(&torn, b"{\"layer\":{\"di").expect("recorded");
        let gzip = codec(Compression::Gzip);
        let clean = |store: &Store| verify(store).expect("verified").damaged.is_empty();
        assert!(!clean(&store));
        assert!(clean(&store), "what was damaged is gone");
        assert!(store.action(&right).expect("read").is_some());
        for gone in [wrong, torn] {
            assert!(store.action(&gone).expect("read").is_none());
        }

        fs::write(store.blob_path(&bad.blob.digest), "x").expect("damaged");
        fs::write(dir.path().join("layers").join(format!("{}.{gzip}", other.diff_id.hex())), "{}").expect("damaged");
        let verified = verify(&store).expect("verified");
        assert_eq!((verified.blobs, verified.records), (3, 4));
        let [blob, record] = &verified.damaged[..] else { panic!("{verified:?}") };
        assert_eq!(*blob, Damage::Blob { digest: bad.blob.digest, actual: Digest::of("x") });
        assert!(matches!(record, Damage::Layer { diff_id, .. } if *diff_id == other.diff_id), "{record}");
        assert_eq!(store.has(&bad.blob.digest).expect("looked"), None);
        assert!(store.layer(&good.diff_id, codec(Compression::Zstd)).expect("read").is_some());
        assert!(clean(&store));
    }
}
