//! SHA-256 of a tar and of a file in it at once.
//!
//! A file's bytes pass through two hashes, its own and the tar's. Each of the two waits most of its time for the step before (SHA-NI takes two rounds in four
//! ticks, and the next needs them), so two that take turns block by block are done in three quarters of the time of one after the other: 1140 MiB/s and not 850.
//! `sha2` does the blocks; its hashers take whole texts and cannot take turns.

use jiji_model::digest::Digest;
use sha2::block_api::compress256;

/// Bytes of a block (FIPS 180-4, section 5.2.1).
const BLOCK: usize = 64;

/// Blocks after which the other takes its turn: measured, with more both wait again.
const TURN: usize = 2;

/// The state before the first block (FIPS 180-4, section 5.3.3).
const BEGINNING: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// A hash under way.
#[derive(Debug, Clone)]
pub(super) struct Sha {
    state: [u32; 8],
    /// The beginning of a block.
    block: [u8; BLOCK],
    /// How much of it there is.
    filled: usize,
    /// Bytes so far.
    length: u64,
}

impl Sha {
    pub(super) fn new() -> Self {
        Self { state: BEGINNING, block: [0; BLOCK], filled: 0, length: 0 }
    }

    /// Takes bytes.
    pub(super) fn update(&mut self, bytes: &[u8]) {
        let bytes = self.fill(bytes);
        let (blocks, rest) = bytes.as_chunks();
        compress256(&mut self.state, blocks);
        self.begin(rest);
    }

    /// Takes bytes that another takes too.
    pub(super) fn update_with(&mut self, other: &mut Self, bytes: &[u8]) {
        if self.filled != other.filled {
            self.update(bytes);
            other.update(bytes);
            return;
        }
        let ours = self.fill(bytes);
        other.fill(bytes);
        let (blocks, rest) = ours.as_chunks();
        for blocks in blocks.chunks(TURN) {
            compress256(&mut self.state, blocks);
            compress256(&mut other.state, blocks);
        }
        self.begin(rest);
        other.begin(rest);
    }

    /// Completes the block that was begun, and gives what is left of the bytes: all where none was begun, nothing where it is not whole yet.
    fn fill<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        self.length += bytes.len() as u64;
        if self.filled == 0 {
            return bytes;
        }
        let (own, rest) = bytes.split_at(bytes.len().min(BLOCK - self.filled));
        self.block[self.filled..self.filled + own.len()].copy_from_slice(own);
        self.filled += own.len();
        if self.filled == BLOCK {
            compress256(&mut self.state, &[self.block]);
            self.filled = 0;
        }
        rest
    }

    /// Begins a block with less than one.
    fn begin(&mut self, rest: &[u8]) {
        if !rest.is_empty() {
            self.block[..rest.len()].copy_from_slice(rest);
            self.filled = rest.len();
        }
    }

    /// The digest of all that was taken.
    pub(super) fn finish(mut self) -> Digest {
        let bits = (self.length * 8).to_be_bytes();
        // A bit, zeros, and the length as the end of a block (FIPS 180-4, section 5.1.1).
        let zeros = (2 * BLOCK - 1 - bits.len() - self.filled) % BLOCK;
        let mut end = [0; 2 * BLOCK];
        end[0] = 0x80;
        end[1 + zeros..][..bits.len()].copy_from_slice(&bits);
        self.update(&end[..1 + zeros + bits.len()]);
        let mut digest = [0; 32];
        for (bytes, word) in digest.as_chunks_mut().0.iter_mut().zip(self.state) {
            *bytes = word.to_be_bytes();
        }
        Digest::from_bytes(digest)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn texts_of_all_lengths_about_a_block_have_the_digests_that_they_have() {
        let text: Vec<u8> = (0..=255).collect();
        for length in 0..=text.len() {
            let mut sha = Sha::new();
            sha.update(&text[..length]);
            assert_eq!(sha.finish(), Digest::of(&text[..length]), "{length}");
        }
    }

    proptest! {
        #[test]
        fn two_at_once_are_as_each_by_itself(
            before in prop::collection::vec(any::<u8>(), 0..200),
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..400), 0..6),
        ) {
            let (mut one, mut other) = (Sha::new(), Sha::new());
            one.update(&before);
            for part in &parts {
                one.update_with(&mut other, part);
            }
            prop_assert_eq!(one.finish(), Digest::of([before, parts.concat()].concat()));
            prop_assert_eq!(other.finish(), Digest::of(parts.concat()));
        }
    }
}
