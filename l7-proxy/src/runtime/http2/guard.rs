//! The stream of bytes beneath h2: frames that cost the sender nothing are counted before h2 works on them, and what h2
//! refuses by itself is noted, so that flows can say it.
//!
//! Promise: who sends such frames faster than its budget gives them back is not read from any more, and its connection has
//! an offence, by name.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::budget::Budget;
use super::frames::{DATA, Frame, GOAWAY, HEADERS, RST_STREAM, Scanner};
use super::gate::Opened;
use super::outlet::Outlet;
use crate::runtime::deadline::Deadline;
use crate::runtime::transfer::Side;
use crate::runtime::{Stream, turn};
use crate::stage::admit::Account;

/// Frames that carry nothing: at once, and a second.
const BURST: u32 = 2000;
const RATE: u32 = 200;
/// What a frame of a body gives back to whom it is sent: window updates for it, and pings that measure the way.
const EARNED: u32 = 4;
/// Answers that nobody has asked for.
const KEPT: usize = 1024;
/// How long, and how much, is read of whom we have said the last to.
const LINGER: Duration = Duration::from_secs(1);
const MAX_LINGER: usize = 64 << 10;
/// The preface of a client.
const PREFACE: usize = 24;

/// What has been seen of a connection's frames.
#[derive(Debug)]
pub(super) struct Watch {
    budget: RefCell<Budget>,
    /// What the other end has done too much of.
    offence: Cell<Option<&'static str>>,
    /// The other end opens, or takes, no more streams.
    goes_away: Cell<bool>,
    /// Since when something is there in part that only the other end can complete.
    partial: Cell<Option<Instant>>,
    answers: RefCell<Vec<Answer>>,
    /// Streams to whose client no more is sent, since the last time; `None`: nobody asks.
    over: Option<RefCell<Vec<u32>>>,
    /// Streams of ours that a server counts; `None`: it is a client.
    opened: Option<RefCell<Opened>>,
    /// Something of a body was sent since the last time.
    has_moved: Cell<bool>,
}

/// A stream that was answered from this end, or reset for what its peer has done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Answer {
    pub(super) stream: u32,
    /// What it means if h2 has done it by itself.
    pub(super) reason: &'static str,
}

impl Watch {
    fn new(is_client: bool) -> Rc<Self> {
        Rc::new(Self {
            budget: RefCell::new(Budget::new(BURST, RATE)),
            offence: Cell::default(),
            goes_away: Cell::default(),
            partial: Cell::default(),
            answers: RefCell::default(),
            over: is_client.then(RefCell::default),
            opened: (!is_client).then(RefCell::default),
            has_moved: Cell::default(),
        })
    }

    /// What it has done too much of; it is not read from any more.
    pub(super) fn offence(&self) -> Option<&'static str> {
        self.offence.get()
    }

    /// Whether it has said that no stream can be added.
    pub(super) fn goes_away(&self) -> bool {
        self.goes_away.get()
    }

    /// Since when a header block, or another frame that is no body's, is there in part.
    pub(super) fn partial(&self) -> Option<Instant> {
        self.partial.get()
    }

    /// Takes what has been answered since the last time.
    pub(super) fn answers(&self, take: impl FnMut(Answer)) {
        self.answers.borrow_mut().drain(..).for_each(take);
    }

    /// Takes the streams on which a client is sent no more, since the last time.
    pub(super) fn over(&self, take: impl FnMut(u32)) {
        let over = self.over.iter().flat_map(RefCell::take);
        over.for_each(take);
    }

    /// Whether something of a body was sent since the last time.
    pub(super) fn has_moved(&self) -> bool {
        self.has_moved.take()
    }

    /// Looks at the streams that a server counts.
    pub(super) fn opened<T>(&self, look: impl FnOnce(&mut Opened) -> T) -> Option<T> {
        self.opened.as_ref().map(|opened| look(&mut opened.borrow_mut()))
    }

    fn is_over(&self, stream: u32) {
        if let Some(over) = &self.over {
            over.borrow_mut().push(stream);
        }
    }

    fn received(&self, frame: Frame) {
        if frame.kind == RST_STREAM {
            self.is_over(frame.stream);
        }
        self.opened(|opened| opened.received(frame));
        self.goes_away.set(self.goes_away.get() || frame.kind == GOAWAY);
        let is_work = frame.kind == HEADERS || frame.kind == DATA && !frame.is_empty_data();
        if frame.kind == HEADERS {
            self.budget.borrow_mut().earn(1);
        }
        if !is_work && !self.budget.borrow_mut().spend() {
            self.offence.set(Some(flood(frame.kind)));
        }
    }

    fn sent(&self, frame: Frame) {
        if frame.is_last() {
            self.is_over(frame.stream);
        }
        self.opened(|opened| opened.sent(frame));
        let reason = match frame.kind {
            DATA => {
                self.has_moved.set(true);
                return self.budget.borrow_mut().earn(EARNED);
            }
            // The only answer that h2 gives by itself is 431.
            HEADERS => Some("head of more than 64 KB"),
            RST_STREAM => refusal(frame.code()),
            _ => None,
        };
        let mut answers = self.answers.borrow_mut();
        if let Some(reason) = reason
            && answers.len() < KEPT
        {
            answers.push(Answer { stream: frame.stream, reason });
        }
    }
}

