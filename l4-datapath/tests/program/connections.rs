//! The connection table: what opens, what belongs, what is remembered, and when it ends.

use abi::{Collected, Direction, DropReason, EventFlags, Memo, RuleVerdict};
use aya::{TestRun as _, TestRunOptions};

use super::{
    frame::{ACK, FIN, PSH, RST, SYN, TCP, UDP, URG, echo, sctp, tcp, udp, unreachable},
    node::{Context, Node, OK, REDIRECT},
    world::{A, B, FAMILIES, PEER, Ports},
};

#[test]
fn replies_pass_without_a_rule_of_their_own() {
    let mut node = Node::new();
    node.allow(A.egress, PEER, Ports::All);
    for family in FAMILIES {
        let (out, back) = (family.from(A, family.peer()), family.to(family.peer(), A));
        node.passes("from_pod", A, &tcp(out, (4000, 80), SYN));
        assert_eq!(node.passes("to_pod", A, &tcp(back, (80, 4000), SYN | ACK)).verdict, OK);
        node.passes("from_pod", A, &udp(out, (4000, 53), b"?"));
        node.passes("to_pod", A, &udp(back, (53, 4000), b"!"));
        node.passes("from_pod", A, &sctp(out, (4000, 80)));
        node.passes("to_pod", A, &sctp(back, (80, 4000)));
        node.passes("from_pod", A, &echo(out, true, 7));
        node.passes("to_pod", A, &echo(back, false, 7));
        node.drops_to(A, &tcp(back, (4000, 80), SYN), DropReason::PolicyDenied);
        // T36: another source port is another conversation.
        node.drops_to(A, &udp(back, (54, 4000), b"!"), DropReason::PolicyDenied);
        node.drops_to(A, &udp(back, (53, 4001), b"!"), DropReason::PolicyDenied);
        node.drops_to(A, &echo(back, false, 8), DropReason::NoConnection);
    }
}

#[test]
fn replies_between_pods_of_the_node_pass_and_are_marked_as_such() {
    let mut node = Node::new();
    node.allow(A.egress, B.identity, Ports::All);
    node.allow(B.ingress, A.identity, Ports::All);
    node.set_node(1, 1);
    for family in FAMILIES {
        node.passes("from_pod", A, &tcp(family.between(A, B), (4000, 80), SYN));
        let reply = tcp(family.between(B, A), (80, 4000), SYN | ACK);
        assert_eq!(node.run_from_pod(B, &reply).verdict, REDIRECT);
        let [trace] = node.events()[..] else { panic!("one event") };
        assert_eq!((trace.flags, trace.ifindex), (EventFlags::REPLY, B.ifindex));
    }
}

/// T32, and the rest of what nmap sends.
#[test]
fn illegal_tcp_flags_never_pass_not_even_on_a_connection() {
    let illegal = [
        0,
        SYN | FIN,
        SYN | RST,
        FIN | PSH | URG,
        FIN,
        SYN | URG,
        URG,
        PSH,
        SYN | ACK | FIN,
        SYN | ACK | RST,
        FIN | RST,
        FIN | RST | ACK,
        SYN | FIN | URG | PSH,
        0x3f,
    ];
    let mut node = Node::new();
    node.allow_all();
    for family in FAMILIES {
        let (out, back) = (family.from(A, family.peer()), family.to(family.peer(), A));
        for connected in [false, true] {
            if connected {
                node.passes("from_pod", A, &tcp(out, (4000, 80), SYN));
            }
            for flags in illegal {
                node.drops_from(A, &tcp(out, (4000, 80), flags), DropReason::InvalidTcpFlags);
                node.drops_to(A, &tcp(back, (80, 4000), flags), DropReason::InvalidTcpFlags);
            }
        }
        for flags in [SYN, SYN | PSH, ACK, ACK | URG, ACK | PSH, FIN | ACK, FIN | ACK | URG, 0xc2] {
            node.passes("from_pod", A, &tcp(out, (4000, 80), flags));
        }
    }
}

