//! HTTP/2, by prior knowledge or as both ends have agreed in TLS: a client's connection and the one to the server, on h2.
//!
//! Promise: each stream is judged by itself, by the rules and identities of now, and again whenever those change: one that
//! may not be any more is reset, the others go on untouched; one that has not left for the server yet is judged anew, as it
//! came ([`gate`]). What is buffered has a bound by construction: for each of the
//! two connections [`STREAMS`] × ([`STREAM_WINDOW`] received + [`SEND_BUFFER`] to be sent), what is gathered ([`outlet`]), and a
//! head for each stream; how many streams a workload has on all its connections together, answers included that are not read,
//! the worker's budget of them bounds. Windows of streams add up to the connection's, so one that is not read stalls no other.
//! What costs the sender nothing has a budget. One future drives all of it; no task is made for a stream.

mod budget;
mod frames;
mod gate;
mod guard;
pub(super) mod head;
mod outlet;
mod places;
mod pump;
mod shared;
mod stream;
mod transfer;
mod upstream;

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use tokio::time::{Instant, timeout};

use super::connection::{ConnectError, HEAD, IDLE, SILENCE, Session};
use super::deadline::Deadline;
use super::ends::{INHERITED, Identities};
use super::open::reach;
use super::set::Set;
use super::transfer::PATIENCE;
use super::{Stream, turn};
use crate::codec::MAX_HEAD;
use crate::index::Offer;
use crate::stage::admit::{Held, Kind};
use guard::{Guard, Watch};
use outlet::Outlet;
use shared::Shared;

/// Streams at once.
const STREAMS: u32 = 100;
/// What may be received of a stream and not yet passed on.
const STREAM_WINDOW: u32 = 64 << 10;
/// The same of a connection.
const CONNECTION_WINDOW: u32 = STREAMS * STREAM_WINDOW;
/// What may have been passed on to h2 and not yet been sent, of a stream.
const SEND_BUFFER: usize = 32 << 10;
/// The longest head, as HTTP/2 counts.
const HEADER_LIST: u32 = MAX_HEAD as u32;
/// Streams that have been reset a moment ago, of which h2 knows that more may be on its way, and bears it.
const RESET_STREAMS: usize = 4 * STREAMS as usize;
/// Resets by h2 itself in the whole life of a connection: what it may keep for an end that does not read them. How many there
/// may be at a time has a budget of ours.
const REFUSALS: usize = 8192;
/// How often streams are looked at on which nothing moves.
const TICK: Duration = Duration::from_secs(15);
/// How long the last words to either end may take.
const FAREWELL: Duration = Duration::from_secs(2);

/// How a connection ends.
#[derive(Debug)]
enum Over {
    Ended,
    Broken(h2::Error),
    /// The client has done too much of something.
    Offence(&'static str),
    /// It has been told to go and does not.
    Stuck,
}

/// A connection of a client, as it is driven.
struct Driver<D: Stream> {
    connection: h2::server::Connection<Guard<D>, Bytes>,
    /// By which what is gathered leaves.
    outlet: Outlet<D>,
    watch: Rc<Watch>,
    clock: Deadline,
    looked: Instant,
    idle: Instant,
    is_closing: bool,
    /// The client has been told that CONNECT for other protocols is taken.
    is_extended: bool,
    /// While a header block is there in part.
    head: Option<Held>,
}

/// Serves a connection whose client has sent the preface.
pub(super) async fn serve<D, U, I, C>(session: Session<'_, D, U, I, C>)
where
    D: Stream,
    U: Stream,
    I: Identities,
    C: AsyncFn() -> Result<(U, Option<SocketAddr>), ConnectError>,
{
    let Session { worker, called, connect, down, up, place, ends, entered, mut changes, clock, .. } = session;
    let account = Arc::clone(&place.account);
    let shared = Shared::new(worker, called, (entered, place), ends);
    let (guard, watch) = Guard::client(down);
    let outlet = guard.outlet();
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(STREAMS)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEADER_LIST)
        .max_concurrent_reset_streams(RESET_STREAMS)
        .max_local_error_reset_streams(Some(REFUSALS))
        .max_send_buffer_size(SEND_BUFFER);
    let Ok(Ok(connection)) = timeout(SILENCE, builder.handshake::<_, Bytes>(guard)).await else { return };
    let now = Instant::now();
    let mut driver = Driver {
        connection,
        outlet,
        watch,
        clock,
        looked: now,
        idle: now,
        is_closing: false,
        is_extended: false,
        head: None,
    };
    let mut streams = Set::default();
    let opened = |local| shared.entered.connection.known.lock().0 = local;
    // Of TLS that the proxy has ended the server has chosen what is spoken, and is connected already.
    let ready = Cell::new(up.map(|side| (side.stream, shared.entered.connection.known.lock().0)));
    let reached = async || match ready.take() {
        Some(ready) => Ok(ready),
        None => reach(&connect, shared.begins(), Offer::Http2).await,
    };
    let mut upstream = pin!(shared.upstream.drive(&reached, account, opened));
    let mut is_driving = true;
    let over = loop {
        let over = poll_fn(|cx| {
            driver.prepare(&shared);
            if is_driving && upstream.as_mut().poll(cx).is_ready() {
                is_driving = false;
            }
            let open = |request, respond: h2::server::SendResponse<Bytes>| {
                let live = shared.open(respond.stream_id().as_u32(), PATIENCE);
                streams.insert(Box::pin(stream::serve(&shared, live, request, respond)));
            };
            if let Poll::Ready(over) = driver.accept(open, cx) {
                return Poll::Ready(over);
            }
            let _ = streams.poll(cx, || turn::goes_on(turn::LOOK), drop);
            // What was judged now leaves now.
            if is_driving && shared.upstream.is_fresh() && upstream.as_mut().poll(cx).is_ready() {
                is_driving = false;
            }
            driver.look(&shared, cx)
        });
        tokio::select! {
            biased;
            over = over => break over,
            _ = changes.changed() => {}
        }
    };
    driver.end(&shared, over).await;
    drop(streams);
    shared.upstream.close();
    // Of what has not left nobody knows whether it may.
    if is_driving && !shared.upstream.is_leaving() {
        let _ = timeout(FAREWELL, upstream).await;
    }
}

impl<D: Stream> Driver<D> {
    /// Before anything is moved: what has changed.
    fn prepare<I: Identities>(&mut self, shared: &Shared<'_, I>) {
        shared.refresh();
        if shared.worker.published.ends_all() {
            shared.end_all();
        }
        let is_closing = shared.worker.published.is_draining() || shared.upstream.is_closing();
        if is_closing {
            self.close();
        }
    }

