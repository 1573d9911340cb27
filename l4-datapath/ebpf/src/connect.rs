//! `connect4`, `connect6`: a socket calls a VIP and is connected to a backend; of packets none is ever translated.
//!
//! - Hook: cgroup, connect(2) of TCP and UDP sockets, of IPv4 and IPv6; kernel 4.17, link 5.7; network namespace's
//!   cookie 5.7.
//! - Reads `FRONTENDS`, `SERVICES`, `SLOTS`, `BACKENDS`, `MEMBERS`, and what [`crate::trigger`] reads.
//! - Writes `AFFINITIES`, `SOCKETS`, `TRIGGERS`, `HOLD_RATES`, `HOLD_COUNTS`.
//! - Verdicts: the call goes on, to a backend if it was to a VIP; or it fails with ECONNREFUSED.
//!
//! The L7 proxy calls in workloads' names, and between the node and itself no packet meets a hook that could judge that: so
//! it calls the node itself by none of its addresses.

use aya_ebpf::{helpers::bpf_get_prandom_u32, macros::cgroup_sock_addr, programs::SockAddrContext};

use abi::{Address, ReservedIdentity};

use crate::{
    address::words,
    call::call,
    identity::{self, Moment},
    redirect,
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
    if redirect::is_calling() && connect_is_home(&socket.address()) == 1 {
        return socket.refuse();
    }
    // SAFETY: no arguments.
    let verdict = call(socket, |_, _| unsafe { bpf_get_prandom_u32() });
    if verdict == PROCEED {
        trigger::ask(socket);
    }
    verdict
}

/// 1 if the address is one of the node itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn connect_is_home(address: *const Address) -> u32 {
    // SAFETY: the caller passes a reference; the test for null is for the verifier.
    let Some(address) = (unsafe { address.as_ref() }) else { return 1 };
    let (high, low) = words(address);
    let is_loopback = high == 0
        && match low >> 32 {
            // 0.0.0.0/8 is called as loopback is.
            0xffff => matches!(low as u32 >> 24, 0 | 127),
            // `::` and `::1`.
            0 => low <= 1,
            _ => false,
        };
    let generation = Moment::current().map_or(0, |now| now.generation);
    (is_loopback || identity::remote(address, generation).identity() == ReservedIdentity::HOST).into()
}
