//! HTTP/2, gRPC, WebSocket and TLS by name, before servers with TLS of their own and HTTP/1.1 there too, allowed, denied, through edits of the rules and through another process in the proxy's
//! place, all under load and by the real redirect. (HTTP/1.1, and what else there is of each: `l7.rs`, `l7_streams.rs`,
//! `l7_handover.rs`.) Needs root and the kernel.
#![allow(clippy::unwrap_used, reason = "a scenario that cannot go on has failed")]

use conformance::lab::{
    Authority, DEATHSTAR, EMPIRE, Node, RULE1, RULE1_TLS, Session, Workload, at, binary, rule1_with, secret,
};

/// How often rules are edited, and the proxy is restarted.
const ROUNDS: usize = 3;
/// What may be asked, and what only by a wider rule.
const ASKED: [&str; 2] = ["POST:/v1/request-landing", "PUT:/v1/exhaust-port"];

/// How the deathstar is spoken to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Upstream {
    Plain,
    /// The proxy begins TLS for who calls it without.
    Tls,
}

impl Upstream {
    fn port(self) -> u16 {
        match self {
            Self::Plain => 80,
            Self::Tls => 443,
        }
    }

    /// Such a rule, about this.
    fn rule(self, rule: &str) -> String {
        match self {
            Self::Plain => rule.to_owned(),
            Self::Tls => {
                let context = "      originatingTLS:\n        secret: {name: deathstar}\n      rules:";
                rule.replace("port: \"80\"", "port: \"443\"").replace("      rules:", context)
            }
        }
    }

    /// A node with a deathstar that serves by this command, at port 80 or behind TLS, the rule in force.
    fn ruled(self, serve: &[&str], rule: &str) -> (Node, Workload) {
        let node = Node::up();
        let deathstar = match self {
            Self::Plain => node.start("deathstar", DEATHSTAR, serve),
            Self::Tls => {
                let authority = Authority::new();
                node.apply("secret.yaml", &secret("deathstar", &[("ca.crt", &authority.certificate)]));
                let probe = binary("probe").display().to_string();
                let front = [&probe, "front", "443", "80", &authority.certificate, &authority.key];
                node.start("deathstar", DEATHSTAR, &[&front, serve].concat())
            }
        };
        node.enforce(&self.rule(rule));
        (node, deathstar)
    }
}

#[track_caller]
fn all_are_told(fleets: &mut [Session], when: &str, expected: &str) {
    for fleet in fleets {
        assert_eq!(fleet.ask(when), expected);
    }
}

/// Answers everything over HTTP/2.
fn http2() -> [String; 3] {
    [binary("probe").display().to_string(), "http2".to_owned(), "80".to_owned()]
}

/// Of requests each of which is judged: what may not be is denied, an edit is in force at once, a restart is not seen.
fn is_judged(upstream: Upstream, serve: &[&str], mode: &str, asked: [&str; 2], said: [&str; 2], wider: &str) {
    let [ok, denied] = said;
    let (narrow, wider) = (upstream.rule(RULE1), upstream.rule(wider));
    let (node, deathstar) = upstream.ruled(serve, RULE1);
    let mut fleets = node.fleets(&deathstar, mode, upstream.port(), 10, &asked);
    let [land, bomb] = asked;
    let told = |bombed: &str| {
        let mut both = [format!("{land} {ok}"), format!("{bomb} {bombed}")];
        both.sort();
        both.join(", ") + ", 0 broken"
    };
    let (may_land, may_both) = (told(denied), told(ok));
    for _ in 0..ROUNDS {
        all_are_told(&mut fleets, "now", &may_land);
        node.enforce(&wider);
        all_are_told(&mut fleets, "now", &may_both);
        let (from, to) = node.restart_proxy();
        assert_ne!(from, to);
        node.proxy_drained();
        assert_eq!(node.proxies(), [to]);
        all_are_told(&mut fleets, "before", &may_both);
        // What is under way then and may not be any more is cancelled, by itself.
        node.enforce(&narrow);
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
    for upstream in [Upstream::Plain, Upstream::Tls] {
        is_judged(
            upstream,
            &http2().each_ref().map(String::as_str),
            "requests2",
            ASKED,
            ["200", "403"],
            &wider,
        );
    }
}

#[test]
fn http1_is_judged_through_edits_and_restarts_under_load_before_a_server_with_tls() {
    let wider = rule1_with(&["{method: POST, path: /v1/request-landing}", "{method: GET, path: /v1/}"]);
    let serve = binary("examples/deathstar").display().to_string();
    let asked = ["POST:/v1/request-landing", "GET:/v1/"];
    is_judged(Upstream::Tls, &[&serve], "requests", asked, ["200", "403"], &wider);
}

/// Denied is PERMISSION_DENIED, of the call and of nothing else.
#[test]
fn grpc_is_judged_through_edits_and_restarts_under_load() {
    let wider = rule1_with(&["{method: POST, path: /v1/.*}"]);
    let asked = ["POST:/v1/request-landing", "POST:/v1/use-exhaust-port"];
    for upstream in [Upstream::Plain, Upstream::Tls] {
        is_judged(
            upstream,
            &http2().each_ref().map(String::as_str),
            "requests-grpc",
            asked,
            ["0", "7"],
            &wider,
        );
    }
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
    websockets_go_on(Upstream::Plain);
}

#[test]
fn websockets_go_on_through_edits_and_a_restart_under_load_before_a_server_with_tls() {
    websockets_go_on(Upstream::Tls);
}

fn websockets_go_on(upstream: Upstream) {
    let chat = upstream.rule(&rule1_with(&["{method: GET, path: /chat}"]));
    let wider = upstream.rule(&rule1_with(&["{method: GET, path: /chat}", "{method: PUT}"]));
    let probe = binary("probe");
    let serve = [probe.to_str().unwrap(), "chat", "80"];
    let (node, deathstar) = upstream.ruled(&serve, &rule1_with(&["{method: GET, path: /chat}"]));
    let mut fleets = node.fleets(&deathstar, "requests-websocket", upstream.port(), 5, &["GET:/chat"]);
    let denied = || {
        at(&deathstar, upstream.port()).iter().all(|to| {
            let command = [probe.to_str().unwrap(), "chats", &to.to_string(), "/admin"];
            node.run("scout", EMPIRE, &command).stdout.trim() == "open 403"
        })
    };
    goes_on(&node, &mut fleets, "GET:/chat 101, 0 broken", [&chat, &wider], denied);
    node.enforce(&upstream.rule(&rule1_with(&["{method: GET, path: /other}"])));
    all_end(&node, &mut fleets);
}

#[test]
fn tls_goes_on_through_edits_and_a_restart_under_load() {
    let wider = RULE1_TLS.trim_end().to_owned() + "\n      - \"*.example.org\"\n";
    let serve = binary("probe").display().to_string();
    let (node, deathstar) = Upstream::Plain.ruled(&[&serve, "tls-serve", "443"], RULE1_TLS);
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
