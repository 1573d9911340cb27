//! What people and metrics are told of it.

use std::collections::BTreeMap;

use mesh::auth::{InstanceName, Refusal};
use node_api::auth::{AuthCounters, CertificateView, NodeView, PairState, PairView, Step, Times};

use super::pairs::{Ends, Pair, PairName, Work};
use super::proofs::{Proof, ProofKey};
use super::{MILLISECOND, Machine, SECOND};
use crate::event::{Failure, Time};

/// Counters, and numbers that are only counted up.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) proven: u64,
    handshakes: BTreeMap<Refusal, u64>,
    refusals: BTreeMap<Step, BTreeMap<Refusal, u64>>,
    pub(super) marks: u64,
    /// Handshakes that this node has begun and not ended.
    pub(super) running: usize,
    /// The latest nonce.
    pub(super) nonce: u64,
    released: u64,
    in_vain: BTreeMap<Refusal, u64>,
    waited: Times,
    asked: Times,
    ahead: Times,
}

/// Upper bounds of times, microseconds.
const BOUNDS: [u64; 17] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000,
];

fn note(times: &mut Times, time: Time) {
    let micros = time / 1_000;
    let bound = BOUNDS.into_iter().find(|bound| micros <= *bound).unwrap_or(u64::MAX);
    *times.counts.entry(bound).or_default() += 1;
    times.sum = times.sum.saturating_add(micros);
}

impl Tally {
    /// A handshake has failed, or was not let begin.
    pub(super) fn handshake(&mut self, why: Refusal) {
        *self.handshakes.entry(why).or_default() += 1;
    }

    /// Something else was refused.
    pub(super) fn refuse(&mut self, step: Step, why: Refusal) {
        *self.refusals.entry(step).or_default().entry(why).or_default() += 1;
    }

    /// A pair has its mark, after so long since a packet asked for it, or else since it was to be had ahead.
    pub(super) fn authenticated(&mut self, asked: Option<Time>, ahead: Option<Time>) {
        match (asked, ahead) {
            (Some(time), _) => note(&mut self.asked, time),
            (None, Some(time)) => note(&mut self.ahead, time),
            (None, None) => {}
        }
    }

    /// A packet has waited in vain.
    pub(super) fn in_vain(&mut self, why: Refusal) {
        *self.in_vain.entry(why).or_default() += 1;
    }

    pub(super) fn waited(&mut self, time: Time) {
        note(&mut self.waited, time);
        self.released += 1;
    }
}

impl Machine {
    /// For `/metrics`; seconds until the first certificate ends are those of the workloads' certificates.
    pub fn counters(&self) -> AuthCounters {
        let first = self.certificates.values().filter_map(|certificate| certificate.result.ok()).min();
        AuthCounters {
            proven: self.tally.proven,
            refused: self.tally.handshakes.clone(),
            refusals: self.tally.refusals.clone(),
            marks: self.tally.marks,
            held: self.holds.len() as u64,
            released: self.tally.released,
            lost: self.tally.in_vain.clone(),
            waited: self.tally.waited.clone(),
            asked: self.tally.asked.clone(),
            ahead: self.tally.ahead.clone(),
            first_expiry: first.map(|until| until.saturating_sub(self.now) / SECOND),
            sessions: self.nodes.values().filter(|node| node.current.is_some()).count() as u64,
        }
    }

    /// The certificates that are wanted. Serial numbers and times of day are not known here.
    pub fn certificates(&self) -> Vec<CertificateView> {
        let workloads = |instances: &[u64]| {
            let plan = self.plan.as_ref()?;
            let ends = instances.iter().filter_map(|instance| plan.endpoints.get(instance));
            Some(ends.map(|end| end.workload.clone()).collect())
        };
        let view = |(id, instances): (&mesh::spiffe::SpiffeId, &Vec<u64>)| CertificateView {
            id: id.clone(),
            serial: None,
            expires: None,
            workloads: workloads(instances).unwrap_or_default(),
            problem: self.has_certificate(id).err().map(|why| why.text().to_owned()),
        };
        self.index.local_ids.iter().map(view).collect()
    }

    /// The pairs that are kept: those implied by the plan within the bound, and those that were asked for.
    pub fn pairs(&self) -> Vec<PairView> {
        self.pairs.iter().map(|(name, pair)| self.pair_view(name, pair)).collect()
    }

    fn pair_view(&self, name: &PairName, pair: &Pair) -> PairView {
        let state = match (pair.mark, pair.work) {
            (Some(_), _) => PairState::Proven,
            (None, Work::Proving | Work::Binding(_)) => PairState::Proving,
            (None, _) if pair.last.is_some() => PairState::Refused,
            (None, _) => PairState::Idle,
        };
        let failure = pair.last.as_ref().filter(|_| pair.mark.is_none());
        PairView {
            local: InstanceName { node: self.own_node().to_owned(), instance: name.local },
            local_workload: pair.ends.local.workload.clone(),
            local_id: pair.ends.local.id.clone(),
            remote: name.peer.clone(),
            remote_workload: pair.ends.remote.workload.clone(),
            remote_id: pair.ends.remote.id.clone(),
            state,
            mark: pair.mark.map_or(0, |marked| marked.number),
            epoch: pair.mark.map_or(0, |marked| marked.epoch),
            expires_in: pair.mark.map(|marked| marked.expiry.saturating_sub(self.now) / SECOND),
            proof_micros: self.proof_of(name, pair).and_then(|proof| proof.took).map(|took| took / 1_000),
            refusal: failure.map(|failure| failure.why),
            detail: failure.map(|failure| self.detail(name, &pair.ends, failure)),
        }
    }

    /// The proof that a pair rests on or waits for.
    fn proof_of(&self, name: &PairName, pair: &Pair) -> Option<&Proof> {
        let (node, local, remote) =
            (&name.peer.node, pair.ends.local.id.clone(), pair.ends.remote.id.clone());
        self.proofs.get(&if *node == self.own_node() {
            ProofKey::here(node.clone(), local, remote)
        } else {
            ProofKey { node: node.clone(), local, remote }
        })
    }

    /// A failure, with the name of what it is about.
    fn detail(&self, name: &PairName, ends: &Ends, failure: &Failure) -> String {
        let (node, workload) = (&name.peer.node, &ends.local.workload);
        let problem = self.nodes.get(node).and_then(|node| node.problem.as_deref());
        let text = failure.sentence(ends).unwrap_or_else(|| failure.why.text().to_owned());
        match (failure.why, problem) {
            (Refusal::NoCertificate, _) => format!("workload {workload}: {text}"),
            (_, Some(problem)) => format!("node {node}: {text}; {problem}"),
            _ => format!("node {node}: {text}"),
        }
    }

    /// The other nodes. At which address each was reached is not known here.
    pub fn nodes(&self) -> Vec<NodeView> {
        let view = |(name, node): (&String, &super::sessions::Node)| NodeView {
            name: name.clone(),
            id: node.id.clone(),
            connected: node.current.is_some(),
            address: None,
            lease: node.lease.end.saturating_sub(self.now) / MILLISECOND,
            marks: self.pairs_of(name).iter().filter(|name| self.is_marked(name)).count(),
            problem: node.problem.clone(),
        };
        self.nodes.iter().map(view).collect()
    }

    fn is_marked(&self, name: &PairName) -> bool {
        self.pairs.get(name).is_some_and(|pair| pair.mark.is_some())
    }
}
