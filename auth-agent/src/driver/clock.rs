//! Two clocks: certificates are valid by the wall clock, marks end by the one that is never stepped.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use certs::UnixTime;
use linux::clock::{boottime, realtime};
use rustls::time_provider::TimeProvider;

use crate::event::Time;

/// What shows the time by which certificates are valid, in nanoseconds since 1970. It may be set, either way.
#[derive(Clone)]
pub struct WallClock(Arc<dyn Fn() -> i128 + Send + Sync>);

impl WallClock {
    /// The machine's.
    pub fn machine() -> Self {
        Self::new(realtime)
    }

    /// One that shows what this says.
    pub fn new(read: impl Fn() -> i128 + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }

    pub(super) fn now(&self) -> i128 {
        (self.0)()
    }
}

impl fmt::Debug for WallClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WallClock").field(&self.now()).finish()
    }
}

impl TimeProvider for WallClock {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.now() / 1_000_000_000).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

/// A step of the wall clock that is worth looking at every certificate again, nanoseconds. Less is what slewing does.
const STEP: i128 = 500_000_000;
/// What is taken off the end of a certificate, at most, seconds.
const MARGIN: i64 = 60;

/// What the wall clock shows, as a distance to [`Time`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    offset: i128,
}

impl Clock {
    /// As it is now.
    pub(super) fn read(wall: &WallClock) -> Self {
        Self { offset: wall.now() - i128::from(boottime()) }
    }

    /// Reads it again. Whether it was stepped since.
    pub(super) fn read_again(&mut self, wall: &WallClock) -> bool {
        let before = std::mem::replace(self, Self::read(wall));
        (self.offset - before.offset).abs() > STEP
    }

    /// When what rests on a certificate that ends then (seconds since 1970) has to end: a minute before, or a tenth of
    /// what is left of it.
    pub(super) fn end(self, not_after: i64) -> Time {
        let left = not_after.saturating_sub(self.wall()).max(0);
        self.at(not_after.saturating_sub(MARGIN.min(left / 10)))
    }

    /// A moment of the wall clock.
    pub(super) fn at(self, seconds: i64) -> Time {
        let nanoseconds = i128::from(seconds) * 1_000_000_000 - self.offset;
        Time::try_from(nanoseconds.max(0)).unwrap_or(Time::MAX)
    }

    /// What it shows, seconds since 1970.
    pub(super) fn wall(self) -> i64 {
        i64::try_from((i128::from(boottime()) + self.offset) / 1_000_000_000).unwrap_or(i64::MAX)
    }
}

/// Of a moment in a certificate, seconds since 1970.
pub(super) fn seconds(time: UnixTime) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rests_on_a_certificate_ends_a_margin_before_it() {
        let clock = Clock::read(&WallClock::machine());
        let now = clock.wall();
        assert_eq!(clock.end(now + 3_600), clock.at(now + 3_540));
        assert_eq!(clock.end(now + 100), clock.at(now + 90));
        assert_eq!(clock.end(now - 100), clock.at(now - 100));
        assert_eq!((clock.end(i64::MIN), clock.end(i64::MAX)), (0, Time::MAX));
        let distance = clock.at(now + 1_000).abs_diff(boottime() + 1_000_000_000_000);
        assert!(distance <= 2_000_000_000, "{distance}");
    }

    #[test]
    fn a_step_is_noticed_once() {
        let wall = WallClock::machine();
        let mut clock = Clock { offset: Clock::read(&wall).offset - 3_600_000_000_000 };
        assert!(clock.read_again(&wall));
        assert!(!clock.read_again(&wall));
    }
}
