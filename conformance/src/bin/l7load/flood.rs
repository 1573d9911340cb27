//! A tenant that does what others must not suffer from.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use conformance::bench::l7::load;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::tls;

/// It ends by itself, whatever becomes of who has started it.
const LONGEST: Duration = Duration::from_secs(60);
/// Connections that are open at a time.
const CROWD: usize = 400;
/// How long one may take to open.
const PATIENCE: Duration = Duration::from_millis(500);
/// Between two rounds over all slow bodies.
const DRIP: Duration = Duration::from_millis(2);

/// Goes on until standard input ends; says `COUNT` for each line.
pub(crate) fn flood(kind: &str, to: SocketAddr) -> io::Result<()> {
    let nuisance: fn(SocketAddr, &mut VecDeque<TcpStream>) -> io::Result<()> = match kind {
        "connections" => connection,
        "bodies" => body,
        "resets" => reset,
        "handshakes" => handshake,
        other => return Err(io::Error::other(format!("{other}: connections, bodies, resets or handshakes"))),
    };
    println!("open");
    let count = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&count);
    std::thread::spawn(move || {
        for _ in io::stdin().lines().map_while(Result::ok) {
            println!("{}", counted.load(Ordering::Relaxed));
        }
        std::process::exit(0);
    });
    let (mut open, end) = (VecDeque::new(), Instant::now() + LONGEST);
    while Instant::now() < end {
        match nuisance(to, &mut open) {
            Ok(()) => {
                count.fetch_add(1, Ordering::Relaxed);
            }
            // It is refused, as it should be; without a pause this would only be a busy loop of its own.
            Err(_) => std::thread::park_timeout(Duration::from_millis(1)),
        }
    }
    Ok(())
}

fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    socket.connect_timeout(&to.into(), PATIENCE)?;
    SockRef::from(&socket).set_linger(Some(Duration::ZERO))?;
    Ok(socket.into())
}

/// Another connection with half a head, in place of the oldest.
fn connection(to: SocketAddr, open: &mut VecDeque<TcpStream>) -> io::Result<()> {
    if open.len() >= CROWD {
        open.pop_front();
    }
    let mut stream = connect(to)?;
    stream.write_all(b"GET /bench/x HTTP/1.1\r\nHost: ser")?;
    open.push_back(stream);
    Ok(())
}

/// One more byte of each of many bodies.
fn body(to: SocketAddr, open: &mut VecDeque<TcpStream>) -> io::Result<()> {
    if open.len() < CROWD {
        let mut stream = connect(to)?;
        stream.write_all(b"GET /bench/x HTTP/1.1\r\nHost: server\r\nContent-Length: 10000000\r\n\r\n")?;
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        open.push_back(stream);
    }
    let before = open.len();
    open.retain_mut(|stream| match stream.write(b"x") {
        Ok(_) => true,
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    });
    if open.len() == CROWD {
        std::thread::park_timeout(DRIP);
    }
    if open.len() < before { Err(ErrorKind::ConnectionReset.into()) } else { Ok(()) }
}

/// A request whose answer nobody waits for.
fn reset(to: SocketAddr, _: &mut VecDeque<TcpStream>) -> io::Result<()> {
    connect(to)?.write_all(b"GET /bench/x HTTP/1.1\r\nHost: server\r\n\r\n")
}

/// A whole handshake of TLS, and nothing after it.
fn handshake(to: SocketAddr, _: &mut VecDeque<TcpStream>) -> io::Result<()> {
    let mut stream = connect(to)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    tls::handshake(&mut stream, &tls::config(load::Protocol::H1)?).map(drop)
}
