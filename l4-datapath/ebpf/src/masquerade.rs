//! The node's address in place of workloads' own, on devices that lead out of the node, and back.
//!
//! A connection gets a port of [`abi::Node::masquerade`] once, when its first packet leaves, and keeps it: the two halves
//! stand in `TRANSLATIONS` until `conntrack_gc` finds the connection dead. Only who has a connection gets one, so quotas
//! bound the table. What was opened from beyond, to a workload's own address, is answered from that address.
//!
//! The reverse half is entered first, with `BPF_NOEXIST`: it alone says who has the port towards that peer. Of two CPUs
//! with packets of one new connection, one enters the forward half; the other takes its reverse half back.
//!
//! Rejected: a free list of ports (one for each peer and protocol), a lock, and `bpf_loop`, which is of kernel 5.17.

use core::ptr::read_volatile;

use abi::{Address, DeviceFlags, DropReason, PacketTuple, ReservedIdentity, Translation, TranslationKind};
use aya_ebpf::{
    bindings::{__sk_buff, BPF_NOEXIST},
    btf_maps::lpm_trie::Key,
    helpers::bpf_get_prandom_u32,
};

use crate::{
    address::is_mapped4,
    conntrack::{self, EXISTS, Tuple},
    fragment,
    header::{icmp4, icmp6, protocol},
    identity::{self, Moment},
    judge,
    maps::{BOUND, DEVICES, NODE, TRANSLATIONS, UNMASQUERADED},
    node_socket,
    parse::{self, Packet},
    refusal::Refusal,
    related, rewrite,
    skb::Skb,
};

/// Ports tried before a connection is refused: all of a small range; of a large one so many that, with nine tenths of
/// it taken towards that peer, one connection in a million is refused.
const ATTEMPTS: u32 = 128;

/// Masquerades a packet of a workload on its way out, if it is to be.
#[inline(always)]
pub(crate) fn leaving(skb: Skb, packet: &mut Packet, now: &Moment) -> Result<(), Refusal> {
    Refusal::check(masquerade_leaving(skb.as_ptr(), packet, now))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn masquerade_leaving(skb: *mut __sk_buff, packet: *mut Packet, now: *const Moment) -> u32 {
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(packet), Some(now)) = (unsafe { (packet.as_mut(), now.as_ref()) }) else {
        return Refusal::ABSURD;
    };
    Refusal::encode(leave(Skb::from(skb), packet, now))
}

#[inline(always)]
fn leave(skb: Skb, packet: &mut Packet, now: &Moment) -> Result<(), Refusal> {
    let Some(address) = address(skb, packet)? else { return Ok(()) };
    parse::transport(skb, packet)?;
    fragment::recall(packet, now)?;
    if judge::is_error(packet) {
        return complain(skb, packet);
    }
    let key = tuple(packet).ok_or(DropReason::UnsupportedMasquerade)?;
    let mut becomes = key;
    match masquerade_find(skb.as_ptr(), &key, &address, now, &mut becomes) {
        FOUND => {}
        UNTOUCHED => return Ok(()),
        reason => return Refusal::check(reason),
    }
    fragment::remember(packet, now);
    packet.source = becomes.source;
    packet.source_port = u16::from_be_bytes(becomes.source_port);
    rewrite::packet(skb, packet, !packet.is_later())
}

/// What the packet is masqueraded by; `None` if it goes as it is.
#[inline(always)]
fn address(skb: Skb, packet: &Packet) -> Result<Option<Address>, DropReason> {
    // SAFETY: an element says the same of its device for as long as that has one.
    let device = unsafe { DEVICES.get(skb.ifindex()) }.ok_or(DropReason::NotReady)?;
    let (flag, address) = if packet.is_v4() {
        (DeviceFlags::MASQUERADE4, Address::v4(device.ipv4))
    } else {
        (DeviceFlags::MASQUERADE6, Address(device.ipv6))
    };
    if device.flags & flag == 0 || UNMASQUERADED.get(&Key::new(128, packet.destination)).is_some() {
        return Ok(None);
    }
    if address.0 == [0; 16] || address.0 == Address::v4([0; 4]).0 {
        return Err(DropReason::NoMapping);
    }
    Ok(Some(address))
}

