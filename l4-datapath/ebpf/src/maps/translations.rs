//! `TRANSLATIONS`: packets that leave with other addresses than they came with.
//!
//! - Kind: hash without preallocation, kernel 4.6; not LRU: a live connection must not lose its translation. Who may add
//!   an entry has a connection, and those have quotas.
//! - Key: [`abi::PacketTuple`]. Value: [`abi::Translation`].
//! - Writers: `from_pod`, `to_netdev` (insert), `conntrack_gc` (delete). Readers: they, `to_pod`, `from_netdev`.

use abi::{PacketTuple, Translation};
use aya_ebpf::{bindings::BPF_F_NO_PREALLOC, btf_maps::HashMap, macros::btf_map};

#[btf_map]
pub(crate) static TRANSLATIONS: HashMap<PacketTuple, Translation, 524_288, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();
