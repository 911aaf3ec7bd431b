//! Reading manifests and image configurations that somebody else wrote.

use jiji_model::digest::Digest;
use jiji_model::image::{Descriptor, INDEX, LAYER_GZIP, LAYER_ZSTD, MANIFEST, Platform};
use serde::Deserialize;
use serde::de::IgnoredAny;

/// The longest manifest that is read, in bytes (distribution-spec, "Pushing Manifests": registries take at least 4 MiB).
pub(super) const LIMIT: u64 = 4 * 1024 * 1024;

/// Docker's media types, which OCI's were made from.
pub(super) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(super) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// What a manifest request may be answered with.
pub(super) const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json";

/// The layers that can be unpacked.
const LAYERS: [&str; 5] = [
    "application/vnd.oci.image.layer.v1.tar",
    LAYER_GZIP,
    LAYER_ZSTD,
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
];

/// A manifest of either kind.
#[derive(Debug)]
pub(super) enum Document {
    Manifest(Manifest),
    Index(Vec<Entry>),
}

/// The manifest of an image or artifact.
#[derive(Debug)]
pub(super) struct Manifest {
    pub(super) media_type: String,
    pub(super) config: Descriptor,
    pub(super) layers: Vec<Descriptor>,
}

/// An image in an index.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) digest: Digest,
    platform: Option<EntryPlatform>,
}

#[derive(Debug, Deserialize)]
struct EntryPlatform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

