//! Messages of HTTP/1 on one connection: as the strict codec reads them in pieces, and as the most gullible of servers and
//! clients might read them.

use l7_proxy::codec::{Asked, Body, Fault, Form, Framing, Header, RequestHead, ResponseHead, Scan};

use super::cut::Cuts;

/// What both kinds of readers say of a message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// Method, or status.
    pub what: Vec<u8>,
    /// Target; of answers none.
    pub target: Vec<u8>,
    pub headers: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where what follows it begins.
    pub end: usize,
    /// Whether its body is all there.
    pub is_whole: bool,
}

/// Why the strict reader stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// Behind a message, or where none had begun.
    Whole,
    /// Within one.
    Cut,
    /// Another protocol follows, or the end of the connection.
    Switched,
    Refused(Fault),
}

/// What a stream was read as.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Read {
    pub messages: Vec<Message>,
    pub end: End,
}

/// Bytes that arrive, and how much of them has.
struct Arrival<'a> {
    input: &'a [u8],
    arrived: usize,
    cuts: Cuts,
}

impl<'a> Arrival<'a> {
    fn new(input: &'a [u8], mut cuts: Cuts) -> Self {
        let arrived = cuts.next(0, input.len());
        Self { input, arrived, cuts }
    }

    /// Waits for more; whether there is some.
    fn read(&mut self) -> bool {
        let before = self.arrived;
        self.arrived = self.cuts.next(before, self.input.len());
        self.arrived > before
    }

    /// All there is from here on.
    fn from(&self, begin: usize) -> &'a [u8] {
        &self.input[begin..self.arrived]
    }

    /// The head that begins here; none: there is no whole one.
    fn head(&mut self, begin: usize) -> Result<Option<(usize, usize)>, Fault> {
        let mut scan = Scan::default();
        loop {
            match scan.find(self.from(begin))? {
                Some(found) => return Ok(Some(found)),
                None if self.read() => {}
                None => return Ok(None),
            }
        }
    }

    /// Where the body ends that begins here, and whether it is done.
    fn body(&mut self, begin: usize, mut body: Body, judged: &[Box<str>]) -> Result<(usize, bool), Fault> {
        let mut at = begin;
        loop {
            let counted = body.advance(self.from(at), judged)?;
            assert!(counted <= self.arrived - at, "nothing is counted that is not there");
            at += counted;
            if body.is_done() || !self.read() {
                return Ok((at, body.is_done()));
            }
        }
    }
}

fn lines(input: &[u8], headers: &[Header]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let line = |header: &Header| {
        let (name, value) = (header.name.bytes(input), header.value.bytes(input));
        assert!(!name.is_empty() && name.iter().all(u8::is_ascii_graphic), "{}", name.escape_ascii());
        assert!(!value.iter().any(|byte| matches!(byte, 0 | b'\r' | b'\n')), "{}", value.escape_ascii());
        (name.to_vec(), value.to_vec())
    };
    headers.iter().map(line).collect()
}

/// Where the next head begins, or why there is none.
fn next(arrival: &mut Arrival<'_>, begin: usize) -> Result<(usize, usize), End> {
    match arrival.head(begin) {
        Err(fault) => Err(End::Refused(fault)),
        Ok(None) if begin == arrival.input.len() => Err(End::Whole),
        Ok(None) => Err(End::Cut),
        Ok(Some(found)) => Ok(found),
    }
}

/// Requests, as the codec reads them where rules look at headers of these names.
pub fn requests(input: &[u8], judged: &[Box<str>], cuts: Cuts) -> Read {
    let mut arrival = Arrival::new(input, cuts);
    let (mut messages, mut begin) = (Vec::new(), 0);
    let end = loop {
        let (start, end) = match next(&mut arrival, begin) {
            Ok(found) => found,
            Err(end) => break end,
        };
        let (source, mut head) = (arrival.from(begin), RequestHead::default());
        if let Err(fault) = head.parse(source, start, end) {
            break End::Refused(fault);
        }
        let (at, is_whole) = match arrival.body(begin + end, Body::new(head.framing), judged) {
            Ok(body) => body,
            Err(fault) => break End::Refused(fault),
        };
        let (what, target) = (head.method.bytes(source).to_vec(), head.target.bytes(source).to_vec());
        messages.push(Message { what, target, headers: lines(source, &head.headers), end: at, is_whole });
        if head.form == Form::Authority {
            break End::Switched;
        }
        if !is_whole {
            break End::Cut;
        }
        begin = at;
    };
    Read { messages, end }
}

