//! The judgement: connection table first, policy of both ends where it has nothing to say.
//!
//! A packet of a known connection costs one look-up. Policy is asked when a connection opens, and again, on packets of
//! either direction, when the generation has moved since: always for the direction in which it was opened.
//!
//! Where policy asks for a proof of who the peer is, the connection depends on the mark that stands for it. The packet that
//! finds the mark dead notes so in the entry, and nothing revives it: not the mark (a node that is heard of again), not
//! another mark, not another generation. A connection opens anew by a judgement of its own.

use abi::{Connection, Direction, DropReason, EventFlags, EventKind, Memo, ReservedIdentity};

use crate::{
    conntrack::{self, EXISTS, Entry, Tuple},
    flow::{self, Flow},
    guard,
    header::{icmp4, icmp6, protocol, tcp},
    identity::Moment,
    parse::Packet,
    policy::{self, Question, Verdict},
    proxied::{self, Part},
    quota, redirect,
    refusal::Refusal,
    related,
    skb::Skb,
    space::Space,
    translation::Role,
};

/// What to do with an ICMP message.
enum Icmp {
    Request,
    Reply,
    Error,
    /// Would change the receiver's routes.
    Redirect,
    /// Everything else: judged packet by packet.
    Single,
}

/// Whether policy and connection table let the packet pass. `flow` must hold both ends; on a denial by policy it
/// names the endpoint, direction and rule that denied.
#[inline(always)]
pub(crate) fn judge(skb: Skb, packet: &Packet, flow: &mut Flow, now: &Moment) -> Result<(), Refusal> {
    let verdict = if is_error(packet) {
        // Nothing is known of its sender, so nobody sent it about an open connection.
        if flow.source.is_pending() {
            Err(DropReason::PendingAddress.into())
        } else if proxied::is_proxys(flow) {
            Err(DropReason::ProxyForged.into())
        } else {
            related::check(skb, packet, flow, now)
        }
    } else if proxied::is_proxys(flow) {
        proxied::judge(skb, packet, flow, now)
    } else {
        match Refusal::check(judge_packet(packet, flow, now)) {
            Err(refusal)
                if refusal.number() == DropReason::NoConnection as u8
                    && packet.protocol == protocol::TCP
                    && redirect::is_known() =>
            {
                proxied::answer(packet, flow, now)
            }
            judged => judged,
        }
    };
    if verdict.is_err() {
        flow.identify_destination(packet, now);
    }
    verdict
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judge_packet(packet: *const Packet, flow: *mut Flow, now: *const Moment) -> u32 {
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(packet), Some(flow), Some(now)) = (unsafe { (packet.as_ref(), flow.as_mut(), now.as_ref()) })
    else {
        return Refusal::ABSURD;
    };
    Refusal::encode(by_protocol(packet, flow, now))
}

#[inline(always)]
fn by_protocol(packet: &Packet, flow: &mut Flow, now: &Moment) -> Result<(), DropReason> {
    let mut verdict = Space::new();
    let verdict = verdict.zero();
    // What a later fragment says stands behind ports that it does not have: it can only belong to what is open.
    if packet.is_later() {
        return tracked(packet, flow, now, false, verdict);
    }
    let opens = match packet.protocol {
        protocol::TCP if !is_legal(packet.tcp_flags) => return Err(DropReason::InvalidTcpFlags),
        protocol::TCP => is_first(packet.tcp_flags),
        protocol::ICMP | protocol::ICMPV6 => match icmp(packet) {
            Icmp::Request => true,
            Icmp::Reply => false,
            Icmp::Error => return Err(DropReason::UnrelatedIcmp),
            Icmp::Redirect => return Err(DropReason::NeighbourSpoof),
            Icmp::Single => return ask(packet, flow, now, false, verdict),
        },
        _ => true,
    };
    tracked(packet, flow, now, opens, verdict)
}

