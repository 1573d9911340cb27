//! Telling people: events and drop counters.
//!
//! Every drop is counted. Every drop but the noise every kernel makes on a link (router solicitations, multicast
//! listener reports) is an event too. A new connection between two local endpoints makes *two* events, egress of the
//! opener and ingress of the other, each with the rule that decided it.

use abi::{Direction, DropCount, DropKey, Event, EventKind};
use aya_ebpf::{bindings::BPF_NOEXIST, helpers::bpf_ktime_get_boot_ns};

use crate::{
    identity::Local,
    maps::{DROPS, EVENTS, LOST},
    parse::Packet,
    policy::Decision,
};

/// What is known of a packet beyond its headers, as far as the judgement has come.
pub(crate) struct Flow {
    pub(crate) source: Option<Local>,
    pub(crate) destination: Option<Local>,
    pub(crate) facts: Facts,
    /// What the way on can carry, if the packet is too big for it.
    pub(crate) mtu: u32,
}

/// The part of a [`Flow`] that is told.
///
/// Plain numbers: it goes to functions that the verifier checks once, by themselves, and that may take no map pointers.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Facts {
    pub(crate) source_identity: u32,
    pub(crate) destination_identity: u32,
    /// Host-side veth of the endpoint that judges, or judged last.
    pub(crate) ifindex: u32,
    pub(crate) ruleset: u32,
    pub(crate) cookie: u32,
    /// [`Direction`] as u8.
    pub(crate) direction: u8,
    /// [`abi::EventFlags`].
    pub(crate) flags: u8,
    pub(crate) zero: [u8; 2],
}

impl Flow {
    /// Nothing known but the hook.
    #[inline(always)]
    pub(crate) fn new(ifindex: u32, direction: Direction) -> Self {
        let facts = Facts {
            source_identity: 0,
            destination_identity: 0,
            ifindex,
            ruleset: 0,
            cookie: 0,
            direction: direction as u8,
            flags: 0,
            zero: [0; 2],
        };
        Self { source: None, destination: None, facts, mtu: 0 }
    }
}

impl Facts {
    /// Names the endpoint that judged and the rule that decided.
    #[inline(always)]
    pub(crate) fn judged_by(&mut self, local: &Local, direction: Direction, decision: &Decision) {
        self.ifindex = local.endpoint.ifindex;
        self.direction = direction as u8;
        self.ruleset = decision.ruleset;
        self.cookie = decision.cookie;
    }
}

/// Counts and reports a drop.
#[inline(always)]
pub(crate) fn dropped(packet: &Packet, flow: &Flow, reason: u8) {
    count(packet, flow, reason);
    report(packet, &flow.facts, EventKind::Drop, reason);
}

/// Counts a drop. Alone: for noise, where an event for each packet would hide those that matter.
#[inline(always)]
pub(crate) fn count(packet: &Packet, flow: &Flow, reason: u8) {
    flow_count(flow.facts.ifindex, reason.into(), flow.facts.direction.into(), packet.length);
}

/// Puts an event into the ring. If it is full the event is lost and counted; no verdict depends on it.
#[inline(always)]
pub(crate) fn report(packet: &Packet, facts: &Facts, kind: EventKind, reason: u8) {
    flow_report(packet, facts, kind as u32, reason.into());
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
extern "C" fn flow_report(packet: *const Packet, facts: *const Facts, kind: u32, reason: u32) -> u32 {
    // SAFETY: the callers pass references; the test for null is for the verifier.
    let (Some(packet), Some(facts)) = (unsafe { packet.as_ref() }, unsafe { facts.as_ref() }) else {
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
        source_identity: facts.source_identity,
        destination_identity: facts.destination_identity,
        ifindex: facts.ifindex,
        ruleset: facts.ruleset,
        cookie: facts.cookie,
        length: packet.length,
        source_port: packet.source_port,
        destination_port: packet.destination_port,
        kind: kind as u8,
        reason: reason as u8,
        direction: facts.direction,
        protocol: packet.protocol,
        tcp_flags: packet.tcp_flags,
        flags: facts.flags,
        ethertype: packet.ethertype,
        reserved: 0,
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
