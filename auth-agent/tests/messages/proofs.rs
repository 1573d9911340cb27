//! Proofs: who begins them, for whom, ahead or asked for, and when they count.

use std::sync::Arc;

use abi::HoldKind;
use auth_agent::event::{Input, Output, Packet, ProofId};
use auth_agent::machine::Settings;
use auth_agent::message::{Attestation, Message};
use mesh::auth::{AuthPlan, IdentityPair, Refusal};
use mesh::identity::Identity;
use node_api::auth::{PairState, Step};

use crate::bench::{Bench, SECOND, SESSION, begins, db, endpoint, id, plan, set, settled};

#[test]
fn a_bind_without_a_proof_marks_nothing() {
    let mut bench = Bench::new();
    bench.connect(vec![db()]);
    bench.echo();
    let outputs = bench.hear(Message::Bind { bind: 1, initiator: 2, responder: 1 });
    assert_eq!(outputs, [Output::Send(SESSION, Message::Unbound { bind: 1, why: Refusal::Expired })]);
    let refusals = bench.machine.counters().refusals;
    assert_eq!(refusals[&Step::Bind], [(Refusal::Expired, 1)].into());
}

#[test]
fn a_peer_proves_only_ids_that_are_here_and_only_where_a_policy_asks() {
    let mut bench = Bench::new();
    let spare = endpoint("spare", 302, 2, 3);
    let spare = Attestation { instance: 3, addresses: spare.addresses(), id: spare.id };
    bench.connect(vec![db(), spare]);
    let cases = [
        ("db", "db", Refusal::NoCertificate),
        ("spare", "web", Refusal::NotRequired),
        ("web", "web", Refusal::UnknownPeer),
    ];
    for (proof, (theirs, ours, why)) in (1..).zip(cases) {
        let outputs = bench.hear(Message::Prove { proof, initiator: id(theirs), responder: id(ours) });
        assert_eq!(
            outputs,
            [Output::Send(SESSION, Message::Refuse { ours: false, proof, why })],
            "{theirs} {ours}"
        );
        assert_eq!(bench.machine.counters().refused.get(&why), Some(&1));
    }
}

#[test]
fn a_flood_of_handshakes_is_refused_beyond_its_bound() {
    let mut bench = Bench::new();
    bench.connect(vec![db()]);
    let mut begun = 0;
    for proof in 1..=2_000 {
        let outputs = bench.hear(Message::Prove { proof, initiator: id("db"), responder: id("web") });
        begun += outputs.iter().filter(|output| matches!(output, Output::StartProof { .. })).count();
    }
    assert!((1..=Settings::new(0).proofs_per_peer).contains(&begun), "{begun}");
    let refused = bench.machine.counters().refused.get(&Refusal::Overloaded).copied();
    assert_eq!(refused, Some(2_000 - begun as u64), "a flood shows at its victim");
    // Those that hold their slots lose them.
    let outputs = bench.pass(6 * SECOND);
    let dropped = outputs.iter().filter(|output| matches!(output, Output::DropProof(_))).count();
    assert!(dropped >= begun);
}

#[test]
fn with_nothing_ahead_a_packet_alone_asks_and_every_plan_is_settled_at_once() {
    let mut bench = Bench::with(AuthPlan { ahead: 0, ..plan() });
    bench.connect(vec![db()]);
    assert_eq!(begins(&bench.echo()) + begins(&bench.pass(500_000_000)), 0);
    let outputs = bench.give(Input::Plan(2, Arc::new(AuthPlan { ahead: 0, grace: 9_000, ..plan() })));
    assert!(settled(&outputs, 2), "{outputs:?}");
    assert_eq!(begins(&bench.hold(1, HoldKind::Egress, [10, 0, 2, 2])), 1);
    let bound = bench.prove(1_000);
    assert!(bound.iter().any(|output| matches!(output, Output::Send(_, Message::Bind { .. }))), "{bound:?}");
    let outputs = bench.hear(Message::Bound { bind: 1 });
    assert!(outputs.contains(&Output::Release(Packet(1))), "{outputs:?}");
}

