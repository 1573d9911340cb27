//! What may be said in a session, by whom, and in which turn.

use auth_agent::event::{Input, Output, ProofId};
use auth_agent::message::{Message, VERSION};
use mesh::auth::Refusal;

use crate::bench::{Bench, GRACE, NEXT, SESSION, clears, closes, db, endpoint, id};

#[test]
fn another_version_is_said_and_parted_from() {
    let mut bench = Bench::new();
    bench.give(Input::Connected { session: SESSION, node: "b".to_owned(), expiry: u64::MAX });
    assert!(closes(&bench.hear(Message::Hello { version: VERSION + 1, incarnation: 8 })));
    assert_eq!(bench.problem(), "it speaks another version of the protocol");
    assert!(!bench.machine.nodes()[0].connected);
}

#[test]
fn our_own_session_reflected_is_closed() {
    let mut bench = Bench::new();
    bench.give(Input::Connected { session: SESSION, node: "b".to_owned(), expiry: u64::MAX });
    assert!(closes(&bench.hear(Message::Hello { version: VERSION, incarnation: 7 })));
}

#[test]
fn a_session_with_a_node_that_no_plan_names_is_closed() {
    let mut bench = Bench::new();
    for node in ["x", "a"] {
        let outputs =
            bench.give(Input::Connected { session: SESSION, node: node.to_owned(), expiry: u64::MAX });
        assert_eq!(outputs, [Output::Close(SESSION)]);
    }
}

#[test]
fn messages_out_of_turn_close_the_session() {
    let breaches = [
        Message::Hello { version: VERSION, incarnation: 8 },
        Message::Complete,
        Message::Withdraw { number: 2, instance: 2, why: Refusal::Withdrawn },
        Message::Withdraw { number: 0, instance: 2, why: Refusal::Withdrawn },
        Message::Withdrawn { number: 1 },
        Message::Prove { proof: 2, initiator: id("db"), responder: id("web") },
        Message::Bind { bind: 0, initiator: 2, responder: 1 },
        Message::Echo { nonce: 1, withdrawal: 1, grace: GRACE },
    ];
    for breach in breaches {
        let mut bench = Bench::new();
        bench.connect(vec![db()]);
        assert!(closes(&bench.hear(breach.clone())), "{breach:?}");
        assert!(!bench.problem().is_empty());
    }
}

#[test]
fn a_replayed_number_closes_the_session() {
    let mut bench = Bench::new();
    bench.connect(vec![db()]);
    let bind = Message::Bind { bind: 1, initiator: 2, responder: 1 };
    assert!(!closes(&bench.hear(bind.clone())));
    assert!(closes(&bench.hear(bind)));
}

#[test]
fn an_accept_before_our_side_has_verified_closes_the_session() {
    let mut bench = Bench::new();
    bench.connect(vec![db()]);
    let begun = bench.echo();
    assert!(begun.iter().any(|output| matches!(output, Output::StartProof { .. })), "{begun:?}");
    assert!(closes(&bench.hear(Message::Accept { proof: 1 })));
}

#[test]
fn more_bytes_than_a_handshake_has_close_the_session() {
    let mut bench = Bench::new();
    bench.connect(vec![db()]);
    bench.hear(Message::Prove { proof: 1, initiator: id("db"), responder: id("web") });
    let part = Message::Handshake { ours: true, proof: 1, bytes: vec![0; 40_000] };
    assert!(!closes(&bench.hear(part.clone())));
    assert!(closes(&bench.hear(part)));
}

#[test]
fn an_echo_before_the_full_set_renews_no_lease_and_closes_that_session() {
    let (mut bench, ..) = Bench::marked();
    let opened = bench.give(Input::Connected { session: NEXT, node: "b".to_owned(), expiry: u64::MAX });
    let nonce = opened.iter().find_map(|output| match output {
        Output::Send(NEXT, Message::Probe { nonce }) => Some(*nonce),
        _ => None,
    });
    let echo = Message::Echo { nonce: nonce.expect("it probes"), withdrawal: 0, grace: GRACE };
    bench.give(Input::Received(NEXT, Message::Hello { version: VERSION, incarnation: 8 }));
    let outputs = bench.give(Input::Received(NEXT, echo));
    assert!(outputs.contains(&Output::Close(NEXT)), "{outputs:?}");
    assert!(!outputs.iter().any(|output| matches!(output, Output::Lease { .. })), "{outputs:?}");
}

#[test]
fn an_older_session_renews_and_proves_nothing_once_another_is_in_use() {
    let mut bench = Bench::new();
    bench.connect(vec![db()]);
    bench.echo();
    let proof = ProofId { session: SESSION, ours: true, number: 1 };
    bench.give(Input::ProofDone(proof, Ok(u64::MAX)));
    let replaced = bench.reconnect();
    assert!(closes(&replaced) && replaced.contains(&Output::DropProof(proof)), "{replaced:?}");
    for late in [Message::Accept { proof: 1 }, Message::Echo { nonce: 1, withdrawal: 0, grace: GRACE }] {
        assert_eq!(bench.hear(late), []);
    }
    assert_eq!(bench.machine.counters().proven, 0);
}

#[test]
fn what_was_proven_in_an_older_session_is_proven_again_in_the_one_in_use() {
    let (mut bench, number, ..) = Bench::marked();
    let replaced = bench.reconnect();
    assert_eq!(clears(&replaced, number), None, "the mark stands meanwhile");
    let again = ProofId { session: NEXT, ours: true, number: 1 };
    let begun = |output: &Output| matches!(output, Output::StartProof { proof, .. } if *proof == again);
    assert!(replaced.iter().any(begun), "{replaced:?}");
    let bind = Message::Bind { bind: 1, initiator: 2, responder: 1 };
    let outputs = bench.give(Input::Received(NEXT, bind));
    assert_eq!(outputs, [Output::Send(NEXT, Message::Unbound { bind: 1, why: Refusal::Expired })]);
}

#[test]
fn what_a_node_says_of_others_counts_for_nothing_and_is_shown() {
    // The ID of another account for its own instance; its instance at our address.
    let mut foreign = db();
    foreign.id = id("web");
    let mut ours = db();
    ours.addresses = endpoint("web", 300, 1, 1).addresses();
    let cases = [(foreign, "that has another ID"), (ours, "which is not its own")];
    for (in_full_set, (said, problem)) in
        [true, false].into_iter().flat_map(|at| cases.clone().map(|it| (at, it)))
    {
        let mut bench = Bench::new();
        bench.connect(if in_full_set { vec![said.clone()] } else { vec![] });
        if !in_full_set {
            bench.hear(Message::Attest(vec![said]));
        }
        bench.echo();
        assert!(bench.problem().contains(problem), "{}", bench.problem());
        let prove = Message::Prove { proof: 1, initiator: id("db"), responder: id("web") };
        let outputs = bench.hear(prove);
        let refused = Message::Refuse { ours: false, proof: 1, why: Refusal::NotAttested };
        assert_eq!(outputs, [Output::Send(SESSION, refused)]);
        assert!(bench.machine.counters().refused[&Refusal::NotAttested] >= 1);
    }
}
