//! `NAMESPACES`: which endpoint a socket is of.
//!
//! - Kind: hash without preallocation, kernel 4.6. The kernel never gives out a cookie twice, so an entry that has been left
//!   behind is never found.
//! - Key: `SO_NETNS_COOKIE` (u64). Value: endpoint id (u32).
//! - Writer: the agent. Readers: `connect`, `sendmsg`, `sock_ops`.

use aya_ebpf::{bindings::BPF_F_NO_PREALLOC, btf_maps::HashMap, macros::btf_map};

#[btf_map]
pub(crate) static NAMESPACES: HashMap<u64, u32, 65_536, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
