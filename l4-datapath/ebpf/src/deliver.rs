//! The last step to a workload of this node: what a router does, then straight into its namespace.

use core::mem::offset_of;

use abi::{DropReason, Endpoint};
use aya_ebpf::{
    bindings::{TC_ACT_REDIRECT, bpf_check_mtu_flags::BPF_MTU_CHK_SEGS},
    helpers::{bpf_check_mtu, bpf_redirect_peer},
};

use crate::{
    flow::Flow,
    header::{ETHERNET, Ethernet, Ipv4, Ipv6},
    parse::Packet,
    skb::Skb,
    space::Space,
};

/// Whether a router could send the packet on to a local endpoint. Asked before the judgement, as Linux asks before its
/// firewalls: a packet that goes nowhere must leave no connection behind.
#[inline(always)]
pub(crate) fn check(
    skb: Skb,
    packet: &Packet,
    flow: &mut Flow,
    endpoint: &Endpoint,
) -> Result<(), DropReason> {
    if packet.ttl <= 1 {
        return Err(DropReason::TtlExceeded);
    }
    check_size(skb, flow, endpoint.ifindex)
}

/// Delivers to a local endpoint and returns the verdict. Nothing after this looks at the packet: `redirect_peer` skips
/// the `to_pod` hook.
#[inline(never)]
pub(crate) fn to_endpoint(skb: Skb, packet: &Packet, endpoint: &Endpoint) -> Result<i32, DropReason> {
    age(skb, packet).ok_or(DropReason::InvalidPacket)?;
    let macs = [endpoint.mac, endpoint.gateway_mac];
    const { assert!(offset_of!(Ethernet, source) == 6) };
    skb.store_link(0, &macs).ok_or(DropReason::InvalidPacket)?;
    Ok(redirect(endpoint.ifindex))
}

/// Into the namespace at the other end of the veth.
#[inline(always)]
pub(crate) fn redirect(ifindex: u32) -> i32 {
    // SAFETY: no pointers. It fails only for unknown flags.
    unsafe { bpf_redirect_peer(ifindex, 0) };
    TC_ACT_REDIRECT as i32
}

/// The device's MTU, each segment for itself.
#[inline(always)]
fn check_size(skb: Skb, flow: &mut Flow, ifindex: u32) -> Result<(), DropReason> {
    let mut mtu = 0;
    // SAFETY: a valid context and a live local for the result.
    let result =
        unsafe { bpf_check_mtu(skb.as_ptr().cast(), ifindex, &raw mut mtu, 0, u64::from(BPF_MTU_CHK_SEGS)) };
    if result == 0 {
        return Ok(());
    }
    if result < 0 {
        // The device is gone.
        return Err(DropReason::NoEndpoint);
    }
    flow.mtu = mtu;
    Err(DropReason::TooBig)
}

/// The checksum of an IPv4 header whose TTL has become one less, by RFC 1624; both in machine order.
#[inline(always)]
pub(crate) fn aged(checksum: u16) -> u16 {
    let sum = u32::from(checksum) + 0x0100;
    (sum as u16).wrapping_add(u16::from(sum >= 0xffff))
}

/// TTL or hop limit, one less, and the IPv4 checksum with it.
#[inline(always)]
fn age(skb: Skb, packet: &Packet) -> Option<()> {
    let ttl = packet.ttl - 1;
    if !packet.is_v4() {
        return skb.store_network(ETHERNET + offset_of!(Ipv6, hop_limit) as u32, &ttl);
    }
    let mut space = Space::<[u8; 2]>::new();
    let checksum = skb.read(ETHERNET + offset_of!(Ipv4, checksum) as u32, &mut space)?;
    let [high, low] = aged(u16::from_be_bytes(*checksum)).to_be_bytes();
    skb.store_network(ETHERNET + offset_of!(Ipv4, ttl) as u32, &[ttl, packet.protocol, high, low])
}
