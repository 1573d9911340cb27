//! One timer for all that a connection waits for, touched rarely: most waits are over long before it.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// How long the timer sleeps at most; a deadline later than that costs a look, an earlier one a call.
const LOOK: Duration = Duration::from_secs(30);

/// A deadline that can be moved.
#[derive(Debug)]
pub(super) struct Deadline {
    at: Instant,
    sleep: Pin<Box<Sleep>>,
    /// The timer has gone off, and nobody has asked about it.
    has_gone_off: bool,
}

impl Deadline {
    pub(super) fn new() -> Self {
        let at = Instant::now() + LOOK;
        Self { at, sleep: Box::pin(sleep_until(at)), has_gone_off: false }
    }

    /// Moves it to so long from now.
    pub(super) fn set(&mut self, within: Duration) {
        self.set_at(Instant::now() + within);
    }

    /// Moves it to then.
    pub(super) fn set_at(&mut self, at: Instant) {
        self.at = at;
        if self.at < self.sleep.deadline() {
            self.sleep.as_mut().reset(self.at);
        }
    }

    /// Whether the timer has gone off since this was asked last: at most [`LOOK`] later for who polls this whenever he waits,
    /// however often the deadline is moved. What is to be done now and then needs no timer of its own.
    pub(super) fn is_time_to_look(&mut self) -> bool {
        std::mem::take(&mut self.has_gone_off)
    }

    /// Ready once it is over.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.has_gone_off = true;
            let now = Instant::now();
            if self.at <= now {
                return Poll::Ready(());
            }
            self.sleep.as_mut().reset(self.at.min(now + LOOK));
        }
    }
}
