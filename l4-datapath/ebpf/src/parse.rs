//! Bytes to [`Packet`]: strict, once, before anything is decided.
//!
//! What two receivers could read differently (options, extension headers beyond what [`extension`] walks, lengths that
//! contradict each other, a first fragment without all its headers) is refused here: policy may not judge what it
//! cannot parse. The ports of later fragments are not in them; [`crate::fragment`] knows.

use core::{
    mem::offset_of,
    ptr::{read_volatile, write_volatile},
};

use abi::{Address, DropReason};
use aya_ebpf::bindings::__sk_buff;

use crate::{
    address::Words,
    extension::{self, Chain},
    fragment::{Part, Piece},
    header::{ETHERNET, Icmp, Ipv4, Ipv6, Sctp, Tcp, Udp, ethertype, icmp4, icmp6, protocol},
    refusal::Refusal,
    skb::Skb,
    space::{Space, Zero},
};

/// *More fragments* and the fragment offset, in units of eight bytes (RFC 791); *don't fragment* is not among them.
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET_MASK: u16 = 0x1fff;

/// What the headers say. Filled from the outside in, so that an event about a bad packet says as much as was read.
/// Aligned to words, as is whatever is copied from it: LLVM copies by bytes what it does not know to be aligned.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub(crate) struct Packet {
    pub(crate) source: Address,
    pub(crate) destination: Address,
    /// Bytes, Ethernet header included.
    pub(crate) length: u32,
    /// Bytes from [`Packet::transport`] on, by the IP header's word; padding is not among them.
    pub(crate) transport_length: u32,
    /// Machine order; ICMP: the identifier of an echo.
    pub(crate) source_port: u16,
    /// Machine order; ICMP: the type.
    pub(crate) destination_port: u16,
    pub(crate) ethertype: [u8; 2],
    pub(crate) protocol: u8,
    pub(crate) tcp_flags: u8,
    pub(crate) piece: Piece,
    /// See [`Packet::transport`].
    transport: u16,
    /// TTL or hop limit.
    pub(crate) ttl: u8,
    /// TCP: there is something behind the header.
    pub(crate) has_payload: bool,
}

// SAFETY: numbers, and a piece of a whole datagram.
unsafe impl Zero for Packet {}

impl Packet {
    /// Nothing read yet of a frame of this many bytes.
    #[inline(always)]
    pub(crate) fn start(space: &mut Space<Self>, length: u32) -> &mut Self {
        const { assert!(Part::Whole as u8 == 0) };
        let packet = space.zero();
        packet.length = length;
        packet
    }

    /// Source and destination as they stand, by words: LLVM would load them byte by byte.
    #[inline(always)]
    pub(crate) fn addresses(&self) -> (Words, Words) {
        const { assert!(offset_of!(Self, source) % 8 == 0 && offset_of!(Self, destination) % 8 == 0) };
        let (source, destination) =
            ((&raw const self.source).cast::<u64>(), (&raw const self.destination).cast::<u64>());
        // SAFETY: two words each, aligned as asserted.
        unsafe {
            (
                (read_volatile(source), read_volatile(source.add(1))),
                (read_volatile(destination), read_volatile(destination.add(1))),
            )
        }
    }

