//! Datagrams in pieces (T27): the first one is judged, the others by what it had.

use super::{
    frame::{UDP, pieces, udp},
    node::{Node, OK, REDIRECT},
    world::{A, B, FAMILIES, PEER, Ports},
};

fn open_node() -> Node {
    let mut node = Node::new();
    node.allow_all();
    node
}

#[test]
fn a_datagram_in_pieces_passes_as_a_whole_one_does() {
    let mut node = Node::new();
    node.allow(A.egress, B.identity, Ports::One(UDP, 53));
    node.allow(B.ingress, A.identity, Ports::One(UDP, 53));
    node.allow(A.ingress, PEER, Ports::One(UDP, 53));
    for family in FAMILIES {
        let near = family.between(A, B);
        for frame in pieces(near, 7, &udp(near, (4000, 53), &[5; 4000]), 1400) {
            assert_eq!(node.passes("from_pod", A, &frame).verdict, REDIRECT);
        }
        // The answer needs no rule of its own, in pieces either.
        let back = family.between(B, A);
        for frame in pieces(back, 7, &udp(back, (53, 4000), &[5; 4000]), 1400) {
            assert_eq!(node.passes("from_pod", B, &frame).verdict, REDIRECT);
        }
        let into = family.to(family.peer(), A);
        for frame in pieces(into, 7, &udp(into, (4000, 53), &[5; 4000]), 1400) {
            assert_eq!(node.passes("to_pod", A, &frame).verdict, OK);
        }
    }
}

/// Only what a router changes is changed, in every piece.
#[test]
fn pieces_are_delivered_as_they_came() {
    let mut node = open_node();
    for family in FAMILIES {
        let ends = family.between(A, B);
        for frame in pieces(ends, 7, &udp(ends, (4000, 53), &[5; 2000]), 1000) {
            let mut expected = frame.clone();
            expected[..12].copy_from_slice(&[B.mac, B.gateway_mac].concat());
            expected[if ends.is_v4() { 22 } else { 21 }] = 63;
            if ends.is_v4() {
                super::frame::sum_header(&mut expected);
            }
            assert_eq!(node.passes("from_pod", A, &frame).frame, expected);
        }
    }
}
