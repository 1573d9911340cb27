//! Sockets that do not wait, perhaps in TLS, and what is still to be written to them.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio_rustls::rustls::{self, ClientConfig, ClientConnection};

use super::tls;

/// How long a connection may take to open.
const PATIENCE: Duration = Duration::from_secs(5);

/// A connection.
pub(crate) struct Wire {
    stream: TcpStream,
    tls: Option<Box<ClientConnection>>,
    /// What is to be written, from `written` on.
    pub(crate) out: Vec<u8>,
    written: usize,
    waits: bool,
}

impl Wire {
    /// A connection to the server, which ends by a reset when dropped: nothing is left in `TIME_WAIT`.
    pub(crate) fn connect(to: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
        socket.connect_timeout(&to.into(), PATIENCE)?;
        let wire = Self::new(socket.into())?;
        SockRef::from(&wire.stream).set_linger(Some(Duration::ZERO))?;
        Ok(wire)
    }

    /// The same in TLS, whose handshake is waited for.
    pub(crate) fn secure(to: SocketAddr, config: &Arc<ClientConfig>) -> io::Result<Self> {
        let mut wire = Self::connect(to)?;
        wire.stream.set_nonblocking(false)?;
        wire.stream.set_read_timeout(Some(PATIENCE))?;
        wire.tls = Some(Box::new(tls::handshake(&mut wire.stream, config)?));
        wire.stream.set_nonblocking(true)?;
        Ok(wire)
    }

    pub(crate) fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, tls: None, out: Vec::new(), written: 0, waits: false })
    }

    /// Makes `poll` tell of it by this number.
    pub(crate) fn enter(&self, poll: &Epoll, number: u64) -> io::Result<()> {
        Ok(poll.add(&self.stream, EpollEvent::new(EpollFlags::EPOLLIN, number))?)
    }

    /// What there is to read: 0 at the end, none if nothing has come.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let read = match &mut self.tls {
            None => self.stream.read(buffer),
            Some(tls) => tls::read(tls, &mut self.stream, buffer),
        };
        match read {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            other => other.map(Some),
        }
    }

    /// Writes as much as is taken; the rest when there is room, which `poll` tells.
    pub(crate) fn flush(&mut self, poll: &Epoll, number: u64) -> io::Result<()> {
        while self.written < self.out.len() {
            let rest = &self.out[self.written..];
            let written = match &mut self.tls {
                None => self.stream.write(rest),
                Some(tls) => rustls::Stream::new(tls.as_mut(), &mut self.stream).write(rest),
            };
            match written {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        let waits = self.written < self.out.len();
        if !waits {
            self.out.clear();
            self.written = 0;
        }
        if waits != self.waits {
            self.waits = waits;
            let more = if waits { EpollFlags::EPOLLOUT } else { EpollFlags::empty() };
            poll.modify(&self.stream, &mut EpollEvent::new(EpollFlags::EPOLLIN | more, number))?;
        }
        Ok(())
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
