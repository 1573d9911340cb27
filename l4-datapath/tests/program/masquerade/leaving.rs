//! What leaves, as what, and what does not.

use abi::{DeviceFlags, DropReason, MARK_ANSWER};

use super::{
    super::{
        frame::{ACK, RST, SYN, arp, echo, icmp, ip, octets, sctp, tcp, udp, unreachable},
        node::{Context, Node, OK, REDIRECT},
        world::{A, B, FAMILIES, Family, NIC},
    },
    PORTS, Talk, UNSPEC, assert_sound, by, gate, inward, outward,
};

/// Byte for byte what the node itself would have sent.
#[test]
fn a_connection_leaves_under_the_nodes_address_and_one_port_of_the_range() {
    let mut node = gate();
    for (family, talk) in FAMILIES.into_iter().flat_map(|family| Talk::ALL.map(|talk| (family, talk))) {
        let ends = family.from(A, family.peer());
        let left = node.leaves(A, &talk.question(ends, 4000));
        let port = talk.port(ends, &left);
        assert!(PORTS.contains(&port), "{family:?} {talk:?} {port}");
        assert_eq!(left, talk.question(outward(family, ends), port), "{family:?} {talk:?}");
        assert_sound(outward(family, ends), &left);
        for _ in 0..3 {
            assert_eq!(talk.ask(&mut node, A, family, 4000), port, "it keeps the port");
        }
    }
    assert_eq!(node.halves().len(), 2 * 6);
}

#[test]
fn a_port_of_the_range_is_kept() {
    let mut node = gate();
    for (family, talk) in FAMILIES.into_iter().flat_map(|family| Talk::ALL.map(|talk| (family, talk))) {
        assert_eq!(talk.ask(&mut node, A, family, 55_555), 55_555);
    }
}

#[test]
fn no_udp_checksum_stays_none() {
    let mut node = gate();
    let ends = Family::V4.from(A, Family::V4.peer());
    let unsummed = |ends, port| {
        let mut frame = udp(ends, (port, 53), b"question");
        frame[40..42].fill(0);
        frame
    };
    let left = node.leaves(A, &unsummed(ends, 4000));
    let port = Talk::Udp.port(ends, &left);
    assert_eq!(left, unsummed(outward(Family::V4, ends), port));
}

#[test]
fn what_needs_no_masquerading_leaves_as_it_is() {
    let mut node = gate();
    for family in FAMILIES {
        let near = family.between(A, B);
        assert_eq!(node.passes("from_pod", A, &udp(near, (4000, 53), b"")).verdict, REDIRECT, "never here");
        node.except(family.peer());
        let frame = udp(family.from(A, family.peer()), (4000, 53), b"");
        assert_eq!(node.leaves(A, &frame), frame);
    }
    let mut node = gate();
    node.set_device(Some(FAMILIES.map(Family::outside)), DeviceFlags::MASQUERADE6);
    let ends = Family::V4.from(A, Family::V4.peer());
    let frame = udp(ends, (4000, 53), b"");
    assert_eq!(node.leaves(A, &frame), frame);
    assert_ne!(Talk::Udp.ask(&mut node, A, Family::V6, 4000), 4000);
    assert_eq!(node.halves().len(), 2);
}

/// Who calls a workload's own address is answered from it.
#[test]
fn connections_from_beyond_keep_their_addresses() {
    let mut node = gate();
    for (family, talk) in FAMILIES.into_iter().flat_map(|family| Talk::ALL.map(|talk| (family, talk))) {
        let (into, back) = (family.to(family.peer(), A), family.from(A, family.peer()));
        node.passes("to_pod", A, &talk.question(into, 4000));
        let answer = talk.answer(back, 4000);
        assert_eq!(node.leaves(A, &answer), answer);
    }
    assert!(node.halves().is_empty());
}

#[test]
fn what_is_the_nodes_own_passes_whatever_it_is() {
    let mut node = gate();
    for family in FAMILIES {
        let ends = outward(family, family.from(A, family.peer()));
        let mut odd = ip(ends, 99, 64, b"?");
        let whole =
            [udp(ends, (53, 53), b""), tcp(ends, (4000, 80), SYN | RST), sctp(ends, (1, 2)), odd.clone()];
        // Its header says that there is more.
        odd.truncate(ends.transport());
        for frame in whole.into_iter().chain([odd]) {
            assert_eq!(node.goes_on("to_netdev", Context::default(), &frame), frame);
        }
    }
    for frame in [arp((A.mac, [0xff; 6]), 1, (A.mac, [10, 0, 0, 2]), ([0; 6], [10, 0, 0, 9])), vec![0; 14]] {
        assert_eq!(node.goes_on("to_netdev", Context::default(), &frame), frame);
    }
    let mut blank = Node::blank();
    let frame = udp(outward(Family::V4, Family::V4.from(A, Family::V4.peer())), (53, 53), b"");
    let outcome = blank.on_device("to_netdev", Context::default(), &frame);
    assert_eq!(
        (outcome.verdict, outcome.frame),
        (UNSPEC, frame),
        "nobody is locked out before the first plan"
    );
}

