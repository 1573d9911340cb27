//! The second reader: what `etherparse` makes of a frame, read strictly.
//!
//! It shares nothing with the programs' parser. A frame it does not read as one packet, or one fragment, must not pass.

use std::net::IpAddr;

use etherparse::{
    ArpEthIpv4Packet, Ethernet2Slice, Icmpv4Slice, Icmpv6Slice, Ipv4HeaderSlice, Ipv6HeaderSlice, NetSlice,
    SlicedPacket, TcpSlice, UdpHeaderSlice, UdpSlice,
};

use super::network::{Network, Piece, chain, network};
use crate::{
    frame::{ICMP, ICMPV6, LINK, SCTP, TCP, UDP, octets},
    world::{Family, Pod},
};

/// An IP packet, or a fragment of one.
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
    /// Its place in its datagram, if it is not all of it.
    pub(super) piece: Option<Piece>,
    /// It has a fragment header, whatever that says.
    pub(super) fragment_header: bool,
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
    /// No header: a fragment that is not the first.
    Later,
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

/// `None` for whatever is not exactly one packet, or fragment, of a protocol that can be judged.
pub(super) fn read(frame: &[u8]) -> Option<Read> {
    let link = Ethernet2Slice::from_slice_without_fcs(frame).ok()?;
    let ip = network(link.ether_type(), link.payload_slice())?;
    let (body, sum) = match ip.piece {
        Some(Piece { start: 1.., .. }) => (Body::Later, false),
        _ => body(&ip)?,
    };
    Some(Read {
        macs: (link.source(), link.destination()),
        source: ip.source,
        destination: ip.destination,
        ttl: ip.ttl,
        protocol: ip.protocol,
        length: LINK + ip.length,
        body,
        piece: ip.piece,
        fragment_header: ip.fragment_header,
        checksums: (ip.checksum, sum),
    })
}

/// What is behind the IP header, and whether its checksum is right.
fn body(ip: &Network<'_>) -> Option<(Body, bool)> {
    let first = ip.piece.is_some();
    match (ip.protocol, ip.source.is_ipv4()) {
        (TCP, _) => tcp(ip),
        (UDP, _) if first => {
            let udp = UdpHeaderSlice::from_slice(ip.payload).ok().filter(|udp| udp.length() >= 8)?;
            Some((Body::Ports((udp.source_port(), udp.destination_port())), false))
        }
        (UDP, _) => {
            let udp = UdpSlice::from_slice(ip.payload).ok().filter(|udp| udp.length() != 0)?;
            Some((Body::Ports((udp.source_port(), udp.destination_port())), false))
        }
        (SCTP, _) if ip.payload.len() >= 12 => Some((Body::Ports(ports(ip.payload)?), false)),
        (ICMP, true) | (ICMPV6, false) => {
            let body = message(ip)?;
            // Pieces of other messages belong to no connection.
            (!first || matches!(body.0, Body::Echo { .. })).then_some(body)
        }
        _ => None,
    }
}

fn tcp(ip: &Network<'_>) -> Option<(Body, bool)> {
    let tcp = TcpSlice::from_slice(ip.payload).ok()?;
    let sum = match (ip.source, ip.destination) {
        (IpAddr::V4(from), IpAddr::V4(to)) => tcp.calc_checksum_ipv4(from.octets(), to.octets()),
        (IpAddr::V6(from), IpAddr::V6(to)) => tcp.calc_checksum_ipv6(from.octets(), to.octets()),
        _ => return None,
    };
    let body = Body::Tcp {
        ports: (tcp.source_port(), tcp.destination_port()),
        flags: Flags { syn: tcp.syn(), ack: tcp.ack(), rst: tcp.rst(), fin: tcp.fin() },
        sequence: tcp.sequence_number(),
        acknowledgement: tcp.acknowledgment_number(),
    };
    Some((body, sum == Ok(tcp.checksum())))
}

fn message(ip: &Network<'_>) -> Option<(Body, bool)> {
    let (kind, rest) = (*ip.payload.first()?, ip.payload.get(4..).filter(|rest| rest.len() >= 4)?.to_vec());
    let (request, reply, is_error, sum) = match (ip.source, ip.destination) {
        (IpAddr::V4(_), _) => {
            // It refuses timestamps of another length than theirs.
            let sum = Icmpv4Slice::from_slice(ip.payload)
                .is_ok_and(|icmp| icmp.icmp_type().calc_checksum(icmp.payload()) == icmp.checksum());
            (8, 0, matches!(kind, 3 | 11 | 12), sum)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let icmp = Icmpv6Slice::from_slice(ip.payload).ok()?;
            (128, 129, matches!(kind, 1..=4), icmp.is_checksum_valid(from.octets(), to.octets()))
        }
        _ => return None,
    };
    let body = if is_error {
        Body::Error { kind, quoted: rest[4..].to_vec() }
    } else if kind == request || kind == reply {
        Body::Echo { request: kind == request, identifier: u16::from_be_bytes([rest[0], rest[1]]) }
    } else {
        Body::OtherIcmp { kind, rest }
    };
    Some((body, sum))
}

fn ports(transport: &[u8]) -> Option<(u16, u16)> {
    let [a, b, c, d, ..] = *transport else { return None };
    Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
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
            let chain = chain(ip.next_header().0, &bytes[40..]).filter(|chain| !chain.is_later())?;
            (ip.source_addr().into(), ip.destination_addr().into(), chain.protocol, 40 + chain.length)
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
    let ip = network(link.ether_type(), link.payload_slice()).filter(|ip| !ip.fragment_header)?;
    let (IpAddr::V6(destination), ICMPV6, Some(kind)) = (ip.destination, ip.protocol, ip.rest.first()) else {
        return None;
    };
    match kind {
        136 if from_pod => return Some(Silence::Private),
        135 if from_pod => {
            let target = ip.rest.get(8..24)?;
            let own = target == octets(Family::V6.pool(pod.host));
            let detection = ip.source.is_unspecified() || target == octets(ip.source) || own;
            return detection.then_some(Silence::Private);
        }
        _ => {}
    }
    let on_link = destination.octets()[0] == 0xff && destination.octets()[1] & 0xf == 2;
    (on_link && matches!(kind, 130..=133 | 135 | 136 | 143)).then_some(Silence::Noise)
}
