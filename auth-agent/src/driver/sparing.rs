//! What strangers can cause is logged, but not as often as they like.

use linux::clock::boottime;

use crate::event::Time;

/// Lines in a period, and how long that is.
const LINES: u32 = 20;
const PERIOD: Time = 10_000_000_000;

/// Of one kind of line.
#[derive(Default)]
pub(super) struct Sparing {
    since: Time,
    said: u32,
    unsaid: u64,
}

impl Sparing {
    /// Whether a line may be written now; then, how many were not since the one before.
    pub(super) fn may(&mut self) -> Option<u64> {
        self.may_at(boottime())
    }

    fn may_at(&mut self, now: Time) -> Option<u64> {
        if now >= self.since.saturating_add(PERIOD) {
            (self.since, self.said) = (now, 0);
        }
        if self.said >= LINES {
            self.unsaid += 1;
            return None;
        }
        self.said += 1;
        Some(std::mem::take(&mut self.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_counted() {
        let mut lines = Sparing::default();
        let first = PERIOD * 7;
        let said = (0..1_000).filter(|line| lines.may_at(first + line).is_some()).count();
        assert_eq!(said, LINES as usize);
        assert_eq!(lines.may_at(first + PERIOD), Some(1_000 - u64::from(LINES)));
        assert_eq!(lines.may_at(first + PERIOD + 1), Some(0));
    }
}