/// The packet's tuple; of an ICMP echo, the identifier stands for both ports. `None` for what has nothing to tell one
/// workload's answers from another's, and for SCTP: nobody could set its checksum right for another port.
#[inline(always)]
fn tuple(packet: &Packet) -> Option<PacketTuple> {
    let destination_port = match packet.protocol {
        protocol::TCP | protocol::UDP => packet.destination_port,
        protocol::ICMP if matches!(packet.icmp_type(), icmp4::ECHO_REQUEST | icmp4::ECHO_REPLY) => {
            packet.source_port
        }
        protocol::ICMPV6 if matches!(packet.icmp_type(), icmp6::ECHO_REQUEST | icmp6::ECHO_REPLY) => {
            packet.source_port
        }
        // The type of later fragments is not known; only echoes have any.
        protocol::ICMP | protocol::ICMPV6 if packet.is_later() => packet.source_port,
        _ => return None,
    };
    Some(PacketTuple {
        source: packet.source,
        destination: packet.destination,
        source_port: packet.source_port.to_be_bytes(),
        destination_port: destination_port.to_be_bytes(),
        protocol: packet.protocol,
        zero: [0; 3],
    })
}

/// `becomes` says what the packet becomes.
const FOUND: u32 = 0;
/// The packet goes as it is. No reason has this number.
const UNTOUCHED: u32 = 1;

/// Finds or makes the translation of the connection with this tuple: [`FOUND`], [`UNTOUCHED`] or a reason.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn masquerade_find(
    skb: *mut __sk_buff,
    key: *const PacketTuple,
    address: *const Address,
    now: *const Moment,
    becomes: *mut PacketTuple,
) -> u32 {
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(key), Some(address), Some(now), Some(becomes)) =
        (unsafe { (key.as_ref(), address.as_ref(), now.as_ref(), becomes.as_mut()) })
    else {
        return Refusal::ABSURD;
    };
    if known(key, address, now, becomes) {
        return FOUND;
    }
    let connection = connection(key);
    match conntrack::find(&connection) {
        Some(entry) if entry.is_alive(key.protocol, now.second) => {
            if entry.opened_by_high() != connection.source_is_high {
                return UNTOUCHED;
            }
        }
        _ => return DropReason::NoConnection as u32,
    }
    let made = masquerade_allocate(skb, key, address);
    if made == FOUND && !known(key, address, now, becomes) {
        return DropReason::NoMapping as u32;
    }
    made
}

/// Where the connection of an outgoing packet stands.
#[inline(always)]
fn connection(key: &PacketTuple) -> Tuple {
    let ports = (u16::from_be_bytes(key.source_port), u16::from_be_bytes(key.destination_port));
    Tuple::new(&key.source, &key.destination, ports, key.protocol, is_mapped4(&key.source))
}

/// Whether there is a forward half that holds. One by an address that the node no longer has leads nowhere, and goes.
#[inline(always)]
fn known(key: &PacketTuple, address: &Address, now: &Moment, becomes: &mut PacketTuple) -> bool {
    if masquerade_half(key, 1, becomes) != FOUND {
        return false;
    }
    if becomes.source == *address
        || identity::remote(&becomes.source, now.generation) == ReservedIdentity::HOST
    {
        return true;
    }
    masquerade_forget(key, becomes);
    false
}

/// Copies what a packet with this tuple becomes: [`FOUND`], or not if there is no half of that direction.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn masquerade_half(key: *const PacketTuple, is_forward: u32, becomes: *mut PacketTuple) -> u32 {
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(key), Some(becomes)) = (unsafe { (key.as_ref(), becomes.as_mut()) }) else {
        return Refusal::ABSURD;
    };
    // Until 6.2 what a global function was given cannot be a map's key.
    let key = *key;
    // SAFETY: an element may become another's under us, once its connection is over.
    match unsafe { TRANSLATIONS.get(&key) } {
        Some(half)
            if half.kind == TranslationKind::Masquerade as u8 && u32::from(half.is_forward) == is_forward =>
        {
            *becomes = half.tuple;
            FOUND
        }
        _ => UNTOUCHED,
    }
}

