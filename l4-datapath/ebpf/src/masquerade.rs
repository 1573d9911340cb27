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

use abi::{
    Address, DeviceFlags, DropReason, MARK_ANSWER, PacketTuple, ReservedIdentity, Translation,
    TranslationKind,
};
use aya_ebpf::{
    bindings::{__sk_buff, BPF_NOEXIST},
    btf_maps::lpm_trie::Key,
    helpers::bpf_get_prandom_u32,
};

use crate::{
    address::{is_mapped4, is_unspecified},
    conntrack::{self, EXISTS, Tuple},
    fragment,
    header::{icmp4, icmp6, protocol},
    identity::{self, Moment},
    judge,
    maps::{BOUND, DEVICES, NODE, TRANSLATIONS, UNMASQUERADED},
    node_socket,
    parse::{self, Packet},
    quota,
    refusal::Refusal,
    related::{self, Quote},
    rewrite,
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
    let mut address = Address([0; 16]);
    match masquerade_address(skb.as_ptr(), packet, &mut address) {
        FOUND => {}
        UNTOUCHED => return Ok(()),
        reason => return Refusal::check(reason),
    }
    parse::transport(skb, packet)?;
    fragment::recall(packet, now)?;
    // An answer of a program's to who called a workload by its own address: of what was refused there is no connection.
    let is_answer = skb.mark() == MARK_ANSWER;
    if judge::is_error(packet) {
        return match masquerade_complain(skb.as_ptr(), packet) {
            NO_MAPPING if is_answer => Ok(()),
            reason => Refusal::check(reason),
        };
    }
    let (mut key, mut becomes) = (NO_TUPLE, NO_TUPLE);
    if !fill(&mut key, packet) {
        return Err(DropReason::UnsupportedMasquerade.into());
    }
    match masquerade_find(&key, &address, now, &mut becomes) {
        FOUND => {}
        UNTOUCHED => return Ok(()),
        NO_CONNECTION if is_answer => return Ok(()),
        NEW => {
            Refusal::check(masquerade_allocate(skb.as_ptr(), &key, &address))?;
            if masquerade_half(&key, 1, &mut becomes) != FOUND {
                return Err(DropReason::NoMapping.into());
            }
        }
        reason => return Refusal::check(reason),
    }
    fragment::remember(packet, now);
    packet.source = becomes.source;
    packet.source_port = u16::from_be_bytes(becomes.source_port);
    rewrite::packet(skb, packet, !packet.is_later())
}

/// Fills in what the packet is masqueraded by: [`FOUND`], [`UNTOUCHED`] or a reason.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn masquerade_address(skb: *mut __sk_buff, packet: *const Packet, address: *mut Address) -> u32 {
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(packet), Some(address)) = (unsafe { (packet.as_ref(), address.as_mut()) }) else {
        return Refusal::ABSURD;
    };
    // SAFETY: an element says the same of its device for as long as that has one.
    let Some(device) = (unsafe { DEVICES.get(Skb::from(skb).ifindex()) }) else {
        return DropReason::NotReady as u32;
    };
    let (flag, has_none) = if packet.is_v4() {
        *address = Address::v4(device.ipv4);
        (DeviceFlags::MASQUERADE4, device.ipv4 == [0; 4])
    } else {
        address.0 = device.ipv6;
        (DeviceFlags::MASQUERADE6, is_unspecified(address))
    };
    if device.flags & flag == 0 || UNMASQUERADED.get(&Key::new(128, packet.destination)).is_some() {
        return UNTOUCHED;
    }
    if has_none { DropReason::NoMapping as u32 } else { FOUND }
}

/// To be filled.
const NO_TUPLE: PacketTuple = PacketTuple {
    source: Address([0; 16]),
    destination: Address([0; 16]),
    source_port: [0; 2],
    destination_port: [0; 2],
    protocol: 0,
    zero: [0; 3],
};

/// Fills in the packet's tuple; of an ICMP echo, the identifier stands for both ports. Not for what has nothing to tell
/// one workload's answers from another's, nor for SCTP: nobody could set its checksum right for another port.
#[inline(always)]
fn fill(tuple: &mut PacketTuple, packet: &Packet) -> bool {
    tuple.source = packet.source;
    tuple.destination = packet.destination;
    tuple.protocol = packet.protocol;
    tuple.source_port = packet.source_port.to_be_bytes();
    let kind = packet.icmp_type();
    match packet.protocol {
        protocol::TCP | protocol::UDP => {
            tuple.destination_port = packet.destination_port.to_be_bytes();
            return true;
        }
        protocol::ICMP if packet.is_later() || matches!(kind, icmp4::ECHO_REQUEST | icmp4::ECHO_REPLY) => {}
        protocol::ICMPV6 if packet.is_later() || matches!(kind, icmp6::ECHO_REQUEST | icmp6::ECHO_REPLY) => {}
        _ => return false,
    }
    tuple.destination_port = tuple.source_port;
    true
}

