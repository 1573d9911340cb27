//! HTTP rules on one node: real agents, proxies and workloads, by the real redirect. Needs root, the kernel and curl.
#![allow(clippy::unwrap_used, reason = "a scenario that cannot go on has failed")]

use std::net::{IpAddr, SocketAddr};

use conformance::lab::{Node, Workload, binary, wait_until};

/// Who may land may ask to, and for nothing else.
const RULE1: &str = include_str!("../../examples/star-wars/rule1-l7.yaml");
const EMPIRE: &[&str] = &["org=empire", "class=tiefighter"];
const ALLIANCE: &[&str] = &["org=alliance", "class=xwing"];
const DEATHSTAR: &[&str] = &["org=empire", "class=deathstar"];
const LANDED: &str = "Ship landed\n 200";
const DENIED: &str = "Access denied\r\n 403";

/// A node with a deathstar, and the rule in force.
fn ruled() -> (Node, Workload) {
    let node = Node::up();
    let serve = format!("echo serving; exec {}", binary("examples/deathstar").display());
    let deathstar = node.start("deathstar", DEATHSTAR, &["sh", "-c", &serve]);
    node.apply("rule1.yaml", RULE1);
    wait_until("the proxy has its rules", || {
        let status = node.json(&["status"]);
        status["l7"].is_object() && status["l7"]["problem"].is_null()
    });
    (node, deathstar)
}

/// What a ship is answered: body, then status.
fn ask(node: &Node, address: IpAddr, method: &str, path: &str) -> String {
    let url = format!("http://{}{path}", SocketAddr::new(address, 80));
    let curl =
        ["curl", "--silent", "--max-time", "5", "--write-out", " %{http_code}", "--request", method, &url];
    node.run("tiefighter", EMPIRE, &curl).stdout
}

/// The ways in and out of the story, over both families.
fn story(node: &Node, deathstar: &Workload) {
    for address in deathstar.addresses {
        assert_eq!(ask(node, address, "POST", "/v1/request-landing"), LANDED, "{address}");
        assert_eq!(ask(node, address, "PUT", "/v1/exhaust-port"), DENIED, "{address}");
    }
}

fn proxy(node: &Node) -> i32 {
    let directory = node.state().join("proxy");
    let words = ["proxy", "--directory", directory.to_str().unwrap()];
    let pids = linux::child::with_arguments(&words, 64_252).unwrap();
    assert_eq!(pids.len(), 1, "one proxy runs");
    pids[0]
}

#[test]
fn a_ship_may_ask_to_land_and_may_not_use_the_exhaust_port() {
    let (node, deathstar) = ruled();
    story(&node, &deathstar);
    for address in deathstar.addresses {
        assert_eq!(node.attempt("xwing", ALLIANCE, "tcp", address, 80), "silent", "{address}");
    }
    let [address, _] = deathstar.addresses;
    let seen = || node.ferromesh(&["observe", "--protocol", "http", "--last", "100"]).stdout;
    for line in [
        format!("http-request FORWARDED (HTTP/1.1 POST http://{address}/v1/request-landing)"),
        format!("http-request DROPPED (HTTP/1.1 PUT http://{address}/v1/exhaust-port) by default/rule1"),
        format!("ms (PUT http://{address}/v1/exhaust-port))"),
    ] {
        wait_until(&line, || seen().contains(&line));
    }
    let denied = node.ferromesh(&["observe", "--http-status", "403", "--last", "1"]).success();
    assert!(
        denied.contains("<- default/deathstar:80") && denied.contains("http-response FORWARDED"),
        "{denied}"
    );
    let metrics = node.ferromesh(&["metrics", "list"]).success();
    assert!(metrics.contains("ferromesh_http_requests_total"), "{metrics}");
    let trace = node.ferromesh(&["policy", "trace", "tiefighter", "deathstar:80"]);
    assert!(!trace.stdout.contains("denied"), "{trace:?}");
}

#[test]
fn an_edit_of_the_rule_holds_for_the_next_request() {
    let (node, deathstar) = ruled();
    let [address, _] = deathstar.addresses;
    assert_eq!(ask(&node, address, "PUT", "/v1/exhaust-port"), DENIED);
    node.apply(
        "rule1.yaml",
        &RULE1.replace("\"POST\"", "\"PUT\"").replace("request-landing", "exhaust-port"),
    );
    assert!(ask(&node, address, "PUT", "/v1/exhaust-port").starts_with("Panic"), "now it may");
    assert_eq!(ask(&node, address, "POST", "/v1/request-landing"), DENIED);
}

#[test]
fn the_proxy_outlives_the_agent_and_the_next_takes_it_over() {
    let (mut node, deathstar) = ruled();
    let before = proxy(&node);
    node.kill_agent();
    assert_eq!(proxy(&node), before);
    node.start_agent();
    story(&node, &deathstar);
    assert_eq!(proxy(&node), before);
}

#[test]
fn a_proxy_that_is_killed_is_back_before_who_connects_gives_up() {
    let (node, deathstar) = ruled();
    for _ in 0..3 {
        let before = proxy(&node);
        linux::process::send(before, 9).unwrap();
        story(&node, &deathstar);
        assert_ne!(proxy(&node), before);
    }
}

#[test]
fn nothing_of_it_is_left_after_down() {
    let (node, deathstar) = ruled();
    story(&node, &deathstar);
    drop(deathstar);
    node.verb("down", &[]).success();
    node.verb("check", &["--clean"]).success();
}
