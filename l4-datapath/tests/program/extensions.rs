//! IPv6 extension headers (T29): which chains pass, and that nothing hides behind them.

use std::net::IpAddr;

use abi::DropReason;

use super::{
    frame::{
        ACK, Ends, LINK, RST, SYN, UDP, echo, extended, icmp, is_sound, octets, piece, tcp, tcp_with, udp,
        unreachable,
    },
    node::{Context, Node, OK, REDIRECT, SHOT},
    world::{A, B, Family, PEER, Ports},
};

/// Router alert, padded (RFC 2711).
const HOP_BY_HOP: (u8, &[u8]) = (0, &[0, 5, 2, 0, 0, 1, 0]);
/// Padding alone.
const OPTIONS: (u8, &[u8]) = (60, &[0, 1, 4, 0, 0, 0, 0]);
/// Type 3 (RFC 6554), at its last hop.
const ROUTING: (u8, &[u8]) = (43, &[0, 3, 0, 0, 0, 0, 0]);
/// All of the datagram (RFC 6946).
const ATOMIC: (u8, &[u8]) = (44, &[0, 0, 0, 0, 0, 0, 9]);

const V6: Family = Family::V6;

fn open_node() -> Node {
    let mut node = Node::new();
    node.allow_all();
    node
}

#[test]
fn chains_in_the_order_of_the_rfc_pass_and_are_delivered_as_they_came() {
    let mut node = open_node();
    let chains: [&[(u8, &[u8])]; 9] = [
        &[HOP_BY_HOP],
        &[OPTIONS],
        &[ROUTING],
        &[ATOMIC],
        &[OPTIONS, OPTIONS],
        &[HOP_BY_HOP, OPTIONS],
        &[OPTIONS, ROUTING],
        &[ROUTING, OPTIONS],
        &[HOP_BY_HOP, OPTIONS, ROUTING, ATOMIC, OPTIONS],
    ];
    let (near, into) = (V6.between(A, B), V6.to(V6.peer(), A));
    for chain in chains {
        let wholes = [tcp(near, (4000, 80), SYN), udp(near, (4000, 53), b"?"), echo(near, true, 7)];
        for whole in wholes {
            let frame = extended(&whole, chain);
            let mut expected = frame.clone();
            expected[..12].copy_from_slice(&[B.mac, B.gateway_mac].concat());
            expected[LINK + 7] = 63;
            assert_eq!(node.passes("from_pod", A, &frame).frame, expected);
        }
        let outcome = node.passes("to_pod", A, &extended(&udp(into, (4000, 53), b"?"), chain));
        assert_eq!(outcome.verdict, OK);
    }
    assert_eq!(node.fragments().len(), 0, "an atomic fragment has no later ones");
}

#[test]
fn headers_out_of_order_or_too_often_are_refused() {
    let mut node = open_node();
    let chains: [&[(u8, &[u8])]; 9] = [
        &[HOP_BY_HOP, HOP_BY_HOP],
        &[OPTIONS, HOP_BY_HOP],
        &[ROUTING, HOP_BY_HOP],
        &[ROUTING, ROUTING],
        &[ATOMIC, ATOMIC],
        &[ATOMIC, ROUTING],
        &[OPTIONS, OPTIONS, OPTIONS],
        &[OPTIONS, OPTIONS, ROUTING],
        &[HOP_BY_HOP, OPTIONS, ROUTING, ATOMIC, OPTIONS, OPTIONS],
    ];
    let segment = tcp(V6.from(A, V6.peer()), (4000, 80), SYN);
    for chain in chains {
        node.drops_from(A, &extended(&segment, chain), DropReason::Ipv6Extension);
    }
}

#[test]
fn headers_that_lead_elsewhere_or_hide_what_follows_are_refused() {
    let mut node = open_node();
    let honest = tcp(V6.from(A, V6.peer()), (4000, 80), SYN);
    let back = udp(V6.to(V6.peer(), A), (4000, 53), b"?");
    // Routing header: type 0 at its last hop, and the others before it.
    for (kind, left) in [(0, 0), (0, 1), (2, 1), (3, 1), (4, 2), (253, 255)] {
        let header = [0, kind, left, 0, 0, 0, 0];
        node.drops_from(A, &extended(&honest, &[(43, &header)]), DropReason::Ipv6Extension);
        node.drops_to(A, &extended(&back, &[(43, &header)]), DropReason::Ipv6Extension);
    }
    // ESP, AH, mobility, HIP, shim6; also behind headers that are walked.
    for number in [50, 51, 135, 139, 140] {
        let hidden = (number, &[0, 1, 4, 0, 0, 0, 0][..]);
        node.drops_from(A, &extended(&honest, &[hidden]), DropReason::Ipv6Extension);
        node.drops_from(A, &extended(&honest, &[HOP_BY_HOP, hidden]), DropReason::Ipv6Extension);
    }
    // No next header, a tunnel, an unknown one.
    for number in [59, 4, 41, 47, 253] {
        let mut frame = extended(&honest, &[HOP_BY_HOP]);
        frame[LINK + 40] = number;
        node.drops_from(A, &frame, DropReason::UnknownL4);
    }
}

