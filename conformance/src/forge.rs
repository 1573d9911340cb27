//! Packets that no honest stack sends, for the adversary's scenarios.

use std::net::{IpAddr, SocketAddr};

use etherparse::{IpHeaders, PacketBuilder, PacketBuilderStep, TcpHeader};

/// A kind of forged packet: its name, which case of the threat list it plays, and the reason it must be dropped for.
pub struct Case {
    /// What `probe forge` calls it.
    pub name: &'static str,
    /// [`abi::DropReason`] as text, in IPv4 and in IPv6.
    reasons: [&'static str; 2],
    body: Body,
}

enum Body {
    Tcp(fn(&mut TcpHeader)),
    /// A first packet of TCP that brings data along (RFC 7413).
    SynWithData,
    /// In the middle of a connection.
    Data,
    /// A first packet of TCP to a port beside the one that is served.
    Beside,
    /// An IP protocol without meaning here.
    Protocol(u8),
    EchoRequest,
    /// An echo reply to a request that never was.
    EchoReply,
    /// "Unreachable" about a packet that the receiver never sent.
    Error,
    /// A packet with nothing wrong but, perhaps, its source.
    Honest,
    /// A loose source route (RFC 791), a routing header of type 0 (RFC 5095): a way of the sender's own choice.
    SourceRoute,
    Pieces(&'static [Piece]),
}

/// A fragment. Its payload is that of [`Body::Honest`], or zeros where it is not the first.
struct Piece {
    protocol: u8,
    /// In bytes.
    offset: u16,
    more: bool,
    length: usize,
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const ESP: u8 = 50;
/// Of the datagram that [`Body::Pieces`] pretends to be.
const ID: [u8; 4] = [0, 0, 7, 7];

/// What is dropped whoever it is sent to: a workload, or a service in front of it.
pub const CASES: [Case; 16] = [
    Case { name: "null", reasons: ["Invalid TCP flags"; 2], body: Body::Tcp(|_| ()) },
    Case {
        name: "syn-fin",
        reasons: ["Invalid TCP flags"; 2],
        body: Body::Tcp(|tcp| (tcp.syn, tcp.fin) = (true, true)),
    },
    Case {
        name: "syn-rst",
        reasons: ["Invalid TCP flags"; 2],
        body: Body::Tcp(|tcp| (tcp.syn, tcp.rst) = (true, true)),
    },
    Case {
        name: "xmas",
        reasons: ["Invalid TCP flags"; 2],
        body: Body::Tcp(|tcp| (tcp.fin, tcp.psh, tcp.urg) = (true, true, true)),
    },
    Case { name: "ack", reasons: ["No connection"; 2], body: Body::Tcp(|tcp| tcp.ack = true) },
    Case { name: "rst", reasons: ["No connection"; 2], body: Body::Tcp(|tcp| tcp.rst = true) },
    Case {
        name: "syn-ack",
        reasons: ["No connection"; 2],
        body: Body::Tcp(|tcp| (tcp.syn, tcp.ack) = (true, true)),
    },
    Case { name: "echo-reply", reasons: ["No connection"; 2], body: Body::EchoReply },
    Case { name: "icmp-error", reasons: ["ICMP error without connection"; 2], body: Body::Error },
    Case { name: "gre", reasons: ["Unknown L4 protocol"; 2], body: Body::Protocol(47) },
    Case { name: "6in4", reasons: ["Unknown L4 protocol"; 2], body: Body::Protocol(41) },
    Case {
        name: "esp",
        reasons: ["Unknown L4 protocol", "Invalid IPv6 extension header"],
        body: Body::Protocol(ESP),
    },
    Case {
        name: "source-route",
        reasons: ["IPv4 options", "Invalid IPv6 extension header"],
        body: Body::SourceRoute,
    },
    Case {
        name: "tiny-first",
        reasons: ["IP fragmentation not supported"; 2],
        body: Body::Pieces(&[Piece { protocol: TCP, offset: 0, more: true, length: 8 }]),
    },
    Case {
        name: "later-alone",
        reasons: ["First logical datagram fragment not found"; 2],
        body: Body::Pieces(&[Piece { protocol: UDP, offset: 64, more: false, length: 16 }]),
    },
    Case { name: "spoof", reasons: ["Invalid source ip"; 2], body: Body::Honest },
];

/// What a workload may be sent if policy allows, and a service is not.
pub const UNSERVED: [Case; 2] = [
    Case { name: "echo", reasons: ["Service backend not found"; 2], body: Body::EchoRequest },
    Case { name: "beside", reasons: ["Service backend not found"; 2], body: Body::Beside },
];

/// The first piece may pass, the second never: it begins before the first one's end.
pub const OVERLAP: Case = Case {
    name: "overlap",
    reasons: ["IP fragmentation not supported"; 2],
    body: Body::Pieces(&[
        Piece { protocol: UDP, offset: 0, more: true, length: 24 },
        Piece { protocol: UDP, offset: 16, more: false, length: 16 },
    ]),
};

/// Judged as any first packet is.
pub const SYN_WITH_DATA: Case =
    Case { name: "syn-with-data", reasons: ["Policy denied"; 2], body: Body::SynWithData };

/// What a connection of before would have sent next.
pub const DATA: Case = Case { name: "data", reasons: ["No connection"; 2], body: Body::Data };

impl Case {
    /// The case of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        CASES.iter().chain(&UNSERVED).chain([&OVERLAP, &SYN_WITH_DATA, &DATA]).find(|case| case.name == name)
    }

