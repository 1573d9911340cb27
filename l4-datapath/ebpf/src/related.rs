//! ICMP errors: they pass if they are about a connection that is open, and concern whoever gets them.
//!
//! Policy is not asked: an error belongs to the connection it quotes, and shares its verdict. One of an earlier
//! generation does not count, or two ends could go on talking by errors about what policy no longer allows; the next
//! packet of the connection renews it. RFC 5927 says why the quote is checked.

use abi::{Address, DropReason, PacketTuple};
use aya_ebpf::bindings::__sk_buff;

use crate::{
    conntrack::{self, Tuple},
    flow::Flow,
    header::{Icmp, Ipv4, Ipv6, icmp4, icmp6, protocol},
    identity::Moment,
    parse::Packet,
    refusal::Refusal,
    skb::{Skb, Space},
    translation::{self, Role},
};

/// Fragment offset alone: a first fragment has ports, and routers quote the fragment they dropped.
const OFFSET_MASK: u16 = 0x1fff;

/// The quoted packet must have come from the error's receiver and, if a workload sent the error, have been addressed to
/// that workload: a pod cannot tear down a connection between two others. Nor can anybody beyond the stack tear down
/// one between two workloads, for nothing of it comes there.
#[inline(always)]
pub(crate) fn check(skb: Skb, packet: &Packet, flow: &mut Flow, now: &Moment) -> Result<(), Refusal> {
    Refusal::check(related_check(skb.as_ptr(), packet, flow, now))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn related_check(
    skb: *mut __sk_buff,
    packet: *const Packet,
    flow: *mut Flow,
    now: *const Moment,
) -> u32 {
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(packet), Some(flow), Some(now)) = (unsafe { (packet.as_ref(), flow.as_mut(), now.as_ref()) })
    else {
        return Refusal::ABSURD;
    };
    let mut about = NOTHING;
    if !tell(Skb::from(skb), packet, flow, &mut about) {
        return DropReason::UnrelatedIcmp as u32;
    }
    let ports = (u16::from_be_bytes(about.source_port), u16::from_be_bytes(about.destination_port));
    let tuple = Tuple::new(&about.source, &about.destination, ports, about.protocol, packet.is_v4());
    // An answer to the quoted packet runs from the error's sender to its receiver; of a router, `instance` is 0.
    let instances = tuple.instances(flow.source.instance, flow.destination.instance);
    let open = conntrack::find(&tuple).is_some_and(|entry| {
        if flow.role == Role::NONE && entry.is_translated() {
            flow.role = Role::ANSWER;
        }
        entry.is_between(instances)
            && entry.is_alive(tuple.protocol(), now.second)
            && entry.verdict(now.generation).is_some()
            && entry.is_translated() == (flow.role != Role::NONE)
    });
    Refusal::encode(if open { Ok(()) } else { Err(DropReason::UnrelatedIcmp) })
}

/// Tells of which connection the quoted packet is: `about` becomes an answer to it, as the connection table knows it.
#[inline(always)]
fn tell(skb: Skb, packet: &Packet, flow: &Flow, about: &mut PacketTuple) -> bool {
    let is_call = flow.role == Role::CALL;
    let receiver = if is_call { &flow.called } else { &packet.destination };
    if !answered(skb, packet, receiver, about) || (flow.source.is_local() && about.source != packet.source) {
        return false;
    }
    if is_call {
        // Whom the workload knows as a VIP.
        let Some(half) = translation::find(about) else { return false };
        about.destination = half.tuple.destination;
        about.destination_port = half.tuple.destination_port;
    }
    true
}

/// To be filled by [`answered`].
pub(crate) const NOTHING: PacketTuple = PacketTuple {
    source: Address([0; 16]),
    destination: Address([0; 16]),
    source_port: [0; 2],
    destination_port: [0; 2],
    protocol: 0,
    zero: [0; 3],
};

/// The tuple of an answer to the packet that an error quotes, if `receiver` sent that.
#[inline(always)]
pub(crate) fn answered(skb: Skb, packet: &Packet, receiver: &Address, tuple: &mut PacketTuple) -> bool {
    related_answered(skb.as_ptr(), packet, receiver, tuple) == 1
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn related_answered(
    skb: *mut __sk_buff,
    packet: *const Packet,
    receiver: *const Address,
    tuple: *mut PacketTuple,
) -> u32 {
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(packet), Some(receiver), Some(tuple)) =
        (unsafe { (packet.as_ref(), receiver.as_ref(), tuple.as_mut()) })
    else {
        return 0;
    };
    let skb = Skb::from(skb);
    tuple.destination = *receiver;
    let read = if packet.is_v4() { quoted4(skb, packet, tuple) } else { quoted6(skb, packet, tuple) };
    read.is_some().into()
}

#[inline(always)]
fn quoted4(skb: Skb, packet: &Packet, answer: &mut PacketTuple) -> Option<()> {
    let offset = packet.transport() + size_of::<Icmp>() as u32;
    let mut space = Space::<Ipv4>::new();
    let ip = skb.read(offset, &mut space)?;
    let plain = ip.version_ihl == 0x45 && u16::from_be_bytes(ip.fragment) & OFFSET_MASK == 0;
    let complete = packet.transport_length as usize >= size_of::<Icmp>() + size_of::<Ipv4>() + 8;
    if !(plain && complete && ip.source == answer.destination.last4()) {
        return None;
    }
    answer.source = Address::v4(ip.destination);
    answer.protocol = ip.protocol;
    ports(skb, offset + size_of::<Ipv4>() as u32, true, answer)
}

#[inline(always)]
fn quoted6(skb: Skb, packet: &Packet, answer: &mut PacketTuple) -> Option<()> {
    let offset = packet.transport() + size_of::<Icmp>() as u32;
    let mut space = Space::<Ipv6>::new();
    let ip = skb.read(offset, &mut space)?;
    let plain = ip.version_class_flow[0] >> 4 == 6;
    let complete = packet.transport_length as usize >= size_of::<Icmp>() + size_of::<Ipv6>() + 8;
    if !(plain && complete && ip.source == answer.destination.0) {
        return None;
    }
    answer.source = Address(ip.destination);
    answer.protocol = ip.next_header;
    ports(skb, offset + size_of::<Ipv6>() as u32, false, answer)
}

/// The first eight bytes of the quoted transport header are all that RFC 792 promises.
#[inline(always)]
fn ports(skb: Skb, offset: u32, v4: bool, answer: &mut PacketTuple) -> Option<()> {
    let mut space = Space::<[u8; 8]>::new();
    let [a, b, c, d, e, f, _, _] = *skb.read(offset, &mut space)?;
    (answer.destination_port, answer.source_port) = match answer.protocol {
        protocol::TCP | protocol::UDP | protocol::SCTP => ([a, b], [c, d]),
        protocol::ICMP if v4 && matches!(a, icmp4::ECHO_REQUEST | icmp4::ECHO_REPLY) => ([e, f], [e, f]),
        protocol::ICMPV6 if !v4 && matches!(a, icmp6::ECHO_REQUEST | icmp6::ECHO_REPLY) => ([e, f], [e, f]),
        _ => return None,
    };
    Some(())
}
