//! *exchange* on HTTP/2: a request that may pass and the answer to it, both ways at the same time.
//!
//! Of each body one frame is held here, small ones behind it and one more; the rest is read only when that has been taken, and the
//! sender's window opens only then. An answer that comes early is delivered though the upload goes on.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::server::SendResponse;
use h2::{Error, Reason, RecvStream, SendStream};
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use node_api::proxy::Record;
use tokio::time::Instant;

use super::pump::{Broken, Pump};
use crate::codec::Fault;
use crate::record::{keep, names};
use crate::runtime::reply::Reply;

/// Interim responses to one request.
const MAX_INTERIM: u32 = 32;

/// How an exchange ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// Both messages are through.
    Done,
    /// Nothing of an answer has been sent, and none will come.
    Failed(Reply, &'static str),
    /// The client has given up, with this code.
    Gone(Reason),
    /// What came behind the head of the request is none of its body, and h2 has refused it.
    Malformed(&'static str),
    /// Rules do not let it pass any more.
    Withdrawn,
    /// It is for the client to know that there is no answer, or no more of it.
    Cut(Reason, &'static str),
}

/// What there is of an answer.
enum Phase {
    Head(ResponseFuture),
    Body(Pump),
}

/// An exchange under way.
pub(super) struct Transfer {
    upload: Pump,
    is_up: bool,
    phase: Phase,
    /// More of the answer is to come.
    is_down: bool,
    respond: SendResponse<Bytes>,
    interim: u32,
    /// Who keeps headers of the answer.
    recorded: Arc<Record>,
    pub(super) kept: Vec<(String, String)>,
    /// Status of the answer, and when its head was there.
    pub(super) answered: Option<(u16, Instant)>,
}

impl Transfer {
    pub(super) fn new(
        body: RecvStream,
        up: SendStream<Bytes>,
        is_over: bool,
        answer: ResponseFuture,
        respond: SendResponse<Bytes>,
        judged: Box<[Box<str>]>,
        recorded: Arc<Record>,
    ) -> Self {
        let upload = Pump::new(body, up, Some(judged));
        let phase = Phase::Head(answer);
        let (is_up, is_down, interim, kept, answered) = (!is_over, true, 0, Vec::new(), None);
        Self { upload, is_up, phase, is_down, respond, interim, recorded, kept, answered }
    }

    /// Moves what can be moved, and says whether anything has.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> (bool, Poll<End>) {
        let mut moved = false;
        loop {
            let step = match (self.upload(cx), self.download(cx)) {
                (Err(end), _) | (_, Err(end)) => return (moved, Poll::Ready(end)),
                (Ok(up), Ok(down)) => up | down,
            };
            moved |= step;
            if !self.is_down && !self.is_up {
                return (moved, Poll::Ready(End::Done));
            }
            if !step {
                return (moved, Poll::Pending);
            }
        }
    }

    /// Bytes of bodies that have been passed on: the request's, and the answer's.
    pub(super) fn passed(&self) -> (u64, u64) {
        let sent = if let Phase::Body(pump) = &self.phase { pump.passed() } else { 0 };
        (self.upload.passed(), sent)
    }

    /// Whether the client does not take what it is sent.
    pub(super) fn is_blocked(&self) -> bool {
        matches!(&self.phase, Phase::Body(pump) if pump.is_holding())
    }

    /// Whether more of the answer is to come.
    pub(super) fn is_answering(&self) -> bool {
        self.is_down
    }

    /// Whether more of the request is awaited.
    pub(super) fn is_uploading(&self) -> bool {
        self.is_up && !self.upload.is_holding()
    }

    /// Gives up both streams.
    pub(super) fn reset(&mut self, down: Option<Reason>, up: Reason) {
        self.upload.to().send_reset(up);
        match (down, &mut self.phase) {
            (Some(reason), Phase::Body(pump)) => pump.to().send_reset(reason),
            (Some(reason), _) => self.respond.send_reset(reason),
            (None, _) => {}
        }
    }

    /// Where an answer of ours goes.
    pub(super) fn respond(&mut self) -> &mut SendResponse<Bytes> {
        &mut self.respond
    }

    fn upload(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        if !self.is_up {
            return Ok(false);
        }
        match self.upload.poll(cx) {
            Poll::Pending if self.upload.is_refused(cx) => {
                self.is_up = false;
                Ok(true)
            }
            Poll::Pending => Ok(self.upload.has_moved()),
            // The server does not take it any more; it may still answer.
            Poll::Ready(Ok(()) | Err(Broken::To)) => {
                self.is_up = false;
                Ok(true)
            }
            Poll::Ready(Err(Broken::Trailers)) => Err(match self.answered {
                None => End::Failed(Reply::BadRequest, Fault::Trailers.text()),
                Some(_) => End::Cut(Reason::CANCEL, Fault::Trailers.text()),
            }),
            Poll::Ready(Err(Broken::From(error))) => Err(gone(&error)),
        }
    }

    fn download(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        match &mut self.phase {
            Phase::Head(answer) => {
                if let Poll::Ready(reason) = self.respond.poll_reset(cx) {
                    return Err(self.upload.why(cx, reason));
                }
                match answer.poll_informational(cx) {
                    Poll::Ready(Some(Ok(interim))) => return self.interim(interim),
                    Poll::Pending => return Ok(false),
                    Poll::Ready(_) => {}
                }
                match Pin::new(answer).poll(cx) {
                    Poll::Pending => Ok(false),
                    Poll::Ready(Ok(answer)) => self.head(answer),
                    Poll::Ready(Err(error)) => Err(self.unanswered(&error)),
                }
            }
            // Nothing is to be sent to a client any more that may reset its stream all the same.
            Phase::Body(pump) if !self.is_down => match pump.to().poll_reset(cx) {
                Poll::Ready(reason) if self.is_up => Err(self.upload.why(cx, reason)),
                _ => Ok(false),
            },
            Phase::Body(pump) => match pump.poll(cx) {
                Poll::Pending => match pump.to().poll_reset(cx) {
                    Poll::Ready(reason) => Err(self.upload.why(cx, reason)),
                    Poll::Pending => Ok(pump.has_moved()),
                },
                Poll::Ready(Ok(())) => {
                    self.is_down = false;
                    Ok(true)
                }
                Poll::Ready(Err(Broken::To)) => Err(End::Gone(Reason::CANCEL)),
                Poll::Ready(Err(Broken::Trailers)) => {
                    Err(End::Cut(Reason::INTERNAL_ERROR, Fault::Trailers.text()))
                }
                Poll::Ready(Err(Broken::From(error))) => {
                    let reason = if error.is_remote() { error.reason() } else { None };
                    Err(End::Cut(reason.unwrap_or(Reason::INTERNAL_ERROR), Fault::Truncated.text()))
                }
            },
        }
    }

    fn interim(&mut self, interim: Response<()>) -> Result<bool, End> {
        self.interim += 1;
        let fault = match interim.status() {
            StatusCode::SWITCHING_PROTOCOLS => Fault::UnaskedSwitch,
            _ if self.interim > MAX_INTERIM => Fault::TooManyInterim,
            _ => {
                let sent = self.respond.send_informational(interim);
                return sent.map(|()| true).map_err(|_| End::Gone(Reason::CANCEL));
            }
        };
        Err(End::Failed(Reply::BadGateway, fault.text()))
    }

    fn head(&mut self, answer: Response<RecvStream>) -> Result<bool, End> {
        let (parts, body) = answer.into_parts();
        if let Some(fault) = fault(&parts.headers) {
            return Err(End::Failed(Reply::BadGateway, fault.text()));
        }
        self.answered = Some((parts.status.as_u16(), Instant::now()));
        let first = |name: &str| parts.headers.get(name).map(HeaderValue::as_bytes);
        self.kept = keep(names(self.recorded.exchanges.as_ref(), |headers| &headers.response), first);
        let is_over = body.is_end_stream();
        let head = Response::from_parts(parts, ());
        let to = self.respond.send_response(head, is_over).map_err(|_| End::Gone(Reason::CANCEL))?;
        (self.phase, self.is_down) = (Phase::Body(Pump::new(body, to, None)), !is_over);
        Ok(true)
    }

    /// There will be no answer.
    fn unanswered(&self, error: &Error) -> End {
        let reason = error.reason().unwrap_or(Reason::INTERNAL_ERROR);
        // What it says that it has not looked at, the client may ask again.
        let is_refused = error.is_reset() && reason == Reason::REFUSED_STREAM;
        // Behind the last stream of a GOAWAY, whatever its code: h2 says so of no other.
        let is_untouched = error.is_remote() && (is_refused || error.is_go_away());
        match () {
            () if is_untouched => End::Cut(Reason::REFUSED_STREAM, "server takes no more streams"),
            () if error.is_remote() => End::Failed(Reply::BadGateway, "server reset the stream"),
            () if error.is_io() => End::Failed(Reply::BadGateway, "server closed without an answer"),
            () => End::Failed(Reply::BadGateway, "malformed HTTP/2 answer"),
        }
    }
}

/// What else than h2 refuses makes an answer none.
fn fault(headers: &HeaderMap) -> Option<Fault> {
    let has_two = headers.get_all(CONTENT_LENGTH).iter().nth(1).is_some();
    has_two.then_some(Fault::LengthTwice)
}

/// Why a client's stream has been reset: by the client, or by h2 for what came on it. What had come before is thrown away.
pub(super) fn why(body: &mut RecvStream, cx: &mut Context<'_>, reset: Result<Reason, Error>) -> End {
    loop {
        match body.poll_data(cx) {
            Poll::Ready(Some(Ok(_))) => {}
            Poll::Ready(Some(Err(error))) if error.is_library() && error.is_reset() => return gone(&error),
            _ => return End::Gone(reset.unwrap_or(Reason::CANCEL)),
        }
    }
}

/// Why no more comes from the client.
pub(super) fn gone(error: &Error) -> End {
    match error.is_library() && error.is_reset() {
        true => End::Malformed("body of another length than content-length, or malformed trailers"),
        false => End::Gone(error.reason().unwrap_or(Reason::CANCEL)),
    }
}
