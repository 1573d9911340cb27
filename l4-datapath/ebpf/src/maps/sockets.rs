//! `SOCKETS`: what the owner of a socket called, by whom the socket really talks with.
//!
//! - Kind: LRU hash, kernel 4.10. A lost entry shows the backend where the VIP was expected,
//!   and leaves a UDP socket alone whose backend has departed.
//! - Key: [`abi::SocketKey`]. Value: [`abi::Called`].
//! - Writers: the cgroup programs of `connect` and `sendmsg`; `sock_release` deletes. Readers: those of `recvmsg` and
//!   `getpeername`; the agent, which asks before it destroys a socket.

use abi::{Called, SocketKey};
use aya_ebpf::{btf_maps::LruHashMap, macros::btf_map};

#[btf_map]
pub(crate) static SOCKETS: LruHashMap<SocketKey, Called, 131_072> = LruHashMap::new();
