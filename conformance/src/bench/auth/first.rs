//! The first connection between two workloads of two nodes: without authentication, with a pair that was proven ahead,
//! with one that nobody has proven yet, so that its first packet waits; the same when the nodes' session has just been
//! lost; and what it would be if the first packet were dropped.
//!
//! Each figure is of a client that has never called the server: one workload with a service account of its own for each.
//! The handshake that they are compared with is measured by itself, between two of them ([`super::alone`]); beside it
//! stands what the auth-agent says that the proof of each took.

use std::net::{IpAddr, SocketAddr};

use super::alone::Alone;
use super::{percentile, policy};
use crate::bench::plan::Plan;
use crate::bench::report::{Row, Target};
use crate::lab::{Mesh, Outcome, Session, binary, placed_on, wait_until};

const ID: &str = "auth.first";
/// Ports of the server: who calls the first must be proven, who calls the second need not be, the third is as the first.
const PROVEN: u16 = 80;
const PLAIN: u16 = 81;
const AGAIN: u16 = 82;
const PORTS: [u16; 3] = [PROVEN, PLAIN, AGAIN];
/// Microseconds that a held packet may wait beyond the handshake, and at the 99th percentile.
const EXTRA: [f64; 2] = [300.0, 2000.0];

/// Rows `auth.first.{cold,warm}`.
#[must_use]
pub fn measure(plan: &Plan) -> Vec<Row> {
    let wants = |row: &str| plan.selected.wants(&format!("{ID}.{row}"));
    if !["cold", "warm"].into_iter().any(wants) {
        return Vec::new();
    }
    // Of these that many find the nodes' session gone, and that many lose their first packet.
    let (clients, apart, lost) = if plan.quick { (3, 1, 1) } else { (100, 20, 5) };
    let mut rows = Vec::new();
    let mut cold = Scene::new(clients + apart + lost, ", authenticationAhead: 0");
    let times = cold.times(clients);
    rows.extend(compared(plan, &times));
    rows.extend(cold.apart(clients..clients + apart));
    rows.push(cold.lost(clients + apart..clients + apart + lost));
    drop(cold);
    rows.extend(warm(plan, &Scene::new(clients, "").warm(clients)));
    rows
}

/// Against itself, and against connections that need no proof: one group of each for every client. Tails need many
/// connections; whether there are enough of them is what the interval of the comparison with itself says.
fn warm(plan: &Plan, clients: &[[Vec<f64>; 3]]) -> Vec<Row> {
    let mut rows = Vec::new();
    for (share, name) in SHARES {
        let [proven, plain, again] = [0, 1, 2].map(|which| {
            let all: Vec<f64> = clients.iter().flat_map(|times| times[which].iter().copied()).collect();
            percentile(&all, share)
        });
        let itself: Vec<f64> =
            clients.iter().map(|[one, _, other]| percentile(one, share) / percentile(other, share)).collect();
        let what = format!("connect, proven ahead, {name}");
        let row = || Row::new(format!("{ID}.warm"), what.clone(), proven, "µs");
        rows.push(row().against("itself (A/A)", again));
        let row = row().against("without authentication", plain);
        rows.push(plan.judge(row, Target::AtMost(1.02), Some(farthest(&itself))));
    }
    rows
}

/// The end of the 95 % interval of the mean of these ratios that is farther from 1.
fn farthest(ratios: &[f64]) -> f64 {
    let count = ratios.len() as f64;
    let mean = ratios.iter().sum::<f64>() / count;
    let variance = ratios.iter().map(|ratio| (ratio - mean).powi(2)).sum::<f64>() / (count - 1.0);
    let half = 1.96 * (variance / count).sqrt();
    if mean < 1.0 { mean - half } else { mean + half }
}

/// How often a client of a proven pair calls each port.
const TURNS: usize = 400;
const SHARES: [(f64, &str); 2] = [(0.5, "p50"), (0.99, "p99")];

fn row(what: &str, name: &str, value: f64) -> Row {
    Row::new(format!("{ID}.cold"), format!("{what}, {name}"), value, "µs")
}

fn compared(plan: &Plan, times: &Times) -> Vec<Row> {
    let mut rows = Vec::new();
    for ((share, name), extra) in SHARES.into_iter().zip(EXTRA) {
        let [proven, plain, alone, within] =
            [&times.proven, &times.plain, &times.alone, &times.within].map(|times| percentile(times, share));
        rows.push(row("connect without authentication", name, plain));
        rows.push(row("a handshake alone, node session warm", name, alone));
        rows.push(row("the handshake of these, as the auth-agent timed it", name, within));
        let bound = plain + percentile(&times.alone, 0.5) + extra;
        let against = format!("unauthenticated + handshake alone (p50) + {} ms", extra / 1e3);
        let judged = row("connect, node session warm, pair unproven", name, proven).against(against, bound);
        rows.push(plan.judge(judged, Target::AtMost(1.0), None));
    }
    rows
}

/// Microseconds of each connection, and of handshakes.
#[derive(Default)]
struct Times {
    proven: Vec<f64>,
    plain: Vec<f64>,
    alone: Vec<f64>,
    within: Vec<f64>,
}

struct Scene {
    mesh: Mesh,
    clients: Vec<Session>,
    _servers: [Session; 3],
    server: IpAddr,
}

