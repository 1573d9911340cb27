//! The one connection to the server: made for the first stream that may pass, shared by all, closed with the client's.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::SendStream;
use h2::client::{ResponseFuture, SendRequest};
use http::Request;

use super::gate::Gate;
use super::guard::{Guard, Watch};
use super::shared::Live;
use super::{CONNECTION_WINDOW, HEADER_LIST, REFUSALS, RESET_STREAMS, SEND_BUFFER, STREAM_WINDOW};
use crate::runtime::Stream;
use crate::runtime::connection::ConnectError;
use crate::stage::admit::Account;

/// Where streams find the connection.
#[derive(Default)]
pub(super) struct Upstream {
    state: RefCell<State>,
    gate: Gate,
    /// It is not to be sent what it has not been sent yet.
    is_cut: Cell<bool>,
    /// What has been seen of its frames.
    watch: RefCell<Option<Rc<Watch>>>,
    /// Whom the first stream asks for.
    asked: RefCell<Option<Box<str>>>,
    /// What waits for the first stream, or for the end.
    driver: Cell<Option<Waker>>,
}

#[derive(Default)]
enum State {
    /// No stream has asked for it.
    #[default]
    Idle,
    Wanted,
    Open(SendRequest<Bytes>),
    /// It could not be made.
    Failed(ConnectError),
    /// It has ended.
    Over,
}

/// Why there is no connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Absent {
    Failed(ConnectError),
    Over,
}

impl Upstream {
    /// Whether the request of this stream of the client may be sent now.
    pub(super) fn is_free(&self, stream: u32) -> bool {
        self.takes() && self.gate.is_next(stream)
    }

    /// Waits until it may; the first who does causes the connection to be made.
    pub(super) fn poll(&self, stream: u32, cx: &mut Context<'_>) -> Poll<Result<(), Absent>> {
        if self.is_free(stream) {
            return Poll::Ready(Ok(()));
        }
        let mut state = self.state.borrow_mut();
        match &*state {
            State::Failed(error) => return Poll::Ready(Err(Absent::Failed(*error))),
            State::Over => return Poll::Ready(Err(Absent::Over)),
            State::Open(_) if self.goes_away() => return Poll::Ready(Err(Absent::Over)),
            State::Idle => *state = State::Wanted,
            State::Wanted | State::Open(_) => {}
        }
        self.gate.wait(stream, cx);
        self.wake_driver();
        Poll::Pending
    }

    /// The stream waits no more.
    pub(super) fn leave(&self, stream: u32) {
        self.gate.leave(stream);
    }

    /// Sends a request that may be; `None`: the server takes none any more.
    pub(super) fn send(
        &self,
        request: Request<()>,
        is_over: bool,
        live: &Rc<Live>,
    ) -> Option<(ResponseFuture, SendStream<Bytes>)> {
        let State::Open(send) = &*self.state.borrow() else { return None };
        let (answer, up) = send.clone().send_request(request, is_over).ok()?;
        self.gate.goes(answer.stream_id().as_u32(), live);
        Some((answer, up))
    }

    /// Whether there are requests that the connection has not been driven for yet.
    pub(super) fn is_fresh(&self) -> bool {
        self.gate.is_fresh()
    }

    /// Whether there are requests that have not left.
    pub(super) fn is_leaving(&self) -> bool {
        self.gate.is_leaving()
    }

    /// Ends the connection at once if any of these is not to leave any more: of what h2 has, nothing can be taken back.
    pub(super) fn recall(&self, is_one: impl Fn(&Live) -> bool) {
        if self.gate.keeps(is_one) {
            self.is_cut.set(true);
        }
    }

    /// Whether the server takes one more stream.
    fn takes(&self) -> bool {
        let State::Open(send) = &*self.state.borrow() else { return false };
        let most = || send.current_max_send_streams();
        let watch = self.watch.borrow();
        let is_open = |watch: &Rc<Watch>| watch.opened(|opened| self.gate.is_open(opened, most()));
        !self.goes_away() && watch.as_ref().and_then(is_open) == Some(true)
    }

