//! One stream, from its head to its end: the stages, and the exchange with the server.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use mesh::flow::Verdict;
use tokio::time::Instant;

use super::head::{Head, is_grpc};
use super::shared::{Live, Order, Shared};
use super::transfer::{End, Transfer, why};
use super::upstream::Absent;
use crate::index::{Edit, Subject};
use crate::record::REQUEST_ID;
use crate::runtime::connection::crowded;
use crate::runtime::ends::{Identities, WITHDRAWN};
use crate::runtime::log::Described;
use crate::runtime::reply::Reply;
use crate::runtime::transfer::{PATIENCE, STALL};
use crate::runtime::verdict::{Judged, Noted, Refused, authorize};
use crate::runtime::worker::ENDED;
use crate::stage::admit::Kind;

/// A stream of a client.
struct Stream<'s, 'w, I> {
    shared: &'s Shared<'w, I>,
    /// Its number at the client.
    id: u32,
    live: Rc<Live>,
    described: Described,
    /// The number that its request was given.
    number: Option<String>,
    arrived: Instant,
    is_head: bool,
    is_grpc: bool,
}

/// Why a request does not go to the server.
enum Stop {
    Refused(Refused),
    Ended(End),
}

impl From<Refused> for Stop {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

/// Serves a stream to its end.
pub(super) async fn serve<I: Identities>(
    shared: &Shared<'_, I>,
    live: Rc<Live>,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
) {
    let id = respond.stream_id().as_u32();
    let (parts, body) = request.into_parts();
    let mut stream = Stream {
        shared,
        id,
        live,
        described: Described::default(),
        number: None,
        arrived: Instant::now(),
        is_head: parts.method == Method::HEAD,
        is_grpc: is_grpc(&parts.headers),
    };
    shared.entered.connection.requests.fetch_add(1, Ordering::Relaxed);
    stream.describe(&parts);
    stream.run(parts, body, respond).await;
    shared.finish(&stream.described, stream.arrived);
    shared.end(id);
}

impl<I: Identities> Stream<'_, '_, I> {
    fn describe(&mut self, parts: &Parts) {
        let authority = parts.uri.authority().map(|authority| authority.as_str().as_bytes());
        let host = || parts.headers.get(HOST).map(HeaderValue::as_bytes);
        let path = parts.uri.path_and_query().map_or("", |path| path.as_str());
        let (method, server) = (parts.method.as_str().as_bytes(), self.shared.called.server);
        let authority = authority.or_else(host).unwrap_or_default();
        if self.shared.ends.borrow().is_opened() {
            self.described.opened();
        }
        self.described.set(method, authority, path.as_bytes(), server, "HTTP/2");
        let recorded = self.shared.worker.log.settings();
        let first = |name: &str| parts.headers.get(name).map(HeaderValue::as_bytes);
        self.described.request(recorded.exchanges.as_ref(), first);
    }

    async fn run(&mut self, parts: Parts, mut body: RecvStream, mut respond: SendResponse<Bytes>) {
        if !self.shared.hold(self.id) {
            let (reply, reason) = (crowded(&self.shared.place), Kind::Streams.spent());
            return self.refuse(Refused { reply, reason, by: None }, &mut respond);
        }
        let (head, request) = match self.pass(parts, &mut body, &mut respond).await {
            Ok(passing) => passing,
            Err(Stop::Refused(refused)) => return self.refuse(refused, &mut respond),
            Err(Stop::Ended(end)) => return self.end_early(end, &mut respond),
        };
        let is_tunnel = head.is_tunnel();
        if head.is_extended() && !self.shared.upstream.is_extended() {
            let reason = "server does not take CONNECT for other protocols";
            return self.end_early(End::Failed(Reply::BadGateway, reason), &mut respond);
        }
        let is_over = body.is_end_stream();
        self.live.head.replace(Some(head));
        self.described.passes();
        let Some((answer, up)) = self.shared.upstream.send(request, is_over, &self.live) else {
            let end = End::Failed(Reply::Unavailable, "server takes no more streams");
            return self.end_early(end, &mut respond);
        };
        let judged = self.shared.ends.borrow().judged.clone();
        let recorded = self.shared.worker.log.settings();
        let mut transfer = Transfer::new(body, up, is_over, answer, respond, judged, recorded);
        let end = poll_fn(|cx| self.poll(&mut transfer, is_tunnel, cx)).await;
        self.finish(end, &mut transfer);
    }

