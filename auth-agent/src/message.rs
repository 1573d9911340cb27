//! What two auth-agents say to each other inside a node session. `docs/authentication-protocol.md` has the whole of it.
//!
//! The session is TLS 1.3 between node certificates; it gives an ordered, authenticated, confidential stream. Each
//! message is a length (u32, network order, at most [`MAX_MESSAGE`]) and that many bytes of postcard.

use std::net::IpAddr;

use mesh::auth::Refusal;
use mesh::spiffe::SpiffeId;
use serde::{Deserialize, Serialize};

/// Version of the messages. Sides of different versions say so and part.
pub const VERSION: u32 = 2;
/// The longest message, in bytes.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// One endpoint instance of the sender, and the ID that its workload proves.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Attestation {
    /// Its instance, a number of the sender's node.
    pub instance: u64,
    /// Its addresses.
    pub addresses: [IpAddr; 2],
    /// Its ID.
    pub id: SpiffeId,
}

/// One message.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Message {
    /// The first of each side.
    Hello {
        /// [`VERSION`].
        version: u32,
        /// A number that is another after each start of the auth-agent.
        incarnation: u64,
    },
    /// The sender attests these instances. What follows [`Self::Hello`] up to [`Self::Complete`] is all it attests; what
    /// it attested earlier and is not among it is withdrawn.
    Attest(Vec<Attestation>),
    /// End of the full set.
    Complete,
    /// An instance is no longer attested.
    Withdraw {
        /// Number of this withdrawal, one more than the last.
        number: u64,
        /// Which.
        instance: u64,
        /// Why.
        why: Refusal,
    },
    /// Every withdrawal up to this number has left the receiver's maps.
    Withdrawn {
        /// [`Self::Withdraw::number`].
        number: u64,
    },
    /// Are you there.
    Probe {
        /// A number never sent before.
        nonce: u64,
    },
    /// Yes, and this was the number of my last withdrawal.
    Echo {
        /// [`Self::Probe::nonce`].
        nonce: u64,
        /// [`Self::Withdraw::number`], 0 before the first.
        withdrawal: u64,
        /// How long, in milliseconds, the sender waits before it takes it that nobody believes in what it withdrew: the
        /// receiver believes no longer, whatever its own grace is.
        grace: u64,
    },
    /// Begin a handshake of these two workloads; the sender is the TLS client.
    Prove {
        /// Number of the handshake among those of the sender.
        proof: u64,
        /// ID of the sender's workload.
        initiator: SpiffeId,
        /// ID of the receiver's.
        responder: SpiffeId,
    },
    /// Bytes of a handshake.
    Handshake {
        /// Whether the *sender of this message* began it.
        ours: bool,
        /// Its number.
        proof: u64,
        /// TLS records.
        bytes: Vec<u8>,
    },
    /// The responder has verified the initiator's certificate: only now is it a proof for both.
    Accept {
        /// Number of the receiver's handshake.
        proof: u64,
    },
    /// A handshake will not succeed.
    Refuse {
        /// Whether the sender of this message began it.
        ours: bool,
        /// Its number.
        proof: u64,
        /// Why.
        why: Refusal,
    },
    /// Mark this pair, on the strength of a proof of their IDs: one that there is, or the sender's handshake that the
    /// responder has not accepted yet. The responder marks before it answers.
    Bind {
        /// Number of the request.
        bind: u64,
        /// Instance of the sender.
        initiator: u64,
        /// Instance of the receiver.
        responder: u64,
    },
    /// The responder's mark stands.
    Bound {
        /// [`Self::Bind::bind`].
        bind: u64,
    },
    /// It does not.
    Unbound {
        /// [`Self::Bind::bind`].
        bind: u64,
        /// Why.
        why: Refusal,
    },
}
