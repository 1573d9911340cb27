//! Two nodes, what is placed on them, and how to ask.

use std::net::{IpAddr, SocketAddr};

pub(crate) use conformance::lab::{HASTY, REQUIRED, is_dead, placed_on};
use conformance::lab::{Mesh, Node, Session, Workload, binary, wait_until};
use serde_json::Value;

/// `client` and `twin` on the first node, with the labels that policy asks for, and `stranger` without; `server` and
/// `near`, a client, on the second.
pub(crate) struct Scene {
    pub(crate) mesh: Mesh,
    pub(crate) server: Workload,
}

impl Scene {
    pub(crate) fn required(settings: &str) -> Self {
        Self::with(Mesh::up(2, settings))
    }

    /// The same with a word of the first node's configuration replaced.
    pub(crate) fn required_with(settings: &str, word: &str, by: &str) -> Self {
        Self::edited(settings, 0, word, by)
    }

    /// The same of any node's.
    pub(crate) fn edited(settings: &str, number: usize, word: &str, by: &str) -> Self {
        let mut mesh = Mesh::new(2, settings);
        let file = mesh.nodes[number].config().join("ferromesh.yaml");
        let configuration = std::fs::read_to_string(file).unwrap();
        assert!(configuration.contains(word), "{configuration}");
        mesh.nodes[number].write("ferromesh.yaml", &configuration.replace(word, by));
        mesh.start(0);
        mesh.enrol();
        mesh.start(1);
        Self::with(mesh)
    }

    pub(crate) fn with(mesh: Mesh) -> Self {
        place_all(&mesh);
        let server = mesh.nodes[1].serve("server", &[], 80);
        known(&mesh.nodes[0], &server);
        mesh.apply("proven.yaml", REQUIRED);
        mesh.ready(1, "server");
        Self { mesh, server }
    }

    pub(crate) fn to(&self, which: usize) -> SocketAddr {
        (self.server.addresses[which], 80).into()
    }

    pub(crate) fn hold(&self, from: &str, which: usize) -> Session {
        self.stay(from, "hold", which)
    }

    /// A client of `probe` that stays, as a workload that has its certificate and is known.
    pub(crate) fn stay(&self, from: &str, mode: &str, which: usize) -> Session {
        let node = self.node_of(from);
        let others: Vec<&Node> = self.mesh.nodes.iter().filter(|other| !std::ptr::eq(*other, node)).collect();
        node.call(from, &[], from, &others, &[mode, &self.to(which).to_string()]).session
    }

    pub(crate) fn attempt(&self, from: &str, how: &str, which: usize) -> String {
        self.node_of(from).attempt(from, &[], how, self.server.addresses[which], 80)
    }

    pub(crate) fn node_of(&self, workload: &str) -> &Node {
        &self.mesh.nodes[usize::from(["near", "server"].contains(&workload))]
    }
}

fn place_all(mesh: &Mesh) {
    for (name, label, node) in [
        ("server", "app=server", 1),
        ("near", "app=client", 1),
        ("client", "app=client", 0),
        ("twin", "app=client", 0),
        ("stranger", "app=other", 0),
    ] {
        mesh.place(name, &[label], node);
    }
}

/// A workload's object on the first node: labels and account as given.
pub(crate) fn placed(name: &str, labels: &str, account: &str) -> String {
    placed_on(name, labels, account, 0)
}

/// A node's process of this verb, which neither answers nor ends until this is dropped.
pub(crate) struct Stopped(i32);

impl Stopped {
    const STOP: i32 = 19;
    const CONTINUE: i32 = 18;

    pub(crate) fn new(node: &Node, verb: &str) -> Self {
        let [pid] = processes(node, verb)[..] else { panic!("one {verb} runs") };
        Self::process(pid)
    }

    /// The same of its agent.
    pub(crate) fn agent(node: &Node) -> Self {
        Self::process(node.agent_pid())
    }

    fn process(pid: i32) -> Self {
        linux::process::send(pid, Self::STOP).unwrap();
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = linux::process::send(self.0, Self::CONTINUE);
    }
}

/// Waits until a node knows where a workload of another is.
pub(crate) fn known(node: &Node, workload: &Workload) {
    wait_until("it is known where the workload is", || {
        let list = node.ferromesh(&["ip", "list", "-o", "json"]).stdout;
        workload.addresses.iter().all(|address| list.contains(&format!("{address}")))
    });
}

/// A client of `probe` that stays, as a workload, whatever there is of it yet.
pub(crate) fn stay(node: &Node, name: &str, mode: &str, to: SocketAddr) -> Session {
    node.start(name, &[], &[binary("probe").to_str().unwrap(), mode, &to.to_string()]).session
}

/// A workload from which connections are tried.
pub(crate) fn asker(node: &Node, name: &str) -> Workload {
    node.start(name, &[], &[binary("probe").to_str().unwrap(), "ask"])
}

/// One that connects again and again, whoever it is and whether it has a certificate or not.
pub(crate) fn restless(scene: &Scene, name: &str, which: usize) -> Session {
    let (probe, to) = (binary("probe"), scene.to(which).to_string());
    scene.node_of(name).start(name, &[], &[probe.to_str().unwrap(), "steady", &to]).session
}

/// One that has its certificate.
pub(crate) fn certified_asker(node: &Node, name: &str) -> Workload {
    let asker = asker(node, name);
    node.certified(name);
    asker
}

/// Rows of `auth pairs` that are proven.
pub(crate) fn proven(node: &Node) -> Vec<Value> {
    let pairs = node.json(&["auth", "pairs"]);
    pairs.as_array().unwrap().iter().filter(|pair| pair["state"] == "proven").cloned().collect()
}

/// Marks with a workload at either end.
pub(crate) fn marks_of(node: &Node, workload: &str) -> usize {
    let account = format!("/sa/{workload}");
    let is_its = |pair: &Value, end: &str| pair[end].as_str().is_some_and(|id| id.ends_with(&account));
    proven(node).iter().filter(|pair| is_its(pair, "local_id") || is_its(pair, "remote_id")).count()
}

/// Why packets were dropped, a line each.
pub(crate) fn drops(node: &Node) -> String {
    node.ferromesh(&["observe", "--verdict", "DROPPED", "--last", "1000"]).success()
}

/// Process ids of the node's processes of this verb, by their directories.
pub(crate) fn processes(node: &Node, verb: &str) -> Vec<i32> {
    let (directory, uid) = if verb == "ca" { ("ca", 64_250) } else { ("auth", 64_251) };
    let directory = node.state().join(directory);
    linux::child::with_arguments(&[verb, "--directory", directory.to_str().unwrap()], uid).unwrap()
}

/// Ends the node's processes of this verb by SIGKILL.
pub(crate) fn kill(node: &Node, verb: &str) {
    for pid in processes(node, verb) {
        linux::process::send(pid, 9).unwrap();
    }
}

/// An address of the same port.
pub(crate) fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}
