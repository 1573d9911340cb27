//! Plans against real maps under a BPF file system of the test's own. Needs root and BPF.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy knows only functions marked as tests to be tests"
)]

mod support;

use std::sync::Arc;

use l4_datapath::{Datapath, Error};
use mesh::identity::Identity;
use mesh::plan::Whereabouts;
use support::{PinRoot, Pinned, allow, id, net, open, plan, policy};

#[test]
fn two_endpoints_with_equal_policy_share_a_ruleset() {
    let root = PinRoot::new();
    let (mut datapath, adoption) = Datapath::open(&root.options()).unwrap();
    assert_eq!((adoption.generation, adoption.endpoints.len()), (0, 0));

    let rule1 = || allow("rule1", &[(300, 80)]);
    let report = datapath.apply(&plan(vec![(1, 300, rule1(), open()), (2, 301, rule1(), open())])).unwrap();
    assert!(report.changed);
    assert_eq!((report.generation, report.rulesets_written, report.rulesets_shared), (1, 2, 2));

    let kernel = Pinned::of(&root);
    let (one, two) = (kernel.assignment(1), kernel.assignment(2));
    assert_eq!((one.identity, two.identity), (300, 301));
    assert_eq!((one.ingress, one.egress), (two.ingress, two.egress));
    assert_eq!(datapath.ruleset_ids(id(1)), Some((one.ingress, one.egress)));
    assert!(kernel.judge(one.ingress, 300, 6, 80).0);
    assert!(!kernel.judge(one.ingress, 301, 6, 80).0);
    let endpoints = kernel.endpoints();
    assert_eq!(endpoints.len(), 6, "two addresses and an interface each");
    for number in [1, 2] {
        let facts = kernel.assignments(number);
        let (ipv4, ipv6) = (abi::Address::v4(facts.ipv4), abi::Address(facts.ipv6));
        assert_eq!(facts.endpoint.id, u32::from(number), "the array has the facts by number");
        assert_eq!((endpoints[&ipv4], endpoints[&ipv6]), (facts.endpoint, facts.endpoint));
    }
    let attribution = datapath.attribution();
    assert_eq!(attribution.denied_by_default(one.ingress), [policy("rule1")]);
    let value = kernel.rules().longest(abi::RuleKey::exact(one.ingress, 300, 6, 80)).unwrap().unwrap();
    assert_eq!(attribution.policies_of_cookie(value.cookie), [policy("rule1")]);
}

#[test]
fn an_unchanged_plan_writes_nothing() {
    let root = PinRoot::new();
    let (mut datapath, _) = Datapath::open(&root.options()).unwrap();
    let wanted = || plan(vec![(1, 300, allow("rule1", &[(300, 80)]), open())]);
    datapath.apply(&wanted()).unwrap();
    datapath.settle().unwrap();
    let again = datapath.apply(&wanted()).unwrap();
    assert!(!again.changed);
    assert_eq!((again.generation, again.entries_written, again.entries_removed), (1, 0, 0));
}

#[test]
fn an_edit_leaves_the_slot_in_force_alone_until_the_switch_and_the_old_ruleset_goes_later() {
    let root = PinRoot::new();
    let (mut datapath, _) = Datapath::open(&root.options()).unwrap();
    datapath.apply(&plan(vec![(1, 300, allow("rule1", &[(300, 80)]), open())])).unwrap();
    let kernel = Pinned::of(&root);
    let before = kernel.assignments(1);
    assert_eq!(before.slot[0], before.slot[1], "a new endpoint has both slots alike");

    datapath.apply(&plan(vec![(1, 300, allow("rule1", &[(300, 81)]), open())])).unwrap();
    let after = kernel.assignments(1);
    assert_eq!(kernel.generation(), 2);
    assert_eq!(after.slot[1], before.slot[1], "packets of generation 1 still find what they began with");
    assert_ne!(after.slot[0].ingress, before.slot[0].ingress, "a fresh id");
    assert_eq!(after.slot[0].egress, before.slot[0].egress, "what did not change is kept");
    assert!(kernel.judge(before.slot[1].ingress, 300, 6, 80).0, "and its ruleset is still whole");

    datapath.settle().unwrap();
    assert!(!kernel.ruleset_ids().contains(&before.slot[1].ingress));
    assert!(kernel.judge(after.slot[0].ingress, 300, 6, 81).0);
}

