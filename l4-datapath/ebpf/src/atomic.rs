//! Atomic changes of words in maps. `core` has none for this target.

use core::{arch::asm, ptr::read_volatile};

/// How often a change is tried that another CPU makes at the same time.
const ATTEMPTS: usize = 4;

/// Adds and returns what was there.
///
/// # Safety
/// `counter` is a word of a map's element: aligned, never freed while the program runs.
#[inline(always)]
pub(crate) unsafe fn add(counter: *mut u64, by: i64) -> u64 {
    let mut value = by as u64;
    // SAFETY: the caller says so.
    unsafe {
        asm!("{value} = atomic_fetch_add((u64 *)({counter} + 0), {value})",
            counter = in(reg) counter, value = inout(reg) value);
    }
    value
}

/// Puts `new` where `old` is; `false` if something else is there. What was written before is seen by whoever sees it.
///
/// # Safety
/// As for [`add`].
#[inline(always)]
pub(crate) unsafe fn swap(word: *mut u64, old: u64, new: u64) -> bool {
    let found: u64;
    // SAFETY: the caller says so.
    unsafe {
        asm!("r0 = cmpxchg_64({word} + 0, r0, {new})",
            word = in(reg) word, new = in(reg) new, inout("r0") old => found);
    }
    found == old
}

/// Replaces a word by what `next` makes of it; `false` if that is nothing, or other CPUs are always faster.
///
/// # Safety
/// As for [`add`].
#[inline(always)]
pub(crate) unsafe fn update(word: *mut u64, next: impl Fn(u64) -> Option<u64>) -> bool {
    for _ in 0..ATTEMPTS {
        // SAFETY: the caller says so; other CPUs store meanwhile, hence volatile.
        let old = unsafe { read_volatile(word) };
        let Some(new) = next(old) else { return false };
        // SAFETY: as above.
        if unsafe { swap(word, old, new) } {
            return true;
        }
    }
    false
}
