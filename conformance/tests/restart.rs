//! The agent dies, comes back, or is one too many. Needs root and the kernel.
#![allow(clippy::unwrap_used, reason = "a scenario that cannot go on has failed")]

use conformance::lab::{Node, binary, wait_until};

const RULE1: &str = include_str!("../../examples/star-wars/rule1.yaml");
const EMPIRE: &[&str] = &["org=empire"];
const ALLIANCE: &[&str] = &["org=alliance"];
const DEATHSTAR: &[&str] = &["org=empire", "class=deathstar"];

#[test]
fn connections_and_policy_outlive_the_agent_and_a_restart_adopts_them() {
    outlive(Node::up());
}

/// Kernels before 6.6 have no tcx.
#[test]
fn the_same_holds_where_programs_are_clsact_filters() {
    outlive(Node::up_with(", attach: clsact"));
}

fn outlive(mut node: Node) {
    let probe = binary("probe");
    let probe = probe.to_str().unwrap();
    let deathstar = node.serve("deathstar", DEATHSTAR, 80);
    node.apply("rule1.yaml", RULE1);
    let targets = deathstar.addresses.map(|address| std::net::SocketAddr::new(address, 80).to_string());
    let mut live4 = node.start("tiefighter-4", EMPIRE, &[probe, "hold", &targets[0]]);
    let mut live6 = node.start("tiefighter-6", EMPIRE, &[probe, "hold", &targets[1]]);
    // A workload that lives on, from which new connections can be tried without an agent.
    let mut xwing = node.start("xwing", ALLIANCE, &[probe, "ask"]);
    let revision = node.revision();

    node.kill_agent();
    assert_eq!(live4.session.ask("dead"), "answered");
    assert_eq!(live6.session.ask("dead"), "answered");
    for target in &targets {
        assert_eq!(xwing.session.ask(&format!("tcp {target}")), "silent", "policy holds without an agent");
    }
    let status = node.ferromesh(&["status"]);
    assert_eq!(status.code, Some(1));
    assert!(status.stderr.contains("not running"), "{status:?}");
    let refused = node.run("late", EMPIRE, &["true"]);
    assert_eq!(refused.code, Some(125), "no workload runs unenforced: {refused:?}");

    node.start_agent();
    assert_eq!(live4.session.ask("back"), "answered");
    assert_eq!(live6.session.ask("back"), "answered");
    assert_eq!(node.revision(), revision, "nothing changed, so nothing was judged anew");
    assert_eq!(node.json(&["status"])["adopted"], 4);
    for target in &targets {
        assert_eq!(xwing.session.ask(&format!("tcp {target}")), "silent");
    }
    node.withdraw("rule1.yaml");
    for target in &targets {
        assert_eq!(
            xwing.session.ask(&format!("tcp {target}")),
            "answered",
            "an adopted endpoint follows edits"
        );
    }
}

#[test]
fn a_workload_that_ended_while_the_agent_was_dead_is_removed_by_the_next() {
    let mut node = Node::up();
    let mut deathstar = node.serve("deathstar", DEATHSTAR, 80);
    node.kill_agent();
    deathstar.session.kill();
    node.start_agent();
    wait_until("the endpoint is gone", || node.json(&["endpoint", "list"]).as_array().unwrap().is_empty());
}

#[test]
fn a_second_agent_is_refused_in_one_line() {
    let node = Node::up();
    let second = node.verb("agent", &[]);
    assert_eq!(second.code, Some(1));
    assert_eq!(second.stderr.lines().count(), 1, "{}", second.stderr);
    assert!(second.stderr.contains("another ferromesh agent is running"), "{}", second.stderr);
}

#[test]
fn down_leaves_nothing_behind_even_without_an_agent() {
    let mut node = Node::up();
    let _deathstar = node.serve("deathstar", DEATHSTAR, 80);
    node.apply("rule1.yaml", RULE1);
    assert_eq!(node.verb("check", &["--clean"]).code, Some(1), "something is there to be found");
    node.kill_agent();
    node.verb("down", &[]).success();
    node.verb("check", &["--clean"]).success();
    assert!(!node.pins().exists());
    let links = node.inside("ip").args(["-brief", "link"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&links.stdout).lines().count(), 1, "only lo is left");
}

#[test]
fn a_policy_that_does_not_fit_is_refused_and_does_not_keep_the_agent_from_restarting() {
    let mut node = Node::up();
    let deathstar = node.serve("deathstar", DEATHSTAR, 80);
    node.apply("rule1.yaml", RULE1);
    node.apply("huge.yaml", &huge());
    let refused = |node: &Node| node.json(&["status"])["degraded"].to_string();
    assert!(refused(&node).contains("RULES"), "the map is named: {}", refused(&node));
    node.kill_agent();
    node.start_agent();
    assert!(refused(&node).contains("RULES"), "{}", refused(&node));
    node.withdraw("huge.yaml");
    assert_eq!(refused(&node), "[]");
    for address in deathstar.addresses {
        assert_eq!(
            node.attempt("xwing", ALLIANCE, "tcp", address, 80),
            "silent",
            "rule1 held throughout, {address}"
        );
        assert_eq!(node.attempt("tiefighter", EMPIRE, "tcp", address, 80), "answered", "{address}");
    }
}

/// 1200 prefixes by 40 ranges of 30 port prefixes each: more than a million entries.
fn huge() -> String {
    let prefixes: Vec<String> = (0..1200).map(|n| format!("192.{}.{}.0/24", n / 256, n % 256)).collect();
    let ranges: Vec<String> =
        (0..40).map(|n| format!("{{port: '{}', endPort: {}}}", 1 + n * 1600, 1598 + n * 1600)).collect();
    format!(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: huge}}\nspec:\n\
         \x20 endpointSelector: {{}}\n  ingress:\n  - fromCIDR: [{}]\n    toPorts: [{{ports: [{}]}}]\n",
        prefixes.join(", "),
        ranges.join(", ")
    )
}
