//! `l7.memory`: what the proxy keeps for itself: at rest, with many rules, and for each connection that is idle.

use super::load::{Order, Pace, Protocol};
use super::process::private;
use super::transparent::{self, PORTS, RULE, Transparent, closed, idle, policy, port_of, ready, secured};
use super::{many, rps};
use crate::bench::compare::unmeasured;
use crate::bench::plan::Plan;
use crate::bench::report::{Row, Target};

const ID: &str = "l7.memory";
const BODY: usize = 1024;
/// Idle connections, at most so many KiB each.
const IDLE: [(&str, Protocol, bool, f64); 3] = [
    ("h1", Protocol::H1, false, 12.0),
    ("h1tls", Protocol::H1, true, 24.0),
    ("h2tls", Protocol::H2, true, 32.0),
];

/// Rows `l7.memory`.
#[must_use]
pub fn measure(plan: &Plan) -> Vec<Row> {
    let id = |name: &str| format!("{ID}.{name}");
    let mut rows = Vec::new();
    for (name, protocol, tls, most) in IDLE {
        if plan.selected.wants(&id(name)) || name == "h1" && plan.selected.wants(&id("idle")) {
            let found = connections(plan, &id(name), (protocol, tls), most);
            rows.extend(found.into_iter().filter(|row| plan.selected.wants(&row.id)));
        }
    }
    if plan.selected.wants(&id("5k")) {
        rows.push(rules(plan));
    }
    rows
}

fn megabytes(kibibytes: f64) -> f64 {
    kibibytes * 1024.0 / 1e6
}

/// The process before its first request, and for each connection after its first.
fn connections(plan: &Plan, id: &str, (protocol, tls): (Protocol, bool), most: f64) -> Vec<Row> {
    let ports = [port_of(protocol, BODY)];
    let policies = if tls { secured } else { policy }("server", "client", &ports, RULE);
    let scene = Transparent::new(&policies, &PORTS, "client");
    let driver = scene.driver("client");
    let mut rows = Vec::new();
    if !tls {
        let memory = megabytes(private(scene.proxy));
        let row = Row::new(format!("{ID}.idle"), "private memory with one rule", memory, "MB");
        rows.push(plan.judge(row, Target::AtMost(12.0), None));
    }
    let count = match protocol {
        _ if plan.quick => 200,
        Protocol::H1 => 3000,
        // All ask at once, and of streams a workload may have 2048.
        Protocol::H2 | Protocol::Grpc => 1500,
    };
    let order = closed((protocol, BODY), &scene.server.workload, [count, 1], rps::seconds(plan));
    let order = Order { tls, ..order };
    transparent::wait_for(&driver, &order);
    // What is made once, for the first ones, is no connection's.
    let order = Order { pace: Pace::Once, ..order };
    let few = Order { connections: count / 20, ..order.clone() };
    let how = if tls { " over TLS" } else { "" };
    let what = format!("private memory of each of {count} idle connections{how} after one request, 1 KB");
    let at = |order: &Order| driver.faultless(order).map(|_| private(scene.proxy));
    let measured = at(&few).and_then(|before| Ok((before, at(&order)?)));
    rows.push(match measured {
        Ok((before, after)) => {
            let each = (after - before) / (order.connections - few.connections) as f64;
            plan.judge(Row::new(id, what, each, "KiB"), Target::AtMost(most), None)
        }
        Err(why) => unmeasured(id, &what, &why),
    });
    rows
}

/// The process with five thousand rules.
fn rules(plan: &Plan) -> Row {
    let extent = many::Extent::of(plan);
    let ports = [port_of(Protocol::H1, BODY)];
    let scene =
        Transparent::new(&(policy("server", "client", &ports, RULE) + &extent.policies()), &PORTS, "client");
    let _others: Vec<_> = extent.workloads().map(|name| idle(&scene.node, &name)).collect();
    ready(&scene.node);
    let driver = scene.driver("client");
    let order = closed((Protocol::H1, BODY), &scene.server.workload, [1, 1], 0.1);
    transparent::wait_for(&driver, &order);
    let what = format!(
        "private memory with {} path rules of {} workloads",
        extent.rules(),
        extent.workloads().count()
    );
    let row = Row::new(format!("{ID}.5k"), what, megabytes(private(scene.proxy)), "MB");
    plan.judge(row, Target::AtMost(40.0), None)
}
