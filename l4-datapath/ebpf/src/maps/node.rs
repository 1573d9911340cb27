//! `NODE`: what is true for the whole node.
//!
//! - Kind: array of one, kernel 3.19.
//! - Value: [`abi::Node`].
//! - Writer: the agent, `generation` last. Readers: every hook, once per packet, before any other look-up.

use abi::Node;
use aya_ebpf::{btf_maps::Array, macros::btf_map};

#[btf_map]
pub(crate) static NODE: Array<Node, 1> = Array::new();
