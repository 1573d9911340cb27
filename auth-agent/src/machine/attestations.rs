//! Attestations: what each node says of its own instances, and what becomes of it when it no longer does.
//!
//! A peer's word counts only where the plan agrees: same node, same instance, same addresses, same ID. What it says
//! beyond that is kept, within a bound, since the plan may be behind; it opens nothing.

use std::collections::BTreeSet;
use std::net::IpAddr;

use mesh::auth::{AuthEndpoint, AuthPlan, InstanceName, Refusal};
use mesh::spiffe::SpiffeId;
use node_api::auth::{FromAuthAgent, Step};

use super::Machine;
use super::pairs::PairName;
use super::sessions::Session;
use super::timers::Timer;
use crate::event::{Output, SessionId, Time};
use crate::message::{Attestation, MAX_MESSAGE, Message};

/// What a peer says of one instance.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Attested {
    addresses: [IpAddr; 2],
    id: SpiffeId,
}

/// The certificate of an ID that is wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Certificate {
    /// Until when there is one, or why there is none.
    pub(super) result: Result<Time, Refusal>,
    /// Whether there was one since the start.
    had: bool,
}

/// An instance of this node that is gone, and the nodes that may still have a mark for it.
#[derive(Debug)]
pub(super) struct Freeing {
    nodes: BTreeSet<String>,
    until: Time,
}

impl Machine {
    /// Whether the peer of a session attests an instance just as the plan has it.
    pub(super) fn attests(&self, session: SessionId, instance: u64, end: &AuthEndpoint) -> bool {
        let attested = self.sessions.get(&session).and_then(|state| state.attested.get(&instance));
        attested.is_some_and(|said| said.addresses == end.addresses() && said.id == end.id)
    }

    /// Whether there is a certificate for an ID now.
    pub(super) fn has_certificate(&self, id: &SpiffeId) -> Result<(), Refusal> {
        match self.certificates.get(id).map(|certificate| certificate.result) {
            Some(Ok(until)) if until > self.now => Ok(()),
            Some(Ok(_)) => Err(Refusal::Expired),
            Some(Err(why)) => Err(why),
            None => Err(Refusal::NoCertificate),
        }
    }

    /// Whether instances of an ID may be attested. One whose certificate has not come yet may: it proves nothing, but a
    /// peer that has marks for it, from before a restart, keeps them. One whose certificate was lost may not.
    fn attestable(&self, id: &SpiffeId) -> bool {
        self.certificates.get(id).is_none_or(|certificate| !certificate.had)
            || self.has_certificate(id).is_ok()
    }

    /// A certificate has come, was renewed, or is no more.
    pub(super) fn certificate(&mut self, id: SpiffeId, result: Result<Time, Refusal>) {
        if !self.index.local_ids.contains_key(&id) {
            return;
        }
        let had = self.has_certificate(&id).is_ok();
        if let Ok(until) = result {
            self.timers.add(until.max(self.now + 1), Timer::Certificate(id.clone()));
        }
        let before = self.certificates.get(&id).is_some_and(|certificate| certificate.had);
        self.certificates.insert(id.clone(), Certificate { result, had: before || result.is_ok() });
        let instances = self.index.local_ids.get(&id).cloned().unwrap_or_default();
        match self.has_certificate(&id) {
            Ok(()) if had => {}
            Ok(()) => {
                self.attest(&instances);
                self.try_instances(&instances);
            }
            Err(why) if had => self.lose_certificate(&instances, why),
            Err(_) => {}
        }
    }

    pub(super) fn check_certificate(&mut self, id: &SpiffeId) {
        if self.certificates.contains_key(id) && self.has_certificate(id).is_err() {
            let instances = self.index.local_ids.get(id).cloned().unwrap_or_default();
            self.lose_certificate(&instances, Refusal::Expired);
        }
    }

    /// A workload without a certificate is nobody: its marks go, here and on its peers.
    fn lose_certificate(&mut self, instances: &[u64], why: Refusal) {
        for name in self.pairs_at(instances) {
            self.clear(&name, why);
        }
        for &instance in instances {
            self.withdraw(instance, Refusal::NoCertificate);
        }
    }

    fn pairs_at(&self, instances: &[u64]) -> Vec<PairName> {
        let own = self.own_node();
        let at = |name: &PairName| {
            instances.contains(&name.local)
                || (name.peer.node == own && instances.contains(&name.peer.instance))
        };
        self.pairs.keys().filter(|name| at(name)).cloned().collect()
    }

    fn try_instances(&mut self, instances: &[u64]) {
        for name in self.pairs_at(instances) {
            self.enqueue(&name, false);
        }
    }

