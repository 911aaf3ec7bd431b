//! Writing an image as a directory that other tools read, and reading one: the OCI image layout (image-spec, image-layout.md).

use std::fs;
use std::io::Read as _;
use std::path::Path;

use jiji_model::digest::{Digest, canonical_json};
use jiji_model::image::{Descriptor, INDEX, Image, Platform};
use serde_json::{Value, json};

use crate::{Store, StoreError, failed, place};

const MARK: &str = "oci-layout";

/// The longest index or manifest that is read, in bytes (distribution-spec, "Pushing Manifests").
const INDEX_LIMIT: u64 = 4 << 20;
/// The longest configuration that is read, in bytes.
const CONFIG_LIMIT: u64 = 4 << 20;
/// The longest layer that is read, in bytes: as from a registry.
const LAYER_LIMIT: u64 = 64 << 30;

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

impl Store {
    /// Takes an image out of an OCI image layout: the one for `platform`, or the only one; of those that `version` names, a tag or a digest, if
    /// there is one. Every blob is checked.
    ///
    /// # Errors
    /// [`StoreError::NoImage`] where the directory holds none, [`StoreError::Mismatch`], [`StoreError::Io`].
    pub fn import_layout(&self, dir: &Path, version: Option<&str>, platform: &Platform) -> Result<Image, StoreError> {
        let none = |reason: &str| StoreError::NoImage { path: dir.to_owned(), reason: reason.to_owned() };
        let long = |what: &str, limit: u64| none(&format!("its {what} is longer than {} MiB", limit >> 20));
        let read = |path: &Path| {
            let mut bytes = Vec::new();
            open(path)?.take(INDEX_LIMIT + 1).read_to_end(&mut bytes).map_err(failed("read", path))?;
            if bytes.len() as u64 > INDEX_LIMIT { Err(long("index", INDEX_LIMIT)) } else { Ok(bytes) }
        };
        let import =
            |digest: &Digest, what: &str, limit: u64| self.import(dir, digest, limit)?.ok_or_else(|| long(what, limit));
        let parse = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).map_err(|error| none(&error.to_string()));
        let mut index = parse(&read(&dir.join("index.json"))?)?;
        if let (Some(version), Some(list)) = (version, index.get_mut("manifests").and_then(Value::as_array_mut)) {
            let tag = |entry: &Value| entry.pointer("/annotations/org.opencontainers.image.ref.name").cloned();
            list.retain(|entry| tag(entry).is_some_and(|tag| tag == version) || entry["digest"] == version);
            if list.is_empty() {
                return Err(none(&format!("it has no image `{version}`")));
            }
        }
        // An index may name indexes; nobody nests them deeply.
        for _ in 0..4 {
            let list = index.get("manifests").and_then(Value::as_array).cloned().unwrap_or_default();
            let of_platform = |entry: &&Value| {
                let part = |name: &str| entry.pointer(&format!("/platform/{name}")).and_then(Value::as_str);
                part("os") == Some(&*platform.os) && part("architecture") == Some(&*platform.architecture)
            };
            let only = || list.first().filter(|_| list.len() == 1);
            let chosen = list.iter().find(of_platform).or_else(only);
            let chosen = descriptor(chosen.ok_or_else(|| none("it has no image for this platform"))?);
            let manifest = chosen.ok_or_else(|| none("its index names no digest"))?;
            let size = import(&manifest.digest, "manifest", INDEX_LIMIT)?;
            let bytes = self.read(&manifest.digest, size)?;
            let value = parse(&bytes)?;
            if value.get("manifests").is_some() {
                index = value;
                continue;
            }
            let config = value.get("config").and_then(descriptor);
            let layers = value.get("layers").and_then(Value::as_array).into_iter().flatten();
            let layers: Option<Vec<Descriptor>> = layers.map(descriptor).collect();
            let parts = config.zip(layers);
            let (config, layers) = parts.ok_or_else(|| none("its manifest names no configuration or layers"))?;
            import(&config.digest, "configuration", CONFIG_LIMIT)?;
            for layer in &layers {
                import(&layer.digest, "layer", LAYER_LIMIT)?;
            }
            let manifest = Descriptor { size, ..manifest };
            return Ok(Image { repository: "layout".to_owned(), platform: platform.clone(), manifest, config, layers });
        }
        Err(none("its indexes name each other too deeply"))
    }

    /// Takes a blob of a layout: its length, or none where it has more bytes than it may, of which no more are read.
    fn import(&self, dir: &Path, digest: &Digest, limit: u64) -> Result<Option<u64>, StoreError> {
        if let Some(size) = self.has(digest)? {
            return Ok(Some(size).filter(|size| *size <= limit));
        }
        let path = dir.join("blobs/sha256").join(digest.hex());
        let mut writer = self.writer()?;
        let read = std::io::copy(&mut open(&path)?.take(limit + 1), &mut writer).map_err(failed("read", &path))?;
        if read > limit {
            return Ok(None);
        }
        Ok(Some(writer.finish(Some(*digest))?.1))
    }
}

/// A file of a layout that somebody else made: it must be one, and nothing is waited for.
fn open(path: &Path) -> Result<fs::File, StoreError> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = fs::File::options().read(true).custom_flags(flags).open(path).map_err(failed("open", path))?;
    if !file.metadata().map_err(failed("open", path))?.is_file() {
        let reason = std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is not a file");
        return Err(failed("open", path)(reason));
    }
    Ok(file)
}

