//! Marks: numbers, epochs, principals, keys. What is written to the maps about a pair is written here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

use abi::{Address, MARKS, Mark, PairKey};
use mesh::auth::{AuthEndpoint, AuthPlan, Refusal};
use mesh::spiffe::SpiffeId;
use node_api::auth::EndedPair;

use super::Machine;
use super::pairs::{Ends, Pair, PairName};
use super::settings::Adopted;
use super::timers::Timer;
use crate::event::{Failure, Output, Time};

/// What a pair's mark is, as far as it changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Marked {
    pub(super) number: u32,
    pub(super) epoch: u64,
    pub(super) expiry: Time,
    /// Whether it rests on a proof of the session there is, and the peer has said that it has its mark, too. What is
    /// adopted, or of an earlier session, is proven again.
    pub(super) confirmed: bool,
}

/// What marks are made of.
#[derive(Debug)]
pub(super) struct Marks {
    epoch: u64,
    /// Numbers that have been given back, the longest unused first.
    free: VecDeque<u32>,
    /// The lowest that was never given.
    fresh: u32,
    /// Numbers that an earlier auth-agent gave, and nobody has given back.
    taken: BTreeSet<u32>,
    principals: BTreeMap<SpiffeId, u32>,
    taken_principals: BTreeSet<u32>,
}

impl Marks {
    pub(super) fn new(adopted: &Adopted) -> Self {
        // Whatever is found, an epoch is never given twice.
        let epoch = adopted.marks.values().map(|mark| mark.epoch).max().unwrap_or(0).max(adopted.last_epoch);
        Self {
            epoch,
            free: VecDeque::new(),
            fresh: 1,
            taken: adopted.marks.keys().copied().collect(),
            principals: BTreeMap::new(),
            taken_principals: BTreeSet::new(),
        }
    }

    fn take(&mut self) -> Option<u32> {
        if let Some(number) = self.free.pop_front() {
            return Some(number);
        }
        while self.fresh < MARKS {
            let number = self.fresh;
            self.fresh += 1;
            if !self.taken.remove(&number) {
                return Some(number);
            }
        }
        None
    }

    pub(super) fn give_back(&mut self, number: u32) {
        // One that was adopted and not yet passed by `fresh` comes by itself.
        if !self.taken.remove(&number) {
            self.free.push_back(number);
        }
    }

    /// The number of an ID: made of its letters, so that the next auth-agent can tell which ID a mark was for; the next
    /// number that is free, if another ID has that one.
    fn principal(&mut self, id: &SpiffeId) -> u32 {
        if let Some(number) = self.principals.get(id) {
            return *number;
        }
        let mut number = made_of(id);
        while number == 0 || self.taken_principals.contains(&number) {
            number = number.wrapping_add(1);
        }
        self.taken_principals.insert(number);
        self.principals.insert(id.clone(), number);
        number
    }

    /// Learns a number that an earlier auth-agent gave; false if it was given to another ID, as far as can be told.
    pub(super) fn learn_principal(&mut self, id: &SpiffeId, number: u32) -> bool {
        number == made_of(id) && self.principal(id) == number
    }

    /// Forgets the numbers of IDs that no plan names any more; no mark has them.
    pub(super) fn keep_principals(&mut self, plan: &AuthPlan) {
        let ids: BTreeSet<&SpiffeId> =
            plan.endpoints.values().chain(plan.remotes.values()).map(|endpoint| &endpoint.id).collect();
        self.principals.retain(|id, _| ids.contains(id));
        self.taken_principals = self.principals.values().copied().collect();
    }
}

impl Machine {
    /// A pair is proven until `expiry`: marks it, or moves the expiry of its mark. What waits for it goes on.
    pub(super) fn mark(&mut self, name: &PairName, expiry: Time) {
        let Some(pair) = self.pairs.get_mut(name) else {
            return;
        };
        if let Some(marked) = &mut pair.mark {
            marked.confirmed = true;
            if expiry > marked.expiry {
                marked.expiry = expiry;
                self.out.push(Output::RenewMark { number: marked.number, expiry });
            }
        } else {
            let Some(number) = self.marks.take() else {
                return self.fail(name, Refusal::Overloaded);
            };
            self.set_mark(name, number, expiry);
        }
        self.timers.add(expiry, Timer::Mark(name.clone()));
        self.proven(name);
    }

