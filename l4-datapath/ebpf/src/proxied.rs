//! The judgement of what the L7 proxy sends and gets: connections whose packets go to it, and its own in the openers' names.
//!
//! A connection that policy lets pass by way of the proxy is one of [`Leg::Pod`] between its opener and the proxy, which
//! answers by the address that was called. What the proxy then opens, by the opener's address and a port of its own, to
//! the end that was called, is one of [`Leg::Proxy`], judged as any other: policy of both ends, proofs, quotas. It may have
//! the very ports of a connection of the opener's own, hence the legs.
//!
//! The proxy begins nothing unasked: each SYN of its own names the port of the opener for whom it calls, and passes only
//! while that opener has an open, proxied connection from that port to the very end that is called ([`is_asked_for`]). So
//! whoever takes the proxy over can say to servers what HTTP rules deny, in the names of those who are just calling them
//! by way of it, and no more. The port is named by the socket's priority (SO_PRIORITY), taken out of the packet here, before
//! a queue sees it. It is a hint, not a claim: the connection table decides. Rejected: to call from the opener's own port,
//! which needs no hint. Binding to it fails where the node itself listens on that port with any address, below 1024, and
//! while an earlier call of the same ports still ends at the server; then another way would be needed, which is this one.
//!
//! Who may send what: on the first leg the opener, and the proxy answers; on the second the proxy, and the end that was
//! called answers. What the kernel sends for the proxy without a socket (an RST, an ACK after the end, a SYN-ACK with a
//! cookie) passes without payload, and only as part of what is open: whoever may forge it here could end a connection,
//! but say nothing in it.
//!
//! [`Leg::Pod`]: abi::Leg::Pod
//! [`Leg::Proxy`]: abi::Leg::Proxy

use abi::{DropReason, ReservedIdentity};
use aya_ebpf::bindings::__sk_buff;

use crate::{
    conntrack::{self, Entry, Tuple},
    flow::Flow,
    header::{protocol, tcp},
    identity::Moment,
    judge::{self, follow},
    parse::Packet,
    policy::Verdict,
    redirect,
    refusal::Refusal,
    skb::Skb,
    space::Space,
};

/// What the proxy has to do with a packet: bits of [`Flow::proxy`].
pub(crate) struct Part;
impl Part {
    /// No device has received the packet.
    pub(crate) const MADE_HERE: u8 = 1;
    /// A socket of the proxy's has sent it.
    pub(crate) const SENT: u8 = 2;
    /// It has a source that only the proxy may use here, but no socket of the proxy's has sent it.
    pub(crate) const SUSPECT: u8 = 4;
    /// It passes, and goes to the proxy.
    pub(crate) const TAKEN: u8 = 8;
    /// It is part of a connection of the second leg.
    pub(crate) const SECOND: u8 = 16;
}

/// Whether [`judge`] has to judge the packet.
#[inline(always)]
pub(crate) fn is_proxys(flow: &Flow) -> bool {
    flow.proxy & (Part::SENT | Part::SUSPECT) != 0
}

/// Whether a packet that is not the proxy's can be part of a connection that is proxied. Takes the opener's packets.
#[inline(never)]
pub(crate) fn joins(packet: &Packet, flow: &mut Flow, entry: Entry, reply: bool) -> bool {
    if flow.proxy & (Part::SENT | Part::SUSPECT | Part::SECOND) != 0 {
        return true;
    }
    if reply {
        return is_kernels(packet, flow);
    }
    flow.proxy |= Part::TAKEN;
    // What the proxy answers this node passes no hook.
    if flow.source.identity == ReservedIdentity::HOST && packet.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::ACK
    {
        entry.set_replied();
    }
    true
}

/// What a kernel may have sent by itself: made here, empty, and neither a beginning nor an end in good order.
#[inline(always)]
fn is_kernels(packet: &Packet, flow: &Flow) -> bool {
    let state = packet.tcp_flags & (tcp::FIN | tcp::SYN | tcp::RST | tcp::ACK);
    flow.proxy & Part::MADE_HERE != 0
        && packet.protocol == protocol::TCP
        && !packet.has_payload
        && !packet.is_later()
        && state & tcp::FIN == 0
        && state != tcp::SYN
}

/// Judges what the proxy has sent, or may have.
#[inline(always)]
pub(crate) fn judge(skb: Skb, packet: &Packet, flow: &mut Flow, now: &Moment) -> Result<(), Refusal> {
    // One after the other, for the stack's sake.
    Refusal::check(proxied_asked(skb.as_ptr(), packet, flow, now))?;
    Refusal::check(proxied_judge(packet, flow, now))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn proxied_asked(
    skb: *mut __sk_buff,
    packet: *const Packet,
    flow: *const Flow,
    now: *const Moment,
) -> u32 {
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(packet), Some(flow), Some(now)) = (unsafe { (packet.as_ref(), flow.as_ref(), now.as_ref()) })
    else {
        return Refusal::ABSURD;
    };
    let skb = Skb::from(skb);
    let port = skb.priority() as u16;
    skb.set_priority(0);
    let passes = !judge::is_first(packet.tcp_flags) || is_asked_for(packet, flow, now, port);
    Refusal::encode(if passes { Ok(()) } else { Err(DropReason::ProxyForged) })
}