/// T32: only one side opens.
#[test]
fn simultaneous_open_and_split_handshake_are_refused() {
    let mut node = Node::new();
    node.allow_all();
    for family in FAMILIES {
        node.passes("from_pod", A, &tcp(family.between(A, B), (4000, 80), SYN));
        let crossing = tcp(family.between(B, A), (80, 4000), SYN);
        node.drops_from(B, &crossing, DropReason::InvalidTcpFlags);
    }
}

/// T32: data in the SYN (TFO) is a SYN.
#[test]
fn a_syn_may_carry_data() {
    let mut node = Node::new();
    node.allow_all();
    for family in FAMILIES {
        let frame = super::frame::tcp_with(family.between(A, B), (4000, 80), SYN, 64, b"early");
        node.passes("from_pod", A, &frame);
    }
}

/// T33.
#[test]
fn mid_stream_packets_never_create_a_connection() {
    let mut node = Node::new();
    node.allow_all();
    for family in FAMILIES {
        for flags in [ACK, ACK | PSH, SYN | ACK, FIN | ACK, RST, RST | ACK] {
            let out = tcp(family.from(A, family.peer()), (4000, 80), flags);
            node.drops_from(A, &out, DropReason::NoConnection);
            let back = tcp(family.to(family.peer(), A), (80, 4000), flags);
            node.drops_to(A, &back, DropReason::NoConnection);
        }
        assert_eq!(node.connections(family), []);
    }
}

#[test]
fn a_remembered_verdict_holds_for_its_generation_only() {
    let mut node = Node::new();
    node.allow(77, 0, Ports::All);
    node.assign_both(A, |a| a.egress = 77);
    for family in FAMILIES {
        let (out, back) = (family.from(A, family.peer()), family.to(family.peer(), A));
        node.passes("from_pod", A, &tcp(out, (4000, 80), SYN));
        node.passes("to_pod", A, &tcp(back, (80, 4000), SYN | ACK));
    }
    // Ruleset 78 is empty. Nobody looks until the generation moves.
    node.assign_both(A, |a| a.egress = 78);
    for family in FAMILIES {
        node.passes("from_pod", A, &tcp(family.from(A, family.peer()), (4000, 80), ACK));
    }
    node.set_generation(2);
    for family in FAMILIES {
        let (out, back) = (family.from(A, family.peer()), family.to(family.peer(), A));
        node.drops_from(A, &tcp(out, (4000, 80), ACK), DropReason::PolicyDenied);
        // A reply is judged as the opening was: by the opener's egress.
        let blamed = (DropReason::PolicyDenied, A, Direction::Egress);
        let context = Context { ingress_ifindex: 77, ..Context::default() };
        node.expect_drop("to_pod", A, context, &tcp(back, (80, 4000), ACK), blamed);
        assert!(
            node.connections(family).iter().all(|c| c.memo == 1 << Memo::GENERATION_SHIFT | Memo::ALLOWED)
        );
    }
    node.assign_both(A, |a| a.egress = 77);
    node.set_generation(3);
    for family in FAMILIES {
        node.passes("to_pod", A, &tcp(family.to(family.peer(), A), (80, 4000), ACK));
        assert!(
            node.connections(family).iter().all(|c| c.memo == 3 << Memo::GENERATION_SHIFT | Memo::ALLOWED)
        );
    }
}

/// T42.
#[test]
fn a_new_deny_reaches_established_connections_in_both_directions() {
    let mut node = Node::new();
    node.allow_all();
    for family in FAMILIES {
        node.passes("from_pod", A, &tcp(family.between(A, B), (4000, 80), SYN));
        node.passes("from_pod", B, &tcp(family.between(B, A), (80, 4000), SYN | ACK));
    }
    node.rule(B.ingress, A.identity, Ports::All, RuleVerdict::Deny);
    node.set_generation(2);
    for family in FAMILIES {
        let blamed = (DropReason::PolicyDeny, B, Direction::Ingress);
        let forth = tcp(family.between(A, B), (4000, 80), ACK);
        node.expect_drop("from_pod", A, Context::default(), &forth, blamed);
        let back = tcp(family.between(B, A), (80, 4000), ACK);
        node.expect_drop("from_pod", B, Context::default(), &back, blamed);
    }
}

