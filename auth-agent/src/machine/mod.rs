//! Decides who is proven to whom. No I/O, no clock, no TLS: [`Machine::handle`] is told what happened and when, and
//! says what is to be done.
//!
//! Promise: it wants a mark only while plan, attestation, proof and lease all allow it; it wants it gone before it says
//! so to anybody; it gives no epoch twice; whatever a peer sends, what it keeps of it has a bound.
//! `docs/authentication-protocol.md` argues each of these. One file, one concern; all of them are `impl Machine`.

mod adopt;
mod ahead;
mod attestations;
mod binds;
mod blame;
mod handshakes;
mod holds;
mod leases;
mod marks;
mod messages;
mod pairs;
mod plan;
mod proofs;
mod report;
mod sessions;
mod settings;
mod timers;

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh::auth::{AuthPlan, IdentityPair};
use mesh::spiffe::SpiffeId;
use node_api::auth::{EndedPair, FromAuthAgent, UnprovenPair};

use crate::event::{Input, Output, ProofId, SessionId, Time};
use ahead::{Bucket, Queue, Settling};
use attestations::{Certificate, Freeing};
use handshakes::Handshake;
use holds::Holds;
use leases::LeaseNumbers;
use marks::Marks;
use pairs::{Pair, PairName};
use plan::Index;
use proofs::{Proof, ProofKey};
use report::Tally;
use sessions::{Node, Session};
pub use settings::{Adopted, Settings};
use timers::{Random, Timer, Timers};

/// One second, in [`Time`].
pub(crate) const SECOND: Time = 1_000_000_000;
/// One millisecond.
pub(crate) const MILLISECOND: Time = 1_000_000;

/// The state machine of one node.
#[derive(Debug)]
pub struct Machine {
    settings: Settings,
    now: Time,
    started: Time,
    /// What is to be done, in order.
    out: Vec<Output>,
    /// Marks cleared since the last [`Output::Tell`] of them.
    ended: Vec<EndedPair>,
    /// Pairs of which it is to be told why they are not proven.
    unproven: Vec<UnprovenPair>,
    plan: Option<Arc<AuthPlan>>,
    index: Index,
    /// What an earlier auth-agent left, until the first plan says whose it is.
    adopted: Option<Adopted>,
    certificates: BTreeMap<SpiffeId, Certificate>,
    nodes: BTreeMap<String, Node>,
    sessions: BTreeMap<SessionId, Session>,
    pairs: BTreeMap<PairName, Pair>,
    proofs: BTreeMap<ProofKey, Proof>,
    handshakes: BTreeMap<ProofId, Handshake>,
    marks: Marks,
    lease_numbers: LeaseNumbers,
    own_lease: Time,
    freeing: BTreeMap<u64, Freeing>,
    holds: Holds,
    queue: Queue,
    /// Packets that have had to wait, by whose they were.
    used: BTreeMap<IdentityPair, u64>,
    /// Proofs that packets ask for.
    asked: Bucket,
    /// Proofs ahead of time, and renewals.
    spare: Bucket,
    settling: Option<Settling>,
    timers: Timers,
    random: Random,
    tally: Tally,
}

impl Machine {
    /// A machine that has just started; `now` as in [`Self::handle`]. Give it a [`Input::Tick`] at once: it has a lease
    /// to write.
    pub fn new(settings: Settings, adopted: Adopted, now: Time) -> Self {
        let mut timers = Timers::default();
        timers.add(now, Timer::OwnLease);
        Self {
            now,
            started: now,
            out: Vec::new(),
            ended: Vec::new(),
            unproven: Vec::new(),
            plan: None,
            index: Index::default(),
            certificates: BTreeMap::new(),
            nodes: BTreeMap::new(),
            sessions: BTreeMap::new(),
            pairs: BTreeMap::new(),
            proofs: BTreeMap::new(),
            handshakes: BTreeMap::new(),
            marks: Marks::new(&adopted),
            lease_numbers: LeaseNumbers::new(&adopted),
            own_lease: adopted.leases.get(&0).copied().unwrap_or(0),
            adopted: Some(adopted),
            freeing: BTreeMap::new(),
            holds: Holds::default(),
            queue: Queue::default(),
            used: BTreeMap::new(),
            asked: Bucket::new(settings.asked_per_second),
            spare: Bucket::new(settings.spare_per_second),
            settling: None,
            timers,
            random: Random::new(settings.incarnation),
            tally: Tally::default(),
            settings,
        }
    }

