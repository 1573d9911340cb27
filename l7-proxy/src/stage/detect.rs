//! *detect*: what a client speaks, by its first bytes.

use crate::codec::MAX_METHOD;

/// What a connection carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    /// HTTP/1.
    Http1,
    /// HTTP/2 without TLS.
    Http2,
    /// TLS.
    Tls,
    /// Something else.
    Unknown,
}

impl Protocol {
    /// Why it does not pass where HTTP is asked for; nobody asks it of what is HTTP.
    pub fn refusal(self) -> &'static str {
        match self {
            Self::Http1 => "HTTP/1",
            Self::Http2 => "HTTP/2",
            Self::Tls => "TLS where HTTP is required",
            Self::Unknown => "not HTTP",
        }
    }
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Decides as soon as the bytes do; `None`: more are needed. Some thirty bytes always suffice.
pub fn detect(bytes: &[u8]) -> Option<Protocol> {
    let common = PREFACE.iter().zip(bytes).take_while(|(known, byte)| known == byte).count();
    // "PRI" is a token, so nothing of the preface is read as HTTP/1 while it may still be one.
    if common == PREFACE.len() {
        return Some(Protocol::Http2);
    }
    if common == bytes.len() {
        return None;
    }
    let bytes = match bytes {
        [0x16] | [b'\r'] | [b'\r', b'\n'] => return None,
        [0x16, 3, ..] => return Some(Protocol::Tls),
        [b'\r', b'\n', rest @ ..] => rest,
        rest => rest,
    };
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let length = bytes.iter().take(MAX_METHOD + 1).take_while(|byte| is_token(byte)).count();
    match bytes.get(length) {
        None if length <= MAX_METHOD => None,
        Some(b' ') if (1..=MAX_METHOD).contains(&length) => Some(Protocol::Http1),
        _ => Some(Protocol::Unknown),
    }
}
