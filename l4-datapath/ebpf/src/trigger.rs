//! Calls that want a proof which is not there: the auth-agent is told before their first packet.
//!
//! Only asks, as a packet that waits does, and is believed no more: whoever calls is known by his network namespace, and
//! policy is asked as it will be for the packet. Nothing is told where a packet would not wait: no device to wait on, no
//! policy that wants a proof, a proof that was refused a moment ago. So many a second for each endpoint, and what finds
//! the ring full is lost: the packet asks again. These programs can be preempted, so nothing here is of one CPU alone.

use core::ptr::{read_volatile, write_volatile};

use abi::{Address, Assignments, Direction, DropReason, HoldCount, HoldKind, Trigger};
use aya_ebpf::helpers::bpf_ktime_get_boot_ns;

use crate::{
    address::is_mapped4,
    atomic, hold,
    identity::{self, End, Moment, is_workload},
    maps::{ASSIGNMENTS, HOLD_COUNTS, HOLD_RATES, NAMESPACES, TRIGGERS},
    policy::{self, Question, Verdict},
    rate,
    socket::Socket,
    space::{Space, Zero},
};

// SAFETY: numbers.
unsafe impl Zero for End {}

/// Tells the auth-agent of a call that goes on, if it must.
#[inline(always)]
pub(crate) fn ask(socket: Socket) {
    if hold::device() == 0 {
        return;
    }
    let Some(protocol) = socket.protocol() else { return };
    let (address, port) = (socket.address(), u16::from_be_bytes(socket.port()));
    let wants = wants(&address, Question { port, protocol }, socket.namespace());
    if wants != NOTHING {
        trigger_tell(&address, wants);
    }
}

/// What [`wants`] returns if a packet of the call would not wait for a proof.
pub(crate) const NOTHING: u32 = 0;

/// Whether a packet to this address from that network namespace would wait for a proof: else [`NOTHING`].
#[inline(always)]
pub(crate) fn wants(address: &Address, call: Question, namespace: u64) -> u32 {
    trigger_wants(address, u32::from(call.protocol) << 16 | u32::from(call.port), namespace)
}

/// Id of the endpoint with that network namespace.
#[inline(always)]
pub(crate) fn endpoint(namespace: u64) -> Option<u32> {
    // SAFETY: an element may be recycled under us, for another endpoint's: then that one's policy is asked, in vain.
    NAMESPACES.get_ptr(&namespace).map(|id| unsafe { read_volatile(id) })
}

/// Counts, on whatever CPU this may be by now.
#[inline(always)]
pub(crate) fn count(what: u32) {
    if let Some(count) = HOLD_COUNTS.get_ptr_mut(what) {
        // SAFETY: an element of a map.
        unsafe { atomic::add(count, 1) };
    }
}

/// Endpoint id and, in the lowest byte, [`HoldKind`]; or [`NOTHING`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn trigger_wants(address: *const Address, call: u32, namespace: u64) -> u32 {
    // SAFETY: the caller passes a reference; the test for null is for the verifier.
    let Some(address) = (unsafe { address.as_ref() }) else { return NOTHING };
    let call = Question { port: call as u16, protocol: (call >> 16) as u8 };
    find(address, call, namespace).map_or(NOTHING, |(id, kind)| id << 8 | kind as u32)
}

#[inline(always)]
fn find(address: &Address, call: Question, namespace: u64) -> Option<(u32, HoldKind)> {
    let id = endpoint(namespace)?;
    let now = Moment::current().ok()?;
    let assignments = ASSIGNMENTS.get(id)?;
    let (mut caller, mut called) = (Space::<End>::new(), Space::<End>::new());
    let (caller, called) = (caller.zero(), called.zero());
    caller.set_local(&assignments.endpoint, now.generation).ok()?;
    // A copy: until 6.2 what a global function was given cannot be a map's key.
    let mut key = Space::new();
    let address = copied(address, &mut key);
    match identity::endpoint(address) {
        Some(endpoint) => called.set_local(endpoint, now.generation).ok()?,
        None => called.set_remote(address, now.generation),
    }
    if !caller.is_local() || !is_workload(called.identity) || called.id == caller.id {
        return None;
    }
    let mut verdict = Space::<Verdict>::new();
    let verdict = verdict.zero();
    match policy::ask(caller, Direction::Egress, (called, address), call, verdict) {
        Err((DropReason::AuthenticationRequired, _)) => return Some((id, HoldKind::Egress)),
        Err(_) => return None,
        Ok(()) if !called.is_local() => return None,
        Ok(()) => {}
    }
    let mut space = Space::new();
    let own = own(assignments, address, &mut space);
    match policy::ask(called, Direction::Ingress, (caller, own), call, verdict) {
        Err((DropReason::AuthenticationRequired, _)) => Some((id, HoldKind::Ingress)),
        _ => None,
    }
}

/// Writes the record; `wants` is what [`trigger_wants`] has returned.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn trigger_tell(address: *const Address, wants: u32) -> u32 {
    // SAFETY: the caller passes a reference; the test for null is for the verifier.
    let Some(address) = (unsafe { address.as_ref() }) else { return 0 };
    tell(address, wants >> 8, wants as u8).map_or(0, |()| 1)
}

#[inline(always)]
fn tell(address: &Address, id: u32, kind: u8) -> Option<()> {
    let (rates, assignments) = (HOLD_RATES.get_ptr_mut(id)?, ASSIGNMENTS.get(id)?);
    // SAFETY: an array element; no arguments.
    if !unsafe { rate::take(&raw mut (*rates).asked, bpf_ktime_get_boot_ns()) } {
        return None;
    }
    let mut space = Space::new();
    let source = *own(assignments, address, &mut space);
    let mut record = TRIGGERS.reserve(0)?;
    record.write(Trigger { source, destination: *address, kind, zero: [0; 7] });
    record.submit(0);
    count(HoldCount::ASKED);
    Some(())
}

/// The endpoint's address of that one's family. By words: LLVM would copy by bytes.
#[inline(always)]
fn own<'a>(assignments: &Assignments, other: &Address, space: &'a mut Space<Address>) -> &'a Address {
    if is_mapped4(other) {
        let own = space.as_mut_ptr().cast::<u32>();
        // SAFETY: all four words, which are aligned; the field is.
        unsafe {
            write_volatile(own.cast::<u64>(), 0);
            write_volatile(own.add(2), 0xffff_u32.to_be());
            write_volatile(own.add(3), read_volatile((&raw const assignments.ipv4).cast::<u32>()));
            return &*own.cast();
        }
    }
    // SAFETY: sixteen plain bytes, aligned to four.
    copied(unsafe { &*(&raw const assignments.ipv6).cast::<Address>() }, space)
}

/// A copy by words.
#[inline(always)]
fn copied<'a>(address: &Address, space: &'a mut Space<Address>) -> &'a Address {
    let (from, to) = ((&raw const *address).cast::<u32>(), space.as_mut_ptr());
    for word in 0..size_of::<Address>() / 4 {
        // SAFETY: four words; both places are aligned to them.
        unsafe { write_volatile(to.cast::<u32>().add(word), read_volatile(from.add(word))) };
    }
    // SAFETY: all of it is written.
    unsafe { &*to }
}