fn descriptor(value: &Value) -> Option<Descriptor> {
    Some(Descriptor {
        media_type: value.get("mediaType")?.as_str()?.to_owned(),
        digest: value.get("digest")?.as_str()?.parse().ok()?,
        size: value.get("size")?.as_u64()?,
    })
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
    use jiji_model::image::{CONFIG, LAYER_GZIP, MANIFEST};

    use super::*;

    fn blob(store: &Store, media_type: &str, bytes: &[u8]) -> Descriptor {
        let digest = store.put(bytes).expect("stored");
        Descriptor { media_type: media_type.to_owned(), digest, size: bytes.len() as u64 }
    }

    fn manifest_of(value: &Value) -> Value {
        let one =
            |blob: &Value| json!({"mediaType": blob["media_type"], "digest": blob["digest"], "size": blob["size"]});
        let layers: Vec<Value> = value["layers"].as_array().into_iter().flatten().map(one).collect();
        json!({"config": one(&value["config"]), "layers": layers})
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
        let index: Value = serde_json::from_slice(&fs::read(out.join("index.json")).expect("read")).expect("JSON");
        assert_eq!(index["manifests"][0]["digest"], image.manifest.digest.to_string());
        assert_eq!(index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"], "v1");
        for blob in image.blobs() {
            let bytes = fs::read(out.join("blobs/sha256").join(blob.digest.hex())).expect("there");
            assert_eq!(Digest::of(bytes), blob.digest);
        }
        assert_eq!(fs::read_dir(&out).expect("listed").count(), 3);
        let other = Store::open(dir.path().join("other")).expect("a store");
        // The image of this test is none inside, so it is put together here as one.
        let manifest = json!({"config": image.config, "layers": image.layers});
        let manifest = blob(&store, MANIFEST, &canonical_json(&manifest_of(&manifest)));
        let whole = Image { manifest, ..image.clone() };
        let whole_digest = whole.manifest.digest;
        let layout = dir.path().join("layout");
        store.export_layout(&whole, &layout, None).expect("exported");
        let found = other.import_layout(&layout, None, &Platform::linux_amd64()).expect("imported");
        assert_eq!(found, Image { repository: "layout".to_owned(), ..whole });
        for blob in found.blobs() {
            assert_eq!(other.has(&blob.digest).expect("looked"), Some(blob.size));
        }
        let nothing = other.import_layout(&layout, None, &Platform::linux_arm64());
        assert_eq!(nothing.expect("the only one is taken").layers, found.layers);
        let by_digest = whole_digest.to_string();
        assert!(other.import_layout(&layout, Some(&by_digest), &Platform::linux_amd64()).is_ok());
        let unknown = other.import_layout(&layout, Some("v2"), &Platform::linux_amd64());
        assert!(matches!(unknown, Err(StoreError::NoImage { .. })), "{unknown:?}");
        fs::write(dir.path().join("precious"), "").expect("written");
        assert!(matches!(store.export_layout(&image, dir.path(), None), Err(StoreError::NotALayout { .. })));
    }

    #[test]
    fn what_a_layout_has_too_much_of_is_not_taken_and_what_is_no_file_is_not_waited_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path().join("store")).expect("a store");
        let layout = dir.path().join("layout");
        let blobs = layout.join("blobs/sha256");
        fs::create_dir_all(&blobs).expect("created");
        let index = |digest: &Digest| {
            let entry = json!({"mediaType": MANIFEST, "digest": digest, "size": 2});
            fs::write(layout.join("index.json"), json!({"manifests": [entry]}).to_string()).expect("written");
        };
        let import = || store.import_layout(&layout, None, &Platform::linux_amd64()).expect_err("refused").to_string();
        // Sparse, of a length that no disk of a test has.
        let long = Digest::of("long");
        let file = fs::File::create(blobs.join(long.hex())).expect("created");
        file.set_len(1 << 40).expect("stretched");
        index(&long);
        assert!(import().ends_with("its manifest is longer than 4 MiB"), "{}", import());
        let put = |value: &Value| {
            let bytes = value.to_string();
            fs::write(blobs.join(Digest::of(&bytes).hex()), &bytes).expect("written");
            Digest::of(&bytes)
        };
        let config = json!({"mediaType": CONFIG, "digest": long, "size": 2});
        index(&put(&json!({"config": config, "layers": []})));
        assert!(import().ends_with("its configuration is longer than 4 MiB"), "{}", import());
        let left = fs::read_dir(store.root().join("tmp")).expect("listed").count();
        assert_eq!((left, store.has(&long).expect("looked")), (0, None));

        let pipe = Digest::of("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, blobs.join(pipe.hex()), rustix::fs::FileType::Fifo, 0o644.into(), 0)
            .expect("a pipe");
        index(&pipe);
        assert!(import().starts_with("open "), "{}", import());
        fs::remove_file(layout.join("index.json")).expect("removed");
        rustix::fs::mknodat(rustix::fs::CWD, layout.join("index.json"), rustix::fs::FileType::Fifo, 0o644.into(), 0)
            .expect("a pipe");
        assert!(import().starts_with("open "), "{}", import());
    }
}
