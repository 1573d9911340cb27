//! `l7.denied`: how long a request waits for its `403`, while the proxy has nothing else to do.

use super::load::{Order, Pace, Protocol};
use super::transparent::{self, RULE, Transparent, policy, port_of, urgent};
use super::{Driver, middle, rps};
use crate::bench::compare::{turns, unmeasured};
use crate::bench::plan::Plan;
use crate::bench::report::{Row, Target};

const ID: &str = "l7.denied";
/// Requests a second, and on how many connections.
const RATE: f64 = 500.0;
const CONNECTIONS: usize = 8;
/// `Access denied`, and the end of the line.
const BODY: usize = 15;

/// Rows `l7.denied`: one that is denied, and beside it one that the server answers.
#[must_use]
pub fn measure(plan: &Plan) -> Vec<Row> {
    if !plan.selected.wants(ID) {
        return Vec::new();
    }
    let port = port_of(Protocol::H1, 0);
    let scene = Transparent::new(&policy("server", "client", &[port], RULE), &transparent::PORTS, "client");
    let driver = Driver::start(&mut urgent(&scene.node, "client"));
    let load = [CONNECTIONS, 1];
    let passes = transparent::closed((Protocol::H1, 0), &scene.server.workload, load, rps::seconds(plan));
    transparent::wait_for(&driver, &passes);
    let passes = Order { pace: Pace::Open(RATE), ..passes };
    let denied = Order { path: "/denied".to_owned(), status: 403, body: BODY, ..passes.clone() };
    let turn = [&denied, &passes];
    let what = format!("{RATE} requests/s on {CONNECTIONS} connections");
    match turns(plan.rounds, turn.len(), |number| driver.faultless(turn[number])) {
        Err(why) => vec![unmeasured(ID, &what, &why)],
        Ok(series) => {
            let [denied, passes] = [&series[0], &series[1]];
            let row = |name: &str, value: f64| Row::new(ID, format!("{what}: {name}"), value / 1000.0, "ms");
            vec![
                plan.judge(row("403 p50", middle(denied, |it| it.p50)), Target::AtMost(1.0), None),
                row("403 p99", middle(denied, |it| it.p99)),
                row("200 by the server p50", middle(passes, |it| it.p50)),
                row("200 by the server p99", middle(passes, |it| it.p99)),
            ]
        }
    }
}