#[inline(always)]
fn icmp(packet: &Packet) -> Icmp {
    if packet.is_v4() {
        return match packet.icmp_type() {
            icmp4::ECHO_REQUEST => Icmp::Request,
            icmp4::ECHO_REPLY => Icmp::Reply,
            icmp4::UNREACHABLE | icmp4::TIME_EXCEEDED | icmp4::PARAMETER_PROBLEM => Icmp::Error,
            icmp4::REDIRECT => Icmp::Redirect,
            _ => Icmp::Single,
        };
    }
    match packet.icmp_type() {
        icmp6::ECHO_REQUEST => Icmp::Request,
        icmp6::ECHO_REPLY => Icmp::Reply,
        icmp6::UNREACHABLE | icmp6::TOO_BIG | icmp6::TIME_EXCEEDED | icmp6::PARAMETER_PROBLEM => Icmp::Error,
        icmp6::REDIRECT | icmp6::ROUTER_ADVERTISEMENT => Icmp::Redirect,
        _ => Icmp::Single,
    }
}

/// An ICMP error.
#[inline(always)]
pub(crate) fn is_error(packet: &Packet) -> bool {
    matches!(packet.protocol, protocol::ICMP | protocol::ICMPV6) && matches!(icmp(packet), Icmp::Error)
}

#[inline(always)]
fn is_request(packet: &Packet) -> bool {
    matches!(icmp(packet), Icmp::Request)
}

/// The combinations a TCP can send; as `nf_conntrack_proto_tcp.c` has them, without SYN+URG. PSH, ECE, CWR and the
/// ninth bit say nothing about state.
#[inline(always)]
pub(crate) fn is_legal(flags: u8) -> bool {
    const FIN_ACK: u8 = tcp::FIN | tcp::ACK;
    match flags & (tcp::FIN | tcp::SYN | tcp::RST | tcp::ACK | tcp::URG) {
        FIN_ACK | tcp::SYN | tcp::RST | tcp::ACK => true,
        flags => {
            flags == tcp::SYN | tcp::ACK
                || flags == tcp::RST | tcp::ACK
                || flags == tcp::ACK | tcp::URG
                || flags == FIN_ACK | tcp::URG
        }
    }
}

/// A legal first packet: SYN alone.
#[inline(always)]
pub(crate) fn is_first(flags: u8) -> bool {
    flags & (tcp::SYN | tcp::ACK) == tcp::SYN
}

/// A packet of a protocol with connections. `opens`: it may be the first of one. `verdict` is all zero.
#[inline(always)]
fn tracked(
    packet: &Packet,
    flow: &mut Flow,
    now: &Moment,
    opens: bool,
    verdict: &mut Verdict,
) -> Result<(), DropReason> {
    let tuple = &Tuple::of(packet);
    // Another CPU may have opened it since: then opening it fails, and it is looked for again.
    let found = if flow.is_unknown && flow.role == Role::NONE { None } else { conntrack::find(tuple) };
    if let Some(entry) = found
        && belongs(packet, flow, tuple, entry, now.second)
    {
        let reply = entry.opened_by_high() != tuple.source_is_high;
        if !(opens && is_over(packet, entry, reply)) {
            return follow(packet, flow, now, entry, reply);
        }
    }
    if !opens {
        return Err(DropReason::NoConnection);
    }
    begin(packet, flow, now, (tuple, found), verdict)
}

