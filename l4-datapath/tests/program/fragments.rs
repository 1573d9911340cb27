//! Datagrams in pieces (T27): the first one is judged, the others by what it had.

use abi::{Direction, DropReason, RuleVerdict};

use super::{
    frame::{
        ACK, Ends, FIN, LINK, SCTP, SYN, TCP, UDP, checksum, echo, icmp, is_sound, piece, pieces, sctp,
        sum_header, tcp, tcp_with, udp, unreachable,
    },
    node::{Context, Node, OK, REDIRECT, SHOT},
    world::{A, B, FAMILIES, Family, PEER, Ports},
};

fn open_node() -> Node {
    let mut node = Node::new();
    node.allow_all();
    node
}

/// A datagram in three.
fn three(ends: Ends, id: u32, ports: (u16, u16)) -> [Vec<u8>; 3] {
    pieces(ends, id, &udp(ends, ports, &[5; 2500]), 1000).try_into().unwrap()
}

#[test]
fn a_datagram_in_pieces_passes_as_a_whole_one_does() {
    let mut node = Node::new();
    node.allow(A.egress, B.identity, Ports::One(UDP, 53));
    node.allow(B.ingress, A.identity, Ports::One(UDP, 53));
    node.allow(A.ingress, PEER, Ports::One(UDP, 53));
    for family in FAMILIES {
        for frame in three(family.between(A, B), 7, (4000, 53)) {
            assert_eq!(node.passes("from_pod", A, &frame).verdict, REDIRECT);
        }
        // The answer needs no rule of its own, in pieces either.
        for frame in three(family.between(B, A), 7, (53, 4000)) {
            assert_eq!(node.passes("from_pod", B, &frame).verdict, REDIRECT);
        }
        for frame in three(family.to(family.peer(), A), 7, (4000, 53)) {
            assert_eq!(node.passes("to_pod", A, &frame).verdict, OK);
        }
    }
}

#[test]
fn every_protocol_may_come_in_pieces() {
    let mut node = open_node();
    for family in FAMILIES {
        let ends = family.between(A, B);
        let (kind, rest) = (if ends.is_v4() { 8 } else { 128 }, [&[0, 7, 0, 1][..], &[5; 2500]].concat());
        let mut chunk = sctp(ends, (4000, 5000));
        chunk.extend([5; 2500]);
        let wholes = [
            tcp_with(ends, (4000, 80), SYN, 64, &[5; 2500]),
            icmp(ends, kind, 0, 64, &rest),
            super::frame::ip(ends, SCTP, 64, &chunk[ends.transport()..]),
        ];
        for (id, whole) in (0..).zip(wholes) {
            for frame in pieces(ends, id, &whole, 1000) {
                node.passes("from_pod", A, &frame);
            }
        }
        // An answer to the echo, whose identifier stands for ports.
        let kind = if ends.is_v4() { 0 } else { 129 };
        let back = ends.reversed();
        for frame in pieces(family.between(B, A), 9, &icmp(back, kind, 0, 64, &rest), 1000) {
            node.passes("from_pod", B, &frame);
        }
    }
}

/// Only what a router changes is changed, in every piece.
#[test]
fn pieces_are_delivered_as_they_came() {
    let mut node = open_node();
    for family in FAMILIES {
        let ends = family.between(A, B);
        for frame in three(ends, 7, (4000, 53)) {
            let mut expected = frame.clone();
            expected[..12].copy_from_slice(&[B.mac, B.gateway_mac].concat());
            expected[if ends.is_v4() { LINK + 8 } else { LINK + 7 }] = 63;
            if ends.is_v4() {
                sum_header(&mut expected);
            }
            assert_eq!(node.passes("from_pod", A, &frame).frame, expected);
        }
    }
}

