//! Who stands behind an address, as of one generation.

use core::ptr::read_volatile;

use abi::{Address, Assignment, Assignments, DropReason, Endpoint};
use aya_ebpf::btf_maps::lpm_trie::Key;

use crate::{
    conntrack,
    maps::{ASSIGNMENTS, ENDPOINTS, IPCACHE, NODE},
};

/// What holds while one packet is judged.
#[derive(Clone, Copy)]
pub(crate) struct Moment {
    pub(crate) generation: u64,
    /// Since boot, time asleep included.
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

/// An endpoint of this node.
#[derive(Clone, Copy)]
pub(crate) struct Local {
    pub(crate) endpoint: &'static Endpoint,
    pub(crate) assignments: &'static Assignments,
}

impl Local {
    /// What policy says of the endpoint in this generation.
    #[inline(always)]
    pub(crate) fn assignment(&self, generation: u64) -> &'static Assignment {
        &self.assignments.slot[(generation & 1) as usize]
    }
}

/// One end of a packet.
#[derive(Clone, Copy)]
pub(crate) struct End {
    /// 0: nobody we know.
    pub(crate) identity: u32,
    /// `None` if it is not on this node.
    pub(crate) local: Option<Local>,
}

impl End {
    /// The endpoint of this node.
    #[inline(always)]
    pub(crate) fn local(endpoint: &'static Endpoint, generation: u64) -> Result<Self, DropReason> {
        let assignments = ASSIGNMENTS.get(endpoint.id).ok_or(DropReason::NotReady)?;
        let local = Local { endpoint, assignments };
        Ok(Self { identity: local.assignment(generation).identity, local: Some(local) })
    }

    /// Whoever has `address`, an endpoint of this node first.
    #[inline(always)]
    pub(crate) fn find(address: &Address, generation: u64) -> Result<Self, DropReason> {
        match endpoint(address) {
            Some(endpoint) => Self::local(endpoint, generation),
            None => Ok(Self::remote(address, generation)),
        }
    }

    /// Whoever `IPCACHE` says has `address`.
    #[inline(always)]
    pub(crate) fn remote(address: &Address, generation: u64) -> Self {
        let identity = match IPCACHE.get(&Key::new(128, *address)) {
            Some(remote) => remote.identity[(generation & 1) as usize],
            None => 0,
        };
        Self { identity, local: None }
    }
}

/// The endpoint with this address.
#[inline(always)]
pub(crate) fn endpoint(address: &Address) -> Option<&'static Endpoint> {
    // SAFETY: an element never changes while the endpoint lives. When it goes, its element may be reused at once and a
    // packet in flight may read the next endpoint's facts; that next endpoint has not been started then.
    unsafe { ENDPOINTS.get(address) }
}
