//! What a packet without anything unusual about it is, and its entry in the connection table.
//!
//! TCP with ACK and nothing that changes a connection's state, or UDP; no IPv4 options, IPv6 extension headers or
//! fragments; lengths that agree; a hop to spare.

use core::mem::offset_of;

use abi::Connection;

use crate::{
    address::Words,
    conntrack::{self, Entry, Tuple},
    frame::Frame,
    header::{ETHERNET, Ethernet, Ipv4, Ipv6, Tcp, Udp, protocol, tcp},
    maps::{CONNECTIONS4, CONNECTIONS6},
    skb::Skb,
};

/// Offset of the IP header.
pub(crate) const IP: usize = size_of::<Ethernet>();
const TRANSPORT4: usize = IP + size_of::<Ipv4>();
const TRANSPORT6: usize = IP + size_of::<Ipv6>();
/// Headers of the shortest packet there can be: UDP by IPv4.
pub(crate) const SHORTEST: usize = TRANSPORT4 + size_of::<Udp>();
/// Of the shortest by IPv6.
pub(crate) const SHORTEST6: usize = TRANSPORT6 + size_of::<Udp>();
const TCP4: usize = TRANSPORT4 + size_of::<Tcp>();
const TCP6: usize = TRANSPORT6 + size_of::<Tcp>();
/// Within a transport header.
const OFFSET: usize = offset_of!(Tcp, offset);
const FLAGS: usize = offset_of!(Tcp, flags);
const LENGTH: usize = offset_of!(Udp, length);

/// Why a packet goes the long way.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detour {
    /// It may be known, or not: it was not looked for, or more is to be said about it.
    Unusual,
    /// Nothing in the connection table has its addresses and ports.
    Unknown,
}

/// What the connection table has of a packet.
pub(crate) struct Found {
    pub(crate) entry: Entry,
    /// Of source and destination; one of IPv4 is the second word.
    pub(crate) addresses: (Words, Words),
    /// The source of the packet is the higher end of the key.
    pub(crate) source_is_high: bool,
    pub(crate) protocol: u8,
}

/// An IPv4 packet.
#[inline(always)]
pub(crate) fn find4(skb: Skb, frame: Frame<SHORTEST>) -> Result<Found, Detour> {
    let (tuple, addresses) = tuple4(skb, frame).ok_or(Detour::Unusual)?;
    found(CONNECTIONS4.get_ptr_mut(conntrack::key4(&tuple.words4())), &tuple, addresses)
}

#[inline(always)]
fn found(value: Option<*mut Connection>, tuple: &Tuple, addresses: (Words, Words)) -> Result<Found, Detour> {
    let entry = value.and_then(Entry::new).ok_or(Detour::Unknown)?;
    Ok(Found { entry, addresses, source_is_high: tuple.source_is_high, protocol: tuple.protocol() })
}

#[inline(always)]
fn tuple4(skb: Skb, frame: Frame<SHORTEST>) -> Option<(Tuple, (Words, Words))> {
    /// Version 4, five words: no options.
    const NO_OPTIONS: u8 = 0x45;
    /// All of the fragment's word but "don't fragment".
    const FRAGMENT: u16 = 0xbfff_u16.to_be();
    let fragment = frame.half::<{ IP + offset_of!(Ipv4, fragment) }>();
    if frame.byte::<IP>() != NO_OPTIONS || fragment & FRAGMENT != 0 {
        return None;
    }
    let total = u16::from_be(frame.half::<{ IP + offset_of!(Ipv4, total_length) }>());
    let length = payload(skb, total.into(), size_of::<Ipv4>() as u32)?;
    let protocol = frame.byte::<{ IP + offset_of!(Ipv4, protocol) }>();
    if protocol == protocol::TCP {
        let frame = Frame::<TCP4>::new(skb)?;
        plain_tcp(frame.byte::<{ TRANSPORT4 + OFFSET }>(), frame.byte::<{ TRANSPORT4 + FLAGS }>(), length)?;
    } else if protocol == protocol::UDP {
        plain_udp(frame.half::<{ TRANSPORT4 + LENGTH }>(), length)?;
    } else {
        return None;
    }
    if frame.byte::<{ IP + offset_of!(Ipv4, ttl) }>() <= 1 {
        return None;
    }
    let source = frame.word::<{ IP + offset_of!(Ipv4, source) }>();
    let destination = frame.word::<{ IP + offset_of!(Ipv4, destination) }>();
    if source == destination {
        return None;
    }
    let ports = ports(frame.half::<TRANSPORT4>(), frame.half::<{ TRANSPORT4 + 2 }>());
    let tuple = Tuple::of_words(mapped(source), mapped(destination), ports, protocol, true);
    Some((tuple, ((0, source.into()), (0, destination.into()))))
}

