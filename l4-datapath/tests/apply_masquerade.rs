//! Masquerading as the kernel is told of it, and its programs on real devices. Needs root and BPF.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy knows only functions marked as tests to be tests"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use abi::DeviceFlags;
use aya::programs::{SchedClassifier, TcAttachType};
use l4_datapath::{Datapath, Error, Hook, Options, leftovers, remove};
use linux::netlink::{Netlink, VethEnd};
use linux::scratch::Namespace;
use mesh::plan::{Device, Masquerade};
use support::{PinRoot, Pinned, net};

const OURS: [[&str; 1]; 2] = [["from_netdev"], ["to_netdev"]];

/// Names of the tcx programs on a device: ingress, egress.
fn on(device: &str) -> [Vec<String>; 2] {
    [TcAttachType::Ingress, TcAttachType::Egress].map(|direction| {
        let (_, programs) = SchedClassifier::query_tcx(device, direction).unwrap();
        programs.iter().map(|program| program.name_as_str().unwrap_or_default().to_owned()).collect()
    })
}

/// Whether clsact filters of ours are there, in the same order. Looking takes them away.
fn filtered(device: &str) -> [bool; 2] {
    [(TcAttachType::Ingress, "from_netdev"), (TcAttachType::Egress, "to_netdev")].map(
        |(direction, program)| aya::programs::tc::qdisc_detach_program(device, direction, program).is_ok(),
    )
}

/// A pair of devices; the first one's facts.
async fn make(name: &str, peer: &str) -> Device {
    let netlink = Netlink::open().unwrap();
    let here = VethEnd { name, mac: [2, 0, 0, 0, 0, 1], arp: true, mtu: 1500 };
    netlink.add_veth(here, VethEnd { name: peer, mac: [2, 0, 0, 0, 0, 2], ..here }, None).await.unwrap();
    let ifindex = netlink.link(name).await.unwrap().unwrap().index;
    let (ipv4, ipv6) = (Some("192.0.2.1".parse().unwrap()), Some("2001:db8::1".parse().unwrap()));
    Device { name: name.to_owned(), ifindex, ipv4, ipv6 }
}

async fn delete(device: &Device) {
    Netlink::open().unwrap().delete_link(device.ifindex).await.unwrap();
}

fn masquerade(exceptions: &[&str]) -> Masquerade {
    let exceptions = exceptions.iter().map(|text| net(text)).collect();
    Masquerade { ipv4: true, ipv6: false, ports: 50_000..=60_000, exceptions }
}

/// `DEVICES`, by index.
fn devices(pinned: &Pinned) -> BTreeMap<u32, abi::Device> {
    let map = maps::Devices::new(pinned.map(abi::map::DEVICES)).unwrap();
    map.entries().unwrap().into_iter().collect()
}

/// `UNMASQUERADED`: lengths and addresses.
fn unmasqueraded(pinned: &Pinned) -> BTreeSet<(u32, abi::Address)> {
    let map = maps::Unmasqueraded::new(pinned.map(abi::map::UNMASQUERADED)).unwrap();
    map.entries().unwrap().into_iter().map(|(prefix, _)| (prefix.bits, prefix.data)).collect()
}

fn ports(pinned: &Pinned) -> u32 {
    maps::Node::new(pinned.map(abi::map::NODE)).unwrap().get().masquerade
}

fn in_a_namespace<F: Future<Output = ()>>(work: impl FnOnce(PinRoot) -> F + Send) {
    let scratch = Namespace::new("ferromesh-datapath").unwrap();
    scratch.namespace().inside_async(|| work(PinRoot::new())).unwrap();
}

#[test]
fn the_kernel_is_told_what_is_wanted_and_what_is_no_longer_wanted_goes() {
    in_a_namespace(|root| async move {
        let (eth0, eth1) = (make("eth0", "peer0").await, make("eth1", "peer1").await);
        let pinned = Pinned::of(&root);
        let (mut datapath, _) = Datapath::open(&root.options()).unwrap();
        let wanted = masquerade(&["10.0.0.0/8", "fd00::/8"]);
        datapath.apply_masquerade(&wanted, &[eth0.clone(), eth1.clone()]).unwrap();
        let v4 = abi::Device { ipv4: [192, 0, 2, 1], flags: DeviceFlags::MASQUERADE4, ..first(&pinned) };
        assert_eq!(v4.ipv6[..4], [0x20, 0x01, 0x0d, 0xb8]);
        assert_eq!(devices(&pinned), BTreeMap::from([(eth0.ifindex, v4), (eth1.ifindex, v4)]));
        let (ten, ula) = (
            (104, abi::Address::v4([10, 0, 0, 0])),
            (8, abi::Address([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])),
        );
        assert_eq!(unmasqueraded(&pinned), BTreeSet::from([ten, ula]));
        assert_eq!(ports(&pinned), 50_000 << 16 | 60_000);
        assert_eq!((on("eth0"), on("eth1")), (ours(), ours()));

        let bare = Device { ipv4: None, ipv6: None, ..eth0.clone() };
        let changed = Masquerade { ipv6: true, ports: 1024..=1024, ..masquerade(&["10.0.0.0/8"]) };
        datapath.apply_masquerade(&changed, std::slice::from_ref(&bare)).unwrap();
        let flags = DeviceFlags::MASQUERADE4 | DeviceFlags::MASQUERADE6;
        let expected = abi::Device { flags, ..abi::Device::default() };
        assert_eq!(devices(&pinned), BTreeMap::from([(eth0.ifindex, expected)]));
        assert_eq!((unmasqueraded(&pinned), ports(&pinned)), (BTreeSet::from([ten]), 1024 << 16 | 1024));
        assert_eq!((on("eth0"), on("eth1")), (ours(), none()));

        datapath.apply_masquerade(&Masquerade::default(), std::slice::from_ref(&bare)).unwrap();
        assert_eq!(devices(&pinned)[&eth0.ifindex].flags, 0);
        assert_eq!((on("eth0"), ports(&pinned)), (ours(), 0), "forged sources are still refused");
        drop(datapath);
        remove(&root.path()).unwrap();
        assert_eq!((on("eth0"), leftovers(&root.path()).unwrap()), (none(), Vec::new()));
    });
}

