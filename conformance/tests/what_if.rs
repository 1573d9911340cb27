//! What `policy trace --with` predicts is what happens when the file is applied. Needs root and the kernel.
#![allow(clippy::unwrap_used, reason = "a scenario that cannot go on has failed")]

use std::net::{IpAddr, SocketAddr};

use conformance::lab::{Node, Session, binary, wait_until};
use serde_json::Value;

const RULE1: &str = include_str!("../../examples/star-wars/rule1.yaml");
const EMPIRE: &[&str] = &["org=empire", "class=tiefighter"];
const ALLIANCE: &[&str] = &["org=alliance", "class=xwing"];
const DEATHSTAR: &[&str] = &["org=empire", "class=deathstar"];

/// A connection that stays, as a workload.
fn hold(node: &Node, name: &str, labels: &[&str], to: IpAddr) -> Session {
    let probe = binary("probe");
    let to = SocketAddr::new(to, 80).to_string();
    node.start(name, labels, &[probe.to_str().unwrap(), "hold", &to]).session
}

/// Whether a row says that the flow changes so, at TCP port 80.
fn is_predicted(answer: &Value, change: &str, from: &str, to: &str) -> bool {
    let names = |row: &Value, side: &str, name: &str| {
        row[side]["items"].as_array().unwrap().iter().any(|item| item == name)
    };
    let at_80 = |range: &Value| {
        let (first, last) = (range["first"].as_u64().unwrap(), range["last"].as_u64().unwrap());
        let except = range["except"].as_array().is_some_and(|except| except.iter().any(|it| it == 6));
        let protocol = if range["protocol"].is_null() { !except } else { range["protocol"] == 6 };
        protocol && (first..=last).contains(&80)
    };
    answer["changes"]["rows"]["items"].as_array().unwrap().iter().any(|row| {
        row["change"] == change
            && names(row, "from", from)
            && names(row, "to", to)
            && row["ports"]["items"].as_array().unwrap().iter().any(at_80)
    })
}

#[test]
fn a_prediction_comes_true_when_the_file_is_applied() {
    let node = Node::up();
    let deathstar = node.serve("deathstar", DEATHSTAR, 80);
    let mut xwing = hold(&node, "xwing", ALLIANCE, deathstar.addresses[0]);
    let mut tiefighter = hold(&node, "tiefighter", EMPIRE, deathstar.addresses[1]);
    let file = node.config().join("rule2.yaml.proposed");
    std::fs::write(&file, RULE1).unwrap();
    let path = file.to_str().unwrap();

    let plan = || node.json(&["plan"]);
    let before = plan();
    let answer = node.json(&["policy", "trace", "--with", path]);
    assert_eq!(answer["edits"][0]["action"], "add", "{answer:#}");
    let denied = "allowed-to-denied";
    assert!(is_predicted(&answer, denied, "default/xwing", "default/deathstar"), "{answer:#}");
    assert!(is_predicted(&answer, denied, "reserved:world-ipv4", "default/deathstar"), "{answer:#}");
    assert!(!is_predicted(&answer, denied, "default/tiefighter", "default/deathstar"), "{answer:#}");
    assert!(!is_predicted(&answer, denied, "reserved:host", "default/deathstar"), "{answer:#}");
    assert!(!is_predicted(&answer, denied, "default/deathstar", "default/xwing"), "{answer:#}");
    assert!(!is_predicted(&answer, denied, "default/deathstar", "default/deathstar"), "{answer:#}");
    let text = node.ferromesh(&["policy", "trace", "--with", path]).success();
    assert!(text.contains("adds CiliumNetworkPolicy default/rule1"), "{text}");
    assert!(text.contains("allowed → denied") && text.contains("(default deny, ingress)"), "{text}");
    let one = node.ferromesh(&["policy", "trace", "xwing", "deathstar:80", "--with", path]);
    assert_eq!(one.code, Some(1), "{one:?}");
    assert!(
        one.stdout.contains("denied: rule1 selects deathstar") && one.stdout.contains("but now allowed"),
        "{one:?}"
    );
    assert_eq!(plan(), before, "asking changes nothing, not even a number");
    assert_eq!([xwing.ask("before"), tiefighter.ask("before")], ["answered", "answered"]);

    node.apply("rule1.yaml", RULE1);
    assert_eq!([xwing.ask("after"), tiefighter.ask("after")], ["silent", "answered"]);

    let same = node.json(&["policy", "trace", "--with", path]);
    assert_eq!(same["edits"][0]["action"], "keep");
    assert_eq!(same["changes"]["rows"]["total"], 0, "{same:#}");
    let without = node.json(&["policy", "trace", "--without", "cnp/default/rule1"]);
    assert!(is_predicted(&without, "denied-to-allowed", "default/xwing", "default/deathstar"), "{without:#}");
    node.withdraw("rule1.yaml");
    // Another connection: the one that was silent waits for its next retransmission, longer each time.
    assert_eq!(node.attempt("xwing-2", ALLIANCE, "tcp", deathstar.addresses[0], 80), "answered");
}

#[test]
fn a_file_that_is_wrong_is_refused_with_its_line_and_changes_nothing() {
    let node = Node::up();
    let file = node.config().join("rule1.yaml.proposed");
    std::fs::write(&file, RULE1.replace("fromEndpoints", "fromEndpoint")).unwrap();
    let path = file.to_str().unwrap();
    let refused = node.ferromesh(&["policy", "trace", "--with", path]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let line = format!("{path}:12 spec.ingress[0].fromEndpoint: unknown, did you mean fromEndpoints");
    assert!(refused.stderr.lines().any(|told| told == line), "{refused:?}");
    let analyzed = node.ferromesh(&["analyze", path]);
    assert_eq!(analyzed.code, Some(1), "and so does analyze");
    assert!(node.json(&["policy", "list"]).as_array().unwrap().is_empty());
}

#[test]
fn what_is_compiled_is_shown_for_endpoints_policies_and_selectors() {
    let node = Node::up();
    let _deathstar = node.serve("deathstar", DEATHSTAR, 80);
    node.apply("rule1.yaml", RULE1);
    wait_until("rule1 is in force", || node.json(&["policy", "get", "rule1"])[0]["in_force"] == true);
    let endpoint = node.json(&["policy", "get", "deathstar"]);
    let identity = node.json(&["endpoint", "get", "deathstar"])["identity"].clone();
    assert_eq!(endpoint["ingress"]["enforced"], true);
    let entries = endpoint["ingress"]["entries"].as_array().unwrap();
    let empire = entries.iter().find(|entry| entry["identity"] == identity).unwrap();
    assert_eq!(
        (&empire["first"], &empire["protocol"], &empire["policies"][0]["name"]),
        (&80.into(), &6.into(), &"rule1".into())
    );
    let policy = &node.json(&["policy", "get", "cnp/default/rule1"])[0];
    assert_eq!(policy["endpoints"]["items"][0], "default/deathstar", "{policy:#}");
    let selectors = node.json(&["policy", "selectors"]);
    let subject = selectors.as_array().unwrap().iter().find(|row| row["role"] == "subject").unwrap();
    assert_eq!(
        (&subject["identities"]["items"][0], &subject["users"]),
        (&identity, &1.into()),
        "{selectors:#}"
    );
    assert_eq!(node.ferromesh(&["policy", "get", "nobody"]).code, Some(1));
}
