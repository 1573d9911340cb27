//! What crosses between workloads is as large as their devices allow, in one piece or in many, in both families.
//! Needs root and the kernel. Crafted fragments and extension headers are in the program tests.
#![allow(clippy::unwrap_used, reason = "a scenario that cannot go on has failed")]

use std::net::{IpAddr, SocketAddr};

use conformance::lab::{Node, Outcome, Workload, binary, wait_until};

const ANY: &[&str] = &["org=empire"];

/// UDP port 80 of the deathstar is for the empire.
const POLICY: &str = "
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: datagrams}
spec:
  endpointSelector: {matchLabels: {class: deathstar}}
  ingress:
  - fromEndpoints: [{matchLabels: {org: empire}}]
    toPorts: [{ports: [{port: '80', protocol: UDP}]}]
";

/// A workload that asks, line by line.
fn asker(node: &Node, name: &str, labels: &[&str]) -> Workload {
    node.start(name, labels, &[binary("probe").to_str().unwrap(), "ask"])
}

fn ask(asker: &mut Workload, transport: &str, to: IpAddr, length: usize) -> String {
    asker.session.ask(&format!("{transport} {} {length}", SocketAddr::new(to, 80)))
}

fn drops(node: &Node, reason: &str) -> usize {
    let arguments = ["observe", "--verdict", "DROPPED", "--last", "1000", "--drop-reason", reason];
    node.ferromesh(&arguments).success().lines().count()
}

fn interface(node: &Node, name: &str) -> String {
    node.json(&["endpoint", "get", name])["endpoint"]["interface"].as_str().unwrap().to_owned()
}

/// Bytes and packets that a workload has sent, as its host-side veth counts them.
fn sent(node: &Node, name: &str) -> (u64, u64) {
    let interface = interface(node, name);
    let text = Outcome::of(node.inside("ip").args(["-s", "-j", "link", "show", "dev", &interface])).success();
    let links: serde_json::Value = serde_json::from_str(&text).unwrap();
    let count = |field: &str| links[0]["stats64"]["rx"][field].as_u64().unwrap();
    (count("bytes"), count("packets"))
}

#[test]
fn datagrams_of_any_size_cross_at_any_mtu() {
    for settings in ["", ", mtu: 9000", ", mtu: 1280"] {
        let node = Node::up_with(settings);
        let server = node.serve("deathstar", ANY, 80);
        let mut client = asker(&node, "tiefighter", ANY);
        for to in server.addresses {
            for length in [1, 1200, 1400, 1500, 8_000, 8_900, 60_000, 65_507] {
                assert_eq!(
                    ask(&mut client, "datagram", to, length),
                    "answered",
                    "{length} bytes to {to}{settings}"
                );
            }
        }
        for reason in ["First logical datagram fragment not found", "IP fragmentation not supported"] {
            assert_eq!(drops(&node, reason), 0, "{reason}{settings}");
        }
    }
}

/// What the devices would cut into packets only on the wire crosses in large pieces, and whole.
#[test]
fn large_segments_cross_uncut() {
    for (settings, mtu) in [("", 1500), (", mtu: 9000", 9000), (", mtu: 1280", 1280)] {
        let node = Node::up_with(settings);
        let server = node.serve("deathstar", ANY, 80);
        let mut client = asker(&node, "tiefighter", ANY);
        for to in server.addresses {
            let before = sent(&node, "tiefighter");
            assert_eq!(ask(&mut client, "bulk", to, 8 << 20), "answered", "to {to}{settings}");
            let after = sent(&node, "tiefighter");
            let (bytes, packets) = (after.0 - before.0, after.1 - before.1);
            assert!(
                bytes >= 8 << 20 && bytes / packets > mtu,
                "{bytes} bytes in {packets} packets{settings}"
            );
        }
        assert_eq!(drops(&node, "Packet too big"), 0, "each segment fits by itself");
    }
}

/// One workload's interface is narrower than the others': senders learn it from our answers.
#[test]
fn senders_learn_of_a_narrower_way() {
    let node = Node::up();
    let server = node.serve("deathstar", ANY, 80);
    let near = interface(&node, "deathstar");
    Outcome::of(node.inside("ip").args(["link", "set", "dev", &near, "mtu", "1280"])).success();
    Outcome::of(node.within("deathstar", "ip").args(["link", "set", "dev", "eth0", "mtu", "1280"])).success();
    for length in [1_400, 8_000, 60_000] {
        // Each a client that has not been told yet.
        let mut client = asker(&node, &format!("tiefighter-{length}"), ANY);
        for to in server.addresses {
            let told = drops(&node, "Packet too big");
            wait_until(&format!("datagrams of {length} bytes to {to} fit"), || {
                ask(&mut client, "datagram", to, length) == "answered"
            });
            wait_until(&format!("{to} was found narrow"), || drops(&node, "Packet too big") > told);
            assert_eq!(ask(&mut client, "bulk", to, 1 << 20), "answered", "TCP to {to}");
        }
    }
}

/// T27: policy judges every piece by the ports of the first.
#[test]
fn a_datagram_in_pieces_is_judged_as_a_whole_one() {
    let node = Node::up();
    let server = node.serve("deathstar", &["class=deathstar"], 80);
    node.apply("datagrams.yaml", POLICY);
    let mut ally = asker(&node, "tiefighter", &["org=empire"]);
    let mut rebel = asker(&node, "xwing", &["org=alliance"]);
    for to in server.addresses {
        for length in [4, 8_000, 60_000] {
            assert_eq!(ask(&mut ally, "datagram", to, length), "answered", "{length} bytes to {to}");
            assert_eq!(ask(&mut rebel, "datagram", to, length), "silent", "{length} bytes to {to}");
        }
    }
    wait_until("later pieces are refused for want of the first", || {
        drops(&node, "First logical datagram fragment not found") > 0
    });
}
