//! Every field that an HTTP rule has, for who is called and for who calls, before a server that says what reaches it; and what
//! is left of a request for who looks at it later. By the real redirect. Needs root, the kernel and curl.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a scenario that cannot go on has failed")]

use conformance::lab::{DEATHSTAR, EMPIRE, Node, Outcome, RULE1, Session, Workload, at, binary, wait_until};

/// A rule of every field, of the direction, for whom it selects and about whom.
fn rule(direction: &str, selects: &str, peers: &str) -> String {
    format!(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: rule1, namespace: default}}\n\
         spec:\n  endpointSelector: {{matchLabels: {{class: {selects}}}}}\n  {direction}:\n  - {peers}\n    toPorts:\n\
         \x20   - ports: [{{port: '80', protocol: TCP}}]\n      rules:\n        http:\n\
         \x20       - method: GET|HEAD\n          path: /v1/.*\n          host: deathstar(:80)?\n\
         \x20         headers: [X-Pass, 'X-Org: empire']\n          headerMatches:\n\
         \x20         - {{name: X-Must, value: a}}\n\
         \x20         - {{name: X-Told, value: b, mismatch: LOG}}\n\
         \x20         - {{name: X-More, value: c, mismatch: ADD}}\n\
         \x20         - {{name: X-Less, value: d, mismatch: DELETE}}\n\
         \x20         - {{name: X-Other, value: e, mismatch: REPLACE}}\n"
    )
}

/// A node with a deathstar that says what reaches it, and a ship.
fn node(settings: &str) -> (Node, Workload, Session) {
    let node = Node::up_with(settings);
    let (origin, probe) = (binary("examples/origin"), binary("probe"));
    let deathstar = node.start("deathstar", DEATHSTAR, &[origin.to_str().unwrap(), "80", "81"]);
    let ship = node.start("tiefighter", EMPIRE, &[probe.to_str().unwrap(), "ask"]).session;
    (node, deathstar, ship)
}

/// The status that the ship is answered with by each address of the server's.
fn ask(node: &Node, deathstar: &Workload, path: &str, how: &[&str]) -> [String; 2] {
    at(deathstar, 80).map(|to| {
        let mut curl = node.within("tiefighter", "curl");
        let quiet = ["--silent", "--max-time", "5", "--output", "/dev/null", "--write-out", "%{http_code}"];
        Outcome::of(curl.args(quiet).args(how).arg(format!("http://{to}{path}"))).stdout
    })
}

/// What the rule asks for, header by header.
const ASKED: [&str; 4] = ["Host: deathstar", "X-Pass: 1", "X-Org: empire", "X-Must: a"];

/// The status of a GET with these headers.
fn with(node: &Node, deathstar: &Workload, path: &str, headers: &[&str]) -> [String; 2] {
    let how: Vec<&str> = headers.iter().flat_map(|header| ["--header", header]).collect();
    ask(node, deathstar, path, &how)
}

/// Headers of the next request that reached the server.
fn reached(deathstar: &Workload) -> String {
    let line = deathstar.session.line();
    let said = line.strip_prefix("seen\t").unwrap();
    said.split('\t').nth(5).unwrap_or_default().to_owned()
}

