//! `to_netdev`: everything that leaves the node.
//!
//! - Hook: tc egress of each device that leads out of the node; tcx (kernel 6.6) or clsact. Socket look-ups make 5.10 the
//!   oldest kernel that could load it, `from_pod` is younger.
//! - Reads `NODE`, `ENDPOINTS`, `ASSIGNMENTS`, `IPCACHE`, `DEVICES`, `UNMASQUERADED`, `BOUND`, `RULES`, `AUTH`, `MARKS`,
//!   `LEASES`.
//! - Writes `CONNECTIONS4`, `CONNECTIONS6`, `USAGE`, `TRANSLATIONS`, `FRAGMENTS`, `DROPS`, `EVENTS`, `LOST`.
//! - Verdicts: UNSPEC, on to the next program on the device; SHOT; REDIRECT with an answer of ours back to the L7 proxy.
//!
//! Policy is not asked: what a workload sends has passed `from_pod`, and only what its own veth handed to the stack may
//! bear its address here. Whoever else wears one has forged it: plain CAP_NET_RAW on the node is enough for that. But the
//! L7 proxy sends in workloads' names, and what it sends is judged here ([`proxied`]); what is refused is reset.
//! What is the node's own, and not the proxy's, passes untouched, whatever it is.

use abi::{Direction, DropReason, Endpoint};
use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_UNSPEC},
    macros::classifier,
    programs::TcContext,
};

use crate::{
    answer,
    flow::Flow,
    header::protocol,
    identity::{self, Moment},
    masquerade, netdev,
    parse::{self, Packet},
    proxied::{self, Part},
    redirect,
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
        Err(refusal) => {
            let reason = refusal.number();
            let verdict = netdev::stop(skb, packet, &now, Direction::Egress, refusal);
            // What time may cure it tries again by itself; of all else it hears at once.
            let may_pass_yet = reason == DropReason::AuthenticationRequired as u8
                || reason == DropReason::PendingAddress as u8;
            if may_pass_yet || redirect::sender(skb) & Part::SENT == 0 {
                return verdict;
            }
            answer::refuse_proxy(skb, packet, reason)
        }
    }
}

#[inline(always)]
fn admit(skb: Skb, packet: &mut Packet, now: &Moment) -> Result<(), Refusal> {
    if !netdev::is_ip(skb, packet) {
        return Ok(());
    }
    let parsed = parse::network(skb, packet);
    let Some(endpoint) = identity::endpoint(&packet.source) else {
        // The proxy, which has no other sockets, calls out of the node in the names of its workloads alone.
        if packet.protocol == protocol::TCP && redirect::sender(skb) & Part::SENT != 0 {
            return Err(DropReason::ProxyForged.into());
        }
        return netdev::stranger(packet, now).map(|_| ());
    };
    if skb.ingress_ifindex() != endpoint.ifindex {
        parsed?;
        Refusal::check(netdev_proxied(skb.as_ptr(), packet, endpoint, now))?;
        return masquerade::leaving(skb, packet, now);
    }
    parsed?;
    masquerade::leaving(skb, packet, now)
}

/// Judges what has a workload's address and does not come from its veth.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn netdev_proxied(
    skb: *mut __sk_buff,
    packet: *mut Packet,
    endpoint: *const Endpoint,
    now: *const Moment,
) -> u32 {
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(packet), Some(endpoint), Some(now)) =
        (unsafe { (packet.as_mut(), endpoint.as_ref(), now.as_ref()) })
    else {
        return Refusal::ABSURD;
    };
    Refusal::encode(judge(Skb::from(skb), packet, endpoint, now))
}

#[inline(always)]
fn judge(skb: Skb, packet: &mut Packet, endpoint: &Endpoint, now: &Moment) -> Result<(), Refusal> {
    let mut flow = Space::new();
    let flow = Flow::start(&mut flow, endpoint.ifindex, Direction::Egress);
    flow.proxy = redirect::sender(skb);
    if !redirect::suspect(flow) {
        return Err(DropReason::InvalidSourceIp.into());
    }
    flow.source.set_local(endpoint, now.generation)?;
    parse::transport(skb, packet)?;
    proxied::judge(skb, packet, flow, now)
}
