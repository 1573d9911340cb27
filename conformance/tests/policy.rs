//! Policy on one node: real workloads, real traffic, both families. Needs root and the kernel.
#![allow(clippy::unwrap_used, reason = "a scenario that cannot go on has failed")]

use conformance::lab::{Node, Session, binary, wait_until};

const RULE1: &str = include_str!("../../examples/star-wars/rule1.yaml");
const EMPIRE: &[&str] = &["org=empire", "class=tiefighter"];
const ALLIANCE: &[&str] = &["org=alliance", "class=xwing"];
const DEATHSTAR: &[&str] = &["org=empire", "class=deathstar"];

/// A connection that stays, as a workload.
fn hold(node: &Node, name: &str, labels: &[&str], to: std::net::SocketAddr) -> Session {
    let probe = binary("probe");
    let command = [probe.to_str().unwrap(), "hold", &to.to_string()].map(str::to_owned);
    node.start(name, labels, &command.each_ref().map(String::as_str)).session
}

#[test]
fn rule1_lets_the_empire_in_and_nobody_else() {
    let node = Node::up();
    let deathstar = node.serve("deathstar", DEATHSTAR, 80);
    for address in deathstar.addresses {
        assert_eq!(
            node.attempt("xwing", ALLIANCE, "tcp", address, 80),
            "answered",
            "before any policy, {address}"
        );
    }

    node.apply("rule1.yaml", RULE1);
    for address in deathstar.addresses {
        assert_eq!(node.attempt("tiefighter", EMPIRE, "tcp", address, 80), "answered", "{address}");
        assert_eq!(
            node.attempt("tiefighter", EMPIRE, "udp", address, 80),
            "silent",
            "rule1 names TCP, {address}"
        );
        assert_eq!(node.attempt("xwing", ALLIANCE, "tcp", address, 80), "silent", "{address}");
        assert_eq!(node.attempt("xwing", ALLIANCE, "udp", address, 80), "silent", "{address}");
    }

    let dropped = node
        .ferromesh(&["observe", "--pod", "default/xwing", "--verdict", "DROPPED", "--last", "50"])
        .success();
    assert!(dropped.contains("<> default/deathstar:80"), "{dropped}");
    assert!(dropped.contains("Policy denied DROPPED (TCP Flags: SYN)"), "{dropped}");
    assert!(dropped.contains("default/rule1"), "a drop names its policy: {dropped}");
    let trace = node.ferromesh(&["policy", "trace", "default/xwing", "default/deathstar:80/tcp"]);
    assert_eq!(trace.code, Some(1), "xwing is gone, nothing declares it: {trace:?}");
    node.withdraw("rule1.yaml");
    assert_eq!(node.attempt("xwing", ALLIANCE, "tcp", deathstar.addresses[0], 80), "answered");
}

#[test]
fn an_edit_reaches_live_connections_in_both_directions() {
    let node = Node::up();
    let deathstar = node.serve("deathstar", DEATHSTAR, 80);
    for (turn, address) in deathstar.addresses.into_iter().enumerate() {
        let mut live = hold(&node, &format!("xwing-{turn}"), ALLIANCE, (address, 80).into());
        assert_eq!(live.ask("before"), "answered");
        node.apply("rule1.yaml", RULE1);
        assert_eq!(live.ask("denied"), "silent", "{address}: a new deny reaches a live connection");
        node.withdraw("rule1.yaml");
        // TCP asks again by itself, the later the longer it was not answered.
        wait_until("the connection goes on", || live.ask("after") == "answered");
    }
}

#[test]
fn an_invalid_edit_is_explained_and_the_previous_version_stays() {
    let node = Node::up();
    let deathstar = node.serve("deathstar", DEATHSTAR, 80);
    node.apply("rule1.yaml", RULE1);
    node.write("rule1.yaml", &RULE1.replace("fromEndpoints", "fromEndpoint"));
    wait_until("the error is listed", || node.ferromesh(&["policy", "list"]).stdout.contains("False"));
    let list = node.ferromesh(&["policy", "list"]).stdout;
    assert!(
        list.contains(
            "spec.ingress[0].fromEndpoint: unknown, did you mean fromEndpoints; previous version in force"
        ),
        "{list}"
    );
    assert!(list.contains("rule1.yaml:"), "with file and line: {list}");
    assert_eq!(node.attempt("xwing", ALLIANCE, "tcp", deathstar.addresses[0], 80), "silent");
    assert_eq!(node.attempt("tiefighter", EMPIRE, "tcp", deathstar.addresses[1], 80), "answered");
}

