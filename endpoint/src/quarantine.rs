//! Addresses that were a workload's and must not be another's yet.
//!
//! A mark names an address. Where workloads authenticate each other, another node may hold a mark for an endpoint that
//! is gone; whoever got its address meanwhile would inherit it. So the address waits until every node has said that its
//! marks are gone, or until none can be alive any more.
//!
//! Promise: after a restart of the agent each that waits does so for its whole time again: no clock is trusted across it.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Who waits, and how long who ends from now on will.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Quarantine {
    /// Milliseconds; none: addresses are free at once.
    time: Option<u64>,
    waiting: Vec<Waiting>,
}

/// Addresses of an endpoint that is gone.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Waiting {
    instance: u64,
    ipv4: Ipv4Addr,
    ipv6: Ipv6Addr,
    /// Milliseconds.
    time: u64,
    #[serde(skip, default = "Instant::now")]
    since: Instant,
}

impl Quarantine {
    /// From now on addresses wait that long; tells whether that is new. Who waits already goes on waiting.
    pub(crate) fn set(&mut self, time: Option<Duration>) -> bool {
        let time = time.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        std::mem::replace(&mut self.time, time) != time
    }

    /// An endpoint is gone.
    pub(crate) fn begin(&mut self, instance: u64, ipv4: Ipv4Addr, ipv6: Ipv6Addr) {
        self.expire();
        // A removal that is tried again.
        self.free(instance);
        if let Some(time) = self.time {
            self.waiting.push(Waiting { instance, ipv4, ipv6, time, since: Instant::now() });
        }
    }

    /// Nobody has a mark for this instance any more; tells whether its addresses waited.
    pub(crate) fn free(&mut self, instance: u64) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|waiting| waiting.instance != instance);
        self.waiting.len() != before
    }

    /// Lets go of those whose time is over.
    pub(crate) fn expire(&mut self) {
        self.waiting.retain(|waiting| waiting.since.elapsed() < Duration::from_millis(waiting.time));
    }

    /// Addresses that wait.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = (Ipv4Addr, Ipv6Addr)> + '_ {
        self.waiting.iter().map(|waiting| (waiting.ipv4, waiting.ipv6))
    }

    /// How many endpoints' addresses wait.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(quarantine: &Quarantine) -> Vec<Ipv4Addr> {
        quarantine.addresses().map(|(ipv4, _)| ipv4).collect()
    }

    #[test]
    fn addresses_wait_until_they_are_free_or_their_time_is_over() {
        let [first, second, third] = [[10, 0, 0, 2], [10, 0, 0, 3], [10, 0, 0, 4]].map(Ipv4Addr::from);
        let mut quarantine = Quarantine::default();
        quarantine.begin(1, first, Ipv6Addr::LOCALHOST);
        assert_eq!(waiting(&quarantine), [first; 0], "nobody authenticates");
        assert!(quarantine.set(Some(Duration::from_secs(3600))));
        assert!(!quarantine.set(Some(Duration::from_secs(3600))));
        quarantine.begin(2, second, Ipv6Addr::LOCALHOST);
        quarantine.set(Some(Duration::ZERO));
        quarantine.begin(3, third, Ipv6Addr::LOCALHOST);
        quarantine.expire();
        assert_eq!(waiting(&quarantine), [second], "each for the time that was set when it began");
        assert!(quarantine.free(2) && !quarantine.free(2) && quarantine.len() == 0);
    }

    #[test]
    fn a_restart_forgets_nobody_and_begins_the_time_anew() {
        let mut quarantine = Quarantine::default();
        quarantine.set(Some(Duration::from_secs(3600)));
        quarantine.begin(7, Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST);
        let before = Instant::now();
        let text = serde_json::to_string(&quarantine).unwrap();
        let read: Quarantine = serde_json::from_str(&text).unwrap();
        assert_eq!((read.time, waiting(&read)), (Some(3_600_000), vec![Ipv4Addr::LOCALHOST]));
        assert!(read.waiting[0].since >= before);
    }
}
