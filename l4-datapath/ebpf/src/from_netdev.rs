//! `from_netdev`: everything that comes to the node from beyond.
//!
//! - Hook: tc ingress of each device that leads out of the node; tcx (kernel 6.6) or clsact.
//! - Reads `NODE`, `ENDPOINTS`, `IPCACHE`, `TRANSLATIONS`.
//! - Writes `FRAGMENTS`, `DROPS`, `EVENTS`, `LOST`.
//! - Verdicts: UNSPEC, on to the next program on the device and then to the stack, which routes to the workload: `to_pod`
//!   judges; SHOT.
//!
//! A packet that is not for a workload's masquerade is the node's own affair and stays untouched.

use abi::{Direction, DropReason, ReservedIdentity};
use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    macros::classifier,
    programs::TcContext,
};

use crate::{
    flow::{self, Flow},
    identity::{self, Moment},
    masquerade,
    parse::{self, Packet},
    refusal::Refusal,
    skb::Skb,
    to_netdev::is_ip,
};

/// See the module.
#[classifier]
pub(crate) fn from_netdev(ctx: TcContext) -> i32 {
    let skb = Skb::new(&ctx);
    let mut packet = Packet::new(skb.len());
    let mut flow = Flow::new(skb.ifindex(), Direction::Ingress);
    // Before the node is configured there is nobody to give it to.
    let Ok(now) = Moment::current() else { return TC_ACT_UNSPEC };
    match admit(skb, &mut packet, &mut flow, &now) {
        Ok(()) => TC_ACT_UNSPEC,
        Err(refusal) => {
            flow.identify_destination(&packet, &now);
            flow::dropped(&packet, &flow, refusal.number());
            TC_ACT_SHOT
        }
    }
}

#[inline(always)]
fn admit(skb: Skb, packet: &mut Packet, flow: &mut Flow, now: &Moment) -> Result<(), Refusal> {
    if !is_ip(skb, packet) {
        return Ok(());
    }
    let parsed = parse::network(skb, packet);
    flow.source.set_remote(&packet.source, now.generation);
    if flow.source.identity == ReservedIdentity::UNMANAGED || identity::endpoint(&packet.source).is_some() {
        return Err(DropReason::InvalidSourceIp.into());
    }
    match parsed {
        Ok(()) => masquerade::arriving(skb, packet, now),
        Err(_) => Ok(()),
    }
}
