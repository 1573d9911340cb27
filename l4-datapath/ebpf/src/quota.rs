//! Connections charged to endpoints: nobody may fill the table for all.

use core::ptr::read_volatile;

use abi::Address;

use crate::{
    atomic, identity,
    maps::{ASSIGNMENTS, USAGE},
};

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

/// Whether the endpoint with this address has more connections than that.
#[inline(always)]
pub(crate) fn exceeds(address: &Address, connections: u32) -> bool {
    quota_exceeds(address, connections) != 0
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn quota_exceeds(address: *const Address, connections: u32) -> u32 {
    // SAFETY: the caller passes a reference; the test for null is for the verifier.
    let Some(address) = (unsafe { address.as_ref() }) else { return 0 };
    // A copy: until 6.2 what a global function was given cannot be a map's key.
    let address = *address;
    let usage = identity::endpoint(&address).and_then(|endpoint| USAGE.get_ptr(endpoint.id));
    // SAFETY: an array element lives as long as the map; other CPUs count meanwhile, hence volatile.
    usage.is_some_and(|usage| unsafe { read_volatile(usage) }.cast_signed() > i64::from(connections)).into()
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

/// Adds and returns what was there.
#[inline(always)]
fn add(counter: *mut u64, by: i64) -> u64 {
    // SAFETY: an element of `USAGE`.
    unsafe { atomic::add(counter, by) }
}
