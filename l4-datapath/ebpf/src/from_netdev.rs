//! `from_netdev`: everything that comes to the node from beyond.
//!
//! - Hook: tc ingress of each device that leads out of the node; tcx (kernel 6.6) or clsact.
//! - Reads `NODE`, `ENDPOINTS`, `IPCACHE`, `TRANSLATIONS`.
//! - Writes `FRAGMENTS`, `DROPS`, `EVENTS`, `LOST`.
//! - Verdicts: UNSPEC, on to the next program on the device and then to the stack, which routes to the workload: `to_pod`
//!   judges; SHOT.
//!
//! The L7 proxy has sockets with workloads' addresses. The stack must not find them before it forwards a packet, for then it
//! drops it (`ip_forward`): the agent switches `net.ipv4.tcp_early_demux` off.
//!
//! A packet that is not for a workload's masquerade is the node's own affair and stays untouched; but workloads of other
//! nodes may not call the ports of [`guard`].

use abi::{Direction, DropReason};
use aya_ebpf::{bindings::TC_ACT_UNSPEC, macros::classifier, programs::TcContext};

use crate::{
    guard,
    identity::{self, Moment},
    masquerade, netdev,
    parse::{self, Packet},
    refusal::Refusal,
    skb::Skb,
    space::Space,
};

/// See the module.
#[classifier]
pub(crate) fn from_netdev(ctx: TcContext) -> i32 {
    let skb = Skb::new(&ctx);
    let mut packet = Space::new();
    let packet = Packet::start(&mut packet, skb.len());
    // Before the node is configured there is nobody to give it to.
    let Ok(now) = Moment::current() else { return TC_ACT_UNSPEC };
    match admit(skb, packet, &now) {
        Ok(()) => TC_ACT_UNSPEC,
        Err(refusal) => netdev::stop(skb, packet, &now, Direction::Ingress, refusal),
    }
}

#[inline(always)]
fn admit(skb: Skb, packet: &mut Packet, now: &Moment) -> Result<(), Refusal> {
    if !netdev::is_ip(skb, packet) {
        return Ok(());
    }
    let parsed = parse::network(skb, packet);
    if identity::endpoint(&packet.source).is_some() {
        return Err(DropReason::InvalidSourceIp.into());
    }
    let sender = netdev::stranger(packet, now)?;
    guard::arriving(skb, packet, now, sender, parsed.is_ok())?;
    match parsed {
        Ok(()) => masquerade::arriving(skb, packet, now),
        Err(_) => Ok(()),
    }
}
