//! Bytes said to a server as they are, each line of them on a connection of its own.

use std::io::{self, BufRead, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::PATIENCE;

/// Connections at a time.
const AT_ONCE: usize = 32;
/// Who has begun to answer and says nothing for so long has said everything.
const PAUSE: Duration = Duration::from_millis(250);
/// Bytes of an answer that are told.
const TOLD: usize = 4096;

/// Says each line of standard input, in hexadecimal, and tells what is answered, likewise; in their order.
pub(crate) fn speak(address: SocketAddr) -> io::Result<()> {
    println!("open");
    let lines: Vec<String> = io::stdin().lock().lines().collect::<io::Result<_>>()?;
    for some in lines.chunks(AT_ONCE) {
        let answers: Vec<String> = std::thread::scope(|scope| {
            let speakers: Vec<_> = some.iter().map(|line| scope.spawn(|| say(address, line))).collect();
            let answers = speakers.into_iter().map(|speaker| speaker.join().unwrap_or_default());
            answers.collect()
        });
        answers.iter().for_each(|answer| println!("{answer}"));
    }
    Ok(())
}

fn say(address: SocketAddr, line: &str) -> String {
    let bytes: Vec<u8> = line
        .as_bytes()
        .chunks(2)
        .filter_map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect();
    let Ok(mut stream) = TcpStream::connect_timeout(&address, PATIENCE * 10) else {
        return "unanswered".to_owned();
    };
    // A server that resets has said what it wanted to.
    let _ = stream.set_read_timeout(Some(PATIENCE)).and_then(|()| stream.write_all(&bytes));
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while answer.len() < TOLD
        && let Ok(count @ 1..) = stream.read(&mut buffer)
    {
        answer.extend_from_slice(&buffer[..count]);
        if stream.set_read_timeout(Some(PAUSE)).is_err() {
            break;
        }
    }
    answer.iter().take(TOLD).map(|byte| format!("{byte:02x}")).collect()
}
