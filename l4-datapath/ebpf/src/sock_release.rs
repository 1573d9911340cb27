//! `sock_release`: what a socket called is forgotten with it.
//!
//! - Hook: cgroup, the last close(2) of an IPv4 or IPv6 socket; kernel 5.9.
//! - Writes `SOCKETS`.
//! - Verdict: always on.
//!
//! Only the peer that the socket is connected to is known here. Entries of unconnected datagram sockets, and of
//! connections the kernel gave up before they were closed, are left to the map, which evicts the oldest.

use core::{arch::asm, mem::offset_of, ptr::read_volatile};

use abi::{Address, SocketKey};
use aya_ebpf::{
    bindings::bpf_sock, helpers::bpf_get_socket_cookie, macros::cgroup_sock, programs::SockContext,
};

use crate::{
    maps::SOCKETS,
    socket::{self, PROCEED},
};

/// `AF_INET` of `linux/socket.h`.
const INTERNET: u32 = 2;
/// `AF_INET6`.
const INTERNET6: u32 = 10;

/// See the module.
#[cgroup_sock(sock_release)]
pub(crate) fn sock_release(ctx: SockContext) -> i32 {
    forget(ctx.sock);
    PROCEED
}

#[inline(always)]
fn forget(sock: *mut bpf_sock) -> Option<()> {
    // SAFETY: the kernel hands us a valid context; these fields are readable here. One access for each, see `socket`.
    let (kind, number, port) = unsafe {
        (
            read_volatile(&raw const (*sock).type_),
            read_volatile(&raw const (*sock).protocol),
            read_volatile(&raw const (*sock).dst_port),
        )
    };
    if port == 0 {
        return None;
    }
    let key = SocketKey {
        // SAFETY: a valid context.
        cookie: unsafe { bpf_get_socket_cookie(sock.cast()) },
        address: peer(sock)?,
        port: port.to_ne_bytes(),
        protocol: socket::protocol(kind, number)?,
        zero: [0; 5],
    };
    // Looked for before it is deleted: most sockets called no VIP, and deleting takes a lock.
    SOCKETS.get_ptr(&key)?;
    SOCKETS.remove(&key).ok()
}

#[inline(always)]
fn peer(sock: *mut bpf_sock) -> Option<Address> {
    // SAFETY: as above.
    let words = unsafe {
        match read_volatile(&raw const (*sock).family) {
            INTERNET => socket::mapped(address4(sock)),
            INTERNET6 => socket::words((&raw const (*sock).dst_ip6).cast()),
            _ => return None,
        }
    };
    Some(socket::from_words(words))
}

/// `dst_ip4`. LLVM would make one load of this and the last word of `dst_ip6`, from an address it computes; the verifier
/// wants to see each field's offset.
#[inline(always)]
fn address4(sock: *mut bpf_sock) -> u32 {
    let value: u64;
    // SAFETY: as above.
    unsafe {
        asm!("{value} = *(u32 *)({sock} + {offset})", value = out(reg) value, sock = in(reg) sock,
            offset = const offset_of!(bpf_sock, dst_ip4));
    }
    value as u32
}
