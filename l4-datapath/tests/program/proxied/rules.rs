//! Which connections go to the proxy, and what becomes of those that policy judged otherwise before.

use abi::{DropReason, EndpointFlags, EventFlags, MARK_TO_PROXY, REQUIRED, RuleVerdict};

use super::super::{
    frame::{ACK, FIN, RST, SYN, TCP, UDP, tcp, tcp_with, udp},
    node::{Context, Node, OK, Outcome, REDIRECT, SHOT},
    world::{A, B, FAMILIES, Ports},
};
use super::PORT;

/// A proxy that has a name, but no sockets: what is for it is dropped at the last step, and counted there.
const NOBODY: u64 = u64::MAX;

fn node() -> Node {
    let mut node = Node::new();
    node.allow_by_proxy();
    node.set_proxy(1, NOBODY, 1);
    node
}

/// Whether the outcome is that of a packet for the proxy, where none of its sockets is.
fn is_for_proxy(node: &mut Node, pod: crate::world::Pod, frame: &[u8]) -> bool {
    node.events();
    let outcome = node.run_from_pod(pod, frame);
    let reasons: Vec<_> =
        node.events().iter().filter_map(|event| DropReason::from_number(event.reason)).collect();
    outcome.verdict != OK && reasons == [DropReason::NoProxy]
}

/// Every pair of what the peer's own entry and anybody's say.
#[test]
fn a_plain_allow_in_either_look_up_is_a_direct_way_and_a_deny_is_none() {
    use RuleVerdict::{Allow, Deny, Proxy, Unmet};
    let verdicts = [None, Some(Deny), Some(Allow), Some(Unmet), Some(Proxy)];
    let mut node = Node::new();
    node.set_proxy(1, NOBODY, 1);
    node.allow(A.egress, 0, Ports::All);
    let mut port = 100;
    for own in verdicts {
        for anybody in verdicts {
            port += 1;
            for (peer, verdict) in [(A.identity, own), (0, anybody)] {
                if let Some(verdict) = verdict {
                    node.rule(B.ingress, peer, Ports::One(TCP, port), verdict);
                }
            }
            let both = [own, anybody];
            for family in FAMILIES {
                let syn = tcp(family.between(A, B), (4000, port), SYN);
                node.events();
                let outcome = node.run_from_pod(A, &syn);
                let dropped = node.events().iter().find_map(|event| DropReason::from_number(event.reason));
                let expected = if both.contains(&Some(Deny)) {
                    Some(DropReason::PolicyDeny)
                } else if both.contains(&Some(Allow)) {
                    None
                } else if both.contains(&Some(Proxy)) {
                    Some(DropReason::NoProxy)
                } else {
                    Some(DropReason::PolicyDenied)
                };
                assert_eq!(dropped, expected, "{own:?} {anybody:?}");
                assert_eq!(outcome.verdict == REDIRECT, expected.is_none(), "{own:?} {anybody:?}");
            }
        }
    }
}

/// Of what admits, the demand for a proof counts, whichever way that entry opens.
#[test]
fn a_proof_that_either_entry_demands_is_demanded_on_the_direct_way_too() {
    for (own, anybody) in [(RuleVerdict::Proxy, RuleVerdict::Allow), (RuleVerdict::Allow, RuleVerdict::Proxy)]
    {
        let mut node = node();
        node.rule_with(B.ingress, A.identity, Ports::One(TCP, 90), own, REQUIRED);
        node.rule_with(B.ingress, 0, Ports::One(TCP, 90), anybody, 0);
        for family in FAMILIES {
            let syn = tcp(family.between(A, B), (4000, 90), SYN);
            node.events();
            node.run_from_pod(A, &syn);
            let reasons: Vec<_> = node.events().iter().map(|event| event.reason).collect();
            assert_eq!(reasons, [DropReason::AuthenticationRequired as u8]);
        }
    }
}

#[test]
fn either_end_may_want_the_proxy_and_other_ports_and_protocols_do_not_meet_it() {
    for ruleset in [A.egress, B.ingress] {
        let mut node = Node::new();
        node.set_proxy(1, NOBODY, 1);
        node.allow_all();
        node.rule(ruleset, 0, Ports::One(TCP, PORT), RuleVerdict::Proxy);
        for family in FAMILIES {
            let ends = family.between(A, B);
            assert!(is_for_proxy(&mut node, A, &tcp(ends, (4000, PORT), SYN)));
            assert_eq!(node.connections(family).iter().map(|entry| entry.proxied).collect::<Vec<_>>(), [1]);
            assert_eq!(node.passes("from_pod", A, &tcp(ends, (4000, 81), SYN)).verdict, REDIRECT);
            node.passes("from_pod", A, &udp(ends, (4000, PORT), b""));
        }
    }
}

