//! One request after the other on one connection, to see since when they are judged by another rule.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use conformance::pulse::now;

use super::h1::Messages;

/// Time between an answer and the next request.
const BEAT: Duration = Duration::from_micros(200);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Says `STATUS NANOSECONDS` of the first request, and of each that is answered by another status than the one before: when
/// it was sent, since 1970. Says `broken` and goes on where a connection ends.
pub(crate) fn pulse(to: SocketAddr, path: &str) -> io::Result<()> {
    super::end_with_input();
    nix::sys::prctl::set_timerslack(1)?;
    println!("open");
    let request = format!("GET {path} HTTP/1.1\r\nHost: server\r\n\r\n");
    let mut last = 0;
    loop {
        let Err(_) = ask(to, request.as_bytes(), &mut last) else { return Ok(()) };
        println!("broken {}", now());
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

fn ask(to: SocketAddr, request: &[u8], last: &mut u16) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let (mut messages, mut buffer) = (Messages::default(), [0; 4096]);
    loop {
        let began = now();
        stream.write_all(request)?;
        let mut status = None;
        while status.is_none() {
            let count = stream.read(&mut buffer)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            messages
                .take(&buffer[..count], |message| status = Some(message.status))
                .map_err(io::Error::other)?;
        }
        if let Some(status) = status
            && status != *last
        {
            *last = status;
            println!("{status} {began}");
        }
        std::thread::park_timeout(BEAT);
    }
}
