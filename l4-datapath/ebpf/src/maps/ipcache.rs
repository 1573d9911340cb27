//! `IPCACHE`: the identity behind an address that is not an endpoint of this node.
//!
//! - Kind: LPM trie (never preallocated), kernel 4.11.
//! - Key: prefix length and [`abi::AddressKey`]. Value: [`abi::Remote`].
//! - Writer: the agent. Readers: every tc hook.

use abi::{AddressKey, Remote};
use aya_ebpf::{btf_maps::LpmTrie, macros::btf_map};

#[btf_map]
pub(crate) static IPCACHE: LpmTrie<AddressKey, Remote, 524_288> = LpmTrie::new();
