//! After any sequence of plans, of deaths and of restarts the tables say what the last plan says, and at every moment
//! each service is as one of two plans has it. Needs root and BPF.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy knows only functions marked as tests to be tests"
)]

mod services;
mod support;

use std::collections::BTreeSet;

use l4_datapath::Datapath;
use mesh::service::Services;
use services::random::{Random, listed};
use services::{Raw, services};
use support::PinRoot;

#[test]
fn the_tables_say_what_the_last_of_any_sequence_of_plans_says() {
    let root = PinRoot::new();
    let (mut datapath, _) = Datapath::open(&root.options()).unwrap();
    let raw = Raw::of(&root);
    let mut random = Random(1);
    let mut plan = services(&[]);
    let mut before = BTreeSet::new();
    for step in 0..600 {
        plan = if random.below(3) == 0 { random.plan() } else { random.edit(&plan) };
        let report = datapath.apply_services(&plan).unwrap();
        raw.check(&plan);
        let now = listed(&plan);
        assert_eq!(report.gone, before.difference(&now).copied().collect(), "step {step}");
        assert!(!datapath.apply_services(&plan).unwrap().changed, "step {step}");
        before = now;
        if random.below(4) == 0 {
            datapath.settle().unwrap();
            raw.check(&plan);
        }
        if step % 60 == 59 {
            drop(datapath);
            datapath = Datapath::open(&root.options()).unwrap().0;
            // Who is draining the kernel does not know.
            before = raw.listed();
        }
    }
}

#[test]
fn a_death_at_any_write_leaves_each_service_old_or_new_and_the_next_plan_makes_them_whole() {
    let root = PinRoot::new();
    let (mut datapath, _) = Datapath::open(&root.options()).unwrap();
    let raw = Raw::of(&root);
    let mut random = Random(2);
    let (mut deaths, mut restarts) = (0, 0);
    for round in 0..12 {
        let (old, new) = (random.plan(), random.plan());
        for writes in 0.. {
            datapath.apply_services(&old).unwrap();
            if random.below(2) == 0 {
                datapath.settle().unwrap();
            }
            datapath.die_after(Some(writes));
            let lived = datapath.apply_services(&new).is_ok();
            datapath.die_after(None);
            either(&raw, &old, &new);
            deaths += u64::from(!lived);
            if writes % 16 == 15 {
                drop(datapath);
                datapath = Datapath::open(&root.options()).unwrap().0;
                either(&raw, &old, &new);
                restarts += 1;
            }
            // On to the new plan, back to the old one, or to another.
            let next = [&new, &old, &random.plan()][random.below(3) as usize].clone();
            datapath.apply_services(&next).unwrap();
            raw.check(&next);
            if lived {
                break;
            }
        }
        assert!(deaths > round, "a plan that writes nothing tests nothing");
    }
    assert!(deaths > 200 && restarts > 8, "{deaths} deaths, {restarts} restarts");
}

#[test]
fn a_death_while_mending_is_one_more_death() {
    let root = PinRoot::new();
    let (mut datapath, _) = Datapath::open(&root.options()).unwrap();
    let raw = Raw::of(&root);
    let mut random = Random(3);
    let (mut old, mut new) = (services(&[]), random.plan());
    let mut deaths = 0;
    for _ in 0..300 {
        datapath.die_after(Some(random.below(12)));
        let result = datapath.apply_services(&new);
        if result.is_ok() {
            raw.check(&new);
            (old, new) = (new.clone(), random.edit(&new));
        } else {
            deaths += 1;
        }
        either(&raw, &old, &new);
    }
    datapath.die_after(None);
    datapath.apply_services(&new).unwrap();
    raw.check(&new);
    assert!(deaths > 50, "{deaths} deaths");
}

/// Each service is as one of the plans has it, and none shares what is its own.
fn either(raw: &Raw, old: &Services, new: &Services) {
    let dump = raw.dump();
    raw.check_shared_nothing(&dump);
    for key in dump.frontends.keys() {
        let address_only = abi::Frontend::address_only(key.address);
        assert!(dump.frontends.contains_key(&address_only), "a port without its address's own key");
    }
    let names: BTreeSet<_> = old.frontends.keys().chain(new.frontends.keys()).collect();
    let known = names.iter().filter(|name| dump.frontends.contains_key(&services::key(name))).count();
    let ports = dump.frontends.values().filter(|index| **index != 0).count();
    assert_eq!(known, ports, "nobody else's service");
    for name in names {
        let found = raw.look_up(&name.to_string()).map(|(backends, _)| backends);
        let wanted = [old, new].map(|plan| plan.frontends.get(name).map(|planned| planned.backends.to_vec()));
        assert!(wanted.contains(&found), "{name}: {found:?} is none of {wanted:?}");
    }
}
