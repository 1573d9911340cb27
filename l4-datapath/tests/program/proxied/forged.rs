//! Who is not the proxy.

use abi::{DropReason, MARK_FROM_PROXY, MARK_TO_PROXY};

use super::super::{
    frame::{ACK, FIN, RST, SYN, tcp, tcp_with, udp},
    node::{Context, Node, OK},
    world::{A, B, FAMILIES},
};
use super::PORT;

/// Plain CAP_NET_RAW on the node writes any address and any mark.
#[test]
fn address_and_mark_do_not_make_a_packet_the_proxys() {
    let mut node = Node::new();
    node.allow_by_proxy();
    node.set_proxy(1, u64::MAX, 1);
    for family in FAMILIES {
        let ends = family.to(family.pool(B.host), A);
        let frames = [
            tcp(ends, (4000, PORT), SYN),
            tcp_with(ends, (PORT, 4000), ACK, 64, b"answer"),
            tcp(ends, (PORT, 4000), SYN | ACK),
            tcp(ends, (PORT, 4000), RST),
            udp(ends, (PORT, 4000), b"answer"),
        ];
        for frame in frames {
            for mark in [0, MARK_FROM_PROXY, MARK_TO_PROXY] {
                let blamed = (DropReason::ProxyForged, A, abi::Direction::Ingress);
                let outcome =
                    node.expect_drop("to_pod", A, Context { mark, ..Context::default() }, &frame, blamed);
                assert_eq!(outcome.mark, 0);
            }
        }
    }
}

/// An RST or an ACK that a kernel makes without a socket passes, as part of what is open; anything that says something,
/// begins or ends in good order does not.
#[test]
fn what_has_no_socket_may_end_a_proxied_connection_and_say_nothing_in_it() {
    let mut node = Node::new();
    node.allow_by_proxy();
    node.set_proxy(1, u64::MAX, 1);
    for family in FAMILIES {
        node.run_from_pod(A, &tcp(family.between(A, B), (4000, PORT), SYN));
        let ends = family.to(family.pool(B.host), A);
        let blamed = (DropReason::ProxyForged, A, abi::Direction::Ingress);
        for flags in [SYN, ACK | FIN] {
            node.expect_drop("to_pod", A, Context::default(), &tcp(ends, (PORT, 4000), flags), blamed);
        }
        let answer = tcp_with(ends, (PORT, 4000), ACK, 64, b"answer");
        node.expect_drop("to_pod", A, Context::default(), &answer, blamed);
        for flags in [SYN | ACK, ACK, RST | ACK] {
            let outcome = node.run("to_pod", A, Context::default(), &tcp(ends, (PORT, 4000), flags));
            assert_eq!(outcome.verdict, OK, "{flags}");
        }
    }
}

/// By a device nothing of the proxy's comes.
#[test]
fn nobody_beyond_the_node_is_the_proxy() {
    let mut node = Node::new();
    node.allow_by_proxy();
    node.set_proxy(1, u64::MAX, 1);
    for family in FAMILIES {
        node.run_from_pod(A, &tcp(family.between(A, B), (4000, PORT), SYN));
        let ends = family.to(family.pool(B.host), A);
        node.drops_to(A, &tcp(ends, (PORT, 4000), RST | ACK), DropReason::InvalidSourceIp);
    }
}
