//! What is on the wire: records an interface, shows the TLS of a recording, looks for words that must not be in it.
//!
//! Recordings are pcap files: Wireshark and tcpdump read them too. Needs CAP_NET_RAW to record.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::time::SystemTime;

use etherparse::{NetSlice, SlicedPacket, TcpSlice, TransportSlice};
use nix::sys::socket::{AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, socket};

const USAGE: &str = "\
usage: wire record INTERFACE FILE
       wire show FILE PORT [ADDRESS=NAME]...   TLS of the first connection to this TCP port, record by record
       wire find FILE WHAT...                  where a text is, or of @FILE.pem its private key; exit status 1: nowhere";

/// First bytes of a pcap file in this machine's order: magic of microseconds, version 2.4, longest frame, Ethernet.
const HEAD: [u32; 6] = [0xa1b2_c3d4, 0x0004_0002, 0, 0, 262_144, 1];
/// Bytes before each frame: seconds, microseconds, bytes kept, bytes there were.
const FRAME_HEAD: usize = 16;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match &words[..] {
        ["record", interface, file] => record(interface, file).map(|()| true),
        ["show", file, port, names @ ..] => show(file, port, names).map(|()| true),
        ["find", file, wanted @ ..] if !wanted.is_empty() => find(file, wanted),
        _ => Err(USAGE.into()),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("wire: {error}");
            ExitCode::from(2)
        }
    }
}

/// Every frame of an interface, until it is killed.
fn record(interface: &str, file: &str) -> Outcome<()> {
    let index = nix::net::if_::if_nametoindex(interface).map_err(|error| format!("{interface}: {error}"))?;
    let packets = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
    let mut file = File::create(file).map_err(|error| format!("{file}: {error}"))?;
    file.write_all(HEAD.map(u32::to_ne_bytes).as_flattened())?;
    let mut buffer = vec![0; 262_144];
    loop {
        let (length, from) = recvfrom::<LinkAddr>(packets.as_raw_fd(), &mut buffer)?;
        if from.is_some_and(|from| u32::try_from(from.ifindex()) == Ok(index)) {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
            let length = u32::try_from(length)?;
            let head = [u32::try_from(now.as_secs())?, now.subsec_micros(), length, length];
            // In one piece, so that whoever reads meanwhile sees whole frames.
            file.write_all(
                &[head.map(u32::to_ne_bytes).as_flattened(), &buffer[..length as usize]].concat(),
            )?;
        }
    }
}

/// The frames of a recording of ours; one that is not whole yet is left out.
fn frames(file: &str) -> Outcome<Vec<Vec<u8>>> {
    let bytes = std::fs::read(file).map_err(|error| format!("{file}: {error}"))?;
    let rest = bytes.strip_prefix(HEAD.map(u32::to_ne_bytes).as_flattened());
    let mut rest = rest.ok_or_else(|| format!("{file}: not a recording of this machine's"))?;
    let mut frames = Vec::new();
    while let Some((head, after)) = rest.split_at_checked(FRAME_HEAD) {
        let length = u32::from_ne_bytes([head[8], head[9], head[10], head[11]]) as usize;
        let Some((frame, after)) = after.split_at_checked(length) else { break };
        frames.push(frame.to_vec());
        rest = after;
    }
    Ok(frames)
}

/// One side of a TCP connection: what it has said so far, and what comes next.
#[derive(Default)]
struct Stream {
    next: Option<u32>,
    bytes: Vec<u8>,
}

impl Stream {
    /// Takes what follows; what is sent again, or comes too early, is not needed to read a handshake.
    fn take(&mut self, sequence: u32, syn: bool, payload: &[u8]) {
        if syn {
            self.next = Some(sequence.wrapping_add(1));
        } else if self.next == Some(sequence) {
            self.next = Some(sequence.wrapping_add(u32::try_from(payload.len()).unwrap_or(0)));
            self.bytes.extend(payload);
        }
    }

    /// The next whole record (RFC 8446 section 5.1): its type, and what is in it. One that changes the cipher is empty talk
    /// since TLS 1.3 (appendix D.4), and left out.
    fn record(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            let length = usize::from(u16::from_be_bytes([*self.bytes.get(3)?, *self.bytes.get(4)?]));
            if self.bytes.len() < 5 + length {
                return None;
            }
            let record: Vec<u8> = self.bytes.drain(..5 + length).collect();
            if record[0] != 20 {
                return Some((record[0], record[5..].to_vec()));
            }
        }
    }
}

/// One TCP connection in the order of its segments: who says what, at which sequence number.
type Talk<'a> = Vec<(SocketAddr, SocketAddr, TcpSlice<'a>)>;

fn show(file: &str, port: &str, names: &[&str]) -> Outcome<()> {
    let port: u16 = port.parse()?;
    let mut known = BTreeMap::<IpAddr, &str>::new();
    for name in names {
        let (address, name) = name.split_once('=').ok_or(USAGE)?;
        known.insert(address.parse()?, name);
    }
    let name = |end: SocketAddr| match known.get(&end.ip()) {
        Some(name) => format!("{name}:{}", end.port()),
        None => end.to_string(),
    };
    let frames = frames(file)?;
    let mut lines = Lines::default();
    let mut streams = BTreeMap::<SocketAddr, Stream>::new();
    for (from, to, tcp) in busiest(&frames, port).ok_or_else(|| format!("nothing on TCP {port}"))? {
        let stream = streams.entry(from).or_default();
        stream.take(tcp.sequence_number(), tcp.syn(), tcp.payload());
        while let Some((kind, body)) = stream.record() {
            lines.take(format!("{:>16} → {:<16}", name(from), name(to)), kind, &body);
        }
    }
    lines.end();
    Ok(())
}

