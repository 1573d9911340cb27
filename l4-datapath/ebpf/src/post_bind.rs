//! `post_bind4`, `post_bind6`: a port that a process of the node has bound is not used for masquerading.
//!
//! - Hook: cgroup, bind(2) after the kernel has found the port free; kernel 4.17, network namespace's cookie 5.7.
//! - Reads `NODE`.
//! - Writes `BOUND`: an atomic or, kernel 5.12.
//! - Verdict: always on.

use core::{arch::asm, ptr::read_volatile};

use abi::Node;
use aya_ebpf::{helpers::bpf_get_netns_cookie, macros::cgroup_sock, programs::SockContext};

use crate::{
    maps::{BOUND, NODE},
    socket::PROCEED,
};

/// See the module.
#[cgroup_sock(post_bind4)]
pub(crate) fn post_bind4(ctx: SockContext) -> i32 {
    note(&ctx);
    PROCEED
}

/// See the module.
#[cgroup_sock(post_bind6)]
pub(crate) fn post_bind6(ctx: SockContext) -> i32 {
    note(&ctx);
    PROCEED
}

#[inline(always)]
fn note(ctx: &SockContext) -> Option<()> {
    let node: *const Node = NODE.get_ptr(0)?;
    // SAFETY: an array element lives as long as the map; the agent stores to it meanwhile, hence volatile.
    let (range, own) = unsafe {
        (read_volatile(&raw const (*node).masquerade), read_volatile(&raw const (*node).namespace))
    };
    // SAFETY: the kernel hands us a valid context; the port is readable here, in machine order.
    let port = unsafe { read_volatile(&raw const (*ctx.sock).src_port) };
    if port < range >> 16 || port > range & 0xffff {
        return None;
    }
    // SAFETY: a valid context.
    if unsafe { bpf_get_netns_cookie(ctx.sock.cast()) } != own {
        return None;
    }
    set(BOUND.get_ptr_mut(port / 64)?, 1 << (port % 64));
    Some(())
}

/// `core` has no atomic or for this target.
#[inline(always)]
fn set(word: *mut u64, bit: u64) {
    // SAFETY: `word` is an element of an array map: aligned, never freed while the program runs.
    unsafe { asm!("lock *(u64 *)({word} + 0) |= {bit}", word = in(reg) word, bit = in(reg) bit) }
}
