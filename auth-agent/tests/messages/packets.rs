//! Packets that wait: what lets them go on, what has them refused, and how many may.

use std::sync::Arc;

use abi::HoldKind;
use auth_agent::event::{Failure, Input, Output, Packet, ProofId};
use auth_agent::message::Message;
use mesh::auth::{Blame, InstanceName, Refusal, Side};
use node_api::auth::{FromAuthAgent, PairState, UnprovenPair};

use crate::bench::{Bench, SECOND, SESSION, db, endpoint, id, plan};

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
    let failure =
        Failure { why: Refusal::WrongId, side: Some(Side::Peer), shown: Some(id("spare")), said: None };
    let outputs = bench.give(Input::ProofDone(proof, Err(failure)));
    let told = refused(&outputs, Refusal::WrongId).expect("the kernel is told");
    assert!(back(&outputs, 1).is_some_and(|at| at > told), "{outputs:?}");
    let counters = bench.machine.counters();
    assert_eq!(counters.lost, [(Refusal::WrongId, 1)].into());
    assert_eq!(counters.refused, [(Refusal::WrongId, 1)].into());
    // Whose it was, and what it showed: to the kernel as far as a byte goes, to the agent and to people in full.
    assert!(matches!(&outputs[told], Output::Refuse { side: Some(Side::Peer), keys, .. } if keys.len() == 2));
    let blame = Blame { expected: id("db"), shown: Some(id("spare")), said: None };
    let explained = UnprovenPair {
        instance: 1,
        remote: endpoint("db", 301, 2, 2).addresses().to_vec(),
        why: Refusal::WrongId,
        blame: Some(blame),
    };
    assert_eq!(outputs[0], Output::Tell(FromAuthAgent::Unproven(vec![explained])), "before anything else");
    let detail = bench.machine.pairs()[0].detail.clone().expect("it is refused");
    let expected = "node b: the certificate shows another SPIFFE ID: \
                    spiffe://test.example/ns/ns/sa/db, it shows spiffe://test.example/ns/ns/sa/spare";
    assert_eq!(detail, expected);
}

#[test]
fn what_the_peers_node_refuses_is_told_with_its_reason() {
    let mut bench = Bench::new();
    bench.connect(vec![db()]);
    bench.echo();
    bench.hold(1, HoldKind::Egress, [10, 0, 2, 2]);
    let refuse = Message::Refuse { ours: false, proof: 1, why: Refusal::Expired };
    let outputs = bench.hear(refuse);
    let told = refused(&outputs, Refusal::RefusedByPeer).expect("the kernel is told");
    assert!(matches!(outputs[told], Output::Refuse { side: Some(Side::Own), .. }), "it is ours");
    let detail = bench.machine.pairs()[0].detail.clone().expect("it is refused");
    let expected = "spiffe://test.example/ns/ns/sa/web, since the certificate has expired";
    assert!(detail.ends_with(expected), "{detail}");
}

#[test]
fn of_two_workloads_of_one_node_each_end_is_told_whose_certificate_it_was() {
    let mut here = plan();
    here.endpoints.insert(4, endpoint("db", 301, 1, 4));
    let mut bench = Bench::with(here);
    bench.give(Input::Certificate(id("db"), Ok(u64::MAX)));
    bench.hold(1, HoldKind::Egress, [10, 0, 1, 4]);
    let failure = Failure { why: Refusal::Expired, side: Some(Side::Own), shown: Some(id("db")), said: None };
    let (a, b) = (id("db"), id("web"));
    let outputs = bench.give(Input::LocalProofDone { a, b, result: Err(failure) });
    let mut sides: Vec<_> = outputs
        .iter()
        .filter_map(|output| match output {
            Output::Refuse { keys, side, .. } => Some((keys[0].instance, *side)),
            _ => None,
        })
        .collect();
    sides.sort_by_key(|(instance, _)| *instance);
    assert_eq!(sides, [(1, Some(Side::Peer)), (4, Some(Side::Own))], "web is 1, db is 4");
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
