//! Places on the stack, filled by words.
//!
//! LLVM copies by bytes what it does not know to be aligned, and zeroes anything larger than a word by calling a loop over
//! bytes: for what every packet needs that cost more than finding its connection.

use core::{
    mem::MaybeUninit,
    ptr::{read_volatile, write_volatile},
};

/// Room for a `T`, aligned to words.
#[repr(align(8))]
pub(crate) struct Space<T>(MaybeUninit<T>);

/// # Safety
/// All bytes zero are a value.
pub(crate) unsafe trait Zero {}

impl<T> Space<T> {
    #[inline(always)]
    pub(crate) fn new() -> Self {
        Self(MaybeUninit::uninit())
    }

    #[inline(always)]
    pub(crate) fn as_mut_ptr(&mut self) -> *mut T {
        self.0.as_mut_ptr()
    }
}

impl<T: Zero> Space<T> {
    /// The value whose bytes are all zero.
    #[inline(always)]
    pub(crate) fn zero(&mut self) -> &mut T {
        let start: *mut u64 = (&raw mut *self).cast();
        for word in 0..size_of::<Self>() / 8 {
            // SAFETY: `Self` is aligned to words, and so is its size. Volatile, or LLVM makes a call of it after all.
            unsafe { write_volatile(start.add(word), 0) };
        }
        // SAFETY: all of it is written, and zero is a value.
        unsafe { self.0.assume_init_mut() }
    }
}

/// Copies a value of whole words.
///
/// # Safety
/// As a read and a write; both places are aligned to words.
#[inline(always)]
pub(crate) unsafe fn copy<T: Copy>(from: *const T, to: *mut T) {
    const { assert!(size_of::<T>() % 8 == 0) };
    let (from, to) = (from.cast::<u64>(), to.cast::<u64>());
    for word in 0..size_of::<T>() / 8 {
        // SAFETY: the caller says so. Volatile for the reason of `zero`.
        unsafe { write_volatile(to.add(word), read_volatile(from.add(word))) };
    }
}
