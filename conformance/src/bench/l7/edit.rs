//! `l7.edit_to_live`: how long after a file is renamed into place is the first request judged anew?
//!
//! One client asks for the same path over and over; from the renaming to the sending of the first request that is judged by
//! what the file says. Others keep asking for what is always allowed, and none of theirs may fail.

use std::net::SocketAddr;
use std::time::Instant;

use super::load::{Order, Pace, Protocol};
use super::transparent::{self, PORTS, RULE, Transparent, closed, idle, policy, port_of, ready, urgent};
use super::{OTHERS, many, process};
use crate::bench::compare::unmeasured;
use crate::bench::plan::Plan;
use crate::bench::report::{Row, Target};
use crate::lab::Session;
use crate::pulse;

const ID: &str = "l7.edit_to_live";
const BODY: usize = 1024;
/// Requests a second of the others, and on how many connections.
const RATE: f64 = 2000.0;
const CONNECTIONS: usize = 32;
/// What the file lets through in one of its versions; the other names another path.
const EDITED: &str = "/edited/x";

/// Rows `l7.edit_to_live`.
#[must_use]
pub fn measure(plan: &Plan) -> Vec<Row> {
    if !plan.selected.wants(ID) {
        return Vec::new();
    }
    let extent = many::Extent::of(plan);
    let port = port_of(Protocol::H1, BODY);
    let scene =
        Transparent::new(&(policy("server", "client", &[port], RULE) + &extent.policies()), &PORTS, "client");
    let _others: Vec<_> = extent.workloads().map(|name| idle(&scene.node, &name)).collect();
    let driver = scene.driver("client");
    ready(&scene.node);
    let order = closed(
        (Protocol::H1, BODY),
        &scene.server.workload,
        [CONNECTIONS, 1],
        if plan.quick { 1.0 } else { 4.0 },
    );
    transparent::wait_for(&driver, &order);
    let order = Order { pace: Pace::Open(RATE), ..order };
    let mut editor = Editor::start(&scene, order.to, port);
    let edits = if plan.quick { 4 } else { 200 };
    let (mut samples, mut failed, mut requests) = (Vec::new(), 0, 0);
    while samples.len() < edits {
        driver.begin(&order);
        let end = Instant::now() + std::time::Duration::from_secs_f64(order.seconds);
        while Instant::now() < end && samples.len() < edits {
            samples.extend(editor.edit());
        }
        match driver.end() {
            Ok(sample) => {
                failed += sample.failed;
                requests += sample.requests;
            }
            Err(why) => return vec![unmeasured(ID, "under load", &why)],
        }
    }
    samples.sort_by(f64::total_cmp);
    let what = format!("a rule is opened or closed beside {} others, {RATE} requests/s", extent.rules());
    let row = |name: &str, share: f64| {
        let value = samples[((samples.len() - 1) as f64 * share).round() as usize];
        Row::new(ID, format!("{what}, {name}"), value, "ms")
    };
    let failures =
        Row::new(ID, format!("{what}: failed of {requests} requests"), (failed + editor.broken) as f64, "");
    vec![
        row("p50", 0.5),
        plan.judge(row("p99", 0.99), Target::AtMost(20.0), None),
        row("max", 1.0),
        plan.judge(failures, Target::AtMost(0.0), None),
    ]
}

/// Edits a file and hears since when that holds.
struct Editor<'a> {
    scene: &'a Transparent,
    pulse: Session,
    port: u16,
    broken: u64,
}

impl<'a> Editor<'a> {
    fn start(scene: &'a Transparent, to: SocketAddr, port: u16) -> Self {
        let mut command = urgent(&scene.node, "client");
        command.args(["pulse", &to.to_string(), EDITED]);
        let pulse = process::on(OTHERS, || Session::start(&mut command));
        assert_eq!(pulse.line(), "open");
        assert!(pulse.line().starts_with("403 "), "no rule lets it through yet");
        Self { scene, pulse, port, broken: 0 }
    }

    /// Milliseconds of the edit that opens and the one that closes.
    fn edit(&mut self) -> [f64; 2] {
        [true, false].map(|opens| {
            let begin = pulse::now();
            let path = if opens { EDITED } else { "/another/x" };
            let rule = format!("        - {{method: GET, path: {path}}}\n");
            let text = policy("server", "client", &[self.port], &rule).replace("server-client", "edited");
            self.scene.node.write("edited.yaml", &text);
            self.since(if opens { "200" } else { "403" }, begin)
        })
    }

    fn since(&mut self, expected: &str, begin: u128) -> f64 {
        loop {
            let line = self.pulse.line();
            let (word, at) = line.split_once(' ').unwrap_or((&line, ""));
            let at: u128 = at.parse().unwrap_or_else(|_| panic!("the pulse said {line:?}"));
            if word == expected && at >= begin {
                return (at - begin) as f64 / 1e6;
            }
            // A connection that has ended, or an answer that no rule gives.
            self.broken += 1;
        }
    }
}