    /// Tells what happened at `now` (CLOCK_BOOTTIME; a time before the latest counts as the latest), and returns what is
    /// to be done, in this order.
    pub fn handle(&mut self, now: Time, input: Input) -> Vec<Output> {
        self.now = self.now.max(now);
        // What has ended by now ends before anything that could make it live again is looked at.
        while let Some(timer) = self.timers.due(self.now) {
            self.ring(timer);
        }
        self.take(input);
        self.pump();
        self.tell_ended();
        self.tell_unproven();
        std::mem::take(&mut self.out)
    }

    /// When to call [`Self::handle`] with [`Input::Tick`] if nothing else happens before.
    pub fn next_wake(&self) -> Option<Time> {
        self.timers.next()
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Plan(number, plan) => self.apply(number, plan),
            Input::Connected { session, node, expiry } => self.connected(session, &node, expiry),
            Input::Disconnected { session, node, problem } => self.disconnected(session, &node, problem),
            Input::Received(session, message) => self.received(session, message),
            Input::ProofBytes(proof, bytes) => self.proof_bytes(proof, bytes),
            Input::ProofDone(proof, result) => self.proof_done(proof, result),
            Input::LocalProofDone { a, b, result } => self.local_proof_done(a, b, result),
            Input::ProofLost { node, local, remote, why } => self.proof_lost(node, local, remote, &why),
            Input::Certificate(id, result) => self.certificate(id, result),
            Input::Held { packet, kind, source, destination } => self.held(packet, kind, source, destination),
            Input::Asked { kind, source, destination } => self.asked(kind, source, destination),
            Input::MarkLost { number, epoch } => self.mark_lost(number, epoch),
            Input::Tick => {}
        }
    }

    fn ring(&mut self, timer: Timer) {
        match timer {
            Timer::OwnLease => self.renew_own_lease(),
            Timer::Adopted => self.forsake_adopted(),
            Timer::Lease(node) => self.check_lease(&node),
            Timer::Node(node) => self.tend(&node),
            Timer::Certificate(id) => self.check_certificate(&id),
            Timer::Mark(name) => self.check_mark(&name),
            Timer::Retry(name) => self.retry(&name),
            Timer::Refusal(name) => self.check_refusal(&name),
            Timer::Bind(name, bind) => self.bind_timed_out(&name, bind),
            Timer::Proof(key) => self.check_proof(&key),
            Timer::Handshake(proof) => self.handshake_timed_out(proof),
            Timer::Packet(packet) => self.packet_timed_out(packet),
            Timer::Free(instance) => self.check_free(instance),
            Timer::Settle => self.check_settled(),
            Timer::Pump => {}
        }
    }

    /// Tells of cleared marks; must come before anything told that says they are gone.
    fn tell_ended(&mut self) {
        if !self.ended.is_empty() {
            let ended = std::mem::take(&mut self.ended);
            self.out.push(Output::Tell(FromAuthAgent::Ended(ended)));
        }
    }

    /// How long after a withdrawal nobody can still believe in what was withdrawn, even with a clock 10 % slow.
    fn quarantine(&self) -> Time {
        self.grace() / 10 * 11 + SECOND
    }

    fn grace(&self) -> Time {
        self.plan.as_ref().map_or(0, |plan| plan.grace.saturating_mul(MILLISECOND))
    }

    /// The most pairs that are kept without having been asked for.
    fn most_ahead(&self) -> usize {
        self.plan.as_ref().map_or(0, |plan| usize::try_from(plan.ahead).unwrap_or(usize::MAX))
    }

    fn own_node(&self) -> &str {
        self.plan.as_ref().map_or("", |plan| &plan.node)
    }
}
