//! Handshakes inside sessions: begun by either side, bounded in number, rate, bytes and time. For who begins, one is over
//! only when the other side has said that it accepts; what is to be marked on its strength is asked for before that, right
//! behind the last bytes, and answered after it.

use std::collections::BTreeSet;

use mesh::auth::Refusal;
use mesh::spiffe::SpiffeId;

use super::Machine;
use super::proofs::{ProofKey, Running};
use super::timers::Timer;
use crate::event::{Failure, Output, ProofId, SessionId, Time};
use crate::message::Message;

/// A handshake in a session that has not ended.
#[derive(Debug)]
pub(super) struct Handshake {
    pub(super) key: ProofKey,
    /// When it began.
    pub(super) since: Time,
    /// What our side of it has found, until the other side's word is there, too.
    pub(super) done: Option<Time>,
    /// Bytes received and sent.
    pub(super) bytes: [usize; 2],
    /// What the other side wants marked on the strength of this one, which it began.
    pub(super) binds: Vec<Bind>,
}

/// A [`Message::Bind`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Bind {
    pub(super) number: u64,
    /// Instance of who asks.
    pub(super) theirs: u64,
    /// Instance of who is asked.
    pub(super) ours: u64,
}

impl Handshake {
    pub(super) fn new(key: ProofKey, since: Time) -> Self {
        Self { key, since, done: None, bytes: [0; 2], binds: Vec::new() }
    }
}

impl Machine {
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
            self.tally.handshake(why);
            let message = Message::Refuse { ours: false, proof: number, why };
            return self.out.push(Output::Send(session, message));
        }
        if let Some(state) = self.sessions.get_mut(&session) {
            state.proofs += 1;
        }
        let key = ProofKey { node: node.to_owned(), local: ours.clone(), remote: theirs.clone() };
        self.handshakes.insert(id, Handshake::new(key, self.now));
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
    pub(super) fn proof_done(&mut self, id: ProofId, result: Result<Time, Failure>) {
        let Some(handshake) = self.handshakes.get_mut(&id) else {
            return;
        };
        let still = |expiry| if expiry > self.now { Ok(expiry) } else { Err(Refusal::Expired.into()) };
        match result.and_then(still) {
            Err(failure) => self.proof_failed(id, failure, true),
            // TLS 1.3 tells a client nothing of what the server thinks of its certificate.
            Ok(expiry) if id.ours => {
                handshake.done = Some(expiry);
                let key = handshake.key.clone();
                self.bind_early(&key, id.session);
            }
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

    fn end_handshake(&mut self, id: ProofId) -> Option<Handshake> {
        let handshake = self.handshakes.remove(&id)?;
        if id.ours {
            self.tally.running = self.tally.running.saturating_sub(1);
            if let Some(proof) = self.proofs.get_mut(&handshake.key) {
                proof.running = Running::No;
            }
        } else if let Some(state) = self.sessions.get_mut(&id.session) {
            state.proofs = state.proofs.saturating_sub(1);
        }
        Some(handshake)
    }

    fn proof_succeeded(&mut self, id: ProofId, expiry: Time) {
        let Some(Handshake { key, since, binds, .. }) = self.end_handshake(id) else {
            return;
        };
        if let Some(proof) = self.proofs.get_mut(&key).filter(|_| id.ours) {
            proof.took = Some(self.now.saturating_sub(since));
        }
        // One of a session that is not the one in use proves nothing about the one that is.
        if self.current(&key.node) == Some(id.session) {
            self.proof_holds(&key, expiry);
        }
        for bind in binds {
            self.bind_asked(id.session, &key.node, bind);
        }
    }

    /// Keeps what is to be marked until a handshake that the other side began has ended; if none has these ends, or it
    /// has enough to do, it is given back.
    pub(super) fn await_handshake(
        &mut self,
        session: SessionId,
        key: &ProofKey,
        bind: Bind,
    ) -> Result<(), Refusal> {
        let first = ProofId { session, ours: false, number: 0 };
        let of_peer = first..=ProofId { number: u64::MAX, ..first };
        let waiting: usize = self.handshakes.range(of_peer.clone()).map(|(_, one)| one.binds.len()).sum();
        let mut running = self.handshakes.range_mut(of_peer).map(|(_, handshake)| handshake);
        let handshake = running.find(|handshake| handshake.key == *key).ok_or(Refusal::Expired)?;
        if waiting >= self.settings.binds_at_once {
            return Err(Refusal::Overloaded);
        }
        handshake.binds.push(bind);
        Ok(())
    }

    /// A handshake has failed; `tell` the other side if it does not know.
    pub(super) fn proof_failed(&mut self, id: ProofId, failure: impl Into<Failure>, tell: bool) {
        let failure = failure.into();
        let why = failure.why;
        let Some(Handshake { key, binds, .. }) = self.end_handshake(id) else {
            return;
        };
        if tell {
            let message = Message::Refuse { ours: id.ours, proof: id.number, why };
            self.out.push(Output::Send(id.session, message));
        }
        self.tally.handshake(why);
        // Of a session that has ended nobody waits for an answer.
        for bind in binds.into_iter().filter(|_| self.sessions.contains_key(&id.session)) {
            self.out.push(Output::Send(id.session, Message::Unbound { bind: bind.number, why }));
        }
        if id.ours {
            self.proof_refused(&key, failure);
        }
    }

    /// The other side says that a handshake will not succeed.
    pub(super) fn proof_refused_by_peer(&mut self, id: ProofId, why: Refusal) {
        if !self.handshakes.contains_key(&id) {
            return;
        }
        self.out.push(Output::DropProof(id));
        let found = match why {
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
        let said = (found == Refusal::RefusedByPeer).then_some(why);
        self.proof_failed(id, Failure { said, ..found.into() }, false);
    }

    pub(super) fn handshake_timed_out(&mut self, id: ProofId) {
        if self.handshakes.contains_key(&id) {
            self.out.push(Output::DropProof(id));
            self.proof_failed(id, Refusal::TimedOut, true);
        }
    }
}
