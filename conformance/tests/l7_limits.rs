//! What the L7 proxy runs out of, and what others feel of it, by the real redirect. Needs root, the kernel, setpriv and prlimit.
#![allow(clippy::unwrap_used, reason = "a scenario that cannot go on has failed")]

use std::fs;
use std::os::unix::fs::MetadataExt;

use conformance::lab::{DEATHSTAR, EMPIRE, Node, Outcome, RULE1, Session, Workload, at, binary, wait_until};

/// A node with a deathstar that answers, and the rule in force.
fn ruled() -> (Node, Workload) {
    let node = Node::up();
    let serve = binary("examples/deathstar");
    let deathstar = node.start("deathstar", DEATHSTAR, &[serve.to_str().unwrap()]);
    node.enforce(RULE1);
    (node, deathstar)
}

fn ship(node: &Node, name: &str, command: &[&str]) -> Session {
    let probe = binary("probe");
    node.start(name, EMPIRE, &[&[probe.to_str().unwrap()], command].concat()).session
}

const LAND: &str = "POST:/v1/request-landing";

/// Whoever has a connection keeps it, whoever wants one waits until there is room again, and the process lives.
#[test]
fn without_descriptors_connections_wait_and_those_that_are_there_go_on() {
    let (node, deathstar) = ruled();
    let [address, _] = at(&deathstar, 80).map(|it| it.to_string());
    let mut kept = ship(&node, "kept", &["keep", &address]);
    assert_eq!(kept.ask(LAND), "200");
    let mut late = ship(&node, "late", &["ask"]);
    let proxies = node.proxies();
    assert_eq!(proxies.len(), 1, "{proxies:?}");
    let proxy = proxies[0];
    let open = || fs::read_dir(format!("/proc/{proxy}/fd")).unwrap().count();
    let limit = open() + 20;
    // By whoever it runs as: root may not everywhere.
    let id = fs::metadata(format!("/proc/{proxy}")).unwrap();
    let limiter =
        [format!("--reuid={}", id.uid()), format!("--regid={}", id.gid()), "--clear-groups".to_owned()];
    let limited = ["prlimit", "--pid", &proxy.to_string(), &format!("--nofile={limit}")];
    Outcome::of(node.inside("setpriv").args(limiter).args(limited)).success();
    let crowd = ship(&node, "crowd", &["idle", &address, "40"]);
    wait_until("nothing is left", || open() == limit);
    assert_eq!(late.ask(&format!("http {address} {LAND}")), "silent");
    assert_eq!(kept.ask(LAND), "200");
    drop(crowd);
    wait_until("there is room again", || late.ask(&format!("http {address} {LAND}")) == "200");
    assert_eq!(kept.ask(LAND), "200");
    assert_eq!(node.proxies(), proxies, "the same process");
}

/// First packets without end: what they leave is charged to whoever sends them, and the listeners are everybody's.
#[test]
fn a_flood_of_first_packets_keeps_nobody_else_from_the_proxy() {
    let (node, deathstar) = ruled();
    let probe = binary("probe");
    let _rebel = ship(&node, "rebel", &["ask"]);
    let mut ally = ship(&node, "ally", &["ask"]);
    for address in at(&deathstar, 80) {
        let (to, ask) = (address.ip().to_string(), format!("http {address} {LAND}"));
        assert_eq!(ally.ask(&ask), "200");
        let flood = Session::start(node.beside("rebel", &probe).args(["syn-flood", &to, "60000"]));
        let answers: Vec<_> = (0..20).map(|_| ally.ask(&ask)).collect();
        assert!(answers.iter().all(|answer| answer == "200"), "{address}: {answers:?}");
        assert_eq!(flood.line(), "flooded");
        assert_eq!(ally.ask(&ask), "200");
    }
    assert!(node.drops().iter().any(|reason| reason == "Connection quota exceeded"), "{:?}", node.drops());
}
