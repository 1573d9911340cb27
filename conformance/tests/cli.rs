//! The command line against a real agent: one refused connection, seen by every verb that shows what happened. Needs root
//! and the kernel.
#![allow(clippy::unwrap_used, reason = "a scenario that cannot go on has failed")]

use conformance::lab::{Node, Session, binary, wait_until};
use serde_json::Value;

const RULE1: &str = include_str!("../../examples/star-wars/rule1.yaml");
const EMPIRE: &[&str] = &["org=empire", "class=tiefighter"];
const ALLIANCE: &[&str] = &["org=alliance", "class=xwing"];
const DEATHSTAR: &[&str] = &["org=empire", "class=deathstar"];

/// `ferromesh monitor`, which listens when this returns.
fn monitor(node: &Node, arguments: &[&str]) -> Session {
    let mut command = node.inside("/bin/sh");
    command.args(["-c", "exec \"$@\" 2>&1", "sh"]).arg(binary("ferromesh"));
    let monitor = Session::start(command.arg("--socket").arg(node.socket()).arg("monitor").args(arguments));
    assert!(monitor.line().starts_with("Listening"));
    monitor
}

/// A node where xwing was refused by deathstar and tiefighter was not.
struct Refused {
    node: Node,
    deathstar: conformance::lab::Workload,
    number: String,
    drops: Session,
    verdicts: Session,
    json: Session,
}

fn refused() -> Refused {
    let node = Node::up();
    let deathstar = node.serve("deathstar", DEATHSTAR, 80);
    node.apply("rule1.yaml", RULE1);
    let number = node.json(&["endpoint", "get", "deathstar"])["endpoint"]["id"].to_string();
    let drops = monitor(&node, &["--type", "drop", "--to", &number]);
    let verdicts = monitor(&node, &["-t", "policy-verdict", "--related-to", &number]);
    let json = monitor(&node, &["-t", "trace", "-o", "json"]);
    for address in deathstar.addresses {
        assert_eq!(node.attempt("xwing", ALLIANCE, "tcp", address, 80), "silent");
        assert_eq!(node.attempt("tiefighter", EMPIRE, "tcp", address, 80), "answered");
    }
    Refused { node, deathstar, number, drops, verdicts, json }
}

#[test]
fn what_was_refused_is_counted_monitored_listed_and_found() {
    let refused = refused();
    the_kernels_events_are_printed(&refused);
    drops_are_counted(&refused.node);
    metrics_list_what_is_served(&refused.node);
    filters_find_it(&refused.node, &refused.deathstar.addresses.map(|address| address.to_string()));
    status_shows_programs_and_maps(&refused.node);
}

fn the_kernels_events_are_printed(refused: &Refused) {
    let (number, [ipv4, _]) = (&refused.number, refused.deathstar.addresses);
    let line = refused.drops.line();
    assert!(line.starts_with("xx drop (Policy denied) flow 0x"), "{line}");
    assert!(line.contains(&format!(" to endpoint {number}, ifindex ")), "{line}");
    assert!(line.ends_with(&format!(" -> {ipv4}:80 tcp SYN")), "{line}");
    let identity = refused.node.json(&["endpoint", "get", "deathstar"])["identity"].to_string();
    assert!(line.contains(&format!("->{identity}: ")), "the identity that `endpoint get` shows: {line}");

    let denied = refused.verdicts.line();
    assert!(denied.starts_with("Policy verdict log: flow 0x"), "{denied}");
    assert!(denied.contains(&format!("local EP ID {number}, ")), "{denied}");
    assert!(denied.contains("proto 6, ingress, action deny, match none"), "{denied}");
    // Retransmissions are denied again, and the sender's egress is allowed too.
    let allowed = std::iter::from_fn(|| Some(refused.verdicts.line()))
        .find(|line| line.contains("ingress, action allow"));
    assert!(allowed.is_some_and(|line| line.contains(", match cookie ")));

    let event: Value = serde_json::from_str(&refused.json.line()).unwrap();
    assert_eq!((event["kind"].as_u64(), event["reason"].as_u64()), (Some(2), Some(0)), "{event}");
}

