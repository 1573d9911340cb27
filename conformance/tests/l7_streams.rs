//! What the L7 proxy lets pass as a stream of bytes, by the real redirect: TLS by the name of its server, and WebSockets.
//! Needs root, the kernel and openssl.
#![allow(clippy::unwrap_used, reason = "a scenario that cannot go on has failed")]

use std::net::SocketAddr;
use std::process::Stdio;

use conformance::lab::{
    ALLIANCE, DEATHSTAR, EMPIRE, Node, Outcome, RULE1_TLS as RULE1, Session, Workload, at, binary, wait_until,
};

/// The same from the caller's side, for one name.
const EGRESS: &str = "\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: out, namespace: default}
spec:
  endpointSelector: {matchLabels: {class: tiefighter}}
  egress:
  - toEndpoints: [{matchLabels: {class: deathstar}}]
    toPorts:
    - ports: [{port: \"443\", protocol: TCP}]
      serverNames: [port.deathstar.example]
";

const CHAT: &str = "\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: rule1, namespace: default}
spec:
  endpointSelector: {matchLabels: {class: deathstar}}
  ingress:
  - fromEndpoints: [{matchLabels: {org: empire}}]
    toPorts:
    - ports: [{port: \"80\", protocol: TCP}]
      rules: {http: [{method: GET, path: /chat}]}
";

/// A node with a deathstar that serves by this mode of the probe.
fn served(mode: &str, port: &str) -> (Node, Workload) {
    let node = Node::up();
    let probe = binary("probe");
    let deathstar = node.start("deathstar", DEATHSTAR, &[probe.to_str().unwrap(), mode, port]);
    (node, deathstar)
}

/// Both.
fn ruled(mode: &str, port: &str, rules: &str) -> (Node, Workload) {
    let (node, deathstar) = served(mode, port);
    node.enforce(rules);
    (node, deathstar)
}

/// A ship that asks whatever it is told to.
fn ship(node: &Node, name: &str, labels: &[&str]) -> Session {
    let probe = binary("probe");
    node.start(name, labels, &[probe.to_str().unwrap(), "ask"]).session
}

#[test]
fn tls_passes_by_the_name_of_its_server_and_not_without() {
    let (node, deathstar) = ruled("tls-serve", "443", RULE1);
    let mut tiefighter = ship(&node, "tiefighter", EMPIRE);
    let mut xwing = ship(&node, "xwing", ALLIANCE);
    for to in at(&deathstar, 443) {
        for (name, expected) in [
            ("deathstar.example", "answered"),
            ("port.DeathStar.example", "answered"),
            ("a.b.deathstar.example", "answered"),
            ("evil.example", "UnrecognisedName"),
            ("deathstar.example.org", "UnrecognisedName"),
            ("192.0.2.1", "AccessDenied"),
            ("-", "AccessDenied"),
        ] {
            assert_eq!(tiefighter.ask(&format!("tls {to} {name}")), expected, "{to} {name}");
        }
        assert_eq!(xwing.ask(&format!("tls {to} deathstar.example")), "silent", "{to}");
        assert_eq!(tiefighter.ask(&format!("http {to} GET:/")), "reset", "{to}");
    }
    let seen = || node.ferromesh(&["observe", "--protocol", "tls", "--last", "100"]).stdout;
    for line in [
        "default/deathstar:443 (ID:",
        " tls-hello FORWARDED (TLS port.deathstar.example)",
        " tls-hello DROPPED (TLS evil.example: no rule names this server) by default/rule1",
        " tls-hello DROPPED (TLS: no server name) by default/rule1",
        " tls-hello DROPPED (TLS: not TLS, which alone may pass) by default/rule1",
    ] {
        wait_until(line, || seen().contains(line));
    }
    let metrics = node.ferromesh(&["metrics", "list"]).success();
    assert!(metrics.contains("ferromesh_tls_connections_total"), "{metrics}");
    let trace = node.ferromesh(&["policy", "trace", "tiefighter", "deathstar:443"]).stdout;
    assert!(trace.contains("by server names, through the L7 proxy"), "{trace}");
}

/// Another maker's client, by TLS 1.3 and 1.2: what it is told it understands.
#[test]
fn openssl_understands_what_it_is_told() {
    let (node, deathstar) = ruled("tls-serve", "443", RULE1);
    let _ship = ship(&node, "tiefighter", EMPIRE);
    let call = |to: SocketAddr, more: &[&str]| {
        let mut openssl = node.within("tiefighter", "openssl");
        openssl.args(["s_client", "-connect", &to.to_string(), "-brief"]).args(more).stdin(Stdio::null());
        let said = Outcome::of(&mut openssl);
        (said.code == Some(0), said.stdout + &said.stderr)
    };
    for to in at(&deathstar, 443) {
        let (called, said) = call(to, &["-servername", "deathstar.example"]);
        assert!(called && said.contains("CONNECTION ESTABLISHED"), "{said}");
        for version in ["-tls1_3", "-tls1_2"] {
            let (called, said) = call(to, &[version, "-servername", "evil.example"]);
            assert!(!called && said.contains("unrecognized name"), "{version}: {said}");
            let (called, said) = call(to, &[version, "-noservername"]);
            assert!(!called && said.contains("access denied"), "{version}: {said}");
        }
    }
}

/// T42 for names: an edit ends the connections that it is about, and no others feel any of it.
#[test]
fn edits_under_load_end_what_may_not_be_any_more_and_nothing_else() {
    let (node, deathstar) = ruled("tls-serve", "443", RULE1);
    let probe = binary("probe");
    let hold = |name: &str, to: SocketAddr, server: &str| {
        let command = [probe.to_str().unwrap(), "hold-tls", &to.to_string(), server];
        node.start(name, EMPIRE, &command).session
    };
    let mut fighter = ship(&node, "fighter", EMPIRE);
    let [mut stays, mut ends] = ["deathstar.example", "port.deathstar.example"].map(|server| {
        let held = at(&deathstar, 443).into_iter().enumerate();
        held.map(|(family, to)| hold(&format!("{}-{family}", server.replace('.', "-")), to, server))
            .collect::<Vec<_>>()
    });
    let wider = RULE1.to_owned() + "      - \"*.example.org\"\n";
    for round in 0..10 {
        node.apply("rule1.yaml", if round % 2 == 0 { &wider } else { RULE1 });
        for held in stays.iter_mut().chain(&mut ends) {
            assert_eq!(held.ask("word"), "answered", "round {round}");
        }
        let expected = if round % 2 == 0 { "answered" } else { "UnrecognisedName" };
        for to in at(&deathstar, 443) {
            assert_eq!(fighter.ask(&format!("tls {to} a.example.org")), expected, "round {round}");
        }
    }
    let narrower = RULE1.replace("      - \"**.deathstar.example\"\n", "");
    node.apply("rule1.yaml", narrower.trim_end());
    for held in &mut ends {
        assert_ne!(held.ask("word"), "answered");
    }
    for held in &mut stays {
        assert_eq!(held.ask("word"), "answered");
    }
    for to in at(&deathstar, 443) {
        assert_eq!(fighter.ask(&format!("tls {to} port.deathstar.example")), "UnrecognisedName");
        assert_eq!(fighter.ask(&format!("tls {to} deathstar.example")), "answered");
    }
    let line = "tls-hello DROPPED (TLS port.deathstar.example: not allowed any more) by default/rule1";
    let seen = || node.ferromesh(&["observe", "--protocol", "tls", "--last", "100"]).stdout;
    wait_until(line, || seen().contains(line));
}

#[test]
fn the_callers_rules_and_the_servers_must_both_name_it() {
    let (node, deathstar) = served("tls-serve", "443");
    let mut tiefighter = ship(&node, "tiefighter", EMPIRE);
    node.enforce(EGRESS);
    let mut story = |expected: [&str; 3]| {
        for to in at(&deathstar, 443) {
            let names = ["port.deathstar.example", "deathstar.example", "evil.example"];
            let told = names.map(|name| tiefighter.ask(&format!("tls {to} {name}")));
            assert_eq!(told, expected, "{to}");
        }
    };
    const NO: &str = "UnrecognisedName";
    story(["answered", NO, NO]);
    node.apply("rule2.yaml", RULE1);
    story(["answered", NO, NO]);
    node.apply("rule2.yaml", &RULE1.replace("**.deathstar.example", "*.example.org"));
    story([NO, NO, NO]);
    node.withdraw("rule1.yaml");
    story([NO, "answered", NO]);
}

#[test]
fn a_websocket_passes_is_denied_and_ends_as_the_rules_say() {
    let (node, deathstar) = ruled("chat", "80", CHAT);
    let probe = binary("probe");
    let open = |name: &str, to: SocketAddr| {
        let command = [probe.to_str().unwrap(), "chats", &to.to_string(), "/chat"];
        node.start(name, EMPIRE, &command).session
    };
    let open_at =
        |to: SocketAddr, family: usize| [0, 1].map(|number| open(&format!("ship-{family}-{number}"), to));
    let [four, six] = at(&deathstar, 80);
    let mut sockets = [open_at(four, 4), open_at(six, 6)];
    for to in [four, six] {
        let denied =
            node.run("denied", EMPIRE, &[probe.to_str().unwrap(), "chats", &to.to_string(), "/admin"]);
        assert_eq!(denied.stdout.trim(), "open 403");
    }
    let wider = CHAT.replace("path: /chat}", "path: /chat}, {method: PUT}");
    for round in 0..10 {
        node.apply("rule1.yaml", if round % 2 == 0 { &wider } else { CHAT });
        for socket in sockets.as_flattened_mut() {
            assert_eq!(socket.ask("hello"), "answered", "round {round}");
        }
    }
    for [first, _] in &mut sockets {
        assert_eq!(first.ask("close"), "closed");
    }
    node.apply("rule1.yaml", &CHAT.replace("/chat", "/other"));
    for [_, second] in &mut sockets {
        assert_ne!(second.ask("hello"), "answered");
    }
    let line = "not allowed any more";
    let seen = || node.ferromesh(&["observe", "--protocol", "http", "--last", "100", "-o", "json"]).stdout;
    wait_until(line, || seen().contains(line));
}
