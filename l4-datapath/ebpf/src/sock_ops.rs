//! `sock_ops`: the first SYN of a connection is sent again soon, if it may have found no room to wait for its proof.
//!
//! - Hook: cgroup, operations of TCP sockets; kernel 4.13, network namespace's cookie 5.15, and reading `TCP_SYNCNT` 6.0:
//!   without that nothing is changed.
//! - Reads `NODE`, `HOLD`, `HOLD_RATES`, `NAMESPACES`, and what policy reads.
//! - Writes `HOLD_COUNTS`.
//! - Verdict: none. Every connection but those keeps the kernel's timer of a second.
//!
//! The time between two SYNs doubles with each, and so many are sent: from so short a first one the kernel would give up
//! after a second. So more are allowed, by as many as make up for it.

use core::{
    mem::size_of_val,
    ptr::{read_volatile, write_volatile},
};

use abi::HoldCount;
use aya_ebpf::{
    Global,
    bindings::bpf_sock_ops,
    helpers::{bpf_get_netns_cookie, bpf_getsockopt, bpf_ktime_get_boot_ns, bpf_setsockopt},
    macros::sock_ops,
    programs::SockOpsContext,
};

use crate::{
    header::protocol,
    hold,
    policy::Question,
    socket::{from_words, mapped, words},
    trigger,
};

/// `BPF_SOCK_OPS_TIMEOUT_INIT` of `linux/bpf.h`.
const TIMEOUT_INIT: u32 = 1;
/// `TCP_SYN_SENT` of `net/tcp_states.h`.
const SYN_SENT: u32 = 2;
/// `AF_INET` of `linux/socket.h`.
const INTERNET: u32 = 2;
/// `IPPROTO_TCP`, `TCP_SYNCNT` of `linux/tcp.h`, and the most that takes.
const TCP: i32 = 6;
const SYN_COUNT: i32 = 7;
const MOST: i32 = 127;

/// The timer in the kernel's ticks, 8 to 10 milliseconds; 0: leave all as it is. Set by the loader.
#[unsafe(no_mangle)]
static SYN_TIMEOUT: Global<u32> = Global::new(0);

/// See the module.
#[sock_ops]
pub(crate) fn sock_ops(ctx: SockOpsContext) -> u32 {
    hasten(ctx.ops);
    1
}

#[inline(always)]
fn hasten(ops: *mut bpf_sock_ops) -> Option<()> {
    // SAFETY: the kernel hands us a valid context. One access for each field, see `socket`.
    if unsafe { read_volatile(&raw const (*ops).op) } != TIMEOUT_INIT || hold::device() == 0 {
        return None;
    }
    // SAFETY: as above. Who is called has no socket yet, and who has sent its SYN again is asked once more when that is
    // answered.
    let is_calling = unsafe {
        read_volatile(&raw const (*ops).is_fullsock) != 0
            && read_volatile(&raw const (*ops).state) == SYN_SENT
            && read_volatile(&raw const (*ops).total_retrans) == 0
    };
    if !is_calling || SYN_TIMEOUT.load() == 0 {
        return None;
    }
    // SAFETY: a valid context; no arguments.
    let (namespace, now) = unsafe { (bpf_get_netns_cookie(ops.cast()), bpf_ktime_get_boot_ns()) };
    if !hold::overflows(trigger::endpoint(namespace)?, now) {
        return None;
    }
    // SAFETY: as above.
    let (family, address4, address6, port) = unsafe {
        (
            read_volatile(&raw const (*ops).family),
            // Both, whatever the family: LLVM would load the one or the other through a pointer that it chooses, which the
            // verifier refuses on a context.
            read_volatile(&raw const (*ops).remote_ip4),
            words((&raw const (*ops).remote_ip6).cast()),
            // The kernel's order, in the last two of four bytes.
            u32::from_be(read_volatile(&raw const (*ops).remote_port)) as u16,
        )
    };
    let address = from_words(if family == INTERNET { mapped(address4) } else { address6 });
    let call = Question { port, protocol: protocol::TCP };
    if trigger::wants(&address, call, namespace) == trigger::NOTHING {
        return None;
    }
    be_patient(ops)?;
    // SAFETY: the answer to this operation, a field that may be written.
    unsafe { write_volatile(&raw mut (*ops).__bindgen_anon_1.reply, SYN_TIMEOUT.load()) };
    trigger::count(HoldCount::HASTENED);
    Some(())
}

/// Allows as many more SYNs as make the connection wait no less in all: a second is 2⁷ times 8 ms. Since 6.5 the first
/// ones double nothing (`tcp_syn_linear_timeouts`); where few are sent that weighs so much that it takes one more.
#[inline(always)]
fn be_patient(ops: *mut bpf_sock_ops) -> Option<()> {
    let mut count = 0_i32;
    let (place, size) = ((&raw mut count).cast(), size_of_val(&count) as i32);
    // SAFETY: a valid context; the kernel writes as many bytes as the place has.
    if unsafe { bpf_getsockopt(ops.cast(), TCP, SYN_COUNT, place, size) } != 0 {
        return None;
    }
    count = (count + if count < 6 { 8 } else { 7 }).min(MOST);
    // SAFETY: a valid context; the kernel reads as many bytes as the place has.
    (unsafe { bpf_setsockopt(ops.cast(), TCP, SYN_COUNT, place, size) } == 0).then_some(())
}
