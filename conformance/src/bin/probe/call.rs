//! A question to a witness: whom the socket thinks it talks to, and who it really was.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

use crate::{PATIENCE, any};

/// `peer=GETPEERNAME from=SOURCE heard=ANSWER`; `from` is the source of the answer as the socket tells it.
pub(crate) fn call(how: &str, to: SocketAddr, port: u16) -> io::Result<String> {
    let (peer, from, heard) = match how {
        "tcp" => tcp(to, port)?,
        "udp" => connected(to, port)?,
        "unconnected" => unconnected(to, port)?,
        _ => return Err(io::Error::other("call over tcp, udp or unconnected")),
    };
    Ok(format!("peer={peer} from={from} heard={}", heard.trim_end()))
}

type Answer = (String, SocketAddr, String);

/// A TCP connection from this local port; 0: from any.
pub(crate) fn open(to: SocketAddr, port: u16) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    if port != 0 {
        socket.set_reuse_address(true)?;
        socket.bind(&any(to, port).into())?;
    }
    socket.connect_timeout(&to.into(), PATIENCE)?;
    Ok(socket.into())
}

fn tcp(to: SocketAddr, port: u16) -> io::Result<Answer> {
    let mut stream = open(to, port)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"who\n")?;
    let peer = stream.peer_addr()?;
    let mut heard = String::new();
    BufReader::new(stream).read_line(&mut heard)?;
    Ok((peer.to_string(), peer, heard))
}

fn connected(to: SocketAddr, port: u16) -> io::Result<Answer> {
    let socket = UdpSocket::bind(any(to, port))?;
    socket.connect(to)?;
    socket.send(b"who")?;
    let (from, heard) = receive(&socket)?;
    Ok((socket.peer_addr()?.to_string(), from, heard))
}

fn unconnected(to: SocketAddr, port: u16) -> io::Result<Answer> {
    let socket = UdpSocket::bind(any(to, port))?;
    socket.send_to(b"who", to)?;
    let (from, heard) = receive(&socket)?;
    Ok(("none".to_owned(), from, heard))
}

fn receive(socket: &UdpSocket) -> io::Result<(SocketAddr, String)> {
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = [0; 256];
    let (length, from) = socket.recv_from(&mut buffer)?;
    Ok((from, String::from_utf8_lossy(&buffer[..length]).into_owned()))
}
