//! `from_pod`: everything a workload sends.
//!
//! - Hook: tc ingress of the host-side veth of each endpoint; tcx (kernel 6.6) or clsact. `redirect_peer` and
//!   `check_mtu` make 5.12 the oldest kernel that loads it.
//! - Reads `NODE`, `LISTENERS`, `ENDPOINTS`, `ASSIGNMENTS`, `IPCACHE`, `RULES`, `AUTH`, `MARKS`, `LEASES`, and what [`crate::balance`]
//!   reads.
//! - Writes `CONNECTIONS4`, `CONNECTIONS6`, `TRANSLATIONS`, `AFFINITIES`, `USAGE`, `FRAGMENTS`, `DROPS`, `EVENTS`,
//!   `LOST`, and what [`crate::hold`] writes.
//! - The kernel makes a header that is shared our own before the program starts, because [`crate::frame`] writes in place;
//!   without memory for that it drops the packet itself, uncounted by us.
//! - Verdicts: REDIRECT into a workload of this node (or back, with an answer of ours) or to the hold device, OK to the
//!   host's stack for all others and, with a mark, to the L7 proxy, SHOT. Besides, a copy to the receiver where a connection ends with its proof
//!   ([`answer::onward`]).

use abi::{
    Direction, DropReason, Endpoint, EventKind, MARK_ANSWER, MARK_INWARD, MARK_RELEASED, MARK_TO_PROXY,
};
use aya_ebpf::{
    bindings::{TC_ACT_OK, TC_ACT_SHOT},
    macros::classifier,
    programs::TcContext,
};

use crate::{
    address,
    answer::{self, Sender},
    deliver, established,
    flow::{self, Flow},
    fragment,
    header::{Link, ethertype},
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
    translation::{self, Role},
};

/// See the module.
#[classifier]
pub(crate) fn from_pod(ctx: TcContext) -> i32 {
    let skb = Skb::new(&ctx);
    let mark = skb.mark();
    // Ours, on its way to the stack, or to the workload: a workload's marks are gone once its packets leave its namespace.
    // The first is known by its mark again where it leaves the node.
    if mark == MARK_ANSWER {
        return TC_ACT_OK;
    }
    skb.set_mark(0);
    if mark == MARK_INWARD {
        skb.address_to_receiver();
        return deliver::redirect(skb.ifindex());
    }
    let for_proxy = mark == MARK_TO_PROXY;
    let detour = match if for_proxy { Err(Detour::Unusual) } else { established::from_pod(skb) } {
        Ok(verdict) => return verdict,
        Err(detour) => detour,
    };
    let (mut packet, mut flow) = (Space::new(), Space::new());
    let packet = Packet::start(&mut packet, skb.len());
    let flow = Flow::start(&mut flow, skb.ifindex(), Direction::Egress);
    if for_proxy {
        return redirect::arrived(skb, packet, flow);
    }
    flow.is_unknown = detour == Detour::Unknown;
    let refusal = match admit(skb, packet, flow) {
        Ok(verdict) => return verdict,
        Err(refusal) => refusal.number(),
    };
    match hold::wait(skb, packet, flow, refusal, Direction::Egress, mark == MARK_RELEASED) {
        Ok(verdict) => verdict,
        Err(reason) => {
            flow::dropped(packet, flow, reason);
            if answer::is_final(reason) {
                answer::onward(skb, packet, flow);
            }
            // An answer of ours comes from whom the workload called.
            flow.restore(packet);
            answer::refuse(skb, packet, flow, reason, Sender::Workload)
        }
    }
}

#[inline(always)]
fn admit(skb: Skb, packet: &mut Packet, flow: &mut Flow) -> Result<i32, Refusal> {
    let now = Moment::current()?;
    let mut space = Space::<Link>::new();
    let link = skb.read(Link::OFFSET, &mut space).ok_or(DropReason::InvalidPacket)?;
    packet.ethertype = link.ethertype;
    if skb.vlan_present() != 0 {
        return Err(DropReason::UnsupportedL3.into());
    }
    if link.ethertype == ethertype::ARP {
        return Ok(neighbour::arp(skb, link)?);
    }
    parse::network(skb, packet)?;
    if let Some(outcome) = neighbour::discovery(skb, packet, link) {
        return Ok(outcome?);
    }
    if neighbour::is_noise(skb, packet) {
        flow::count(packet, flow, DropReason::Multicast as u8);
        return Ok(TC_ACT_SHOT);
    }
    address::check(packet)?;
    flow.source.set_local(sender(skb, packet, link)?, now.generation)?;
    parse::transport(skb, packet)?;
    fragment::recall(packet, &now)?;
    let mut receiver = identity::endpoint(&packet.destination);
    if receiver.is_none() {
        call(skb, packet, flow, &now)?;
        receiver = identity::endpoint(&packet.destination);
    }
    if let Some(endpoint) = receiver {
        flow.destination.set_local(endpoint, now.generation)?;
        deliver::check(skb, packet, flow, endpoint)?;
    }
    judge(skb, packet, flow, &now)?;
    if matches!(flow.role, Role::FIRST_CALL | Role::CALL_AGAIN) {
        translation::enter(packet, flow)?;
    }
    service::remember(packet, flow, &now);
    if now.trace {
        flow.identify_destination(packet, &now);
        flow::report(packet, flow, EventKind::Trace, 0);
    }
    service::translate(skb, packet, flow)?;
    if flow.proxy & Part::TAKEN != 0 {
        return redirect::take(skb, packet);
    }
    match receiver {
        Some(endpoint) => Ok(deliver::to_endpoint(skb, packet, endpoint)?),
        None => Ok(TC_ACT_OK),
    }
}

/// Makes a packet to a VIP one to a backend, as far as the judgement is concerned.
#[inline(always)]
fn call(skb: Skb, packet: &mut Packet, flow: &mut Flow, now: &Moment) -> Result<(), Refusal> {
    let called = service::call(skb, packet, flow, now);
    if called.is_err() {
        flow.identify_destination(packet, now);
    }
    called
}

/// The endpoint behind this hook, if the packet's addresses are its own.
#[inline(always)]
fn sender(skb: Skb, packet: &Packet, link: &Link) -> Result<&'static Endpoint, DropReason> {
    let endpoint = identity::endpoint(&packet.source).ok_or(DropReason::InvalidSourceIp)?;
    if endpoint.ifindex != skb.ifindex() {
        return Err(DropReason::InvalidSourceIp);
    }
    if endpoint.mac != link.source {
        return Err(DropReason::InvalidSourceMac);
    }
    Ok(endpoint)
}