fn is_enforced(rule: &str) {
    let (node, deathstar, _ship) = node("");
    node.enforce(rule);
    let denied = ["403", "403"];
    // One thing other than the rule asks for, each.
    assert_eq!(with(&node, &deathstar, "/v2/", &ASKED), denied);
    let others: [(usize, &[&str]); 6] = [
        (0, &["Host: alderaan"]),
        (1, &[]),
        (2, &["X-Org: alliance"]),
        (2, &["X-Org: empire", "X-Org: alliance"]),
        (3, &["X-Must: b"]),
        (3, &[]),
    ];
    for (number, other) in others {
        let headers: Vec<&str> = [&ASKED[..number], other, &ASKED[number + 1..]].concat();
        assert_eq!(with(&node, &deathstar, "/v1/", &headers), denied, "{headers:?}");
    }
    let deleting: Vec<&str> = ASKED.iter().flat_map(|header| ["--header", *header]).collect();
    assert_eq!(ask(&node, &deathstar, "/v1/", &[&["-X", "DELETE"][..], &deleting].concat()), denied);
    // And what is done where a header is other than it should be, or is as it should.
    let changes: [(&[&str], &str); 3] = [
        (&[], "x-more=c x-must=a x-org=empire x-other=e x-pass=1"),
        (
            &["X-Told: b", "X-More: c", "X-Less: d", "X-Other: e"],
            "x-less=d x-more=c x-must=a x-org=empire x-other=e x-pass=1 x-told=b",
        ),
        (
            &["X-Told: z", "X-More: z", "X-Less: z", "X-Other: z"],
            "x-more=z x-more=c x-must=a x-org=empire x-other=e x-pass=1 x-told=z",
        ),
    ];
    for (headers, reaches) in changes {
        let path = format!("/v1/{}", headers.join("").replace([' ', ':'], ""));
        assert_eq!(with(&node, &deathstar, &path, &[&ASKED[..], headers].concat()), ["200", "200"]);
        assert_eq!([reached(&deathstar), reached(&deathstar)], [reaches, reaches], "{headers:?}");
        let noted = format!("http://deathstar{path}) (header other than a rule with mismatch LOG has it)");
        let line = format!("http-request FORWARDED (HTTP/1.1 GET http://deathstar{path})");
        let seen = || node.ferromesh(&["observe", "--protocol", "http", "--last", "100"]).stdout;
        wait_until(&line, || seen().matches(&line).count() == 2);
        assert_eq!(seen().matches(&noted).count(), if headers.contains(&"X-Told: b") { 0 } else { 2 });
    }
}

#[test]
fn every_field_of_a_rule_for_who_is_called_is_enforced() {
    is_enforced(&rule("ingress", "deathstar", "fromEndpoints: [{matchLabels: {org: empire}}]"));
}

#[test]
fn every_field_of_a_rule_for_who_calls_is_enforced() {
    is_enforced(&rule("egress", "tiefighter", "toEndpoints: [{matchLabels: {class: deathstar}}]"));
}

/// Logged, numbered and counted, whether it passes or not.
#[test]
fn a_request_is_logged_with_the_number_that_the_server_gets_and_counted_for_its_pair() {
    let logs = tempfile::tempdir().unwrap();
    let path = logs.path().join("access.log");
    let settings = format!(", requestId: true, accessLog: {{path: {}, format: json}}", path.display());
    let (node, deathstar, _ship) = node(&settings);
    node.enforce(RULE1);
    assert_eq!(ask(&node, &deathstar, "/v1/request-landing", &["-X", "POST"]), ["200", "200"]);
    assert_eq!(ask(&node, &deathstar, "/v1/exhaust-port", &["-X", "PUT"]), ["403", "403"]);
    let numbers = [reached(&deathstar), reached(&deathstar)];
    let lines = || -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    };
    wait_until("all is logged", || lines().len() == 4);
    for number in &numbers {
        let id = number.strip_prefix("x-request-id=").unwrap();
        assert_eq!(id.len(), 36, "{id}");
        let lines = lines();
        let line = lines.iter().find(|line| line["request_id"] == id).unwrap_or_else(|| panic!("{lines:?}"));
        assert_eq!((&line["method"], &line["path"]), (&"POST".into(), &"/v1/request-landing".into()));
        assert_eq!(line["response_code"], 200);
        assert!(line["response_flags"].is_null(), "{line}");
        assert_eq!(line["response_code_details"], "via_upstream");
        assert_eq!(line["source_workload"], "default/tiefighter");
        assert_eq!(line["destination_workload"], "default/deathstar");
    }
    assert_ne!(numbers[0], numbers[1]);
    let denied = lines().into_iter().filter(|line| line["response_code"] == 403);
    let denied: Vec<_> = denied.map(|line| line["response_code_details"].clone()).collect();
    assert_eq!(denied, ["no_rule_lets_it_through", "no_rule_lets_it_through"]);
    let counted = |method: &str, code: &str, verdict: &str| {
        let labels = serde_json::json!({
            "source": "default/tiefighter", "destination": "default/deathstar", "method": method, "code": code,
            "verdict": verdict, "response_flags": "-",
        });
        wait_until(&format!("two are counted: {labels}"), || {
            let rows = node.json(&["metrics", "list", "ferromesh_http_requests_total"]);
            rows.as_array().unwrap().iter().any(|row| row["labels"] == labels && row["value"] == 2.0)
        });
    };
    counted("POST", "200", "FORWARDED");
    counted("PUT", "403", "DROPPED");
}
