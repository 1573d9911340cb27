//! Opening a connection where policy asks for a proof.

use abi::{DropReason, EndpointFlags, EventFlags, EventKind, Pair, RuleVerdict, map};

use super::{super::world::WORLD, *};
use crate::{
    frame::{TCP, UDP},
    node::{OK, SHOT},
};

const REQUIRED_HERE: DropReason = DropReason::AuthenticationRequired;

#[test]
fn without_a_proof_nothing_opens_and_the_end_that_asks_is_named() {
    each(Way::node, |node, way, talk, family| {
        let (pod, direction) = way.asks[0];
        let outcome = way.drops(node, false, &talk.first(way, family), (REQUIRED_HERE, pod, direction));
        // Its sender tries again, or it waits.
        assert_eq!(outcome.verdict, SHOT);
        assert_eq!(node.connections(family), []);
        assert_eq!((node.usage(A), node.usage(B)), (0, 0));
    });
}

#[test]
fn with_a_proof_a_connection_opens_and_remembers_it() {
    each(Way::proven, |node, way, talk, family| {
        node.events();
        let first = talk.first(way, family);
        way.run(node, false, &first);
        let told = node.told();
        assert!(!told.is_empty());
        assert!(told.iter().all(|told| *told == (EventKind::Allowed as u8, MARK)), "{told:?}");
        way.passes(node, true, &talk.answer(way, family));
        way.passes(node, false, &talk.next(way, family, false));
        assert_eq!(node.proofs(family), [(MARK, EPOCH)]);
    });
}

#[test]
fn what_asks_for_no_proof_depends_on_none() {
    for way in WAYS {
        let mut node = Node::new();
        node.allow_all();
        way.prove(&mut node, MARK, EPOCH);
        for family in FAMILIES {
            Talk::Tcp.open(&mut node, way, family);
            assert_eq!(node.proofs(family), [(0, 0)]);
        }
    }
}

/// T45: a mark is a fact about two ends, no permission.
#[test]
fn a_mark_opens_no_port_protocol_or_direction_that_policy_does_not() {
    let mut node = Node::new();
    node.allow(B.egress, 0, Ports::All);
    node.require(A, EGRESS, B.identity, Ports::One(TCP, 80));
    node.require(B, INGRESS, A.identity, Ports::One(TCP, 80));
    node.prove(A, Peer::Pod(B), MARK, EPOCH);
    let denied = |pod, direction| (DropReason::PolicyDenied, pod, direction);
    for family in FAMILIES {
        let there = family.between(A, B);
        node.passes("from_pod", A, &tcp(there, (4000, 80), SYN));
        for other in [tcp(there, (4000, 81), SYN), udp(there, (4000, 80), b""), echo(there, true, 9)] {
            node.expect_drop("from_pod", A, Context::default(), &other, denied(A, EGRESS));
        }
        let back = tcp(family.between(B, A), (4000, 80), SYN);
        node.expect_drop("from_pod", B, Context::default(), &back, denied(A, INGRESS));
    }
}

#[test]
fn a_deny_rule_denies_whoever_has_proven_what() {
    for way in WAYS {
        let mut node = way.proven();
        let (pod, direction) = way.asks[0];
        let ruleset = if direction == EGRESS { pod.egress } else { pod.ingress };
        node.rule(ruleset, 0, Ports::Of(TCP), RuleVerdict::Deny);
        for family in FAMILIES {
            let first = Talk::Tcp.first(way, family);
            way.drops(&mut node, false, &first, (DropReason::PolicyDeny, pod, direction));
        }
    }
}

/// The rule about anybody and the one about this peer both allow.
#[test]
fn the_stricter_of_two_rules_that_allow_counts() {
    for (peer, anybody, needs) in
        [(0, 0, false), (0, REQUIRED, true), (REQUIRED, 0, true), (REQUIRED, REQUIRED, true)]
    {
        let mut node = Node::new();
        node.demand(A, EGRESS, PEER, Ports::All, peer);
        node.demand(A, EGRESS, 0, Ports::All, anybody);
        for family in FAMILIES {
            let syn = tcp(family.from(A, family.peer()), PORTS, SYN);
            if needs {
                node.drops_from(A, &syn, REQUIRED_HERE);
            } else {
                node.passes("from_pod", A, &syn);
            }
        }
    }
}

/// A requirement that these programs do not know yet is not taken for none.
#[test]
fn an_unknown_requirement_asks_for_a_proof() {
    let mut node = Node::new();
    node.demand(A, EGRESS, PEER, Ports::All, 0xff);
    for family in FAMILIES {
        node.drops_from(A, &tcp(family.from(A, family.peer()), PORTS, SYN), REQUIRED_HERE);
    }
}

