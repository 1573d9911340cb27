//! Proofs: one full mTLS handshake per pair of IDs and node session, shared by all pairs of instances that have them.

use std::collections::BTreeSet;

use mesh::auth::Refusal;
use mesh::spiffe::SpiffeId;

use super::pairs::{PairName, Work};
use super::timers::Timer;
use super::{Machine, SECOND};
use crate::event::{Output, ProofId, SessionId, Time};
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
    /// Whether one that this node began is under way.
    running: Running,
    /// Pairs that wait for it or are marked on its strength.
    users: BTreeSet<PairName>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Running {
    #[default]
    No,
    /// In memory, since then.
    Here(Time),
    /// In a session.
    There(ProofId),
}

/// A handshake in a session that has not ended.
#[derive(Debug)]
pub(super) struct Handshake {
    key: ProofKey,
    /// What our side of it has found, until the other side's word is there, too.
    done: Option<Time>,
    /// Bytes received and sent.
    bytes: [usize; 2],
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
        self.handshakes.insert(id, Handshake { key: key.clone(), done: None, bytes: [0; 2] });
        self.timers.add(deadline, Timer::Handshake(id));
        let (local, remote) = (key.local.clone(), key.remote.clone());
        let (initiator, responder) = (local.clone(), remote.clone());
        self.out.push(Output::Send(session, Message::Prove { proof: number, initiator, responder }));
        self.out.push(Output::StartProof { proof: id, local, remote });
    }

    /// The peer begins a handshake: only for IDs of its attested instances and of ours, and only where a policy asks it.
    pub(super) fn prove_asked(
        &mut self,
        session: SessionId,
        node: &str,
        number: u64,
        theirs: SpiffeId,
        ours: SpiffeId,
    ) {
        let id = ProofId { session, ours: false, number };
        if let Err(why) = self.may_prove(session, node, &theirs, &ours) {
            let message = Message::Refuse { ours: false, proof: number, why };
            return self.out.push(Output::Send(session, message));
        }
        if let Some(state) = self.sessions.get_mut(&session) {
            state.proofs += 1;
        }
        let key = ProofKey { node: node.to_owned(), local: ours.clone(), remote: theirs.clone() };
        self.handshakes.insert(id, Handshake { key, done: None, bytes: [0; 2] });
        self.timers.add(self.now + self.settings.proof_time, Timer::Handshake(id));
        self.out.push(Output::StartProof { proof: id, local: ours, remote: theirs });
    }

    fn may_prove(
        &mut self,
        session: SessionId,
        node: &str,
        theirs: &SpiffeId,
        ours: &SpiffeId,
    ) -> Result<(), Refusal> {
        let state = self.sessions.get_mut(&session).ok_or(Refusal::NodeUnreachable)?;
        if state.proofs >= self.settings.proofs_per_peer || !state.bucket.take(self.now) {
            return Err(Refusal::Overloaded);
        }
        self.has_certificate(ours).map_err(|_| Refusal::NoCertificate)?;
        let plan = self.plan.as_ref().ok_or(Refusal::UnknownPeer)?;
        let locals = self.index.local_ids.get(ours).ok_or(Refusal::Withdrawn)?;
        let remotes =
            self.index.remote_ids.get(&(node.to_owned(), theirs.clone())).ok_or(Refusal::UnknownPeer)?;
        let attested = remotes
            .iter()
            .filter_map(|name| plan.remotes.get(name).map(|end| (name, end)))
            .filter(|(name, end)| self.attests(session, name.instance, end));
        let identities: BTreeSet<_> = attested.map(|(_, end)| end.identity).collect();
        if identities.is_empty() {
            return Err(Refusal::NotAttested);
        }
        let required = locals
            .iter()
            .filter_map(|local| plan.endpoints.get(local))
            .any(|local| identities.iter().any(|identity| plan.requires(local.identity, *identity)));
        if required { Ok(()) } else { Err(Refusal::NotRequired) }
    }

    /// Our side of a handshake has bytes for the other.
    pub(super) fn proof_bytes(&mut self, id: ProofId, bytes: Vec<u8>) {
        let most = self.settings.handshake_bytes;
        let Some(handshake) = self.handshakes.get_mut(&id) else {
            return;
        };
        handshake.bytes[1] = handshake.bytes[1].saturating_add(bytes.len());
        if handshake.bytes[1] > most {
            self.out.push(Output::DropProof(id));
            return self.proof_failed(id, Refusal::BadCertificate, true);
        }
        // A message is at most 64 KiB, its frame included.
        for part in bytes.chunks(32 * 1024) {
            let message = Message::Handshake { ours: id.ours, proof: id.number, bytes: part.to_vec() };
            self.out.push(Output::Send(id.session, message));
        }
    }

    /// Bytes of the other side. False: it sends more than a handshake has.
    pub(super) fn proof_received(&mut self, id: ProofId, bytes: Vec<u8>) -> bool {
        let Some(handshake) = self.handshakes.get_mut(&id) else {
            return true;
        };
        handshake.bytes[0] = handshake.bytes[0].saturating_add(bytes.len());
        if handshake.bytes[0] > self.settings.handshake_bytes {
            return false;
        }
        self.out.push(Output::FeedProof(id, bytes));
        true
    }

    /// Our side of a handshake is over.
    pub(super) fn proof_done(&mut self, id: ProofId, result: Result<Time, Refusal>) {
        let Some(handshake) = self.handshakes.get_mut(&id) else {
            return;
        };
        match result.and_then(|expiry| if expiry > self.now { Ok(expiry) } else { Err(Refusal::Expired) }) {
            Err(why) => self.proof_failed(id, why, true),
            // TLS 1.3 tells a client nothing of what the server thinks of its certificate.
            Ok(expiry) if id.ours => handshake.done = Some(expiry),
            Ok(expiry) => {
                self.out.push(Output::Send(id.session, Message::Accept { proof: id.number }));
                self.proof_succeeded(id, expiry);
            }
        }
    }

    /// The other side has accepted what we began. False: it cannot have.
    pub(super) fn proof_accepted(&mut self, id: ProofId) -> bool {
        let Some(handshake) = self.handshakes.get(&id) else {
            return true;
        };
        match handshake.done {
            Some(expiry) if expiry > self.now => self.proof_succeeded(id, expiry),
            Some(_) => self.proof_failed(id, Refusal::Expired, false),
            // Our last bytes are sent when our side is over, not before.
            None => return false,
        }
        true
    }

    fn end_handshake(&mut self, id: ProofId) -> Option<ProofKey> {
        let handshake = self.handshakes.remove(&id)?;
        if id.ours {
            self.tally.running = self.tally.running.saturating_sub(1);
            if let Some(proof) = self.proofs.get_mut(&handshake.key) {
                proof.running = Running::No;
            }
        } else if let Some(state) = self.sessions.get_mut(&id.session) {
            state.proofs = state.proofs.saturating_sub(1);
        }
        Some(handshake.key)
    }

    fn proof_succeeded(&mut self, id: ProofId, expiry: Time) {
        let Some(key) = self.end_handshake(id) else {
            return;
        };
        // One of a session that is not the one in use proves nothing about the one that is.
        if self.current(&key.node) == Some(id.session) {
            self.proof_holds(&key, expiry);
        }
    }

    /// A handshake has failed; `tell` the other side if it does not know.
    pub(super) fn proof_failed(&mut self, id: ProofId, why: Refusal, tell: bool) {
        let Some(key) = self.end_handshake(id) else {
            return;
        };
        if tell {
            let message = Message::Refuse { ours: id.ours, proof: id.number, why };
            self.out.push(Output::Send(id.session, message));
        }
        if id.ours {
            self.proof_refused(&key, why);
        } else {
            self.tally.refuse(why);
        }
    }

    /// The other side says that a handshake will not succeed.
    pub(super) fn proof_refused_by_peer(&mut self, id: ProofId, why: Refusal) {
        if !self.handshakes.contains_key(&id) {
            return;
        }
        self.out.push(Output::DropProof(id));
        let why = match why {
            Refusal::NoCertificate => Refusal::PeerNoCertificate,
            Refusal::NodeUnreachable
            | Refusal::NotAttested
            | Refusal::NotRequired
            | Refusal::UnknownPeer
            | Refusal::Withdrawn
            | Refusal::Overloaded
            | Refusal::TimedOut => why,
            _ => Refusal::RefusedByPeer,
        };
        self.proof_failed(id, why, false);
    }

    pub(super) fn handshake_timed_out(&mut self, id: ProofId) {
        if self.handshakes.contains_key(&id) {
            self.out.push(Output::DropProof(id));
            self.proof_failed(id, Refusal::TimedOut, true);
        }
    }

    /// The handshake in memory of two workloads of this node is over.
    pub(super) fn local_proof_done(&mut self, a: SpiffeId, b: SpiffeId, result: Result<Time, Refusal>) {
        let key = ProofKey::here(self.own_node().to_owned(), a, b);
        let Some(proof) = self.proofs.get_mut(&key).filter(|proof| proof.running != Running::No) else {
            return;
        };
        proof.running = Running::No;
        self.tally.running = self.tally.running.saturating_sub(1);
        match result {
            Ok(expiry) if expiry > self.now => self.proof_holds(&key, expiry),
            Ok(_) => self.proof_refused(&key, Refusal::Expired),
            Err(why) => self.proof_refused(&key, why),
        }
    }

    /// Both sides have verified each other.
    fn proof_holds(&mut self, key: &ProofKey, expiry: Time) {
        let half = (expiry - self.now) / 2;
        let renew = self.now + self.random.shorten(half);
        let proof = self.proofs.entry(key.clone()).or_default();
        let expiry = proof.expiry.map_or(expiry, |before| before.max(expiry));
        proof.expiry = Some(expiry);
        proof.renew = renew;
        let users: Vec<_> = proof.users.iter().cloned().collect();
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
    fn proof_refused(&mut self, key: &ProofKey, why: Refusal) {
        let Some(proof) = self.proofs.get_mut(key) else {
            return;
        };
        let users: Vec<_> = proof.users.iter().cloned().collect();
        if let Some(expiry) = proof.expiry {
            // What is proven stays so until its end; that it could not be renewed is tried again before.
            let again = (expiry.saturating_sub(self.now) / 4).clamp(SECOND / 10, 30 * SECOND);
            proof.renew = self.now + again;
            self.timers.add(proof.renew, Timer::Proof(key.clone()));
        } else {
            self.timers.add(self.now + self.settings.proof_time, Timer::Proof(key.clone()));
        }
        for name in users {
            let Some(pair) = self.pairs.get(&name) else {
                continue;
            };
            let (marked, waits) = (pair.mark, pair.work == Work::Proving);
            if marked.is_some_and(|marked| !marked.confirmed) && disproves(why) {
                self.clear(&name, why);
            }
            if waits {
                self.fail(&name, why);
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
                self.proof_refused(key, Refusal::TimedOut);
            }
            return;
        }
        if proof.expiry.is_some_and(|expiry| expiry <= self.now) {
            proof.expiry = None;
        }
        let waits = |name: &PairName| {
            self.pairs.get(name).is_some_and(|pair| pair.mark.is_some() || pair.work == Work::Proving)
        };
        proof.users.retain(waits);
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
    pub(super) fn proof_lost(&mut self, node: Option<String>, a: SpiffeId, b: SpiffeId, why: Refusal) {
        let key = match node {
            None => ProofKey::here(self.own_node().to_owned(), a, b),
            Some(node) => ProofKey { node, local: a, remote: b },
        };
        self.outdated(&key);
        for name in self.pairs_of(&key.node) {
            let Some(pair) = self.pairs.get(&name) else {
                continue;
            };
            let (local, remote) = (&pair.ends.local.id, &pair.ends.remote.id);
            let same = (local, remote) == (&key.local, &key.remote)
                || (key.node == self.own_node() && (remote, local) == (&key.local, &key.remote));
            if same && pair.mark.is_some() {
                self.clear(&name, why);
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
