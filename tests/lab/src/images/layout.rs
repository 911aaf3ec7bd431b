//! An OCI image layout directory around one layer.

use std::{fs, path::Path};

use serde::{Deserialize, Serialize};

use super::{
    layer::{self, Tree},
    sha256_hex,
};
use crate::LabError;

/// What an image says of itself beside its files.
pub(super) struct Config {
    /// `KEY=VALUE`.
    pub env: Vec<String>,
    /// What runs when nothing else is said.
    pub command: Vec<String>,
}

// The order of fields is the order of bytes, and so part of the digests: no map of the JSON library stands here, since another
// crate's features may change how it is sorted.

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    annotations: Option<RefName>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct RefName {
    #[serde(rename = "org.opencontainers.image.ref.name")]
    name: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    media_type: &'static str,
    config: Descriptor,
    layers: [Descriptor; 1],
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    media_type: Option<String>,
    manifests: Vec<Descriptor>,
}

#[derive(Serialize)]
struct ImageConfig<'a> {
    created: &'static str,
    architecture: &'static str,
    os: &'static str,
    config: RunConfig<'a>,
    rootfs: RootFs,
    history: [History; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct RunConfig<'a> {
    env: &'a [String],
    cmd: &'a [String],
    working_dir: &'static str,
}

#[derive(Serialize)]
struct RootFs {
    #[serde(rename = "type")]
    kind: &'static str,
    diff_ids: [String; 1],
}

#[derive(Serialize)]
struct History {
    created: &'static str,
    created_by: &'static str,
}

const EPOCH: &str = "1970-01-01T00:00:00Z";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Writes the layout of an image with this one layer into an empty directory; gives the digest of its manifest. The same tree
/// and configuration give the same digest.
pub(super) fn write(dir: &Path, tree: &Tree, config: &Config) -> Result<String, LabError> {
    let tar = layer::tar(tree).map_err(LabError::system("write a layer"))?;
    write_layer(dir, &tar, config)
}

/// The same for a layer that is a tar already.
pub(super) fn write_layer(dir: &Path, tar: &[u8], config: &Config) -> Result<String, LabError> {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).map_err(LabError::file("create", &blobs))?;
    let packed = layer::gzip(tar).map_err(LabError::system("compress a layer"))?;
    let layer = put(&blobs, &packed, LAYER)?;
    let config = ImageConfig {
        created: EPOCH,
        architecture: "amd64",
        os: "linux",
        config: RunConfig { env: &config.env, cmd: &config.command, working_dir: "/" },
        rootfs: RootFs { kind: "layers", diff_ids: [format!("sha256:{}", sha256_hex(tar))] },
        history: [History { created: EPOCH, created_by: "the laboratory" }],
    };
    let config = put(&blobs, &json(&config)?, CONFIG)?;
    let manifest = Manifest { schema_version: 2, media_type: MANIFEST, config, layers: [layer] };
    let mut manifest = put(&blobs, &json(&manifest)?, MANIFEST)?;
    let digest = manifest.digest.clone();
    manifest.annotations = Some(RefName { name: "latest".to_owned() });
    let index = Index { schema_version: 2, media_type: Some(INDEX.to_owned()), manifests: vec![manifest] };
    for (name, text) in [("index.json", json(&index)?), ("oci-layout", b"{\"imageLayoutVersion\":\"1.0.0\"}".to_vec())]
    {
        let path = dir.join(name);
        fs::write(&path, text).map_err(LabError::file("write", &path))?;
    }
    Ok(digest)
}

fn json(value: &impl Serialize) -> Result<Vec<u8>, LabError> {
    serde_json::to_vec(value).map_err(LabError::json("an image to write"))
}

fn put(blobs: &Path, bytes: &[u8], media: &str) -> Result<Descriptor, LabError> {
    let hex = sha256_hex(bytes);
    let path = blobs.join(&hex);
    fs::write(&path, bytes).map_err(LabError::file("write", &path))?;
    Ok(Descriptor {
        media_type: media.to_owned(),
        digest: format!("sha256:{hex}"),
        size: bytes.len(),
        annotations: None,
    })
}

/// The digest of the one manifest of a layout.
pub(super) fn digest(dir: &Path) -> Result<String, LabError> {
    let path = dir.join("index.json");
    let text = fs::read(&path).map_err(LabError::file("read", &path))?;
    let what = || format!("`{}`", path.display());
    let index: Index = serde_json::from_slice(&text).map_err(LabError::json(what()))?;
    index
        .manifests
        .into_iter()
        .next()
        .map(|manifest| manifest.digest)
        .ok_or_else(|| LabError::Spec { reason: format!("{} names no image", what()) })
}