/// An IPv6 packet.
#[inline(always)]
pub(crate) fn find6(skb: Skb) -> Result<Found, Detour> {
    let (tuple, addresses) = tuple6(skb).ok_or(Detour::Unusual)?;
    found(CONNECTIONS6.get_ptr_mut(conntrack::key6(tuple.words6())), &tuple, addresses)
}

#[inline(always)]
fn tuple6(skb: Skb) -> Option<(Tuple, (Words, Words))> {
    const SOURCE: usize = IP + offset_of!(Ipv6, source);
    const DESTINATION: usize = IP + offset_of!(Ipv6, destination);
    let frame = Frame::<SHORTEST6>::new(skb)?;
    if frame.byte::<IP>() >> 4 != 6 {
        return None;
    }
    let announced = u16::from_be(frame.half::<{ IP + offset_of!(Ipv6, payload_length) }>());
    let header = size_of::<Ipv6>() as u32;
    let length = payload(skb, u32::from(announced) + header, header)?;
    let protocol = frame.byte::<{ IP + offset_of!(Ipv6, next_header) }>();
    if protocol == protocol::TCP {
        let frame = Frame::<TCP6>::new(skb)?;
        plain_tcp(frame.byte::<{ TRANSPORT6 + OFFSET }>(), frame.byte::<{ TRANSPORT6 + FLAGS }>(), length)?;
    } else if protocol == protocol::UDP {
        plain_udp(frame.half::<{ TRANSPORT6 + LENGTH }>(), length)?;
    } else {
        return None;
    }
    if frame.byte::<{ IP + offset_of!(Ipv6, hop_limit) }>() <= 1 {
        return None;
    }
    let source = (frame.long::<SOURCE>(), frame.long::<{ SOURCE + 8 }>());
    let destination = (frame.long::<DESTINATION>(), frame.long::<{ DESTINATION + 8 }>());
    if source == destination {
        return None;
    }
    let ports = ports(frame.half::<TRANSPORT6>(), frame.half::<{ TRANSPORT6 + 2 }>());
    Some((Tuple::of_words(source, destination, ports, protocol, false), (source, destination)))
}

/// The words of an IPv4 address as it stands, written v4-mapped.
#[inline(always)]
fn mapped(address: u32) -> Words {
    const MAPPED: u64 = u64::from_ne_bytes([0, 0, 0xff, 0xff, 0, 0, 0, 0]);
    (0, MAPPED | u64::from(address) << 32)
}

/// Ports as they stand, in machine order.
#[inline(always)]
fn ports(source: u16, destination: u16) -> (u16, u16) {
    (u16::from_be(source), u16::from_be(destination))
}

/// Bytes behind the IP header, by its own word, if the buffer holds them. Segments too many for that word go the long
/// way.
#[inline(always)]
fn payload(skb: Skb, total: u32, header: u32) -> Option<u32> {
    (total > header && total + ETHERNET <= skb.len()).then(|| total - header)
}

/// ACK, with or without what says nothing about the connection's state, and a header that lies within the packet.
#[inline(always)]
fn plain_tcp(offset: u8, flags: u8, length: u32) -> Option<()> {
    let header = u32::from(offset >> 4) * 4;
    let state = flags & (tcp::FIN | tcp::SYN | tcp::RST | tcp::ACK | tcp::URG);
    (state == tcp::ACK && header >= size_of::<Tcp>() as u32 && header <= length).then_some(())
}

/// A datagram that lies within the packet. `datagram`: its length as it stands.
#[inline(always)]
fn plain_udp(datagram: u16, length: u32) -> Option<()> {
    let datagram = u32::from(u16::from_be(datagram));
    (datagram >= size_of::<Udp>() as u32 && datagram <= length).then_some(())
}
