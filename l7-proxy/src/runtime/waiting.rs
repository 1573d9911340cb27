//! The wait for the next head of a client: what comes of it.

use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::time::Instant;

use super::Stream;
use super::buffer::{Buffer, SPENT};
use super::connection::HEAD;
use super::deadline::Deadline;
use super::transfer::Side;
use crate::codec::{Fault, Scan};
use crate::stage::admit::{Account, Held, Kind};

/// What a client sends next.
#[derive(Debug)]
pub(super) enum Next {
    Head(usize, usize),
    Fault(Fault),
    /// The workload has no more room for it.
    Spent(Kind),
    Late,
    Over,
    /// The server has closed, or speaks unasked.
    Left,
    /// One of the ends is another by now.
    Inherited,
}

/// Holds one of the workload's unfinished heads if one is there in part; whether that may be.
pub(super) fn holds(held: &mut Option<Held>, input: &Buffer, account: &Arc<Account>) -> bool {
    if held.is_none() && !input.is_empty() {
        *held = account.hold(Kind::Heads);
    }
    held.is_some() || input.is_empty()
}

/// A head that is awaited.
pub(super) struct Waiting<'a> {
    pub(super) scan: &'a mut Scan,
    pub(super) clock: &'a mut Deadline,
    /// When the first byte of it was there.
    pub(super) arrived: &'a mut Option<Instant>,
    pub(super) held: &'a mut Option<Held>,
    pub(super) account: &'a Arc<Account>,
}

impl Waiting<'_> {
    pub(super) fn poll<D: Stream, U: Stream>(
        &mut self,
        down: &mut Side<D>,
        up: Option<&mut Side<U>>,
        cx: &mut Context<'_>,
    ) -> Poll<Next> {
        // A server that closes, or speaks unasked, ends the connection: its next words would answer the wrong request.
        if let Some(up) = up
            && up.input.poll_fill(&mut up.stream, cx).is_ready()
        {
            return Poll::Ready(Next::Left);
        }
        loop {
            match self.scan.find(down.input.bytes()) {
                Ok(Some((start, end))) => return Poll::Ready(Next::Head(start, end)),
                Ok(None) => {}
                Err(fault) => return Poll::Ready(Next::Fault(fault)),
            }
            if down.ended {
                return Poll::Ready(Next::Over);
            }
            if !holds(self.held, &down.input, self.account) {
                return Poll::Ready(Next::Spent(Kind::Heads));
            }
            match down.input.poll_fill(&mut down.stream, cx) {
                Poll::Ready(Err(error)) if error.kind() == SPENT => {
                    return Poll::Ready(Next::Spent(Kind::Bytes));
                }
                Poll::Ready(Ok(0) | Err(_)) => down.ended = true,
                Poll::Ready(Ok(_)) if self.arrived.is_none() => {
                    *self.arrived = Some(Instant::now());
                    self.clock.set(HEAD);
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => break,
            }
        }
        self.clock.poll(cx).map(|()| Next::Late)
    }
}
