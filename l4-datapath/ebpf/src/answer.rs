//! Replies we make ourselves, in the packet that caused them: RST, unreachable, prohibited, time exceeded, too big.
//!
//! Never an answer to an RST, to an ICMP error, or to what was sent to a group of the link (RFC 1122 section 3.2.2).
//! The source is the address that was called: no router here has one of its own, and it is the one source both sides'
//! checks accept. A packet whose checksum its sender left to the device keeps that note; an RST is right with it and
//! without, ICMP goes back to the sender, who is on this machine and believes it.
//!
//! Where the proof that a TCP connection depended on has ended, or policy has come to ask for the L7 proxy, both ends are told, each with the number that it takes an RST
//! by (RFC 5961): the receiver with the packet's own, by [`onward`], the sender with the one that the packet acknowledges.

use core::mem::offset_of;

use abi::{Address, DropReason, MARK_ANSWER, MARK_INWARD};
use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INGRESS, BPF_F_PSEUDO_HDR, TC_ACT_REDIRECT, TC_ACT_SHOT},
    helpers::{bpf_clone_redirect, bpf_redirect},
};

use crate::{
    checksum, deliver,
    flow::Flow,
    header::{ETHERNET, Ethernet, Icmp, Ipv4, Ipv6, Tcp, icmp4, icmp6, protocol, tcp},
    maps::ASSIGNMENTS,
    parse::Packet,
    redirect,
    skb::Skb,
    space::{Space, copy},
    translation,
};

const HOP_LIMIT: u8 = 64;
const DONT_FRAGMENT: [u8; 2] = [0x40, 0];
/// `ICMP_PORT_UNREACH` and `ICMP_FRAG_NEEDED`, codes of *unreachable*.
const PORT4: u8 = 3;
const FRAG_NEEDED: u8 = 4;
/// `ICMP_PKT_FILTERED`: communication administratively prohibited.
const PROHIBITED4: u8 = 13;
/// `ICMPV6_PORT_UNREACH`.
const PORT6: u8 = 4;
/// `ICMPV6_ADM_PROHIBITED`.
const PROHIBITED6: u8 = 1;

/// Where the sender is.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(crate) enum Sender {
    /// Behind the veth whose hook this is.
    Workload,
    /// Beyond the host's stack.
    Stack,
    /// The L7 proxy, who is told of any refusal that time does not cure.
    Proxy,
}

/// Whether both ends are to be told that their connection is over.
#[inline(always)]
pub(crate) fn is_final(reason: u8) -> bool {
    reason == DropReason::AuthenticationEnded as u8 || reason == DropReason::NotProxied as u8
}

/// Answers a packet that was dropped for `reason`, if that is to be answered; returns the verdict.
#[inline(always)]
pub(crate) fn refuse(skb: Skb, packet: &Packet, flow: &Flow, reason: u8, sender: Sender) -> i32 {
    answer_refuse(skb.as_ptr(), packet, reason.into(), flow.mtu, sender as u32)
}

