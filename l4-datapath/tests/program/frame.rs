//! Frames as they stand on the wire: correct by default, broken on purpose by the tests.

use std::net::IpAddr;

/// TCP flags.
pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const PSH: u8 = 8;
pub(crate) const ACK: u8 = 16;
pub(crate) const URG: u8 = 32;

/// IP protocol numbers.
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const SCTP: u8 = 132;
pub(crate) const ICMP: u8 = 1;
pub(crate) const ICMPV6: u8 = 58;

/// Length of the Ethernet header.
pub(crate) const LINK: usize = 14;

/// Ends of a packet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    pub(crate) macs: ([u8; 6], [u8; 6]),
    pub(crate) addresses: (IpAddr, IpAddr),
}

impl Ends {
    pub(crate) fn reversed(self) -> Self {
        Self { macs: (self.macs.1, self.macs.0), addresses: (self.addresses.1, self.addresses.0) }
    }

    pub(crate) fn is_v4(self) -> bool {
        self.addresses.0.is_ipv4()
    }

    /// Offset of the transport header.
    pub(crate) fn transport(self) -> usize {
        LINK + if self.is_v4() { 20 } else { 40 }
    }

    /// The protocol number of ICMP in this family.
    pub(crate) fn icmp(self) -> u8 {
        if self.is_v4() { ICMP } else { ICMPV6 }
    }
}

/// An address as the kernel programs write it.
pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// An IP packet with any payload.
pub(crate) fn ip(ends: Ends, protocol: u8, ttl: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = [ends.macs.1, ends.macs.0].concat();
    let (source, destination) = (octets(ends.addresses.0), octets(ends.addresses.1));
    if ends.is_v4() {
        frame.extend([0x08, 0x00, 0x45, 0]);
        frame.extend((20 + payload.len() as u16).to_be_bytes());
        frame.extend([0, 1, 0x40, 0, ttl, protocol, 0, 0]);
        frame.extend([source, destination].concat());
        let sum = checksum(&frame[LINK..]);
        frame[LINK + 10..LINK + 12].copy_from_slice(&sum);
    } else {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend((payload.len() as u16).to_be_bytes());
        frame.extend([protocol, ttl]);
        frame.extend([source, destination].concat());
    }
    frame.extend(payload);
    frame
}

/// One fragment: `payload` stands at `offset` of the datagram's.
pub(crate) fn piece(
    ends: Ends,
    protocol: u8,
    id: u32,
    (offset, more): (usize, bool),
    payload: &[u8],
) -> Vec<u8> {
    let [id0, id1, id2, id3] = id.to_be_bytes();
    if !ends.is_v4() {
        let [high, low] = (offset as u16 | u16::from(more)).to_be_bytes();
        return ip(ends, 44, 64, &[&[protocol, 0, high, low, id0, id1, id2, id3], payload].concat());
    }
    let mut frame = ip(ends, protocol, 64, payload);
    let [high, low] = ((offset as u16 / 8) | (u16::from(more) << 13)).to_be_bytes();
    frame[LINK + 4..LINK + 8].copy_from_slice(&[id2, id3, high, low]);
    sum_header(&mut frame);
    frame
}

/// A whole packet in fragments of `size` bytes of payload.
pub(crate) fn pieces(ends: Ends, id: u32, whole: &[u8], size: usize) -> Vec<Vec<u8>> {
    let protocol = whole[if ends.is_v4() { LINK + 9 } else { LINK + 6 }];
    let payload = &whole[ends.transport()..];
    let cut = |(n, part): (usize, &[u8])| {
        piece(ends, protocol, id, (n * size, n * size + part.len() < payload.len()), part)
    };
    payload.chunks(size).enumerate().map(cut).collect()
}

/// An IPv6 frame with extension headers in front of what it carries: (its number, what follows *next header* in it).
pub(crate) fn extended(frame: &[u8], headers: &[(u8, &[u8])]) -> Vec<u8> {
    let mut all = frame[..LINK + 40].to_vec();
    let mut next = LINK + 6;
    let behind = std::mem::replace(&mut all[next], 0);
    for (number, rest) in headers {
        all[next] = *number;
        next = all.len();
        all.push(0);
        all.extend(*rest);
    }
    all[next] = behind;
    all.extend(&frame[LINK + 40..]);
    let length = (all.len() - LINK - 40) as u16;
    all[LINK + 4..LINK + 6].copy_from_slice(&length.to_be_bytes());
    all
}