#[test]
fn a_later_piece_without_its_first_is_refused_without_an_answer() {
    let mut node = open_node();
    for family in FAMILIES {
        let [first, second, third] = three(family.from(A, family.peer()), 7, (4000, 53));
        for later in [&second, &third] {
            assert_eq!(node.drops_from(A, later, DropReason::FirstFragmentMissing).verdict, SHOT);
        }
        node.passes("from_pod", A, &first);
        // In any order from here on.
        node.passes("from_pod", A, &third);
        node.passes("from_pod", A, &second);
        let [_, stray, _] = three(family.to(family.peer(), A), 7, (4000, 53));
        assert_eq!(node.drops_to(A, &stray, DropReason::FirstFragmentMissing).verdict, SHOT);
    }
}

#[test]
fn a_first_piece_that_was_refused_is_not_remembered() {
    let mut node = Node::new();
    node.allow(A.egress, PEER, Ports::One(UDP, 53));
    for family in FAMILIES {
        let [first, second, _] = three(family.from(A, family.peer()), 7, (4000, 54));
        node.drops_from(A, &first, DropReason::PolicyDenied);
        node.drops_from(A, &second, DropReason::FirstFragmentMissing);
    }
    assert!(node.fragments().is_empty());
}

/// Nor one that went nowhere.
#[test]
fn a_first_piece_at_the_end_of_its_life_is_answered_and_forgotten() {
    let mut node = open_node();
    for family in FAMILIES {
        let ends = family.between(A, B);
        let [mut first, mut second, _] = three(ends, 7, (4000, 53));
        for frame in [&mut first, &mut second] {
            frame[if ends.is_v4() { LINK + 8 } else { LINK + 7 }] = 1;
        }
        let outcome = node.drops_from(A, &first, DropReason::TtlExceeded);
        let (kind, quoted) = if ends.is_v4() { (11, 28) } else { (3, 56) };
        let mut expected =
            icmp(ends.reversed(), kind, 0, 64, &[&[0; 4], &first[LINK..LINK + quoted]].concat());
        if ends.is_v4() {
            expected[LINK + 4..LINK + 6].fill(0);
            sum_header(&mut expected);
        }
        assert_eq!((outcome.verdict, &outcome.frame), (REDIRECT, &expected));
        assert!(is_sound(ends.reversed(), &outcome.frame));
        assert_eq!(node.drops_from(A, &second, DropReason::FirstFragmentMissing).verdict, SHOT);
        // RFC 1122 section 3.2.2: no errors about later pieces.
        let [first, ..] = three(ends, 7, (4000, 53));
        node.passes("from_pod", A, &first);
        assert_eq!(node.drops_from(A, &second, DropReason::TtlExceeded).verdict, SHOT);
    }
}

/// What the pieces of a datagram share; for IPv6 that is not the protocol (RFC 8200 section 4.5).
#[test]
fn a_piece_of_another_datagram_does_not_borrow_its_ports() {
    let mut node = open_node();
    for family in FAMILIES {
        let ends = family.from(A, family.peer());
        let [first, ..] = three(ends, 7, (4000, 53));
        node.passes("from_pod", A, &first);
        let [_, other_id, _] = three(ends, 8, (4000, 53));
        let [_, elsewhere, _] = three(family.between(A, B), 7, (4000, 53));
        node.drops_from(A, &other_id, DropReason::FirstFragmentMissing);
        node.drops_from(A, &elsewhere, DropReason::FirstFragmentMissing);
        let [_, by_another, _] = three(family.from(B, family.peer()), 7, (4000, 53));
        node.drops_from(B, &by_another, DropReason::FirstFragmentMissing);
        let tcp = piece(ends, TCP, 7, (1000, false), &[5; 100]);
        if ends.is_v4() {
            node.drops_from(A, &tcp, DropReason::FirstFragmentMissing);
        } else {
            node.passes("from_pod", A, &tcp);
        }
    }
}

#[test]
fn a_first_piece_is_believed_for_thirty_seconds() {
    let mut node = open_node();
    for family in FAMILIES {
        let [first, second, third] = three(family.from(A, family.peer()), 7, (4000, 53));
        node.passes("from_pod", A, &first);
        node.change_fragments(|fragment| fragment.seen -= 20);
        node.passes("from_pod", A, &second);
        node.change_fragments(|fragment| fragment.seen -= 10);
        node.drops_from(A, &third, DropReason::FirstFragmentMissing);
    }
}

