//! ICMP errors about connections that services translated: each end gets them about what it knows.

use abi::DropReason;

use super::{
    frame::{ACK, Ends, LINK, SYN, icmp, is_sound, pieces, tcp, udp, unreachable},
    node::{Node, OK, REDIRECT},
    run::run_summed,
    service::{delivered, from_vip, node_with_backend, open_node, vip},
    world::{A, B, FAMILIES, Family, Pod},
};

/// Asserts that `from_pod` delivers `expected` to `to`.
#[track_caller]
fn delivers(node: &mut Node, from: Pod, sent: &[u8], to: Pod, expected: &[u8], ends: Ends) {
    let outcome = node.passes("from_pod", from, sent);
    assert_eq!((outcome.verdict, &outcome.frame), (REDIRECT, &delivered(expected, to)));
    assert!(is_sound(ends, &outcome.frame));
}

#[test]
fn what_a_backend_complains_about_is_what_the_caller_sent() {
    let mut node = open_node();
    for family in FAMILIES {
        let (call, there) = (family.from(A, vip(family)), family.between(A, B));
        let (back, answer) = (family.between(B, A), from_vip(family, A));
        let (asked, heard) = (udp(call, (4000, 80), b"?"), udp(there, (4000, 8080), b"?"));
        node.passes("from_pod", A, &asked);
        delivers(&mut node, B, &unreachable(back, &heard), A, &unreachable(answer, &asked), answer);
        let (asked, heard) = (tcp(call, (4000, 80), SYN), tcp(there, (4000, 8080), SYN));
        node.passes("from_pod", A, &asked);
        delivers(&mut node, B, &unreachable(back, &heard), A, &unreachable(answer, &asked), answer);
    }
}

/// With all of the quoted packet there: its checksums are right too.
#[test]
fn a_longer_quote_is_translated_to_its_checksum() {
    let mut node = open_node();
    for family in FAMILIES {
        let (call, there) = (family.from(A, vip(family)), family.between(A, B));
        let (back, answer) = (family.between(B, A), from_vip(family, A));
        let (kind, code) = if call.is_v4() { (3, 3) } else { (1, 4) };
        let whole =
            |ends: Ends, about: &[u8]| icmp(ends, kind, code, 64, &[&[0; 4], &about[LINK..]].concat());
        let (asked, heard) = (tcp(call, (4000, 80), SYN), tcp(there, (4000, 8080), SYN));
        node.passes("from_pod", A, &asked);
        delivers(&mut node, B, &whole(back, &heard), A, &whole(answer, &asked), answer);
        // None stays none.
        let bare = |ends: Ends, ports| {
            let mut frame = udp(ends, ports, b"?");
            frame[ends.transport() + 6..ends.transport() + 8].fill(0);
            frame
        };
        let (asked, heard) = (bare(call, (4000, 80)), bare(there, (4000, 8080)));
        node.passes("from_pod", A, &asked);
        delivers(&mut node, B, &whole(back, &heard), A, &whole(answer, &asked), answer);
    }
}

#[test]
fn a_router_complains_in_its_own_name() {
    let mut node = node_with_backend(Family::peer);
    node.allow_all();
    for family in FAMILIES {
        let (call, there) = (family.from(A, vip(family)), family.from(A, family.peer()));
        let (asked, heard) = (udp(call, (4000, 80), b"?"), udp(there, (4000, 8080), b"?"));
        node.passes("from_pod", A, &asked);
        let router = if call.is_v4() { "198.51.100.1" } else { "2001:db8:1::1" }.parse().unwrap();
        for (from, shown) in [(router, router), (family.peer(), vip(family))] {
            let outcome = node.passes("to_pod", A, &unreachable(family.to(from, A), &heard));
            let expected = unreachable(family.to(shown, A), &asked);
            assert_eq!((outcome.verdict, outcome.frame), (OK, expected));
        }
        let another = udp(there, (4001, 8080), b"?");
        node.drops_to(A, &unreachable(family.to(router, A), &another), DropReason::UnrelatedIcmp);
    }
}

