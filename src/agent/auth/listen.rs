//! Sockets that the processes listen on: opened here, for they may open none.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};

/// One address, not waiting for who connects.
pub(super) fn tcp(address: SocketAddr) -> Result<TcpListener, String> {
    open(address).map_err(|error| format!("listening on {address}: {error}"))
}

/// Several; where one stands for all addresses of both families and the machine has only IPv4, those of IPv4.
pub(super) fn all(addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, String> {
    let one = |address: &SocketAddr| match open(*address) {
        Err(error) if address.ip().is_unspecified() && error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            tcp(SocketAddr::new(IpAddr::from([0; 4]), address.port()))
        }
        opened => opened.map_err(|error| format!("listening on {address}: {error}")),
    };
    addresses.iter().map(one).collect()
}

fn open(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
