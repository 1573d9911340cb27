//! One machine by itself: what it makes of what a peer, a plan and packets say.
#![allow(clippy::expect_used, reason = "what a test is made of is right, or the test is wrong")]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use abi::{HoldKind, Mark, PairKey};
use auth_agent::event::{Input, Output, Packet, ProofId, SessionId, Time};
use auth_agent::machine::{Adopted, Machine, Settings};
use auth_agent::message::{Attestation, Message, VERSION};
use mesh::auth::{AuthEndpoint, AuthNode, AuthPlan, IdentityPair, InstanceName, Refusal};
use mesh::identity::Identity;
use mesh::spiffe::{SpiffeId, TrustDomain};
use node_api::auth::{FromAuthAgent, PairState};

const SECOND: Time = 1_000_000_000;
const SESSION: SessionId = SessionId(1);
const NEXT: SessionId = SessionId(2);

/// Milliseconds; of both nodes.
const GRACE: u64 = 10_000;

fn domain() -> TrustDomain {
    "test.example".parse().expect("a trust domain")
}

fn id(account: &str) -> SpiffeId {
    domain().workload("ns", account).expect("an ID")
}

fn endpoint(account: &str, identity: u32, node: u8, octet: u8) -> AuthEndpoint {
    AuthEndpoint {
        workload: format!("ns/{account}").parse().expect("a workload"),
        id: id(account),
        identity: Identity::new(identity).expect("not zero"),
        ipv4: [10, 0, node, octet].into(),
        ipv6: [0xfd00, 0, 0, u16::from(node), 0, 0, 0, u16::from(octet)].into(),
    }
}

/// Node `a` has `web` (instance 1), node `b` has `db` (instance 2) and `spare` (instance 3); web and db are required.
fn plan() -> AuthPlan {
    let node = |name: &str| AuthNode {
        addresses: vec![([192, 0, 2, 1], 4250).into()],
        id: domain().node(name).expect("an ID"),
    };
    let of_b = |instance| InstanceName { node: "b".to_owned(), instance };
    let identity = |number| Identity::new(number).expect("not zero");
    AuthPlan {
        trust_domain: domain(),
        node: "a".to_owned(),
        grace: GRACE,
        ahead: 20_000,
        nodes: BTreeMap::from([("b".to_owned(), node("b")), ("c".to_owned(), node("c"))]),
        endpoints: BTreeMap::from([(1, endpoint("web", 300, 1, 1))]),
        remotes: BTreeMap::from([
            (of_b(2), endpoint("db", 301, 2, 2)),
            (of_b(3), endpoint("spare", 302, 2, 3)),
        ]),
        pairs: [IdentityPair::new(identity(300), identity(301))].into(),
    }
}

/// A machine of node `a`, and the time.
struct Bench {
    machine: Machine,
    now: Time,
}

impl Bench {
    fn new() -> Self {
        Self::with(plan())
    }

    fn with(plan: AuthPlan) -> Self {
        let now = 100 * SECOND;
        let mut bench = Self { machine: Machine::new(Settings::new(7), Adopted::default(), now), now };
        bench.give(Input::Tick);
        bench.give(Input::Plan(1, Arc::new(plan)));
        bench.give(Input::Certificate(id("web"), Ok(now + 3_600 * SECOND)));
        bench
    }

    fn give(&mut self, input: Input) -> Vec<Output> {
        self.now += 1_000;
        self.machine.handle(self.now, input)
    }

    fn hear(&mut self, message: Message) -> Vec<Output> {
        self.give(Input::Received(SESSION, message))
    }

    /// A session with `b`, which attests what is told; its lease is good.
    fn connect(&mut self, attested: Vec<Attestation>) {
        let expiry = self.now + 3_600 * SECOND;
        self.give(Input::Connected { session: SESSION, node: "b".to_owned(), expiry });
        self.hear(Message::Hello { version: VERSION, incarnation: 8 });
        self.hear(Message::Attest(attested));
        self.hear(Message::Complete);
    }

    /// The answer to the probe that went with the greeting.
    fn echo(&mut self) -> Vec<Output> {
        self.hear(Message::Echo { nonce: 1, withdrawal: 0, grace: GRACE })
    }

