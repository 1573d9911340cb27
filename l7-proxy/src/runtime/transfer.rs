//! *exchange*: a request that may pass, and the answer to it, both ways at the same time.
//!
//! What may be passed on is counted before it is: `outgoing` and `incoming` bytes at the begin of the two buffers. An answer
//! that comes early is delivered though the upload goes on; a client that has closed its half is still answered.

use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use mesh::access_log::Headers;
use tokio::time::Instant;

use super::Stream;
use super::buffer::{Buffer, SPENT};
use super::deadline::Deadline;
use super::log::Described;
use super::request::Request;
use super::rewrite::farewell;
use super::worker::{ENDED, Published};
use crate::codec::{Asked, Body, Fault, Form, ResponseHead, Scan, elements};
use crate::stage::admit::Account;

/// How long a client may stop in the middle of its body, or not take what it is sent.
pub(super) const STALL: Duration = Duration::from_secs(300);
/// How long a server may think, or be silent within its answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(3600);
/// Interim responses to one request.
const MAX_INTERIM: u32 = 32;
/// What is read ahead of a client that has sent its request whole.
const AHEAD: usize = 4096;

/// One of the two streams, and what has been read from it.
#[derive(Debug)]
pub(super) struct Side<S> {
    pub(super) stream: S,
    pub(super) input: Buffer,
    /// Nothing more will come.
    pub(super) ended: bool,
}

impl<S> Side<S> {
    pub(super) fn new(stream: S, account: Arc<Account>) -> Self {
        Self { stream, input: Buffer::new(account), ended: false }
    }
}

/// How an exchange ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// Both messages are through; whether the connection can carry another.
    Done { keeps: bool },
    /// It carries another protocol from here on.
    Switched,
    /// Nothing of an answer has been sent, and none will come.
    Failed(Failure),
    /// The client has gone.
    Gone,
    /// The answer breaks off.
    Cut(&'static str),
}

/// Why there is no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Failure {
    BadRequest(Fault),
    BadAnswer(Fault),
    NoAnswer,
    Late,
    Stalled,
    /// There is no room for what must be together.
    Spent,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Upload {
    Going,
    Done,
    /// The server does not take it any more; it may still answer.
    Broken,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Head,
    Body(Body),
    Done,
}

/// An exchange under way.
pub(super) struct Transfer<'a, D, U> {
    down: &'a mut Side<D>,
    up: &'a mut Side<U>,
    clock: &'a mut Deadline,
    request: &'a Request,
    answer: &'a mut ResponseHead,
    /// Headers that no trailer may have.
    judged: &'a [Box<str>],
    /// What has been sent of the head that goes in place of the one that came.
    led: usize,
    outgoing: usize,
    body: Body,
    upload: Upload,
    /// Whether the proxy is draining is known here.
    pub(super) published: Option<&'a Published>,
    /// The answer's head that goes in place of the one that came, and what of it has been sent.
    farewell: Vec<u8>,
    bidden: usize,
    /// The client has been told that this is the last answer.
    is_last: bool,
    incoming: usize,
    scan: Scan,
    phase: Phase,
    asked: Asked,
    interim: u32,
    closes: bool,
    switches: bool,
    /// Who is told of bodies and of the answer, and which headers of it are kept.
    pub(super) observer: Option<(&'a Described, Option<&'a Headers>)>,
    /// Status of the answer, and when its head was there.
    pub(super) answered: Option<(u16, Instant)>,
}

