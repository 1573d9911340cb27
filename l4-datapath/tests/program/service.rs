//! Services for packets: what a workload sends to a VIP reaches a backend, and the answer comes from the VIP.

use std::{collections::BTreeMap, net::IpAddr};

use abi::{
    AffinityKey, Backend, DropReason, EventKind, Frontend, Member, PacketTuple, Service, Translation, map,
};

use super::{
    frame::{ACK, Ends, LINK, RST, SCTP, SYN, TCP, UDP, echo, ip, is_sound, sctp, sum_header, tcp, udp},
    node::{Node, OK, REDIRECT, SHOT},
    world::{A, B, FAMILIES, Family, Pod, Ports, address},
};

/// What is called.
pub(crate) fn vip(family: Family) -> IpAddr {
    match family {
        Family::V4 => "10.96.0.7".parse().unwrap(),
        Family::V6 => "fd00:96::7".parse().unwrap(),
    }
}

impl Node {
    /// Service `index`, with backends by number.
    pub(crate) fn serve(
        &mut self,
        index: u32,
        called: (IpAddr, u16, u8),
        backends: &[(u32, IpAddr, u16)],
        affinity: u32,
    ) {
        let first = index * 16;
        for (slot, (number, ip, port)) in (first..).zip(backends) {
            let backend =
                Backend { address: address(*ip), port: port.to_be_bytes(), zero: [0; 2], reserved: 0 };
            self.set(map::BACKENDS, *number, backend);
            self.set(map::SLOTS, slot, *number);
            if affinity != 0 {
                self.put(map::MEMBERS, Member { service: index, backend: *number }, 1_u32);
            }
        }
        let frontend = Frontend::new(address(called.0), called.1, called.2);
        let slots = Service::region(first, backends.len() as u32);
        self.set(map::SERVICES, index, Service { slots, frontend, affinity, flags: 0, zero: 0 });
        self.put(map::FRONTENDS, frontend, index);
        self.put(map::FRONTENDS, Frontend::address_only(address(called.0)), 0_u32);
    }

    pub(crate) fn halves(&self) -> BTreeMap<PacketTuple, Translation> {
        self.all(map::TRANSLATIONS)
    }
}

/// The services of these tests: one of each protocol, port 80 for 8080 of the backend.
pub(crate) fn node_with_backend(backend: impl Fn(Family) -> IpAddr) -> Node {
    let mut node = Node::new();
    for (n, family) in (0..).zip(FAMILIES) {
        for (m, protocol) in (1..).zip([TCP, UDP]) {
            node.serve(n * 2 + m, (vip(family), 80, protocol), &[(n + 1, backend(family), 8080)], 0);
        }
    }
    node
}

/// B is the backend, and everything is allowed.
pub(crate) fn open_node() -> Node {
    let mut node = node_with_backend(|family| family.pool(B.host));
    node.allow_all();
    node
}

/// What arrives of a frame in the pod: a router has passed it on.
pub(crate) fn delivered(frame: &[u8], pod: Pod) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[..12].copy_from_slice(&[pod.mac, pod.gateway_mac].concat());
    let is_v4 = frame[12..14] == [0x08, 0x00];
    frame[if is_v4 { LINK + 8 } else { LINK + 7 }] -= 1;
    if is_v4 {
        sum_header(&mut frame);
    }
    frame
}

/// From the VIP to the pod.
pub(crate) fn from_vip(family: Family, pod: Pod) -> Ends {
    family.to(vip(family), pod)
}

/// Asserts that `from_pod` makes `expected`, with sound checksums, of what the pod sends, and delivers it to `to`.
#[track_caller]
pub(crate) fn delivers(node: &mut Node, from: Pod, sent: &[u8], to: Pod, ends: Ends, expected: &[u8]) {
    let outcome = node.passes("from_pod", from, sent);
    assert_eq!((outcome.verdict, &outcome.frame), (REDIRECT, &delivered(expected, to)));
    assert!(is_sound(ends, &outcome.frame));
}

#[test]
fn a_call_reaches_a_backend_of_the_node_and_the_answer_comes_from_the_vip() {
    let mut node = open_node();
    for family in FAMILIES {
        let (call, there) = (family.from(A, vip(family)), family.between(A, B));
        let (back, answer) = (family.between(B, A), from_vip(family, A));
        for flags in [SYN, ACK] {
            let expected = tcp(there, (4000, 8080), flags);
            delivers(&mut node, A, &tcp(call, (4000, 80), flags), B, there, &expected);
            let expected = tcp(answer, (80, 4000), flags | ACK);
            delivers(&mut node, B, &tcp(back, (8080, 4000), flags | ACK), A, answer, &expected);
        }
        let expected = udp(there, (4000, 8080), b"odd");
        delivers(&mut node, A, &udp(call, (4000, 80), b"odd"), B, there, &expected);
        let expected = udp(answer, (80, 4000), b"even");
        delivers(&mut node, B, &udp(back, (8080, 4000), b"even"), A, answer, &expected);
        assert!(node.connections(family).iter().all(|connection| connection.translated == 1));
    }
    // One connection each, paid by the caller; a half for each direction.
    assert_eq!((node.usage(A), node.usage(B)), (4, 0));
    assert_eq!(node.halves().len(), 8);
}

