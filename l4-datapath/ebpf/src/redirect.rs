//! The way of packets to the L7 proxy, and how the proxy's own are told from all others.
//!
//! Every packet that the judgement has marked [`Part::TAKEN`] goes to a socket of the proxy, and none past it. A packet
//! can be given to a socket at an *ingress* hook only: [`take`] in `from_pod`; what comes to a workload by the stack meets
//! an egress hook, and [`inward`] sends it to the ingress of the same veth, where [`arrived`] gives it away. Its mark leads
//! it to this node by one routing rule, whatever its destination; it is set by the connection's entry, not by whether a
//! socket was found: what has none (TIME_WAIT) would go past the proxy else. Only programs can make a packet meet a veth's
//! ingress with a mark, see [`abi::MARK_ANSWER`].
//!
//! The proxy's packets are known by the cgroup of the socket that they come from ([`sender`]). A socket that is accepted
//! has the cgroup of the one that listens (`sk_clone_lock` copies `sk_cgrp_data`), and so has a SYN-ACK, whose socket is
//! not there yet (`skb_to_full_sk`); one that listens has that of whoever made it. So the listeners must be made by a
//! process in the proxy's cgroup; whoever else holds their descriptors changes nothing. Marks say nothing here: plain
//! CAP_NET_RAW is enough to set them.

use core::{ffi::c_void, ptr::read_volatile};

use abi::{Address, Direction, DropReason, MARK_TO_PROXY, Node};
use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INGRESS, TC_ACT_OK, TC_ACT_REDIRECT, TC_ACT_SHOT, bpf_sock, bpf_sock_tuple},
    helpers::{
        bpf_get_current_cgroup_id, bpf_map_lookup_elem, bpf_redirect, bpf_sk_assign, bpf_sk_release,
        bpf_skb_cgroup_id, bpf_skc_lookup_tcp,
    },
};

use crate::{
    address::words,
    flow::{self, Flow},
    header::{Ethernet, protocol, tcp},
    maps::{LISTENERS, NODE},
    parse::{self, Packet},
    proxied::Part,
    refusal::Refusal,
    skb::Skb,
    space::Space,
};

/// `BPF_F_CURRENT_NETNS`: that of the device.
const CURRENT: u64 = u64::MAX;
/// `TCP_TIME_WAIT` and `TCP_LISTEN` of `net/tcp_states.h`.
const TIME_WAIT: u32 = 6;
const LISTEN: u32 = 10;

/// Reads a field of the node's element.
macro_rules! node {
    ($field:ident) => {
        // SAFETY: an array element lives as long as the map; the agent stores to it meanwhile, hence volatile.
        NODE.get_ptr(0).map_or(0, |node: *const Node| unsafe { read_volatile(&raw const (*node).$field) })
    };
}

/// Whether a proxy listens.
#[inline(always)]
pub(crate) fn is_ready() -> bool {
    node!(listeners) != 0
}

/// Whether a proxy has ever listened: what it has opened then goes on, whether it listens now or not.
#[inline(always)]
pub(crate) fn is_known() -> bool {
    node!(proxy) != 0
}

/// Whether it is the proxy that makes the system call under way.
#[inline(always)]
pub(crate) fn is_calling() -> bool {
    let proxy = node!(proxy);
    // SAFETY: no arguments.
    proxy != 0 && unsafe { bpf_get_current_cgroup_id() } == proxy
}

/// What [`Flow::proxy`] says of a packet's sender, as far as the buffer knows it.
#[inline(always)]
pub(crate) fn sender(skb: Skb) -> u8 {
    if skb.is_received() {
        return 0;
    }
    let proxy = node!(proxy);
    // SAFETY: a valid context.
    if proxy != 0 && unsafe { bpf_skb_cgroup_id(skb.as_ptr()) } == proxy {
        Part::MADE_HERE | Part::SENT
    } else {
        Part::MADE_HERE
    }
}

/// Marks a packet whose source only the proxy may use here as one that has yet to show that it is the kernel's, answering
/// in the proxy's stead. `false`: there is no proxy.
#[inline(always)]
pub(crate) fn suspect(flow: &mut Flow) -> bool {
    if flow.proxy & Part::SENT != 0 {
        return true;
    }
    if flow.proxy & Part::MADE_HERE == 0 || node!(proxy) == 0 {
        return false;
    }
    flow.proxy |= Part::SUSPECT;
    true
}

/// Gives a packet to the proxy and returns the verdict; for an ingress hook.
#[inline(always)]
pub(crate) fn take(skb: Skb, packet: &Packet) -> Result<i32, Refusal> {
    Refusal::check(redirect_take(skb.as_ptr(), packet))?;
    Ok(TC_ACT_OK)
}

/// Sends a packet to where it can be given to the proxy and returns the verdict; for an egress hook.
#[inline(always)]
pub(crate) fn inward(skb: Skb) -> i32 {
    skb.set_mark(MARK_TO_PROXY);
    // SAFETY: no pointers.
    unsafe { bpf_redirect(skb.ifindex(), u64::from(BPF_F_INGRESS)) };
    TC_ACT_REDIRECT as i32
}

/// Gives a packet that [`inward`] has sent to the proxy and returns the verdict. Both places are fresh.
#[inline(always)]
pub(crate) fn arrived(skb: Skb, packet: &mut Packet, flow: &mut Flow) -> i32 {
    match received(skb, packet) {
        Ok(()) => TC_ACT_OK,
        Err(refusal) => {
            flow.direction = Direction::Ingress as u8;
            flow::dropped(packet, flow, refusal.number());
            TC_ACT_SHOT
        }
    }
}