    /// Why it is dropped on the way to this address of a workload.
    pub fn reason(&self, to: IpAddr) -> &'static str {
        self.reasons[usize::from(to.is_ipv6())]
    }

    /// The same if the address is a service's: no backend answers for it what has no ports.
    pub fn reason_at_service(&self, to: IpAddr) -> &'static str {
        if matches!(self.body, Body::EchoReply) { "Service backend not found" } else { self.reason(to) }
    }

    /// The packets from `from` to port 80 of `to`, IP header included; an error if they are not of one family.
    pub fn packets(&self, from: IpAddr, to: IpAddr) -> std::io::Result<Vec<Vec<u8>>> {
        match self.body {
            Body::Pieces(pieces) => pieces.iter().map(|piece| cut(piece, from, to)).collect(),
            _ => write(&self.body, from, to).map(|packet| vec![packet]),
        }
    }
}

/// "Unreachable" about the datagram from port 40000 of `to` to `about`: another's call.
pub fn complaint(from: IpAddr, to: IpAddr, about: SocketAddr) -> std::io::Result<Vec<u8>> {
    let (builder, mut quoted) = (start(to, about.ip())?, Vec::new());
    builder.udp(40_000, about.port()).write(&mut quoted, b"who").map_err(std::io::Error::other)?;
    error(from, to, &quoted)
}

/// A first packet of TCP from this port to port 80.
pub fn syn(from: IpAddr, to: IpAddr, port: u16) -> std::io::Result<Vec<u8>> {
    let mut packet = Vec::new();
    start(from, to)?.tcp(port, 80, 7, 1024).syn().write(&mut packet, &[]).map_err(std::io::Error::other)?;
    Ok(packet)
}

fn start(from: IpAddr, to: IpAddr) -> std::io::Result<PacketBuilderStep<IpHeaders>> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => Ok(PacketBuilder::ipv4(from.octets(), to.octets(), 64)),
        (IpAddr::V6(from), IpAddr::V6(to)) => Ok(PacketBuilder::ipv6(from.octets(), to.octets(), 64)),
        _ => Err(std::io::Error::other("two addresses of one family, please")),
    }
}

/// IP header and payload.
fn bare(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut packet = Vec::new();
    start(from, to)?.write(&mut packet, protocol.into(), payload).map_err(std::io::Error::other)?;
    Ok(packet)
}

