//! Plans of services against real maps. Needs root and BPF.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy knows only functions marked as tests to be tests"
)]

mod services;
mod support;

use std::collections::{BTreeMap, BTreeSet};

use l4_datapath::{Datapath, Error};
use services::{Raw, backend, backends, frontend, services};
use support::PinRoot;

#[test]
fn a_service_is_found_by_its_frontend_and_only_by_that() {
    let root = PinRoot::new();
    let (mut datapath, _) = Datapath::open(&root.options()).unwrap();
    let plan = services(&[("10.96.0.1:80/TCP", &[1, 2], None), ("[fd96::1]:80/TCP", &[1], Some(60))]);
    let report = datapath.apply_services(&plan).unwrap();
    assert!(report.changed);
    assert_eq!((report.removed, report.gone), (0, BTreeSet::new()));

    let raw = Raw::of(&root);
    assert_eq!(raw.look_up("10.96.0.1:80/TCP"), Some((backends("10.96.0.1:80/TCP", &[1, 2]), 0)));
    assert_eq!(raw.look_up("[fd96::1]:80/TCP"), Some((backends("[fd96::1]:80/TCP", &[1]), 60)));
    for other in ["10.96.0.1:81/TCP", "10.96.0.1:80/UDP", "10.96.0.2:80/TCP", "[fd96::2]:80/TCP"] {
        assert_eq!(raw.look_up(other), None, "{other}");
    }
    assert!(raw.is_vip("10.96.0.1") && raw.is_vip("fd96::1") && !raw.is_vip("10.96.0.2"));
    assert_ne!(datapath.service_id(&frontend("10.96.0.1:80/TCP")), None);
    raw.check(&plan);
}

#[test]
fn an_unchanged_plan_writes_nothing_also_after_a_restart() {
    let root = PinRoot::new();
    let plan = services(&[("10.96.0.1:80/TCP", &[1, 2, 3], Some(10)), ("10.96.0.1:81/TCP", &[], None)]);
    let (mut first, _) = Datapath::open(&root.options()).unwrap();
    assert!(first.apply_services(&plan).unwrap().changed);
    assert!(!first.apply_services(&plan).unwrap().changed);
    let id = first.service_id(&frontend("10.96.0.1:80/TCP"));
    drop(first);
    let (mut second, _) = Datapath::open(&root.options()).unwrap();
    assert_eq!(second.service_id(&frontend("10.96.0.1:80/TCP")), id);
    let report = second.apply_services(&plan).unwrap();
    assert_eq!((report.changed, report.written, report.removed), (false, 0, 0));
    Raw::of(&root).check(&plan);
}

#[test]
fn a_changed_set_stands_beside_the_old_one_and_an_edit_writes_what_it_touches() {
    let root = PinRoot::new();
    let (mut datapath, _) = Datapath::open(&root.options()).unwrap();
    let many: Vec<(String, Vec<u8>)> =
        (0..50).map(|n| (format!("10.96.0.{n}:80/TCP"), vec![n, n + 1])).collect();
    let build = |many: &[(String, Vec<u8>)]| {
        let rows: Vec<_> = many.iter().map(|(name, hosts)| (name.as_str(), hosts.as_slice(), None)).collect();
        services(&rows)
    };
    datapath.apply_services(&build(&many)).unwrap();
    let raw = Raw::of(&root);
    let before = raw.service("10.96.0.7:80/TCP").unwrap();

    let mut edited = many.clone();
    edited[7].1 = vec![8, 200];
    let report = datapath.apply_services(&build(&edited)).unwrap();
    assert_eq!((report.written, report.removed), (4, 0), "one backend, two slots, one word");
    let after = raw.service("10.96.0.7:80/TCP").unwrap();
    assert_eq!(
        raw.region(before.slots),
        backends("10.96.0.7:80/TCP", &[7, 8]),
        "who read the old word is right"
    );
    assert_eq!(raw.region(after.slots), backends("10.96.0.7:80/TCP", &[8, 200]));
    assert_eq!(report.gone, BTreeSet::new(), "10.0.0.7 still answers for another");

    edited.remove(7);
    let report = datapath.apply_services(&build(&edited)).unwrap();
    assert_eq!((report.written, report.removed), (0, 2), "its key and its address's");
    assert_eq!(report.gone, BTreeSet::from([(6, backend("10.0.0.1", 200))]));
    raw.check(&build(&edited));
}

#[test]
fn backends_are_gone_when_no_frontend_lists_them_for_either_purpose() {
    let root = PinRoot::new();
    let (mut datapath, _) = Datapath::open(&root.options()).unwrap();
    let mut plan = services(&[("10.96.0.1:53/UDP", &[1, 2], None)]);
    datapath.apply_services(&plan).unwrap();
    let planned = plan.frontends.get_mut(&frontend("10.96.0.1:53/UDP")).unwrap();
    planned.draining = backends("10.96.0.1:53/UDP", &[2]).into();
    planned.backends = backends("10.96.0.1:53/UDP", &[1]).into();
    assert_eq!(datapath.apply_services(&plan).unwrap().gone, BTreeSet::new());
    plan.frontends.get_mut(&frontend("10.96.0.1:53/UDP")).unwrap().draining = [].into();
    let report = datapath.apply_services(&plan).unwrap();
    assert_eq!((report.changed, report.gone), (false, BTreeSet::from([(17, backend("10.0.0.1", 2))])));
    drop(datapath);
    let (mut datapath, _) = Datapath::open(&root.options()).unwrap();
    let report = datapath.apply_services(&services(&[])).unwrap();
    assert_eq!(report.gone, BTreeSet::from([(17, backend("10.0.0.1", 1))]), "an earlier agent's, too");
}