/// The first packet of a connection, with what is left of an earlier one. `verdict` is all zero.
#[inline(always)]
pub(crate) fn begin(
    packet: &Packet,
    flow: &mut Flow,
    now: &Moment,
    (tuple, found): (&Tuple, Option<Entry>),
    verdict: &mut Verdict,
) -> Result<(), DropReason> {
    ask(packet, flow, now, false, verdict)?;
    if verdict.proxied() {
        // What the proxy would call in the opener's name, and the answers, pass no hook between the node and itself.
        let is_to_host = flow.destination.identity == ReservedIdentity::HOST;
        if is_to_host || !redirect::is_ready() {
            let reason = if is_to_host { DropReason::ProxyToHost } else { DropReason::NoProxy };
            without_proxy(flow, verdict, reason)?;
        }
    }
    if !verdict.proxied() && packet.protocol == protocol::TCP && proxied::has_ports(flow, tuple, now.second) {
        return Err(DropReason::ProxyPorts);
    }
    if let Some(dead) = found {
        // Read before it is deleted; deleting succeeds for only one of the CPUs that may try.
        let charged = dead.charged();
        if conntrack::remove(tuple) {
            quota::discharge(charged);
        }
    }
    match open(flow, now, tuple, verdict) {
        OPENED => {
            announce(packet, flow, verdict);
            Ok(())
        }
        OVER_QUOTA => Err(DropReason::ConnectionQuota),
        // Another CPU was first: then this packet belongs to that connection.
        EXISTS => match conntrack::find(tuple) {
            Some(entry) => follow(packet, flow, now, entry, entry.opened_by_high() != tuple.source_is_high),
            None => Err(DropReason::ConnectionMapFull),
        },
        _ => Err(DropReason::ConnectionMapFull),
    }
}

/// Lets pass without the proxy what only ends in audit mode want to go by it.
#[inline(always)]
fn without_proxy(flow: &mut Flow, verdict: &mut Verdict, reason: DropReason) -> Result<(), DropReason> {
    if !verdict.spare_proxy() {
        return Err(reason);
    }
    flow.flags |= EventFlags::AUDITED;
    Ok(())
}

/// Whether the entry with a packet's tuple is alive and these very ends'.
#[inline(never)]
pub(crate) fn belongs(packet: &Packet, flow: &Flow, tuple: &Tuple, entry: Entry, second: u32) -> bool {
    entry.is_between(tuple.instances(flow.source.instance, flow.destination.instance))
        && entry.is_alive(packet.protocol, second)
}

/// Whether a packet that may open a connection finds this one over, and is judged as the first of another.
///
/// What has no handshake goes on under its ports when there is a new proof, asked for by whoever opened it. What the other
/// end sends stays part of what is dead: judged as an opening it could make the opener's packets answers, which nobody asks
/// for a proof.
#[inline(never)]
pub(crate) fn is_over(packet: &Packet, entry: Entry, reply: bool) -> bool {
    match packet.protocol {
        protocol::TCP => entry.is_closing() || !entry.is_proven(),
        _ => entry.is_ended() && !reply,
    }
}

/// A packet of a known connection; `reply`: against the direction in which it was opened.
#[inline(never)]
pub(crate) fn follow(
    packet: &Packet,
    flow: &mut Flow,
    now: &Moment,
    entry: Entry,
    reply: bool,
) -> Result<(), DropReason> {
    if entry.is_proxied() && !proxied::joins(packet, flow, entry, reply) {
        return Err(DropReason::NoConnection);
    }
    if reply {
        flow.flags |= EventFlags::REPLY;
    }
    match packet.protocol {
        // Simultaneous open and split handshake: nobody needs them, and each is an opening nobody judged.
        protocol::TCP if reply && is_first(packet.tcp_flags) => return Err(DropReason::InvalidTcpFlags),
        // Both sides asking under one identifier: the second would pass unjudged as an answer to the first.
        protocol::ICMP | protocol::ICMPV6 if reply == is_request(packet) => {
            return Err(DropReason::NoConnection);
        }
        _ => {}
    }
    flow.role = role(flow, entry.is_translated(), reply).ok_or(DropReason::TranslationConflict)?;
    if entry.is_ended() {
        return Err(DropReason::AuthenticationEnded);
    }
    match entry.verdict(now.generation) {
        Some(memo) => {
            if memo & Memo::MARKED != 0 && !entry.has_proof() {
                return Err(end(entry));
            }
            if memo & Memo::AUDITED != 0 {
                flow.flags |= EventFlags::AUDITED;
            }
        }
        None => ask_again(packet, flow, now, entry, reply)?,
    }
    entry.note(now.second, reply, packet.tcp_flags);
    Ok(())
}

