//! Binds: the two marks of a pair of instances of two nodes, the responder's before the initiator's.

use mesh::auth::{InstanceName, Refusal};
use node_api::auth::Step;

use super::Machine;
use super::handshakes::Bind;
use super::pairs::{PairName, Work, passes};
use super::proofs::ProofKey;
use super::timers::Timer;
use crate::event::{Output, SessionId};
use crate::message::Message;

impl Machine {
    /// Asks the peer to mark the pair first.
    pub(super) fn bind(&mut self, name: &PairName, session: SessionId) {
        let most = self.settings.binds_at_once;
        let Some(state) = self.sessions.get_mut(&session) else {
            return self.fail(name, Refusal::NodeUnreachable);
        };
        if state.binds.len() >= most {
            return self.fail(name, Refusal::Overloaded);
        }
        state.last_bind += 1;
        let bind = state.last_bind;
        state.binds.insert(bind, name.clone());
        self.set_work(name, Work::Binding(bind));
        self.timers.add(self.now + self.settings.bind_time, Timer::Bind(name.clone(), bind));
        let (initiator, responder) = (name.local, name.peer.instance);
        self.out.push(Output::Send(session, Message::Bind { bind, initiator, responder }));
    }

    pub(super) fn bind_timed_out(&mut self, name: &PairName, bind: u64) {
        if self.pairs.get(name).is_some_and(|pair| pair.work == Work::Binding(bind)) {
            if let Some(state) = self.current(&name.peer.node).and_then(|id| self.sessions.get_mut(&id)) {
                state.binds.remove(&bind);
            }
            self.fail(name, Refusal::TimedOut);
        }
    }

    /// Asks for the marks that wait for a proof which this side has and the peer has not accepted yet: it answers when it
    /// has, one message later. Whoever finds no room is asked for then.
    pub(super) fn bind_early(&mut self, key: &ProofKey, session: SessionId) {
        if self.current(&key.node) != Some(session) {
            return;
        }
        let most = self.settings.binds_at_once;
        for name in self.users(key) {
            let waits = self.pairs.get(&name).is_some_and(|pair| pair.work == Work::Proving);
            let has_room = self.sessions.get(&session).is_some_and(|state| state.binds.len() < most);
            if waits && has_room && self.grounds(&name).is_ok() {
                self.bind(&name, session);
            }
        }
    }

    /// The peer asks for a mark. It is answered only after ours is written; and if its proof is about to be accepted, then.
    pub(super) fn bind_asked(&mut self, session: SessionId, node: &str, asked: Bind) {
        let Bind { number: bind, theirs, ours } = asked;
        let peer = InstanceName { node: node.to_owned(), instance: theirs };
        let name = PairName { peer, local: ours };
        let checked = self.grounds(&name).and_then(|(key, _)| {
            let Some(expiry) = self.live_proof(&key) else {
                // To the initiator an error says: prove again, yours is of no use any more.
                return self.await_handshake(session, &key, asked).map(|()| None);
            };
            self.keep(&name)?;
            Ok(Some((key, expiry)))
        });
        let answer = match checked {
            Ok(None) => return,
            Ok(Some((key, expiry))) => {
                self.join(&key, &name);
                self.mark(&name, expiry);
                let marked = self.pairs.get(&name).is_some_and(|pair| pair.mark.is_some());
                if marked {
                    Message::Bound { bind }
                } else {
                    Message::Unbound { bind, why: Refusal::Overloaded }
                }
            }
            Err(why) => {
                self.tally.refuse(Step::Bind, why);
                Message::Unbound { bind, why }
            }
        };
        self.out.push(Output::Send(session, answer));
    }

    /// The peer's mark stands, or not. Only now may ours.
    pub(super) fn bind_answered(&mut self, session: SessionId, bind: u64, result: Result<(), Refusal>) {
        let Some(name) = self.sessions.get_mut(&session).and_then(|state| state.binds.remove(&bind)) else {
            return;
        };
        if self.pairs.get(&name).is_none_or(|pair| pair.work != Work::Binding(bind)) {
            return;
        }
        let result = result.map_err(|why| self.unbound(&name, why));
        let result = result.and_then(|()| self.grounds(&name)).and_then(|(key, current)| {
            // The peer has marked on the strength of a proof of that session, no other.
            let same = current == Some(session);
            self.live_proof(&key).filter(|_| same).ok_or(Refusal::TimedOut)
        });
        match result {
            Ok(expiry) => self.mark(&name, expiry),
            Err(why) => self.fail(&name, why),
        }
    }

    /// What the peer's reason for having no mark means here.
    fn unbound(&mut self, name: &PairName, why: Refusal) -> Refusal {
        match why {
            Refusal::NoCertificate => Refusal::PeerNoCertificate,
            Refusal::Expired => {
                if let Ok((key, _)) = self.grounds(name) {
                    self.outdated(&key);
                }
                Refusal::TimedOut
            }
            other if passes(other) => other,
            _ => Refusal::RefusedByPeer,
        }
    }
}
