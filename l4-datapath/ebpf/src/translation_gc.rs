//! The part of [`crate::conntrack_gc`] that looks at `TRANSLATIONS`: both halves go with their connection.
//!
//! A packet that opens a connection anew in the moment between our look and our delete gets, with the next one, another
//! port; its peer takes that for another client, as after any long silence.

use core::ffi::c_void;

use abi::{PacketTuple, Translation, TranslationKind};

use crate::{
    address::is_mapped4,
    conntrack::{self, Tuple},
    conntrack_gc::Walk,
    maps::TRANSLATIONS,
};

/// Deletes the element if nothing needs it; always goes on to the next.
///
/// # Safety
/// For `bpf_for_each_map_elem` over `TRANSLATIONS` alone.
pub(crate) unsafe extern "C" fn visit(
    _map: *mut c_void,
    key: *const PacketTuple,
    value: *mut Translation,
    walk: *mut Walk,
) -> i64 {
    // SAFETY: the kernel passes the element and the context given to `bpf_for_each_map_elem`.
    let (key, half, walk) = unsafe { (*key, &mut *value, &mut *walk) };
    let other = half.tuple.reversed();
    if half.is_forward == 1 {
        if is_alive(&key, walk.second) {
            walk.live += 1;
        } else {
            walk.expired += delete(&key);
            if is_pair(&key, &other) {
                walk.expired += delete(&other);
            }
        }
    } else if !is_pair(&key, &other) {
        orphan(&key, half, walk);
    } else if is_alive(&other, walk.second) {
        walk.live += 1;
    } else {
        walk.expired += delete(&key);
    }
    0
}

/// A reverse half without its forward half is being entered just now, or has been left over.
#[inline(always)]
fn orphan(key: &PacketTuple, half: &mut Translation, walk: &mut Walk) {
    if half.orphaned == 1 {
        walk.expired += delete(key);
    } else {
        half.orphaned = 1;
        walk.live += 1;
    }
}

/// Whether the half under the key `other` leads back to `key`.
#[inline(always)]
fn is_pair(key: &PacketTuple, other: &PacketTuple) -> bool {
    translation_is_pair(key, other) == 1
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn translation_is_pair(key: *const PacketTuple, other: *const PacketTuple) -> u32 {
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(key), Some(other)) = (unsafe { (key.as_ref(), other.as_ref()) }) else { return 0 };
    // Until 6.2 what a global function was given cannot be a map's key.
    let other = *other;
    // SAFETY: only compared; whatever it is by then.
    unsafe { TRANSLATIONS.get(&other) }.is_some_and(|found| found.tuple.reversed() == *key).into()
}

/// Whether the connection of the forward half under this key lives.
#[inline(always)]
fn is_alive(key: &PacketTuple, second: u32) -> bool {
    translation_is_alive(key, second) == 1
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn translation_is_alive(key: *const PacketTuple, second: u32) -> u32 {
    // SAFETY: the caller passes a reference; the test for null is for the verifier.
    let Some(key) = (unsafe { key.as_ref() }) else { return 0 };
    let key = *key;
    // SAFETY: copied from; whatever it is by then, a connection is looked for that way only to keep it.
    let Some(half) = (unsafe { TRANSLATIONS.get(&key) }) else { return 0 };
    // A service is called by another address than its connection has, and a masquerade is nobody's connection.
    let to = if half.kind == TranslationKind::Service as u8 { &half.tuple } else { &key };
    let ports = (u16::from_be_bytes(key.source_port), u16::from_be_bytes(to.destination_port));
    let mut tuple = Tuple::new(&key.source, &to.destination, ports, key.protocol, is_mapped4(&key.source));
    if conntrack::find(&tuple).is_some_and(|entry| entry.is_alive(key.protocol, second)) {
        return 1;
    }
    // What the L7 proxy opens in a workload's name is masqueraded too.
    tuple.set_proxy_leg();
    conntrack::find(&tuple).is_some_and(|entry| entry.is_alive(key.protocol, second)).into()
}

/// How many elements that deleted.
#[inline(always)]
fn delete(key: &PacketTuple) -> u64 {
    translation_delete(key).into()
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn translation_delete(key: *const PacketTuple) -> u32 {
    // SAFETY: the caller passes a reference; the test for null is for the verifier.
    let Some(key) = (unsafe { key.as_ref() }) else { return 0 };
    let key = *key;
    TRANSLATIONS.remove(&key).is_ok().into()
}
