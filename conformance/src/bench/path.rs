//! What is compared: ways from a client to a server, each in network namespaces of its own with its own two `load`
//! processes, the client on the first CPU and the server on the second.
//!
//! Promise: ways differ in what lies between the two processes, and in nothing else. So the processes of a mesh's
//! workloads join the workload's namespace and cgroup, but neither its mounts nor its seccomp filter, which the processes
//! of a bare way have not either: those have their price at each system call, and none for packets.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::load::{Order, Sample};
use crate::lab::{Namespace, Node, Session, Workload, binary, wait_until, wait_within};

/// Where servers listen.
const PORT: u16 = 9000;
/// Where services do.
const SERVICE_PORT: u16 = 80;
/// How long the agent may take for tens of thousands of services, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(120);
/// Services in one file of the configuration.
const PER_FILE: usize = 1000;
/// The server of a bare way, and the gateways and clients there.
const SERVER: [&str; 2] = ["10.79.2.2", "fd00:79:2::2"];
const SERVER_GATEWAY: [&str; 2] = ["10.79.2.1", "fd00:79:2::1"];
const CLIENT: [&str; 2] = ["10.79.1.2", "fd00:79:1::2"];
const CLIENT_GATEWAY: [&str; 2] = ["10.79.1.1", "fd00:79:1::1"];

/// Names of the families, in the order of all pairs of addresses.
pub(super) const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A client and a server who can reach each other.
pub(super) struct Way {
    client: RefCell<Session>,
    _server: Session,
    to: [SocketAddr; 2],
}

impl Way {
    fn new(client: &mut Command, server: &mut Command, to: [SocketAddr; 2]) -> Self {
        let server = Session::start(server.args(["serve", &PORT.to_string(), "1"]));
        assert_eq!(server.line(), "serving");
        let client = Session::start(client.args(["drive", "0"]));
        assert_eq!(client.line(), "open");
        let way = Self { client: RefCell::new(client), _server: server, to };
        // One run each that nobody counts: what is slow the first time is over then.
        for family in 0..FAMILIES.len() {
            wait_until("the server answers", || way.run(family, |to| order(to, 0.002)).is_ok());
        }
        way
    }

    /// One run of load in this family.
    pub(super) fn run(
        &self,
        family: usize,
        order: impl FnOnce(SocketAddr) -> Order,
    ) -> Result<Sample, String> {
        let mut client = self.client.borrow_mut();
        client.say(&order(self.to[family]).to_string());
        let line = client.hear().ok_or("the client says nothing")?;
        serde_json::from_str(&line).map_err(|_| line)
    }
}

fn order(to: SocketAddr, seconds: f64) -> Order {
    Order { mode: super::load::Mode::Crr, to, seconds, rate: None }
}

/// A way between two workloads of one node: a real agent, policy that allows this and nothing else.
pub(super) struct Mesh {
    /// The way.
    pub(super) way: Way,
    _workloads: [Workload; 2],
    /// The node.
    pub(super) node: Node,
}

const POLICY: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: server, namespace: default}
spec:
  podSelector: {matchLabels: {app: server}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 9000}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: client, namespace: default}
spec:
  podSelector: {matchLabels: {app: client}}
  policyTypes: [Egress]
  egress: [{to: [{podSelector: {matchLabels: {app: server}}}], ports: [{port: 9000}]}]
";

impl Mesh {
    /// From workload to workload by their own addresses, or by the last of so many services. `settings` are more keys of
    /// the node's configuration.
    pub(super) fn new(settings: &str, services: usize) -> Self {
        Self::with_policy(POLICY, settings, services)
    }

    /// The same under another policy; the way must be open once it is in force.
    pub(super) fn with_policy(policy: &str, settings: &str, services: usize) -> Self {
        let mut node = Node::with(settings);
        node.write("policy.yaml", policy);
        node.start_agent();
        let probe = binary("probe").display().to_string();
        let [server, client] =
            ["server", "client"].map(|name| node.start(name, &[&format!("app={name}")], &[&probe, "ask"]));
        let to = match services.checked_sub(1) {
            Some(last) => {
                serve(&node, services, &server);
                vip(last)
            }
            None => server.addresses.map(|address| SocketAddr::new(address, PORT)),
        };
        let load = binary("load");
        let way = Way::new(&mut node.within("client", &load), &mut node.within("server", &load), to);
        Self { way, _workloads: [client, server], node }
    }
}

