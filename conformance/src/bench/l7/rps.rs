//! `l7.rps`: requests for each second of the proxy's CPU.

use super::load::{Order, Protocol, Sample};
use super::peers::Peer;
use super::reverse::Reverse;
use super::transparent::{self, PORTS, RULE, Transparent};
use super::{middle, ratio};
use crate::bench::compare::{turns, unmeasured};
use crate::bench::plan::Plan;
use crate::bench::report::{Row, Target};
use crate::lab::Workload;

const ID: &str = "l7.rps";

/// What is asked at a time, how, and what is promised of it beside Envoy.
struct Case {
    protocol: Protocol,
    body: usize,
    /// Connections, and streams on each.
    load: [usize; 2],
    envoy: f64,
}

impl Case {
    fn all() -> Vec<Self> {
        let h1 =
            |body, connections| Self { protocol: Protocol::H1, body, load: [connections, 1], envoy: 2.0 };
        let streams = |protocol, body| Self { protocol, body, load: [8, 8], envoy: 1.6 };
        vec![
            h1(0, 64),
            h1(0, 512),
            h1(1024, 64),
            h1(1024, 512),
            streams(Protocol::H2, 0),
            streams(Protocol::H2, 1024),
            streams(Protocol::Grpc, 0),
            streams(Protocol::Grpc, 1024),
        ]
    }

    fn id(&self) -> String {
        let body = if self.body == 0 { "0" } else { "1k" };
        format!("{ID}.{}.{body}.{}", self.protocol.word(), self.load[0] * self.load[1])
    }

    /// Where, and how many of what.
    fn what(&self, position: &str) -> String {
        match self.load {
            [connections, 1] => format!("{position}, {connections} connections"),
            [connections, streams] => format!("{position}, {connections} connections of {streams} streams"),
        }
    }

    fn order(&self, plan: &Plan, to: &Workload) -> Order {
        transparent::closed((self.protocol, self.body), to, self.load, seconds(plan))
    }
}

/// How long one run is: the kernel counts in hundredths of a second.
pub(super) fn seconds(plan: &Plan) -> f64 {
    if plan.quick { 0.2 } else { plan.seconds_per_run * 5.0 }
}

/// Rows `l7.rps`, as far as they are asked for.
#[must_use]
pub fn measure(plan: &Plan) -> Vec<Row> {
    let cases: Vec<Case> = Case::all().into_iter().filter(|case| plan.selected.wants(&case.id())).collect();
    if cases.is_empty() {
        return Vec::new();
    }
    let mut rows = transparently(plan, &cases);
    if cases.iter().any(|case| case.protocol == Protocol::H1) {
        rows.extend(reversely(plan, &cases));
    }
    rows
}

fn transparently(plan: &Plan, cases: &[Case]) -> Vec<Row> {
    let ports = PORTS.map(|port| port.number);
    let mut scene =
        Transparent::new(&transparent::policy("server", "client", &ports, RULE), &PORTS, "client");
    let driver = scene.driver("client");
    for peer in [Peer::Envoy, Peer::Haproxy] {
        scene.start(peer);
    }
    let mut rows = Vec::new();
    for case in cases {
        let order = case.order(plan, &scene.server.workload);
        // Whoever failed in the case before may still be in place.
        if let Err(why) = scene.place(None) {
            rows.push(unmeasured(&case.id(), &case.what("transparent"), &why));
            continue;
        }
        transparent::wait_for(&driver, &order);
        // HAProxy is compared with over HTTP/1.1 alone.
        let peers: &[Peer] =
            if case.protocol == Protocol::H1 { &[Peer::Envoy, Peer::Haproxy] } else { &[Peer::Envoy] };
        let comparison = Comparison {
            plan,
            case,
            position: "transparent",
            target: &|peer| (peer == Peer::Envoy).then_some(case.envoy),
            missing: &|peer| scene.missing(peer),
        };
        rows.extend(comparison.rows(peers, |peer| {
            scene.place(peer)?;
            driver.faultless(&order)
        }));
    }
    rows
}

