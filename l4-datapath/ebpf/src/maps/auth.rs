//! `AUTH`, `MARKS`, `LEASES`: which pairs are proven, and until when.
//!
//! - Kind: hash without preallocation (4.6) leads to the number of a mark; arrays that user space can map (5.5) hold marks
//!   and leases: withdrawing one is a single store there.
//! - Key and value: [`abi::PairKey`] → [`abi::Pair`]; number → [`abi::Mark`]; number of a node → when its word ends.
//! - Writer: the auth-agent. Readers: `from_pod`, `to_pod`. An element of the hash may be recycled under a reader, which
//!   therefore asks the mark whose it is.

use abi::{LEASES as NODES, MARKS as NUMBERS, Mark, Pair, PairKey};
use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array, HashMap},
    macros::btf_map,
};

#[btf_map]
pub(crate) static AUTH: HashMap<PairKey, Pair, 262_144, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
#[btf_map]
pub(crate) static MARKS: Array<Mark, { NUMBERS as usize }, { BPF_F_MMAPABLE as usize }> = Array::new();
#[btf_map]
pub(crate) static LEASES: Array<u64, { NODES as usize }, { BPF_F_MMAPABLE as usize }> = Array::new();
