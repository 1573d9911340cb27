//! What comes back.

use abi::DropReason;

use super::{
    super::{
        frame::{ACK, Ends, SYN, arp, ip, sctp, tcp, udp},
        node::{Context, Node},
        world::{A, B, FAMILIES, Family, NIC, PEER, Ports, address},
    },
    Talk, UNSPEC, assert_sound, gate, inward,
};

#[test]
fn an_answer_comes_to_the_workload_as_if_it_had_called_under_its_own_address() {
    let mut node = gate();
    for (family, talk) in FAMILIES.into_iter().flat_map(|family| Talk::ALL.map(|talk| (family, talk))) {
        let port = talk.ask(&mut node, A, family, 4000);
        let (from, to) = (inward(family, A), family.to(family.peer(), A));
        let arrived = node.arrives(&talk.answer(from, port));
        assert_eq!(arrived, talk.answer(to, 4000), "{family:?} {talk:?}");
        assert_sound(to, &arrived);
        node.passes("to_pod", A, &arrived);
    }
}

/// Policy judges the workload's end: its egress let the question out, the answer needs no rule of its own.
#[test]
fn an_answer_needs_no_rule_and_a_stranger_gets_none() {
    let mut node = gate_without_rules();
    for family in FAMILIES {
        let port = Talk::Udp.ask(&mut node, A, family, 4000);
        let arrived = node.arrives(&Talk::Udp.answer(inward(family, A), port));
        node.passes("to_pod", A, &arrived);
        // Another port of the peer, another peer: nobody was asked.
        let mut stranger = inward(family, A);
        let other = udp(stranger, (54, port), b"answers");
        assert_eq!(node.arrives(&other), other);
        stranger.addresses.0 = family.pool(1);
        let other = Talk::Udp.answer(stranger, port);
        assert_eq!(node.goes_on("from_netdev", Context::default(), &other), other);
    }
}

fn gate_without_rules() -> Node {
    let mut node = gate();
    node.assign_both(A, |assignment| (assignment.ingress, assignment.egress) = (301, 302));
    node.allow(302, PEER, Ports::All);
    node
}

#[test]
fn what_is_for_the_node_itself_stays_as_it_is() {
    let mut node = gate();
    for family in FAMILIES {
        Talk::Tcp.ask(&mut node, A, family, 55_000);
        let ends = inward(family, A);
        let frames = [
            tcp(ends, (80, 22), SYN),
            tcp(ends, (81, 55_000), SYN | ACK),
            udp(ends, (80, 55_000), b""),
            sctp(ends, (80, 55_000)),
            ip(ends, 99, 64, b"?"),
            // Cut off.
            tcp(ends, (80, 55_000), SYN | ACK)[..ends.transport() + 10].to_vec(),
        ];
        for frame in frames {
            assert_eq!(node.arrives(&frame), frame);
        }
        let mut options = tcp(ends, (80, 55_000), SYN | ACK);
        options[14] = if ends.is_v4() { 0x46 } else { 0x50 };
        assert_eq!(node.arrives(&options), options);
    }
    let question = arp((A.mac, [0xff; 6]), 1, (A.mac, [10, 0, 0, 2]), ([0; 6], [10, 0, 0, 9]));
    assert_eq!(node.arrives(&question), question);
}

/// T31 from beyond: no packet from outside has a workload's source.
#[test]
fn a_pool_address_from_beyond_is_refused() {
    let mut node = gate();
    for (family, forged) in FAMILIES.into_iter().flat_map(|family| [2, 3, 77].map(|host| (family, host))) {
        for to in [family.outside(), family.pool(A.host)] {
            let ends = Ends { addresses: (family.pool(forged), to), ..family.to(family.peer(), B) };
            let frame = udp(ends, (53, 4000), b"");
            node.stops("from_netdev", Context::default(), &frame, (DropReason::InvalidSourceIp, NIC));
        }
    }
}

#[test]
fn before_the_first_plan_everything_comes_in() {
    let mut node = Node::blank();
    let frame = udp(inward(Family::V4, A), (53, 4000), b"");
    let outcome = node.on_device("from_netdev", Context::default(), &frame);
    assert_eq!((outcome.verdict, outcome.frame), (UNSPEC, frame));
}

/// Two workloads with the same port and peer: each gets its own answers.
#[test]
fn answers_find_the_one_that_asked() {
    let mut node = gate();
    for (family, talk) in FAMILIES.into_iter().flat_map(|family| Talk::ALL.map(|talk| (family, talk))) {
        let ports = [A, B].map(|pod| talk.ask(&mut node, pod, family, 55_555));
        assert_eq!(ports[0], 55_555);
        assert_ne!(ports[1], 55_555);
        for (pod, port) in [A, B].into_iter().zip(ports) {
            let arrived = node.arrives(&talk.answer(inward(family, pod), port));
            assert_eq!(arrived, talk.answer(family.to(family.peer(), pod), 55_555));
        }
    }
    let keys: Vec<_> = node.halves().into_keys().collect();
    assert!(keys.iter().all(|key| {
        FAMILIES.iter().any(|family| [key.source, key.destination].contains(&address(family.peer())))
    }));
}

#[test]
fn a_reset_of_the_peer_comes_through() {
    let mut node = gate();
    for family in FAMILIES {
        let port = Talk::Tcp.ask(&mut node, A, family, 4000);
        let rst = |ends, port| tcp(ends, (80, port), super::super::frame::RST | ACK);
        let arrived = node.arrives(&rst(inward(family, A), port));
        assert_eq!(arrived, rst(family.to(family.peer(), A), 4000));
        node.passes("to_pod", A, &arrived);
    }
}
