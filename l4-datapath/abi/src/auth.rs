//! Authentication: which pairs are proven, and until when.
//!
//! A pair of endpoint instances that is proven has one [`Mark`], an element of the array `MARKS`. `AUTH` leads to it from
//! an endpoint of this node and the address and identity of its peer: with up to two addresses at each end, and both ends
//! perhaps on this node, several keys lead to one mark. A connection keeps the number of the mark and its epoch
//! ([`crate::Connection::mark`], [`crate::Connection::epoch`]), and every packet of it compares: withdrawing a mark is
//! one store, and no connection ever comes back to life with a later one.
//!
//! Times are CLOCK_BOOTTIME in nanoseconds: while the machine sleeps, proofs and leases grow old.

use crate::Address;

/// Key of `AUTH`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PairKey {
    /// Address of the peer.
    pub remote: Address,
    /// Identity of the peer, as this node numbers it.
    pub identity: u32,
    /// [`crate::Endpoint::instance`] of the endpoint of this node, its lower half.
    pub instance: u32,
}

/// Value of `AUTH`: what is known of a pair. No entry: nothing yet, and a packet may wait for it.
///
/// Writer: the auth-agent. An element may be recycled under a reader; so a reader believes of it only the number of the
/// mark, and asks the mark whose it is.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pair {
    /// Number of the mark; 0: the proof was refused.
    pub mark: u32,
    /// Why, a number that `mesh::auth::Refusal` has; 0 with a mark.
    pub refusal: u8,
    /// Zero.
    pub zero: [u8; 3],
    /// Until when a refusal holds; with a mark 0.
    pub until: u64,
}

/// Element of `MARKS`. Number 0 is never a mark; its `epoch` is the latest that was given out.
///
/// Writer: the auth-agent, field by field through a mapping. Before any other field changes, `epoch` becomes 0; it is
/// stored last. A reader that reads the same epoch before and after the rest has read one mark.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Mark {
    /// Number of this creation, never used again as long as the map exists; 0: no mark.
    pub epoch: u64,
    /// When it ends. Renewal stores only this.
    pub expiry: u64,
    /// Index into `LEASES`: the node whose word this depends on.
    pub lease: u32,
    /// Zero.
    pub zero: u32,
    /// SPIFFE IDs of the ends, as numbers that the auth-agent makes of them, in the order of `instances`; second the
    /// peer's.
    pub principals: [u32; 2],
    /// Lower halves of the instances of the ends that are on this node; the second is 0 if only one is.
    pub instances: [u32; 2],
    /// The peer's IPv4 address, network order, if it is on another node; else zero.
    pub ipv4: [u8; 4],
    /// Zero.
    pub zero4: [u8; 4],
    /// The peer's IPv6 address, network order, if it is on another node; else zero.
    pub ipv6: [u8; 16],
}

/// Marks there can be, number 0 included.
pub const MARKS: u32 = 1 << 17;
/// Nodes whose word marks can depend on, this one (number 0) included. `LEASES` has for each when its word ends (u64).
pub const LEASES: u32 = 1 << 13;
/// [`crate::RuleValue::requirement`]: the peer must be authenticated, whoever it is.
pub const REQUIRED: u8 = 1;

const _: () = assert!(size_of::<PairKey>() == 24 && size_of::<Pair>() == 16 && size_of::<Mark>() == 64);
