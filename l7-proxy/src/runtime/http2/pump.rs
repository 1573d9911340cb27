//! One direction of a stream: data as it comes, then trailers.

use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use h2::{Error, Reason, RecvStream, SendStream};
use http::HeaderMap;

use super::transfer::{End, why};
use crate::codec::{MAX_TRAILER_LINES, is_forbidden_trailer};

/// Frames of fewer bytes are taken from h2 while they wait, and joined: h2 bears few of those, of all streams together.
const SMALL: usize = 256;

/// A body on its way.
pub(super) struct Pump {
    from: RecvStream,
    to: SendStream<Bytes>,
    /// What has been read and not been taken.
    held: Bytes,
    /// Small frames behind that, joined, and the first one behind them that is not small.
    small: BytesMut,
    next: Bytes,
    /// Names that no trailer may have; `None`: trailers are the other end's affair.
    judged: Option<Box<[Box<str>]>>,
    has_moved: bool,
    /// Bytes that have been passed on.
    passed: u64,
}

/// Why a body does not go on.
#[derive(Debug)]
pub(super) enum Broken {
    From(Error),
    To,
    /// A trailer that no rule could have judged.
    Trailers,
}

impl Pump {
    pub(super) fn new(from: RecvStream, to: SendStream<Bytes>, judged: Option<Box<[Box<str>]>>) -> Self {
        let (held, small, next) = (Bytes::new(), BytesMut::new(), Bytes::new());
        Self { from, to, held, small, next, judged, has_moved: false, passed: 0 }
    }

    pub(super) fn to(&mut self) -> &mut SendStream<Bytes> {
        &mut self.to
    }

    /// Whether something waits to be taken.
    pub(super) fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    /// Whether anything has moved since the last time.
    pub(super) fn has_moved(&mut self) -> bool {
        std::mem::take(&mut self.has_moved)
    }

    /// Bytes that have been passed on.
    pub(super) fn passed(&self) -> u64 {
        self.passed
    }

    /// Whether the receiver has reset the stream.
    pub(super) fn is_refused(&mut self, cx: &mut Context<'_>) -> bool {
        self.to.poll_reset(cx).is_ready()
    }

    /// Why the sender's stream has ended.
    pub(super) fn why(&mut self, cx: &mut Context<'_>, reset: Result<Reason, Error>) -> End {
        why(&mut self.from, cx, reset)
    }

    /// Ready once the end has been passed on, too.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        loop {
            while !self.held.is_empty() {
                match self.pass(cx)? {
                    Poll::Ready(true) => return Poll::Ready(Ok(())),
                    Poll::Ready(false) => {}
                    Poll::Pending => {
                        self.gather(cx);
                        return Poll::Pending;
                    }
                }
            }
            let behind = match self.small.is_empty() {
                true => std::mem::take(&mut self.next),
                false => std::mem::take(&mut self.small).freeze(),
            };
            if !behind.is_empty() {
                self.hold(behind);
                continue;
            }
            match ready!(self.from.poll_data(cx)) {
                Some(Ok(data)) if data.is_empty() => {}
                Some(Ok(data)) => {
                    self.hold(data);
                    self.has_moved = true;
                }
                Some(Err(error)) => return Poll::Ready(Err(Broken::From(error))),
                None => break,
            }
        }
        let trailers = ready!(self.from.poll_trailers(cx)).map_err(Broken::From)?;
        Poll::Ready(self.finish(trailers))
    }

    /// Takes small frames from h2 that wait there. The sender's window, which opens only when they are passed on, bounds them.
    fn gather(&mut self, cx: &mut Context<'_>) {
        while self.next.is_empty() {
            // An end, or an error, is said again behind what is here.
            let Poll::Ready(Some(Ok(data))) = self.from.poll_data(cx) else { return };
            match data.len() < SMALL {
                true => self.small.extend_from_slice(&data),
                false => self.next = data,
            }
        }
    }

    /// What is passed on next.
    fn hold(&mut self, data: Bytes) {
        self.to.reserve_capacity(data.len());
        self.held = data;
    }

    /// Passes on as much as is taken; whether that was the end.
    fn pass(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Broken>> {
        while self.to.capacity() == 0 {
            match ready!(self.to.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Poll::Ready(Err(Broken::To)),
            }
        }
        let count = self.to.capacity().min(self.held.len());
        let part = self.held.split_to(count);
        let is_empty = self.held.is_empty() && self.small.is_empty() && self.next.is_empty();
        let is_last = is_empty && self.from.is_end_stream();
        self.to.send_data(part, is_last).map_err(|_| Broken::To)?;
        // Taken: the sender may send as much again.
        let _ = self.from.flow_control().release_capacity(count);
        self.has_moved = true;
        self.passed += count as u64;
        Poll::Ready(Ok(is_last))
    }

    fn finish(&mut self, trailers: Option<HeaderMap>) -> Result<(), Broken> {
        let Some(trailers) = trailers else {
            return self.to.send_data(Bytes::new(), true).map_err(|_| Broken::To);
        };
        if let Some(judged) = &self.judged {
            let is_named = |name: &http::HeaderName| is_forbidden_trailer(name.as_str(), judged);
            if trailers.len() > MAX_TRAILER_LINES || trailers.keys().any(is_named) {
                return Err(Broken::Trailers);
            }
        }
        self.to.send_trailers(trailers).map_err(|_| Broken::To)
    }
}