fn flood(kind: u8) -> &'static str {
    match kind {
        0 => "flood of empty DATA frames",
        2 => "flood of PRIORITY frames",
        3 => "flood of RST_STREAM frames",
        4 => "flood of SETTINGS frames",
        6 => "flood of PING frames",
        8 => "flood of WINDOW_UPDATE frames",
        9 => "flood of CONTINUATION frames",
        _ => "flood of frames of no known kind",
    }
}

/// What h2 means by the code it resets a stream with; `None`: a code that we use ourselves, or that is no reproach.
fn refusal(code: u32) -> Option<&'static str> {
    match code {
        1 => Some("malformed HTTP/2 request"),
        3 => Some("more bytes than the window of the stream"),
        5 => Some("frame on a stream that has ended"),
        6 => Some("frame of a wrong size"),
        7 => Some("more streams at once than agreed"),
        _ => None,
    }
}

/// A stream of bytes with frames on it.
#[derive(Debug)]
pub(super) struct Guard<S> {
    outlet: Outlet<S>,
    watch: Rc<Watch>,
    received: Scanner,
    sent: Scanner,
    /// Whether the end is awaited once ours has been said, and how much has been read since.
    lingers: bool,
    last: Option<(Deadline, usize)>,
}

impl<S: Stream> Guard<S> {
    /// Of a client that has begun to speak.
    pub(super) fn client(side: Side<S>) -> (Self, Rc<Watch>) {
        Self::new(side, Scanner::behind(PREFACE), Scanner::default(), true)
    }

    /// Of a server.
    pub(super) fn server(stream: S, account: Arc<Account>) -> (Self, Rc<Watch>) {
        Self::new(Side::new(stream, account), Scanner::default(), Scanner::behind(PREFACE), false)
    }

    fn new(side: Side<S>, received: Scanner, sent: Scanner, lingers: bool) -> (Self, Rc<Watch>) {
        // Of a client: what is behind its end matters, and which of its streams are over.
        let watch = Watch::new(lingers);
        let outlet = Outlet::new(side);
        (Self { outlet, watch: Rc::clone(&watch), received, sent, lingers, last: None }, watch)
    }

    /// What sends what has been gathered: nothing is sent before.
    pub(super) fn outlet(&self) -> Outlet<S> {
        self.outlet.clone()
    }

    fn note_sent(&mut self, parts: &[IoSlice<'_>], mut count: usize) {
        for part in parts {
            let seen = part.get(..count).unwrap_or(part);
            self.sent.feed(seen, |frame| self.watch.sent(frame));
            count -= seen.len();
        }
        if !self.sent.is_partial() {
            self.watch.opened(|opened| opened.written(self.outlet.taken()));
        }
    }
}

impl<S: Stream> AsyncRead for Guard<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { outlet, watch, received, .. } = self.get_mut();
        if watch.offence().is_some() {
            // Whoever drives the connection looks at the offence next.
            return Poll::Pending;
        }
        ready!(turn::step(1, cx));
        let before = buffer.filled().len();
        ready!(outlet.with(|side| {
            if side.input.is_empty() {
                return Pin::new(&mut side.stream).poll_read(cx, buffer);
            }
            let count = side.input.len().min(buffer.remaining());
            buffer.put_slice(side.input.until(count));
            side.input.consume(count);
            Poll::Ready(Ok(()))
        }))?;
        received.feed(buffer.filled().get(before..).unwrap_or_default(), |frame| watch.received(frame));
        match received.is_partial() {
            false => watch.partial.set(None),
            true if watch.partial.get().is_none() => watch.partial.set(Some(Instant::now())),
            true => {}
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: Stream> AsyncWrite for Guard<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let guard = self.get_mut();
        let count = ready!(guard.outlet.poll_write(parts, cx))?;
        guard.note_sent(parts, count);
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Whoever drives the connection flushes it.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Ends the connection so that the client gets all that it was sent: what it sends meanwhile is read, for otherwise the
    /// kernel would reset the connection.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { outlet, lingers, last, .. } = self.get_mut();
        if last.is_none() {
            ready!(outlet.poll_send(cx))?;
            ready!(outlet.with(|side| Pin::new(&mut side.stream).poll_shutdown(cx)))?;
            if !*lingers {
                return Poll::Ready(Ok(()));
            }
        }
        let (deadline, read) = last.get_or_insert_with(|| {
            let mut deadline = Deadline::new();
            deadline.set(LINGER);
            (deadline, 0)
        });
        let mut thrown = [0; 1024];
        while *read < MAX_LINGER && deadline.poll(cx).is_pending() {
            let mut buffer = ReadBuf::new(&mut thrown);
            match outlet.with(|side| Pin::new(&mut side.stream).poll_read(cx, &mut buffer)) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => *read += buffer.filled().len(),
                Poll::Ready(_) => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}