impl Drop for Mesh {
    /// Without the agent, `ferromesh down` undoes everything at once; with it, the end of each workload would be planned for
    /// all services.
    fn drop(&mut self) {
        self.node.kill_agent();
    }
}

/// Writes so many services, and waits until the last of them leads to the server.
fn serve(node: &Node, services: usize, server: &Workload) {
    for first in (0..services).step_by(PER_FILE) {
        let yaml: String = (first..services.min(first + PER_FILE)).map(service).collect();
        node.write(&format!("services-{first}.yaml"), &yaml);
    }
    let last = format!("s{}", services - 1);
    wait_within(PATIENCE, "the services are in force", || {
        let said = node.ferromesh(&["service", "get", &last]).stdout;
        server.addresses.iter().all(|address| said.contains(&address.to_string()))
    });
}

/// The addresses of the service of this number.
fn vip(number: usize) -> [SocketAddr; 2] {
    let [.., high, middle, low] = number.to_be_bytes();
    let four = [10, 80 + high, middle, low].into();
    let six = [0xfd00, 0x80, 0, 0, 0, 0, u16::from(high), u16::from_be_bytes([middle, low])].into();
    [
        SocketAddr::new(std::net::IpAddr::V4(four), SERVICE_PORT),
        SocketAddr::new(std::net::IpAddr::V6(six), SERVICE_PORT),
    ]
}

fn service(number: usize) -> String {
    let [four, six] = vip(number).map(|vip| vip.ip());
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: s{number}, namespace: default}}\nspec:\n\
         \x20 selector: {{app: server}}\n  ipFamilyPolicy: RequireDualStack\n  clusterIP: {four}\n\
         \x20 clusterIPs: [{four}, '{six}']\n  ports: [{{port: {SERVICE_PORT}, targetPort: {PORT}}}]\n---\n"
    )
}

/// A way without anything of Ferromesh.
pub(super) struct Bare {
    /// The way.
    pub(super) way: Way,
    _namespaces: Vec<Namespace>,
}

impl Bare {
    /// Two namespaces and one veth pair.
    pub(super) fn direct() -> Self {
        let [client, server] = namespaces(["c", "s"]);
        link(&server, "eth0", SERVER, &client, "eth0", SERVER_GATEWAY);
        let way = between(&client, &server, at(SERVER));
        Self { way, _namespaces: vec![client, server] }
    }

    /// A namespace between the two that forwards, as a host does.
    pub(super) fn routed() -> Self {
        Self::translated(|_| Ok(()), at(SERVER)).expect("nothing that can fail")
    }

    /// The same, which translates the last of so many VIPs to the server by a map of nftables.
    pub(super) fn nft(services: usize) -> Result<Self, String> {
        let rules = nft_rules(services);
        Self::translated(|host| load_rules(host, &["nft", "-f", "-"], &rules), vip(services - 1))
    }

    /// The same by a rule of iptables for each VIP, the server's the last.
    pub(super) fn iptables(services: usize) -> Result<Self, String> {
        let rules = |host: &Namespace| {
            for (family, program) in ["iptables-restore", "ip6tables-restore"].into_iter().enumerate() {
                load_rules(host, &[program], &iptables_rules(services, family))?;
            }
            Ok(())
        };
        Self::translated(rules, vip(services - 1))
    }

    fn translated(
        rules: impl FnOnce(&Namespace) -> Result<(), String>,
        to: [SocketAddr; 2],
    ) -> Result<Self, String> {
        let [client, host, server] = namespaces(["c", "h", "s"]);
        // Before there are devices: those to come take it over.
        for key in ["net/ipv4/conf/all/forwarding", "net/ipv6/conf/all/forwarding"] {
            host.set(key, "1");
        }
        link(&client, "eth0", CLIENT, &host, "client", CLIENT_GATEWAY);
        link(&server, "eth0", SERVER, &host, "server", SERVER_GATEWAY);
        for (namespace, gateways) in [(&client, CLIENT_GATEWAY), (&server, SERVER_GATEWAY)] {
            for (family, gateway) in ["-4", "-6"].into_iter().zip(gateways) {
                namespace.ip(&format!("{family} route add default via {gateway}"));
            }
        }
        rules(&host)?;
        let way = between(&client, &server, to);
        Ok(Self { way, _namespaces: vec![client, host, server] })
    }
}