    /// The handshake that this node has begun comes to its end, so much later.
    fn prove(&mut self, after: Time) -> Vec<Output> {
        let proof = ProofId { session: SESSION, ours: true, number: 1 };
        self.now += after;
        self.give(Input::ProofDone(proof, Ok(self.now + 3_600 * SECOND)));
        self.hear(Message::Accept { proof: 1 })
    }

    /// `web` and `db` are proven, and marked; the mark is what comes of it.
    fn marked() -> (Self, u32, Mark, Vec<PairKey>) {
        let mut bench = Self::new();
        bench.connect(vec![db()]);
        bench.echo();
        bench.prove(0);
        let (number, mark, keys) = set(bench.hear(Message::Bound { bind: 1 }));
        (bench, number, mark, keys)
    }

    /// Another session with `b` takes the first one's place; the first does not end by itself.
    fn reconnect(&mut self) -> Vec<Output> {
        let mut all = self.give(Input::Connected { session: NEXT, node: "b".to_owned(), expiry: u64::MAX });
        for message in [
            Message::Hello { version: VERSION, incarnation: 8 },
            Message::Attest(vec![db()]),
            Message::Complete,
        ] {
            all.extend(self.give(Input::Received(NEXT, message)));
        }
        all
    }

    fn problem(&self) -> String {
        let nodes = self.machine.nodes();
        nodes.into_iter().find(|node| node.name == "b").and_then(|node| node.problem).unwrap_or_default()
    }

    fn hold(&mut self, packet: u64, kind: HoldKind, to: [u8; 4]) -> Vec<Output> {
        let (source, destination) = (IpAddr::from([10, 0, 1, 1]), IpAddr::from(to));
        self.give(Input::Held { packet: Packet(packet), kind, source, destination })
    }

    /// Passes time, tick by tick as it asks.
    fn pass(&mut self, time: Time) -> Vec<Output> {
        let end = self.now + time;
        let mut all = Vec::new();
        while let Some(at) = self.machine.next_wake().filter(|at| *at <= end) {
            self.now = at.max(self.now);
            all.extend(self.machine.handle(self.now, Input::Tick));
        }
        self.now = end;
        all
    }
}

fn db() -> Attestation {
    let end = endpoint("db", 301, 2, 2);
    Attestation { instance: 2, addresses: end.addresses(), id: end.id }
}

fn closes(outputs: &[Output]) -> bool {
    outputs.contains(&Output::Close(SESSION))
}

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
fn a_lease_runs_from_the_sending_of_the_probe_not_from_its_echo() {
    let mut bench = Bench::new();
    bench.connect(vec![db()]);
    let connected = bench.now;
    bench.pass(2 * SECOND);
    let leases: Vec<Time> = bench
        .echo()
        .into_iter()
        .filter_map(|output| match output {
            Output::Lease { number: 1.., end } => Some(end),
            _ => None,
        })
        .collect();
    assert!(leases.len() == 1 && leases[0] <= connected + 10 * SECOND, "{leases:?} after {connected}");
    assert!(!bench.echo().iter().any(|output| matches!(output, Output::Lease { .. })), "an echo counts once");
}

#[test]
fn a_bind_without_a_proof_marks_nothing() {
    let mut bench = Bench::new();
    bench.connect(vec![db()]);
    bench.echo();
    let outputs = bench.hear(Message::Bind { bind: 1, initiator: 2, responder: 1 });
    assert_eq!(outputs, [Output::Send(SESSION, Message::Unbound { bind: 1, why: Refusal::Expired })]);
}

