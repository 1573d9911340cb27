//! Datagrams in pieces: the first has the ports, the others follow it.

use abi::DropReason;

use super::{
    super::{
        frame::{pieces, udp},
        world::{A, FAMILIES},
    },
    Talk, by, gate, inward, outward,
};

#[test]
fn pieces_leave_and_answers_in_pieces_come_back() {
    let mut node = gate();
    for family in FAMILIES {
        let ends = family.from(A, family.peer());
        let whole = udp(ends, (4000, 53), &[5; 4000]);
        let sent = pieces(ends, 7, &whole, 1400);
        let mut left = Vec::new();
        for frame in &sent {
            left.push(node.leaves(A, frame));
        }
        let port = Talk::Udp.port(ends, &at_transport(&left[0], ends.is_v4()));
        let expected = udp(outward(family, ends), (port, 53), &[5; 4000]);
        assert_eq!(left, pieces(outward(family, ends), 7, &expected, 1400), "{family:?}");

        let (from, to) = (inward(family, A), family.to(family.peer(), A));
        let expected = pieces(to, 8, &udp(to, (53, 4000), &[6; 4000]), 1400);
        let came = pieces(from, 8, &udp(from, (53, port), &[6; 4000]), 1400);
        for (frame, expected) in came.iter().zip(expected) {
            let arrived = node.arrives(frame);
            assert_eq!(arrived, expected);
            node.passes("to_pod", A, &arrived);
        }
    }
}

/// The frame without an IPv6 fragment header, whose place is before the ports.
fn at_transport(frame: &[u8], v4: bool) -> Vec<u8> {
    if v4 { frame.to_vec() } else { [&frame[..54], &frame[62..]].concat() }
}

/// The node itself cuts what does not fit the device: the pieces differ from those that `from_pod` saw.
#[test]
fn pieces_that_the_node_has_cut_once_more_leave_too() {
    let mut node = gate();
    let family = super::super::world::Family::V4;
    let ends = family.from(A, family.peer());
    let whole = udp(ends, (4000, 53), &[5; 2000]);
    for frame in pieces(ends, 7, &whole, 1480) {
        node.passes("from_pod", A, &frame);
    }
    let mut left = Vec::new();
    for frame in pieces(ends, 7, &whole, 1000) {
        left.push(node.goes_on("to_netdev", by(A), &frame));
    }
    let port = Talk::Udp.port(ends, &left[0]);
    let expected = udp(outward(family, ends), (port, 53), &[5; 2000]);
    assert_eq!(left, pieces(outward(family, ends), 7, &expected, 1000));
}

#[test]
fn a_later_piece_without_its_first_does_not_leave_and_comes_in_untouched() {
    let mut node = gate();
    for family in FAMILIES {
        let ends = family.from(A, family.peer());
        let port = Talk::Udp.ask(&mut node, A, family, 4000);
        let sent = pieces(ends, 9, &udp(ends, (4000, 53), &[5; 2000]), 1400);
        node.stops("to_netdev", by(A), &sent[1], (DropReason::FirstFragmentMissing, A.ifindex));
        let from = inward(family, A);
        let came = pieces(from, 9, &udp(from, (53, port), &[6; 2000]), 1400);
        assert_eq!(node.arrives(&came[1]), came[1], "it may be the node's own");
    }
}
