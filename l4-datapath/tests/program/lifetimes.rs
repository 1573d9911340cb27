//! How a connection lives and ends, and who may have its ports next (T32, T33, T36, T46).

use std::net::IpAddr;

use abi::{Connection, DropReason, RuleVerdict};

use super::{
    frame::{ACK, FIN, PSH, RST, SYN, TCP, UDP, echo, tcp, tcp_with, udp},
    node::{Node, REDIRECT, SHOT},
    world::{A, B, FAMILIES, Family, PEER, Ports},
};

/// A node on which A may open to the peer, and nobody anything else.
fn one_way() -> Node {
    let mut node = Node::new();
    node.allow(A.egress, PEER, Ports::All);
    node
}

/// A's packets, and the peer's: flags, in the order in which they pass.
#[track_caller]
fn talk(node: &mut Node, family: Family, said: &[(bool, u8)]) {
    let (out, back) = (family.from(A, family.peer()), family.to(family.peer(), A));
    for &(by_opener, flags) in said {
        if by_opener {
            node.passes("from_pod", A, &tcp(out, (4000, 80), flags));
        } else {
            node.passes("to_pod", A, &tcp(back, (80, 4000), flags));
        }
    }
}

const HANDSHAKE: [(bool, u8); 3] = [(true, SYN), (false, SYN | ACK), (true, ACK)];

#[track_caller]
fn only_connection(node: &Node, family: Family) -> Connection {
    let [connection] = node.connections(family)[..] else { panic!("one connection") };
    connection
}

#[test]
fn a_half_closed_connection_goes_on_for_as_long_as_the_other_half_likes() {
    for family in FAMILIES {
        let mut node = one_way();
        for by_opener in [true, false] {
            talk(&mut node, family, &HANDSHAKE);
            let data = ACK | PSH;
            talk(&mut node, family, &[(by_opener, FIN | ACK), (!by_opener, ACK)]);
            // An hour of silence, then data against the direction that is closed.
            node.change_connections(family, |c| c.seen = c.seen.saturating_sub(3600));
            talk(&mut node, family, &[(!by_opener, data), (by_opener, ACK), (!by_opener, data)]);
            talk(&mut node, family, &[(!by_opener, FIN | ACK), (by_opener, ACK)]);
            // A lost last acknowledgement is asked for again.
            talk(&mut node, family, &[(!by_opener, FIN | ACK), (by_opener, ACK)]);
            assert_eq!(node.usage(A), 1, "one charge at a time");
            node.change_connections(family, |c| c.seen = c.seen.saturating_sub(11));
            let (out, back) = (family.from(A, family.peer()), family.to(family.peer(), A));
            node.drops_from(A, &tcp(out, (4000, 80), ACK), DropReason::NoConnection);
            node.drops_to(A, &tcp(back, (80, 4000), ACK), DropReason::NoConnection);
        }
    }
}

#[test]
fn a_syn_may_be_repeated_and_stays_one_connection() {
    let mut node = one_way();
    for (charges, family) in (1..).zip(FAMILIES) {
        talk(
            &mut node,
            family,
            &[(true, SYN), (true, SYN), (true, SYN), (false, SYN | ACK), (false, SYN | ACK)],
        );
        // Of an opener that has crashed and comes back: its peer will tell it off.
        talk(&mut node, family, &[(true, ACK), (true, SYN), (false, ACK), (true, RST)]);
        assert_eq!(node.usage(A), charges);
        only_connection(&node, family);
    }
}

/// T32: the called end acknowledges first, then tries to open by itself.
#[test]
fn whoever_was_called_never_opens_on_the_same_ports_meanwhile() {
    let mut node = Node::new();
    node.allow_all();
    for family in FAMILIES {
        let (there, back) = (family.between(A, B), family.between(B, A));
        node.passes("from_pod", A, &tcp(there, (4000, 80), SYN));
        node.passes("from_pod", B, &tcp(back, (80, 4000), ACK));
        for flags in [SYN, SYN | PSH, 0xc2] {
            node.drops_from(B, &tcp(back, (80, 4000), flags), DropReason::InvalidTcpFlags);
        }
        // With data that would be read before anybody judged the opening.
        let early = tcp_with(back, (80, 4000), SYN, 64, b"early");
        node.drops_from(B, &early, DropReason::InvalidTcpFlags);
        node.passes("from_pod", B, &tcp(back, (80, 4000), SYN | ACK));
    }
}

