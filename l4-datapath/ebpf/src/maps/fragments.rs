//! `FRAGMENTS`: the ports of datagrams that come in pieces.
//!
//! - Kind: LRU hash, kernel 4.10: a forgotten datagram's later pieces are dropped with a reason.
//! - Key: [`abi::FragmentKey`]. Value: [`abi::Fragment`].
//! - Writers and readers: `from_pod`, `to_pod`, `from_netdev`, `to_netdev`.

use abi::{Fragment, FragmentKey};
use aya_ebpf::{btf_maps::LruHashMap, macros::btf_map};

#[btf_map]
pub(crate) static FRAGMENTS: LruHashMap<FragmentKey, Fragment, 65_536> = LruHashMap::new();