/// `becomes` says what the packet becomes.
const FOUND: u32 = 0;
/// The packet goes as it is. No reason has this number, nor the next two.
const UNTOUCHED: u32 = 1;
/// The port is in use towards this peer.
const TAKEN: u32 = 2;
/// The connection needs a port.
const NEW: u32 = 3;
/// Reasons, as patterns.
const NO_CONNECTION: u32 = DropReason::NoConnection as u32;
const NO_MAPPING: u32 = DropReason::NoMapping as u32;

/// Finds the translation of the connection with this tuple: [`FOUND`], [`UNTOUCHED`], [`NEW`] or a reason.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn masquerade_find(
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
    let mut connection = connection(key);
    if let Some(entry) = conntrack::find(&connection)
        && entry.is_alive(key.protocol, now.second)
    {
        let is_answer = entry.opened_by_high() != connection.source_is_high;
        if is_answer || !entry.is_proxied() {
            return if is_answer { UNTOUCHED } else { NEW };
        }
    }
    // Of a proxied connection only what the L7 proxy opens in the opener's name leaves the node.
    connection.set_proxy_leg();
    match conntrack::find(&connection) {
        Some(entry) if entry.is_alive(key.protocol, now.second) => {
            if entry.opened_by_high() == connection.source_is_high { NEW } else { UNTOUCHED }
        }
        _ => DropReason::NoConnection as u32,
    }
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
        || identity::remote(&becomes.source, now.generation).identity() == ReservedIdentity::HOST
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
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(key), Some(address)) = (unsafe { (key.as_ref(), address.as_ref()) }) else {
        return Refusal::ABSURD;
    };
    let Some(node) = NODE.get_ptr(0) else { return DropReason::NotReady as u32 };
    // SAFETY: an array element lives as long as the map; the agent stores to it meanwhile, hence volatile.
    let ports = unsafe { read_volatile(&raw const (*node).masquerade) };
    let (first, last) = (ports >> 16, ports & 0xffff);
    if ports == 0 || last < first {
        return DropReason::NoMapping as u32;
    }
    let span = last - first + 1;
    // The last eighth is for those who have few: nobody takes every port towards a server that all need.
    let span = if quota::exceeds(&key.source, span / 2) { span - span / 8 } else { span };
    let last = first + span - 1;
    let own = u32::from(u16::from_be_bytes(key.source_port));
    // SAFETY: no arguments.
    let random = unsafe { bpf_get_prandom_u32() };
    // A guess at the port must be as hard as a guess at the workload's own (RFC 6056).
    let start = if (first..=last).contains(&own) { own - first } else { random % span };
    for attempt in 0..ATTEMPTS {
        if attempt >= span {
            break;
        }
        let offset = match attempt {
            0 => start,
            // Each for itself: a walk in steps misses ports whose number shares a factor with the step, and clusters.
            // SAFETY: no arguments.
            _ if span > ATTEMPTS => unsafe { bpf_get_prandom_u32() },
            // All of them.
            _ => start + attempt,
        };
        let port = first + offset % span;
        match take(skb, key, address, port) {
            TAKEN => {}
            result => return result,
        }
    }
    DropReason::NoMapping as u32
}

/// Makes both halves under this very port: [`FOUND`] (also if another CPU made them), [`TAKEN`] or a reason.
#[inline(always)]
fn take(skb: *mut __sk_buff, key: &PacketTuple, address: &Address, port: u32) -> u32 {
    if masquerade_is_free(skb, key, address, port) == 0 {
        return TAKEN;
    }
    masquerade_enter(key, address, port)
}

/// The tuple under which answers come to `address` and this port.
#[inline(always)]
fn answer(key: &PacketTuple, address: &Address, port: u32) -> PacketTuple {
    let port = (port as u16).to_be_bytes();
    PacketTuple {
        source: key.destination,
        destination: *address,
        source_port: if is_echo(key) { port } else { key.destination_port },
        destination_port: port,
        ..*key
    }
}

#[inline(always)]
fn is_echo(key: &PacketTuple) -> bool {
    matches!(key.protocol, protocol::ICMP | protocol::ICMPV6)
}

