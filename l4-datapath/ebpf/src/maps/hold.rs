//! `HELD`, `HOLD`, `HOLD_RATES`, `HOLD_FLOWS`, `HOLD_COUNTS`: packets that wait for a proof.
//!
//! - Kind: arrays, kernel 3.19, one of them per CPU, 4.6; `HOLD_FLOWS` an LRU hash, 4.10. Their words are changed by
//!   compare-and-exchange (`-Ctarget-cpu=v3`), kernel 5.12.
//! - `HELD`: number of a packet modulo its size → [`abi::Held`]. `HOLD`: [`abi::Hold`].
//! - `HOLD_RATES`: endpoint id → [`abi::HoldRate`]. `HOLD_FLOWS`: [`abi::PacketTuple`] → see [`crate::hold`]. A flow that the LRU
//!   forgets begins to count anew; the endpoint's rate and the size of `HELD` still bound it.
//! - `HOLD_COUNTS`: [`abi::HoldCount`] → packets (u64).
//! - Writers and readers: `from_pod`, `to_pod`, `from_hold`, and of rates and counts `connect`, `sendmsg`, `sock_ops`; the
//!   key in `HOLD` is written by the agent, and the counts are read by it.

use abi::{HELD as ELEMENTS, HOLD_FLOWS as FLOWS, Held, Hold, HoldCount, HoldRate, PacketTuple};
use aya_ebpf::{
    btf_maps::{Array, LruHashMap, PerCpuArray},
    macros::btf_map,
};

#[btf_map]
pub(crate) static HELD: Array<Held, { ELEMENTS as usize }> = Array::new();
#[btf_map]
pub(crate) static HOLD: Array<Hold, 1> = Array::new();
#[btf_map]
pub(crate) static HOLD_RATES: Array<HoldRate, 65536> = Array::new();
#[btf_map]
pub(crate) static HOLD_FLOWS: LruHashMap<PacketTuple, u64, { FLOWS as usize }> = LruHashMap::new();
#[btf_map]
pub(crate) static HOLD_COUNTS: PerCpuArray<u64, { HoldCount::ALL as usize }> = PerCpuArray::new();
