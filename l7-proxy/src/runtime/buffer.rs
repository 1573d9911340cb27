//! Bytes that have been read from a stream and not yet been passed on.
//!
//! Promise: where nothing has been read nothing is kept. The first room is lent by the thread for as long as there is
//! something in it: idle connections are many, and those of which bytes are under way at the same time are few.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

use super::turn;
use crate::codec::{MAX_HEAD, MAX_TRAILERS};
use crate::stage::admit::{Account, Kind};

/// What is lent; a workload does not pay for it.
const FIRST: usize = 4 << 10;
/// How many of these a thread keeps that nobody needs.
const MOST_SPARE: usize = 64;
/// How far it grows while reads fill it.
const BULK: usize = 64 << 10;
/// How far it grows at all: a head and the empty line before it, or a trailer section behind other bytes.
const LIMIT: usize = MAX_HEAD + MAX_TRAILERS;

/// The read failed because the workload's budget is spent: there is no room for what must be together.
pub(super) const SPENT: io::ErrorKind = io::ErrorKind::QuotaExceeded;

/// A buffer of bounded size; what it has beyond [`FIRST`] is the workload's to pay for.
#[derive(Debug)]
pub(super) struct Buffer {
    account: Arc<Account>,
    data: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes that have ever been read.
    filled: u64,
    /// The last read filled all the room there was.
    is_short: bool,
}

impl Buffer {
    pub(super) fn new(account: Arc<Account>) -> Self {
        Self { account, data: Vec::new(), start: 0, end: 0, filled: 0, is_short: false }
    }

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
            self.account.give_back(Kind::Bytes, beyond(self.data.len()));
            self.data = Vec::new();
        }
        self.is_short = false;
    }

    /// Makes room for more, unless the workload's budget is spent; whether there is any.
    pub(super) fn has_room(&mut self) -> bool {
        self.make_room(false);
        self.end < self.data.len()
    }

    /// Reads once. 0: the stream has ended. Must not be full. Fails with [`SPENT`] if there is no room.
    pub(super) fn poll_fill<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        ready!(turn::step(1, cx));
        self.make_room(true);
        let room = self.data.get_mut(self.end..).unwrap_or_default();
        if room.is_empty() {
            return Poll::Ready(Err(SPENT.into()));
        }
        let mut room = ReadBuf::new(room);
        let read = Pin::new(stream).poll_read(cx, &mut room);
        let Poll::Ready(read) = read else {
            if self.is_empty() {
                self.lend_no_more();
            }
            return Poll::Pending;
        };
        read?;
        let count = room.filled().len();
        self.is_short = room.remaining() == 0;
        self.end += count;
        self.filled += count as u64;
        Poll::Ready(Ok(count))
    }

    /// The thread has its room back, if that is what there is: nobody looks at what stands in it any more.
    fn lend_no_more(&mut self) {
        if self.data.len() != FIRST {
            return;
        }
        (self.start, self.end) = (0, 0);
        let room = std::mem::take(&mut self.data);
        // A thread that ends keeps nothing.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < MOST_SPARE {
                spare.push(room);
            }
        });
    }

    fn make_room(&mut self, is_needed: bool) {
        if self.end == self.data.len() && self.start > 0 {
            self.data.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let is_out = self.end == self.data.len();
        let is_busy = self.is_short && self.data.len() < BULK;
        if !is_out && !is_busy {
            return;
        }
        if self.data.is_empty() {
            self.data = SPARE.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; FIRST]);
            return;
        }
        let size = (self.data.len() * 2).clamp(FIRST, LIMIT);
        let more = beyond(size) - beyond(self.data.len());
        let may_grow = match is_out && is_needed {
            true => self.account.take(Kind::Bytes, more),
            false => self.account.take_if_idle(Kind::Bytes, more),
        };
        if may_grow {
            self.data.resize(size, 0);
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.account.give_back(Kind::Bytes, beyond(self.data.len()));
        self.lend_no_more();
    }
}

thread_local! {
    /// Rooms of [`FIRST`] bytes. What stands in them is somebody's who had them before: only what has been read is looked at.
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// What of a size the workload pays for.
fn beyond(size: usize) -> u64 {
    size.saturating_sub(FIRST) as u64
}