/// Without a packet to wait, as where there is no room for one.
#[test]
fn a_call_asks_as_a_packet_does_and_a_refusal_is_kept_for_its_packets() {
    let call = |to: [u8; 4]| Input::Asked {
        kind: HoldKind::Egress,
        source: [10, 0, 1, 1].into(),
        destination: to.into(),
    };
    let mut bench = Bench::with(AuthPlan { ahead: 0, ..plan() });
    bench.connect(vec![db()]);
    bench.echo();
    assert_eq!(bench.give(call([10, 0, 2, 9])), [], "nobody is there");
    assert_eq!(begins(&bench.give(call([10, 0, 2, 2]))), 1);
    assert_eq!(begins(&bench.give(call([10, 0, 2, 2]))), 0, "that is under way");
    bench.prove(1_000);
    set(bench.hear(Message::Bound { bind: 1 }));
    assert_eq!(bench.give(call([10, 0, 2, 2])), [], "it is proven");

    let mut bench = Bench::with(AuthPlan { ahead: 0, ..plan() });
    bench.connect(vec![db()]);
    bench.echo();
    bench.give(call([10, 0, 2, 2]));
    let proof = ProofId { session: SESSION, ours: true, number: 1 };
    let failed = bench.give(Input::ProofDone(proof, Err(Refusal::Expired.into())));
    let refuses = |outputs: &[Output]| {
        outputs.iter().any(|output| matches!(output, Output::Refuse { why: Refusal::Expired, .. }))
    };
    assert!(refuses(&failed), "{failed:?}");
    assert_eq!(bench.machine.counters().held, 0);
}

#[test]
fn how_many_pairs_are_proven_ahead_is_what_the_latest_plan_says() {
    let identity = |number| Identity::new(number).expect("not zero");
    let both = |ahead| {
        let pairs = [301, 302].map(|other| IdentityPair::new(identity(300), identity(other))).into();
        AuthPlan { ahead, pairs, ..plan() }
    };
    let spare = endpoint("spare", 302, 2, 3);
    let spare = Attestation { instance: 3, addresses: spare.addresses(), id: spare.id };
    for (before, after, expected) in [(20_000, 1, 1), (20_000, 0, 0), (0, 2, 2), (1, 2, 2)] {
        let mut bench = Bench::with(both(before));
        // Nothing has begun: the session comes later.
        let outputs = bench.give(Input::Plan(2, Arc::new(both(after))));
        assert_eq!(settled(&outputs, 2), after == 0);
        assert_eq!(bench.machine.pairs().len(), expected, "{before} to {after}");
        bench.connect(vec![db(), spare.clone()]);
        assert_eq!(begins(&bench.echo()), expected, "{before} to {after}");
    }
}

#[test]
fn within_the_bound_those_come_first_who_had_packets_wait_most() {
    let identity = |number| Identity::new(number).expect("not zero");
    let pairs = [301, 302].map(|other| IdentityPair::new(identity(300), identity(other)));
    let both = |grace| AuthPlan { ahead: 1, pairs: pairs.into(), grace, ..plan() };
    let kept =
        |bench: &Bench| bench.machine.pairs().iter().map(|pair| pair.remote.instance).collect::<Vec<_>>();
    let mut bench = Bench::with(both(10_000));
    assert_eq!(kept(&bench), [2]);
    bench.hold(1, HoldKind::Egress, [10, 0, 2, 3]);
    bench.pass(3 * SECOND);
    bench.give(Input::Plan(2, Arc::new(both(9_000))));
    assert_eq!(kept(&bench), [3]);
    bench.hold(2, HoldKind::Egress, [10, 0, 2, 2]);
    bench.hold(3, HoldKind::Egress, [10, 0, 2, 2]);
    bench.pass(3 * SECOND);
    bench.give(Input::Plan(3, Arc::new(both(10_000))));
    assert_eq!(kept(&bench), [2]);
}

