//! How what has lost its proof ends: at both ends, of those who speak and those who do not, whoever is left alive to do it.

use std::net::SocketAddr;

use certs::enrol::{Client, Denied, EnrolError};
use conformance::lab::{Node, Session, binary, wait_until};

use crate::compromise::{loot, on_the_second};
use crate::scene::{
    HASTY, Scene, Stopped, at, certified_asker, is_dead, kill, marks_of, placed, placed_on, processes, proven,
};

/// A server that tells of each connection how it has ended, beside the one that is there.
const TOLD: u16 = 81;

fn told(scene: &Scene) -> Session {
    let mut server = scene.node_of("server").within("server", binary("probe"));
    let session = Session::start(server.args(["ends", &TOLD.to_string()]));
    assert_eq!(session.line(), "serving");
    session
}

/// A mode of `probe` in a workload that runs already.
fn inside(node: &Node, workload: &str, mode: &[&str]) -> Session {
    let session = Session::start(node.within(workload, binary("probe")).args(mode));
    assert_eq!(session.line(), "open");
    session
}

/// The next so many ends of connections that the server tells: each of these was broken off, none was closed.
#[track_caller]
fn broken(ends: &Session, count: usize) {
    for _ in 0..count {
        let line = ends.line();
        let (_, word) = line.split_once(' ').unwrap();
        assert!(["reset", "aborted"].contains(&word), "{line}");
    }
}

/// Faults 7 and 8. Another account, whose certificate does not come; of two connections one says nothing. A third
/// workload's connections see nothing of it.
#[test]
fn a_withdrawal_breaks_off_both_ends_of_those_who_speak_and_those_who_do_not() {
    let scene = Scene::required("");
    let ends = told(&scene);
    let _twin = certified_asker(&scene.mesh.nodes[0], "twin");
    let steady = inside(&scene.mesh.nodes[0], "twin", &["steady", &scene.to(0).to_string()]);
    let mut bystanders = [steady, scene_crowd(&scene, "twin", 0)];
    for (from, number) in [("client", 0), ("near", 1)] {
        let _there = certified_asker(scene.node_of(from), from);
        let mut crowds = [0, 1].map(|which| scene_crowd(&scene, from, which));
        assert_eq!(crowds.each_mut().map(|crowd| crowd.ask("")), ["4 alive, 0 dead"; 2]);
        let _mute = Stopped::new(&scene.mesh.nodes[0], "ca");
        let object =
            placed(from, "app: client", "somebody-else").replace("node-0", &format!("node-{number}"));
        scene.mesh.apply(&format!("workload-{from}.yaml"), &object);
        broken(&ends, 8);
        for crowd in &mut crowds {
            wait_until("its own sockets are dead", || crowd.ask("") == "0 alive, 4 dead");
        }
    }
    let [steady, crowd] = &mut bystanders;
    assert_eq!(crowd.ask(""), "4 alive, 0 dead");
    let counts = steady.ask("");
    assert!(counts.ends_with(" good, 0 bad") && !counts.starts_with("0 "), "{counts}");
}

/// Four connections to the server that tells, of which two say something all the time.
fn scene_crowd(scene: &Scene, from: &str, which: usize) -> Session {
    let to = at(scene.server.addresses[which], TOLD).to_string();
    inside(scene.node_of(from), from, &["crowd", &to, "4"])
}

/// The socket has not been ended, for there is no agent beside it; what it sends is answered by ICMP.
#[test]
fn a_datagram_after_the_end_is_answered_with_administratively_prohibited() {
    let mut scene = Scene::required("");
    let _client = certified_asker(&scene.mesh.nodes[0], "client");
    let mut live = [0, 1]
        .map(|which| inside(&scene.mesh.nodes[0], "client", &["hold-udp", &scene.to(which).to_string()]));
    assert_eq!(live.each_mut().map(|live| live.ask("before")), ["answered"; 2]);
    scene.mesh.nodes[0].kill_agent();
    scene.mesh.admin("workload-client.yaml", &placed("client", "app: other", "client"));
    wait_until("its mark is gone", || marks_of(&scene.mesh.nodes[1], "client") == 0);
    // EHOSTUNREACH and EACCES: code 13 of RFC 1812, code 1 of RFC 4443.
    assert_eq!(live.each_mut().map(|live| live.ask("after")), ["unreachable", "prohibited"]);
}

