//! Ports of nodes that no workload may call.

use abi::{DropReason, ReservedIdentity};

use super::*;
use crate::{
    frame::ip,
    node::{OK, SHOT},
    run,
    world::NIC,
};

/// Far from each other: what is between them is anybody's.
const GUARDED: (u16, u16) = (4250, 14_251);
/// On to the next program.
const UNSPEC: u32 = u32::MAX;

/// A node that allows everything, and has its ports guarded.
fn guarded() -> Node {
    let mut node = Node::new();
    node.allow_all();
    let ports = u32::from(GUARDED.0) << 16 | u32::from(GUARDED.1);
    node.set(map::NODE, 0, abi::Node { generation: 1, guarded: ports, ..abi::Node::default() });
    for family in FAMILIES {
        node.identify(family.outside(), 128, ReservedIdentity::HOST);
    }
    node
}

#[test]
fn no_workload_calls_them_whatever_policy_says() {
    for (identity, is_node) in [(ReservedIdentity::HOST, true), (6, true), (PEER, false), (2, false)] {
        let mut node = guarded();
        for family in FAMILIES {
            node.identify(family.peer(), 128, identity);
            let ends = family.from(A, family.peer());
            for port in [GUARDED.0 - 1, GUARDED.0, GUARDED.0 + 1, GUARDED.1 - 1, GUARDED.1, GUARDED.1 + 1] {
                let syn = tcp(ends, (4000, port), SYN);
                if is_node && [GUARDED.0, GUARDED.1].contains(&port) {
                    assert_eq!(node.drops_from(A, &syn, DropReason::PolicyDeny).verdict, SHOT);
                } else {
                    node.passes("from_pod", A, &syn);
                }
                node.passes("from_pod", A, &udp(ends, (4000, port), b""));
            }
        }
    }
}

/// Who sends from there has been called by nobody of us, or calls himself.
#[test]
fn the_ports_are_guarded_where_they_are_called_not_where_they_call() {
    let mut node = guarded();
    for family in FAMILIES {
        node.identify(family.peer(), 128, ReservedIdentity::REMOTE_NODE);
        let into = tcp(family.to(family.peer(), A), (GUARDED.0, 80), SYN);
        node.passes("to_pod", A, &into);
        node.passes("from_pod", A, &tcp(family.from(A, family.peer()), (80, GUARDED.0), SYN | ACK));
    }
}

/// Without ports to guard, nobody is looked at.
#[test]
fn none_are_guarded_by_default() {
    let mut node = Node::new();
    node.allow_all();
    for family in FAMILIES {
        node.passes("from_pod", A, &tcp(family.from(A, family.host()), (4000, 0), SYN));
        node.passes("from_pod", A, &tcp(family.from(A, family.host()), (4000, 4250), SYN));
    }
}

#[test]
fn what_another_nodes_workload_sends_to_them_stops_at_the_device() {
    let mut node = guarded();
    for family in FAMILIES {
        let to = |ip| Ends { addresses: (family.peer(), ip), ..family.to(family.peer(), A) };
        let (here, pod) = (to(family.outside()), to(family.pool(A.host)));
        let mut options = tcp(here, (4000, 22), SYN);
        options[14] = if here.is_v4() { 0x46 } else { 0x50 };
        for (frame, passes) in [
            (tcp(here, (4000, GUARDED.0), SYN), false),
            (tcp(here, (4000, GUARDED.1), ACK), false),
            (tcp(here, (4000, 22), SYN), true),
            (udp(here, (4000, GUARDED.0), b""), true),
            // What cannot be read may hide the port.
            (tcp(here, (4000, 22), SYN)[..here.transport() + 10].to_vec(), false),
            (options, false),
            (ip(here, 99, 64, b"?"), true),
            (tcp(pod, (4000, GUARDED.0), SYN), true),
        ] {
            for (identity, is_workload) in [(PEER, true), (ReservedIdentity::REMOTE_NODE, false), (2, false)]
            {
                node.identify(family.peer(), 128, identity);
                node.events();
                let context = Context { ingress_ifindex: NIC, ..Context::default() };
                let outcome = run::run(node.program("from_netdev"), NIC, context, &frame);
                let expected = if passes || !is_workload { UNSPEC } else { SHOT };
                assert_eq!(outcome.verdict, expected, "{identity} {frame:02x?}");
                let reasons: Vec<_> = node.events().iter().map(|event| event.reason).collect();
                let told = if expected == SHOT { vec![DropReason::PolicyDeny as u8] } else { vec![] };
                assert_eq!(reasons, told);
            }
        }
    }
}

/// The node itself reaches everybody.
#[test]
fn the_node_calls_whom_it_wants() {
    let node = guarded();
    let own = Context { ingress_ifindex: 1, ..Context::default() };
    for family in FAMILIES {
        let call = tcp(family.to(family.host(), A), (4000, GUARDED.0), SYN);
        assert_eq!(node.run("to_pod", A, own, &call).verdict, OK);
    }
}
