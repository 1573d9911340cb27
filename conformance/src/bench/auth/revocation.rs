//! From the withdrawal, as the administrator's file or the trust bundle is written, to the last word that arrives at the
//! receiver: a thousand live connections, every other one idle. The idle ones say nothing that could be seen; beside it
//! stands when the client's own connections were dead, all of them. A server that is killed is heard no more at once; there
//! only that counts.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use super::{percentile, policy};
use crate::bench::plan::Plan;
use crate::bench::report::{Row, Target};
use crate::lab::{Mesh, Node, REQUIRED_BY_CALLER, Session, binary, placed_on, wait_until};

const ID: &str = "auth.revocation";
const PORT: u16 = 80;
/// Milliseconds; the promise.
const PROMISE: f64 = 50.0;
/// Milliseconds; the grace of a node that cannot be reached.
const GRACE: f64 = 2000.0;

/// Milliseconds within which a busy crowd says its next word, by far.
const SILENCE: f64 = 100.0;

/// Clients, and where they are as the server sees it.
const PLACES: [(&str, &str); 2] = [("same node", "near"), ("cross node", "far")];

/// What ends a proof.
#[derive(Clone, Copy)]
enum How {
    /// The client has other labels.
    Labels,
    /// It has another service account.
    Account,
}

/// Rows `auth.revocation`, if they are asked for.
#[must_use]
pub fn measure(plan: &Plan) -> Vec<Row> {
    if !plan.selected.wants(ID) {
        return Vec::new();
    }
    let (rounds, count) = if plan.quick { (1, 20) } else { (plan.rounds.max(5) * 3, 1000) };
    let mut scene = Scene::new();
    let mut rows = Vec::new();
    for (how, what) in [(How::Labels, "other labels"), (How::Account, "another account")] {
        for (place, client) in PLACES {
            let times: Vec<Ended> = (0..rounds).map(|_| scene.withdraw(client, count, how)).collect();
            rows.extend(ended(plan, &format!("{what}, {place}, {count} connections"), &times));
        }
    }
    for (place, client) in PLACES {
        let times: Vec<f64> = (0..rounds.min(7)).map(|_| scene.end(client, count)).collect();
        let what = format!("server killed, until all are dead at the client, {place}, {count} connections");
        rows.extend(told(&what, &times));
    }
    let taken = scene.partition(count);
    let what = format!("peer cut off, {count} connections; from the cut until all are dead at the other end");
    let cut = plan.judge(Row::new(ID, what, taken, "ms"), Target::AtMost(GRACE + PROMISE), None);
    drop(scene);
    // A node has no root to give back: each time it is another node.
    let times: Vec<Ended> = (0..rounds.min(7)).map(|_| root(count)).collect();
    rows.extend(ended(plan, &format!("root removed, same node, {count} connections"), &times));
    rows.push(cut);
    rows
}

fn judged(plan: &Plan, what: &str, times: &[f64]) -> [Row; 2] {
    let [middle, slowest] = told(what, times);
    [middle, plan.judge(slowest, Target::AtMost(PROMISE), None)]
}

/// The promise is about the last word, not about when the last of a thousand is found dead.
fn told(what: &str, times: &[f64]) -> [Row; 2] {
    let what = format!("{what}, {} withdrawals", times.len());
    [(0.5, "p50"), (1.0, "the slowest")]
        .map(|(share, name)| Row::new(ID, format!("{what}, {name}"), percentile(times, share), "ms"))
}

/// How long a withdrawal took, in milliseconds.
#[derive(Clone, Copy)]
struct Ended {
    /// Until the last word that arrived at the server.
    word: f64,
    /// Until every connection was found dead at the client, the idle ones too; looked at every few milliseconds.
    dead: f64,
}

/// The last word is what is promised.
fn ended(plan: &Plan, what: &str, times: &[Ended]) -> Vec<Row> {
    let words: Vec<f64> = times.iter().map(|ended| ended.word).collect();
    let dead: Vec<f64> = times.iter().map(|ended| ended.dead).collect();
    let mut rows = judged(plan, what, &words).to_vec();
    let idle = format!("{what}, {} withdrawals, until all are dead at the client, p50", times.len());
    rows.push(Row::new(ID, idle, percentile(&dead, 0.5), "ms"));
    rows
}

/// On a node of its own: every root is taken out of its trust bundle.
fn root(count: usize) -> Ended {
    let node = Node::up();
    node.apply("proven.yaml", &policy(true, PORT));
    node.apply("callers.yaml", REQUIRED_BY_CALLER);
    let server = node.serve("server", &["app=server"], PORT);
    let mut watch = Watch::start(&node);
    let crowd = crowd(&node, "client", &["app=client"], server.addresses[0], count);
    watch.until_dead(crowd, || std::fs::write(node.state().join("ca/bundle.pem"), "").expect("written"))
}

