//! `l7.rules`: what it costs that there are many rules.

use super::load::{Order, Port, Protocol, Sample};
use super::transparent::{self, Transparent, closed, policy};
use super::{middle, ratio, rps};
use crate::bench::compare::{turns, unmeasured};
use crate::bench::plan::Plan;
use crate::bench::report::{Row, Target};

const ID: &str = "l7.rules.1k";
const BODY: usize = 1024;
/// The port where one rule is in force, and that of all of them.
const FEW: u16 = 8001;
const MANY: u16 = 8011;
const RULES: usize = 1000;

/// The rule for a team's paths, as many have them.
pub(super) fn rule(team: usize) -> String {
    format!("        - {{method: GET, path: /bench/team-{team}/.*}}\n")
}

/// Row `l7.rules.1k`: the same request by the last of a thousand rules, and by that one alone.
#[must_use]
pub fn measure(plan: &Plan) -> Vec<Row> {
    if !plan.selected.wants(ID) {
        return Vec::new();
    }
    let ports = [FEW, MANY].map(|number| Port { protocol: Some(Protocol::H1), number, body: BODY });
    let all: String = (0..RULES).map(rule).collect();
    let policies = policy("server", "client", &[FEW], &rule(RULES - 1))
        + &policy("server", "client", &[MANY], &all).replace("name: server-client", "name: many");
    let scene = Transparent::new(&policies, &ports, "client");
    let driver = scene.driver("client");
    let order = |port| {
        let order = closed((Protocol::H1, BODY), &scene.server.workload, [64, 1], rps::seconds(plan));
        let to = std::net::SocketAddr::new(order.to.ip(), port);
        Order { to, path: format!("/bench/team-{}/items", RULES - 1), ..order }
    };
    let turn = [MANY, FEW, MANY].map(order);
    turn.iter().for_each(|order| transparent::wait_for(&driver, order));
    let what = "CPU of a request by the last of 1000 path rules, h1, 1 KB, 64 connections";
    let cost = |sample: &Sample| sample.busy * 1e6 / sample.requests as f64;
    match turns(plan.rounds, turn.len(), |number| driver.faultless(&turn[number])) {
        Err(why) => vec![unmeasured(ID, what, &why)],
        Ok(series) => {
            let [many, few, again] = [0, 1, 2].map(|number| series[number].as_slice());
            let row = |name: &str, other: &[Sample]| {
                let row = Row::new(ID, what, middle(many, cost), "µs");
                Row { against: Some(name.to_owned()), ratio: Some(ratio(many, other, cost)), ..row }
            };
            let noise = ratio(many, again, cost);
            vec![
                row("itself (A/A)", again),
                plan.judge(row("that rule alone", few), Target::AtMost(1.05), Some(noise)),
            ]
        }
    }
}
