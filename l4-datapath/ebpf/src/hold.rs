//! Packets that wait for a proof: out to the hold device.
//!
//! A packet that policy would let pass if its peer were authenticated, or whose receiver's node has not said yet who that
//! is, is sent to a TAP whose reader, the auth-agent, sees to the proof and writes the packet back: [`crate::from_hold`]
//! sends it through the hook that stopped it once more. The first packets of what they open alone may wait: SYN, UDP and
//! echo requests; whole, and at most [`abi::HOLD_LENGTH`] long. Others are dropped, as with the auth-agent dead all are.
//!
//! Bounded before the queue: so many a second for each endpoint of this node in each direction, eight at a time for each
//! flow, and [`abi::HELD`] in all, of which half is for packets that wait for a proof alone: anybody can send to addresses
//! that nobody knows yet. An element of `HELD` is free again once its packet has come back or its time is over; nobody
//! has to collect anything.

use core::{
    mem::offset_of,
    ptr::{read_volatile, write_volatile},
};

use abi::{
    Address, Direction, DropReason, HELD as ELEMENTS, HOLD_LENGTH, HOLD_TIME, Held, Hold, HoldCount,
    HoldKind, HoldTag, PacketTuple,
};
use aya_ebpf::{
    bindings::{__sk_buff, BPF_ANY, TC_ACT_REDIRECT},
    helpers::{bpf_ktime_get_boot_ns, bpf_redirect},
};

use crate::{
    address::{is_mapped4, is_unspecified},
    atomic, digest,
    flow::Flow,
    fragment::Part,
    header::{ETHERNET, Ethernet, Icmp, Ipv4, Ipv6, Tcp, Udp, icmp4, icmp6, protocol},
    judge,
    maps::{HELD, HOLD, HOLD_COUNTS, HOLD_FLOWS, HOLD_RATES, NODE},
    parse::Packet,
    rate,
    skb::Skb,
    space::Space,
};

/// Packets of one flow at a time. They are counted in the lowest bits of a time.
const PER_FLOW: u64 = 8;
const COUNT: u64 = 0xff;
/// In [`Held::state`].
const WRITING: u64 = 1;
/// Which numbers [`hold_take`] gives, as [`Hold::last`] is indexed: those of the packets that wait for a proof alone, and
/// those of all others, too.
const PROOF: usize = 0;
const PENDING: usize = 1;
/// For how long, nanoseconds, a packet that found no room says that there is none.
const MEMORY: u64 = 1_000_000_000;

/// Lets a packet wait that was refused for `reason`, if that can be waited for: `Ok` is the verdict, and the packet is on
/// its way. `Err` is why it is to be dropped.
///
/// `hook` is where it was stopped; `released`: it has waited already. Its bytes must be as it came.
#[inline(always)]
pub(crate) fn wait(
    skb: Skb,
    packet: &Packet,
    flow: &Flow,
    reason: u8,
    hook: Direction,
    released: bool,
) -> Result<i32, u8> {
    let Some(kind) = kind(flow, reason, hook) else { return Err(reason) };
    if released {
        return Err(reason);
    }
    let payer = if hook as u8 == Direction::Egress as u8 { flow.source.id } else { flow.destination.id };
    match hold_admit(skb.as_ptr(), packet, payer.into(), hook as u32) {
        ADMITTED => {}
        UNFIT => return Err(reason),
        _ => return Err(DropReason::HoldFull as u8),
    }
    let is_pending = matches!(kind, HoldKind::PendingEgress | HoldKind::PendingIngress);
    let id = hold_take(is_pending.into());
    if id == 0 {
        return Err(DropReason::HoldFull as u8);
    }
    if hold_note(skb.as_ptr(), packet, flow, id, kind as u32 | (hook as u32) << 8) == 0 {
        return Err(reason);
    }
    match hold_send(skb.as_ptr(), id, digest::of(skb.as_ptr(), id)) {
        0 => Err(reason),
        _ => Ok(TC_ACT_REDIRECT as i32),
    }
}

/// What the packet waits for. An address that is pending is one for who is at the other end of the hook; a proof is one
/// for who asked.
#[inline(always)]
fn kind(flow: &Flow, reason: u8, hook: Direction) -> Option<HoldKind> {
    const REQUIRED: u8 = DropReason::AuthenticationRequired as u8;
    const PENDING: u8 = DropReason::PendingAddress as u8;
    const EGRESS: u8 = Direction::Egress as u8;
    Some(match (reason, flow.direction, hook) {
        (REQUIRED, EGRESS, _) => HoldKind::Egress,
        (REQUIRED, ..) => HoldKind::Ingress,
        (PENDING, _, Direction::Egress) => HoldKind::PendingEgress,
        (PENDING, _, Direction::Ingress) => HoldKind::PendingIngress,
        _ => return None,
    })
}

/// What [`hold_admit`] returns.
const ADMITTED: u32 = 0;
const UNFIT: u32 = 1;
const OVER: u32 = 2;

