//! Messages of a session: which may come when. A peer that breaks this is closed, and what it said stays a sentence.

use mesh::auth::Refusal;
use node_api::auth::Step;

use super::handshakes::Bind;
use super::sessions::{Session, Stage};
use super::{MILLISECOND, Machine};
use crate::event::{ProofId, SessionId};
use crate::message::{Message, VERSION};

impl Machine {
    /// A message has come.
    pub(super) fn received(&mut self, session: SessionId, message: Message) {
        let now = self.now;
        let Some(state) = self.sessions.get_mut(&session) else {
            return;
        };
        state.heard = now;
        let node = state.node.clone();
        let result = match state.stage {
            Stage::Hello => self.greeted(session, &message),
            Stage::FullSet => self.in_full_set(session, &node, message),
            Stage::Open => self.in_order(session, &node, message),
        };
        if let Err(problem) = result {
            self.tally.refuse(Step::Session, Refusal::Protocol);
            self.close(session, Some(problem));
        }
    }

    fn greeted(&mut self, session: SessionId, message: &Message) -> Result<(), &'static str> {
        let Message::Hello { version, incarnation } = message else {
            return Err("it broke the protocol: its first message is no greeting");
        };
        if *version != VERSION {
            return Err("it speaks another version of the protocol");
        }
        if *incarnation == self.settings.incarnation {
            return Err("it is ourselves: a session was reflected");
        }
        self.set_stage(session, Stage::FullSet);
        Ok(())
    }

    fn set_stage(&mut self, session: SessionId, stage: Stage) {
        if let Some(state) = self.sessions.get_mut(&session) {
            state.stage = stage;
        }
    }

    fn in_full_set(&mut self, session: SessionId, node: &str, message: Message) -> Result<(), &'static str> {
        match message {
            Message::Attest(said) => self.check(|machine| machine.attested(session, node, said)),
            Message::Complete => {
                self.set_stage(session, Stage::Open);
                self.completed(session);
                Ok(())
            }
            _ => Err("it broke the protocol: something else came amid its attestations"),
        }
    }

    /// Runs a step that says whether the peer has kept to its bounds.
    fn check(&mut self, step: impl FnOnce(&mut Self) -> bool) -> Result<(), &'static str> {
        if step(self) { Ok(()) } else { Err("it broke the protocol: a number or a length out of bounds") }
    }

    fn in_order(&mut self, session: SessionId, node: &str, message: Message) -> Result<(), &'static str> {
        match message {
            Message::Hello { .. } | Message::Complete => {
                return Err("it broke the protocol: it has greeted already");
            }
            Message::Attest(said) => return self.check(|machine| machine.attested(session, node, said)),
            Message::Withdraw { number, instance, why } => {
                self.next_number(session, number, |state| &mut state.withdrawal)?;
                self.withdrawn(session, node, number, instance, why);
            }
            Message::Withdrawn { number } => {
                return self.check(|machine| machine.acknowledged(session, number));
            }
            Message::Probe { nonce } => self.probed(session, nonce),
            Message::Echo { nonce, withdrawal, grace } => {
                return self.echoed(session, node, nonce, (withdrawal, grace));
            }
            Message::Prove { proof, initiator, responder } => {
                self.next_number(session, proof, |state| &mut state.peer_proof)?;
                self.prove_asked(session, node, proof, initiator, responder);
            }
            Message::Handshake { ours, proof, bytes } => {
                let id = ProofId { session, ours: !ours, number: proof };
                return self.check(|machine| machine.proof_received(id, bytes));
            }
            Message::Accept { proof } => {
                let id = ProofId { session, ours: true, number: proof };
                return self.check(|machine| machine.proof_accepted(id));
            }
            Message::Refuse { ours, proof, why } => {
                self.proof_refused_by_peer(ProofId { session, ours: !ours, number: proof }, why);
            }
            Message::Bind { bind, initiator, responder } => {
                self.next_number(session, bind, |state| &mut state.peer_bind)?;
                let asked = Bind { number: bind, theirs: initiator, ours: responder };
                self.bind_asked(session, node, asked);
            }
            Message::Bound { bind } => self.bind_answered(session, bind, Ok(())),
            Message::Unbound { bind, why } => self.bind_answered(session, bind, Err(why)),
        }
        Ok(())
    }

    /// A peer counts what it begins one by one; anything else is a replay, or lost.
    fn next_number(
        &mut self,
        session: SessionId,
        number: u64,
        last: impl FnOnce(&mut Session) -> &mut u64,
    ) -> Result<(), &'static str> {
        let Some(last) = self.sessions.get_mut(&session).map(last) else {
            return Ok(());
        };
        if last.checked_add(1) != Some(number) {
            return Err("it broke the protocol: a number was repeated or left out");
        }
        *last = number;
        Ok(())
    }

    fn probed(&mut self, session: SessionId, nonce: u64) {
        if let Some(state) = self.sessions.get(&session) {
            let withdrawal = state.withdrawn;
            let grace = self.plan.as_ref().map_or(0, |plan| plan.grace);
            self.out.push(crate::event::Output::Send(session, Message::Echo { nonce, withdrawal, grace }));
        }
    }

    fn echoed(
        &mut self,
        session: SessionId,
        node: &str,
        nonce: u64,
        (withdrawal, grace): (u64, u64),
    ) -> Result<(), &'static str> {
        let Some(state) = self.sessions.get_mut(&session) else {
            return Ok(());
        };
        // Also a nonce that was forgotten, since too many have not come back.
        let Some(sent) = state.probes.remove(&nonce) else {
            return Ok(());
        };
        if withdrawal > state.withdrawal {
            return Err("it broke the protocol: it has withdrawn what it did not tell");
        }
        if self.current(node) == Some(session) {
            self.extend_lease(node, sent, grace.saturating_mul(MILLISECOND));
        }
        Ok(())
    }
}
