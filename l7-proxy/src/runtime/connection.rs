//! A connection of a client: what it speaks, its requests one after the other, its end.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::task::{Context, Poll};
use std::time::Duration;

use mesh::flow::Verdict;
use tokio::sync::watch;
use tokio::time::Instant;

use super::deadline::Deadline;
use super::ends::{Ends, Identities};
use super::log::{Described, Over, Said};
use super::reply::Reply;
use super::request::Request;
use super::transfer::Side;
use super::worker::{Entered, Worker};
use super::{Stream, http2};
use crate::codec::{Fault, ResponseHead, Scan};
use crate::stage::authorize::Judge;
use crate::stage::detect::{Protocol, detect};

/// How long a client may be silent before it is known what it speaks.
pub(super) const SILENCE: Duration = Duration::from_secs(5);
/// How long a head may take from its first byte to its last.
pub(super) const HEAD: Duration = Duration::from_secs(60);
/// How long a connection may be idle between requests.
pub(super) const IDLE: Duration = Duration::from_secs(3600);
/// The two ends of a client's connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Called {
    /// Who opened it.
    pub client: SocketAddr,
    /// Whom it called.
    pub server: SocketAddr,
}

/// Why the server cannot be reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConnectError {
    /// It has not answered in time.
    Late,
    /// It refused, or there is no way to it.
    Refused,
}

impl ConnectError {
    /// For flows and logs.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Late => "server not reached in time",
            Self::Refused => "server not reached",
        }
    }
}

/// Serves a client's connection to its end. `connect` makes the one connection to the server, and says what its local
/// address is.
pub async fn serve<D, U, I, C>(down: D, called: Called, worker: &Worker<I>, connect: C)
where
    D: Stream,
    U: Stream,
    I: Identities,
    C: AsyncFn() -> Result<(U, Option<SocketAddr>), ConnectError>,
{
    let session = Session {
        entered: worker.enter(called.client, called.server),
        changes: worker.published.subscribe(),
        worker,
        called,
        connect,
        down: Side::new(down),
        up: None,
        ends: Ends::default(),
        clock: Deadline::new(),
        scan: Scan::default(),
        request: Request::default(),
        answer: ResponseHead::default(),
        described: Described::default(),
        arrived: None,
    };
    session.run().await;
}

/// A client's connection.
pub(super) struct Session<'w, D, U, I, C> {
    pub(super) worker: &'w Worker<I>,
    pub(super) called: Called,
    pub(super) connect: C,
    pub(super) down: Side<D>,
    pub(super) up: Option<Side<U>>,
    pub(super) ends: Ends,
    pub(super) entered: Entered,
    pub(super) changes: watch::Receiver<()>,
    pub(super) clock: Deadline,
    pub(super) scan: Scan,
    pub(super) request: Request,
    pub(super) answer: ResponseHead,
    pub(super) described: Described,
    /// When the first byte of the request under way was there.
    pub(super) arrived: Option<Instant>,
}

/// What follows an exchange.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum After {
    Next,
    Switch,
    /// What came is not HTTP.
    Foreign,
    Close,
}

/// Why bytes are relayed untouched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mode {
    /// The client may do anything.
    Plain,
    /// A request has been answered with another protocol.
    Switched,
}

/// What a client sends next.
#[derive(Debug)]
enum Next {
    Head(usize, usize),
    Fault(Fault),
    Late,
    Over,
}

