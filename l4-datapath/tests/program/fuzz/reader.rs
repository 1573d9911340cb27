//! The second reader: what `etherparse` makes of a frame, read strictly.
//!
//! It shares nothing with the programs' parser. A frame it does not read as one plain packet must not pass.

use std::net::IpAddr;

use etherparse::{
    ArpEthIpv4Packet, Ethernet2Slice, Ipv4HeaderSlice, Ipv6HeaderSlice, NetSlice, SlicedPacket,
    TransportSlice,
};

use crate::{
    frame::{ICMP, ICMPV6, LINK, SCTP, TCP, UDP, octets},
    world::{Family, Pod},
};

/// An IP packet with its transport header directly behind the IP header.
#[derive(Debug)]
pub(super) struct Read {
    /// Source and destination.
    pub(super) macs: ([u8; 6], [u8; 6]),
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) ttl: u8,
    pub(super) protocol: u8,
    /// Bytes by the word of the IP header, Ethernet header included.
    pub(super) length: usize,
    pub(super) body: Body,
    /// IPv4 header and, for TCP and ICMP, transport.
    pub(super) checksums: (bool, bool),
}

/// What is behind the IP header.
#[derive(Debug)]
pub(super) enum Body {
    Tcp {
        ports: (u16, u16),
        flags: Flags,
        sequence: u32,
        acknowledgement: u32,
    },
    Ports((u16, u16)),
    Echo {
        request: bool,
        identifier: u16,
    },
    /// An ICMP error and what it says it is about.
    Error {
        kind: u8,
        quoted: Vec<u8>,
    },
    OtherIcmp {
        kind: u8,
        rest: Vec<u8>,
    },
}

/// TCP flags that mean something to a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Flags {
    pub(super) syn: bool,
    pub(super) ack: bool,
    pub(super) rst: bool,
    pub(super) fin: bool,
}

impl Flags {
    /// Combinations no TCP sends.
    pub(super) fn contradict(self) -> bool {
        let states = [self.syn, self.rst, self.fin].into_iter().filter(|flag| *flag).count();
        states > 1 || (!self.ack && !self.syn && !self.rst)
    }

    pub(super) fn is_first(self) -> bool {
        self.syn && !self.ack
    }
}

/// `None` for whatever is not exactly one plain packet of a protocol that can be judged.
pub(super) fn read(frame: &[u8]) -> Option<Read> {
    let link = Ethernet2Slice::from_slice_without_fcs(frame).ok()?;
    let packet = SlicedPacket::from_ethernet(frame).ok().filter(|packet| packet.link_exts.is_empty())?;
    let (source, destination, ttl, header, checksum): (IpAddr, IpAddr, _, _, _) = match packet.net.as_ref()? {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            let plain =
                header.options().is_empty() && !ip.is_payload_fragmented() && ip.extensions().is_empty();
            let checksum = header.to_header().calc_header_checksum() == header.header_checksum();
            let ends = plain.then_some((header.source_addr(), header.destination_addr()))?;
            (ends.0.into(), ends.1.into(), header.ttl(), 20, checksum)
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            // A payload length of zero is a jumbogram to etherparse; here it is a packet without payload.
            let plain = ip.extensions().is_empty() && header.payload_length() != 0;
            let ends = plain.then_some((header.source_addr(), header.destination_addr()))?;
            (ends.0.into(), ends.1.into(), header.hop_limit(), 40, true)
        }
        NetSlice::Arp(_) => return None,
    };
    let ip = packet.ip_payload()?;
    let body = body(packet.transport.as_ref(), ip.ip_number.0, ip.payload)?;
    let sum = transport_checksum(packet.transport.as_ref(), source, destination);
    Some(Read {
        macs: (link.source(), link.destination()),
        source,
        destination,
        ttl,
        protocol: ip.ip_number.0,
        length: LINK + header + ip.payload.len(),
        body,
        checksums: (checksum, sum),
    })
}

fn body(transport: Option<&TransportSlice<'_>>, protocol: u8, payload: &[u8]) -> Option<Body> {
    match transport {
        Some(TransportSlice::Tcp(tcp)) => Some(Body::Tcp {
            ports: (tcp.source_port(), tcp.destination_port()),
            flags: Flags { syn: tcp.syn(), ack: tcp.ack(), rst: tcp.rst(), fin: tcp.fin() },
            sequence: tcp.sequence_number(),
            acknowledgement: tcp.acknowledgment_number(),
        }),
        Some(TransportSlice::Udp(udp)) if udp.length() != 0 => {
            Some(Body::Ports((udp.source_port(), udp.destination_port())))
        }
        Some(TransportSlice::Icmpv4(icmp)) => {
            let rest = icmp.slice()[4..].to_vec();
            Some(message(icmp.type_u8(), (8, 0), matches!(icmp.type_u8(), 3 | 11 | 12), rest))
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            let rest = icmp.slice()[4..].to_vec();
            Some(message(icmp.type_u8(), (128, 129), matches!(icmp.type_u8(), 1..=4), rest))
        }
        None if protocol == SCTP && payload.len() >= 12 => Some(Body::Ports(ports(payload)?)),
        _ => None,
    }
}

