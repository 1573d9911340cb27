//! ICMP errors: they pass if they are about a connection that is open, and concern whoever gets them.
//!
//! Policy is not asked: an error belongs to the connection it quotes, and shares its verdict. One of an earlier
//! generation does not count, or two ends could go on talking by errors about what policy no longer allows; the next
//! packet of the connection renews it. RFC 5927 says why the quote is checked.

use abi::{Address, DropReason};
use aya_ebpf::bindings::__sk_buff;

use crate::{
    conntrack::{self, Tuple},
    header::{Icmp, Ipv4, Ipv6, icmp4, icmp6, protocol},
    identity::{self, Moment},
    parse::Packet,
    refusal::Refusal,
    skb::{Skb, Space},
};

/// Fragment offset alone: a first fragment has ports, and routers quote the fragment they dropped.
const OFFSET_MASK: u16 = 0x1fff;

/// The quoted packet must have come from the error's receiver. If a workload sent the error, it must have been
/// addressed to that workload; else to nobody of this node: what two workloads of this node say to each other meets no
/// router that could complain of it. So neither a pod nor anybody beyond can tear down a connection of two others.
#[inline(always)]
pub(crate) fn check(skb: Skb, packet: &Packet, from_workload: bool, now: &Moment) -> Result<(), Refusal> {
    Refusal::check(related_check(skb.as_ptr(), packet, from_workload.into(), now.second, now.generation))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn related_check(
    skb: *mut __sk_buff,
    packet: *const Packet,
    from_workload: u32,
    second: u32,
    generation: u64,
) -> u32 {
    // SAFETY: the caller passes a reference; the test for null is for the verifier.
    let Some(packet) = (unsafe { packet.as_ref() }) else { return Refusal::ABSURD };
    let (skb, from_workload) = (Skb::from(skb), from_workload != 0);
    let quoted = if packet.is_v4() {
        quoted4(skb, packet, from_workload)
    } else {
        quoted6(skb, packet, from_workload)
    };
    let open = quoted.is_some_and(|tuple| {
        conntrack::find(&tuple).is_some_and(|entry| {
            entry.is_alive(tuple.protocol(), second) && entry.verdict(generation).is_some()
        })
    });
    Refusal::encode(if open { Ok(()) } else { Err(DropReason::UnrelatedIcmp) })
}

#[inline(always)]
fn quoted4(skb: Skb, packet: &Packet, from_workload: bool) -> Option<Tuple> {
    let offset = packet.transport() + size_of::<Icmp>() as u32;
    let mut space = Space::<Ipv4>::new();
    let ip = skb.read(offset, &mut space)?;
    let plain = ip.version_ihl == 0x45 && u16::from_be_bytes(ip.fragment) & OFFSET_MASK == 0;
    let complete = packet.transport_length as usize >= size_of::<Icmp>() + size_of::<Ipv4>() + 8;
    let called = Address::v4(ip.destination);
    let concerned = ip.source == packet.destination.last4() && met(packet, &called, from_workload);
    if !(plain && complete && concerned) {
        return None;
    }
    let ports = ports(skb, offset + size_of::<Ipv4>() as u32, ip.protocol, true)?;
    Some(Tuple::new(&packet.destination, &called, ports, ip.protocol, true))
}

#[inline(always)]
fn quoted6(skb: Skb, packet: &Packet, from_workload: bool) -> Option<Tuple> {
    let offset = packet.transport() + size_of::<Icmp>() as u32;
    let mut space = Space::<Ipv6>::new();
    let ip = skb.read(offset, &mut space)?;
    let plain = ip.version_class_flow[0] >> 4 == 6;
    let complete = packet.transport_length as usize >= size_of::<Icmp>() + size_of::<Ipv6>() + 8;
    let called = Address(ip.destination);
    let concerned = ip.source == packet.destination.0 && met(packet, &called, from_workload);
    if !(plain && complete && concerned) {
        return None;
    }
    let ports = ports(skb, offset + size_of::<Ipv6>() as u32, ip.next_header, false)?;
    Some(Tuple::new(&packet.destination, &called, ports, ip.next_header, false))
}

/// Whether the sender of the error can have met a packet addressed to `called`.
#[inline(always)]
fn met(packet: &Packet, called: &Address, from_workload: bool) -> bool {
    if from_workload { *called == packet.source } else { identity::endpoint(called).is_none() }
}

/// The first eight bytes of the quoted transport header are all that RFC 792 promises.
#[inline(always)]
fn ports(skb: Skb, offset: u32, protocol: u8, v4: bool) -> Option<(u16, u16)> {
    let mut space = Space::<[u8; 8]>::new();
    let [a, b, c, d, e, f, _, _] = *skb.read(offset, &mut space)?;
    let (source, destination) = match protocol {
        protocol::TCP | protocol::UDP | protocol::SCTP => ([a, b], [c, d]),
        protocol::ICMP if v4 && matches!(a, icmp4::ECHO_REQUEST | icmp4::ECHO_REPLY) => ([e, f], [e, f]),
        protocol::ICMPV6 if !v4 && matches!(a, icmp6::ECHO_REQUEST | icmp6::ECHO_REPLY) => ([e, f], [e, f]),
        _ => return None,
    };
    Some((u16::from_be_bytes(source), u16::from_be_bytes(destination)))
}
