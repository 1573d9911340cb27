//! Services for packets: what a workload sends to a VIP whose sockets no cgroup hook of ours sees, and what protocols
//! without such hooks do.
//!
//! The same tables as the hooks', asked once for each connection. A packet is judged as if it had been sent to the
//! backend, and only in memory; its bytes change when it has passed, and the translation is entered when its connection
//! is: whoever is refused leaves nothing behind. SCTP keeps its port, so a backend on another is none.
//!
//! Errors are part of a connection: the packet that one quotes is translated as the packets of the connection are.

use abi::{DropReason, Frontend};
use aya_ebpf::bindings::__sk_buff;

use crate::{
    address,
    balance::{self, Call, Choice},
    flow::Flow,
    header::protocol,
    identity::Moment,
    judge,
    parse::Packet,
    refusal::Refusal,
    related, rewrite,
    skb::Skb,
    translation::{self, Role, Standing},
};

/// If a packet of a workload goes to a VIP: makes it, in memory, one to the backend of its connection, or to one chosen
/// now if it may be the first. See [`Flow::role`].
#[inline(always)]
pub(crate) fn call(skb: Skb, packet: &mut Packet, flow: &mut Flow, now: &Moment) -> Result<(), Refusal> {
    Refusal::check(service_call(skb.as_ptr(), packet, flow, now))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn service_call(
    skb: *mut __sk_buff,
    packet: *mut Packet,
    flow: *mut Flow,
    now: *const Moment,
) -> u32 {
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(packet), Some(flow), Some(now)) = (unsafe { (packet.as_mut(), flow.as_mut(), now.as_ref()) })
    else {
        return Refusal::ABSURD;
    };
    if !balance::is_vip(&packet.destination) {
        return 0;
    }
    flow.called = packet.destination;
    flow.called_port = packet.destination_port;
    Refusal::encode(by_protocol(Skb::from(skb), packet, flow, now))
}

#[inline(always)]
fn by_protocol(skb: Skb, packet: &mut Packet, flow: &mut Flow, now: &Moment) -> Result<(), DropReason> {
    match packet.protocol {
        protocol::TCP if !judge::is_legal(packet.tcp_flags) => Err(DropReason::InvalidTcpFlags),
        protocol::TCP => find(packet, flow, now, judge::is_first(packet.tcp_flags)),
        protocol::UDP | protocol::SCTP => find(packet, flow, now, true),
        _ if judge::is_error(packet) => complaint(skb, packet, flow),
        _ => Err(DropReason::NoBackend),
    }
}

/// The backend of the packet's connection, or a new one if there is none and the packet `opens` one.
#[inline(always)]
fn find(packet: &mut Packet, flow: &mut Flow, now: &Moment, opens: bool) -> Result<(), DropReason> {
    if let Some(known) = translation::find(&translation::tuple(packet)) {
        packet.destination = known.tuple.destination;
        packet.destination_port = u16::from_be_bytes(known.tuple.destination_port);
        // What opens nothing is left to the judgement.
        if !opens || standing(packet, flow, now) == Standing::Translated {
            flow.role = Role::CALL;
            return Ok(());
        }
        flow.restore(packet);
    }
    if opens { choose(packet, flow, now) } else { Err(DropReason::NoConnection) }
}

/// A backend whose connection with the workload's port, if there is one, is not another's.
#[inline(always)]
fn choose(packet: &mut Packet, flow: &mut Flow, now: &Moment) -> Result<(), DropReason> {
    const HALF_WAY_ROUND: u32 = 1 << 31;
    let entropy = entropy(packet);
    give(packet, flow, entropy)?;
    if !is_free(packet, flow, now) {
        flow.restore(packet);
        give(packet, flow, entropy.wrapping_add(HALF_WAY_ROUND))?;
        if !is_free(packet, flow, now) {
            flow.restore(packet);
            return Err(DropReason::TranslationConflict);
        }
    }
    flow.role = Role::FIRST_CALL;
    Ok(())
}

#[inline(always)]
fn give(packet: &mut Packet, flow: &Flow, entropy: u32) -> Result<(), DropReason> {
    let frontend = Frontend::new(flow.called, flow.called_port, packet.protocol);
    let call = Call { frontend, entropy, client: packet.source };
    let mut choice = Choice::NONE;
    if !balance::choose(&call, &mut choice) {
        return Err(DropReason::NoBackend);
    }
    let port = u16::from_be_bytes(choice.backend.port);
    if packet.protocol == protocol::SCTP && port != flow.called_port {
        return Err(DropReason::NoBackend);
    }
    packet.destination = choice.backend.address;
    packet.destination_port = port;
    Ok(())
}

