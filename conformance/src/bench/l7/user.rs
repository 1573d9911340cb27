//! `l7.user`: the time that the proxy itself takes for a request, beside the kernel's; and its instructions.

use super::load::Protocol;
use super::transparent::{self, PORTS, RULE, Transparent, closed, port_of};
use super::{middle, rps};
use crate::bench::compare::{turns, unmeasured};
use crate::bench::plan::Plan;
use crate::bench::report::{Row, Target};
use crate::instructions;

const ID: &str = "l7.user";
const BODY: usize = 1024;

/// Rows `l7.user`.
#[must_use]
pub fn measure(plan: &Plan) -> Vec<Row> {
    if !plan.selected.wants(ID) {
        return Vec::new();
    }
    vec![time(plan), count()]
}

fn time(plan: &Plan) -> Row {
    let ports = [port_of(Protocol::H1, BODY)];
    let scene = Transparent::new(&transparent::policy("server", "client", &ports, RULE), &PORTS, "client");
    let driver = scene.driver("client");
    let order = closed((Protocol::H1, BODY), &scene.server.workload, [64, 1], rps::seconds(plan));
    transparent::wait_for(&driver, &order);
    let what = "user time of a request, h1, 1 KB, 64 connections, transparent";
    match turns(plan.rounds, 1, |_| driver.faultless(&order)) {
        Err(why) => unmeasured(ID, what, &why),
        Ok(series) => {
            let row = Row::new(ID, what, middle(&series[0], |sample| sample.split()[0]), "µs");
            plan.judge(row, Target::AtMost(5.0), None)
        }
    }
}

fn count() -> Row {
    let what = "instructions of a request in user space, h1, 1 KB, one connection (example allow_all)";
    match instructions::of_a_request(BODY) {
        Ok(count) => Row::new(ID, what, count as f64, ""),
        Err(why) => unmeasured(ID, what, &why),
    }
}