#[test]
fn what_a_caller_complains_about_is_what_the_backend_sent() {
    let mut node = open_node();
    for family in FAMILIES {
        let (call, back) = (family.from(A, vip(family)), family.between(B, A));
        node.passes("from_pod", A, &udp(call, (4000, 80), b"?"));
        let (said, heard) = (udp(back, (8080, 4000), b"!"), udp(from_vip(family, A), (80, 4000), b"!"));
        node.passes("from_pod", B, &said);
        let there = family.between(A, B);
        delivers(&mut node, A, &unreachable(call, &heard), B, &unreachable(there, &said), there);
        // About what the VIP never said, and what it said to others.
        let another = udp(from_vip(family, A), (80, 4001), b"!");
        node.drops_from(A, &unreachable(call, &another), DropReason::UnrelatedIcmp);
        let others = udp(from_vip(family, B), (80, 4000), b"!");
        node.drops_from(A, &unreachable(call, &others), DropReason::UnrelatedIcmp);
        // In the backend's own name it knows nothing of it.
        node.drops_from(A, &unreachable(there, &said), DropReason::UnrelatedIcmp);
    }
}

#[test]
fn a_workload_that_is_its_own_backend_complains_to_itself() {
    let mut node = node_with_backend(|family| family.pool(A.host));
    for family in FAMILIES {
        let (to_vip, seen) = (family.from(A, vip(family)), from_vip(family, A));
        let (asked, heard) = (udp(to_vip, (4000, 80), b"?"), udp(seen, (4000, 8080), b"?"));
        node.passes("from_pod", A, &asked);
        delivers(&mut node, A, &unreachable(to_vip, &heard), A, &unreachable(seen, &asked), seen);
        let (said, heard) = (udp(to_vip, (8080, 4000), b"!"), udp(seen, (80, 4000), b"!"));
        node.passes("from_pod", A, &said);
        delivers(&mut node, A, &unreachable(to_vip, &heard), A, &unreachable(seen, &said), seen);
    }
}

#[test]
fn nobody_outside_may_complain_about_a_call_inside() {
    let mut node = open_node();
    for family in FAMILIES {
        node.passes("from_pod", A, &tcp(family.from(A, vip(family)), (4000, 80), SYN));
        let heard = tcp(family.between(A, B), (4000, 8080), SYN);
        node.drops_to(A, &unreachable(family.to(family.peer(), A), &heard), DropReason::UnrelatedIcmp);
        node.drops_from(B, &tcp(family.between(B, A), (8080, 4001), ACK), DropReason::NoConnection);
    }
}

/// What a device has summed up stays true through every kind of rewriting: nobody would accept the packet otherwise.
#[test]
fn the_sum_a_device_has_made_stays_the_packets() {
    let mut node = open_node();
    for family in FAMILIES {
        let (call, there) = (family.from(A, vip(family)), family.between(A, B));
        let (back, answer) = (family.between(B, A), from_vip(family, A));
        let bare = |ends: Ends| {
            let mut frame = udp(ends, (4001, 80), b"?");
            frame[ends.transport() + 6..ends.transport() + 8].fill(0);
            frame
        };
        let datagram = udp(call, (4002, 80), &[5; 2500]);
        let mut frames = vec![
            (A, tcp(call, (4000, 80), SYN)),
            (B, tcp(back, (8080, 4000), SYN | ACK)),
            (A, udp(call, (4000, 80), b"?")),
            (B, udp(back, (8080, 4000), b"odd")),
            (A, bare(call)),
            (B, unreachable(back, &udp(there, (4000, 8080), b"?"))),
            (A, unreachable(call, &udp(answer, (80, 4000), b"odd"))),
            (B, unreachable(back, &tcp(there, (4000, 8080), SYN))),
        ];
        frames.extend(pieces(call, 7, &datagram, 1000).into_iter().map(|piece| (A, piece)));
        for (pod, frame) in frames {
            let verdict = run_summed(node.program("from_pod"), pod.ifindex, &frame);
            assert_eq!(verdict, Ok(REDIRECT), "{family:?} {frame:02x?}");
        }
        node.events();
    }
}
