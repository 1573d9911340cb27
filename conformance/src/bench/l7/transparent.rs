//! Two workloads of a real node, and a proxy where the node's programs send what an HTTP rule is about.
//!
//! Another proxy takes the place of ours: it runs in the same network namespace and in the cgroup by which the kernel's
//! programs know the proxy, and its listening socket is put where ours is in their map. So the packets of all go the same
//! way. Ours goes on meanwhile and has nothing to do.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use aya::maps::{Map, MapData, SockMap};
use tempfile::TempDir;

use super::anchor::Anchor;
use super::load::{Order, Pace, Port, Protocol, Sample};
use super::peers::{Before, Peer};
use super::process::{Process, on, shift};
use super::{Driver, OTHERS, PROXY};
use crate::lab::{Authority, Node, Session, Workload, binary, tls_secret, wait_until};

/// Number of its first listening socket in our proxy.
const FIRST: i32 = 8;
/// User of the agent's children.
const USER: u32 = 64_252;
/// How long the agent may take for thousands of rules, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(30);
/// Where others listen, and who reads what HAProxy logs; in the node's own namespace.
const PEER: u16 = 19_000;
const SINK: u16 = 19_100;
/// How requests must look to be let through.
pub(super) const PATH: &str = "/bench/x";

/// Where servers listen: three protocols, with and without a body.
pub(super) const PORTS: [Port; 6] = [
    port(Protocol::H1, 8000, 0),
    port(Protocol::H1, 8001, 1024),
    port(Protocol::H2, 8002, 0),
    port(Protocol::H2, 8003, 1024),
    port(Protocol::Grpc, 8004, 0),
    port(Protocol::Grpc, 8005, 1024),
];

const fn port(protocol: Protocol, number: u16, body: usize) -> Port {
    Port { protocol: Some(protocol), number, body }
}

/// The port of a protocol and a length.
pub(super) fn port_of(protocol: Protocol, body: usize) -> u16 {
    let wanted = |port: &&Port| port.protocol == Some(protocol) && port.body == body;
    PORTS.iter().find(wanted).expect("there is one of each").number
}

/// A policy for a server: ports, and the rules of all of them.
pub(super) fn policy(server: &str, client: &str, ports: &[u16], rules: &str) -> String {
    let ports: Vec<String> = ports.iter().map(|port| format!("{{port: '{port}', protocol: TCP}}")).collect();
    format!(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: {server}-{client}, namespace: default}}\n\
         spec:\n  endpointSelector: {{matchLabels: {{app: {server}}}}}\n  ingress:\n\
         \x20 - fromEndpoints: [{{matchLabels: {{app: {client}}}}}]\n    toPorts:\n    - ports: [{}]\n\
         \x20     rules:\n        http:\n{rules}---\n",
        ports.join(", ")
    )
}

/// The same in TLS that the proxy ends, by a Secret of its own.
pub(super) fn secured(server: &str, client: &str, ports: &[u16], rules: &str) -> String {
    let secret = tls_secret(server, &Authority::new().leaf("server.example"));
    let context = format!("    terminatingTLS: {{secret: {{name: {server}}}}}\n      rules:\n");
    let policy = policy(server, client, ports, rules).replacen("    rules:\n", &context, 1);
    let policy =
        policy.replacen(&format!("name: {server}-{client}"), &format!("name: {server}-{client}-tls"), 1);
    format!("{policy}{secret}---\n")
}

/// The rule that stands for all others.
pub(super) const RULE: &str = "        - {method: GET|POST, path: /bench/.*}\n";

/// A process and its listening socket, or why there is none.
type Started = Result<(Process, OwnedFd), String>;

/// A node with a proxy, clients and servers.
pub(super) struct Transparent {
    peers: Vec<(Peer, Started)>,
    /// What lets others than ours call the server; or why there is none.
    anchor: Option<Result<Anchor, String>>,
    sink: Option<Session>,
    /// Whose listening socket is in place; none: ours.
    current: Cell<Option<Peer>>,
    map: RefCell<SockMap<MapData>>,
    own: OwnedFd,
    /// Our proxy.
    pub(super) proxy: i32,
    files: TempDir,
    /// The workload `server`.
    pub(super) server: Tenant,
    /// Who may ask it.
    pub(super) client: Workload,
    /// The node.
    pub(super) node: Node,
}

/// A workload in which a server runs.
pub(super) struct Tenant {
    _session: Session,
    pub(super) workload: Workload,
}

impl Transparent {
    /// A node under this policy, a workload `server` that listens at these ports, and one called `client` that may ask it.
    pub(super) fn new(policies: &str, ports: &[Port], client: &str) -> Self {
        let node = on(PROXY, || {
            let node = Node::up();
            node.write("policy.yaml", policies);
            node
        });
        // The proxy is started when somebody is there whom a rule is about.
        let server = serve(&node, "server", ports);
        let client = idle(&node, client);
        ready(&node);
        let directory = node.state().join("proxy");
        let words = ["proxy", "--directory", directory.to_str().expect("UTF-8")];
        let found = linux::child::with_arguments(&words, USER).expect("a table of processes");
        let [proxy] = found.as_slice() else { panic!("one proxy runs, not {found:?}") };
        // What it was born with stays: one CPU, hence one worker.
        shift(node.agent_pid(), OTHERS);
        let own = linux::child::descriptor(*proxy, FIRST).expect("its listening socket");
        let pin = node.pins().join(format!("v{}/maps/{}", abi::SCHEMA, abi::map::LISTENERS));
        let map = MapData::from_pin(&pin).expect("a pinned map");
        let map = SockMap::try_from(Map::SockMap(map)).expect("a map of sockets");
        Self {
            peers: Vec::new(),
            anchor: None,
            sink: None,
            current: Cell::new(None),
            map: map.into(),
            own,
            proxy: *proxy,
            files: tempfile::tempdir().expect("a temporary directory"),
            server,
            client,
            node,
        }
    }

