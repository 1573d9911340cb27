//! What senders hear of refused packets, byte by byte.

use abi::{DropReason, MARK_ANSWER};

use super::*;
use crate::{
    answers::{error, expect_reset},
    frame::{is_sound, tcp_with},
    node::{REDIRECT, SHOT},
    run::run_summed,
};

/// Every reason for which this way is refused aloud, with a packet that meets it.
fn refusals(way: Way, talks: &[Talk], test: impl Fn(&Node, Family, Vec<u8>, DropReason)) {
    let (pod, direction) = way.asks[0];
    let mut refused = way.node();
    refused.refuse(pod, way.peer_of(pod), 5, FAR);
    let mut ended = way.proven();
    let mut nobody = way.node();
    nobody.require(pod, direction, 0, Ports::All);
    let is_local = matches!((way.opener, way.other), (Peer::Pod(_), Peer::Pod(_)));
    for (talk, family) in talks.iter().flat_map(|talk| FAMILIES.map(|family| (*talk, family))) {
        test(&refused, family, talk.first(way, family), DropReason::AuthenticationRefused);
        way.prove(&mut ended, MARK, EPOCH);
        talk.open(&mut ended, way, family);
        ended.withdraw(MARK);
        test(&ended, family, talk.next(way, family, false), DropReason::AuthenticationEnded);
        if !is_local {
            nobody.identify(family.peer(), 128, 2);
            test(&nobody, family, talk.first(way, family), DropReason::NoPrincipal);
        }
    }
}

#[track_caller]
fn told(way: Way, node: &Node, frame: &[u8], reason: DropReason) -> Vec<u8> {
    let outcome = way.run(node, false, frame);
    let mark = if way.hook(false).0 == "from_pod" { 0 } else { MARK_ANSWER };
    assert_eq!((outcome.verdict, outcome.mark), (REDIRECT, mark), "{reason:?}");
    outcome.frame
}

#[test]
fn tcp_is_reset() {
    for way in [WAYS[0], WAYS[1], WAYS[3], WAYS[4]] {
        refusals(way, &[Talk::Tcp], |node, family, frame, reason| {
            let back = way.ends(family, false).1.reversed();
            let answer = told(way, node, &frame, reason);
            assert!(is_sound(back, &answer));
            if reason == DropReason::AuthenticationEnded {
                let mut expected = tcp(back, (PORTS.1, PORTS.0), RST);
                expect_reset(&mut expected, back);
                assert_eq!(answer, expected);
                return;
            }
            // That of a SYN: acknowledged, and no number of its own.
            let at = back.transport();
            assert_eq!(answer[at + 4..at + 12], [0_u32.to_be_bytes(), 1001_u32.to_be_bytes()].concat());
            assert_eq!(answer[at + 13], RST | ACK);
        });
    }
}

/// With data, and whatever the flags: the number that the sender waits for.
#[test]
fn the_sender_of_data_is_reset_by_what_it_acknowledged() {
    let way = WAYS[3];
    let mut node = way.proven();
    for family in FAMILIES {
        Talk::Tcp.open(&mut node, way, family);
        node.withdraw(MARK);
        let (ends, back) = (way.ends(family, false).1, way.ends(family, false).1.reversed());
        for length in [1, 2, 3, 1000] {
            let frame = tcp_with(ends, PORTS, ACK, 64, &vec![0xa5; length]);
            let mut expected = tcp(back, (PORTS.1, PORTS.0), RST);
            expect_reset(&mut expected, back);
            assert_eq!(way.ends_with(&mut node, false, &frame).frame, expected);
        }
        way.prove(&mut node, MARK, EPOCH);
    }
}

/// *Communication administratively prohibited*.
#[test]
fn all_else_is_told_that_it_is_prohibited() {
    for way in [WAYS[0], WAYS[3], WAYS[4]] {
        refusals(way, &[Talk::Udp, Talk::Sctp, Talk::Echo], |node, family, frame, reason| {
            let ends = way.ends(family, false).1;
            let answer = told(way, node, &frame, reason);
            let (kind, code) = if ends.is_v4() { (3, 13) } else { (1, 1) };
            assert_eq!(answer, error(ends, kind, code, [0; 4], &frame), "{reason:?}");
            assert!(is_sound(ends.reversed(), &answer));
        });
    }
}

/// Who may wait, or come again, hears nothing.
#[test]
fn who_only_lacks_a_proof_hears_nothing() {
    for way in [WAYS[0], WAYS[3], WAYS[4]] {
        let node = way.node();
        for (family, talk) in FAMILIES.into_iter().flat_map(|family| TALKS.map(|talk| (family, talk))) {
            assert_eq!(way.run(&node, false, &talk.first(way, family)).verdict, SHOT);
        }
    }
}

/// A caller of a service knows nobody but the service.
#[test]
fn what_a_caller_of_a_service_hears_comes_from_the_service() {
    use crate::service::{node_with_backend, vip};
    let mut node = node_with_backend(|family| family.pool(B.host));
    node.allow_all();
    node.require(A, EGRESS, B.identity, Ports::All);
    for family in FAMILIES {
        node.prove(A, Peer::Pod(B), MARK, EPOCH);
        let call = family.from(A, vip(family));
        node.passes("from_pod", A, &tcp(call, PORTS, SYN));
        node.passes("from_pod", B, &tcp(family.between(B, A), (8080, 4000), SYN | ACK));
        node.withdraw(MARK);
        let outcome = node.drops_from(A, &tcp(call, PORTS, ACK), DropReason::AuthenticationEnded);
        let back = call.reversed();
        let mut expected = tcp(back, (PORTS.1, PORTS.0), RST);
        expect_reset(&mut expected, back);
        assert_eq!(outcome.frame, expected);
    }
}

/// A device's sum over the packet must be the RST's once it is one, or the stack drops it. (The kernel itself forgets it
/// with a change of length.)
#[test]
fn a_sum_that_a_device_made_stays_true() {
    refusals(WAYS[4], &[Talk::Tcp], |node, family, frame, reason| {
        match run_summed(node.program("to_pod"), A.ifindex, &frame) {
            Ok(verdict) => assert_eq!(verdict, REDIRECT, "{family:?} {reason:?}"),
            Err(nix::errno::Errno::EINVAL) => {} // before 6.16
            Err(error) => panic!("{family:?} {reason:?}: {error}"),
        }
    });
}
