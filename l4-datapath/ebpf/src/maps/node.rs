//! `NODE`: what is true for the whole node.
//!
//! - Kind: array of one that user space can map, kernel 5.5: the generation is one atomic store there, which an update by
//!   system call (a copy of bytes) does not promise to be.
//! - Value: [`abi::Node`].
//! - Writer: the agent, `generation` last. Readers: every hook, once per packet, before any other look-up.

use abi::Node;
use aya_ebpf::{bindings::BPF_F_MMAPABLE, btf_maps::Array, macros::btf_map};

#[btf_map]
pub(crate) static NODE: Array<Node, 1, { BPF_F_MMAPABLE as usize }> = Array::new();
