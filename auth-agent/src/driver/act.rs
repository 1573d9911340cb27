//! What the machine wants, done at once or begun.

use certs::tls::client_config;
use certs::verify::Expected;
use linux::clock::boottime;
use mesh::auth::Refusal;

use super::Driver;
use super::happen::unconnected;
use crate::event::{Input, Output};
use crate::message::Message;

impl Driver {
    pub(super) fn act(&mut self, output: Output) {
        match output {
            Output::Connect(node) => self.connect(node),
            Output::Close(session) => drop(self.sessions.close(session)),
            Output::Send(session, message) => {
                let message = self.as_marked(message);
                if let Err(problem) = self.sessions.send(session, &message) {
                    self.over(session, problem);
                }
            }
            Output::Want(id) => self.certificates.want(id, boottime()),
            Output::Unwant(id) => self.certificates.unwant(&id),
            Output::StartProof { proof, local, remote } => {
                let Some(session) = self.sessions.get(proof.session) else { return };
                let node = session.node.clone();
                self.inputs.extend(self.proofs.start(proof, node, local, remote, boottime()));
            }
            Output::FeedProof(proof, bytes) => self.inputs.extend(self.proofs.feed(proof, bytes)),
            Output::DropProof(proof) => self.proofs.drop(proof),
            Output::ProveLocally(a, b) => self.proofs.prove_locally(a, b),
            Output::SetMark { number, mark, keys } => {
                if !self.kernel.set_mark(number, mark, &keys) {
                    self.inputs.push_back(Input::MarkLost { number, epoch: mark.epoch });
                    self.is_unmarked = true;
                }
            }
            Output::RenewMark { number, expiry } => self.kernel.renew_mark(number, expiry),
            Output::ClearMark { number, keys } => self.kernel.clear_mark(number, &keys),
            Output::Refuse { keys, why, side, until } => self.kernel.refuse(&keys, why, side, until),
            Output::Forget(keys) => self.kernel.forget(&keys),
            Output::Lease { number, end } => self.kernel.lease(number, end),
            // What is refused goes the same way: the kernel judges it again.
            Output::Release(packet) | Output::Return(packet) => self.hold.release(packet),
            Output::Lose(packet) => self.hold.lose(packet),
            Output::Tell(message) => self.control.tell(message),
        }
    }

    /// What was to be said once a mark stands is not said if it does not. Of one list of outputs, which has one such
    /// answer at most.
    fn as_marked(&self, message: Message) -> Message {
        match message {
            Message::Bound { bind } if self.is_unmarked => {
                Message::Unbound { bind, why: Refusal::Overloaded }
            }
            other => other,
        }
    }

    fn connect(&mut self, name: String) {
        let call = self.certificates.node().and_then(|own| {
            let node = self.plan.as_ref().and_then(|plan| plan.nodes.get(&name));
            let node = node.ok_or_else(|| format!("the plan has no node {name}"))?;
            let expected = Expected::Id(node.id.clone());
            let config = client_config(own, expected, &self.trust.bundles, &self.trust.clock);
            Ok((node.addresses.clone(), config.map_err(|error| error.to_string())?))
        });
        match call {
            Ok((addresses, config)) => self.door.call(name, addresses, config),
            Err(problem) => self.inputs.push_back(unconnected(name, problem)),
        }
    }
}
