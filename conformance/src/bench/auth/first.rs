//! The first connection between two workloads of two nodes: without authentication, with a pair that was proven ahead,
//! and with one that nobody has proven yet, so that its first packet waits.
//!
//! Each figure is of a client that has never called the server: one workload with a service account of its own for each.
//! The handshake is what the auth-agent says that the proof of each took, from the first message to the peer's acceptance:
//! timed within the connection, not in a run of its own.

use super::policy;
use crate::bench::plan::Plan;
use crate::bench::report::{Row, Target};
use crate::lab::{Mesh, Session, binary, wait_until};

const ID: &str = "auth.first";
/// Ports of the server: who calls the first must be proven, who calls the second need not be.
const PROVEN: u16 = 80;
const PLAIN: u16 = 81;
/// Microseconds that a held packet may wait beyond the handshake, and at the 99th percentile.
const EXTRA: [f64; 2] = [300.0, 2000.0];

/// Rows `auth.first.{cold,warm}`.
#[must_use]
pub fn measure(plan: &Plan) -> Vec<Row> {
    if !["cold", "warm"].iter().any(|row| plan.selected.wants(&format!("{ID}.{row}"))) {
        return Vec::new();
    }
    let clients = if plan.quick { 3 } else { 100 };
    let cold = Scene::new(clients, ", authenticationAhead: 0").times();
    let warm = Scene::new(clients, "").times();
    rows(plan, &cold, &warm)
}

fn rows(plan: &Plan, cold: &Times, warm: &Times) -> Vec<Row> {
    let mut rows = Vec::new();
    for (share, name, extra) in [(0.5, "p50", EXTRA[0]), (0.99, "p99", EXTRA[1])] {
        let [proven, plain, handshake] =
            [&cold.proven, &cold.plain, &cold.handshakes].map(|times| percentile(times, share));
        let bound = plain + percentile(&cold.handshakes, 0.5) + extra;
        let row = |what: &str, value| Row::new(format!("{ID}.cold"), format!("{what}, {name}"), value, "µs");
        rows.push(row("connect without authentication", plain));
        rows.push(row("the handshake of these, as the auth-agent timed it", handshake));
        let judged =
            row("connect, node session warm, pair unproven", proven).against("that and a handshake", bound);
        rows.push(plan.judge(judged, Target::AtMost(1.0), None));
        let row = Row::new(
            format!("{ID}.warm"),
            format!("connect, proven ahead, {name}"),
            percentile(&warm.proven, share),
            "µs",
        );
        rows.push(row.against("without authentication", percentile(&warm.plain, share)));
    }
    rows
}

/// Microseconds of each connection.
struct Times {
    proven: Vec<f64>,
    plain: Vec<f64>,
    handshakes: Vec<f64>,
}

struct Scene {
    mesh: Mesh,
    clients: Vec<Session>,
    _servers: [Session; 2],
    server: std::net::IpAddr,
}

impl Scene {
    fn new(clients: usize, settings: &str) -> Self {
        let mesh = Mesh::up(2, settings);
        let workload = |name: &str, app: &str, node: u8| {
            format!(
                "apiVersion: ferromesh.io/v1alpha1\nkind: Workload\n\
                 metadata: {{name: {name}, namespace: default, labels: {{app: {app}}}}}\n\
                 spec: {{node: node-{node}, serviceAccountName: {name}}}\n---\n"
            )
        };
        let all: String =
            (0..clients).map(|number| workload(&format!("client-{number}"), "client", 0)).collect();
        mesh.apply("workloads.yaml", &(all + &workload("server", "server", 1)));
        mesh.apply("proven.yaml", &policy(true, PROVEN));
        mesh.apply("plain.yaml", &policy(false, PLAIN));
        let probe = binary("probe").display().to_string();
        let server = mesh.nodes[1].serve("server", &[], PROVEN);
        let plain =
            Session::start(mesh.nodes[1].within("server", &probe).args(["serve", &PLAIN.to_string()]));
        assert_eq!(plain.line(), "serving");
        let address = server.addresses[0];
        let start = |number| mesh.nodes[0].start(&format!("client-{number}"), &[], &[&probe, "ask"]).session;
        let clients: Vec<_> = (0..clients).map(start).collect();
        let scene = Self { clients, _servers: [server.session, plain], server: address, mesh };
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

    fn times(mut self) -> Times {
        let mut times = Times { proven: Vec::new(), plain: Vec::new(), handshakes: Vec::new() };
        for client in &mut self.clients {
            for (port, taken) in [(PLAIN, &mut times.plain), (PROVEN, &mut times.proven)] {
                let said = client.ask(&format!("time {}", std::net::SocketAddr::new(self.server, port)));
                taken.push(said.parse().unwrap_or(f64::NAN));
            }
        }
        // The server's node asks for proof, so it is the one that begins.
        let pairs = self.mesh.nodes[1].json(&["auth", "pairs"]);
        let proofs = pairs.as_array().into_iter().flatten().filter_map(|pair| pair["proof_micros"].as_f64());
        times.handshakes.extend(proofs);
        times
    }
}

fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted: Vec<f64> = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}
