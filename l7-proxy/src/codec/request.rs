//! Request heads.

use super::head::{Found, Lengths, MAX_EDITED, elements, fault, options};
use super::{Fault, Header, MAX_HEADERS, MAX_METHOD, Span};

/// How long a body is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Framing {
    /// There is none.
    #[default]
    None,
    /// So many bytes.
    Length(u64),
    /// By chunks.
    Chunked,
    /// Until the connection ends; responses only.
    Close,
}

/// The form of a request target (RFC 9112 section 3.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Form {
    /// `/path?query`.
    #[default]
    Origin,
    /// `http://authority/path?query`.
    Absolute,
    /// `host:port`, of CONNECT.
    Authority,
    /// `*`, of OPTIONS.
    Asterisk,
}

/// A request head: spans into the bytes it was read from. Made to be used again: [`RequestHead::parse`] keeps its memory.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RequestHead {
    /// The whole of it, without the empty line that may have preceded it.
    pub whole: Span,
    /// The method.
    pub method: Span,
    /// The request target.
    pub target: Span,
    /// Form of the target.
    pub form: Form,
    /// Path and query; empty for authority and asterisk.
    pub path: Span,
    /// Of whom it is asked: the target's, else Host; empty where there is none.
    pub authority: Span,
    /// `HTTP/1.minor`.
    pub minor: u8,
    /// Every header line, in order.
    pub headers: Vec<Header>,
    /// How long its body is.
    pub framing: Framing,
    /// The client will send nothing after this.
    pub close: bool,
    /// It waits for `100 Continue` before it sends its body.
    pub expects: bool,
    /// It asks for another protocol on this connection.
    pub upgrade: bool,
    /// That protocol carries requests that nobody could judge: HTTP/2, TLS.
    pub upgrade_carries_requests: bool,
}

impl RequestHead {
    /// Reads the head in `input[start..end]`, as [`super::Scan::find`] found it. Spans count from the begin of `input`.
    pub fn parse(&mut self, input: &[u8], start: usize, end: usize) -> Result<(), Fault> {
        self.read::<MAX_HEADERS>(input, start, end)
    }

    /// Reads a head that has been written anew, and may have more lines than anybody may send.
    pub(crate) fn parse_edited(&mut self, input: &[u8]) -> Result<(), Fault> {
        self.read::<MAX_EDITED>(input, 0, input.len())
    }

