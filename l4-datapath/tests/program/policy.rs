//! Who may open what: rulesets, both ends, generations, audit.

use abi::{Direction, DropReason, EndpointFlags, EventFlags, EventKind, RuleVerdict};

use super::{
    frame::{SYN, TCP, UDP, echo, icmp, tcp, udp},
    node::{Context, Node, OK, REDIRECT},
    world::{A, B, FAMILIES, PEER, Ports},
};

#[test]
fn a_connection_between_two_pods_needs_egress_of_the_one_and_ingress_of_the_other() {
    let mut node = Node::new();
    for family in FAMILIES {
        let syn = tcp(family.between(A, B), (4000, 80), SYN);
        node.drops_from(A, &syn, DropReason::PolicyDenied);
    }
    node.allow(A.egress, B.identity, Ports::One(TCP, 80));
    for family in FAMILIES {
        let syn = tcp(family.between(A, B), (4000, 80), SYN);
        let blamed = (DropReason::PolicyDenied, B, Direction::Ingress);
        node.expect_drop("from_pod", A, Context::default(), &syn, blamed);
    }
    node.allow(B.ingress, A.identity, Ports::One(TCP, 80));
    for family in FAMILIES {
        let outcome = node.passes("from_pod", A, &tcp(family.between(A, B), (4000, 80), SYN));
        assert_eq!(outcome.verdict, REDIRECT);
        let blamed = (DropReason::PolicyDenied, A, Direction::Egress);
        let other_port = tcp(family.between(A, B), (4000, 81), SYN);
        node.expect_drop("from_pod", A, Context::default(), &other_port, blamed);
        let other_way = tcp(family.between(B, A), (4000, 80), SYN);
        node.drops_from(B, &other_way, DropReason::PolicyDenied);
    }
}

#[test]
fn a_new_connection_is_reported_once_by_each_end_that_judged() {
    let mut node = Node::new();
    node.allow(A.egress, 0, Ports::All);
    node.allow(B.ingress, A.identity, Ports::Of(TCP));
    for family in FAMILIES {
        let syn = tcp(family.between(A, B), (4000, 80), SYN);
        node.run_from_pod(A, &syn);
        let told: Vec<_> = node
            .events()
            .iter()
            .map(|e| (e.kind, e.ifindex, e.direction, e.ruleset, e.cookie, e.destination_port))
            .collect();
        let allowed = EventKind::Allowed as u8;
        assert_eq!(
            told,
            [
                (allowed, A.ifindex, Direction::Egress as u8, A.egress, A.egress * 10 + 1, 80),
                (allowed, B.ifindex, Direction::Ingress as u8, B.ingress, B.ingress * 10 + 1, 80),
            ]
        );
        node.run_from_pod(A, &syn);
        assert_eq!(node.events(), []);
    }
}

#[test]
fn deny_from_either_look_up_wins_and_names_its_rule() {
    for (denied_peer, allowed_peer) in [(PEER, 0), (0, PEER)] {
        let mut node = Node::new();
        node.allow(A.egress, allowed_peer, Ports::All);
        node.rule(A.egress, denied_peer, Ports::One(TCP, 80), RuleVerdict::Deny);
        for family in FAMILIES {
            let ends = family.from(A, family.peer());
            node.events();
            node.run_from_pod(A, &tcp(ends, (4000, 80), SYN));
            let [event] = node.events()[..] else { panic!("one event") };
            assert_eq!(event.reason, DropReason::PolicyDeny as u8);
            assert_eq!((event.ruleset, event.cookie), (A.egress, A.egress * 10));
            assert_eq!((event.source_identity, event.destination_identity), (A.identity, PEER));
            assert_eq!(node.passes("from_pod", A, &tcp(ends, (4000, 443), SYN)).verdict, OK);
        }
    }
}

#[test]
fn a_rule_without_enforcer_denies_unless_another_allows() {
    let mut node = Node::new();
    node.rule(A.egress, PEER, Ports::All, RuleVerdict::Unmet);
    for family in FAMILIES {
        let syn = tcp(family.from(A, family.peer()), (4000, 80), SYN);
        node.run_from_pod(A, &syn);
        let [event] = node.events()[..] else { panic!("one event") };
        assert_eq!((event.reason, event.cookie), (DropReason::PolicyDenied as u8, A.egress * 10 + 2));
    }
    node.allow(A.egress, 0, Ports::All);
    for family in FAMILIES {
        node.passes("from_pod", A, &tcp(family.from(A, family.peer()), (4000, 80), SYN));
    }
}

/// T40: 8080–8087 is the prefix 8080/13.
#[test]
fn a_port_range_is_a_prefix_and_ends_where_it_ends() {
    let mut node = Node::new();
    node.allow(A.egress, PEER, Ports::Prefix(TCP, 8080, 13));
    for family in FAMILIES {
        let ends = family.from(A, family.peer());
        for (port, passes) in [(8079, false), (8080, true), (8087, true), (8088, false)] {
            let syn = tcp(ends, (4000, port), SYN);
            if passes {
                node.passes("from_pod", A, &syn);
            } else {
                node.drops_from(A, &syn, DropReason::PolicyDenied);
            }
        }
        node.drops_from(A, &udp(ends, (4000, 8080), b""), DropReason::PolicyDenied);
    }
}

