//! Marks: whether a pair is proven, and whether what a connection depends on still holds.
//!
//! A mark holds while its epoch is the one that was seen, it has not expired, and the node whose word it depends on has
//! been heard of lately. No time is read but for packets that depend on a mark.

use core::{
    mem::offset_of,
    ptr::{read_volatile, write_volatile},
};

use abi::{Address, DropReason, Mark, PairKey};
use aya_ebpf::helpers::bpf_ktime_get_boot_ns;

use crate::{
    identity::End,
    maps::{AUTH, LEASES, MARKS},
    policy::Verdict,
    space::Space,
};

/// Returned by [`auth_find`] instead of a number, with the number of the refusal.
const REFUSED: u32 = 1 << 31;

/// Whether the mark with this number and epoch holds.
#[inline(always)]
pub(crate) fn is_live(number: u32, epoch: u64) -> bool {
    auth_is_live(number, epoch) == 1
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn auth_is_live(number: u32, epoch: u64) -> u32 {
    let Some(mark) = MARKS.get_ptr(number) else { return 0 };
    // SAFETY: an array element lives as long as the map; the auth-agent stores to it meanwhile, hence volatile.
    let is_same = unsafe { read_volatile(&raw const (*mark).epoch) } == epoch;
    (is_same && epoch != 0 && holds(mark, epoch)).into()
}

/// Whether a mark whose epoch was this a moment ago has neither expired nor been left by its node, nor become another.
#[inline(always)]
fn holds(mark: *const Mark, epoch: u64) -> bool {
    // SAFETY: as in `auth_is_live`.
    let (expiry, lease) =
        unsafe { (read_volatile(&raw const (*mark).expiry), read_volatile(&raw const (*mark).lease)) };
    // SAFETY: as in `auth_is_live`.
    let ends = LEASES.get_ptr(lease).map_or(0, |ends| unsafe { read_volatile(ends) });
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    // SAFETY: as in `auth_is_live`. Last: until here it was the one mark.
    now < expiry && now < ends && unsafe { read_volatile(&raw const (*mark).epoch) } == epoch
}

/// Whether `end`, of this node, and `peer`, with this address, have proven who they are. Then `verdict` gets the mark; if
/// it has one already, for the other end, it must be the same. The error goes with the number of a refusal, or 0.
#[inline(always)]
pub(crate) fn prove(
    end: &End,
    peer: &End,
    address: &Address,
    verdict: Option<&mut Verdict>,
) -> Result<(), (DropReason, u8)> {
    let found = auth_find(end.instance, peer.identity, address);
    if found & REFUSED != 0 {
        return Err((DropReason::AuthenticationRefused, found as u8));
    }
    let verdict = verdict.map_or(core::ptr::null_mut(), |verdict| &raw mut *verdict);
    if found == 0 || auth_check(found, end.instance, peer.instance, address, verdict) == 0 {
        return Err((DropReason::AuthenticationRequired, 0));
    }
    Ok(())
}

/// What `AUTH` has of a pair: the number of a mark, [`REFUSED`] with a reason, or 0.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn auth_find(instance: u32, identity: u32, address: *const Address) -> u32 {
    // SAFETY: the caller passes a reference; the test for null is for the verifier.
    let Some(address) = (unsafe { address.as_ref() }) else { return 0 };
    let mut space = Space::<PairKey>::new();
    let key = space.as_mut_ptr();
    const { assert!(offset_of!(PairKey, remote) == 0) };
    let (high, low) = words(address);
    // A copy: until 6.2 what a global function was given cannot be a map's key. By words, as addresses are copied.
    // SAFETY: all fields of a key, which is aligned to words.
    let key = unsafe {
        write_volatile(key.cast::<u64>(), high);
        write_volatile(key.cast::<u64>().add(1), low);
        write_volatile(&raw mut (*key).identity, identity);
        write_volatile(&raw mut (*key).instance, instance);
        &*key
    };
    let Some(pair) = AUTH.get_ptr(key) else { return 0 };
    // SAFETY: an element may be recycled under us: the mark is asked whose it is, and a refusal that is another's
    // costs one packet.
    let (mark, refusal, until) = unsafe {
        (
            read_volatile(&raw const (*pair).mark),
            read_volatile(&raw const (*pair).refusal),
            read_volatile(&raw const (*pair).until),
        )
    };
    if mark != 0 {
        return mark & !REFUSED;
    }
    // SAFETY: no arguments.
    if unsafe { bpf_ktime_get_boot_ns() } < until { REFUSED | u32::from(refusal) } else { 0 }
}

/// 1 if the mark is that of these two and holds. `peer`: its instance if it is on this node, else 0, and its address
/// counts.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn auth_check(
    number: u32,
    own: u32,
    peer: u32,
    address: *const Address,
    verdict: *mut Verdict,
) -> u32 {
    // SAFETY: the caller passes a reference; the test for null is for the verifier.
    let Some(address) = (unsafe { address.as_ref() }) else { return 0 };
    let Some(mark) = MARKS.get_ptr(number) else { return 0 };
    // SAFETY: an array element lives as long as the map; the auth-agent stores to it meanwhile, hence volatile.
    let (epoch, [one, other]) =
        unsafe { (read_volatile(&raw const (*mark).epoch), read_volatile(&raw const (*mark).instances)) };
    let is_theirs = if peer != 0 {
        (one == own && other == peer) || (one == peer && other == own)
    } else {
        one == own && other == 0 && has_address(mark, address)
    };
    if epoch == 0 || !is_theirs || !holds(mark, epoch) {
        return 0;
    }
    // SAFETY: the caller passes a reference or null.
    if let Some(verdict) = unsafe { verdict.as_mut() } {
        if verdict.mark != 0 && (verdict.mark, verdict.epoch) != (number, epoch) {
            return 0;
        }
        (verdict.mark, verdict.epoch) = (number, epoch);
    }
    1
}

/// Whether the peer of a mark, on another node, has this address.
#[inline(always)]
fn has_address(mark: *const Mark, address: &Address) -> bool {
    const MAPPED: u64 = u64::from_ne_bytes([0, 0, 0xff, 0xff, 0, 0, 0, 0]);
    const { assert!(offset_of!(Mark, ipv4) % 4 == 0 && offset_of!(Mark, ipv6) % 8 == 0) };
    let (high, low) = words(address);
    // SAFETY: as in `auth_check`; aligned as asserted.
    unsafe {
        if high == 0 && low as u32 == MAPPED as u32 {
            return u64::from(read_volatile((&raw const (*mark).ipv4).cast::<u32>())) == low >> 32;
        }
        let own = (&raw const (*mark).ipv6).cast::<u64>();
        (read_volatile(own), read_volatile(own.add(1))) == (high, low)
    }
}

/// An address of a [`crate::parse::Packet`], where both are aligned to words, as it stands.
#[inline(always)]
fn words(address: &Address) -> (u64, u64) {
    let address = (&raw const *address).cast::<u64>();
    // SAFETY: two words, aligned as said.
    unsafe { (read_volatile(address), read_volatile(address.add(1))) }
}