    /// Waits until the request may be sent, and says how the rules of then have it: nothing may come between that and sending.
    async fn pass(
        &mut self,
        parts: Parts,
        body: &mut RecvStream,
        respond: &mut SendResponse<Bytes>,
    ) -> Result<(Head, Request<()>), Stop> {
        let mut came = Some(parts);
        loop {
            // What has to wait may have to be read once more, as it came.
            let is_free = self.shared.upstream.is_free(self.id);
            let parts = if is_free { came.take() } else { came.clone() };
            let Some(parts) = parts else { return Err(Stop::Ended(absence(Absent::Over))) };
            let (head, noted) = self.judge(parts)?;
            match self.wait(body, respond).await {
                Ok(true) => {
                    let request = head.forward().map_err(Refused::malformed)?;
                    self.admit(noted);
                    if !is_free {
                        self.live.moved.set(Instant::now());
                    }
                    return Ok((head, request));
                }
                Ok(false) => {}
                Err(end) => {
                    self.admit(noted);
                    return Err(Stop::Ended(end));
                }
            }
        }
    }

    /// Reads the request, and asks the rules of now, which may edit it.
    fn judge(&mut self, parts: Parts) -> Result<(Head, Noted), Refused> {
        self.live.judged();
        let mut head = Head::read(parts).map_err(Refused::malformed)?;
        let ends = self.shared.ends.borrow();
        let noted = authorize(&mut head, &ends)?;
        self.identify(&mut head).map_err(Refused::malformed)?;
        if let Some(is_tls) = ends.leads_to_tls() {
            head.lead_to(is_tls);
        }
        if ends.originating().is_some() {
            self.shared.upstream.ask(head.authority());
        }
        Ok((head, noted))
    }

    fn admit(&self, Noted { by, verdict, reason }: Noted) {
        self.shared.record(&self.described, by, verdict, reason, None);
    }

    /// A request that has no number is given one, where that is wanted, and keeps it.
    fn identify(&mut self, head: &mut Head) -> Result<(), &'static str> {
        if (&*head).header(REQUEST_ID).next().is_some() {
            return Ok(());
        }
        if self.number.is_none() {
            self.number = self.shared.worker.log.request_id();
        }
        let Some(id) = &self.number else { return Ok(()) };
        self.described.identified(self.shared.worker.log.settings().exchanges.as_ref(), id);
        head.edit(&[Edit::Add(REQUEST_ID, id)])
    }

    /// Waits until the request may be sent; `false`: rules or identities have changed, so that it has to be judged anew.
    async fn wait(&self, body: &mut RecvStream, respond: &mut SendResponse<Bytes>) -> Result<bool, End> {
        let waited = poll_fn(|cx| {
            if self.live.is_overdue() {
                let is_inherited = self.shared.ends.borrow().are_inherited();
                return Poll::Ready(if is_inherited { Err(End::Withdrawn) } else { Ok(false) });
            }
            if let Some(order) = self.shared.order(&self.live, cx) {
                return Poll::Ready(Err(self.obey(order, None)));
            }
            if let Poll::Ready(reason) = respond.poll_reset(cx) {
                return Poll::Ready(Err(why(body, cx, reason)));
            }
            self.shared.upstream.poll(self.id, cx).map_ok(|()| true).map_err(absence)
        });
        let waited = waited.await;
        self.shared.upstream.leave(self.id);
        waited
    }

    fn poll(&self, transfer: &mut Transfer, is_tunnel: bool, cx: &mut Context<'_>) -> Poll<End> {
        if let Some(order) = self.shared.order(&self.live, cx) {
            return Poll::Ready(self.obey(order, Some(transfer)));
        }
        let (has_moved, end) = transfer.poll(cx);
        if has_moved && end.is_pending() {
            self.live.moved.set(Instant::now());
        }
        self.live.patience.set(self.patience(transfer, is_tunnel));
        end
    }

    /// How long nothing may move. Calls of gRPC, once answered, and tunnels may be silent for ever, while both ends may speak.
    fn patience(&self, transfer: &Transfer, is_tunnel: bool) -> Option<Duration> {
        let is_answered = transfer.answered.is_some();
        match () {
            () if transfer.is_blocked() => Some(STALL),
            () if is_answered && transfer.is_answering() && (is_tunnel || self.is_grpc) => None,
            () if !is_answered && !is_tunnel && !self.is_grpc && transfer.is_uploading() => Some(STALL),
            () => Some(PATIENCE),
        }
    }

    fn obey(&self, order: Order, transfer: Option<&Transfer>) -> End {
        match (order, transfer) {
            (Order::Withdrawn, _) => End::Withdrawn,
            (Order::Ended, _) => End::Cut(Reason::CANCEL, ENDED),
            (Order::Late, Some(transfer)) if transfer.answered.is_some() => {
                End::Cut(Reason::CANCEL, "no byte for too long")
            }
            (Order::Late, Some(transfer)) if transfer.is_uploading() => {
                End::Failed(Reply::Timeout, "body not complete in time")
            }
            (Order::Late, _) => End::Failed(Reply::GatewayTimeout, "no answer in time"),
        }
    }