/// RFC 1858, RFC 3128: a later piece must not write over what was judged.
#[test]
fn a_piece_that_overlaps_the_first_is_refused_and_ends_the_datagram() {
    let mut node = open_node();
    for family in FAMILIES {
        let ends = family.from(A, family.peer());
        for (id, offset) in (0..).zip([8, 16, 24, 992]) {
            let [first, second, _] = three(ends, id, (4000, 53));
            node.passes("from_pod", A, &first);
            let over = piece(ends, UDP, id, (offset, true), &[6; 64]);
            assert_eq!(node.drops_from(A, &over, DropReason::Fragment).verdict, SHOT);
            node.drops_from(A, &second, DropReason::FirstFragmentMissing);
        }
        // The next datagram may have the same id.
        for frame in three(ends, 0, (4000, 53)) {
            node.passes("from_pod", A, &frame);
        }
    }
}

/// RFC 1858, RFC 7112.
#[test]
fn a_first_piece_without_all_its_headers_is_refused() {
    let mut node = open_node();
    for family in FAMILIES {
        let ends = family.from(A, family.peer());
        let segment = tcp(ends, (4000, 80), SYN)[ends.transport()..].to_vec();
        for length in [8, 16] {
            let first = piece(ends, TCP, 7, (0, true), &segment[..length]);
            node.drops_from(A, &first, DropReason::Fragment);
            node.drops_to(
                A,
                &piece(ends.reversed(), TCP, 7, (0, true), &segment[..length]),
                DropReason::Fragment,
            );
        }
        // Options count.
        let mut options = [segment, vec![1; 40]].concat();
        options[12] = 0xf0;
        for length in [24, 56] {
            let first = piece(ends, TCP, 7, (0, true), &options[..length]);
            node.drops_from(A, &first, DropReason::Fragment);
        }
        node.drops_from(A, &piece(ends, SCTP, 7, (0, true), &[0; 8]), DropReason::Fragment);
        assert!(node.fragments().is_empty());
    }
    let ends = Family::V6.from(A, Family::V6.peer());
    // Destination options that continue in the next piece.
    let options = [UDP, 2, 1, 4, 0, 0, 0, 0];
    node.drops_from(A, &piece(ends, 60, 7, (0, true), &options), DropReason::Fragment);
}

#[test]
fn pieces_of_impossible_length_are_refused() {
    let mut node = open_node();
    for family in FAMILIES {
        let ends = family.from(A, family.peer());
        let whole = udp(ends, (4000, 53), &[5; 100]);
        let datagram = &whole[ends.transport()..];
        let cases = [
            // Off the grid, though more follow.
            piece(ends, UDP, 7, (0, true), &datagram[..30]),
            piece(ends, UDP, 7, (64, true), &datagram[..31]),
            // Nothing in it.
            piece(ends, UDP, 7, (64, false), &[]),
            piece(ends, UDP, 7, (64, true), &[]),
            // "Ping of death".
            piece(ends, UDP, 7, (65_528, false), &datagram[..8]),
            piece(ends, UDP, 7, (65_440, false), datagram),
        ];
        for frame in cases {
            node.drops_from(A, &frame, DropReason::InvalidPacket);
        }
        node.passes("from_pod", A, &piece(ends, UDP, 7, (0, true), &datagram[..64]));
        // The last byte that a packet can have: IPv4 counts its header.
        let room = if ends.is_v4() { 65_535 - 20 } else { 65_535 };
        let start = 65_400;
        node.passes("from_pod", A, &piece(ends, UDP, 7, (start, false), &vec![5; room - start]));
        let beyond = piece(ends, UDP, 7, (start, false), &vec![5; room - start + 1]);
        node.drops_from(A, &beyond, DropReason::InvalidPacket);
    }
}

