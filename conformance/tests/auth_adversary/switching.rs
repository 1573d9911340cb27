//! While a policy that asks for proofs waits to come into force, a second at most, for those who may have something open.

use conformance::lab::{Session, binary, policy, wait_until};

use crate::scene::{Scene, Stopped, asker, at, certified_asker, is_dead, known, marks_of, placed_on};

/// Rounds until one is seen whose every step came within the second.
const ROUNDS: usize = 10;

/// A client is relabelled while two others are waited for who cannot be proven, since the other node's auth-agent does not
/// answer. It loses its connection while they still have theirs, which they do until the policy is in force; neither it nor
/// they open another.
#[test]
fn who_is_relabelled_while_others_are_waited_for_is_dead_before_they_are_through() {
    let scene = Scene::required("");
    let [other, node] = &scene.mesh.nodes[..] else { panic!("two nodes") };
    scene.mesh.place("open", &["app=open"], 0);
    scene.mesh.place("waiting", &["app=waiting"], 1);
    let open = other.serve("open", &[], 80);
    known(node, &open);
    let mut near = certified_asker(node, "near");
    let mut waiting = asker(node, "waiting");
    let (server, open) = (scene.to(0).to_string(), at(open.addresses[0], 80).to_string());
    let asked = policy(
        "later",
        "app: waiting",
        &["egress: [{toEndpoints: [{matchLabels: {app: open}}], authentication: {mode: required}}]"],
    );
    let hold = |name: &str, to: &str| {
        let mut live = Session::start(node.within(name, binary("probe")).args(["hold", to]));
        assert_eq!((live.line(), live.ask("before")), ("open".to_owned(), "answered".to_owned()), "{name}");
        live
    };
    let is_seen = (0..ROUNDS).any(|_| {
        let mut withdrawn = hold("near", &server);
        let mut waited_for = hold("waiting", &open);
        let mute = Stopped::new(other, "auth-agent");
        scene.mesh.admin("later.yaml", &asked);
        wait_until("they are being proven", || state(node, "waiting") == "proving");
        scene.mesh.admin("workload-near.yaml", &placed_on("near", "app: other", "near", 1));
        wait_until("the connection is dead", || is_dead(&withdrawn.ask("after")));
        let is_before = waited_for.ask("during") == "answered";
        // Whatever is in force by now.
        assert_ne!(near.session.ask(&format!("tcp {server}")), "answered");
        assert_eq!(marks_of(node, "near"), 0);
        wait_until("it is in force", || waited_for.ask("after") != "answered");
        assert_ne!(waiting.session.ask(&format!("tcp {open}")), "answered");
        drop(mute);
        wait_until("they are proven", || waiting.session.ask(&format!("tcp {open}")) == "answered");
        assert_ne!(near.session.ask(&format!("tcp {server}")), "answered");
        scene.mesh.withdraw("later.yaml");
        scene.mesh.place("near", &["app=client"], 1);
        wait_until("it is proven again", || near.session.ask(&format!("tcp {server}")) == "answered");
        is_before
    });
    assert!(is_seen, "nobody was withdrawn before the policy was in force");
}

/// How the pairs of a workload of this node stand.
fn state(node: &conformance::lab::Node, workload: &str) -> String {
    let pairs = node.json(&["auth", "pairs"]);
    let name = format!("default/{workload}");
    let its = pairs.as_array().unwrap().iter().find(|pair| pair["local_workload"] == name);
    its.and_then(|pair| pair["state"].as_str()).unwrap_or_default().to_owned()
}
