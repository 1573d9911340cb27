//! HTTP/2, gRPC, WebSocket and TLS by name, allowed, denied, through edits of the rules and through another process in the proxy's
//! place, all under load and by the real redirect. (HTTP/1.1, and what else there is of each: `l7.rs`, `l7_streams.rs`,
//! `l7_handover.rs`.) Needs root and the kernel.
#![allow(clippy::unwrap_used, reason = "a scenario that cannot go on has failed")]

use conformance::lab::{
    DEATHSTAR, EMPIRE, Node, RULE1, RULE1_TLS, Session, Workload, at, binary, rule1_with,
};

/// How often rules are edited, and the proxy is restarted.
const ROUNDS: usize = 3;

/// A node with a deathstar that serves by this mode of the probe, the rule in force.
fn ruled(mode: &str, port: u16, rule: &str) -> (Node, Workload) {
    let node = Node::up();
    let probe = binary("probe");
    let deathstar = node.start("deathstar", DEATHSTAR, &[probe.to_str().unwrap(), mode, &port.to_string()]);
    node.enforce(rule);
    (node, deathstar)
}

#[track_caller]
fn all_are_told(fleets: &mut [Session], when: &str, expected: &str) {
    for fleet in fleets {
        assert_eq!(fleet.ask(when), expected);
    }
}

/// Of requests each of which is judged: what may not be is denied, an edit is in force at once, a restart is not seen.
fn is_judged(mode: &str, asked: [&str; 2], [ok, denied]: [&str; 2], wider: &str) {
    let (node, deathstar) = ruled("http2", 80, RULE1);
    let mut fleets = node.fleets(&deathstar, mode, 80, 10, &asked);
    let [land, bomb] = asked;
    let may_land = format!("{land} {ok}, {bomb} {denied}, 0 broken");
    let may_both = format!("{land} {ok}, {bomb} {ok}, 0 broken");
    for _ in 0..ROUNDS {
        all_are_told(&mut fleets, "now", &may_land);
        node.enforce(wider);
        all_are_told(&mut fleets, "now", &may_both);
        let (from, to) = node.restart_proxy();
        assert_ne!(from, to);
        node.proxy_drained();
        assert_eq!(node.proxies(), [to]);
        all_are_told(&mut fleets, "before", &may_both);
        // What is under way then and may not be any more is cancelled, by itself.
        node.enforce(RULE1);
        all_are_told(&mut fleets, "now", &may_land);
        node.restart_proxy();
        node.proxy_drained();
        all_are_told(&mut fleets, "before", &may_land);
    }
    assert_eq!(node.drops(), Vec::<String>::new());
}

#[test]
fn http2_is_judged_through_edits_and_restarts_under_load() {
    let wider =
        rule1_with(&["{method: POST, path: /v1/request-landing}", "{method: PUT, path: /v1/exhaust-port}"]);
    is_judged("requests2", ["POST:/v1/request-landing", "PUT:/v1/exhaust-port"], ["200", "403"], &wider);
}

/// Denied is PERMISSION_DENIED, of the call and of nothing else.
#[test]
fn grpc_is_judged_through_edits_and_restarts_under_load() {
    let wider = rule1_with(&["{method: POST, path: /v1/.*}"]);
    is_judged("requests-grpc", ["POST:/v1/request-landing", "POST:/v1/use-exhaust-port"], ["0", "7"], &wider);
}

/// Of connections that are judged once, and again whenever rules change: they go on with the process that they began with, and
/// nothing that is said on them is lost; who comes later goes by the next one; an edit is in force with both.
fn goes_on(node: &Node, fleets: &mut [Session], going: &str, rules: [&str; 2], denied: impl Fn() -> bool) {
    let [rule, wider] = rules;
    for _ in 0..ROUNDS {
        node.enforce(wider);
        all_are_told(fleets, "now", going);
        node.enforce(rule);
        all_are_told(fleets, "now", going);
    }
    let (from, to) = node.restart_proxy();
    let mut both = [from, to];
    both.sort_unstable();
    for _ in 0..ROUNDS {
        all_are_told(fleets, "before", going);
        assert!(denied(), "by the next process");
        assert_eq!(node.proxies(), both);
        node.enforce(wider);
        all_are_told(fleets, "now", going);
        node.enforce(rule);
    }
}

/// Each of these five has been ended, and with them the process that had them.
fn all_end(node: &Node, fleets: &mut [Session]) {
    node.proxy_drained();
    for fleet in fleets {
        let told = fleet.ask("now");
        assert!(told.starts_with("5 broken"), "{told}");
    }
}

#[test]
fn websockets_go_on_through_edits_and_a_restart_under_load() {
    let chat = rule1_with(&["{method: GET, path: /chat}"]);
    let wider = rule1_with(&["{method: GET, path: /chat}", "{method: PUT}"]);
    let (node, deathstar) = ruled("chat", 80, &chat);
    let mut fleets = node.fleets(&deathstar, "requests-websocket", 80, 5, &["GET:/chat"]);
    let probe = binary("probe");
    let denied = || {
        at(&deathstar, 80).iter().all(|to| {
            let command = [probe.to_str().unwrap(), "chats", &to.to_string(), "/admin"];
            node.run("scout", EMPIRE, &command).stdout.trim() == "open 403"
        })
    };
    goes_on(&node, &mut fleets, "GET:/chat 101, 0 broken", [&chat, &wider], denied);
    node.enforce(&rule1_with(&["{method: GET, path: /other}"]));
    all_end(&node, &mut fleets);
}

#[test]
fn tls_goes_on_through_edits_and_a_restart_under_load() {
    let wider = RULE1_TLS.trim_end().to_owned() + "\n      - \"*.example.org\"\n";
    let (node, deathstar) = ruled("tls-serve", 443, RULE1_TLS);
    let mut fleets = node.fleets(&deathstar, "requests-tls", 443, 5, &["NAME:port.deathstar.example"]);
    let probe = binary("probe");
    let denied = || {
        at(&deathstar, 443).iter().all(|to| {
            let command = [probe.to_str().unwrap(), "tls", &to.to_string(), "evil.example"];
            node.run("scout", EMPIRE, &command).stdout.trim() == "UnrecognisedName"
        })
    };
    goes_on(&node, &mut fleets, "NAME:port.deathstar.example 200, 0 broken", [RULE1_TLS, &wider], denied);
    node.enforce(RULE1_TLS.replace("      - \"**.deathstar.example\"\n", "").trim_end());
    all_end(&node, &mut fleets);
}
