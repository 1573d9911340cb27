//! Telling people: events and drop counters.
//!
//! Every drop is counted. Every drop but the noise every kernel makes on a link (router solicitations, multicast
//! listener reports) is an event too. A new connection between two local endpoints makes *two* events, egress of the
//! opener and ingress of the other, each with the rule that decided it.

use abi::{Address, Direction, DropCount, DropKey, Event, EventFlags, EventKind};
use aya_ebpf::{bindings::BPF_NOEXIST, helpers::bpf_ktime_get_boot_ns};

use crate::{
    address::is_unspecified,
    identity::{End, Moment},
    maps::{DROPS, EVENTS, LOST},
    parse::Packet,
    policy::Verdict,
    space::{Space, Zero},
    translation::Role,
};

/// What is known of a packet beyond its headers, as far as the judgement has come. Plain numbers, see
/// [`crate::refusal`].
#[repr(C, align(8))]
pub(crate) struct Flow {
    pub(crate) source: End,
    pub(crate) destination: End,
    /// Host-side veth of the endpoint that judges, or judged last.
    pub(crate) ifindex: u32,
    pub(crate) ruleset: u32,
    pub(crate) cookie: u32,
    /// What the way on can carry, if the packet is too big for it.
    pub(crate) mtu: u32,
    /// [`Direction`] as u8.
    pub(crate) direction: u8,
    /// [`abi::EventFlags`].
    pub(crate) flags: u8,
    /// Port of [`Flow::called`], machine order.
    pub(crate) called_port: u16,
    /// The VIP the packet came to; all zero if to none. The packet in memory then goes to a backend, or will.
    pub(crate) called: Address,
    /// [`crate::translation::Role`].
    pub(crate) role: u8,
    /// The connection table has nothing of the packet as it came.
    pub(crate) is_unknown: bool,
    /// Why a proof that policy asks for was refused, a number that `mesh::auth::Refusal` has; else 0.
    pub(crate) refusal: u8,
    /// [`crate::proxied::Part`].
    pub(crate) proxy: u8,
}

// SAFETY: numbers and a flag.
unsafe impl Zero for Flow {}

impl Flow {
    /// Nothing known but the hook.
    #[inline(always)]
    pub(crate) fn start(space: &mut Space<Self>, ifindex: u32, direction: Direction) -> &mut Self {
        const { assert!(Role::NONE == 0) };
        let flow = space.zero();
        flow.ifindex = ifindex;
        flow.direction = direction as u8;
        flow
    }

    /// Both ends are one endpoint.
    #[inline(always)]
    pub(crate) fn is_to_itself(&self) -> bool {
        self.source.is_local() && self.source.id == self.destination.id
    }

    /// Makes the packet in memory again one to the VIP it came to, if it came to one.
    #[inline(always)]
    pub(crate) fn restore(&self, packet: &mut Packet) {
        if !is_unspecified(&self.called) {
            packet.destination = self.called;
            packet.destination_port = self.called_port;
        }
    }

    /// Looks up who the destination is, unless that is known.
    ///
    /// Not at once: a packet of a known connection does not need it, and the trie is what it would spend most time in.
    #[inline(always)]
    pub(crate) fn identify_destination(&mut self, packet: &Packet, now: &Moment) {
        if self.destination.identity == 0 && !self.destination.is_local() {
            self.destination.set_remote(&packet.destination, now.generation);
        }
    }

    /// Names the endpoint that judged and the rule that decided.
    #[inline(always)]
    pub(crate) fn judged_by(&mut self, ifindex: u32, ruleset: u32, direction: Direction, verdict: &Verdict) {
        self.ifindex = ifindex;
        self.direction = direction as u8;
        self.ruleset = if verdict.asked(direction) { ruleset } else { 0 };
        self.cookie = verdict.cookie(direction);
        // The other end may have been asked in earnest.
        self.flags &= !EventFlags::AUDITED;
        if verdict.is_audited(direction) {
            self.flags |= EventFlags::AUDITED;
        }
    }
}

/// Counts and reports a drop.
#[inline(always)]
pub(crate) fn dropped(packet: &Packet, flow: &Flow, reason: u8) {
    count(packet, flow, reason);
    flow_report(packet, flow, EventKind::Drop as u32, reason.into(), flow.refusal.into());
}

/// Counts a drop. Alone: for noise, where an event for each packet would hide those that matter.
#[inline(always)]
pub(crate) fn count(packet: &Packet, flow: &Flow, reason: u8) {
    flow_count(flow.ifindex, reason.into(), flow.direction.into(), packet.length);
}

/// Reports a packet that passes: the first of a connection that depends on this mark, or any at trace level.
///
/// If the ring is full the event is lost and counted; no verdict depends on it.
#[inline(always)]
pub(crate) fn report(packet: &Packet, flow: &Flow, kind: EventKind, mark: u32) {
    flow_report(packet, flow, kind as u32, 0, mark);
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn flow_count(ifindex: u32, reason: u32, direction: u32, length: u32) -> u32 {
    let key = DropKey { ifindex, reason: reason as u8, direction: direction as u8, zero: [0; 2] };
    if !add(&key, length) {
        let first = DropCount { packets: 1, bytes: u64::from(length) };
        // Another CPU may have made the key meanwhile; then the second look-up finds it.
        if DROPS.insert(key, first, u64::from(BPF_NOEXIST)).is_err() && !add(&key, length) {
            lost();
        }
    }
    0
}

#[inline(always)]
fn add(key: &DropKey, length: u32) -> bool {
    let Some(count) = DROPS.get_ptr_mut(key) else { return false };
    // SAFETY: the element of this CPU; tc programs do not interrupt each other on one CPU.
    unsafe {
        (*count).packets += 1;
        (*count).bytes += u64::from(length);
    }
    true
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn flow_report(
    packet: *const Packet,
    flow: *const Flow,
    kind: u32,
    reason: u32,
    authentication: u32,
) -> u32 {
    // SAFETY: the callers pass references; the test for null is for the verifier.
    let (Some(packet), Some(flow)) = (unsafe { packet.as_ref() }, unsafe { flow.as_ref() }) else {
        return 0;
    };
    let Some(mut entry) = EVENTS.reserve(0) else {
        lost();
        return 0;
    };
    entry.write(Event {
        // SAFETY: no arguments.
        time: unsafe { bpf_ktime_get_boot_ns() },
        source: packet.source,
        destination: packet.destination,
        source_identity: flow.source.identity,
        destination_identity: flow.destination.identity,
        ifindex: flow.ifindex,
        ruleset: flow.ruleset,
        cookie: flow.cookie,
        length: packet.length,
        source_port: packet.source_port,
        destination_port: packet.destination_port,
        kind: kind as u8,
        reason: reason as u8,
        direction: flow.direction,
        protocol: packet.protocol,
        tcp_flags: packet.tcp_flags,
        flags: flow.flags,
        ethertype: packet.ethertype,
        authentication,
    });
    entry.submit(0);
    0
}

#[inline(always)]
fn lost() {
    if let Some(count) = LOST.get_ptr_mut(0) {
        // SAFETY: the element of this CPU.
        unsafe { *count += 1 };
    }
}
