//! ARP and neighbour discovery: a workload is alone on its link, and the gateway has every address but its own.
//!
//! We answer for the gateway's MAC whatever is asked, never a question about the workload's own address: that is its
//! duplicate address detection (RFC 5227, RFC 4862), and an answer would take the address away. What could poison the
//! host's neighbour table, or give the workload's link a second router, is a forbidden message.

use abi::{Address, DropReason, Endpoint};
use aya_ebpf::bindings::TC_ACT_SHOT;

use crate::{
    address::{is_link_local6, is_link_multicast6, is_multicast, is_unspecified},
    checksum, deliver,
    fragment::Part,
    header::{Arp, ETHERNET, Ipv6, Link, Neighbour, ethertype, icmp6, protocol},
    identity,
    parse::Packet,
    skb::Skb,
    space::Space,
};

const REQUEST: [u8; 2] = [0, 1];
const REPLY: [u8; 2] = [0, 2];
/// RFC 4861: whatever crossed a router has less, so it is not from this link.
const HOP_LIMIT: u8 = 255;
/// Solicited, override.
const ADVERTISEMENT_FLAGS: [u8; 4] = [0x60, 0, 0, 0];
/// Target link-layer address, in units of eight bytes.
const TARGET_MAC: (u8, u8) = (2, 1);
/// The part of a solicitation before its options.
const SOLICITATION: u32 = size_of::<Neighbour>() as u32 - 8;

/// ARP from a workload. `Ok` is a verdict.
#[inline(never)]
pub(crate) fn arp(skb: Skb, link: &Link) -> Result<i32, DropReason> {
    let mut space = Space::<Arp>::new();
    let asked = skb.read(ETHERNET, &mut space).ok_or(DropReason::InvalidPacket)?;
    let ipv4_over_ethernet = asked.hardware == [0, 1]
        && asked.protocol == ethertype::IPV4
        && asked.hardware_length == 6
        && asked.protocol_length == 4;
    if !ipv4_over_ethernet {
        return Err(DropReason::InvalidPacket);
    }
    if asked.operation != REQUEST || asked.sender_mac != link.source {
        return Err(DropReason::NeighbourSpoof);
    }
    if asked.sender == [0; 4] {
        return Ok(TC_ACT_SHOT);
    }
    let endpoint = own(skb, &Address::v4(asked.sender), link)?;
    if asked.target == asked.sender {
        return Ok(TC_ACT_SHOT);
    }
    let reply = Arp {
        operation: REPLY,
        sender_mac: endpoint.gateway_mac,
        sender: asked.target,
        target_mac: asked.sender_mac,
        target: asked.sender,
        ..*asked
    };
    skb.store_network(ETHERNET, &reply).ok_or(DropReason::InvalidPacket)?;
    send_back(skb, endpoint)
}

/// Neighbour discovery from a workload: `Some` is the outcome, `None` means that the packet is something else. Behind a
/// fragment header it is refused (RFC 6980).
#[inline(always)]
pub(crate) fn discovery(skb: Skb, packet: &Packet, link: &Link) -> Option<Result<i32, DropReason>> {
    if packet.is_v4() || packet.protocol != protocol::ICMPV6 || packet.is_later() {
        return None;
    }
    match skb.byte(packet.transport())? {
        icmp6::ROUTER_SOLICITATION..=icmp6::REDIRECT if packet.piece.part != Part::Whole => {
            Some(Err(DropReason::Fragment))
        }
        icmp6::NEIGHBOUR_SOLICITATION => Some(solicitation(skb, packet, link)),
        icmp6::NEIGHBOUR_ADVERTISEMENT => Some(Ok(TC_ACT_SHOT)),
        icmp6::ROUTER_ADVERTISEMENT | icmp6::REDIRECT => Some(Err(DropReason::NeighbourSpoof)),
        _ => None,
    }
}