#[test]
fn a_relabel_changes_the_identity_and_keeps_the_rulesets() {
    let root = PinRoot::new();
    let (mut datapath, _) = Datapath::open(&root.options()).unwrap();
    datapath.apply(&plan(vec![(1, 300, open(), open())])).unwrap();
    let before = Pinned::of(&root).assignment(1);
    let report = datapath.apply(&plan(vec![(1, 301, open(), open())])).unwrap();
    let after = Pinned::of(&root).assignment(1);
    assert_eq!((report.rulesets_written, after.identity), (0, 301));
    assert_eq!((before.ingress, before.egress), (after.ingress, after.egress));
}

#[test]
fn a_new_prefix_means_what_its_cover_means_until_the_switch() {
    let root = PinRoot::new();
    let (mut datapath, _) = Datapath::open(&root.options()).unwrap();
    let mut wanted = plan(vec![]);
    datapath.apply(&wanted).unwrap();
    Arc::make_mut(&mut wanted.ipcache).insert(net("192.0.2.0/24"), support::identity(0x0100_0001).into());
    Arc::make_mut(&mut wanted.ipcache).insert(net("2001:db8::/32"), support::identity(0x0100_0002).into());
    datapath.apply(&wanted).unwrap();

    let kernel = Pinned::of(&root);
    let four = abi::Address::v4([192, 0, 2, 7]);
    let six = abi::Address("2001:db8::7".parse::<std::net::Ipv6Addr>().unwrap().octets());
    assert_eq!((kernel.generation(), kernel.remote(four), kernel.remote(six)), (2, 0x0100_0001, 0x0100_0002));
    let slots = |address| kernel.ipcache().longest(address).unwrap().unwrap().identity;
    assert_eq!((slots(four)[1], slots(six)[1]), (9, 10));

    Arc::make_mut(&mut wanted.ipcache).remove(&net("192.0.2.0/24"));
    datapath.apply(&wanted).unwrap();
    assert_eq!(slots(four), [0x0100_0001, 9], "gone for new packets, still there for old ones");
    datapath.settle().unwrap();
    assert_eq!(slots(four), [9, 9]);
}

#[test]
fn an_address_that_is_waited_for_is_so_in_every_generation_in_which_nobody_has_it() {
    let root = PinRoot::new();
    let (mut datapath, _) = Datapath::open(&root.options()).unwrap();
    let waited_for = Whereabouts { identity: Identity::UNMANAGED, pending: true };
    let mut wanted = plan(vec![]);
    Arc::make_mut(&mut wanted.ipcache).insert(net("192.0.2.0/24"), waited_for);
    datapath.apply(&wanted).unwrap();
    let kernel = Pinned::of(&root);
    let (known, other) = (abi::Address::v4([192, 0, 2, 7]), abi::Address::v4([192, 0, 2, 8]));
    // What a packet of each generation takes it for; of one that is known nobody waits.
    let waits = |address| {
        let remote = kernel.ipcache().longest(address).unwrap().unwrap();
        let flagged = remote.flags & abi::RemoteFlags::PENDING != 0;
        remote.identity.map(|identity| flagged && identity == abi::ReservedIdentity::UNMANAGED)
    };
    let now = |address| waits(address)[usize::from(kernel.generation() & 1 == 1)];
    assert!(now(known) && now(other));

    Arc::make_mut(&mut wanted.ipcache).insert(net("192.0.2.7/32"), support::identity(300).into());
    datapath.apply(&wanted).unwrap();
    assert!(!now(known) && waits(known).contains(&true), "packets of the generation before still wait");
    assert!(now(other));
    datapath.settle().unwrap();
    assert!(!datapath.apply(&wanted).unwrap().changed);

    Arc::make_mut(&mut wanted.ipcache).remove(&net("192.0.2.7/32"));
    datapath.apply(&wanted).unwrap();
    assert!(now(known) && waits(known).contains(&false));
    datapath.settle().unwrap();
    assert!(now(known));

    Arc::make_mut(&mut wanted.ipcache).insert(net("192.0.2.0/24"), Identity::UNMANAGED.into());
    assert!(datapath.apply(&wanted).unwrap().changed);
    assert!(!now(known) && !now(other));
}