/// Whether the packet is one that may wait, and neither its endpoint nor its flow has too many that do.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn hold_admit(skb: *mut __sk_buff, packet: *const Packet, payer: u32, hook: u32) -> u32 {
    // SAFETY: the caller passes a reference; the test for null is for the verifier.
    let Some(packet) = (unsafe { packet.as_ref() }) else { return UNFIT };
    let skb = Skb::from(skb);
    // It comes back as one that was received: what the node itself made would not be believed.
    let returns = hook == Direction::Egress as u32 || skb.is_received();
    if device() == 0 || !returns || !is_first(packet) || skb.gso_size() != 0 || packet.length > HOLD_LENGTH {
        return UNFIT;
    }
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    // The flow first: one that has too many already does not use up what others may need.
    if is_few_enough(packet, now) && is_slow_enough(payer, hook, now) { ADMITTED } else { OVER }
}

/// Index of the hold device; 0: there is none.
#[inline(always)]
pub(crate) fn device() -> u32 {
    // SAFETY: an array element lives as long as the map; the agent stores to it meanwhile, hence volatile.
    NODE.get_ptr(0).map_or(0, |node| unsafe { read_volatile(&raw const (*node).hold) })
}

/// Whether it is whole and opens something.
#[inline(always)]
fn is_first(packet: &Packet) -> bool {
    packet.piece.part == Part::Whole
        && match packet.protocol {
            protocol::TCP => judge::is_first(packet.tcp_flags),
            protocol::UDP => true,
            protocol::ICMP => packet.icmp_type() == icmp4::ECHO_REQUEST,
            protocol::ICMPV6 => packet.icmp_type() == icmp6::ECHO_REQUEST,
            _ => false,
        }
}

/// Whether the endpoint has not used up its share of that direction.
#[inline(always)]
fn is_slow_enough(payer: u32, hook: u32, now: u64) -> bool {
    let Some(endpoint) = HOLD_RATES.get_ptr_mut(payer) else { return false };
    // SAFETY: an array element.
    unsafe {
        let used = if hook == Direction::Egress as u32 {
            &raw mut (*endpoint).used[Direction::Egress as usize]
        } else {
            &raw mut (*endpoint).used[Direction::Ingress as usize]
        };
        let is_slow_enough = rate::take(used, now);
        if !is_slow_enough {
            write_volatile(&raw mut (*endpoint).overflowed, now);
        }
        is_slow_enough
    }
}

/// Whether a packet of this endpoint, or any, has found no room a moment ago.
#[inline(always)]
pub(crate) fn overflows(endpoint: u32, now: u64) -> bool {
    let is_recent = |at: u64| at != 0 && now < at + MEMORY;
    // SAFETY: array elements live as long as their maps; programs store to them meanwhile, hence volatile.
    unsafe {
        HOLD_RATES
            .get_ptr(endpoint)
            .is_some_and(|endpoint| is_recent(read_volatile(&raw const (*endpoint).overflowed)))
            || HOLD.get_ptr(0).is_some_and(|hold| is_recent(read_volatile(&raw const (*hold).overflowed)))
    }
}

/// Counts the packets of a flow from the first on, until that one's time is over.
#[inline(always)]
fn is_few_enough(packet: &Packet, now: u64) -> bool {
    let tuple = PacketTuple {
        source: packet.source,
        destination: packet.destination,
        source_port: packet.source_port.to_be_bytes(),
        destination_port: packet.destination_port.to_be_bytes(),
        protocol: packet.protocol,
        zero: [0; 3],
    };
    let first = ((now + HOLD_TIME) & !COUNT) | 1;
    let Some(flow) = HOLD_FLOWS.get_ptr_mut(&tuple) else {
        return HOLD_FLOWS.insert(&tuple, first, BPF_ANY.into()).is_ok();
    };
    let next = |count: u64| {
        if count & !COUNT <= now {
            return Some(first);
        }
        (count & COUNT < PER_FLOW).then_some(count + 1)
    };
    // SAFETY: elements are preallocated. One that is recycled under us counts for another flow.
    unsafe { atomic::update(flow, next) }
}

/// The element of the packet with this number.
#[inline(always)]
pub(crate) fn element(id: u32) -> Option<*mut Held> {
    HELD.get_ptr_mut(id & (ELEMENTS - 1))
}

/// The number of a new packet, whose element is free and ours for as long as it might wait; 0: none is free.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn hold_take(is_pending: u32) -> u32 {
    let Some(hold) = HOLD.get_ptr_mut(0) else { return 0 };
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    if is_pending != 0 {
        return take(hold, PENDING, now).unwrap_or(0);
    }
    let taken = take(hold, PROOF, now).or_else(|| take(hold, PENDING, now));
    if taken.is_none() {
        // SAFETY: an array element; others store to it meanwhile, hence volatile.
        unsafe { write_volatile(&raw mut (*hold).overflowed, now) };
    }
    taken.unwrap_or(0)
}

