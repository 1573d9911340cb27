//! Several nodes that run from one shared directory, on one network, with plain routes between their pools.
//!
//! The network is a bridge in a namespace of its own; each node has one leg on it. The CA runs on the first node.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::command::{Outcome, wait_until};
use super::namespace::Namespace;
use super::node::{Node, pools, unique_name};

/// Nodes `node-0`, `node-1` …
pub struct Mesh {
    /// The nodes, by number.
    pub nodes: Vec<Node>,
    underlay: Namespace,
    shared: TempDir,
}

/// The port of the CA on the first node.
const CA_PORT: u16 = 4251;
/// Number by which the network itself has addresses, when it has.
const INTRUDER: u8 = 100;

/// Addresses of a node on the network between the nodes.
fn underlay(number: u8) -> [String; 2] {
    [format!("192.0.2.{}", 10 + number), format!("2001:db8:2::{}", 10 + u16::from(number))]
}

impl Mesh {
    /// So many nodes whose agents are up, with more keys of their configuration: `, key: value`.
    pub fn up(count: u8, settings: &str) -> Self {
        Self::new(count, settings).started()
    }

    /// The same, but the nodes and the CA know one another by IPv6 addresses alone.
    pub fn up_over_ipv6(count: u8, settings: &str) -> Self {
        Self::made(count, settings, &[1]).started()
    }

    fn started(mut self) -> Self {
        self.start(0);
        self.enrol();
        (1..self.nodes.len()).for_each(|number| self.start(number));
        self
    }

    /// The same without agents.
    pub fn new(count: u8, settings: &str) -> Self {
        Self::made(count, settings, &[0, 1])
    }

    /// `known`: by which of their addresses, the IPv4 and the IPv6 one, nodes know one another. The CA has the first.
    fn made(count: u8, settings: &str, known: &[usize]) -> Self {
        let shared = TempDir::with_prefix("fmshared").expect("a temporary directory");
        for directory in ["admin", "nodes"] {
            fs::create_dir(shared.path().join(directory)).expect("a directory of the mesh");
        }
        let underlay = Namespace::new(format!("{}u", unique_name()));
        underlay.ip("link add bridge type bridge");
        underlay.ip("link set bridge up");
        let nodes = (0..count).map(|number| made(number, settings, &shared, known[0])).collect();
        let mesh = Self { nodes, underlay, shared };
        for number in 0..count {
            mesh.connect(number);
            mesh.admin(&format!("node-{number}.yaml"), &object(number, known));
        }
        for from in 0..count {
            (0..count).filter(|to| *to != from).for_each(|to| mesh.route(from, to));
        }
        mesh
    }

    /// Starts the agent of a node.
    pub fn start(&mut self, number: usize) {
        self.nodes[number].start_agent();
    }

    /// Gives every other node what it needs to join: the trust bundle and a token each. The first node is up.
    pub fn enrol(&self) {
        let [first, others @ ..] = &self.nodes[..] else { return };
        for (number, _) in (1..).zip(others) {
            let token = first.ferromesh(&["auth", "token", &format!("node-{number}")]).success();
            let bundle = first.ferromesh(&["auth", "bundle"]).success();
            let [token_file, bundle_file] = joining(&self.shared, number);
            fs::write(token_file, token).expect("the token is written");
            fs::write(bundle_file, bundle).expect("the bundle is written");
        }
    }

    /// One leg of a node on the network.
    fn connect(&self, number: u8) {
        let (node, leg) = (self.nodes[usize::from(number)].network(), format!("leg{number}"));
        // The host's own neighbour discovery would try an address out for seconds.
        node.set("net/ipv6/conf/default/accept_dad", "0");
        let path = node.path();
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
        self.underlay.ip(&format!("link add {leg} type veth peer name eth0 netns {name}"));
        self.underlay.ip(&format!("link set {leg} master bridge"));
        self.underlay.ip(&format!("link set {leg} up"));
        node.ip("link set eth0 up");
        let [ipv4, ipv6] = underlay(number);
        node.ip(&format!("address add {ipv4}/24 dev eth0"));
        node.ip(&format!("address add {ipv6}/64 dev eth0 nodad"));
    }

    /// `from` learns the way to the pools of `to`.
    fn route(&self, from: u8, to: u8) {
        let node = self.nodes[usize::from(from)].network();
        for (pool, via) in pools(to).into_iter().zip(underlay(to)) {
            node.ip(&format!("route add {pool} via {via}"));
        }
    }

    /// A program that sees, and can send, what is on the network between the nodes: by an address that is no node's.
    pub fn underlay(&self, program: impl AsRef<Path>) -> Command {
        self.underlay.command(program)
    }

    /// Gives the network's own namespace addresses, and the way to every node's pools.
    pub fn intrude(&self) {
        let [ipv4, ipv6] = underlay(INTRUDER);
        self.underlay.ip(&format!("address add {ipv4}/24 dev bridge"));
        self.underlay.ip(&format!("address add {ipv6}/64 dev bridge nodad"));
        for number in 0..u8::try_from(self.nodes.len()).expect("few nodes") {
            for (pool, via) in pools(number).into_iter().zip(underlay(number)) {
                self.underlay.ip(&format!("route add {pool} via {via}"));
            }
        }
    }