#[test]
fn an_endpoint_that_is_gone_denies_and_its_id_can_be_another_endpoint() {
    let root = PinRoot::new();
    let (mut datapath, _) = Datapath::open(&root.options()).unwrap();
    datapath.apply(&plan(vec![(1, 300, open(), open()), (2, 301, open(), open())])).unwrap();
    datapath.apply(&plan(vec![(2, 301, open(), open())])).unwrap();
    let kernel = Pinned::of(&root);
    assert_eq!(kernel.assignments(1), abi::Assignments::default());
    assert_eq!(kernel.endpoints().len(), 3);

    let mut wanted = plan(vec![(1, 300, open(), open()), (2, 301, open(), open())]);
    let reused = wanted.endpoints.get_mut(&id(2)).unwrap();
    reused.endpoint.instance += 1;
    reused.endpoint.ipv4 = [10, 0, 9, 9].into();
    datapath.apply(&wanted).unwrap();
    let endpoints = kernel.endpoints();
    assert_eq!(endpoints.len(), 6);
    assert_eq!(endpoints[&abi::Address::v4([10, 0, 9, 9])].instance, 1003);
    assert!(!endpoints.contains_key(&abi::Address::v4([10, 0, 0, 2])));
    let assignment = kernel.assignment(2);
    assert_eq!(assignment.identity, 301);
    assert!(kernel.judge(assignment.ingress, 300, 6, 80).0, "its ruleset is there");
}

#[test]
fn a_detached_endpoint_is_forgotten_and_verdicts_are_asked_again() {
    let root = PinRoot::new();
    let (mut datapath, _) = Datapath::open(&root.options()).unwrap();
    datapath.apply(&plan(vec![(1, 300, open(), open())])).unwrap();
    datapath.detach(id(1)).unwrap();
    let kernel = Pinned::of(&root);
    assert!(kernel.endpoints().is_empty());
    assert_eq!(kernel.assignments(1), abi::Assignments::default());
    datapath.detach(id(1)).unwrap();
    assert_eq!(datapath.apply(&plan(vec![])).unwrap().generation, 2);
}

#[test]
fn a_plan_that_does_not_fit_is_refused_whole() {
    let root = PinRoot::new();
    let (mut datapath, _) = Datapath::open(&root.options()).unwrap();
    let small = || plan(vec![(1, 300, allow("rule1", &[(300, 80)]), open())]);
    datapath.apply(&small()).unwrap();
    datapath.settle().unwrap();
    let kernel = Pinned::of(&root);
    let (rules, assignments) = (kernel.rules().entries().unwrap().len(), kernel.assignments(1));

    let many: Vec<(u32, u16)> = (1..=2048u16).map(|port| (300, port)).collect();
    let mut large = small();
    large.endpoints.get_mut(&id(1)).unwrap().ingress = allow("large", &many);
    Arc::make_mut(&mut large.ipcache).insert(net("192.0.2.0/24"), support::identity(77).into());
    let error = datapath.apply(&large).unwrap_err();
    let Error::Full { map, needed, held, capacity } = error else { panic!("{error}") };
    assert_eq!((map, needed, held, capacity), ("RULES", 2050, 2, 2048));
    assert_eq!(kernel.rules().entries().unwrap().len(), rules);
    assert_eq!((kernel.assignments(1), kernel.generation()), (assignments, 1));
    assert!(!datapath.apply(&small()).unwrap().changed, "the old state is still the state");
}
