//! The hold device as the kernel is told of it, and the program on it. Needs root and BPF.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy knows only functions marked as tests to be tests"
)]

mod support;

use aya::programs::{SchedClassifier, TcAttachType};
use l4_datapath::{Datapath, Hook, Options, leftovers, remove};
use linux::netlink::{Netlink, VethEnd};
use linux::scratch::Namespace;
use support::{PinRoot, Pinned};

/// Names and numbers of the tcx programs at ingress of a device.
fn on(device: &str) -> Vec<(String, u32)> {
    let (_, programs) = SchedClassifier::query_tcx(device, TcAttachType::Ingress).unwrap();
    programs.iter().map(|p| (p.name_as_str().unwrap_or_default().to_owned(), p.id())).collect()
}

/// A device, and its index. A veth: which kind it is matters to its reader alone.
async fn make(name: &str, peer: &str) -> u32 {
    let netlink = Netlink::open().unwrap();
    let here = VethEnd { name, mac: [2, 0, 0, 0, 0, 1], arp: true, mtu: 1500 };
    netlink.add_veth(here, VethEnd { name: peer, mac: [2, 0, 0, 0, 0, 2], ..here }, None).await.unwrap();
    netlink.link(name).await.unwrap().unwrap().index
}

async fn delete(index: u32) {
    Netlink::open().unwrap().delete_link(index).await.unwrap();
}

fn hold(pinned: &Pinned) -> (u32, [u64; 2]) {
    let node = maps::Node::new(pinned.map(abi::map::NODE)).unwrap();
    let map = maps::Hold::new(pinned.map(abi::map::HOLD)).unwrap();
    (node.get().hold, map.get().unwrap().key)
}

fn in_a_namespace<F: Future<Output = ()>>(work: impl FnOnce(PinRoot) -> F + Send) {
    let scratch = Namespace::new("ferromesh-datapath").unwrap();
    scratch.namespace().inside_async(|| work(PinRoot::new())).unwrap();
}

#[test]
fn packets_wait_on_the_device_until_told_otherwise_whoever_is_agent() {
    in_a_namespace(|root| async move {
        let pinned = Pinned::of(&root);
        let index = make("hold", "reader").await;
        let (mut datapath, _) = Datapath::open(&root.options()).unwrap();
        assert_eq!(hold(&pinned), (0, [0; 2]), "nobody waits on nothing");
        assert!(datapath.attach_hold("nothing").is_err());
        datapath.attach_hold("hold").unwrap();
        let (device, key) = hold(&pinned);
        assert_eq!(device, index);
        assert!(key[0] != 0 && key[1] != 0 && key[0] != key[1], "{key:?}");
        let first = on("hold");
        assert_eq!(first.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["from_hold"]);
        assert_eq!((datapath.counters().unwrap().held, datapath.counters().unwrap().released), (0, 0));
        drop(datapath);
        assert_eq!(
            (on("hold"), hold(&pinned)),
            (first.clone(), (index, key)),
            "it stays when the agent is gone"
        );

        let (mut datapath, _) = Datapath::open(&root.options()).unwrap();
        datapath.attach_hold("hold").unwrap();
        assert_eq!(hold(&pinned), (index, key), "what waits is known under the same key");
        let second = on("hold");
        assert_eq!(second.len(), 1);
        assert_ne!(second, first, "replaced, not added");

        datapath.detach_hold().unwrap();
        assert_eq!((hold(&pinned).0, on("hold")), (0, second), "nothing from it may go up the stack");
        datapath.attach_hold("hold").unwrap();
        drop(datapath);
        remove(&root.path()).unwrap();
        assert_eq!((leftovers(&root.path()).unwrap(), on("hold")), (vec![], vec![]));
    });
}

#[test]
fn a_device_made_anew_is_another() {
    in_a_namespace(|root| async move {
        let pinned = Pinned::of(&root);
        let before = make("hold", "reader").await;
        let (mut datapath, _) = Datapath::open(&root.options()).unwrap();
        datapath.attach_hold("hold").unwrap();
        delete(before).await;
        let after = make("hold", "reader").await;
        assert_ne!(before, after);
        datapath.attach_hold("hold").unwrap();
        assert_eq!((hold(&pinned).0, on("hold").len()), (after, 1));
        // One of another name: of the first nothing is left.
        delete(after).await;
        let other = make("hold1", "reader").await;
        datapath.attach_hold("hold1").unwrap();
        assert_eq!((hold(&pinned).0, on("hold1").len()), (other, 1));
        let links = root.path().join(format!("v{}/links", abi::SCHEMA));
        let pins: Vec<_> = std::fs::read_dir(links).unwrap().map(|pin| pin.unwrap().file_name()).collect();
        assert_eq!(pins, ["hold1-from_hold"]);
    });
}

#[test]
fn a_kernel_without_tcx_has_it_by_clsact() {
    in_a_namespace(|root| async move {
        make("hold", "reader").await;
        let clsact = Options { hook: Hook::Clsact, ..root.options() };
        let (mut datapath, _) = Datapath::open(&clsact).unwrap();
        datapath.attach_hold("hold").unwrap();
        assert_eq!(on("hold"), []);
        // Looking takes it away.
        let detached = aya::programs::tc::qdisc_detach_program("hold", TcAttachType::Ingress, "from_hold");
        assert!(detached.is_ok(), "{detached:?}");
    });
}
