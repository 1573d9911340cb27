//! What is beyond a node: a router, and behind it a host that knows the node's own addresses and no pool.
//!
//! A packet that leaves the node with a workload's address is never answered: the router has no route back. The link
//! behind the router can be narrow, and only the router knows: it says so by ICMP, as routers do.

use std::net::IpAddr;

use super::command::Session;
use super::namespace::Namespace;
use super::node::binary;

/// The node's own addresses on the link to the router.
pub const UPLINK: [&str; 2] = ["192.0.2.2", "2001:db8:2::2"];
/// The router's, on the node's side and on the other.
const NODE_GATEWAY: [&str; 2] = ["192.0.2.1", "2001:db8:2::1"];
const HOST_GATEWAY: [&str; 2] = ["198.51.100.1", "2001:db8:51::1"];
/// The outside host's.
const HOST: [&str; 2] = ["198.51.100.2", "2001:db8:51::2"];

/// Where the router lets nobody go, and says so.
const PROHIBITED: [&str; 2] = ["203.0.113.0/24", "2001:db8:bad::/48"];

/// Router and outside host of one node. Gone when dropped; servers on it end before.
pub struct Outside {
    router: Namespace,
    host: Namespace,
}

impl Outside {
    /// Builds both and leads the node's default routes there. Every link carries 1500 bytes.
    pub(super) fn new(node: &Namespace, name: &str) -> Self {
        let outside =
            Self { router: Namespace::new(format!("{name}r")), host: Namespace::new(format!("{name}o")) };
        let Self { router, host } = &outside;
        // Before there are devices: those to come take it over.
        for key in ["net/ipv4/conf/all/forwarding", "net/ipv6/conf/all/forwarding"] {
            router.set(key, "1");
        }
        // Who forwards asks for neighbours from its link-local address, which for two seconds would only be tried out.
        for namespace in [node, router, host] {
            namespace.set("net/ipv6/conf/default/accept_dad", "0");
        }
        join(node, "eth0", router, "node");
        join(router, "far", host, "eth0");
        address(node, "eth0", &UPLINK);
        address(router, "node", &NODE_GATEWAY);
        address(router, "far", &HOST_GATEWAY);
        address(host, "eth0", &HOST);
        for (namespace, [v4, v6]) in [(node, NODE_GATEWAY), (host, HOST_GATEWAY)] {
            namespace.ip(&format!("-4 route add default via {v4}"));
            namespace.ip(&format!("-6 route add default via {v6}"));
        }
        for prefix in PROHIBITED {
            router.ip(&format!("route add prohibit {prefix}"));
        }
        outside
    }

    /// From now on the last link carries at most `mtu` bytes. The outside host knows, and says nothing of it to those
    /// who connect (its MSS stays that of a wide link), so that they depend on the router's word.
    pub fn narrow(&self, mtu: u32) {
        self.router.ip(&format!("link set far mtu {mtu}"));
        for (family, gateway) in ["-4", "-6"].into_iter().zip(HOST_GATEWAY) {
            self.host.ip(&format!("{family} route replace default via {gateway} mtu {mtu} advmss 1400"));
        }
    }

    /// The router learns that these prefixes, one of each family, are behind the node.
    pub fn learn(&self, prefixes: [&str; 2]) {
        for (prefix, node) in prefixes.into_iter().zip(UPLINK) {
            self.router.ip(&format!("route add {prefix} via {node}"));
        }
    }

    /// Addresses of the outside host.
    pub fn addresses(&self) -> [IpAddr; 2] {
        HOST.map(|address| address.parse().expect("an address"))
    }

    /// A program on the outside host.
    pub fn run(&self, program: impl AsRef<std::path::Path>) -> std::process::Command {
        self.host.command(program)
    }

    /// A mode of `probe` that serves, on the outside host.
    #[track_caller]
    pub fn serve(&self, arguments: &[&str]) -> Session {
        let session = Session::start(self.host.command(binary("probe")).args(arguments));
        assert_eq!(session.line(), "serving");
        session
    }
}

fn join(a: &Namespace, end: &str, b: &Namespace, other: &str) {
    let path = b.path();
    let peer = path.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
    a.ip(&format!("link add {end} type veth peer name {other} netns {peer}"));
    for (namespace, end) in [(a, end), (b, other)] {
        namespace.ip(&format!("link set {end} up"));
    }
}

fn address(namespace: &Namespace, device: &str, addresses: &[&str; 2]) {
    namespace.ip(&format!("address add {}/24 dev {device}", addresses[0]));
    namespace.ip(&format!("address add {}/64 dev {device} nodad", addresses[1]));
}
