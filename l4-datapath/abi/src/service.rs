//! Services: what a client calls, and who answers.
//!
//! `FRONTENDS` finds a service by what was called, `SERVICES` says where its slots begin and how many there are,
//! `SLOTS` names a backend by number, `BACKENDS` has its address. A hash finds, arrays hold: as in
//! [`crate::Assignments`], what changes while programs run stands where an element is written in place and never
//! becomes another's under a reader. The order of writing is backends → slots → service → frontend, of removing the
//! reverse, with an RCU grace before a number is used again.

use crate::Address;

/// Key of `FRONTENDS`. Value: index of the service in `SERVICES`; 0 for the key of [`Frontend::address_only`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Frontend {
    /// The VIP.
    pub address: Address,
    /// Network order.
    pub port: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// Room (external scope). Zero.
    pub scope: u8,
}

impl Frontend {
    /// A port of a VIP; `port` in machine order.
    #[inline(always)]
    pub const fn new(address: Address, port: u16, protocol: u8) -> Self {
        Self { address, port: port.to_be_bytes(), protocol, scope: 0 }
    }

    /// The key under which every VIP stands once more: what is called there on another port is refused, not routed.
    #[inline(always)]
    pub const fn address_only(address: Address) -> Self {
        Self::new(address, 0, 0)
    }
}

/// Element of `SERVICES`; element 0 is nobody's. Writer: the agent.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Service {
    /// First slot `<< 32 |` number of slots, one aligned store: see [`Service::slots`]. No slots: calls are refused.
    pub slots: u64,
    /// What it is called by. A reader compares: the element of `FRONTENDS` it came by may be another's by now.
    pub frontend: Frontend,
    /// Seconds for which a client returns to the same backend; 0: any backend each time.
    pub affinity: u32,
    /// Room (traffic policy: the proxy chooses). Zero.
    pub flags: u32,
    /// Zero.
    pub zero: u32,
}

impl Service {
    /// [`Service::slots`] of a region.
    #[inline(always)]
    pub const fn region(first: u32, count: u32) -> u64 {
        (first as u64) << 32 | count as u64
    }

    /// First slot.
    #[inline(always)]
    pub const fn first(slots: u64) -> u32 {
        (slots >> 32) as u32
    }

    /// Number of slots.
    #[inline(always)]
    pub const fn count(slots: u64) -> u32 {
        slots as u32
    }
}

/// Element of `BACKENDS`, numbered by `SLOTS`; element 0 is nobody's. Writer: the agent.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Backend {
    /// Its address.
    pub address: Address,
    /// Network order.
    pub port: [u8; 2],
    /// Zero.
    pub zero: [u8; 2],
    /// Room (zone, weight). Zero.
    pub reserved: u32,
}

/// Key of `MEMBERS`, value 1: this backend may be chosen for this service. Only services with affinity stand there.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Member {
    /// Index in `SERVICES`.
    pub service: u32,
    /// Index in `BACKENDS`.
    pub backend: u32,
}

/// Key of `AFFINITIES`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct AffinityKey {
    /// Address of the client, or [`AffinityKey::namespace`] where a socket is all we see.
    pub client: Address,
    /// Index in `SERVICES`.
    pub service: u32,
    /// Zero.
    pub zero: u32,
}

impl AffinityKey {
    /// A network namespace by its cookie, written in `100::/64`, the discard-only block (RFC 6666): no client has it.
    #[inline(always)]
    pub const fn namespace(cookie: u64) -> Address {
        let c = cookie.to_be_bytes();
        Address([1, 0, 0, 0, 0, 0, 0, 0, c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]])
    }
}

/// Value of `AFFINITIES`. Writers: the programs.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Affinity {
    /// Index in `BACKENDS`; believed only while [`Member`] says so.
    pub backend: u32,
    /// Second (CLOCK_MONOTONIC_COARSE) of the latest call.
    pub seen: u32,
}

/// Key of `SOCKETS`: whom a socket really talks with.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct SocketKey {
    /// `SO_COOKIE`.
    pub cookie: u64,
    /// Of the backend.
    pub address: Address,
    /// Of the backend, network order.
    pub port: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub zero: [u8; 5],
}

/// Value of `SOCKETS`: whom its owner believes to talk with. Writers: the cgroup programs; the agent reads.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Called {
    /// What was called.
    pub frontend: Frontend,
    /// Index in `SERVICES` at that time.
    pub service: u32,
}

const _: () = assert!(size_of::<Frontend>() == 20 && size_of::<Service>() == 40);
const _: () = assert!(size_of::<Backend>() == 24 && size_of::<Member>() == 8);
const _: () = assert!(size_of::<AffinityKey>() == 24 && size_of::<Affinity>() == 8);
const _: () = assert!(size_of::<SocketKey>() == 32 && size_of::<Called>() == 24);
