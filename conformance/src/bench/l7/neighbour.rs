//! `l7.neighbour`: what a tenant suffers from another who does his worst while the proxy's CPU is saturated.
//!
//! The first asks at a steady rate, and latencies count from when a request was due. Its client and its server come before
//! all others on their CPU, so that what waits waits for the proxy. The second asks as much as goes on many connections, and
//! is a nuisance besides. What a flood leaves behind is over before the next run begins.

use std::process::Command;
use std::time::Duration;

use super::load::{Order, Pace, Port, Protocol, Sample};
use super::transparent::{self, RULE, Transparent, closed, policy, port_of, secured, serve, urgent};
use super::{Driver, OTHERS, PROXY, middle, process, rps};
use crate::bench::compare::unmeasured;
use crate::bench::plan::Plan;
use crate::bench::report::{Row, Target};
use crate::lab::{Session, Workload, binary};

const ID: &str = "l7.neighbour";
const BODY: usize = 1024;
/// Requests a second of the one who suffers, and his connections.
const RATE: f64 = 500.0;
const CONNECTIONS: usize = 8;
/// Connections of the other, beside those of the nuisance.
const CROWD: usize = 256;
/// How long what is left of a flood may take to be over: connections that end, and the kernel's own work for them.
const SETTLES: Duration = Duration::from_secs(2);
/// Where the other one's TLS is ended; nobody listens behind it.
const HANDSHAKES: u16 = 8443;
/// Milliseconds that another may add to the p99.
const ADDED: f64 = 1.0;
/// His share of what the proxy can do alone: less than half.
const SHARE: f64 = 0.4;

/// What the other does besides.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Nuisance {
    Nothing,
    Flood(&'static str),
    Headers,
}

const NUISANCES: [(&str, Nuisance); 6] = [
    ("requests", Nuisance::Nothing),
    ("connections with half a head", Nuisance::Flood("connections")),
    ("slow bodies", Nuisance::Flood("bodies")),
    ("large headers", Nuisance::Headers),
    ("resets", Nuisance::Flood("resets")),
    ("TLS handshakes", Nuisance::Flood("handshakes")),
];

/// Rows `l7.neighbour`.
#[must_use]
pub fn measure(plan: &Plan) -> Vec<Row> {
    if !plan.selected.wants(ID) {
        return Vec::new();
    }
    let scene = Scene::new(plan);
    // Before the floods, whose remains would be in it.
    let mut rows = vec![scene.share().unwrap_or_else(|why| unmeasured(ID, "fair share", &why))];
    for (name, nuisance) in NUISANCES {
        rows.extend(scene.latency(name, nuisance).unwrap_or_else(|why| vec![unmeasured(ID, name, &why)]));
    }
    rows
}

struct Scene<'a> {
    plan: &'a Plan,
    victim: Driver,
    greedy: (Workload, Driver),
    other: transparent::Tenant,
    _changed: [process::Changed; 2],
    scene: Transparent,
}

impl<'a> Scene<'a> {
    fn new(plan: &'a Plan) -> Self {
        let number = port_of(Protocol::H1, BODY);
        let ports = [Port { protocol: Some(Protocol::H1), number, body: BODY }];
        let policies = policy("server", "victim", &[number], RULE)
            + &policy("other", "greedy", &[number], RULE)
            + &secured("other", "greedy", &[HANDSHAKES], RULE);
        let alone = process::alone(PROXY);
        let scene = Transparent::new(&policies, &ports, "victim");
        let other = serve(&scene.node, "other", &ports);
        let victim = Driver::start(&mut urgent(&scene.node, "victim"));
        let greedy = (transparent::idle(&scene.node, "greedy"), scene.driver("greedy"));
        let _changed = [alone, process::network_first(OTHERS)];
        let this = Self { plan, victim, greedy, other, _changed, scene };
        transparent::wait_for(&this.victim, &this.steady(RATE));
        transparent::wait_for(&this.greedy.1, &this.crowd(Nuisance::Nothing, 1.0));
        this
    }

    fn seconds(&self) -> f64 {
        rps::seconds(self.plan)
    }

    fn steady(&self, rate: f64) -> Order {
        let to = &self.scene.server.workload;
        let order = closed((Protocol::H1, BODY), to, [CONNECTIONS, 1], self.seconds());
        // Whoever has to wait long is not to lose requests by it.
        let connections = if rate > RATE { 64 } else { CONNECTIONS };
        Order { pace: Pace::Open(rate), connections, failures: Some(1000), ..order }
    }

