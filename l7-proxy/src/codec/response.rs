//! Response heads.

use super::head::{Found, Lengths, fault, options_of};
use super::{Fault, Framing, Header, Span};

/// A response head. Made to be used again, as [`super::RequestHead`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ResponseHead {
    /// The whole of it.
    pub whole: Span,
    /// Status.
    pub code: u16,
    /// `HTTP/1.minor`.
    pub minor: u8,
    /// Every header line, in order.
    pub headers: Vec<Header>,
    /// How long its body is.
    pub framing: Framing,
    /// The server will send nothing after this.
    pub close: bool,
}

/// What of a request tells how the answer to it is framed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asked {
    /// HEAD.
    pub is_head: bool,
    /// CONNECT.
    pub is_connect: bool,
}

impl ResponseHead {
    /// Reads the head in `input[start..end]`, the answer to a request of this kind.
    pub fn parse(&mut self, input: &[u8], start: usize, end: usize, asked: Asked) -> Result<(), Fault> {
        // Only requests may follow an empty line.
        if start != 0 {
            return Err(Fault::StatusLine);
        }
        let head = input.get(..end).ok_or(Fault::StatusLine)?;
        let mut found: Found = [const { std::mem::MaybeUninit::uninit() }; _];
        let mut response = httparse::Response::new(&mut []);
        let config = httparse::ParserConfig::default();
        let read = config
            .parse_response_with_uninit_headers(&mut response, head, &mut found)
            .map_err(|error| fault(error, head, Fault::StatusLine))?;
        let (Some(code), Some(minor)) = (response.code, response.version) else {
            return Err(Fault::StatusLine);
        };
        if read != httparse::Status::Complete(head.len()) || !(100..=999).contains(&code) {
            return Err(Fault::StatusLine);
        }
        (self.code, self.minor, self.whole) = (code, minor, Span::of(head, head));
        self.headers.clear();
        self.headers.extend(response.headers.iter().map(|header| Header {
            name: Span::of(header.name.as_bytes(), head),
            value: Span::of(header.value, head),
        }));
        self.judge(head, asked)
    }

    fn judge(&mut self, head: &[u8], asked: Asked) -> Result<(), Fault> {
        let mut lengths = Lengths::default();
        self.headers.iter().try_for_each(|header| lengths.note_answers(head, *header))?;
        let (length, is_chunked) = lengths.judge(self.minor)?;
        let tunnels = asked.is_connect && (200..300).contains(&self.code);
        let is_bare = matches!(self.code, 100..=199) || tunnels;
        if is_bare && (is_chunked || length.is_some_and(|length| length > 0)) {
            return Err(Fault::BodyWhereNone);
        }
        // With 204 and 304 headers of framing tell of what would have been there; whoever sends a body nevertheless speaks
        // beyond its answer.
        let has_none = is_bare || asked.is_head || matches!(self.code, 204 | 304);
        self.framing = match (length, is_chunked) {
            _ if has_none => Framing::None,
            (_, true) => Framing::Chunked,
            (Some(0), _) => Framing::None,
            (Some(length), _) => Framing::Length(length),
            (None, false) => Framing::Close,
        };
        let options = options_of(head, &self.headers);
        self.close =
            options.close || (self.minor == 0 && !options.keep_alive) || self.framing == Framing::Close;
        Ok(())
    }

    /// Whether it is to be followed by another answer to the same request.
    pub fn is_interim(&self) -> bool {
        matches!(self.code, 100..=199) && self.code != 101
    }

    /// The lines of a header, by its name in any case.
    pub fn values<'a>(&self, input: &'a [u8], name: &str) -> impl Iterator<Item = &'a [u8]> {
        let of = move |header: &&Header| header.name.bytes(input).eq_ignore_ascii_case(name.as_bytes());
        self.headers.iter().filter(of).map(move |header| header.value.bytes(input))
    }
}
