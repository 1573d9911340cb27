//! What the kernel programs read and emit: map keys, map values, drop reasons, the event record.
//!
//! Promise: every type here is `repr(C)` without implicit padding, has one fixed size, and never changes within a
//! [`SCHEMA`]. Old and new programs run side by side for a moment during an upgrade and must agree on each byte.
//! It holds layout only; what a value *means* is in `mesh`.
//!
//! Numbers are in the machine's order unless a field says *network order*. Addresses are always 16 bytes in network
//! order; IPv4 is written v4-mapped (`::ffff:a.b.c.d`), so `0.0.0.0/0` is a /96 and one trie serves both families.
#![cfg_attr(not(test), no_std)]
#![allow(unsafe_code, reason = "aya::Pod is an unsafe marker; the size assertions in each file justify it")]

mod address;
mod auth;
mod connection;
mod endpoint;
mod event;
mod fragment;
mod hold;
mod node;
mod reason;
mod rule;
mod service;
mod translation;

pub use address::{Address, AddressKey, Remote, RemoteFlags, ReservedIdentity};
pub use auth::{LEASES, MARKS, Mark, Pair, PairKey, REQUIRED};
pub use connection::{Collected, Connection, ConnectionKey4, ConnectionKey6, Leg, Memo, timeout};
pub use endpoint::{Assignment, Assignments, Endpoint, EndpointFlags};
pub use event::{Event, EventFlags, EventKind};
pub use fragment::{Fragment, FragmentKey};
pub use hold::{
    HELD, HOLD_FLOWS, HOLD_LENGTH, HOLD_TIME, Held, Hold, HoldCount, HoldKind, HoldRate, HoldTag, TRIGGERS,
    Trigger,
};
pub use node::Node;
pub use reason::{Direction, DropCount, DropKey, DropReason};
pub use rule::{RuleKey, RuleValue, RuleVerdict};
pub use service::{Affinity, AffinityKey, Backend, Called, Frontend, Member, Service, SocketKey};
pub use translation::{BOUND_WORDS, Device, DeviceFlags, PacketTuple, Translation, TranslationKind};

/// Version of every layout in this crate; part of the pin path. Raised with any change of any layout.
pub const SCHEMA: u32 = 6;

/// Mark of a packet that our own program made and sends back through a hook of ours (an RST to the stack side).
/// Only programs can make a packet meet a veth's ingress with a mark: the kernel clears marks on crossing a namespace
/// (`skb_scrub_packet`), so no workload can forge it. Bits 8–11 are the ones Cilium uses; kube-proxy's 0x4000 and
/// 0x8000 stay free. It stays on the packet until that has left the node: there is no connection by which a device that
/// masquerades could know whether to.
pub const MARK_ANSWER: u32 = 0x0e00;

/// Mark of a packet that has waited for a proof and is sent through the hook that stopped it once more: it is judged as
/// any other and not held again. It gives no right, so whoever forges it gains nothing.
pub const MARK_RELEASED: u32 = 0x0d00;

/// Mark of a packet that our own program made for the workload behind a veth, and sends to it by that veth's ingress: from
/// there alone a packet reaches the workload without meeting `to_pod`. As unforgeable as [`MARK_ANSWER`].
pub const MARK_INWARD: u32 = 0x0c00;

/// Mark of a packet that is for the L7 proxy, whatever its addresses: the node's routing rules deliver what wears it to
/// the node itself. Set from the connection's entry on every packet of a proxied connection. Cilium's number.
pub const MARK_TO_PROXY: u32 = 0x0200;

/// Mark of the sockets by which the L7 proxy calls in an opener's name, for routing rules and people. No program believes
/// it: whose socket a packet comes from is told by its cgroup ([`Node::proxy`]).
///
/// The priority (SO_PRIORITY) of such a socket is the port of the opener for whom it calls. The programs look there for his
/// connection by way of the proxy, without which it calls nobody, and take it out of the packet.
pub const MARK_FROM_PROXY: u32 = 0x0a00;

