//! What happens to the state machine, and what it wants done.
//!
//! Times are CLOCK_BOOTTIME in nanoseconds ([`Time`]); every input comes with the time at which it is given. Outputs are
//! to be done in their order, and those that write maps before anything later of the same list is sent: that is what
//! makes "the responder writes before it answers" true.

use std::net::IpAddr;
use std::sync::Arc;

use abi::{HoldKind, Mark, PairKey};
use mesh::auth::{AuthPlan, Refusal, Side};
use mesh::spiffe::SpiffeId;
use node_api::auth::FromAuthAgent;

use crate::message::Message;

/// CLOCK_BOOTTIME, nanoseconds.
pub type Time = u64;

/// One TLS connection to another node; a number never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SessionId(pub u64);

/// One handshake of two workloads inside a session. Each side numbers those it begins.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ProofId {
    /// The session it runs in.
    pub session: SessionId,
    /// Whether this node began it.
    pub ours: bool,
    /// Its number.
    pub number: u64,
}

/// A packet that waits, as the driver names it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Packet(pub u64);

/// Why a handshake has failed, or what was shown in one holds no more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// Why.
    pub why: Refusal,
    /// Whose certificate it was about; `None`: nobody's, or nobody knows. Of two workloads of this node the first is
    /// [`Side::Own`].
    pub side: Option<Side>,
    /// The ID that the certificate shows, if one was shown.
    pub shown: Option<SpiffeId>,
    /// If the peer's node has refused it: why, as it says.
    pub said: Option<Refusal>,
}

impl From<Refusal> for Failure {
    fn from(why: Refusal) -> Self {
        let side = match why {
            Refusal::NoCertificate | Refusal::RefusedByPeer => Some(Side::Own),
            Refusal::PeerNoCertificate => Some(Side::Peer),
            _ => None,
        };
        Self { why, side, shown: None, said: None }
    }
}

/// Something that happened.
#[derive(Clone, PartialEq, Debug)]
pub enum Input {
    /// What the agent wants now, and its number.
    Plan(u64, Arc<AuthPlan>),
    /// A session is up; the peer's certificate showed this node's ID. At most one session per node is of use: the machine
    /// closes what is too much.
    Connected {
        /// The session.
        session: SessionId,
        /// The node's name, as the plan has it.
        node: String,
        /// When the peer's node certificate or ours ends, whichever is first.
        expiry: Time,
    },
    /// A session is gone, or could not be made.
    Disconnected {
        /// The session; `None`: connecting failed.
        session: Option<SessionId>,
        /// The node's name.
        node: String,
        /// Why, in a sentence.
        problem: Option<String>,
    },
    /// A message of a session that is up.
    Received(SessionId, Message),
    /// A handshake has bytes for the other side.
    ProofBytes(ProofId, Vec<u8>),
    /// A handshake is over on this side. When it ended well: the earliest end of any certificate of either chain, less a
    /// margin. For who began it this is not yet a proof: the other side must say that it accepts, too.
    ProofDone(ProofId, Result<Time, Failure>),
    /// The in-memory handshake of two workloads of this node is over.
    LocalProofDone {
        /// One ID.
        a: SpiffeId,
        /// The other; may be the same.
        b: SpiffeId,
        /// As in [`Self::ProofDone`].
        result: Result<Time, Failure>,
    },
    /// A chain that was verified no longer verifies: what rests on it has no basis any more. The two IDs, local first.
    ProofLost {
        /// The handshake; `None` an in-memory one.
        node: Option<String>,
        /// ID of the workload of this node.
        local: SpiffeId,
        /// ID of its peer.
        remote: SpiffeId,
        /// Why, and whose it was.
        why: Failure,
    },
    /// There is a certificate for a workload's ID, until this time; `Err`: there is none, or not any more.
    Certificate(SpiffeId, Result<Time, Refusal>),
    /// A packet waits.
    Held {
        /// Its name.
        packet: Packet,
        /// What it waits for.
        kind: HoldKind,
        /// Its source address.
        source: IpAddr,
        /// Its destination address.
        destination: IpAddr,
    },
    /// A call wants a proof; its packets are on their way.
    Asked {
        /// Which end's policy wants it.
        kind: HoldKind,
        /// Who calls.
        source: IpAddr,
        /// Who is called.
        destination: IpAddr,
    },
    /// [`Output::SetMark`] could not be done, and has been undone.
    MarkLost {
        /// Number of the mark.
        number: u32,
        /// Its epoch.
        epoch: u64,
    },
    /// Time has passed; given at least when [`crate::machine`] asked to be woken.
    Tick,
}

/// Something to do.
#[derive(Clone, PartialEq, Debug)]
pub enum Output {
    /// Connect to a node of the plan. → [`Input::Connected`] or [`Input::Disconnected`].
    Connect(String),
    /// Close a session; nothing more comes of it, not even [`Input::Disconnected`].
    Close(SessionId),
    /// Send a message. One session's messages arrive in this order or not at all.
    Send(SessionId, Message),
    /// Hold a certificate for this ID, renewed before it ends. → [`Input::Certificate`].
    Want(SpiffeId),
    /// No workload here has the ID any more: forget key and certificate.
    Unwant(SpiffeId),
    /// Begin a handshake (or answer one that the other side has begun).
    StartProof {
        /// Its name.
        proof: ProofId,
        /// ID of the workload of this node.
        local: SpiffeId,
        /// ID that the other side must show.
        remote: SpiffeId,
    },
    /// Bytes of the other side.
    FeedProof(ProofId, Vec<u8>),
    /// It is of no interest any more; nothing more comes of it.
    DropProof(ProofId),
    /// Prove two workloads of this node to each other, in memory. → [`Input::LocalProofDone`].
    ProveLocally(SpiffeId, SpiffeId),
    /// Store a mark and let these keys lead to it. Epoch and principals are filled in already; the driver gives out
    /// neither. Atomic for the programs as `abi::Mark` describes.
    SetMark {
        /// Its number in `MARKS`.
        number: u32,
        /// The mark.
        mark: Mark,
        /// Keys in `AUTH`.
        keys: Vec<PairKey>,
    },
    /// Move a mark's expiry, nothing else.
    RenewMark {
        /// Its number.
        number: u32,
        /// The new one.
        expiry: Time,
    },
    /// Withdraw a mark: first its epoch, then the keys that lead to it.
    ClearMark {
        /// Its number.
        number: u32,
        /// Keys in `AUTH`.
        keys: Vec<PairKey>,
    },
    /// Let packets of these keys be refused until then.
    Refuse {
        /// Keys in `AUTH`.
        keys: Vec<PairKey>,
        /// Why.
        why: Refusal,
        /// Which end of theirs it is about.
        side: Option<Side>,
        /// Until when.
        until: Time,
    },
    /// Forget refusals.
    Forget(Vec<PairKey>),
    /// A node's word is good until then; 0: not at all.
    Lease {
        /// Index into `LEASES`.
        number: u32,
        /// Until when.
        end: Time,
    },
    /// Let a packet go on: there is a mark for it, or nobody asks for one any more.
    Release(Packet),
    /// Give a packet back to the hook that stopped it although nothing is proven: the hook refuses it aloud, with what
    /// [`Self::Refuse`] has said, and reports it.
    Return(Packet),
    /// Lose a packet without a word: its addresses are another's by now.
    Lose(Packet),
    /// Tell the agent.
    Tell(FromAuthAgent),
}