/// Makes the checksum of an IPv4 header right.
pub(crate) fn sum_header(frame: &mut [u8]) {
    frame[LINK + 10..LINK + 12].fill(0);
    let sum = checksum(&frame[LINK..LINK + 20]);
    frame[LINK + 10..LINK + 12].copy_from_slice(&sum);
}

/// A packet whose payload has its checksum at `at`, over pseudo-header and payload.
fn summed(ends: Ends, protocol: u8, ttl: u8, mut payload: Vec<u8>, at: usize) -> Vec<u8> {
    let sum = transport_checksum(ends, protocol, &payload);
    payload[at..at + 2].copy_from_slice(&sum);
    ip(ends, protocol, ttl, &payload)
}

/// A TCP segment with sequence number 1000, acknowledging 2000 if it has ACK.
pub(crate) fn tcp(ends: Ends, ports: (u16, u16), flags: u8) -> Vec<u8> {
    tcp_with(ends, ports, flags, 64, b"")
}

pub(crate) fn tcp_with(ends: Ends, ports: (u16, u16), flags: u8, ttl: u8, data: &[u8]) -> Vec<u8> {
    let mut segment = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    segment.extend(1000_u32.to_be_bytes());
    segment.extend(if flags & ACK != 0 { 2000_u32 } else { 0 }.to_be_bytes());
    segment.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(data);
    summed(ends, TCP, ttl, segment, 16)
}

pub(crate) fn udp(ends: Ends, ports: (u16, u16), data: &[u8]) -> Vec<u8> {
    let mut datagram = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    datagram.extend((8 + data.len() as u16).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(data);
    summed(ends, UDP, 64, datagram, 6)
}

pub(crate) fn sctp(ends: Ends, ports: (u16, u16)) -> Vec<u8> {
    let header = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    ip(ends, SCTP, 64, &[header, vec![0; 12]].concat())
}

/// An ICMP or ICMPv6 message: `rest` follows the checksum.
pub(crate) fn icmp(ends: Ends, kind: u8, code: u8, ttl: u8, rest: &[u8]) -> Vec<u8> {
    let message = [&[kind, code, 0, 0], rest].concat();
    if ends.is_v4() {
        let sum = checksum(&message);
        return ip(ends, ICMP, ttl, &[&message[..2], &sum, &message[4..]].concat());
    }
    summed(ends, ICMPV6, ttl, message, 2)
}

/// An echo request or reply.
pub(crate) fn echo(ends: Ends, request: bool, identifier: u16) -> Vec<u8> {
    let kind = match (ends.is_v4(), request) {
        (true, true) => 8,
        (true, false) => 0,
        (false, true) => 128,
        (false, false) => 129,
    };
    icmp(ends, kind, 0, 64, &[&identifier.to_be_bytes()[..], &[0, 1], b"ping"].concat())
}

/// *Destination unreachable, port*, quoting the start of `about` (a whole frame).
pub(crate) fn unreachable(ends: Ends, about: &[u8]) -> Vec<u8> {
    let quoted = about.len().min(ends.transport() + 8);
    let (kind, code) = if ends.is_v4() { (3, 3) } else { (1, 4) };
    icmp(ends, kind, code, 64, &[&[0; 4], &about[LINK..quoted]].concat())
}

/// ARP for IPv4 over Ethernet.
pub(crate) fn arp(
    link: ([u8; 6], [u8; 6]),
    operation: u8,
    sender: ([u8; 6], [u8; 4]),
    target: ([u8; 6], [u8; 4]),
) -> Vec<u8> {
    let mut frame = [link.1, link.0].concat();
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, operation]);
    frame.extend(sender.0);
    frame.extend(sender.1);
    frame.extend(target.0);
    frame.extend(target.1);
    frame
}

/// RFC 1071.
pub(crate) fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// Over pseudo-header and payload; ICMP over IPv4 has no pseudo-header.
pub(crate) fn transport_checksum(ends: Ends, protocol: u8, payload: &[u8]) -> [u8; 2] {
    if protocol == ICMP {
        return checksum(payload);
    }
    let mut all = [octets(ends.addresses.0), octets(ends.addresses.1)].concat();
    all.extend((payload.len() as u32).to_be_bytes());
    all.extend([0, 0, 0, protocol]);
    all.extend(payload);
    checksum(&all)
}

/// Whether both checksums of a frame are right.
pub(crate) fn is_sound(ends: Ends, frame: &[u8]) -> bool {
    let protocol = frame[if ends.is_v4() { LINK + 9 } else { LINK + 6 }];
    let header = !ends.is_v4() || checksum(&frame[LINK..LINK + 20]) == [0, 0];
    header && transport_checksum(ends, protocol, &frame[ends.transport()..]) == [0, 0]
}
