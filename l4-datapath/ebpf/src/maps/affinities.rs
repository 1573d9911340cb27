//! `AFFINITIES`: which backend a client was given last by a service that lets clients return.
//!
//! - Kind: LRU hash, kernel 4.10: forgetting is a new choice, nothing worse.
//! - Key: [`abi::AffinityKey`]. Value: [`abi::Affinity`].
//! - Writers and readers: the cgroup programs, `from_pod`.

use abi::{Affinity, AffinityKey};
use aya_ebpf::{btf_maps::LruHashMap, macros::btf_map};

#[btf_map]
pub(crate) static AFFINITIES: LruHashMap<AffinityKey, Affinity, 65_536> = LruHashMap::new();
