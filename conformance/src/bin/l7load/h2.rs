//! HTTP/2, as much as both ends of a load need: frames, windows of what is sent, and header blocks that are written once.
//!
//! A header is sent whole once and by its index from then on, as real clients and servers do. What comes in is not decoded:
//! of an answer only the status is looked at, which all encoders that are known write as the static table's entry.

use super::client::{Answer, Client, Fault};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEAD: usize = 9;
/// Kinds of frames.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const AWAY: u8 = 7;
const WINDOW: u8 = 8;
const CONTINUATION: u8 = 9;
/// Flags.
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
/// `SETTINGS_HEADER_TABLE_SIZE`, `SETTINGS_INITIAL_WINDOW_SIZE`.
const TABLE_SIZE: u16 = 1;
const INITIAL_WINDOW: u16 = 4;
/// What the other side may send: never a matter here.
const LARGE: u32 = 1 << 30;
/// The least a table of headers must hold for those used here.
const LEAST_TABLE: u32 = 1024;
/// `:status: 200` of the static table.
const OK: u8 = 0x88;

/// One side of a connection.
#[derive(Default)]
struct Link {
    input: Vec<u8>,
    /// Bytes of bodies that may be sent.
    window: i64,
    /// Bytes that came since the other side was last given more.
    taken: u32,
    /// Once the other side's settings are there.
    is_open: bool,
    block: Block,
}

/// A header block that is sent again and again.
#[derive(Default)]
struct Block {
    /// With the headers spelled out, to be remembered; or not to be, where the other side has no table.
    first: Vec<u8>,
    /// By index.
    again: Vec<u8>,
    has_table: bool,
    is_known: bool,
}

