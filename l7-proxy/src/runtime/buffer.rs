//! Bytes that have been read from a stream and not yet been passed on.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

use crate::codec::{MAX_HEAD, MAX_TRAILERS};

/// What an idle connection keeps.
const FIRST: usize = 4 << 10;
/// How far it grows while reads fill it.
const BULK: usize = 64 << 10;
/// How far it grows at all: a head and the empty line before it, or a trailer section behind other bytes.
const LIMIT: usize = MAX_HEAD + MAX_TRAILERS;

/// A buffer of bounded size.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    data: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes that have ever been read.
    filled: u64,
    /// The last read filled all the room there was.
    is_short: bool,
}

impl Buffer {
    /// The bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        self.data.get(self.start..self.end).unwrap_or_default()
    }

    /// Those from an offset on.
    pub(super) fn from(&self, offset: usize) -> &[u8] {
        self.bytes().get(offset..).unwrap_or_default()
    }

    /// Those up to an offset.
    pub(super) fn until(&self, offset: usize) -> &[u8] {
        self.bytes().get(..offset).unwrap_or(self.bytes())
    }

    /// Bytes that have ever been read.
    pub(super) fn filled(&self) -> u64 {
        self.filled
    }

    pub(super) fn len(&self) -> usize {
        self.end - self.start
    }

    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Whether there is no room left; then nothing may be read.
    pub(super) fn is_full(&self) -> bool {
        self.len() >= LIMIT
    }

    /// Takes away the first bytes.
    pub(super) fn consume(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Gives back what a burst has taken, once it is over.
    pub(super) fn rest(&mut self) {
        if self.is_empty() && self.data.len() > FIRST {
            self.data.truncate(FIRST);
            self.data.shrink_to_fit();
        }
        self.is_short = false;
    }

    /// Reads once. 0: the stream has ended. Must not be full.
    pub(super) fn poll_fill<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        self.make_room();
        let mut room = ReadBuf::new(self.data.get_mut(self.end..).unwrap_or_default());
        ready!(Pin::new(stream).poll_read(cx, &mut room))?;
        let count = room.filled().len();
        self.is_short = room.remaining() == 0;
        self.end += count;
        self.filled += count as u64;
        Poll::Ready(Ok(count))
    }

    fn make_room(&mut self) {
        if self.end == self.data.len() && self.start > 0 {
            self.data.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let is_narrow = self.end == self.data.len() || self.is_short && self.data.len() < BULK;
        if is_narrow {
            let size = (self.data.len() * 2).clamp(FIRST, LIMIT);
            self.data.resize(size, 0);
        }
    }
}
