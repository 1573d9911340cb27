//! Packets that wait: what lets them go on, what has them refused, and how many may.

use std::sync::Arc;

use abi::HoldKind;
use auth_agent::event::{Input, Output, Packet, ProofId};
use mesh::auth::{InstanceName, Refusal};
use node_api::auth::PairState;

use crate::bench::{Bench, SECOND, SESSION, db, endpoint, plan};

/// Where a packet goes back to its hook to be refused.
fn back(outputs: &[Output], packet: u64) -> Option<usize> {
    outputs.iter().position(|output| *output == Output::Return(Packet(packet)))
}

/// Where the kernel is told to refuse a pair for this reason.
fn refused(outputs: &[Output], why: Refusal) -> Option<usize> {
    outputs.iter().position(|output| matches!(output, Output::Refuse { why: said, .. } if *said == why))
}

#[test]
fn packets_for_a_peer_that_is_not_there_are_refused_in_their_time_and_more_of_them_for_a_while() {
    let mut bench = Bench::new();
    bench.hold(1, HoldKind::Egress, [10, 0, 2, 2]);
    let early = bench.pass(SECOND * 8 / 10);
    assert_eq!(back(&early, 1), None, "a moment may change it");
    bench.hold(2, HoldKind::Egress, [10, 0, 2, 2]);
    let late = bench.pass(SECOND / 5);
    let why = Refusal::NodeUnreachable;
    let told = refused(&late, why).expect("the kernel is told");
    for packet in [1, 2] {
        assert!(back(&late, packet).is_some_and(|at| at > told), "what it is told comes first: {late:?}");
    }
    assert_eq!(bench.machine.counters().lost, [(why, 2)].into());
    let after = bench.pass(SECOND);
    assert!(after.iter().any(|output| matches!(output, Output::Forget(_))));
    let pair = &bench.machine.pairs()[0];
    assert_eq!((pair.state, pair.refusal), (PairState::Refused, Some(why)));
}

#[test]
fn a_packet_whose_proof_is_refused_goes_back_at_once_behind_the_refusal() {
    let mut bench = Bench::new();
    bench.connect(vec![db()]);
    bench.echo();
    bench.hold(1, HoldKind::Egress, [10, 0, 2, 2]);
    let proof = ProofId { session: SESSION, ours: true, number: 1 };
    let outputs = bench.give(Input::ProofDone(proof, Err(Refusal::WrongId)));
    let told = refused(&outputs, Refusal::WrongId).expect("the kernel is told");
    assert!(back(&outputs, 1).is_some_and(|at| at > told), "{outputs:?}");
    assert_eq!(bench.machine.counters().lost, [(Refusal::WrongId, 1)].into());
}

#[test]
fn a_pair_holds_no_more_packets_than_its_bound() {
    let mut bench = Bench::new();
    for packet in 0..64 {
        assert_eq!(back(&bench.hold(packet, HoldKind::Egress, [10, 0, 2, 2]), packet), None);
    }
    let outputs = bench.hold(64, HoldKind::Egress, [10, 0, 2, 2]);
    assert_eq!((back(&outputs, 64), refused(&outputs, Refusal::Overloaded)), (Some(0), None));
    assert_eq!(bench.machine.counters().lost, [(Refusal::Overloaded, 1)].into());
    assert_eq!(bench.machine.counters().held, 64);
}

#[test]
fn a_packet_to_nobody_waits_for_a_plan_and_goes_back_without_one() {
    let mut bench = Bench::new();
    bench.hold(1, HoldKind::PendingEgress, [10, 0, 2, 9]);
    let outputs = bench.pass(SECOND);
    assert!(back(&outputs, 1).is_some());
    assert!(!outputs.iter().any(|output| matches!(output, Output::Release(_) | Output::Refuse { .. })));
    assert_eq!(bench.machine.counters().lost, [(Refusal::UnknownPeer, 1)].into());
}

#[test]
fn a_pending_packet_goes_on_when_its_address_is_known_and_no_policy_asks() {
    let mut bench = Bench::new();
    bench.hold(1, HoldKind::PendingEgress, [10, 0, 2, 9]);
    let mut next = plan();
    let name = InstanceName { node: "b".to_owned(), instance: 9 };
    next.remotes.insert(name, endpoint("spare", 302, 2, 9));
    let outputs = bench.give(Input::Plan(2, Arc::new(next)));
    assert!(outputs.contains(&Output::Release(Packet(1))));
}

#[test]
fn a_packet_is_not_passed_to_who_gets_its_address_meanwhile() {
    let mut bench = Bench::new();
    bench.hold(1, HoldKind::Egress, [10, 0, 2, 2]);
    let mut next = plan();
    let gone =
        next.remotes.remove(&InstanceName { node: "b".to_owned(), instance: 2 }).expect("it was there");
    next.remotes.insert(InstanceName { node: "b".to_owned(), instance: 4 }, gone);
    let outputs = bench.give(Input::Plan(2, Arc::new(next)));
    assert!(outputs.contains(&Output::Lose(Packet(1))) && back(&outputs, 1).is_none(), "{outputs:?}");
    assert_eq!(bench.machine.counters().lost, [(Refusal::Withdrawn, 1)].into());
}