#[test]
fn the_time_to_a_mark_is_counted_from_the_packet_or_from_the_plan() {
    let mut bench = Bench::new();
    bench.connect(vec![db()]);
    bench.echo();
    bench.prove(2_000_000);
    bench.hear(Message::Bound { bind: 1 });
    let counters = bench.machine.counters();
    let times = |times: &node_api::auth::Times| times.counts.values().sum::<u64>();
    assert_eq!((times(&counters.ahead), times(&counters.asked)), (1, 0));
    assert!(counters.ahead.sum >= 2_000, "since the plan: {}", counters.ahead.sum);

    let mut bench = Bench::with(AuthPlan { ahead: 0, ..plan() });
    bench.connect(vec![db()]);
    bench.echo();
    bench.pass(SECOND / 2);
    bench.hold(1, HoldKind::Egress, [10, 0, 2, 2]);
    bench.prove(2_000_000);
    bench.hear(Message::Bound { bind: 1 });
    let counters = bench.machine.counters();
    assert_eq!((times(&counters.ahead), times(&counters.asked)), (0, 1));
    assert!((2_000..3_000).contains(&counters.asked.sum), "since the packet: {}", counters.asked.sum);
}

#[test]
fn how_long_a_handshake_took_is_told_with_its_pair() {
    let mut bench = Bench::new();
    bench.connect(vec![db()]);
    assert_eq!(begins(&bench.echo()), 1);
    assert_eq!(bench.machine.pairs()[0].proof_micros, None);
    bench.prove(1_871_000);
    assert_eq!(bench.machine.pairs()[0].proof_micros, Some(1_873), "until it was accepted");
    // In memory, of two workloads of this node.
    let mut here = plan();
    here.endpoints.insert(4, endpoint("db", 301, 1, 4));
    let mut bench = Bench::with(here);
    let asked = bench.give(Input::Certificate(id("db"), Ok(u64::MAX)));
    assert!(asked.contains(&Output::ProveLocally(id("db"), id("web"))), "{asked:?}");
    bench.now += 499_000;
    bench.give(Input::LocalProofDone { a: id("db"), b: id("web"), result: Ok(u64::MAX) });
    let pairs = bench.machine.pairs();
    let beside = pairs.iter().find(|pair| pair.remote.node == "a").expect("it is kept");
    assert_eq!((beside.state, beside.proof_micros), (PairState::Proven, Some(500)));
}

#[test]
fn what_we_have_verified_counts_only_when_the_other_side_has_accepted_us() {
    let mut bench = Bench::new();
    bench.connect(vec![db()]);
    bench.echo();
    let proof = ProofId { session: SESSION, ours: true, number: 1 };
    // The mark is asked for without waiting for that.
    let bind = Message::Bind { bind: 1, initiator: 1, responder: 2 };
    assert_eq!(bench.give(Input::ProofDone(proof, Ok(u64::MAX))), [Output::Send(SESSION, bind)]);
    let outputs = bench.hear(Message::Bind { bind: 1, initiator: 2, responder: 1 });
    assert_eq!(outputs, [Output::Send(SESSION, Message::Unbound { bind: 1, why: Refusal::Expired })]);
    let outputs = bench.hear(Message::Accept { proof: 1 });
    assert!(!outputs.iter().any(|output| matches!(output, Output::SetMark { .. })), "{outputs:?}");
    set(bench.hear(Message::Bound { bind: 1 }));
}

#[test]
fn a_word_that_the_other_side_has_marked_is_nothing_before_it_has_accepted() {
    let mut bench = Bench::new();
    bench.connect(vec![db()]);
    bench.echo();
    bench.give(Input::ProofDone(ProofId { session: SESSION, ours: true, number: 1 }, Ok(u64::MAX)));
    let mut outputs = bench.hear(Message::Bound { bind: 1 });
    outputs.extend(bench.hear(Message::Refuse { ours: false, proof: 1, why: Refusal::Untrusted }));
    assert!(!outputs.iter().any(|output| matches!(output, Output::SetMark { .. })), "{outputs:?}");
}