/// Whether the end in whose name a packet calls has an open connection by way of the proxy, from `port`, to the end and port
/// that it calls.
#[inline(always)]
fn is_asked_for(packet: &Packet, flow: &Flow, now: &Moment, port: u16) -> bool {
    let (source, destination) = packet.addresses();
    let ports = (port, packet.destination_port);
    let tuple = Tuple::of_words(source, destination, ports, packet.protocol, packet.is_v4());
    alive(packet, flow, now, &tuple)
        .is_some_and(|(entry, reply)| entry.is_proxied() && !reply && !entry.is_closing())
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn proxied_judge(packet: *const Packet, flow: *mut Flow, now: *const Moment) -> u32 {
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(packet), Some(flow), Some(now)) = (unsafe { (packet.as_ref(), flow.as_mut(), now.as_ref()) })
    else {
        return Refusal::ABSURD;
    };
    Refusal::encode(sent(packet, flow, now))
}

#[inline(always)]
fn sent(packet: &Packet, flow: &mut Flow, now: &Moment) -> Result<(), DropReason> {
    let is_suspect = flow.proxy & Part::SUSPECT != 0;
    if packet.protocol != protocol::TCP || packet.is_later() || (is_suspect && !is_kernels(packet, flow)) {
        return Err(DropReason::ProxyForged);
    }
    if !judge::is_legal(packet.tcp_flags) {
        return Err(DropReason::InvalidTcpFlags);
    }
    let mut tuple = Tuple::of(packet);
    if let Some((entry, reply)) = alive(packet, flow, now, &tuple) {
        if entry.is_proxied() && reply {
            return follow(packet, flow, now, entry, true);
        }
        if !entry.is_proxied() && judge::is_first(packet.tcp_flags) {
            return Err(DropReason::ProxyForged);
        }
    }
    tuple.set_proxy_leg();
    let found = conntrack::find(&tuple);
    if let Some(entry) = found
        && judge::belongs(packet, flow, &tuple, entry, now.second)
    {
        let reply = entry.opened_by_high() != tuple.source_is_high;
        if reply {
            return Err(DropReason::ProxyForged);
        }
        if !(judge::is_first(packet.tcp_flags) && judge::is_over(packet, entry, false)) {
            return follow(packet, flow, now, entry, false);
        }
    }
    if flow.proxy & Part::SUSPECT != 0 {
        return Err(DropReason::ProxyForged);
    }
    if !judge::is_first(packet.tcp_flags) {
        return Err(DropReason::NoConnection);
    }
    let mut verdict = Space::<Verdict>::new();
    judge::begin(packet, flow, now, (&tuple, found), verdict.zero())
}

/// The entry of these very ends, if it is alive, and whether the packet is a reply in it.
#[inline(always)]
fn alive(packet: &Packet, flow: &Flow, now: &Moment, tuple: &Tuple) -> Option<(Entry, bool)> {
    let entry = conntrack::find(tuple)?;
    let reply = entry.opened_by_high() != tuple.source_is_high;
    judge::belongs(packet, flow, tuple, entry, now.second).then_some((entry, reply))
}

/// Whether a connection that would begin directly has the ports of one of the second leg that lives: the end that is called
/// could not tell the two apart.
#[inline(never)]
pub(crate) fn has_ports(flow: &Flow, tuple: &Tuple, second: u32) -> bool {
    if tuple.is_on_proxy_leg() || !redirect::is_known() {
        return false;
    }
    let mut proxys = *tuple;
    proxys.set_proxy_leg();
    let between = tuple.instances(flow.source.instance, flow.destination.instance);
    conntrack::find(&proxys).is_some_and(|entry| {
        entry.is_between(between) && !entry.is_closing() && entry.is_alive(tuple.protocol(), second)
    })
}

/// Judges a packet that is part of no connection of the first leg: of the second one?
#[inline(always)]
pub(crate) fn answer(packet: &Packet, flow: &mut Flow, now: &Moment) -> Result<(), Refusal> {
    Refusal::check(proxied_answer(packet, flow, now))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn proxied_answer(packet: *const Packet, flow: *mut Flow, now: *const Moment) -> u32 {
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(packet), Some(flow), Some(now)) = (unsafe { (packet.as_ref(), flow.as_mut(), now.as_ref()) })
    else {
        return Refusal::ABSURD;
    };
    Refusal::encode(answered(packet, flow, now))
}

#[inline(always)]
fn answered(packet: &Packet, flow: &mut Flow, now: &Moment) -> Result<(), DropReason> {
    let mut tuple = Tuple::of(packet);
    tuple.set_proxy_leg();
    let Some((entry, reply)) = alive(packet, flow, now, &tuple) else {
        return Err(DropReason::NoConnection);
    };
    if !reply {
        if !is_kernels(packet, flow) {
            return Err(DropReason::NoConnection);
        }
        flow.proxy |= Part::SECOND;
        return follow(packet, flow, now, entry, false);
    }
    // Whoever was called is behind a device.
    if flow.proxy & Part::MADE_HERE != 0 {
        return Err(DropReason::ProxyForged);
    }
    flow.proxy |= Part::SECOND | Part::TAKEN;
    follow(packet, flow, now, entry, true)
}
