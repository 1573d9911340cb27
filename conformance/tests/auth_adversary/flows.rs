//! What a mark is good for: one pair of instances, and nothing policy does not say.

use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;

use conformance::lab::{Node, Outcome, Session, Workload, binary, wait_until};

use crate::scene::{HASTY, Scene, asker, at, certified_asker, drops, known, marks_of, proven};

/// T45. The policy says port 80 over TCP; the mark of the pair lives, and everything else is tried with it.
#[test]
fn a_mark_opens_no_other_port_protocol_or_direction() {
    const NARROW: &str = "\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: proven, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: server}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: client}}]
    toPorts: [{ports: [{port: '80', protocol: TCP}]}]
    authentication: {mode: required}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: nobody, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: client}}
  ingress: [{}]
";
    let scene = Scene::required("");
    scene.mesh.apply("proven.yaml", NARROW);
    let node = &scene.mesh.nodes[0];
    let client = node.serve("client", &[], 80);
    known(&scene.mesh.nodes[1], &client);
    let probe = binary("probe");
    let ask = |from: &str, how: &str, to: SocketAddr| {
        Outcome::of(scene.node_of(from).within(from, &probe).args([how, &to.to_string()])).stdout
    };
    for which in [0, 1] {
        let server = scene.server.addresses[which];
        assert_eq!(ask("client", "tcp", at(server, 80)), "answered", "{which}");
        assert_eq!(ask("client", "udp", at(server, 80)), "silent", "another protocol, {which}");
        assert_eq!(ask("client", "tcp", at(server, 81)), "silent", "another port, {which}");
        assert_eq!(ask("server", "tcp", at(client.addresses[which], 80)), "silent", "back, {which}");
        assert_eq!(ask("server", "udp", at(client.addresses[which], 80)), "silent", "back, {which}");
        assert_eq!(ask("client", "tcp", at(server, 80)), "answered", "{which}, still");
    }
    assert_eq!(marks_of(node, "client"), 1, "{:?}", proven(node));
}

/// Fault 2. A mark is not of labels, nor of a node.
#[test]
fn a_second_workload_of_the_same_labels_has_a_mark_of_its_own() {
    let scene = Scene::required("");
    let node = &scene.mesh.nodes[0];
    let (mut client, mut twin) = (scene.hold("client", 0), scene.hold("twin", 0));
    assert_eq!((client.ask("one"), twin.ask("one")), ("answered".to_owned(), "answered".to_owned()));
    let pairs = proven(node);
    assert_eq!(pairs.len(), 2, "{pairs:?}");
    assert_ne!(pairs[0]["mark"], pairs[1]["mark"], "{pairs:?}");
    client.kill();
    wait_until("the mark of the one is gone on both nodes", || {
        scene.mesh.nodes.iter().all(|node| marks_of(node, "client") == 0)
    });
    assert_eq!(twin.ask("two"), "answered");
    assert!(scene.mesh.nodes.iter().all(|node| marks_of(node, "twin") == 1));
}

/// T46. The connection has ended, its mark is taken away, and a packet with the same five numbers comes.
#[test]
fn a_connection_that_has_ended_leaves_nothing_for_the_next_with_its_numbers() {
    let scene = Scene::required("");
    let node = &scene.mesh.nodes[0];
    let mut client = certified_asker(node, "client");
    let call = format!("tcp {}", scene.to(0));
    assert_eq!(client.session.ask(&call), "answered");
    scene.mesh.place("client", &["app=other"], 0);
    wait_until("its marks are gone", || scene.mesh.nodes.iter().all(|node| marks_of(node, "client") == 0));
    assert_eq!(client.session.ask(&call), "silent");
    assert!(drops(&scene.mesh.nodes[1]).contains("Policy denied") || drops(node).contains("Policy denied"));
    let probe = binary("probe");
    for case in ["ack", "rst", "syn-ack"] {
        let to = scene.server.addresses[0].to_string();
        Outcome::of(node.within("client", &probe).args(["forge", case, &to])).success();
    }
    wait_until("they belong to no connection", || drops(node).contains("No connection"));
}

/// Two nodes; all IPv4 addresses that the first has for workloads are taken, by a client and by others who stay: whoever
/// comes after the client gets its address.
struct OneAddress {
    scene: Scene,
    client: Workload,
    _others: Vec<Session>,
}