#[test]
fn a_backend_beyond_the_node_is_called_through_the_stack() {
    let mut node = node_with_backend(Family::peer);
    node.allow_all();
    for family in FAMILIES {
        let (call, there) = (family.from(A, vip(family)), family.from(A, family.peer()));
        let outcome = node.passes("from_pod", A, &tcp(call, (4000, 80), SYN));
        assert_eq!((outcome.verdict, outcome.frame), (OK, tcp(there, (4000, 8080), SYN)));
        let outcome = node.passes("to_pod", A, &tcp(family.to(family.peer(), A), (8080, 4000), SYN | ACK));
        assert_eq!((outcome.verdict, outcome.frame), (OK, tcp(from_vip(family, A), (80, 4000), SYN | ACK)));
    }
}

#[test]
fn policy_judges_the_backend_and_events_name_it() {
    let mut node = node_with_backend(|family| family.pool(B.host));
    node.allow(A.egress, B.identity, Ports::One(TCP, 8080));
    node.allow(B.ingress, A.identity, Ports::One(TCP, 8080));
    for family in FAMILIES {
        let call = family.from(A, vip(family));
        node.events();
        assert_eq!(node.run_from_pod(A, &tcp(call, (4000, 80), SYN)).verdict, REDIRECT);
        let told: Vec<_> =
            node.events().iter().map(|e| (e.kind, e.destination, e.destination_port)).collect();
        assert_eq!(told, [(EventKind::Allowed as u8, address(family.pool(B.host)), 8080); 2]);
    }
}

#[test]
fn who_is_denied_leaves_nothing_behind() {
    let mut node = node_with_backend(|family| family.pool(B.host));
    node.allow(A.egress, 0, Ports::One(TCP, 80));
    for family in FAMILIES {
        let call = tcp(family.from(A, vip(family)), (4000, 80), SYN);
        assert_eq!(node.drops_from(A, &call, DropReason::PolicyDenied).verdict, SHOT);
        node.run_from_pod(A, &call);
        let event = node.events()[0];
        assert_eq!((event.destination, event.destination_port), (address(family.pool(B.host)), 8080));
        assert!(node.connections(family).is_empty());
    }
    assert!(node.halves().is_empty());
    assert_eq!(node.usage(A), 0);
}

/// An RST that acknowledges the SYN (sequence number 1000).
fn refusal(ends: Ends, ports: (u16, u16)) -> Vec<u8> {
    let mut frame = tcp(ends, ports, RST | ACK);
    let at = ends.transport();
    frame[at + 4..at + 12].copy_from_slice(&[[0; 4], 1001_u32.to_be_bytes()].concat());
    frame[at + 14..at + 18].copy_from_slice(&[0; 4]);
    let sum = super::frame::transport_checksum(ends, TCP, &frame[at..]);
    frame[at + 16..at + 18].copy_from_slice(&sum);
    anonymous(frame)
}

/// Without the identification that crafted frames have.
fn anonymous(mut frame: Vec<u8>) -> Vec<u8> {
    if frame[12..14] == [0x08, 0x00] {
        frame[LINK + 4..LINK + 6].fill(0);
        sum_header(&mut frame);
    }
    frame
}

#[test]
fn a_call_that_nobody_answers_is_refused_at_once() {
    let mut node = open_node();
    for (index, family) in (10..).zip(FAMILIES) {
        let (call, back) = (family.from(A, vip(family)), from_vip(family, A));
        // No such port; no backend.
        node.serve(index, (vip(family), 81, TCP), &[], 0);
        for port in [79, 81] {
            let outcome = node.drops_from(A, &tcp(call, (4000, port), SYN), DropReason::NoBackend);
            let expected = refusal(Ends { macs: (A.gateway_mac, A.mac), ..back }, (port, 4000));
            assert_eq!((outcome.verdict, outcome.frame), (REDIRECT, expected));
        }
        let asked = udp(call, (4000, 53), b"?");
        let outcome = node.drops_from(A, &asked, DropReason::NoBackend);
        let expected = anonymous(super::frame::unreachable(call.reversed(), &asked));
        assert_eq!((outcome.verdict, outcome.frame), (REDIRECT, expected));
        for silent in [echo(call, true, 7), echo(call, false, 7), sctp(call, (4000, 80))] {
            assert_eq!(node.drops_from(A, &silent, DropReason::NoBackend).verdict, SHOT);
        }
    }
    assert!(node.halves().is_empty());
}

