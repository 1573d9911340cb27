//! What waits for a proof says whose it is, and goes on once that is there.

use abi::MARK_ANSWER;

use super::*;
use crate::{
    answers::error,
    auth::Peer,
    frame::{RST, TCP, is_sound},
    world::{B, Ports},
};

/// Who opens, where it is stopped, whose policy asks, and what the device is told.
struct Case {
    hook: Hook,
    ends: fn(Family) -> Ends,
    peer: Peer,
    asks: (Pod, Direction),
    kind: HoldKind,
}

const CASES: [Case; 4] = [
    Case {
        hook: Hook::FromPod,
        ends: |family| family.from(A, family.peer()),
        peer: Peer::Beyond,
        asks: (A, Direction::Egress),
        kind: HoldKind::Egress,
    },
    Case {
        hook: Hook::FromPod,
        ends: |family| family.between(A, B),
        peer: Peer::Pod(B),
        asks: (A, Direction::Egress),
        kind: HoldKind::Egress,
    },
    Case {
        hook: Hook::FromPod,
        ends: |family| family.between(A, B),
        peer: Peer::Pod(B),
        asks: (B, Direction::Ingress),
        kind: HoldKind::Ingress,
    },
    Case {
        hook: Hook::ToPod,
        ends: |family| family.to(family.peer(), A),
        peer: Peer::Beyond,
        asks: (A, Direction::Ingress),
        kind: HoldKind::Ingress,
    },
];

impl Case {
    /// A node where everything is allowed, to who asks only with a proof.
    fn node(&self) -> Node {
        let mut node = waiting_node();
        node.pend(false);
        let (asking, direction) = self.asks;
        let identity = match self.peer {
            Peer::Pod(_) if asking.id == B.id => A.identity,
            Peer::Pod(peer) => peer.identity,
            Peer::Beyond => PEER,
        };
        node.require(asking, direction, identity, Ports::All);
        node
    }
}

#[test]
fn a_first_packet_waits_for_the_proof_that_policy_asks_for() {
    for case in CASES {
        let mut node = case.node();
        let released = Context { mark: MARK_RELEASED, ..RECEIVED };
        let (asking, direction) = case.asks;
        let blamed = (DropReason::AuthenticationRequired, asking, direction);
        let mut waiting = Vec::new();
        for family in FAMILIES {
            for sent in first_packets((case.ends)(family)) {
                let (id, frame) = node.waits_as(case.hook, case.kind, &sent);
                assert_eq!(node.held(id).hook, case.hook.direction() as u8, "where it was stopped");
                assert!(node.connections(family).is_empty());
                // Without a proof it came back in vain.
                node.expect_drop(case.hook.program(), A, released, &sent, blamed);
                waiting.push((frame, sent));
            }
        }
        node.prove(A, case.peer, 7, 70);
        for (frame, sent) in waiting {
            assert_eq!(node.goes_on_from_hold(&frame), sent);
            let outcome = node.run(case.hook.program(), A, released, &sent);
            let delivered = if matches!(case.peer, Peer::Pod(_)) { REDIRECT } else { run::OK };
            assert_eq!((outcome.verdict, outcome.mark), (delivered, 0));
        }
        let opened: usize = FAMILIES.iter().map(|family| node.connections(*family).len()).sum();
        assert_eq!(opened, 8);
    }
}

/// What cannot wait is dropped for want of the proof.
#[test]
fn unproven_packets_that_may_not_wait_are_dropped() {
    for case in CASES {
        let mut node = case.node();
        let (asking, direction) = case.asks;
        let blamed = (DropReason::AuthenticationRequired, asking, direction);
        for family in FAMILIES {
            let ends = (case.ends)(family);
            let datagram = udp(ends, (4000, 53), b"question");
            for sent in
                [sctp(ends, (4000, 80)), piece(ends, UDP, 9, (0, true), &datagram[ends.transport()..])]
            {
                node.expect_drop(case.hook.program(), A, RECEIVED, &sent, blamed);
            }
        }
        assert_eq!(node.hold_counts(), [0, 0]);
    }
}