/// Removes both halves.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn masquerade_forget(key: *const PacketTuple, becomes: *const PacketTuple) -> u32 {
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(key), Some(becomes)) = (unsafe { (key.as_ref(), becomes.as_ref()) }) else { return 0 };
    // Either may be gone already.
    let mut one = becomes.reversed();
    let _ = TRANSLATIONS.remove(&one);
    one = *key;
    let _ = TRANSLATIONS.remove(&one);
    0
}

/// Makes both halves, under a port that nobody has towards this peer.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn masquerade_allocate(
    skb: *mut __sk_buff,
    key: *const PacketTuple,
    address: *const Address,
) -> u32 {
    // SAFETY: the caller passes references; the test for null is for the verifier.
    let (Some(key), Some(node)) = (unsafe { key.as_ref() }, NODE.get_ptr(0)) else { return Refusal::ABSURD };
    // SAFETY: an array element lives as long as the map; the agent stores to it meanwhile, hence volatile.
    let ports = unsafe { read_volatile(&raw const (*node).masquerade) };
    let (first, last) = (ports >> 16, ports & 0xffff);
    if ports == 0 || last < first {
        return DropReason::NoMapping as u32;
    }
    let span = last - first + 1;
    let own = u32::from(u16::from_be_bytes(key.source_port));
    // SAFETY: no arguments.
    let random = unsafe { bpf_get_prandom_u32() };
    // A guess at the port must be as hard as a guess at the workload's own (RFC 6056).
    let start = if (first..=last).contains(&own) { own - first } else { random % span };
    // Odd: goes through all of a range of a power of two, as the default's is.
    let step = if span <= ATTEMPTS { 1 } else { random >> 16 | 1 };
    for attempt in 0..ATTEMPTS {
        if attempt >= span {
            break;
        }
        let port = first + (start + attempt * step) % span;
        match masquerade_take(skb, key, address, port) {
            TAKEN => {}
            result => return result,
        }
    }
    DropReason::NoMapping as u32
}

/// The port is in use towards this peer. No reason has this number.
const TAKEN: u32 = 2;

/// Makes both halves under this very port: [`FOUND`] (also if another CPU made them), [`TAKEN`] or a reason.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn masquerade_take(
    skb: *mut __sk_buff,
    key: *const PacketTuple,
    address: *const Address,
    port: u32,
) -> u32 {
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(key), Some(address)) = (unsafe { (key.as_ref(), address.as_ref()) }) else {
        return Refusal::ABSURD;
    };
    let is_echo = matches!(key.protocol, protocol::ICMP | protocol::ICMPV6);
    if !is_echo && is_bound(port) {
        return TAKEN;
    }
    let number = (port as u16).to_be_bytes();
    let mut becomes = PacketTuple { source: *address, source_port: number, ..*key };
    if is_echo {
        becomes.destination_port = number;
    }
    let answer = becomes.reversed();
    // Most are found taken by this alone.
    // SAFETY: nothing is read of it.
    if unsafe { TRANSLATIONS.get(&answer) }.is_some() || node_socket::expects(Skb::from(skb), &answer) {
        return TAKEN;
    }
    enter(key, &becomes, &answer)
}

