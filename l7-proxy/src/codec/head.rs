//! What request and response heads have in common: where they end, and their header lines.

use super::{Fault, MAX_ADDED, MAX_HEAD, MAX_HEADERS};

/// A part of a head, by offsets into the bytes that it was read from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Span {
    /// First byte.
    pub start: u32,
    /// Behind the last byte.
    pub end: u32,
}

impl Span {
    /// Of a part of `whole`, which is not longer than a head may be.
    pub(super) fn of(part: &[u8], whole: &[u8]) -> Self {
        let start = (part.as_ptr().addr().wrapping_sub(whole.as_ptr().addr())) as u32;
        Self { start, end: start.wrapping_add(part.len() as u32) }
    }

    /// The bytes. Nothing if these are not the ones it was made of.
    pub fn bytes(self, whole: &[u8]) -> &[u8] {
        whole.get(self.start as usize..self.end as usize).unwrap_or_default()
    }
}

/// A header line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Header {
    /// Its name, as it was written. The line begins with it.
    pub name: Span,
    /// Its value, without blanks around it.
    pub value: Span,
}

/// Looks for the end of a head in bytes that trickle in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Scan {
    /// Where the head begins: behind the one empty line that may precede it.
    start: usize,
    /// Where the line under way begins.
    line: usize,
    /// What has been looked at.
    seen: usize,
}

impl Scan {
    /// Begin and end of the head once it is all there. `input` is what has come so far, each time from the same byte on.
    pub fn find(&mut self, input: &[u8]) -> Result<Option<(usize, usize)>, Fault> {
        loop {
            let rest = input.get(self.seen..).unwrap_or_default();
            let Some(offset) = memchr::memchr(b'\n', rest) else {
                self.seen = input.len();
                let is_too_long = self.seen.saturating_sub(self.start) >= MAX_HEAD;
                return if is_too_long { Err(Fault::HeadTooLong) } else { Ok(None) };
            };
            let end = self.seen + offset;
            if end == self.line || input.get(end - 1) != Some(&b'\r') {
                return Err(Fault::BareLineFeed);
            }
            self.seen = end + 1;
            if end + 1 - self.start > MAX_HEAD {
                return Err(Fault::HeadTooLong);
            }
            let is_empty = end - 1 == self.line;
            let is_first = self.line == self.start;
            self.line = end + 1;
            match (is_empty, is_first) {
                (false, _) => {}
                (true, false) => return Ok(Some((self.start, end + 1))),
                (true, true) if self.start == 0 => self.start = end + 1,
                (true, true) => return Err(Fault::LeadingLines),
            }
        }
    }
}

/// Room for what httparse finds: in a head as it came, or in one with lines added.
pub(super) type Found<'a, const MOST: usize = MAX_HEADERS> =
    [std::mem::MaybeUninit<httparse::Header<'a>>; MOST];
/// The most of a head with lines added.
pub(super) const MAX_EDITED: usize = MAX_HEADERS + MAX_ADDED;

/// What httparse says, by our names. `head` is looked at again, to tell apart what it does not.
pub(super) fn fault(error: httparse::Error, head: &[u8], line: Fault) -> Fault {
    match error {
        httparse::Error::HeaderName => name_fault(head),
        httparse::Error::HeaderValue => Fault::HeaderValue,
        httparse::Error::NewLine if is_control_in_headers(head) => Fault::HeaderValue,
        httparse::Error::TooManyHeaders => Fault::TooManyHeaders,
        httparse::Error::Version => Fault::Version,
        httparse::Error::NewLine | httparse::Error::Status | httparse::Error::Token => line,
    }
}

/// A carriage return inside a line that is not the first.
fn is_control_in_headers(head: &[u8]) -> bool {
    let mut lines = head.split(|byte| *byte == b'\n');
    let first = lines.next().unwrap_or_default();
    let body = |line: &[u8]| line.strip_suffix(b"\r").unwrap_or(line).contains(&b'\r');
    !body(first) && lines.any(body)
}

fn name_fault(head: &[u8]) -> Fault {
    for line in head.split(|byte| *byte == b'\n').skip(1) {
        if matches!(line.first(), Some(b' ' | b'\t')) {
            return Fault::Folded;
        }
        let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
        if line.contains(&b':') && matches!(name.last(), Some(b' ' | b'\t')) {
            return Fault::SpaceBeforeColon;
        }
    }
    Fault::HeaderName
}

/// Whether the value stands on its line as everybody writes it: behind at most one blank, followed by the line's end. What
/// frames a message is not accepted otherwise: servers differ in what they strip.
pub(super) fn is_plain(head: &[u8], header: Header) -> bool {
    let before = head.get(header.name.end as usize..header.value.start as usize);
    let after = head.get(header.value.end as usize..);
    matches!(before, Some(b":" | b": ")) && after.is_some_and(|after| after.starts_with(b"\r\n"))
}

/// Elements of a comma-separated list, without blanks.
pub(crate) fn elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|element| !element.is_empty())
}