/// The same for the L7 proxy, who is told of whatever is not let out.
#[inline(always)]
pub(crate) fn refuse_proxy(skb: Skb, packet: &Packet, reason: u8) -> i32 {
    answer_refuse(skb.as_ptr(), packet, reason.into(), 0, Sender::Proxy as u32)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn answer_refuse(
    skb: *mut __sk_buff,
    packet: *const Packet,
    reason: u32,
    mtu: u32,
    sender: u32,
) -> i32 {
    // SAFETY: the caller passes a reference; the test for null is for the verifier.
    let Some(packet) = (unsafe { packet.as_ref() }) else { return TC_ACT_SHOT };
    let skb = Skb::from(skb);
    let answered = if sender == Sender::Proxy as u32 {
        // Its SYN comes again, and by then who judges it may have its rules.
        if reason == DropReason::NoProxy as u32 { None } else { reset(skb, packet) }
    } else {
        answer(skb, packet, reason as u8, mtu)
    };
    match answered {
        None => TC_ACT_SHOT,
        Some(()) if sender == Sender::Workload as u32 => {
            skb.address_to_receiver();
            deliver::redirect(skb.ifindex())
        }
        Some(()) if sender == Sender::Proxy as u32 => redirect::inward(skb),
        Some(()) => {
            skb.set_mark(MARK_ANSWER);
            // SAFETY: no pointers.
            unsafe { bpf_redirect(skb.ifindex(), u64::from(BPF_F_INGRESS)) };
            TC_ACT_REDIRECT as i32
        }
    }
}

#[inline(always)]
fn answer(skb: Skb, packet: &Packet, reason: u8, mtu: u32) -> Option<()> {
    const NO_CONNECTION: u8 = DropReason::NoConnection as u8;
    const TTL_EXCEEDED: u8 = DropReason::TtlExceeded as u8;
    const TOO_BIG: u8 = DropReason::TooBig as u8;
    const NO_BACKEND: u8 = DropReason::NoBackend as u8;
    const ENDED: u8 = DropReason::AuthenticationEnded as u8;
    const REFUSED: u8 = DropReason::AuthenticationRefused as u8;
    const NO_PRINCIPAL: u8 = DropReason::NoPrincipal as u8;
    const NOT_PROXIED: u8 = DropReason::NotProxied as u8;
    const NO_PROXY: u8 = DropReason::NoProxy as u8;
    const PROXY_PORTS: u8 = DropReason::ProxyPorts as u8;
    const PROXY_TO_HOST: u8 = DropReason::ProxyToHost as u8;
    // Whoever reads an answer wants the ports of what it is about (RFC 1122 section 3.2.2).
    if packet.is_later() {
        return None;
    }
    let (kind, code, rest) = match (reason, packet.is_v4()) {
        (
            NO_CONNECTION | NO_BACKEND | ENDED | REFUSED | NO_PRINCIPAL | NOT_PROXIED | PROXY_PORTS
            | PROXY_TO_HOST,
            _,
        ) if packet.protocol == protocol::TCP => {
            return reset(skb, packet);
        }
        // Who has not begun yet tries again, and the proxy may be back by then.
        (NO_PROXY, _) if packet.tcp_flags & tcp::SYN == 0 => return reset(skb, packet),
        (ENDED | REFUSED | NO_PRINCIPAL, _) if is_error(packet) => return None,
        (ENDED | REFUSED | NO_PRINCIPAL, true) => (icmp4::UNREACHABLE, PROHIBITED4, [0; 4]),
        (ENDED | REFUSED | NO_PRINCIPAL, false) => (icmp6::UNREACHABLE, PROHIBITED6, [0; 4]),
        (NO_BACKEND, _) if packet.protocol != protocol::UDP => return None,
        (NO_BACKEND, true) => (icmp4::UNREACHABLE, PORT4, [0; 4]),
        (NO_BACKEND, false) => (icmp6::UNREACHABLE, PORT6, [0; 4]),
        (TTL_EXCEEDED | TOO_BIG, _) if is_error(packet) => return None,
        (TTL_EXCEEDED, true) => (icmp4::TIME_EXCEEDED, 0, [0; 4]),
        (TTL_EXCEEDED, false) => (icmp6::TIME_EXCEEDED, 0, [0; 4]),
        (TOO_BIG, true) => {
            let [high, low] = u16::try_from(mtu).unwrap_or(u16::MAX).to_be_bytes();
            (icmp4::UNREACHABLE, FRAG_NEEDED, [0, 0, high, low])
        }
        (TOO_BIG, false) => (icmp6::TOO_BIG, 0, mtu.to_be_bytes()),
        _ => return None,
    };
    if packet.is_v4() { error4(skb, packet, kind, code, rest) } else { error6(skb, packet, kind, code, rest) }
}

/// RFC 9293 section 3.10.7.1. Every flag combination that is legal and not a first packet carries ACK, but RST alone,
/// so the acknowledged number is the one the sender will accept. The sender of a SYN wants that acknowledged; what it
/// may carry besides is not counted, which Linux accepts.
#[inline(always)]
fn reset(skb: Skb, packet: &Packet) -> Option<()> {
    if packet.tcp_flags & tcp::RST != 0 || packet.tcp_flags & (tcp::SYN | tcp::ACK) == 0 {
        return None;
    }
    let opens = packet.tcp_flags & tcp::ACK == 0;
    let mut space = Space::<Tcp>::new();
    let heard = skb.read(packet.transport(), &mut space)?;
    let heard_syn = u32::from_be_bytes(heard.sequence).wrapping_add(1).to_be_bytes();
    let rst = Tcp {
        source: packet.destination_port.to_be_bytes(),
        destination: packet.source_port.to_be_bytes(),
        sequence: if opens { [0; 4] } else { heard.acknowledgement },
        acknowledgement: if opens { heard_syn } else { [0; 4] },
        flags: if opens { tcp::RST | tcp::ACK } else { tcp::RST },
        ..RESET
    };
    turn_round(skb)?;
    segment(skb, packet, (&packet.destination, &packet.source), &rst)
}

/// All of an RST that does not depend on what it answers.
const RESET: Tcp = Tcp {
    source: [0; 2],
    destination: [0; 2],
    sequence: [0; 4],
    acknowledgement: [0; 4],
    offset: (size_of::<Tcp>() as u8 / 4) << 4,
    flags: tcp::RST | tcp::ACK,
    window: [0; 2],
    checksum: [0; 2],
    urgent: [0; 2],
};

/// Makes the packet one that holds this segment alone. Its checksum becomes right whether the packet's own was there, was
/// made by a device, or was left to one: first the pseudo-header's, which is all that is there in the last case.
#[inline(always)]
fn segment(skb: Skb, packet: &Packet, (source, destination): (&Address, &Address), tcp: &Tcp) -> Option<()> {
    const LENGTH: u16 = size_of::<Tcp>() as u16;
    const CHECKSUM: u32 = offset_of!(Tcp, checksum) as u32;
    let at = ETHERNET + packet.network_length();
    skb.resize(at + u32::from(LENGTH))?;
    store_header(skb, packet, (source, destination), protocol::TCP, LENGTH)?;
    skb.store_network(at, &[0_u8; LENGTH as usize])?;
    let pseudo = checksum::pseudo(source, destination, LENGTH, protocol::TCP);
    skb.adjust_transport_checksum(at + CHECKSUM, pseudo, BPF_F_PSEUDO_HDR)?;
    // What follows the checksum is zero. `store_balanced`, for the next step balances it.
    const { assert!(offset_of!(Tcp, urgent) == offset_of!(Tcp, checksum) + 2) };
    let mut space = Space::<[u8; CHECKSUM as usize]>::new();
    // SAFETY: the first bytes of a header are bytes.
    let before = unsafe {
        space.as_mut_ptr().write((&raw const *tcp).cast::<[u8; CHECKSUM as usize]>().read());
        &*space.as_mut_ptr()
    };
    skb.store_balanced(at, before)?;
    skb.adjust_transport_checksum(at + CHECKSUM, checksum::add(0, before), 0)
}

/// Sends the receiver of a packet whose connection has ended an RST; the packet is left with its link header and what its
/// RST to the sender is made of. Where nothing can be sent, the receiver finds out by the next packet of its own.
///
/// To a workload of this node by the ingress of its veth, to all others by the stack: see [`MARK_INWARD`] and
/// [`MARK_ANSWER`].
#[inline(always)]
pub(crate) fn onward(skb: Skb, packet: &Packet, flow: &Flow) {
    // Behind extension headers there is no room to cut: the sender alone is told, and the receiver by its next packet.
    let is_plain = packet.transport() == ETHERNET + packet.network_length();
    if packet.protocol == protocol::TCP && !packet.is_later() && is_plain {
        answer_onward(skb.as_ptr(), packet, flow);
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn answer_onward(skb: *mut __sk_buff, packet: *const Packet, flow: *const Flow) -> u32 {
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(packet), Some(flow)) = (unsafe { (packet.as_ref(), flow.as_ref()) }) else { return 0 };
    // The receiver of an answer knows its sender as the VIP that it called.
    let mut told = Space::<Packet>::new();
    // SAFETY: whole words, as `Packet` is aligned to them.
    let told = unsafe {
        copy(&raw const *packet, told.as_mut_ptr());
        &mut *told.as_mut_ptr()
    };
    if translation::face(told, flow) {
        answer_send_onward(skb, told, flow);
    }
    0
}

/// Apart from the above for the stack's sake.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn answer_send_onward(skb: *mut __sk_buff, packet: *const Packet, flow: *const Flow) -> u32 {
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(packet), Some(flow)) = (unsafe { (packet.as_ref(), flow.as_ref()) }) else { return 0 };
    send_onward(Skb::from(skb), packet, flow).is_some().into()
}

