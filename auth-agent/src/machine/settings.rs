//! What a machine is given when it starts: its bounds, and what an earlier one left in the maps.

use std::collections::BTreeMap;

use abi::{Mark, PairKey};

use super::{MILLISECOND, SECOND};
use crate::event::Time;

/// Periods and bounds. [`Settings::new`] has those that are in force; tests take others.
#[derive(Clone, Debug)]
pub struct Settings {
    /// A number that no other start of the auth-agent has; also the seed of its jitter.
    pub incarnation: u64,
    /// How often each peer is probed and the own lease renewed.
    pub probe: Time,
    /// A session without an echo for so long is closed.
    pub silence: Time,
    /// Connecting again waits so long at first; it doubles up to the second.
    pub backoff: (Time, Time),
    /// A handshake that takes longer has failed.
    pub proof_time: Time,
    /// A bind that takes longer has failed.
    pub bind_time: Time,
    /// Proofs begun per second because a packet waits.
    pub asked_per_second: u64,
    /// Proofs begun per second ahead of time or again.
    pub spare_per_second: u64,
    /// Handshakes this node has begun and not ended.
    pub proofs_at_once: usize,
    /// Handshakes and binds that one peer has begun and not ended.
    pub proofs_per_peer: usize,
    /// Handshakes that one peer may begin per second.
    pub peer_per_second: u64,
    /// Binds that this node has begun and not ended, per session.
    pub binds_at_once: usize,
    /// Pairs that are kept, those that packets or peers have asked for included.
    pub pairs: usize,
    /// Packets that wait for one pair.
    pub held_per_pair: usize,
    /// Packets that wait.
    pub held: usize,
    /// How long a packet waits at most. Less than [`abi::HOLD_TIME`], after which the kernel knows it no more, and less
    /// than the second after which TCP sends a SYN again.
    pub hold_time: Time,
    /// How long the kernel refuses a pair without asking again.
    pub refusal_time: Time,
    /// How long after a plan [`node_api::auth::FromAuthAgent::Settled`] comes at the latest.
    pub settle_time: Time,
    /// Instances that one peer may attest.
    pub instances_per_peer: usize,
    /// Bytes of one handshake in one direction.
    pub handshake_bytes: usize,
}

impl Settings {
    /// What is in force on a node.
    pub fn new(incarnation: u64) -> Self {
        Self {
            incarnation,
            probe: SECOND,
            silence: 4 * SECOND,
            backoff: (100 * MILLISECOND, 5 * SECOND),
            proof_time: 5 * SECOND,
            bind_time: 2 * SECOND,
            asked_per_second: 2_000,
            spare_per_second: 200,
            proofs_at_once: 256,
            proofs_per_peer: 256,
            peer_per_second: 2_000,
            binds_at_once: 1_024,
            pairs: 131_072,
            held_per_pair: 64,
            held: 4_096,
            hold_time: 900 * MILLISECOND,
            refusal_time: 500 * MILLISECOND,
            settle_time: SECOND,
            instances_per_peer: 16_384,
            handshake_bytes: 64 * 1024,
        }
    }
}

/// What an earlier auth-agent left in the maps.
#[derive(Clone, Debug, Default)]
pub struct Adopted {
    /// `MARKS[0].epoch`: the latest that was given out.
    pub last_epoch: u64,
    /// Elements of `MARKS` whose epoch is not 0, by number; without number 0.
    pub marks: BTreeMap<u32, Mark>,
    /// Keys of `AUTH` that lead to a mark, and its number; 0 for refusals.
    pub keys: Vec<(PairKey, u32)>,
    /// Elements of `LEASES` that are not 0.
    pub leases: BTreeMap<u32, Time>,
}
