//! Processes that are killed, roots and certificates that come and go, floods.

use std::fs;
use std::time::Instant;

use conformance::lab::{Node, Outcome, Session, binary, wait_until};

use crate::scene::{HASTY, Scene, asker, at, certified_asker, is_dead, known, marks_of, processes, proven};

/// The CA is killed and nobody is there to start it again: who has certificates proves itself anew, who is new waits.
#[test]
fn without_the_ca_proofs_go_on_and_who_is_new_waits_for_it() {
    let mut scene = Scene::required(HASTY);
    let mut client = certified_asker(&scene.mesh.nodes[0], "client");
    let call = format!("tcp {}", scene.to(0));
    assert_eq!(client.session.ask(&call), "answered");
    scene.mesh.nodes[0].kill_agent();
    let [pid] = processes(&scene.mesh.nodes[0], "ca")[..] else { panic!("one CA runs") };
    linux::process::send(pid, 9).unwrap();
    scene.mesh.partition(1, true);
    wait_until("the marks have ended", || marks_of(&scene.mesh.nodes[1], "client") == 0);
    scene.mesh.partition(1, false);
    wait_until("there is a new proof", || {
        marks_of(&scene.mesh.nodes[1], "client") == 1 && client.session.ask(&call) == "answered"
    });
    let mut near = asker(&scene.mesh.nodes[1], "near");
    assert_eq!(near.session.ask(&call), "silent", "it has no certificate");
    assert_eq!(processes(&scene.mesh.nodes[0], "ca"), [0; 0]);
    scene.mesh.nodes[0].start_agent();
    wait_until("it has one", || near.session.ask(&call) == "answered");
}

/// `down` on one node, its agent killed before: nothing is left of it there, and no mark for it at the other.
#[test]
fn down_of_a_node_leaves_nothing_there_and_no_mark_elsewhere() {
    let mut scene = Scene::required(HASTY);
    let mut live = scene.hold("client", 0);
    assert_eq!(live.ask("before"), "answered");
    scene.mesh.nodes[1].kill_agent();
    let node = &scene.mesh.nodes[1];
    node.verb("down", &[]).success();
    node.verb("check", &["--clean"]).success();
    assert_eq!(processes(node, "auth-agent"), [0; 0]);
    assert!(!node.state().join("auth").exists(), "its keys are gone");
    wait_until("no mark is left", || proven(&scene.mesh.nodes[0]).is_empty());
}

/// T52. Every root is taken out of the bundle: every mark dies, on both nodes. Whoever needs none sees nothing of it.
#[test]
fn a_root_that_is_removed_takes_marks_and_connections_along() {
    let scene = Scene::required("");
    scene.mesh.place("open", &["app=open"], 1);
    let open = scene.mesh.nodes[1].serve("open", &[], 80);
    known(&scene.mesh.nodes[0], &open);
    let bystanders = ["steady", "hold", "hold-udp"].map(|mode| (mode, at(open.addresses[0], 80)));
    let _stranger = asker(&scene.mesh.nodes[0], "stranger");
    let [mut steady, tcp, udp] = bystanders.map(|(mode, to)| {
        let mut probe = scene.mesh.nodes[0].within("stranger", binary("probe"));
        let session = Session::start(probe.args([mode, &to.to_string()]));
        assert_eq!(session.line(), "open");
        session
    });
    let mut bystanders = [tcp, udp];
    assert_eq!(bystanders.each_mut().map(|live| live.ask("before")), ["answered"; 2]);
    let mut live = [scene.hold("client", 0), scene.hold("near", 1)];
    for live in &mut live {
        assert_eq!(live.ask("before"), "answered");
    }
    fs::write(scene.mesh.nodes[0].state().join("ca/bundle.pem"), "").unwrap();
    for node in &scene.mesh.nodes {
        wait_until("no mark is left", || proven(node).is_empty());
    }
    for live in &mut live {
        wait_until("the connection is dead", || is_dead(&live.ask("after")));
    }
    assert_eq!(scene.attempt("twin", "tcp", 0), "silent");
    assert_eq!(bystanders.each_mut().map(|live| live.ask("after")), ["answered"; 2]);
    let counts = steady.ask("");
    assert!(counts.ends_with(" good, 0 bad") && !counts.starts_with("0 "), "{counts}");
}

