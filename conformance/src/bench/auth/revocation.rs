//! From the withdrawal, as the administrator's file is put in place, to the last word that arrives at the receiver: a
//! thousand live connections, every other one idle.

use std::time::{Duration, SystemTime};

use super::policy;
use crate::bench::plan::Plan;
use crate::bench::report::{Row, Target};
use crate::lab::{Mesh, Session, binary, wait_until};

const ID: &str = "auth.revocation";
const PORT: u16 = 80;
/// Callers too ask for proof, so that either end has a mark of its own to lose when nobody can tell it anything.
const CALLERS: &str = "\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: client, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: client}}
  egress:
  - toEndpoints: [{matchLabels: {app: server}}]
    authentication: {mode: required}
";
/// Milliseconds; the promise.
const PROMISE: f64 = 50.0;
/// Milliseconds; the grace of a node that cannot be reached.
const GRACE: f64 = 2000.0;

/// Rows `auth.revocation`, if they are asked for.
#[must_use]
pub fn measure(plan: &Plan) -> Vec<Row> {
    if !plan.selected.wants(ID) {
        return Vec::new();
    }
    let (rounds, count) = if plan.quick { (1, 20) } else { (plan.rounds.max(5) * 3, 1000) };
    let scene = Scene::new();
    let mut rows = Vec::new();
    for (what, client) in [("same node", "near"), ("cross node", "far")] {
        let mut times: Vec<f64> = (0..rounds).map(|_| scene.withdraw(client, count)).collect();
        times.sort_by(f64::total_cmp);
        let worst = times[times.len() - 1];
        let what = format!("{what}, {count} connections, {rounds} withdrawals");
        rows.push(Row::new(ID, format!("{what}, p50"), times[times.len() / 2], "ms"));
        let row = Row::new(ID, format!("{what}, the slowest"), worst, "ms");
        rows.push(plan.judge(row, Target::AtMost(PROMISE), None));
    }
    let taken = scene.partition(count);
    let what = format!("peer cut off, {count} connections; from the cut until all are dead at the other end");
    rows.push(plan.judge(Row::new(ID, what, taken, "ms"), Target::AtMost(GRACE + PROMISE), None));
    rows
}

struct Scene {
    mesh: Mesh,
    server: crate::lab::Workload,
    watch: std::cell::RefCell<Session>,
}

impl Scene {
    fn new() -> Self {
        let mesh = Mesh::up(2, ", authenticationGrace: 2s");
        mesh.apply("proven.yaml", &policy(true, PORT));
        mesh.apply("callers.yaml", CALLERS);
        mesh.place("server", &["app=server"], 1);
        mesh.place("near", &["app=client"], 1);
        mesh.place("far", &["app=client"], 0);
        let server = mesh.nodes[1].serve("server", &[], PORT);
        let watch =
            Session::start(mesh.nodes[1].beside("server", binary("probe")).args(["last", &PORT.to_string()]));
        assert_eq!(watch.line(), "open");
        Self { mesh, server, watch: watch.into() }
    }

    /// A crowd of connections of a client.
    fn crowd(&self, client: &str, count: usize) -> Session {
        let node = &self.mesh.nodes[usize::from(client == "near")];
        let probe = binary("probe").display().to_string();
        let to = std::net::SocketAddr::new(self.server.addresses[0], PORT).to_string();
        node.start(client, &[], &[&probe, "crowd", &to, &count.to_string()]).session
    }

    /// When the last word came: nanoseconds since 1970.
    fn last(&self) -> u128 {
        let said = self.watch.borrow_mut().ask("last");
        said.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0)
    }

    /// Milliseconds from the file to the last word that arrived.
    fn withdraw(&self, client: &str, count: usize) -> f64 {
        let mut crowd = self.crowd(client, count);
        let node = u8::from(client == "near");
        let begin = now();
        self.mesh.place(client, &["app=other"], node);
        wait_until("every connection is dead", || crowd.ask("alive").starts_with("0 alive"));
        let taken = self.last().saturating_sub(begin);
        drop(crowd);
        self.mesh.place(client, &["app=client"], node);
        taken as f64 / 1e6
    }

    /// The same for a node that is cut off, and cannot be told.
    fn partition(&self, count: usize) -> f64 {
        let mut crowd = self.crowd("far", count);
        let begin = now();
        self.mesh.partition(1, true);
        wait_until("every connection is dead", || crowd.ask("alive").starts_with("0 alive"));
        let taken = now() - begin;
        self.mesh.partition(1, false);
        taken as f64 / 1e6
    }
}

fn now() -> u128 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_nanos()
}