    /// The request does not pass.
    fn refuse(&self, refused: Refused, respond: &mut SendResponse<Bytes>) {
        let Refused { reply, reason, by } = refused;
        self.shared.record(&self.described, by, Verdict::Dropped, Some(reason), None);
        self.reply(reply, None, respond);
    }

    /// Nothing has been sent to the server.
    fn end_early(&self, end: End, respond: &mut SendResponse<Bytes>) {
        match end {
            End::Failed(reply, reason) => self.reply(reply, Some(reason), respond),
            End::Withdrawn => {
                respond.send_reset(Reason::CANCEL);
                self.dropped(WITHDRAWN);
            }
            End::Cut(code, reason) => {
                respond.send_reset(code);
                self.dropped(reason);
            }
            End::Gone(_) => {
                self.described.left();
                self.shared.wasted();
            }
            End::Malformed(reason) => self.malformed(reason),
            End::Done => {}
        }
    }

    fn finish(&self, end: End, transfer: &mut Transfer) {
        let answered = transfer.answered;
        let (received, sent) = transfer.passed();
        self.described.moved(received, sent);
        self.described.responded(std::mem::take(&mut transfer.kept));
        if let Some((code, at)) = answered {
            self.answer(code, at, Verdict::Forwarded, None);
        }
        match end {
            End::Done => self.shared.answered(),
            End::Failed(reply, reason) => {
                transfer.reset(None, Reason::CANCEL);
                self.reply(reply, Some(reason), transfer.respond());
            }
            End::Gone(reason) => {
                self.described.left();
                transfer.reset(None, reason);
                if answered.is_none() {
                    self.shared.wasted();
                }
            }
            End::Malformed(reason) => {
                transfer.reset(None, Reason::CANCEL);
                self.malformed(reason);
            }
            End::Cut(code, reason) => {
                transfer.reset(Some(code), Reason::CANCEL);
                match answered {
                    Some((status, at)) => self.answer(status, at, Verdict::Dropped, Some(reason)),
                    None => self.dropped(reason),
                }
            }
            End::Withdrawn => {
                transfer.reset(Some(Reason::CANCEL), Reason::CANCEL);
                self.dropped(WITHDRAWN);
            }
        }
    }

    /// What h2 has refused was of this request.
    fn malformed(&self, reason: &'static str) {
        self.dropped(reason);
        self.shared.wasted();
    }

    /// The request was let through and has come to nothing.
    fn dropped(&self, reason: &'static str) {
        self.shared.record(&self.described, None, Verdict::Dropped, Some(reason), None);
    }

    /// Answers in the server's place: a call of gRPC as gRPC has it, in trailers alone.
    fn reply(&self, reply: Reply, reason: Option<&'static str>, respond: &mut SendResponse<Bytes>) {
        let mut head = Response::new(());
        let (body, headers) = (reply.body(), head.headers_mut());
        let text = if self.is_grpc {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert("grpc-status", HeaderValue::from_static(reply.grpc()));
            headers.insert("grpc-message", HeaderValue::from_static(body.trim_ascii_end()));
            ""
        } else {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
            headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
            *head.status_mut() = StatusCode::from_u16(reply.code()).unwrap_or(StatusCode::BAD_GATEWAY);
            if self.is_head { "" } else { body }
        };
        let code = head.status().as_u16();
        let Ok(mut to) = respond.send_response(head, text.is_empty()) else { return };
        // Some bytes wait for the client's window in h2; they are fewer than what h2 keeps of a head.
        let is_sent = text.is_empty() || to.send_data(Bytes::from_static(text.as_bytes()), true).is_ok();
        if is_sent {
            self.described.moved(0, text.len() as u64);
            self.answer(code, Instant::now(), Verdict::Forwarded, reason);
        }
    }

    fn answer(&self, code: u16, at: Instant, verdict: Verdict, reason: Option<&'static str>) {
        let latency = u64::try_from(at.duration_since(self.arrived).as_nanos()).unwrap_or(u64::MAX);
        self.shared.record(&self.described, None, verdict, reason, Some((code, latency)));
    }
}

fn absence(absent: Absent) -> End {
    match absent {
        Absent::Failed(error) => End::Failed(error.reply(), error.text()),
        // Nothing has been sent: the client may ask again, on another connection.
        Absent::Over => End::Cut(Reason::REFUSED_STREAM, "server takes no more streams"),
    }
}
