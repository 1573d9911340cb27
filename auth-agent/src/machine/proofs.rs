//! Proofs: one full mTLS handshake per pair of IDs and node session, shared by all pairs of instances that have them.

use std::collections::BTreeSet;

use mesh::auth::Refusal;
use mesh::spiffe::SpiffeId;

use super::handshakes::Handshake;
use super::pairs::{Pair, PairName, Work};
use super::timers::Timer;
use super::{Machine, SECOND};
use crate::event::{Failure, Output, ProofId, SessionId, Time};
use crate::message::Message;

/// What a proof is about. For two workloads of this node `node` is its own name, and `local` the lower ID.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct ProofKey {
    pub(super) node: String,
    pub(super) local: SpiffeId,
    pub(super) remote: SpiffeId,
}

impl ProofKey {
    pub(super) fn here(node: String, a: SpiffeId, b: SpiffeId) -> Self {
        if a <= b { Self { node, local: a, remote: b } } else { Self { node, local: b, remote: a } }
    }
}

/// What has come of it.
#[derive(Debug, Default)]
pub(super) struct Proof {
    /// Until when it holds, if there is one.
    pub(super) expiry: Option<Time>,
    /// When it is to be renewed.
    renew: Time,
    /// How long the latest that this node began has taken until it counted.
    pub(super) took: Option<Time>,
    /// Whether one that this node began is under way.
    pub(super) running: Running,
    /// Pairs that wait for it or are marked on its strength.
    users: BTreeSet<PairName>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Running {
    #[default]
    No,
    /// In memory, since then.
    Here(Time),
    /// In a session.
    There(ProofId),
}

impl Machine {
    /// Until when there is a proof.
    pub(super) fn live_proof(&self, key: &ProofKey) -> Option<Time> {
        self.proofs.get(key)?.expiry.filter(|expiry| *expiry > self.now)
    }

    /// Whether one that this node began is under way.
    pub(super) fn proving(&self, key: &ProofKey) -> bool {
        self.proofs.get(key).is_some_and(|proof| proof.running != Running::No)
    }

    /// Lets a pair depend on a proof.
    pub(super) fn join(&mut self, key: &ProofKey, name: &PairName) {
        self.proofs.entry(key.clone()).or_default().users.insert(name.clone());
    }

    /// Whether another handshake may begin, apart from the rate.
    pub(super) fn room_for_proof(&self) -> bool {
        self.tally.running < self.settings.proofs_at_once
    }

    /// Begins a handshake, unless one is under way.
    pub(super) fn begin_proof(&mut self, key: &ProofKey, session: Option<SessionId>) {
        let Some(proof) = self.proofs.get_mut(key).filter(|proof| proof.running == Running::No) else {
            return;
        };
        let deadline = self.now + self.settings.proof_time;
        let Some(session) = session else {
            proof.running = Running::Here(self.now);
            self.tally.running += 1;
            self.timers.add(deadline, Timer::Proof(key.clone()));
            self.out.push(Output::ProveLocally(key.local.clone(), key.remote.clone()));
            return;
        };
        let Some(state) = self.sessions.get_mut(&session) else {
            return;
        };
        state.last_proof += 1;
        let number = state.last_proof;
        let id = ProofId { session, ours: true, number };
        proof.running = Running::There(id);
        self.tally.running += 1;
        self.handshakes.insert(id, Handshake::new(key.clone(), self.now));
        self.timers.add(deadline, Timer::Handshake(id));
        let (local, remote) = (key.local.clone(), key.remote.clone());
        let (initiator, responder) = (local.clone(), remote.clone());
        self.out.push(Output::Send(session, Message::Prove { proof: number, initiator, responder }));
        self.out.push(Output::StartProof { proof: id, local, remote });
    }

