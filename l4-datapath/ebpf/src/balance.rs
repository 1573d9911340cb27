//! Whom a call to a service is given to. Hook-neutral: sockets ask when they call, `from_pod` asks for packets of those
//! whose sockets no hook sees.
//!
//! An ordinary call costs one look-up, [`is_vip`]; a call to a VIP three more, and with affinity two besides. A call
//! that finds no backend is refused by who asks; it never reaches another service's: see [`abi::Service::frontend`].

use core::{
    mem::offset_of,
    ptr::{read_volatile, write_volatile},
};

use abi::{Address, Affinity, AffinityKey, Backend, Frontend, Member, Service};

use crate::{
    conntrack::now,
    maps::{AFFINITIES, BACKENDS, FRONTENDS, MEMBERS, SERVICES, SLOTS},
    space::{Zero, copy},
};

/// A call that wants a backend. Aligned to words: LLVM copies by bytes what it does not know to be aligned.
#[repr(C, align(8))]
pub(crate) struct Call {
    /// What is called.
    pub(crate) frontend: Frontend,
    /// Chooses among the slots, evenly over all values: a random number, or a hash of what must stay together. Calls
    /// with equal numbers reach the same backend for as long as the slots are the same.
    pub(crate) entropy: u32,
    /// Who calls, as [`AffinityKey::client`] has it.
    pub(crate) client: Address,
}

impl Call {
    /// What is called, as numbers.
    #[inline(always)]
    pub(crate) fn words(&self) -> Words {
        const { assert!(align_of::<Self>() == 8 && offset_of!(Self, frontend) == 0) };
        // SAFETY: as asserted.
        unsafe { Words::of(&raw const self.frontend) }
    }
}

/// Who answers a call; [`choose`] fills it.
#[repr(C, align(8))]
pub(crate) struct Choice {
    /// Where it is.
    pub(crate) backend: Backend,
    /// Index in `BACKENDS`.
    pub(crate) number: u32,
    /// Index in `SERVICES` of the service that was called.
    pub(crate) service: u32,
}

// SAFETY: numbers.
unsafe impl Zero for Choice {}

/// Whether some service is called by this address: then a port that no service has is refused, not routed.
#[inline(always)]
pub(crate) fn is_vip(address: &Address) -> bool {
    FRONTENDS.get_ptr(Frontend::address_only(*address)).is_some()
}

/// Whether some service has this port, whoever answers there.
#[inline(always)]
pub(crate) fn is_frontend(frontend: &Frontend) -> bool {
    FRONTENDS.get_ptr(frontend).is_some()
}

/// Gives the call to a backend. `false`: no such port, or nobody answers it; `choice` is as it was.
#[inline(always)]
pub(crate) fn choose(call: &Call, choice: &mut Choice) -> bool {
    balance_choose(call, choice) == CHOSEN
}

const CHOSEN: u32 = 1;
const NOBODY: u32 = 0;

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn balance_choose(call: *const Call, choice: *mut Choice) -> u32 {
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(call), Some(choice)) = (unsafe { (call.as_ref(), choice.as_mut()) }) else { return NOBODY };
    match give(call, choice) {
        Some(()) => CHOSEN,
        None => NOBODY,
    }
}

#[inline(always)]
fn give(call: &Call, choice: &mut Choice) -> Option<()> {
    let (index, service) = find(call)?;
    // SAFETY: an array element lives as long as the map; the agent stores to it meanwhile, hence volatile.
    let (slots, timeout) = unsafe {
        (read_volatile(&raw const (*service).slots), read_volatile(&raw const (*service).affinity))
    };
    let number = if timeout == 0 { draw(call, slots)? } else { stay(call, index, slots, timeout)? };
    const { assert!(align_of::<Choice>() == 8 && offset_of!(Choice, backend) == 0) };
    // SAFETY: elements of an array of this size, and a choice, are aligned to words.
    unsafe { copy(BACKENDS.get_ptr(number)?, &raw mut choice.backend) };
    (choice.number, choice.service) = (number, index);
    Some(())
}

/// The service that is called by exactly this.
#[inline(always)]
fn find(call: &Call) -> Option<(u32, *const Service)> {
    // Until 6.2 what a global function was given cannot be a map's key: a copy can.
    let asked = call.words();
    // SAFETY: words of a frontend, in their order, are a frontend.
    let found = FRONTENDS.get_ptr(unsafe { &*(&raw const asked).cast::<Frontend>() })?;
    // SAFETY: an element may become another's under us, but is never freed to anything else: the number is read once,
    // and the comparison below says whose it is.
    let index = unsafe { read_volatile(found) };
    let service = SERVICES.get_ptr(index)?;
    // SAFETY: a service is aligned to words, and so is where its frontend stands in it.
    let own = unsafe { Words::of(&raw const (*service).frontend) };
    (own == asked).then_some((index, service))
}

const _: () = assert!(align_of::<Service>() == 8 && offset_of!(Service, frontend) == 8);

/// A frontend in three loads instead of twenty.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Words(pub(crate) u64, pub(crate) u64, pub(crate) u32);

impl Words {
    /// # Safety
    /// The frontend is aligned to eight bytes.
    #[inline(always)]
    unsafe fn of(frontend: *const Frontend) -> Self {
        const { assert!(size_of::<Frontend>() == offset_of!(Self, 2) + size_of::<u32>()) };
        let words: *const u64 = frontend.cast();
        // SAFETY: the caller says it is aligned.
        unsafe { Self(read_volatile(words), read_volatile(words.add(1)), read_volatile(words.add(2).cast())) }
    }
}

/// The backend of a slot, by the call's entropy: the product is spread over the slots without a division.
#[inline(always)]
fn draw(call: &Call, slots: u64) -> Option<u32> {
    let slot = (u64::from(call.entropy) * u64::from(Service::count(slots))) >> 32;
    if Service::count(slots) == 0 {
        return None;
    }
    match *SLOTS.get(Service::first(slots).wrapping_add(slot as u32))? {
        0 => None,
        number => Some(number),
    }
}

/// The backend the client had last, if it still is one and the time is not over; else any, which it has from now on.
#[inline(always)]
fn stay(call: &Call, service: u32, slots: u64, timeout: u32) -> Option<u32> {
    // Nobody is chosen for a service without slots, whatever is remembered.
    let drawn = draw(call, slots)?;
    let key = AffinityKey { client: call.client, service, zero: 0 };
    let second = now();
    if let Some(number) = remembered(&key, second, timeout) {
        return Some(number);
    }
    // A full map evicts; should it fail all the same, the next call draws again.
    let _ = AFFINITIES.insert(&key, Affinity { backend: drawn, seen: second }, 0);
    Some(drawn)
}

#[inline(always)]
fn remembered(key: &AffinityKey, second: u32, timeout: u32) -> Option<u32> {
    let entry = AFFINITIES.get_ptr_mut(key)?;
    // SAFETY: LRU may recycle the element under us, but only for another of its kind: then what we read is somebody's
    // affinity, which `MEMBERS` checks, and what we store is a time that is right.
    let (backend, seen) =
        unsafe { (read_volatile(&raw const (*entry).backend), read_volatile(&raw const (*entry).seen)) };
    // Signed: another CPU may have been here a tick later than we looked at the clock.
    if second.wrapping_sub(seen).cast_signed() > timeout.cast_signed() {
        return None;
    }
    MEMBERS.get_ptr(Member { service: key.service, backend })?;
    if seen != second {
        // SAFETY: as above.
        unsafe { write_volatile(&raw mut (*entry).seen, second) };
    }
    Some(backend)
}