    /// Tells a new session's peer all that this node attests.
    pub(super) fn attest_all(&mut self, session: SessionId) {
        let instances: Vec<u64> =
            self.plan.as_ref().map(|plan| plan.endpoints.keys().copied().collect()).unwrap_or_default();
        self.attest_to(session, &instances);
        self.out.push(Output::Send(session, Message::Complete));
        let Some(state) = self.sessions.get_mut(&session) else {
            return;
        };
        // What is gone already is not in the set: acknowledging the set acknowledges that.
        let gone = self.freeing.iter().filter(|(_, freeing)| freeing.nodes.contains(&state.node));
        state.freeing = gone.map(|(instance, _)| (0, *instance)).collect();
    }

    /// Tells every peer of instances.
    fn attest(&mut self, instances: &[u64]) {
        let sessions: Vec<_> = self.sessions.keys().copied().collect();
        for session in sessions {
            self.attest_to(session, instances);
        }
    }

    fn attest_to(&mut self, session: SessionId, instances: &[u64]) {
        let (Some(plan), Some(state)) = (self.plan.clone(), self.sessions.get(&session)) else {
            return;
        };
        let untold = instances.iter().filter(|instance| !state.told.contains(instance));
        let good: Vec<(u64, &AuthEndpoint)> = untold
            .filter_map(|instance| plan.endpoints.get(instance).map(|end| (*instance, end)))
            .filter(|(_, end)| self.attestable(&end.id))
            .collect();
        let Some(state) = self.sessions.get_mut(&session) else {
            return;
        };
        state.told.extend(good.iter().map(|(instance, _)| instance));
        let (mut part, mut size) = (Vec::new(), 0);
        for (instance, end) in good {
            let id = end.id.clone();
            let more = 64 + id.trust_domain().as_str().len() + id.path().len();
            if size + more > MAX_MESSAGE - 1024 {
                self.out.push(Output::Send(session, Message::Attest(std::mem::take(&mut part))));
                size = 0;
            }
            size += more;
            part.push(Attestation { instance, addresses: end.addresses(), id });
        }
        if !part.is_empty() {
            self.out.push(Output::Send(session, Message::Attest(part)));
        }
    }

    /// After a plan: attests what is new, and anew what is otherwise.
    pub(super) fn attest_new(&mut self, old: Option<&AuthPlan>, changed: &[u64]) {
        let Some(plan) = self.plan.clone() else {
            return;
        };
        let is_new = |instance: &u64| {
            changed.contains(instance) || old.is_none_or(|old| !old.endpoints.contains_key(instance))
        };
        let new: Vec<u64> = plan.endpoints.keys().copied().filter(is_new).collect();
        self.attest(&new);
    }

    /// After a plan: what is gone is told to every peer, and is free when all have acknowledged it.
    pub(super) fn withdraw_all(&mut self, gone: &[u64], changed: &[u64]) {
        for &instance in changed {
            self.withdraw(instance, Refusal::Withdrawn);
        }
        for &instance in gone {
            self.withdraw(instance, Refusal::Withdrawn);
            self.begin_freeing(instance);
        }
    }

    /// Tells every peer that knows an instance that it is no longer attested.
    fn withdraw(&mut self, instance: u64, why: Refusal) {
        for (session, state) in &mut self.sessions {
            if state.told.remove(&instance) {
                state.withdrawn += 1;
                let number = state.withdrawn;
                self.out.push(Output::Send(*session, Message::Withdraw { number, instance, why }));
            }
        }
    }

    fn begin_freeing(&mut self, instance: u64) {
        let (now, quarantine) = (self.now, self.quarantine());
        // Peers that an earlier auth-agent has told of it may not have come back yet.
        let young = now < self.started.saturating_add(quarantine);
        let may_know = |lost: Option<Time>| young || lost.is_some_and(|lost| now < lost + quarantine);
        let mut nodes: BTreeSet<String> =
            self.nodes.iter().filter(|(_, node)| may_know(node.lost)).map(|(name, _)| name.clone()).collect();
        // A peer that has acknowledged all of a session has nothing of what was before it either.
        for state in self.sessions.values().filter(|state| state.all_acknowledged()) {
            nodes.remove(&state.node);
        }
        // Also what was withdrawn before it was gone may not be acknowledged yet.
        for state in self.sessions.values_mut().filter(|state| !state.all_acknowledged()) {
            state.freeing.push((state.withdrawn, instance));
            nodes.insert(state.node.clone());
        }
        let until = now + quarantine;
        self.freeing.insert(instance, Freeing { nodes, until });
        self.timers.add(until, Timer::Free(instance));
        self.check_free(instance);
    }

    /// Says that an instance is free if it is.
    pub(super) fn check_free(&mut self, instance: u64) {
        let free = |freeing: &Freeing| freeing.nodes.is_empty() || freeing.until <= self.now;
        if self.freeing.get(&instance).is_some_and(free) {
            self.freeing.remove(&instance);
            self.tell_ended();
            self.out.push(Output::Tell(FromAuthAgent::Free { instance }));
        }
    }