/// Answers to requests that were all of the same kind, as the codec reads them.
pub fn answers(input: &[u8], asked: Asked, cuts: Cuts) -> Read {
    let mut arrival = Arrival::new(input, cuts);
    let (mut messages, mut begin) = (Vec::new(), 0);
    let end = loop {
        let (start, end) = match next(&mut arrival, begin) {
            Ok(found) => found,
            Err(end) => break end,
        };
        let (source, mut head) = (arrival.from(begin), ResponseHead::default());
        if let Err(fault) = head.parse(source, start, end, asked) {
            break End::Refused(fault);
        }
        let (at, is_done) = match arrival.body(begin + end, Body::answer(head.framing), &[]) {
            Ok(body) => body,
            Err(fault) => break End::Refused(fault),
        };
        let is_last = head.framing == Framing::Close;
        let (what, headers) = (head.code.to_string().into_bytes(), lines(source, &head.headers));
        messages.push(Message { what, target: Vec::new(), headers, end: at, is_whole: is_done || is_last });
        if head.code == 101 || asked.is_connect && (200..300).contains(&head.code) || is_last {
            break End::Switched;
        }
        if !is_done {
            break End::Cut;
        }
        begin = at;
    };
    Read { messages, end }
}

/// How a gullible reader makes up its mind.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// CR alone ends a line, too.
    cr_ends_lines: bool,
    /// Where there is a length and a coding, the length counts.
    length_first: bool,
    /// Of several lengths the last counts.
    last_length: bool,
}

