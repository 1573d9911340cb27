//! `getpeername4`, `getpeername6`: who called a VIP is told the VIP. The other side's getpeername, and getsockname of
//! both, stay the kernel's.
//!
//! - Hook: cgroup, getpeername(2) of TCP and UDP sockets; kernel 5.8.
//! - Reads `SOCKETS`.
//! - Verdict: the call goes on; the kernel knows no other.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::{
    call::recall,
    socket::{Family, PROCEED, Socket},
};

/// See the module.
#[cgroup_sock_addr(getpeername4)]
pub(crate) fn getpeername4(ctx: SockAddrContext) -> i32 {
    recall(Socket::new(&ctx, Family::V4));
    PROCEED
}

/// See the module.
#[cgroup_sock_addr(getpeername6)]
pub(crate) fn getpeername6(ctx: SockAddrContext) -> i32 {
    recall(Socket::new(&ctx, Family::V6));
    PROCEED
}
