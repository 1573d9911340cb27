//! The judgement: connection table first, policy of both ends where it has nothing to say.
//!
//! A packet of a known connection costs one look-up. Policy is asked when a connection opens, and again, on packets of
//! either direction, when the generation has moved since: always for the direction in which it was opened.

use abi::{Connection, Direction, DropReason, EventFlags, EventKind, Memo};

use crate::{
    conntrack::{self, EXISTS, Entry, Tuple},
    flow::{self, Flow},
    header::{icmp4, icmp6, protocol, tcp},
    identity::Moment,
    parse::Packet,
    policy::{self, Decision, Question},
    quota, related,
    skb::Skb,
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
pub(crate) fn judge(skb: Skb, packet: &Packet, flow: &mut Flow, now: &Moment) -> Result<(), DropReason> {
    match packet.protocol {
        protocol::TCP if !is_legal(packet.tcp_flags) => Err(DropReason::InvalidTcpFlags),
        protocol::TCP => tracked(packet, flow, now, is_first(packet.tcp_flags)),
        protocol::ICMP | protocol::ICMPV6 => match icmp(packet) {
            Icmp::Request => tracked(packet, flow, now, true),
            Icmp::Reply => tracked(packet, flow, now, false),
            Icmp::Error => related::check(skb, packet, flow, now),
            Icmp::Redirect => Err(DropReason::NeighbourSpoof),
            Icmp::Single => {
                let mut verdict = Verdict::UNASKED;
                ask(packet, flow, now, false, &mut verdict)
            }
        },
        _ => tracked(packet, flow, now, true),
    }
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

#[inline(always)]
fn is_request(packet: &Packet) -> bool {
    matches!(icmp(packet), Icmp::Request)
}

/// The combinations a TCP can send; as `nf_conntrack_proto_tcp.c` has them, without SYN+URG. PSH, ECE, CWR and the
/// ninth bit say nothing about state.
#[inline(always)]
fn is_legal(flags: u8) -> bool {
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
fn is_first(flags: u8) -> bool {
    flags & (tcp::SYN | tcp::ACK) == tcp::SYN
}

/// A packet of a protocol with connections. `opens`: it may be the first of one.
#[inline(never)]
fn tracked(packet: &Packet, flow: &mut Flow, now: &Moment, opens: bool) -> Result<(), DropReason> {
    let tuple = &Tuple::of(packet);
    let found = conntrack::find(tuple);
    if let Some(entry) = found
        && entry.is_alive(packet.protocol, now.second)
        && !(packet.protocol == protocol::TCP && opens && entry.is_closing())
    {
        return follow(packet, flow, now, entry, entry.opened_by_high() != tuple.source_is_high);
    }
    if !opens {
        return Err(DropReason::NoConnection);
    }
    let mut verdict = Verdict::UNASKED;
    ask(packet, flow, now, false, &mut verdict)?;
    if let Some(dead) = found {
        // Read before it is deleted; deleting succeeds for only one of the CPUs that may try.
        let charged = dead.charged();
        if conntrack::remove(tuple) {
            quota::discharge(charged);
        }
    }
    open(packet, flow, now, tuple, &verdict)
}

/// A packet of a known connection; `reply`: against the direction in which it was opened.
#[inline(never)]
fn follow(
    packet: &Packet,
    flow: &mut Flow,
    now: &Moment,
    entry: Entry,
    reply: bool,
) -> Result<(), DropReason> {
    if reply {
        flow.facts.flags |= EventFlags::REPLY;
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
    match entry.verdict(now.generation) {
        Some(memo) if memo & Memo::AUDITED != 0 => flow.facts.flags |= EventFlags::AUDITED,
        Some(_) => {}
        None => {
            let mut verdict = Verdict::UNASKED;
            ask(packet, flow, now, reply, &mut verdict)?;
            entry.remember(now.generation, verdict.audited());
        }
    }
    entry.note(now.second, reply, packet.tcp_flags);
    Ok(())
}

/// A connection that policy has just allowed.
#[inline(always)]
fn open(
    packet: &Packet,
    flow: &mut Flow,
    now: &Moment,
    tuple: &Tuple,
    verdict: &Verdict,
) -> Result<(), DropReason> {
    let charged = match (flow.source, flow.destination) {
        (Some(local), _) | (None, Some(local)) => {
            if !quota::charge(&local) {
                return Err(DropReason::ConnectionQuota);
            }
            local.endpoint.id
        }
        (None, None) => 0,
    };
    let connection = Connection {
        memo: conntrack::memo(now.generation, verdict.audited()),
        seen: now.second,
        charged,
        opened_by_high: u8::from(tuple.source_is_high),
        ..Connection::EMPTY
    };
    match conntrack::insert(tuple, &connection) {
        0 => {
            announce(packet, flow, verdict);
            Ok(())
        }
        error => {
            quota::discharge(charged);
            // Another CPU was first: then this packet belongs to that connection.
            match conntrack::find(tuple) {
                Some(entry) if error == EXISTS => {
                    follow(packet, flow, now, entry, entry.opened_by_high() != tuple.source_is_high)
                }
                _ => Err(DropReason::ConnectionMapFull),
            }
        }
    }
}

/// What each end's ruleset said.
#[derive(Clone, Copy)]
struct Verdict {
    egress: Decision,
    ingress: Decision,
}

impl Verdict {
    const UNASKED: Self = Self { egress: Decision::UNASKED, ingress: Decision::UNASKED };

    #[inline(always)]
    fn audited(&self) -> bool {
        self.egress.audited || self.ingress.audited
    }
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
    let source = (flow.source, flow.facts.source_identity);
    let destination = (flow.destination, flow.facts.destination_identity);
    let (opener, other) = if reply { (destination, source) } else { (source, destination) };
    if opener.1 == 0 || other.1 == 0 {
        return Err(DropReason::NoIdentity);
    }
    let ask =
        Question { generation: now.generation, port: called_port(packet, reply), protocol: packet.protocol };
    if let Some(local) = opener.0 {
        policy::egress(&local, other.1, &ask, &mut verdict.egress)
            .inspect_err(|_| flow.facts.judged_by(&local, Direction::Egress, &verdict.egress))?;
    }
    if let Some(local) = other.0 {
        policy::ingress(&local, opener.1, &ask, &mut verdict.ingress)
            .inspect_err(|_| flow.facts.judged_by(&local, Direction::Ingress, &verdict.ingress))?;
    }
    if verdict.audited() {
        flow.facts.flags |= EventFlags::AUDITED;
    }
    Ok(())
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

/// One event for each end that was asked.
#[inline(never)]
fn announce(packet: &Packet, flow: &Flow, verdict: &Verdict) {
    let mut told = flow.facts;
    if let Some(local) = flow.source {
        told.judged_by(&local, Direction::Egress, &verdict.egress);
        flow::report(packet, &told, EventKind::Allowed, 0);
    }
    if let Some(local) = flow.destination {
        told.judged_by(&local, Direction::Ingress, &verdict.ingress);
        flow::report(packet, &told, EventKind::Allowed, 0);
    }
}
