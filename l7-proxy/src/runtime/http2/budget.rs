//! What costs the other end nothing and us something: how much of it is borne.

use tokio::time::Instant;

/// Tokens, given back by time and by progress.
#[derive(Debug)]
pub(super) struct Budget {
    left: u32,
    burst: u32,
    /// Tokens a second.
    rate: u32,
    /// Up to when time has been counted.
    as_of: Instant,
}

impl Budget {
    pub(super) fn new(burst: u32, rate: u32) -> Self {
        Self { left: burst, burst, rate, as_of: Instant::now() }
    }

    /// Takes one; `false`: there is none. Looks at the clock only where there would be none.
    pub(super) fn spend(&mut self) -> bool {
        if self.left == 0 {
            let now = Instant::now();
            let gained = now.duration_since(self.as_of).as_millis() * u128::from(self.rate) / 1000;
            if gained == 0 {
                return false;
            }
            self.as_of = now;
            self.earn(u32::try_from(gained).unwrap_or(u32::MAX));
        }
        self.left = self.left.saturating_sub(1);
        true
    }

    /// Gives some back for progress.
    pub(super) fn earn(&mut self, count: u32) {
        self.left = self.left.saturating_add(count).min(self.burst);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Budget;

    #[tokio::test(start_paused = true)]
    async fn a_burst_then_what_time_and_progress_give() {
        let mut budget = Budget::new(3, 10);
        let spent = |budget: &mut Budget| (0..100).take_while(|_| budget.spend()).count();
        assert_eq!(spent(&mut budget), 3);
        tokio::time::advance(Duration::from_millis(200)).await;
        assert_eq!(spent(&mut budget), 2);
        budget.earn(7);
        assert_eq!(spent(&mut budget), 3, "never more than a burst");
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(spent(&mut budget), 3);
    }
}
