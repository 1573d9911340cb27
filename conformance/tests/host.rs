//! The node itself as a peer: whoever may not talk to it must not reach it under any of its addresses. Needs root and
//! the kernel.

use conformance::lab::{Node, Outcome, wait_until};

const WORLD_ONLY: &str = "
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: world-only}
spec:
  endpointSelector: {}
  egress: [{toEntities: [world]}]
";

#[test]
fn an_address_the_host_gets_later_is_the_host_and_so_are_its_broadcast_and_anycast_addresses() {
    let node = Node::up();
    node.apply("world-only.yaml", WORLD_ONLY);
    let ip = |arguments: &str| Outcome::of(node.inside("ip").args(arguments.split(' '))).success();
    let revision = node.revision();
    ip("link add ext0 type veth peer name ext1");
    ip("link set ext0 up");
    ip("link set ext1 up");
    ip("address add 192.0.2.10/24 broadcast + dev ext0");
    ip("address add 2001:db8::10/64 nodad dev ext0");
    wait_until("the addresses are known", || node.revision() > revision);
    for to in ["192.0.2.10", "192.0.2.255", "2001:db8::10", "2001:db8::"] {
        let to = to.parse().expect("an address");
        wait_until(&format!("{to} is the host's"), || {
            assert_eq!(node.attempt("xwing", &["org=alliance"], "udp", to, 5300), "silent");
            let lines = node.ferromesh(&["observe", "--verdict", "DROPPED", "--last", "100"]).success();
            lines.lines().any(|line| line.contains(&to.to_string()) && line.contains("(host) Policy denied"))
        });
    }
}
