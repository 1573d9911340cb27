//! The server: answers every request with the same.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::{Ipv6Addr, SocketAddr, TcpListener};

use conformance::bench::l7::load::{Port, Protocol};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::client::Fault;
use super::h1::{Messages, answer};
use super::h2::Server;
use super::wire::Wire;

const BLOCK: usize = 64 << 10;

/// Who speaks on a connection.
enum Side {
    H1 { messages: Messages, answer: Vec<u8> },
    H2(Box<Server>),
    Sink,
}

impl Side {
    fn new(port: Port) -> Self {
        match port.protocol {
            Some(Protocol::H1) => Self::H1 { messages: Messages::default(), answer: answer(port.body) },
            Some(Protocol::H2) => Self::H2(Box::new(Server::new(false, port.body))),
            Some(Protocol::Grpc) => Self::H2(Box::new(Server::new(true, port.body))),
            None => Self::Sink,
        }
    }

    fn take(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
        match self {
            Self::H1 { messages, answer } => messages.take(bytes, |_| out.extend_from_slice(answer)),
            Self::H2(server) => server.take(bytes, out),
            Self::Sink => Ok(()),
        }
    }
}

/// Serves both families at these ports until standard input ends.
pub(crate) fn serve(ports: &[Port]) -> io::Result<()> {
    let poll = Epoll::new(EpollCreateFlags::empty())?;
    let mut listeners = Vec::new();
    for port in ports {
        let listener = TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port.number)))?;
        listener.set_nonblocking(true)?;
        poll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, listeners.len() as u64))?;
        listeners.push((listener, *port));
    }
    println!("serving");
    super::end_with_input();
    let mut served: BTreeMap<u64, (Wire, Side)> = BTreeMap::new();
    let mut next = listeners.len() as u64;
    let (mut events, mut buffer) = ([EpollEvent::empty(); 256], vec![0; BLOCK]);
    loop {
        let count = match poll.wait(&mut events, EpollTimeout::NONE) {
            Err(nix::Error::EINTR) => continue,
            count => count?,
        };
        for event in &events[..count] {
            let number = event.data();
            if let Some((listener, port)) = listeners.get(number as usize) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        let wire = Wire::new(stream)?;
                        wire.enter(&poll, next)?;
                        served.insert(next, (wire, Side::new(*port)));
                        next += 1;
                    }
                    // It has gone again; or there are too many, and some will.
                    Err(error) if error.kind() != ErrorKind::InvalidInput => {}
                    Err(error) => return Err(error),
                }
                continue;
            }
            let Some((wire, side)) = served.get_mut(&number) else { continue };
            if !matches!(one(&poll, number, wire, side, &mut buffer), Ok(true)) {
                served.remove(&number);
            }
        }
    }
}

/// Whether the connection goes on.
fn one(
    poll: &Epoll,
    number: u64,
    wire: &mut Wire,
    side: &mut Side,
    buffer: &mut [u8],
) -> Result<bool, Fault> {
    let text = |error: io::Error| error.to_string();
    match wire.read(buffer).map_err(text)? {
        Some(0) => return Ok(false),
        Some(count) => side.take(&buffer[..count], &mut wire.out)?,
        None => {}
    }
    wire.flush(poll, number).map_err(text)?;
    Ok(true)
}