    /// A client in a workload that is there.
    pub(super) fn driver(&self, workload: &str) -> Driver {
        Driver::start(&mut self.node.within(workload, binary("l7load")))
    }

    /// Starts another proxy, for requests of the client.
    pub(super) fn start(&mut self, peer: Peer) {
        if self.sink.is_none() {
            let mut command = self.node.inside(binary("l7load"));
            let sink = on(OTHERS, || Session::start(command.args(["serve", &format!("sink:{SINK}")])));
            assert_eq!(sink.line(), "serving");
            self.sink = Some(sink);
        }
        if self.anchor.is_none() {
            self.anchor = Some(self.anchor());
        }
        let anchor = self.anchor.as_ref().and_then(|anchor| anchor.as_ref().err().cloned());
        if let Some(why) = anchor {
            return self.peers.push((peer, Err(why)));
        }
        let port = PEER + self.peers.len() as u16;
        let source = self.client.addresses[0].to_string();
        let place = |program: &std::path::Path| self.node.as_proxy(program);
        let started = peer.start(place, self.files.path(), port, &Before::Called, (&source, SINK));
        let started = started.and_then(|mut process| process.listener(port).map(|socket| (process, socket)));
        self.peers.push((peer, started));
    }

    fn anchor(&self) -> Result<Anchor, String> {
        let ports: Vec<u16> = PORTS.iter().map(|port| port.number).collect();
        let mut netfilter = self.node.inside("nft");
        netfilter.args(["-f", "-"]);
        let client = (self.node.namespace("client"), self.client.addresses[0]);
        Anchor::cast((&client.0, client.1), self.server.workload.addresses[0], &ports, netfilter)
    }

    /// Puts a proxy in place: ours, or one that was started.
    pub(super) fn place(&self, peer: Option<Peer>) -> Result<(), String> {
        if self.current.replace(peer) == peer {
            return Ok(());
        }
        let socket = match peer {
            None => &self.own,
            Some(peer) => {
                let (_, started) = self.peers.iter().find(|(name, _)| *name == peer).ok_or("not started")?;
                &started.as_ref().map_err(String::clone)?.1
            }
        };
        self.map.borrow_mut().set(0, &socket.as_raw_fd(), 0).map_err(|error| error.to_string())
    }

    /// Why a proxy cannot be compared with.
    pub(super) fn missing(&self, peer: Peer) -> Option<String> {
        self.peers
            .iter()
            .find(|(name, _)| *name == peer)
            .and_then(|(_, started)| started.as_ref().err().cloned())
    }
}

impl Drop for Transparent {
    /// The proxy's cgroup is empty before the node is taken down.
    fn drop(&mut self) {
        self.peers.clear();
    }
}

/// A workload called `name`, and in it `l7load serve` at these ports.
pub(super) fn serve(node: &Node, name: &str, ports: &[Port]) -> Tenant {
    let workload = idle(node, name);
    let words: Vec<String> = ports.iter().map(Port::to_string).collect();
    let session = on(OTHERS, || Session::start(urgent(node, name).arg("serve").args(words)));
    assert_eq!(session.line(), "serving");
    Tenant { _session: session, workload }
}

/// `l7load` in a workload, before all others on its CPU: what waits there is not the proxy's fault.
pub(super) fn urgent(node: &Node, name: &str) -> std::process::Command {
    let mut command = node.within(name, "chrt");
    command.args(["--fifo", "10"]).arg(binary("l7load"));
    command
}

/// A workload that does nothing.
pub(super) fn idle(node: &Node, name: &str) -> Workload {
    let probe = binary("probe");
    let label = format!("app={name}");
    node.start(name, &[&label], &[probe.to_str().expect("UTF-8"), "ask"])
}

/// Waits until the proxy has its rules.
pub(super) fn ready(node: &Node) {
    let end = Instant::now() + PATIENCE;
    loop {
        let status = node.json(&["status"]);
        if status["l7"].is_object() && status["l7"]["problem"].is_null() && status["invalid"] == 0 {
            return;
        }
        let policies = || node.ferromesh(&["policy", "list"]).stdout;
        assert!(Instant::now() < end, "the proxy has no rules: {status}\n{}", policies());
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// As many requests as go through, in this time.
pub(super) fn closed(
    (protocol, body): (Protocol, usize),
    to: &Workload,
    [connections, streams]: [usize; 2],
    seconds: f64,
) -> Order {
    Order {
        protocol,
        to: SocketAddr::new(to.addresses[0], port_of(protocol, body)),
        path: PATH.to_owned(),
        body,
        status: 200,
        padding: 0,
        tls: false,
        connections,
        streams,
        seconds,
        pace: Pace::Closed,
        cpu: PROXY,
        failures: Some(0),
    }
}

/// Waits until requests pass, which they do once the policy is in force and who calls is known.
pub(super) fn wait_for(driver: &Driver, order: &Order) {
    let first = Order { connections: 1, streams: 1, seconds: 0.01, pace: Pace::Once, ..order.clone() };
    let mut last = Ok(Sample::default());
    wait_until("a request passes", || {
        last = driver.faultless(&first);
        last.is_ok()
    });
}
