//! What an answer of ours must be: to the sender alone, about what it sent, and well-formed.

use std::net::IpAddr;

use abi::{DropReason, MARK_ANSWER};
use etherparse::ArpOperation;

use super::{
    Hook,
    reader::{Body, Flags, Read, arp, read},
};
use crate::{
    frame::{LINK, octets},
    node::Outcome,
    world::Family,
};

/// Fails with `broken` unless `holds`.
fn ensure(holds: bool, broken: &str, outcome: &Outcome) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("answer: {broken}: {outcome:02x?}")) }
}

/// An RST or ICMP error that goes back for a packet dropped for `reason`.
pub(super) fn check_refusal(
    hook: Hook,
    reason: DropReason,
    frame: &[u8],
    outcome: &Outcome,
) -> Result<(), String> {
    let (Some(asked), Some(told)) = (read(frame), read(&outcome.frame)) else {
        return Err(format!("answer to or by no packet: {outcome:02x?}"));
    };
    let mark = if hook.is_from_pod() { 0 } else { MARK_ANSWER };
    ensure(outcome.mark == mark, "mark", outcome)?;
    ensure((told.source, told.destination) == (asked.destination, asked.source), "ends", outcome)?;
    let unicast = asked.macs.1[0] & 1 == 0;
    ensure(unicast && told.macs == (asked.macs.1, asked.macs.0), "link", outcome)?;
    ensure(told.length == outcome.frame.len(), "length", outcome)?;
    ensure(told.checksums == (true, true) && told.ttl == 64, "header", outcome)?;
    ensure(told.piece.is_none(), "in pieces", outcome)?;
    let about = frame.get(LINK..).unwrap_or_default();
    match reason {
        DropReason::NoConnection => ensure(resets(&asked, &told), "no reset", outcome),
        DropReason::TtlExceeded => {
            let kind = if asked.source.is_ipv4() { 11 } else { 3 };
            ensure(complains(&asked, &told, kind, about), "no time exceeded", outcome)
        }
        DropReason::TooBig => {
            let kind = if asked.source.is_ipv4() { 3 } else { 2 };
            ensure(complains(&asked, &told, kind, about), "no packet too big", outcome)
        }
        _ => Err(format!("{reason:?} is never answered: {outcome:02x?}")),
    }
}

fn resets(asked: &Read, told: &Read) -> bool {
    let reset = Flags { syn: false, ack: false, rst: true, fin: false };
    match (&asked.body, &told.body) {
        (
            Body::Tcp { ports: heard, flags: why, acknowledgement, .. },
            Body::Tcp { ports, flags, sequence, .. },
        ) => {
            let swapped = (heard.1, heard.0);
            why.ack && !why.rst && *flags == reset && sequence == acknowledgement && *ports == swapped
        }
        _ => false,
    }
}

fn complains(asked: &Read, told: &Read, wanted: u8, about: &[u8]) -> bool {
    match (&asked.body, &told.body) {
        (Body::Error { .. } | Body::Later, _) => false,
        (_, Body::Error { kind, quoted }) => *kind == wanted && about.starts_with(quoted),
        _ => false,
    }
}

/// Whether the frame asks for a neighbour, so that what left is the answer; an error if the answer is wrong.
pub(super) fn check_neighbour(hook: Hook, frame: &[u8], outcome: &Outcome) -> Result<bool, String> {
    let pod = hook.pod();
    if !hook.is_from_pod() {
        return Ok(false);
    }
    if let Some(asked) = arp(frame) {
        let told = arp(&outcome.frame).ok_or("no ARP")?;
        let own = octets(Family::V4.pool(pod.host)) == asked.sender_ipv4 && asked.sender_mac == pod.mac;
        ensure(own && asked.operation == ArpOperation::REQUEST, "asked in another's name", outcome)?;
        let gateway = (told.sender_mac, told.sender_ipv4) == (pod.gateway_mac, asked.target_ipv4);
        let workload = (told.target_mac, told.target_ipv4) == (pod.mac, asked.sender_ipv4);
        let link = outcome.frame[..12] == [pod.mac, pod.gateway_mac].concat();
        let reply = told.operation == ArpOperation::REPLY && asked.target_ipv4 != asked.sender_ipv4;
        ensure(gateway && workload && link && reply, "wrong ARP reply", outcome)?;
        return Ok(true);
    }
    let Some(Read { body: Body::OtherIcmp { kind: 135, rest: asked }, source, macs, ttl: 255, .. }) =
        read(frame).filter(|read| !read.fragment_header)
    else {
        return Ok(false);
    };
    let told = read(&outcome.frame).ok_or("no advertisement")?;
    let own =
        source == Family::V6.pool(pod.host) || matches!(source, IpAddr::V6(a) if a.is_unicast_link_local());
    ensure(own && macs.0 == pod.mac, "asked in another's name", outcome)?;
    let Body::OtherIcmp { kind: 136, rest } = &told.body else { return Err("no advertisement".into()) };
    ensure(told.macs == (pod.gateway_mac, pod.mac), "link", outcome)?;
    ensure(told.destination == source && told.ttl == 255 && told.checksums.1, "header", outcome)?;
    ensure(told.length == outcome.frame.len(), "length", outcome)?;
    let target = asked.get(4..20).unwrap_or_default();
    let unicast = !told.source.is_multicast() && !told.source.is_unspecified();
    ensure(unicast && octets(told.source) == target && octets(source) != target, "target", outcome)?;
    let option = [&[0x60, 0, 0, 0], target, &[2, 1], &pod.gateway_mac].concat();
    ensure(*rest == option, "advertisement", outcome)?;
    Ok(true)
}
