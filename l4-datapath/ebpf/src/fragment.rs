//! Datagrams in pieces: only the first has ports, the others are judged by what it had.
//!
//! A first piece holds all headers ([`crate::parse`]) and is judged as any packet is; once it has passed, [`remember`]
//! notes what it had. A later piece that comes before it, or long after it, is refused, and so is one that begins
//! before the first one's end: it could change what was judged (RFC 1858, RFC 5722). Reassembling here instead would
//! cost memory that whoever sends first pieces alone could fill.

use abi::{Address, DropReason, Fragment, FragmentKey};

use crate::{identity::Moment, maps::FRAGMENTS, parse::Packet, refusal::Refusal};

/// Seconds for which a first piece is believed: as long as Linux keeps IPv4 pieces (`ipfrag_time`).
const LIFETIME: u32 = 30;
/// What an IP packet can be once it is put together.
const LONGEST: u32 = 65_535;

/// What of its datagram a packet is.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Whole,
    /// All of it, with a fragment header all the same (RFC 6946).
    Atomic,
    First,
    Later,
}

/// A packet's place in its datagram; see [`crate::parse::Packet`].
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Piece {
    /// As [`FragmentKey::id`].
    pub(crate) id: [u8; 4],
    /// Where its payload stands in the datagram's: first byte, and the one behind the last.
    pub(crate) start: u16,
    pub(crate) end: u16,
    pub(crate) part: Part,
}

impl Piece {
    pub(crate) const WHOLE: Self = Self { id: [0; 4], start: 0, end: 0, part: Part::Whole };
    pub(crate) const ATOMIC: Self = Self { part: Part::Atomic, ..Self::WHOLE };

    /// A true fragment: `length` bytes of payload from `start` on. `before`: bytes of headers that count in the length
    /// of the whole.
    #[inline(always)]
    pub(crate) fn new(
        id: [u8; 4],
        start: u32,
        more: bool,
        length: u32,
        before: u32,
    ) -> Result<Self, DropReason> {
        let end = start.wrapping_add(length);
        // Only the last may end off the grid; none may be empty, or end where no packet does ("ping of death").
        if length == 0 || (more && length % 8 != 0) || length > LONGEST || before.wrapping_add(end) > LONGEST
        {
            return Err(DropReason::InvalidPacket);
        }
        let part = if start == 0 { Part::First } else { Part::Later };
        Ok(Self { id, start: start as u16, end: end as u16, part })
    }
}

/// Notes what a first piece had; for a packet that has passed, with the addresses and ports that it came with.
/// Nothing for other packets.
#[inline(always)]
pub(crate) fn remember(packet: &Packet, now: &Moment) {
    if packet.piece.part == Part::First {
        fragment_remember(packet, now);
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fragment_remember(packet: *const Packet, now: *const Moment) -> u32 {
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(packet), Some(now)) = (unsafe { (packet.as_ref(), now.as_ref()) }) else { return 0 };
    let value = Fragment {
        source_port: packet.source_port.to_be_bytes(),
        destination_port: packet.destination_port.to_be_bytes(),
        first_length: packet.piece.end,
        protocol: packet.protocol,
        zero: 0,
        seen: now.second,
    };
    // A later datagram takes the id of an earlier: the new one counts. If there is no room, later pieces are refused.
    let _ = FRAGMENTS.insert(key(packet), value, 0);
    0
}

/// Gives a later piece the protocol and ports of its first. Nothing for other packets.
#[inline(always)]
pub(crate) fn recall(packet: &mut Packet, now: &Moment) -> Result<(), Refusal> {
    if packet.is_later() { Refusal::check(fragment_recall(packet, now)) } else { Ok(()) }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fragment_recall(packet: *mut Packet, now: *const Moment) -> u32 {
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(packet), Some(now)) = (unsafe { (packet.as_mut(), now.as_ref()) }) else {
        return Refusal::ABSURD;
    };
    Refusal::encode(take(packet, now))
}

#[inline(always)]
fn take(packet: &mut Packet, now: &Moment) -> Result<(), DropReason> {
    let key = key(packet);
    // SAFETY: elements are preallocated. One that is recycled under us is another datagram's ports: what is judged by
    // them belongs to an open connection or is refused.
    let first = unsafe { FRAGMENTS.get(&key) }.ok_or(DropReason::FirstFragmentMissing)?;
    if now.second.saturating_sub(first.seen) >= LIFETIME {
        return Err(DropReason::FirstFragmentMissing);
    }
    if packet.piece.start < first.first_length {
        let _ = FRAGMENTS.remove(&key);
        return Err(DropReason::Fragment);
    }
    packet.source_port = u16::from_be_bytes(first.source_port);
    packet.destination_port = u16::from_be_bytes(first.destination_port);
    packet.protocol = first.protocol;
    Ok(())
}

#[inline(always)]
fn key(packet: &Packet) -> FragmentKey {
    let (source, destination): (Address, Address) = (packet.source, packet.destination);
    let protocol = if packet.is_v4() { packet.protocol } else { 0 };
    FragmentKey { source, destination, id: packet.piece.id, protocol, zero: [0; 3] }
}