/// Why a document is not taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Malformed(String),
    MediaType(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Outline {
    schema_version: u32,
    media_type: Option<String>,
    config: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
    manifests: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Part {
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<EntryPlatform>,
}

#[derive(Deserialize)]
struct ManifestParts {
    config: Part,
    layers: Vec<Part>,
}

#[derive(Deserialize)]
struct IndexParts {
    manifests: Vec<Part>,
}

impl Part {
    fn descriptor(self) -> Result<Descriptor, Fault> {
        let digest = self.digest.parse().map_err(|error| malformed(&error))?;
        Ok(Descriptor { media_type: self.media_type, digest, size: self.size })
    }
}

fn malformed(error: &dyn std::fmt::Display) -> Fault {
    Fault::Malformed(error.to_string())
}

impl Document {
    /// Reads a manifest or index.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Fault> {
        let outline: Outline = serde_json::from_slice(bytes).map_err(|error| malformed(&error))?;
        if outline.schema_version != 2 {
            return Err(Fault::Malformed(format!("schema version {} is not 2", outline.schema_version)));
        }
        // A document that can be read as both means different things to different tools (CVE-2021-41190).
        let is_index = match (outline.manifests, outline.config.or(outline.layers)) {
            (Some(_), None) => true,
            (None, Some(_)) => false,
            _ => return Err(Fault::Malformed("it is neither a manifest nor an index".to_owned())),
        };
        let media_type = outline.media_type.unwrap_or_else(|| if is_index { INDEX } else { MANIFEST }.to_owned());
        match (is_index, media_type.as_str()) {
            (true, INDEX | DOCKER_INDEX) => {
                let parts: IndexParts = serde_json::from_slice(bytes).map_err(|error| malformed(&error))?;
                // An entry of another digest algorithm is of no use here and no reason to refuse the others.
                let entry = |part: Part| Some(Entry { digest: part.digest.parse().ok()?, platform: part.platform });
                Ok(Self::Index(parts.manifests.into_iter().filter_map(entry).collect()))
            }
            (false, MANIFEST | DOCKER_MANIFEST) => {
                let parts: ManifestParts = serde_json::from_slice(bytes).map_err(|error| malformed(&error))?;
                Ok(Self::Manifest(Manifest {
                    media_type,
                    config: parts.config.descriptor()?,
                    layers: parts.layers.into_iter().map(Part::descriptor).collect::<Result<_, _>>()?,
                }))
            }
            _ => Err(Fault::MediaType(media_type)),
        }
    }
}

impl Manifest {
    /// Whether this is an image whose layers can be unpacked; else the media type that is in the way.
    pub(super) fn is_image(&self) -> Result<(), Fault> {
        let known = [jiji_model::image::CONFIG, DOCKER_CONFIG].contains(&self.config.media_type.as_str());
        if !known {
            return Err(Fault::MediaType(self.config.media_type.clone()));
        }
        match self.layers.iter().find(|layer| !LAYERS.contains(&layer.media_type.as_str())) {
            Some(layer) => Err(Fault::MediaType(layer.media_type.clone())),
            None => Ok(()),
        }
    }
}

/// Chooses the image for a platform. Variants beyond the base one (`amd64/v3`, `arm64/v9`) are not what was asked for.
pub(super) fn choose(entries: &[Entry], wanted: &Platform) -> Result<Digest, String> {
    let fits = |entry: &&Entry| {
        entry.platform.as_ref().is_some_and(|platform| {
            let base = match platform.architecture.as_str() {
                "arm64" => "v8",
                _ => "v1",
            };
            platform.os == wanted.os
                && platform.architecture == wanted.architecture
                && platform.variant.as_deref().is_none_or(|variant| variant.is_empty() || variant == base)
        })
    };
    match (entries.iter().find(fits), entries) {
        (Some(entry), _) => Ok(entry.digest),
        // One that says nothing of its platform says it in its configuration, which is checked later.
        (None, [only]) if only.platform.is_none() => Ok(only.digest),
        _ => {
            let names =
                entries.iter().filter_map(|entry| entry.platform.as_ref()).filter(|found| found.os != "unknown");
            let mut names: Vec<_> = names
                .map(|found| match &found.variant {
                    Some(variant) => format!("{}/{}/{variant}", found.os, found.architecture),
                    None => format!("{}/{}", found.os, found.architecture),
                })
                .collect();
            names.sort();
            names.dedup();
            Err(if names.is_empty() { "no platform".to_owned() } else { names.join(", ") })
        }
    }
}

#[derive(Deserialize)]
struct Config {
    os: String,
    architecture: String,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<Digest>,
}

/// Checks that a configuration is one of an image with so many layers, and says its platform.
pub(super) fn check_config(bytes: &[u8], layers: usize) -> Result<Platform, String> {
    let config: Config = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let diff_ids = config.rootfs.diff_ids.len();
    if diff_ids != layers {
        return Err(format!("it speaks of {diff_ids} layers, the manifest of {layers}"));
    }
    Ok(Platform { os: config.os, architecture: config.architecture })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn entry(digest: &str, platform: serde_json::Value) -> serde_json::Value {
        json!({"mediaType": MANIFEST, "digest": Digest::of(digest), "size": 1, "platform": platform})
    }

    fn index(entries: serde_json::Value) -> Vec<Entry> {
        let bytes = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).to_string();
        match Document::parse(bytes.as_bytes()).expect("an index") {
            Document::Index(entries) => entries,
            Document::Manifest(_) => panic!("it is an index"),
        }
    }

    #[test]
    fn the_platforms_base_variant_is_chosen_and_attestations_are_passed_over() {
        let entries = index(json!([
            entry("attestation", json!({"os": "unknown", "architecture": "unknown"})),
            entry("v3", json!({"os": "linux", "architecture": "amd64", "variant": "v3"})),
            entry("amd64", json!({"os": "linux", "architecture": "amd64"})),
            entry("arm64", json!({"os": "linux", "architecture": "arm64", "variant": "v8"})),
        ]));
        assert_eq!(choose(&entries, &Platform::linux_amd64()), Ok(Digest::of("amd64")));
        assert_eq!(choose(&entries, &Platform::linux_arm64()), Ok(Digest::of("arm64")));
        let entries = index(json!([entry("s390x", json!({"os": "linux", "architecture": "s390x"}))]));
        assert_eq!(choose(&entries, &Platform::linux_amd64()), Err("linux/s390x".to_owned()));
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_not_read() {
        let part = entry("x", json!(null));
        for document in [
            json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": part, "layers": [], "manifests": []}),
            json!({"schemaVersion": 2, "manifests": [], "layers": []}),
            json!({"schemaVersion": 1, "manifests": []}),
            json!({"schemaVersion": 2}),
        ] {
            assert!(matches!(Document::parse(document.to_string().as_bytes()), Err(Fault::Malformed(_))), "{document}");
        }
        let document = json!({"schemaVersion": 2, "mediaType": INDEX, "config": part, "layers": []});
        assert!(matches!(Document::parse(document.to_string().as_bytes()), Err(Fault::MediaType(_))));
    }

    #[test]
    fn negative_and_fractional_sizes_are_refused() {
        for size in ["-1", "1.5", "1e30", "\"1\""] {
            let part = format!(r#"{{"mediaType":"a/b","digest":"{}","size":{size}}}"#, Digest::of("x"));
            let text = format!(r#"{{"schemaVersion":2,"config":{part},"layers":[]}}"#);
            assert!(Document::parse(text.as_bytes()).is_err(), "{size}");
        }
    }

    #[test]
    fn a_configuration_must_speak_of_as_many_layers_as_the_manifest() {
        let config = json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": []}});
        assert_eq!(check_config(config.to_string().as_bytes(), 0), Ok(Platform::linux_amd64()));
        assert!(check_config(config.to_string().as_bytes(), 1).is_err());
    }
}
