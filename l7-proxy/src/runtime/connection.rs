//! A connection of a client: what it speaks, its requests one after the other, its end.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use mesh::flow::Verdict;
use tokio::sync::watch;
use tokio::time::Instant;

use super::deadline::Deadline;
use super::ends::{Ends, Identities, Opening};
use super::inspection::Begun;
use super::log::{Described, Over, Said};
use super::open::Greeted;
use super::reply::Reply;
use super::request::Request;
use super::transfer::Side;
use super::waiting::{Next, Waiting, holds};
use super::wire::Wire;
use super::worker::{Entered, Worker};
use super::{Stream, http2, turn};
use crate::codec::{ResponseHead, Scan, SecondHello};
use crate::stage::admit::{Held, Kind, Place};
use crate::stage::authorize::{Judge, NOT_TLS};
use crate::stage::detect::{Protocol, detect};
use crate::stage::server_name::Greeting;

/// How long a client may be silent before it is known what it speaks.
pub(super) const SILENCE: Duration = Duration::from_secs(5);
/// How long a head may take from its first byte to its last.
pub(super) const HEAD: Duration = Duration::from_secs(60);
/// How long a connection may be idle between requests.
pub(super) const IDLE: Duration = Duration::from_secs(3600);
/// Why a client is closed that does not say what it speaks.
const SILENT: &str = "silent, where HTTP is required";

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
    /// It speaks no TLS, or will not with us.
    NoTls,
    /// Its certificate is not of whom the client has named, or nobody's whom rules trust.
    Untrusted,
    /// It does not speak the version of HTTP that the client does.
    Unsuited,
}

impl ConnectError {
    /// For flows and logs.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Late => "server not reached in time",
            Self::Refused => "server not reached",
            Self::NoTls => "TLS handshake with the server failed",
            Self::Untrusted => "certificate of the server not trusted",
            Self::Unsuited => "server without HTTP/2 in TLS",
        }
    }

    /// What a client is answered.
    pub(super) fn reply(self) -> Reply {
        match self {
            Self::Late => Reply::GatewayTimeout,
            Self::Refused | Self::NoTls | Self::Untrusted => Reply::Unavailable,
            Self::Unsuited => Reply::BadGateway,
        }
    }
}

/// Serves a client's connection to its end, if the workload's budget has a place for it. `connect` makes the one connection
/// to the server, and says what its local address is.
pub async fn serve<D, U, I, C>(down: D, called: Called, worker: &Worker<I>, connect: C)
where
    D: Stream,
    U: Stream,
    I: Identities,
    C: AsyncFn() -> Result<(U, Option<SocketAddr>), ConnectError>,
{
    if let Ok(place) = worker.admit(called) {
        serve_admitted(down, called, place, worker, connect).await;
    }
}

/// The same for one that has its place.
pub async fn serve_admitted<D, U, I, C>(down: D, called: Called, place: Place, worker: &Worker<I>, connect: C)
where
    D: Stream,
    U: Stream,
    I: Identities,
    C: AsyncFn() -> Result<(U, Option<SocketAddr>), ConnectError>,
{
    // Boxed: each function that it is moved to would have room for another one.
    let session = Box::new(Session {
        entered: worker.enter(called.client, called.server),
        changes: worker.published.subscribe(),
        worker,
        called,
        connect,
        down: Side::new(Wire::Plain(down), Arc::clone(&place.account)),
        up: None,
        place,
        head: None,
        ends: Ends::default(),
        clock: Deadline::new(),
        scan: Scan::default(),
        request: Request::default(),
        answer: ResponseHead::default(),
        described: Described::default(),
        arrived: None,
    });
    session.run().await;
}

/// A client's connection.
pub(super) struct Session<'w, D: Stream, U: Stream, I, C> {
    pub(super) worker: &'w Worker<I>,
    pub(super) called: Called,
    pub(super) connect: C,
    pub(super) down: Side<Wire<D>>,
    pub(super) up: Option<Side<Wire<U>>>,
    pub(super) place: Place,
    /// While a head is there in part.
    pub(super) head: Option<Held>,
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
#[derive(Debug)]
pub(super) enum Mode {
    /// The client may do anything.
    Plain,
    /// It is TLS whose client says this, to a server that rules name; a second ClientHello says the same.
    Tls(Greeting, Option<Box<SecondHello>>),
    /// A request has been answered with another protocol.
    Switched,
}

