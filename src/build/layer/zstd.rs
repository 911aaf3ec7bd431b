//! The zstd of layer format 2: a frame for each piece of the tar.
//!
//! libzstd gives other bytes in other versions, so its exact version is part of the format and pinned in Cargo.toml.

// The headers that the library was built with. What is linked says the tests' digests.
const _: () = assert!(zstd_sys::ZSTD_VERSION_NUMBER == 10_507, "layer format 2 is written by libzstd 1.5.7 alone");

/// The library's own default, and below the levels that search with the vector instructions of a processor: from 5 on, libzstd's row-based
/// match finder has a version for each kind of them. A frame for each MiB costs 3 % of size against one for all (64 MiB of libraries).
const LEVEL: i32 = 3;

/// A frame that says how long its content is, and has no checksum: a layer is checked by its digest. Each begins anew, so it does not
/// depend on what was compressed before it.
pub(super) fn frame(piece: &[u8]) -> Vec<u8> {
    ::zstd::bulk::compress(piece, LEVEL).expect("the buffer is as long as libzstd's bound")
}
