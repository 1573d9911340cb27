//! A frame read in place: its linear part, by constant offsets.
//!
//! For packets that are nothing but what is expected: reading a header by a helper costs as much as finding a connection.
//! Loads and stores are instructions of their own, because headers are aligned to nothing Rust could promise and LLVM
//! would touch them byte by byte. Nothing may call a helper that moves the packet while a frame is held.

use core::{arch::asm, ptr::read_volatile};

use crate::skb::Skb;

/// The first `SIZE` bytes of a packet, Ethernet header first.
#[derive(Clone, Copy)]
pub(crate) struct Frame<const SIZE: usize>(usize);

impl<const SIZE: usize> Frame<SIZE> {
    /// `None` if the linear part is shorter.
    #[inline(always)]
    pub(crate) fn new(skb: Skb) -> Option<Self> {
        let skb = skb.as_ptr();
        // SAFETY: a valid context; the verifier knows both fields as the ends of the packet.
        let (start, end) = unsafe {
            (
                read_volatile(&raw const (*skb).data) as usize,
                read_volatile(&raw const (*skb).data_end) as usize,
            )
        };
        // Not a subtraction: the verifier learns the length from this very comparison.
        if start + SIZE > end { None } else { Some(Self(start)) }
    }

    /// The byte at an offset.
    #[inline(always)]
    pub(crate) fn byte<const AT: usize>(self) -> u8 {
        const { assert!(AT < SIZE) };
        let value: u64;
        // SAFETY: within the frame, as the verifier checks once more.
        unsafe {
            asm!("{value} = *(u8 *)({start} + {at})", value = out(reg) value, start = in(reg) self.0, at = const AT,
                options(readonly, nostack));
        }
        value as u8
    }

    /// Two bytes as they stand.
    #[inline(always)]
    pub(crate) fn half<const AT: usize>(self) -> u16 {
        const { assert!(AT + 2 <= SIZE) };
        let value: u64;
        // SAFETY: as in `byte`.
        unsafe {
            asm!("{value} = *(u16 *)({start} + {at})", value = out(reg) value, start = in(reg) self.0, at = const AT,
                options(readonly, nostack));
        }
        value as u16
    }

    /// Four bytes as they stand.
    #[inline(always)]
    pub(crate) fn word<const AT: usize>(self) -> u32 {
        const { assert!(AT + 4 <= SIZE) };
        let value: u64;
        // SAFETY: as in `byte`.
        unsafe {
            asm!("{value} = *(u32 *)({start} + {at})", value = out(reg) value, start = in(reg) self.0, at = const AT,
                options(readonly, nostack));
        }
        value as u32
    }

    /// Eight bytes as they stand.
    #[inline(always)]
    pub(crate) fn long<const AT: usize>(self) -> u64 {
        const { assert!(AT + 8 <= SIZE) };
        let value: u64;
        // SAFETY: as in `byte`.
        unsafe {
            asm!("{value} = *(u64 *)({start} + {at})", value = out(reg) value, start = in(reg) self.0, at = const AT,
                options(readonly, nostack));
        }
        value
    }

    /// Writes a byte.
    #[inline(always)]
    pub(crate) fn set_byte<const AT: usize>(self, value: u8) {
        const { assert!(AT < SIZE) };
        // SAFETY: within the frame; the kernel makes a shared header ours before the program starts.
        unsafe {
            asm!("*(u8 *)({start} + {at}) = {value}", value = in(reg) u64::from(value), start = in(reg) self.0,
                at = const AT, options(nostack));
        }
    }

    /// Writes two bytes as they stand.
    #[inline(always)]
    pub(crate) fn set_half<const AT: usize>(self, value: u16) {
        const { assert!(AT + 2 <= SIZE) };
        // SAFETY: as in `set_byte`.
        unsafe {
            asm!("*(u16 *)({start} + {at}) = {value}", value = in(reg) u64::from(value), start = in(reg) self.0,
                at = const AT, options(nostack));
        }
    }

    /// Writes four bytes as they stand.
    #[inline(always)]
    pub(crate) fn set_word<const AT: usize>(self, value: u32) {
        const { assert!(AT + 4 <= SIZE) };
        // SAFETY: as in `set_byte`.
        unsafe {
            asm!("*(u32 *)({start} + {at}) = {value}", value = in(reg) u64::from(value), start = in(reg) self.0,
                at = const AT, options(nostack));
        }
    }
}