#[inline(always)]
fn take(hold: *mut Hold, which: usize, now: u64) -> Option<u32> {
    // SAFETY: an array element.
    let number = unsafe { atomic::add(&raw mut (*hold).last[which], 1) }.wrapping_add(1);
    let id = number.wrapping_mul(2).wrapping_add(which as u64) as u32;
    let held = element(id)?;
    // SAFETY: an array element; others change it meanwhile, hence volatile.
    unsafe {
        let state = &raw mut (*held).state;
        let old = read_volatile(state);
        (old <= now && atomic::swap(state, old, (now + HOLD_TIME) | WRITING)).then_some(id)
    }
}

/// Writes down how the packet is to come back, and shows its backend if a VIP was called. Returns 0 if that failed.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn hold_note(
    skb: *mut __sk_buff,
    packet: *const Packet,
    flow: *const Flow,
    id: u32,
    what: u32,
) -> u32 {
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(packet), Some(flow)) = (unsafe { (packet.as_ref(), flow.as_ref()) }) else { return 0 };
    note(Skb::from(skb), packet, flow, id, what).map_or(0, |()| 1)
}

#[inline(always)]
fn note(skb: Skb, packet: &Packet, flow: &Flow, id: u32, what: u32) -> Option<()> {
    let held = element(id)?;
    let mut space = Space::<[[u8; 6]; 2]>::new();
    let macs = skb.read(0, &mut space)?;
    let checksum = packet.transport()
        + match packet.protocol {
            protocol::TCP => offset_of!(Tcp, checksum) as u32,
            protocol::UDP => offset_of!(Udp, checksum) as u32,
            _ => offset_of!(Icmp, checksum) as u32,
        };
    // SAFETY: an array element, which is ours as long as its state says so. Volatile, for it is another's after that.
    unsafe {
        write_volatile(&raw mut (*held).id, id);
        write_volatile(&raw mut (*held).length, skb.len());
        write_volatile(&raw mut (*held).ifindex, skb.ifindex());
        write_volatile(&raw mut (*held).checksum, checksum as u16);
        write_volatile(&raw mut (*held).kind, what as u8);
        write_volatile(&raw mut (*held).hook, (what >> 8) as u8);
        write_volatile(&raw mut (*held).macs, *macs);
        // By words: LLVM would copy by bytes.
        const { assert!(offset_of!(Held, called) % 4 == 0 && offset_of!(Flow, called) % 4 == 0) };
        let (from, to) = ((&raw const flow.called).cast::<u32>(), (&raw mut (*held).called).cast::<u32>());
        for word in 0..size_of::<Address>() / 4 {
            write_volatile(to.add(word), read_volatile(from.add(word)));
        }
    }
    if is_unspecified(&flow.called) { Some(()) } else { store_destination(skb, &packet.destination) }
}

/// Writes a destination into the IP header, and nothing else: checksums stay those of the other one.
#[inline(always)]
pub(crate) fn store_destination(skb: Skb, address: &Address) -> Option<()> {
    if is_mapped4(address) {
        skb.store_network(ETHERNET + offset_of!(Ipv4, destination) as u32, &address.last4())
    } else {
        skb.store_network(ETHERNET + offset_of!(Ipv6, destination) as u32, &address.0)
    }
}

/// Seals the element with the packet's hash and sends the packet to the device. Returns 0 if that failed.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn hold_send(skb: *mut __sk_buff, id: u32, hash: u64) -> u32 {
    send(Skb::from(skb), id, hash).map_or(0, |()| 1)
}

#[inline(always)]
fn send(skb: Skb, id: u32, hash: u64) -> Option<()> {
    if hash == 0 {
        return None;
    }
    let held = element(id)?;
    // SAFETY: as in `note`.
    let kind = unsafe { read_volatile(&raw const (*held).kind) };
    let tag = HoldTag { id, kind: HoldKind::from_number(kind)? };
    const { assert!(offset_of!(Ethernet, destination) == 0) };
    skb.store_link(0, &tag.to_mac())?;
    // SAFETY: as in `note`.
    let is_sealed = unsafe {
        write_volatile(&raw mut (*held).hash, hash);
        let state = read_volatile(&raw const (*held).state);
        // After long enough a time it is another packet's.
        state & WRITING != 0
            && read_volatile(&raw const (*held).id) == id
            && atomic::swap(&raw mut (*held).state, state, state & !WRITING)
    };
    if !is_sealed {
        return None;
    }
    count(HoldCount::HELD);
    // SAFETY: no pointers. Without a device, or with one that nobody reads, the kernel drops the packet.
    unsafe { bpf_redirect(device(), 0) };
    Some(())
}

/// Counts a packet.
#[inline(always)]
pub(crate) fn count(what: u32) {
    if let Some(count) = HOLD_COUNTS.get_ptr_mut(what) {
        // SAFETY: the element of this CPU; tc programs do not interrupt each other on one CPU.
        unsafe { *count += 1 };
    }
}