    /// The peer has cleared everything up to a withdrawal. False: it cannot have.
    pub(super) fn acknowledged(&mut self, session: SessionId, number: u64) -> bool {
        let Some(state) = self.sessions.get_mut(&session) else {
            return true;
        };
        if number > state.withdrawn || state.acknowledged.is_some_and(|before| number < before) {
            return false;
        }
        state.acknowledged = Some(number);
        let node = state.node.clone();
        let freed: Vec<u64> =
            state.freeing.extract_if(.., |(at, _)| *at <= number).map(|(_, instance)| instance).collect();
        for instance in freed {
            let waits = |state: &Session| {
                state.node == node && state.freeing.iter().any(|(_, other)| *other == instance)
            };
            if self.sessions.values().any(waits) {
                continue;
            }
            if let Some(freeing) = self.freeing.get_mut(&instance) {
                freeing.nodes.remove(&node);
            }
            self.check_free(instance);
        }
        true
    }

    /// The peer attests instances. False: more than a node has.
    pub(super) fn attested(&mut self, session: SessionId, node: &str, said: Vec<Attestation>) -> bool {
        let most = self.settings.instances_per_peer;
        for Attestation { instance, addresses, id } in said {
            let peer = InstanceName { node: node.to_owned(), instance };
            self.count_foreign(&peer, &addresses, &id);
            let Some(state) = self.sessions.get_mut(&session) else {
                return true;
            };
            let attested = Attested { addresses, id };
            let before = state.attested.insert(instance, attested.clone());
            if state.attested.len() > most {
                return false;
            }
            if self.current(node) != Some(session) {
                continue;
            }
            for name in self.pairs_with(&peer) {
                if before.as_ref().is_some_and(|before| *before != attested) {
                    self.clear(&name, Refusal::NotAttested);
                }
                self.enqueue_ahead(&name);
            }
        }
        true
    }

    /// Counts, and shows, what a node says of addresses that are another's, or of an ID that is not its own.
    fn count_foreign(&mut self, peer: &InstanceName, addresses: &[IpAddr; 2], id: &SpiffeId) {
        let Some(problem) = self.foreign(peer, addresses, id) else {
            return;
        };
        self.tally.refuse(Step::Attestation, Refusal::NotAttested);
        if let Some(node) = self.nodes.get_mut(&peer.node) {
            node.problem = Some(problem);
        }
    }

    /// What is wrong with what the peer of a session attests.
    pub(super) fn foreign_of(&self, session: SessionId) -> Option<String> {
        let state = self.sessions.get(&session)?;
        state.attested.iter().find_map(|(instance, said)| {
            let peer = InstanceName { node: state.node.clone(), instance: *instance };
            self.foreign(&peer, &said.addresses, &said.id)
        })
    }

    fn foreign(&self, peer: &InstanceName, addresses: &[IpAddr; 2], id: &SpiffeId) -> Option<String> {
        let plan = self.plan.as_ref()?;
        let elsewhere = |address: &IpAddr| {
            self.index.locals.contains_key(address)
                || self.index.remotes.get(address).is_some_and(|owner| owner.node != peer.node)
        };
        let wrong_id = plan.remotes.get(peer).is_some_and(|end| end.id != *id);
        match addresses.iter().find(|address| elsewhere(address)) {
            Some(address) => Some(format!("it attests {address}, which is not its own")),
            None if wrong_id => Some(format!("it attests {id} for an instance that has another ID")),
            None => None,
        }
    }

    /// The peer no longer attests an instance: its marks go, and only then is that acknowledged.
    pub(super) fn withdrawn(
        &mut self,
        session: SessionId,
        node: &str,
        number: u64,
        instance: u64,
        why: Refusal,
    ) {
        let Some(state) = self.sessions.get_mut(&session) else {
            return;
        };
        state.withdrawal = number;
        state.attested.remove(&instance);
        let peer = InstanceName { node: node.to_owned(), instance };
        // Whichever session says it; an older one still counts.
        for name in self.pairs_with(&peer) {
            self.clear(&name, if why == Refusal::NoCertificate { Refusal::PeerNoCertificate } else { why });
        }
        self.out.push(Output::Send(session, Message::Withdrawn { number }));
    }

    /// Clears the marks of a node for what its full set does not have.
    pub(super) fn clear_unattested(&mut self, session: SessionId, node: &str) {
        for name in self.pairs_of(node) {
            let kept = self.pairs.get(&name).is_some_and(|pair| {
                pair.mark.is_none() || self.attests(session, name.peer.instance, &pair.ends.remote)
            });
            if !kept {
                self.clear(&name, Refusal::NotAttested);
            }
        }
    }
}