/// What policy refuses has no connection. Who called is told so by whom it called, and nobody but a program can say so.
#[test]
fn our_answers_to_who_called_a_workload_come_from_its_address() {
    let mut node = gate();
    for family in FAMILIES {
        let (into, back) = (family.to(family.peer(), A), family.from(A, family.peer()));
        let reset = tcp(back, (80, 4000), RST | ACK);
        let prohibited = unreachable(back, &udp(into, (4000, 53), b"question"));
        for (answer, otherwise) in [(reset, DropReason::NoConnection), (prohibited, DropReason::NoMapping)] {
            let outcome =
                node.run("from_pod", A, Context { mark: MARK_ANSWER, ..Context::default() }, &answer);
            assert_eq!((outcome.verdict, outcome.mark), (OK, MARK_ANSWER));
            let context = Context { mark: outcome.mark, ..by(A) };
            assert_eq!(node.goes_on("to_netdev", context, &answer), answer, "{family:?}");
            node.stops("to_netdev", by(A), &answer, (otherwise, A.ifindex));
        }
    }
    assert!(node.halves().is_empty());
}

/// T31, from the node: plain CAP_NET_RAW is enough to write any source.
#[test]
fn a_workloads_address_on_a_packet_that_its_veth_did_not_bring_is_refused() {
    let mut node = gate();
    for family in FAMILIES {
        let frame = udp(family.from(A, family.peer()), (4000, 53), b"");
        node.passes("from_pod", A, &frame);
        for forged in [Context::default(), by(B), Context { mark: MARK_ANSWER, ..Context::default() }] {
            node.stops("to_netdev", forged, &frame, (DropReason::InvalidSourceIp, A.ifindex));
        }
        let mut nobody = family.from(A, family.peer());
        nobody.addresses.0 = family.pool(77);
        let frame = udp(nobody, (4000, 53), b"");
        node.stops("to_netdev", Context::default(), &frame, (DropReason::InvalidSourceIp, NIC));
        // The node's own address of the pool is its own.
        nobody.addresses.0 = family.host();
        let frame = udp(nobody, (4000, 53), b"");
        assert_eq!(node.goes_on("to_netdev", Context::default(), &frame), frame);
    }
}

#[test]
fn without_a_connection_nothing_leaves() {
    let mut node = gate();
    for (family, talk) in FAMILIES.into_iter().flat_map(|family| Talk::ALL.map(|talk| (family, talk))) {
        let frame = talk.question(family.from(A, family.peer()), 4000);
        node.stops("to_netdev", by(A), &frame, (DropReason::NoConnection, A.ifindex));
    }
}

#[test]
fn what_nobody_could_bring_back_is_refused() {
    let mut node = gate();
    for family in FAMILIES {
        let ends = family.from(A, family.peer());
        // Timestamp; a node information query.
        let kind = if ends.is_v4() { 13 } else { 139 };
        for frame in [sctp(ends, (4000, 5000)), icmp(ends, kind, 0, 64, &[0; 16])] {
            node.passes("from_pod", A, &frame);
            node.stops("to_netdev", by(A), &frame, (DropReason::UnsupportedMasquerade, A.ifindex));
        }
    }
}

#[test]
fn a_device_without_address_ports_or_entry_lets_nothing_out() {
    for family in FAMILIES {
        let mut node = gate();
        let frame = echo(family.from(A, family.peer()), true, 4000);
        node.passes("from_pod", A, &frame);
        node.set_device(None, DeviceFlags::MASQUERADE4 | DeviceFlags::MASQUERADE6);
        node.stops("to_netdev", by(A), &frame, (DropReason::NoMapping, A.ifindex));
        let mut node = gate();
        node.passes("from_pod", A, &frame);
        node.set_ports(0..=0);
        node.stops("to_netdev", by(A), &frame, (DropReason::NoMapping, A.ifindex));
        let mut node = Node::new();
        node.allow_all();
        node.passes("from_pod", A, &frame);
        node.stops("to_netdev", by(A), &frame, (DropReason::NotReady, A.ifindex));
    }
}

/// Our RST to whom `to_pod` refused goes back through the stack and out here.
#[test]
fn an_answer_of_ours_leaves_as_the_workloads_packets_do() {
    let mut node = gate();
    for family in FAMILIES {
        let ends = family.from(A, family.peer());
        let port = Talk::Tcp.ask(&mut node, A, family, 4000);
        let rst = tcp(ends, (4000, 80), RST | ACK);
        let expected = tcp(outward(family, ends), (port, 80), RST | ACK);
        assert_eq!(node.goes_on("to_netdev", by(A), &rst), expected);
    }
}

/// A roaming node: what was begun under the old address goes on under it while the node has it, and no longer.
#[test]
fn a_connection_keeps_its_address_as_long_as_the_node_has_it() {
    for family in FAMILIES {
        let mut node = gate();
        let ends = family.from(A, family.peer());
        let question = Talk::Udp.question(ends, 55_000);
        node.leaves(A, &question);
        let moved = FAMILIES.map(|family| family.pool(1));
        node.set_device(Some(moved), DeviceFlags::MASQUERADE4 | DeviceFlags::MASQUERADE6);
        let left = node.leaves(A, &question);
        let at = if ends.is_v4() { 26 } else { 22 };
        let source = |left: &[u8]| left[at..at + octets(family.peer()).len()].to_vec();
        assert_eq!(source(&left), octets(family.outside()));
        node.identify(family.outside(), 128, super::super::world::WORLD);
        let left = node.leaves(A, &question);
        assert_eq!(source(&left), octets(family.pool(1)));
        assert_eq!(node.halves().len(), 2, "the old halves are gone");
        let answer = Talk::Udp.answer(inward(family, A), 55_000);
        assert_eq!(node.arrives(&answer), answer);
    }
}
