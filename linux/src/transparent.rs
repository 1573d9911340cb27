//! TCP sockets that speak in another address's name.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use crate::error::{Context, Result};
use crate::vanished;

/// A socket that will call as `local`, which need not be an address of this machine, from a port that the kernel chooses
/// when it connects; its packets wear `mark` and have `priority` (SO_PRIORITY). It does not block, and notices a peer that
/// has vanished.
///
/// # Errors
/// What the kernel refused. Needs NET_RAW (before Linux 5.17: NET_ADMIN).
pub fn caller(local: IpAddr, mark: u32, priority: u32) -> Result<OwnedFd> {
    let domain = Domain::for_address(SocketAddr::new(local, 0));
    let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))
        .context("open a socket for", local)?;
    match local {
        IpAddr::V4(_) => socket.set_ip_transparent_v4(true),
        IpAddr::V6(_) => socket.set_ip_transparent_v6(true),
    }
    .context("make transparent the socket of", local)?;
    socket.set_mark(mark).context("mark the socket of", local)?;
    socket.set_priority(priority).context("set the priority of the socket of", local)?;
    vanished::notice(&socket)?;
    // The port is chosen at connect, by the whole tuple: else 28 000 connections to all servers would be the end.
    setsockopt(&socket, sockopt::IpBindAddressNoPort, &true).context("bind late the socket of", local)?;
    socket.bind(&SocketAddr::new(local, 0).into()).context("bind to", local)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    //! Needs root.

    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn it_calls_as_an_address_that_is_not_bound_here() {
        for (server, caller_address) in [("127.0.0.1:0", "127.0.0.77"), ("[::1]:0", "::1")] {
            let listener = TcpListener::bind(server).unwrap();
            let address: IpAddr = caller_address.parse().unwrap();
            let socket = Socket::from(caller(address, 0x0a00, 40_000).unwrap());
            // It has no port before it connects.
            assert_eq!(socket.local_addr().unwrap().as_socket().unwrap().port(), 0);
            assert_eq!((socket.mark().unwrap(), socket.priority().unwrap()), (0x0a00, 40_000));
            socket.set_nonblocking(false).unwrap();
            socket.connect(&listener.local_addr().unwrap().into()).unwrap();
            let (stream, peer): (TcpStream, _) = listener.accept().unwrap();
            assert_eq!(peer.ip(), address);
            assert_eq!(
                stream.peer_addr().unwrap().port(),
                socket.local_addr().unwrap().as_socket().unwrap().port()
            );
        }
    }
}
