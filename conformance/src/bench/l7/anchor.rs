//! The kernel's leave for other proxies to call in a client's name.
//!
//! The node's programs let the proxy call a server in a client's name only while that client has a connection to the server
//! by way of the proxy; the priority of the calling socket (SO_PRIORITY) says by its port which. No other proxy knows of
//! that. For them the client keeps one connection to each port open, all from one port, and netfilter writes this port into
//! what calls without one.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

/// The port of the client's that all of them have.
const ANCHOR: u16 = 20_000;
/// No rule lets it through: the connection is kept, and the server never sees it.
const DENIED: &[u8] = b"DELETE / HTTP/1.1\r\nHost: bench\r\n\r\n";
const PATIENCE: Duration = Duration::from_secs(10);

/// Lasts for as long as it is kept.
pub(super) struct Anchor(#[expect(dead_code, reason = "kept open")] Vec<TcpStream>);

impl Anchor {
    /// From a client to a server's ports, by way of our proxy. `netfilter` is a command `nft -f -` in the node's namespace.
    pub(super) fn cast(
        client: (&Path, IpAddr),
        server: IpAddr,
        ports: &[u16],
        netfilter: Command,
    ) -> Result<Self, String> {
        let (namespace, own) = client;
        let namespace =
            linux::namespace::NetworkNamespace::open(namespace).map_err(|error| error.to_string())?;
        let connect = || ports.iter().map(|port| hold(own, SocketAddr::new(server, *port))).collect();
        let connections: std::io::Result<Vec<_>> =
            namespace.inside(connect).map_err(|error| error.to_string())?;
        let connections = connections.map_err(|error| format!("a connection for other proxies: {error}"))?;
        write_ports(own, netfilter)?;
        Ok(Self(connections))
    }
}

/// A connection that the proxy has taken, and keeps.
fn hold(own: IpAddr, server: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(server), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::new(own, ANCHOR).into())?;
    socket.connect_timeout(&server.into(), PATIENCE)?;
    let mut stream: TcpStream = socket.into();
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(DENIED)?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer)?;
    match &answer {
        b"HTTP/1.1 403" => Ok(stream),
        other => Err(std::io::Error::other(String::from_utf8_lossy(other).into_owned())),
    }
}

fn write_ports(client: IpAddr, mut netfilter: Command) -> Result<(), String> {
    let family = if client.is_ipv4() { "ip" } else { "ip6" };
    let rules = format!(
        "table {family} anchor {{\n chain output {{\n  type filter hook output priority 0\n\
         \x20 {family} saddr {client} tcp flags & (syn | ack) == syn meta priority none meta priority set 0:{ANCHOR:x}\n }}\n}}\n"
    );
    let mut child = netfilter.stdin(Stdio::piped()).spawn().map_err(|error| format!("nft: {error}"))?;
    let mut input = child.stdin.take().ok_or("nft takes nothing")?;
    input.write_all(rules.as_bytes()).map_err(|error| format!("nft: {error}"))?;
    drop(input);
    match child.wait() {
        Ok(status) if status.success() => Ok(()),
        other => Err(format!("nft: {other:?}")),
    }
}