/// Names of the maps, as in the object and under the pin directory. One list, so that loader, readers and `check`
/// cannot disagree.
pub mod map {
    /// [`crate::Node`], array of one.
    pub const NODE: &str = "NODE";
    /// [`crate::Address`] → [`crate::Endpoint`], hash.
    pub const ENDPOINTS: &str = "ENDPOINTS";
    /// Endpoint id → [`crate::Assignments`], array.
    pub const ASSIGNMENTS: &str = "ASSIGNMENTS";
    /// [`crate::AddressKey`] → [`crate::Remote`], LPM.
    pub const IPCACHE: &str = "IPCACHE";
    /// [`crate::RuleKey`] → [`crate::RuleValue`], LPM.
    pub const RULES: &str = "RULES";
    /// [`crate::ConnectionKey4`] → [`crate::Connection`], LRU.
    pub const CONNECTIONS4: &str = "CONNECTIONS4";
    /// [`crate::ConnectionKey6`] → [`crate::Connection`], LRU.
    pub const CONNECTIONS6: &str = "CONNECTIONS6";
    /// Endpoint id → number of connections charged to it (u64), array.
    pub const USAGE: &str = "USAGE";
    /// [`crate::DropKey`] → [`crate::DropCount`], per-CPU hash.
    pub const DROPS: &str = "DROPS";
    /// [`crate::Event`], ring buffer.
    pub const EVENTS: &str = "EVENTS";
    /// Events lost because the ring was full (u64), per-CPU array of one.
    pub const LOST: &str = "LOST";
    /// [`crate::Frontend`] → index in `SERVICES` (u32), hash.
    pub const FRONTENDS: &str = "FRONTENDS";
    /// Index → [`crate::Service`], array.
    pub const SERVICES: &str = "SERVICES";
    /// Slot → index in `BACKENDS` (u32), array.
    pub const SLOTS: &str = "SLOTS";
    /// Index → [`crate::Backend`], array.
    pub const BACKENDS: &str = "BACKENDS";
    /// [`crate::Member`] → 1 (u32), hash.
    pub const MEMBERS: &str = "MEMBERS";
    /// [`crate::AffinityKey`] → [`crate::Affinity`], LRU.
    pub const AFFINITIES: &str = "AFFINITIES";
    /// [`crate::SocketKey`] → [`crate::Called`], LRU.
    pub const SOCKETS: &str = "SOCKETS";
    /// [`crate::PacketTuple`] → [`crate::Translation`], hash.
    pub const TRANSLATIONS: &str = "TRANSLATIONS";
    /// Interface index → [`crate::Device`], hash.
    pub const DEVICES: &str = "DEVICES";
    /// [`crate::AddressKey`] → 1 (u32), LPM: destinations that see workloads' own addresses.
    pub const UNMASQUERADED: &str = "UNMASQUERADED";
    /// Word → bits (u64), array; see [`crate::BOUND_WORDS`].
    pub const BOUND: &str = "BOUND";
    /// [`crate::FragmentKey`] → [`crate::Fragment`], LRU.
    pub const FRAGMENTS: &str = "FRAGMENTS";
    /// [`crate::PairKey`] → [`crate::Pair`], hash.
    pub const AUTH: &str = "AUTH";
    /// Number → [`crate::Mark`], array.
    pub const MARKS: &str = "MARKS";
    /// Number of a node → when its word ends (CLOCK_BOOTTIME, nanoseconds, u64), array.
    pub const LEASES: &str = "LEASES";
    /// Number of a packet, modulo [`crate::HELD`] → [`crate::Held`], array.
    pub const HELD: &str = "HELD";
    /// [`crate::Hold`], array of one.
    pub const HOLD: &str = "HOLD";
    /// Endpoint id → [`crate::HoldRate`], array.
    pub const HOLD_RATES: &str = "HOLD_RATES";
    /// [`crate::PacketTuple`] → packets held lately (u64), LRU.
    pub const HOLD_FLOWS: &str = "HOLD_FLOWS";
    /// [`crate::HoldCount`] → packets (u64), per-CPU array.
    pub const HOLD_COUNTS: &str = "HOLD_COUNTS";
    /// Worker × 2 + (0 IPv4, 1 IPv6) → a listening socket of the L7 proxy, sockmap of [`crate::LISTENERS`].
    pub const LISTENERS: &str = "LISTENERS";
    /// [`crate::Trigger`], ring buffer.
    pub const TRIGGERS: &str = "TRIGGERS";
    /// `SO_NETNS_COOKIE` of a workload's network namespace (u64) → endpoint id (u32), hash.
    pub const NAMESPACES: &str = "NAMESPACES";
}

/// Capacity of `LISTENERS`: twice as many as the L7 proxy may have workers.
pub const LISTENERS: u32 = 128;

/// Implements the marker that lets user space write a value as bytes.
#[cfg(feature = "user")]
macro_rules! pod {
    ($($name:ty),+) => { $(
        // SAFETY: repr(C), Copy, no padding (sizes are asserted beside each type), any bit pattern is valid.
        unsafe impl aya::Pod for $name {}
    )+ };
}
#[cfg(feature = "user")]
pod!(
    Address,
    Assignments,
    Remote,
    Collected,
    Connection,
    ConnectionKey4,
    ConnectionKey6,
    Endpoint,
    Event,
    Node,
    DropKey,
    DropCount,
    RuleKey,
    RuleValue,
    Affinity,
    AffinityKey,
    Backend,
    Called,
    Device,
    Fragment,
    FragmentKey,
    Frontend,
    Held,
    Hold,
    HoldRate,
    Mark,
    Member,
    PacketTuple,
    Pair,
    PairKey,
    Service,
    SocketKey,
    Translation
);
