//! A call to a VIP waits for the backend that was chosen for it, and reaches that one.

use super::*;
use crate::{
    frame::{TCP, is_sound},
    service::vip,
};

/// Backends beyond the node, nothing known of any.
fn backend(family: Family, number: u8) -> std::net::IpAddr {
    match family {
        Family::V4 => [192, 0, 2, 100 + number].into(),
        Family::V6 => [0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x100 + u16::from(number)].into(),
    }
}

fn node_with_service() -> Node {
    let mut node = waiting_node();
    for (n, family) in (0..).zip(FAMILIES) {
        let backends: Vec<_> = (0..4).map(|m| (n * 4 + m + 1, backend(family, m as u8), 8080)).collect();
        for (m, protocol) in [(1, TCP), (2, UDP)] {
            node.serve(n * 2 + m, (vip(family), 80, protocol), &backends, 0);
        }
    }
    pend_backends(&mut node, true);
    node
}

fn pend_backends(node: &mut Node, pending: bool) {
    for family in FAMILIES {
        for number in 0..4 {
            node.pend_address(address(backend(family, number)), pending);
        }
    }
}

/// Where a frame goes by its IP header.
fn destination(family: Family, frame: &[u8]) -> Vec<u8> {
    match family {
        Family::V4 => frame[LINK + 16..LINK + 20].to_vec(),
        Family::V6 => frame[LINK + 24..LINK + 40].to_vec(),
    }
}

#[test]
fn the_device_shows_the_backend_and_the_packet_reaches_it() {
    let mut node = node_with_service();
    for family in FAMILIES {
        let ends = family.from(A, vip(family));
        let mut reached = std::collections::BTreeSet::new();
        // No more than a workload may have wait at once.
        for port in 4000..4030 {
            for sent in [tcp(ends, (port, 80), SYN), udp(ends, (port, 80), b"question")] {
                pend_backends(&mut node, true);
                let (_, frame) = node.waits(Hook::FromPod, &sent);
                let shown = destination(family, &frame);
                assert_ne!(shown, destination(family, &sent), "not the VIP");
                assert_eq!(node.goes_on_from_hold(&frame), sent, "the VIP again");
                pend_backends(&mut node, false);
                let context = Context { mark: MARK_RELEASED, ..RECEIVED };
                let outcome = node.run("from_pod", A, context, &sent);
                assert_eq!(outcome.verdict, run::OK);
                assert_eq!(destination(family, &outcome.frame), shown, "the one that was shown");
                let there = (0..4).map(|n| backend(family, n)).find(|ip| crate::frame::octets(*ip) == shown);
                let there = family.from(A, there.expect("a backend"));
                assert!(is_sound(there, &outcome.frame));
                reached.insert(shown);
            }
        }
        assert_eq!(reached.len(), 4, "every backend had a turn");
    }
}

/// Nothing is entered for what waits: whoever never comes back leaves nothing behind.
#[test]
fn a_call_that_waits_leaves_no_connection_and_no_translation() {
    let mut node = node_with_service();
    for family in FAMILIES {
        node.waits(Hook::FromPod, &tcp(family.from(A, vip(family)), (4000, 80), SYN));
        assert!(node.connections(family).is_empty());
    }
    assert!(node.halves().is_empty());
    assert_eq!(node.usage(A), 0);
}

/// The backend went while the call waited: another is chosen, judged for itself, and, as its proof is not there, the
/// packet is dropped. The caller's next one waits for the right one.
#[test]
fn a_call_whose_backend_went_does_not_reach_another_unjudged() {
    let mut node = node_with_service();
    for (n, family) in (0..).zip(FAMILIES) {
        let ends = family.from(A, vip(family));
        let sent = tcp(ends, (4000, 80), SYN);
        let (_, frame) = node.waits(Hook::FromPod, &sent);
        let shown = destination(family, &frame);
        let gone = (0..4).find(|m| crate::frame::octets(backend(family, *m)) == shown).unwrap();
        let other = (gone + 1) % 4;
        node.pend_address(address(backend(family, gone)), false);
        let left = [(n * 4 + u32::from(other) + 1, backend(family, other), 8080)];
        node.serve(n * 2 + 1, (vip(family), 80, TCP), &left, 0);
        let sent = node.goes_on_from_hold(&frame);
        let context = Context { mark: MARK_RELEASED, ..RECEIVED };
        node.is_dropped(Hook::FromPod, context, &sent, DropReason::PendingAddress);
        let (_, frame) = node.waits(Hook::FromPod, &sent);
        assert_eq!(destination(family, &frame), crate::frame::octets(backend(family, other)));
    }
}
