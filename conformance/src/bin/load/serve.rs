//! The server: one connection at a time, whose first byte says what it is for.

use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};

use crate::drive::{BLOCK, CRR, RR, STREAM};

/// Serves both families until standard input ends.
pub(crate) fn serve(port: u16) -> io::Result<()> {
    let listener = TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))?;
    println!("serving");
    std::thread::spawn(|| {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        std::process::exit(0);
    });
    let mut block = vec![0; BLOCK];
    for stream in listener.incoming() {
        // A client that is gone by now is its own business.
        let _ = answer(&mut stream?, &mut block);
    }
    Ok(())
}

fn answer(stream: &mut TcpStream, block: &mut [u8]) -> io::Result<()> {
    let mut word = [0];
    stream.read_exact(&mut word)?;
    match word {
        CRR => stream.write_all(&word),
        RR => {
            stream.set_nodelay(true)?;
            loop {
                stream.write_all(&word)?;
                stream.read_exact(&mut word)?;
            }
        }
        STREAM => {
            let mut bytes = 0;
            while let length @ 1.. = stream.read(block)? {
                bytes += length as u64;
            }
            stream.write_all(&bytes.to_be_bytes())
        }
        _ => Ok(()),
    }
}
