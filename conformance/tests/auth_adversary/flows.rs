//! What a mark is good for: one pair of instances, and nothing policy does not say.

use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;

use conformance::lab::{Node, Outcome, Session, Workload, binary, policy, wait_until};
use serde_json::Value;

use crate::scene::{
    HASTY, Scene, Stopped, asker, at, certified_asker, is_dead, known, marks_of, placed, placed_on, proven,
    restless,
};

/// T45. The policy says port 80 over TCP; the mark of the pair lives, and everything else is tried with it.
#[test]
fn a_mark_opens_no_other_port_protocol_or_direction() {
    let narrow = policy(
        "proven",
        "app: server",
        &[
            "ingress:",
            "- fromEndpoints: [{matchLabels: {app: client}}]",
            "  toPorts: [{ports: [{port: '80', protocol: TCP}]}]",
            "  authentication: {mode: required}",
        ],
    );
    let nobody = policy("nobody", "app: client", &["ingress: [{}]"]);
    let scene = Scene::required("");
    scene.mesh.apply("proven.yaml", &[narrow, nobody].join("---\n"));
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

/// T46. The connection has ended, its mark is taken away, and packets with the same five numbers come: what it would have
/// sent next, and the first of another. Policy would let them pass if who sends them proved who he is now.
#[test]
fn a_connection_that_has_ended_leaves_nothing_for_the_next_with_its_numbers() {
    let scene = Scene::required("");
    let (node, probe) = (&scene.mesh.nodes[0], binary("probe"));
    let mut watch = Session::start(scene.node_of("server").beside("server", &probe).args(["last", "80"]));
    assert_eq!(watch.line(), "open");
    let mut heard = || watch.ask("").split(' ').nth(1).unwrap().parse::<u32>().unwrap();
    let client = certified_asker(node, "client");
    let (own, to) = (at(client.addresses[0], 40_000), scene.to(0).to_string());
    let mut live = Session::start(node.within("client", &probe).args(["hold", &to, "40000"]));
    assert_eq!((live.line(), live.ask("before")), ("open".to_owned(), "answered".to_owned()));
    let mut twin = certified_asker(node, "twin");
    assert_eq!(twin.session.ask(&format!("tcp {to}")), "answered");
    // Who watches may be a moment behind who is spoken to.
    wait_until("both are heard", || heard() == 2);
    live.finish();
    let has_ended = |node: &Node| {
        let rows = node.json(&["ct", "list"]);
        let row = rows.as_array().unwrap().iter().find(|row| row["source"] == own.to_string());
        row.is_none_or(|row| row["state"] == "closing")
    };
    wait_until("it has ended on both nodes", || scene.mesh.nodes.iter().all(has_ended));

    let _mute = Stopped::new(node, "ca");
    scene.mesh.apply("workload-client.yaml", &placed("client", "app: client", "somebody-else"));
    wait_until("its marks are gone", || scene.mesh.nodes.iter().all(|node| marks_of(node, "client") == 0));
    let server = scene.server.addresses[0].to_string();
    for case in ["data", "syn-with-data"] {
        Outcome::of(node.within("client", &probe).args(["forge", case, &server])).success();
    }
    assert_eq!(twin.session.ask(&format!("tcp {to}")), "answered", "what was sent before has arrived by now");
    wait_until("the twin is heard", || heard() >= 3);
    assert_eq!(heard(), 3, "the first connection's word, and the twin's two");
}

/// Two nodes; all IPv4 addresses that one has for workloads are taken, by one who is to leave and by others who stay: whoever
/// comes after gets his address.
struct OneAddress {
    scene: Scene,
    others: Vec<Session>,
}

impl OneAddress {
    /// All addresses of the first node but one are taken by others.
    fn new(node: usize) -> Self {
        let prefix = format!("10.77.{node}.0");
        let scene = Scene::edited(HASTY, node, &format!("{prefix}/24"), &format!("{prefix}/29"));
        let other = |number: u8| placed_on(&format!("other-{number}"), "", "other", node);
        scene.mesh.apply("others.yaml", &(0..8).map(other).collect::<Vec<_>>().join("---\n"));
        Self { scene, others: Vec::new() }
    }

    /// The one address of the first node is a client's that has just called the server, and would do so again by this.
    fn of_a_client() -> (Self, Workload, String) {
        let mut one = Self::new(0);
        let mut client = certified_asker(&one.scene.mesh.nodes[0], "client");
        one.fill(0);
        let call = format!("tcp {}", one.scene.to(0));
        assert_eq!(client.session.ask(&call), "answered");
        (one, client, call)
    }

    /// Nobody else gets an address from now on.
    fn fill(&mut self, node: usize) {
        let node = &self.scene.mesh.nodes[node];
        self.others.extend((0..8).map_while(|number| begin(node, &format!("other-{number}"), &["ask"])));
        assert!(begin(node, "other-7", &["ask"]).is_none(), "every address is taken");
    }
}

/// A mode of `probe` as a workload, if there is an address for it.
fn begin(node: &Node, name: &str, mode: &[&str]) -> Option<Session> {
    let probe = binary("probe");
    let mut command = node.run_command(name, &[], &[&[probe.to_str().unwrap()], mode].concat());
    let session = Session::start(command.stderr(Stdio::null()));
    session.hear().is_some_and(|word| ["open", "serving"].contains(&word.as_str())).then_some(session)
}

/// The next workload with the one address, as soon as that may be.
fn successor(node: &Node, name: &str, address: IpAddr, mode: &[&str]) -> Session {
    let mut next = None;
    wait_until("the address has rested", || {
        next = begin(node, name, mode);
        next.is_some()
    });
    assert_eq!(node.json(&["endpoint", "get", name])["endpoint"]["ipv4"], address.to_string());
    next.unwrap()
}

/// Under which accounts somebody at this address has called a workload of a node and was let pass as proven, in order.
fn callers(node: &Node, workload: &str, from: IpAddr) -> Vec<String> {
    let pod = format!("default/{workload}");
    let flows = node.ferromesh(&["observe", "--pod", &pod, "--last", "1000", "-o", "json"]).success();
    let flows = flows.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let its = flows.filter(|flow| flow["source"]["address"] == from.to_string());
    let proven = its.filter(|flow| flow["authentication"]["state"] == "proven");
    let account = |id: &Value| id.as_str().unwrap().rsplit('/').next().unwrap().to_owned();
    let mut callers: Vec<_> = proven.map(|flow| account(&flow["authentication"]["source"])).collect();
    callers.dedup();
    callers
}

/// T41. The address of a proven client passes to somebody else, at the first moment at which it can. Policy asks of him
/// what it asked of the client, and he has no certificate of his own yet.
#[test]
fn whoever_gets_a_proven_clients_address_gets_nothing_with_it() {
    let (one, mut client, call) = OneAddress::of_a_client();
    let OneAddress { scene, .. } = &one;
    let (node, address) = (&scene.mesh.nodes[0], client.addresses[0]);
    let mute = Stopped::new(node, "ca");
    client.session.kill();
    let mut thief = successor(node, "twin", address, &["ask"]);
    for call in [call.clone(), format!("udp {}", scene.to(0))] {
        assert_ne!(thief.ask(&call), "answered");
    }
    assert!(scene.mesh.nodes.iter().all(|node| proven(node).is_empty()));
    drop(mute);
    wait_until("he has a proof of his own", || thief.ask(&call) == "answered");
    let server = scene.node_of("server");
    assert_eq!((marks_of(server, "twin"), marks_of(server, "client")), (1, 0));
    wait_until("it is told who called, and when", || {
        callers(server, "server", address) == ["client", "twin"]
    });
}

/// T41, T43. The same of a server: who called the one does not get to the other by what was proven of the one. Who may call
/// neither goes on trying while the one ends and the other begins.
#[test]
fn whoever_gets_a_proven_servers_address_is_not_taken_for_it() {
    let mut one = OneAddress::new(1);
    one.fill(1);
    let OneAddress { scene, .. } = &mut one;
    scene.mesh.apply("workload-heir.yaml", &placed_on("heir", "app: server", "heir", 1));
    let (call, address) = (format!("tcp {}", scene.to(0)), scene.server.addresses[0]);
    let mut live = scene.hold("client", 0);
    let mut twin = certified_asker(&scene.mesh.nodes[0], "twin");
    assert_eq!((live.ask("before"), twin.session.ask(&call)), ("answered".to_owned(), "answered".to_owned()));
    let mut stranger = restless(scene, "stranger", 0);
    let mute = Stopped::new(&scene.mesh.nodes[0], "ca");
    scene.server.session.kill();
    let _heir = successor(&scene.mesh.nodes[1], "heir", address, &["serve", "80"]);
    wait_until("the connection is dead", || is_dead(&live.ask("after")));
    assert_ne!(twin.session.ask(&call), "answered");
    drop(mute);
    wait_until("there is a proof of the two", || twin.session.ask(&call) == "answered");
    assert_eq!((marks_of(&scene.mesh.nodes[1], "heir"), marks_of(&scene.mesh.nodes[1], "server")), (2, 0));
    let counts = stranger.ask("");
    assert!(counts.starts_with("0 good, ") && !counts.ends_with(" 0 bad"), "{counts}");
}

/// T44. The same behind a partition: the other node hears nothing of it.
#[test]
fn whoever_gets_the_address_behind_a_partition_gets_nothing_with_it() {
    let (one, mut client, call) = OneAddress::of_a_client();
    let OneAddress { scene, .. } = &one;
    let (node, address) = (&scene.mesh.nodes[0], client.addresses[0]);
    let mute = Stopped::new(node, "ca");
    scene.mesh.partition(0, true);
    client.session.kill();
    let mut thief = successor(node, "twin", address, &["ask"]);
    scene.mesh.partition(0, false);
    assert_ne!(thief.ask(&call), "answered", "at the first packet that arrives");
    wait_until("the nodes talk again", || {
        let nodes = node.json(&["auth", "nodes"]);
        nodes.as_array().unwrap().iter().any(|node| node["connected"] == true)
    });
    assert_ne!(thief.ask(&call), "answered");
    assert_eq!(marks_of(&scene.mesh.nodes[1], "client"), 0);
    drop(mute);
    wait_until("he has a proof of his own", || thief.ask(&call) == "answered");
    assert_eq!(marks_of(&scene.mesh.nodes[1], "twin"), 1);
}

/// Whose address a node takes it for.
fn known_as(node: &Node, address: IpAddr) -> Value {
    let rows = node.json(&["ip", "list"]);
    let its = |row: &&Value| row["prefix"] == format!("{address}/32");
    rows.as_array().unwrap().iter().find(its).unwrap()["identity"].clone()
}

/// T44. A node is cut off from who decides: the authority that it sees stays as it was, the client's address with it, and
/// the network does not stop. The one who has the address meanwhile may call the server, and has a certificate.
#[test]
fn a_node_whose_authority_is_stale_takes_nobody_for_who_had_the_address() {
    let (mut one, mut client, call) = OneAddress::of_a_client();
    let OneAddress { scene, .. } = &mut one;
    let address = client.addresses[0];
    scene.mesh.blindfold(1, true);
    let before = known_as(&scene.mesh.nodes[1], address);
    assert_eq!(client.session.ask(&call), "answered");
    client.session.kill();
    let mut thief = successor(&scene.mesh.nodes[0], "twin", address, &["ask"]);
    wait_until("he has a certificate", || {
        let rows = scene.mesh.nodes[0].json(&["auth", "list"]);
        rows.as_array().unwrap().iter().any(|row| {
            row["serial"].is_string() && row["id"].as_str().is_some_and(|id| id.ends_with("/sa/twin"))
        })
    });
    assert_eq!(known_as(&scene.mesh.nodes[1], address), before, "the other node has heard of nothing");
    for call in [call.clone(), format!("udp {}", scene.to(0)), call.clone()] {
        assert_ne!(thief.ask(&call), "answered");
        assert_eq!(marks_of(&scene.mesh.nodes[1], "client"), 0);
    }
    scene.mesh.blindfold(1, false);
    wait_until("it sees who he is", || thief.ask(&call) == "answered");
    assert_eq!(marks_of(&scene.mesh.nodes[1], "twin"), 1);
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