/// Whatever compiles such a rule for another protocol: there is no proxy for it.
#[test]
fn what_is_not_tcp_is_refused_where_policy_asks_for_the_proxy() {
    let mut node = node();
    node.rule(B.ingress, 0, Ports::One(UDP, 53), RuleVerdict::Proxy);
    for family in FAMILIES {
        let frame = udp(family.between(A, B), (4000, 53), b"");
        let blamed = (DropReason::PolicyDenied, B, abi::Direction::Ingress);
        node.expect_drop("from_pod", A, Context::default(), &frame, blamed);
    }
}

#[test]
fn without_a_proxy_nothing_is_opened_and_nobody_is_told_to_give_up() {
    let mut node = node();
    node.set_proxy(1, NOBODY, 0);
    for family in FAMILIES {
        node.events();
        let outcome = node.run_from_pod(A, &tcp(family.between(A, B), (4000, PORT), SYN));
        assert_eq!(outcome.verdict, SHOT);
        let reasons: Vec<_> = node.events().iter().map(|event| event.reason).collect();
        assert_eq!(reasons, [DropReason::NoProxy as u8]);
        assert_eq!(node.connections(family), []);
    }
}

/// No packet of the opener's passes without the proxy: not the second, not the last, and not when policy lets it pass
/// directly by now.
#[test]
fn a_proxied_connection_stays_one() {
    let mut node = node();
    for family in FAMILIES {
        node.set_proxy(1, NOBODY, 1);
        let ends = family.between(A, B);
        assert!(is_for_proxy(&mut node, A, &tcp(ends, (4000, PORT), SYN)));
        for flags in [ACK, ACK | FIN, SYN] {
            assert!(is_for_proxy(&mut node, A, &tcp(ends, (4000, PORT), flags)), "{flags}");
        }
        node.allow(B.ingress, A.identity, Ports::One(TCP, PORT));
        node.set_proxy(3, NOBODY, 1);
        assert!(is_for_proxy(&mut node, A, &tcp(ends, (4000, PORT), ACK)));
        assert_eq!(node.passes("from_pod", A, &tcp(ends, (4001, PORT), SYN)).verdict, REDIRECT);
        node.rule(B.ingress, A.identity, Ports::One(TCP, PORT), RuleVerdict::Proxy);
    }
}

/// The flags of the two events of a connection that has been opened: of the opener's policy, of that of whom it calls.
fn audited(node: &mut Node) -> Vec<bool> {
    node.events().iter().map(|event| event.flags & EventFlags::AUDITED != 0).collect()
}

/// In audit mode the proxy judges what it can, and what it cannot passes: to the node itself, while there is no proxy.
#[test]
fn audit_mode_lets_pass_what_cannot_go_by_way_of_the_proxy_and_says_so() {
    let mut node = Node::new();
    node.allow_all();
    node.rule(A.egress, 0, Ports::One(TCP, PORT), RuleVerdict::Proxy);
    node.assign_both(A, |a| a.flags = EndpointFlags::AUDIT);
    for family in FAMILIES {
        node.set_proxy(1, NOBODY, 1);
        assert!(is_for_proxy(&mut node, A, &tcp(family.between(A, B), (4000, PORT), SYN)));
        let to_host = tcp(family.from(A, family.host()), (4000, PORT), SYN);
        assert_eq!(node.run_from_pod(A, &to_host).verdict, OK);
        assert_eq!(audited(&mut node), [true]);
        node.set_proxy(1, NOBODY, 0);
        let to_pod = tcp(family.between(A, B), (4001, PORT), SYN);
        assert_eq!(node.run_from_pod(A, &to_pod).verdict, REDIRECT);
        assert_eq!(audited(&mut node), [true, false], "B's policy allows it directly");
        let proxied: Vec<_> = node.connections(family).iter().map(|entry| entry.proxied).collect();
        assert_eq!(proxied.iter().filter(|is| **is == 1).count(), 1);
        assert_eq!(proxied.len(), 3);
        // It stays as it is when there is one.
        node.set_proxy(3, NOBODY, 1);
        assert_eq!(
            node.passes("from_pod", A, &tcp(family.between(A, B), (4001, PORT), ACK)).verdict,
            REDIRECT
        );
    }
}