/// How a mark can be of no use to a pair that `AUTH` leads to it.
#[test]
fn a_mark_that_is_not_this_pairs_or_does_not_hold_is_none() {
    let spoil: [fn(&mut Mark); 9] = [
        |mark| mark.epoch = 0,
        |mark| mark.expiry = 0,
        |mark| mark.expiry = now(),
        // LEASES has room for fewer.
        |mark| mark.lease = abi::LEASES,
        // A node of which nobody has heard.
        |mark| mark.lease = 5,
        |mark| mark.instances[0] += 100,
        |mark| mark.instances[1] += 100,
        |mark| mark.instances = [0, 0],
        |mark| (mark.ipv4, mark.ipv6, mark.instances[1]) = ([192, 0, 2, 8], [1; 16], mark.instances[1]),
    ];
    for way in WAYS {
        let mut node = way.node();
        for (n, spoil) in spoil.into_iter().enumerate() {
            let is_local = matches!((way.opener, way.other), (Peer::Pod(_), Peer::Pod(_)));
            if n == 8 && is_local {
                // Of two ends on this node no address counts.
                continue;
            }
            way.prove(&mut node, MARK, EPOCH);
            node.change_mark(MARK, spoil);
            for family in FAMILIES {
                let (pod, direction) = way.asks[0];
                let first = Talk::Tcp.first(way, family);
                way.drops(&mut node, false, &first, (REQUIRED_HERE, pod, direction));
            }
        }
    }
}

#[test]
fn a_mark_whose_node_has_not_been_heard_of_lately_is_none() {
    for way in WAYS {
        let mut node = way.proven();
        for lease in [0, now()] {
            for node_number in [0, BEYOND] {
                node.set(map::LEASES, node_number, lease);
            }
            for family in FAMILIES {
                let (pod, direction) = way.asks[0];
                let first = Talk::Tcp.first(way, family);
                way.drops(&mut node, false, &first, (REQUIRED_HERE, pod, direction));
            }
        }
    }
}

/// An element of `AUTH` may be recycled under a reader, and so lead anywhere.
#[test]
fn a_number_of_a_foreign_mark_proves_nothing() {
    for way in WAYS {
        let mut node = way.proven();
        for number in [0, 8, abi::MARKS, abi::MARKS + MARK, u32::MAX] {
            // Live, of another pair.
            node.prove(Pod { id: 9, ..B }, Peer::Pod(Pod { id: 10, ..A }), 8, 71);
            let (pod, direction) = way.asks[0];
            for family in FAMILIES {
                let pair = Pair { mark: number, ..Pair::default() };
                node.put(map::AUTH, key_of(pod, way.peer_of(pod), family), pair);
                let first = Talk::Tcp.first(way, family);
                way.drops(&mut node, false, &first, (REQUIRED_HERE, pod, direction));
            }
        }
    }
}

/// Where both ends are here and ask, one mark stands for both.
#[test]
fn two_ends_with_different_marks_have_proven_nothing_to_each_other() {
    let way = WAYS[2];
    let mut node = way.proven();
    let other = Mark { epoch: 71, expiry: FAR, ..mark_of(A, Peer::Pod(B)) };
    node.set(map::MARKS, 8, other);
    for family in FAMILIES {
        node.put(map::AUTH, key_of(B, Peer::Pod(A), family), Pair { mark: 8, ..Pair::default() });
        let first = Talk::Tcp.first(way, family);
        way.drops(&mut node, false, &first, (REQUIRED_HERE, B, INGRESS));
    }
}

/// T41: the next endpoint with an address is another instance.
#[test]
fn the_next_endpoint_with_an_address_inherits_no_mark() {
    for way in WAYS {
        for pod in [A, B] {
            let mut node = way.proven();
            node.enrol_again(pod, 1000);
            for family in FAMILIES {
                let first = Talk::Tcp.first(way, family);
                if way.asks.len() == 1
                    && matches!((way.opener, way.other), (Peer::Pod(_), Peer::Beyond) | (Peer::Beyond, _))
                    && pod.id == B.id
                {
                    way.passes(&mut node, false, &first);
                    continue;
                }
                let (asks, direction) = way.asks[0];
                way.drops(&mut node, false, &first, (REQUIRED_HERE, asks, direction));
            }
        }
    }
}

/// T42: an address that has become another identity's.
#[test]
fn an_address_with_another_identity_has_proven_nothing() {
    for way in [WAYS[3], WAYS[4]] {
        let mut node = way.proven();
        let (pod, direction) = way.asks[0];
        node.require(pod, direction, PEER + 1, Ports::All);
        for family in FAMILIES {
            node.identify(family.peer(), 128, PEER + 1);
            let first = Talk::Tcp.first(way, family);
            way.drops(&mut node, false, &first, (REQUIRED_HERE, pod, direction));
        }
    }
}

