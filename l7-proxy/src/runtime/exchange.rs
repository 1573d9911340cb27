//! One request from its head to the end of its answer; answers of ours; what comes after a switch.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use mesh::flow::Verdict;
use node_api::proxy::Record;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, timeout};

use super::Stream;
use super::buffer::Buffer;
use super::connection::{After, ConnectError, IDLE, Mode, Session, crowded};
use super::ends::{Ends, INHERITED, Identities};
use super::relay::Relay;
use super::reply::Reply;
use super::transfer::{End, Failure, Transfer};
use super::verdict::{Noted, Refused};
use super::worker::ENDED;
use crate::codec::{Asked, Body, Framing};
use crate::index::Offer;
use crate::record::REQUEST_ID;
use crate::stage::admit::Kind;

/// How long an answer of ours may take to be taken, and what is left of its request to arrive.
pub(super) const ANSWER: Duration = Duration::from_secs(10);
/// How much of a denied request is read and thrown away.
const MAX_DRAIN: usize = 64 << 10;
/// How long, at most, a connection that we close is still read, so that the client gets what it was sent last: many write all
/// that they have before they read.
const LINGER: Duration = Duration::from_secs(30);
/// How long the client may be silent meanwhile, or not take what it was sent.
const QUIET: Duration = Duration::from_secs(5);

/// Why a relay ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Over {
    Ended,
    /// One of the two was reset.
    Broken,
    Withdrawn,
    /// The proxy ends.
    Stopped,
}