#[test]
fn affinity_comes_and_goes_in_place() {
    let root = PinRoot::new();
    let (mut datapath, _) = Datapath::open(&root.options()).unwrap();
    let raw = Raw::of(&root);
    let mut index = None;
    for (hosts, affinity) in [
        (&[1u8, 2][..], None),
        (&[1, 2], Some(60)),
        (&[1, 2], Some(90)),
        (&[2, 3], Some(90)),
        (&[2, 3], None),
    ] {
        let plan = services(&[("10.96.0.1:80/TCP", hosts, affinity)]);
        assert!(datapath.apply_services(&plan).unwrap().changed);
        raw.check(&plan);
        let now = datapath.service_id(&frontend("10.96.0.1:80/TCP"));
        assert!(now.is_some() && (index.is_none() || index == now));
        index = now;
    }
}

#[test]
fn what_does_not_fit_is_refused_whole() {
    let root = PinRoot::new();
    let (mut datapath, _) = Datapath::open(&root.options()).unwrap();
    let good = services(&[("10.96.0.1:80/TCP", &[1, 2], Some(5)), ("10.96.0.2:80/TCP", &[3], None)]);
    datapath.apply_services(&good).unwrap();
    datapath.settle().unwrap();
    let raw = Raw::of(&root);
    let before = raw.dump();
    let all: Vec<u8> = (0..=255).collect();
    // Of the 256 elements of BACKENDS one is nobody's and three are taken.
    let distinct = |third: u8, affinity| {
        let name = "10.96.0.9:80/TCP";
        let mut plan = good.clone();
        let mut planned = services(&[(name, &all, affinity)]).frontends.remove(&frontend(name)).unwrap();
        planned.backends =
            all.iter().map(|last| backend(&format!("10.0.{third}.1"), u16::from(*last) + 1)).collect();
        plan.frontends.insert(frontend(name), planned);
        plan
    };
    let full = |datapath: &mut Datapath, plan: &mesh::service::Services| {
        let error = datapath.apply_services(plan).unwrap_err();
        let Error::Full { map, needed, held, capacity } = error else { panic!("{error}") };
        assert_eq!(raw.dump(), before, "{map}");
        (map, needed, held, capacity)
    };
    assert_eq!(full(&mut datapath, &distinct(7, None)), ("BACKENDS", 260, 4, 256));

    let mut slots = good.clone();
    for port in 1..=8u16 {
        let name = format!("10.96.0.9:{port}/TCP");
        let wide: Vec<u8> = (0..=140).collect();
        slots.frontends.extend(services(&[(name.as_str(), &wide, None)]).frontends);
    }
    let (map, needed, held, capacity) = full(&mut datapath, &slots);
    assert_eq!((map, needed > capacity, held > 3), ("SLOTS", true, true));

    let mut members = good.clone();
    for port in 1..=2u16 {
        let name = format!("10.96.0.9:{port}/TCP");
        let wide: Vec<u8> = (0..=140).collect();
        members.frontends.extend(services(&[(name.as_str(), &wide, Some(9))]).frontends);
    }
    assert_eq!(full(&mut datapath, &members), ("MEMBERS", 284, 2, 256));

    let ports = |count: u16, vips: u16| {
        let mut plan = good.clone();
        for n in 0..count {
            let name = format!("10.97.0.{}:{}/TCP", n % vips, n + 1);
            plan.frontends.extend(services(&[(name.as_str(), &[1], None)]).frontends);
        }
        plan
    };
    assert_eq!(full(&mut datapath, &ports(130, 100)), ("SERVICES", 133, 3, 128));
    assert_eq!(full(&mut datapath, &ports(200, 200)), ("FRONTENDS", 404, 4, 256));
    datapath.apply_services(&ports(125, 100)).unwrap();
    assert!(datapath.apply_services(&good).unwrap().changed);
    let again = ports(125, 3);
    datapath.apply_services(&again).unwrap();
    raw.check(&again);
}

#[test]
fn numbers_and_regions_are_used_again_without_a_settling_by_the_caller() {
    let root = PinRoot::new();
    let (mut datapath, _) = Datapath::open(&root.options()).unwrap();
    let raw = Raw::of(&root);
    for round in 0..20u8 {
        let name = format!("10.96.1.{round}:80/TCP");
        let hosts: Vec<u8> = (0..100).map(|n| if round % 2 == 0 { n } else { n + 100 }).collect();
        let plan = services(&[(name.as_str(), &hosts, None), ("10.96.0.1:80/TCP", &[round], None)]);
        datapath.apply_services(&plan).unwrap();
        raw.check(&plan);
    }
    let highest = raw.backends_in_use().into_iter().max();
    assert!(highest < Some(256), "{highest:?}");
    datapath.apply_services(&services(&[])).unwrap();
    assert_eq!(raw.dump().frontends, BTreeMap::new());
}
