//! The gzip of layer format 1: a member for each piece of the tar.
//!
//! libdeflate gives other bytes in other versions, so its exact version is part of the format and pinned in Cargo.toml.

use libdeflater::CompressionLvl;
pub(super) use libdeflater::Compressor;

/// libdeflate's level 6: better than zlib's 6 and faster.
const LEVEL: i32 = 6;

pub(super) fn compressor() -> Compressor {
    Compressor::new(CompressionLvl::new(LEVEL).expect("6 is one of libdeflate's levels"))
}

pub(super) fn member(compressor: &mut Compressor, piece: &[u8]) -> Vec<u8> {
    let mut member = vec![0; compressor.gzip_compress_bound(piece.len())];
    // libdeflate writes the header with no time, no name and an unknown system (MTIME=0, OS=255).
    let length = compressor.gzip_compress(piece, &mut member).expect("the buffer is as long as libdeflate's bound");
    member.truncate(length);
    member
}