fn cut(piece: &Piece, from: IpAddr, to: IpAddr) -> std::io::Result<Vec<u8>> {
    let mut payload = vec![0; piece.length];
    if piece.offset == 0 {
        // Ports, and the length of the datagram: 32 bytes.
        payload[..6].copy_from_slice(&[0x9c, 0x40, 0, 80, 0, 32]);
    }
    let more = u16::from(piece.more);
    if from.is_ipv6() {
        let [high, low] = (piece.offset | more).to_be_bytes();
        let header = [&[piece.protocol, 0, high, low], &ID[..]].concat();
        return bare(from, to, FRAGMENT, &[header, payload].concat());
    }
    let mut packet = bare(from, to, piece.protocol, &payload)?;
    packet[4..6].copy_from_slice(&ID[2..]);
    // The checksum is the kernel's (raw(7)).
    packet[6..8].copy_from_slice(&((piece.offset / 8) | (more << 13)).to_be_bytes());
    Ok(packet)
}

fn error(from: IpAddr, to: IpAddr, quoted: &[u8]) -> std::io::Result<Vec<u8>> {
    let (builder, mut packet) = (start(from, to)?, Vec::new());
    let written = match from.is_ipv4() {
        true => builder.icmpv4_raw(3, 1, [0; 4]).write(&mut packet, quoted),
        false => builder.icmpv6_raw(1, 4, [0; 4]).write(&mut packet, quoted),
    };
    written.map_err(std::io::Error::other)?;
    Ok(packet)
}

/// By way of the receiver itself: whoever let the packet pass would deliver it.
fn source_route(from: IpAddr, to: IpAddr) -> std::io::Result<Vec<u8>> {
    let honest = write(&Body::Honest, from, to)?;
    match to {
        IpAddr::V4(hop) => {
            // Loose source route of one address that has been passed, and padding.
            let [a, b, c, d] = hop.octets();
            let mut packet = honest;
            packet.splice(20..20, [131, 7, 8, a, b, c, d, 0]);
            packet[0] = 0x47;
            Ok(packet)
        }
        IpAddr::V6(hop) => {
            // Type 0, one address, which has been passed.
            let header = [&[UDP, 2, 0, 0, 0, 0, 0, 0], &hop.octets()[..]].concat();
            bare(from, to, ROUTING, &[&header, &honest[40..]].concat())
        }
    }
}

fn write(body: &Body, from: IpAddr, to: IpAddr) -> std::io::Result<Vec<u8>> {
    let builder = start(from, to)?;
    let v4 = from.is_ipv4();
    let mut packet = Vec::new();
    let written = match body {
        Body::Tcp(flags) => {
            let mut header = TcpHeader::new(40_000, 80, 7, 1024);
            flags(&mut header);
            builder.tcp_header(header).write(&mut packet, &[])
        }
        Body::SynWithData => builder.tcp(40_000, 80, 7, 1024).syn().write(&mut packet, b"word"),
        Body::Data => builder.tcp(40_000, 80, 7, 1024).ack(1).psh().write(&mut packet, b"word"),
        Body::Beside => builder.tcp(40_000, 81, 7, 1024).syn().write(&mut packet, &[]),
        Body::Honest => builder.udp(40_000, 80).write(&mut packet, b"word"),
        Body::EchoRequest if v4 => builder.icmpv4_echo_request(1, 1).write(&mut packet, b"word"),
        Body::EchoRequest => builder.icmpv6_echo_request(1, 1).write(&mut packet, b"word"),
        Body::EchoReply if v4 => builder.icmpv4_echo_reply(1, 1).write(&mut packet, b"word"),
        Body::EchoReply => builder.icmpv6_echo_reply(1, 1).write(&mut packet, b"word"),
        Body::Error => return error(from, to, &write(&Body::Honest, to, from)?),
        Body::Protocol(number) => return bare(from, to, *number, &[0; 32]),
        Body::SourceRoute => return source_route(from, to),
        Body::Pieces(_) => return Err(std::io::Error::other("pieces are cut one by one")),
    };
    written.map_err(std::io::Error::other)?;
    Ok(packet)
}
