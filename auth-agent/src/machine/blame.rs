//! Whose certificate it was: what a failure says of the two ends of a pair, to the kernel and to people.

use abi::PairKey;
use mesh::auth::{Blame, Refusal, Side};
use mesh::spiffe::SpiffeId;
use node_api::auth::{FromAuthAgent, UnprovenPair};

use super::Machine;
use super::marks::low;
use super::pairs::{Ends, PairName};
use super::proofs::ProofKey;
use crate::event::{Failure, Output};

/// Keys in `AUTH`, and what a failure is from their end.
type Seen = (Vec<PairKey>, Refusal, Option<Side>);

impl Failure {
    /// The same with both ends in each other's place.
    fn turned(self) -> Self {
        Self { why: self.why.turned(), side: self.side.map(Side::turned), ..self }
    }

    /// The same for a pair of a proof, whose ends may stand the other way round there.
    pub(super) fn of_pair(self, key: &ProofKey, ends: &Ends) -> Self {
        if ends.local.id == key.local { self } else { self.turned() }
    }

    fn blame(&self, local: &SpiffeId, remote: &SpiffeId) -> Option<Blame> {
        let expected = match self.side? {
            Side::Own => local,
            Side::Peer => remote,
        };
        Some(Blame { expected: expected.clone(), shown: self.shown.clone(), said: self.said })
    }

    /// In a sentence that names the certificate, if it was about one.
    pub(super) fn sentence(&self, ends: &Ends) -> Option<String> {
        let blame = self.blame(&ends.local.id, &ends.remote.id)?;
        Some(format!("{}: {}", self.why.text(), blame.text()))
    }
}

impl Machine {
    /// What the kernel is to be told of a failure, by the end that its keys belong to.
    pub(super) fn sides(&self, name: &PairName, failure: &Failure) -> Vec<Seen> {
        let is_own = |key: &PairKey| key.instance == low(name.local);
        let (own, others): (Vec<_>, Vec<_>) = self.keys(name).into_iter().partition(is_own);
        let turned = failure.clone().turned();
        let sides = [(own, failure.why, failure.side), (others, turned.why, turned.side)];
        sides.into_iter().filter(|(keys, ..)| !keys.is_empty()).collect()
    }

    /// Keeps why a pair is not proven, to be told.
    pub(super) fn explain(&mut self, name: &PairName) {
        let Some((Ends { local, remote }, failure)) =
            self.pairs.get(name).and_then(|pair| Some((&pair.ends, pair.last.as_ref()?)))
        else {
            return;
        };
        let blame = failure.blame(&local.id, &remote.id);
        let (why, turned) = (failure.why, failure.why.turned());
        let there = remote.addresses().to_vec();
        self.unproven.push(UnprovenPair { instance: name.local, remote: there, why, blame: blame.clone() });
        if name.peer.node == self.own_node() && name.peer.instance != name.local {
            let (instance, remote) = (name.peer.instance, local.addresses().to_vec());
            self.unproven.push(UnprovenPair { instance, remote, why: turned, blame });
        }
    }

    /// Tells it, before anything that follows from it is done: who hears of a drop asks what it was for.
    pub(super) fn tell_unproven(&mut self) {
        if !self.unproven.is_empty() {
            let unproven = std::mem::take(&mut self.unproven);
            self.out.insert(0, Output::Tell(FromAuthAgent::Unproven(unproven)));
        }
    }
}