/// Sees what arrives at the server.
struct Watch(Session);

impl Watch {
    fn start(node: &Node) -> Self {
        let watch = Session::start(node.beside("server", binary("probe")).args(["last", &PORT.to_string()]));
        assert_eq!(watch.line(), "open");
        Self(watch)
    }

    /// When the last word came, in nanoseconds since 1970, and how many there have been.
    fn heard(&mut self) -> (u128, u64) {
        let answer = self.0.ask("last");
        let (last, count) = answer.split_once(' ').expect("a time and a number");
        (last.parse().expect("a time"), count.parse().expect("a number"))
    }

    /// Does what ends every connection of the crowd, which is heard until then.
    fn until_dead(&mut self, mut crowd: Session, withdraw: impl FnOnce()) -> Ended {
        let (_, before) = self.heard();
        wait_until("the crowd is heard", || self.heard().1 > before);
        let begin = now();
        withdraw();
        wait_until("every connection is dead", || crowd.ask("alive").starts_with("0 alive"));
        let dead = millis(now(), begin);
        let (last, _) = self.heard();
        // Who had long been silent says nothing about when it was stopped.
        let word = if millis(begin, last) > SILENCE { f64::NAN } else { millis(last, begin) };
        Ended { word, dead }
    }
}

/// A crowd of connections of a client.
fn crowd(node: &Node, client: &str, labels: &[&str], server: IpAddr, count: usize) -> Session {
    let probe = binary("probe").display().to_string();
    let to = SocketAddr::new(server, PORT).to_string();
    node.start(client, labels, &[&probe, "crowd", &to, &count.to_string()]).session
}

/// Milliseconds from one to the other; 0 if the end was before.
fn millis(end: u128, begin: u128) -> f64 {
    end.saturating_sub(begin) as f64 / 1e6
}

/// Callers too ask for proof, so that either end has a mark of its own to lose when nobody can tell it anything.
struct Scene {
    mesh: Mesh,
    server: crate::lab::Workload,
    watch: Watch,
}

impl Scene {
    fn new() -> Self {
        let mesh = Mesh::up(2, ", authenticationGrace: 2s");
        mesh.apply("proven.yaml", &policy(true, PORT));
        mesh.apply("callers.yaml", REQUIRED_BY_CALLER);
        mesh.place("server", &["app=server"], 1);
        mesh.place("near", &["app=client"], 1);
        mesh.place("far", &["app=client"], 0);
        let server = mesh.nodes[1].serve("server", &[], PORT);
        let watch = Watch::start(&mesh.nodes[1]);
        Self { mesh, server, watch }
    }

    fn crowd(&self, client: &str, count: usize) -> Session {
        crowd(&self.mesh.nodes[node_of(client)], client, &[], self.server.addresses[0], count)
    }

    fn withdraw(&mut self, client: &str, count: usize, how: How) -> Ended {
        let crowd = self.crowd(client, count);
        let node = node_of(client);
        let [app, account] = match how {
            How::Labels => ["other", client],
            How::Account => ["client", "somebody-else"],
        };
        let (file, other) =
            (format!("workload-{client}.yaml"), placed_on(client, &format!("app: {app}"), account, node));
        let ended = self.watch.until_dead(crowd, || self.mesh.admin(&file, &other));
        self.mesh.place(client, &["app=client"], node as u8);
        ended
    }

    /// Milliseconds from the end of the server's processes until its clients know.
    fn end(&mut self, client: &str, count: usize) -> f64 {
        let mut crowd = self.crowd(client, count);
        let begin = now();
        self.server.session.kill();
        wait_until("every connection is dead", || crowd.ask("alive").starts_with("0 alive"));
        let taken = millis(now(), begin);
        drop(crowd);
        wait_until("it is gone", || {
            self.mesh.nodes[1].ferromesh(&["endpoint", "get", "server"]).code != Some(0)
        });
        self.server = self.mesh.nodes[1].serve("server", &[], PORT);
        self.watch = Watch::start(&self.mesh.nodes[1]);
        let server = self.server.addresses[0].to_string();
        wait_until("the other node knows where it is", || {
            self.mesh.nodes[0].ferromesh(&["ip", "list"]).stdout.contains(&server)
        });
        taken
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

/// The number of the client's node.
fn node_of(client: &str) -> usize {
    usize::from(client == "near")
}

fn now() -> u128 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_nanos()
}
