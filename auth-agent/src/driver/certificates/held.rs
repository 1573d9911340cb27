//! One certificate, and when to ask for the next.

use std::sync::Arc;

use certs::svid::Svid;
use mesh::auth::Refusal;

use super::super::clock::{Clock, seconds};
use crate::event::Time;

/// A request that failed is made again after so long at first, and at last.
pub(super) const RETRY: (Time, Time) = (1_000_000_000, 60_000_000_000);

/// One certificate, or the want of it.
#[derive(Default)]
pub(super) struct Held {
    pub(super) svid: Option<Arc<Svid>>,
    pub(super) problem: Option<(Refusal, String)>,
    /// When to ask next.
    pub(super) due: Time,
    pub(super) failures: u32,
    pub(super) asking: bool,
}

impl Held {
    /// Asks again at half of what is left, a tenth sooner or later.
    pub(super) fn renew_at_half(&mut self, clock: Clock, now: Time) {
        let Some(svid) = &self.svid else { return };
        let left = clock.at(seconds(svid.not_after())).saturating_sub(now);
        self.due = now.saturating_add(left / 20 * 9 + random(left / 10));
        self.failures = 0;
    }

    pub(super) fn fail(&mut self, refusal: Refusal, problem: String, first: Time, now: Time) {
        let wait = first.saturating_mul(1 << self.failures.min(16)).min(RETRY.1);
        self.due = now.saturating_add(wait / 2 + random(wait / 2));
        self.failures = self.failures.saturating_add(1);
        self.problem = Some((refusal, problem));
    }

    /// Gives up what cannot be shown any more.
    pub(super) fn lose(&mut self, refusal: Refusal, problem: String, now: Time) {
        self.svid = None;
        self.problem = Some((refusal, problem));
        self.due = self.due.min(now);
    }

    pub(super) fn state(&self, clock: Clock) -> Result<Time, Refusal> {
        match (&self.svid, &self.problem) {
            (Some(svid), _) => Ok(clock.end(seconds(svid.not_after()))),
            (None, Some((refusal, _))) => Err(*refusal),
            (None, None) => Err(Refusal::NoCertificate),
        }
    }
}

/// Below a bound.
pub(super) fn random(bound: u64) -> u64 {
    // Without randomness there is no jitter, and no TLS either.
    getrandom::u64().map_or(0, |number| number % bound.max(1))
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::TestCa;
    use super::*;

    #[test]
    fn a_certificate_is_asked_for_anew_at_half_of_what_is_left_however_long_it_was_backdated() {
        let ca = TestCa::new("test.example");
        // As one that lives 20 s and has just come: what is before now does not count.
        let svid = ca.svid_of(&ca.workload("web"), -3_580);
        let clock = Clock::read();
        let now = clock.at(clock.wall());
        let left = clock.at(seconds(svid.not_after())) - now;
        let mut held = Held { svid: Some(svid), failures: 3, ..Held::default() };
        held.renew_at_half(clock, now);
        let wait = held.due - now;
        assert!((left * 9 / 20 - 20..=left * 11 / 20).contains(&wait), "{wait} of {left}");
        assert_eq!(held.failures, 0);
    }
}