impl<D, U, I, C> Session<'_, D, U, I, C>
where
    D: Stream,
    U: Stream,
    I: Identities,
    C: AsyncFn() -> Result<(U, Option<SocketAddr>), ConnectError>,
{
    async fn run(mut self) {
        self.refresh();
        if let Some(reason) = self.ends.refusal {
            return self.record(self.ends.speaker(), Verdict::Dropped, Some(reason), None);
        }
        if self.ends.strict().is_none() {
            return match self.ends.is_granted() {
                true => self.relay(Mode::Plain).await,
                // The kernel sends nobody here whom no rules are about, but for what rules that are gone still had on the way.
                false => self.record(self.ends.speaker(), Verdict::Dropped, Some("no rules for it"), None),
            };
        }
        match self.detect().await {
            Ok(Protocol::Http1) => {
                self.speaks("HTTP/1.1");
                self.requests().await;
            }
            Ok(Protocol::Http2) => {
                self.speaks("HTTP/2");
                // Boxed: an idle connection of HTTP/1 has no room for it.
                Box::pin(http2::serve(self)).await;
            }
            Ok(other) => self.foreign(other.refusal()).await,
            Err(Some(reason)) => self.foreign(reason).await,
            Err(None) => {}
        }
    }

    /// Looks again at who the ends are, and says whether anything may have changed.
    pub(super) fn refresh(&mut self) -> bool {
        let Called { client, server } = self.called;
        self.ends.refresh(client, server, &self.worker.published, &self.worker.identities)
    }

    pub(super) fn speaks(&self, protocol: &'static str) {
        self.entered.connection.known.lock().1 = Some(protocol);
    }

    pub(super) fn record(
        &self,
        judge: Option<&Judge>,
        verdict: Verdict,
        reason: Option<&'static str>,
        answer: Option<(u16, u64)>,
    ) {
        let ends = [self.called.client, self.called.server];
        let request = &self.described;
        self.worker.log.record(&Said { ends, who: &self.ends, judge, request, verdict, reason, answer });
    }

    /// The exchange is over, if one was under way.
    pub(super) fn finish(&self) {
        let ends = [self.called.client, self.called.server];
        let (who, request, since) = (&self.ends, &self.described, self.arrived);
        self.worker.log.finish(&Over { ends, who, request, since });
    }

    /// *detect*: what the client speaks; `None`: it has gone.
    async fn detect(&mut self) -> Result<Protocol, Option<&'static str>> {
        self.clock.set(SILENCE);
        let Self { down, clock, .. } = self;
        poll_fn(|cx| {
            loop {
                if let Some(protocol) = detect(down.input.bytes()) {
                    return Poll::Ready(Ok(protocol));
                }
                match down.input.poll_fill(&mut down.stream, cx) {
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(None)),
                    Poll::Ready(Ok(_)) => {}
                    Poll::Pending => break,
                }
            }
            clock.poll(cx).map(|()| Err(Some("silent, where HTTP is required")))
        })
        .await
    }

    /// What is not HTTP passes only if it may be anything by now.
    async fn foreign(mut self, reason: &'static str) {
        self.refresh();
        if !self.ends.plain() {
            return self.record(self.ends.strict(), Verdict::Dropped, Some(reason), None);
        }
        if let Some(strict) = self.ends.strict() {
            self.record(Some(strict), Verdict::Audit, Some(reason), None);
        }
        self.relay(Mode::Plain).await;
    }

    /// Requests, one after the other.
    async fn requests(mut self) {
        loop {
            self.arrived = (!self.down.input.is_empty()).then(Instant::now);
            self.clock.set(if self.arrived.is_some() { HEAD } else { IDLE });
            let after = match self.next().await {
                Next::Head(start, end) => self.exchange(start, end).await,
                Next::Fault(fault) => self.malformed(Reply::BadRequest, fault.text()).await,
                Next::Late if self.down.input.is_empty() => After::Close,
                Next::Late => self.malformed(Reply::Timeout, "head not complete in time").await,
                Next::Over => After::Close,
            };
            if after != After::Switch {
                self.finish();
            }
            match after {
                After::Next => {}
                After::Switch => return self.relay(Mode::Switched).await,
                After::Foreign => return self.foreign(Protocol::Unknown.refusal()).await,
                After::Close => return,
            }
            self.down.input.rest();
            if let Some(up) = &mut self.up {
                up.input.rest();
            }
        }
    }

    async fn next(&mut self) -> Next {
        self.scan = Scan::default();
        loop {
            let Self { down, up, scan, clock, arrived, changes, .. } = self;
            let head = poll_fn(|cx| poll_head((&mut *down, up.as_mut()), scan, clock, arrived, cx));
            tokio::select! {
                biased;
                next = head => return next,
                _ = changes.changed() => {}
            }
            if self.worker.published.is_draining() && self.down.input.is_empty() {
                return Next::Over;
            }
        }
    }
}

fn poll_head<D: Stream, U: Stream>(
    (down, up): (&mut Side<D>, Option<&mut Side<U>>),
    scan: &mut Scan,
    clock: &mut Deadline,
    arrived: &mut Option<Instant>,
    cx: &mut Context<'_>,
) -> Poll<Next> {
    // A server that closes, or speaks unasked, ends the connection: its next words would answer the wrong request.
    if let Some(up) = up
        && up.input.poll_fill(&mut up.stream, cx).is_ready()
    {
        return Poll::Ready(Next::Over);
    }
    loop {
        match scan.find(down.input.bytes()) {
            Ok(Some((start, end))) => return Poll::Ready(Next::Head(start, end)),
            Ok(None) => {}
            Err(fault) => return Poll::Ready(Next::Fault(fault)),
        }
        if down.ended {
            return Poll::Ready(Next::Over);
        }
        match down.input.poll_fill(&mut down.stream, cx) {
            Poll::Ready(Ok(0) | Err(_)) => down.ended = true,
            Poll::Ready(Ok(_)) if arrived.is_none() => {
                *arrived = Some(Instant::now());
                clock.set(HEAD);
            }
            Poll::Ready(Ok(_)) => {}
            Poll::Pending => break,
        }
    }
    clock.poll(cx).map(|()| Next::Late)
}
