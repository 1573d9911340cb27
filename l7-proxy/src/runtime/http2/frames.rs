//! Frames as they pass by: their heads, nothing more. What h2 refuses by itself, and what floods are made of, is seen here.

/// `DATA`.
pub(super) const DATA: u8 = 0;
/// `HEADERS`.
pub(super) const HEADERS: u8 = 1;
/// `RST_STREAM`.
pub(super) const RST_STREAM: u8 = 3;
/// `PUSH_PROMISE`.
const PUSH_PROMISE: u8 = 5;
/// `GOAWAY`.
pub(super) const GOAWAY: u8 = 7;
/// `CONTINUATION`.
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// Of a frame, what stands before its payload.
const HEAD: usize = 9;
/// Of the payload of the two short frames that are looked into.
const INSIDE: usize = 8;

/// The head of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) length: usize,
    pub(super) stream: u32,
    flags: u8,
    inside: [u8; INSIDE],
}

impl Frame {
    /// Whether it carries nothing and ends nothing.
    pub(super) fn is_empty_data(&self) -> bool {
        self.kind == DATA && self.length == 0 && self.flags & END_STREAM == 0
    }

    /// Whether its sender sends no more on this stream; a reset ends it for both.
    pub(super) fn is_last(&self) -> bool {
        self.kind == RST_STREAM || matches!(self.kind, DATA | HEADERS) && self.flags & END_STREAM != 0
    }

    /// The error code of `RST_STREAM` or `GOAWAY`.
    pub(super) fn code(&self) -> u32 {
        let [a, b, c, d, e, f, g, h] = self.inside;
        let code = if self.kind == GOAWAY { [e, f, g, h] } else { [a, b, c, d] };
        u32::from_be_bytes(code)
    }
}

/// Finds frames in bytes that come in any pieces.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    /// Head and, of the frames that are looked into, begin of the payload.
    read: [u8; HEAD + INSIDE],
    filled: usize,
    /// Bytes that belong to the frame before, or to the preface.
    skip: usize,
    /// A header block has begun and not ended.
    is_in_block: bool,
    /// The frame that is passing carries a body.
    is_data: bool,
}

impl Scanner {
    /// Begins behind a preface of so many bytes.
    pub(super) fn behind(preface: usize) -> Self {
        Self { skip: preface, is_data: true, ..Self::default() }
    }

    /// Looks at the next bytes; `found` is told of each frame.
    pub(super) fn feed(&mut self, mut bytes: &[u8], mut found: impl FnMut(Frame)) {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            if bytes.is_empty() {
                return;
            }
            let wanted = self.wanted() - self.filled;
            let (part, rest) = bytes.split_at(wanted.min(bytes.len()));
            if let Some(room) = self.read.get_mut(self.filled..self.filled + part.len()) {
                room.copy_from_slice(part);
            }
            self.filled += part.len();
            bytes = rest;
            if self.filled == self.wanted() {
                found(self.take());
            }
        }
    }

    /// Whether something has begun that only the other end can end: a header block, or a frame that is no body's.
    pub(super) fn is_partial(&self) -> bool {
        self.is_in_block || self.filled > 0 || self.skip > 0 && !self.is_data
    }

    fn length(&self) -> usize {
        let [a, b, c, ..] = self.read;
        usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c)
    }

    /// How much is read before the frame is told of.
    fn wanted(&self) -> usize {
        let is_inside = matches!(self.read.get(3), Some(&(RST_STREAM | GOAWAY)));
        match self.filled >= HEAD && is_inside {
            true => HEAD + self.length().min(INSIDE),
            false => HEAD,
        }
    }

    fn take(&mut self) -> Frame {
        let [_, _, _, kind, flags, a, b, c, d, inside @ ..] = self.read;
        let length = self.length();
        let frame =
            Frame { kind, length, flags, inside, stream: u32::from_be_bytes([a, b, c, d]) & 0x7fff_ffff };
        self.skip = (HEAD + length).saturating_sub(self.filled);
        self.is_data = kind == DATA;
        match kind {
            HEADERS | PUSH_PROMISE => self.is_in_block = flags & END_HEADERS == 0,
            CONTINUATION => self.is_in_block &= flags & END_HEADERS == 0,
            _ => {}
        }
        (self.read, self.filled) = ([0; _], 0);
        frame
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let mut all = vec![0, 0, payload.len() as u8, kind, flags, 0x80, 0, 0, stream];
        all.extend_from_slice(payload);
        all
    }

    #[test]
    fn frames_are_found_however_the_bytes_come() {
        let mut bytes = b"PRI".to_vec();
        bytes.extend(frame(DATA, 0, 1, b"abc"));
        bytes.extend(frame(DATA, 0, 1, b""));
        bytes.extend(frame(DATA, END_STREAM, 1, b""));
        bytes.extend(frame(RST_STREAM, 0, 3, &[0, 0, 0, 8]));
        bytes.extend(frame(HEADERS, 0, 5, b"x"));
        bytes.extend(frame(CONTINUATION, END_HEADERS, 5, b""));
        bytes.extend(frame(GOAWAY, 0, 0, &[0, 0, 0, 5, 0, 0, 0, 11, b'w', b'h', b'y']));
        for step in 1..bytes.len() {
            let mut scanner = Scanner::behind(3);
            let mut found = Vec::new();
            for piece in bytes.chunks(step) {
                scanner.feed(piece, |frame| found.push(frame));
            }
            let kinds: Vec<_> = found.iter().map(|frame| (frame.kind, frame.stream)).collect();
            assert_eq!(kinds, [(0, 1), (0, 1), (0, 1), (3, 3), (1, 5), (9, 5), (7, 0)], "{step}");
            let empty: Vec<_> = found.iter().map(Frame::is_empty_data).collect();
            assert_eq!(empty, [false, true, false, false, false, false, false]);
            assert_eq!((found[3].code(), found[6].code()), (8, 11));
            assert!(!scanner.is_partial());
        }
    }

    #[test]
    fn what_only_the_other_end_can_end_is_known() {
        let mut scanner = Scanner::default();
        scanner.feed(&frame(HEADERS, 0, 1, b"x"), |_| {});
        assert!(scanner.is_partial(), "a block that goes on");
        scanner.feed(&frame(CONTINUATION, END_HEADERS, 1, b"xy")[..10], |_| {});
        assert!(scanner.is_partial(), "its last frame is not all there");
        scanner.feed(b"y", |_| {});
        assert!(!scanner.is_partial());
        scanner.feed(&frame(DATA, 0, 1, b"xy")[..10], |_| {});
        assert!(!scanner.is_partial(), "a body may take its time, which is counted elsewhere");
        scanner.feed(b"y\0", |_| {});
        assert!(scanner.is_partial(), "a frame's head is not all there");
    }
}