fn first(pinned: &Pinned) -> abi::Device {
    *devices(pinned).values().next().unwrap()
}

fn ours() -> [Vec<String>; 2] {
    OURS.map(|names| names.map(str::to_owned).to_vec())
}

fn none() -> [Vec<String>; 2] {
    Default::default()
}

#[test]
fn the_next_agent_adopts_what_is_there_and_corrects_it() {
    in_a_namespace(|root| async move {
        let (eth0, eth1) = (make("eth0", "peer0").await, make("eth1", "peer1").await);
        let (mut datapath, _) = Datapath::open(&root.options()).unwrap();
        let wanted = masquerade(&["10.0.0.0/8", "172.16.0.0/12"]);
        datapath.apply_masquerade(&wanted, &[eth0.clone(), eth1.clone()]).unwrap();
        drop(datapath);
        assert_eq!((on("eth0"), on("eth1")), (ours(), ours()), "they stay when the agent is gone");

        let (mut datapath, adoption) = Datapath::open(&root.options()).unwrap();
        assert_eq!(adoption.interfaces, BTreeSet::new(), "they are no workloads' veths");
        let counters = datapath.counters().unwrap();
        assert_eq!(counters.maps[abi::map::UNMASQUERADED].used, Some(2));
        assert_eq!(counters.maps[abi::map::DEVICES].used, Some(2));
        datapath.apply_masquerade(&masquerade(&["10.0.0.0/8"]), std::slice::from_ref(&eth1)).unwrap();
        assert_eq!((on("eth0"), on("eth1")), (none(), ours()));
        let pinned = Pinned::of(&root);
        assert_eq!(devices(&pinned).keys().copied().collect::<Vec<_>>(), [eth1.ifindex]);
        assert_eq!(unmasqueraded(&pinned).len(), 1);
    });
}

#[test]
fn a_device_that_goes_is_no_obstacle_and_one_that_comes_again_is_served() {
    in_a_namespace(|root| async move {
        let (eth0, eth1) = (make("eth0", "peer0").await, make("eth1", "peer1").await);
        let (mut datapath, _) = Datapath::open(&root.options()).unwrap();
        let wanted = masquerade(&[]);
        let both = [eth0.clone(), eth1.clone()];
        datapath.apply_masquerade(&wanted, &both).unwrap();
        delete(&eth0).await;
        datapath.apply_masquerade(&wanted, &both).unwrap();
        datapath.apply_masquerade(&wanted, std::slice::from_ref(&eth1)).unwrap();
        assert_eq!(devices(&Pinned::of(&root)).keys().copied().collect::<Vec<_>>(), [eth1.ifindex]);
        let again = make("eth0", "peer0").await;
        assert_ne!(again.ifindex, eth0.ifindex);
        datapath.apply_masquerade(&wanted, &[again.clone(), eth1.clone()]).unwrap();
        assert_eq!((on("eth0"), on("eth1")), (ours(), ours()));
    });
}

#[test]
fn clsact_serves_where_tcx_does_not_and_each_takes_the_others_place() {
    in_a_namespace(|root| async move {
        let eth0 = make("eth0", "peer0").await;
        let devices = std::slice::from_ref(&eth0);
        let wanted = masquerade(&[]);
        let by = |hook| Options { hook, ..root.options() };
        let (mut datapath, _) = Datapath::open(&by(Hook::Clsact)).unwrap();
        datapath.apply_masquerade(&wanted, devices).unwrap();
        assert_eq!((on("eth0"), filtered("eth0")), (none(), [true; 2]));
        drop(datapath);
        let (mut datapath, _) = Datapath::open(&by(Hook::Tcx)).unwrap();
        datapath.apply_masquerade(&wanted, devices).unwrap();
        assert_eq!((on("eth0"), filtered("eth0")), (ours(), [false; 2]));
        drop(datapath);
        let (mut datapath, _) = Datapath::open(&by(Hook::Clsact)).unwrap();
        datapath.apply_masquerade(&wanted, devices).unwrap();
        assert_eq!(on("eth0"), none());
        drop(datapath);
        remove(&root.path()).unwrap();
        assert_eq!(filtered("eth0"), [false; 2]);
    });
}

#[test]
fn exceptions_that_do_not_fit_are_refused_before_anything_is_written() {
    in_a_namespace(|root| async move {
        let eth0 = make("eth0", "peer0").await;
        let (mut datapath, _) = Datapath::open(&root.options()).unwrap();
        let mut wanted = masquerade(&["10.0.0.0/8"]);
        datapath.apply_masquerade(&wanted, std::slice::from_ref(&eth0)).unwrap();
        let all = net("172.16.0.0/12");
        let ipnet::IpNet::V4(v4) = all else { panic!("IPv4") };
        wanted.exceptions.extend(v4.subnets(26).unwrap().map(ipnet::IpNet::from));
        let error = datapath.apply_masquerade(&wanted, std::slice::from_ref(&eth0)).unwrap_err();
        assert!(matches!(error, Error::Full { map: "UNMASQUERADED", needed: 16_385, .. }), "{error}");
        assert_eq!(unmasqueraded(&Pinned::of(&root)).len(), 1);
    });
}