/// T46.
#[test]
fn a_connection_that_ended_is_judged_anew() {
    for reset in [false, true] {
        let mut node = Node::new();
        node.allow(A.egress, PEER, Ports::All);
        for family in FAMILIES {
            let (out, back) = (family.from(A, family.peer()), family.to(family.peer(), A));
            node.passes("from_pod", A, &tcp(out, (4000, 80), SYN));
            node.passes("to_pod", A, &tcp(back, (80, 4000), SYN | ACK));
            if reset {
                node.passes("to_pod", A, &tcp(back, (80, 4000), RST));
            } else {
                node.passes("from_pod", A, &tcp(out, (4000, 80), FIN | ACK));
                node.passes("to_pod", A, &tcp(back, (80, 4000), FIN | ACK));
                node.passes("from_pod", A, &tcp(out, (4000, 80), ACK));
            }
            // The other side may not open under cover of the entry.
            node.drops_to(A, &tcp(back, (80, 4000), SYN), DropReason::PolicyDenied);
            assert_eq!(node.usage(A), if family == FAMILIES[0] { 1 } else { 2 });
            node.passes("from_pod", A, &tcp(out, (4000, 80), SYN));
            assert_eq!(node.usage(A), if family == FAMILIES[0] { 1 } else { 2 });
            let [connection] = node.connections(family)[..] else { panic!("one connection") };
            let said = [connection.replied, connection.fin_opener, connection.fin_other, connection.reset];
            assert_eq!(said, [0; 4]);
        }
    }
}

/// T36: an answer is an answer for so long only, whether or not anybody has collected the entry.
#[test]
fn an_expired_entry_is_not_believed() {
    let mut node = Node::new();
    node.allow(A.egress, PEER, Ports::All);
    for family in FAMILIES {
        let (out, back) = (family.from(A, family.peer()), family.to(family.peer(), A));
        node.passes("from_pod", A, &udp(out, (4000, 53), b"?"));
        node.passes("from_pod", A, &tcp(out, (4000, 80), SYN));
        node.change_connections(family, |c| c.seen = c.seen.saturating_sub(61));
        node.drops_to(A, &udp(back, (53, 4000), b"!"), DropReason::PolicyDenied);
        node.drops_to(A, &tcp(back, (80, 4000), SYN | ACK), DropReason::NoConnection);
        node.passes("from_pod", A, &udp(out, (4000, 53), b"?"));
        node.passes("to_pod", A, &udp(back, (53, 4000), b"!"));
    }
}

/// T34.
#[test]
fn an_endpoint_over_its_quota_opens_nothing_and_keeps_what_it_has() {
    let mut node = Node::new();
    node.allow_all();
    node.set_quota(A, 4);
    for family in FAMILIES {
        let ends = family.from(A, family.peer());
        node.passes("from_pod", A, &tcp(ends, (4000, 80), SYN));
        node.passes("from_pod", A, &udp(ends, (4000, 53), b"?"));
    }
    for family in FAMILIES {
        let ends = family.from(A, family.peer());
        node.drops_from(A, &tcp(ends, (4001, 80), SYN), DropReason::ConnectionQuota);
        node.drops_from(A, &echo(ends, true, 1), DropReason::ConnectionQuota);
        node.passes("from_pod", A, &tcp(ends, (4000, 80), ACK));
        // Whoever opens pays: what others open to A over B's quota is not A's affair.
        node.passes("from_pod", B, &tcp(family.between(B, A), (4000, 80), SYN));
    }
    assert_eq!((node.usage(A), node.usage(B)), (4, 2));
}

#[test]
fn what_comes_from_beyond_is_charged_to_its_receiver() {
    let mut node = Node::new();
    node.allow_all();
    node.set_quota(A, 1);
    let [v4, v6] = FAMILIES;
    node.passes("to_pod", A, &tcp(v4.to(v4.peer(), A), (4000, 80), SYN));
    node.drops_to(A, &tcp(v6.to(v6.peer(), A), (4000, 80), SYN), DropReason::ConnectionQuota);
}

