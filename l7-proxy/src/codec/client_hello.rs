//! The first message of a TLS client, without I/O: which server it names.
//!
//! Promise: what is accepted has one reading. The message is put together from its records however they and the segments of
//! TCP cut it, each byte looked at once; whatever another parser might read differently, or a server might take for another
//! name, is a [`HelloFault`]. Nothing is decrypted: of an encrypted ClientHello (ECH) the outer name is what is read.

use mesh::l7::is_said;

/// The longest ClientHello, and the most bytes of records that it may come in.
pub const MAX_HELLO: usize = 16 << 10;

/// Why it is none, or has no single reading.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "`text` says it")]
pub enum HelloFault {
    Record,
    NotHello,
    TooLong,
    Malformed,
    SeveralNames,
    NameType,
    Name,
}

impl HelloFault {
    /// In a few words, as flows say it.
    pub fn text(self) -> &'static str {
        match self {
            Self::Record => "malformed TLS record",
            Self::NotHello => "TLS that does not begin with a ClientHello",
            Self::TooLong => "ClientHello of more than 16 KB",
            Self::Malformed => "malformed ClientHello",
            Self::SeveralNames => "more than one server name",
            Self::NameType => "server name of an unknown type",
            Self::Name => "server name that is no name of DNS",
        }
    }
}

/// What a ClientHello says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientHello {
    /// The server's name, in lower case; `None`: it names none.
    pub server_name: Option<Box<str>>,
}

/// Looks for a ClientHello at the begin of what a client sends.
#[derive(Debug, Default)]
pub struct HelloScan {
    /// Where the next record begins.
    at: usize,
    /// What the records before it carried.
    message: Vec<u8>,
}

pub(super) const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;
/// What a record may carry; encrypted, a little more.
const MAX_RECORD: usize = (1 << 14) + 256;
/// Type, version and length of a record; type and length of a message of the handshake.
pub(super) const RECORD: usize = 5;
const MESSAGE: usize = 4;

impl HelloScan {
    /// How many bytes the records have taken that were read.
    pub fn read(&self) -> usize {
        self.at
    }

    /// Reads on in all that has come so far; `None`: more is needed.
    pub fn find(&mut self, input: &[u8]) -> Result<Option<ClientHello>, HelloFault> {
        loop {
            if let Some(length) = self.length()?
                && let Some(body) = self.message.get(MESSAGE..MESSAGE + length)
            {
                // What follows in the same record would be read under keys that are not there yet.
                if self.message.len() > MESSAGE + length {
                    return Err(HelloFault::Malformed);
                }
                return parse(body).map(Some);
            }
            let left = input.get(self.at..).unwrap_or_default();
            let Some(length) = record_of(HANDSHAKE, left)? else { return Ok(None) };
            if self.at + RECORD + length > MAX_HELLO {
                return Err(HelloFault::TooLong);
            }
            let Some(payload) = left.get(RECORD..RECORD + length) else { return Ok(None) };
            self.message.extend_from_slice(payload);
            self.at += RECORD + length;
        }
    }

    /// The length that the message says it has, once it is known that it is a ClientHello.
    fn length(&self) -> Result<Option<usize>, HelloFault> {
        match self.message.as_slice() {
            [kind, ..] if *kind != CLIENT_HELLO => Err(HelloFault::NotHello),
            [_, high, middle, low, ..] => {
                let length = usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low);
                if length > MAX_HELLO { Err(HelloFault::TooLong) } else { Ok(Some(length)) }
            }
            _ => Ok(None),
        }
    }
}

/// How much the record of this type that begins here carries; `None`: its header has not come yet.
pub(super) fn record_of(wanted: u8, bytes: &[u8]) -> Result<Option<usize>, HelloFault> {
    match bytes {
        [kind, ..] if *kind != wanted => Err(HelloFault::Record),
        [_, major, ..] if *major != 3 => Err(HelloFault::Record),
        [_, _, minor, ..] if *minor > 4 => Err(HelloFault::Record),
        [_, _, _, high, low, ..] => match usize::from(*high) << 8 | usize::from(*low) {
            0 if wanted == HANDSHAKE => Err(HelloFault::Record),
            length if length > MAX_RECORD => Err(HelloFault::Record),
            length => Ok(Some(length)),
        },
        _ => Ok(None),
    }
}

/// Bytes that are taken away from the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], HelloFault> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(HelloFault::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    /// A number of so many bytes, the highest first.
    fn number(&mut self, bytes: usize) -> Result<usize, HelloFault> {
        Ok(self.take(bytes)?.iter().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    }

    /// What follows its own length, which takes so many bytes.
    fn vector(&mut self, bytes: usize) -> Result<Reader<'a>, HelloFault> {
        let length = self.number(bytes)?;
        self.take(length).map(Reader)
    }
}

/// RFC 8446, 4.1.2, and RFC 5246, 7.4.1.2, where extensions may be missing.
fn parse(body: &[u8]) -> Result<ClientHello, HelloFault> {
    let mut body = Reader(body);
    let [major, _] = body.take(2)? else { return Err(HelloFault::Malformed) };
    let _random = body.take(32)?;
    let session = body.vector(1)?;
    let suites = body.vector(2)?;
    let compression = body.vector(1)?;
    let is_sound = *major == 3
        && session.0.len() <= 32
        && !suites.0.is_empty()
        && suites.0.len().is_multiple_of(2)
        && !compression.0.is_empty();
    if !is_sound {
        return Err(HelloFault::Malformed);
    }
    let mut server_name = None;
    if !body.0.is_empty() {
        let mut extensions = body.vector(2)?;
        while !extensions.0.is_empty() {
            let kind = extensions.number(2)?;
            let extension = extensions.vector(2)?;
            if kind == usize::from(SERVER_NAME) && server_name.replace(name(extension)?).is_some() {
                return Err(HelloFault::SeveralNames);
            }
        }
    }
    if !body.0.is_empty() {
        return Err(HelloFault::Malformed);
    }
    Ok(ClientHello { server_name })
}

/// RFC 6066, 3: a list of names, of which there may be one of each type, and there is one type.
fn name(mut extension: Reader<'_>) -> Result<Box<str>, HelloFault> {
    let mut list = extension.vector(2)?;
    if !extension.0.is_empty() {
        return Err(HelloFault::Malformed);
    }
    if list.number(1)? != usize::from(HOST_NAME) {
        return Err(HelloFault::NameType);
    }
    let name = list.vector(2)?;
    if !list.0.is_empty() {
        return Err(HelloFault::SeveralNames);
    }
    let text = std::str::from_utf8(name.0).ok().filter(|text| is_said(text)).ok_or(HelloFault::Name)?;
    Ok(text.to_ascii_lowercase().into())
}
