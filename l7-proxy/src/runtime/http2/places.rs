//! Places of streams in their workload's budget, from the head of the request until the answer has left.
//!
//! Promise: what h2 keeps of an answer for a client that does not read it counts as the stream does that it belongs to,
//! though nobody serves that any more. When its last frame is on its way, either end's, the place is free.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::stage::admit::Held;

/// Streams of which it is kept that they have ended before h2 has given them out: more than it keeps of such. Of those beyond
/// the place stays taken, which is their client's own.
const MOST_EARLY: usize = 256;

/// Streams of a connection that are served, or whose answers are on their way out.
#[derive(Debug, Default)]
pub(super) struct Places {
    all: BTreeMap<u32, Place>,
    /// Streams that have ended before h2 has given them out.
    early: Vec<u32>,
    last: u32,
}

#[derive(Debug)]
struct Place {
    /// `None`: the workload had no room for it, and it is answered so.
    held: Option<Held>,
    /// Its last frame has been seen.
    is_over: bool,
    /// Since when nobody serves it any more.
    left: Option<Instant>,
}

impl Places {
    /// A stream begins; each has a higher number than the one before.
    pub(super) fn open(&mut self, stream: u32) {
        let is_over = self.early.contains(&stream);
        self.early.retain(|early| *early > stream);
        self.last = stream;
        self.all.insert(stream, Place { held: None, is_over, left: None });
    }

    /// It has been given its place in the budget.
    pub(super) fn hold(&mut self, stream: u32, held: Held) {
        if let Some(place) = self.all.get_mut(&stream) {
            place.held = Some(held);
        }
    }

    /// Nobody serves it any more, or h2 has refused it and nobody ever will.
    pub(super) fn leave(&mut self, stream: u32, now: Instant) {
        match self.all.get_mut(&stream) {
            Some(place) => {
                place.left = Some(now);
                self.free(stream);
            }
            None => self.early.retain(|early| *early != stream),
        }
    }

    /// Its last frame has passed.
    pub(super) fn over(&mut self, stream: u32) {
        match self.all.get_mut(&stream) {
            Some(place) => {
                place.is_over = true;
                self.free(stream);
            }
            None if stream > self.last && self.early.len() < MOST_EARLY => self.early.push(stream),
            None => {}
        }
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether an answer has not been read for so long, by a client that has been sent nothing of any since `moved`.
    pub(super) fn is_stuck(&self, now: Instant, moved: Instant, patience: Duration) -> bool {
        let is_stuck = |left: Instant| left.max(moved) + patience <= now;
        self.all.values().filter_map(|place| place.left).any(is_stuck)
    }

    fn free(&mut self, stream: u32) {
        if self.all.get(&stream).is_some_and(|place| place.is_over && place.left.is_some()) {
            self.all.remove(&stream);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::Arc;

    use super::*;
    use crate::stage::admit::{Budgets, Kind, Payer, Tenant};

    const PATIENCE: Duration = Duration::from_secs(300);

    #[test]
    fn a_place_is_free_when_nobody_serves_it_and_its_last_frame_has_passed() {
        let budgets = Arc::new(Budgets::new([8; 4]));
        let address = Ipv4Addr::LOCALHOST.into();
        let payer = Payer { tenant: Tenant::Nobody, address, is_caller: true };
        let admitted = budgets.admit(payer, address).unwrap();
        let held = || budgets.tenants()[0].budgets[Kind::Streams as usize].used;
        let (mut places, now) = (Places::default(), Instant::now());
        for stream in [1, 3, 5] {
            places.open(stream);
            places.hold(stream, admitted.account.hold(Kind::Streams).unwrap());
        }
        places.leave(1, now);
        places.over(3);
        assert_eq!(held(), 3);
        places.over(1);
        places.leave(3, now);
        assert_eq!(held(), 1);
        assert!(!places.is_stuck(now + PATIENCE, now, PATIENCE), "5 is served");
        places.leave(5, now);
        assert!(places.is_stuck(now + PATIENCE, now, PATIENCE));
        assert!(!places.is_stuck(now + PATIENCE, now + PATIENCE / 2, PATIENCE));
        places.over(5);
        assert!(places.is_empty());
        assert_eq!(held(), 0);
    }

    /// A client that resets its stream at once may do so before anybody knows of it.
    #[test]
    fn a_stream_that_was_over_before_it_began_leaves_nothing() {
        let (mut places, now) = (Places::default(), Instant::now());
        [1, 3, 5].into_iter().for_each(|stream| places.over(stream));
        places.open(3);
        places.leave(3, now);
        assert!(places.is_empty());
        assert_eq!(places.early, [5]);
        places.over(1);
        places.over(3);
        assert_eq!(places.early, [5], "what was before is known to be over");
    }

    #[test]
    fn what_is_refused_and_reset_without_end_is_not_kept() {
        let (mut places, now) = (Places::default(), Instant::now());
        places.over(7);
        places.leave(7, now);
        assert!(places.early.is_empty(), "refused");
        (0..10_000).for_each(|number| places.over(2 * number + 9));
        assert_eq!(places.early.len(), MOST_EARLY);
    }
}
