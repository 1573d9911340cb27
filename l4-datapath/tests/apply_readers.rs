//! What the programs report arrives: an event, a counter, a metric, a collection. Needs root and BPF.
#![allow(clippy::unwrap_used, reason = "clippy knows only functions marked as tests to be tests")]

mod support;

use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;

use l4_datapath::event::wall_clock_offset;
use l4_datapath::flow::Context;
use l4_datapath::metrics::Metrics;
use l4_datapath::{Datapath, Error, leftovers};
use linux::netlink::{Netlink, VethEnd};
use linux::scratch::Namespace;
use mesh::flow::Verdict;
use prometheus_client::registry::Registry;
use support::{PinRoot, endpoint, id, net, open, plan};

#[test]
fn a_drop_is_an_event_a_counter_and_a_metric() {
    let root = PinRoot::new();
    let scratch = Namespace::new("ferromesh-datapath").unwrap();
    scratch.namespace().inside_async(|| drop_and_read(&root)).unwrap();
    assert!(!leftovers(&root.path()).unwrap().is_empty(), "dropping the datapath takes nothing away");
}

async fn drop_and_read(root: &PinRoot) {
    let mut wanted = plan(vec![(1, 300, open(), open())]);
    let planned = wanted.endpoints.get_mut(&id(1)).unwrap();
    planned.endpoint.ifindex = make_veth().await;
    let facts = planned.endpoint.clone();
    let (mut datapath, _) = Datapath::open(&root.options()).unwrap();
    datapath.apply(&wanted).unwrap();
    datapath.attach(&facts).unwrap();
    let mut reader = datapath.events().unwrap();
    assert!(matches!(datapath.events(), Err(Error::EventsTaken)));

    // An address that the endpoint does not have: the question who has 10.0.0.1 must not pass.
    let socket = UdpSocket::bind("10.0.0.99:0").unwrap();
    socket.send_to(b"?", "10.0.0.1:53").unwrap();
    let mut events = Vec::new();
    tokio::time::timeout(Duration::from_secs(10), reader.read(&mut events)).await.unwrap().unwrap();

    let context = Context::new("node1".to_owned(), Arc::new(wanted), datapath.attribution());
    let flow = context.flow(&events[0], wall_clock_offset()).unwrap();
    assert_eq!((flow.verdict, flow.interface.as_str()), (Verdict::Dropped, "fmtest1"));
    let counters = datapath.counters().unwrap();
    assert!(counters.drops.iter().any(|row| row.ifindex == facts.ifindex && row.packets > 0), "{counters:?}");
    assert_eq!((counters.generation, counters.lost_events), (1, 0));
    assert_eq!(counters.maps["ENDPOINTS"].used, Some(3));

    let mut registry = Registry::default();
    Metrics::register(&mut registry).set(&counters, &context);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    assert!(text.contains("drop_total{reason=\"Forbidden neighbour message\""), "{text}");
    assert!(text.contains("endpoint=\"default/w1\""), "{text}");

    let collected = datapath.collect_connections().unwrap();
    assert_eq!((collected.live4, collected.live6, collected.expired), (0, 0, 0));
    assert_eq!(datapath.counters().unwrap().maps["CONNECTIONS4"].used, Some(0));
    datapath.detach(id(1)).unwrap();
    assert!(datapath.counters().unwrap().drops.is_empty(), "the counters of an endpoint go with it");
}

/// Both ends in this namespace, up; index of the node's side.
async fn make_veth() -> u32 {
    let netlink = Netlink::open().unwrap();
    let facts = endpoint(1);
    let here = VethEnd { name: &facts.interface, mac: facts.gateway_mac.0, arp: true, mtu: 1500 };
    let there = VethEnd { name: "peer", mac: facts.mac.0, arp: true, mtu: 1500 };
    netlink.add_veth(here, there, None).await.unwrap();
    let node = netlink.link(&facts.interface).await.unwrap().unwrap().index;
    let peer = netlink.link("peer").await.unwrap().unwrap().index;
    netlink.add_address(peer, net("10.0.0.99/24")).await.unwrap();
    netlink.set_up(peer, true).await.unwrap();
    netlink.set_up(node, true).await.unwrap();
    node
}
