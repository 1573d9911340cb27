//! The programs on real veths in a scratch network namespace, by tcx and by clsact. Needs root and BPF.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy knows only functions marked as tests to be tests"
)]

mod support;

use std::collections::BTreeSet;
use std::fs;

use aya::programs::{SchedClassifier, TcAttachType};
use l4_datapath::{Datapath, Hook, Options, leftovers, remove};
use linux::netlink::{Netlink, VethEnd};
use linux::scratch::Namespace;
use support::{PinRoot, endpoint, id, open, plan};

/// Names of the tcx programs on the veth of endpoint 1: towards the node, towards the workload.
fn on_veth() -> [Vec<String>; 2] {
    [TcAttachType::Ingress, TcAttachType::Egress].map(|direction| {
        let (_, programs) = SchedClassifier::query_tcx(&endpoint(1).interface, direction).unwrap();
        programs.iter().map(|program| program.name_as_str().unwrap_or_default().to_owned()).collect()
    })
}

/// Numbers of the tcx programs there.
fn numbers() -> [Vec<u32>; 2] {
    [TcAttachType::Ingress, TcAttachType::Egress].map(|direction| {
        let (_, programs) = SchedClassifier::query_tcx(&endpoint(1).interface, direction).unwrap();
        programs.iter().map(aya::programs::ProgramInfo::id).collect()
    })
}

/// Whether a clsact filter of ours is there, in the same order. Looking takes it away.
fn filtered() -> [bool; 2] {
    [(TcAttachType::Ingress, "from_pod"), (TcAttachType::Egress, "to_pod")].map(|(direction, program)| {
        aya::programs::tc::qdisc_detach_program(&endpoint(1).interface, direction, program).is_ok()
    })
}

async fn make_veth() {
    let netlink = Netlink::open().unwrap();
    let facts = endpoint(1);
    let here = VethEnd { name: &facts.interface, mac: facts.gateway_mac.0, arp: true, mtu: 1500 };
    let there = VethEnd { name: "peer", mac: facts.mac.0, arp: true, mtu: 1500 };
    netlink.add_veth(here, there, None).await.unwrap();
}

async fn delete_veth() {
    let netlink = Netlink::open().unwrap();
    let link = netlink.link(&endpoint(1).interface).await.unwrap().unwrap();
    netlink.delete_link(link.index).await.unwrap();
}

fn opened(options: &Options) -> (Datapath, BTreeSet<String>) {
    let (mut datapath, adoption) = Datapath::open(options).unwrap();
    datapath.apply(&plan(vec![(1, 300, open(), open())])).unwrap();
    (datapath, adoption.interfaces)
}

#[test]
fn attached_replaced_changed_and_taken_away() {
    let root = PinRoot::new();
    let scratch = Namespace::new("ferromesh-datapath").unwrap();
    scratch.namespace().inside_async(|| attach_and_remove(&root)).unwrap();
}

async fn attach_and_remove(root: &PinRoot) {
    make_veth().await;
    let ours = [vec!["from_pod".to_owned()], vec!["to_pod".to_owned()]];
    let none: [Vec<String>; 2] = Default::default();
    let interface = endpoint(1).interface;
    let tcx = Options { hook: Hook::Tcx, ..root.options() };
    let clsact = Options { hook: Hook::Clsact, ..root.options() };

    let (mut datapath, found) = opened(&tcx);
    assert!(found.is_empty());
    datapath.attach(&endpoint(1)).unwrap();
    assert_eq!(on_veth(), ours);
    let first = numbers();
    drop(datapath);
    assert_eq!(numbers(), first, "they stay when the agent is gone");

    let (mut datapath, found) = opened(&tcx);
    assert_eq!(found, BTreeSet::from([interface.clone()]));
    datapath.attach(&endpoint(1)).unwrap();
    assert_eq!(on_veth(), ours, "replaced, not added");
    assert_ne!(numbers(), first);
    drop(datapath);

    // From tcx to clsact, twice (the second one replaces the filter), and back.
    let filters = root.path().join(format!("v{}/filters", abi::SCHEMA));
    let pins = || fs::read_dir(&filters).unwrap().count();
    let (mut datapath, _) = opened(&clsact);
    datapath.attach(&endpoint(1)).unwrap();
    assert_eq!((on_veth(), pins()), (none.clone(), 2));
    datapath.attach(&endpoint(1)).unwrap();
    assert_eq!(pins(), 2);
    datapath.detach_interface(&interface).unwrap();
    assert_eq!((filtered(), pins()), ([false; 2], 0));
    datapath.attach(&endpoint(1)).unwrap();
    assert_eq!(filtered(), [true; 2]);
    datapath.attach(&endpoint(1)).unwrap();
    drop(datapath);
    let (mut datapath, _) = opened(&tcx);
    datapath.attach(&endpoint(1)).unwrap();
    assert_eq!((on_veth(), filtered(), pins()), (ours.clone(), [false; 2], 0));

    // The veth goes, and another of its name comes: its dead links are no obstacle.
    delete_veth().await;
    make_veth().await;
    datapath.attach(&endpoint(1)).unwrap();
    assert_eq!(on_veth(), ours);
    datapath.detach(id(1)).unwrap();
    assert_eq!(on_veth(), none);
    datapath.attach(&endpoint(1)).unwrap();
    delete_veth().await;
    datapath.detach(id(1)).unwrap();
    make_veth().await;
    datapath.attach(&endpoint(1)).unwrap();

    assert!(remove(&root.path()).is_err(), "not under a living agent");
    drop(datapath);
    assert!(!leftovers(&root.path()).unwrap().is_empty());
    remove(&root.path()).unwrap();
    assert_eq!(leftovers(&root.path()).unwrap(), Vec::<String>::new());
    assert_eq!(on_veth(), none);
}