/// T46: whoever opens next on the same ports is judged for it, and has what it opened to itself.
#[test]
fn the_ports_of_a_connection_that_ended_are_anybodys_whom_policy_lets() {
    let endings: [&[(bool, u8)]; 4] = [
        &[(true, FIN | ACK), (false, FIN | ACK), (true, ACK)],
        &[(false, FIN | ACK), (true, FIN | ACK), (false, ACK)],
        &[(true, RST)],
        &[(false, RST | ACK)],
    ];
    for ending in endings {
        for family in FAMILIES {
            let mut node = one_way();
            let (out, back) = (family.from(A, family.peer()), family.to(family.peer(), A));
            talk(&mut node, family, &HANDSHAKE);
            talk(&mut node, family, ending);
            let other_way = tcp(back, (80, 4000), SYN);
            node.drops_to(A, &other_way, DropReason::PolicyDenied);
            node.allow(A.ingress, PEER, Ports::One(TCP, 4000));
            node.set_generation(2);
            let before = only_connection(&node, family).opened_by_high;
            node.passes("to_pod", A, &other_way);
            let now = only_connection(&node, family);
            assert_eq!([now.replied, now.fin_opener, now.fin_other, now.reset], [0; 4]);
            assert_ne!(now.opened_by_high, before);
            // The roles have changed: the old opener answers.
            node.passes("from_pod", A, &tcp(out, (4000, 80), SYN | ACK));
            node.drops_from(A, &tcp(out, (4000, 80), SYN), DropReason::InvalidTcpFlags);
            assert_eq!(node.usage(A), 1);
        }
    }
}

/// T46: nothing of the old verdict is left for the new connection.
#[test]
fn a_connection_in_the_place_of_one_that_ended_inherits_no_verdict() {
    for family in FAMILIES {
        let mut node = one_way();
        talk(&mut node, family, &HANDSHAKE);
        talk(&mut node, family, &[(true, FIN | ACK), (false, FIN | ACK)]);
        // Policy changes without a change of generation: only what is judged anew sees it.
        node.rule(A.egress, PEER, Ports::One(TCP, 80), RuleVerdict::Deny);
        let out = family.from(A, family.peer());
        node.passes("from_pod", A, &tcp(out, (4000, 80), ACK));
        node.drops_from(A, &tcp(out, (4000, 80), SYN), DropReason::PolicyDeny);
        // The refused SYN has not revived what had ended either.
        assert_eq!(only_connection(&node, family).fin_other, 1);
    }
}

/// T33: what comes in mid-stream after the entry is gone gets a reset, whoever sends it, and opens nothing.
#[test]
fn a_connection_whose_entry_was_evicted_does_not_come_back() {
    let mut node = Node::new();
    node.allow_all();
    for family in FAMILIES {
        let (there, back) = (family.between(A, B), family.between(B, A));
        for (ends, ports) in [(there, (4000, 80)), (back, (80, 4000))] {
            node.passes("from_pod", A, &tcp(there, (4000, 80), SYN));
            node.passes("from_pod", B, &tcp(back, (80, 4000), SYN | ACK));
            node.forget_connections(family);
            let pod = if ports.0 == 4000 { A } else { B };
            for flags in [ACK, ACK | PSH, FIN | ACK, SYN | ACK] {
                let outcome = node.drops_from(pod, &tcp(ends, ports, flags), DropReason::NoConnection);
                assert_eq!(outcome.verdict, REDIRECT, "answered");
            }
            let outcome = node.drops_from(pod, &tcp(ends, ports, RST), DropReason::NoConnection);
            assert_eq!(outcome.verdict, SHOT);
            assert_eq!(node.connections(family), []);
        }
    }
}