#[test]
fn chains_longer_than_the_bound_are_refused() {
    let mut node = open_node();
    let honest = tcp(V6.from(A, V6.peer()), (4000, 80), SYN);
    let options = |units: u8| [&[units - 1][..], &vec![0; usize::from(units) * 8 - 2]].concat();
    let (most, more) = (options(32), options(33));
    node.passes("from_pod", A, &extended(&honest, &[(60, &most)]));
    node.drops_from(A, &extended(&honest, &[(60, &more)]), DropReason::Ipv6Extension);
    node.drops_from(A, &extended(&honest, &[HOP_BY_HOP, (60, &most)]), DropReason::Ipv6Extension);
}

#[test]
fn chains_that_are_cut_or_lie_about_their_length_are_refused() {
    let mut node = open_node();
    let honest = extended(&tcp(V6.from(A, V6.peer()), (4000, 80), SYN), &[HOP_BY_HOP, OPTIONS]);
    for length in [0, 1, 7, 8, 15, 16, 35] {
        let mut frame = honest[..LINK + 40 + length].to_vec();
        frame[LINK + 5] = length as u8;
        node.drops_from(A, &frame, DropReason::InvalidPacket);
        // More bytes than the IP header says do not help.
        frame.extend(&honest[LINK + 40 + length..]);
        node.drops_from(A, &frame, DropReason::InvalidPacket);
    }
    for (at, length) in [(41, 5), (41, 30), (49, 4), (49, 29)] {
        let mut frame = honest.clone();
        frame[LINK + at] = length;
        node.drops_from(A, &frame, DropReason::InvalidPacket);
    }
}

/// RFC 2675: no device here has an MTU to need them. Segments of more than 64 KiB in one buffer wear the same header
/// until they are cut (`ipv6_hopopt_jumbo_remove` in the kernel).
#[test]
fn jumbograms_are_refused_unless_they_are_segments() {
    let mut node = open_node();
    let jumbo = (0, &[0, 0xc2, 4, 0, 1, 0, 0][..]);
    let mut frame = extended(&tcp_with(V6.between(A, B), (4000, 80), SYN, 64, &[7; 300]), &[jumbo]);
    frame[LINK + 4..LINK + 6].fill(0);
    node.drops_from(A, &frame, DropReason::InvalidPacket);
    let segments = Context { gso_size: 100, ..Context::default() };
    assert_eq!(node.run("from_pod", A, segments, &frame).verdict, REDIRECT);
}

#[test]
fn policy_judges_what_is_behind_the_headers() {
    let mut node = Node::new();
    node.allow(A.egress, PEER, Ports::One(UDP, 53));
    let far = V6.from(A, V6.peer());
    for chain in [&[HOP_BY_HOP][..], &[OPTIONS], &[HOP_BY_HOP, ROUTING, ATOMIC]] {
        node.passes("from_pod", A, &extended(&udp(far, (4000, 53), b"?"), chain));
        node.passes("to_pod", A, &extended(&udp(far.reversed(), (53, 4000), b"!"), chain));
        node.drops_from(A, &extended(&udp(far, (4000, 54), b"?"), chain), DropReason::PolicyDenied);
        node.drops_from(A, &extended(&tcp(far, (4000, 53), SYN), chain), DropReason::PolicyDenied);
    }
}

#[test]
fn what_is_behind_headers_is_answered_without_them() {
    let mut node = open_node();
    let near = V6.between(A, B);
    let stray = extended(&tcp(near, (4000, 80), ACK), &[HOP_BY_HOP, OPTIONS]);
    let outcome = node.drops_from(A, &stray, DropReason::NoConnection);
    let back = near.reversed();
    let mut expected = tcp(back, (80, 4000), RST);
    super::answers::expect_reset(&mut expected, back);
    assert_eq!((outcome.verdict, outcome.frame), (REDIRECT, expected));
    // The quote reaches the ports behind one header.
    let dying = extended(&tcp_with(near, (4000, 80), SYN, 1, b""), &[HOP_BY_HOP]);
    let outcome = node.drops_from(A, &dying, DropReason::TtlExceeded);
    let expected = icmp(back, 3, 0, 64, &[&[0; 4], &dying[LINK..LINK + 56]].concat());
    assert_eq!((outcome.verdict, &outcome.frame), (REDIRECT, &expected));
    assert!(is_sound(back, &outcome.frame));
}