#[test]
fn icmp_is_judged_by_its_type() {
    let mut node = Node::new();
    for (protocol, kind) in [(1, 8), (58, 128)] {
        node.allow(A.egress, PEER, Ports::One(protocol, kind));
    }
    for family in FAMILIES {
        let ends = family.from(A, family.peer());
        node.passes("from_pod", A, &echo(ends, true, 7));
        // Timestamp request; an unassigned ICMPv6 type.
        let other = if ends.is_v4() { 13 } else { 150 };
        node.drops_from(A, &icmp(ends, other, 0, 64, &[0; 16]), DropReason::PolicyDenied);
    }
}

#[test]
fn one_store_of_the_generation_switches_rulesets_and_identities() {
    let mut node = Node::new();
    let old = abi::Assignment { identity: A.identity, ingress: A.ingress, egress: 77, flags: 0 };
    let new = abi::Assignment { egress: 78, ..old };
    node.assign(A, [new, old], 1000);
    node.allow(77, PEER, Ports::All);
    node.allow(78, 6000, Ports::All);
    for family in FAMILIES {
        node.identify_by_slot(family.peer(), 128, [6000, PEER]);
    }
    for (generation, ruleset, identity) in [(1, 77, PEER), (2, 78, 6000), (3, 77, PEER)] {
        node.set_generation(generation);
        for family in FAMILIES {
            let port = 1000 + generation as u16;
            node.events();
            node.passes("from_pod", A, &tcp(family.from(A, family.peer()), (port, 80), SYN));
            node.run_from_pod(A, &tcp(family.from(A, family.peer()), (port, 81), SYN));
            let [event] = node.events()[..] else { panic!("one event") };
            assert_eq!((event.ruleset, event.destination_identity), (ruleset, identity));
        }
    }
}

#[test]
fn audit_mode_lets_pass_what_policy_denies_and_says_so() {
    let mut node = Node::new();
    node.assign_both(A, |a| a.flags = EndpointFlags::AUDIT);
    for family in FAMILIES {
        node.events();
        let syn = tcp(family.from(A, family.peer()), (4000, 80), SYN);
        assert_eq!(node.run_from_pod(A, &syn).verdict, OK);
        let [event] = node.events()[..] else { panic!("one event") };
        assert_eq!(event.kind, EventKind::Allowed as u8);
        assert_eq!(event.flags & EventFlags::AUDITED, EventFlags::AUDITED);
        // The other end's policy is not suspended with it.
        let to_b = tcp(family.between(A, B), (4000, 80), SYN);
        let blamed = (DropReason::PolicyDenied, B, Direction::Ingress);
        node.expect_drop("from_pod", A, Context::default(), &to_b, blamed);
    }
}

#[test]
fn nobody_without_identity_is_judged() {
    let mut node = Node::new();
    node.allow_all();
    for family in FAMILIES {
        node.identify(family.peer(), 128, 0);
        let out = udp(family.from(A, family.peer()), (4000, 53), b"?");
        node.drops_from(A, &out, DropReason::NoIdentity);
        let into = udp(family.to(family.peer(), A), (53, 4000), b"!");
        node.drops_to(A, &into, DropReason::NoIdentity);
    }
    node.assign_both(A, |a| a.identity = 0);
    for family in FAMILIES {
        let out = udp(family.between(A, B), (4000, 53), b"?");
        node.drops_from(A, &out, DropReason::NoIdentity);
    }
}

#[test]
fn an_address_of_the_pool_without_endpoint_is_reported_as_such() {
    let mut node = Node::new();
    node.allow_all();
    for family in FAMILIES {
        let lost = tcp(family.from(A, family.pool(99)), (4000, 80), SYN);
        node.drops_from(A, &lost, DropReason::NoEndpoint);
    }
}

/// T43: between attaching the programs and the first generation.
#[test]
fn nothing_passes_before_the_first_generation() {
    let mut node = Node::blank();
    node.allow_all();
    for family in FAMILIES {
        let syn = tcp(family.between(A, B), (4000, 80), SYN);
        node.drops_from(A, &syn, DropReason::NotReady);
        let into = tcp(family.to(family.peer(), A), (4000, 80), SYN);
        node.drops_to(A, &into, DropReason::NotReady);
    }
}

#[test]
fn at_trace_level_every_packet_that_passes_is_an_event() {
    let mut node = Node::new();
    node.allow(A.egress, 0, Ports::Of(UDP));
    node.set_node(1, 1);
    for family in FAMILIES {
        let out = udp(family.from(A, family.peer()), (4000, 53), b"?");
        node.run_from_pod(A, &out);
        node.run_from_pod(A, &out);
        let kinds: Vec<_> = node.events().iter().map(|e| e.kind).collect();
        assert_eq!(kinds, [EventKind::Allowed as u8, EventKind::Trace as u8, EventKind::Trace as u8]);
    }
}
