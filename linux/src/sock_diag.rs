//! Sockets that have a peer, in the calling thread's network namespace, by the kernel's own tables; and ending one.
//!
//! Promise: [`Diagnosis::end`] ends the socket that was listed or none: the kernel compares its cookie, which no other
//! socket ever has. Needs CAP_NET_ADMIN over the namespace. The messages are written here, two fixed layouts of
//! `linux/inet_diag.h`: `netlink-packet-sock-diag` builds on other versions of its family than `rtnetlink` and does not
//! know `SOCK_DESTROY`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send, socket,
};

use crate::error::{Context, Error, Result};

/// Message types and flags of `linux/sock_diag.h` and `linux/netlink.h`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_DUMP_INTR: u16 = 0x10;
/// Of `struct nlmsghdr` and of `struct inet_diag_sockid`.
const HEADER: usize = 16;
const IDENTITY: usize = 48;

/// ESTABLISHED, SYN_SENT, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING (`net/tcp_states.h`): an owner and a
/// peer. Connected UDP sockets are ESTABLISHED.
const WITH_A_PEER: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;
/// The kernel marks a list that changed while it was told; it is then asked for again.
const ATTEMPTS: u32 = 8;
/// What the kernel fills at most in one go (`netlink_dump`).
const ANSWER: usize = 32 << 10;

/// What a socket speaks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// A socket with a peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Socket {
    /// What it speaks.
    pub protocol: Protocol,
    /// `SO_COOKIE`: never that of another socket.
    pub cookie: u64,
    /// Its own end; a mapped address (`::ffff:192.0.2.1`) is written as the IPv4 one that it is.
    pub local: SocketAddr,
    /// Its peer, likewise.
    pub remote: SocketAddr,
    /// As the kernel tells it and wants it back: family and `struct inet_diag_sockid`.
    family: u8,
    identity: [u8; IDENTITY],
}

/// A connection to the kernel's table of sockets.
#[derive(Debug)]
pub struct Diagnosis {
    socket: OwnedFd,
    sequence: u32,
}

impl Diagnosis {
    /// Opens one in the calling thread's network namespace.
    pub fn open() -> Result<Self> {
        let kind = (SockType::Datagram, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag);
        let opened = socket(AddressFamily::Netlink, kind.0, kind.1, kind.2);
        let socket = opened.context("open", "netlink socket for socket diagnosis")?;
        // Connected to the kernel: nobody else's messages are received.
        connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0)).context("connect", "netlink socket")?;
        Ok(Self { socket, sequence: 0 })
    }

    /// The sockets of both families that speak `protocol` and have a peer.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the kernel does not tell.
    pub fn connected(&mut self, protocol: Protocol) -> Result<Vec<Socket>> {
        let mut sockets = self.family(protocol, libc::AF_INET)?;
        sockets.extend(self.family(protocol, libc::AF_INET6)?);
        Ok(sockets)
    }

    /// Ends a socket: its owner gets `ECONNABORTED`, a TCP peer a reset. False if it is gone already.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the kernel cannot (CONFIG_INET_DIAG_DESTROY).
    pub fn end(&mut self, socket: &Socket) -> Result<bool> {
        let protocol = socket.protocol.number();
        self.send(SOCK_DESTROY, NLM_F_ACK, socket.family, protocol, &socket.identity)
            .context("end socket to", socket.remote)?;
        match self.acknowledged() {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Err(UNABLE_TO_END),
            Err(error) => Err(error).context("end socket to", socket.remote),
        }
    }

    /// Whether the kernel lists sockets and can end them; by an attempt on one that cannot be there.
    pub fn works(&mut self) -> Result<()> {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            self.connected(protocol)?;
            let nobody = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
            let identity = [0; IDENTITY];
            let family = wire_family(libc::AF_INET);
            self.end(&Socket { protocol, cookie: 0, local: nobody, remote: nobody, family, identity })?;
        }
        Ok(())
    }

    fn family(&mut self, protocol: Protocol, family: i32) -> Result<Vec<Socket>> {
        let object = if family == libc::AF_INET { "IPv4 sockets" } else { "IPv6 sockets" };
        for _ in 0..ATTEMPTS {
            match self.list(protocol, wire_family(family)) {
                Ok(Some(sockets)) => return Ok(sockets),
                Ok(None) => {}
                // No handler for the family or the protocol.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Err(UNABLE_TO_LIST),
                Err(error) => return Err(error).context("list", object),
            }
        }
        Err(io::Error::from_raw_os_error(libc::EINTR)).context("list", object)
    }

    /// One list; none if it changed meanwhile.
    fn list(&mut self, protocol: Protocol, family: u8) -> io::Result<Option<Vec<Socket>>> {
        self.send(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, family, protocol.number(), &[0; IDENTITY])?;
        let (mut sockets, mut whole) = (Vec::new(), true);
        loop {
            let answer = self.receive()?;
            for message in Messages(&answer) {
                let Message { kind, flags, sequence, body } = message?;
                if sequence != self.sequence {
                    continue;
                }
                whole &= flags & NLM_F_DUMP_INTR == 0;
                match kind {
                    NLMSG_DONE | NLMSG_ERROR => return result(body).map(|()| whole.then_some(sockets)),
                    _ => sockets.extend(told(protocol, body)),
                }
            }
        }
    }

    fn acknowledged(&mut self) -> io::Result<()> {
        loop {
            let answer = self.receive()?;
            for message in Messages(&answer) {
                let message = message?;
                if message.sequence == self.sequence && message.kind == NLMSG_ERROR {
                    return result(message.body);
                }
            }
        }
    }

    /// Sends `struct nlmsghdr` and `struct inet_diag_req_v2`.
    fn send(&mut self, kind: u16, flags: u16, family: u8, protocol: u8, identity: &[u8]) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = HEADER + 8 + IDENTITY;
        let mut message = Vec::with_capacity(length);
        message.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend([0; 4]);
        message.extend([family, protocol, 0, 0]);
        message.extend(WITH_A_PEER.to_ne_bytes());
        message.extend(identity);
        send(self.socket.as_raw_fd(), &message, MsgFlags::empty())?;
        Ok(())
    }

    fn receive(&self) -> io::Result<Vec<u8>> {
        let mut answer = vec![0; ANSWER];
        let length = loop {
            // MSG_TRUNC: the true length, also of what did not fit.
            match recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::MSG_TRUNC) {
                Err(nix::Error::EINTR) => {}
                length => break length?,
            }
        };
        if length > ANSWER {
            return Err(malformed());
        }
        answer.truncate(length);
        Ok(answer)
    }
}