/// A part of a frame that its reader wants to know of.
enum Seen<'a> {
    Headers { stream: u32, block: &'a [u8], is_last: bool },
    Data { stream: u32, length: usize, is_last: bool },
    Reset(u32),
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// A header as a literal: `index` of its name in the static table, or a name.
struct Header {
    index: u8,
    name: &'static str,
    value: String,
}

impl Header {
    fn write(&self, is_kept: bool, out: &mut Vec<u8>) {
        if is_kept {
            out.push(0x40 | self.index);
        } else if self.index < 15 {
            out.push(self.index);
        } else {
            out.extend_from_slice(&[15, self.index - 15]);
        }
        if self.index == 0 {
            out.push(self.name.len() as u8);
            out.extend_from_slice(self.name.as_bytes());
        }
        // One octet is enough for what is used here.
        out.push(self.value.len() as u8);
        out.extend_from_slice(self.value.as_bytes());
    }
}

impl Block {
    /// Static entries, then others.
    fn new(fixed: &[u8], headers: &[Header], has_table: bool, older: usize) -> Self {
        let (mut first, mut again) = (fixed.to_vec(), fixed.to_vec());
        headers.iter().for_each(|header| header.write(has_table, &mut first));
        // The youngest is 62.
        again.extend((0..headers.len()).map(|at| 0x80 | (62 + headers.len() - 1 - at + older) as u8));
        Self { first, again, has_table, is_known: false }
    }

    fn next(&mut self) -> &[u8] {
        if self.has_table && self.is_known {
            return &self.again;
        }
        self.is_known = true;
        &self.first
    }
}

impl Link {
    fn greet(out: &mut Vec<u8>) {
        let [a, b, c, d] = LARGE.to_be_bytes();
        let [high, low] = INITIAL_WINDOW.to_be_bytes();
        frame(out, SETTINGS, 0, 0, &[high, low, a, b, c, d]);
        frame(out, WINDOW, 0, 0, &LARGE.to_be_bytes());
    }

    /// Reads on, and answers what wants to be.
    fn take(
        &mut self,
        bytes: &[u8],
        out: &mut Vec<u8>,
        mut seen: impl FnMut(&mut Self, Seen<'_>, &mut Vec<u8>),
        mut opened: impl FnMut(&mut Self, bool),
    ) -> Result<(), Fault> {
        let mut input = std::mem::take(&mut self.input);
        input.extend_from_slice(bytes);
        let mut at = 0;
        while let Some(head) = input.get(at..at + HEAD) {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let (kind, flags) = (head[3], head[4]);
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & (u32::MAX >> 1);
            let Some(payload) = input.get(at + HEAD..at + HEAD + length) else { break };
            at += HEAD + length;
            let is_last = flags & END_STREAM != 0;
            match kind {
                DATA => {
                    self.taken += length as u32;
                    if self.taken > LARGE / 4 {
                        frame(out, WINDOW, 0, 0, &self.taken.to_be_bytes());
                        self.taken = 0;
                    }
                    seen(self, Seen::Data { stream, length, is_last }, out);
                }
                HEADERS if flags & END_HEADERS == 0 => return Err("a header block in parts".to_owned()),
                HEADERS => seen(self, Seen::Headers { stream, block: payload, is_last }, out),
                CONTINUATION => return Err("a header block in parts".to_owned()),
                RESET => seen(self, Seen::Reset(stream), out),
                SETTINGS if flags & ACK == 0 => {
                    frame(out, SETTINGS, ACK, 0, &[]);
                    if !self.is_open {
                        self.is_open = true;
                        self.window += 65_535;
                        opened(self, setting(payload, TABLE_SIZE).is_none_or(|size| size >= LEAST_TABLE));
                    }
                }
                PING if flags & ACK == 0 => frame(out, PING, ACK, 0, payload),
                WINDOW if stream == 0 => {
                    let bytes = payload.try_into().map_err(|_| "a window of another length".to_owned())?;
                    self.window += i64::from(u32::from_be_bytes(bytes) & (u32::MAX >> 1));
                }
                AWAY => return Err("the other side ends the connection".to_owned()),
                _ => {}
            }
        }
        input.drain(..at);
        self.input = input;
        Ok(())
    }

    fn headers(&mut self, out: &mut Vec<u8>, stream: u32, is_last: bool) {
        let flags = END_HEADERS | if is_last { END_STREAM } else { 0 };
        frame(out, HEADERS, flags, stream, self.block.next());
    }
}

fn setting(payload: &[u8], wanted: u16) -> Option<u32> {
    let (settings, _) = payload.as_chunks::<6>();
    let found = settings.iter().find(|[a, b, ..]| u16::from_be_bytes([*a, *b]) == wanted)?;
    Some(u32::from_be_bytes([found[2], found[3], found[4], found[5]]))
}

/// A message of gRPC of so many bytes.
fn message(length: usize) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend_from_slice(&(length as u32).to_be_bytes());
    bytes.resize(5 + length, b'x');
    bytes
}

/// A client.
pub(crate) struct H2 {
    link: Link,
    is_grpc: bool,
    path: String,
    /// What an answer's `DATA` frames have together.
    body: usize,
    next: u32,
    slots: Vec<Slot>,
}

/// A stream, or room for one.
#[derive(Clone, Default)]
struct Slot {
    stream: u32,
    began: u64,
    is_good: bool,
    length: usize,
}

impl H2 {
    pub(crate) fn new(is_grpc: bool, path: &str, body: usize, streams: usize) -> Self {
        let body = if is_grpc { message(body).len() } else { body };
        let slots = vec![Slot::default(); streams.max(1)];
        Self { link: Link::default(), is_grpc, path: path.to_owned(), body, next: 1, slots }
    }
}

/// The headers of a request. `:method`, `:scheme` are entries of the static table.
fn request(is_grpc: bool, path: &str, has_table: bool) -> Block {
    let literal = |index, name, value: &str| Header { index, name, value: value.to_owned() };
    let mut headers = vec![
        literal(4, "", path),
        literal(1, "", "server.default.svc.cluster.local"),
        literal(58, "", "l7load"),
    ];
    if is_grpc {
        headers.extend([literal(31, "", "application/grpc"), literal(0, "te", "trailers")]);
    } else {
        headers.push(literal(19, "", "*/*"));
    }
    Block::new(&[if is_grpc { 0x83 } else { 0x82 }, 0x86], &headers, has_table, 0)
}

impl Client for H2 {
    fn begin(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(PREFACE);
        Link::greet(out);
    }

    fn ask(&mut self, began: u64, out: &mut Vec<u8>) -> bool {
        let (link, asks) = (&mut self.link, message(0));
        let has_room = !self.is_grpc || link.window >= asks.len() as i64;
        if !link.is_open || !has_room {
            return false;
        }
        let Some(slot) = self.slots.iter_mut().find(|slot| slot.stream == 0) else { return false };
        *slot = Slot { stream: self.next, began, is_good: false, length: 0 };
        link.headers(out, self.next, !self.is_grpc);
        if self.is_grpc {
            link.window -= asks.len() as i64;
            frame(out, DATA, END_STREAM, self.next, &asks);
        }
        self.next += 2;
        true
    }

    fn take(&mut self, bytes: &[u8], out: &mut Vec<u8>, answers: &mut Vec<Answer>) -> Result<(), Fault> {
        let Self { link, is_grpc, path, body, slots, .. } = self;
        let seen = |_: &mut Link, seen: Seen<'_>, _: &mut Vec<u8>| {
            let (stream, is_last) = match seen {
                Seen::Headers { stream, is_last, .. } | Seen::Data { stream, is_last, .. } => {
                    (stream, is_last)
                }
                Seen::Reset(stream) => (stream, true),
            };
            let Some(slot) = slots.iter_mut().find(|slot| slot.stream == stream) else { return };
            match seen {
                // The first block has the status; what follows the body are trailers.
                Seen::Headers { block, .. } if slot.length == 0 && !slot.is_good => {
                    // Before it there may be changes of the table's size.
                    slot.is_good = block.iter().find(|byte| **byte >> 5 != 1) == Some(&OK);
                }
                Seen::Headers { .. } => {}
                Seen::Data { length, .. } => slot.length += length,
                Seen::Reset(_) => slot.is_good = false,
            }
            if is_last {
                answers.push(Answer { began: slot.began, is_good: slot.is_good && slot.length == *body });
                slot.stream = 0;
            }
        };
        link.take(bytes, out, seen, |link, has_table| link.block = request(*is_grpc, path, has_table))
    }

    fn asked(&self) -> usize {
        self.slots.iter().filter(|slot| slot.stream != 0).count()
    }
}

