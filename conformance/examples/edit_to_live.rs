//! How long after a file is renamed into place is the first packet judged anew? Both ways, both families.
//!
//! `cargo build --workspace --bins && cargo run -p conformance --example edit_to_live` (root); prints a table.
#![allow(clippy::expect_used, reason = "a measurement that cannot be made has no result")]

use std::net::{IpAddr, SocketAddr};

use conformance::lab::{Node, Workload, binary};
use conformance::pulse;

const RULE1: &str = include_str!("../../examples/star-wars/rule1.yaml");
const EDITS: usize = 100;

fn main() {
    let node = Node::up();
    let deathstar = node.serve("deathstar", &["org=empire", "class=deathstar"], 80);
    println!("{:32} {:>9} {:>9} {:>9}", format!("{EDITS} edits each"), "p50 ms", "p99 ms", "max ms");
    for address in deathstar.addresses {
        measure(&node, address);
    }
}

fn measure(node: &Node, address: IpAddr) {
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    let probe = binary("probe");
    let target = SocketAddr::new(address, 80).to_string();
    let xwing = node.start("xwing", &["org=alliance"], &[probe.to_str().expect("UTF-8"), "pulse", &target]);
    let (mut closing, mut opening) = (Vec::new(), Vec::new());
    for _ in 0..EDITS {
        let begin = pulse::now();
        node.write("rule1.yaml", RULE1);
        closing.push(since(&xwing, "closed", begin));
        let begin = pulse::now();
        node.remove("rule1.yaml");
        opening.push(since(&xwing, "open", begin));
    }
    row(&format!("{family}, a rule is written: closed"), closing);
    row(&format!("{family}, it is removed: open"), opening);
    drop(xwing);
    conformance::lab::wait_until("the name is free", || {
        node.json(&["endpoint", "list"]).as_array().map(Vec::len) == Some(1)
    });
}

/// Milliseconds from `begin` to the change that the pulse reports next.
fn since(xwing: &Workload, what: &str, begin: u128) -> f64 {
    let line = xwing.session.line();
    let at = line.strip_prefix(what).map(str::trim).and_then(|at| at.parse::<u128>().ok());
    let at = at.unwrap_or_else(|| unreachable!("the pulse said {line:?}, expected {what}"));
    at.saturating_sub(begin) as f64 / 1e6
}

fn row(what: &str, mut values: Vec<f64>) {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| values[((values.len() - 1) as f64 * share).round() as usize];
    println!("{what:32} {:9.2} {:9.2} {:9.2}", at(0.5), at(0.99), at(1.0));
}
