//! When a request goes to the server: at once, or not yet.
//!
//! Promise: none is given to h2 that would wait there, where nobody can take it back or change it: the server takes one more
//! stream, and all heads that were given before have left. Who waits goes first come, first served, and is woken when it may.
//! What was given and has not left, for the server reads nothing, is known.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::task::{Context, Waker};

use super::frames::{Frame, HEADERS, RST_STREAM};
use super::shared::Live;

/// Heads that are given to h2 before it is seen whether they leave. They leave in one piece; where they do not, they are all
/// that is kept of streams whose clients have reset them.
const BATCH: usize = 32;

/// Streams that wait for the server to take them, and those that are on their way.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// By their number at the client, which is the order they came in.
    waiting: RefCell<BTreeMap<u32, Waker>>,
    /// By their number at the server, in order.
    leaving: RefCell<Vec<(u32, Rc<Live>)>>,
    /// The server was to be sent these, and they have not left.
    is_behind: Cell<bool>,
}

impl Gate {
    /// Whether one more may go to a server that takes `most` at once.
    pub(super) fn is_open(&self, opened: &Opened, most: usize) -> bool {
        let leaving = self.leaving.borrow();
        let unseen = leaving.len() - leaving.partition_point(|(stream, _)| *stream <= opened.last);
        !self.is_behind.get() && leaving.len() < BATCH && opened.streams.len() + unseen < most
    }

    /// Whether nobody waits who came before it.
    pub(super) fn is_next(&self, stream: u32) -> bool {
        self.waiting.borrow().first_key_value().is_none_or(|(first, _)| *first >= stream)
    }

    /// Whether somebody waits.
    pub(super) fn is_waited_at(&self) -> bool {
        !self.waiting.borrow().is_empty()
    }

    /// It is woken when it may go.
    pub(super) fn wait(&self, stream: u32, cx: &Context<'_>) {
        let mut waiting = self.waiting.borrow_mut();
        let waker = waiting.entry(stream).or_insert_with(|| cx.waker().clone());
        waker.clone_from(cx.waker());
    }

    /// It waits no more: it goes, or it has ended. Who is next looks whether it may go, too.
    pub(super) fn leave(&self, stream: u32) {
        if self.waiting.borrow_mut().remove(&stream).is_some() {
            self.wake_first();
        }
    }

    pub(super) fn wake_first(&self) {
        if let Some((_, waker)) = self.waiting.borrow().first_key_value() {
            waker.wake_by_ref();
        }
    }

    pub(super) fn wake_all(&self) {
        self.waiting.borrow().values().for_each(Waker::wake_by_ref);
    }

    /// Its head has been given to h2.
    pub(super) fn goes(&self, stream: u32, live: &Rc<Live>) {
        self.leaving.borrow_mut().push((stream, Rc::clone(live)));
    }

    /// The server has been sent what it takes: all heads up to this one's.
    pub(super) fn has_left(&self, last: u32) {
        let mut leaving = self.leaving.borrow_mut();
        leaving.retain(|(stream, _)| *stream > last);
        self.is_behind.set(!leaving.is_empty());
    }

    /// Whether a head has been given that the server has not been sent yet.
    pub(super) fn is_fresh(&self) -> bool {
        self.is_leaving() && !self.is_behind.get()
    }

    /// Whether a head has been given that has not left.
    pub(super) fn is_leaving(&self) -> bool {
        !self.leaving.borrow().is_empty()
    }

    /// Whether any of those is such a one. They are known though the stream may have ended.
    pub(super) fn keeps(&self, is_one: impl Fn(&Live) -> bool) -> bool {
        self.leaving.borrow().iter().any(|(_, live)| is_one(live))
    }
}

/// Streams that the server counts, as their frames have it.
#[derive(Debug, Default)]
pub(super) struct Opened {
    /// Which of both ends, ours first, sends no more.
    streams: BTreeMap<u32, [bool; 2]>,
    /// The last one.
    last: u32,
    /// The last one whose head has been written whole, and behind how many bytes.
    written: (u32, u64),
    /// The last one whose head has left.
    left: u32,
}

impl Opened {
    /// A frame was sent.
    pub(super) fn sent(&mut self, frame: Frame) {
        if frame.kind == HEADERS && frame.stream > self.last {
            self.last = frame.stream;
            self.streams.insert(frame.stream, [false; 2]);
        }
        self.ends(frame, 0);
    }

    /// A frame was received.
    pub(super) fn received(&mut self, frame: Frame) {
        self.ends(frame, 1);
    }

    fn ends(&mut self, frame: Frame, end: usize) {
        if !frame.is_last() {
            return;
        }
        let Some(ended) = self.streams.get_mut(&frame.stream) else { return };
        if let Some(ended) = ended.get_mut(end) {
            *ended = true;
        }
        if frame.kind == RST_STREAM || *ended == [true; 2] {
            self.streams.remove(&frame.stream);
        }
    }

    /// Nothing of a head is missing in what has been written, so many bytes by now.
    pub(super) fn written(&mut self, bytes: u64) {
        if self.written.0 < self.last {
            self.written = (self.last, bytes);
        }
    }

    /// The last whose head has left, now that so many bytes have.
    pub(super) fn left(&mut self, bytes: u64) -> u32 {
        if self.written.1 <= bytes {
            self.left = self.written.0;
        }
        self.left
    }
}
