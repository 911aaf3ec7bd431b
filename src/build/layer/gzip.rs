//! The gzip of layer format 2: a member for each piece of the tar.
//!
//! libdeflate gives other bytes in other versions, so its exact version is part of the format and pinned in Cargo.toml.

use libdeflater::CompressionLvl;
pub(super) use libdeflater::Compressor;

/// libdeflate's level 4: about as small as what Docker pushes (zlib's level 6). `docs/design/images.md` has the numbers.
const LEVEL: i32 = 4;

pub(super) fn compressor() -> Compressor {
    Compressor::new(CompressionLvl::new(LEVEL).expect("4 is one of libdeflate's levels"))
}

/// Puts a piece's member in place of what is in `member`.
pub(super) fn member(compressor: &mut Compressor, piece: &[u8], member: &mut Vec<u8>) {
    member.resize(compressor.gzip_compress_bound(piece.len()), 0);
    // libdeflate writes the header with no time, no name and an unknown system (MTIME=0, OS=255).
    let length = compressor.gzip_compress(piece, member).expect("the buffer is as long as libdeflate's bound");
    member.truncate(length);
}
