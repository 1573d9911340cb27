//! ICMP errors: they pass if they are about a connection that is open, and concern whoever gets them.
//!
//! Policy is not asked: an error belongs to the connection it quotes, and shares its verdict. One of an earlier
//! generation does not count, or two ends could go on talking by errors about what policy no longer allows; the next
//! packet of the connection renews it. RFC 5927 says why the quote is checked.
//!
//! What is about a packet of the L7 proxy's goes to the proxy, whose socket the stack finds by the quote.

use abi::{Address, DropReason, PacketTuple};
use aya_ebpf::bindings::__sk_buff;

use crate::{
    conntrack::{self, Entry, Tuple},
    extension::{self, Chain},
    flow::Flow,
    header::{Icmp, Ipv4, Ipv6, icmp4, icmp6, protocol},
    identity::Moment,
    parse::Packet,
    proxied::Part,
    refusal::Refusal,
    skb::Skb,
    space::Space,
    translation::{self, Role},
};

/// Fragment offset alone: a first fragment has ports, and routers quote the fragment they dropped.
const OFFSET_MASK: u16 = 0x1fff;

/// What an error is about.
#[repr(C, align(8))]
pub(crate) struct Quote {
    /// The tuple that an answer to the quoted packet would have.
    pub(crate) answer: PacketTuple,
    /// Offset of the quoted transport header.
    pub(crate) transport: u32,
}

impl Quote {
    /// To be filled by [`quoted`].
    pub(crate) const NONE: Self = Self {
        answer: PacketTuple {
            source: Address([0; 16]),
            destination: Address([0; 16]),
            source_port: [0; 2],
            destination_port: [0; 2],
            protocol: 0,
            zero: [0; 3],
        },
        transport: 0,
    };
}

/// The quoted packet must have come from the error's receiver and, if a workload sent the error, have been addressed to
/// that workload: a pod cannot tear down a connection between two others. Nor can anybody beyond the stack tear down
/// one between two workloads, for nothing of it comes there.
///
/// Makes the error an answer ([`Role::ANSWER`]) if the connection's opener called a VIP.
#[inline(always)]
pub(crate) fn check(skb: Skb, packet: &Packet, flow: &mut Flow, now: &Moment) -> Result<(), Refusal> {
    Refusal::check(related_check(skb.as_ptr(), packet, flow, now))
}

/// In two parts, one after the other: neither has to share its stack with the other.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn related_check(
    skb: *mut __sk_buff,
    packet: *const Packet,
    flow: *mut Flow,
    now: *const Moment,
) -> u32 {
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(packet), Some(flow)) = (unsafe { (packet.as_ref(), flow.as_mut()) }) else {
        return Refusal::ABSURD;
    };
    let mut quote = Quote::NONE;
    let is_call = flow.role == Role::CALL;
    let receiver = if is_call { &flow.called } else { &packet.destination };
    let related = quoted(Skb::from(skb), packet, receiver, &mut quote)
        && (!flow.source.is_local() || quote.answer.source == packet.source)
        && (!is_call || is_for_backend(&mut quote.answer))
        && related_is_open(&quote.answer, packet, flow, now) == 1;
    Refusal::encode(if related { Ok(()) } else { Err(DropReason::UnrelatedIcmp) })
}

/// Makes the answer that a workload would send to a VIP the one to whom the VIP stands for.
#[inline(always)]
fn is_for_backend(answer: &mut PacketTuple) -> bool {
    let Some(half) = translation::find(answer) else { return false };
    answer.destination = half.tuple.destination;
    answer.destination_port = half.tuple.destination_port;
    true
}

/// Reads what an error is about, if that came from `receiver` and has ports.
#[inline(always)]
pub(crate) fn quoted(skb: Skb, packet: &Packet, receiver: &Address, quote: &mut Quote) -> bool {
    related_quoted(skb.as_ptr(), packet, receiver, quote) == 1
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn related_quoted(
    skb: *mut __sk_buff,
    packet: *const Packet,
    receiver: *const Address,
    quote: *mut Quote,
) -> u32 {
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(packet), Some(receiver), Some(quote)) =
        (unsafe { (packet.as_ref(), receiver.as_ref(), quote.as_mut()) })
    else {
        return 0;
    };
    let skb = Skb::from(skb);
    quote.answer.destination = *receiver;
    let read = if packet.is_v4() { read4(skb, packet, quote) } else { read6(skb, packet, quote) };
    read.and_then(|()| ports(skb, packet, quote)).is_some().into()
}

