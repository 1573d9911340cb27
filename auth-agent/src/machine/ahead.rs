//! In which order pairs are proven, and how fast: those that packets wait for first, the rest at a bounded rate.

use std::collections::{BTreeSet, VecDeque};

use mesh::auth::{AuthPlan, IdentityPair, InstanceName};
use mesh::identity::Identity;
use node_api::auth::FromAuthAgent;

use super::pairs::{Pair, PairName, Work};
use super::timers::Timer;
use super::{Machine, SECOND};
use crate::event::{Output, Time};

/// What the node that dials has begun has come so far by then.
const OTHER_BEGINS: Time = SECOND / 4;

/// Pairs whose next step is to be taken.
#[derive(Debug, Default)]
pub(super) struct Queue {
    asked: VecDeque<PairName>,
    ahead: VecDeque<PairName>,
}

/// A token bucket: a tenth of a second's worth at once.
#[derive(Debug)]
pub(super) struct Bucket {
    /// Nanoseconds that one costs.
    cost: Time,
    most: Time,
    saved: Time,
    at: Time,
}

impl Bucket {
    pub(super) fn new(per_second: u64) -> Self {
        let cost = SECOND / per_second.max(1);
        let most = cost.max(SECOND / 10);
        Self { cost, most, saved: most, at: 0 }
    }

    pub(super) fn take(&mut self, now: Time) -> bool {
        self.saved = self.saved.saturating_add(now.saturating_sub(self.at)).min(self.most);
        self.at = now;
        let enough = self.saved >= self.cost;
        if enough {
            self.saved -= self.cost;
        }
        enough
    }

    /// How long until there is one again, after [`Self::take`] has found none.
    pub(super) fn wait(&self) -> Time {
        self.cost.saturating_sub(self.saved).max(1)
    }
}

/// A plan whose pairs have not all been tried.
#[derive(Debug)]
pub(super) struct Settling {
    number: u64,
    until: Time,
    open: BTreeSet<PairName>,
}

impl Machine {
    /// Puts a pair into the queue, unless it has what it needs or something is being done about it.
    pub(super) fn enqueue(&mut self, name: &PairName, asked: bool) {
        let Some(pair) = self.pairs.get_mut(name) else {
            return;
        };
        if pair.mark.is_some_and(|marked| marked.confirmed) {
            return;
        }
        let asked = asked || !pair.packets.is_empty();
        pair.ahead.get_or_insert(self.now);
        match pair.work {
            Work::Idle => {
                pair.work = Work::Queued;
                let queue = if asked { &mut self.queue.asked } else { &mut self.queue.ahead };
                queue.push_back(name.clone());
            }
            // It stays where it was, too; whoever comes second finds nothing to do.
            Work::Queued if asked && !self.queue.asked.contains(name) => {
                self.queue.asked.push_back(name.clone());
            }
            _ => {}
        }
    }

    /// Queues a pair that nobody has asked for. Either node could begin: the one that dials does, the other only if
    /// nothing has come of it.
    pub(super) fn enqueue_ahead(&mut self, name: &PairName) {
        let begins = self.own_node() <= name.peer.node.as_str();
        let now = self.now;
        if let Some(pair) = self.pairs.get_mut(name).filter(|pair| pair.mark.is_none()) {
            pair.ahead.get_or_insert(now);
        }
        if begins || self.pairs.get(name).is_some_and(|pair| !pair.packets.is_empty()) {
            return self.enqueue(name, false);
        }
        let at = self.now + self.random.shorten(OTHER_BEGINS);
        if let Some(pair) =
            self.pairs.get_mut(name).filter(|pair| pair.retry.is_none_or(|before| at < before))
        {
            pair.retry = Some(at);
            self.timers.add(at, Timer::Retry(name.clone()));
        }
    }

    /// Takes the steps there are tokens for.
    pub(super) fn pump(&mut self) {
        self.pump_queue(true);
        self.pump_queue(false);
    }

    fn pump_queue(&mut self, asked: bool) {
        let count = if asked { self.queue.asked.len() } else { self.queue.ahead.len() };
        for _ in 0..count {
            let queue = if asked { &mut self.queue.asked } else { &mut self.queue.ahead };
            let Some(name) = queue.pop_front() else {
                return;
            };
            if self.pairs.get(&name).is_none_or(|pair| pair.work != Work::Queued) {
                continue;
            }
            self.set_work(&name, Work::Idle);
            if self.attempt(&name, false) {
                continue;
            }
            let room = self.room_for_proof();
            let bucket = if asked { &mut self.asked } else { &mut self.spare };
            if room && bucket.take(self.now) {
                self.attempt(&name, true);
                continue;
            }
            // With no room, the end of any handshake brings us here again.
            let wait = bucket.wait();
            if room {
                self.timers.add(self.now + wait, Timer::Pump);
            }
            self.set_work(&name, Work::Queued);
            let queue = if asked { &mut self.queue.asked } else { &mut self.queue.ahead };
            queue.push_front(name);
            return;
        }
    }

