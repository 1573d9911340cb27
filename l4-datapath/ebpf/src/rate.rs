//! Token buckets of one word each: the time until which a share is used up ("generic cell rate algorithm").

use crate::atomic;

/// Nanoseconds between two, in the long run: 256 a second.
const INTERVAL: u64 = 3_906_250;
/// How many may come at once.
const BURST: u64 = 128;

/// Takes one; `false` if the share is used up.
///
/// # Safety
/// As for [`atomic::add`].
#[inline(always)]
pub(crate) unsafe fn take(word: *mut u64, now: u64) -> bool {
    let next = |used: u64| {
        let used = used.max(now) + INTERVAL;
        (used - now <= BURST * INTERVAL).then_some(used)
    };
    // SAFETY: the caller says so.
    unsafe { atomic::update(word, next) }
}
