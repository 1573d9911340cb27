//! `conntrack_gc`: deletes dead connections and takes back their charges; then deletes their translations.
//!
//! - Hook: none. A classifier only because `BPF_PROG_TEST_RUN` runs one on any packet; the agent does, now and then.
//!   Kernel 5.13 (`bpf_for_each_map_elem`).
//! - Writes `CONNECTIONS4`, `CONNECTIONS6`, `USAGE`, `TRANSLATIONS`.
//! - Result: [`abi::Collected`] over the first bytes of the packet, which must be at least as long. Verdict OK.
//!
//! Why in the kernel: user space would copy every entry out and could not compare and delete in one step. An entry that
//! a packet renews between our look and our delete is lost; it had been dead for its whole timeout.

use core::ffi::c_void;

use abi::{Address, Collected, Connection, ConnectionKey4, ConnectionKey6};
use aya_ebpf::{
    bindings::{TC_ACT_OK, TC_ACT_SHOT},
    helpers::{bpf_for_each_map_elem, bpf_map_delete_elem},
    macros::classifier,
    programs::TcContext,
};

use crate::{
    conntrack::{self, Entry},
    identity,
    maps::{CONNECTIONS4, CONNECTIONS6, TRANSLATIONS},
    quota,
    skb::Skb,
    translation_gc,
};

/// One walk over one table.
#[repr(C)]
pub(crate) struct Walk {
    pub(crate) live: u64,
    pub(crate) expired: u64,
    pub(crate) second: u32,
    zero: u32,
}

/// See the module.
#[classifier]
pub(crate) fn conntrack_gc(ctx: TcContext) -> i32 {
    let second = conntrack::now();
    let mut walk4 = Walk { live: 0, expired: 0, second, zero: 0 };
    let mut walk6 = Walk { live: 0, expired: 0, second, zero: 0 };
    let mut translations = Walk { live: 0, expired: 0, second, zero: 0 };
    // SAFETY: map, callback and context are what the helper's contract asks; the verifier checks the callbacks.
    unsafe {
        bpf_for_each_map_elem(
            (&raw const CONNECTIONS4).cast_mut().cast(),
            visit4 as *mut c_void,
            (&raw mut walk4).cast(),
            0,
        );
        bpf_for_each_map_elem(
            (&raw const CONNECTIONS6).cast_mut().cast(),
            visit6 as *mut c_void,
            (&raw mut walk6).cast(),
            0,
        );
        // After them: what belonged to a connection that has just gone goes now.
        bpf_for_each_map_elem(
            (&raw const TRANSLATIONS).cast_mut().cast(),
            translation_gc::visit as *mut c_void,
            (&raw mut translations).cast(),
            0,
        );
    }
    let collected = Collected {
        live4: walk4.live,
        live6: walk6.live,
        expired4: walk4.expired,
        expired6: walk6.expired,
        translations: translations.live,
        expired_translations: translations.expired,
    };
    match Skb::new(&ctx).store_link(0, &collected) {
        Some(()) => TC_ACT_OK,
        None => TC_ACT_SHOT,
    }
}

unsafe extern "C" fn visit4(
    map: *mut c_void,
    key: *const ConnectionKey4,
    value: *mut Connection,
    walk: *mut Walk,
) -> i64 {
    // SAFETY: the kernel passes the element and the context given to `bpf_for_each_map_elem`.
    unsafe {
        let ends = [Address::v4((*key).low), Address::v4((*key).high)];
        visit(map, key.cast(), (*key).protocol, &ends, value, walk)
    }
}

unsafe extern "C" fn visit6(
    map: *mut c_void,
    key: *const ConnectionKey6,
    value: *mut Connection,
    walk: *mut Walk,
) -> i64 {
    // SAFETY: as in `visit4`.
    unsafe {
        let ends = [Address((*key).low), Address((*key).high)];
        visit(map, key.cast(), (*key).protocol, &ends, value, walk)
    }
}

/// Deletes the element if it is dead; always goes on to the next.
#[inline(always)]
unsafe fn visit(
    map: *mut c_void,
    key: *const c_void,
    protocol: u8,
    ends: &[Address; 2],
    value: *mut Connection,
    walk: *mut Walk,
) -> i64 {
    let Some(entry) = Entry::new(value) else { return 0 };
    // SAFETY: the walk is a local of `conntrack_gc`, which this runs inside of.
    let walk = unsafe { &mut *walk };
    let [low, high] = entry.instances();
    if entry.is_alive(protocol, walk.second) && !is_gone(low, &ends[0]) && !is_gone(high, &ends[1]) {
        walk.live += 1;
        return 0;
    }
    let charged = entry.charged();
    // SAFETY: map and key are the ones we were called with; deleting the visited element is allowed.
    if unsafe { bpf_map_delete_elem(map, key.cast_mut()) } == 0 {
        walk.expired += 1;
        quota::discharge(charged);
    }
    0
}

/// Whether the endpoint that had this address is no more. Its connections go with it: they are nobody's, and what they
/// are translated to must not wait for the next endpoint with the address.
#[inline(always)]
fn is_gone(instance: u32, address: &Address) -> bool {
    instance != 0 && identity::endpoint(address).is_none_or(|endpoint| endpoint.instance as u32 != instance)
}