/// 1 if neither a workload nor the node itself has the port towards this peer.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn masquerade_is_free(
    skb: *mut __sk_buff,
    key: *const PacketTuple,
    address: *const Address,
    port: u32,
) -> u32 {
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(key), Some(address)) = (unsafe { (key.as_ref(), address.as_ref()) }) else { return 0 };
    if !is_echo(key) && is_bound(port) {
        return 0;
    }
    let answer = answer(key, address, port);
    // SAFETY: nothing is read of it.
    if unsafe { TRANSLATIONS.get(&answer) }.is_some() {
        return 0;
    }
    u32::from(!node_socket::expects(Skb::from(skb), &answer))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn masquerade_enter(key: *const PacketTuple, address: *const Address, port: u32) -> u32 {
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(key), Some(address)) = (unsafe { (key.as_ref(), address.as_ref()) }) else {
        return Refusal::ABSURD;
    };
    let mut at = answer(key, address, port);
    let mut half = Translation {
        tuple: key.reversed(),
        kind: TranslationKind::Masquerade as u8,
        is_forward: 0,
        orphaned: 0,
        zero: 0,
    };
    match TRANSLATIONS.insert(&at, &half, BPF_NOEXIST.into()) {
        Ok(()) => {}
        Err(EXISTS) => return TAKEN,
        Err(_) => return DropReason::TranslationMapFull as u32,
    }
    half.tuple = at.reversed();
    half.is_forward = 1;
    at = *key;
    let result = match TRANSLATIONS.insert(&at, &half, BPF_NOEXIST.into()) {
        Ok(()) => return FOUND,
        Err(EXISTS) => FOUND,
        Err(_) => DropReason::TranslationMapFull as u32,
    };
    at = half.tuple.reversed();
    // It cannot be gone: `conntrack_gc` takes none the first time it sees it.
    let _ = TRANSLATIONS.remove(&at);
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
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn masquerade_complain(skb: *mut __sk_buff, packet: *mut Packet) -> u32 {
    // SAFETY: the caller passes a reference; the test for null is for the verifier.
    let Some(packet) = (unsafe { packet.as_mut() }) else { return Refusal::ABSURD };
    Refusal::encode(complain(Skb::from(skb), packet))
}

#[inline(always)]
fn complain(skb: Skb, packet: &mut Packet) -> Result<(), Refusal> {
    let mut quote = Quote::NONE;
    if !related::quoted(skb, packet, &packet.destination, &mut quote) || quote.answer.source != packet.source
    {
        return Err(DropReason::UnrelatedIcmp.into());
    }
    let mut becomes = NO_TUPLE;
    if masquerade_half(&quote.answer, 1, &mut becomes) != FOUND {
        return Refusal::check(masquerade_is_called(&quote.answer));
    }
    quote.answer = becomes;
    packet.source = becomes.source;
    rewrite::packet(skb, packet, true)?;
    rewrite::quote(skb, packet, &quote)
}

/// Whether the connection of an answer was opened from beyond, to the workload's own address.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn masquerade_is_called(answer: *const PacketTuple) -> u32 {
    // SAFETY: the caller passes a reference; the test for null is for the verifier.
    let Some(answer) = (unsafe { answer.as_ref() }) else { return Refusal::ABSURD };
    let connection = connection(answer);
    Refusal::encode(match conntrack::find(&connection) {
        Some(entry) if entry.opened_by_high() != connection.source_is_high => Ok(()),
        _ => Err(DropReason::NoMapping),
    })
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
        return Refusal::check(masquerade_hear(skb.as_ptr(), packet));
    }
    let (mut key, mut becomes) = (NO_TUPLE, NO_TUPLE);
    if !fill(&mut key, packet) || masquerade_half(&key, 0, &mut becomes) != FOUND {
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
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn masquerade_hear(skb: *mut __sk_buff, packet: *mut Packet) -> u32 {
    // SAFETY: the caller passes a reference; the test for null is for the verifier.
    let Some(packet) = (unsafe { packet.as_mut() }) else { return Refusal::ABSURD };
    Refusal::encode(hear(Skb::from(skb), packet))
}

#[inline(always)]
fn hear(skb: Skb, packet: &mut Packet) -> Result<(), Refusal> {
    let mut quote = Quote::NONE;
    if !related::quoted(skb, packet, &packet.destination, &mut quote) {
        return Ok(());
    }
    let mut becomes = NO_TUPLE;
    if masquerade_half(&quote.answer, 0, &mut becomes) != FOUND {
        return Ok(());
    }
    quote.answer = becomes;
    packet.destination = becomes.destination;
    rewrite::packet(skb, packet, true)?;
    rewrite::quote(skb, packet, &quote)
}
