//! The short way of known connections: that it is taken, that it does what the long way does, and when it is not taken.
//!
//! A node that reports every packet sends all of them the long way, which makes the two comparable.

use abi::{Address, Assignments, Connection, DropReason, Endpoint, map};
use aya::maps::Array;

use super::{
    frame::{ACK, FIN, PSH, SYN, piece, tcp, tcp_with, udp},
    node::{Context, Node, OK, Outcome, REDIRECT},
    run::run_summed,
    world::{A, B, FAMILIES, Family, PEER, Pod, address},
};

/// A program on a pod's veth and what it is run with.
type Run = (&'static str, Pod, Vec<u8>);

/// A node that allows everything, with connections from A to B and to the peer, each answered once.
fn talking() -> Node {
    let mut node = Node::new();
    node.allow_all();
    for family in FAMILIES {
        let (out, back) = (family.from(A, family.peer()), family.to(family.peer(), A));
        node.passes("from_pod", A, &tcp(out, (4000, 80), SYN));
        node.passes("to_pod", A, &tcp(back, (80, 4000), SYN | ACK));
        node.passes("from_pod", A, &udp(out, (4000, 53), b"?"));
        node.passes("to_pod", A, &udp(back, (53, 4000), b"!"));
        node.passes("from_pod", A, &tcp(family.between(A, B), (4000, 80), SYN));
        node.passes("from_pod", B, &tcp(family.between(B, A), (80, 4000), SYN | ACK));
        node.passes("from_pod", A, &udp(family.between(A, B), (4000, 53), b"?"));
        node.passes("from_pod", B, &udp(family.between(B, A), (53, 4000), b"!"));
    }
    node
}

/// Plain packets of those connections, with the verdict they get.
fn plain(family: Family) -> [(Run, u32); 7] {
    let (out, back) = (family.from(A, family.peer()), family.to(family.peer(), A));
    let (there, here) = (family.between(A, B), family.between(B, A));
    [
        (("from_pod", A, tcp(out, (4000, 80), ACK)), OK),
        (("to_pod", A, tcp(back, (80, 4000), ACK)), OK),
        (("from_pod", A, udp(out, (4000, 53), b"??")), OK),
        (("to_pod", A, udp(back, (53, 4000), b"!!")), OK),
        (("from_pod", A, tcp(there, (4000, 80), ACK | PSH)), REDIRECT),
        (("from_pod", B, tcp_with(here, (80, 4000), ACK, 2, &[7; 1200])), REDIRECT),
        (("from_pod", B, udp(here, (53, 4000), b"!!")), REDIRECT),
    ]
}

/// What is known of them, but for when they were seen last: a second may begin between two packets.
fn entries(node: &Node, family: Family) -> Vec<Connection> {
    let mut entries = node.connections(family);
    entries.iter_mut().for_each(|entry| entry.seen = 0);
    entries
}

fn run(node: &Node, (program, pod, frame): &Run) -> Outcome {
    node.run(program, *pod, Context { ingress_ifindex: 77, ..Context::default() }, frame)
}

/// The names that only the long way looks for.
fn forget_endpoints(node: &mut Node) {
    for pod in [A, B] {
        for family in FAMILIES {
            node.take::<Address, Endpoint>(map::ENDPOINTS, address(family.pool(pod.host)));
        }
    }
}

#[test]
fn plain_packets_of_known_connections_take_it() {
    let mut node = talking();
    forget_endpoints(&mut node);
    for family in FAMILIES {
        for (packet, verdict) in plain(family) {
            assert_eq!(run(&node, &packet).verdict, verdict, "{family:?} {packet:02x?}");
        }
    }
}

#[test]
fn both_ways_leave_the_same_packet_and_the_same_entry() {
    let mut node = talking();
    for family in FAMILIES {
        for (packet, _) in plain(family) {
            node.set_node(1, 1);
            let long = run(&node, &packet);
            let after_long = entries(&node, family);
            node.set_node(1, 0);
            node.events();
            let short = run(&node, &packet);
            assert_eq!((short.verdict, &short.frame, short.mark), (long.verdict, &long.frame, long.mark));
            assert_eq!(entries(&node, family), after_long, "{packet:02x?}");
            assert!(node.events().is_empty(), "nothing to report");
        }
    }
}

#[test]
fn what_is_not_plain_goes_the_long_way() {
    let mut node = talking();
    forget_endpoints(&mut node);
    for family in FAMILIES {
        let (out, there) = (family.from(A, family.peer()), family.between(A, B));
        let data = tcp(there, (4000, 80), ACK);
        let mut mac = data.clone();
        mac[11] ^= 1;
        let mut short = data.clone();
        short.truncate(short.len() - 1);
        for (pod, frame) in [
            (A, tcp(there, (4000, 80), ACK | FIN)),
            (A, tcp(there, (4000, 80), SYN)),
            (A, tcp(there, (4000, 81), ACK)),
            (A, tcp_with(there, (4000, 80), ACK, 1, b"")),
            (A, piece(out, 17, 7, (0, true), &[0; 16])),
            (A, mac),
            (A, short),
            // A's connection from B's veth.
            (B, data),
        ] {
            let outcome = node.run_from_pod(pod, &frame);
            assert_ne!((outcome.verdict, &outcome.frame), (OK, &frame), "{frame:02x?}");
            assert_eq!(node.events().len(), 1, "refused the long way: {frame:02x?}");
        }
    }
}

#[test]
fn a_packet_too_big_for_the_receiver_is_answered() {
    let mut node = talking();
    for family in FAMILIES {
        let big = tcp_with(family.between(A, B), (4000, 80), ACK, 64, &[0; 1600]);
        node.drops_from(A, &big, DropReason::TooBig);
    }
}

/// The facts of a pod in `ASSIGNMENTS` become others.
fn change_facts(node: &mut Node, pod: Pod, change: impl FnOnce(&mut Assignments)) {
    let mut map: Array<_, Assignments> =
        Array::try_from(node.bpf().map_mut(map::ASSIGNMENTS).unwrap()).unwrap();
    let mut facts = map.get(&pod.id, 0).unwrap();
    change(&mut facts);
    map.set(pod.id, facts, 0).unwrap();
}

#[test]
fn nobody_passes_as_an_endpoint_that_is_gone_or_another() {
    for (program, pod, gone) in [("from_pod", A, A), ("from_pod", A, B), ("to_pod", A, A)] {
        for next in [0, 99] {
            let mut node = talking();
            forget_endpoints(&mut node);
            change_facts(&mut node, gone, |facts| facts.endpoint.instance = next);
            for family in FAMILIES {
                let frame = match program {
                    "to_pod" => tcp(family.to(family.peer(), A), (80, 4000), ACK),
                    _ => tcp(family.between(A, B), (4000, 80), ACK),
                };
                run(&node, &(program, pod, frame));
                assert_eq!(node.events().len(), 1, "{program}: dropped");
            }
        }
    }
}

/// An entry may become another connection's between finding it and reading it.
#[test]
fn an_entry_of_other_ends_delivers_nothing_to_them() {
    for ends in [[A, A], [B, B]] {
        let mut node = talking();
        for family in FAMILIES {
            node.change_connections(family, |entry| {
                entry.ends = ends.map(|pod| pod.id as u16);
                entry.instances = ends.map(|pod| pod.id);
            });
            for (pod, from, to) in [(A, A, B), (B, B, A)] {
                let port = if pod.id == A.id { (4000, 80) } else { (80, 4000) };
                node.drops_from(pod, &tcp(family.between(from, to), port, ACK), DropReason::NoConnection);
            }
        }
    }
}

#[test]
fn who_says_from_beyond_that_it_is_this_node_has_forged_it() {
    let mut node = Node::new();
    node.allow_all();
    let own = Context { ingress_ifindex: 1, ..Context::default() };
    for family in FAMILIES {
        let (call, answer) = (family.to(family.host(), A), family.from(A, family.host()));
        node.run("to_pod", A, own, &tcp(call, (4000, 80), SYN));
        node.passes("from_pod", A, &tcp(answer, (80, 4000), SYN | ACK));
        let data = tcp(call, (4000, 80), ACK);
        assert_eq!(node.run("to_pod", A, own, &data).verdict, OK);
        node.drops_to(A, &data, DropReason::InvalidSourceIp);
    }
}

#[test]
fn a_new_generation_asks_policy_once_and_then_it_is_taken_again() {
    let mut node = talking();
    node.set_generation(2);
    for family in FAMILIES {
        for (packet, verdict) in plain(family) {
            assert_eq!(run(&node, &packet).verdict, verdict);
        }
    }
    forget_endpoints(&mut node);
    for family in FAMILIES {
        for (packet, verdict) in plain(family) {
            assert_eq!(run(&node, &packet).verdict, verdict, "{packet:02x?}");
        }
    }
    let mut node = talking();
    node.rule(A.egress, PEER, super::world::Ports::All, abi::RuleVerdict::Deny);
    node.set_generation(2);
    for family in FAMILIES {
        let data = tcp(family.from(A, family.peer()), (4000, 80), ACK);
        node.drops_from(A, &data, DropReason::PolicyDeny);
    }
}

/// A device's sum over the packet must be the packet's after the hop limit went down, or the receiver drops it.
#[test]
fn a_sum_that_a_device_made_stays_true() {
    let mut node = talking();
    forget_endpoints(&mut node);
    for family in FAMILIES {
        let frame = tcp(family.between(A, B), (4000, 80), ACK);
        match run_summed(node.program("from_pod"), A.ifindex, &frame) {
            Ok(verdict) => assert_eq!(verdict, REDIRECT, "{family:?}"),
            Err(nix::errno::Errno::EINVAL) => return, // before 6.16
            Err(error) => panic!("{family:?}: {error}"),
        }
    }
}