/// T35.
#[test]
fn an_icmp_error_passes_only_about_an_open_connection_of_its_receiver() {
    let mut node = Node::new();
    node.allow(A.egress, 0, Ports::Of(UDP));
    for family in FAMILIES {
        let (out, back) = (family.from(A, family.peer()), family.to(family.peer(), A));
        let asked = udp(out, (4000, 53), b"?");
        node.drops_to(A, &unreachable(back, &asked), DropReason::UnrelatedIcmp);
        node.passes("from_pod", A, &asked);
        node.passes("to_pod", A, &unreachable(back, &asked));
        // From a router on the way too.
        let router = if out.is_v4() { "198.51.100.1" } else { "2001:db8:1::1" };
        node.passes("to_pod", A, &unreachable(family.to(router.parse().unwrap(), A), &asked));
        let another_port = udp(out, (4001, 53), b"?");
        node.drops_to(A, &unreachable(back, &another_port), DropReason::UnrelatedIcmp);
        let not_by_the_receiver = udp(family.from(B, family.peer()), (4000, 53), b"?");
        node.drops_to(A, &unreachable(back, &not_by_the_receiver), DropReason::UnrelatedIcmp);
        let cut = unreachable(back, &asked[..back.transport() + 4]);
        node.drops_to(A, &cut, DropReason::UnrelatedIcmp);
    }
}

/// T41: the next endpoint with an address inherits no conversation.
#[test]
fn a_connection_ends_with_its_endpoints_whoever_has_their_addresses_next() {
    let mut node = Node::new();
    node.allow(A.egress, B.identity, Ports::All);
    node.allow(B.ingress, A.identity, Ports::All);
    for (instance, family) in (100..).zip(FAMILIES) {
        let (there, back) = (family.between(A, B), family.between(B, A));
        node.passes("from_pod", A, &udp(there, (4000, 53), b"?"));
        node.passes("from_pod", A, &tcp(there, (4000, 80), SYN));
        node.passes("from_pod", B, &udp(back, (53, 4000), b"!"));
        node.enrol_again(A, instance);
        node.drops_from(B, &udp(back, (53, 4000), b"!"), DropReason::PolicyDenied);
        node.drops_from(B, &tcp(back, (80, 4000), ACK), DropReason::NoConnection);
        let error = unreachable(back, &udp(there, (4000, 53), b"?"));
        node.drops_from(B, &error, DropReason::UnrelatedIcmp);
        // It may open one of its own in the place of the old.
        node.passes("from_pod", A, &udp(there, (4000, 53), b"?"));
        node.passes("from_pod", B, &udp(back, (53, 4000), b"!"));
    }
}

/// T35: nothing of a connection between two workloads of this node comes by a router.
#[test]
fn nobody_outside_may_complain_about_a_connection_inside() {
    let mut node = Node::new();
    node.allow_all();
    for family in FAMILIES {
        let asked = udp(family.between(A, B), (4000, 53), b"?");
        node.passes("from_pod", A, &asked);
        node.drops_to(A, &unreachable(family.to(family.peer(), A), &asked), DropReason::UnrelatedIcmp);
    }
}

/// T35: whoever may talk no longer must not go on by errors, which carry a payload.
#[test]
fn an_icmp_error_about_a_connection_not_judged_since_the_last_change_is_refused() {
    let mut node = Node::new();
    node.allow(A.egress, 0, Ports::Of(UDP));
    for (generation, family) in (2..).step_by(2).zip(FAMILIES) {
        let (out, back) = (family.from(A, family.peer()), family.to(family.peer(), A));
        let asked = udp(out, (4000, 53), b"?");
        node.passes("from_pod", A, &asked);
        node.set_generation(generation);
        node.drops_to(A, &unreachable(back, &asked), DropReason::UnrelatedIcmp);
        node.passes("from_pod", A, &asked);
        node.passes("to_pod", A, &unreachable(back, &asked));
    }
}

