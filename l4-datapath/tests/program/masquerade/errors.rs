//! ICMP and ICMPv6 errors about what is masqueraded, both ways, byte for byte.

use abi::DropReason;

use super::{
    super::{
        frame::{Ends, LINK, icmp, tcp_with, udp, unreachable},
        node::Node,
        world::{A, B, FAMILIES, Family, NIC},
    },
    Talk, assert_sound, by, gate, inward, outward,
};

/// A router on the way.
fn router(family: Family) -> std::net::IpAddr {
    match family {
        Family::V4 => "203.0.113.9".parse().unwrap(),
        Family::V6 => "2001:db8:9::9".parse().unwrap(),
    }
}

/// *Too big*, from a router, quoting as much as ICMPv6 routers do.
fn too_big(ends: Ends, mtu: u16, about: &[u8]) -> Vec<u8> {
    let [high, low] = mtu.to_be_bytes();
    let (kind, code) = if ends.is_v4() { (3, 4) } else { (2, 0) };
    icmp(ends, kind, code, 60, &[&[0, 0, high, low], &about[LINK..]].concat())
}

/// What a workload sent comes back to it as it sent it.
#[test]
fn an_error_about_what_left_comes_to_the_workload_about_what_it_sent() {
    let mut node = gate();
    for (family, talk) in FAMILIES.into_iter().flat_map(|family| Talk::ALL.map(|talk| (family, talk))) {
        let ends = family.from(A, family.peer());
        let question = talk.question(ends, 4000);
        let left = node.leaves(A, &question);
        for from in [router(family), family.peer()] {
            let (at_node, at_pod) =
                (Ends { addresses: (from, family.outside()), ..family.to(from, A) }, family.to(from, A));
            let arrived = node.arrives(&unreachable(at_node, &left));
            assert_eq!(arrived, unreachable(at_pod, &question), "{family:?} {talk:?}");
            assert_sound(at_pod, &arrived);
            node.passes("to_pod", A, &arrived);
        }
    }
}

/// T35: path-MTU discovery, with whole packets quoted, checksums and all.
#[test]
fn too_big_comes_to_the_workload_with_the_mtu_and_its_own_packet() {
    let mut node = gate();
    for family in FAMILIES {
        let ends = family.from(A, family.peer());
        let question = Talk::Tcp.question(ends, 4000);
        let port = Talk::Tcp.port(ends, &node.leaves(A, &question));
        let arrived = node.arrives(&Talk::Tcp.answer(inward(family, A), port));
        node.passes("to_pod", A, &arrived);
        for frame in [
            tcp_with(ends, (4000, 80), super::super::frame::ACK, 64, &[7; 1000]),
            udp(ends, (4000, 80), &[7; 1000]),
        ] {
            let left = node.leaves(A, &frame);
            let at_node =
                Ends { addresses: (router(family), family.outside()), ..family.to(router(family), A) };
            let arrived = node.arrives(&too_big(at_node, 1300, &left));
            let at_pod = family.to(router(family), A);
            assert_eq!(arrived, too_big(at_pod, 1300, &frame), "{family:?}");
            assert_sound(at_pod, &arrived);
            node.passes("to_pod", A, &arrived);
        }
    }
}

/// What came to a workload goes back as it came.
#[test]
fn an_error_of_a_workload_leaves_about_what_the_peer_sent() {
    let mut node = gate();
    for (family, talk) in FAMILIES.into_iter().flat_map(|family| Talk::ALL.map(|talk| (family, talk))) {
        let ends = family.from(A, family.peer());
        let port = talk.ask(&mut node, A, family, 4000);
        let answer = talk.answer(inward(family, A), port);
        let arrived = node.arrives(&answer);
        node.passes("to_pod", A, &arrived);
        let complaint = unreachable(ends, &arrived);
        let left = node.leaves(A, &complaint);
        assert_eq!(left, unreachable(outward(family, ends), &answer), "{family:?} {talk:?}");
        assert_sound(outward(family, ends), &left);
    }
}

#[test]
fn an_error_about_what_came_to_the_workloads_own_address_leaves_from_that() {
    let mut node = gate();
    for family in FAMILIES {
        let question = Talk::Udp.question(family.to(family.peer(), A), 4000);
        node.passes("to_pod", A, &question);
        let complaint = unreachable(family.from(A, family.peer()), &question);
        assert_eq!(node.leaves(A, &complaint), complaint);
    }
}

/// T35: nobody beyond, and no other workload, can speak of a connection that is not his.
#[test]
fn forged_errors_lead_nowhere() {
    let mut node = gate();
    for family in FAMILIES {
        let ends = family.from(A, family.peer());
        let question = Talk::Udp.question(ends, 4000);
        let left = node.leaves(A, &question);
        let at_node = Ends { addresses: (router(family), family.outside()), ..family.to(router(family), A) };
        // A port that nobody has; a quote that the node did not send; one that is cut off.
        let mut other = left.clone();
        other[ends.transport()] ^= 1;
        let foreign = unreachable(at_node, &question);
        let cut = icmp(
            at_node,
            if ends.is_v4() { 3 } else { 1 },
            0,
            64,
            &[&[0; 4], &left[LINK..LINK + 16]].concat(),
        );
        for frame in [unreachable(at_node, &other), foreign, cut] {
            assert_eq!(node.arrives(&frame), frame, "the node's own affair");
        }
        // B never heard of the peer: already `from_pod` refuses, and here it would end too.
        let forged =
            unreachable(family.from(B, family.peer()), &Talk::Udp.answer(family.to(family.peer(), B), 4000));
        node.drops_from(B, &forged, DropReason::UnrelatedIcmp);
        node.stops("to_netdev", by(B), &forged, (DropReason::NoMapping, B.ifindex));
        let spoofed = Ends { addresses: (family.pool(B.host), family.outside()), ..at_node };
        let forged = unreachable(spoofed, &left);
        node.stops("from_netdev", by(B), &forged, (DropReason::InvalidSourceIp, NIC));
    }
}

/// Policy may have changed since: an error is judged by the connection at the workload's door.
#[test]
fn an_error_does_not_outlive_its_connections_verdict() {
    let mut node: Node = gate();
    for family in FAMILIES {
        let question = Talk::Udp.question(family.from(A, family.peer()), 4000);
        let left = node.leaves(A, &question);
        node.change_connections(family, |connection| connection.memo = 0);
        let at_node = inward(family, A);
        let arrived = node.arrives(&unreachable(at_node, &left));
        node.drops_to(A, &arrived, DropReason::UnrelatedIcmp);
    }
}