#[test]
fn what_is_to_be_marked_is_answered_when_the_handshake_that_it_follows_has_ended() {
    let begun = || {
        let mut bench = Bench::new();
        bench.connect(vec![db()]);
        bench.echo();
        bench.hear(Message::Prove { proof: 1, initiator: id("db"), responder: id("web") });
        let outputs = bench.hear(Message::Bind { bind: 1, initiator: 2, responder: 1 });
        assert_eq!(outputs, [], "not proven yet");
        bench
    };
    let proof = ProofId { session: SESSION, ours: false, number: 1 };
    let mut bench = begun();
    let outputs = bench.give(Input::ProofDone(proof, Ok(bench.now + SECOND)));
    let place = |wanted: &dyn Fn(&Output) -> bool| outputs.iter().position(wanted).expect("it is there");
    let accept = place(&|output| *output == Output::Send(SESSION, Message::Accept { proof: 1 }));
    let mark = place(&|output| matches!(output, Output::SetMark { .. }));
    let bound = place(&|output| *output == Output::Send(SESSION, Message::Bound { bind: 1 }));
    assert!(accept < bound && mark < bound, "{outputs:?}");
    let mut bench = begun();
    let outputs = bench.give(Input::ProofDone(proof, Err(Refusal::Untrusted.into())));
    let why = Refusal::Untrusted;
    let refused = Output::Send(SESSION, Message::Refuse { ours: false, proof: 1, why });
    assert_eq!(outputs, [refused, Output::Send(SESSION, Message::Unbound { bind: 1, why })]);
    // A flood of them finds no more room than a handshake has.
    let mut bench = begun();
    let most = Settings::new(0).binds_at_once as u64;
    for bind in 2..=most {
        assert_eq!(bench.hear(Message::Bind { bind, initiator: 2, responder: 1 }), []);
    }
    let outputs = bench.hear(Message::Bind { bind: most + 1, initiator: 2, responder: 1 });
    let refused = Message::Unbound { bind: most + 1, why: Refusal::Overloaded };
    assert_eq!(outputs, [Output::Send(SESSION, refused)]);
}

#[test]
fn an_instance_that_is_attested_with_another_id_is_neither_proven_nor_marked() {
    let mut foreign = db();
    foreign.id = id("other");
    let mut bench = Bench::new();
    bench.connect(vec![foreign]);
    assert_eq!(begins(&bench.echo()), 0);
    assert_eq!(begins(&bench.hold(1, HoldKind::Egress, [10, 0, 2, 2])), 0);
    let outputs = bench.hear(Message::Bind { bind: 1, initiator: 2, responder: 1 });
    let refused = Message::Unbound { bind: 1, why: Refusal::NotAttested };
    assert_eq!(outputs, [Output::Send(SESSION, refused)]);
}

/// Fault 9. Every workload of a node may call every other, and all certificates end at one moment.
#[test]
fn a_thousand_pairs_are_proven_at_a_bounded_rate_and_renewed_apart_from_one_another() {
    const COUNT: u8 = 45;
    const HOUR: u64 = 3_600 * SECOND;
    let name = |number: u8| format!("w{number}");
    let identity = |number: u8| Identity::new(400 + u32::from(number)).expect("not zero");
    let mut plan = plan();
    let all = |number| (u64::from(number), endpoint(&name(number), 400 + u32::from(number), 1, number));
    plan.endpoints = (1..=COUNT).map(all).collect();
    let others = |one| (1..one).map(move |other| IdentityPair::new(identity(one), identity(other)));
    plan.pairs = (1..=COUNT).flat_map(others).collect();
    let pairs = plan.pairs.len();
    let mut bench = Bench::with(plan);
    let mut outputs: Vec<_> = (1..=COUNT)
        .flat_map(|number| bench.give(Input::Certificate(id(&name(number)), Ok(bench.now + 2 * HOUR))))
        .collect();
    let mut begun = Vec::new();
    for _ in 0..1_850 {
        let mut in_this_second = 0;
        let mut at = 0;
        while at < outputs.len() {
            if let Output::ProveLocally(a, b) = outputs[at].clone() {
                in_this_second += 1;
                let result = Ok(bench.now + HOUR);
                outputs.extend(bench.give(Input::LocalProofDone { a, b, result }));
            }
            at += 1;
        }
        begun.push(in_this_second);
        outputs = bench.pass(SECOND);
    }
    let sum = |seconds: &[usize]| seconds.iter().sum::<usize>();
    assert_eq!(bench.machine.counters().marks, pairs as u64);
    assert!(begun[..10].iter().all(|count| *count <= 220), "two hundred a second: {:?}", &begun[..10]);
    assert_eq!((sum(&begun[..10]), sum(&begun[10..1_300])), (pairs, 0));
    assert_eq!(sum(&begun[1_300..]), pairs, "each once, before half of the time is over");
    let most = begun[1_300..].iter().max();
    assert!(most.is_some_and(|most| *most <= 20), "at once: {most:?}");
}
