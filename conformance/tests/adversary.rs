//! A workload with raw sockets sends what no policy may let through. Each packet is dropped, counted under its reason,
//! and the line names who tried. Needs root and the kernel. Frames below IP are in the program tests.
#![allow(clippy::unwrap_used, reason = "a scenario that cannot go on has failed")]

use std::net::IpAddr;

use conformance::forge::CASES;
use conformance::lab::{Node, Outcome, binary, wait_until};

const RULE1: &str = include_str!("../../examples/star-wars/rule1.yaml");
const DEATHSTAR: &[&str] = &["org=empire", "class=deathstar"];

/// A workload that may open raw sockets sends one forged packet.
fn forge(node: &Node, name: &str, case: &str, to: IpAddr, from: Option<IpAddr>) {
    let mut run = node.inside(binary("ferromesh"));
    run.arg("--socket").arg(node.socket());
    run.args(["run", "--name", name, "--label", "org=alliance", "--cap-add", "NET_RAW", "--"]);
    run.arg(binary("probe")).args(["forge", case, &to.to_string()]).args(from.map(|from| from.to_string()));
    assert_eq!(Outcome::of(&mut run).success(), "sent", "{case} to {to}");
}

fn drops(node: &Node, more: &[&str]) -> Vec<String> {
    let arguments = [&["observe", "--verdict", "DROPPED", "--last", "1000"], more].concat();
    node.ferromesh(&arguments).success().lines().map(str::to_owned).collect()
}

#[test]
fn what_is_forged_is_dropped_for_its_reason_even_without_any_policy() {
    let node = Node::up();
    let deathstar = node.serve("deathstar", DEATHSTAR, 80);
    for to in deathstar.addresses {
        for case in CASES.iter().filter(|case| case.name != "spoof") {
            let name = format!("rebel-{}-{}", case.name, if to.is_ipv4() { 4 } else { 6 });
            forge(&node, &name, case.name, to, None);
            let reason = case.reason(to);
            wait_until(&format!("{} to {to} is dropped: {reason}", case.name), || {
                let lines = drops(&node, &["--drop-reason", reason, "--pod", &name]);
                lines.iter().any(|line| line.contains(&name))
            });
        }
    }
}

#[test]
fn a_spoofed_source_is_dropped_wherever_it_is_sent_from() {
    let node = Node::up();
    let deathstar = node.serve("deathstar", DEATHSTAR, 80);
    let ally = node.serve("tiefighter", &["org=empire"], 81);
    node.apply("rule1.yaml", RULE1);
    let spoofed = || drops(&node, &["--drop-reason", "Invalid source ip"]).len();
    for (to, from) in deathstar.addresses.into_iter().zip(ally.addresses) {
        let before = spoofed();
        forge(&node, "rebel", "spoof", to, Some(from));
        wait_until("a workload's forgery is dropped", || spoofed() > before);
        // From the host itself, where CAP_NET_RAW is enough to write any address.
        let before = spoofed();
        let forged = ["forge", "spoof", &to.to_string(), &from.to_string()].map(str::to_owned);
        Outcome::of(node.inside(binary("probe")).args(forged)).success();
        wait_until("the host's forgery is dropped", || spoofed() > before);
    }
}

#[test]
fn a_flood_of_connections_hurts_only_its_sender() {
    let node = Node::up();
    let deathstar = node.serve("deathstar", DEATHSTAR, 80);
    let probe = binary("probe");
    let target = std::net::SocketAddr::new(deathstar.addresses[0], 80).to_string();
    let mut live = node.start("tiefighter", &["org=empire"], &[probe.to_str().unwrap(), "hold", &target]);
    assert_eq!(live.session.ask("before"), "answered");
    let flood =
        [probe.to_str().unwrap(), "flood", &deathstar.addresses[0].to_string(), "70000"].map(str::to_owned);
    let flood = node.run("rebel", &["org=alliance"], &flood.each_ref().map(String::as_str));
    assert_eq!(flood.success(), "flooded");
    wait_until("the quota is reported", || {
        !drops(&node, &["--drop-reason", "Connection quota exceeded"]).is_empty()
    });
    assert_eq!(live.session.ask("after"), "answered");
    assert_eq!(node.attempt("tiefighter-2", &["org=empire"], "tcp", deathstar.addresses[0], 80), "answered");
}
