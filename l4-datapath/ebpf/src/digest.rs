//! A keyed hash of a packet that waits: what comes back with the same one is the same packet.
//!
//! SipHash-1-3 (Aumasson and Bernstein, with the rounds of Rust's own hash tables) over the packet's number and length,
//! then all of it from the EtherType on, filled up with zeros to whole blocks. The key is the node's, from the system's
//! random source: `bpf_get_prandom_u32` would do for a number nobody guesses by chance, but it is linear, and who sees
//! enough of what other programs draw from it could foretell it.
//!
//! The transport checksum is left out: that of a packet whose sender left it to the device is completed on the way.

use core::{
    ffi::c_void,
    hint::black_box,
    mem::offset_of,
    ptr::{read_volatile, write_volatile},
};

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_loop, bpf_skb_load_bytes},
};

use crate::{header::Ethernet, hold, maps::HOLD, space::Space};

const _: () = assert!(cfg!(target_endian = "little"), "words are taken as they stand");

/// Where it begins.
const START: u32 = offset_of!(Ethernet, ethertype) as u32;
const WORDS: usize = 8;
/// Bytes read at once.
const BLOCK: u32 = WORDS as u32 * 8;

/// The state between two blocks.
#[repr(C, align(8))]
struct Walk {
    skb: *mut __sk_buff,
    state: [u64; 4],
    block: [u64; WORDS],
    /// Of the frame; 0: it could not be read.
    length: u32,
    /// Offset of the checksum.
    checksum: u32,
}

/// The hash of the frame, as packet number `id`, whose length and checksum's place stand in `HELD`. 0: there is none.
#[inline(always)]
pub(crate) fn of(skb: *mut __sk_buff, id: u32) -> u64 {
    digest_frame(skb, id)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn digest_frame(skb: *mut __sk_buff, id: u32) -> u64 {
    let (Some(held), Some(node)) = (hold::element(id), HOLD.get_ptr(0)) else { return 0 };
    // SAFETY: array elements live as long as the map; others may write meanwhile, hence volatile.
    let (length, checksum, key) = unsafe {
        (
            read_volatile(&raw const (*held).length),
            read_volatile(&raw const (*held).checksum),
            [read_volatile(&raw const (*node).key[0]), read_volatile(&raw const (*node).key[1])],
        )
    };
    if length <= START || length > abi::HOLD_LENGTH {
        return 0;
    }
    let mut walk = Space::<Walk>::new();
    let walk = walk.as_mut_ptr();
    let mut state = Sip::new(key);
    state.absorb(u64::from(id) << 32 | u64::from(length));
    // SAFETY: a live local, filled before it is used; map, callback and context are what the helper's contract asks.
    unsafe {
        (&raw mut (*walk).skb).write(skb);
        (&raw mut (*walk).length).write(length);
        (&raw mut (*walk).checksum).write(checksum.into());
        state.store(walk);
        let blocks = (length - START).div_ceil(BLOCK);
        bpf_loop(blocks, block as *mut c_void, walk.cast(), 0);
        if read_volatile(&raw const (*walk).length) == 0 {
            return 0;
        }
        Sip::load(walk).finish()
    }
}

/// Takes in one block. Returns 1 to stop.
unsafe extern "C" fn block(index: u32, walk: *mut Walk) -> i64 {
    let offset = START + index * BLOCK;
    // SAFETY: the context that `digest_frame` gave, which lives until the loop has ended.
    unsafe {
        let skb = read_volatile(&raw const (*walk).skb);
        let length = read_volatile(&raw const (*walk).length);
        let checksum = read_volatile(&raw const (*walk).checksum);
        let words = (&raw mut (*walk).block).cast::<u64>();
        for word in 0..WORDS {
            write_volatile(words.add(word), 0);
        }
        // The verifier learns the bounds from this very comparison; until 6.2 it learns none from one with zero, so what is
        // compared is one less.
        let rest = black_box(length.wrapping_sub(offset).min(BLOCK).wrapping_sub(1));
        if rest >= BLOCK || bpf_skb_load_bytes(skb.cast(), offset, words.cast(), rest + 1) != 0 {
            write_volatile(&raw mut (*walk).length, 0);
            return 1;
        }
        let excluded = checksum.wrapping_sub(offset);
        let mut state = Sip::load(walk);
        for word in 0..WORDS {
            let mut value = read_volatile(words.add(word));
            if excluded >> 3 == word as u32 {
                value &= !(0xffff << ((excluded & 7) * 8));
            }
            state.absorb(value);
        }
        state.store(walk);
    }
    0
}

/// SipHash.
struct Sip(u64, u64, u64, u64);

impl Sip {
    #[inline(always)]
    fn new(key: [u64; 2]) -> Self {
        Self(
            key[0] ^ 0x736f_6d65_7073_6575,
            key[1] ^ 0x646f_7261_6e64_6f6d,
            key[0] ^ 0x6c79_6765_6e65_7261,
            key[1] ^ 0x7465_6462_7974_6573,
        )
    }

    /// # Safety
    /// `walk` is alive and its state filled.
    #[inline(always)]
    unsafe fn load(walk: *const Walk) -> Self {
        // SAFETY: the caller says so.
        let state = unsafe { &raw const (*walk).state }.cast::<u64>();
        // SAFETY: the caller says so.
        unsafe {
            Self(
                read_volatile(state),
                read_volatile(state.add(1)),
                read_volatile(state.add(2)),
                read_volatile(state.add(3)),
            )
        }
    }

    /// # Safety
    /// `walk` is alive.
    #[inline(always)]
    unsafe fn store(&self, walk: *mut Walk) {
        // SAFETY: the caller says so.
        let state = unsafe { &raw mut (*walk).state }.cast::<u64>();
        // SAFETY: the caller says so.
        unsafe {
            write_volatile(state, self.0);
            write_volatile(state.add(1), self.1);
            write_volatile(state.add(2), self.2);
            write_volatile(state.add(3), self.3);
        }
    }

    #[inline(always)]
    fn round(&mut self) {
        self.0 = self.0.wrapping_add(self.1);
        self.1 = self.1.rotate_left(13) ^ self.0;
        self.0 = self.0.rotate_left(32);
        self.2 = self.2.wrapping_add(self.3);
        self.3 = self.3.rotate_left(16) ^ self.2;
        self.0 = self.0.wrapping_add(self.3);
        self.3 = self.3.rotate_left(21) ^ self.0;
        self.2 = self.2.wrapping_add(self.1);
        self.1 = self.1.rotate_left(17) ^ self.2;
        self.2 = self.2.rotate_left(32);
    }

    #[inline(always)]
    fn absorb(&mut self, word: u64) {
        self.3 ^= word;
        self.round();
        self.0 ^= word;
    }

    #[inline(always)]
    fn finish(mut self) -> u64 {
        self.2 ^= 0xff;
        for _ in 0..3 {
            self.round();
        }
        self.0 ^ self.1 ^ self.2 ^ self.3
    }
}