    fn read<const MOST: usize>(&mut self, input: &[u8], start: usize, end: usize) -> Result<(), Fault> {
        let head = input.get(start..end).ok_or(Fault::RequestLine)?;
        let before = input.get(..end).ok_or(Fault::RequestLine)?;
        let mut found: Found<'_, MOST> = [const { std::mem::MaybeUninit::uninit() }; MOST];
        let mut request = httparse::Request::new(&mut []);
        let config = httparse::ParserConfig::default();
        let read = config
            .parse_request_with_uninit_headers(&mut request, head, &mut found)
            .map_err(|error| fault(error, head, Fault::RequestLine))?;
        let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version)
        else {
            return Err(Fault::RequestLine);
        };
        if read != httparse::Status::Complete(head.len()) || method.len() > MAX_METHOD {
            return Err(Fault::RequestLine);
        }
        self.whole = Span::of(head, before);
        self.method = Span::of(method.as_bytes(), before);
        self.target = Span::of(target.as_bytes(), before);
        self.minor = minor;
        self.headers.clear();
        self.headers.extend(request.headers.iter().map(|header| Header {
            name: Span::of(header.name.as_bytes(), before),
            value: Span::of(header.value, before),
        }));
        self.judge(before)
    }

    fn judge(&mut self, input: &[u8]) -> Result<(), Fault> {
        let mut lengths = Lengths::default();
        let mut host = None;
        (self.expects, self.upgrade_carries_requests) = (false, false);
        let mut has_upgrade = false;
        for header in &self.headers {
            lengths.note(input, *header)?;
            let (name, value) = (header.name.bytes(input), header.value.bytes(input));
            if name.eq_ignore_ascii_case(b"host") {
                if host.replace(header.value).is_some() {
                    return Err(Fault::HostTwice);
                }
            } else if name.eq_ignore_ascii_case(b"expect") {
                self.expects |= value.eq_ignore_ascii_case(b"100-continue");
            } else if name.eq_ignore_ascii_case(b"upgrade") {
                has_upgrade = true;
                self.upgrade_carries_requests |= elements(value).any(carries_requests);
            }
        }
        let (length, is_chunked) = lengths.judge(self.minor)?;
        self.framing = match (length, is_chunked) {
            (_, true) => Framing::Chunked,
            (Some(0) | None, false) => Framing::None,
            (Some(length), false) => Framing::Length(length),
        };
        self.judge_target(input, host)?;
        let options = options(input, &self.headers)?;
        self.close = options.close || (self.minor == 0 && !options.keep_alive);
        self.upgrade = has_upgrade && options.upgrade && self.minor == 1;
        Ok(())
    }

    fn judge_target(&mut self, input: &[u8], host: Option<Span>) -> Result<(), Fault> {
        let target = self.target.bytes(input);
        if target.contains(&b'#') {
            return Err(Fault::Fragment);
        }
        let host = match host {
            None if self.minor == 1 => return Err(Fault::HostMissing),
            host => host.unwrap_or_default(),
        };
        let named = host.bytes(input);
        if !named.iter().all(|byte| is_authority(*byte)) {
            return Err(Fault::Host);
        }
        self.authority = host;
        self.path = Span::default();
        let is_connect = self.method.bytes(input) == b"CONNECT";
        match target {
            _ if is_connect => {
                self.form = Form::Authority;
                let is_one = target.iter().all(|byte| is_authority(*byte)) && target.contains(&b':');
                if !is_one {
                    return Err(Fault::Target);
                }
                if self.framing != Framing::None {
                    return Err(Fault::BodyWhereNone);
                }
                return self.agree(input, self.target);
            }
            [b'/', ..] => {
                self.form = Form::Origin;
                self.path = self.target;
            }
            b"*" if self.method.bytes(input) == b"OPTIONS" => self.form = Form::Asterisk,
            _ => {
                let rest = target.get(7..).unwrap_or_default();
                if !target.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"http://")) {
                    return Err(Fault::Target);
                }
                self.form = Form::Absolute;
                let length = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
                let (authority, path) = rest.split_at(length);
                if authority.is_empty() || !authority.iter().all(|byte| is_authority(*byte)) {
                    return Err(Fault::Host);
                }
                self.path = Span::of(path, input);
                return self.agree(input, Span::of(authority, input));
            }
        }
        Ok(())
    }

    /// Host must say what the target says, or one origin serves another's request.
    fn agree(&mut self, input: &[u8], authority: Span) -> Result<(), Fault> {
        let (host, target) = (self.authority.bytes(input), authority.bytes(input));
        if !host.is_empty() && !is_same_authority(host, target) || host.is_empty() && self.minor == 1 {
            return Err(Fault::HostDiffers);
        }
        self.authority = authority;
        Ok(())
    }

    /// The lines of a header, by its name in any case.
    pub fn values<'a>(&self, input: &'a [u8], name: &str) -> impl Iterator<Item = &'a [u8]> {
        let of = move |header: &&Header| header.name.bytes(input).eq_ignore_ascii_case(name.as_bytes());
        self.headers.iter().filter(of).map(move |header| header.value.bytes(input))
    }
}

/// What may stand in an authority: no user information, no blank, nothing that ends it.
pub(crate) fn is_authority(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b':' | b'[' | b']' | b'%')
}

/// Whether two authorities name the same: case and the port that goes without saying apart.
pub(crate) fn is_same_authority(one: &[u8], other: &[u8]) -> bool {
    let plain = |name: &[u8]| name.strip_suffix(b":80").unwrap_or(name).to_ascii_lowercase();
    plain(one) == plain(other)
}

/// Protocols within which requests go on that nobody could judge: HTTP/2, TLS with HTTP in it (RFC 2817), HTTP itself; of
/// any version.
fn carries_requests(token: &[u8]) -> bool {
    let name = token.split(|byte| *byte == b'/').next().unwrap_or_default();
    [&b"h2c"[..], b"h2", b"http", b"tls"].iter().any(|one| name.eq_ignore_ascii_case(one))
}
