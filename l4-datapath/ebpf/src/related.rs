//! ICMP errors: they pass if they are about a connection that is open, and concern whoever gets them.
//!
//! Policy is not asked: an error belongs to the connection it quotes, and shares its verdict. One of an earlier
//! generation does not count, or two ends could go on talking by errors about what policy no longer allows; the next
//! packet of the connection renews it. RFC 5927 says why the quote is checked.

use abi::{Address, DropReason};
use aya_ebpf::bindings::__sk_buff;

use crate::{
    conntrack::{self, Tuple},
    extension::{self, Chain},
    flow::Flow,
    header::{Icmp, Ipv4, Ipv6, icmp4, icmp6, protocol},
    identity::Moment,
    parse::Packet,
    refusal::Refusal,
    skb::{Skb, Space},
};

/// Fragment offset alone: a first fragment has ports, and routers quote the fragment they dropped.
const OFFSET_MASK: u16 = 0x1fff;

/// What an error is about.
#[repr(C, align(8))]
struct Quote {
    destination: Address,
    /// Offset of the transport header.
    transport: u32,
    protocol: u8,
}

/// The quoted packet must have come from the error's receiver and, if a workload sent the error, have been addressed to
/// that workload: a pod cannot tear down a connection between two others. Nor can anybody beyond the stack tear down
/// one between two workloads, for nothing of it comes there.
#[inline(always)]
pub(crate) fn check(skb: Skb, packet: &Packet, flow: &Flow, now: &Moment) -> Result<(), Refusal> {
    Refusal::check(related_check(skb.as_ptr(), packet, flow, now))
}

/// In two parts, one after the other: neither has to share its stack with the other.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn related_check(
    skb: *mut __sk_buff,
    packet: *const Packet,
    flow: *const Flow,
    now: *const Moment,
) -> u32 {
    // SAFETY: the caller passes references; the test for null is for the verifier.
    let Some(flow) = (unsafe { flow.as_ref() }) else { return Refusal::ABSURD };
    let mut quote = Quote { destination: Address([0; 16]), transport: 0, protocol: 0 };
    let related = related_read(skb, packet, flow.source.is_local().into(), &mut quote) == 1
        && related_is_open(skb, packet, flow, now, &quote) == 1;
    Refusal::encode(if related { Ok(()) } else { Err(DropReason::UnrelatedIcmp) })
}

/// Reads what the error is about; 1 if that concerns its ends and has ports.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn related_read(
    skb: *mut __sk_buff,
    packet: *const Packet,
    from_workload: u32,
    quote: *mut Quote,
) -> u32 {
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(packet), Some(quote)) = (unsafe { (packet.as_ref(), quote.as_mut()) }) else { return 0 };
    let (skb, from_workload) = (Skb::from(skb), from_workload == 1);
    let read = if packet.is_v4() {
        read4(skb, packet, from_workload, quote)
    } else {
        read6(skb, packet, from_workload, quote)
    };
    read.is_some().into()
}

#[inline(always)]
fn read4(skb: Skb, packet: &Packet, from_workload: bool, quote: &mut Quote) -> Option<()> {
    let offset = packet.transport() + size_of::<Icmp>() as u32;
    let mut space = Space::<Ipv4>::new();
    let ip = skb.read(offset, &mut space)?;
    let plain = ip.version_ihl == 0x45 && u16::from_be_bytes(ip.fragment) & OFFSET_MASK == 0;
    let concerned = ip.source == packet.destination.last4()
        && (!from_workload || ip.destination == packet.source.last4());
    quote.destination = Address::v4(ip.destination);
    quote.transport = offset + size_of::<Ipv4>() as u32;
    quote.protocol = ip.protocol;
    (plain && concerned).then_some(())
}

#[inline(always)]
fn read6(skb: Skb, packet: &Packet, from_workload: bool, quote: &mut Quote) -> Option<()> {
    let offset = packet.transport() + size_of::<Icmp>() as u32;
    let mut space = Space::<Ipv6>::new();
    let ip = skb.read(offset, &mut space)?;
    let plain = ip.version_class_flow[0] >> 4 == 6;
    let concerned =
        ip.source == packet.destination.0 && (!from_workload || ip.destination == packet.source.0);
    if !(plain && concerned) {
        return None;
    }
    quote.destination = Address(ip.destination);
    let mut chain = Chain::new(ip.next_header, offset + size_of::<Ipv6>() as u32, end(packet));
    if extension::is_one(chain.protocol) {
        extension::walk(skb, &mut chain).ok()?;
    }
    quote.transport = chain.at;
    quote.protocol = chain.protocol;
    (!chain.is_later()).then_some(())
}

/// 1 if the connection that the error is about is open, between the error's ends, and was judged lately.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn related_is_open(
    skb: *mut __sk_buff,
    packet: *const Packet,
    flow: *const Flow,
    now: *const Moment,
    quote: *const Quote,
) -> u32 {
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(packet), Some(flow)) = (unsafe { (packet.as_ref(), flow.as_ref()) }) else { return 0 };
    // SAFETY: as above.
    let (Some(now), Some(quote)) = (unsafe { (now.as_ref(), quote.as_ref()) }) else { return 0 };
    let Some(ports) = ports(Skb::from(skb), packet, quote) else { return 0 };
    let tuple = Tuple::new(&packet.destination, &quote.destination, ports, quote.protocol, packet.is_v4());
    // The quoted packet ran from the error's receiver to its sender; of a router, `source` is 0.
    let instances = tuple.instances(flow.destination.instance, flow.source.instance);
    let open = conntrack::find(&tuple).is_some_and(|entry| {
        entry.is_between(instances)
            && entry.is_alive(tuple.protocol(), now.second)
            && entry.verdict(now.generation).is_some()
    });
    open.into()
}

/// Offset behind the error.
#[inline(always)]
fn end(packet: &Packet) -> u32 {
    packet.transport().wrapping_add(packet.transport_length)
}

/// The first eight bytes of the quoted transport header are all that RFC 792 promises; they must be there.
#[inline(always)]
fn ports(skb: Skb, packet: &Packet, quote: &Quote) -> Option<(u16, u16)> {
    let mut space = Space::<[u8; 8]>::new();
    if quote.transport.wrapping_add(8) > end(packet) {
        return None;
    }
    let [a, b, c, d, e, f, _, _] = *skb.read(quote.transport, &mut space)?;
    let v4 = packet.is_v4();
    let (source, destination) = match quote.protocol {
        protocol::TCP | protocol::UDP | protocol::SCTP => ([a, b], [c, d]),
        protocol::ICMP if v4 && matches!(a, icmp4::ECHO_REQUEST | icmp4::ECHO_REPLY) => ([e, f], [e, f]),
        protocol::ICMPV6 if !v4 && matches!(a, icmp6::ECHO_REQUEST | icmp6::ECHO_REPLY) => ([e, f], [e, f]),
        _ => return None,
    };
    Some((u16::from_be_bytes(source), u16::from_be_bytes(destination)))
}
