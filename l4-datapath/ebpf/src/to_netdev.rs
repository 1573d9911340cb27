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

use abi::{Direction, DropReason, ReservedIdentity};
use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    macros::classifier,
    programs::TcContext,
};

use crate::{
    flow::{self, Flow},
    header::{Ethernet, ethertype},
    identity::{self, Moment},
    masquerade,
    parse::{self, Packet},
    refusal::Refusal,
    skb::{Skb, Space},
};

/// See the module.
#[classifier]
pub(crate) fn to_netdev(ctx: TcContext) -> i32 {
    let skb = Skb::new(&ctx);
    let mut packet = Packet::new(skb.len());
    let mut flow = Flow::new(skb.ifindex(), Direction::Egress);
    // Before the node is configured no workload's packet passes its veth.
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
    let Some(endpoint) = identity::endpoint(&packet.source) else {
        flow.source.set_remote(&packet.source, now.generation);
        return match flow.source.identity {
            ReservedIdentity::UNMANAGED => Err(DropReason::InvalidSourceIp.into()),
            _ => Ok(()),
        };
    };
    flow.source.set_local(endpoint, now.generation)?;
    flow.ifindex = endpoint.ifindex;
    if skb.ingress_ifindex() != endpoint.ifindex {
        return Err(DropReason::InvalidSourceIp.into());
    }
    parsed?;
    masquerade::leaving(skb, packet, now)
}

/// Whether this is an IP packet of the device itself. One with a VLAN tag is of a device above or of a machine beside us,
/// whose addresses may be the same as ours.
#[inline(always)]
pub(crate) fn is_ip(skb: Skb, packet: &mut Packet) -> bool {
    let mut space = Space::<Ethernet>::new();
    let Some(link) = skb.read(0, &mut space) else { return false };
    packet.ethertype = link.ethertype;
    skb.vlan_present() == 0 && matches!(link.ethertype, ethertype::IPV4 | ethertype::IPV6)
}
