//! `to_netdev`: everything that leaves the node.
//!
//! - Hook: tc egress of each device that leads out of the node; tcx (kernel 6.6) or clsact. Socket look-ups make 5.10 the
//!   oldest kernel that could load it, `from_pod` is younger.
//! - Reads `NODE`, `ENDPOINTS`, `ASSIGNMENTS`, `IPCACHE`, `DEVICES`, `UNMASQUERADED`, `BOUND`, `CONNECTIONS4`,
//!   `CONNECTIONS6`.
//! - Writes `TRANSLATIONS`, `FRAGMENTS`, `DROPS`, `EVENTS`, `LOST`.
//! - Verdicts: UNSPEC, on to the next program on the device; SHOT.
//!
//! Policy is not asked: what a workload sends has passed `from_pod`, and only what its own veth handed to the stack may
//! bear its address here. Whoever else wears one has forged it: plain CAP_NET_RAW on the node is enough for that.
//! What is the node's own passes untouched, whatever it is.

use abi::{Direction, DropReason};
use aya_ebpf::{bindings::TC_ACT_UNSPEC, macros::classifier, programs::TcContext};

use crate::{
    identity::{self, Moment},
    masquerade, netdev,
    parse::{self, Packet},
    refusal::Refusal,
    skb::Skb,
    space::Space,
};

/// See the module.
#[classifier]
pub(crate) fn to_netdev(ctx: TcContext) -> i32 {
    let skb = Skb::new(&ctx);
    let mut packet = Space::new();
    let packet = Packet::start(&mut packet, skb.len());
    // Before the node is configured no workload's packet passes its veth.
    let Ok(now) = Moment::current() else { return TC_ACT_UNSPEC };
    match admit(skb, packet, &now) {
        Ok(()) => TC_ACT_UNSPEC,
        Err(refusal) => netdev::stop(skb, packet, &now, Direction::Egress, refusal),
    }
}

#[inline(always)]
fn admit(skb: Skb, packet: &mut Packet, now: &Moment) -> Result<(), Refusal> {
    if !netdev::is_ip(skb, packet) {
        return Ok(());
    }
    let parsed = parse::network(skb, packet);
    let Some(endpoint) = identity::endpoint(&packet.source) else {
        return netdev::stranger(packet, now).map(|_| ());
    };
    if skb.ingress_ifindex() != endpoint.ifindex {
        return Err(DropReason::InvalidSourceIp.into());
    }
    parsed?;
    masquerade::leaving(skb, packet, now)
}
