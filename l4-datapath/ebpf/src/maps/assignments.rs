//! `ASSIGNMENTS`: what policy says of each endpoint.
//!
//! - Kind: array, kernel 3.19: written in place, so an element never becomes another endpoint's under a reader.
//! - Key: endpoint id. Value: [`abi::Assignments`].
//! - Writer: the agent, of a living endpoint only the slot not in force and the quota. Readers: `from_pod`,
//!   `to_pod`.

use abi::Assignments;
use aya_ebpf::{btf_maps::Array, macros::btf_map};

#[btf_map]
pub(crate) static ASSIGNMENTS: Array<Assignments, 65536> = Array::new();