    /// Lets the client open no more streams; the connection ends with those that are open.
    fn close(&mut self) {
        if !self.is_closing {
            self.is_closing = true;
            self.looked = Instant::now();
            self.connection.graceful_shutdown();
        }
    }

    /// Moves what is on the connection, and opens the streams that the client opens.
    fn accept(
        &mut self,
        mut open: impl FnMut(http::Request<h2::RecvStream>, h2::server::SendResponse<Bytes>),
        cx: &mut Context<'_>,
    ) -> Poll<Over> {
        loop {
            match self.connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => open(request, respond),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Over::Broken(error)),
                Poll::Ready(None) => return Poll::Ready(Over::Ended),
                Poll::Pending => break,
            }
        }
        self.outlet.send(cx);
        match self.watch.offence() {
            Some(offence) => Poll::Ready(Over::Offence(offence)),
            None => Poll::Pending,
        }
    }

    /// What frames and time tell.
    fn look<I: Identities>(&mut self, shared: &Shared<'_, I>, cx: &mut Context<'_>) -> Poll<Over> {
        shared.note(&self.watch);
        // It fails while settings are on their way that the client has not acknowledged.
        if !self.is_extended && shared.upstream.is_extended() {
            self.is_extended = self.connection.enable_connect_protocol().is_ok();
            if self.is_extended {
                cx.waker().wake_by_ref();
            }
        }
        if shared.is_idle() {
            self.outlet.rest();
        }
        if self.watch.partial().is_none() {
            self.head = None;
        } else if self.head.is_none() {
            self.head = shared.place.account.hold(Kind::Heads);
            if self.head.is_none() {
                return Poll::Ready(Over::Offence(Kind::Heads.spent()));
            }
        }
        loop {
            if let Some(offence) = shared.offence() {
                return Poll::Ready(Over::Offence(offence));
            }
            let is_quiet = shared.is_idle() && self.watch.partial().is_none() && !self.is_closing;
            if !shared.is_idle() {
                self.idle = self.looked;
            }
            self.clock.set_at(if is_quiet { self.idle + IDLE } else { self.looked + TICK });
            if self.clock.poll(cx).is_pending() {
                return Poll::Pending;
            }
            let now = Instant::now();
            self.looked = now;
            if self.watch.partial().is_some_and(|since| since + HEAD <= now) {
                return Poll::Ready(Over::Offence("head not complete in time"));
            }
            shared.tick(now);
            match shared.is_idle() {
                true if self.is_closing => return Poll::Ready(Over::Stuck),
                true if self.idle + IDLE <= now => {
                    self.close();
                    cx.waker().wake_by_ref();
                }
                _ => {}
            }
        }
    }

    /// The last words to the client, and what is recorded of how it ended.
    async fn end<I: Identities>(&mut self, shared: &Shared<'_, I>, over: Over) {
        shared.note(&self.watch);
        let reason = match over {
            Over::Ended | Over::Stuck => return,
            Over::Broken(error) if error.is_remote() || error.is_io() => return,
            Over::Broken(error) => reproach(error.reason().unwrap_or(Reason::PROTOCOL_ERROR)),
            Over::Offence(offence) => {
                // Who was there when it began has done nothing.
                let is_its_own = offence != INHERITED;
                let code = if is_its_own { Reason::ENHANCE_YOUR_CALM } else { Reason::NO_ERROR };
                self.connection.abrupt_shutdown(code);
                let closed = poll_fn(|cx| self.connection.poll_closed(cx));
                let _ = timeout(FAREWELL, closed).await;
                offence
            }
        };
        shared.dropped(reason);
    }
}

/// Why h2 has ended a connection.
fn reproach(reason: Reason) -> &'static str {
    match reason {
        Reason::COMPRESSION_ERROR => "malformed HTTP/2 headers",
        Reason::ENHANCE_YOUR_CALM => "too many resets, frames of a head or empty frames",
        Reason::FLOW_CONTROL_ERROR => "more bytes than the window of the connection",
        Reason::FRAME_SIZE_ERROR => "frame of a wrong size",
        _ => "malformed HTTP/2 frames",
    }
}
