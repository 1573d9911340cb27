//! Servers: each on TCP and UDP, on a socket of either family's wildcard address.

use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

use crate::word;

/// What is said comes back.
pub(crate) fn echo(port: u16) -> io::Result<()> {
    serve(port, |said, _| said.to_vec(), false)
}

/// `NAME ADDRESS:PORT`: who was asked, and by whom as far as its sockets can tell. TCP ends with the answer.
pub(crate) fn witness(port: u16, name: &str) -> io::Result<()> {
    let name = name.to_owned();
    let answer = move |_: &[u8], from: SocketAddr| {
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        format!("{name} {from}\n").into_bytes()
    };
    serve(port, answer, true)
}

/// An echo over TCP that tells of each connection how it has ended: `closed`, or the word of its error.
pub(crate) fn ends(port: u16) -> io::Result<()> {
    let listener = TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))?;
    println!("serving");
    for stream in listener.incoming() {
        let mut stream = stream?;
        let from = stream.peer_addr()?.ip().to_canonical();
        std::thread::spawn(move || {
            let mut buffer = [0; 65536];
            let end = loop {
                match stream.read(&mut buffer) {
                    Ok(0) => break "closed",
                    Ok(length) => {
                        if let Err(error) = stream.write_all(&buffer[..length]) {
                            break word(&error);
                        }
                    }
                    Err(error) => break word(&error),
                }
            };
            println!("{from} {end}");
        });
    }
    Ok(())
}

/// Takes datagrams in and leaves them: what does not fit the socket's buffer is dropped behind all hooks.
pub(crate) fn sink(first: u16, count: u16) -> io::Result<()> {
    let open = |port| UdpSocket::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)));
    let _sockets: Vec<UdpSocket> =
        (first..first.saturating_add(count)).map(open).collect::<Result<_, _>>()?;
    println!("serving");
    io::stdin().lines().for_each(drop);
    Ok(())
}

/// With room for a crowd that calls at once: a SYN that finds none is sent again a second later.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

fn serve(
    port: u16,
    answer: impl Fn(&[u8], SocketAddr) -> Vec<u8> + Clone + Send + 'static,
    once: bool,
) -> io::Result<()> {
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let datagrams = UdpSocket::bind(address)?;
    let listener = listen(address)?;
    println!("serving");
    let answer_datagram = answer.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; 65536];
        while let Ok((length, from)) = datagrams.recv_from(&mut buffer) {
            // A peer that is gone by now is its own business.
            let _ = datagrams.send_to(&answer_datagram(&buffer[..length], from), from);
        }
    });
    for stream in listener.incoming() {
        let (mut stream, answer) = (stream?, answer.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 65536];
            let Ok(from) = stream.peer_addr() else { return };
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                if stream.write_all(&answer(&buffer[..length], from)).is_err() || once {
                    return;
                }
            }
        });
    }
    Ok(())
}
