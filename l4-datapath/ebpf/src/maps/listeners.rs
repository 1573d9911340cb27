//! `LISTENERS`: the listening sockets of the L7 proxy.
//!
//! - Kind: sockmap, kernel 4.14; looked up from tc since 5.8. A socket that is closed leaves it by itself.
//! - Key: worker × 2, plus 1 for IPv6. Value: the socket.
//! - Writer: the agent, before it says in `NODE` how many there are. Reader: [`crate::redirect`].

use aya_ebpf::{btf_maps::SockMap, macros::btf_map};

#[btf_map]
pub(crate) static LISTENERS: SockMap<{ abi::LISTENERS as usize }> = SockMap::new();
