//! Bytes both ways, untouched: what is not HTTP and may pass, and what a connection carries after it has switched.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use super::Stream;
use super::transfer::Side;
use crate::codec::SecondHello;

/// A relay under way.
#[derive(Default)]
pub(super) struct Relay {
    closed: [bool; 2],
    /// Of TLS whose server may ask for another ClientHello.
    gate: Option<Box<SecondHello>>,
    /// Why it has been broken off, if not by the ends.
    pub(super) fault: Option<&'static str>,
}

impl Relay {
    pub(super) fn new(gate: Option<Box<SecondHello>>) -> Self {
        Self { gate, ..Self::default() }
    }

    /// Moves what can be moved; ready when both directions are over, or one is broken.
    pub(super) fn poll<D: Stream, U: Stream>(
        &mut self,
        down: &mut Side<D>,
        up: &mut Side<U>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if self.gate.as_ref().is_some_and(|gate| gate.is_open()) {
            self.gate = None;
        }
        let [to_server, to_client] = &mut self.closed;
        let mut gate = self.gate.as_deref_mut();
        // The answer first: by it more of what the client has sent may pass.
        let heard = |bytes: &[u8], ended: bool| {
            let is_heard = gate.as_mut().is_none_or(|gate| gate.hear(bytes));
            if is_heard || ended { bytes.len() } else { 0 }
        };
        let second = copy(up, down, to_client, heard, |_| {}, cx);
        let fault = &mut self.fault;
        let gate = std::cell::RefCell::new(self.gate.as_deref_mut());
        let may = |bytes: &[u8], _| match &mut *gate.borrow_mut() {
            Some(gate) => gate.may_pass(bytes).unwrap_or_else(|reason| {
                *fault = Some(reason);
                0
            }),
            None => bytes.len(),
        };
        let passed = |count| {
            if let Some(gate) = &mut *gate.borrow_mut() {
                gate.passed(count);
            }
        };
        let first = copy(down, up, to_server, may, passed, cx);
        if self.fault.is_some() {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        if let Poll::Ready(Err(error)) = first {
            return Poll::Ready(Err(error));
        }
        ready!(second)?;
        // A server that ends before it has taken a ClientHello will take none: what waits for its answer waits in vain.
        if self.gate.as_ref().is_some_and(|gate| !gate.is_open()) {
            return Poll::Ready(Ok(()));
        }
        ready!(first)?;
        Poll::Ready(Ok(()))
    }
}

/// One direction; ready once its end has been passed on, too. `may`: how many of the bytes that are there may be passed on,
/// given whether these are the last.
fn copy<A: Stream, B: Stream>(
    from: &mut Side<A>,
    to: &mut Side<B>,
    closed: &mut bool,
    mut may: impl FnMut(&[u8], bool) -> usize,
    mut passed: impl FnMut(usize),
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    loop {
        if *closed {
            return Poll::Ready(Ok(()));
        }
        // What waits in TLS of ours goes out beside whatever else is done.
        if let Poll::Ready(Err(error)) = Pin::new(&mut to.stream).poll_flush(cx) {
            return Poll::Ready(Err(error));
        }
        loop {
            let count = may(from.input.bytes(), from.ended);
            if count == 0 {
                break;
            }
            match ready!(Pin::new(&mut to.stream).poll_write(cx, from.input.until(count)))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => {
                    passed(count);
                    from.input.consume(count);
                }
            }
        }
        // What may not be passed on yet waits for the other direction.
        if !from.input.is_empty() && (from.ended || from.input.is_full()) {
            return Poll::Pending;
        }
        if from.ended {
            ready!(Pin::new(&mut to.stream).poll_shutdown(cx))?;
            *closed = true;
            return Poll::Ready(Ok(()));
        }
        from.ended = match ready!(from.input.poll_fill(&mut from.stream, cx)) {
            // Many end TLS without a word.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => true,
            read => read? == 0,
        };
    }
}