    fn set_mark(&mut self, name: &PairName, number: u32, expiry: Time) {
        let here = name.peer.node == self.own_node();
        let lease = self.nodes.get(&name.peer.node).filter(|_| !here).map_or(0, |node| node.lease.number);
        let Some(pair) = self.pairs.get_mut(name) else {
            return;
        };
        self.marks.epoch += 1;
        let epoch = self.marks.epoch;
        let Ends { local, remote } = &pair.ends;
        let mut mark = Mark {
            epoch,
            expiry,
            lease,
            principals: [self.marks.principal(&local.id), self.marks.principal(&remote.id)],
            instances: [low(name.local), if here { low(name.peer.instance) } else { 0 }],
            ..Mark::default()
        };
        if !here {
            mark.ipv4 = remote.ipv4.octets();
            mark.ipv6 = remote.ipv6.octets();
        }
        pair.mark = Some(Marked { number, epoch, expiry, confirmed: true });
        pair.refused = None;
        let now = self.now;
        let times = [pair.asked.take(), pair.ahead.take()];
        let [asked, ahead] = times.map(|since| since.map(|since| now.saturating_sub(since)));
        self.tally.authenticated(asked, ahead);
        self.tally.marks += 1;
        let keys = keys(name, &pair.ends, here);
        self.out.push(Output::SetMark { number, mark, keys });
    }

    /// Takes the mark of a pair away, if it has one, and says why.
    pub(super) fn clear(&mut self, name: &PairName, failure: impl Into<Failure>) {
        let failure = failure.into();
        let why = failure.why;
        let keys = self.keys(name);
        let Some(pair) = self.pairs.get_mut(name) else {
            return;
        };
        let Some(marked) = pair.mark.take() else {
            return;
        };
        pair.last = Some(failure);
        let Ends { local, remote } = pair.ends.clone();
        self.out.push(Output::ClearMark { number: marked.number, keys });
        self.marks.give_back(marked.number);
        self.tally.marks -= 1;
        self.ended.push(ended(name.local, &remote, marked.epoch, why));
        if name.peer.node == self.own_node() && name.peer.instance != name.local {
            self.ended.push(ended(name.peer.instance, &local, marked.epoch, why));
        }
        self.explain(name);
    }

    /// The kernel did not take a mark, so the pair has none; tried again like any that has failed.
    pub(super) fn mark_lost(&mut self, number: u32, epoch: u64) {
        let is_it =
            |pair: &Pair| pair.mark.is_some_and(|marked| (marked.number, marked.epoch) == (number, epoch));
        let name = self.pairs.iter().find(|(_, pair)| is_it(pair)).map(|(name, _)| name.clone());
        if let Some(name) = name {
            self.clear(&name, Refusal::Overloaded);
            self.fail(&name, Refusal::Overloaded);
        }
    }

    /// Takes every mark away that depends on a node, or ends in it; pairs stay.
    pub(super) fn clear_node(&mut self, node: &str, why: Refusal) {
        for name in self.pairs_of(node) {
            self.clear(&name, why);
        }
    }

    /// The mark may have ended.
    pub(super) fn check_mark(&mut self, name: &PairName) {
        let over = |pair: &Pair| pair.mark.is_some_and(|marked| marked.expiry <= self.now);
        if self.pairs.get(name).is_some_and(over) {
            self.clear(name, Refusal::Expired);
            self.enqueue(name, false);
        }
    }

    /// Keys in `AUTH` of a pair.
    pub(super) fn keys(&self, name: &PairName) -> Vec<PairKey> {
        let here = name.peer.node == self.own_node();
        self.pairs.get(name).map(|pair| keys(name, &pair.ends, here)).unwrap_or_default()
    }
}

/// FNV-1a over the text of an ID, folded to 32 bits.
fn made_of(id: &SpiffeId) -> u32 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = id.to_string().bytes().fold(0xcbf2_9ce4_8422_2325, step);
    (hash >> 32) as u32 ^ (hash & u64::from(u32::MAX)) as u32
}

fn ended(instance: u64, remote: &AuthEndpoint, epoch: u64, why: Refusal) -> EndedPair {
    EndedPair { instance, remote: remote.addresses().to_vec(), epoch, why }
}

/// What the maps keep of an instance.
pub(super) fn low(instance: u64) -> u32 {
    (instance & u64::from(u32::MAX)) as u32
}

fn keys(name: &PairName, ends: &Ends, here: bool) -> Vec<PairKey> {
    let to = |instance: u64, remote: &AuthEndpoint| {
        let (instance, identity) = (low(instance), remote.identity.number());
        remote
            .addresses()
            .into_iter()
            .filter(|address| !address.is_unspecified())
            .map(move |address| PairKey { remote: key_address(address), identity, instance })
            .collect::<Vec<_>>()
    };
    let mut keys = to(name.local, &ends.remote);
    if here && name.local != name.peer.instance {
        keys.extend(to(name.peer.instance, &ends.local));
    }
    keys
}

fn key_address(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(address) => Address::v4(address.octets()),
        IpAddr::V6(address) => Address(address.octets()),
    }
}