fn reversely(plan: &Plan, cases: &[Case]) -> Vec<Row> {
    let peers = [Peer::Nginx, Peer::Haproxy];
    let scene = Reverse::new(&peers);
    let mut rows = Vec::new();
    for case in cases.iter().filter(|case| case.protocol == Protocol::H1) {
        let order = Order {
            protocol: case.protocol,
            to: std::net::SocketAddr::from(([127, 0, 0, 1], 0)),
            path: transparent::PATH.to_owned(),
            body: case.body,
            status: 200,
            padding: 0,
            tls: false,
            connections: case.load[0],
            streams: case.load[1],
            seconds: seconds(plan),
            pace: super::load::Pace::Closed,
            cpu: super::PROXY,
            failures: Some(0),
        };
        let comparison = Comparison {
            plan,
            case,
            position: "reverse (the runtime alone, example allow_all)",
            target: &|_| Some(1.0),
            missing: &|peer| scene.missing(peer),
        };
        rows.extend(comparison.rows(&peers, |peer| scene.driver.faultless(&scene.by_way_of(peer, &order))));
    }
    rows
}

/// One case in one place.
struct Comparison<'a> {
    plan: &'a Plan,
    case: &'a Case,
    position: &'a str,
    target: &'a dyn Fn(Peer) -> Option<f64>,
    missing: &'a dyn Fn(Peer) -> Option<String>,
}

impl Comparison<'_> {
    /// Ours beside itself and beside each peer that is there.
    fn rows(&self, peers: &[Peer], run: impl Fn(Option<Peer>) -> Result<Sample, String>) -> Vec<Row> {
        let (id, what) = (self.case.id(), self.case.what(self.position));
        let (mut rows, mut turn) = (Vec::new(), vec![None]);
        for peer in peers {
            match (self.missing)(*peer) {
                Some(why) => rows.push(unmeasured(&id, &format!("{what}, beside {}", peer.name()), &why)),
                None => turn.push(Some(*peer)),
            }
        }
        turn.push(None);
        match turns(self.plan.rounds, turn.len(), |number| run(turn[number])) {
            Ok(series) => rows.splice(0..0, self.told(&id, &what, &turn, &series)).for_each(drop),
            Err(why) => rows.push(unmeasured(&id, &what, &why)),
        }
        rows
    }

    fn told(&self, id: &str, what: &str, turn: &[Option<Peer>], series: &[Vec<Sample>]) -> Vec<Row> {
        let (Some(ours), Some(again)) = (series.first(), series.last()) else { return Vec::new() };
        let rate = Sample::rate;
        let noise = ratio(ours, again, rate);
        let row = |name: &str, other: &[Sample]| {
            let row = Row::new(id, what, middle(ours, rate), "req/CPU s");
            Row { against: Some(name.to_owned()), ratio: Some(ratio(ours, other, rate)), ..row }
        };
        let mut rows = vec![row("itself (A/A)", again)];
        for (peer, other) in turn.iter().zip(series).filter_map(|(peer, other)| Some(((*peer)?, other))) {
            let row = row(peer.name(), other);
            rows.push(match (self.target)(peer) {
                Some(least) => self.plan.judge(row, Target::AtLeast(least), Some(noise)),
                None => row,
            });
            for (part, name) in
                ["user time of a request", "the kernel's of a request"].into_iter().enumerate()
            {
                let figure = |sample: &Sample| sample.split()[part];
                let row = Row::new(id, format!("{what}: {name}"), middle(ours, figure), "µs");
                rows.push(Row {
                    against: Some(peer.name().to_owned()),
                    ratio: Some(ratio(ours, other, figure)),
                    ..row
                });
            }
            let row = Row::new(id, format!("{what}: p99, as much as goes"), middle(ours, |it| it.p99), "µs");
            rows.push(Row {
                against: Some(peer.name().to_owned()),
                ratio: Some(ratio(ours, other, |it| it.p99)),
                ..row
            });
        }
        rows
    }
}