#[inline(always)]
fn send_onward(skb: Skb, packet: &Packet, flow: &Flow) -> Option<()> {
    let mut space = Space::<[[u8; 6]; 2]>::new();
    let macs = skb.read(0, &mut space)?;
    let mut space = Space::<Tcp>::new();
    let heard = skb.read(packet.transport(), &mut space)?;
    let rst = Tcp {
        source: packet.source_port.to_be_bytes(),
        destination: packet.destination_port.to_be_bytes(),
        sequence: heard.sequence,
        acknowledgement: heard.acknowledgement,
        // An RST may acknowledge nothing, and neither does the one made of it.
        flags: tcp::RST | (packet.tcp_flags & tcp::ACK),
        ..RESET
    };
    segment(skb, packet, (&packet.source, &packet.destination), &rst)?;
    let (ifindex, mark) = if flow.destination.is_local() {
        let assignments = ASSIGNMENTS.get(u32::from(flow.destination.id))?;
        skb.store_link(0, &[assignments.endpoint.mac, assignments.endpoint.gateway_mac])?;
        (flow.destination.ifindex, MARK_INWARD)
    } else {
        (skb.ifindex(), MARK_ANSWER)
    };
    skb.set_mark(mark);
    // SAFETY: a valid context; no packet pointers are held anywhere.
    unsafe { bpf_clone_redirect(skb.as_ptr(), ifindex, u64::from(BPF_F_INGRESS)) };
    skb.set_mark(0);
    skb.store_link(0, macs)
}

