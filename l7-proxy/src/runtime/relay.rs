//! Bytes both ways, untouched: what is not HTTP and may pass, and what a connection carries after it has switched.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use super::Stream;
use super::transfer::Side;

/// A relay under way.
#[derive(Clone, Copy, Default)]
pub(super) struct Relay {
    closed: [bool; 2],
}

impl Relay {
    /// Moves what can be moved; ready when both directions are over, or one is broken.
    pub(super) fn poll<D: Stream, U: Stream>(
        &mut self,
        down: &mut Side<D>,
        up: &mut Side<U>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let [to_server, to_client] = &mut self.closed;
        let first = copy(down, up, to_server, cx);
        let second = copy(up, down, to_client, cx);
        if let Poll::Ready(Err(error)) = first {
            return Poll::Ready(Err(error));
        }
        ready!(second)?;
        ready!(first)?;
        Poll::Ready(Ok(()))
    }
}

/// One direction; ready once its end has been passed on, too.
fn copy<A: Stream, B: Stream>(
    from: &mut Side<A>,
    to: &mut Side<B>,
    closed: &mut bool,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    loop {
        if *closed {
            return Poll::Ready(Ok(()));
        }
        while !from.input.is_empty() {
            match ready!(Pin::new(&mut to.stream).poll_write(cx, from.input.bytes()))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => from.input.consume(count),
            }
        }
        if from.ended {
            ready!(Pin::new(&mut to.stream).poll_shutdown(cx))?;
            *closed = true;
            return Poll::Ready(Ok(()));
        }
        from.ended = ready!(from.input.poll_fill(&mut from.stream, cx))? == 0;
    }
}
