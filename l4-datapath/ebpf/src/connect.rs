//! `connect4`, `connect6`: a socket calls a VIP and is connected to a backend; of packets none is ever translated.
//!
//! - Hook: cgroup, connect(2) of TCP and UDP sockets, of IPv4 and IPv6; kernel 4.17, link 5.7; network namespace's
//!   cookie 5.7.
//! - Reads `FRONTENDS`, `SERVICES`, `SLOTS`, `BACKENDS`, `MEMBERS`, and what [`crate::trigger`] reads.
//! - Writes `AFFINITIES`, `SOCKETS`, `TRIGGERS`, `HOLD_RATES`, `HOLD_COUNTS`.
//! - Verdicts: the call goes on, to a backend if it was to a VIP; or it fails with ECONNREFUSED.

use aya_ebpf::{helpers::bpf_get_prandom_u32, macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::{
    call::call,
    socket::{Family, PROCEED, Socket},
    trigger,
};

/// See the module.
#[cgroup_sock_addr(connect4)]
pub(crate) fn connect4(ctx: SockAddrContext) -> i32 {
    connect(Socket::new(&ctx, Family::V4))
}

/// See the module.
#[cgroup_sock_addr(connect6)]
pub(crate) fn connect6(ctx: SockAddrContext) -> i32 {
    connect(Socket::new(&ctx, Family::V6))
}

#[inline(always)]
fn connect(socket: Socket) -> i32 {
    // SAFETY: no arguments.
    let verdict = call(socket, |_, _| unsafe { bpf_get_prandom_u32() });
    if verdict == PROCEED {
        trigger::ask(socket);
    }
    verdict
}