impl<D, U, I, C> Session<'_, D, U, I, C>
where
    D: Stream,
    U: Stream,
    I: Identities,
    C: AsyncFn() -> Result<(U, Option<SocketAddr>), ConnectError>,
{
    async fn run(mut self: Box<Self>) {
        self.refresh();
        if self.ends.takes_clear().is_none() {
            self.ends.begin(Begun::Clear);
        }
        match self.ends.opening() {
            Opening::Refused(reason) => {
                return self.record(self.ends.speaker(), Verdict::Dropped, Some(reason), None);
            }
            Opening::Relayed => return self.relay(Mode::Plain).await,
            Opening::Judged => {}
        }
        let detected = self.detect().await;
        // Whoever reads on holds it anew.
        self.head = None;
        self.refresh();
        if detected == Ok(Protocol::Tls) {
            // Boxed: an idle connection of HTTP/1 has no room for it.
            return Box::pin(self.begun_with_tls()).await;
        }
        if self.ends.takes_clear() == Some(true) {
            self.ends.begin(Begun::Clear);
        }
        self.spoken(detected).await;
    }

    /// TLS that is opened is gone on with as what is inside.
    async fn begun_with_tls(mut self: Box<Self>) {
        let Some((said, read)) = self.greeting().await else { return };
        match self.open(&said).await {
            Greeted::Untouched => self.tls(said, read).await,
            Greeted::Opened if self.ends.plain() => self.relay(Mode::Plain).await,
            Greeted::Opened => {
                let detected = self.detect_inside().await;
                self.spoken(detected).await;
            }
            Greeted::Over => {}
        }
    }

    /// What the client speaks is known, or why it is not.
    async fn spoken(mut self: Box<Self>, detected: Result<Protocol, Option<&'static str>>) {
        let is_for_tls = self.ends.is_for_tls();
        match detected {
            // Inside TLS.
            Ok(Protocol::Tls) => self.foreign(Protocol::Tls.refusal()).await,
            Ok(_) if is_for_tls => {
                self.described.set_tls(None);
                self.foreign(NOT_TLS).await;
            }
            Ok(Protocol::Http1) => {
                self.speaks("HTTP/1.1");
                self.requests().await;
            }
            Ok(Protocol::Http2) => {
                self.speaks("HTTP/2");
                // Boxed, too.
                Box::pin(http2::serve(*self)).await;
            }
            Ok(Protocol::Unknown) => self.foreign(Protocol::Unknown.refusal()).await,
            Err(Some(reason)) if is_for_tls => {
                self.described.set_tls(None);
                self.foreign(if reason == SILENT { "silent, where TLS is required" } else { reason }).await;
            }
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

    /// *detect*: what the client speaks, or why it is not waited for any more; `None`: it has gone.
    async fn detect(&mut self) -> Result<Protocol, Option<&'static str>> {
        self.clock.set(SILENCE);
        let Self { down, clock, head: held, place, .. } = self;
        poll_fn(|cx| {
            loop {
                if let Some(protocol) = detect(down.input.bytes()) {
                    return Poll::Ready(Ok(protocol));
                }
                if !holds(held, &down.input, &place.account) {
                    return Poll::Ready(Err(Some(Kind::Heads.spent())));
                }
                match down.input.poll_fill(&mut down.stream, cx) {
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(None)),
                    Poll::Ready(Ok(_)) => {}
                    Poll::Pending => break,
                }
            }
            clock.poll(cx).map(|()| Err(Some(SILENT)))
        })
        .await
    }

    /// The same inside TLS that the proxy has ended. Which HTTP both ends have agreed on is what they speak.
    async fn detect_inside(&mut self) -> Result<Protocol, Option<&'static str>> {
        let detected = self.detect().await;
        self.head = None;
        self.refresh();
        if self.up.as_ref().is_some_and(|up| up.stream.is_http2()) != (detected == Ok(Protocol::Http2)) {
            self.up = None;
        }
        detected
    }

    /// What is neither HTTP nor TLS, or not the one that is asked for, passes only if it may be anything by now.
    async fn foreign(mut self: Box<Self>, reason: &'static str) {
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
    async fn requests(mut self: Box<Self>) {
        loop {
            self.arrived = (!self.down.input.is_empty()).then(Instant::now);
            self.clock.set(if self.arrived.is_some() { HEAD } else { IDLE });
            let after = match self.next().await {
                Next::Head(start, end) => self.exchange(start, end).await,
                Next::Fault(fault) => self.malformed(Reply::BadRequest, fault.text()).await,
                Next::Spent(kind) => self.malformed(crowded(&self.place), kind.spent()).await,
                Next::Late if self.down.input.is_empty() => After::Close,
                Next::Late => self.malformed(Reply::Timeout, "head not complete in time").await,
                Next::Over => After::Close,
                // The client may be sending by now: an answer before this may not be destroyed by that.
                Next::Left => self.linger().await,
                Next::Inherited => {
                    self.described.clear();
                    self.inherited()
                }
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
            self.request.rest();
            self.described.rest();
            if let Some(up) = &mut self.up {
                up.input.rest();
            }
        }
    }

    async fn next(&mut self) -> Next {
        self.scan = Scan::default();
        // Requests that are here already are judged without a read: they count, too.
        poll_fn(|cx| turn::step(turn::LOOK, cx)).await;
        loop {
            let Self { down, up, scan, clock, arrived, changes, head: held, place, .. } = self;
            let (ends, owners) = ([self.called.client, self.called.server], &mut self.ends.owners);
            let mut waiting = Waiting { scan, clock, arrived, held, account: &place.account };
            let head = poll_fn(|cx| match owners.are_others(ends, &self.worker.identities) {
                true => Poll::Ready(Next::Inherited),
                false => waiting.poll(down, up.as_mut(), cx),
            });
            tokio::select! {
                biased;
                next = head => {
                    self.head = None;
                    return next;
                }
                _ = changes.changed() => {}
            }
            let published = &self.worker.published;
            if published.ends_all() || published.ends_idle() && self.down.input.is_empty() {
                return Next::Over;
            }
        }
    }
}

/// What is answered where a workload has too much under way.
pub(super) fn crowded(place: &Place) -> Reply {
    if place.is_callers { Reply::TooMany } else { Reply::Unavailable }
}