/// A Content-Length: digits and nothing else.
pub(super) fn length(value: &[u8]) -> Result<u64, Fault> {
    if value.is_empty() || value.len() > 19 {
        return Err(Fault::Length);
    }
    value.iter().try_fold(0u64, |sum, byte| match byte {
        b'0'..=b'9' => Ok(sum * 10 + u64::from(byte - b'0')),
        _ => Err(Fault::Length),
    })
}

/// Lengths and codings of a head, counted.
#[derive(Clone, Copy, Default)]
pub(super) struct Lengths {
    length: Option<u64>,
    is_coded: bool,
}

impl Lengths {
    /// Takes note of a header line of a request if it says how long the body is.
    pub(super) fn note(&mut self, head: &[u8], header: Header) -> Result<(), Fault> {
        let name = header.name.bytes(head);
        if name.eq_ignore_ascii_case(b"content-length") {
            if self.length.is_some() {
                return Err(Fault::LengthTwice);
            }
            if !is_plain(head, header) {
                return Err(Fault::Length);
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") && !is_plain(head, header) {
            return Err(Fault::Coding);
        }
        self.note_answers(head, header)
    }

    /// The same of an answer: blanks around the value, and the same length twice, are what servers send, and all clients
    /// read them alike.
    pub(super) fn note_answers(&mut self, head: &[u8], header: Header) -> Result<(), Fault> {
        let name = header.name.bytes(head);
        let value = header.value.bytes(head);
        if name.eq_ignore_ascii_case(b"content-length") {
            let length = length(value.trim_ascii())?;
            if self.length.is_some_and(|before| before != length) {
                return Err(Fault::LengthTwice);
            }
            self.length = Some(length);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if self.is_coded || !value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                return Err(Fault::Coding);
            }
            self.is_coded = true;
        }
        Ok(())
    }

    /// The length, and whether the body is chunked; never both.
    pub(super) fn judge(self, minor: u8) -> Result<(Option<u64>, bool), Fault> {
        match (self.length, self.is_coded) {
            (Some(_), true) => Err(Fault::LengthAndCoding),
            (None, true) if minor == 0 => Err(Fault::CodingInOldVersion),
            both => Ok(both),
        }
    }
}

/// Options of `Connection`, of one message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Options {
    pub(super) close: bool,
    pub(super) keep_alive: bool,
    pub(super) upgrade: bool,
}

/// Options that say something of this connection, or name headers that only ever do.
const HOP_BY_HOP: [&[u8]; 8] = [
    b"close",
    b"keep-alive",
    b"upgrade",
    b"te",
    b"trailer",
    b"http2-settings",
    b"proxy-connection",
    b"proxy-authenticate",
];

/// Reads the options of a request. One that names another header of this message would make the next hop take that header
/// away.
pub(super) fn options(head: &[u8], headers: &[Header]) -> Result<Options, Fault> {
    let options = options_of(head, headers);
    let of = |header: &&Header| header.name.bytes(head).eq_ignore_ascii_case(b"connection");
    for option in headers.iter().filter(of).flat_map(|header| elements(header.value.bytes(head))) {
        let is_known = HOP_BY_HOP.iter().any(|known| option.eq_ignore_ascii_case(known));
        let names = |other: &Header| other.name.bytes(head).eq_ignore_ascii_case(option);
        if !is_known && headers.iter().any(names) {
            return Err(Fault::ConnectionOption);
        }
    }
    Ok(options)
}

/// Reads the options, whatever they name: those of an answer are between its server and its client.
pub(super) fn options_of(head: &[u8], headers: &[Header]) -> Options {
    let mut options = Options::default();
    for header in headers {
        let name = header.name.bytes(head);
        if name.len() != 10 || !name.eq_ignore_ascii_case(b"connection") {
            continue;
        }
        for option in elements(header.value.bytes(head)) {
            options.close |= option.eq_ignore_ascii_case(b"close");
            options.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
            options.upgrade |= option.eq_ignore_ascii_case(b"upgrade");
        }
    }
    options
}
