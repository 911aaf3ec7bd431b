//! An image as one stream that engines load: a tar that is an OCI image layout (image-spec, image-layout.md) and what `docker save` writes, at
//! once.
//!
//! Podman reads the first and keeps the manifest's digest; Docker reads either. Blobs go from the store to the stream, a piece at a time.

use std::io::{self, Write};

use jiji_model::digest::canonical_json;
use jiji_model::image::{INDEX, Image};
use serde_json::json;

use crate::{Store, StoreError};

/// Headers and content come in blocks of this size.
const BLOCK: usize = 512;

/// Why an image could not be written as a stream.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The store lacks a part of it, or cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The stream takes no more.
    #[error("write the image")]
    Write(#[source] io::Error),
}

impl Store {
    /// Writes an image as such a stream. `reference` is its name in it: repository and tag.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn write_archive(&self, image: &Image, reference: &str, to: &mut dyn Write) -> Result<(), ArchiveError> {
        let (name, tag) = reference.rsplit_once(':').unwrap_or((reference, "latest"));
        let manifest = json!({
            "mediaType": image.manifest.media_type,
            "digest": image.manifest.digest,
            "size": image.manifest.size,
            "platform": {"os": image.platform.os, "architecture": image.platform.architecture},
            // The first is containerd's word for the whole name, the second OCI's for the tag.
            "annotations": {
                "io.containerd.image.name": format!("{name}:{tag}"),
                "org.opencontainers.image.ref.name": tag,
            },
        });
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [manifest]});
        let path = |hex: String| format!("blobs/sha256/{hex}");
        let layers: Vec<String> = image.layers.iter().map(|layer| path(layer.digest.hex().to_string())).collect();
        let docker = json!([{
            "Config": path(image.config.digest.hex().to_string()),
            "RepoTags": [format!("{name}:{tag}")],
            "Layers": layers,
        }]);
        for (name, content) in [
            ("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
            ("index.json", canonical_json(&index)),
            ("manifest.json", canonical_json(&docker)),
        ] {
            begin(name, content.len() as u64, to).map_err(ArchiveError::Write)?;
            to.write_all(&content).and_then(|()| pad(content.len() as u64, to)).map_err(ArchiveError::Write)?;
        }
        let mut written = Vec::new();
        for blob in image.blobs() {
            if written.contains(&blob.digest) {
                continue;
            }
            written.push(blob.digest);
            let (mut source, size) = self.open_blob(&blob.digest)?;
            begin(&path(blob.digest.hex().to_string()), size, to).map_err(ArchiveError::Write)?;
            let copied = io::copy(&mut source, to).map_err(ArchiveError::Write)?;
            if copied != size {
                let changed = io::Error::new(io::ErrorKind::InvalidData, "a blob changed while it was read");
                return Err(ArchiveError::Write(changed));
            }
            pad(size, to).map_err(ArchiveError::Write)?;
        }
        to.write_all(&[0; 2 * BLOCK]).and_then(|()| to.flush()).map_err(ArchiveError::Write)
    }
}

/// The header of a file (POSIX ustar): all names here are short.
fn begin(name: &str, size: u64, to: &mut dyn Write) -> io::Result<()> {
    let mut header = [0; BLOCK];
    let mut put = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
    put(0, name.as_bytes());
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    // 11 octal digits hold up to 8 GiB; beyond that the number is binary, with the first bit set (GNU tar, POSIX leaves it out).
    match size {
        0..=0o77_777_777_777 => put(124, format!("{size:011o}\0").as_bytes()),
        _ => {
            put(124, &[0x80]);
            put(128, &size.to_be_bytes());
        }
    }
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    to.write_all(&header)
}

fn pad(size: u64, to: &mut dyn Write) -> io::Result<()> {
    let over = (size % BLOCK as u64) as usize;
    if over == 0 { Ok(()) } else { to.write_all(&[0; BLOCK][over..]) }
}
