//! Sockets of the node's own processes.

use core::ffi::c_void;

use abi::{Address, PacketTuple};
use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_tuple},
    helpers::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp},
};

use crate::{address::is_mapped4, header::protocol, skb::Skb};

/// `BPF_F_CURRENT_NETNS`: that of the device.
const CURRENT: u64 = u64::MAX;

/// The IPv4 form of `struct bpf_sock_tuple`.
#[repr(C)]
struct Tuple4 {
    source: [u8; 4],
    destination: [u8; 4],
    source_port: [u8; 2],
    destination_port: [u8; 2],
}

/// The IPv6 form.
#[repr(C)]
struct Tuple6 {
    source: Address,
    destination: Address,
    source_port: [u8; 2],
    destination_port: [u8; 2],
}

/// Whether a packet with this tuple would find a socket of the node: of that very conversation, or one that listens.
#[inline(always)]
pub(crate) fn expects(skb: Skb, packet: &PacketTuple) -> bool {
    if is_mapped4(&packet.source) {
        let tuple = Tuple4 {
            source: packet.source.last4(),
            destination: packet.destination.last4(),
            source_port: packet.source_port,
            destination_port: packet.destination_port,
        };
        return look_up(skb, packet.protocol, &tuple);
    }
    let tuple = Tuple6 {
        source: packet.source,
        destination: packet.destination,
        source_port: packet.source_port,
        destination_port: packet.destination_port,
    };
    look_up(skb, packet.protocol, &tuple)
}

#[inline(always)]
fn look_up<T>(skb: Skb, protocol: u8, tuple: &T) -> bool {
    let context: *mut c_void = skb.as_ptr().cast();
    let (at, size) = ((&raw const *tuple).cast_mut().cast::<bpf_sock_tuple>(), size_of::<T>() as u32);
    // SAFETY: a valid context, and a tuple of one of the two sizes the helpers take; the reference is given back.
    unsafe {
        match protocol {
            protocol::TCP => release(bpf_skc_lookup_tcp(context, at, size, CURRENT, 0)),
            protocol::UDP => release(bpf_sk_lookup_udp(context, at, size, CURRENT, 0)),
            _ => false,
        }
    }
}

/// Whether there is one.
///
/// # Safety
/// `socket` is what a look-up returned.
#[inline(always)]
unsafe fn release(socket: *mut bpf_sock) -> bool {
    if socket.is_null() {
        return false;
    }
    // SAFETY: the reference is ours.
    unsafe { bpf_sk_release(socket.cast()) };
    true
}