impl<'a, D: Stream, U: Stream> Transfer<'a, D, U> {
    /// Of a request whose head is the first `length` bytes of `down`, or has been taken away because another one goes in its
    /// place.
    pub(super) fn new(
        (down, up): (&'a mut Side<D>, &'a mut Side<U>),
        clock: &'a mut Deadline,
        (request, asked): (&'a Request, Asked),
        answer: &'a mut ResponseHead,
        judged: &'a [Box<str>],
        length: usize,
    ) -> Self {
        clock.set(PATIENCE);
        Self {
            down,
            up,
            clock,
            request,
            answer,
            judged,
            led: 0,
            outgoing: length,
            body: Body::new(request.head.framing),
            upload: Upload::Going,
            published: None,
            farewell: Vec::new(),
            bidden: 0,
            is_last: false,
            incoming: 0,
            scan: Scan::default(),
            phase: Phase::Head,
            asked,
            interim: 0,
            closes: request.head.close,
            switches: false,
            observer: None,
            answered: None,
        }
    }

    /// Moves what can be moved. What has been sent to either end and breaks off is cut.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let end = ready!(self.advance(cx));
        if self.upload != Upload::Done {
            self.up.stream.cut();
        }
        if matches!(end, End::Cut(_)) {
            self.down.stream.cut();
        }
        Poll::Ready(end)
    }

    /// The deadline moves with what moves, and only with it: being looked at is no progress.
    fn advance(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        if self.published.is_some_and(Published::ends_all) {
            return Poll::Ready(End::Cut(ENDED));
        }
        loop {
            let moved = match (self.upload(cx), self.download(cx)) {
                (_, Err(end)) | (Err(end), _) => return Poll::Ready(end),
                (Ok(up), Ok(down)) => up | down,
            };
            // What has been written waits in TLS of ours until it has left.
            let has_left = match Pin::new(&mut self.down.stream).poll_flush(cx) {
                Poll::Ready(Err(_)) => return Poll::Ready(End::Gone),
                flushed => flushed.is_ready(),
            };
            if let Some(end) = self.end().filter(|_| has_left) {
                return Poll::Ready(end);
            }
            if !moved {
                if self.clock.poll(cx).is_ready() {
                    return Poll::Ready(self.late());
                }
                // An answer may go on for hours after a burst.
                if self.clock.is_time_to_look() {
                    self.down.input.rest();
                    self.up.input.rest();
                }
                return Poll::Pending;
            }
            self.clock.set(self.patience());
        }
    }

    fn end(&self) -> Option<End> {
        if self.phase != Phase::Done || self.owes() {
            return None;
        }
        // What the server has said beyond its answer would answer the next request.
        let is_desynchronised = !self.up.input.is_empty();
        let is_left = self.down.ended && self.down.input.is_empty();
        let is_over = self.closes || self.is_last || self.up.ended || is_desynchronised || is_left;
        match self.upload {
            Upload::Done if self.switches => Some(End::Switched),
            Upload::Done => Some(End::Done { keeps: !is_over }),
            Upload::Broken => Some(End::Done { keeps: false }),
            Upload::Going if self.closes => Some(End::Done { keeps: false }),
            Upload::Going => None,
        }
    }

    /// Whether something is there that the client has not taken.
    fn owes(&self) -> bool {
        self.incoming > 0 || self.bidden < self.farewell.len()
    }

    fn waits_for_client(&self) -> bool {
        self.owes() || self.upload == Upload::Going && !self.body.is_done() && self.outgoing == 0
    }

    fn patience(&self) -> Duration {
        if self.waits_for_client() { STALL } else { PATIENCE }
    }

    fn late(&self) -> End {
        match self.answered {
            Some(_) => End::Cut("no byte for too long"),
            None if self.waits_for_client() => End::Failed(Failure::Stalled),
            None => End::Failed(Failure::Late),
        }
    }

