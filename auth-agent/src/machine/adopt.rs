//! What an earlier auth-agent left: kept where the first plan agrees and the word it depends on is still good, renewed
//! when it is proven again, cleared otherwise; without a certificate that could prove it again, after one grace.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use abi::{Mark, PairKey};
use mesh::auth::{InstanceName, Refusal};
use node_api::auth::EndedPair;

use super::leases::Lease;
use super::marks::{Marked, low};
use super::pairs::{Ends, PairName};
use super::sessions::Node;
use super::settings::Adopted;
use super::timers::Timer;
use super::{MILLISECOND, Machine};
use crate::event::Output;

impl Machine {
    /// At the first plan.
    pub(super) fn adopt(&mut self) {
        let Some(Adopted { marks, keys, leases, .. }) = self.adopted.take() else {
            return;
        };
        let mut keys_of: BTreeMap<u32, Vec<PairKey>> = BTreeMap::new();
        for (key, number) in keys {
            keys_of.entry(number).or_default().push(key);
        }
        if let Some(refusals) = keys_of.remove(&0) {
            self.out.push(Output::Forget(refusals));
        }
        for (number, mark) in marks {
            let keys = keys_of.remove(&number).unwrap_or_default();
            let end = leases.get(&mark.lease).copied().unwrap_or(0);
            if !self.adopt_mark(number, &mark, &keys, end) {
                self.end_adopted(number, &mark, keys);
            }
        }
        // Keys that lead to no mark.
        for (number, keys) in keys_of {
            self.out.push(Output::ClearMark { number, keys });
        }
        let used: Vec<u32> = self.nodes.values().map(|node| node.lease.number).collect();
        for number in leases.into_keys().filter(|number| *number != 0 && !used.contains(number)) {
            self.end_lease(Lease { number, end: 0 });
        }
        let grace = self.plan.as_ref().map_or(0, |plan| plan.grace.saturating_mul(MILLISECOND));
        self.timers.add(self.now.saturating_add(grace), Timer::Adopted);
    }

    /// One grace after: nobody vouches for what is kept without a certificate of its own end here.
    pub(super) fn forsake_adopted(&mut self) {
        let own = self.own_node();
        let is_forsaken = |name: &PairName, Ends { local, remote }: &Ends| {
            let ids = [Some(&local.id), (name.peer.node == own).then_some(&remote.id)];
            ids.into_iter().flatten().any(|id| self.has_certificate(id).is_err())
        };
        let forsaken: Vec<_> = self
            .pairs
            .iter()
            .filter(|(name, pair)| {
                pair.mark.is_some_and(|marked| !marked.confirmed) && is_forsaken(name, &pair.ends)
            })
            .map(|(name, _)| name.clone())
            .collect();
        for name in forsaken {
            self.clear(&name, Refusal::NoCertificate);
        }
    }

    fn adopt_mark(&mut self, number: u32, mark: &Mark, keys: &[PairKey], end: u64) -> bool {
        let Some(name) = self.owner(mark) else {
            return false;
        };
        let here = name.peer.node == self.own_node();
        // While the lease holds, its node cannot have given the address to another: it waits longer than that.
        let good = end > self.now && mark.expiry > self.now && (mark.lease == 0) == here;
        if !good || !self.adopt_lease(&name, mark.lease, end) || self.keep(&name).is_err() {
            return false;
        }
        let mut expected = self.keys(&name);
        let mut found = keys.to_vec();
        expected.sort();
        found.sort();
        let Some(pair) = self.pairs.get_mut(&name).filter(|pair| pair.mark.is_none() && found == expected)
        else {
            return false;
        };
        let ids = [&pair.ends.local.id, &pair.ends.remote.id];
        if !ids.into_iter().zip(mark.principals).all(|(id, number)| self.marks.learn_principal(id, number)) {
            return false;
        }
        pair.mark = Some(Marked { number, epoch: mark.epoch, expiry: mark.expiry, confirmed: false });
        self.tally.marks += 1;
        self.timers.add(mark.expiry, Timer::Mark(name));
        true
    }

    /// Whose mark it is by the plan.
    fn owner(&self, mark: &Mark) -> Option<PairName> {
        let plan = self.plan.as_ref()?;
        let instance_of = |half: u32| plan.endpoints.keys().copied().find(|instance| low(*instance) == half);
        let local = instance_of(mark.instances[0])?;
        let peer = if mark.instances[1] != 0 {
            InstanceName { node: plan.node.clone(), instance: instance_of(mark.instances[1])? }
        } else {
            let peer = self.index.remotes.get(&Ipv4Addr::from(mark.ipv4).into())?;
            let end = plan.remotes.get(peer)?;
            (end.ipv4.octets() == mark.ipv4 && end.ipv6.octets() == mark.ipv6).then(|| peer.clone())?
        };
        Some(self.pair_name(local, peer)).filter(|name| name.local == local)
    }

    /// Lets a node have the lease that the mark depends on; false if it has another, or another has it.
    fn adopt_lease(&mut self, name: &PairName, number: u32, end: u64) -> bool {
        let node = &name.peer.node;
        if number == 0 {
            return true;
        }
        if self.nodes.iter().any(|(other, state)| other != node && state.lease.number == number) {
            return false;
        }
        let Some(id) = self.plan.as_ref().and_then(|plan| plan.nodes.get(node)).map(|node| node.id.clone())
        else {
            return false;
        };
        let lease = Lease { number, end };
        let state = self.nodes.entry(node.clone()).or_insert_with(|| Node::new(id, lease));
        self.timers.add(end, Timer::Lease(node.clone()));
        state.lease.number == number
    }

    fn end_adopted(&mut self, number: u32, mark: &Mark, keys: Vec<PairKey>) {
        self.marks.give_back(number);
        let instances = mark.instances.into_iter().filter(|half| *half != 0);
        for half in instances {
            let known =
                self.plan.as_ref().and_then(|plan| plan.endpoints.keys().find(|full| low(**full) == half));
            let instance = known.copied().unwrap_or(u64::from(half));
            let (remote, epoch) = (peer_of(half, mark, &keys), mark.epoch);
            self.ended.push(EndedPair { instance, remote, epoch, why: Refusal::Withdrawn });
        }
        self.out.push(Output::ClearMark { number, keys });
    }
}

/// Addresses of the peer of one end of a mark. The mark itself has those of an end elsewhere; of two ends here the keys have
/// them, whoever is still in the plan.
fn peer_of(half: u32, mark: &Mark, keys: &[PairKey]) -> Vec<IpAddr> {
    if mark.instances[1] == 0 {
        return vec![Ipv4Addr::from(mark.ipv4).into(), Ipv6Addr::from(mark.ipv6).into()];
    }
    let its = keys.iter().filter(|key| key.instance == half);
    its.map(|key| IpAddr::from(Ipv6Addr::from(key.remote.0)).to_canonical()).collect()
}
