//! TLS that the proxy ends and begins, by the real redirect, for curl: real agents, proxies and workloads. (HTTP/2, gRPC and
//! WebSocket to servers with TLS: `l7_matrix.rs`.) Needs root, the kernel and curl.
#![allow(clippy::unwrap_used, reason = "a scenario that cannot go on has failed")]

use conformance::lab::{
    Authority, DEATHSTAR, EMPIRE, Node, RULE1, Workload, at, binary, secret, tls_secret, wait_until,
};

const LANDED: &str = "Ship landed\n 200 1.1 0";
const DENIED: &str = "Access denied\r\n 403 1.1 0";

/// What curl is told by a server that it knows by an authority; none: by nobody.
fn ask(node: &Node, deathstar: &Workload, port: u16, asked: [&str; 2]) -> Vec<String> {
    let [method, path] = asked;
    let answers = at(deathstar, port).map(|address| {
        let (url, to) = (format!("https://deathstar.example{path}"), format!("::{address}"));
        let how = " %{http_code} %{http_version} %{exitcode}";
        let curl = ["curl", "--silent", "--insecure", "--max-time", "5", "--write-out", how];
        let curl = [&curl[..], &["--connect-to", &to, "--request", method, &url]].concat();
        node.run("ship", EMPIRE, &curl).stdout
    });
    answers.into()
}

fn all(answer: &str) -> Vec<String> {
    vec![answer.to_owned(); 2]
}

/// Of the deathstar's own rule, whose TLS the proxy ends.
fn ended() -> String {
    RULE1.replace("      rules:", "      terminatingTLS:\n        secret: {name: shown}\n      rules:")
}

fn list(node: &Node) -> String {
    node.ferromesh(&["policy", "list"]).stdout
}

#[test]
fn requests_inside_tls_are_judged_and_secrets_are_followed() {
    let node = Node::up();
    let serve = binary("examples/deathstar");
    let deathstar = node.start("deathstar", DEATHSTAR, &[serve.to_str().unwrap()]);
    let authority = Authority::new();
    // The rule without its Secret: nothing passes, and it says why.
    node.enforce(&ended());
    let refused = ask(&node, &deathstar, 80, ["POST", "/v1/request-landing"]);
    assert!(refused.iter().all(|answer| answer.starts_with(" 000 ")), "{refused:?}");
    let said = list(&node);
    assert!(said.contains("Secret default/shown is not there"), "{said}");
    node.apply("secret.yaml", &tls_secret("shown", &authority.leaf("deathstar.example")));
    node.proxy_ready();
    let land = || ask(&node, &deathstar, 80, ["POST", "/v1/request-landing"]);
    wait_until("the proxy has the Secret", || land() == all(LANDED));
    assert_eq!(ask(&node, &deathstar, 80, ["PUT", "/v1/exhaust-port"]), all(DENIED));
    let seen = node.ferromesh(&["observe", "--protocol", "http", "--last", "100"]).stdout;
    assert!(seen.contains("PUT https://deathstar.example/v1/exhaust-port"), "{seen}");
    // A key that is another's: refused, and what was shown before is.
    let (one, other) = (authority.leaf("deathstar.example"), authority.leaf("deathstar.example"));
    let torn = [("tls.crt", &*one.certificate), ("tls.key", &*other.key)];
    node.apply("secret.yaml", &secret("shown", &torn));
    wait_until("it is told", || list(&node).contains("KeyMismatch"));
    let said = list(&node);
    assert!(said.contains("spec.ingress[0].toPorts[0].terminatingTLS"), "{said}");
    let landed = land();
    assert_eq!(landed, all(LANDED), "{}", node.ferromesh(&["observe", "--last", "20"]).stdout);
    node.apply("secret.yaml", &tls_secret("shown", &one));
    node.proxy_ready();
    wait_until("it is well again", || !list(&node).contains("KeyMismatch"));
    assert_eq!(land(), all(LANDED));
    // Nobody is shown what is gone.
    node.withdraw("secret.yaml");
    node.proxy_ready();
    wait_until("it is gone", || land().iter().all(|answer| answer.starts_with(" 000 ")));
}

/// By the caller's rule, as a node's administrator looks into what leaves: the server chooses HTTP/2, and must be who is meant.
#[test]
fn what_leaves_in_tls_is_looked_into_and_the_server_must_be_who_is_meant() {
    let rule = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: rule1, namespace: default}\n\
                spec:\n  endpointSelector: {matchLabels: {class: tiefighter}}\n  egress:\n  - toEndpoints:\n\
                \x20   - matchLabels: {class: deathstar}\n    toPorts:\n    - ports: [{port: '443', protocol: TCP}]\n\
                \x20     serverNames: [deathstar.example]\n      terminatingTLS: {secret: {name: shown}}\n\
                \x20     originatingTLS: {secret: {name: known}}\n      rules: {http: [{method: POST, path: /v1/.*}]}\n";
    let node = Node::up();
    let (ours, theirs) = (Authority::new(), Authority::new());
    let secrets = |known: &Authority| {
        tls_secret("shown", &ours.leaf("deathstar.example"))
            + "---\n"
            + &secret("known", &[("ca.crt", &known.certificate)])
    };
    node.apply("secret.yaml", &secrets(&theirs));
    let probe = binary("probe").display().to_string();
    let front = [&probe, "front", "443", "80", &theirs.certificate, &theirs.key, &probe, "http2", "80"];
    let deathstar = node.start("deathstar", DEATHSTAR, &front);
    // The proxy is there while somebody is whom a rule is about.
    let _scout = node.start("scout", EMPIRE, &[&probe, "ask"]);
    node.enforce(rule);
    let land = || ask(&node, &deathstar, 443, ["POST", "/v1/request-landing"]);
    assert_eq!(land(), all("answered\n 200 2 0"));
    assert_eq!(ask(&node, &deathstar, 443, ["PUT", "/v1/exhaust-port"]), all("Access denied\r\n 403 2 0"));
    node.apply("secret.yaml", &secrets(&Authority::new()));
    node.proxy_ready();
    wait_until("others are trusted", || land() == all("Service unavailable\r\n 503 1.1 0"));
    let seen = node.ferromesh(&["observe", "--protocol", "http", "--last", "100"]).stdout;
    assert!(seen.contains("certificate of the server not trusted"), "{seen}");
}