#[inline(never)]
fn solicitation(skb: Skb, packet: &Packet, link: &Link) -> Result<i32, DropReason> {
    #[derive(Clone, Copy)]
    #[repr(C)]
    struct Asked {
        kind: u8,
        code: u8,
        checksum: [u8; 2],
        reserved: [u8; 4],
        target: Address,
    }
    let mut space = Space::<Asked>::new();
    let asked = skb.read(packet.transport(), &mut space).ok_or(DropReason::InvalidPacket)?;
    let malformed = packet.ttl != HOP_LIMIT
        || asked.code != 0
        || packet.transport_length < SOLICITATION
        || is_multicast(&asked.target, false)
        || is_unspecified(&asked.target);
    if malformed {
        return Err(DropReason::InvalidPacket);
    }
    if is_unspecified(&packet.source) {
        return Ok(TC_ACT_SHOT);
    }
    let sender =
        if is_link_local6(&packet.source) { Address::interface(skb.ifindex()) } else { packet.source };
    let endpoint = own(skb, &sender, link)?;
    let is_own = asked.target == packet.source
        || identity::endpoint(&asked.target).is_some_and(|target| target.ifindex == endpoint.ifindex);
    if is_own {
        return Ok(TC_ACT_SHOT);
    }
    advertise(skb, packet, &asked.target, endpoint).ok_or(DropReason::InvalidPacket)?;
    send_back(skb, endpoint)
}

#[inline(always)]
fn advertise(skb: Skb, packet: &Packet, target: &Address, endpoint: &Endpoint) -> Option<()> {
    const LENGTH: u16 = size_of::<Neighbour>() as u16;
    let ip = Ipv6 {
        version_class_flow: [0x60, 0, 0, 0],
        payload_length: LENGTH.to_be_bytes(),
        next_header: protocol::ICMPV6,
        hop_limit: HOP_LIMIT,
        source: target.0,
        destination: packet.source.0,
    };
    let mut told = Neighbour {
        kind: icmp6::NEIGHBOUR_ADVERTISEMENT,
        code: 0,
        checksum: [0; 2],
        flags: ADVERTISEMENT_FLAGS,
        target: target.0,
        option: TARGET_MAC.0,
        option_length: TARGET_MAC.1,
        mac: endpoint.gateway_mac,
    };
    let pseudo = checksum::pseudo(target, &packet.source, LENGTH, protocol::ICMPV6);
    told.checksum = checksum::finish(checksum::add(pseudo, &told));
    let transport = ETHERNET + packet.network_length();
    skb.resize(transport + u32::from(LENGTH))?;
    skb.store_network(ETHERNET, &ip)?;
    skb.store_network(transport, &told)
}

/// The endpoint that `address` names, if it is the one behind this hook and the frame bears its MAC.
#[inline(always)]
fn own(skb: Skb, address: &Address, link: &Link) -> Result<&'static Endpoint, DropReason> {
    match identity::endpoint(address) {
        Some(endpoint) if endpoint.ifindex == skb.ifindex() && endpoint.mac == link.source => Ok(endpoint),
        _ => Err(DropReason::NeighbourSpoof),
    }
}

#[inline(always)]
fn send_back(skb: Skb, endpoint: &Endpoint) -> Result<i32, DropReason> {
    skb.store_link(0, &[endpoint.mac, endpoint.gateway_mac]).ok_or(DropReason::InvalidPacket)?;
    skb.address_to_receiver();
    Ok(deliver::redirect(endpoint.ifindex))
}

/// What every kernel sends on a link unasked: router solicitations, listener reports, duplicate address detection.
/// Dropped and counted like all multicast, without an event.
#[inline(always)]
pub(crate) fn is_noise(skb: Skb, packet: &Packet) -> bool {
    if packet.is_v4() || packet.piece.part != Part::Whole || !is_link_multicast6(&packet.destination) {
        return false;
    }
    packet.protocol == protocol::ICMPV6
        && matches!(
            skb.byte(packet.transport()),
            Some(
                icmp6::ROUTER_SOLICITATION
                    | icmp6::NEIGHBOUR_SOLICITATION
                    | icmp6::NEIGHBOUR_ADVERTISEMENT
                    | icmp6::MLD_QUERY
                    | icmp6::MLD_REPORT
                    | icmp6::MLD_DONE
                    | icmp6::MLD2_REPORT
            )
        )
}