    /// The handshake in memory of two workloads of this node is over.
    pub(super) fn local_proof_done(&mut self, a: SpiffeId, b: SpiffeId, result: Result<Time, Failure>) {
        // Asked for by the key itself, so its ends stand as they do there.
        let key = ProofKey::here(self.own_node().to_owned(), a, b);
        let Some(proof) = self.proofs.get_mut(&key).filter(|proof| proof.running != Running::No) else {
            return;
        };
        if let (Running::Here(since), Ok(_)) = (std::mem::take(&mut proof.running), &result) {
            proof.took = Some(self.now.saturating_sub(since));
        }
        self.tally.running = self.tally.running.saturating_sub(1);
        match result {
            Ok(expiry) if expiry > self.now => self.proof_holds(&key, expiry),
            Ok(_) => self.local_proof_failed(&key, Refusal::Expired.into()),
            Err(failure) => self.local_proof_failed(&key, failure),
        }
    }

    fn local_proof_failed(&mut self, key: &ProofKey, failure: Failure) {
        self.tally.handshake(failure.why);
        self.proof_refused(key, failure);
    }

    /// The pairs that rest on a proof, or wait for it. A pair may have got other IDs since it joined.
    pub(super) fn users(&self, key: &ProofKey) -> Vec<PairName> {
        let users =
            self.proofs.get(key).map(|proof| proof.users.iter().filter(|name| self.rests_on(name, key)));
        users.into_iter().flatten().cloned().collect()
    }

    fn rests_on(&self, name: &PairName, key: &ProofKey) -> bool {
        self.pairs.get(name).is_some_and(|pair| {
            let (local, remote) = (&pair.ends.local.id, &pair.ends.remote.id);
            let same = (local, remote) == (&key.local, &key.remote);
            let turned = (remote, local) == (&key.local, &key.remote) && key.node == self.own_node();
            name.peer.node == key.node && (same || turned)
        })
    }

    /// Both sides have verified each other.
    pub(super) fn proof_holds(&mut self, key: &ProofKey, expiry: Time) {
        let half = (expiry - self.now) / 2;
        let renew = self.now + self.random.shorten(half);
        let proof = self.proofs.entry(key.clone()).or_default();
        let expiry = proof.expiry.map_or(expiry, |before| before.max(expiry));
        proof.expiry = Some(expiry);
        proof.renew = renew;
        let users = self.users(key);
        self.timers.add(renew.max(self.now + 1), Timer::Proof(key.clone()));
        self.timers.add(expiry, Timer::Proof(key.clone()));
        self.tally.proven += 1;
        for name in users {
            let Some(pair) = self.pairs.get(&name) else {
                continue;
            };
            if pair.mark.is_some_and(|marked| marked.confirmed) {
                self.mark(&name, expiry);
            } else if pair.work == Work::Proving {
                self.attempt(&name, false);
            }
        }
    }

    /// What we began has failed.
    pub(super) fn proof_refused(&mut self, key: &ProofKey, failure: Failure) {
        let Some(proof) = self.proofs.get_mut(key) else {
            return;
        };
        if let Some(expiry) = proof.expiry {
            // What is proven stays so until its end; that it could not be renewed is tried again before.
            let again = (expiry.saturating_sub(self.now) / 4).clamp(SECOND / 10, 30 * SECOND);
            proof.renew = self.now + again;
            self.timers.add(proof.renew, Timer::Proof(key.clone()));
        } else {
            self.timers.add(self.now + self.settings.proof_time, Timer::Proof(key.clone()));
        }
        for name in self.users(key) {
            let Some(pair) = self.pairs.get(&name) else {
                continue;
            };
            // Who was asked to mark a pair before it had accepted will not.
            let waits = match pair.work {
                Work::Proving => true,
                Work::Binding(_) => self.live_proof(key).is_none(),
                Work::Idle | Work::Queued => false,
            };
            let marked = pair.mark;
            let failure = failure.clone().of_pair(key, &pair.ends);
            if marked.is_some_and(|marked| !marked.confirmed) && disproves(failure.why) {
                self.clear(&name, failure.clone());
            }
            if waits {
                self.fail(&name, failure);
            }
        }
    }

