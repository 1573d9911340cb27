//! What reaches a workload through the host's stack.

use abi::DropReason;

use super::{
    frame::{ACK, Ends, RST, SYN, arp, icmp, is_sound, tcp, tcp_with, udp},
    node::{Context, Node, OK, REDIRECT, SHOT},
    world::{A, B, FAMILIES, Family, PEER, Ports},
};

#[test]
fn ingress_policy_judges_what_comes_from_beyond() {
    let mut node = Node::new();
    node.allow(A.ingress, PEER, Ports::One(6, 80));
    for family in FAMILIES {
        let ends = family.to(family.peer(), A);
        assert_eq!(node.passes("to_pod", A, &tcp(ends, (4000, 80), SYN)).verdict, OK);
        node.passes("from_pod", A, &tcp(family.from(A, family.peer()), (80, 4000), SYN | ACK));
        node.drops_to(A, &tcp(ends, (4000, 81), SYN), DropReason::PolicyDenied);
        node.drops_to(A, &udp(ends, (4000, 80), b""), DropReason::PolicyDenied);
        let stranger: std::net::IpAddr =
            if family == Family::V4 { "8.8.8.8" } else { "2600::8" }.parse().unwrap();
        node.drops_to(A, &tcp(family.to(stranger, A), (4000, 80), SYN), DropReason::PolicyDenied);
    }
}

/// T31: pods of this node never come this way.
#[test]
fn an_address_of_a_pod_is_refused_whatever_mark_it_wears() {
    let mut node = Node::new();
    node.allow_all();
    for family in FAMILIES {
        for source in [family.pool(B.host), family.pool(99)] {
            let frame = tcp(family.to(source, A), (4000, 80), SYN);
            node.drops_to(A, &frame, DropReason::InvalidSourceIp);
            for mark in [abi::MARK_ANSWER, 0x0a00, 0x0b00, 0xffff_ffff] {
                let outcome = node.run("to_pod", A, Context { mark, ..Context::default() }, &frame);
                assert_eq!((outcome.verdict, outcome.mark), (SHOT, 0));
            }
        }
    }
}

#[test]
fn the_nodes_own_address_is_believed_only_of_what_the_node_made() {
    let mut node = Node::new();
    node.allow_all();
    for family in FAMILIES {
        let frame = tcp(family.to(family.host(), A), (4000, 80), SYN);
        node.drops_to(A, &frame, DropReason::InvalidSourceIp);
        // The test run turns 0, not received, into the loopback device: likewise the node's own.
        assert_eq!(node.run("to_pod", A, Context::default(), &frame).verdict, OK);
    }
}

#[test]
fn a_packet_for_somebody_else_is_not_delivered() {
    let mut node = Node::new();
    node.allow_all();
    for family in FAMILIES {
        for other in [B.host, 99] {
            let mut ends = family.to(family.peer(), A);
            ends.addresses.1 = family.pool(other);
            node.drops_to(A, &tcp(ends, (4000, 80), SYN), DropReason::NoEndpoint);
        }
    }
}

/// The host's neighbour entries are permanent; what its kernel sends all the same is counted, not told.
#[test]
fn the_hosts_neighbour_messages_end_quietly() {
    let mut node = Node::new();
    node.allow_all();
    let all = ([0xff; 6], [10, 0, 0, 2]);
    let router: std::net::IpAddr = "fe80::1".parse().unwrap();
    let group = |name: &str| Ends {
        macs: (A.gateway_mac, [0x33, 0x33, 0, 0, 0, 1]),
        addresses: (router, name.parse().unwrap()),
    };
    let frames = [
        arp((A.gateway_mac, [0xff; 6]), 1, (A.gateway_mac, [10, 0, 0, 1]), all),
        icmp(group("ff02::1:ff00:2"), 135, 0, 255, &[0; 28]),
        icmp(group("ff02::2"), 133, 0, 255, &[0; 4]),
        icmp(group("ff02::16"), 143, 0, 1, &[0; 4]),
    ];
    for frame in frames {
        assert_eq!(node.run_to_pod(A, &frame).verdict, SHOT);
    }
    assert_eq!(node.events(), []);
    let counted = [((A.ifindex, DropReason::Multicast as u8, 0), 4)];
    assert_eq!(node.drops(), counted.into_iter().collect());
}

#[test]
fn a_mid_stream_packet_from_beyond_is_answered_with_a_reset_through_the_stack() {
    let mut node = Node::new();
    node.allow_all();
    for family in FAMILIES {
        let ends = family.to(family.peer(), A);
        let outcome =
            node.drops_to(A, &tcp_with(ends, (80, 4000), ACK, 64, b"data"), DropReason::NoConnection);
        assert_eq!((outcome.verdict, outcome.mark), (REDIRECT, abi::MARK_ANSWER));
        let back = ends.reversed();
        let mut expected = tcp(back, (4000, 80), RST);
        super::answers::expect_reset(&mut expected, back);
        assert_eq!(outcome.frame, expected);
        assert!(is_sound(back, &outcome.frame));
        // Back at the veth's ingress it passes by its mark, and keeps it until it leaves the node.
        let context = Context { mark: outcome.mark, ..Context::default() };
        let again = node.run("from_pod", A, context, &outcome.frame);
        assert_eq!((again.verdict, again.mark), (OK, abi::MARK_ANSWER));
    }
}
