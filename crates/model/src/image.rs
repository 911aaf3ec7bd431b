//! What identifies an image, and the blobs it is made of.
//!
//! An image's identity is a pair: Docker's classic store knows an image by the digest of its configuration, its containerd store by
//! the digest of its manifest, Podman by both. So a host confirms an image by whichever of the two it can see.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// OCI media type of an image manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI media type of an image index.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI media type of an image configuration.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// OCI media type of a layer compressed with gzip.
pub const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// OCI media type of a layer compressed with zstd.
pub const LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// The version of the rules by which layers are written: tar dialect, normalisation, compressor and its exact version. Part of every
/// build key and of `jiji.lock`, so that a change of the rules is a change of names and never a silent change of bytes.
pub const LAYER_FORMAT: u32 = 2;

/// How layers are compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// gzip, which every engine reads.
    #[default]
    Gzip,
    /// zstd, which Podman reads, and Docker from 23 on.
    Zstd,
}

impl Compression {
    /// Each.
    pub const ALL: [Self; 2] = [Self::Gzip, Self::Zstd];

    /// The OCI media type of a layer that is compressed so.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Gzip => LAYER_GZIP,
            Self::Zstd => LAYER_ZSTD,
        }
    }

    /// Whether nothing has to be said of it.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl std::fmt::Display for Compression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        })
    }
}

/// The pair of digests that names one image for one platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageId {
    /// Digest of the manifest.
    pub manifest: Digest,
    /// Digest of the configuration.
    pub config: Digest,
}

/// A blob as a manifest speaks of it (image-spec, descriptor.md).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Descriptor {
    /// Media type.
    pub media_type: String,
    /// Digest of the blob's bytes.
    pub digest: Digest,
    /// Length in bytes.
    pub size: u64,
}

/// The platform an image runs on, in Go's words (image-spec, image-index.md).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`.
    pub architecture: String,
}

impl Platform {
    /// `linux/amd64`.
    pub fn linux_amd64() -> Self {
        Self { os: "linux".to_owned(), architecture: "amd64".to_owned() }
    }

    /// `linux/arm64`.
    pub fn linux_arm64() -> Self {
        Self { os: "linux".to_owned(), architecture: "arm64".to_owned() }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)
    }
}

/// Why a text is not a [`Platform`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("read platform `{text}`: expected `linux/amd64` or `linux/arm64`")]
pub struct ParsePlatformError {
    /// What was given.
    pub text: String,
}

impl std::str::FromStr for Platform {
    type Err = ParsePlatformError;

    /// Reads `OS/ARCHITECTURE`. Only the platforms that jiji builds for are platforms; `linux/arm64/v8` is `linux/arm64`
    /// (image-spec, image-index.md: v8 is what arm64 means).
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "linux/amd64" | "linux/x86_64" => Ok(Self::linux_amd64()),
            "linux/arm64" | "linux/arm64/v8" | "linux/aarch64" => Ok(Self::linux_arm64()),
            _ => Err(ParsePlatformError { text: text.to_owned() }),
        }
    }
}

/// One image with everything a host needs to have it: the manifest's and configuration's descriptors and the layers' in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// A repository name without registry, tag or digest, such as `shop/web`. What the engine lists the image under, and nothing
    /// that identifies it.
    pub repository: String,
    /// The platform.
    pub platform: Platform,
    /// The manifest blob.
    pub manifest: Descriptor,
    /// The configuration blob.
    pub config: Descriptor,
    /// The layer blobs, lowest first.
    pub layers: Vec<Descriptor>,
}

impl Image {
    /// The identity.
    pub fn id(&self) -> ImageId {
        ImageId { manifest: self.manifest.digest, config: self.config.digest }
    }

    /// All blobs: manifest, configuration, layers.
    pub fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        [&self.manifest, &self.config].into_iter().chain(&self.layers)
    }

    /// Sum of all blobs' lengths in bytes.
    pub fn size(&self) -> u64 {
        self.blobs().map(|blob| blob.size).sum()
    }
}
