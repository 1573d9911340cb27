//! Who stands behind an address, as of one generation.

use core::ptr::read_volatile;

use abi::{Address, DropReason, Endpoint, RemoteFlags, ReservedIdentity};
use aya_ebpf::btf_maps::lpm_trie::Key;

use crate::{
    conntrack,
    maps::{ASSIGNMENTS, ENDPOINTS, IPCACHE, NODE},
    refusal::Refusal,
};

/// What holds while one packet is judged.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Moment {
    pub(crate) generation: u64,
    /// See [`conntrack::now`].
    pub(crate) second: u32,
    /// Report every packet.
    pub(crate) trace: bool,
}

impl Moment {
    /// Read *before* any look-up of a packet: what a packet then finds is at least as new.
    #[inline(always)]
    pub(crate) fn current() -> Result<Self, DropReason> {
        let node = NODE.get_ptr(0).ok_or(DropReason::NotReady)?;
        // SAFETY: an array element lives as long as the map; the agent stores to it meanwhile, hence volatile.
        let (generation, trace) = unsafe {
            (read_volatile(&raw const (*node).generation), read_volatile(&raw const (*node).trace))
        };
        if generation == 0 {
            return Err(DropReason::NotReady);
        }
        Ok(Self { generation, second: conntrack::now(), trace: trace == 1 })
    }
}

/// One end of a packet: what policy, quota and events ask about it, in plain numbers.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct End {
    /// 0: nobody we know.
    pub(crate) identity: u32,
    /// What follows is 0 if the end is not on this node.
    pub(crate) ifindex: u32,
    pub(crate) ingress: u32,
    pub(crate) egress: u32,
    /// Lower half of [`abi::Endpoint::instance`].
    pub(crate) instance: u32,
    /// Endpoint id.
    pub(crate) id: u16,
    /// [`abi::EndpointFlags`]; of an end that is not on this node, [`End::PENDING`] or 0.
    pub(crate) flags: u16,
}

impl End {
    /// Another node's address of which nothing is known yet.
    const PENDING: u16 = 1 << 15;

    #[inline(always)]
    pub(crate) fn is_pending(&self) -> bool {
        !self.is_local() && self.flags == Self::PENDING
    }

    /// A workload of another node, known or not.
    #[inline(always)]
    pub(crate) fn is_elsewhere(&self) -> bool {
        !self.is_local() && (self.is_pending() || is_workload(self.identity))
    }

    #[inline(always)]
    pub(crate) fn is_local(&self) -> bool {
        self.id != 0
    }

    /// Becomes an endpoint of this node, as of this generation.
    #[inline(always)]
    pub(crate) fn set_local(&mut self, endpoint: &Endpoint, generation: u64) -> Result<(), Refusal> {
        Refusal::check(identity_local(self, endpoint, (generation & 1) as u32))
    }

    /// Becomes whoever `IPCACHE` says has `address`.
    #[inline(always)]
    pub(crate) fn set_remote(&mut self, address: &Address, generation: u64) {
        let stranger = remote(address, generation);
        self.identity = stranger.identity();
        self.flags = if stranger.is_pending() { Self::PENDING } else { 0 };
    }
}

/// Who has an address that is no endpoint's.
#[derive(Clone, Copy)]
pub(crate) struct Stranger(u32);

impl Stranger {
    /// Beside an identity, which has 25 bits at most.
    const PENDING: u32 = 1 << 31;

    /// 0 if nobody has it.
    #[inline(always)]
    pub(crate) fn identity(self) -> u32 {
        self.0 & !Self::PENDING
    }

    /// Another node's address of which nothing is known yet.
    #[inline(always)]
    pub(crate) fn is_pending(self) -> bool {
        self.0 & Self::PENDING != 0
    }

    /// A workload of another node, known or not.
    #[inline(always)]
    pub(crate) fn is_workload(self) -> bool {
        self.is_pending() || is_workload(self.0)
    }
}

/// Whether this is a workload's identity: it has a SPIFFE ID.
#[inline(always)]
pub(crate) fn is_workload(identity: u32) -> bool {
    (ReservedIdentity::FIRST_WORKLOAD..=ReservedIdentity::LAST_WORKLOAD).contains(&identity)
}

/// Who has an address, if it is no endpoint's.
#[inline(always)]
pub(crate) fn remote(address: &Address, generation: u64) -> Stranger {
    Stranger(identity_remote(address, (generation & 1) as u32))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn identity_local(end: *mut End, endpoint: *const Endpoint, slot: u32) -> u32 {
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(end), Some(endpoint)) = (unsafe { (end.as_mut(), endpoint.as_ref()) }) else {
        return Refusal::ABSURD;
    };
    let Some(assignments) = ASSIGNMENTS.get(endpoint.id) else { return DropReason::NotReady as u32 };
    let assignment = &assignments.slot[(slot & 1) as usize];
    *end = End {
        identity: assignment.identity,
        ifindex: endpoint.ifindex,
        ingress: assignment.ingress,
        egress: assignment.egress,
        instance: endpoint.instance as u32,
        id: endpoint.id as u16,
        flags: assignment.flags as u16,
    };
    0
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn identity_remote(address: *const Address, slot: u32) -> u32 {
    // SAFETY: the caller passes a reference; the test for null is for the verifier.
    let Some(address) = (unsafe { address.as_ref() }) else { return 0 };
    let Some(remote) = IPCACHE.get(&Key::new(128, *address)) else { return 0 };
    let identity = remote.identity[(slot & 1) as usize];
    // The flag says nothing of a slot in which the address is somebody's.
    let is_pending = identity == ReservedIdentity::UNMANAGED && remote.flags & RemoteFlags::PENDING != 0;
    if is_pending { identity | Stranger::PENDING } else { identity }
}

/// The endpoint with this address.
#[inline(always)]
pub(crate) fn endpoint(address: &Address) -> Option<&'static Endpoint> {
    // SAFETY: an element never changes while the endpoint lives. When it goes, its element may be reused at once and a
    // packet in flight may read the next endpoint's facts; that next endpoint has not been started then.
    unsafe { ENDPOINTS.get(address) }
}
