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
    fragment::{self, Part},
    header::protocol,
    identity::Moment,
    judge,
    parse::Packet,
    refusal::Refusal,
    related::{self, Quote},
    rewrite,
    skb::Skb,
    space::Space,
    translation::{self, Role, Standing},
};

/// If a packet of a workload goes to a VIP: makes it, in memory, one to the backend of its connection, or to one chosen
/// now if it may be the first. See [`Flow::role`].
#[inline(always)]
pub(crate) fn call(skb: Skb, packet: &mut Packet, flow: &mut Flow, now: &Moment) -> Result<(), Refusal> {
    Refusal::check(service_call(skb.as_ptr(), packet, flow, now.second))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn service_call(skb: *mut __sk_buff, packet: *mut Packet, flow: *mut Flow, second: u32) -> u32 {
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(packet), Some(flow)) = (unsafe { (packet.as_mut(), flow.as_mut()) }) else {
        return Refusal::ABSURD;
    };
    if !balance::is_vip(&packet.destination) {
        return 0;
    }
    flow.called = packet.destination;
    flow.called_port = packet.destination_port;
    Refusal::encode(by_protocol(Skb::from(skb), packet, flow, second))
}

#[inline(always)]
fn by_protocol(skb: Skb, packet: &mut Packet, flow: &mut Flow, second: u32) -> Result<(), Refusal> {
    let opens = match packet.protocol {
        // What it belongs to has been opened, or it is refused.
        _ if packet.is_later() => false,
        protocol::TCP if !judge::is_legal(packet.tcp_flags) => return Err(DropReason::InvalidTcpFlags.into()),
        protocol::TCP => judge::is_first(packet.tcp_flags),
        protocol::UDP | protocol::SCTP => true,
        _ if judge::is_error(packet) => return Refusal::check(service_complaint(skb.as_ptr(), packet, flow)),
        _ => return Err(DropReason::NoBackend.into()),
    };
    if translation::follow(packet, flow) {
        // What opens nothing is left to the judgement.
        if !opens || translation::standing(packet, flow, second) == Standing::Translated {
            flow.role = Role::CALL;
            return Ok(());
        }
        flow.restore(packet);
        translation::forget(packet, flow);
    }
    if !opens {
        return Err(DropReason::NoConnection.into());
    }
    choose(packet, flow, second)
}

/// A backend whose connection with the workload's port, if there is one, is not another's.
#[inline(always)]
fn choose(packet: &mut Packet, flow: &mut Flow, second: u32) -> Result<(), Refusal> {
    const HALF_WAY_ROUND: u32 = 1 << 31;
    let entropy = entropy(packet);
    for turn in [0, HALF_WAY_ROUND] {
        Refusal::check(service_give(packet, flow, entropy.wrapping_add(turn)))?;
        if is_free(packet, flow, second) {
            flow.role = Role::FIRST_CALL;
            return Ok(());
        }
        flow.restore(packet);
    }
    Err(DropReason::TranslationConflict.into())
}

/// Gives the packet in memory to a backend.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn service_give(packet: *mut Packet, flow: *const Flow, entropy: u32) -> u32 {
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(packet), Some(flow)) = (unsafe { (packet.as_mut(), flow.as_ref()) }) else {
        return Refusal::ABSURD;
    };
    let frontend = Frontend::new(flow.called, flow.called_port, packet.protocol);
    let call = Call { frontend, entropy, client: packet.source };
    let mut choice = Space::<Choice>::new();
    let choice = choice.zero();
    if !balance::choose(&call, choice) {
        return DropReason::NoBackend as u32;
    }
    let port = u16::from_be_bytes(choice.backend.port);
    if packet.protocol == protocol::SCTP && port != flow.called_port {
        return DropReason::NoBackend as u32;
    }
    packet.destination = choice.backend.address;
    packet.destination_port = port;
    0
}