/// T36: the answer's window is the answerer's, for this conversation, for so long.
#[test]
fn a_udp_answer_comes_from_whom_was_asked_on_the_ports_that_were_asked() {
    let mut node = Node::new();
    node.allow(A.egress, 0, Ports::One(UDP, 53));
    for family in FAMILIES {
        let (out, back) = (family.from(A, family.peer()), family.to(family.peer(), A));
        let stranger: IpAddr = if out.is_v4() { "198.51.100.9" } else { "2001:db8:9::9" }.parse().unwrap();
        node.passes("from_pod", A, &udp(out, (4000, 53), b"?"));
        node.passes("to_pod", A, &udp(back, (53, 4000), b"!"));
        // The same source port serves another question; neither answers for the other.
        node.drops_to(A, &udp(family.to(stranger, A), (53, 4000), b"!"), DropReason::PolicyDenied);
        node.passes("from_pod", A, &udp(family.from(A, stranger), (4000, 53), b"?"));
        node.passes("to_pod", A, &udp(family.to(stranger, A), (53, 4000), b"!"));
        node.drops_to(A, &udp(family.to(stranger, A), (54, 4000), b"!"), DropReason::PolicyDenied);
        // A port of the peer's that policy does not open stays closed, whatever A's port has been used for.
        node.drops_from(A, &udp(out, (4000, 54), b"?"), DropReason::PolicyDenied);
        node.drops_to(A, &tcp(back, (53, 4000), SYN), DropReason::PolicyDenied);
        // The conversation renews the window from either side, and silence closes it.
        node.change_connections(family, |c| c.seen = c.seen.saturating_sub(170));
        node.passes("to_pod", A, &udp(back, (53, 4000), b"!"));
        node.change_connections(family, |c| c.seen = c.seen.saturating_sub(181));
        node.drops_to(A, &udp(back, (53, 4000), b"!"), DropReason::PolicyDenied);
    }
}

/// What a router would not send on leaves no connection behind that an answer could use.
#[test]
fn a_packet_that_goes_nowhere_opens_nothing() {
    let mut node = Node::new();
    node.allow_all();
    for family in FAMILIES {
        let ends = family.between(A, B);
        node.drops_from(A, &tcp_with(ends, (4000, 80), SYN, 1, b""), DropReason::TtlExceeded);
        node.drops_from(A, &udp(ends, (4000, 53), &[7; 1600]), DropReason::TooBig);
        assert_eq!(node.connections(family), []);
        node.drops_from(B, &tcp(family.between(B, A), (80, 4000), SYN | ACK), DropReason::NoConnection);
    }
    assert_eq!(node.usage(A), 0);
}

/// T34: the table has room for everybody's quota; who fills his own hurts nobody.
#[test]
fn others_open_unharmed_while_one_endpoint_floods() {
    let mut node = Node::new();
    node.allow_all();
    node.set_quota(A, 500);
    let held = tcp(Family::V4.between(B, A), (4000, 80), SYN);
    node.passes("from_pod", B, &held);
    for family in FAMILIES {
        let ends = family.from(A, family.peer());
        for port in 0..600 {
            node.run_from_pod(A, &udp(ends, (10_000 + port, 53), b"x"));
            node.run_from_pod(A, &echo(ends, true, port));
        }
    }
    node.drops_from(
        A,
        &udp(Family::V4.from(A, Family::V4.peer()), (9, 9), b"x"),
        DropReason::ConnectionQuota,
    );
    for family in FAMILIES {
        for port in 0..100 {
            node.passes("from_pod", B, &tcp(family.between(B, A), (5000 + port, 80), SYN));
            node.passes("from_pod", A, &tcp(family.between(A, B), (80, 5000 + port), SYN | ACK));
        }
    }
    node.passes("from_pod", A, &tcp(Family::V4.between(A, B), (80, 4000), SYN | ACK));
    assert_eq!((node.usage(A), node.usage(B)), (500, 201));
}