#[test]
fn a_refused_proof_is_told_with_its_reason_for_as_long_as_it_holds() {
    for way in WAYS {
        let mut node = way.node();
        let (pod, direction) = way.asks[0];
        node.refuse(pod, way.peer_of(pod), 17, FAR);
        for family in FAMILIES {
            for talk in TALKS {
                node.events();
                way.run(&node, false, &talk.first(way, family));
                let [event] = node.events()[..] else { panic!("one event") };
                assert_eq!(event.reason, DropReason::AuthenticationRefused as u8);
                assert_eq!((event.authentication, event.ifindex), (17, pod.ifindex));
                assert_eq!(event.direction, direction as u8);
            }
        }
        node.refuse(pod, way.peer_of(pod), 17, now());
        for family in FAMILIES {
            let first = Talk::Tcp.first(way, family);
            way.drops(&mut node, false, &first, (REQUIRED_HERE, pod, direction));
        }
    }
}

#[test]
fn who_has_no_spiffe_id_cannot_prove_anything() {
    for way in [WAYS[3], WAYS[4]] {
        let (pod, direction) = way.asks[0];
        let mut node = way.proven();
        node.require(pod, direction, 0, Ports::All);
        for identity in [WORLD, 4, 6, 255, 65_536, 0x0100_0001] {
            for family in FAMILIES {
                node.identify(family.peer(), 128, identity);
                let first = Talk::Udp.first(way, family);
                way.drops(&mut node, false, &first, (DropReason::NoPrincipal, pod, direction));
            }
        }
        let mut node = way.node();
        node.require(pod, direction, 0, Ports::All);
        for identity in [256, 65_535] {
            for family in FAMILIES {
                node.identify(family.peer(), 128, identity);
                let first = Talk::Udp.first(way, family);
                way.drops(&mut node, false, &first, (REQUIRED_HERE, pod, direction));
            }
        }
    }
}

/// The documented bypass: probes. Not the other way: the node has no SPIFFE ID to prove.
#[test]
fn the_node_reaches_its_own_workloads_without_a_proof() {
    let mut node = Node::new();
    node.allow_all();
    node.require(A, INGRESS, 0, Ports::All);
    let own = Context { ingress_ifindex: 1, ..Context::default() };
    for family in FAMILIES {
        let probe = tcp(family.to(family.host(), A), PORTS, SYN);
        assert_eq!(node.run("to_pod", A, own, &probe).verdict, OK);
        assert_eq!(node.proofs(family), [(0, 0)]);
        // Whoever forges it is no host.
        node.drops_to(A, &probe, DropReason::InvalidSourceIp);
    }
    node.require(A, EGRESS, 0, Ports::All);
    for family in FAMILIES {
        let call = udp(family.from(A, family.host()), PORTS, b"");
        node.drops_from(A, &call, DropReason::NoPrincipal);
    }
}

#[test]
fn audit_mode_lets_pass_what_has_no_proof_and_says_so() {
    for way in WAYS {
        for refused in [false, true] {
            let mut node = way.node();
            for (pod, _) in way.asks {
                node.assign_both(*pod, |assignment| assignment.flags = EndpointFlags::AUDIT);
                if refused {
                    node.refuse(*pod, way.peer_of(*pod), 17, FAR);
                }
            }
            for family in FAMILIES {
                node.events();
                assert_ne!(way.run(&node, false, &Talk::Udp.first(way, family)).verdict, SHOT);
                let events = node.events();
                let audited = events.iter().filter(|event| event.flags & EventFlags::AUDITED != 0);
                assert_eq!(audited.count(), way.asks.len(), "{way:?}");
                assert_eq!(node.proofs(family), [(0, 0)]);
            }
        }
    }
}

/// Where it only looks on, the end of a proof ends nothing.
#[test]
fn in_audit_mode_a_connection_depends_on_no_mark() {
    for way in WAYS {
        let mut node = way.proven();
        for (pod, _) in way.asks {
            node.assign_both(*pod, |assignment| assignment.flags = EndpointFlags::AUDIT);
        }
        for family in FAMILIES {
            node.events();
            Talk::Tcp.open(&mut node, way, family);
            assert!(node.events().iter().all(|event| event.flags & EventFlags::AUDITED == 0));
            assert_eq!(node.proofs(family), [(0, 0)]);
        }
        node.withdraw(MARK);
        for family in FAMILIES {
            way.passes(&mut node, false, &Talk::Tcp.next(way, family, false));
        }
    }
}

/// Only TCP is asked about here, so that the rule of the other protocol is silent.
#[test]
fn protocols_of_one_port_ask_for_themselves() {
    let mut node = Node::new();
    node.allow(A.egress, 0, Ports::One(UDP, 80));
    node.require(A, EGRESS, 0, Ports::One(TCP, 80));
    for family in FAMILIES {
        let ends = family.from(A, family.peer());
        node.passes("from_pod", A, &udp(ends, PORTS, b""));
        node.drops_from(A, &tcp(ends, PORTS, SYN), REQUIRED_HERE);
    }
}
