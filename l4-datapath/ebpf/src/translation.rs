//! The two halves of a translated connection in `TRANSLATIONS`, for services.
//!
//! The forward half turns what the opener sends into what the backend gets, the reverse half what the backend answers
//! into what the opener expects. Of either, the source of the key and the destination of the value are the ends of the
//! connection, as the connection table and policy know it: a half is believed only while that connection is alive and
//! says itself that it is translated. So nobody has to be quick to remove one, and one that is lost is entered again by
//! the next packet that may open a connection.

use abi::{Address, DropReason, PacketTuple, Translation, TranslationKind};
use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};

use crate::{
    conntrack::{self, EXISTS, Tuple},
    flow::Flow,
    header::protocol,
    identity,
    maps::TRANSLATIONS,
    parse::Packet,
    quota,
};

/// What services have to do with a packet: [`Flow::role`].
pub(crate) struct Role;
impl Role {
    /// Nothing.
    pub(crate) const NONE: u8 = 0;
    /// It came to a VIP and is judged as one to the backend. `TRANSLATIONS` knows it.
    pub(crate) const CALL: u8 = 1;
    /// Likewise, but the backend has just been chosen.
    pub(crate) const FIRST_CALL: u8 = 2;
    /// Likewise, for a connection that is there: another CPU is opening it, or its translation was lost.
    pub(crate) const CALL_AGAIN: u8 = 3;
    /// It belongs to a connection whose opener called a VIP, and came to that opener by itself.
    pub(crate) const ANSWER: u8 = 4;
}

/// How things stand with a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// There is none, or only what is left of one.
    Over,
    /// Alive; its opener called the backend itself.
    Untranslated,
    /// Alive; its opener called a VIP.
    Translated,
}

/// The half with this key, if it is a service's.
#[inline(always)]
pub(crate) fn find(key: &PacketTuple) -> Option<&'static Translation> {
    // SAFETY: an element may become another's under us once its connection is over; then it leads to a connection that
    // is not this packet's, which is not followed.
    let half = unsafe { TRANSLATIONS.get(key) }?;
    (half.kind == TranslationKind::Service as u8).then_some(half)
}

/// An end of a packet: address and port.
#[derive(Clone, Copy)]
struct End<'a>(&'a Address, u16);

/// The opener, as it knows itself.
#[inline(always)]
fn opener(packet: &Packet) -> End<'_> {
    End(&packet.source, packet.source_port)
}

/// The opener as the backend is to know it. A workload that is its own backend is called by the VIP, or its stack would
/// take the packet for one of its own that went astray.
#[inline(always)]
fn caller<'a>(packet: &'a Packet, flow: &'a Flow) -> End<'a> {
    End(if packet.source == packet.destination { &flow.called } else { &packet.source }, packet.source_port)
}

/// What the opener called.
#[inline(always)]
fn called(flow: &Flow) -> End<'_> {
    End(&flow.called, flow.called_port)
}

#[inline(always)]
fn backend(packet: &Packet) -> End<'_> {
    End(&packet.destination, packet.destination_port)
}

#[inline(always)]
fn tuple(from: End<'_>, to: End<'_>, protocol: u8) -> PacketTuple {
    PacketTuple {
        source: *from.0,
        destination: *to.0,
        source_port: from.1.to_be_bytes(),
        destination_port: to.1.to_be_bytes(),
        protocol,
        zero: [0; 3],
    }
}

/// Makes the packet in memory one to the backend that `TRANSLATIONS` has for it; `false` if it has none.
#[inline(always)]
pub(crate) fn follow(packet: &mut Packet, flow: &Flow) -> bool {
    translation_follow(packet, flow) == 1
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn translation_follow(packet: *mut Packet, flow: *const Flow) -> u32 {
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(packet), Some(flow)) = (unsafe { (packet.as_mut(), flow.as_ref()) }) else { return 0 };
    let Some(half) = find(&tuple(opener(packet), called(flow), packet.protocol)) else { return 0 };
    packet.destination = half.tuple.destination;
    packet.destination_port = u16::from_be_bytes(half.tuple.destination_port);
    1
}

