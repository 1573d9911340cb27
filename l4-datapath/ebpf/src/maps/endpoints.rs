//! `ENDPOINTS`: workloads of this node, by address and by veth.
//!
//! - Kind: hash without preallocation, kernel 4.6. Elements may be recycled under a reader, hence only facts that
//!   never change while the endpoint lives; the others are in `ASSIGNMENTS`.
//! - Key: [`abi::Address`], of the workload and of its veth ([`abi::Address::interface`]). Value: [`abi::Endpoint`].
//! - Writer: the agent. Readers: every tc hook, and `conntrack_gc`, which asks who is gone.

use abi::{Address, Endpoint};
use aya_ebpf::{bindings::BPF_F_NO_PREALLOC, btf_maps::HashMap, macros::btf_map};

#[btf_map]
pub(crate) static ENDPOINTS: HashMap<Address, Endpoint, 16384, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();
