//! `recvmsg4`, `recvmsg6`: who receives a backend's answer sees the VIP that was called as its source.
//!
//! - Hook: cgroup, recvfrom(2) and its kin on UDP sockets when the caller wants the source; kernel 5.2, link 5.7.
//! - Reads `SOCKETS`.
//! - Verdict: the call goes on; the kernel knows no other.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::{
    call::recall,
    socket::{Family, PROCEED, Socket},
};

/// See the module.
#[cgroup_sock_addr(recvmsg4)]
pub(crate) fn recvmsg4(ctx: SockAddrContext) -> i32 {
    recall(Socket::new(&ctx, Family::V4));
    PROCEED
}

/// See the module.
#[cgroup_sock_addr(recvmsg6)]
pub(crate) fn recvmsg6(ctx: SockAddrContext) -> i32 {
    recall(Socket::new(&ctx, Family::V6));
    PROCEED
}
