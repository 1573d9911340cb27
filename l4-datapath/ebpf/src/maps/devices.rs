//! `DEVICES`, `UNMASQUERADED`, `BOUND`: what masquerading is told.
//!
//! - Kind: hash (3.19), LPM trie (4.11), array (3.19).
//! - Key and value: interface index → [`abi::Device`]; prefix length and [`abi::AddressKey`] → 1; word → bits.
//! - Writer: the agent; of `BOUND`, `post_bind`. Readers: `from_netdev`, `to_netdev`.

use abi::{AddressKey, BOUND_WORDS, Device};
use aya_ebpf::{
    btf_maps::{Array, HashMap, LpmTrie},
    macros::btf_map,
};

#[btf_map]
pub(crate) static DEVICES: HashMap<u32, Device, 256> = HashMap::new();
#[btf_map]
pub(crate) static UNMASQUERADED: LpmTrie<AddressKey, u32, 16_384> = LpmTrie::new();
#[btf_map]
pub(crate) static BOUND: Array<u64, { BOUND_WORDS as usize }> = Array::new();