    fn upload(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        if self.upload != Upload::Going {
            return self.watch(cx);
        }
        let mut moved = false;
        if !self.body.is_done() {
            let counted = self.body.advance(self.down.input.from(self.outgoing), self.judged);
            let counted = counted.map_err(|fault| self.fail(Failure::BadRequest(fault)))?;
            self.outgoing += counted;
            if let Some((described, _)) = self.observer {
                described.moved(counted as u64, 0);
            }
            moved |= counted > 0;
        }
        let lead = self.request.lead().get(self.led..).unwrap_or_default();
        if lead.is_empty() && self.outgoing == 0 {
            let flushed = Pin::new(&mut self.up.stream).poll_flush(cx);
            if self.body.is_done() && flushed.is_ready() {
                self.upload =
                    if matches!(flushed, Poll::Ready(Ok(()))) { Upload::Done } else { Upload::Broken };
                return Ok(true);
            }
        } else {
            moved |= self.send(cx);
        }
        let may_read = !self.body.is_done() && !self.down.input.is_full();
        if may_read && (self.outgoing == 0 || self.down.input.has_room()) {
            match self.down.input.poll_fill(&mut self.down.stream, cx) {
                Poll::Ready(Err(error)) if error.kind() == SPENT => return Err(self.fail(Failure::Spent)),
                Poll::Ready(Ok(0) | Err(_)) => return Err(End::Gone),
                Poll::Ready(Ok(_)) => moved = true,
                Poll::Pending => {}
            }
        }
        Ok(moved)
    }

    /// Sends what may be sent to the server.
    fn send(&mut self, cx: &mut Context<'_>) -> bool {
        let lead = self.request.lead().get(self.led..).unwrap_or_default();
        let body = self.down.input.until(self.outgoing);
        let stream = Pin::new(&mut self.up.stream);
        let sent = match lead {
            [] => stream.poll_write(cx, body),
            lead => stream.poll_write_vectored(cx, &[IoSlice::new(lead), IoSlice::new(body)]),
        };
        match sent {
            Poll::Pending => return false,
            Poll::Ready(Ok(0) | Err(_)) => self.upload = Upload::Broken,
            Poll::Ready(Ok(count)) => {
                let led = count.min(lead.len());
                self.led += led;
                self.outgoing -= count - led;
                self.down.input.consume(count - led);
            }
        }
        true
    }

    /// The request is through: whether the client goes, or closes its half.
    fn watch(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        if self.down.ended || self.down.input.len() >= AHEAD {
            return Ok(false);
        }
        match self.down.input.poll_fill(&mut self.down.stream, cx) {
            Poll::Pending => Ok(false),
            Poll::Ready(Ok(0)) => {
                self.down.ended = true;
                if self.down.input.is_empty() && self.up.stream.has_halves() {
                    // It does not wait: what was to be sent has been.
                    let _ = Pin::new(&mut self.up.stream).poll_shutdown(cx);
                }
                Ok(true)
            }
            Poll::Ready(Ok(_)) => Ok(true),
            Poll::Ready(Err(_)) => Err(End::Gone),
        }
    }

    fn download(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let (mut moved, was_head) = (false, self.phase == Phase::Head);
        if was_head {
            match self.scan.find(self.up.input.from(self.incoming)) {
                Err(fault) => return Err(self.fail(Failure::BadAnswer(fault))),
                Ok(Some((start, end))) => {
                    self.head(start, end).map_err(|fault| self.fail(Failure::BadAnswer(fault)))?;
                    moved = true;
                }
                Ok(None) => moved = self.receive(cx)?,
            }
        }
        // What is there of the body goes with the head: one write, one packet.
        if let Phase::Body(body) = &mut self.phase {
            let counted = body.advance(self.up.input.from(self.incoming), &[]);
            let counted = counted.map_err(|fault| End::Cut(fault.text()))?;
            self.incoming += counted;
            if let Some((described, _)) = self.observer {
                described.moved(0, counted as u64);
            }
            if body.is_done() {
                self.phase = Phase::Done;
                moved = true;
            } else if !was_head {
                moved |= self.receive(cx)? | (counted > 0);
            }
        }
        if self.owes() {
            let ready = self.up.input.until(self.incoming);
            let lead = self.farewell.get(self.bidden..).unwrap_or_default();
            let stream = Pin::new(&mut self.down.stream);
            let sent = match lead {
                [] => stream.poll_write(cx, ready),
                lead => stream.poll_write_vectored(cx, &[IoSlice::new(lead), IoSlice::new(ready)]),
            };
            match sent {
                Poll::Pending => {}
                Poll::Ready(Ok(0) | Err(_)) => return Err(End::Gone),
                Poll::Ready(Ok(count)) => {
                    let led = count.min(lead.len());
                    self.bidden += led;
                    self.up.input.consume(count - led);
                    self.incoming -= count - led;
                    moved = true;
                }
            }
        }
        Ok(moved)
    }

