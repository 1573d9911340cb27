//! What needs CAP_NET_RAW, and a flood.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Instant;

use conformance::forge::Case;
use etherparse::{
    IcmpEchoHeader, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, Ipv4Header, Ipv6Header,
    PacketHeaders, SlicedPacket, TransportHeader, TransportSlice,
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{PATIENCE, any};

/// `ETH_P_ALL` in network order, as packet(7) wants it.
pub(crate) const EVERY_PROTOCOL: i32 = 0x0003_u16.to_be() as i32;

pub(crate) fn flood(to: IpAddr, count: u32) -> io::Result<()> {
    let mut sent = 0;
    while sent < count {
        let socket = UdpSocket::bind(any(SocketAddr::new(to, 0), 0))?;
        for port in 1..=u16::try_from(count - sent).unwrap_or(u16::MAX) {
            // A port nobody listens on answers with an error that the next send reports; the flood goes on.
            let _ = socket.send_to(b"x", SocketAddr::new(to, port));
            sent += 1;
        }
    }
    println!("flooded");
    Ok(())
}

pub(crate) fn forge(name: &str, to: IpAddr, from: Option<IpAddr>) -> io::Result<()> {
    let case = Case::named(name).ok_or_else(|| io::Error::other(format!("no case {name:?}")))?;
    let from = from.map_or_else(|| own_address(to), Ok)?;
    let socket = headers_included(to)?;
    for packet in case.packets(from, to)? {
        socket.send_to(&packet, &SocketAddr::new(to, 0).into())?;
    }
    println!("sent");
    Ok(())
}

/// IPPROTO_RAW: the caller brings the IP header, in either family (raw(7)).
fn headers_included(to: IpAddr) -> io::Result<Socket> {
    let domain = if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    Socket::new(domain, Type::RAW, Some(Protocol::from(255)))
}

pub(crate) fn complain(to: IpAddr, about: SocketAddr) -> io::Result<()> {
    let packet = conformance::forge::complaint(own_address(to)?, to, about)?;
    headers_included(to)?.send_to(&packet, &SocketAddr::new(to, 0).into())?;
    println!("sent");
    Ok(())
}

/// No socket waits for the answers: the kernel resets what they open.
pub(crate) fn syn_flood(to: IpAddr, count: u16) -> io::Result<()> {
    let (socket, from) = (headers_included(to)?, own_address(to)?);
    for port in 1..=count {
        socket.send_to(&conformance::forge::syn(from, to, port)?, &SocketAddr::new(to, 0).into())?;
    }
    println!("flooded");
    Ok(())
}

/// So few that it holds nobody up but by what they take.
pub(crate) fn drizzle(to: IpAddr, pause: u64) -> io::Result<()> {
    let (socket, from) = (headers_included(to)?, own_address(to)?);
    println!("open");
    for port in (1..=u16::MAX).cycle() {
        socket.send_to(&conformance::forge::syn(from, to, port)?, &SocketAddr::new(to, 0).into())?;
        #[expect(clippy::disallowed_methods, reason = "a rate is what is asked for")]
        std::thread::sleep(std::time::Duration::from_millis(pause));
    }
    Ok(())
}

/// The address that this namespace would use towards `to`.
fn own_address(to: IpAddr) -> io::Result<IpAddr> {
    let to = SocketAddr::new(to, 80);
    let socket = UdpSocket::bind(any(to, 0))?;
    socket.connect(to)?;
    Ok(socket.local_addr()?.ip())
}

/// One request; the reply must carry its identifier.
pub(crate) fn ping(to: IpAddr) -> io::Result<()> {
    let (domain, protocol) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let mut socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    socket.connect(&SocketAddr::new(to, 0).into())?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let id = std::process::id() as u16;
    socket.write_all(&request(to.is_ipv4(), id))?;
    await_reply(&mut socket, to.is_ipv4(), id)?;
    println!("answered");
    Ok(())
}

/// The kernel writes the IP header, and the checksum of ICMPv6.
fn request(v4: bool, id: u16) -> Vec<u8> {
    let echo = IcmpEchoHeader { id, seq: 1 };
    let mut request = match v4 {
        true => Icmpv4Header::with_checksum(Icmpv4Type::EchoRequest(echo), b"word").to_bytes().to_vec(),
        false => Icmpv6Header::new(Icmpv6Type::EchoRequest(echo)).to_bytes().to_vec(),
    };
    request.extend(b"word");
    request
}

/// IPv4 messages come with their IP header, IPv6 ones without (raw(7)).
fn await_reply(socket: &mut Socket, v4: bool, id: u16) -> io::Result<()> {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        let mut buffer = [0; 2048];
        let length = socket.read(&mut buffer)?;
        let heard = match v4 {
            true => match PacketHeaders::from_ip_slice(&buffer[..length]).map(|headers| headers.transport) {
                Ok(Some(TransportHeader::Icmpv4(header))) => match header.icmp_type {
                    Icmpv4Type::EchoReply(echo) => Some(echo.id),
                    _ => None,
                },
                _ => None,
            },
            false => {
                match etherparse::Icmpv6Slice::from_slice(&buffer[..length]).map(|icmp| icmp.icmp_type()) {
                    Ok(Icmpv6Type::EchoReply(echo)) => Some(echo.id),
                    _ => None,
                }
            }
        };
        if heard == Some(id) {
            return Ok(());
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// `PROTOCOL SOURCE > DESTINATION` for each packet, in and out, of all interfaces; until killed. `every`: those without
/// ports too.
pub(crate) fn capture(every: bool) -> io::Result<()> {
    // SOCK_DGRAM: without link-layer headers (packet(7)).
    let mut socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(EVERY_PROTOCOL)))?;
    println!("serving");
    let mut buffer = [0; 65536];
    loop {
        let length = socket.read(&mut buffer)?;
        let packet = &buffer[..length];
        if let Some(line) = line(packet).or_else(|| without_ports(packet).filter(|_| every)) {
            writeln!(io::stdout(), "{line}")?;
        }
    }
}

/// Every packet from its IP header on, in and out, of all interfaces; until killed.
pub(crate) fn record(file: &str) -> io::Result<()> {
    let mut socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(EVERY_PROTOCOL)))?;
    let mut file = std::fs::File::create(file)?;
    println!("serving");
    let mut buffer = [0; 65536];
    loop {
        let length = socket.read(&mut buffer)?;
        let line: String = buffer[..length].iter().map(|byte| format!("{byte:02x}")).collect();
        file.write_all(format!("{line}\n").as_bytes())?;
    }
}

fn line(packet: &[u8]) -> Option<String> {
    let sliced = SlicedPacket::from_ip(packet).ok()?;
    let (protocol, source, destination) = match sliced.transport? {
        TransportSlice::Tcp(tcp) => ("tcp", tcp.source_port(), tcp.destination_port()),
        TransportSlice::Udp(udp) => ("udp", udp.source_port(), udp.destination_port()),
        _ => return None,
    };
    let [from, to] = ends(packet)?;
    Some(format!("{protocol} {} > {}", SocketAddr::new(from, source), SocketAddr::new(to, destination)))
}

fn without_ports(packet: &[u8]) -> Option<String> {
    let [from, to] = ends(packet)?;
    Some(format!("ip {from} > {to}"))
}

/// Of the IP header alone: what follows may be broken, or a piece.
fn ends(packet: &[u8]) -> Option<[IpAddr; 2]> {
    if let Ok((header, _)) = Ipv4Header::from_slice(packet) {
        return Some([IpAddr::from(header.source), header.destination.into()]);
    }
    let (header, _) = Ipv6Header::from_slice(packet).ok()?;
    Some([IpAddr::from(header.source), header.destination.into()])
}