    /// IPv4 addresses, as [`Address::v4`] writes them; by words, because LLVM would call a loop over bytes.
    #[inline(always)]
    fn set_v4(&mut self, source: [u8; 4], destination: [u8; 4]) {
        const { assert!(offset_of!(Self, source) % 8 == 0 && offset_of!(Self, destination) % 8 == 0) };
        const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);
        for (address, octets) in [(&mut self.source, source), (&mut self.destination, destination)] {
            let words = (&raw mut *address).cast::<u32>();
            // SAFETY: the four words of an address, aligned as asserted.
            unsafe {
                write_volatile(words.cast::<u64>(), 0);
                write_volatile(words.add(2), MAPPED);
                write_volatile(words.add(3), u32::from_ne_bytes(octets));
            }
        }
    }

    #[inline(always)]
    pub(crate) fn is_v4(&self) -> bool {
        self.ethertype == ethertype::IPV4
    }

    /// Offset of the transport header, behind all extension headers; in a later fragment, of its payload.
    #[inline(always)]
    pub(crate) fn transport(&self) -> u32 {
        self.transport.into()
    }

    /// Length of the IP header alone: where the transport header stands in what we answer.
    #[inline(always)]
    pub(crate) fn network_length(&self) -> u32 {
        if self.is_v4() { size_of::<Ipv4>() as u32 } else { size_of::<Ipv6>() as u32 }
    }

    /// A fragment without ports of its own.
    #[inline(always)]
    pub(crate) fn is_later(&self) -> bool {
        self.piece.part == Part::Later
    }

    /// What a header that is cut off is: of a first fragment, that it is too small to be judged (RFC 1858, RFC 7112).
    #[inline(always)]
    fn cut(&self) -> DropReason {
        if self.piece.part == Part::First { DropReason::Fragment } else { DropReason::InvalidPacket }
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
fn ip(skb: Skb, packet: &mut Packet) -> Result<(), Refusal> {
    match packet.ethertype {
        ethertype::IPV4 => Ok(ipv4(skb, packet)?),
        ethertype::IPV6 => ipv6(skb, packet),
        _ => Err(DropReason::UnsupportedL3.into()),
    }
}

#[inline(always)]
fn ipv4(skb: Skb, packet: &mut Packet) -> Result<(), DropReason> {
    const HEADER: u32 = size_of::<Ipv4>() as u32;
    let mut space = Space::<Ipv4>::new();
    let ip = skb.read(ETHERNET, &mut space).ok_or(DropReason::InvalidPacket)?;
    packet.set_v4(ip.source, ip.destination);
    packet.protocol = ip.protocol;
    packet.ttl = ip.ttl;
    let (version, words) = (ip.version_ihl >> 4, ip.version_ihl & 0xf);
    if version != 4 || words < 5 {
        return Err(DropReason::InvalidPacket);
    }
    if words > 5 {
        return Err(DropReason::Ipv4Options);
    }
    let total = announced(skb, packet.length, u16::from_be_bytes(ip.total_length), 0);
    let end = end(packet, total, HEADER)?;
    packet.transport = (ETHERNET + HEADER) as u16;
    packet.transport_length = end.wrapping_sub(ETHERNET + HEADER);
    let fragment = u16::from_be_bytes(ip.fragment);
    if fragment & (MORE_FRAGMENTS | OFFSET_MASK) != 0 {
        let (start, more) = (u32::from(fragment & OFFSET_MASK) * 8, fragment & MORE_FRAGMENTS != 0);
        let id = [0, 0, ip.id[0], ip.id[1]];
        packet.piece = Piece::new(id, start, more, packet.transport_length, HEADER)?;
    }
    Ok(())
}

#[inline(always)]
fn ipv6(skb: Skb, packet: &mut Packet) -> Result<(), Refusal> {
    const HEADER: u32 = size_of::<Ipv6>() as u32;
    let mut space = Space::<Ipv6>::new();
    let ip = skb.read(ETHERNET, &mut space).ok_or(DropReason::InvalidPacket)?;
    packet.source = Address(ip.source);
    packet.destination = Address(ip.destination);
    packet.protocol = ip.next_header;
    packet.ttl = ip.hop_limit;
    if ip.version_class_flow[0] >> 4 != 6 {
        return Err(DropReason::InvalidPacket.into());
    }
    let total = announced(skb, packet.length, u16::from_be_bytes(ip.payload_length), HEADER);
    let end = end(packet, total, HEADER)?;
    let mut chain = Chain::new(packet.protocol, ETHERNET + HEADER, end);
    if extension::is_one(packet.protocol) {
        extension::walk(skb, &mut chain)?;
    }
    packet.protocol = chain.protocol;
    packet.piece = chain.piece(ETHERNET)?;
    packet.transport = chain.at as u16;
    packet.transport_length = end.wrapping_sub(chain.at);
    Ok(())
}

/// Length of the IP packet by its own word. Segments beyond 64 KiB in one buffer ("BIG TCP") announce zero.
#[inline(always)]
fn announced(skb: Skb, length: u32, field: u16, extra: u32) -> u32 {
    if field == 0 && skb.gso_size() != 0 { length.wrapping_sub(ETHERNET) } else { u32::from(field) + extra }
}

/// Offset of the end of an IP packet of `total` bytes, if the frame holds them and they hold the IP header.
#[inline(always)]
fn end(packet: &Packet, total: u32, header: u32) -> Result<u32, DropReason> {
    if total < header || total > packet.length.wrapping_sub(ETHERNET) {
        return Err(DropReason::InvalidPacket);
    }
    Ok(total + ETHERNET)
}

/// Reads the transport header; a later fragment has none.
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
        _ if packet.is_later() => Ok(()),
        protocol::TCP => tcp(skb, packet),
        protocol::UDP => udp(skb, packet),
        protocol::SCTP => sctp(skb, packet),
        protocol::ICMP if packet.is_v4() => icmp(skb, packet),
        protocol::ICMPV6 if !packet.is_v4() => icmp(skb, packet),
        _ if packet.is_v4() => Err(DropReason::UnknownL4),
        other if extension::is_one(other) => Err(DropReason::Ipv6Extension),
        protocol::ESP | protocol::AH | protocol::MOBILITY | protocol::HIP | protocol::SHIM6 => {
            Err(DropReason::Ipv6Extension)
        }
        _ => Err(DropReason::UnknownL4),
    }
}

#[inline(always)]
fn tcp(skb: Skb, packet: &mut Packet) -> Result<(), DropReason> {
    let mut space = Space::<Tcp>::new();
    let header = read(skb, packet, &mut space)?;
    let length = u32::from(header.offset >> 4) * 4;
    if length < size_of::<Tcp>() as u32 {
        return Err(DropReason::InvalidPacket);
    }
    if length > packet.transport_length {
        return Err(packet.cut());
    }
    ports(packet, header.source, header.destination);
    packet.tcp_flags = header.flags;
    packet.has_payload = length < packet.transport_length;
    Ok(())
}

#[inline(always)]
fn udp(skb: Skb, packet: &mut Packet) -> Result<(), DropReason> {
    let mut space = Space::<Udp>::new();
    let header = read(skb, packet, &mut space)?;
    let length = u32::from(u16::from_be_bytes(header.length));
    let whole = packet.piece.part != Part::First;
    let honest = length >= size_of::<Udp>() as u32 && (length <= packet.transport_length || !whole);
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
        return Ok(());
    }
    // Without a connection there is nothing that later fragments could be judged by.
    if packet.piece.part == Part::First { Err(DropReason::Fragment) } else { Ok(()) }
}

/// The transport header, if the IP packet holds all of it.
#[inline(always)]
fn read<'a, T: Copy>(skb: Skb, packet: &Packet, space: &'a mut Space<T>) -> Result<&'a mut T, DropReason> {
    if packet.transport_length < size_of::<T>() as u32 {
        return Err(packet.cut());
    }
    skb.read(packet.transport(), space).ok_or(DropReason::InvalidPacket)
}

#[inline(always)]
fn ports(packet: &mut Packet, source: [u8; 2], destination: [u8; 2]) {
    packet.source_port = u16::from_be_bytes(source);
    packet.destination_port = u16::from_be_bytes(destination);
}
