//! What a TLS client sends first.

use l7_proxy::codec::{HelloFault, HelloScan, MAX_HELLO};

use super::cut::Cuts;

/// Of a server, if one is named.
type Name = Option<Box<str>>;

/// The name that is accepted is the one that rustls reads, and the one that a reader finds who believes everything; in
/// whatever pieces the bytes come. Whether one was accepted.
pub fn holds(input: &[u8]) -> bool {
    let ours = find(input, Cuts::none());
    for cuts in Cuts::ways(input) {
        assert_eq!(find(input, cuts), ours, "{}", input.escape_ascii());
    }
    let Ok(Some((name, read))) = ours else { return false };
    assert!(read <= MAX_HELLO && read <= input.len());
    assert_eq!(
        find(&input[..read], Cuts::none()),
        Ok(Some((name.clone(), read))),
        "nothing behind it counts"
    );
    assert_eq!(gullible(&input[..read]), name, "{}", input.escape_ascii());
    if let Some(theirs) = rustls(&input[..read]) {
        assert_eq!(theirs, name, "{}", input.escape_ascii());
    }
    true
}

/// The name, and how much was read; faults in what comes behind are not ours.
fn find(input: &[u8], mut cuts: Cuts) -> Result<Option<(Name, usize)>, HelloFault> {
    let (mut scan, mut arrived) = (HelloScan::default(), 0);
    loop {
        let before = arrived;
        arrived = cuts.next(arrived, input.len());
        if let Some(hello) = scan.find(&input[..arrived])? {
            return Ok(Some((hello.server_name, scan.read())));
        }
        if arrived == before {
            return Ok(None);
        }
    }
}

/// The last name in the last extension of that type, with nothing checked.
fn gullible(input: &[u8]) -> Name {
    let mut message = Vec::new();
    let mut rest = input;
    while let [_, _, _, high, low, payload @ ..] = rest {
        let length = usize::from(*high) << 8 | usize::from(*low);
        message.extend_from_slice(&payload[..length.min(payload.len())]);
        rest = payload.get(length..).unwrap_or_default();
    }
    // Message, version, random number; session, suites, compression.
    let mut at = 4 + 2 + 32;
    for width in [1, 2, 1] {
        at += width + number(&message, at, width);
    }
    at += 2;
    let mut name = None;
    while at + 4 <= message.len() {
        let (kind, length) = (number(&message, at, 2), number(&message, at + 2, 2));
        at += 4;
        let extension = message.get(at..at + length).unwrap_or_default();
        let mut entry = 2;
        while kind == 0 && entry + 3 <= extension.len() {
            let length = number(extension, entry + 1, 2);
            let text = extension.get(entry + 3..entry + 3 + length).unwrap_or_default();
            name = Some(String::from_utf8_lossy(text).to_ascii_lowercase().into());
            entry += 3 + length;
        }
        at += length;
    }
    name
}

fn number(bytes: &[u8], at: usize, width: usize) -> usize {
    bytes.iter().skip(at).take(width).fold(0, |sum, byte| sum << 8 | usize::from(*byte))
}

/// The name that rustls reads; none: it does not take it for a ClientHello.
fn rustls(mut input: &[u8]) -> Option<Name> {
    let mut acceptor = rustls::server::Acceptor::default();
    while !input.is_empty() {
        acceptor.read_tls(&mut input).ok()?;
        if let Some(accepted) = acceptor.accept().ok()? {
            return Some(accepted.client_hello().server_name().map(|name| name.to_ascii_lowercase().into()));
        }
    }
    None
}
