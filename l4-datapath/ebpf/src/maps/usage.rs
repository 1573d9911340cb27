//! `USAGE`: connections charged to each endpoint.
//!
//! - Kind: array, kernel 3.19; the counts need atomics with a result (`-Ctarget-cpu=v3`), kernel 5.12.
//! - Key: endpoint id. Value: u64, read as signed: a late decrement for an earlier owner of the id may make it
//!   negative.
//! - Writers: `from_pod`, `to_pod` (charge, and discharge of what they replace), `conntrack_gc` (discharge, also for
//!   endpoints that are gone). Reader beside them: `to_netdev`.

use aya_ebpf::{btf_maps::Array, macros::btf_map};

#[btf_map]
pub(crate) static USAGE: Array<u64, 65536> = Array::new();