/// Removes the half that [`follow`] found: its connection is over.
#[inline(always)]
pub(crate) fn forget(packet: &Packet, flow: &Flow) {
    translation_forget(packet, flow);
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn translation_forget(packet: *const Packet, flow: *const Flow) -> u32 {
    // SAFETY: the callers pass references; the tests for null are for the verifier.
    if let (Some(packet), Some(flow)) = unsafe { (packet.as_ref(), flow.as_ref()) } {
        // It may be gone already.
        let _ = TRANSLATIONS.remove(&tuple(opener(packet), called(flow), packet.protocol));
    }
    0
}

/// Of the connection that the packet in memory, a workload's, would belong to.
#[inline(always)]
pub(crate) fn standing(packet: &Packet, flow: &Flow, second: u32) -> Standing {
    match translation_standing(packet, flow.source.instance, second) {
        0 => Standing::Over,
        1 => Standing::Untranslated,
        _ => Standing::Translated,
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn translation_standing(packet: *const Packet, instance: u32, second: u32) -> u32 {
    // SAFETY: the callers pass references; the test for null is for the verifier.
    let Some(packet) = (unsafe { packet.as_ref() }) else { return Standing::Over as u32 };
    // Until 6.2 what a global function was given cannot be a map's key.
    let destination = packet.destination;
    let other = identity::endpoint(&destination).map_or(0, |endpoint| endpoint.instance as u32);
    let tuple = Tuple::of(packet);
    let standing = match conntrack::find(&tuple) {
        Some(entry)
            if entry.is_between(tuple.instances(instance, other))
                && entry.is_alive(packet.protocol, second)
                && !(packet.protocol == protocol::TCP && entry.is_closing()) =>
        {
            if entry.is_translated() {
                Standing::Translated
            } else {
                Standing::Untranslated
            }
        }
        _ => Standing::Over,
    };
    standing as u32
}

/// Whether answers to the packet in memory are translated for what it came to, or not at all yet.
#[inline(always)]
pub(crate) fn is_own(packet: &Packet, flow: &Flow) -> bool {
    translation_is_own(packet, flow) == 1
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn translation_is_own(packet: *const Packet, flow: *const Flow) -> u32 {
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(packet), Some(flow)) = (unsafe { (packet.as_ref(), flow.as_ref()) }) else { return 0 };
    let is_own = find(&tuple(backend(packet), caller(packet, flow), packet.protocol)).is_none_or(|half| {
        half.tuple.source == flow.called && half.tuple.source_port == flow.called_port.to_be_bytes()
    });
    is_own.into()
}

/// Enters both halves of a connection that the judgement has let pass. If that fails there are none, and the connection
/// goes too if it is this packet that opened it: an answer would find no way back.
#[inline(always)]
pub(crate) fn enter(packet: &Packet, flow: &Flow) -> Result<(), DropReason> {
    let result = match translation_forward(packet, flow) {
        ENTERED => match translation_reverse(packet, flow) {
            ENTERED => return Ok(()),
            result => {
                forget(packet, flow);
                result
            }
        },
        result => result,
    };
    if flow.role == Role::FIRST_CALL {
        translation_undo(packet, flow.source.id.into());
    }
    Err(if result == FULL { DropReason::TranslationMapFull } else { DropReason::TranslationConflict })
}

const ENTERED: u32 = 0;
const FULL: u32 = 1;
const CONFLICT: u32 = 2;

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn translation_forward(packet: *const Packet, flow: *const Flow) -> u32 {
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(packet), Some(flow)) = (unsafe { (packet.as_ref(), flow.as_ref()) }) else { return CONFLICT };
    let becomes = tuple(caller(packet, flow), backend(packet), packet.protocol);
    put(&tuple(opener(packet), called(flow), packet.protocol), &half(becomes, 1))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn translation_reverse(packet: *const Packet, flow: *const Flow) -> u32 {
    // SAFETY: as above.
    let (Some(packet), Some(flow)) = (unsafe { (packet.as_ref(), flow.as_ref()) }) else { return CONFLICT };
    let becomes = tuple(called(flow), opener(packet), packet.protocol);
    put(&tuple(backend(packet), caller(packet, flow), packet.protocol), &half(becomes, 0))
}

#[inline(always)]
fn half(tuple: PacketTuple, is_forward: u8) -> Translation {
    Translation { tuple, kind: TranslationKind::Service as u8, is_forward, orphaned: 0, zero: 0 }
}

/// Enters one half. What is there already of the same connection is replaced: it has been opened anew, or is being
/// opened by two packets at once. Otherwise whoever came first stays.
#[inline(always)]
fn put(key: &PacketTuple, half: &Translation) -> u32 {
    match TRANSLATIONS.insert(key, half, BPF_NOEXIST.into()) {
        Ok(()) => return ENTERED,
        Err(EXISTS) => {}
        Err(_) => return FULL,
    }
    // SAFETY: as in `find`; only addresses are compared.
    let is_same = unsafe { TRANSLATIONS.get(key) }.is_none_or(|there| {
        there.tuple.destination == half.tuple.destination
            && there.tuple.destination_port == half.tuple.destination_port
    });
    if !is_same {
        return CONFLICT;
    }
    if TRANSLATIONS.insert(key, half, BPF_ANY.into()).is_ok() { ENTERED } else { FULL }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn translation_undo(packet: *const Packet, payer: u32) -> u32 {
    // SAFETY: the caller passes a reference; the test for null is for the verifier.
    let Some(packet) = (unsafe { packet.as_ref() }) else { return 0 };
    if conntrack::remove(&Tuple::of(packet)) {
        quota::discharge(payer);
    }
    0
}

/// Gives the packet in memory, which has been judged, the source that its receiver knows: an answer the VIP, and so a
/// packet of a workload to itself. `false`: that is not known, for the half is lost.
#[inline(always)]
pub(crate) fn face(packet: &mut Packet, flow: &Flow) -> bool {
    translation_face(packet, flow) == 1
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn translation_face(packet: *mut Packet, flow: *const Flow) -> u32 {
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(packet), Some(flow)) = (unsafe { (packet.as_mut(), flow.as_ref()) }) else { return 0 };
    let is_answer = flow.role == Role::ANSWER;
    if !is_answer && packet.source != packet.destination {
        return 1;
    }
    let to = if is_answer { backend(packet) } else { called(flow) };
    match find(&tuple(opener(packet), to, packet.protocol)) {
        Some(half) if half.tuple.destination == packet.destination => {
            packet.source = half.tuple.source;
            packet.source_port = u16::from_be_bytes(half.tuple.source_port);
            1
        }
        _ => 0,
    }
}