#[test]
fn a_relabelled_workload_and_its_live_connections_follow() {
    let node = Node::up();
    let workload = |org: &str| {
        format!(
            "apiVersion: ferromesh.io/v1alpha1\nkind: Workload\n\
             metadata: {{name: ship, namespace: default, labels: {{org: {org}}}}}\n"
        )
    };
    node.write("ship.yaml", &workload("empire"));
    let deathstar = node.serve("deathstar", DEATHSTAR, 80);
    node.apply("rule1.yaml", RULE1);
    let mut live = hold(&node, "ship", &[], (deathstar.addresses[0], 80).into());
    assert_eq!(live.ask("before"), "answered");
    let identity = || node.json(&["endpoint", "get", "ship"])["identity"].clone();
    let before = identity();
    node.apply("ship.yaml", &workload("alliance"));
    assert_ne!(identity(), before);
    assert_eq!(live.ask("denied"), "silent");
    node.apply("ship.yaml", &workload("empire"));
    assert_eq!(identity(), before, "the same labels are the same identity");
    assert_eq!(live.ask("after"), "answered");
}

#[test]
fn egress_policy_binds_the_sender_and_both_sides_must_agree() {
    let node = Node::up();
    let deathstar = node.serve("deathstar", DEATHSTAR, 80);
    node.apply(
        "egress.yaml",
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: grounded, namespace: default}\n\
         spec:\n  podSelector: {matchLabels: {org: alliance}}\n  policyTypes: [Egress]\n  egress:\n\
         \x20 - to: [{podSelector: {matchLabels: {org: empire}}}]\n    ports: [{port: 80, endPort: 90, protocol: UDP}]\n",
    );
    for address in deathstar.addresses {
        assert_eq!(node.attempt("xwing", ALLIANCE, "udp", address, 80), "answered", "{address}");
        assert_eq!(node.attempt("xwing", ALLIANCE, "tcp", address, 80), "silent", "{address}");
        assert_eq!(
            node.attempt("tiefighter", EMPIRE, "tcp", address, 80),
            "answered",
            "not selected, {address}"
        );
    }
}

#[test]
fn the_node_reaches_its_workloads_and_they_answer() {
    let node = Node::up();
    let deathstar = node.serve("deathstar", DEATHSTAR, 80);
    node.apply("rule1.yaml", RULE1);
    for address in deathstar.addresses {
        let target = std::net::SocketAddr::new(address, 80).to_string();
        let said = node.inside(binary("probe")).args(["tcp", &target]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&said.stdout).trim(), "answered", "{address}");
    }
}

#[test]
fn audit_mode_reports_what_it_would_deny_and_lets_it_pass() {
    let node = Node::up_with(", policyAuditMode: true");
    let deathstar = node.serve("deathstar", DEATHSTAR, 80);
    node.apply("rule1.yaml", RULE1);
    for address in deathstar.addresses {
        assert_eq!(node.attempt("xwing", ALLIANCE, "tcp", address, 80), "answered", "{address}");
    }
    let audited = node.ferromesh(&["observe", "--verdict", "AUDIT", "--last", "10"]).success();
    assert_eq!(audited.lines().count(), 2, "{audited}");
    assert!(audited.contains("default/deathstar:80") && audited.contains("AUDITED"), "{audited}");
}

#[test]
fn rules_whose_enforcer_does_not_exist_yet_deny_and_say_so() {
    let node = Node::up();
    let deathstar = node.serve("deathstar", DEATHSTAR, 80);
    node.apply(
        "rule1.yaml",
        &RULE1.replace(
            "        protocol: TCP",
            "        protocol: TCP\n      rules: {l7proto: redis, l7: [{cmd: GET}]}",
        ),
    );
    let list = node.ferromesh(&["policy", "list"]).success();
    assert!(
        list.contains("True") && list.contains("needs what the layer-7 proxy of this version cannot do"),
        "{list}"
    );
    for address in deathstar.addresses {
        assert_eq!(node.attempt("tiefighter", EMPIRE, "tcp", address, 80), "silent", "{address}");
    }
}