    fn goes_away(&self) -> bool {
        self.watch.borrow().as_ref().is_some_and(|watch| watch.goes_away())
    }

    /// Looks at what has left, and wakes who waits for that, or for a stream to end, or for the server to allow more.
    fn look(&self, watch: &Watch, left: u64) {
        if self.gate.is_leaving() {
            self.gate.has_left(watch.opened(|opened| opened.left(left)).unwrap_or_default());
        }
        match self.gate.is_waited_at() {
            true if watch.goes_away() => self.gate.wake_all(),
            true if self.takes() => self.gate.wake_first(),
            _ => {}
        }
    }

    /// Whom a stream asks for; the first has a say in who the server is to be.
    pub(super) fn ask(&self, authority: &str) {
        self.asked.borrow_mut().get_or_insert_with(|| authority.into());
    }

    /// Whom the first stream asks for, if it had a say.
    pub(super) fn asked(&self) -> Option<Box<str>> {
        self.asked.borrow().clone()
    }

    /// Whether no stream can be added, now or ever.
    pub(super) fn is_closing(&self) -> bool {
        matches!(*self.state.borrow(), State::Failed(_) | State::Over) || self.goes_away()
    }

    /// Whether the server takes CONNECT for other protocols.
    pub(super) fn is_extended(&self) -> bool {
        matches!(&*self.state.borrow(), State::Open(send) if send.is_extended_connect_protocol_enabled())
    }

    /// Lets it end once the streams on it have.
    pub(super) fn close(&self) {
        self.set(State::Over);
        self.wake_driver();
    }

    /// Makes the connection once it is wanted, and moves what is on it to its end.
    pub(super) async fn drive<U: Stream, C>(
        &self,
        connect: &C,
        account: Arc<Account>,
        opened: impl Fn(Option<SocketAddr>),
    ) where
        C: AsyncFn() -> Result<(U, Option<SocketAddr>), ConnectError>,
    {
        poll_fn(|cx| match *self.state.borrow() {
            State::Idle => {
                self.driver.set(Some(cx.waker().clone()));
                Poll::Pending
            }
            _ => Poll::Ready(()),
        })
        .await;
        if !matches!(*self.state.borrow(), State::Wanted) {
            return;
        }
        let (stream, local) = match connect().await {
            Ok(connection) => connection,
            Err(error) => return self.set(State::Failed(error)),
        };
        opened(local);
        let (guard, watch) = Guard::server(stream, account);
        let outlet = guard.outlet();
        *self.watch.borrow_mut() = Some(Rc::clone(&watch));
        let mut builder = h2::client::Builder::new();
        builder
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(HEADER_LIST)
            .max_concurrent_reset_streams(RESET_STREAMS)
            .max_local_error_reset_streams(Some(REFUSALS))
            .max_send_buffer_size(SEND_BUFFER);
        let Ok((send, mut connection)) = builder.handshake::<_, Bytes>(guard).await else {
            return self.set(State::Over);
        };
        if !matches!(*self.state.borrow(), State::Over) {
            self.set(State::Open(send));
        }
        let end = poll_fn(|cx| {
            if self.is_cut.get() {
                return Poll::Ready(Err("requests that may not be sent any more"));
            }
            let end = Pin::new(&mut connection).poll(cx);
            match self.gate.is_leaving() {
                true => outlet.send_now(cx),
                false => outlet.send(cx),
            }
            self.look(&watch, outlet.left());
            match watch.offence() {
                // Dropped, it fails its streams.
                Some(offence) => Poll::Ready(Err(offence)),
                None => end.map(Ok),
            }
        });
        match end.await {
            Ok(end) => tracing::debug!(?end, "the connection to the server has ended"),
            Err(offence) => tracing::debug!(offence, "the connection to the server is given up"),
        }
        drop(connection);
        self.set(State::Over);
    }

    fn set(&self, state: State) {
        // What was there may wake others when it is dropped.
        let before = self.state.replace(state);
        drop(before);
        self.gate.wake_all();
    }

    fn wake_driver(&self) {
        if let Some(driver) = self.driver.take() {
            driver.wake();
        }
    }
}