impl Manner {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..8).map(|bits| Self {
            cr_ends_lines: bits & 1 != 0,
            length_first: bits & 2 != 0,
            last_length: bits & 4 != 0,
        })
    }

    /// Requests; they end where even this reader finds none.
    pub fn requests(self, input: &[u8]) -> Vec<Message> {
        self.messages(input, None)
    }

    /// Answers likewise.
    pub fn answers(self, input: &[u8], asked: Asked) -> Vec<Message> {
        self.messages(input, Some(asked))
    }

    fn messages(self, input: &[u8], asked: Option<Asked>) -> Vec<Message> {
        let (mut messages, mut at) = (Vec::new(), 0);
        while let Some(message) = self.message(input, at, asked) {
            at = message.end;
            let is_last = !message.is_whole;
            messages.push(message);
            if is_last {
                break;
            }
        }
        messages
    }

    /// The next line, without what ends it, and where the one behind it begins.
    fn line(self, input: &[u8], at: usize) -> Option<(&[u8], usize)> {
        let rest = input.get(at..)?;
        let end = rest.iter().position(|byte| *byte == b'\n' || self.cr_ends_lines && *byte == b'\r')?;
        let has_both = rest[end] == b'\r' && rest.get(end + 1) == Some(&b'\n');
        let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
        Some((line, at + end + if has_both { 2 } else { 1 }))
    }

    fn message(self, input: &[u8], mut at: usize, asked: Option<Asked>) -> Option<Message> {
        while matches!(input.get(at), Some(b'\r' | b'\n')) {
            at += 1;
        }
        let (first, mut at) = self.line(input, at)?;
        let mut words = first.split(|byte| byte.is_ascii_whitespace()).filter(|word| !word.is_empty());
        let words = [words.next()?, words.next()?].map(<[u8]>::to_vec);
        let mut headers: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        loop {
            let (line, behind) = self.line(input, at)?;
            at = behind;
            if line.is_empty() {
                break;
            }
            let colon = line.iter().position(|byte| *byte == b':');
            match (line[0], headers.last_mut(), colon) {
                (b' ' | b'\t', Some((_, value)), _) => value.extend(line),
                (_, _, Some(colon)) => {
                    headers.push((line[..colon].trim_ascii().into(), line[colon + 1..].trim_ascii().into()));
                }
                _ => {}
            }
        }
        let [first, second] = words;
        let (what, target) = if asked.is_some() { (second, Vec::new()) } else { (first, second) };
        let has_none = asked.is_some_and(|asked| {
            let tunnels = asked.is_connect && what.first() == Some(&b'2');
            asked.is_head || tunnels || what.first() == Some(&b'1') || what == b"204" || what == b"304"
        });
        let (end, is_whole) = match self.framing(&headers) {
            _ if has_none => (at, true),
            (Some(length), false) => {
                (at.saturating_add(length).min(input.len()), at.saturating_add(length) <= input.len())
            }
            (_, true) => self.chunks(input, at),
            (None, false) if asked.is_some() => (input.len(), true),
            (None, false) => (at, true),
        };
        Some(Message { what, target, headers, end, is_whole })
    }

    /// A length, and whether there are chunks instead.
    fn framing(self, headers: &[(Vec<u8>, Vec<u8>)]) -> (Option<usize>, bool) {
        let of = |name: &'static str| {
            let is = move |header: &&(Vec<u8>, Vec<u8>)| header.0.eq_ignore_ascii_case(name.as_bytes());
            headers.iter().filter(is).map(|header| header.1.as_slice())
        };
        let number = |text: &[u8]| {
            let digits =
                text.strip_prefix(b"+").unwrap_or(text).iter().take_while(|byte| byte.is_ascii_digit());
            digits.fold(0usize, |sum, digit| sum.saturating_mul(10).saturating_add(usize::from(digit - b'0')))
        };
        let mut lengths = of("content-length");
        let length = if self.last_length { lengths.next_back() } else { lengths.next() }.map(number);
        let is_chunked = of("transfer-encoding")
            .any(|coding| coding.to_ascii_lowercase().windows(7).any(|part| part == b"chunked"));
        if self.length_first && length.is_some() { (length, false) } else { (length, is_chunked) }
    }

    /// Where chunks end, and whether they do.
    fn chunks(self, input: &[u8], mut at: usize) -> (usize, bool) {
        loop {
            let Some((line, behind)) = self.line(input, at) else { return (at, false) };
            let line = line.trim_ascii_start();
            let line = line.strip_prefix(b"0x").unwrap_or(line);
            let digits: Vec<u64> =
                line.iter().map_while(|byte| char::from(*byte).to_digit(16)).map(u64::from).collect();
            let size = digits.iter().fold(0u64, |size, digit| size.saturating_mul(16).saturating_add(*digit));
            let size = usize::try_from(size).unwrap_or(usize::MAX);
            if digits.is_empty() || behind.saturating_add(size) > input.len() {
                return (at, false);
            }
            at = behind + size;
            if size > 0 {
                at += usize::from(input.get(at) == Some(&b'\r'));
                at += usize::from(input.get(at) == Some(&b'\n'));
                continue;
            }
            loop {
                let Some((line, behind)) = self.line(input, at) else { return (at, false) };
                at = behind;
                if line.is_empty() {
                    return (at, true);
                }
            }
        }
    }
}

/// However the bytes arrive they are read the same, and what is read as a whole message any other reader reads likewise.
pub fn holds(input: &[u8], strict: impl Fn(Cuts) -> Read, gullible: impl Fn(Manner) -> Vec<Message>) -> Read {
    let read = strict(Cuts::none());
    for cuts in Cuts::ways(input) {
        assert_eq!(strict(cuts), read, "{}", input.escape_ascii());
    }
    let whole: Vec<&Message> = read.messages.iter().filter(|message| message.is_whole).collect();
    for manner in Manner::all() {
        let found = gullible(manner);
        let same: Vec<&Message> = found.iter().take(whole.len()).collect();
        assert_eq!(same, whole, "{manner:?}: {}", input.escape_ascii());
        if read.end == End::Whole {
            assert_eq!(found.len(), whole.len(), "{manner:?}: {}", input.escape_ascii());
        }
    }
    read
}