/// T35, behind extension headers: in the error, and in what it quotes.
#[test]
fn an_icmp_error_is_about_what_is_behind_the_quoted_headers() {
    let mut node = open_node();
    let (out, back) = (V6.from(A, V6.peer()), V6.to(V6.peer(), A));
    let asked = udp(out, (4000, 53), b"question");
    node.passes("from_pod", A, &asked);
    let quoting = |about: &[u8]| icmp(back, 1, 4, 64, &[&[0; 4], &about[LINK..]].concat());
    for chain in [&[HOP_BY_HOP][..], &[OPTIONS, ROUTING], &[ATOMIC]] {
        node.passes("to_pod", A, &quoting(&extended(&asked, chain)));
        node.passes("to_pod", A, &extended(&unreachable(back, &asked), chain));
        let other = udp(out, (4001, 53), b"question");
        node.drops_to(A, &quoting(&extended(&other, chain)), DropReason::UnrelatedIcmp);
        // Cut before the ports.
        let cut = &extended(&asked, chain)[..LINK + 40 + chain.len() * 8 + 7];
        node.drops_to(A, &quoting(cut), DropReason::UnrelatedIcmp);
    }
    // A first fragment has ports, and its quote may be cut anywhere behind them; a later one has none.
    let transport = &asked[out.transport()..];
    for length in 8..transport.len() {
        let first = piece(out, UDP, 7, (0, true), &transport[..length]);
        node.passes("to_pod", A, &quoting(&first));
    }
    let later = piece(out, UDP, 7, (8, false), transport);
    node.drops_to(A, &quoting(&later), DropReason::UnrelatedIcmp);
}

/// RFC 7113: what guards a link must look behind extension headers.
#[test]
fn neighbour_discovery_is_known_behind_headers() {
    let mut node = open_node();
    let own = V6.pool(A.host);
    let target: IpAddr = "fd00::1".parse().unwrap();
    let group =
        |to: &str| Ends { macs: (A.mac, [0x33, 0x33, 0, 0, 0, 1]), addresses: (own, to.parse().unwrap()) };
    let asked = [&[0; 4][..], &octets(target), &[1, 1], &A.mac].concat();
    let solicitation = icmp(group("ff02::1:ff00:1"), 135, 0, 255, &asked);
    let told = node.run_from_pod(A, &solicitation);
    for chain in [&[HOP_BY_HOP][..], &[OPTIONS]] {
        let outcome = node.run_from_pod(A, &extended(&solicitation, chain));
        assert_eq!((outcome.verdict, &outcome.frame), (REDIRECT, &told.frame));
        let advertisement = extended(&icmp(group("ff02::1"), 134, 0, 255, &[0; 12]), chain);
        node.drops_from(A, &advertisement, DropReason::NeighbourSpoof);
        let redirect = extended(&icmp(V6.between(A, B), 137, 0, 255, &[0; 36]), chain);
        node.drops_from(A, &redirect, DropReason::NeighbourSpoof);
    }
    // RFC 6980: never in fragments, atomic ones included.
    for kind in 133..=137 {
        let message = icmp(group("ff02::1"), kind, 0, 255, &[0; 36]);
        node.drops_from(A, &extended(&message, &[ATOMIC]), DropReason::Fragment);
        let first = piece(group("ff02::1"), 58, 7, (0, true), &message[LINK + 40..]);
        node.drops_from(A, &first, DropReason::Fragment);
    }
}

/// A listener report is noise, behind its router alert or not; a datagram to a group of the link is not.
#[test]
fn only_the_noise_of_a_link_is_quiet_behind_headers() {
    let mut node = open_node();
    let ends = Ends {
        macs: (A.mac, [0x33, 0x33, 0, 0, 0, 0x16]),
        addresses: ("fe80::a".parse().unwrap(), "ff02::16".parse().unwrap()),
    };
    let report = extended(&icmp(ends, 143, 0, 1, &[0; 4]), &[HOP_BY_HOP]);
    assert_eq!(node.run_from_pod(A, &report).verdict, SHOT);
    assert_eq!(node.events(), []);
    assert_eq!(node.run_to_pod(A, &report).verdict, SHOT);
    assert_eq!(node.events(), []);
    let from = Ends { addresses: (V6.pool(A.host), ends.addresses.1), ..ends };
    let datagram = extended(&udp(from, (5353, 5353), b"?"), &[HOP_BY_HOP]);
    node.drops_from(A, &datagram, DropReason::Multicast);
}
