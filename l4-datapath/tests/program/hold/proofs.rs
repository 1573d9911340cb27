//! What waits for a proof says whose it is, and goes on once that is there.

use super::*;
use crate::{
    auth::Peer,
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
