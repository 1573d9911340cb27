//! Marks and leases: set, kept, cleared, found after a restart.

use std::collections::BTreeMap;
use std::sync::Arc;

use auth_agent::event::{Input, Output, Time};
use auth_agent::machine::{Adopted, Machine, Settings};
use auth_agent::message::{Message, VERSION};
use mesh::auth::{AuthPlan, Refusal};
use node_api::auth::{FromAuthAgent, PairState};

use crate::bench::{Bench, GRACE, SECOND, SESSION, clears, db, endpoint, id, plan, set};

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

#[test]
fn a_mark_that_the_kernel_did_not_take_is_none_and_is_tried_again() {
    let (mut bench, number, mark, _) = Bench::marked();
    let outputs = bench.give(Input::MarkLost { number, epoch: mark.epoch });
    assert!(clears(&outputs, number).is_some(), "{outputs:?}");
    let pair = &bench.machine.pairs()[0];
    assert_eq!((pair.state, pair.refusal), (PairState::Refused, Some(Refusal::Overloaded)));
    let outputs = bench.pass(SECOND / 10);
    assert!(
        outputs.iter().any(|output| matches!(output, Output::Send(_, Message::Bind { .. }))),
        "{outputs:?}"
    );
    let (other, ..) = set(bench.hear(Message::Bound { bind: 2 }));
    // Of a mark that has gone meanwhile nothing is lost.
    assert_eq!(bench.give(Input::MarkLost { number: other, epoch: mark.epoch }), []);
}
