//! Clients of the echo server.

use std::io::{self, BufRead, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use conformance::pulse::Change;

use crate::{PATIENCE, any, call, one, word};

pub(crate) fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

pub(crate) fn say(stream: &mut (impl Read + Write), what: &[u8]) -> io::Result<()> {
    stream.write_all(what)?;
    let mut back = vec![0; what.len()];
    stream.read_exact(&mut back)
}

/// A connection, and a word back.
pub(crate) fn tcp(address: SocketAddr) -> io::Result<()> {
    say(&mut connect(address)?, b"word")
}

fn datagrams(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(any(address, 0))?;
    socket.connect(address)?;
    Ok(socket)
}

/// A datagram, and one back.
pub(crate) fn udp(address: SocketAddr) -> io::Result<()> {
    let socket = datagrams(address)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(b"word")?;
    socket.recv(&mut [0; 16]).map(drop)
}

/// By `getaddrinfo`, as most programs do; sorted, each once.
pub(crate) fn resolve(name: &str) -> io::Result<String> {
    let Ok(found) = (name, 0).to_socket_addrs() else { return Ok("unresolved".to_owned()) };
    let mut addresses: Vec<_> = found.map(|address| address.ip()).collect();
    addresses.sort();
    addresses.dedup();
    Ok(addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
}

/// One line in, one line out.
pub(crate) fn ask() -> io::Result<()> {
    println!("open");
    for line in io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        match one(&words) {
            Ok(said) => println!("{said}"),
            Err(error) => println!("{}", word(&error)),
        }
    }
    Ok(())
}

/// A TCP connection that stays; from a port of its own choice, or of the kernel's, with 0.
pub(crate) fn hold(address: SocketAddr, from: u16) -> io::Result<()> {
    let mut stream = call::open(address, from)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    println!("open");
    for line in io::stdin().lock().lines() {
        match say(&mut stream, line?.as_bytes()) {
            Ok(()) => println!("answered"),
            Err(error) => println!("{}", word(&error)),
        }
    }
    Ok(())
}

/// A connected UDP socket that stays; whoever receives blocks, as most programs do.
pub(crate) fn hold_udp(address: SocketAddr) -> io::Result<()> {
    let socket = datagrams(address)?;
    let receiver = socket.try_clone()?;
    println!("open");
    std::thread::spawn(move || {
        loop {
            match receiver.recv(&mut [0; 1024]) {
                Ok(_) => println!("answered"),
                Err(error) => {
                    println!("{}", word(&error));
                    if error.kind() == ErrorKind::ConnectionAborted {
                        return;
                    }
                }
            }
        }
    });
    for line in io::stdin().lock().lines() {
        // Whoever receives tells of an error.
        let _ = socket.send(line?.as_bytes());
    }
    Ok(())
}

/// More than one segment each way, so that the size of the largest matters.
pub(crate) fn bulk(address: SocketAddr, bytes: usize) -> io::Result<()> {
    let mut stream = connect(address)?;
    // The first segments may be lost to a router that then says how large they may be.
    stream.set_read_timeout(Some(PATIENCE * 10))?;
    let (mut sender, said) = (stream.try_clone()?, pattern(bytes));
    let sent = std::thread::spawn(move || {
        sender.write_all(&said)?;
        sender.shutdown(Shutdown::Write)
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back)?;
    sent.join().map_err(|_| io::Error::other("the sender panicked"))??;
    same(&back, bytes)
}

/// One datagram, in as many pieces as the way asks for.
pub(crate) fn datagram(address: SocketAddr, bytes: usize) -> io::Result<()> {
    let socket = datagrams(address)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(&pattern(bytes))?;
    let mut back = vec![0; 65536];
    let length = socket.recv(&mut back)?;
    same(&back[..length], bytes)
}

/// No two places near each other look alike: what comes back in another order is not what was said.
fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at % 251) as u8).collect()
}

fn same(heard: &[u8], bytes: usize) -> io::Result<()> {
    if heard == pattern(bytes) {
        return Ok(());
    }
    Err(io::Error::new(ErrorKind::InvalidData, "what came back is not what was said"))
}

/// Sockets that are all open at the same time.
pub(crate) fn many(address: SocketAddr, count: usize) -> io::Result<()> {
    let sockets: Vec<UdpSocket> = (0..count).map(|_| datagrams(address)).collect::<Result<_, _>>()?;
    let mut answered = 0;
    for socket in &sockets {
        socket.set_read_timeout(Some(PATIENCE))?;
        let _ = socket.send(b"word");
    }
    for socket in &sockets {
        answered += usize::from(socket.recv(&mut [0; 16]).is_ok());
    }
    println!("answered {answered} of {count}");
    // Until nobody listens: the sockets stay open meanwhile.
    io::stdin().lock().lines().for_each(drop);
    Ok(())
}

/// Datagrams of as many flows as there are pairs of a source and a destination port; `open` after the first round.
pub(crate) fn flows(to: SocketAddr, from: u16, sources: u16, ports: u16) -> io::Result<()> {
    let sockets: Vec<UdpSocket> = (from..from.saturating_add(sources))
        .map(|port| UdpSocket::bind(any(to, port)))
        .collect::<Result<_, _>>()?;
    let mut told = false;
    loop {
        for socket in &sockets {
            for port in to.port()..to.port().saturating_add(ports) {
                socket.send_to(b"x", SocketAddr::new(to.ip(), port))?;
            }
        }
        if !std::mem::replace(&mut told, true) {
            println!("open");
        }
    }
}

/// See [`conformance::pulse`].
pub(crate) fn pulse(to: SocketAddr) -> io::Result<()> {
    conformance::pulse::pulse(to, |change| match change {
        Change::Open(since) => writeln!(io::stdout(), "open {since}"),
        Change::Closed(since) => writeln!(io::stdout(), "closed {since}"),
    })
}

/// Connections without a pause, each with a word said and heard.
pub(crate) fn steady(address: SocketAddr) -> io::Result<()> {
    let counts = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
    let counted = Arc::clone(&counts);
    std::thread::spawn(move || {
        loop {
            let outcome = tcp(address);
            if let Err(error) = &outcome {
                eprintln!("probe steady {address}: {error}");
            }
            counted[usize::from(outcome.is_err())].fetch_add(1, Ordering::Relaxed);
        }
    });
    println!("open");
    for line in io::stdin().lock().lines() {
        line?;
        let [good, bad] = [0, 1].map(|which: usize| counts[which].load(Ordering::Relaxed));
        println!("{good} good, {bad} bad");
    }
    Ok(())
}
