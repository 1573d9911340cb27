//! `LOST`: events that found `EVENTS` full, and drops that found `DROPS` full.
//!
//! - Kind: per-CPU array of one, kernel 4.6.
//! - Value: u64.
//! - Writers: every tc hook.

use aya_ebpf::{btf_maps::PerCpuArray, macros::btf_map};

#[btf_map]
pub(crate) static LOST: PerCpuArray<u64, 1> = PerCpuArray::new();
