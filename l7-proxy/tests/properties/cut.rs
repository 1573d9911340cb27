//! How bytes arrive: all at once, one by one, or in pieces whose lengths the bytes themselves choose.

use super::harness::random::Random;

/// Lengths of reads.
#[derive(Clone)]
pub struct Cuts {
    random: Random,
    most: usize,
}

impl Cuts {
    /// One read.
    pub fn none() -> Self {
        Self { random: Random(1), most: usize::MAX }
    }

    /// Ways in which the same bytes may arrive beside that one.
    pub fn ways(input: &[u8]) -> [Self; 3] {
        // FNV-1a: the same for the same bytes, so that what is found is found again.
        let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        let seed = input.iter().fold(0xcbf2_9ce4_8422_2325, fold) | 1;
        [1, 7, 90].map(|most| Self { random: Random(seed), most })
    }

    /// How much is there after the next read, of so much in all.
    pub fn next(&mut self, arrived: usize, all: usize) -> usize {
        let piece = if self.most == usize::MAX { all } else { 1 + self.random.below(self.most) };
        all.min(arrived.saturating_add(piece))
    }
}