/// Whether the connection can be this call's: there is none, or it is this very call's already.
#[inline(always)]
fn is_free(packet: &Packet, flow: &Flow, second: u32) -> bool {
    // Of a connection from a port to itself, nobody could tell the directions apart.
    if packet.source == packet.destination && packet.source_port == packet.destination_port {
        return false;
    }
    match translation::standing(packet, flow, second) {
        Standing::Over => true,
        Standing::Untranslated => false,
        Standing::Translated => translation::is_own(packet, flow),
    }
}

/// The same for all packets of a connection, so that two CPUs with its first ones choose alike.
#[inline(always)]
fn entropy(packet: &Packet) -> u32 {
    /// As in Murmur3's finaliser.
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
    // The upper half: what came in last has not reached all of the lower one.
    (hash >> 32) as u32
}

/// An error about what a VIP sent the workload goes to whom the VIP stood for.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn service_complaint(skb: *mut __sk_buff, packet: *mut Packet, flow: *mut Flow) -> u32 {
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(packet), Some(flow)) = (unsafe { (packet.as_mut(), flow.as_mut()) }) else {
        return Refusal::ABSURD;
    };
    let mut quote = Quote::NONE;
    if related::quoted(Skb::from(skb), packet, &flow.called, &mut quote)
        && let Some(half) = translation::find(&quote.answer)
    {
        packet.destination = half.tuple.destination;
        flow.role = Role::CALL;
        return 0;
    }
    DropReason::UnrelatedIcmp as u32
}

/// [`fragment::remember`], with the VIP that later pieces come to as well.
#[inline(always)]
pub(crate) fn remember(packet: &mut Packet, flow: &Flow, now: &Moment) {
    if packet.piece.part == Part::First {
        service_remember(packet, flow, now);
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn service_remember(packet: *mut Packet, flow: *const Flow, now: *const Moment) -> u32 {
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(packet), Some(flow), Some(now)) = (unsafe { (packet.as_mut(), flow.as_ref(), now.as_ref()) })
    else {
        return 0;
    };
    let backend = (packet.destination, packet.destination_port);
    flow.restore(packet);
    fragment::remember(packet, now);
    (packet.destination, packet.destination_port) = backend;
    0
}

/// Makes the bytes of a packet that has passed what its receiver is to see. A backend is never shown: where the
/// translation is lost, the connection ends.
#[inline(always)]
pub(crate) fn translate(skb: Skb, packet: &mut Packet, flow: &Flow) -> Result<(), Refusal> {
    if flow.role == Role::NONE {
        return Ok(());
    }
    if judge::is_error(packet) {
        return Refusal::check(service_error(skb.as_ptr(), packet, flow));
    }
    if !translation::face(packet, flow) {
        return Err(DropReason::NoConnection.into());
    }
    rewrite::packet(skb, packet, !packet.is_later())
}

/// The packet that an error quotes becomes the one its sender knows. The error's own source does likewise if that is
/// the end which the quoted packet was for; a router's stays.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn service_error(skb: *mut __sk_buff, packet: *mut Packet, flow: *const Flow) -> u32 {
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(packet), Some(flow)) = (unsafe { (packet.as_mut(), flow.as_ref()) }) else {
        return Refusal::ABSURD;
    };
    let (skb, mut quote) = (Skb::from(skb), Quote::NONE);
    let receiver = if flow.role == Role::CALL { &flow.called } else { &packet.destination };
    if !related::quoted(skb, packet, receiver, &mut quote) {
        return DropReason::UnrelatedIcmp as u32;
    }
    let Some(half) = translation::find(&quote.answer) else { return DropReason::UnrelatedIcmp as u32 };
    if packet.source == quote.answer.source {
        packet.source = half.tuple.source;
    }
    quote.answer = half.tuple;
    let rewritten = rewrite::packet(skb, packet, true).and_then(|()| rewrite::quote(skb, packet, &quote));
    Refusal::encode(rewritten)
}