/// ICMP with the IP header and eight bytes of what it is about (RFC 792).
#[derive(Clone, Copy)]
#[repr(C)]
struct Error4 {
    icmp: Icmp,
    /// IP header and eight bytes.
    about: [u8; 28],
}

#[inline(always)]
fn error4(skb: Skb, packet: &Packet, kind: u8, code: u8, rest: [u8; 4]) -> Option<()> {
    let mut space = Space::<Error4>::new();
    let error = skb.read(ETHERNET - size_of::<Icmp>() as u32, &mut space)?;
    error.icmp = Icmp { kind, code, checksum: [0; 2], rest };
    error.icmp.checksum = checksum::finish(checksum::add(0, error));
    send_back(skb, packet, protocol::ICMP, error)
}

/// ICMPv6 with the start of what it is about. RFC 4443 would have as much as fits; ports are all that a receiver uses.
#[derive(Clone, Copy)]
#[repr(C)]
struct Error6<const ABOUT: usize> {
    icmp: Icmp,
    about: [u8; ABOUT],
}

/// IPv6 header and eight bytes; where there are extension headers, the first eight of them too: with a fragment header
/// or a router alert that reaches the ports.
#[inline(always)]
fn error6(skb: Skb, packet: &Packet, kind: u8, code: u8, rest: [u8; 4]) -> Option<()> {
    let icmp = Icmp { kind, code, checksum: [0; 2], rest };
    if packet.transport() == ETHERNET + packet.network_length() {
        error6_quoting::<48>(skb, packet, icmp)
    } else {
        error6_quoting::<56>(skb, packet, icmp)
    }
}