/// The other end's policy is not suspended with it, whichever end that is.
#[test]
fn an_end_that_enforces_is_not_spared_by_audit_mode_of_the_other() {
    for audited in [A, B] {
        let mut node = Node::new();
        node.allow_all();
        node.rule(A.egress, 0, Ports::One(TCP, PORT), RuleVerdict::Proxy);
        node.rule(B.ingress, 0, Ports::One(TCP, PORT), RuleVerdict::Proxy);
        node.assign_both(audited, |it| it.flags = EndpointFlags::AUDIT);
        for family in FAMILIES {
            node.set_proxy(1, NOBODY, 0);
            let syn = tcp(family.between(A, B), (4000, PORT), SYN);
            assert!(is_for_proxy(&mut node, A, &syn), "no proxy, and one end enforces");
            assert_eq!(node.connections(family), []);
        }
    }
}

/// Older than the policy that asks for the proxy.
#[test]
fn a_direct_connection_goes_on_where_only_audit_mode_wants_it_proxied() {
    for (audited, reset) in [(B, false), (A, true)] {
        let mut node = Node::new();
        node.allow_all();
        node.assign_both(audited, |it| it.flags = EndpointFlags::AUDIT);
        for family in FAMILIES {
            node.set_proxy(1, NOBODY, 1);
            node.allow(B.ingress, 0, Ports::One(TCP, PORT));
            let ends = family.between(A, B);
            node.passes("from_pod", A, &tcp(ends, (4000, PORT), SYN));
            node.passes("from_pod", B, &tcp(family.between(B, A), (PORT, 4000), SYN | ACK));
            node.rule(B.ingress, 0, Ports::One(TCP, PORT), RuleVerdict::Proxy);
            node.set_proxy(3, NOBODY, 1);
            let more = tcp_with(ends, (4000, PORT), ACK, 64, b"more");
            if reset {
                node.drops_from(A, &more, DropReason::NotProxied);
                continue;
            }
            for _ in 0..2 {
                assert_eq!(node.passes("from_pod", A, &more).verdict, REDIRECT, "{family:?}");
            }
            // What opens now goes by the proxy.
            assert!(is_for_proxy(&mut node, A, &tcp(ends, (4001, PORT), SYN)));
        }
    }
}

/// The called workload cannot answer in the proxy's place.
#[test]
fn the_end_that_was_called_has_no_part_in_the_openers_connection() {
    let mut node = node();
    for family in FAMILIES {
        let ends = family.between(A, B);
        assert!(is_for_proxy(&mut node, A, &tcp(ends, (4000, PORT), SYN)));
        for flags in [SYN | ACK, ACK, RST] {
            node.drops_from(B, &tcp(family.between(B, A), (PORT, 4000), flags), DropReason::NoConnection);
        }
    }
}

/// Older than the policy that asks for the proxy: reset, both ends, and the next connection on its ports is a new one.
#[test]
fn a_direct_connection_that_policy_wants_proxied_now_is_reset() {
    let mut node = node();
    for family in FAMILIES {
        node.set_proxy(1, NOBODY, 1);
        node.rule(B.ingress, A.identity, Ports::One(TCP, PORT), RuleVerdict::Allow);
        let ends = family.between(A, B);
        node.passes("from_pod", A, &tcp(ends, (4000, PORT), SYN));
        node.passes("from_pod", B, &tcp(family.between(B, A), (PORT, 4000), SYN | ACK));
        node.passes("from_pod", A, &tcp(ends, (4000, PORT), ACK));
        node.rule(B.ingress, A.identity, Ports::One(TCP, PORT), RuleVerdict::Proxy);
        node.set_proxy(3, NOBODY, 1);
        for _ in 0..2 {
            let Outcome { verdict, frame, .. } =
                node.drops_from(A, &tcp_with(ends, (4000, PORT), ACK, 64, b"more"), DropReason::NotProxied);
            assert_eq!(verdict, REDIRECT);
            assert_eq!(frame[ends.transport() + 13], RST);
        }
        assert!(is_for_proxy(&mut node, A, &tcp(ends, (4000, PORT), SYN)));
    }
}

/// What comes by the stack is sent to where it can be given to the proxy.
#[test]
fn what_arrives_for_a_workload_goes_to_its_veths_ingress() {
    let mut node = node();
    for family in FAMILIES {
        let ends = family.to(family.peer(), A);
        for flags in [SYN, ACK] {
            let context = Context { ingress_ifindex: 77, ..Context::default() };
            let outcome = node.run("to_pod", A, context, &tcp(ends, (4000, PORT), flags));
            assert_eq!((outcome.verdict, outcome.mark), (REDIRECT, MARK_TO_PROXY));
        }
        node.drops_from(
            A,
            &tcp(family.from(A, family.peer()), (PORT, 4000), SYN | ACK),
            DropReason::NoConnection,
        );
    }
}