fn message(kind: u8, (request, reply): (u8, u8), is_error: bool, rest: Vec<u8>) -> Body {
    if is_error {
        return Body::Error { kind, quoted: rest[4..].to_vec() };
    }
    if kind != request && kind != reply {
        return Body::OtherIcmp { kind, rest };
    }
    Body::Echo { request: kind == request, identifier: u16::from_be_bytes([rest[0], rest[1]]) }
}

fn ports(transport: &[u8]) -> Option<(u16, u16)> {
    let [a, b, c, d, ..] = *transport else { return None };
    Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}

fn transport_checksum(transport: Option<&TransportSlice<'_>>, source: IpAddr, destination: IpAddr) -> bool {
    match (transport, source, destination) {
        (Some(TransportSlice::Tcp(tcp)), IpAddr::V4(from), IpAddr::V4(to)) => {
            tcp.calc_checksum_ipv4(from.octets(), to.octets()) == Ok(tcp.checksum())
        }
        (Some(TransportSlice::Tcp(tcp)), IpAddr::V6(from), IpAddr::V6(to)) => {
            tcp.calc_checksum_ipv6(from.octets(), to.octets()) == Ok(tcp.checksum())
        }
        (Some(TransportSlice::Icmpv4(icmp)), ..) => {
            icmp.icmp_type().calc_checksum(icmp.payload()) == icmp.checksum()
        }
        (Some(TransportSlice::Icmpv6(icmp)), IpAddr::V6(from), IpAddr::V6(to)) => {
            icmp.is_checksum_valid(from.octets(), to.octets())
        }
        _ => false,
    }
}

/// The tuple of what an ICMP error quotes: ends, protocol, ports (an echo's identifier twice).
pub(super) fn quoted(bytes: &[u8]) -> Option<(IpAddr, IpAddr, u8, (u16, u16))> {
    let (source, destination, protocol, at): (IpAddr, IpAddr, _, _) = match bytes.first()? >> 4 {
        4 => {
            let ip = Ipv4HeaderSlice::from_slice(bytes).ok()?;
            let readable = ip.options().is_empty() && ip.fragments_offset().value() == 0;
            readable.then_some((
                ip.source_addr().into(),
                ip.destination_addr().into(),
                ip.protocol().0,
                20,
            ))?
        }
        6 => {
            let ip = Ipv6HeaderSlice::from_slice(bytes).ok()?;
            (ip.source_addr().into(), ip.destination_addr().into(), ip.next_header().0, 40)
        }
        _ => return None,
    };
    let start = bytes.get(at..at + 8)?;
    let ports = match (protocol, start[0]) {
        (TCP | UDP | SCTP, _) => ports(start)?,
        (ICMP, 0 | 8) | (ICMPV6, 128 | 129) => ports(&[start[4], start[5], start[4], start[5]])?,
        _ => return None,
    };
    Some((source, destination, protocol, ports))
}

/// ARP for IPv4 over Ethernet.
pub(super) fn arp(frame: &[u8]) -> Option<ArpEthIpv4Packet> {
    match SlicedPacket::from_ethernet(frame).ok()?.net? {
        NetSlice::Arp(arp) => arp.to_packet().try_eth_ipv4().ok(),
        _ => None,
    }
}

/// How a frame may end without an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Silence {
    /// What every kernel sends on a link: counted as multicast.
    Noise,
    /// A workload's duplicate address detection, and its advertisements: nobody's business.
    Private,
}

/// Whether `from_pod` or `to_pod` may drop this frame in silence.
pub(super) fn silence(pod: Pod, from_pod: bool, frame: &[u8]) -> Option<Silence> {
    let link = Ethernet2Slice::from_slice_without_fcs(frame).ok()?;
    if link.ether_type().0 == 0x0806 {
        if !from_pod {
            return Some(Silence::Noise);
        }
        let arp = arp(frame)?;
        let detection = arp.sender_ipv4 == [0; 4] || arp.sender_ipv4 == arp.target_ipv4;
        return detection.then_some(Silence::Private);
    }
    let ip = Ipv6HeaderSlice::from_slice(link.payload_slice()).ok()?;
    let payload = &link.payload_slice()[40..];
    let (protocol, kind) = (ip.next_header().0, payload.first().copied());
    if from_pod && protocol == ICMPV6 {
        match kind {
            Some(136) => return Some(Silence::Private),
            Some(135) => {
                let target: [u8; 16] = payload.get(8..24)?.try_into().ok()?;
                let own = target == octets(Family::V6.pool(pod.host))[..];
                let detection = ip.source_addr().is_unspecified() || target == ip.source() || own;
                return detection.then_some(Silence::Private);
            }
            _ => {}
        }
    }
    let on_link = ip.destination()[0] == 0xff && ip.destination()[1] & 0xf == 2;
    let noise = protocol == 0 || (protocol == ICMPV6 && matches!(kind, Some(130..=133 | 135 | 136 | 143)));
    (on_link && noise).then_some(Silence::Noise)
}
