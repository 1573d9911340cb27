//! Addresses that were a workload's and must not be another's yet.
//!
//! A mark names an address. Where workloads authenticate each other, another node may hold a mark for an endpoint that
//! is gone; whoever got its address meanwhile would inherit it. So the address waits until every node has said that its
//! marks are gone, or until none can be alive any more.
//!
//! What holds for an address holds for a whole pool that this node did not have before: it may have been another node's,
//! and its workloads' marks are nobody's here to withdraw. So the first address of it is given out after such a time.
//!
//! Promise: after a restart of the agent each that waits does so for its whole time again: no clock is trusted across it.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Who waits, and how long who ends from now on will.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Quarantine {
    /// Milliseconds; none: addresses are free at once.
    time: Option<u64>,
    /// A longer one that was in force: marks from then may still live.
    #[serde(default)]
    before: Option<Before>,
    waiting: Vec<Waiting>,
    /// Other nodes authenticate with this one.
    #[serde(default)]
    has_peers: bool,
    /// Pools of which nothing has been given out.
    #[serde(default)]
    given: Vec<Given>,
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

/// A time that was in force, milliseconds, and until when it counts: for as long as it is itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Before {
    time: u64,
    #[serde(skip, default = "Instant::now")]
    since: Instant,
}

/// A pool that this node did not have before.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Given {
    pool: IpNet,
    #[serde(skip, default = "Instant::now")]
    since: Instant,
}

fn is_over(since: Instant, time: u64) -> bool {
    since.elapsed() >= Duration::from_millis(time)
}

impl Quarantine {
    /// From now on addresses wait that long; tells whether that is new. Who waits already goes on waiting, and who ends
    /// soon after it has become shorter waits as long as it was before.
    pub(crate) fn set(&mut self, time: Option<Duration>, has_peers: bool) -> bool {
        let time = time.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        // None is less than any.
        if time < self.time
            && let Some(before) = self.time.max(self.earlier())
        {
            self.before = Some(Before { time: before, since: Instant::now() });
        }
        let mut is_new = (self.time, self.has_peers) != (time, has_peers);
        if time.max(self.earlier()).is_none() {
            // Nobody has a mark for anybody: what this node is given meanwhile is its own from the beginning.
            is_new |= !self.given.is_empty();
            self.given.clear();
        }
        (self.time, self.has_peers) = (time, has_peers);
        is_new
    }

    /// One that was in force before and still counts.
    fn earlier(&self) -> Option<u64> {
        self.before.as_ref().filter(|before| !is_over(before.since, before.time)).map(|before| before.time)
    }

    /// An endpoint is gone.
    pub(crate) fn begin(&mut self, instance: u64, ipv4: Ipv4Addr, ipv6: Ipv6Addr) {
        self.expire();
        // A removal that is tried again.
        self.free(instance);
        if let Some(time) = self.time.max(self.earlier()) {
            self.waiting.push(Waiting { instance, ipv4, ipv6, time, since: Instant::now() });
        }
    }

    /// This node has a pool that it did not have before.
    pub(crate) fn give(&mut self, pool: IpNet) {
        self.given.retain(|given| given.pool != pool);
        self.given.push(Given { pool, since: Instant::now() });
    }

    /// The one of these pools of which nothing is given out for the longest, and for how long.
    pub(crate) fn rests(&self, pools: &[IpNet]) -> Option<(IpNet, Duration)> {
        let time = Duration::from_millis(self.time.max(self.earlier()).filter(|_| self.has_peers)?);
        let now = Instant::now();
        let left = |given: &Given| Some((given.pool, time.checked_sub(now.duration_since(given.since))?));
        let resting = self.given.iter().filter(|given| pools.contains(&given.pool)).filter_map(left);
        resting.filter(|(_, left)| !left.is_zero()).max_by_key(|(_, left)| *left)
    }

    /// Something of each pool is given out now: they are this node's.
    pub(crate) fn take(&mut self) {
        self.given.clear();
    }

    /// Nobody has a mark for this instance any more; tells whether its addresses waited.
    pub(crate) fn free(&mut self, instance: u64) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|waiting| waiting.instance != instance);
        self.waiting.len() != before
    }

    /// Lets go of those whose time is over.
    pub(crate) fn expire(&mut self) {
        self.waiting.retain(|waiting| !is_over(waiting.since, waiting.time));
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
        assert!(quarantine.set(Some(Duration::ZERO), false));
        assert!(!quarantine.set(Some(Duration::ZERO), false));
        quarantine.begin(3, third, Ipv6Addr::LOCALHOST);
        quarantine.set(Some(Duration::from_secs(3600)), false);
        quarantine.begin(2, second, Ipv6Addr::LOCALHOST);
        quarantine.expire();
        assert_eq!(waiting(&quarantine), [second], "each for the time that was set when it began");
        assert!(quarantine.free(2) && !quarantine.free(2) && quarantine.len() == 0);
    }

    #[test]
    fn a_time_that_was_in_force_counts_once_more_after_it_was_taken_back() {
        let mut quarantine = Quarantine::default();
        quarantine.set(Some(Duration::from_secs(3600)), false);
        for shorter in [Some(Duration::ZERO), None, None] {
            quarantine.set(shorter, false);
            quarantine.begin(1, Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST);
            quarantine.expire();
            assert_eq!(quarantine.len(), 1, "a peer's mark may live as long as it could before");
            quarantine.free(1);
        }
        quarantine.before = Some(Before { time: 0, since: Instant::now() });
        quarantine.begin(1, Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST);
        assert_eq!(quarantine.len(), 0, "it is over");
    }

    #[test]
    fn a_pool_that_may_have_been_anothers_rests_where_other_nodes_authenticate_and_a_restart_shortens_nothing()
     {
        let pools: [IpNet; 2] = ["10.1.0.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()];
        let hour = Some(Duration::from_secs(3600));
        let mut quarantine = Quarantine::default();
        quarantine.give(pools[1]);
        for (time, has_peers, later) in [(None, true, false), (hour, false, true)] {
            let mut other = Quarantine { given: quarantine.given.clone(), ..Quarantine::default() };
            other.set(time, has_peers);
            assert_eq!(other.rests(&pools), None, "{time:?}, {has_peers}");
            other.set(hour, true);
            assert_eq!(other.rests(&pools).is_some(), later, "nobody authenticated when it was given");
        }
        quarantine.set(hour, true);
        assert_eq!(quarantine.rests(&pools).unwrap().0, pools[1]);
        assert_eq!(quarantine.rests(&pools[..1]), None, "it had that one");
        let text = serde_json::to_string(&quarantine).unwrap();
        let read: Quarantine = serde_json::from_str(&text).unwrap();
        assert!(read.given[0].since >= quarantine.given[0].since);
        assert!(read.rests(&pools).is_some());
        quarantine.take();
        assert_eq!(quarantine.rests(&pools), None);
    }

    #[test]
    fn a_restart_forgets_nobody_and_begins_the_time_anew() {
        let mut quarantine = Quarantine::default();
        quarantine.set(Some(Duration::from_secs(3600)), false);
        quarantine.begin(7, Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST);
        let before = Instant::now();
        let text = serde_json::to_string(&quarantine).unwrap();
        let read: Quarantine = serde_json::from_str(&text).unwrap();
        assert_eq!((read.time, waiting(&read)), (Some(3_600_000), vec![Ipv4Addr::LOCALHOST]));
        assert!(read.waiting[0].since >= before);
    }
}
