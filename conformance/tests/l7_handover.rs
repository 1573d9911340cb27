//! Another process in the proxy's place, under load, and the proxy killed: real agents, proxies and workloads, by the real
//! redirect. Needs root and the kernel.
#![allow(clippy::unwrap_used, reason = "a scenario that cannot go on has failed")]

use std::net::SocketAddr;

use conformance::lab::{DEATHSTAR, EMPIRE, Node, Outcome, RULE1, Session, Workload, binary, wait_until};

/// What a fleet is answered where it may land, and where it may not any more.
const LANDING: &str = "POST:/v1/request-landing 200, PUT:/v1/exhaust-port 403, 0 broken";
const LAND: &str = "POST:/v1/request-landing";
const STRANDED: &str = "POST:/v1/request-landing 403, PUT:/v1/exhaust-port 403, 0 broken";

/// A node with a deathstar that speaks one version of HTTP, the rule in force.
fn ruled(serve: &[&str]) -> (Node, Workload) {
    let node = Node::up();
    let deathstar = node.start("deathstar", DEATHSTAR, serve);
    let [address, _] = deathstar.addresses;
    let probe = binary("probe");
    let target = SocketAddr::new(address, 80).to_string();
    wait_until("the deathstar listens", || {
        let asked = Outcome::of(node.inside(&probe).args(["time", &target]));
        asked.code == Some(0)
    });
    node.enforce(RULE1);
    (node, deathstar)
}

fn ruled1() -> (Node, Workload) {
    ruled(&[binary("examples/deathstar").to_str().unwrap()])
}

fn ruled2() -> (Node, Workload) {
    ruled(&[binary("probe").to_str().unwrap(), "http2", "80"])
}

/// Ships that keep asking, over both families.
fn fleets(node: &Node, deathstar: &Workload, how: &str) -> [Session; 2] {
    node.fleets(deathstar, how, 80, 10, &["POST:/v1/request-landing", "PUT:/v1/exhaust-port"])
}

/// The one before ends by itself, as soon as each of its connections has been answered once more.
fn restarts_under_load(node: &Node, deathstar: &Workload, how: &str) {
    let mut fleets = fleets(node, deathstar, how);
    for _ in 0..5 {
        let before = node.proxies();
        let (from, to) = node.restart_proxy();
        assert_eq!(before, [from]);
        wait_until("the one before has ended", || node.proxies() == [to]);
        fleets.iter_mut().for_each(|fleet| assert_eq!(fleet.ask("before"), LANDING));
    }
    let status = || node.json(&["status"])["l7"].clone();
    wait_until("none is left", || status()["draining"] == 0);
    assert!(status()["problem"].is_null());
    assert_eq!(node.drops(), Vec::<String>::new());
}

#[test]
fn another_process_takes_its_place_under_load_without_one_failed_request() {
    let (node, deathstar) = ruled1();
    restarts_under_load(&node, &deathstar, "requests");
}

#[test]
fn another_process_takes_its_place_under_load_over_http2_too() {
    let (node, deathstar) = ruled2();
    restarts_under_load(&node, &deathstar, "requests2");
}

/// An idle connection stays with the process that another has followed: by the rules of now, and for the next agent too.
#[test]
fn a_draining_proxy_is_told_of_edits_and_found_by_the_next_agent() {
    let (mut node, deathstar) = ruled1();
    let probe = binary("probe");
    let mut ships = [0, 1].map(|family| {
        let address = SocketAddr::new(deathstar.addresses[family], 80).to_string();
        let mut ship = node
            .start(&format!("ship-{family}"), EMPIRE, &[probe.to_str().unwrap(), "keep", &address])
            .session;
        assert_eq!(ship.ask(LAND), "200");
        ship
    });
    let (from, to) = node.restart_proxy();
    two_are_there(&node, from, to);
    let again = node.ferromesh(&["proxy", "restart"]);
    assert!(again.code != Some(0) && again.stderr.contains(&format!("process {from}")), "{again:?}");
    node.kill_agent();
    node.start_agent();
    two_are_there(&node, from, to);
    assert_eq!(ships[0].ask(LAND), "200 last");
    node.apply("rule1.yaml", &RULE1.replace("/v1/request-landing", "/v1/other"));
    assert_eq!(ships[1].ask(LAND), "403 last");
    wait_until("it has ended", || node.proxies() == [to]);
}

/// One drains, the other takes connections, and both are seen.
fn two_are_there(node: &Node, from: i32, to: i32) {
    assert_eq!(node.proxies(), [from.min(to), from.max(to)]);
    wait_until("the agent knows both", || node.json(&["status"])["l7"]["draining"] == 1);
    wait_until("it has its rules", || node.json(&["status"])["l7"]["problem"].is_null());
    let rows = node.json(&["proxy", "connections"]);
    assert_eq!(rows.as_array().unwrap().iter().filter(|row| row["draining"] == true).count(), 2, "{rows}");
}

/// Who connects waits for the next one; what has no HTTP rules goes on.
#[test]
fn a_proxy_that_is_killed_under_load_costs_what_it_had_open_and_nothing_else() {
    let (node, deathstar) = ruled1();
    let free = node.serve("free", &["class=free"], 7);
    let probe = binary("probe");
    let to = SocketAddr::new(free.addresses[0], 7).to_string();
    let mut crowd = node.start("crowd", EMPIRE, &[probe.to_str().unwrap(), "crowd", &to, "50"]).session;
    let address = SocketAddr::new(deathstar.addresses[0], 80);
    let mut ship = node.start("scout", EMPIRE, &[probe.to_str().unwrap(), "ask"]).session;
    for _ in 0..3 {
        let before = node.proxies();
        linux::process::send(before[0], 9).unwrap();
        assert_eq!(ship.ask(&format!("http {address} POST:/v1/request-landing")), "200");
        wait_until("another runs", || node.proxies().len() == 1 && node.proxies() != before);
    }
    assert_eq!(crowd.ask("now"), "50 alive, 0 dead");
    let mut fleets = fleets(&node, &deathstar, "requests");
    fleets.iter_mut().for_each(|fleet| assert_eq!(fleet.ask("now"), LANDING));
    node.apply("rule1.yaml", &RULE1.replace("/v1/request-landing", "/v1/other"));
    fleets.iter_mut().for_each(|fleet| assert_eq!(fleet.ask("now"), STRANDED));
}

#[test]
fn what_another_has_followed_goes_with_down_too() {
    let (node, deathstar) = ruled1();
    let probe = binary("probe");
    let address = SocketAddr::new(deathstar.addresses[0], 80).to_string();
    let mut ship = node.start("ship", EMPIRE, &[probe.to_str().unwrap(), "keep", &address]).session;
    assert_eq!(ship.ask(LAND), "200");
    node.restart_proxy();
    assert_eq!(node.proxies().len(), 2);
    drop((ship, deathstar));
    node.verb("down", &[]).success();
    node.verb("check", &["--clean"]).success();
    assert_eq!(node.proxies(), Vec::<i32>::new());
}
