//! Packets that wait: for the mark of their pair, or for the plan to know their addresses. None goes on without a mark
//! where policy asks for one, and none waits longer than its time. What waited in vain is given back to the kernel, which
//! drops it, tells its sender where there is a refusal to tell, and reports it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use abi::HoldKind;
use mesh::auth::{IdentityPair, InstanceName, Refusal};

use super::Machine;
use super::pairs::PairName;
use super::timers::Timer;
use crate::event::{Output, Packet, Time};

/// One of them.
#[derive(Debug)]
struct Waiting {
    since: Time,
    kind: HoldKind,
    source: IpAddr,
    destination: IpAddr,
    /// Whose mark it waits for; `None`: it waits for a plan.
    pair: Option<PairName>,
    /// Who had its addresses when first they were known: nobody who comes after them sends or gets it.
    owners: (Option<u64>, Option<InstanceName>),
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Holds {
    packets: BTreeMap<Packet, Waiting>,
}

impl Holds {
    /// The pair that a packet waited for is no more.
    pub(super) fn orphan(&mut self, packet: Packet) {
        if let Some(waiting) = self.packets.get_mut(&packet) {
            waiting.pair = None;
        }
    }

    pub(super) fn len(&self) -> usize {
        self.packets.len()
    }
}

impl Machine {
    /// A packet waits.
    pub(super) fn held(&mut self, packet: Packet, kind: HoldKind, source: IpAddr, destination: IpAddr) {
        if self.holds.packets.len() >= self.settings.held || self.holds.packets.contains_key(&packet) {
            self.tally.in_vain(Refusal::Overloaded);
            return self.out.push(Output::Return(packet));
        }
        let waiting =
            Waiting { since: self.now, kind, source, destination, pair: None, owners: (None, None) };
        self.holds.packets.insert(packet, waiting);
        self.timers.add(self.now + self.settings.hold_time, Timer::Packet(packet));
        self.resolve(packet);
    }

    /// A call wants a proof. That is asked for as by a packet; with no packet to wait for it nothing is kept but that.
    pub(super) fn asked(&mut self, kind: HoldKind, source: IpAddr, destination: IpAddr) {
        let (Some(local), Some(peer)) = self.owners(kind, source, destination) else { return };
        let name = self.pair_name(local, peer);
        let (now, until) = (self.now, self.now + self.settings.hold_time);
        // What the plan does not want proven, the packet is told, should the kernel be of another opinion.
        let Ok(pair) = self.keep(&name) else { return };
        if pair.mark.is_none() {
            pair.called = until;
            pair.asked.get_or_insert(now);
            self.enqueue(&name, true);
        }
    }

    /// After a plan: what waited for one.
    pub(super) fn resolve_again(&mut self) {
        let unresolved = self.holds.packets.iter().filter(|(_, waiting)| waiting.pair.is_none());
        let unresolved: Vec<_> = unresolved.map(|(packet, _)| *packet).collect();
        for packet in unresolved {
            self.resolve(packet);
        }
    }

    /// Finds the pair of a packet and does what there is to do about it.
    fn resolve(&mut self, packet: Packet) {
        let Some(waiting) = self.holds.packets.get(&packet) else {
            return;
        };
        let pending = matches!(waiting.kind, HoldKind::PendingEgress | HoldKind::PendingIngress);
        let (local, peer) = self.owners(waiting.kind, waiting.source, waiting.destination);
        let before = &waiting.owners;
        let passed = (before.0.is_some() && before.0 != local) || (before.1.is_some() && before.1 != peer);
        if passed {
            return self.lose(packet);
        }
        if let Some(waiting) = self.holds.packets.get_mut(&packet) {
            waiting.owners = (local, peer.clone());
        }
        let (Some(local), Some(peer)) = (local, peer) else {
            return;
        };
        let name = self.pair_name(local, peer);
        let most = self.settings.held_per_pair;
        let now = self.now;
        match self.keep(&name) {
            Ok(pair) if pair.packets.len() < most => {
                pair.packets.push(packet);
                pair.asked.get_or_insert(now);
                let identities = IdentityPair::new(pair.ends.local.identity, pair.ends.remote.identity);
                *self.used.entry(identities).or_default() += 1;
                if let Some(waiting) = self.holds.packets.get_mut(&packet) {
                    waiting.pair = Some(name.clone());
                }
                let marked = self.pairs.get(&name).is_some_and(|pair| pair.mark.is_some());
                if marked && self.leased(&name.peer.node) {
                    return self.release_all(&name);
                }
                self.enqueue(&name, true);
            }
            Ok(_) | Err(Refusal::Overloaded) => {
                self.give_back(packet, Refusal::Overloaded);
            }
            // Now that both are known the kernel can judge it, and no policy wants a mark of it.
            Err(Refusal::NotRequired) if pending => self.release(packet),
            // The kernel's policy is ahead of the plan.
            Err(_) => {}
        }
    }

    /// Whose the addresses of a packet, or of a call, are: here, and beyond.
    fn owners(
        &self,
        kind: HoldKind,
        source: IpAddr,
        destination: IpAddr,
    ) -> (Option<u64>, Option<InstanceName>) {
        let (here, there) = match kind {
            HoldKind::Egress | HoldKind::PendingEgress => (source, destination),
            HoldKind::Ingress | HoldKind::PendingIngress => (destination, source),
        };
        let beside = self.index.locals.get(&there);
        let beside =
            beside.map(|instance| InstanceName { node: self.own_node().to_owned(), instance: *instance });
        let peer = beside.or_else(|| self.index.remotes.get(&there).cloned());
        (self.index.locals.get(&here).copied(), peer)
    }

    fn release_all(&mut self, name: &PairName) {
        let packets = self.pairs.get_mut(name).map(|pair| std::mem::take(&mut pair.packets));
        for packet in packets.into_iter().flatten() {
            self.release(packet);
        }
    }

    /// Lets a packet go on.
    pub(super) fn release(&mut self, packet: Packet) {
        if let Some(waiting) = self.holds.packets.remove(&packet) {
            self.tally.waited(self.now.saturating_sub(waiting.since));
            self.out.push(Output::Release(packet));
        }
    }

    /// Gives a packet back that has waited in vain.
    pub(super) fn give_back(&mut self, packet: Packet, why: Refusal) {
        if self.holds.packets.remove(&packet).is_some() {
            self.tally.in_vain(why);
            self.out.push(Output::Return(packet));
        }
    }

    /// Loses a packet for good: given back, it might be judged as if it were for who has its addresses now.
    fn lose(&mut self, packet: Packet) {
        if self.holds.packets.remove(&packet).is_some() {
            self.tally.in_vain(Refusal::Withdrawn);
            self.out.push(Output::Lose(packet));
        }
    }

    /// A packet has waited long enough.
    pub(super) fn packet_timed_out(&mut self, packet: Packet) {
        let Some(waiting) = self.holds.packets.get(&packet) else {
            return;
        };
        let why = match waiting.pair.clone() {
            Some(name) => {
                self.refuse(&name);
                Refusal::TimedOut
            }
            None => {
                let why = match self.owners(waiting.kind, waiting.source, waiting.destination) {
                    (Some(local), Some(peer)) => self.ends(&self.pair_name(local, peer)).err(),
                    _ => None,
                };
                why.unwrap_or(Refusal::UnknownPeer)
            }
        };
        // Unless the pair has taken it along.
        self.give_back(packet, why);
    }
}