impl<D, U, I, C> Session<'_, D, U, I, C>
where
    D: Stream,
    U: Stream,
    I: Identities,
    C: AsyncFn() -> Result<(U, Option<SocketAddr>), ConnectError>,
{
    /// The request whose head is in the buffer from `start` to `end`.
    pub(super) async fn exchange(&mut self, start: usize, end: usize) -> After {
        let input = self.down.input.bytes();
        if let Err(fault) = self.request.parse(input, start, end) {
            let is_first = self.entered.connection.requests.load(Ordering::Relaxed) == 0;
            return match is_first && !names_http(input.get(start..end).unwrap_or_default()) {
                true => After::Foreign,
                false => self.malformed(Reply::BadRequest, fault.text()).await,
            };
        }
        self.entered.connection.requests.fetch_add(1, Ordering::Relaxed);
        let (head, server) = (&self.request.head, self.called.server);
        let parts = [head.method, head.authority, head.path].map(|span| span.bytes(input));
        let protocol = if head.minor == 0 { "HTTP/1.0" } else { "HTTP/1.1" };
        self.described.set(parts[0], parts[1], parts[2], server, protocol);
        let recorded = self.worker.log.settings();
        self.described.request(recorded.exchanges.as_ref(), |name| head.values(input, name).next());
        self.refresh();
        let asked = self.request.asked(self.down.input.bytes());
        let mut id = None;
        let noted = loop {
            if self.ends.are_inherited() {
                return self.inherited();
            }
            let noted = match self.request.authorize(self.down.input.bytes(), &self.ends) {
                Ok(noted) => noted,
                Err(refused) => return self.refuse(refused, end, asked).await,
            };
            if let Err(fault) = self.identify(&mut id, &recorded) {
                return self.malformed(Reply::BadRequest, fault).await;
            }
            if let Err(error) = self.connect().await {
                self.admit(noted);
                return self.fail(error.reply(), error.text(), asked.is_head).await;
            }
            // That may have taken seconds, and what is sent is judged by the rules of now.
            if !self.refresh() {
                break noted;
            }
            if let Err(fault) = self.request.parse(self.down.input.bytes(), start, end) {
                return self.malformed(Reply::BadRequest, fault.text()).await;
            }
        };
        self.admit(noted);
        let is_as_it_came = self.request.lead().is_empty();
        self.down.input.consume(if is_as_it_came { start } else { end });
        let length = if is_as_it_came { end - start } else { 0 };
        self.transfer(asked, length, &recorded).await
    }

    /// A request that has no number is given one, where that is wanted, and keeps it.
    fn identify(&mut self, id: &mut Option<String>, recorded: &Record) -> Result<(), &'static str> {
        if !recorded.request_id {
            return Ok(());
        }
        if id.is_none() && !self.request.has(self.down.input.bytes(), REQUEST_ID) {
            *id = self.worker.log.request_id();
        }
        let Some(id) = id else { return Ok(()) };
        self.described.identified(recorded.exchanges.as_ref(), id);
        self.request.add(self.down.input.bytes(), REQUEST_ID, id)
    }

    fn admit(&self, Noted { by, verdict, reason }: Noted) {
        let by = by.and_then(|by| self.ends.judges.get(by)?.as_ref());
        self.record(by.or(self.ends.speaker()), verdict, reason, None);
    }

    /// One connection to the server, made for the first request that may pass.
    async fn connect(&mut self) -> Result<(), ConnectError> {
        if self.up.is_some() {
            return Ok(());
        }
        let source = self.request.source(self.down.input.bytes());
        let authority = match self.ends.originating() {
            Some(_) => self.request.head.authority.bytes(source).to_vec(),
            None => Vec::new(),
        };
        self.connect_with(Offer::Http1, &authority).await
    }

    async fn transfer(&mut self, asked: Asked, length: usize, recorded: &Record) -> After {
        let addresses = [self.called.client, self.called.server];
        let Self { down, up: Some(up), clock, request, answer, ends, described, worker, .. } = self else {
            return After::Close;
        };
        let Ends { owners, judged, .. } = ends;
        described.passes();
        let mut transfer = Transfer::new((down, up), clock, (request, asked), answer, judged, length);
        transfer.published = Some(&worker.published);
        transfer.observer = Some((&*described, recorded.exchanges.as_ref()));
        let end = poll_fn(|cx| match owners.are_others(addresses, &worker.identities) {
            true => Poll::Ready(None),
            false => transfer.poll(cx).map(Some),
        });
        let end = end.await;
        let answered = transfer.answered;
        if let Some((code, at)) = answered {
            self.answered(code, at, Verdict::Forwarded, None);
        }
        let Some(end) = end else { return self.inherited() };
        match end {
            End::Done { keeps: true } => After::Next,
            End::Done { keeps: false } => self.linger().await,
            End::Switched => After::Switch,
            End::Gone => {
                self.described.left();
                After::Close
            }
            End::Cut(reason) => {
                match answered {
                    Some((code, at)) => self.answered(code, at, Verdict::Dropped, Some(reason)),
                    None => self.record(self.ends.speaker(), Verdict::Dropped, Some(reason), None),
                }
                After::Close
            }
            End::Failed(failure) => {
                let (reply, reason) = match failure {
                    Failure::BadRequest(fault) => (Reply::BadRequest, fault.text()),
                    Failure::BadAnswer(fault) => (Reply::BadGateway, fault.text()),
                    Failure::NoAnswer => (Reply::BadGateway, "server closed without an answer"),
                    Failure::Late => (Reply::GatewayTimeout, "no answer in time"),
                    Failure::Stalled => (Reply::Timeout, "body not complete in time"),
                    Failure::Spent => (crowded(&self.place), Kind::Bytes.spent()),
                };
                self.fail(reply, reason, asked.is_head).await
            }
        }
    }

    /// Records an answer that had its head at some time.
    fn answered(&self, code: u16, at: Instant, verdict: Verdict, reason: Option<&'static str>) {
        let since = self.arrived.map_or(Duration::ZERO, |arrived| at.duration_since(arrived));
        let latency = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        self.record(self.ends.speaker(), verdict, reason, Some((code, latency)));
    }

    /// The request does not pass. The connection goes on if what is left of the request is small and sure to come.
    async fn refuse(&mut self, refused: Refused, end: usize, asked: Asked) -> After {
        let Refused { reply, reason, by } = refused;
        let judge = by.and_then(|by| self.ends.judges.get(by)?.as_ref());
        self.record(judge.or(self.ends.speaker()), Verdict::Dropped, Some(reason), None);
        self.down.input.consume(end);
        let head = &self.request.head;
        let framing = head.framing;
        let ends_soon = match framing {
            Framing::None => true,
            Framing::Length(length) => length <= MAX_DRAIN as u64 && !head.expects,
            Framing::Chunked | Framing::Close => !head.expects,
        };
        let keeps = ends_soon
            && !head.close
            && self.up.as_ref().is_none_or(|up| !up.ended)
            && !self.worker.published.is_draining();
        if !self.reply(reply, asked.is_head, !keeps).await {
            return After::Close;
        }
        self.answered(reply.code(), Instant::now(), Verdict::Forwarded, None);
        if keeps && self.drain(framing).await { After::Next } else { self.linger().await }
    }

    /// What came is no request: nothing that follows it can be told apart.
    pub(super) async fn malformed(&mut self, reply: Reply, reason: &'static str) -> After {
        self.refresh();
        self.described.clear();
        self.record(self.ends.strict().or(self.ends.speaker()), Verdict::Dropped, Some(reason), None);
        self.fail(reply, reason, false).await
    }

    /// Answers in the server's place, and ends the connection.
    async fn fail(&mut self, reply: Reply, reason: &'static str, is_head: bool) -> After {
        if !self.reply(reply, is_head, true).await {
            return After::Close;
        }
        self.answered(reply.code(), Instant::now(), Verdict::Forwarded, Some(reason));
        self.linger().await
    }

    async fn reply(&mut self, reply: Reply, is_head: bool, closes: bool) -> bool {
        let mut answer = Vec::with_capacity(192);
        reply.write(is_head, closes, &mut answer);
        self.described.moved(0, if is_head { 0 } else { reply.body().len() as u64 });
        let stream = &mut self.down.stream;
        let sent = async {
            stream.write_all(&answer).await?;
            stream.flush().await
        };
        matches!(timeout(ANSWER, sent).await, Ok(Ok(())))
    }

    /// Throws away the body of a request that was answered; whether the next one follows.
    async fn drain(&mut self, framing: Framing) -> bool {
        let mut body = Body::new(framing);
        let mut drained = 0;
        let down = &mut self.down;
        let all = async {
            loop {
                let Ok(counted) = body.advance(down.input.bytes(), &[]) else { return false };
                down.input.consume(counted);
                drained += counted;
                if body.is_done() {
                    return true;
                }
                let is_over = drained > MAX_DRAIN || down.input.is_full();
                let filled = poll_fn(|cx| down.input.poll_fill(&mut down.stream, cx));
                if is_over || !matches!(filled.await, Ok(1..)) {
                    return false;
                }
            }
        };
        timeout(ANSWER, all).await.unwrap_or(false)
    }

    /// Ends the connection so that the client gets all that it was sent: what it sends meanwhile is read, for otherwise the
    /// kernel would reset the connection.
    pub(super) async fn linger(&mut self) -> After {
        // Nothing more is sent: it is over, however long the client goes on.
        self.finish();
        self.up = None;
        let Self { down, clock, worker, .. } = self;
        if !matches!(timeout(QUIET, down.stream.shutdown()).await, Ok(Ok(()))) {
            return After::Close;
        }
        let end = Instant::now() + LINGER;
        clock.set(QUIET);
        poll_fn(|cx| {
            while !worker.published.ends_all() {
                down.input.consume(down.input.len());
                match down.input.poll_fill(&mut down.stream, cx) {
                    Poll::Ready(Ok(1..)) => clock.set_at(end.min(Instant::now() + QUIET)),
                    Poll::Ready(_) => break,
                    Poll::Pending => return clock.poll(cx),
                }
            }
            Poll::Ready(())
        })
        .await;
        After::Close
    }

    /// Bytes both ways, for as long as they may pass.
    pub(super) async fn relay(mut self: Box<Self>, mode: Mode) {
        self.described.begin();
        self.arrived = self.arrived.or_else(|| Some(Instant::now()));
        if let Err(error) = self.connect_with(self.down.stream.offer(), &[]).await {
            self.described.unreached(error);
            return self.finish();
        }
        self.described.passes();
        let before = self.filled();
        self.relayed(mode).await;
        let after = self.filled();
        self.described.moved(after.0 - before.0, after.1 - before.1);
        self.finish();
    }

    /// One of the ends is another by now: nothing of what is under way is for it, nor an answer of ours.
    pub(super) fn inherited(&mut self) -> After {
        self.record(self.ends.speaker(), Verdict::Dropped, Some(INHERITED), None);
        self.cut();
        After::Close
    }

    /// Neither end takes what it was sent for whole.
    fn cut(&mut self) {
        self.down.stream.cut();
        if let Some(up) = &mut self.up {
            up.stream.cut();
        }
    }

    /// What has been read from the client and from the server, beyond what waits to be relayed first.
    fn filled(&self) -> (u64, u64) {
        let read = |input: &Buffer| input.filled() - input.len() as u64;
        (read(&self.down.input), self.up.as_ref().map_or(0, |up| read(&up.input)))
    }

    async fn relayed(&mut self, mut mode: Mode) {
        let mut relay = Relay::new(match &mut mode {
            Mode::Tls(_, gate) => gate.take(),
            Mode::Plain | Mode::Switched => None,
        });
        let over = loop {
            let Self { down, up: Some(up), changes, clock, ends, worker, called, request, .. } = self else {
                return;
            };
            let moves = poll_fn(|cx| {
                let changed =
                    ends.refresh(called.client, called.server, &worker.published, &worker.identities);
                let may = || match &mode {
                    Mode::Plain => ends.plain(),
                    Mode::Tls(said, _) => ends.denies_tls(said).is_none(),
                    Mode::Switched => request.is_still_allowed(ends),
                };
                if worker.published.ends_all() {
                    return Poll::Ready(Over::Stopped);
                }
                if changed && !may() {
                    return Poll::Ready(Over::Withdrawn);
                }
                let moved = relay.poll(down, up, cx);
                // Nobody tells that an address is another's: the timer has it looked at, however long nothing moves.
                while moved.is_pending() && clock.poll(cx).is_ready() {
                    clock.set(IDLE);
                }
                if clock.is_time_to_look() {
                    down.input.rest();
                    up.input.rest();
                }
                moved.map(|moved| if moved.is_ok() { Over::Ended } else { Over::Broken })
            });
            tokio::select! {
                biased;
                over = moves => break over,
                _ = changes.changed() => {}
            }
        };
        if over != Over::Ended {
            self.cut();
        }
        if let Some(fault) = relay.fault {
            return self.record(
                self.ends.strict().or(self.ends.speaker()),
                Verdict::Dropped,
                Some(fault),
                None,
            );
        }
        if over == Over::Stopped {
            return self.record(self.ends.speaker(), Verdict::Dropped, Some(ENDED), None);
        }
        if over == Over::Withdrawn {
            let judge = match &mode {
                Mode::Tls(said, _) => self.ends.denies_tls(said).and_then(|(judge, _)| judge),
                Mode::Plain | Mode::Switched => self.ends.strict(),
            };
            let judge = judge.or(self.ends.speaker());
            self.record(judge, Verdict::Dropped, Some(self.ends.withdrawal()), None);
        }
    }
}

/// Whether the first line names HTTP at all: who speaks something else could not read an answer of HTTP.
fn names_http(head: &[u8]) -> bool {
    let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    memchr::memmem::find(line, b" HTTP/").is_some()
}
