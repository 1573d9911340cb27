//! What a TLS client may send behind its ClientHello, until it is known that no second one follows.
//!
//! A server may ask for another ClientHello (HelloRetryRequest), and some take their name from that one. So records of the
//! handshake wait until the server has answered; if it asks, what follows must be a ClientHello of the same name. Everything
//! else passes at once, and after that nothing is looked at.

use super::client_hello::{HANDSHAKE, HelloScan, RECORD, record_of};

/// The random number of a ServerHello that is a HelloRetryRequest: RFC 8446, 4.1.3.
const RETRY: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91, 0xc2,
    0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];
/// Record, message and version before it.
const BEFORE: usize = RECORD + 4 + 2;
const SERVER_HELLO: u8 = 2;

#[derive(Debug)]
enum State {
    /// The server has not answered.
    Unanswered,
    /// It has asked for another ClientHello, of which this has come.
    Asked(HelloScan),
    /// No other follows.
    Open,
}

/// Holds a client back until no second ClientHello can name another server than the first.
#[derive(Debug)]
pub struct SecondHello {
    name: Option<Box<str>>,
    /// How much, of what comes next, may pass; more than has come, maybe.
    passes: usize,
    state: State,
}

impl SecondHello {
    /// Behind a ClientHello of this name, which took so many bytes that are still to be passed on.
    pub fn new(name: Option<Box<str>>, first: usize) -> Self {
        Self { name, passes: first, state: State::Unanswered }
    }

    /// Whether nothing need be looked at any more.
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open)
    }

    /// So much has been passed on to the server.
    pub fn passed(&mut self, count: usize) {
        self.passes = self.passes.saturating_sub(count);
    }

    /// How much of what the client has sent may be passed on.
    pub fn may_pass(&mut self, input: &[u8]) -> Result<usize, &'static str> {
        loop {
            let left = match input.get(self.passes..) {
                _ if self.is_open() => return Ok(input.len()),
                Some(left) if !left.is_empty() => left,
                _ => return Ok(input.len()),
            };
            match (left.first(), &mut self.state) {
                (Some(&HANDSHAKE), State::Asked(scan)) => match scan.find(left) {
                    Ok(None) => return Ok(self.passes),
                    Ok(Some(hello)) if hello.server_name == self.name => self.state = State::Open,
                    Ok(Some(_)) => return Err("another server name in the second ClientHello"),
                    Err(fault) => return Err(fault.text()),
                },
                (Some(&HANDSHAKE), _) => return Ok(self.passes),
                (kind, _) => {
                    let kind = kind.copied().unwrap_or_default();
                    match record_of(kind, left).map_err(super::HelloFault::text)? {
                        Some(length) => self.passes += RECORD + length,
                        None => return Ok(self.passes),
                    }
                }
            }
        }
    }

    /// Looks at the first of what the server sends; whether that suffices.
    pub fn hear(&mut self, output: &[u8]) -> bool {
        let State::Unanswered = self.state else { return true };
        let is_hello = |bytes: &[u8]| bytes.first().is_none_or(|kind| *kind == SERVER_HELLO);
        match output {
            [] => return false,
            [HANDSHAKE, rest @ ..] if is_hello(rest.get(RECORD - 1..).unwrap_or_default()) => {
                let Some(random) = output.get(BEFORE..BEFORE + RETRY.len()) else { return false };
                // One that is cut within its random number could hide it.
                let length = match output {
                    [_, _, _, high, low, ..] => usize::from(*high) << 8 | usize::from(*low),
                    _ => 0,
                };
                let is_asked = random == RETRY || RECORD + length < BEFORE + RETRY.len();
                self.state = if is_asked { State::Asked(HelloScan::default()) } else { State::Open };
            }
            _ => self.state = State::Open,
        }
        true
    }
}
