//! Connections charged to endpoints: nobody may fill the table for all.

use core::arch::asm;

use crate::maps::{ASSIGNMENTS, USAGE};

/// Charges one connection; `false` if the endpoint already has as many as it may.
#[inline(always)]
pub(crate) fn charge(id: u32) -> bool {
    let (Some(usage), Some(assignments)) = (USAGE.get_ptr_mut(id), ASSIGNMENTS.get(id)) else { return false };
    // Counted first and taken back: two CPUs at the limit may both be refused, never both be admitted. A wait-free
    // add has no retry loop, which a compare-and-swap would need.
    if (add(usage, 1) as i64) < i64::from(assignments.quota) {
        return true;
    }
    add(usage, -1);
    false
}

/// Takes back a charge for the endpoint with this id; 0 is nobody.
#[inline(always)]
pub(crate) fn discharge(id: u32) {
    if id != 0
        && let Some(usage) = USAGE.get_ptr_mut(id)
    {
        add(usage, -1);
    }
}

/// Adds and returns what was there. `core` has no atomic add for this target.
#[inline(always)]
fn add(counter: *mut u64, by: i64) -> u64 {
    let mut value = by as u64;
    // SAFETY: `counter` is an element of an array map: aligned, never freed while the program runs.
    unsafe {
        asm!("{value} = atomic_fetch_add((u64 *)({counter} + 0), {value})",
            counter = in(reg) counter, value = inout(reg) value);
    }
    value
}
