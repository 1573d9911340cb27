//! What is to be looked at when. A timer says only *look*: who is woken asks the state, so a timer that has been
//! overtaken does no harm and none need be taken back.

use std::collections::BTreeSet;

use mesh::spiffe::SpiffeId;

use super::pairs::PairName;
use super::proofs::ProofKey;
use crate::event::{Packet, ProofId, Time};

/// What to look at.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Timer {
    OwnLease,
    Adopted,
    Lease(String),
    Node(String),
    Certificate(SpiffeId),
    Mark(PairName),
    Retry(PairName),
    Refusal(PairName),
    Bind(PairName, u64),
    Proof(ProofKey),
    Handshake(ProofId),
    Packet(Packet),
    Free(u64),
    Settle,
    Pump,
}

/// All of them, by time.
#[derive(Debug, Default)]
pub(super) struct Timers(BTreeSet<(Time, Timer)>);

impl Timers {
    pub(super) fn add(&mut self, at: Time, timer: Timer) {
        self.0.insert((at, timer));
    }

    /// Takes the next that is due.
    pub(super) fn due(&mut self, now: Time) -> Option<Timer> {
        if self.0.first()?.0 > now {
            return None;
        }
        self.0.pop_first().map(|(_, timer)| timer)
    }

    pub(super) fn next(&self) -> Option<Time> {
        self.0.first().map(|(at, _)| *at)
    }
}

/// Spreads what would otherwise happen at once (SplitMix64). Not for secrets.
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Something between three quarters of it and all of it.
    pub(super) fn shorten(&mut self, time: Time) -> Time {
        time - self.next() % (time / 4).max(1)
    }
}