#[inline(always)]
fn error6_quoting<const ABOUT: usize>(skb: Skb, packet: &Packet, icmp: Icmp) -> Option<()> {
    let mut space = Space::<Error6<ABOUT>>::new();
    let error = skb.read(ETHERNET - size_of::<Icmp>() as u32, &mut space)?;
    error.icmp = icmp;
    let length = size_of::<Error6<ABOUT>>() as u16;
    let pseudo = checksum::pseudo(&packet.destination, &packet.source, length, protocol::ICMPV6);
    error.icmp.checksum = checksum::finish(checksum::add(pseudo, error));
    send_back(skb, packet, protocol::ICMPV6, error)
}

/// RFC 1122 section 3.2.2, RFC 4443 section 2.4: an error is never sent about an error.
#[inline(always)]
fn is_error(packet: &Packet) -> bool {
    match packet.protocol {
        protocol::ICMP => !matches!(packet.icmp_type(), icmp4::ECHO_REQUEST | icmp4::ECHO_REPLY),
        protocol::ICMPV6 => packet.icmp_type() < icmp6::ECHO_REQUEST,
        _ => false,
    }
}

/// Makes the packet one from its destination to its source, holding `body`.
#[inline(always)]
fn send_back<T: Copy>(skb: Skb, packet: &Packet, protocol: u8, body: &T) -> Option<()> {
    turn_round(skb)?;
    let transport = ETHERNET + packet.network_length();
    skb.resize(transport + size_of::<T>() as u32)?;
    let ends = (&packet.destination, &packet.source);
    store_header(skb, packet, ends, protocol, size_of::<T>() as u16)?;
    skb.store_network(transport, body)
}

/// Swaps the MACs, unless what came was sent to a group of the link.
#[inline(always)]
fn turn_round(skb: Skb) -> Option<()> {
    let mut space = Space::<Ethernet>::new();
    let link = skb.read(0, &mut space)?;
    if link.destination[0] & 1 != 0 {
        return None;
    }
    skb.store_link(0, &[link.source, link.destination])
}

/// Writes the IP header of a packet with so many bytes behind it.
#[inline(always)]
fn store_header(
    skb: Skb,
    packet: &Packet,
    (source, destination): (&Address, &Address),
    protocol: u8,
    length: u16,
) -> Option<()> {
    if packet.is_v4() {
        let length = length + size_of::<Ipv4>() as u16;
        skb.store_network(ETHERNET, &ipv4(source.last4(), destination.last4(), protocol, length))
    } else {
        skb.store_network(ETHERNET, &ipv6(source.0, destination.0, protocol, length))
    }
}

#[inline(always)]
fn ipv4(source: [u8; 4], destination: [u8; 4], protocol: u8, length: u16) -> Ipv4 {
    let mut ip = Ipv4 {
        version_ihl: 0x45,
        tos: 0,
        total_length: length.to_be_bytes(),
        id: [0; 2],
        fragment: DONT_FRAGMENT,
        ttl: HOP_LIMIT,
        protocol,
        checksum: [0; 2],
        source,
        destination,
    };
    ip.checksum = checksum::finish(checksum::add(0, &ip));
    ip
}

#[inline(always)]
fn ipv6(source: [u8; 16], destination: [u8; 16], next_header: u8, length: u16) -> Ipv6 {
    Ipv6 {
        version_class_flow: [0x60, 0, 0, 0],
        payload_length: length.to_be_bytes(),
        next_header,
        hop_limit: HOP_LIMIT,
        source,
        destination,
    }
}
