//! What is on its way out of a connection, gathered.
//!
//! Promise: what h2 writes while a connection is driven leaves in one piece when whoever drives it says so, or when there are
//! [`GATHERED`] bytes of it. h2 flushes behind each frame of a body: each would be a system call and a packet.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use crate::runtime::transfer::Side;
use crate::runtime::{Stream, turn};

/// The most that is gathered, bytes.
const GATHERED: usize = 16 << 10;
/// What of its room a connection keeps on which nothing moves, bytes.
const RESTS: usize = 1024;

/// A stream whose bytes are gathered before they leave. Copies are of the same one.
#[derive(Debug)]
pub(super) struct Outlet<S>(Rc<RefCell<Gathering<S>>>);

#[derive(Debug)]
struct Gathering<S> {
    side: Side<S>,
    waiting: Vec<u8>,
    /// So many of these have left.
    sent: usize,
    /// Bytes that have been taken in all, and how many of them are known to have left.
    taken: u64,
    left: u64,
    /// Why nothing leaves any more.
    broken: Option<io::ErrorKind>,
}

impl<S> Clone for Outlet<S> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<S: Stream> Outlet<S> {
    pub(super) fn new(side: Side<S>) -> Self {
        let (waiting, sent, taken, left, broken) = (Vec::new(), 0, 0, 0, None);
        Self(Rc::new(RefCell::new(Gathering { side, waiting, sent, taken, left, broken })))
    }

    /// Works on the stream itself, to read from it.
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut Side<S>) -> T) -> T {
        work(&mut self.0.borrow_mut().side)
    }

    /// Sends what has been gathered; an error is told to who writes next, which the caller is woken for.
    pub(super) fn send(&self, cx: &mut Context<'_>) {
        self.send_in(false, cx);
    }

    /// The same, one write of which need not wait for the next turn.
    pub(super) fn send_now(&self, cx: &mut Context<'_>) {
        self.send_in(true, cx);
    }

    fn send_in(&self, is_free: bool, cx: &mut Context<'_>) {
        let mut gathering = self.0.borrow_mut();
        if gathering.broken.is_none()
            && let Poll::Ready(Err(error)) = gathering.poll_send(is_free, cx)
        {
            gathering.broken = Some(error.kind());
            cx.waker().wake_by_ref();
        }
    }

    /// Bytes that have been taken in all.
    pub(super) fn taken(&self) -> u64 {
        self.0.borrow().taken
    }

    /// How many of them are known to have left.
    pub(super) fn left(&self) -> u64 {
        self.0.borrow().left
    }

    /// Ready when all of it has left.
    pub(super) fn poll_send(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_send(false, cx)
    }

    /// Takes bytes to be sent.
    pub(super) fn poll_write(&self, parts: &[IoSlice<'_>], cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut gathering = self.0.borrow_mut();
        let length: usize = parts.iter().map(|part| part.len()).sum();
        if gathering.waiting.len() + length > GATHERED {
            ready!(gathering.poll_send(false, cx))?;
        }
        if let Some(kind) = gathering.broken {
            return Poll::Ready(Err(kind.into()));
        }
        if length > GATHERED {
            ready!(turn::step(1, cx));
            let count = ready!(Pin::new(&mut gathering.side.stream).poll_write_vectored(cx, parts))?;
            gathering.taken += count as u64;
            return Poll::Ready(Ok(count));
        }
        gathering.taken += length as u64;
        parts.iter().for_each(|part| gathering.waiting.extend_from_slice(part));
        Poll::Ready(Ok(length))
    }

    /// Gives back its room, if nothing waits in it.
    pub(super) fn rest(&self) {
        let mut gathering = self.0.borrow_mut();
        if gathering.waiting.is_empty() {
            gathering.waiting.shrink_to(RESTS);
        }
    }
}

impl<S: Stream> Gathering<S> {
    /// `is_free`: the first write does not count for the turn.
    fn poll_send(&mut self, mut is_free: bool, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(kind) = self.broken {
            return Poll::Ready(Err(kind.into()));
        }
        while let Some(rest) = self.waiting.get(self.sent..).filter(|rest| !rest.is_empty()) {
            if !std::mem::take(&mut is_free) {
                ready!(turn::step(1, cx));
            }
            match ready!(Pin::new(&mut self.side.stream).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.sent += count,
            }
        }
        self.waiting.clear();
        self.sent = 0;
        ready!(Pin::new(&mut self.side.stream).poll_flush(cx))?;
        self.left = self.taken;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::Arc;
    use std::task::Waker;

    use tokio::io::{AsyncReadExt, AsyncWrite, DuplexStream, ReadBuf, duplex};

    use super::*;
    use crate::stage::admit::{Budgets, Payer, Tenant};

    /// Counts what is written in one go.
    #[derive(Debug)]
    struct Counted(DuplexStream, Rc<RefCell<Vec<usize>>>);

    impl tokio::io::AsyncRead for Counted {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, buffer)
        }
    }

    impl AsyncWrite for Counted {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let count = ready!(Pin::new(&mut self.0).poll_write(cx, bytes))?;
            self.1.borrow_mut().push(count);
            Poll::Ready(Ok(count))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl Stream for Counted {
        fn cut(&mut self) {}
    }

    #[tokio::test]
    async fn what_is_gathered_leaves_in_one_piece_and_in_order() {
        let address = Ipv4Addr::LOCALHOST.into();
        let payer = Payer { tenant: Tenant::Nobody, address, is_caller: true };
        let place = Arc::new(Budgets::new([8; 4])).admit(payer, address).unwrap();
        let (ours, mut theirs) = duplex(20 << 10);
        let writes = Rc::<RefCell<Vec<usize>>>::default();
        let side = Side::new(Counted(ours, Rc::clone(&writes)), Arc::clone(&place.account));
        let outlet = Outlet::new(side);
        let mut cx = Context::from_waker(Waker::noop());
        let mut write = |length: usize| {
            let part = vec![b'a' + (length % 26) as u8; length];
            outlet.poll_write(&[IoSlice::new(&part)], &mut cx).map(Result::unwrap)
        };
        for length in [100, 200, 300] {
            assert_eq!(write(length), Poll::Ready(length));
        }
        assert!(writes.borrow().is_empty());
        outlet.send(&mut Context::from_waker(Waker::noop()));
        assert_eq!(writes.take(), [600]);
        // Beyond what is gathered it leaves at once; and where it cannot, nothing more is taken.
        assert_eq!(write(GATHERED), Poll::Ready(GATHERED));
        assert_eq!(write(4096), Poll::Ready(4096));
        assert_eq!(writes.take(), [GATHERED]);
        assert_eq!(write(GATHERED), Poll::Pending);
        let mut read = vec![0; 600 + GATHERED];
        theirs.read_exact(&mut read).await.unwrap();
        assert_eq!(write(GATHERED), Poll::Ready(GATHERED));
        let mut read = vec![0; 4096];
        theirs.read_exact(&mut read).await.unwrap();
        assert!(read.iter().all(|byte| *byte == b'a' + (4096 % 26) as u8));
        drop(theirs);
        outlet.send(&mut Context::from_waker(Waker::noop()));
        let failed = outlet.poll_write(&[IoSlice::new(b"a")], &mut Context::from_waker(Waker::noop()));
        assert!(matches!(failed, Poll::Ready(Err(_))), "what could not be sent is told to who writes next");
    }
}