#[test]
fn only_a_legal_first_packet_finds_a_backend() {
    let mut node = open_node();
    for family in FAMILIES {
        let call = family.from(A, vip(family));
        let outcome = node.drops_from(A, &tcp(call, (4000, 80), ACK), DropReason::NoConnection);
        // The reset comes from whom it called.
        let at = call.transport();
        assert_eq!(outcome.verdict, REDIRECT);
        assert_eq!(outcome.frame[at..at + 4], [0, 80, 15, 160]);
        assert!(is_sound(call.reversed(), &outcome.frame));
        node.drops_from(A, &tcp(call, (4000, 80), SYN | RST), DropReason::InvalidTcpFlags);
    }
}

/// SCTP's checksum is a CRC of all it carries.
#[test]
fn sctp_is_served_where_the_backend_has_the_same_port() {
    let mut node = open_node();
    for (index, family) in (20..).step_by(2).zip(FAMILIES) {
        let call = family.from(A, vip(family));
        node.serve(index, (vip(family), 5000, SCTP), &[(index, family.pool(B.host), 5000)], 0);
        node.serve(index + 1, (vip(family), 5001, SCTP), &[(index + 1, family.pool(B.host), 5002)], 0);
        let there = family.between(A, B);
        let outcome = node.passes("from_pod", A, &sctp(call, (4000, 5000)));
        assert_eq!(outcome.frame, delivered(&sctp(there, (4000, 5000)), B));
        let outcome = node.passes("from_pod", B, &sctp(family.between(B, A), (5000, 4000)));
        assert_eq!(outcome.frame, delivered(&sctp(from_vip(family, A), (5000, 4000)), A));
        assert_eq!(node.drops_from(A, &sctp(call, (4000, 5001)), DropReason::NoBackend).verdict, SHOT);
    }
}

#[test]
fn a_datagram_without_checksum_keeps_none() {
    let mut node = open_node();
    let family = Family::V4;
    let bare = |ends: Ends, ports: (u16, u16)| {
        let mut frame = udp(ends, ports, b"data");
        frame[ends.transport() + 6..ends.transport() + 8].fill(0);
        frame
    };
    let outcome = node.passes("from_pod", A, &bare(family.from(A, vip(family)), (4000, 80)));
    assert_eq!(outcome.frame, delivered(&bare(family.between(A, B), (4000, 8080)), B));
}

/// A sum of zero is written as its complement: zero would say that there is none.
#[test]
fn a_checksum_never_becomes_zero() {
    let mut node = open_node();
    for family in FAMILIES {
        let (call, there) = (family.from(A, vip(family)), family.between(A, B));
        // The data that makes the backend's checksum come out as zero.
        let at = there.transport() + 6;
        let data = udp(there, (4000, 8080), &[0; 2])[at..at + 2].to_vec();
        let outcome = node.passes("from_pod", A, &udp(call, (4000, 80), &data));
        assert_eq!(outcome.frame[at..at + 2], [0xff, 0xff]);
        assert!(is_sound(there, &outcome.frame));
    }
}

#[test]
fn a_client_returns_to_its_backend_where_the_service_says_so() {
    let mut node = Node::new();
    node.allow_all();
    for (n, family) in (0..).zip(FAMILIES) {
        let backends: Vec<_> = (0..8).map(|m| (n * 8 + m + 1, family.peer(), 8000 + m as u16)).collect();
        node.serve(n + 1, (vip(family), 80, UDP), &backends, 60);
        let call = family.from(A, vip(family));
        let port = |frame: &[u8]| frame[call.transport() + 2..call.transport() + 4].to_vec();
        let first = node.passes("from_pod", A, &udp(call, (4000, 80), b"?")).frame;
        for source in 4001..4016 {
            let frame = node.passes("from_pod", A, &udp(call, (source, 80), b"?")).frame;
            assert_eq!(port(&frame), port(&first));
        }
        let key = AffinityKey { client: address(family.pool(A.host)), service: n + 1, zero: 0 };
        assert!(node.all::<AffinityKey, abi::Affinity>(map::AFFINITIES).contains_key(&key));
    }
}

#[test]
fn other_protocols_are_not_routed_to_a_vip() {
    let mut node = open_node();
    for family in FAMILIES {
        let call = family.from(A, vip(family));
        node.drops_from(A, &ip(call, 4, 64, &[0; 40]), DropReason::UnknownL4);
    }
}