fn drops_are_counted(node: &Node) {
    let rows = node.json(&["drops"]);
    let denied = rows
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["workload"] == "default/deathstar" && row["number"] == 133);
    assert!(denied.is_some_and(|row| row["direction"] == "ingress"), "{rows}");
    assert!(denied.is_some_and(|row| row["packets"].as_u64() >= Some(2)), "both families: {rows}");
    let text = node.ferromesh(&["drops"]).success();
    let row = text.lines().find(|line| line.starts_with("133")).unwrap();
    assert!(row.contains("Policy denied") && row.contains("ingress"), "{text}");
    assert!(text.contains("\nPolicy denied: A policy selects the endpoint"), "what it means: {text}");
}

fn metrics_list_what_is_served(node: &Node) {
    // The agent reads the kernel's counters every second.
    let drops = || node.json(&["metrics", "list", "drop_total"]);
    wait_until("the drop is in the metrics", || {
        drops().as_array().unwrap().iter().any(|row| {
            row["labels"]["reason"] == "Policy denied"
                && row["labels"]["endpoint"] == "default/deathstar"
                && row["value"].as_f64() >= Some(2.0)
        })
    });
    let text = node.ferromesh(&["metrics", "list"]).success();
    for expected in [
        "ferromesh_build_info",
        "map=\"RULES\"",
        "ferromesh_map_pressure",
        "ferromesh_endpoint_state                      state=\"ready\"",
        "ferromesh_policy_edit_to_live_seconds_count",
        "ferromesh_connections ",
    ] {
        let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(squeezed(&text).contains(&squeezed(expected)), "{expected}: {text}");
    }
    let none = node.ferromesh(&["metrics", "list", "yoda"]);
    assert_eq!(none.code, Some(1));
    assert!(none.stderr.contains("no metric has \"yoda\" in its name"), "{}", none.stderr);
}

fn filters_find_it(node: &Node, addresses: &[String; 2]) {
    let found = |filters: &[&str]| -> Vec<Value> {
        let arguments = [&["observe", "--all", "-o", "json"], filters].concat();
        let text = node.ferromesh(&arguments).success();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    // What else is dropped, such as the rest of a connection whose client is gone, is not the matter here.
    let dropped = |filters: &[&str]| found(&[filters, &["--drop-reason", "133"]].concat());
    let both = dropped(&["--from-pod", "xwing", "--to-pod", "deathstar", "--to-port", "80"]);
    assert!(both.len() >= 2, "{both:?}");
    let [ipv4, ipv6] = addresses;
    for filters in [
        &["--from-label", "org=alliance"][..],
        &["--namespace", "default", "--protocol", "tcp"],
        &["--to-ip", ipv4, "--to-ip", ipv6],
        &["--ip", "10.77.0.0/24", "--ip", "fd00:77::/112"],
        &["--tcp-flags", "SYN", "--traffic-direction", "ingress"],
        &["--drop-reason-desc", "POLICY_DENIED", "--verdict", "DROPPED", "--since", "10m"],
        &["--not", "--from-pod", "tiefighter"],
    ] {
        assert_eq!(dropped(filters), both, "{filters:?}");
    }
    for filters in [
        &["--from-pod", "deathstar"][..],
        &["--to-label", "org=alliance"],
        &["--from-port", "80"],
        &["--identity", "world"],
        &["--protocol", "udp"],
        &["--not", "--to-port", "80"],
        &["--until", "10m"],
        &["--verdict", "FORWARDED"],
    ] {
        assert_eq!(dropped(filters), Vec::<Value>::new(), "{filters:?}");
    }
    assert_eq!(
        dropped(&["--to-ip", ipv4, "--not", "--tcp-flags", "ACK"]).len(),
        dropped(&["--to-ip", ipv4]).len()
    );
    let wrong = node.ferromesh(&["observe", "--drop-reason", "bad luck"]);
    assert_eq!(wrong.code, Some(1));
    assert!(wrong.stderr.contains("\"Policy denied\" (133)"), "what is accepted: {}", wrong.stderr);
}

fn status_shows_programs_and_maps(node: &Node) {
    let program = |name: &str| {
        let programs = node.json(&["status"])["programs"].clone();
        programs.as_array().unwrap().iter().find(|row| row["name"] == name).cloned().unwrap()
    };
    wait_until("deathstar alone is left", || program("from_pod")["attached"] == 1);
    assert!(program("from_pod")["bytes"].as_u64() > Some(0));
    assert_eq!(program("connect4")["attached"], 1);
    assert_eq!(program("conntrack_gc")["attached"], 0);
    let text = node.ferromesh(&["status", "--verbose"]).success();
    assert!(
        text.contains("\nfrom_pod ") && text.contains("\nRULES ") && text.contains("\nKernel memory:"),
        "{text}"
    );
}
