//! The context of the cgroup programs that see an address: the fields we use.

use core::ptr::{read_volatile, write_volatile};

use abi::Address;
use aya_ebpf::{
    Global,
    bindings::bpf_sock_addr,
    helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval},
    programs::SockAddrContext,
};

use crate::header;

/// `SOCK_STREAM` and `SOCK_DGRAM` of `linux/net.h`.
const STREAM: u32 = 1;
const DATAGRAM: u32 = 2;
/// `ECONNREFUSED` of `asm-generic/errno.h`.
const CONNECTION_REFUSED: i32 = 111;

/// What a program of these hooks returns: the call goes on.
pub(crate) const PROCEED: i32 = 1;
/// The call fails, with EPERM where nothing else is said.
const FAIL: i32 = 0;

/// Whether `bpf_set_retval` is there (see `probe.rs` of the loader, which says so); without it a refusal is EPERM.
#[unsafe(no_mangle)]
static CAN_SET_RESULT: Global<u32> = Global::new(1);

/// Which of the address fields a hook has. A v4-mapped address in an IPv6 hook is an IPv4 address everywhere behind.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

/// A socket and an address its owner uses with it, at one of the hooks of `bpf_sock_addr`.
///
/// Fields are touched by volatile accesses only, one at a time: LLVM would merge neighbouring ones into a wider access,
/// which the verifier refuses on a context.
#[derive(Clone, Copy)]
pub(crate) struct Socket {
    context: *mut bpf_sock_addr,
    family: Family,
}

impl Socket {
    #[inline(always)]
    pub(crate) fn new(ctx: &SockAddrContext, family: Family) -> Self {
        Self { context: ctx.sock_addr, family }
    }

    /// TCP or UDP; `None` for every other kind of socket.
    #[inline(always)]
    pub(crate) fn protocol(self) -> Option<u8> {
        // SAFETY: the kernel hands us a valid context; the fields are readable at these hooks.
        let (kind, number) = unsafe {
            (
                read_volatile(&raw const (*self.context).type_),
                read_volatile(&raw const (*self.context).protocol),
            )
        };
        protocol(kind, number)
    }

    /// The address.
    #[inline(always)]
    pub(crate) fn address(self) -> Address {
        // SAFETY: as above; each family's hook has its own field.
        from_words(unsafe {
            match self.family {
                Family::V4 => mapped(read_volatile(&raw const (*self.context).user_ip4)),
                Family::V6 => words((&raw const (*self.context).user_ip6).cast()),
            }
        })
    }

    /// The port, network order.
    #[inline(always)]
    pub(crate) fn port(self) -> [u8; 2] {
        // SAFETY: as above.
        (unsafe { read_volatile(&raw const (*self.context).user_port) } as u16).to_ne_bytes()
    }

    /// Puts another address and port in their place; `false`, and nothing is done, if this hook's family has no such
    /// address.
    #[inline(always)]
    pub(crate) fn set(self, address: &Address, port: [u8; 2]) -> bool {
        // SAFETY: sixteen plain bytes.
        let words = unsafe { core::mem::transmute::<[u8; 16], [u32; 4]>(address.0) };
        // SAFETY: as above; the fields are writable at these hooks.
        unsafe {
            match self.family {
                Family::V4 if words != mapped(words[3]) => return false,
                Family::V4 => write_volatile(&raw mut (*self.context).user_ip4, words[3]),
                Family::V6 => {
                    let field = &raw mut (*self.context).user_ip6;
                    for (word, value) in words.into_iter().enumerate() {
                        write_volatile(field.cast::<u32>().add(word), value);
                    }
                }
            }
            write_volatile(&raw mut (*self.context).user_port, u32::from(u16::from_ne_bytes(port)));
        }
        true
    }

    /// `SO_COOKIE`.
    #[inline(always)]
    pub(crate) fn cookie(self) -> u64 {
        // SAFETY: a valid context.
        unsafe { bpf_get_socket_cookie(self.context.cast()) }
    }

    /// `SO_NETNS_COOKIE`.
    #[inline(always)]
    pub(crate) fn namespace(self) -> u64 {
        // SAFETY: a valid context.
        unsafe { bpf_get_netns_cookie(self.context.cast()) }
    }

    /// The verdict that makes the call fail as if the peer had refused.
    #[inline(always)]
    pub(crate) fn refuse(self) -> i32 {
        if CAN_SET_RESULT.load() != 0 {
            // SAFETY: takes a number.
            unsafe { bpf_set_retval(-CONNECTION_REFUSED) };
        }
        FAIL
    }
}

/// IP protocol number of a socket of this type and protocol, if it is TCP or UDP.
#[inline(always)]
pub(crate) fn protocol(kind: u32, number: u32) -> Option<u8> {
    const TCP: u32 = header::protocol::TCP as u32;
    const UDP: u32 = header::protocol::UDP as u32;
    match (kind, number) {
        (STREAM, TCP) => Some(header::protocol::TCP),
        (DATAGRAM, UDP) => Some(header::protocol::UDP),
        _ => None,
    }
}

/// The words of an IPv4 address, written v4-mapped.
#[inline(always)]
pub(crate) fn mapped(address: u32) -> [u32; 4] {
    [0, 0, 0xffff_u32.to_be(), address]
}

/// The four words of an address in a context.
///
/// # Safety
/// A field of a valid context, readable at the hook.
#[inline(always)]
pub(crate) unsafe fn words(field: *const u32) -> [u32; 4] {
    // SAFETY: the caller says so.
    [0, 1, 2, 3].map(|word| unsafe { read_volatile(field.add(word)) })
}

/// Words in the order of the network, each as the machine loaded it.
#[inline(always)]
pub(crate) fn from_words(words: [u32; 4]) -> Address {
    // SAFETY: sixteen plain bytes either way.
    Address(unsafe { core::mem::transmute::<[u32; 4], [u8; 16]>(words) })
}