impl OneAddress {
    fn new() -> Self {
        let scene = Scene::required_with(HASTY, "10.77.0.0/24", "10.77.0.0/29");
        let other = |number: u8| {
            format!(
                "---\napiVersion: ferromesh.io/v1alpha1\nkind: Workload\n\
                 metadata: {{name: other-{number}, namespace: default}}\nspec: {{node: node-0}}\n"
            )
        };
        scene.mesh.apply("others.yaml", &(0..8).map(other).collect::<String>());
        let client = certified_asker(&scene.mesh.nodes[0], "client");
        let others =
            (0..8).map_while(|number| begin(&scene.mesh.nodes[0], &format!("other-{number}"))).collect();
        Self { scene, client, _others: others }
    }
}

/// Clients by the line as a workload, if there is an address for it.
fn begin(node: &Node, name: &str) -> Option<Session> {
    let probe = binary("probe");
    let mut command = node.run_command(name, &[], &[probe.to_str().unwrap(), "ask"]);
    let session = Session::start(command.stderr(Stdio::null()));
    (session.hear().as_deref() == Some("open")).then_some(session)
}

/// The next workload with the one address, as soon as that may be.
fn successor(node: &Node, name: &str, address: IpAddr) -> Session {
    let mut next = None;
    wait_until("the address has rested", || {
        next = begin(node, name);
        next.is_some()
    });
    assert_eq!(node.json(&["endpoint", "get", name])["endpoint"]["ipv4"], address.to_string());
    next.unwrap()
}

/// T41. The address of a proven client passes to somebody else, at the first moment at which it can.
#[test]
fn whoever_gets_a_proven_clients_address_gets_nothing_with_it() {
    let OneAddress { scene, mut client, _others } = OneAddress::new();
    let (node, address) = (&scene.mesh.nodes[0], client.addresses[0]);
    let call = format!("tcp {}", scene.to(0));
    assert_eq!(client.session.ask(&call), "answered");
    assert!(begin(node, "stranger").is_none(), "there is one address");
    client.session.kill();
    let mut thief = successor(node, "stranger", address);
    assert_eq!(thief.ask(&call), "silent");
    assert_eq!(thief.ask(&format!("udp {}", scene.to(0))), "silent");
    thief.kill();
    assert_eq!(successor(node, "twin", address).ask(&call), "answered", "who may has a proof of its own");
}

/// T44. The same while the other node hears nothing of it.
#[test]
fn whoever_gets_the_address_behind_a_partition_gets_nothing_with_it() {
    let OneAddress { scene, mut client, _others } = OneAddress::new();
    let (node, address) = (&scene.mesh.nodes[0], client.addresses[0]);
    let call = format!("tcp {}", scene.to(0));
    assert_eq!(client.session.ask(&call), "answered");
    scene.mesh.partition(0, true);
    client.session.kill();
    let mut thief = successor(node, "stranger", address);
    scene.mesh.partition(0, false);
    assert_eq!(thief.ask(&call), "silent", "at the first packet that arrives");
    wait_until("the nodes talk again", || {
        let nodes = node.json(&["auth", "nodes"]);
        nodes.as_array().unwrap().iter().any(|node| node["connected"] == true)
    });
    assert_eq!(thief.ask(&call), "silent");
    assert_eq!(marks_of(&scene.mesh.nodes[1], "client"), 0);
}

/// T43. Neither a workload that is just being made nor one whose agent is dead is judged by anything less.
#[test]
fn with_the_agent_dead_who_is_proven_goes_on_and_nobody_else_begins() {
    let mut scene = Scene::required("");
    let mut live = scene.hold("client", 0);
    let mut stranger = asker(&scene.mesh.nodes[0], "stranger");
    let call = format!("tcp {}", scene.to(0));
    assert_eq!(live.ask("before"), "answered");
    scene.mesh.nodes.iter_mut().for_each(Node::kill_agent);
    assert_eq!(live.ask("during"), "answered");
    assert_eq!(stranger.session.ask(&call), "silent");
    scene.mesh.nodes.iter_mut().for_each(Node::start_agent);
    assert_eq!(live.ask("after"), "answered");
    assert_eq!(stranger.session.ask(&call), "silent");
    assert_eq!(scene.attempt("twin", "tcp", 1), "answered", "a first packet of a first moment");
}