/// Agents, auth-agents and the CA are killed, and nobody starts them again.
#[test]
fn with_all_user_space_dead_connections_end_with_the_grace() {
    let mut scene = Scene::required(HASTY);
    let ends = told(&scene);
    let _there =
        [("client", 0), ("near", 1)].map(|(name, node)| certified_asker(&scene.mesh.nodes[node], name));
    let mut live = [("client", 0), ("near", 1)].map(|(name, which)| {
        let to = at(scene.server.addresses[which], TOLD).to_string();
        inside(scene.node_of(name), name, &["hold", &to])
    });
    assert_eq!(live.each_mut().map(|live| live.ask("before")), ["answered"; 2]);
    scene.mesh.nodes.iter_mut().for_each(Node::kill_agent);
    for node in &scene.mesh.nodes {
        ["ca", "auth-agent"].iter().for_each(|verb| kill(node, verb));
    }
    for live in &mut live {
        let mut last = String::new();
        wait_until("the connection is dead", || {
            last = live.ask("after");
            last != "answered"
        });
        assert_eq!(last, "reset", "by the program: nobody is left to end a socket");
        assert_eq!(ends.line().split(' ').nth(1), Some("reset"));
    }
    let running =
        |node: &Node| ["ca", "auth-agent"].iter().map(|verb| processes(node, verb).len()).sum::<usize>();
    assert_eq!(scene.mesh.nodes.iter().map(running).sum::<usize>(), 0);
}

/// T51. The CA answers nobody any more: what a certificate has proven ends with it.
#[test]
fn a_certificate_that_nobody_renews_takes_its_connections_along() {
    let scene = Scene::required_with("", "node-0,", "node-0, svidLifetime: 10s,");
    let _there =
        [("client", 0), ("near", 1)].map(|(name, node)| certified_asker(&scene.mesh.nodes[node], name));
    let hold = |name| inside(scene.node_of(name), name, &["hold", &scene.to(0).to_string()]);
    let mut live = ["client", "near"].map(hold);
    assert_eq!(live.each_mut().map(|live| live.ask("before")), ["answered"; 2]);
    let _mute = Stopped::new(&scene.mesh.nodes[0], "ca");
    for live in &mut live {
        wait_until("the connection is dead", || is_dead(&live.ask("after")));
    }
    assert!(scene.mesh.nodes.iter().all(|node| proven(node).is_empty()));
    for name in ["client", "near"] {
        let mut again = scene.node_of(name).within(name, binary("probe"));
        let said = conformance::lab::Outcome::of(again.args(["tcp", &scene.to(0).to_string()])).stdout;
        assert_ne!(said, "answered", "{name}");
    }
}

/// Two connections to the server that tells, over which nothing is ever said.
fn idle(scene: &Scene, from: &str) -> Session {
    let to = at(scene.server.addresses[0], TOLD).to_string();
    let mut idle = inside(scene.node_of(from), from, &["idle", &to, "2"]);
    assert_eq!(idle.ask(""), "2 alive, 0 dead", "{from}");
    idle
}

