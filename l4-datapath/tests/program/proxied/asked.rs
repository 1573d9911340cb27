//! What the proxy may call: only whom an opener is calling by way of it. The kernel gives the packets of a test run a socket
//! in the cgroup of this process, which is the proxy's here.

use abi::{Direction, DropReason, RuleVerdict};

use super::super::{
    frame::{ACK, Ends, FIN, RST, SYN, TCP, tcp, tcp_with, unreachable},
    masquerade::{UNSPEC, gate},
    node::{Context, Node, OK, SHOT},
    run,
    world::{A, B, FAMILIES, Family, NIC, Pod, Ports},
};
use super::{PORT, own_cgroup};

/// From where A calls, and from where the proxy calls in its name.
const OWN: u16 = 4000;
const PROXYS: u16 = 50_000;

fn node() -> Node {
    let mut node = Node::new();
    node.allow_by_proxy();
    node.set_proxy(1, own_cgroup(), 1);
    node
}

/// Of a packet of the proxy's that names this port of an opener's.
fn sent(opener: u16) -> Context {
    Context { priority: opener.into(), ..Context::default() }
}

/// A's first packet to a port of B's.
fn calls(node: &Node, family: Family, port: u16) {
    node.run_from_pod(A, &tcp(family.between(A, B), (OWN, port), SYN));
}

/// The proxy's first packet in one pod's name to another's port.
fn syn(family: Family, from: Pod, to: Pod, port: u16) -> Vec<u8> {
    tcp(family.to(family.pool(from.host), to), (PROXYS, port), SYN)
}

#[track_caller]
fn is_dropped(node: &mut Node, to: Pod, opener: u16, frame: &[u8]) {
    let blamed = (DropReason::ProxyForged, to, Direction::Ingress);
    node.expect_drop("to_pod", to, sent(opener), frame, blamed);
}

#[track_caller]
fn passes(node: &mut Node, opener: u16, frame: &[u8]) {
    node.events();
    let outcome = node.run("to_pod", B, sent(opener), frame);
    assert_eq!((outcome.verdict, outcome.priority), (OK, 0), "{:?}", node.events());
}

/// Connections by way of the proxy, of either leg.
fn legs(node: &Node, family: Family) -> usize {
    node.connections(family).iter().filter(|entry| entry.proxied == 1).count()
}

#[test]
fn the_proxy_calls_nobody_whom_nobody_calls() {
    let mut node = node();
    for family in FAMILIES {
        for (to, port) in [(B, PORT), (B, PORT + 1), (A, PORT)] {
            let from = if to.id == A.id { B } else { A };
            is_dropped(&mut node, to, OWN, &syn(family, from, to, port));
        }
        assert_eq!(node.connections(family), []);
    }
}

/// To another port, another workload, from another's address, or for a port that has called nobody.
#[test]
fn the_proxy_calls_whom_an_opener_calls_and_nobody_else() {
    let mut node = node();
    for family in FAMILIES {
        calls(&node, family, PORT);
        is_dropped(&mut node, B, OWN, &syn(family, A, B, PORT + 1));
        is_dropped(&mut node, A, OWN, &syn(family, B, A, PORT));
        is_dropped(&mut node, B, OWN, &tcp(family.to(family.peer(), B), (PROXYS, PORT), SYN));
        for opener in [0, OWN + 1, PORT, PROXYS] {
            is_dropped(&mut node, B, opener, &syn(family, A, B, PORT));
        }
        assert_eq!(legs(&node, family), 1);
        passes(&mut node, OWN, &syn(family, A, B, PORT));
        assert_eq!(legs(&node, family), 2);
        // What follows names nobody.
        passes(&mut node, 0, &tcp(family.to(family.pool(A.host), B), (PROXYS, PORT), ACK));
    }
}

/// A connection that does not go by way of the proxy is none of its business.
#[test]
fn a_direct_connection_asks_nothing_of_the_proxy() {
    let mut node = node();
    for family in FAMILIES {
        calls(&node, family, PORT + 1);
        is_dropped(&mut node, B, OWN, &syn(family, A, B, PORT + 1));
    }
}

/// However it has ended: reset, closed by both, or with the workload that opened it.
#[test]
fn who_calls_no_more_is_called_for_no_more() {
    type End = fn(&mut Node, Family);
    let reset: End = |node, family| {
        node.run_from_pod(A, &tcp(family.between(A, B), (OWN, PORT), RST));
    };
    let closed: End = |node, family| {
        node.run_from_pod(A, &tcp(family.between(A, B), (OWN, PORT), ACK | FIN));
        // Half closed, as of who has said all and waits for the answer.
        passes(node, OWN, &syn(family, A, B, PORT));
        let back = tcp(family.to(family.pool(B.host), A), (PORT, OWN), ACK | FIN);
        assert_eq!(node.run("to_pod", A, Context::default(), &back).verdict, OK);
    };
    let replaced: End = |node, _| node.enrol_again(A, 77);
    for end in [reset, closed, replaced] {
        for family in FAMILIES {
            let mut node = node();
            calls(&node, family, PORT);
            passes(&mut node, OWN, &syn(family, A, B, PORT));
            end(&mut node, family);
            is_dropped(&mut node, B, OWN, &syn(family, A, B, PORT));
            is_dropped(&mut node, B, OWN, &tcp(family.to(family.pool(A.host), B), (PROXYS + 1, PORT), SYN));
        }
    }
}