/// T35: a pod cannot tear down a connection between two others.
#[test]
fn a_pod_may_complain_only_about_packets_it_got() {
    let mut node = Node::new();
    node.allow_all();
    for family in FAMILIES {
        let asked = udp(family.between(A, B), (4000, 53), b"?");
        node.passes("from_pod", A, &asked);
        assert_eq!(node.passes("from_pod", B, &unreachable(family.between(B, A), &asked)).verdict, REDIRECT);
        let elsewhere = udp(family.from(A, family.peer()), (4000, 53), b"?");
        node.passes("from_pod", A, &elsewhere);
        let forged = unreachable(family.between(B, A), &elsewhere);
        node.drops_from(B, &forged, DropReason::UnrelatedIcmp);
    }
}

#[test]
fn an_echo_request_never_passes_as_an_answer() {
    let mut node = Node::new();
    node.allow(A.egress, PEER, Ports::All);
    for family in FAMILIES {
        node.passes("from_pod", A, &echo(family.from(A, family.peer()), true, 7));
        let back = family.to(family.peer(), A);
        node.drops_to(A, &echo(back, true, 7), DropReason::NoConnection);
        node.drops_from(A, &echo(family.from(A, family.peer()), false, 7), DropReason::NoConnection);
    }
}

#[test]
fn a_policy_for_another_protocol_does_not_help() {
    let mut node = Node::new();
    node.allow(A.egress, 0, Ports::Of(TCP));
    for family in FAMILIES {
        let ends = family.from(A, family.peer());
        node.drops_from(A, &udp(ends, (4000, 80), b""), DropReason::PolicyDenied);
        node.drops_from(A, &sctp(ends, (4000, 80)), DropReason::PolicyDenied);
        node.drops_from(A, &echo(ends, true, 1), DropReason::PolicyDenied);
    }
}

#[test]
fn garbage_collection_deletes_the_dead_and_gives_their_charges_back() {
    let mut node = Node::new();
    node.allow_all();
    for family in FAMILIES {
        let ends = family.from(A, family.peer());
        for port in 0..5 {
            node.passes("from_pod", A, &udp(ends, (4000 + port, 53), b"?"));
        }
        node.passes("from_pod", A, &tcp(ends, (4000, 80), SYN));
        node.passes("to_pod", A, &tcp(ends.reversed(), (80, 4000), SYN | ACK));
    }
    assert_eq!(
        collect(&node),
        Collected { live4: 6, live6: 6, expired4: 0, expired6: 0, ..Collected::default() }
    );
    for family in FAMILIES {
        node.change_connections(family, |c| c.seen = c.seen.saturating_sub(61));
    }
    assert_eq!(
        collect(&node),
        Collected { live4: 1, live6: 1, expired4: 5, expired6: 5, ..Collected::default() }
    );
    assert_eq!(node.usage(A), 2);
    for family in FAMILIES {
        node.change_connections(family, |c| c.reset = 1);
    }
    assert_eq!(
        collect(&node),
        Collected { live4: 0, live6: 0, expired4: 1, expired6: 1, ..Collected::default() }
    );
    assert_eq!(node.usage(A), 0);
}

#[test]
fn connections_of_an_endpoint_that_is_gone_are_collected_at_once() {
    let mut node = Node::new();
    node.allow_all();
    for family in FAMILIES {
        node.passes("from_pod", A, &tcp(family.from(A, family.peer()), (4000, 80), SYN));
        node.passes("from_pod", B, &tcp(family.from(B, family.peer()), (4000, 80), SYN));
    }
    // Another endpoint has its addresses now.
    node.enrol_again(A, 100);
    assert_eq!(
        collect(&node),
        Collected { live4: 1, live6: 1, expired4: 1, expired6: 1, ..Collected::default() }
    );
    assert_eq!((node.usage(A), node.usage(B)), (0, 2));
}

fn collect(node: &Node) -> Collected {
    let (frame, mut out) = ([0; 64], [0; 64]);
    let mut options = TestRunOptions::new();
    options.data_in = Some(&frame);
    options.data_out = Some(&mut out);
    assert_eq!(node.program("conntrack_gc").test_run(options).unwrap().return_value, OK);
    // SAFETY: 64 bytes hold the 32 of `Collected`, for which any bit pattern is valid.
    unsafe { std::ptr::read_unaligned(out.as_ptr().cast()) }
}