const UNABLE_TO_LIST: Error =
    Error::Unsupported { what: "listing sockets", needs: "CONFIG_INET_DIAG, CONFIG_INET_UDP_DIAG" };
const UNABLE_TO_END: Error =
    Error::Unsupported { what: "ending another's socket", needs: "CONFIG_INET_DIAG_DESTROY (Linux 4.9)" };

/// Both families are below 256.
const fn wire_family(family: i32) -> u8 {
    family as u8
}

struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

/// The messages of one answer.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = io::Result<Message<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let Some((message, length)) = message(self.0) else {
            self.0 = &[];
            return Some(Err(malformed()));
        };
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok(message))
    }
}

fn message(bytes: &[u8]) -> Option<(Message<'_>, usize)> {
    let length = usize::try_from(u32::from_ne_bytes(field(bytes, 0)?)).ok()?;
    let message = Message {
        kind: u16::from_ne_bytes(field(bytes, 4)?),
        flags: u16::from_ne_bytes(field(bytes, 6)?),
        sequence: u32::from_ne_bytes(field(bytes, 8)?),
        body: bytes.get(HEADER..length)?,
    };
    Some((message, length))
}

/// `NLMSG_ERROR` and `NLMSG_DONE` begin with a negative error number or zero.
fn result(body: &[u8]) -> io::Result<()> {
    match field(body, 0).map_or(0, i32::from_ne_bytes) {
        0.. => Ok(()),
        error => Err(io::Error::from_raw_os_error(error.saturating_neg())),
    }
}

/// Reads `struct inet_diag_msg`; none where there is no peer after all.
fn told(protocol: Protocol, body: &[u8]) -> Option<Socket> {
    let [family]: [u8; 1] = field(body, 0)?;
    let identity: [u8; IDENTITY] = field(body, 4)?;
    let port = |at| field(&identity, at).map(u16::from_be_bytes);
    let address = |at| -> Option<IpAddr> {
        Some(match i32::from(family) {
            libc::AF_INET => IpAddr::from(field::<4>(&identity, at)?),
            _ => Ipv6Addr::from(field::<16>(&identity, at)?).to_canonical(),
        })
    };
    let local = SocketAddr::new(address(4)?, port(0)?);
    let remote = SocketAddr::new(address(20)?, port(2)?);
    // Two words, the lower first.
    let (low, high) = (u32::from_ne_bytes(field(&identity, 40)?), u32::from_ne_bytes(field(&identity, 44)?));
    let cookie = u64::from(high) << 32 | u64::from(low);
    (remote.port() != 0).then_some(Socket { protocol, cookie, local, remote, family, identity })
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "malformed answer of the kernel")
}

#[cfg(test)]
mod tests;
