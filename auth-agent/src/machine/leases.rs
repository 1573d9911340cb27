//! Leases: until when the word of a node is good. The programs compare them with every packet, so that a machine that
//! is dead, or cut off, cannot leave marks alive.

use std::collections::BTreeSet;

use abi::LEASES;
use mesh::auth::Refusal;

use super::Machine;
use super::settings::Adopted;
use super::timers::Timer;
use crate::event::{Output, Time};

/// Which element of `LEASES` is whose.
#[derive(Debug)]
pub(super) struct LeaseNumbers(BTreeSet<u32>);

impl LeaseNumbers {
    pub(super) fn new(adopted: &Adopted) -> Self {
        let mut used: BTreeSet<u32> = adopted.leases.keys().copied().collect();
        used.extend(adopted.marks.values().map(|mark| mark.lease));
        used.insert(0);
        Self(used)
    }

    /// One that nobody has; `None`: there are no more.
    pub(super) fn take(&mut self) -> Option<u32> {
        let number = (1..LEASES).find(|number| !self.0.contains(number))?;
        self.0.insert(number);
        Some(number)
    }

    pub(super) fn give_back(&mut self, number: u32) {
        if number != 0 {
            self.0.remove(&number);
        }
    }
}

/// What a node's word is worth.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lease {
    /// Its number; 0: none yet.
    pub(super) number: u32,
    /// Until when.
    pub(super) end: Time,
}

impl Machine {
    /// Each probe period.
    pub(super) fn renew_own_lease(&mut self) {
        self.timers.add(self.now + self.settings.probe, Timer::OwnLease);
        self.extend_own_lease();
    }

    /// Renews the word of this node, and ends first what rested on it if it had ended.
    pub(super) fn extend_own_lease(&mut self) {
        let Some(plan) = &self.plan else {
            return;
        };
        let node = plan.node.clone();
        let ended = self.own_lease <= self.now;
        if ended {
            self.clear_node(&node, Refusal::TimedOut);
        }
        let end = self.now + self.grace();
        if end > self.own_lease {
            self.own_lease = end;
            self.out.push(Output::Lease { number: 0, end });
        }
        if ended {
            self.try_node(&node);
        }
    }

    /// Whether the word of a node is good now.
    pub(super) fn leased(&self, node: &str) -> bool {
        if node == self.own_node() {
            return self.own_lease > self.now;
        }
        self.nodes.get(node).is_some_and(|node| node.lease.end > self.now)
    }

    /// An echo of a probe that was sent then: nothing the peer withdrew before it is still marked here. `grace` is the
    /// peer's: after that long it gives addresses to others.
    pub(super) fn extend_lease(&mut self, node: &str, sent: Time, grace: Time) {
        let end = sent.saturating_add(self.grace().min(grace));
        let Some(state) = self.nodes.get_mut(node).filter(|state| end > self.now && end > state.lease.end)
        else {
            return;
        };
        if state.lease.number == 0 {
            let Some(number) = self.lease_numbers.take() else {
                state.problem = Some("there are more nodes than leases".to_owned());
                return;
            };
            state.lease.number = number;
        }
        let fresh = state.lease.end <= self.now;
        state.lease.end = end;
        let number = state.lease.number;
        self.out.push(Output::Lease { number, end });
        self.timers.add(end, Timer::Lease(node.to_owned()));
        if fresh {
            self.try_node(node);
        }
    }

    /// Clears what rests on a word that has ended.
    pub(super) fn check_lease(&mut self, node: &str) {
        if self.nodes.get(node).is_some_and(|state| state.lease.end <= self.now) {
            self.clear_node(node, Refusal::NodeUnreachable);
        }
    }

    /// A node is no longer of the mesh; its marks are gone already.
    pub(super) fn end_lease(&mut self, lease: Lease) {
        if lease.number != 0 {
            self.out.push(Output::Lease { number: lease.number, end: 0 });
            self.lease_numbers.give_back(lease.number);
        }
    }
}
