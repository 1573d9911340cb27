//! ICMP errors: they pass if they are about a connection that is open, and concern whoever gets them.
//!
//! Policy is not asked: an error belongs to the connection it quotes, and shares its verdict. One of an earlier
//! generation does not count, or two ends could go on talking by errors about what policy no longer allows; the next
//! packet of the connection renews it. RFC 5927 says why the quote is checked.

use abi::{Address, DropReason};
use aya_ebpf::bindings::__sk_buff;

use crate::{
    conntrack::{self, Tuple},
    flow::Flow,
    header::{Icmp, Ipv4, Ipv6, icmp4, icmp6, protocol},
    identity::Moment,
    parse::Packet,
    refusal::Refusal,
    skb::{Skb, Space},
};

/// Fragment offset alone: a first fragment has ports, and routers quote the fragment they dropped.
const OFFSET_MASK: u16 = 0x1fff;

/// The quoted packet must have come from the error's receiver and, if a workload sent the error, have been addressed to
/// that workload: a pod cannot tear down a connection between two others. Nor can anybody beyond the stack tear down
/// one between two workloads, for nothing of it comes there.
#[inline(always)]
pub(crate) fn check(skb: Skb, packet: &Packet, flow: &Flow, now: &Moment) -> Result<(), Refusal> {
    Refusal::check(related_check(skb.as_ptr(), packet, flow, now))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn related_check(
    skb: *mut __sk_buff,
    packet: *const Packet,
    flow: *const Flow,
    now: *const Moment,
) -> u32 {
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(packet), Some(flow), Some(now)) = (unsafe { (packet.as_ref(), flow.as_ref(), now.as_ref()) })
    else {
        return Refusal::ABSURD;
    };
    let (skb, from_workload) = (Skb::from(skb), flow.source.is_local());
    let quoted = if packet.is_v4() {
        quoted4(skb, packet, from_workload)
    } else {
        quoted6(skb, packet, from_workload)
    };
    let open = quoted.is_some_and(|tuple| {
        // The quoted packet ran from the error's receiver to its sender; of a router, `source` is 0.
        let instances = tuple.instances(flow.destination.instance, flow.source.instance);
        conntrack::find(&tuple).is_some_and(|entry| {
            entry.is_between(instances)
                && entry.is_alive(tuple.protocol(), now.second)
                && entry.verdict(now.generation).is_some()
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
    let concerned = ip.source == packet.destination.last4()
        && (!from_workload || ip.destination == packet.source.last4());
    if !(plain && complete && concerned) {
        return None;
    }
    let ports = ports(skb, offset + size_of::<Ipv4>() as u32, ip.protocol, true)?;
    Some(Tuple::new(&packet.destination, &Address::v4(ip.destination), ports, ip.protocol, true))
}

#[inline(always)]
fn quoted6(skb: Skb, packet: &Packet, from_workload: bool) -> Option<Tuple> {
    let offset = packet.transport() + size_of::<Icmp>() as u32;
    let mut space = Space::<Ipv6>::new();
    let ip = skb.read(offset, &mut space)?;
    let plain = ip.version_class_flow[0] >> 4 == 6;
    let complete = packet.transport_length as usize >= size_of::<Icmp>() + size_of::<Ipv6>() + 8;
    let concerned =
        ip.source == packet.destination.0 && (!from_workload || ip.destination == packet.source.0);
    if !(plain && complete && concerned) {
        return None;
    }
    let ports = ports(skb, offset + size_of::<Ipv6>() as u32, ip.next_header, false)?;
    Some(Tuple::new(&packet.destination, &Address(ip.destination), ports, ip.next_header, false))
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