/// A server.
pub(crate) struct Server {
    link: Link,
    is_greeted: bool,
    is_grpc: bool,
    body: Vec<u8>,
    trailers: Block,
    /// Streams whose answer has no room yet.
    waiting: std::collections::VecDeque<u32>,
}

impl Server {
    pub(crate) fn new(is_grpc: bool, body: usize) -> Self {
        let body = if is_grpc { message(body) } else { vec![b'x'; body] };
        let (link, trailers, waiting) = Default::default();
        Self { link, is_greeted: false, is_grpc, body, trailers, waiting }
    }

    /// Reads on, and answers what has been asked.
    pub(crate) fn take(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
        if self.is_greeted {
            return self.read(bytes, out);
        }
        self.link.input.extend_from_slice(bytes);
        if self.link.input.len() < PREFACE.len() {
            return Ok(());
        }
        let whole = std::mem::take(&mut self.link.input);
        self.is_greeted = true;
        Link::greet(out);
        self.read(whole.strip_prefix(PREFACE).ok_or("no preface of HTTP/2")?, out)
    }

    fn read(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
        let Self { link, is_grpc, body, trailers, waiting, .. } = self;
        let seen = |_: &mut Link, seen: Seen<'_>, _: &mut Vec<u8>| {
            if let Seen::Headers { stream, is_last: true, .. } | Seen::Data { stream, is_last: true, .. } =
                seen
            {
                waiting.push_back(stream);
            }
        };
        link.take(bytes, out, seen, |link, has_table| {
            link.block = response(*is_grpc, body.len(), has_table);
            *trailers = ending(has_table);
        })?;
        while self.link.window >= self.body.len() as i64
            && let Some(stream) = self.waiting.pop_front()
        {
            self.answer(stream, out);
        }
        Ok(())
    }

    fn answer(&mut self, stream: u32, out: &mut Vec<u8>) {
        let is_empty = self.body.is_empty();
        self.link.headers(out, stream, is_empty);
        self.link.window -= self.body.len() as i64;
        if !is_empty {
            frame(out, DATA, if self.is_grpc { 0 } else { END_STREAM }, stream, &self.body);
        }
        if self.is_grpc {
            frame(out, HEADERS, END_HEADERS | END_STREAM, stream, self.trailers.next());
        }
    }
}