    /// A proof is to be renewed, has ended, or nobody uses it any more.
    pub(super) fn check_proof(&mut self, key: &ProofKey) {
        let Some(proof) = self.proofs.get_mut(key) else {
            return;
        };
        if let Running::Here(since) = proof.running {
            if self.now >= since + self.settings.proof_time {
                proof.running = Running::No;
                self.tally.running = self.tally.running.saturating_sub(1);
                self.local_proof_failed(key, Refusal::TimedOut.into());
            }
            return;
        }
        if proof.expiry.is_some_and(|expiry| expiry <= self.now) {
            proof.expiry = None;
        }
        let mut users = self.users(key);
        users.retain(|name| {
            let is_user =
                |pair: &Pair| pair.mark.is_some() || matches!(pair.work, Work::Proving | Work::Binding(_));
            self.pairs.get(name).is_some_and(is_user)
        });
        let Some(proof) = self.proofs.get_mut(key) else {
            return;
        };
        proof.users = users.into_iter().collect();
        if proof.users.is_empty() && proof.expiry.is_none() && proof.running == Running::No {
            self.proofs.remove(key);
            return;
        }
        if proof.users.is_empty() || proof.expiry.is_none() || proof.renew > self.now {
            return;
        }
        self.renew(key);
    }

    fn renew(&mut self, key: &ProofKey) {
        let here = key.node == self.own_node();
        let session = self.current(&key.node);
        if !here && session.is_none() {
            return;
        }
        if self.has_certificate(&key.local).is_err() {
            self.timers.add(self.now + SECOND, Timer::Proof(key.clone()));
        } else if self.room_for_proof() && self.spare.take(self.now) {
            self.begin_proof(key, session.filter(|_| !here));
        } else {
            self.timers.add(self.now + self.spare.wait(), Timer::Proof(key.clone()));
        }
    }

    /// The peer has no such proof any more, so ours serves for no more binds.
    pub(super) fn outdated(&mut self, key: &ProofKey) {
        if let Some(proof) = self.proofs.get_mut(key) {
            proof.expiry = None;
        }
    }

    /// What was verified no longer verifies: every mark that rests on it goes now, of whichever session.
    pub(super) fn proof_lost(&mut self, node: Option<String>, a: SpiffeId, b: SpiffeId, failure: &Failure) {
        let key = match node {
            // As it was asked for: in the order of the key.
            None => ProofKey::here(self.own_node().to_owned(), a, b),
            Some(node) => ProofKey { node, local: a, remote: b },
        };
        self.outdated(&key);
        // Also what our side has verified and the other has not accepted yet.
        let of_key = |(_, handshake): &(&ProofId, &Handshake)| handshake.key == key;
        let running: Vec<_> = self.handshakes.iter().filter(of_key).map(|(id, _)| *id).collect();
        for id in running {
            self.out.push(Output::DropProof(id));
            self.proof_failed(id, failure.clone(), true);
        }
        for name in self.pairs_of(&key.node) {
            let Some(pair) = self.pairs.get(&name).filter(|pair| pair.mark.is_some()) else { continue };
            let failure = failure.clone().of_pair(&key, &pair.ends);
            if self.rests_on(&name, &key) {
                self.clear(&name, failure);
                self.enqueue(&name, false);
            }
        }
    }

    /// Ends what runs in a session, and forgets what it proved: the next has to prove it again.
    pub(super) fn drop_proofs(&mut self, session: SessionId, node: &str, was_current: bool) {
        let first = ProofId { session, ours: false, number: 0 };
        let ids: Vec<_> = self
            .handshakes
            .range(first..)
            .map(|(id, _)| *id)
            .take_while(|id| id.session == session)
            .collect();
        for id in ids {
            self.out.push(Output::DropProof(id));
            self.proof_failed(id, Refusal::NodeUnreachable, false);
        }
        if was_current {
            let first = |key: &ProofKey| key.node.as_str() >= node;
            let of_node = self.proofs.iter_mut().skip_while(|(key, _)| !first(key));
            for (key, proof) in of_node.take_while(|(key, _)| key.node == node) {
                proof.expiry = None;
                // To be forgotten if nobody proves it again.
                self.timers.add(self.now + self.settings.proof_time, Timer::Proof(key.clone()));
            }
        }
    }
}

/// Whether our own side has seen that the other is not who it should be.
fn disproves(why: Refusal) -> bool {
    matches!(
        why,
        Refusal::WrongId
            | Refusal::Untrusted
            | Refusal::Expired
            | Refusal::NotYetValid
            | Refusal::BadCertificate
    )
}
