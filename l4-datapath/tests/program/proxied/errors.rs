//! ICMP errors about the packets of the proxy's sockets reach the proxy, and no others do.

use abi::{DropReason, MARK_TO_PROXY, RuleVerdict};

use super::super::{
    frame::{ACK, Ends, SYN, TCP, tcp, tcp_with, unreachable},
    masquerade::{UNSPEC, gate},
    node::{Context, Node, OK, REDIRECT},
    run,
    world::{A, B, FAMILIES, Family, NIC, Ports},
};
use super::{PORT, own_cgroup};

const OWN: u16 = 4000;
const PROXYS: u16 = 50_000;

/// Of the proxy's packets, for the call from [`OWN`].
const SENT: Context = Context { mark: 0, ingress_ifindex: 0, gso_size: 0, priority: OWN as u32 };
const RECEIVED: Context = Context { mark: 0, ingress_ifindex: 77, gso_size: 0, priority: 0 };

/// A calls B by way of the proxy, and that has called in its name.
fn called(family: Family) -> Node {
    let mut node = Node::new();
    node.allow_by_proxy();
    node.set_proxy(1, own_cgroup(), 1);
    node.run_from_pod(A, &tcp(family.between(A, B), (OWN, PORT), SYN));
    let syn = tcp(family.to(family.pool(A.host), B), (PROXYS, PORT), SYN);
    assert_eq!(node.run("to_pod", B, SENT, &syn).verdict, OK);
    node
}

/// The same for somebody beyond.
fn called_beyond(family: Family) -> Node {
    let mut node = gate();
    node.except(family.peer());
    node.rule(A.egress, 0, Ports::One(TCP, PORT), RuleVerdict::Proxy);
    node.set_proxy(1, own_cgroup(), 1);
    let ends = family.from(A, family.peer());
    node.run_from_pod(A, &tcp(ends, (OWN, PORT), SYN));
    let outcome = run::run(node.program("to_netdev"), NIC, SENT, &tcp(ends, (PROXYS, PORT), SYN));
    assert_eq!(outcome.verdict, UNSPEC);
    node
}

/// About a packet of this pod's or the proxy's, with so much in it.
fn about(ends: Ends, ports: (u16, u16)) -> Vec<u8> {
    tcp_with(ends, ports, ACK, 64, &[7; 40])
}

/// From the workload that the proxy calls, about what the proxy has sent in the opener's name.
#[test]
fn what_is_about_the_proxys_call_goes_to_the_proxy() {
    for family in FAMILIES {
        let mut node = called(family);
        let back = family.between(B, A);
        let outcome = node.run(
            "from_pod",
            B,
            RECEIVED,
            &unreachable(back, &about(family.between(A, B), (PROXYS, PORT))),
        );
        assert_eq!((outcome.verdict, outcome.mark), (OK, MARK_TO_PROXY), "{family:?}");
        // Of the opener's own packets the workload sees none, nor of a call that there is not.
        for port in [OWN, PROXYS + 1] {
            let error = unreachable(back, &about(family.between(A, B), (port, PORT)));
            node.drops_from(B, &error, DropReason::UnrelatedIcmp);
        }
        // Who calls gets nothing of the second leg.
        let error = unreachable(family.between(A, B), &about(back, (PORT, PROXYS)));
        node.drops_from(A, &error, DropReason::UnrelatedIcmp);
    }
}

/// From who called, or a router on the way to him, about what the proxy has answered in the called workload's name.
#[test]
fn what_is_about_the_proxys_answer_goes_to_the_proxy() {
    for family in FAMILIES {
        let node = called(family);
        let error = unreachable(family.between(A, B), &about(family.between(B, A), (PORT, OWN)));
        let outcome = node.run("from_pod", A, RECEIVED, &error);
        assert_eq!((outcome.verdict, outcome.mark), (OK, MARK_TO_PROXY), "{family:?}");

        // Somebody beyond calls B; a router between says that the answer is too big.
        let mut node = Node::new();
        node.allow_by_proxy();
        node.set_proxy(1, own_cgroup(), 1);
        node.run("to_pod", B, RECEIVED, &tcp(family.to(family.peer(), B), (OWN, PORT), SYN));
        let answer = about(family.from(B, family.peer()), (PORT, OWN));
        let outcome = node.run("to_pod", B, RECEIVED, &unreachable(family.to(family.peer(), B), &answer));
        assert_eq!((outcome.verdict, outcome.mark), (REDIRECT, MARK_TO_PROXY), "{family:?}");
        // What B itself has sent is about nothing.
        let other = about(family.from(B, family.peer()), (PORT, OWN + 1));
        node.drops_to(B, &unreachable(family.to(family.peer(), B), &other), DropReason::UnrelatedIcmp);
    }
}

/// What comes by the stack is sent to the veth's ingress, and passes there.
#[test]
fn an_error_on_its_way_to_the_proxy_arrives_at_the_stack() {
    for family in FAMILIES {
        let mut node = called(family);
        let error = unreachable(family.to(family.peer(), A), &about(family.between(A, B), (PROXYS, PORT)));
        let context = Context { mark: MARK_TO_PROXY, ..Context::default() };
        node.events();
        let outcome = node.run("from_pod", A, context, &error);
        assert_eq!((outcome.verdict, outcome.mark), (OK, MARK_TO_PROXY), "{family:?}");
        assert!(node.events().iter().all(|event| event.reason == 0));
    }
}

/// About a call that leaves the node: a router's word, if the call is there.
#[test]
fn a_router_is_believed_about_calls_that_the_proxy_makes() {
    for family in FAMILIES {
        let mut node = called_beyond(family);
        let (there, back) = (family.from(A, family.peer()), family.to(family.peer(), A));
        let outcome = node.run("to_pod", A, RECEIVED, &unreachable(back, &about(there, (PROXYS, PORT))));
        assert_eq!((outcome.verdict, outcome.mark), (REDIRECT, MARK_TO_PROXY), "{family:?}");
        // No router gets packets of the opener's, or of a call that there is not.
        for port in [OWN, PROXYS + 1] {
            node.drops_to(A, &unreachable(back, &about(there, (port, PORT))), DropReason::UnrelatedIcmp);
        }
    }
}
