//! The one connection to the server: made for the first stream that may pass, shared by all, closed with the client's.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::client::SendRequest;

use super::guard::{Guard, Watch};
use super::{CONNECTION_WINDOW, HEADER_LIST, SEND_BUFFER, STREAM_WINDOW};
use crate::runtime::Stream;
use crate::runtime::connection::ConnectError;
use crate::stage::admit::Account;

/// Where streams find the connection.
#[derive(Default)]
pub(super) struct Upstream {
    state: RefCell<State>,
    waiting: RefCell<Vec<Waker>>,
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
    /// The connection; the first who asks causes it to be made.
    pub(super) fn poll(&self, cx: &mut Context<'_>) -> Poll<Result<SendRequest<Bytes>, Absent>> {
        let mut state = self.state.borrow_mut();
        match &*state {
            State::Open(send) => return Poll::Ready(Ok(send.clone())),
            State::Failed(error) => return Poll::Ready(Err(Absent::Failed(*error))),
            State::Over => return Poll::Ready(Err(Absent::Over)),
            State::Idle => *state = State::Wanted,
            State::Wanted => {}
        }
        let mut waiting = self.waiting.borrow_mut();
        if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
        self.wake_driver();
        Poll::Pending
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
        let goes_away = || self.watch.borrow().as_ref().is_some_and(|watch| watch.goes_away());
        matches!(*self.state.borrow(), State::Failed(_) | State::Over) || goes_away()
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
            .max_send_buffer_size(SEND_BUFFER);
        let Ok((send, mut connection)) = builder.handshake::<_, Bytes>(guard).await else {
            return self.set(State::Over);
        };
        if !matches!(*self.state.borrow(), State::Over) {
            self.set(State::Open(send));
        }
        let end = poll_fn(|cx| {
            let end = Pin::new(&mut connection).poll(cx);
            outlet.send(cx);
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
        self.waiting.take().into_iter().for_each(Waker::wake);
    }

    fn wake_driver(&self) {
        if let Some(driver) = self.driver.take() {
            driver.wake();
        }
    }
}
