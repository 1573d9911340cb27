//! Another process in the proxy's place, under load, and the proxy killed: real agents, proxies and workloads, by the real
//! redirect. Needs root and the kernel.
#![allow(clippy::unwrap_used, reason = "a scenario that cannot go on has failed")]

use std::net::SocketAddr;

use conformance::lab::{
    DEATHSTAR, EMPIRE, Node, Outcome, RULE1, Session, Workload, at, binary, rule1_with, wait_until,
};

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
        node.proxy_drained();
        assert_eq!(node.proxies(), [to]);
        fleets.iter_mut().for_each(|fleet| assert_eq!(fleet.ask("before"), LANDING));
    }
    assert!(node.json(&["status"])["l7"]["problem"].is_null());
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
    let mut ships = ships(&node, &deathstar, LAND);
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
    node.proxy_drained();
    assert_eq!(node.proxies(), [to]);
}

/// A ship for each family, with a connection that it keeps, on which it has been allowed this.
fn ships(node: &Node, deathstar: &Workload, asked: &str) -> [Session; 2] {
    let probe = binary("probe");
    [0, 1].map(|family| {
        let address = at(deathstar, 80)[family].to_string();
        let command = [probe.to_str().unwrap(), "keep", &address];
        let mut ship = node.start(&format!("ship-{family}"), EMPIRE, &command).session;
        assert_eq!(ship.ask(asked), "200");
        ship
    })
}

/// Between the moment at which the one before is told to end and its end: on what it has open, and on what comes.
#[test]
fn a_deny_that_comes_while_two_run_holds_with_both_under_load() {
    let look = "GET:/v1/";
    let (node, deathstar) = ruled1();
    node.enforce(&rule1_with(&["{method: POST, path: /v1/request-landing}", "{method: GET}"]));
    let mut fleets = node.fleets(&deathstar, "requests", 80, 10, &[LAND]);
    let mut ships = ships(&node, &deathstar, look);
    let (from, to) = node.restart_proxy();
    two_are_there(&node, from, to);
    node.enforce(RULE1);
    assert_eq!(node.proxies(), [from.min(to), from.max(to)]);
    let mut scout = node.start("scout", EMPIRE, &[binary("probe").to_str().unwrap(), "ask"]).session;
    for (ship, address) in ships.iter_mut().zip(at(&deathstar, 80)) {
        assert_eq!(ship.ask(look), "403 last", "by the one before");
        assert_eq!(scout.ask(&format!("http {address} {look}")), "403", "by the next");
    }
    fleets.iter_mut().for_each(|fleet| assert_eq!(fleet.ask("before"), format!("{LAND} 200, 0 broken")));
    node.proxy_drained();
    assert_eq!(node.drops(), Vec::<String>::new());
}

#[test]
fn a_deny_that_comes_while_two_run_ends_the_websocket_that_it_is_about_and_no_other() {
    let probe = binary("probe");
    let (chat, admin) = ("{method: GET, path: /chat}", "{method: GET, path: /admin}");
    let (node, deathstar) = ruled(&[probe.to_str().unwrap(), "chat", "80"]);
    node.enforce(&rule1_with(&[chat, admin]));
    let mut fleets = node.fleets(&deathstar, "requests-websocket", 80, 5, &["GET:/chat"]);
    let command = [probe.to_str().unwrap(), "chats", &at(&deathstar, 80)[0].to_string(), "/admin"];
    let mut visitor = node.start("visitor", EMPIRE, &command).session;
    assert_eq!(visitor.ask("hello"), "answered");
    let (from, to) = node.restart_proxy();
    let both = [from.min(to), from.max(to)];
    assert_eq!(visitor.ask("hello"), "answered", "it goes on");
    node.enforce(&rule1_with(&[chat]));
    assert_eq!(node.proxies(), both);
    assert_ne!(visitor.ask("hello"), "answered", "by the one before");
    assert_eq!(node.run("scout", EMPIRE, &command).stdout.trim(), "open 403", "by the next");
    fleets.iter_mut().for_each(|fleet| assert_eq!(fleet.ask("before"), "GET:/chat 101, 0 broken"));
    assert_eq!(node.proxies(), both);
}

/// Whoever has edited what while no agent ran: by the rules of before nothing goes on.
#[test]
fn a_proxy_of_another_build_goes_on_only_with_the_rules_of_now() {
    let other = RULE1.replace("/v1/request-landing", "/v1/other");
    let edits: [(Option<&str>, bool); 3] = [(Some(RULE1), true), (Some(&other), false), (None, false)];
    for (rule, goes_on) in edits {
        let (mut node, deathstar) = ruled1();
        let mut ships = ships(&node, &deathstar, LAND);
        let before = node.proxies();
        node.kill_agent();
        node.outdate_proxies();
        match rule {
            Some(rule) => node.write("rule1.yaml", rule),
            None => node.remove("rule1.yaml"),
        }
        node.start_agent();
        if goes_on {
            let mut last = |ship: &mut Session| wait_until("it drains", || ship.ask(LAND) == "200 last");
            ships.iter_mut().for_each(&mut last);
        }
        wait_until("the one before has ended", || !node.proxies().contains(&before[0]));
        for ship in &mut ships {
            let said = ship.ask(LAND);
            assert!(!said.starts_with("200"), "{rule:?}: {said}");
        }
    }
}

/// One drains, the other takes connections, and both are seen.
fn two_are_there(node: &Node, from: i32, to: i32) {
    assert_eq!(node.proxies(), [from.min(to), from.max(to)]);
    wait_until("the agent knows both", || node.json(&["status"])["l7"]["draining"] == 1);
    wait_until("it has its rules", || node.json(&["status"])["l7"]["problem"].is_null());
    wait_until("two connections drain", || {
        let rows = node.json(&["proxy", "connections"]);
        rows.as_array().unwrap().iter().filter(|row| row["draining"] == true).count() == 2
    });
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
        let after = node.proxies();
        assert!(after.len() == 1 && after != before, "who answers is another: {after:?}");
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
