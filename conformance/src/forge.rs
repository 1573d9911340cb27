//! Packets that no honest stack sends, for the adversary's scenarios.

use std::net::IpAddr;

use etherparse::{PacketBuilder, TcpHeader};

/// A kind of forged packet: its name, which case of the threat list it plays, and the reason it must be dropped for.
pub struct Case {
    /// What `probe forge` calls it.
    pub name: &'static str,
    /// [`abi::DropReason`] as text.
    pub reason: &'static str,
    body: Body,
}

enum Body {
    Tcp(fn(&mut TcpHeader)),
    /// An IP protocol without meaning here.
    Protocol(u8),
    /// An echo reply to a request that never was.
    EchoReply,
    /// "Unreachable" about a packet that the receiver never sent.
    Error,
    /// A packet with nothing wrong but, perhaps, its source.
    Honest,
}

/// Every case.
pub const CASES: [Case; 12] = [
    Case { name: "null", reason: "Invalid TCP flags", body: Body::Tcp(|_| ()) },
    Case {
        name: "syn-fin",
        reason: "Invalid TCP flags",
        body: Body::Tcp(|tcp| (tcp.syn, tcp.fin) = (true, true)),
    },
    Case {
        name: "syn-rst",
        reason: "Invalid TCP flags",
        body: Body::Tcp(|tcp| (tcp.syn, tcp.rst) = (true, true)),
    },
    Case {
        name: "xmas",
        reason: "Invalid TCP flags",
        body: Body::Tcp(|tcp| (tcp.fin, tcp.psh, tcp.urg) = (true, true, true)),
    },
    Case { name: "ack", reason: "No connection", body: Body::Tcp(|tcp| tcp.ack = true) },
    Case { name: "rst", reason: "No connection", body: Body::Tcp(|tcp| tcp.rst = true) },
    Case {
        name: "syn-ack",
        reason: "No connection",
        body: Body::Tcp(|tcp| (tcp.syn, tcp.ack) = (true, true)),
    },
    Case { name: "echo-reply", reason: "No connection", body: Body::EchoReply },
    Case { name: "icmp-error", reason: "ICMP error without connection", body: Body::Error },
    Case { name: "gre", reason: "Unknown L4 protocol", body: Body::Protocol(47) },
    Case { name: "6in4", reason: "Unknown L4 protocol", body: Body::Protocol(41) },
    Case { name: "spoof", reason: "Invalid source ip", body: Body::Honest },
];

impl Case {
    /// The case of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        CASES.iter().find(|case| case.name == name)
    }

    /// The packet from `from` to port 80 of `to`, IP header included; an error if they are not of one family.
    pub fn packet(&self, from: IpAddr, to: IpAddr) -> std::io::Result<Vec<u8>> {
        write(&self.body, from, to)
    }
}

fn write(body: &Body, from: IpAddr, to: IpAddr) -> std::io::Result<Vec<u8>> {
    let builder = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), 64),
        _ => return Err(std::io::Error::other("two addresses of one family, please")),
    };
    let v4 = from.is_ipv4();
    let mut packet = Vec::new();
    let written = match body {
        Body::Tcp(flags) => {
            let mut header = TcpHeader::new(40_000, 80, 7, 1024);
            flags(&mut header);
            builder.tcp_header(header).write(&mut packet, &[])
        }
        Body::Honest => builder.udp(40_000, 80).write(&mut packet, b"word"),
        Body::EchoReply if v4 => builder.icmpv4_echo_reply(1, 1).write(&mut packet, b"word"),
        Body::EchoReply => builder.icmpv6_echo_reply(1, 1).write(&mut packet, b"word"),
        Body::Error => {
            let inner = write(&Body::Honest, to, from)?;
            match v4 {
                true => builder.icmpv4_raw(3, 1, [0; 4]).write(&mut packet, &inner),
                false => builder.icmpv6_raw(1, 4, [0; 4]).write(&mut packet, &inner),
            }
        }
        Body::Protocol(number) => {
            return builder
                .write(&mut packet, (*number).into(), &[0; 32])
                .map_err(std::io::Error::other)
                .map(|()| packet);
        }
    };
    written.map_err(std::io::Error::other)?;
    Ok(packet)
}