#[inline(always)]
fn received(skb: Skb, packet: &mut Packet) -> Result<(), Refusal> {
    let mut space = Space::<Ethernet>::new();
    let link = skb.read(0, &mut space).ok_or(DropReason::InvalidPacket)?;
    packet.ethertype = link.ethertype;
    parse::network(skb, packet)?;
    parse::transport(skb, packet)?;
    // It has the workload's MAC.
    skb.address_to_receiver();
    Refusal::check(redirect_take(skb.as_ptr(), packet))
}

/// A `struct bpf_sock_tuple`, of either family.
trait Tuple {
    /// Leaves what only one that listens can match.
    fn forget_source(&mut self);
}

impl Tuple for Tuple4 {
    #[inline(always)]
    fn forget_source(&mut self) {
        let [_, _, c, d] = self.ports;
        self.ports = [0, 0, c, d];
    }
}

impl Tuple for Tuple6 {
    #[inline(always)]
    fn forget_source(&mut self) {
        let [_, _, c, d] = self.ports;
        self.ports = [0, 0, c, d];
    }
}

/// The IPv4 form.
#[repr(C)]
struct Tuple4 {
    source: [u8; 4],
    destination: [u8; 4],
    ports: [u8; 4],
}

/// The IPv6 form.
#[repr(C)]
struct Tuple6 {
    source: Address,
    destination: Address,
    ports: [u8; 4],
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn redirect_take(skb: *mut __sk_buff, packet: *const Packet) -> u32 {
    // SAFETY: the caller passes a reference; the test for null is for the verifier.
    let Some(packet) = (unsafe { packet.as_ref() }) else { return Refusal::ABSURD };
    let skb = Skb::from(skb);
    skb.set_mark(MARK_TO_PROXY);
    // An ICMP error: the stack finds the socket by what it quotes.
    if packet.protocol != protocol::TCP {
        return Refusal::encode(Ok::<(), DropReason>(()));
    }
    let ([a, b], [c, d]) = (packet.source_port.to_be_bytes(), packet.destination_port.to_be_bytes());
    let ports = [a, b, c, d];
    let given = if packet.is_v4() {
        let (source, destination) = (packet.source.last4(), packet.destination.last4());
        give(skb, packet, &mut Tuple4 { source, destination, ports })
    } else {
        give(skb, packet, &mut Tuple6 { source: packet.source, destination: packet.destination, ports })
    };
    if !given {
        skb.set_mark(0);
    }
    Refusal::encode(if given { Ok(()) } else { Err(DropReason::NoProxy) })
}

/// To the socket of the very connection, else to one that listens. What is left of a connection (TIME_WAIT) answers by
/// itself, once the stack has found it, a SYN on the same ports too: with an ACK, whose answer, an RST, takes it away, so
/// that the next try of the SYN finds one that listens, a second later. Given to one that listens at once, the SYN would be
/// dropped as long as that is left: since 6.10 no connection begins where its ports are in use (`inet_ehash_insert`).
///
/// But where somebody listens on the node itself, on that port and any address, what is left of a connection would hand him
/// the SYN (`TCP_TW_SYN` of `tcp_v4_rcv`): a call that nobody has judged. There it is dropped, until nothing is left.
#[inline(always)]
fn give<T: Tuple>(skb: Skb, packet: &Packet, tuple: &mut T) -> bool {
    let context: *mut c_void = skb.as_ptr().cast();
    let (at, size) = ((&raw mut *tuple).cast::<bpf_sock_tuple>(), size_of::<T>() as u32);
    // SAFETY: a valid context and a tuple of one of the two sizes the helper takes; each reference is given back once.
    unsafe {
        let socket = bpf_skc_lookup_tcp(context, at, size, CURRENT, 0);
        if !socket.is_null() {
            let state = read_volatile(&raw const (*socket).state);
            if state != LISTEN && state != TIME_WAIT {
                let failed = bpf_sk_assign(context, socket.cast(), 0);
                bpf_sk_release(socket.cast());
                return failed == 0;
            }
            bpf_sk_release(socket.cast());
            if state == TIME_WAIT {
                if packet.tcp_flags & tcp::SYN == 0 {
                    return true;
                }
                tuple.forget_source();
                let listening = bpf_skc_lookup_tcp(context, at, size, CURRENT, 0);
                if !listening.is_null() {
                    bpf_sk_release(listening.cast());
                }
                return listening.is_null();
            }
        }
        let Some(index) = listener(packet) else { return false };
        let map = (&raw const LISTENERS).cast_mut().cast::<c_void>();
        let socket: *mut bpf_sock = bpf_map_lookup_elem(map, (&raw const index).cast()).cast();
        if socket.is_null() {
            return false;
        }
        let failed = bpf_sk_assign(context, socket.cast(), 0);
        bpf_sk_release(socket.cast());
        failed == 0
    }
}

/// Index of the listener for a connection: always the same, for a SYN cookie is known to the one that gave it.
#[inline(always)]
fn listener(packet: &Packet) -> Option<u32> {
    let workers = node!(listeners);
    if workers == 0 {
        return None;
    }
    let ((a, b), (c, d)) = (words(&packet.source), words(&packet.destination));
    let ports = u64::from(packet.source_port) << 16 | u64::from(packet.destination_port);
    // Multiplicative hashing by the golden ratio: the upper half depends on every bit.
    let hash = (a ^ b ^ c.rotate_left(17) ^ d.rotate_left(31) ^ ports.rotate_left(47))
        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let worker = ((hash >> 32) as u32) % workers;
    Some(worker * 2 + u32::from(!packet.is_v4()))
}
