//! The images that the lab builds byte for byte the same each time, and how it brings them into its registry.

use sha2::{Digest, Sha256};

/// SHA-256 in hex.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
