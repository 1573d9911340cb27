//! WebSocket (RFC 6455) over HTTP/1.1: the handshake of the document's own example, masked frames one way, plain ones the other.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpStream};

use crate::client::connect;
use crate::requests::Asks;
use crate::serve::listen;
use crate::{PATIENCE, word};

/// The key of 1.3, and what answers it.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
const TEXT: u8 = 1;
const CLOSE: u8 = 8;

/// What is said comes back; a close is answered with a close.
pub(crate) fn serve(port: u16) -> io::Result<()> {
    let listener = listen(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))?;
    println!("serving");
    for stream in listener.incoming() {
        let stream = stream?;
        std::thread::spawn(move || converse(&stream));
    }
    Ok(())
}

fn converse(stream: &TcpStream) -> io::Result<()> {
    let (mut writer, mut reader) = (stream, BufReader::new(stream));
    let (_, lines) = head(&mut reader)?;
    if !lines.iter().any(|line| line == &format!("sec-websocket-key: {KEY}")) {
        return write!(writer, "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
    }
    write!(
        writer,
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: {ACCEPT}\r\n\r\n"
    )?;
    loop {
        let (kind, said) = read(&mut reader)?;
        write_frame(&mut writer, kind, &said, false)?;
        if kind == CLOSE {
            return Ok(());
        }
    }
}

/// Opens a socket on which each request is a message of its own that must come back as it went.
pub(crate) fn repeat(address: SocketAddr, path: &str) -> io::Result<Asks> {
    let (stream, mut reader) = open(address, path)?.map_err(io::Error::other)?;
    let mut number = 0u64;
    Ok(Box::new(move |_| {
        number += 1;
        let said = number.to_string().into_bytes();
        write_frame(&mut &stream, TEXT, &said, true)?;
        match read(&mut reader)? {
            (TEXT, back) if back == said => Ok(101),
            (kind, back) => {
                Err(io::Error::other(format!("frame {number} came back as {kind} {}", back.escape_ascii())))
            }
        }
    }))
}

type Open = (TcpStream, BufReader<TcpStream>);

/// A socket, or the status that was answered instead.
fn open(address: SocketAddr, path: &str) -> io::Result<Result<Open, String>> {
    let stream = connect(address)?;
    stream.set_read_timeout(Some(PATIENCE * 10))?;
    let (mut writer, mut reader) = (&stream, BufReader::new(stream.try_clone()?));
    write!(
        writer,
        "GET {path} HTTP/1.1\r\nhost: {address}\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\
         sec-websocket-key: {KEY}\r\nsec-websocket-version: 13\r\n\r\n"
    )?;
    let (status, lines) = head(&mut reader)?;
    let accepted = lines.iter().any(|line| line.ends_with(ACCEPT));
    Ok(match status.split(' ').nth(1) {
        Some("101") if accepted => Ok((stream, reader)),
        other => Err(other.unwrap_or("without a status").to_owned()),
    })
}

/// A socket that stays. Says `open` when it has been opened, else the status that was answered instead.
pub(crate) fn hold(address: SocketAddr, path: &str) -> io::Result<()> {
    let (stream, mut reader) = match open(address, path)? {
        Ok(open) => open,
        Err(status) => {
            println!("open {status}");
            return Ok(());
        }
    };
    println!("open");
    let mut writer = &stream;
    for line in io::stdin().lock().lines() {
        let line = line?;
        let kind = if line == "close" { CLOSE } else { TEXT };
        let back = write_frame(&mut writer, kind, line.as_bytes(), true).and_then(|()| read(&mut reader));
        match back {
            Ok(back) if back == (kind, line.into_bytes()) => match kind {
                CLOSE => println!("{}", end(&mut reader)),
                _ => println!("answered"),
            },
            Ok(_) => println!("garbled"),
            Err(error) => println!("{}", word(&error)),
        }
    }
    Ok(())
}

/// Whether the connection ends behind a close.
fn end(reader: &mut impl Read) -> &'static str {
    match reader.read(&mut [0]) {
        Ok(0) => "closed",
        Ok(_) => "garbled",
        Err(error) => word(&error),
    }
}

/// First line of a message, and all its lines up to the empty one.
fn head(reader: &mut impl BufRead) -> io::Result<(String, Vec<String>)> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end().to_owned();
        if line.is_empty() {
            let first = lines.first().cloned().unwrap_or_default();
            return Ok((first, lines));
        }
        lines.push(line);
    }
}

/// Short ones: up to 125 bytes.
fn write_frame(writer: &mut impl Write, kind: u8, said: &[u8], masked: bool) -> io::Result<()> {
    let length = u8::try_from(said.len()).ok().filter(|length| *length < 126);
    let length = length.ok_or_else(|| io::Error::other("at most 125 bytes"))?;
    let mut frame = vec![0x80 | kind, length | if masked { 0x80 } else { 0 }];
    if masked {
        frame.extend(MASK);
    }
    let mask = MASK.into_iter().cycle();
    frame.extend(said.iter().zip(mask).map(|(byte, mask)| if masked { byte ^ mask } else { *byte }));
    writer.write_all(&frame)
}

fn read(reader: &mut impl Read) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 2];
    reader.read_exact(&mut head)?;
    let [kind, length] = head;
    let mut mask = [0; 4];
    if length & 0x80 != 0 {
        reader.read_exact(&mut mask)?;
    }
    let mut said = vec![0; usize::from(length & 0x7f)];
    reader.read_exact(&mut said)?;
    let masks = mask.into_iter().cycle();
    Ok((kind & 0x0f, said.iter().zip(masks).map(|(byte, mask)| byte ^ mask).collect()))
}
