//! Bytes to [`Packet`]: strict, once, before anything is decided.
//!
//! What two receivers could read differently (options, fragments, extension headers, lengths that contradict each
//! other) is refused here: policy may not judge what it cannot parse.

use abi::{Address, DropReason};
use aya_ebpf::bindings::__sk_buff;

use crate::{
    header::{ETHERNET, Icmp, Ipv4, Ipv6, Sctp, Tcp, Udp, ethertype, icmp4, icmp6, protocol},
    refusal::Refusal,
    skb::{Skb, Space},
};

/// Fragment offset and *more fragments* (RFC 791); *don't fragment* is not among them.
const FRAGMENT_MASK: u16 = 0x3fff;

/// What the headers say. Filled from the outside in, so that an event about a bad packet says as much as was read.
/// Aligned to words, as is whatever is copied from it: LLVM copies by bytes what it does not know to be aligned.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub(crate) struct Packet {
    pub(crate) source: Address,
    pub(crate) destination: Address,
    /// Bytes, Ethernet header included.
    pub(crate) length: u32,
    /// Bytes from the transport header on, by the IP header's word; padding is not among them.
    pub(crate) transport_length: u32,
    /// Machine order; ICMP: the identifier of an echo.
    pub(crate) source_port: u16,
    /// Machine order; ICMP: the type.
    pub(crate) destination_port: u16,
    pub(crate) ethertype: [u8; 2],
    pub(crate) protocol: u8,
    pub(crate) tcp_flags: u8,
    /// TTL or hop limit.
    pub(crate) ttl: u8,
}

impl Packet {
    pub(crate) const EMPTY: Self = Self {
        source: Address([0; 16]),
        destination: Address([0; 16]),
        length: 0,
        transport_length: 0,
        source_port: 0,
        destination_port: 0,
        ethertype: [0; 2],
        protocol: 0,
        tcp_flags: 0,
        ttl: 0,
    };

    #[inline(always)]
    pub(crate) fn is_v4(&self) -> bool {
        self.ethertype == ethertype::IPV4
    }

    /// Offset of the transport header: neither options nor extension headers get this far.
    #[inline(always)]
    pub(crate) fn transport(&self) -> u32 {
        ETHERNET + if self.is_v4() { size_of::<Ipv4>() } else { size_of::<Ipv6>() } as u32
    }

    /// The type, if this is ICMP or ICMPv6.
    #[inline(always)]
    pub(crate) fn icmp_type(&self) -> u8 {
        self.destination_port as u8
    }
}

