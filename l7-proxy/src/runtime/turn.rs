//! A turn: how long the connections of one workload may use their worker before those of the next one do.
//!
//! Promise: whoever reads, writes or is polled within a turn that is over is told to wait for the next one; so neither many
//! connections nor a single busy one keeps the worker for longer than [`SLICE`] and a few steps. Beyond a scheduler (tests,
//! tools) nothing is ever over. The clock is read once for some steps, for most requests take fewer.

use std::cell::Cell;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

/// How long a turn takes. A request of another workload waits for one as it comes and for one as its answer does.
pub(super) const SLICE: Duration = Duration::from_micros(100);
/// What is done between two looks at the clock.
const STEPS: u32 = 4;
/// What a look at a connection, a stream or a listening socket counts for; one read or write counts for 1.
pub(crate) const LOOK: u32 = 4;

struct Turn {
    /// `None`: there is no turn.
    ends: Cell<Option<Instant>>,
    is_over: Cell<bool>,
    steps: Cell<u32>,
    clock: Cell<fn() -> Instant>,
}

thread_local! {
    static TURN: Turn = const {
        Turn {
            ends: Cell::new(None),
            is_over: Cell::new(false),
            steps: Cell::new(0),
            clock: Cell::new(Instant::now),
        }
    };
}

/// Runs a turn of this thread, by this clock.
pub(super) fn run<T>(clock: fn() -> Instant, turn: impl FnOnce() -> T) -> T {
    TURN.with(|now| {
        now.clock.set(clock);
        now.ends.set(Some(clock() + SLICE));
        now.is_over.set(false);
        now.steps.set(0);
        let result = turn();
        now.ends.set(None);
        result
    })
}

/// Counts what has been done, and says whether more may be.
pub(crate) fn goes_on(steps: u32) -> bool {
    TURN.with(|now| {
        let Some(ends) = now.ends.get() else { return true };
        if now.is_over.get() {
            return false;
        }
        let done = now.steps.get() + steps;
        if done < STEPS {
            now.steps.set(done);
            return true;
        }
        now.steps.set(0);
        let clock = now.clock.get();
        now.is_over.set(clock() >= ends);
        !now.is_over.get()
    })
}

/// A request has been judged: that may have taken long, so that the clock is read now.
pub(super) fn judged() {
    let _ = goes_on(STEPS);
}

/// The same for who can wait: woken at once, for it has its place in the next turn.
pub(crate) fn step(steps: u32, cx: &Context<'_>) -> Poll<()> {
    match goes_on(steps) {
        true => Poll::Ready(()),
        false => {
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    thread_local! {
        static NOW: Cell<Instant> = Cell::new(Instant::now());
    }

    #[test]
    fn a_judgement_that_outlasts_the_turn_ends_it() {
        run(
            || NOW.get(),
            || {
                judged();
                assert!(goes_on(LOOK));
                NOW.set(NOW.get() + SLICE);
                judged();
                assert!(!goes_on(1));
            },
        );
        assert!(goes_on(1), "beyond a turn nothing is over");
    }
}