#[test]
fn what_a_node_says_of_others_counts_for_nothing_and_is_shown() {
    // The ID of another account for its own instance; its instance at our address.
    let mut foreign = db();
    foreign.id = id("web");
    let mut ours = db();
    ours.addresses = endpoint("web", 300, 1, 1).addresses();
    for (said, problem) in [(foreign, "that has another ID"), (ours, "which is not its own")] {
        let mut bench = Bench::new();
        bench.connect(vec![]);
        bench.hear(Message::Attest(vec![said]));
        bench.echo();
        assert!(bench.problem().contains(problem), "{}", bench.problem());
        let prove = Message::Prove { proof: 1, initiator: id("db"), responder: id("web") };
        let outputs = bench.hear(prove);
        let refused = Message::Refuse { ours: false, proof: 1, why: Refusal::NotAttested };
        assert_eq!(outputs, [Output::Send(SESSION, refused)]);
        assert!(bench.machine.counters().refused[&Refusal::NotAttested] >= 1);
    }
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
    // Those that hold their slots lose them.
    let outputs = bench.pass(6 * SECOND);
    let dropped = outputs.iter().filter(|output| matches!(output, Output::DropProof(_))).count();
    assert!(dropped >= begun);
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

#[test]
fn marks_and_keys_that_no_plan_explains_are_cleared_at_the_first() {
    let key = abi::PairKey { remote: abi::Address::v4([10, 9, 9, 9]), identity: 300, instance: 1 };
    let mark = abi::Mark { epoch: 41, expiry: u64::MAX, lease: 3, instances: [1, 0], ..Default::default() };
    let adopted = Adopted {
        last_epoch: 40,
        marks: BTreeMap::from([(5, mark)]),
        keys: vec![(key, 5)],
        leases: BTreeMap::from([(3, u64::MAX)]),
    };
    let mut machine = Machine::new(Settings::new(1), adopted, 0);
    let outputs = machine.handle(1, Input::Plan(1, Arc::new(plan())));
    assert!(outputs.contains(&Output::ClearMark { number: 5, keys: vec![key] }));
    assert!(outputs.contains(&Output::Lease { number: 3, end: 0 }));
}

/// The mark that is set.
fn set(outputs: Vec<Output>) -> (u32, Mark, Vec<PairKey>) {
    let set = outputs.into_iter().find_map(|output| match output {
        Output::SetMark { number, mark, keys } => Some((number, mark, keys)),
        _ => None,
    });
    set.expect("a mark is set")
}

fn clears(outputs: &[Output], wanted: u32) -> Option<usize> {
    outputs.iter().position(|output| matches!(output, Output::ClearMark { number, .. } if *number == wanted))
}

fn begins(outputs: &[Output]) -> usize {
    outputs.iter().filter(|output| matches!(output, Output::StartProof { .. })).count()
}

fn settled(outputs: &[Output], number: u64) -> bool {
    outputs.contains(&Output::Tell(FromAuthAgent::Settled { number }))
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
    assert_eq!(bench.give(Input::ProofDone(proof, Ok(u64::MAX))), []);
    let outputs = bench.hear(Message::Bind { bind: 1, initiator: 2, responder: 1 });
    assert_eq!(outputs, [Output::Send(SESSION, Message::Unbound { bind: 1, why: Refusal::Expired })]);
    let outputs = bench.hear(Message::Accept { proof: 1 });
    let bind = Message::Bind { bind: 1, initiator: 1, responder: 2 };
    assert!(outputs.contains(&Output::Send(SESSION, bind)), "{outputs:?}");
}

#[test]
fn a_mark_is_cleared_when_the_lease_of_its_node_ends_and_not_before() {
    let (mut bench, number, ..) = Bench::marked();
    assert_eq!(clears(&bench.pass(SECOND * 99 / 10), number), None, "the grace is not over");
    assert!(clears(&bench.pass(SECOND / 5), number).is_some());
    assert_eq!(bench.machine.counters().marks, 0);
}

#[test]
fn a_node_is_believed_for_as_long_as_it_waits_itself() {
    let mut bench = Bench::new();
    let expiry = bench.now + 3_600 * SECOND;
    bench.give(Input::Connected { session: SESSION, node: "b".to_owned(), expiry });
    bench.hear(Message::Hello { version: VERSION, incarnation: 8 });
    bench.hear(Message::Complete);
    let outputs = bench.hear(Message::Echo { nonce: 1, withdrawal: 0, grace: GRACE / 5 });
    let end = |output: &Output| {
        matches!(output, Output::Lease { number, .. } if *number != 0).then(|| output.clone())
    };
    let Some(Output::Lease { end, .. }) = outputs.iter().find_map(end) else { panic!("{outputs:?}") };
    assert!(end <= bench.now + 2 * SECOND, "its grace is a fifth of ours");
}

#[test]
fn marks_between_two_of_this_node_end_before_a_late_renewal_of_its_own_lease() {
    let mut here = plan();
    here.endpoints.insert(4, endpoint("db", 301, 1, 4));
    let mut bench = Bench::with(here);
    bench.give(Input::Certificate(id("db"), Ok(u64::MAX)));
    let done = Input::LocalProofDone { a: id("db"), b: id("web"), result: Ok(u64::MAX) };
    let (number, mark, _) = set(bench.give(done));
    // Suspended for longer than the grace.
    bench.now += 11 * SECOND;
    let outputs = bench.give(Input::Tick);
    let renewed = outputs.iter().position(|output| matches!(output, Output::Lease { number: 0, .. }));
    let cleared = clears(&outputs, number);
    assert!(cleared.is_some() && cleared < renewed, "{outputs:?}");
    let again = set(outputs);
    assert!(again.1.epoch > mark.epoch, "its connections do not come back");
}

#[test]
fn a_mark_that_was_left_is_kept_while_its_lease_runs_and_cleared_if_that_has_ended() {
    let (bench, number, mark, keys) = Bench::marked();
    for (end, kept) in [(bench.now + SECOND, true), (bench.now, false), (0, false)] {
        let adopted = Adopted {
            last_epoch: mark.epoch,
            marks: BTreeMap::from([(number, mark)]),
            keys: keys.iter().map(|key| (*key, number)).collect(),
            leases: BTreeMap::from([(mark.lease, end)]),
        };
        let mut machine = Machine::new(Settings::new(9), adopted, bench.now);
        let outputs = machine.handle(bench.now, Input::Plan(1, Arc::new(plan())));
        assert_eq!(clears(&outputs, number).is_none(), kept, "a lease until {end} at {}", bench.now);
        assert_eq!(machine.counters().marks, u64::from(kept));
    }
}

#[test]
fn a_mark_that_was_left_goes_after_one_grace_if_no_certificate_comes() {
    let (bench, number, mark, keys) = Bench::marked();
    let grace = plan().grace * 1_000_000;
    for comes in [false, true] {
        let adopted = Adopted {
            last_epoch: mark.epoch,
            marks: BTreeMap::from([(number, mark)]),
            keys: keys.iter().map(|key| (*key, number)).collect(),
            // The peer's word goes on being good; of this end nobody says anything.
            leases: BTreeMap::from([(mark.lease, u64::MAX)]),
        };
        let start = bench.now;
        let mut machine = Machine::new(Settings::new(9), adopted, start);
        machine.handle(start, Input::Plan(1, Arc::new(plan())));
        if comes {
            machine.handle(start, Input::Certificate(id("web"), Ok(u64::MAX)));
        } else {
            machine.handle(start, Input::Certificate(id("web"), Err(Refusal::NodeUnreachable)));
        }
        assert_eq!(clears(&machine.handle(start + grace - 1, Input::Tick), number), None);
        let cleared = clears(&machine.handle(start + grace, Input::Tick), number);
        assert_eq!(cleared.is_none(), comes);
    }
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
fn soon_after_a_start_an_address_waits_for_peers_that_an_earlier_auth_agent_may_have_told() {
    let free = Output::Tell(FromAuthAgent::Free { instance: 1 });
    let without = || AuthPlan { endpoints: BTreeMap::new(), ..plan() };
    let mut bench = Bench::new();
    assert!(!bench.give(Input::Plan(2, Arc::new(without()))).contains(&free));
    assert!(!bench.pass(11 * SECOND).contains(&free), "a lease that was renewed at the end runs for 10 s");
    assert!(bench.pass(SECOND * 3 / 2).contains(&free));
    // Later nobody can know of it who was not told in a session.
    let mut bench = Bench::new();
    bench.pass(13 * SECOND);
    assert!(bench.give(Input::Plan(2, Arc::new(without()))).contains(&free));
}
