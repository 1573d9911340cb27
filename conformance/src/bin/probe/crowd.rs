//! Many connections at once, and when the last of their words arrived.

use std::io::{self, BufRead, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use etherparse::{SlicedPacket, TransportSlice};
use socket2::{Domain, Protocol, Socket, Type};

use crate::PATIENCE;
use crate::raw::EVERY_PROTOCOL;

/// Between two words of one busy connection; with a few hundred of them that is a word every few microseconds.
const PAUSE: Duration = Duration::from_millis(2);

/// Microseconds that `connect` takes.
pub(crate) fn time(address: SocketAddr) -> io::Result<String> {
    let begin = Instant::now();
    let stream = TcpStream::connect_timeout(&address, PATIENCE * 10)?;
    let taken = begin.elapsed();
    drop(stream);
    Ok(format!("{:.1}", taken.as_secs_f64() * 1e6))
}

/// So many connections. Of a busy crowd every other one says a word again and again, without waiting for answers; nobody
/// else says anything. Each line of standard input asks how many are alive.
pub(crate) fn crowd(address: SocketAddr, count: usize, is_busy: bool) -> io::Result<()> {
    let connect = |_| {
        let stream = TcpStream::connect_timeout(&address, PATIENCE * 10)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    };
    let streams: Vec<TcpStream> = (0..count).map(connect).collect::<io::Result<_>>()?;
    let busy: Vec<TcpStream> =
        streams.iter().step_by(2).filter(|_| is_busy).map(TcpStream::try_clone).collect::<Result<_, _>>()?;
    std::thread::spawn(move || {
        loop {
            for mut stream in &busy {
                // What is dead or full says so when it is asked.
                let _ = stream.write(b"x");
                let _ = stream.read(&mut [0; 256]);
            }
            std::thread::park_timeout(PAUSE);
        }
    });
    println!("open");
    for line in io::stdin().lock().lines() {
        line?;
        let alive = streams.iter().filter(|stream| is_alive(stream)).count();
        println!("{alive} alive, {} dead", count - alive);
    }
    Ok(())
}

/// Whether a read would wait, or give something.
fn is_alive(mut stream: &TcpStream) -> bool {
    match stream.read(&mut [0; 256]) {
        Ok(length) => length > 0,
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
    }
}

/// Watches what arrives in this network namespace for a TCP port, payload only. Each line of standard input asks when the
/// last such packet came (nanoseconds since 1970, 0: none did) and how many there were.
pub(crate) fn last(port: u16) -> io::Result<()> {
    static LAST: AtomicU64 = AtomicU64::new(0);
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mut socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(EVERY_PROTOCOL)))?;
    std::thread::spawn(move || {
        let mut buffer = [0; 65536];
        while let Ok(length) = socket.read(&mut buffer) {
            if is_word(&buffer[..length], port) {
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                LAST.store(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
                COUNT.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    println!("open");
    for line in io::stdin().lock().lines() {
        line?;
        println!("{} {}", LAST.load(Ordering::Relaxed), COUNT.load(Ordering::Relaxed));
    }
    Ok(())
}

fn is_word(packet: &[u8], port: u16) -> bool {
    let transport = SlicedPacket::from_ip(packet).ok().and_then(|sliced| sliced.transport);
    match transport {
        Some(TransportSlice::Tcp(tcp)) => {
            tcp.destination_port() == port && !tcp.rst() && !tcp.payload().is_empty()
        }
        _ => false,
    }
}