    /// Reads from the server.
    fn receive(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        if self.up.input.is_full() || self.up.ended || self.incoming > 0 && !self.up.input.has_room() {
            return Ok(false);
        }
        match self.up.input.poll_fill(&mut self.up.stream, cx) {
            Poll::Pending => Ok(false),
            Poll::Ready(Ok(count)) if count > 0 => Ok(true),
            Poll::Ready(Err(error)) if error.kind() == SPENT => Err(self.fail(Failure::Spent)),
            Poll::Ready(ended) => {
                self.up.ended = true;
                match self.phase {
                    Phase::Body(body) if body.ends_by_close() && ended.is_ok() => {
                        self.phase = Phase::Done;
                        Ok(true)
                    }
                    Phase::Head => Err(self.fail(Failure::NoAnswer)),
                    _ => Err(End::Cut(Fault::Truncated.text())),
                }
            }
        }
    }

    /// A head of the server's is there.
    fn head(&mut self, start: usize, end: usize) -> Result<(), Fault> {
        let input = self.up.input.from(self.incoming);
        self.answer.parse(input, start, end, self.asked)?;
        self.scan = Scan::default();
        if self.answer.is_interim() {
            self.interim += 1;
            if self.interim > MAX_INTERIM {
                return Err(Fault::TooManyInterim);
            }
            match self.request.head.minor {
                // Such a client knows of no interim responses; so none of them waits to be sent.
                0 => self.up.input.consume(end),
                _ => self.incoming += end,
            }
            return Ok(());
        }
        let tunnels = self.asked.is_connect && (200..300).contains(&self.answer.code);
        if self.answer.code == 101 {
            let mut named = self.answer.values(input, "upgrade").flat_map(elements).peekable();
            let is_asked = named.peek().is_some() && named.all(|protocol| self.request.asks_for(protocol));
            if !is_asked || self.upload != Upload::Done {
                return Err(Fault::UnaskedSwitch);
            }
        }
        self.switches = tunnels || self.answer.code == 101;
        if let Some((described, headers)) = self.observer {
            described.response(headers, |name| self.answer.values(input, name).next());
        }
        self.closes |= self.answer.close && !self.switches;
        let drains = self.published.is_some_and(Published::is_draining);
        if drains && !self.closes && !self.switches {
            self.bid_farewell(end);
        } else {
            self.incoming += end;
        }
        self.answered = Some((self.answer.code, Instant::now()));
        let body = Body::answer(self.answer.framing);
        self.phase = if body.is_done() { Phase::Done } else { Phase::Body(body) };
        Ok(())
    }

    /// Tells the client, with the head that ends there, that the connection ends with this answer; otherwise it might send
    /// another request just when it is closed.
    fn bid_farewell(&mut self, end: usize) {
        // What is left of interim responses goes before it.
        self.farewell.extend_from_slice(self.up.input.until(self.incoming));
        farewell(self.up.input.from(self.incoming), self.answer, &mut self.farewell);
        self.up.input.consume(self.incoming + end);
        self.incoming = 0;
        self.is_last = true;
    }

    fn fail(&self, failure: Failure) -> End {
        // Half an interim response cannot be followed by an answer of ours.
        match self.answered.is_some() || self.incoming > 0 {
            true => End::Cut("failed within the answer"),
            false => End::Failed(failure),
        }
    }
}

impl Request {
    /// What of it tells how the answer is framed; `source` as in [`Request::source`].
    pub(super) fn asked(&self, source: &[u8]) -> Asked {
        let is_head = self.head.method.bytes(source) == b"HEAD";
        Asked { is_head, is_connect: self.head.form == Form::Authority }
    }
}