/// T33: a later piece belongs to a connection, or nowhere.
#[test]
fn a_later_piece_opens_nothing() {
    let mut node = open_node();
    for family in FAMILIES {
        let ends = family.from(A, family.peer());
        let [first, second, third] = three(ends, 7, (4000, 53));
        node.passes("from_pod", A, &first);
        node.change_connections(family, |connection| connection.seen = connection.seen.saturating_sub(61));
        assert_eq!(node.drops_from(A, &second, DropReason::NoConnection).verdict, SHOT);
        // Nor does it mean anything to the state of TCP.
        node.passes("from_pod", A, &tcp(ends, (4000, 80), SYN));
        for frame in pieces(ends, 8, &tcp_with(ends, (4000, 80), ACK | FIN, 64, &[5; 2000]), 1000) {
            node.passes("from_pod", A, &frame);
        }
        node.passes("from_pod", A, &first);
        node.passes("from_pod", A, &third);
    }
}

/// T42, in mid-datagram.
#[test]
fn a_new_deny_reaches_the_next_piece() {
    let mut node = open_node();
    let later = FAMILIES.map(|family| {
        let [first, second, _] = three(family.between(A, B), 7, (4000, 53));
        node.passes("from_pod", A, &first);
        second
    });
    node.rule(B.ingress, A.identity, Ports::All, RuleVerdict::Deny);
    node.set_generation(2);
    for frame in later {
        let blamed = (DropReason::PolicyDeny, B, Direction::Ingress);
        node.expect_drop("from_pod", A, Context::default(), &frame, blamed);
    }
}

/// Errors are judged by what they quote, which may be in any piece; other messages have no connection.
#[test]
fn of_icmp_only_echoes_may_come_in_pieces() {
    let mut node = open_node();
    for family in FAMILIES {
        let (out, back) = (family.from(A, family.peer()), family.to(family.peer(), A));
        let asked = udp(out, (4000, 53), &[5; 100]);
        node.passes("from_pod", A, &asked);
        let error = unreachable(back, &asked);
        node.passes("to_pod", A, &error);
        for frame in pieces(back, 7, &error, 32).iter().take(1) {
            node.drops_to(A, frame, DropReason::Fragment);
        }
        let kinds: [u8; 3] = if out.is_v4() { [13, 17, 30] } else { [139, 140, 200] };
        for kind in kinds {
            let message = icmp(out, kind, 0, 64, &[0; 100]);
            node.drops_from(A, &pieces(out, 7, &message, 64)[0], DropReason::Fragment);
        }
    }
}

/// Routers quote the piece they could not send on.
#[test]
fn an_icmp_error_about_a_first_piece_passes_about_a_later_one_it_does_not() {
    let mut node = open_node();
    for family in FAMILIES {
        let (out, back) = (family.from(A, family.peer()), family.to(family.peer(), A));
        let [first, second, _] = three(out, 7, (4000, 53));
        node.passes("from_pod", A, &first);
        node.passes("from_pod", A, &second);
        let (kind, quoted) = if out.is_v4() { (3, 28) } else { (2, 56) };
        let about = |frame: &[u8]| icmp(back, kind, 4, 64, &[&[0; 4], &frame[LINK..LINK + quoted]].concat());
        node.passes("to_pod", A, &about(&first));
        node.drops_to(A, &about(&second), DropReason::UnrelatedIcmp);
    }
}

/// *Don't fragment* on a fragment is allowed (RFC 6864); the checksum of the whole is none of a piece's business.
#[test]
fn a_piece_may_say_dont_fragment() {
    let mut node = open_node();
    let ends = Family::V4.from(A, Family::V4.peer());
    for mut frame in three(ends, 7, (4000, 53)) {
        frame[LINK + 6] |= 0x40;
        sum_header(&mut frame);
        assert_eq!(checksum(&frame[LINK..LINK + 20]), [0, 0]);
        node.passes("from_pod", A, &frame);
    }
}

/// T41: an echo's answer in pieces is still only an answer.
#[test]
fn an_unasked_echo_reply_in_pieces_is_refused() {
    let mut node = open_node();
    for family in FAMILIES {
        let back = family.to(family.peer(), A);
        let frames = pieces(back, 7, &echo(back, false, 7), 8);
        assert_eq!(node.drops_to(A, &frames[0], DropReason::NoConnection).verdict, SHOT);
        node.drops_to(A, &frames[1], DropReason::FirstFragmentMissing);
    }
}