/// Asks policy about a connection that it allowed in an earlier generation. Where it wants a proof now, one that is there
/// does; but not a later one in place of the one that the connection has depended on.
#[inline(always)]
fn ask_again(
    packet: &Packet,
    flow: &mut Flow,
    now: &Moment,
    entry: Entry,
    reply: bool,
) -> Result<(), DropReason> {
    let mut verdict = Space::new();
    let verdict = verdict.zero();
    ask(packet, flow, now, reply, verdict).map_err(|reason| match reason {
        DropReason::AuthenticationRequired | DropReason::AuthenticationRefused | DropReason::NoPrincipal => {
            end(entry)
        }
        // Its proof went with the right to call: then both ends are told, as policy alone never does.
        _ if !entry.is_proven() => end(entry),
        reason => reason,
    })?;
    if verdict.proxied() && !entry.is_proxied() {
        without_proxy(flow, verdict, DropReason::NotProxied).inspect_err(|_| entry.set_reset())?;
    }
    let proof = (verdict.mark, verdict.epoch);
    if verdict.mark != 0 {
        match entry.proof() {
            (0, _) => entry.depend_on(proof.0, proof.1),
            there if there == proof => {}
            _ => return Err(end(entry)),
        }
    }
    entry.remember(now.generation, memo_bits(flow, verdict));
    if verdict.mark == 0 {
        entry.depend_on_none();
    }
    Ok(())
}

/// The proof that a connection depends on is no more: it is never believed again.
#[inline(always)]
fn end(entry: Entry) -> DropReason {
    entry.set_ended();
    DropReason::AuthenticationEnded
}

/// What a packet of a known connection is for services. `None`: the opener uses one pair of ports both with and without
/// a service, and the backend could not tell the two connections apart.
#[inline(always)]
fn role(flow: &Flow, is_translated: bool, reply: bool) -> Option<u8> {
    match (flow.role, is_translated) {
        (Role::NONE, true) if reply => Some(Role::ANSWER),
        (Role::CALL, true) if !reply || flow.is_to_itself() => Some(Role::CALL),
        (Role::FIRST_CALL, true) if !reply => Some(Role::CALL_AGAIN),
        (Role::NONE, false) => Some(Role::NONE),
        _ => None,
    }
}

const OPENED: i32 = 0;
const OVER_QUOTA: i32 = 1;

/// Enters a connection that policy has just allowed: [`OPENED`], [`OVER_QUOTA`], or the kernel's (negative) error.
#[inline(never)]
fn open(flow: &Flow, now: &Moment, tuple: &Tuple, verdict: &Verdict) -> i32 {
    let payer = if flow.source.is_local() { flow.source.id } else { flow.destination.id };
    let payer = u32::from(payer);
    if !quota::charge(payer) {
        return OVER_QUOTA;
    }
    let connection = Connection {
        memo: conntrack::memo(now.generation, memo_bits(flow, verdict)),
        seen: now.second,
        charged: payer,
        opened_by_high: u8::from(tuple.source_is_high),
        translated: u8::from(flow.role != Role::NONE),
        proxied: u8::from(verdict.proxied() || tuple.is_on_proxy_leg()),
        instances: tuple.instances(flow.source.instance, flow.destination.instance),
        epoch: verdict.epoch,
        ends: tuple.ends(flow.source.id, flow.destination.id),
        mark: verdict.mark,
        ..Connection::EMPTY
    };
    let result = conntrack::insert(tuple, &connection);
    if result != OPENED {
        quota::discharge(payer);
    }
    result
}

/// What is remembered with an allowed verdict; both ends' identities are known once policy was asked.
#[inline(always)]
fn memo_bits(flow: &Flow, verdict: &Verdict) -> u64 {
    let host = [flow.source.identity, flow.destination.identity].contains(&ReservedIdentity::HOST);
    (if verdict.audited() { Memo::AUDITED } else { 0 })
        | if host { Memo::HOST } else { 0 }
        | if verdict.mark != 0 { Memo::MARKED } else { 0 }
}

