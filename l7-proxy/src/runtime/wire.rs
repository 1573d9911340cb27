//! One side of a connection as it is on the wire: as it is, or in TLS that the proxy speaks itself.
//!
//! Promise: dropped while nothing is broken off, TLS says that it ends; cut, it does not, and the connection is reset. What has
//! been written has left once a flush is ready, not before: who writes flushes. A record waits at most, beyond what the
//! workload's budget knows of.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsStream;

use super::{Stream, turn};
use crate::index::Offer;

/// The most that waits to be sent in TLS of ours, bytes: a record.
const WAITS: usize = 16 << 10;

/// A stream, perhaps in TLS.
pub(super) enum Wire<S: Stream> {
    /// As it is.
    Plain(S),
    /// In TLS of ours. Boxed: few are.
    Tls(Box<Spoken<S>>),
    /// While its TLS begins, or if that has failed.
    Away,
}

/// A stream in TLS of ours.
pub(super) struct Spoken<S: Stream> {
    stream: TlsStream<Rewound<S>>,
    is_cut: bool,
}

impl<S: Stream> Wire<S> {
    pub(super) fn tls(stream: impl Into<TlsStream<Rewound<S>>>) -> Self {
        let mut stream = stream.into();
        match &mut stream {
            TlsStream::Client(stream) => stream.get_mut().1.set_buffer_limit(Some(WAITS)),
            TlsStream::Server(stream) => stream.get_mut().1.set_buffer_limit(Some(WAITS)),
        }
        Self::Tls(Box::new(Spoken { stream, is_cut: false }))
    }

    /// Whether both ends have agreed on HTTP/2.
    pub(super) fn is_http2(&self) -> bool {
        match self {
            Self::Tls(spoken) => spoken.stream.get_ref().1.alpn_protocol() == Some(b"h2"),
            Self::Plain(_) | Self::Away => false,
        }
    }

    /// What the client has been answered, and so is asked of the server in its place.
    pub(super) fn offer(&self) -> Offer {
        match self {
            Self::Tls(spoken) => Offer::of(spoken.stream.get_ref().1.alpn_protocol().into_iter()),
            Self::Plain(_) | Self::Away => Offer::Nothing,
        }
    }

    /// The stream as it is, if it is.
    pub(super) fn take(&mut self) -> Option<S> {
        match std::mem::replace(self, Self::Away) {
            Self::Plain(stream) => Some(stream),
            other => {
                *self = other;
                None
            }
        }
    }
}

impl<S: Stream> Stream for Wire<S> {
    fn has_halves(&self) -> bool {
        matches!(self, Self::Plain(_))
    }

    fn cut(&mut self) {
        match self {
            Self::Plain(stream) => stream.cut(),
            Self::Tls(spoken) => {
                spoken.is_cut = true;
                spoken.stream.get_mut().0.stream.cut();
            }
            Self::Away => {}
        }
    }
}

impl<S: Stream> Drop for Spoken<S> {
    /// What cannot be said at once is not waited for.
    fn drop(&mut self) {
        if !self.is_cut {
            let mut cx = Context::from_waker(Waker::noop());
            let _ = Pin::new(&mut self.stream).poll_shutdown(&mut cx);
        }
    }
}

impl<S: Stream> AsyncRead for Wire<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(spoken) => Pin::new(&mut spoken.stream).poll_read(cx, buffer),
            Self::Away => Poll::Ready(Ok(())),
        }
    }
}

impl<S: Stream> AsyncWrite for Wire<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(spoken) => Pin::new(&mut spoken.stream).poll_write(cx, bytes),
            Self::Away => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
            Self::Tls(spoken) => Pin::new(&mut spoken.stream).poll_write_vectored(cx, parts),
            Self::Away => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(spoken) => spoken.stream.is_write_vectored(),
            Self::Away => false,
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(spoken) => Pin::new(&mut spoken.stream).poll_flush(cx),
            Self::Away => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(spoken) => Pin::new(&mut spoken.stream).poll_shutdown(cx),
            Self::Away => Poll::Ready(Ok(())),
        }
    }
}

/// A stream of which something has been read already, which comes first.
pub(super) struct Rewound<S> {
    read: Vec<u8>,
    stream: S,
}

impl<S> Rewound<S> {
    pub(super) fn new(read: &[u8], stream: S) -> Self {
        Self { read: read.to_vec(), stream }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Of TLS much may be read, and decrypted, before there is anything to pass on.
        ready!(turn::step(1, cx));
        if self.read.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buffer);
        }
        let count = self.read.len().min(buffer.remaining());
        let rest = self.read.split_off(count);
        buffer.put_slice(&std::mem::replace(&mut self.read, rest));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
