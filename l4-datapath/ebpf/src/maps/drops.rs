//! `DROPS`: dropped packets by veth, reason and direction.
//!
//! - Kind: per-CPU hash, kernel 4.6.
//! - Key: [`abi::DropKey`]. Value: [`abi::DropCount`].
//! - Writers: every tc hook; the agent removes the keys of a veth that is gone.

use abi::{DropCount, DropKey};
use aya_ebpf::{btf_maps::PerCpuHashMap, macros::btf_map};

#[btf_map]
pub(crate) static DROPS: PerCpuHashMap<DropKey, DropCount, 16384> = PerCpuHashMap::new();