fn response(is_grpc: bool, length: usize, has_table: bool) -> Block {
    let literal = |index, name, value: String| Header { index, name, value };
    if is_grpc {
        // Its trailers are in the table too, and younger.
        let headers = [literal(31, "", "application/grpc".to_owned())];
        return Block::new(&[OK], &headers, has_table, 1);
    }
    let headers = [literal(31, "", "text/plain".to_owned()), literal(28, "", length.to_string())];
    Block::new(&[OK], &headers, has_table, 0)
}

/// What follows the message of an answer.
fn ending(has_table: bool) -> Block {
    Block::new(&[], &[Header { index: 0, name: "grpc-status", value: "0".to_owned() }], has_table, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets both ends speak until neither has anything to say.
    fn talk(client: &mut H2, server: &mut Server, out: &mut Vec<u8>) -> Vec<Answer> {
        let mut answers = Vec::new();
        while !out.is_empty() {
            let mut back = Vec::new();
            // A byte at a time would be slow, and an odd number cuts frames everywhere.
            for part in std::mem::take(out).chunks(7) {
                server.take(part, &mut back).unwrap();
            }
            for part in back.chunks(5) {
                client.take(part, out, &mut answers).unwrap();
            }
        }
        answers
    }

    #[test]
    fn both_ends_understand_each_other() {
        for (is_grpc, body) in [(false, 0), (false, 1024), (true, 0), (true, 1024)] {
            let (mut client, mut server) =
                (H2::new(is_grpc, "/bench/x", body, 4), Server::new(is_grpc, body));
            let mut out = Vec::new();
            assert!(!client.ask(0, &mut Vec::new()), "the other side's settings are not there yet");
            client.begin(&mut out);
            talk(&mut client, &mut server, &mut out);
            for round in 0..3 {
                while client.ask(round, &mut out) {}
                assert_eq!(client.asked(), 4);
                let answers = talk(&mut client, &mut server, &mut out);
                assert_eq!(answers.len(), 4);
                assert!(answers.iter().all(|answer| answer.is_good && answer.began == round));
            }
            // Header blocks of later requests are indices alone.
            assert!(client.link.block.next().iter().all(|byte| byte & 0x80 != 0));
        }
    }

    #[test]
    fn an_answer_of_another_length_or_status_is_not_good() {
        let (mut client, mut server) = (H2::new(false, "/", 3, 1), Server::new(false, 4));
        let mut out = Vec::new();
        client.begin(&mut out);
        talk(&mut client, &mut server, &mut out);
        assert!(client.ask(1, &mut out));
        assert!(talk(&mut client, &mut server, &mut out).iter().all(|answer| !answer.is_good));
        assert!(client.ask(1, &mut out));
        let (mut denied, mut answers) = (Vec::new(), Vec::new());
        // Literal `:status: 403`.
        frame(&mut denied, HEADERS, END_HEADERS | END_STREAM, 3, b"\x48\x03403");
        client.take(&denied, &mut Vec::new(), &mut answers).unwrap();
        assert!(matches!(answers.as_slice(), [Answer { is_good: false, .. }]));
    }
}
