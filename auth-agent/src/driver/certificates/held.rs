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
    use linux::clock::realtime;

    use super::super::super::clock::WallClock;
    use super::super::super::testing::TestCa;
    use super::super::{Certificates, Source};
    use super::*;
    use crate::event::Input;

    #[test]
    fn a_certificate_is_asked_for_anew_at_half_of_what_is_left_however_long_it_was_backdated() {
        let ca = TestCa::new("test.example");
        // As one that lives 20 s and has just come: what is before now does not count.
        let svid = ca.svid_of(&ca.workload("web"), -3_580);
        let clock = Clock::read(&WallClock::machine());
        let now = clock.at(clock.wall());
        let left = clock.at(seconds(svid.not_after())) - now;
        let mut held = Held { svid: Some(svid), failures: 3, ..Held::default() };
        held.renew_at_half(clock, now);
        let wait = held.due - now;
        assert!((left * 9 / 20 - 20..=left * 11 / 20).contains(&wait), "{wait} of {left}");
        assert_eq!(held.failures, 0);
    }
    #[test]
    fn when_the_wall_clock_is_set_each_is_told_and_asked_for_anew_by_what_is_left_of_it_then() {
        const MINUTE: Time = 60_000_000_000;
        let ca = TestCa::new("test.example");
        let ids = ["web", "db", "lost"].map(|name| ca.workload(name));
        let address = ([127, 0, 0, 1], 1).into();
        let source = Source { node: "n".to_owned(), ca: address, directory: ca.directory.path().to_owned() };
        let mut certificates = Certificates::new(source);
        for (id, failures) in ids.iter().zip([0, 2, 0]) {
            let svid = (failures == 0 && *id != ids[2]).then(|| ca.svid(id));
            let svid = svid.or_else(|| (failures > 0).then(|| ca.svid(id)));
            let held = Held { svid, due: 1, failures, ..Held::default() };
            certificates.workloads.insert(id.clone(), held);
        }
        // Of the hour half is left.
        let clock = Clock::read(&WallClock::new(|| realtime() + 30 * i128::from(MINUTE)));
        let now = clock.at(clock.wall());
        let told = certificates.tell_again(clock, now);
        let end = now + 29 * MINUTE;
        let is_told = |id| {
            told.iter().any(|input| match input {
                Input::Certificate(of, Ok(until)) => of == id && until.abs_diff(end) < MINUTE / 6,
                _ => false,
            })
        };
        assert!(told.len() == 2 && is_told(&ids[0]) && is_told(&ids[1]), "{told:?}");
        let due = |id| certificates.workloads[id].due;
        assert!((now + 13 * MINUTE..now + 17 * MINUTE).contains(&due(&ids[0])));
        assert_eq!(due(&ids[1]), 1, "who does not answer is asked again when that was to be");
    }
}
