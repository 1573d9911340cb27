//! `probe`: the client and server of the scenarios, small enough to be obviously right.
//!
//! Outcomes are words on standard output: `answered`, `refused`, `reset`, `unreachable`, `silent`, `garbled`.

use std::io::{self, BufRead, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use conformance::forge::Case;
use conformance::pulse::Change;
use socket2::{Domain, Protocol, Socket, Type};

const USAGE: &str =
    "usage: probe serve PORT | tcp ADDRESS:PORT [LENGTH] | udp ADDRESS:PORT [LENGTH] | ask | hold ADDRESS:PORT | pulse ADDRESS:PORT | flood ADDRESS COUNT | forge CASE ADDRESS [FROM]
  serve   echo on TCP and UDP, both families
  tcp     connect, say a word or so many bytes, expect them back
  udp     send a word or so many bytes in one datagram, expect them back
  ask     for each line of standard input, `tcp ADDRESS:PORT [LENGTH]` or with `udp`, print the outcome
  hold    keep one TCP connection: each line of standard input is said, its outcome printed
  pulse   datagrams at a steady rate; says since when they are answered, or no longer are
  flood   send a datagram to each of so many ports and source ports, each a connection of its own
  forge   send a packet no honest stack sends, to port 80; from its own address unless told otherwise";

/// How long an answer may take. Refusals and answers come at once; only silence takes this long.
const PATIENCE: Duration = Duration::from_millis(700);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["serve", port] => read(port).and_then(serve),
        [transport @ ("tcp" | "udp"), to @ ..] => once(transport, to),
        ["ask"] => ask(),
        ["hold", address] => read(address).and_then(hold),
        ["pulse", address] => read(address).and_then(pulse),
        ["flood", to, count] => read(to).and_then(|to| flood(to, read(count)?)),
        ["forge", case, to] => read(to).and_then(|to| forge(case, to, None)),
        ["forge", case, to, from] => read(to).and_then(|to| forge(case, to, Some(read(from)?))),
        _ => Err(io::Error::other(USAGE)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{}", word(&error));
            eprintln!("probe: {error}");
            ExitCode::FAILURE
        }
    }
}

fn read<T: FromStr>(word: &str) -> io::Result<T> {
    word.parse().map_err(|_| io::Error::other(format!("{word:?} does not fit; {USAGE}")))
}

fn word(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::ConnectionRefused => "refused",
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof => "reset",
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => "unreachable",
        ErrorKind::TimedOut | ErrorKind::WouldBlock => "silent",
        ErrorKind::InvalidData => "garbled",
        _ => "failed",
    }
}

fn serve(port: u16) -> io::Result<()> {
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let datagrams = UdpSocket::bind(address)?;
    let listener = TcpListener::bind(address)?;
    println!("serving");
    std::thread::spawn(move || {
        let mut buffer = [0; 65536];
        while let Ok((length, from)) = datagrams.recv_from(&mut buffer) {
            // A peer that is gone by now is its own business.
            let _ = datagrams.send_to(&buffer[..length], from);
        }
    });
    for stream in listener.incoming() {
        let mut stream = stream?;
        std::thread::spawn(move || {
            let mut buffer = [0; 65536];
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                if stream.write_all(&buffer[..length]).is_err() {
                    return;
                }
            }
        });
    }
    Ok(())
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn say(stream: &mut TcpStream, what: &[u8]) -> io::Result<()> {
    stream.write_all(what)?;
    let mut back = vec![0; what.len()];
    stream.read_exact(&mut back)
}

/// One attempt: `to` is an address and perhaps a length.
fn once(transport: &str, to: &[&str]) -> io::Result<()> {
    let (address, length) = match to {
        [address] => (read(address)?, 4),
        [address, length] => (read(address)?, read(length)?),
        _ => return Err(io::Error::other(USAGE)),
    };
    // No two places look alike: what comes back in another order is not what was said.
    let said: Vec<u8> = (0..length).map(|at: u32| (at % 251) as u8).collect();
    let heard = if transport == "tcp" { tcp(address, &said)? } else { udp(address, &said)? };
    if heard != said {
        return Err(io::Error::new(ErrorKind::InvalidData, "what came back is not what was said"));
    }
    println!("answered");
    Ok(())
}

/// Says and hears at the same time: it may be more than all buffers on the way hold.
fn tcp(address: SocketAddr, said: &[u8]) -> io::Result<Vec<u8>> {
    let stream = connect(address)?;
    let mut heard = vec![0; said.len()];
    std::thread::scope(|scope| {
        scope.spawn(|| (&stream).write_all(said));
        let result = (&stream).read_exact(&mut heard);
        // Whatever became of it, the other half ends too.
        let _ = stream.shutdown(Shutdown::Both);
        result
    })?;
    Ok(heard)
}

fn udp(address: SocketAddr, said: &[u8]) -> io::Result<Vec<u8>> {
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(said)?;
    let mut heard = vec![0; 65536];
    let length = socket.recv(&mut heard)?;
    heard.truncate(length);
    Ok(heard)
}

fn ask() -> io::Result<()> {
    println!("open");
    for line in io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let outcome = match words.as_slice() {
            [transport @ ("tcp" | "udp"), to @ ..] => once(transport, to),
            _ => Err(io::Error::other(USAGE)),
        };
        if let Err(error) = outcome {
            println!("{}", word(&error));
        }
    }
    Ok(())
}

fn hold(address: SocketAddr) -> io::Result<()> {
    let mut stream = connect(address)?;
    println!("open");
    for line in io::stdin().lock().lines() {
        match say(&mut stream, line?.as_bytes()) {
            Ok(()) => println!("answered"),
            Err(error) => println!("{}", word(&error)),
        }
    }
    Ok(())
}

fn pulse(to: SocketAddr) -> io::Result<()> {
    conformance::pulse::pulse(to, |change| match change {
        Change::Open(since) => writeln!(io::stdout(), "open {since}"),
        Change::Closed(since) => writeln!(io::stdout(), "closed {since}"),
    })
}

fn flood(to: IpAddr, count: u32) -> io::Result<()> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let mut sent = 0;
    while sent < count {
        let socket = UdpSocket::bind(any)?;
        for port in 1..=u16::try_from(count - sent).unwrap_or(u16::MAX) {
            // A port nobody listens on answers with an error that the next send reports; the flood goes on.
            let _ = socket.send_to(b"x", SocketAddr::new(to, port));
            sent += 1;
        }
    }
    println!("flooded");
    Ok(())
}

fn forge(name: &str, to: IpAddr, from: Option<IpAddr>) -> io::Result<()> {
    let case = Case::named(name).ok_or_else(|| io::Error::other(format!("no case {name:?}")))?;
    let from = from.map_or_else(|| own_address(to), Ok)?;
    let domain = if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    // IPPROTO_RAW: the caller brings the IP header, in either family (raw(7)).
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(255)))?;
    socket.send_to(&case.packet(from, to)?, &SocketAddr::new(to, 0).into())?;
    println!("sent");
    Ok(())
}

/// The address that this namespace would use towards `to`.
fn own_address(to: IpAddr) -> io::Result<IpAddr> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.connect(SocketAddr::new(to, 80))?;
    Ok(socket.local_addr()?.ip())
}