#[inline(always)]
fn read4(skb: Skb, packet: &Packet, quote: &mut Quote) -> Option<()> {
    let offset = packet.transport() + size_of::<Icmp>() as u32;
    let mut space = Space::<Ipv4>::new();
    let ip = skb.read(offset, &mut space)?;
    let plain = ip.version_ihl == 0x45 && u16::from_be_bytes(ip.fragment) & OFFSET_MASK == 0;
    quote.answer.source = Address::v4(ip.destination);
    quote.answer.protocol = ip.protocol;
    quote.transport = offset + size_of::<Ipv4>() as u32;
    (plain && ip.source == quote.answer.destination.last4()).then_some(())
}

#[inline(always)]
fn read6(skb: Skb, packet: &Packet, quote: &mut Quote) -> Option<()> {
    let offset = packet.transport() + size_of::<Icmp>() as u32;
    let mut space = Space::<Ipv6>::new();
    let ip = skb.read(offset, &mut space)?;
    let plain = ip.version_class_flow[0] >> 4 == 6;
    if !(plain && ip.source == quote.answer.destination.0) {
        return None;
    }
    quote.answer.source = Address(ip.destination);
    let mut chain = Chain::new(ip.next_header, offset + size_of::<Ipv6>() as u32, end(packet));
    if extension::is_one(chain.protocol) {
        extension::walk(skb, &mut chain).ok()?;
    }
    quote.transport = chain.at;
    quote.answer.protocol = chain.protocol;
    (!chain.is_later()).then_some(())
}

/// 1 if the connection of `answer` is open, between the error's ends, and was judged lately.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn related_is_open(
    answer: *const PacketTuple,
    packet: *const Packet,
    flow: *mut Flow,
    now: *const Moment,
) -> u32 {
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(answer), Some(packet)) = (unsafe { (answer.as_ref(), packet.as_ref()) }) else { return 0 };
    // SAFETY: as above.
    let (Some(flow), Some(now)) = (unsafe { (flow.as_mut(), now.as_ref()) }) else { return 0 };
    let ports = (u16::from_be_bytes(answer.source_port), u16::from_be_bytes(answer.destination_port));
    let mut tuple = Tuple::new(&answer.source, &answer.destination, ports, answer.protocol, packet.is_v4());
    if let Some(entry) = conntrack::find(&tuple) {
        let reply = entry.opened_by_high() != tuple.source_is_high;
        // Of a proxied one only the proxy's packets go beyond its two ends: what is about them is for the proxy.
        if !(entry.is_proxied() && reply) && is_open(entry, &tuple, flow, now) {
            if entry.is_proxied() {
                flow.proxy |= Part::TAKEN;
            }
            return 1;
        }
    }
    tuple.set_proxy_leg();
    if let Some(entry) = conntrack::find(&tuple) {
        let reply = entry.opened_by_high() != tuple.source_is_high;
        if reply && is_open(entry, &tuple, flow, now) {
            flow.proxy |= Part::TAKEN | Part::SECOND;
            return 1;
        }
    }
    0
}

/// Whether an entry that was found by the tuple of an answer lives and was judged lately.
#[inline(never)]
fn is_open(entry: Entry, tuple: &Tuple, flow: &mut Flow, now: &Moment) -> bool {
    if flow.role == Role::NONE && entry.is_translated() {
        flow.role = Role::ANSWER;
    }
    // An answer would run as the error does; of a router, `instance` is 0.
    entry.is_between(tuple.instances(flow.source.instance, flow.destination.instance))
        && entry.is_alive(tuple.protocol(), now.second)
        && entry.verdict(now.generation).is_some()
        && !entry.is_ended()
        && entry.is_proven()
        && entry.is_translated() == (flow.role != Role::NONE)
}

/// Offset behind the error.
#[inline(always)]
fn end(packet: &Packet) -> u32 {
    packet.transport().wrapping_add(packet.transport_length)
}

/// The first eight bytes of the quoted transport header are all that RFC 792 promises; they must be there.
#[inline(always)]
fn ports(skb: Skb, packet: &Packet, quote: &mut Quote) -> Option<()> {
    let mut space = Space::<[u8; 8]>::new();
    if quote.transport.wrapping_add(8) > end(packet) {
        return None;
    }
    let [a, b, c, d, e, f, _, _] = *skb.read(quote.transport, &mut space)?;
    let v4 = packet.is_v4();
    let answer = &mut quote.answer;
    (answer.destination_port, answer.source_port) = match answer.protocol {
        protocol::TCP | protocol::UDP | protocol::SCTP => ([a, b], [c, d]),
        protocol::ICMP if v4 && matches!(a, icmp4::ECHO_REQUEST | icmp4::ECHO_REPLY) => ([e, f], [e, f]),
        protocol::ICMPV6 if !v4 && matches!(a, icmp6::ECHO_REQUEST | icmp6::ECHO_REPLY) => ([e, f], [e, f]),
        _ => return None,
    };
    Some(())
}
