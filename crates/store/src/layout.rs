//! Writing an image as a directory that other tools read: the OCI image layout (image-spec, image-layout.md).

use std::fs;
use std::path::Path;

use jiji_model::digest::canonical_json;
use jiji_model::image::{INDEX, Image};
use serde_json::json;

use crate::{Store, StoreError, failed, place};

const MARK: &str = "oci-layout";

impl Store {
    /// Writes an image to `dir` as an OCI image layout, with `reference` as its name there.
    ///
    /// The directory may be new, empty, or an image layout already: then blobs that are there stay, and the index names this image
    /// alone. Blobs are copied, not linked, so that nobody can change the store through them.
    ///
    /// # Errors
    /// [`StoreError::NotALayout`], [`StoreError::Missing`] when the store lacks a blob of the image (an image pulled without layers),
    /// [`StoreError::Io`].
    pub fn export_layout(&self, image: &Image, dir: &Path, reference: Option<&str>) -> Result<(), StoreError> {
        fs::create_dir_all(dir).map_err(failed("create", dir))?;
        let mark = dir.join(MARK);
        if !mark.exists() && fs::read_dir(dir).map_err(failed("list", dir))?.next().is_some() {
            return Err(StoreError::NotALayout { path: dir.to_owned() });
        }
        let blobs = dir.join("blobs/sha256");
        fs::create_dir_all(&blobs).map_err(failed("create", &blobs))?;
        write_public(dir, &mark, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        for blob in image.blobs() {
            let target = blobs.join(blob.digest.hex());
            if fs::metadata(&target).is_ok_and(|there| there.len() == blob.size) {
                continue;
            }
            let (mut source, _) = self.open_blob(&blob.digest)?;
            let mut copy = place::temp_file(&blobs)?;
            std::io::copy(&mut source, copy.as_file_mut()).map_err(failed("write", &target))?;
            publish(copy, &target)?;
        }
        let mut manifest = json!({
            "mediaType": image.manifest.media_type,
            "digest": image.manifest.digest,
            "size": image.manifest.size,
            "platform": {"os": image.platform.os, "architecture": image.platform.architecture},
        });
        if let Some(reference) = reference {
            manifest["annotations"] = json!({"org.opencontainers.image.ref.name": reference});
        }
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [manifest]});
        write_public(dir, &dir.join("index.json"), &canonical_json(&index))
    }
}

fn write_public(dir: &Path, path: &Path, content: &[u8]) -> Result<(), StoreError> {
    use std::io::Write as _;
    let mut file = place::temp_file(dir)?;
    file.write_all(content).map_err(failed("write", path))?;
    publish(file, path)
}

/// A layout is for others to read: not the store's 0600.
fn publish(file: tempfile::NamedTempFile, path: &Path) -> Result<(), StoreError> {
    use std::os::unix::fs::PermissionsExt as _;
    file.as_file().set_permissions(fs::Permissions::from_mode(0o644)).map_err(failed("change the mode of", path))?;
    place::rename_into_place(file, path)
}

#[cfg(test)]
mod tests {
    use jiji_model::image::{CONFIG, Descriptor, LAYER_GZIP, MANIFEST, Platform};

    use super::*;

    fn blob(store: &Store, media_type: &str, bytes: &[u8]) -> Descriptor {
        let digest = store.put(bytes).expect("stored");
        Descriptor { media_type: media_type.to_owned(), digest, size: bytes.len() as u64 }
    }

    #[test]
    fn an_exported_image_is_a_layout_and_export_is_repeatable() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path().join("store")).expect("a store");
        let image = Image {
            repository: "shop/web".to_owned(),
            platform: Platform::linux_amd64(),
            manifest: blob(&store, MANIFEST, b"{}"),
            config: blob(&store, CONFIG, b"{ }"),
            layers: vec![blob(&store, LAYER_GZIP, b"layer")],
        };
        let out = dir.path().join("out");
        for _ in 0..2 {
            store.export_layout(&image, &out, Some("v1")).expect("exported");
        }
        let index: serde_json::Value =
            serde_json::from_slice(&fs::read(out.join("index.json")).expect("read")).expect("JSON");
        assert_eq!(index["manifests"][0]["digest"], image.manifest.digest.to_string());
        assert_eq!(index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"], "v1");
        for blob in image.blobs() {
            let bytes = fs::read(out.join("blobs/sha256").join(blob.digest.hex())).expect("there");
            assert_eq!(jiji_model::digest::Digest::of(bytes), blob.digest);
        }
        assert_eq!(fs::read_dir(&out).expect("listed").count(), 3);
        fs::write(dir.path().join("precious"), "").expect("written");
        assert!(matches!(store.export_layout(&image, dir.path(), None), Err(StoreError::NotALayout { .. })));
    }
}