/// Out of the node: what is asked for passes, and of all else nothing, not even in the name of who is not here.
#[test]
fn beyond_the_node_the_proxy_calls_whom_an_opener_calls_and_nobody_else() {
    let mut node = gate();
    for family in FAMILIES {
        node.except(family.peer());
    }
    node.rule(A.egress, 0, Ports::One(TCP, PORT), RuleVerdict::Proxy);
    node.set_proxy(1, own_cgroup(), 1);
    let leaves = |node: &mut Node, opener: u16, ends: Ends, port: u16| {
        node.events();
        let outcome = run::run(node.program("to_netdev"), NIC, sent(opener), &tcp(ends, (PROXYS, port), SYN));
        let told: Vec<_> = node.events().iter().filter_map(|it| DropReason::from_number(it.reason)).collect();
        (outcome.verdict, outcome.priority, told)
    };
    for family in FAMILIES {
        let ends = family.from(A, family.peer());
        let forged = vec![DropReason::ProxyForged];
        let refused = leaves(&mut node, OWN, ends, PORT);
        assert_eq!((refused.1, refused.2), (0, forged.clone()), "{family:?}: nobody calls");
        node.run_from_pod(A, &tcp(ends, (OWN, PORT), SYN));
        for (opener, ends, port) in
            [(OWN, ends, PORT + 1), (OWN + 1, ends, PORT), (OWN, family.from(B, family.peer()), PORT)]
        {
            let refused = leaves(&mut node, opener, ends, port);
            assert_eq!((refused.1, refused.2), (0, forged.clone()), "{family:?} {opener} {port}");
        }
        // Of the node itself, of one beyond it.
        for name in [family.outside(), family.host(), family.peer()] {
            let ends = Ends { addresses: (name, family.peer()), ..ends };
            let refused = leaves(&mut node, OWN, ends, PORT);
            assert_eq!((refused.0, refused.2), (SHOT, forged.clone()), "{name}");
        }
        let (verdict, priority, told) = leaves(&mut node, OWN, ends, PORT);
        assert_eq!((verdict, priority, told), (UNSPEC, 0, vec![]), "{family:?}");
    }
}

/// Who judges requests may wait for its rules: its SYN comes again, and an RST would fail the request.
#[test]
fn a_call_of_the_proxys_while_it_is_not_ready_is_dropped_and_not_reset() {
    let mut node = node();
    for family in FAMILIES {
        node.set_proxy(1, own_cgroup(), 1);
        calls(&node, family, PORT);
        node.set_proxy(1, own_cgroup(), 0);
        let syn = syn(family, A, B, PORT);
        let blamed = (DropReason::NoProxy, B, Direction::Ingress);
        let outcome = node.expect_drop("to_pod", B, sent(OWN), &syn, blamed);
        assert_eq!((outcome.verdict, outcome.frame), (SHOT, syn.clone()), "{family:?}: nobody is told");
        node.set_proxy(1, own_cgroup(), 1);
        passes(&mut node, OWN, &syn);
    }
    let mut node = gate();
    node.rule(A.egress, 0, Ports::One(TCP, PORT), RuleVerdict::Proxy);
    for family in FAMILIES {
        node.except(family.peer());
        node.set_proxy(1, own_cgroup(), 1);
        let ends = family.from(A, family.peer());
        node.run_from_pod(A, &tcp(ends, (OWN, PORT), SYN));
        let syn = tcp(ends, (PROXYS, PORT), SYN);
        for (listeners, verdict, reasons) in [(0, SHOT, vec![DropReason::NoProxy]), (1, UNSPEC, vec![])] {
            node.set_proxy(1, own_cgroup(), listeners);
            node.events();
            let outcome = run::run(node.program("to_netdev"), NIC, sent(OWN), &syn);
            let told: Vec<_> =
                node.events().iter().filter_map(|it| DropReason::from_number(it.reason)).collect();
            assert_eq!((outcome.verdict, told), (verdict, reasons), "{family:?} {listeners}");
        }
    }
}

/// An error ends connections, and quotes what it likes: only the stack makes them, and not in workloads' names.
#[test]
fn the_proxy_sends_no_icmp_errors_in_anybodys_name() {
    let mut node = node();
    for family in FAMILIES {
        calls(&node, family, PORT + 1);
        let answer = tcp_with(family.between(A, B), (OWN, PORT + 1), ACK, 64, b"said");
        let error = unreachable(family.to(family.pool(B.host), A), &answer);
        is_dropped(&mut node, A, 0, &error);
        let said = tcp_with(family.between(B, A), (PORT + 1, OWN), ACK, 64, b"said");
        is_dropped(&mut node, B, 0, &unreachable(family.to(family.pool(A.host), B), &said));
    }
}

/// Between the node and itself there is no hook to judge what the proxy calls.
#[test]
fn what_a_workload_calls_on_the_node_itself_cannot_go_by_way_of_the_proxy() {
    let mut node = Node::new();
    node.set_proxy(1, own_cgroup(), 1);
    node.allow(A.egress, 0, Ports::All);
    node.rule(A.egress, 0, Ports::One(TCP, PORT), RuleVerdict::Proxy);
    for family in FAMILIES {
        let ends = family.from(A, family.host());
        let outcome = node.drops_from(A, &tcp(ends, (OWN, PORT), SYN), DropReason::ProxyToHost);
        assert_eq!(outcome.frame[ends.transport() + 13], RST | ACK, "{family:?}");
        assert_eq!(node.connections(family), []);
        assert_eq!(node.passes("from_pod", A, &tcp(ends, (OWN, PORT + 1), SYN)).verdict, OK);
    }
}
