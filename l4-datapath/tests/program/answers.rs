//! Replies the programs make themselves, byte by byte.

use abi::DropReason;

use super::{
    frame::{
        ACK, Ends, LINK, RST, SYN, TCP, checksum, icmp, is_sound, tcp, tcp_with, transport_checksum, udp,
    },
    node::{Node, REDIRECT, SHOT},
    world::{A, B, FAMILIES},
};

fn open_node() -> Node {
    let mut node = Node::new();
    node.allow_all();
    node
}

/// Turns a crafted RST into the one RFC 9293 section 3.10.7.1 asks for: sequence number as acknowledged (2000), no
/// acknowledgement, no window.
pub(crate) fn expect_reset(frame: &mut [u8], ends: Ends) {
    let at = ends.transport();
    frame[at + 4..at + 8].copy_from_slice(&2000_u32.to_be_bytes());
    frame[at + 14..at + 18].copy_from_slice(&[0; 4]);
    let sum = transport_checksum(ends, TCP, &frame[at..]);
    frame[at + 16..at + 18].copy_from_slice(&sum);
    if ends.is_v4() {
        frame[LINK + 4..LINK + 6].copy_from_slice(&[0, 0]);
        frame[LINK + 10..LINK + 12].copy_from_slice(&[0, 0]);
        let sum = checksum(&frame[LINK..LINK + 20]);
        frame[LINK + 10..LINK + 12].copy_from_slice(&sum);
    }
}

#[test]
fn a_mid_stream_packet_is_answered_with_a_reset() {
    let mut node = open_node();
    for family in FAMILIES {
        for ends in [family.between(A, B), family.from(A, family.peer())] {
            for (flags, data) in [(ACK, &b""[..]), (SYN | ACK, b""), (ACK, b"some data")] {
                let stray = tcp_with(ends, (4000, 80), flags, 64, data);
                let outcome = node.drops_from(A, &stray, DropReason::NoConnection);
                let back = ends.reversed();
                let mut expected = tcp(back, (80, 4000), RST);
                expect_reset(&mut expected, back);
                assert_eq!((outcome.verdict, outcome.mark), (REDIRECT, 0));
                assert_eq!(outcome.frame, expected);
                assert!(is_sound(back, &outcome.frame));
            }
        }
    }
}

#[test]
fn a_reset_is_never_answered() {
    let mut node = open_node();
    for family in FAMILIES {
        for flags in [RST, RST | ACK] {
            let out = tcp(family.from(A, family.peer()), (4000, 80), flags);
            assert_eq!(node.drops_from(A, &out, DropReason::NoConnection).verdict, SHOT);
            let into = tcp(family.to(family.peer(), A), (80, 4000), flags);
            assert_eq!(node.drops_to(A, &into, DropReason::NoConnection).verdict, SHOT);
        }
    }
}

/// An ICMP error about `frame`: back to its sender, quoting its IP header and eight bytes.
pub(crate) fn error(ends: Ends, kind: u8, code: u8, rest: [u8; 4], frame: &[u8]) -> Vec<u8> {
    let quoted = &frame[LINK..ends.transport() + 8];
    let mut expected = icmp(ends.reversed(), kind, code, 64, &[&rest[..], quoted].concat());
    if ends.is_v4() {
        expected[LINK + 4..LINK + 6].copy_from_slice(&[0, 0]);
        expected[LINK + 10..LINK + 12].copy_from_slice(&[0, 0]);
        let sum = checksum(&expected[LINK..LINK + 20]);
        expected[LINK + 10..LINK + 12].copy_from_slice(&sum);
    }
    expected
}

#[test]
fn a_packet_at_the_end_of_its_life_is_answered_with_time_exceeded() {
    let mut node = open_node();
    for family in FAMILIES {
        let ends = family.between(A, B);
        node.passes("from_pod", A, &tcp(ends, (4000, 80), SYN));
        for ttl in [0, 1] {
            let syn = tcp_with(ends, (4000, 80), SYN, ttl, b"");
            let outcome = node.drops_from(A, &syn, DropReason::TtlExceeded);
            let kind = if ends.is_v4() { 11 } else { 3 };
            assert_eq!(outcome.verdict, REDIRECT);
            assert_eq!(outcome.frame, error(ends, kind, 0, [0; 4], &syn));
            assert!(is_sound(ends.reversed(), &outcome.frame));
        }
        // Beyond the node the stack counts down.
        node.passes("from_pod", A, &tcp_with(family.from(A, family.peer()), (4000, 80), SYN, 1, b""));
    }
}

#[test]
fn a_packet_too_big_for_the_way_is_answered_with_the_size_that_fits() {
    let mut node = open_node();
    for family in FAMILIES {
        let ends = family.between(A, B);
        let header = ends.transport() - LINK + 8;
        let fits = udp(ends, (4000, 53), &vec![7; 1500 - header]);
        node.passes("from_pod", A, &fits);
        let mut large = udp(ends, (4000, 53), &vec![7; 1501 - header]);
        for dont_fragment in [true, false] {
            if ends.is_v4() {
                large[LINK + 6] = if dont_fragment { 0x40 } else { 0 };
            }
            let outcome = node.drops_from(A, &large, DropReason::TooBig);
            let (kind, code, rest) =
                if ends.is_v4() { (3, 4, [0, 0, 5, 220]) } else { (2, 0, 1500_u32.to_be_bytes()) };
            assert_eq!(outcome.verdict, REDIRECT);
            assert_eq!(outcome.frame, error(ends, kind, code, rest, &large));
            assert!(is_sound(ends.reversed(), &outcome.frame));
        }
    }
}

/// RFC 1122 section 3.2.2.
#[test]
fn an_icmp_error_is_never_answered() {
    let mut node = open_node();
    for family in FAMILIES {
        let asked = udp(family.between(A, B), (4000, 53), b"?");
        node.passes("from_pod", A, &asked);
        let ends = family.between(B, A);
        let (kind, code) = if ends.is_v4() { (3, 3) } else { (1, 4) };
        let rest = [&[0; 4][..], &asked[LINK..ends.transport() + 8]].concat();
        let dying = icmp(ends, kind, code, 1, &rest);
        assert_eq!(node.drops_from(B, &dying, DropReason::TtlExceeded).verdict, SHOT);
    }
}
