//! Small records: what steps gave, and how layers were compressed.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use jiji_model::digest::{Digest, canonical_json};
use jiji_model::image::Descriptor;
use serde::{Deserialize, Serialize};

use crate::blob::{name_of, remove_file};
use crate::{Store, StoreError, failed, place};

/// The longest record, in bytes: the digests or the index of some million files. Longer ones are not kept, and what is longer was not written by
/// jiji.
const LIMIT: u64 = 256 * 1024 * 1024;

/// How a layer's tar was compressed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// The SHA-256 of the tar (image-spec, config.md, "DiffID").
    pub diff_id: Digest,
    /// The compressed blob.
    pub blob: Descriptor,
}

impl Store {
    /// What the step of this key gave, if it ever ran.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Record`].
    pub fn action(&self, key: &Digest) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.action_path(key);
        let record = read_record(&path)?;
        if record.is_some() {
            self.touch(&path);
        }
        Ok(record)
    }

    /// Records what the step of this key gave. The last to record wins. What is longer than a record may be is not kept, so that it is found
    /// out again.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn record_action(&self, key: &Digest, value: &[u8]) -> Result<(), StoreError> {
        if value.len() as u64 > LIMIT {
            return self.forget_action(key).map(drop);
        }
        place::write_atomic(&self.tmp(), &self.action_path(key), value)
    }

    /// Forgets what a step gave. True if it was known.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn forget_action(&self, key: &Digest) -> Result<bool, StoreError> {
        remove_file(&self.action_path(key))
    }

    /// The keys of all steps that are recorded, in no order.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn actions(&self) -> Result<Vec<Digest>, StoreError> {
        let path = self.root().join("actions");
        let entries = std::fs::read_dir(&path).map_err(failed("list", &path))?;
        entries
            .filter_map(|entry| entry.map(|e| name_of(&e.file_name())).transpose())
            .collect::<io::Result<_>>()
            .map_err(failed("list", &path))
    }

    /// How the tar of this `diff_id` was compressed with `codec`, if its blob is here.
    ///
    /// The codec is part of the key, since the same tar that a base image brought compressed by something else is another blob:
    /// which of the two a build uses may not depend on what this machine pulled before.
    ///
    /// # Errors
    /// [`StoreError::Codec`], [`StoreError::Record`], [`StoreError::Io`].
    pub fn layer(&self, diff_id: &Digest, codec: &str) -> Result<Option<Layer>, StoreError> {
        let path = self.layer_path(diff_id, codec)?;
        let Some(bytes) = read_record(&path)? else {
            return Ok(None);
        };
        let layer: Layer = serde_json::from_slice(&bytes)
            .map_err(|error| StoreError::Record { path: path.clone(), reason: error.to_string() })?;
        if layer.diff_id != *diff_id {
            return Err(StoreError::Record { path, reason: format!("it speaks of `{}`", layer.diff_id) });
        }
        self.touch(&path);
        Ok((self.has(&layer.blob.digest)? == Some(layer.blob.size)).then_some(layer))
    }

    /// Records how a tar was compressed with `codec` (lower-case letters, digits and dashes), so that it is compressed once ever.
    ///
    /// # Errors
    /// [`StoreError::Codec`], [`StoreError::Io`].
    pub fn record_layer(&self, layer: &Layer, codec: &str) -> Result<(), StoreError> {
        place::write_atomic(&self.tmp(), &self.layer_path(&layer.diff_id, codec)?, &canonical_json(layer))
    }

    /// All records of how layers were compressed: `diff_id` and codec, in no order.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn layers(&self) -> Result<Vec<(Digest, String)>, StoreError> {
        let path = self.root().join("layers");
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&path).map_err(failed("list", &path))? {
            let name = entry.map_err(failed("list", &path))?.file_name();
            let found = name.to_str().and_then(|name| name.split_once('.'));
            if let Some((Some(diff_id), codec)) = found.map(|(hex, codec)| (name_of(hex.as_ref()), codec)) {
                names.push((diff_id, codec.to_owned()));
            }
        }
        Ok(names)
    }

    /// Forgets how a tar was compressed. True if it was known.
    ///
    /// # Errors
    /// [`StoreError::Codec`], [`StoreError::Io`].
    pub fn forget_layer(&self, diff_id: &Digest, codec: &str) -> Result<bool, StoreError> {
        remove_file(&self.layer_path(diff_id, codec)?)
    }

    fn action_path(&self, key: &Digest) -> PathBuf {
        self.root().join("actions").join(key.hex())
    }

    fn layer_path(&self, diff_id: &Digest, codec: &str) -> Result<PathBuf, StoreError> {
        if codec.is_empty() || !codec.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-')) {
            return Err(StoreError::Codec { codec: codec.to_owned() });
        }
        Ok(self.root().join("layers").join(format!("{}.{codec}", diff_id.hex())))
    }
}

