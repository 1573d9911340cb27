//! `sendmsg4`, `sendmsg6`: a datagram to a VIP goes to a backend.
//!
//! - Hook: cgroup, sendto(2) and its kin on UDP sockets when the call names a destination; kernel 4.18, link 5.7. On an
//!   IPv6 socket a v4-mapped destination comes to `sendmsg4`.
//! - Reads `FRONTENDS`, `SERVICES`, `SLOTS`, `BACKENDS`, `MEMBERS`, and what [`crate::trigger`] reads.
//! - Writes `AFFINITIES`, `SOCKETS`, `TRIGGERS`, `HOLD_RATES`, `HOLD_COUNTS`.
//! - Verdicts: the datagram is sent, to a backend if it was to a VIP; or the call fails with ECONNREFUSED.
//!
//! All datagrams of one socket to one VIP go to one backend for as long as the slots are the same: a conversation
//! without connect(2) is one all the same.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::{
    balance::Words,
    call::{Call, call},
    socket::{Family, PROCEED, Socket},
    trigger,
};

/// See the module.
#[cgroup_sock_addr(sendmsg4)]
pub(crate) fn sendmsg4(ctx: SockAddrContext) -> i32 {
    send(Socket::new(&ctx, Family::V4))
}

/// See the module.
#[cgroup_sock_addr(sendmsg6)]
pub(crate) fn sendmsg6(ctx: SockAddrContext) -> i32 {
    send(Socket::new(&ctx, Family::V6))
}

#[inline(always)]
fn send(socket: Socket) -> i32 {
    let verdict = call(socket, together);
    if verdict == PROCEED {
        trigger::ask(socket);
    }
    verdict
}

/// A hash of socket and frontend; the steps are splitmix64's, by Steele, Lea and Flood.
#[inline(always)]
fn together(call: &Call, cookie: u64) -> u32 {
    let Words(high, low, rest) = call.words();
    let hash = mix(cookie ^ mix(high ^ mix(low ^ u64::from(rest))));
    (hash >> 32) as u32
}

#[inline(always)]
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}
