//! Packets that wait: what lets them go on, what loses them, and how many may.

use std::sync::Arc;

use abi::HoldKind;
use auth_agent::event::{Input, Output, Packet};
use mesh::auth::{InstanceName, Refusal};
use node_api::auth::PairState;

use crate::bench::{Bench, SECOND, endpoint, plan};

#[test]
fn packets_for_a_peer_that_is_not_there_are_lost_in_their_time_and_refused_for_a_while() {
    let mut bench = Bench::new();
    bench.hold(1, HoldKind::Egress, [10, 0, 2, 2]);
    let early = bench.pass(SECOND * 9 / 10);
    assert!(!early.contains(&Output::Lose(Packet(1))), "a moment may change it");
    let late = bench.pass(SECOND / 5);
    assert!(late.contains(&Output::Lose(Packet(1))));
    let why = Refusal::NodeUnreachable;
    assert!(late.iter().any(|output| matches!(output, Output::Refuse { why: said, .. } if *said == why)));
    let after = bench.pass(SECOND);
    assert!(after.iter().any(|output| matches!(output, Output::Forget(_))));
    let pair = &bench.machine.pairs()[0];
    assert_eq!((pair.state, pair.refusal), (PairState::Refused, Some(why)));
}

#[test]
fn a_pair_holds_no_more_packets_than_its_bound() {
    let mut bench = Bench::new();
    for packet in 0..64 {
        assert!(!bench.hold(packet, HoldKind::Egress, [10, 0, 2, 2]).contains(&Output::Lose(Packet(packet))));
    }
    assert!(bench.hold(64, HoldKind::Egress, [10, 0, 2, 2]).contains(&Output::Lose(Packet(64))));
    assert_eq!(bench.machine.counters().held, 64);
}

#[test]
fn a_packet_to_nobody_waits_for_a_plan_and_is_lost_without_one() {
    let mut bench = Bench::new();
    bench.hold(1, HoldKind::PendingEgress, [10, 0, 2, 9]);
    let outputs = bench.pass(SECOND);
    assert!(outputs.contains(&Output::Lose(Packet(1))));
    assert!(!outputs.iter().any(|output| matches!(output, Output::Release(_) | Output::Refuse { .. })));
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
    assert!(bench.give(Input::Plan(2, Arc::new(next))).contains(&Output::Lose(Packet(1))));
}
