//! A pulse: datagrams to an echo server at a steady rate, to see to the fraction of a millisecond when policy opens or
//! closes the way.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Time between two datagrams: the resolution.
const BEAT: Duration = Duration::from_micros(200);
/// So many unanswered in a row mean closed; an echo on one machine takes a fraction of this.
const PATIENCE: u64 = 100;

/// What a pulse tells: since when (nanoseconds since 1970, by the sending of the first datagram concerned).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// Datagrams are answered.
    Open(u128),
    /// Datagrams are not answered.
    Closed(u128),
}

/// Sends until the reader of `tell` has gone away.
pub fn pulse(to: SocketAddr, mut tell: impl FnMut(Change) -> io::Result<()>) -> io::Result<()> {
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(BEAT))?;
    // Send time of every datagram, by its number.
    let mut sent: Vec<u128> = Vec::new();
    let (mut answered, mut open) = (0u64, false);
    loop {
        let number = sent.len() as u64;
        sent.push(now());
        // A refusal (ICMP) is as much an answer to the question as silence: the next receive reports it.
        let _ = socket.send(&number.to_be_bytes());
        let mut echo = [0; 8];
        match socket.recv(&mut echo) {
            Ok(8) => {
                let heard = u64::from_be_bytes(echo);
                if !open && let Some(since) = sent.get(heard as usize) {
                    tell(Change::Open(*since))?;
                    open = true;
                }
                answered = answered.max(heard + 1);
            }
            Ok(_) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::ConnectionRefused
                ) => {}
            Err(error) => return Err(error),
        }
        if open
            && number >= answered + PATIENCE
            && let Some(since) = sent.get(answered as usize)
        {
            tell(Change::Closed(*since))?;
            open = false;
        }
    }
}

/// Nanoseconds since 1970, the same clock in every namespace.
pub fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()
}
