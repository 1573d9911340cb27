//! Bodies: how many of the bytes at hand belong to the message.

use super::{
    Fault, Framing, MAX_CHUNK_LINE, MAX_EXTENSIONS, MAX_TRAILER_LINES, MAX_TRAILERS, Scan, is_look_alike,
};

/// How much of a body is still to come. Only what [`Body::advance`] has counted may be passed on; lines of a chunked body
/// are counted whole or not at all, so what is refused has not been forwarded in part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Body {
    state: State,
    extensions: usize,
    /// Blanks around the size of a chunk are what servers send, and all clients read them alike.
    takes_blanks: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Done,
    Length(u64),
    Close,
    ChunkLine,
    Chunk(u64),
    ChunkEnd,
    Trailers(Scan),
}

impl Default for Body {
    /// None.
    fn default() -> Self {
        Self::new(Framing::None)
    }
}

impl Body {
    /// At the beginning of an answer's body.
    pub fn answer(framing: Framing) -> Self {
        Self { takes_blanks: true, ..Self::new(framing) }
    }

    /// At the beginning of a request's body.
    pub fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::None | Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::ChunkLine,
            Framing::Close => State::Close,
        };
        Self { state, extensions: 0, takes_blanks: false }
    }

    /// Whether all of it has been counted.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Whether it ends with the connection.
    pub fn ends_by_close(&self) -> bool {
        self.state == State::Close
    }

    /// How many bytes of `input`, which follow what was counted before, belong to it. `judged` are names of headers that no
    /// trailer may have. If it is neither done nor a fault, more input is needed: at least [`MAX_TRAILERS`] must have room.
    pub fn advance(&mut self, input: &[u8], judged: &[Box<str>]) -> Result<usize, Fault> {
        let mut at = 0;
        loop {
            let rest = input.get(at..).unwrap_or_default();
            let before = self.state;
            let counted = match &mut self.state {
                State::Done => return Ok(at),
                State::Close => return Ok(input.len()),
                State::Length(left) | State::Chunk(left) => {
                    let part = (rest.len() as u64).min(*left);
                    *left -= part;
                    if *left == 0 {
                        let is_chunk = matches!(before, State::Chunk(_));
                        self.state = if is_chunk { State::ChunkEnd } else { State::Done };
                    }
                    part as usize
                }
                State::ChunkLine => self.chunk_line(rest)?,
                State::ChunkEnd => match rest {
                    [] | [b'\r'] => 0,
                    [b'\r', b'\n', ..] => {
                        self.state = State::ChunkLine;
                        2
                    }
                    _ => return Err(Fault::ChunkEnd),
                },
                State::Trailers(scan) => match trailers(scan, rest, judged)? {
                    Some(length) => {
                        self.state = State::Done;
                        length
                    }
                    None => 0,
                },
            };
            at += counted;
            if counted == 0 {
                return Ok(at);
            }
        }
    }

    fn chunk_line(&mut self, rest: &[u8]) -> Result<usize, Fault> {
        let window = rest.get(..MAX_CHUNK_LINE).unwrap_or(rest);
        // Said of the first byte, whether or not the rest of the line is there.
        let is_begin = |byte: &u8| byte.is_ascii_hexdigit() || self.takes_blanks && is_blank(byte);
        if !window.first().is_none_or(is_begin) {
            return Err(Fault::ChunkSize);
        }
        let Some(end) = memchr::memchr(b'\n', window) else {
            return if window.len() == MAX_CHUNK_LINE { Err(Fault::ChunkExtension) } else { Ok(0) };
        };
        let line = window.get(..end).and_then(|line| line.strip_suffix(b"\r"));
        let line = line.ok_or(Fault::BareLineFeed)?;
        let line = if self.takes_blanks { without_blanks(line) } else { line };
        let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let (digits, extension) = line.split_at(digits);
        let extension = if self.takes_blanks { without_blanks(extension) } else { extension };
        let digits = str::from_utf8(digits).map_err(|_| Fault::ChunkSize)?;
        if digits.len() > 16 {
            return Err(Fault::ChunkSize);
        }
        let size = u64::from_str_radix(digits, 16).map_err(|_| Fault::ChunkSize)?;
        self.extensions += extension.len();
        let is_sound = |byte: &u8| matches!(byte, b'\t' | b' '..=b'~');
        match extension {
            [] => {}
            [b';', rest @ ..] if rest.iter().all(is_sound) && self.extensions <= MAX_EXTENSIONS => {}
            [b';', ..] => return Err(Fault::ChunkExtension),
            _ => return Err(Fault::ChunkSize),
        }
        self.state = if size == 0 { State::Trailers(Scan::default()) } else { State::Chunk(size) };
        Ok(end + 1)
    }
}

fn is_blank(byte: &u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// What is between the blanks at both ends.
fn without_blanks(line: &[u8]) -> &[u8] {
    let start = line.iter().position(|byte| !is_blank(byte)).unwrap_or(line.len());
    let end = line.iter().rposition(|byte| !is_blank(byte)).map_or(start, |last| last + 1);
    line.get(start..end).unwrap_or_default()
}

/// Names that say how a message is framed, whom it is for or who sends it: no recipient may learn them late.
const FORBIDDEN: [&str; 17] = [
    "authorization",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "cookie",
    "expect",
    "forwarded",
    "host",
    "keep-alive",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-forwarded-for",
    "x-forwarded-proto",
];

/// Whether no trailer may have this name: it is one of those, or a rule looks at it, or somebody may take it for one of them,
/// or it is no name.
pub(crate) fn is_forbidden_trailer(name: &str, judged: &[Box<str>]) -> bool {
    let is =
        |other: &str| name.eq_ignore_ascii_case(other) || is_look_alike(name.as_bytes(), other.as_bytes());
    !is_name(name) || FORBIDDEN.iter().any(|other| is(other)) || judged.iter().any(|other| is(other))
}

/// Whether it is a name as HTTP has them: those of HTTP/2 have been read by a library that lets `"` pass.
pub(crate) fn is_name(name: &str) -> bool {
    !name.contains('"')
}

/// Length of the trailer section, once it is all there.
fn trailers(scan: &mut Scan, rest: &[u8], judged: &[Box<str>]) -> Result<Option<usize>, Fault> {
    match rest {
        [b'\r', b'\n', ..] => return Ok(Some(2)),
        [] | [b'\r'] => return Ok(None),
        _ => {}
    }
    let window = rest.get(..MAX_TRAILERS).unwrap_or(rest);
    let Some((_, end)) = scan.find(window)? else {
        return if window.len() == MAX_TRAILERS { Err(Fault::Trailers) } else { Ok(None) };
    };
    let mut lines = [httparse::EMPTY_HEADER; MAX_TRAILER_LINES];
    let section = window.get(..end).unwrap_or_default();
    match httparse::parse_headers(section, &mut lines) {
        Ok(httparse::Status::Complete((length, found))) if length == end => {
            if found.iter().any(|line| is_forbidden_trailer(line.name, judged)) {
                return Err(Fault::Trailers);
            }
            Ok(Some(end))
        }
        _ => Err(Fault::Trailers),
    }
}