/// Asks policy for the direction in which the connection opens: egress of the opener, ingress of the other end, each
/// if it is on this node.
#[inline(never)]
fn ask(
    packet: &Packet,
    flow: &mut Flow,
    now: &Moment,
    reply: bool,
    verdict: &mut Verdict,
) -> Result<(), DropReason> {
    flow.identify_destination(packet, now);
    if flow.source.is_pending() || flow.destination.is_pending() {
        return Err(DropReason::PendingAddress);
    }
    if flow.destination.identity == ReservedIdentity::UNMANAGED {
        return Err(DropReason::NoEndpoint);
    }
    let (source, destination) = ((&flow.source, &packet.source), (&flow.destination, &packet.destination));
    let ((opener, opener_address), (other, other_address)) =
        if reply { (destination, source) } else { (source, destination) };
    if opener.identity == 0 || other.identity == 0 {
        return Err(DropReason::NoIdentity);
    }
    // A workload may always talk with itself; here it does so through a service it is a backend of.
    if flow.is_to_itself() {
        return Ok(());
    }
    let ask = Question { port: called_port(packet, reply), protocol: packet.protocol };
    if opener.is_local() {
        if guard::forbids(other.identity, ask.protocol, ask.port) {
            return Err(DropReason::PolicyDeny);
        }
        let peer = (other, other_address);
        if let Err(refused) = policy::ask(opener, Direction::Egress, peer, ask, verdict) {
            let (ifindex, ruleset) = (opener.ifindex, opener.egress);
            flow.judged_by(ifindex, ruleset, Direction::Egress, verdict);
            return Err(note(flow, refused));
        }
    }
    if other.is_local() {
        let peer = (opener, opener_address);
        if let Err(refused) = policy::ask(other, Direction::Ingress, peer, ask, verdict) {
            let (ifindex, ruleset) = (other.ifindex, other.ingress);
            flow.judged_by(ifindex, ruleset, Direction::Ingress, verdict);
            return Err(note(flow, refused));
        }
    }
    if verdict.audited() {
        flow.flags |= EventFlags::AUDITED;
    }
    Ok(())
}

/// Keeps the number of a refusal for the event.
#[inline(always)]
fn note(flow: &mut Flow, (reason, refusal): (DropReason, u8)) -> DropReason {
    flow.refusal = refusal;
    reason
}

/// The port of the end that was called; ICMP: the type that opened.
#[inline(always)]
fn called_port(packet: &Packet, reply: bool) -> u16 {
    match packet.protocol {
        protocol::ICMP if reply => u16::from(icmp4::ECHO_REQUEST),
        protocol::ICMPV6 if reply => u16::from(icmp6::ECHO_REQUEST),
        _ if reply => packet.source_port,
        _ => packet.destination_port,
    }
}

/// One event for each end that was asked. Leaves `flow` as it was, but for a packet that goes to the proxy.
#[inline(always)]
fn announce(packet: &Packet, flow: &mut Flow, verdict: &Verdict) {
    if verdict.proxied() && flow.proxy & Part::SENT == 0 {
        flow.proxy |= Part::TAKEN;
    }
    let (ifindex, direction, flags) = (flow.ifindex, flow.direction, flow.flags);
    if flow.source.is_local() {
        flow.judged_by(flow.source.ifindex, flow.source.egress, Direction::Egress, verdict);
        flow::report(packet, flow, EventKind::Allowed, verdict.mark);
    }
    if flow.destination.is_local() {
        flow.judged_by(flow.destination.ifindex, flow.destination.ingress, Direction::Ingress, verdict);
        flow::report(packet, flow, EventKind::Allowed, verdict.mark);
    }
    (flow.ifindex, flow.direction, flow.ruleset, flow.cookie) = (ifindex, direction, 0, 0);
    flow.flags = flags;
}