/// Of the connections to a port the one in which most was said: two nodes may call each other at once, and keep one.
fn busiest(frames: &[Vec<u8>], port: u16) -> Option<Talk<'_>> {
    let mut talks = BTreeMap::<[SocketAddr; 2], Talk<'_>>::new();
    for (from, to, tcp) in frames.iter().filter_map(|frame| segment(frame)) {
        if [from.port(), to.port()].contains(&port) {
            talks.entry([from.min(to), from.max(to)]).or_default().push((from, to, tcp));
        }
    }
    let bytes = |talk: &Talk<'_>| talk.iter().map(|(.., tcp)| tcp.payload().len()).sum::<usize>();
    talks.into_values().max_by_key(bytes)
}

fn segment(frame: &[u8]) -> Option<(SocketAddr, SocketAddr, TcpSlice<'_>)> {
    let sliced = SlicedPacket::from_ethernet(frame).ok()?;
    let [from, to]: [IpAddr; 2] = match sliced.net? {
        NetSlice::Ipv4(ip) => [ip.header().source_addr().into(), ip.header().destination_addr().into()],
        NetSlice::Ipv6(ip) => [ip.header().source_addr().into(), ip.header().destination_addr().into()],
        NetSlice::Arp(_) => return None,
    };
    let Some(TransportSlice::Tcp(tcp)) = sliced.transport else { return None };
    Some(((from, tcp.source_port()).into(), (to, tcp.destination_port()).into(), tcp))
}

/// What is printed: records in clear a line each, encrypted ones of one direction in one line.
#[derive(Default)]
struct Lines {
    way: String,
    count: usize,
    bytes: usize,
}

impl Lines {
    fn take(&mut self, way: String, kind: u8, body: &[u8]) {
        let clear = clear(kind, body);
        if way != self.way || clear.is_some() {
            self.end();
        }
        match clear {
            Some(said) => println!("{way}  {said}"),
            None => *self = Self { way, count: self.count + 1, bytes: self.bytes + body.len() },
        }
    }

    fn end(&mut self) {
        let Self { way, count, bytes } = std::mem::take(self);
        if count > 0 {
            println!(
                "{way}  {count} encrypted {}, {bytes} bytes",
                if count == 1 { "record" } else { "records" }
            );
        }
    }
}

/// What a record says in clear: of TLS 1.3 the two greetings and nothing else that matters.
fn clear(kind: u8, body: &[u8]) -> Option<String> {
    let version = |hello: &[u8]| {
        // The extension supported_versions (43) is how TLS 1.3 is asked for and chosen; its last two bytes are 1.3.
        let asked = hello.windows(7).any(|at| at[..3] == [0, 43, 0] && at[4..] == [2, 3, 4]);
        let chosen = hello.windows(6).any(|at| *at == [0, 43, 0, 2, 3, 4]);
        if asked || chosen { "TLS 1.3" } else { "another version of TLS" }
    };
    match (kind, body.first()) {
        (22, Some(1)) => Some(format!("ClientHello, {}, {} bytes", version(body), body.len())),
        (22, Some(2)) => Some(format!("ServerHello, {}, {} bytes", version(body), body.len())),
        (22, _) => Some(format!("a handshake message in clear, {} bytes", body.len())),
        (21, _) => Some("an alert in clear".to_owned()),
        (23, _) => None,
        (kind, _) => Some(format!("a record of type {kind} in clear")),
    }
}

/// Whether anything that is looked for is there; says of each where.
fn find(file: &str, wanted: &[&str]) -> Outcome<bool> {
    let frames = frames(file)?;
    let mut any = false;
    for what in wanted {
        let (name, bytes) = match what.strip_prefix('@') {
            Some(pem) => (format!("the private key of {pem}"), private_key(pem)?),
            None => (format!("{what:?}"), what.as_bytes().to_vec()),
        };
        if bytes.is_empty() {
            return Err("nothing to look for".into());
        }
        let found = frames.iter().filter(|frame| frame.windows(bytes.len()).any(|at| at == bytes)).count();
        println!("  {name}: in {found} of {} frames", frames.len());
        any |= found > 0;
    }
    Ok(any)
}

/// The secret number of the first private key in a PEM file. In PKCS#8 of P-256 it follows the head of an octet string of
/// 32 bytes (RFC 5915); every encoding of the key holds it.
fn private_key(file: &str) -> Outcome<Vec<u8>> {
    const HEAD: [u8; 5] = [2, 1, 1, 4, 32];
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let text = std::fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
    let missing = || format!("{file}: no private key of P-256 in it");
    let (_, body) = text.split_once("-----BEGIN PRIVATE KEY-----").ok_or_else(missing)?;
    let (body, _) = body.split_once("-----END").ok_or_else(missing)?;
    let digits: Vec<u32> = body
        .bytes()
        .filter_map(|byte| DIGITS.iter().position(|digit| *digit == byte)?.try_into().ok())
        .collect();
    let der: Vec<u8> = digits
        .chunks(4)
        .flat_map(|four| {
            let bits = four.iter().fold(0, |bits, digit| bits << 6 | digit) << (6 * (4 - four.len()));
            bits.to_be_bytes()[1..four.len()].to_vec()
        })
        .collect();
    let at = der.windows(HEAD.len()).position(|at| at == HEAD).ok_or_else(missing)? + HEAD.len();
    Ok(der.get(at..at + 32).ok_or_else(missing)?.to_vec())
}