    /// Address of a node on the network between the nodes, IPv4.
    pub fn address(&self, number: u8) -> IpAddr {
        self.addresses(number)[0]
    }

    /// Addresses of a node on the network between the nodes, IPv4 and IPv6.
    pub fn addresses(&self, number: u8) -> [IpAddr; 2] {
        underlay(number).map(|address| address.parse().expect("an address"))
    }

    /// Nothing passes between a node and the others any more, or it does again.
    pub fn partition(&self, number: u8, apart: bool) {
        self.underlay.ip(&format!("link set leg{number} {}", if apart { "down" } else { "up" }));
    }

    /// The agent of a node is started anew and sees the shared directory as it is now and nothing of what comes after, or
    /// it is again and sees what is there. The network between the nodes stays.
    pub fn blindfold(&mut self, number: usize, blind: bool) {
        let view = match blind {
            true => self.shared().join(format!("view-{number}")),
            false => self.shared(),
        };
        self.nodes[number].kill_agent();
        if blind {
            fs::create_dir(&view).expect("nobody has been blindfolded before");
            for part in ["admin", "nodes"] {
                let mut copy = Command::new("cp");
                Outcome::of(copy.arg("-a").arg(self.shared().join(part)).arg(&view)).success();
            }
        }
        self.nodes[number].share(view);
        self.nodes[number].start_agent();
    }

    /// Writes a file of the administrator's.
    pub fn admin(&self, file: &str, yaml: &str) {
        let draft = self.shared.path().join(format!("draft-{file}"));
        fs::write(&draft, yaml).expect("the draft is written");
        fs::rename(draft, self.shared().join("admin").join(file)).expect("the file is put in place");
    }

    /// Removes one.
    pub fn remove(&self, file: &str) {
        fs::remove_file(self.shared().join("admin").join(file)).expect("the file was there");
    }

    /// Writes a file of the administrator's and waits until every node that is up has it in force.
    #[track_caller]
    pub fn apply(&self, file: &str, yaml: &str) {
        self.edit(file, || self.admin(file, yaml));
    }

    /// Removes one and waits likewise.
    #[track_caller]
    pub fn withdraw(&self, file: &str) {
        self.edit(file, || self.remove(file));
    }

    #[track_caller]
    fn edit(&self, file: &str, change: impl FnOnce()) {
        let snapshot = |node: &Node| node.json(&["status"])["snapshot"].as_u64().expect("a number");
        let before: Vec<_> = self.nodes.iter().map(snapshot).collect();
        change();
        for (node, before) in self.nodes.iter().zip(before) {
            wait_until(&format!("the edit of {file} is in force"), || snapshot(node) > before);
        }
    }

    /// Declares a workload and where it runs.
    #[track_caller]
    pub fn place(&self, name: &str, labels: &[&str], node: u8) {
        let labels: Vec<_> = labels.iter().filter_map(|label| label.split_once('=')).collect();
        let labels: String = labels.iter().map(|(key, value)| format!("{key}: {value}, ")).collect();
        self.apply(&format!("workload-{name}.yaml"), &placed_on(name, &labels, name, node.into()));
    }

    /// The directory all nodes share.
    pub fn shared(&self) -> PathBuf {
        self.shared.path().to_owned()
    }
}

/// A workload's object: its labels as YAML has them (`KEY: VALUE, …`), its service account, and the number of its node.
pub fn placed_on(name: &str, labels: &str, account: &str, node: usize) -> String {
    format!(
        "apiVersion: ferromesh.io/v1alpha1\nkind: Workload\n\
         metadata: {{name: {name}, namespace: default, labels: {{{labels}}}}}\n\
         spec: {{node: node-{node}, serviceAccountName: {account}}}\n"
    )
}

fn made(number: u8, settings: &str, shared: &TempDir, family: usize) -> Node {
    let ca: IpAddr = underlay(0)[family].parse().expect("an address");
    let ca = SocketAddr::new(ca, CA_PORT);
    let authority = match number {
        0 => format!(", caListen: '{ca}'"),
        _ => {
            let [token, bundle] = joining(shared, number).map(|path| path.display().to_string());
            format!(", caAddress: '{ca}', joinTokenFile: {token}, trustBundleFile: {bundle}")
        }
    };
    // Workloads reach one another as themselves; there is nothing else to reach.
    let settings = format!(", devices: [eth0]{authority}{settings}");
    Node::made(&format!("node-{number}"), number, &settings, Some(shared.path().to_owned()))
}

/// What the administrator carries to a node by hand: its token and the trust bundle.
fn joining(shared: &TempDir, number: u8) -> [PathBuf; 2] {
    ["token", "pem"].map(|kind| shared.path().join(format!("join-{number}.{kind}")))
}

fn object(number: u8, known: &[usize]) -> String {
    let own = underlay(number);
    let addresses = known.iter().map(|family| format!("{{type: InternalIP, address: '{}'}}", own[*family]));
    let addresses = addresses.collect::<Vec<_>>().join(", ");
    let [pool4, pool6] = pools(number);
    format!(
        "apiVersion: ferromesh.io/v1alpha1\nkind: Node\nmetadata: {{name: node-{number}}}\n\
         spec:\n  addresses: [{addresses}]\n\
         \x20 podCIDRs: [{pool4}, '{pool6}']\n"
    )
}