    /// Keeps and queues the pairs that a plan implies, as far as the bound goes.
    pub(super) fn prove_ahead(&mut self, number: u64) {
        let Some(plan) = self.plan.clone() else {
            return;
        };
        self.settling = None;
        self.forget_beyond();
        for name in self.unconfirmed() {
            self.enqueue_ahead(&name);
        }
        let mut open = Vec::new();
        for pair in self.most_used_first(&plan) {
            let (a, b) = pair.identities();
            self.imply(&plan, a, b, &mut open);
            if a != b {
                self.imply(&plan, b, a, &mut open);
            }
        }
        for name in &open {
            self.enqueue_ahead(name);
        }
        let until = self.now + self.settings.settle_time;
        self.timers.add(until, Timer::Settle);
        self.settling = Some(Settling { number, until, open: open.into_iter().collect() });
        self.check_settled();
    }

    /// Who is to authenticate, in the order in which that is seen to as far as the bound goes: for whom the most packets
    /// have had to wait comes first. They are counted per pair of identities, which outlive endpoints; of a pair that is
    /// proven in time nothing is counted, but that keeps its mark whatever the order.
    fn most_used_first(&mut self, plan: &AuthPlan) -> Vec<IdentityPair> {
        self.used.retain(|pair, _| plan.pairs.contains(pair));
        let mut pairs: Vec<_> = plan.pairs.iter().copied().filter(|_| plan.ahead > 0).collect();
        pairs.sort_by_key(|pair| std::cmp::Reverse(self.used.get(pair).copied().unwrap_or(0)));
        pairs
    }

    /// Where the bound is reached, what has come to nothing makes room, unless somebody waits for it: what is used most
    /// may be another by now.
    fn forget_beyond(&mut self) {
        if self.pairs.len() < self.most_ahead() {
            return;
        }
        let idle = |pair: &Pair| {
            let waits = matches!(pair.work, Work::Idle | Work::Queued) && pair.refused.is_none();
            waits && pair.mark.is_none() && pair.packets.is_empty()
        };
        let names = self.pairs.iter().filter(|(_, pair)| idle(pair)).map(|(name, _)| name.clone());
        for name in names.collect::<Vec<_>>() {
            self.forget(&name);
        }
        // What comes back is queued anew, in the order of now.
        self.queue.ahead.retain(|name| self.pairs.contains_key(name));
    }

    /// Marks that an earlier auth-agent left, or that are of an earlier session: they are not renewed before they are
    /// proven again, whatever the bound.
    fn unconfirmed(&self) -> Vec<PairName> {
        let waits = |pair: &Pair| pair.mark.is_some_and(|marked| !marked.confirmed);
        self.pairs.iter().filter(|(_, pair)| waits(pair)).map(|(name, _)| name.clone()).collect()
    }

    /// Pairs of one identity here with another anywhere.
    fn imply(&mut self, plan: &AuthPlan, here: Identity, there: Identity, open: &mut Vec<PairName>) {
        let locals = self.index.local_identities.get(&here).cloned().unwrap_or_default();
        let remotes = self.index.remote_identities.get(&there).cloned().unwrap_or_default();
        let beside = self.index.local_identities.get(&there).cloned().unwrap_or_default();
        let beside = beside.into_iter().map(|instance| InstanceName { node: plan.node.clone(), instance });
        let peers: Vec<InstanceName> = remotes.into_iter().chain(beside).collect();
        for local in locals {
            for peer in &peers {
                if peer.node == plan.node && peer.instance == local {
                    continue;
                }
                let name = self.pair_name(local, peer.clone());
                if !self.pairs.contains_key(&name) && self.pairs.len() >= self.most_ahead() {
                    return;
                }
                if self.keep(&name).is_ok_and(|pair| !pair.mark.is_some_and(|marked| marked.confirmed)) {
                    open.push(name);
                }
            }
        }
    }

    /// A pair has been tried, or is no more.
    pub(super) fn leave_settling(&mut self, name: &PairName) {
        if let Some(settling) = &mut self.settling
            && settling.open.remove(name)
            && settling.open.is_empty()
        {
            self.check_settled();
        }
    }

    pub(super) fn check_settled(&mut self) {
        if let Some(settling) = &self.settling
            && (settling.open.is_empty() || settling.until <= self.now)
        {
            let number = settling.number;
            self.settling = None;
            self.tell_ended();
            self.out.push(Output::Tell(FromAuthAgent::Settled { number }));
        }
    }
}
