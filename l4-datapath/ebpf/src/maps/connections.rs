//! `CONNECTIONS4`, `CONNECTIONS6`: connections that were allowed, and the remembered verdict.
//!
//! - Kind: LRU hash, kernel 4.10. Quotas sum to less than half of it, so that eviction stays the last resort.
//! - Key: [`abi::ConnectionKey4`], [`abi::ConnectionKey6`]. Value: [`abi::Connection`].
//! - Writers: `from_pod`, `to_pod` (insert, update, delete what has ended and opens anew), `conntrack_gc` (delete).

use abi::{Connection, ConnectionKey4, ConnectionKey6};
use aya_ebpf::{btf_maps::LruHashMap, macros::btf_map};

#[btf_map]
pub(crate) static CONNECTIONS4: LruHashMap<ConnectionKey4, Connection, 262_144> = LruHashMap::new();
#[btf_map]
pub(crate) static CONNECTIONS6: LruHashMap<ConnectionKey6, Connection, 262_144> = LruHashMap::new();
