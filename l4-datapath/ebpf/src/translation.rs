//! The two halves of a translated connection in `TRANSLATIONS`, for services.
//!
//! The forward half turns what the opener sends into what the backend gets, the reverse half what the backend answers
//! into what the opener expects. Of either, the source of the key and the destination of the value are the ends of the
//! connection as the connection table and policy know it: a half is believed only while that connection is alive and
//! says itself that it is translated. So nobody has to be quick to remove one.

use abi::{DropReason, PacketTuple, Translation, TranslationKind};
use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};

use crate::{
    address,
    conntrack::{self, EXISTS, Tuple},
    flow::Flow,
    header::protocol,
    identity,
    maps::TRANSLATIONS,
    parse::Packet,
};

/// What services have to do with a packet: [`Flow::role`].
pub(crate) struct Role;
impl Role {
    /// Nothing.
    pub(crate) const NONE: u8 = 0;
    /// It came to a VIP, and `TRANSLATIONS` knows it: it is judged as one to the backend.
    pub(crate) const CALL: u8 = 1;
    /// Likewise, but the backend has just been chosen.
    pub(crate) const FIRST_CALL: u8 = 2;
    /// It belongs to a connection whose opener called a VIP, and came to that opener by itself.
    pub(crate) const ANSWER: u8 = 3;
}

/// How things stand with the connection of a half.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// None, or only what is left of one.
    Over,
    /// Alive; the opener called the backend itself.
    Untranslated,
    /// Alive; the opener called a VIP.
    Translated,
}

/// The packet's tuple, as it is in memory.
#[inline(always)]
pub(crate) fn tuple(packet: &Packet) -> PacketTuple {
    PacketTuple {
        source: packet.source,
        destination: packet.destination,
        source_port: packet.source_port.to_be_bytes(),
        destination_port: packet.destination_port.to_be_bytes(),
        protocol: packet.protocol,
        zero: [0; 3],
    }
}

/// The tuple the packet came with.
#[inline(always)]
pub(crate) fn called(packet: &Packet, flow: &Flow) -> PacketTuple {
    PacketTuple {
        destination: flow.called,
        destination_port: flow.called_port.to_be_bytes(),
        ..tuple(packet)
    }
}

/// The tuple the packet is to have. A workload that is its own backend gets to see the VIP, or its stack would take
/// the packet for one of its own and drop it.
#[inline(always)]
fn becomes(packet: &Packet, flow: &Flow) -> PacketTuple {
    let source = if packet.source == packet.destination { flow.called } else { packet.source };
    PacketTuple { source, ..tuple(packet) }
}

/// The half with this key, if it is a service's.
#[inline(always)]
pub(crate) fn find(key: &PacketTuple) -> Option<&'static Translation> {
    // SAFETY: an element may become another's under us, once its connection is over; then it leads to a connection
    // that is not this packet's, which is not followed.
    let half = unsafe { TRANSLATIONS.get(key) }?;
    (half.kind == TranslationKind::Service as u8).then_some(half)
}

/// The reverse half of a connection that is being opened, if there is one already.
#[inline(always)]
pub(crate) fn reverse(packet: &Packet, flow: &Flow) -> Option<&'static Translation> {
    find(&becomes(packet, flow).reversed())
}

/// Of the connection from `ends.source`, an endpoint of this node, to `ends.destination`.
#[inline(always)]
pub(crate) fn standing(ends: &PacketTuple, flow: &Flow, second: u32) -> Standing {
    match translation_standing(ends, flow.source.instance, second) {
        0 => Standing::Over,
        1 => Standing::Untranslated,
        _ => Standing::Translated,
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn translation_standing(ends: *const PacketTuple, instance: u32, second: u32) -> u32 {
    // SAFETY: the callers pass references; the test for null is for the verifier.
    let Some(ends) = (unsafe { ends.as_ref() }) else { return Standing::Over as u32 };
    let ports = (u16::from_be_bytes(ends.source_port), u16::from_be_bytes(ends.destination_port));
    let v4 = address::is_mapped4(&ends.source);
    let tuple = Tuple::new(&ends.source, &ends.destination, ports, ends.protocol, v4);
    let other = identity::endpoint(&ends.destination).map_or(0, |endpoint| endpoint.instance as u32);
    let standing = match conntrack::find(&tuple) {
        Some(entry)
            if entry.is_between(tuple.instances(instance, other))
                && entry.is_alive(ends.protocol, second)
                && !(ends.protocol == protocol::TCP && entry.is_closing()) =>
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

/// Enters both halves for a connection that policy has allowed; none of them if that fails.
#[inline(always)]
pub(crate) fn enter(packet: &Packet, flow: &Flow, second: u32) -> Result<(), DropReason> {
    match translation_enter(packet, flow, second) {
        ENTERED => Ok(()),
        FULL => Err(DropReason::TranslationMapFull),
        _ => Err(DropReason::TranslationConflict),
    }
}

const ENTERED: u32 = 0;
const FULL: u32 = 1;
const CONFLICT: u32 = 2;

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn translation_enter(packet: *const Packet, flow: *const Flow, second: u32) -> u32 {
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(packet), Some(flow)) = (unsafe { (packet.as_ref(), flow.as_ref()) }) else {
        return CONFLICT;
    };
    let instance = flow.source.instance;
    let key = called(packet, flow);
    let mut half = Translation {
        tuple: becomes(packet, flow),
        kind: TranslationKind::Service as u8,
        is_forward: 1,
        zero: [0; 2],
    };
    let result = translation_put(&key, &half, instance, second);
    if result != ENTERED {
        return result;
    }
    let answer = half.tuple.reversed();
    half = Translation { tuple: key.reversed(), is_forward: 0, ..half };
    let result = translation_put(&answer, &half, instance, second);
    if result != ENTERED {
        // It may be gone already: then there is nothing to undo.
        let _ = TRANSLATIONS.remove(&key);
    }
    result
}

/// Enters one half. One that is there already is replaced if it is of the same connection, which has just been opened
/// anew or is being opened by another CPU as well, or of one that is over.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn translation_put(
    key: *const PacketTuple,
    half: *const Translation,
    instance: u32,
    second: u32,
) -> u32 {
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(key), Some(half)) = (unsafe { (key.as_ref(), half.as_ref()) }) else { return CONFLICT };
    match TRANSLATIONS.insert(key, half, BPF_NOEXIST.into()) {
        Ok(()) => return ENTERED,
        Err(EXISTS) => {}
        Err(_) => return FULL,
    }
    // SAFETY: as in `find`; whatever is read, the connection it leads to is looked at.
    if let Some(old) = unsafe { TRANSLATIONS.get(key) } {
        let (there, here) = (&old.tuple, &half.tuple);
        let same = there.destination == here.destination && there.destination_port == here.destination_port;
        let ends =
            PacketTuple { destination: there.destination, destination_port: there.destination_port, ..*key };
        if !same && translation_standing(&ends, instance, second) == Standing::Translated as u32 {
            return CONFLICT;
        }
    }
    match TRANSLATIONS.insert(key, half, BPF_ANY.into()) {
        Ok(()) => ENTERED,
        Err(_) => FULL,
    }
}