/// Serial numbers of a node's certificates.
fn serials(node: &Node) -> Vec<String> {
    let list = node.json(&["auth", "list"]);
    list.as_array().unwrap().iter().filter_map(|row| row["serial"].as_str().map(str::to_owned)).collect()
}

/// Roots that a node trusts.
fn roots(node: &Node) -> usize {
    let bundle = fs::read_to_string(node.state().join("auth/bundle.pem")).unwrap();
    bundle.matches("BEGIN CERTIFICATE").count()
}

/// Fault 9, T52. Root, intermediate and every certificate are replaced in the three steps of the manual, under connections
/// that stay and connections that come and go; no packet is lost to it.
#[test]
fn a_rotation_costs_no_packet() {
    let scene = Scene::required_with("", "node-0,", "node-0, svidLifetime: 20s,");
    let mut live = [scene.hold("client", 1), scene.hold("near", 0)];
    let mut steady = scene.stay("twin", "steady", 0);
    let state = scene.mesh.nodes[0].state();
    let rotate = || {
        let mut command = scene.mesh.nodes[0].inside(binary("ferromesh"));
        command.arg("ca").arg("--directory").arg(state.join("ca"));
        Outcome::of(command.arg("--rotate-root").arg(state.join("ca-root"))).success()
    };
    let mut alive = |when: &str| live.iter_mut().for_each(|live| assert_eq!(live.ask(when), "answered"));
    let trusted = |count| scene.mesh.nodes.iter().all(|node| roots(node) == count);
    alive("before");
    rotate();
    wait_until("both roots are trusted everywhere", || trusted(2));
    alive("two roots");
    rotate();
    let second = Instant::now();
    for (node, before) in
        scene.mesh.nodes.iter().zip(scene.mesh.nodes.iter().map(serials).collect::<Vec<_>>())
    {
        wait_until("every certificate is another, of the new root", || {
            alive("meanwhile");
            let now = serials(node);
            now.len() >= before.len() && now.iter().all(|serial| !before.contains(serial))
        });
    }
    // As the manual has it: `svidLifetime` after the second step no proof rests on a certificate of before.
    let is_new = |pair: &serde_json::Value| {
        pair["expires_in"].as_u64().is_some_and(|left| second.elapsed().as_secs() + left > 20)
    };
    wait_until("every proof is another", || {
        alive("meanwhile");
        scene.mesh.nodes.iter().all(|node| proven(node).iter().all(is_new))
    });
    rotate();
    wait_until("the new root alone is trusted", || trusted(1));
    alive("after");
    let counts = steady.ask("");
    assert!(counts.ends_with(" good, 0 bad") && !counts.starts_with("0 "), "{counts}");
    assert!(scene.mesh.nodes.iter().all(|node| !proven(node).is_empty()));
}

/// T55, T58. One workload sends first packets to everywhere as fast as it can: where a proof is needed, and where nobody
/// is known. Another's first connection opens, and what is withdrawn meanwhile is gone.
#[test]
fn a_flood_of_first_packets_delays_no_other_and_no_withdrawal() {
    let scene = Scene::required("");
    let node = &scene.mesh.nodes[0];
    let _twin = asker(node, "twin");
    let flood = |to: &str| {
        let mut command = node.within("twin", binary("probe"));
        Session::start(command.args(["syn-flood", to, "20000"]))
    };
    let _floods = [flood("10.77.1.99"), flood(&scene.server.addresses[1].to_string())];
    assert_eq!(scene.attempt("client", "tcp", 0), "answered");
    let mut live = scene.hold("client", 1);
    assert_eq!(live.ask("during"), "answered");
    scene.mesh.place("client", &["app=other"], 0);
    wait_until("it is withdrawn", || is_dead(&live.ask("during")));
}
