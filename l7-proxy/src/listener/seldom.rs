//! What may go wrong as often as anybody likes, said at most once a second: the log has no end of its own.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How often one thing is said.
const PERIOD: Duration = Duration::from_secs(1);

/// One thing that is said.
#[derive(Debug, Default)]
pub(super) struct Seldom(Mutex<Said>);

#[derive(Debug, Default)]
struct Said {
    last: Option<Instant>,
    count: u64,
}

impl Seldom {
    /// It has happened: how often since it was said last, if it is to be said now.
    pub(super) fn note(&self) -> Option<u64> {
        self.note_at(Instant::now())
    }

    fn note_at(&self, now: Instant) -> Option<u64> {
        let mut said = self.0.lock();
        said.count += 1;
        if said.last.is_some_and(|last| now.duration_since(last) < PERIOD) {
            return None;
        }
        said.last = Some(now);
        Some(std::mem::take(&mut said.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_once_a_second_with_how_often_it_has_happened() {
        let (seldom, begin) = (Seldom::default(), Instant::now());
        let at = |millis| seldom.note_at(begin + Duration::from_millis(millis));
        assert_eq!(at(0), Some(1));
        assert!((1..999).all(|millis| at(millis).is_none()));
        assert_eq!(at(1000), Some(999));
        assert_eq!(at(1001), None);
        assert_eq!(at(9000), Some(2));
    }
}
