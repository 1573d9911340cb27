//! What the two hooks of a device that leads out of the node share.

use abi::{Direction, DropReason, ReservedIdentity};
use aya_ebpf::bindings::TC_ACT_SHOT;

use crate::{
    flow::{self, Flow},
    header::{Ethernet, ethertype},
    identity::{self, Moment, Stranger},
    parse::Packet,
    refusal::Refusal,
    skb::Skb,
    space::Space,
};

/// Whether this is an IP packet of the device itself. One with a VLAN tag is of a device above or of a machine beside us,
/// whose addresses may be the same as ours.
#[inline(always)]
pub(crate) fn is_ip(skb: Skb, packet: &mut Packet) -> bool {
    let mut space = Space::<Ethernet>::new();
    let Some(link) = skb.read(0, &mut space) else { return false };
    packet.ethertype = link.ethertype;
    skb.vlan_present() == 0 && matches!(link.ethertype, ethertype::IPV4 | ethertype::IPV6)
}

/// Who sent the packet, which is no endpoint here. Refuses an address of the pool that none has; one of another node's of
/// which nothing is known yet is for the receiver's hook to judge.
#[inline(always)]
pub(crate) fn stranger(packet: &Packet, now: &Moment) -> Result<Stranger, Refusal> {
    let stranger = identity::remote(&packet.source, now.generation);
    if stranger.identity() == ReservedIdentity::UNMANAGED && !stranger.is_pending() {
        return Err(DropReason::InvalidSourceIp.into());
    }
    Ok(stranger)
}

/// Counts and reports a drop, of what leaves at the cost of the workload that sent it, or seems to; returns the verdict.
///
/// Only here is it looked up who the ends are: what passes does not pay for it, in time or stack.
#[inline(always)]
pub(crate) fn stop(skb: Skb, packet: &Packet, now: &Moment, direction: Direction, refusal: Refusal) -> i32 {
    netdev_stop(skb.ifindex(), packet, now, direction as u32, refusal.number().into())
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn netdev_stop(
    ifindex: u32,
    packet: *const Packet,
    now: *const Moment,
    direction: u32,
    reason: u32,
) -> i32 {
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(packet), Some(now)) = (unsafe { (packet.as_ref(), now.as_ref()) }) else { return TC_ACT_SHOT };
    let is_egress = direction == Direction::Egress as u32;
    let mut flow = Space::new();
    let flow =
        Flow::start(&mut flow, ifindex, if is_egress { Direction::Egress } else { Direction::Ingress });
    // Until 6.2 what a global function was given cannot be a map's key.
    let source = packet.source;
    let known = identity::endpoint(&source)
        .filter(|endpoint| flow.source.set_local(endpoint, now.generation).is_ok());
    match known {
        Some(endpoint) if is_egress => flow.ifindex = endpoint.ifindex,
        Some(_) => {}
        None => flow.source.set_remote(&packet.source, now.generation),
    }
    flow.identify_destination(packet, now);
    flow::dropped(packet, flow, reason as u8);
    TC_ACT_SHOT
}
