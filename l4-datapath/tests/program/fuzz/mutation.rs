//! Changes that keep a frame close to one: what parsers have been caught by.

use crate::frame::{LINK, checksum};

/// SplitMix64: small, seeded, the same on every machine.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) as usize % below.max(1)
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.roll(from.len())]
    }
}

/// Values at the edges of fields; among them protocol numbers, versions and ICMP types.
const BYTES: [u8; 34] = [
    0, 1, 2, 3, 4, 5, 6, 8, 11, 12, 17, 19, 20, 40, 43, 44, 50, 51, 58, 60, 64, 0x45, 0x46, 0x4f, 0x60, 0x7f,
    0x80, 128, 129, 132, 134, 135, 136, 0xff,
];

/// Fields that say how long something is or what follows: offset, and whether it has two bytes.
const LENGTHS: [(usize, bool); 16] = [
    (12, true),  // EtherType
    (14, false), // version and header length
    (16, true),  // IPv4 total length
    (18, true),  // IPv6 payload length
    (20, true),  // IPv4 fragment; IPv6 next header
    (22, true),  // IPv4 TTL and protocol
    (38, true),  // UDP over IPv4
    (46, false), // TCP over IPv4: offset
    (47, false), // TCP over IPv4: flags
    (54, true),  // first extension header: next header and length
    (56, true),  // fragment over IPv6; routing
    (58, true),  // UDP over IPv6
    (62, true),  // second extension header
    (64, true),  // fragment in second place
    (66, false), // TCP over IPv6: offset
    (67, false), // TCP over IPv6: flags
];

/// Where headers begin.
const SEAMS: [usize; 8] = [6, 12, LINK, 18, LINK + 20, LINK + 28, LINK + 40, LINK + 48];

/// Longer frames take another way through the kernel's test run, which is not what is tested.
const LONGEST: usize = 2000;

/// The kernel's test run refuses shorter frames: without payload, or with less than the IP header they announce.
fn shortest(frame: &[u8]) -> usize {
    match frame.get(12..LINK) {
        Some([0x08, 0x00]) => LINK + 20,
        Some([0x86, 0xdd]) => LINK + 40,
        _ => LINK + 1,
    }
}

/// A frame made of `seed`, and perhaps a piece of `other`.
pub(super) fn mutate(seed: &[u8], other: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut frame = seed.to_vec();
    for _ in 0..=dice.roll(3) {
        step(&mut frame, other, dice);
        frame.truncate(LONGEST);
        frame.resize(frame.len().max(shortest(&frame)), 0);
    }
    frame.resize(frame.len().max(shortest(&frame)), 0);
    if dice.roll(2) == 0 && frame[12..LINK] == [8, 0] {
        frame[LINK + 10..LINK + 12].fill(0);
        let sum = checksum(&frame[LINK..LINK + 20]);
        frame[LINK + 10..LINK + 12].copy_from_slice(&sum);
    }
    frame
}

fn step(frame: &mut Vec<u8>, other: &[u8], dice: &mut Dice) {
    // Headers are where it matters.
    let reach = if dice.roll(4) == 0 { frame.len() } else { frame.len().min(100) };
    let at = dice.roll(reach);
    match dice.roll(9) {
        0 | 1 => frame[at] ^= 1 << dice.roll(8),
        2 => frame[at] = dice.pick(&BYTES),
        3 => frame[at] = dice.roll(256) as u8,
        4 => frame.truncate(at),
        5 => frame.extend(std::iter::repeat_n(dice.pick(&BYTES), dice.roll(64))),
        6 => {
            let seam = dice.pick(&SEAMS);
            frame.truncate(seam);
            frame.extend(other.iter().skip(seam));
        }
        7 => {
            let end = (at + dice.roll(9)).min(frame.len());
            let piece = vec![dice.pick(&BYTES); dice.roll(9)];
            frame.splice(at..end, piece);
        }
        _ => lie(frame, dice),
    }
}

/// Changes a length by a little, or to a value at the edge.
fn lie(frame: &mut [u8], dice: &mut Dice) {
    let (at, wide) = dice.pick(&LENGTHS);
    if frame.len() < at + 2 {
        return;
    }
    if !wide {
        frame[at] = dice.pick(&BYTES);
        return;
    }
    let said = u16::from_be_bytes([frame[at], frame[at + 1]]);
    let lie = match dice.roll(3) {
        0 => said.wrapping_add(1 + dice.roll(20) as u16),
        1 => said.wrapping_sub(1 + dice.roll(20) as u16),
        _ => u16::from(dice.pick(&BYTES)),
    };
    frame[at..at + 2].copy_from_slice(&lie.to_be_bytes());
}