impl Scene {
    fn new(clients: usize, settings: &str) -> Self {
        let mesh = Mesh::up(2, settings);
        let workload =
            |name: &str, app: &str, node| placed_on(name, &format!("app: {app}"), name, node) + "---\n";
        let all: String =
            (0..clients).map(|number| workload(&format!("client-{number}"), "client", 0)).collect();
        mesh.apply("workloads.yaml", &(all + &workload("server", "server", 1)));
        mesh.apply("proven.yaml", &policy(true, PROVEN));
        mesh.apply("plain.yaml", &policy(false, PLAIN));
        mesh.apply("again.yaml", &policy(true, AGAIN));
        let probe = binary("probe").display().to_string();
        let server = mesh.nodes[1].serve("server", &[], PROVEN);
        let [plain, again] = [PLAIN, AGAIN].map(|port| {
            let more =
                Session::start(mesh.nodes[1].within("server", &probe).args(["serve", &port.to_string()]));
            assert_eq!(more.line(), "serving");
            more
        });
        let address = server.addresses[0];
        let start = |number| mesh.nodes[0].start(&format!("client-{number}"), &[], &[&probe, "ask"]).session;
        let clients: Vec<_> = (0..clients).map(start).collect();
        let scene = Self { clients, _servers: [server.session, plain, again], server: address, mesh };
        scene.wait();
        scene
    }

    /// Until both nodes know everybody, and every client has its certificate.
    fn wait(&self) {
        let count = self.clients.len();
        wait_until("every client has a certificate", || {
            let list = self.mesh.nodes[0].json(&["auth", "list"]);
            let held =
                list.as_array().map_or(0, |rows| rows.iter().filter(|row| !row["serial"].is_null()).count());
            held > count
        });
        wait_until("the other node knows every client", || {
            let known = self.mesh.nodes[1].json(&["ip", "list"]);
            let elsewhere =
                known.as_array().into_iter().flatten().filter(|row| row["source"] == "workload-endpoint");
            // An address of each family.
            elsewhere.count() >= 2 * count
        });
    }

    fn to(&self, port: u16) -> String {
        format!("time {}", SocketAddr::new(self.server, port))
    }

    fn time(&mut self, client: usize, port: u16) -> f64 {
        let question = self.to(port);
        self.clients[client].ask(&question).parse().unwrap_or(f64::NAN)
    }

    /// Of the first so many clients; with a handshake alone between two of them.
    fn times(&mut self, clients: usize) -> Times {
        let mut times = Times::default();
        let alone = Alone::new(&self.mesh);
        for client in 0..clients {
            times.alone.push(alone.handshake());
            times.plain.push(self.time(client, PLAIN));
            times.proven.push(self.time(client, PROVEN));
        }
        // The server's node asks for proof, so it is the one that begins.
        let pairs = self.mesh.nodes[1].json(&["auth", "pairs"]);
        let proofs = pairs.as_array().into_iter().flatten().filter_map(|pair| pair["proof_micros"].as_f64());
        times.within.extend(proofs);
        times
    }

    /// Connections of pairs that were proven ahead, to each of the ports in turn; each client has called before.
    fn warm(&mut self, clients: usize) -> Vec<[Vec<f64>; 3]> {
        let of = |client| {
            for port in PORTS {
                self.time(client, port);
            }
            let mut times = [const { Vec::new() }; 3];
            for turn in 0..TURNS {
                for place in 0..3 {
                    // Each comes after each as often.
                    let place = if turn % 2 == 0 { place } else { 2 - place };
                    let which = (turn + place) % 3;
                    times[which].push(self.time(client, PORTS[which]));
                }
            }
            times
        };
        (0..clients).map(of).collect()
    }

    /// The same where the session of the nodes was lost a moment before, and such a session alone.
    fn apart(&mut self, clients: std::ops::Range<usize>) -> Vec<Row> {
        let alone = Alone::new(&self.mesh);
        let sessions: Vec<f64> = clients.clone().map(|_| alone.session()).collect();
        let times: Vec<f64> = clients
            .map(|client| {
                self.wait_for_session();
                // As if the network had lost it: both sides hear of it at once.
                let cut = Outcome::of(self.mesh.nodes[1].inside("ss").args(["-K", "sport", "=", ":4250"]));
                assert!(cut.stdout.contains(":4250"), "a session was cut: {cut:?}");
                self.time(client, PROVEN)
            })
            .collect();
        vec![
            row("a node session alone", "p50", percentile(&sessions, 0.5)),
            row("connect, node session just lost, pair unproven", "p50", percentile(&times, 0.5)),
        ]
    }

    fn wait_for_session(&self) {
        for node in &self.mesh.nodes {
            wait_until("the nodes talk", || {
                let nodes = node.json(&["auth", "nodes"]);
                nodes.as_array().is_some_and(|nodes| nodes.iter().any(|node| node["connected"] == true))
            });
        }
    }

    /// The same where the first packet is lost on its way: the pair is proven at once, by another connection, and the
    /// first waits for the moment at which TCP asks again.
    fn lost(&mut self, clients: std::ops::Range<usize>) -> Row {
        self.wait_for_session();
        let (question, server) = (self.to(PROVEN), self.server.to_string());
        let route = |mesh: &Mesh, word: &str| {
            Outcome::of(mesh.nodes[0].inside("ip").args(["route", word, "blackhole", &server])).success();
        };
        let times: Vec<f64> = clients
            .map(|client| {
                let name = format!("client-{client}");
                route(&self.mesh, "add");
                self.clients[client].say(&question);
                wait_until("the first packet is sent", || {
                    let waiting = ["-Htn", "state", "syn-sent"];
                    !Outcome::of(self.mesh.nodes[0].within(&name, "ss").args(waiting)).stdout.is_empty()
                });
                route(&self.mesh, "del");
                let words: Vec<&str> = question.split(' ').collect();
                Outcome::of(self.mesh.nodes[0].within(&name, binary("probe")).args(words)).success();
                self.clients[client].line().parse().unwrap_or(f64::NAN)
            })
            .collect();
        row("connect, first packet dropped, pair proven meanwhile", "p50", percentile(&times, 0.5))
    }
}
