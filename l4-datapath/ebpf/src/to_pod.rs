//! `to_pod`: everything that reaches a workload through the host's stack, from this node or from beyond.
//!
//! - Hook: tc egress of the host-side veth of each endpoint; tcx (kernel 6.6) or clsact. Oldest kernel 5.12, as
//!   `from_pod`.
//! - Reads `NODE`, `ENDPOINTS`, `ASSIGNMENTS`, `IPCACHE`, `RULES`, `TRANSLATIONS`, `AUTH`, `MARKS`, `LEASES`.
//! - Writes `CONNECTIONS4`, `CONNECTIONS6`, `USAGE`, `FRAGMENTS`, `DROPS`, `EVENTS`, `LOST`, and what [`crate::hold`]
//!   writes.
//! - Verdicts: OK into the workload, REDIRECT with an answer of ours back to the stack, to the hold device or to the L7 proxy, SHOT.
//!   Besides, a copy to the workload where a connection ends with its proof ([`answer::onward`]).
//!
//! What one workload of this node sends another never comes here (`redirect_peer` skips this hook): whoever arrives
//! here with a local endpoint's address has forged it, whatever mark he wears, unless it is the L7 proxy
//! ([`crate::proxied`]).
//!
//! ARP and neighbour discovery of the host end here, counted as multicast. The host's neighbour entries for workloads
//! are permanent; and could it ask, the answer would not pass `from_pod`.

use abi::{Direction, DropReason, Endpoint, EventKind, MARK_RELEASED, ReservedIdentity};
use aya_ebpf::{
    bindings::{TC_ACT_OK, TC_ACT_SHOT},
    macros::classifier,
    programs::TcContext,
};

use crate::{
    address,
    answer::{self, Sender},
    established,
    flow::{self, Flow},
    fragment,
    header::{Ethernet, ethertype},
    hold,
    identity::{self, Moment},
    judge::judge,
    neighbour,
    parse::{self, Packet},
    plain::Detour,
    proxied::Part,
    redirect,
    refusal::Refusal,
    service,
    skb::Skb,
    space::Space,
};

/// See the module.
#[classifier]
pub(crate) fn to_pod(ctx: TcContext) -> i32 {
    let skb = Skb::new(&ctx);
    let mark = skb.mark();
    skb.set_mark(0);
    let detour = match established::to_pod(skb) {
        Ok(verdict) => return verdict,
        Err(detour) => detour,
    };
    let (mut packet, mut flow) = (Space::new(), Space::new());
    let packet = Packet::start(&mut packet, skb.len());
    let flow = Flow::start(&mut flow, skb.ifindex(), Direction::Ingress);
    flow.is_unknown = detour == Detour::Unknown;
    let refusal = match admit(skb, packet, flow) {
        Ok(verdict) => return verdict,
        Err(refusal) => refusal.number(),
    };
    match hold::wait(skb, packet, flow, refusal, Direction::Ingress, mark == MARK_RELEASED) {
        Ok(verdict) => verdict,
        Err(reason) => {
            flow::dropped(packet, flow, reason);
            if answer::is_final(reason) {
                answer::onward(skb, packet, flow);
            }
            let by_proxy = flow.proxy & Part::SENT != 0;
            answer::refuse(skb, packet, flow, reason, if by_proxy { Sender::Proxy } else { Sender::Stack })
        }
    }
}

#[inline(always)]
fn admit(skb: Skb, packet: &mut Packet, flow: &mut Flow) -> Result<i32, Refusal> {
    let now = Moment::current()?;
    let mut space = Space::<Ethernet>::new();
    let link = skb.read(0, &mut space).ok_or(DropReason::InvalidPacket)?;
    packet.ethertype = link.ethertype;
    if skb.vlan_present() != 0 {
        return Err(DropReason::UnsupportedL3.into());
    }
    if link.ethertype == ethertype::ARP {
        return Ok(quietly(packet, flow));
    }
    parse::network(skb, packet)?;
    if neighbour::is_noise(skb, packet) {
        return Ok(quietly(packet, flow));
    }
    address::check(packet)?;
    flow.destination.set_local(receiver(skb, packet)?, now.generation)?;
    sender(skb, packet, flow, &now)?;
    parse::transport(skb, packet)?;
    fragment::recall(packet, &now)?;
    judge(skb, packet, flow, &now)?;
    fragment::remember(packet, &now);
    if now.trace {
        flow::report(packet, flow, EventKind::Trace, 0);
    }
    if flow.proxy & Part::TAKEN != 0 {
        return Ok(redirect::inward(skb));
    }
    service::translate(skb, packet, flow)?;
    Ok(TC_ACT_OK)
}

#[inline(always)]
fn quietly(packet: &Packet, flow: &Flow) -> i32 {
    flow::count(packet, flow, DropReason::Multicast as u8);
    TC_ACT_SHOT
}

/// The endpoint behind this hook, if it is the one the packet is for.
#[inline(always)]
fn receiver(skb: Skb, packet: &Packet) -> Result<&'static Endpoint, DropReason> {
    match identity::endpoint(&packet.destination) {
        Some(endpoint) if endpoint.ifindex == skb.ifindex() => Ok(endpoint),
        _ => Err(DropReason::NoEndpoint),
    }
}

/// Whoever sent the packet: not an endpoint, but for the L7 proxy in its name, or a free address of this node, and this
/// node only if it did.
#[inline(always)]
fn sender(skb: Skb, packet: &Packet, flow: &mut Flow, now: &Moment) -> Result<(), Refusal> {
    flow.proxy = redirect::sender(skb);
    if let Some(endpoint) = identity::endpoint(&packet.source) {
        if !redirect::suspect(flow) {
            return Err(DropReason::InvalidSourceIp.into());
        }
        return flow.source.set_local(endpoint, now.generation);
    }
    flow.source.set_remote(&packet.source, now.generation);
    // Another node's workloads are heard by a device only: plain CAP_NET_RAW here is enough to write their addresses.
    if !skb.is_received() && flow.source.is_elsewhere() && !redirect::suspect(flow) {
        return Err(DropReason::InvalidSourceIp.into());
    }
    match flow.source.identity {
        // The judgement says so, unless it belongs to a connection that was allowed when more was known.
        _ if flow.source.is_pending() => Ok(()),
        ReservedIdentity::UNMANAGED => Err(DropReason::InvalidSourceIp.into()),
        ReservedIdentity::HOST if skb.is_received() => Err(DropReason::InvalidSourceIp.into()),
        _ => Ok(()),
    }
}