fn namespaces<const N: usize>(roles: [&str; N]) -> [Namespace; N] {
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    roles.map(|role| Namespace::new(format!("fmlab{}w{number}{role}", std::process::id())))
}

/// A veth pair whose ends know each other, as a workload and its node do: nobody asks who has an address meanwhile.
fn link(one: &Namespace, end: &str, own: [&str; 2], other: &Namespace, far: &str, others: [&str; 2]) {
    let (mac, far_mac) = ("02:00:00:00:00:02", "02:00:00:00:00:01");
    let peer = other.path();
    let peer = peer.file_name().expect("a name").display();
    one.ip(&format!("link add {end} address {mac} type veth peer name {far} address {far_mac} netns {peer}"));
    for (namespace, device, [four, six]) in [(one, end, own), (other, far, others)] {
        namespace.ip(&format!("address add {four}/24 dev {device}"));
        namespace.ip(&format!("address add {six}/64 dev {device} nodad"));
        namespace.ip(&format!("link set {device} up"));
    }
    for (namespace, device, addresses, mac) in [(one, end, others, far_mac), (other, far, own, mac)] {
        for address in addresses {
            namespace.ip(&format!("neigh replace {address} lladdr {mac} dev {device} nud permanent"));
        }
    }
}

fn between(client: &Namespace, server: &Namespace, to: [SocketAddr; 2]) -> Way {
    let load = binary("load");
    Way::new(&mut client.command(&load), &mut server.command(&load), to)
}

fn at(addresses: [&str; 2]) -> [SocketAddr; 2] {
    addresses.map(|address| SocketAddr::new(address.parse().expect("an address"), PORT))
}

/// Both families: a map from VIP and port to the server's.
fn nft_rules(services: usize) -> String {
    let mut rules = String::new();
    for (family, (ip, kind)) in [("ip", "ipv4_addr"), ("ip6", "ipv6_addr")].into_iter().enumerate() {
        let row =
            |number| format!("{} . {SERVICE_PORT} : {} . {PORT}", vip(number)[family].ip(), SERVER[family]);
        let elements: Vec<String> = (0..services).map(row).collect();
        rules += &format!(
            "table {ip} services {{\n map backends {{\n  type {kind} . inet_service : {kind} . inet_service\n\
             \x20 elements = {{ {} }}\n }}\n chain prerouting {{\n  type nat hook prerouting priority dstnat\n\
             \x20 meta l4proto tcp dnat {ip} to {ip} daddr . tcp dport map @backends\n }}\n}}\n",
            elements.join(",\n")
        );
    }
    rules
}

fn iptables_rules(services: usize, family: usize) -> String {
    let server = at(SERVER)[family];
    let row = |number| {
        let vip = vip(number)[family].ip();
        format!(
            "-A PREROUTING -d {vip} -p tcp -m tcp --dport {SERVICE_PORT} -j DNAT --to-destination {server}\n"
        )
    };
    let rows: String = (0..services).map(row).collect();
    format!("*nat\n{rows}COMMIT\n")
}

/// Feeds rules to a program in a namespace.
fn load_rules(namespace: &Namespace, words: &[&str], rules: &str) -> Result<(), String> {
    let [program, arguments @ ..] = words else { unreachable!("a program is named") };
    if !installed(program) {
        return Err(format!("no {}", program.trim_end_matches("-restore")));
    }
    let mut command = namespace.command(program);
    command.args(arguments).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("{program}: {error}"))?;
    let mut input = child.stdin.take().expect("stdin is piped");
    // What stops it from reading on is told by its end.
    let _ = std::io::Write::write_all(&mut input, rules.as_bytes());
    drop(input);
    let output = child.wait_with_output().map_err(|error| format!("{program}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("{program}: {}", said.lines().next().unwrap_or("failed")))
    }
}

fn installed(program: &str) -> bool {
    let silent = || Stdio::null();
    Command::new(program).arg("--version").stdout(silent()).stderr(silent()).status().is_ok()
}