/// Whether the connection can be this call's: there is none, or it is being opened by this very call on another CPU.
#[inline(always)]
fn is_free(packet: &Packet, flow: &Flow, now: &Moment) -> bool {
    if packet.source == packet.destination && packet.source_port == packet.destination_port {
        return false;
    }
    match standing(packet, flow, now) {
        Standing::Over => true,
        Standing::Untranslated => false,
        Standing::Translated => translation::reverse(packet, flow).is_none_or(|half| {
            half.tuple.source == flow.called && half.tuple.source_port == flow.called_port.to_be_bytes()
        }),
    }
}

#[inline(always)]
fn standing(packet: &Packet, flow: &Flow, now: &Moment) -> Standing {
    translation::standing(&translation::tuple(packet), flow, now.second)
}

/// The same for all packets of a connection, so that two CPUs with its first ones choose alike.
#[inline(always)]
fn entropy(packet: &Packet) -> u32 {
    /// Murmur3's finaliser.
    const FACTOR: u64 = 0xff51_afd7_ed55_8ccd;
    let (source, destination) = (address::words(&packet.source), address::words(&packet.destination));
    let ports = u64::from(packet.source_port) << 32
        | u64::from(packet.destination_port) << 8
        | u64::from(packet.protocol);
    let mut hash = 0;
    for word in [source.0, source.1, destination.0, destination.1, ports] {
        hash = (hash ^ word).wrapping_mul(FACTOR);
        hash ^= hash >> 33;
    }
    hash as u32
}

/// An error about what a VIP sent the workload goes to whom the VIP stood for.
#[inline(always)]
fn complaint(skb: Skb, packet: &mut Packet, flow: &mut Flow) -> Result<(), DropReason> {
    let quoted = related::quoted(skb, packet, &flow.called, true).ok_or(DropReason::UnrelatedIcmp)?;
    let half = translation::find(&quoted.reversed()).ok_or(DropReason::UnrelatedIcmp)?;
    packet.destination = half.tuple.destination;
    flow.role = Role::CALL;
    Ok(())
}

/// Makes the bytes of a packet that has passed what its receiver is to see.
#[inline(always)]
pub(crate) fn translate(skb: Skb, packet: &mut Packet, flow: &Flow) -> Result<(), Refusal> {
    if flow.role == Role::NONE {
        return Ok(());
    }
    Refusal::check(service_translate(skb.as_ptr(), packet, flow))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn service_translate(skb: *mut __sk_buff, packet: *mut Packet, flow: *const Flow) -> u32 {
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(packet), Some(flow)) = (unsafe { (packet.as_mut(), flow.as_ref()) }) else {
        return Refusal::ABSURD;
    };
    let skb = Skb::from(skb);
    let is_icmp = matches!(packet.protocol, protocol::ICMP | protocol::ICMPV6);
    let translated = if is_icmp { error(skb, packet, flow) } else { ends(skb, packet, flow) };
    Refusal::encode(translated)
}

/// A backend is never shown: a half that is missing ends the connection.
#[inline(always)]
fn ends(skb: Skb, packet: &mut Packet, flow: &Flow) -> Result<(), Refusal> {
    let is_own_backend = packet.source == packet.destination;
    if flow.role == Role::ANSWER || is_own_backend {
        let key = if is_own_backend { translation::called(packet, flow) } else { translation::tuple(packet) };
        let half = translation::find(&key).ok_or(DropReason::NoConnection)?;
        if half.tuple.destination != packet.destination {
            return Err(DropReason::NoConnection.into());
        }
        packet.source = half.tuple.source;
        packet.source_port = u16::from_be_bytes(half.tuple.source_port);
    }
    rewrite::packet(skb, packet, true)
}

/// The quoted packet becomes the one its sender knows. The error's own source does if it is the end that the quoted
/// packet was for; a router's stays.
#[inline(always)]
fn error(skb: Skb, packet: &mut Packet, flow: &Flow) -> Result<(), Refusal> {
    let sender = if flow.role == Role::CALL { flow.called } else { packet.destination };
    let quoted = related::quoted(skb, packet, &sender, false).ok_or(DropReason::UnrelatedIcmp)?;
    let half = translation::find(&quoted.reversed()).ok_or(DropReason::UnrelatedIcmp)?;
    if packet.source == quoted.destination {
        packet.source = half.tuple.source;
    }
    rewrite::packet(skb, packet, true)?;
    rewrite::quote(skb, packet, &half.tuple.reversed())
}