/// The auth-agents, the agents or all of both nodes are killed, and clients are relabelled before anybody is back.
#[test]
fn who_is_relabelled_while_nobody_looks_loses_what_says_nothing_too() {
    let mut scene = Scene::required("");
    let ends = told(&scene);
    let clients = [("client", 0), ("near", 1)];
    let _there = ["client", "near", "twin"].map(|name| certified_asker(scene.node_of(name), name));
    let mut bystander = idle(&scene, "twin");
    for dead in [&["auth-agent"][..], &["agent"], &["agent", "auth-agent"]] {
        let mut live = clients.map(|(name, _)| idle(&scene, name));
        let agents_are_dead = dead.contains(&"agent");
        let stopped = if agents_are_dead {
            scene.mesh.nodes.iter_mut().for_each(Node::kill_agent);
            Vec::new()
        } else {
            // Nobody starts another auth-agent before the clients are somebody else.
            scene.mesh.nodes.iter().map(Stopped::agent).collect()
        };
        if dead.contains(&"auth-agent") {
            scene.mesh.nodes.iter().for_each(|node| kill(node, "auth-agent"));
        }
        for (name, number) in clients {
            let object = placed_on(name, "app: other", name, number);
            scene.mesh.admin(&format!("workload-{name}.yaml"), &object);
        }
        drop(stopped);
        if agents_are_dead {
            scene.mesh.nodes.iter_mut().for_each(Node::start_agent);
        }
        broken(&ends, 4);
        for live in &mut live {
            wait_until(&format!("{dead:?}: its own sockets are dead"), || live.ask("") == "0 alive, 2 dead");
        }
        drop(live);
        for (name, number) in clients {
            scene.mesh.place(name, &["app=client"], u8::try_from(number).unwrap());
        }
    }
    assert_eq!(bystander.ask(""), "2 alive, 0 dead");
}

/// What has lost its proof while there was no agent, and whoever could tell of it is dead, too: the next agent looks itself.
#[test]
fn what_ended_with_nobody_left_to_tell_of_it_is_found_by_the_next_agent() {
    let mut scene = Scene::required("");
    let ends = told(&scene);
    let _there = certified_asker(scene.node_of("near"), "near");
    let mut live = idle(&scene, "near");
    scene.mesh.nodes[1].kill_agent();
    std::fs::write(scene.mesh.nodes[0].state().join("ca/bundle.pem"), "").unwrap();
    let node = &scene.mesh.nodes[1];
    wait_until("it has lost what it has proven", || node.log("auth").contains("no proof: "));
    kill(node, "auth-agent");
    assert_eq!(live.ask(""), "2 alive, 0 dead", "nothing was sent, and nobody has ended it");
    scene.mesh.start(1);
    broken(&ends, 2);
    wait_until("its own sockets are dead", || live.ask("") == "0 alive, 2 dead");
}

/// The administrator takes one workload's certificate away: its object is removed, or says that it runs elsewhere. The
/// workload itself goes on, as somebody without labels whom policy lets hear nothing; its peers are reset. Another of the
/// same labels keeps what it has, until the same happens to its whole node.
#[test]
fn whose_object_is_removed_loses_certificate_and_connections_and_nobody_else_does() {
    let scene = Scene::required("");
    let (domain, node, bundles) = loot(&scene);
    let ends = told(&scene);
    let names = ["client", "near", "twin"];
    let _there = names.map(|name| certified_asker(scene.node_of(name), name));
    let to = at(scene.server.addresses[1], TOLD).to_string();
    let mut live = names.map(|name| inside(scene.node_of(name), name, &["hold", &to]));
    assert_eq!(live.each_mut().map(|live| live.ask("before")), ["answered"; 3]);
    let [client, near, twin] = &mut live;
    scene.mesh.withdraw("workload-near.yaml");
    broken(&ends, 1);
    assert_ne!(near.ask("after"), "answered");
    scene.mesh.place("client", &["app=client"], 1);
    broken(&ends, 1);
    assert_ne!(client.ask("after"), "answered");
    for (number, account) in [(1, "near"), (0, "client")] {
        let lists = || scene.mesh.nodes[number].json(&["auth", "list"]).to_string();
        wait_until("its certificate is gone", || !lists().contains(&format!("/sa/{account}\"")));
        assert!(scene.mesh.nodes.iter().all(|node| marks_of(node, account) == 0));
    }
    let ca = SocketAddr::new(scene.mesh.address(0), 4251);
    let ca = Client::new(ca, domain.clone(), bundles, certs::system_clock());
    on_the_second(&scene, || async {
        let refused = ca.issue(&node, &domain.workload("default", "near").unwrap()).await.unwrap_err();
        assert!(matches!(refused, EnrolError::Denied { denied: Denied::NotPlaced, .. }), "{refused}");
    });
    assert_eq!(twin.ask("after"), "answered");
    scene.mesh.withdraw("node-0.yaml");
    broken(&ends, 1);
    assert_ne!(twin.ask("after"), "answered");
}