fn read_record(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("open", path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(LIMIT + 1).read_to_end(&mut bytes).map_err(failed("read", path))?;
    if bytes.len() as u64 > LIMIT {
        return Err(StoreError::Record { path: path.to_owned(), reason: format!("it is longer than {LIMIT} bytes") });
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_action_is_recorded_replaced_and_forgotten() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path()).expect("a store");
        let key = Digest::of(b"key");
        assert_eq!(store.action(&key).expect("looked"), None);
        store.record_action(&key, b"one").expect("recorded");
        store.record_action(&key, b"two").expect("recorded");
        assert_eq!(store.action(&key).expect("looked").as_deref(), Some(&b"two"[..]));
        assert_eq!(store.actions().expect("listed"), [key]);
        assert!(store.forget_action(&key).expect("forgotten"));
        assert!(!store.forget_action(&key).expect("forgotten"));
    }

    #[test]
    fn a_record_of_many_files_is_kept_and_one_that_is_too_long_is_found_out_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path()).expect("a store");
        let key = Digest::of(b"key");
        let many = vec![7; 20 << 20];
        store.record_action(&key, &many).expect("recorded");
        assert_eq!(store.action(&key).expect("looked").map(|record| record.len()), Some(many.len()));
        let length = usize::try_from(LIMIT).expect("a length") + 1;
        store.record_action(&key, &vec![0; length]).expect("looked at");
        assert_eq!(store.action(&key).expect("looked"), None);
    }

    #[test]
    fn many_writers_of_one_action_leave_one_whole_value() {
        let dir = tempfile::tempdir().expect("a directory");
        let key = Digest::of(b"key");
        std::thread::scope(|scope| {
            for number in 0..4_u8 {
                let root = dir.path();
                scope.spawn(move || {
                    let store = Store::open(root).expect("a store");
                    for _ in 0..20 {
                        store.record_action(&key, &[number; 5000]).expect("recorded");
                    }
                });
            }
        });
        let value = Store::open(dir.path()).expect("a store").action(&key).expect("read").expect("there");
        assert!(value.len() == 5000 && value.iter().all(|byte| *byte == value[0]));
    }

    #[test]
    fn a_layer_record_holds_for_its_codec_and_while_its_blob_is_there() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path()).expect("a store");
        let blob = store.put(b"compressed").expect("stored");
        let layer = Layer {
            diff_id: Digest::of(b"tar"),
            blob: Descriptor { media_type: jiji_model::image::LAYER_GZIP.to_owned(), digest: blob, size: 10 },
        };
        store.record_layer(&layer, "gzip-1").expect("recorded");
        assert_eq!(store.layer(&layer.diff_id, "gzip-1").expect("read").as_ref(), Some(&layer));
        assert_eq!(store.layer(&layer.diff_id, "gzip-2").expect("read"), None);
        assert!(matches!(store.layer(&layer.diff_id, "../x"), Err(StoreError::Codec { .. })));
        store.remove(&blob).expect("removed");
        assert_eq!(store.layer(&layer.diff_id, "gzip-1").expect("read"), None);
    }
}