    fn crowd(&self, nuisance: Nuisance, seconds: f64) -> Order {
        let order = closed((Protocol::H1, BODY), &self.other.workload, [CROWD, 1], seconds);
        let padding = if nuisance == Nuisance::Headers { 12_000 } else { 0 };
        Order { padding, failures: None, ..order }
    }

    /// The steady client's run while the other is at it.
    fn beside(&self, nuisance: Nuisance, rate: f64) -> Result<Sample, String> {
        let flood = match nuisance {
            Nuisance::Flood(kind) => Some(self.flood(kind)),
            _ => None,
        };
        // It begins before and ends after.
        self.greedy.1.begin(&self.crowd(nuisance, self.seconds() * 2.0));
        std::thread::park_timeout(Duration::from_secs_f64(self.seconds() * 0.25));
        let sample = self.victim.run(&self.steady(rate));
        let crowd = self.greedy.1.end();
        drop(flood);
        std::thread::park_timeout(SETTLES);
        let crowd = crowd.map_err(|why| format!("the crowd: {why}"))?;
        if crowd.requests == 0 {
            return Err("the crowd got no answer at all: it is no load".to_owned());
        }
        sample
    }

    fn flood(&self, kind: &str) -> Session {
        let mut command: Command = self.scene.node.within("greedy", binary("l7load"));
        let port = if kind == "handshakes" { HANDSHAKES } else { port_of(Protocol::H1, BODY) };
        let to = std::net::SocketAddr::new(self.other.workload.addresses[0], port);
        let session = process::on(OTHERS, || Session::start(command.args(["flood", kind, &to.to_string()])));
        assert_eq!(session.line(), "open");
        session
    }

    fn latency(&self, name: &str, nuisance: Nuisance) -> Result<Vec<Row>, String> {
        let (mut alone, mut again, mut beside) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.plan.rounds {
            alone.push(self.victim.run(&self.steady(RATE))?);
            again.push(self.victim.run(&self.steady(RATE))?);
            beside.push(self.beside(nuisance, RATE)?);
        }
        let what = format!("{RATE} requests/s beside a tenant of {CROWD} connections and a flood of {name}");
        let p99 = |sample: &Sample| sample.p99 / 1000.0;
        let more = middle(&beside, p99) - middle(&alone, p99);
        let noise = middle(&again, p99) - middle(&alone, p99);
        let busy = middle(&beside, |sample| sample.busy / sample.seconds * 100.0);
        let failed: u64 = beside.iter().map(|sample| sample.failed).sum();
        let row = |what: String, value, unit| Row::new(ID, what, value, unit);
        Ok(vec![
            row(format!("{what}: p99"), middle(&beside, p99), "ms").against("alone", middle(&alone, p99)),
            row(format!("{what}: p99 alone, more than alone (A/A)"), noise, "ms"),
            // Where as much more or less would change the answer, the machine says none.
            self.plan
                .judge(row(format!("{what}: p99 more than alone"), more, "ms"), Target::AtMost(ADDED), None)
                .unless((more - ADDED).abs() < noise.abs()),
            self.plan.judge(row(format!("{what}: failed"), failed as f64, ""), Target::AtMost(0.0), None),
            row(format!("{what}: the proxy's CPU"), busy, "%"),
        ])
    }

    /// Who wants less than half of what the proxy can do gets it.
    fn share(&self) -> Result<Row, String> {
        let most = Order { pace: Pace::Closed, connections: 64, ..self.steady(RATE) };
        let alone = self.victim.faultless(&most)?;
        let rate = alone.requests as f64 / alone.seconds * SHARE;
        let got: Result<Vec<Sample>, String> =
            (0..self.plan.rounds).map(|_| self.beside(Nuisance::Nothing, rate)).collect();
        let share = middle(&got?, |sample| sample.requests as f64 / sample.seconds / rate);
        let what = format!(
            "of {:.0} % of what it gets alone, beside a tenant of {CROWD} connections",
            SHARE * 100.0
        );
        Ok(self.plan.judge(Row::new(ID, what, share, ""), Target::AtLeast(0.95), None))
    }
}