/// The proof has failed meanwhile: what waited is given back, and its sender is told so at once; the event says why.
#[test]
fn what_waited_for_a_proof_that_is_refused_is_answered_and_told() {
    const REFUSAL: u8 = 7;
    for case in CASES {
        let mut node = case.node();
        let (asking, direction) = case.asks;
        let released = Context { mark: MARK_RELEASED, ..RECEIVED };
        let answered = if case.hook == Hook::FromPod { 0 } else { MARK_ANSWER };
        let mut waiting = Vec::new();
        for family in FAMILIES {
            let ends = (case.ends)(family);
            for sent in first_packets(ends) {
                let (_, frame) = node.waits_as(case.hook, case.kind, &sent);
                waiting.push((ends, frame, sent));
            }
        }
        let peer = if asking.id == A.id { case.peer } else { Peer::Pod(A) };
        node.refuse(asking, peer, REFUSAL, u64::MAX);
        for (ends, frame, sent) in waiting {
            assert_eq!(node.goes_on_from_hold(&frame), sent);
            let counts = node.hold_counts();
            node.events();
            let outcome = node.run(case.hook.program(), A, released, &sent);
            assert_eq!(
                (outcome.verdict, outcome.mark),
                (REDIRECT, answered),
                "{:?} {:?}",
                case.hook,
                case.kind
            );
            assert!(is_sound(ends.reversed(), &outcome.frame));
            let at = ends.transport();
            if sent[LINK + if ends.is_v4() { 9 } else { 6 }] == TCP {
                // The ports the other way round, what was said acknowledged, and no number of its own.
                assert_eq!(outcome.frame[at..at + 4], [&sent[at + 2..at + 4], &sent[at..at + 2]].concat());
                assert_eq!(
                    outcome.frame[at + 4..at + 12],
                    [0_u32.to_be_bytes(), 1001_u32.to_be_bytes()].concat()
                );
                assert_eq!(outcome.frame[at + 13], RST | ACK);
            } else {
                // *Communication administratively prohibited*.
                let (kind, code) = if ends.is_v4() { (3, 13) } else { (1, 1) };
                assert_eq!(outcome.frame, error(ends, kind, code, [0; 4], &sent));
            }
            let told: Vec<_> = node
                .events()
                .iter()
                .map(|e| (e.kind, e.reason, e.authentication, e.ifindex, e.direction))
                .collect();
            let reason = DropReason::AuthenticationRefused as u8;
            let expected =
                (EventKind::Drop as u8, reason, u32::from(REFUSAL), asking.ifindex, direction as u8);
            assert_eq!(told, [expected]);
            assert_eq!(node.hold_counts(), counts, "it does not wait again");
        }
        assert!(FAMILIES.iter().all(|family| node.connections(*family).is_empty()));
    }
}

/// A caller of a service hears it from the service, also where its call has waited.
#[test]
fn what_waited_for_a_backend_that_is_refused_is_answered_by_the_service() {
    use crate::service::{node_with_backend, vip};
    let mut node = node_with_backend(|family| family.pool(B.host));
    node.allow_all();
    node.set_hold(NIC);
    node.set(map::HOLD, 0, Hold { key: [3, 5], ..Hold::default() });
    node.require(A, Direction::Egress, B.identity, Ports::All);
    let waiting = FAMILIES.map(|family| {
        let call = family.from(A, vip(family));
        let sent = tcp(call, (4000, 80), SYN);
        let (_, frame) = node.waits_as(Hook::FromPod, HoldKind::Egress, &sent);
        (call, sent, frame)
    });
    node.refuse(A, Peer::Pod(B), 7, u64::MAX);
    for (call, sent, frame) in waiting {
        let back = node.goes_on_from_hold(&frame);
        assert_eq!(back, sent);
        let outcome = node.run("from_pod", A, Context { mark: MARK_RELEASED, ..RECEIVED }, &back);
        assert_eq!(outcome.verdict, REDIRECT);
        let at = call.transport();
        assert!(is_sound(call.reversed(), &outcome.frame), "from the VIP");
        assert_eq!(outcome.frame[at..at + 4], [80_u16.to_be_bytes(), 4000_u16.to_be_bytes()].concat());
        assert_eq!(outcome.frame[at + 13], RST | ACK);
    }
}
