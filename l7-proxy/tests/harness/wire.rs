//! Streams in memory whose inner end, the proxy's, is seen to be cut.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use l7_proxy::runtime::Stream;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex};

/// The proxy's end of a stream.
pub struct Wire {
    inner: DuplexStream,
    is_cut: Rc<Cell<bool>>,
}

/// Both ends of a stream, and whether the proxy's has been cut.
pub fn wire() -> (DuplexStream, Wire, Rc<Cell<bool>>) {
    let (outer, inner) = duplex(256 << 10);
    let is_cut = Rc::<Cell<bool>>::default();
    (outer, Wire { inner, is_cut: Rc::clone(&is_cut) }, is_cut)
}

impl Stream for Wire {
    fn cut(&mut self) {
        self.is_cut.set(true);
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// Which of its two streams the proxy has ended with a reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cut {
    Neither,
    Client,
    Server,
    Both,
}

impl Cut {
    pub fn of(client: bool, server: bool) -> Self {
        match (client, server) {
            (false, false) => Self::Neither,
            (true, false) => Self::Client,
            (false, true) => Self::Server,
            (true, true) => Self::Both,
        }
    }
}