/// Reads the IP header that `packet.ethertype` announces.
#[inline(always)]
pub(crate) fn network(skb: Skb, packet: &mut Packet) -> Result<(), Refusal> {
    Refusal::check(parse_network(skb.as_ptr(), packet))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn parse_network(skb: *mut __sk_buff, packet: *mut Packet) -> u32 {
    // SAFETY: the caller passes a reference; the test for null is for the verifier.
    let Some(packet) = (unsafe { packet.as_mut() }) else { return Refusal::ABSURD };
    Refusal::encode(ip(Skb::from(skb), packet))
}

#[inline(always)]
fn ip(skb: Skb, packet: &mut Packet) -> Result<(), DropReason> {
    match packet.ethertype {
        ethertype::IPV4 => ipv4(skb, packet),
        ethertype::IPV6 => ipv6(skb, packet),
        _ => Err(DropReason::UnsupportedL3),
    }
}

#[inline(always)]
fn ipv4(skb: Skb, packet: &mut Packet) -> Result<(), DropReason> {
    let mut space = Space::<Ipv4>::new();
    let ip = skb.read(ETHERNET, &mut space).ok_or(DropReason::InvalidPacket)?;
    packet.source = Address::v4(ip.source);
    packet.destination = Address::v4(ip.destination);
    packet.protocol = ip.protocol;
    packet.ttl = ip.ttl;
    let (version, words) = (ip.version_ihl >> 4, ip.version_ihl & 0xf);
    if version != 4 || words < 5 {
        return Err(DropReason::InvalidPacket);
    }
    if words > 5 {
        return Err(DropReason::Ipv4Options);
    }
    if u16::from_be_bytes(ip.fragment) & FRAGMENT_MASK != 0 {
        return Err(DropReason::Fragment);
    }
    let total = announced(skb, packet.length, u16::from_be_bytes(ip.total_length), 0);
    transport_length(packet, total, size_of::<Ipv4>() as u32)
}

#[inline(always)]
fn ipv6(skb: Skb, packet: &mut Packet) -> Result<(), DropReason> {
    const HEADER: u32 = size_of::<Ipv6>() as u32;
    let mut space = Space::<Ipv6>::new();
    let ip = skb.read(ETHERNET, &mut space).ok_or(DropReason::InvalidPacket)?;
    packet.source = Address(ip.source);
    packet.destination = Address(ip.destination);
    packet.protocol = ip.next_header;
    packet.ttl = ip.hop_limit;
    if ip.version_class_flow[0] >> 4 != 6 {
        return Err(DropReason::InvalidPacket);
    }
    let total = announced(skb, packet.length, u16::from_be_bytes(ip.payload_length), HEADER);
    transport_length(packet, total, HEADER)
}

/// Length of the IP packet by its own word. Segments beyond 64 KiB in one buffer ("BIG TCP") announce zero.
#[inline(always)]
fn announced(skb: Skb, length: u32, field: u16, extra: u32) -> u32 {
    if field == 0 && skb.gso_size() != 0 { length.wrapping_sub(ETHERNET) } else { u32::from(field) + extra }
}

#[inline(always)]
fn transport_length(packet: &mut Packet, total: u32, header: u32) -> Result<(), DropReason> {
    if total < header || total > packet.length.wrapping_sub(ETHERNET) {
        return Err(DropReason::InvalidPacket);
    }
    packet.transport_length = total - header;
    Ok(())
}

/// Reads the transport header.
#[inline(always)]
pub(crate) fn transport(skb: Skb, packet: &mut Packet) -> Result<(), Refusal> {
    Refusal::check(parse_transport(skb.as_ptr(), packet))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn parse_transport(skb: *mut __sk_buff, packet: *mut Packet) -> u32 {
    // SAFETY: the caller passes a reference; the test for null is for the verifier.
    let Some(packet) = (unsafe { packet.as_mut() }) else { return Refusal::ABSURD };
    Refusal::encode(by_protocol(Skb::from(skb), packet))
}

#[inline(always)]
fn by_protocol(skb: Skb, packet: &mut Packet) -> Result<(), DropReason> {
    match packet.protocol {
        protocol::TCP => tcp(skb, packet),
        protocol::UDP => udp(skb, packet),
        protocol::SCTP => sctp(skb, packet),
        protocol::ICMP if packet.is_v4() => icmp(skb, packet),
        protocol::ICMPV6 if !packet.is_v4() => icmp(skb, packet),
        _ if packet.is_v4() => Err(DropReason::UnknownL4),
        protocol::FRAGMENT => Err(DropReason::Fragment),
        protocol::HOP_BY_HOP
        | protocol::ROUTING
        | protocol::ESP
        | protocol::AH
        | protocol::DESTINATION_OPTIONS
        | protocol::MOBILITY
        | protocol::HIP
        | protocol::SHIM6 => Err(DropReason::Ipv6Extension),
        _ => Err(DropReason::UnknownL4),
    }
}

#[inline(always)]
fn tcp(skb: Skb, packet: &mut Packet) -> Result<(), DropReason> {
    let mut space = Space::<Tcp>::new();
    let header = read(skb, packet, &mut space)?;
    let length = u32::from(header.offset >> 4) * 4;
    if length < size_of::<Tcp>() as u32 || length > packet.transport_length {
        return Err(DropReason::InvalidPacket);
    }
    ports(packet, header.source, header.destination);
    packet.tcp_flags = header.flags;
    Ok(())
}

#[inline(always)]
fn udp(skb: Skb, packet: &mut Packet) -> Result<(), DropReason> {
    let mut space = Space::<Udp>::new();
    let header = read(skb, packet, &mut space)?;
    let length = u32::from(u16::from_be_bytes(header.length));
    let honest = length >= size_of::<Udp>() as u32 && length <= packet.transport_length;
    // The header of a segmented datagram may describe one segment or all of them, and zero beyond 64 KiB.
    if !honest && skb.gso_size() == 0 {
        return Err(DropReason::InvalidPacket);
    }
    ports(packet, header.source, header.destination);
    Ok(())
}

#[inline(always)]
fn sctp(skb: Skb, packet: &mut Packet) -> Result<(), DropReason> {
    let mut space = Space::<Sctp>::new();
    let header = read(skb, packet, &mut space)?;
    ports(packet, header.source, header.destination);
    Ok(())
}

#[inline(always)]
fn icmp(skb: Skb, packet: &mut Packet) -> Result<(), DropReason> {
    let mut space = Space::<Icmp>::new();
    let header = read(skb, packet, &mut space)?;
    packet.destination_port = u16::from(header.kind);
    let echo = if packet.is_v4() {
        matches!(header.kind, icmp4::ECHO_REQUEST | icmp4::ECHO_REPLY)
    } else {
        matches!(header.kind, icmp6::ECHO_REQUEST | icmp6::ECHO_REPLY)
    };
    if echo {
        packet.source_port = u16::from_be_bytes([header.rest[0], header.rest[1]]);
    }
    Ok(())
}

/// The transport header, if the IP packet holds all of it.
#[inline(always)]
fn read<'a, T: Copy>(skb: Skb, packet: &Packet, space: &'a mut Space<T>) -> Result<&'a mut T, DropReason> {
    if packet.transport_length < size_of::<T>() as u32 {
        return Err(DropReason::InvalidPacket);
    }
    skb.read(packet.transport(), space).ok_or(DropReason::InvalidPacket)
}

#[inline(always)]
fn ports(packet: &mut Packet, source: [u8; 2], destination: [u8; 2]) {
    packet.source_port = u16::from_be_bytes(source);
    packet.destination_port = u16::from_be_bytes(destination);
}