#[inline(always)]
fn enter(key: &PacketTuple, becomes: &PacketTuple, answer: &PacketTuple) -> u32 {
    let mut half = Translation {
        tuple: key.reversed(),
        kind: TranslationKind::Masquerade as u8,
        is_forward: 0,
        orphaned: 0,
        zero: 0,
    };
    match TRANSLATIONS.insert(answer, &half, BPF_NOEXIST.into()) {
        Ok(()) => {}
        Err(EXISTS) => return TAKEN,
        Err(_) => return DropReason::TranslationMapFull as u32,
    }
    half.tuple = *becomes;
    half.is_forward = 1;
    let key = *key;
    let result = match TRANSLATIONS.insert(&key, &half, BPF_NOEXIST.into()) {
        Ok(()) => return FOUND,
        Err(EXISTS) => FOUND,
        Err(_) => DropReason::TranslationMapFull as u32,
    };
    // It cannot be gone: `conntrack_gc` takes none the first time it sees it.
    let _ = TRANSLATIONS.remove(answer);
    result
}

/// A process of the node has bound the port itself.
#[inline(always)]
fn is_bound(port: u32) -> bool {
    let Some(word) = BOUND.get_ptr(port / 64) else { return true };
    // SAFETY: as in `masquerade_allocate`; `post_bind` stores to it.
    let bits = unsafe { read_volatile(word) };
    bits >> (port % 64) & 1 == 1
}

/// An error of a workload about what came to it by its masquerade: whoever hears of it knows that alone.
#[inline(always)]
fn complain(skb: Skb, packet: &mut Packet) -> Result<(), Refusal> {
    let quoted = related::quoted(skb, packet, &packet.destination, true).ok_or(DropReason::UnrelatedIcmp)?;
    let key = quoted.reversed();
    let mut becomes = key;
    if masquerade_half(&key, 1, &mut becomes) != FOUND {
        let connection = connection(&key);
        return match conntrack::find(&connection) {
            // It came to the workload's own address.
            Some(entry) if entry.opened_by_high() != connection.source_is_high => Ok(()),
            _ => Err(DropReason::NoMapping.into()),
        };
    }
    rewrite::quote(skb, packet, &becomes.reversed())?;
    packet.source = becomes.source;
    rewrite::packet(skb, packet, true)
}

/// Gives a packet from beyond that is for a workload's masquerade to the workload. All others stay as they are.
#[inline(always)]
pub(crate) fn arriving(skb: Skb, packet: &mut Packet, now: &Moment) -> Result<(), Refusal> {
    Refusal::check(masquerade_arriving(skb.as_ptr(), packet, now))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn masquerade_arriving(skb: *mut __sk_buff, packet: *mut Packet, now: *const Moment) -> u32 {
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(packet), Some(now)) = (unsafe { (packet.as_mut(), now.as_ref()) }) else {
        return Refusal::ABSURD;
    };
    Refusal::encode(arrive(Skb::from(skb), packet, now))
}

#[inline(always)]
fn arrive(skb: Skb, packet: &mut Packet, now: &Moment) -> Result<(), Refusal> {
    // Whatever is wrong with a packet for the node itself is the stack's to find.
    if parse::transport(skb, packet).is_err() || fragment::recall(packet, now).is_err() {
        return Ok(());
    }
    if judge::is_error(packet) {
        return hear(skb, packet);
    }
    let Some(key) = tuple(packet) else { return Ok(()) };
    let mut becomes = key;
    if masquerade_half(&key, 0, &mut becomes) != FOUND {
        return Ok(());
    }
    fragment::remember(packet, now);
    packet.destination = becomes.destination;
    let port = u16::from_be_bytes(becomes.destination_port);
    match packet.protocol {
        protocol::ICMP | protocol::ICMPV6 => packet.source_port = port,
        _ => packet.destination_port = port,
    }
    rewrite::packet(skb, packet, !packet.is_later())
}

/// An error about what a workload sent, as its masquerade, to somebody beyond.
#[inline(always)]
fn hear(skb: Skb, packet: &mut Packet) -> Result<(), Refusal> {
    let Some(quoted) = related::quoted(skb, packet, &packet.destination, false) else { return Ok(()) };
    let key = quoted.reversed();
    let mut becomes = key;
    if masquerade_half(&key, 0, &mut becomes) != FOUND {
        return Ok(());
    }
    rewrite::quote(skb, packet, &becomes.reversed())?;
    packet.destination = becomes.destination;
    rewrite::packet(skb, packet, true)
}
