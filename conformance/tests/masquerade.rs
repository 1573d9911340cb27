//! The way out: workloads leave the node under its address, and what belongs to them finds its way back. Needs root and
//! the kernel.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a scenario that cannot go on has failed")]

mod service;

use std::net::{IpAddr, SocketAddr};

use conformance::lab::{Node, Outcome, Session, UPLINK, binary, wait_until};
use service::{CLIENT, asker, call, service, vip};

const HOWS: [&str; 3] = ["tcp", "udp", "unconnected"];

/// The outside host's sockets at a port.
fn outside(node: &Node, port: u16) -> [SocketAddr; 2] {
    node.outside().addresses().map(|address| SocketAddr::new(address, port))
}

fn uplink() -> [IpAddr; 2] {
    UPLINK.map(|address| address.parse().unwrap())
}

/// Whom the witness saw.
fn heard(said: &str) -> SocketAddr {
    let heard = said.split(' ').next_back().and_then(|seen| seen.parse().ok());
    heard.unwrap_or_else(|| panic!("no answer: {said}"))
}

#[test]
fn the_outside_sees_the_nodes_address_and_a_port_of_the_range_and_its_answers_come_back() {
    let node = Node::up_with_outside(", masqueradePorts: 50000-50999");
    let _witness = node.outside().serve(&["witness", "53", "out"]);
    let mut client = asker(&node, "client", CLIENT);
    for (to, uplink) in outside(&node, 53).into_iter().zip(uplink()) {
        for how in HOWS {
            let said = client.session.ask(&format!("call {how} {to}"));
            assert!(said.contains(&format!("from={to} heard=out ")), "{how} {to}: {said}");
            let seen = heard(&said);
            assert_eq!(seen.ip(), uplink, "{how} {to}");
            assert!((50_000..=50_999).contains(&seen.port()), "{how} {to}: {seen}");
            let own = heard(&call(&mut node.inside(binary("probe")), how, to));
            assert_eq!(own.ip(), uplink, "the node itself");
            assert!(!(50_000..=50_999).contains(&own.port()), "the node's own ports are others: {own}");
        }
    }
    let rows = node.json(&["ct", "list", "--ip", &client.addresses[0].to_string(), "--protocol", "udp"]);
    let row =
        rows.as_array().unwrap().iter().find(|row| row["destination"] == outside(&node, 53)[0].to_string());
    let masqueraded = row.unwrap()["masqueraded"].as_str().unwrap_or_else(|| panic!("{rows}")).to_owned();
    assert!(masqueraded.starts_with("192.0.2.2:50"), "{masqueraded}");
    let status = node.ferromesh(&["status"]).success();
    assert!(status.contains("IPv4 and IPv6 on eth0, ports 50000-50999"), "{status}");
}

#[test]
fn ping_works_from_workloads_and_from_the_node() {
    let node = Node::up_with_outside("");
    let _client = asker(&node, "client", CLIENT);
    for to in node.outside().addresses() {
        let to = to.to_string();
        for (who, mut probe) in [
            ("a workload", node.beside("client", binary("probe"))),
            ("the node", node.inside(binary("probe"))),
        ] {
            assert_eq!(Outcome::of(probe.args(["ping", &to])).stdout, "answered", "{who} to {to}");
        }
    }
}

#[test]
fn errors_of_the_outside_reach_the_workload_they_are_about() {
    let node = Node::up_with_outside("");
    let mut client = asker(&node, "client", CLIENT);
    for to in outside(&node, 9) {
        assert_eq!(client.session.ask(&format!("udp {to}")), "refused", "port unreachable: {to}");
        assert_eq!(client.session.ask(&format!("tcp {to}")), "refused", "a reset: {to}");
    }
    // Of the router itself, as Linux tells of them (`icmp_err_convert`, `icmpv6_err_convert`).
    for (nobody, told) in [("203.0.113.1:9", "unreachable"), ("[2001:db8:bad::1]:9", "prohibited")] {
        assert_eq!(client.session.ask(&format!("udp {nobody}")), told, "{nobody}");
    }
}

#[test]
fn a_narrow_link_beyond_the_node_is_learned_through_it() {
    let node = Node::up_with_outside("");
    let _echo = node.outside().serve(&["serve", "7"]);
    node.outside().narrow(1300);
    for (n, to) in outside(&node, 7).into_iter().enumerate() {
        let probe = binary("probe");
        let bulk = [probe.to_str().unwrap(), "bulk", &to.to_string(), "300000"].map(str::to_owned);
        let said = node.run(&format!("client-{n}"), CLIENT, &bulk.each_ref().map(String::as_str));
        assert_eq!(said.stdout, "answered", "{to}: {}", said.stderr);
    }
}

#[test]
fn destinations_that_are_excepted_see_workloads_own_addresses() {
    let node = Node::up_with_outside(", masqueradeExceptions: [198.51.100.0/24, '2001:db8:51::/64']");
    node.outside().learn(["10.77.0.0/24", "fd00:77::/112"]);
    let _witness = node.outside().serve(&["witness", "53", "out"]);
    let mut client = asker(&node, "client", CLIENT);
    for (to, own) in outside(&node, 53).into_iter().zip(client.addresses) {
        for how in HOWS {
            let said = client.session.ask(&format!("call {how} {to}"));
            assert_eq!(heard(&said).ip(), own, "{how} {to}: {said}");
        }
    }
}

#[test]
fn without_masquerading_nothing_comes_back() {
    let node = Node::up_with_outside(", ipv4Masquerade: false, ipv6Masquerade: false");
    let _witness = node.outside().serve(&["witness", "53", "out"]);
    let mut client = asker(&node, "client", CLIENT);
    for to in outside(&node, 53) {
        assert_eq!(
            client.session.ask(&format!("call udp {to}")),
            "silent",
            "the lab's outside knows no pool"
        );
    }
}

#[test]
fn two_workloads_with_the_same_port_are_told_apart() {
    let node = Node::up_with_outside("");
    let _witness = node.outside().serve(&["witness", "53", "out"]);
    let mut clients = [asker(&node, "one", CLIENT), asker(&node, "two", CLIENT)];
    for to in outside(&node, 53) {
        for how in HOWS {
            let line = format!("call {how} {to} 4000");
            let ports = clients.each_mut().map(|client| heard(&client.session.ask(&line)).port());
            assert_ne!(ports[0], ports[1], "{how} {to}");
        }
    }
}

#[test]
fn when_ports_run_out_the_drop_is_counted_and_others_go_on() {
    let node = Node::up_with_outside(", masqueradePorts: 60000-60003");
    let _echo = [7, 8].map(|port| node.outside().serve(&["serve", &port.to_string()]));
    let probe = binary("probe");
    for (n, (to, other)) in outside(&node, 7).into_iter().zip(outside(&node, 8)).enumerate() {
        let name = format!("greedy-{n}");
        let mut greedy = Session::start(&mut node.run_command(
            &name,
            CLIENT,
            &[probe.to_str().unwrap(), "many", &to.to_string(), "6"],
        ));
        assert_eq!(greedy.line(), "answered 4 of 6", "{to}");
        wait_until("the drop is told with its reason", || {
            let drops = ["observe", "--verdict", "DROPPED", "--pod", &name];
            node.ferromesh(&drops).success().contains("No mapping for NAT masquerade DROPPED")
        });
        let mut client = asker(&node, &format!("modest-{n}"), CLIENT);
        assert_eq!(client.session.ask(&format!("udp {other}")), "answered", "another destination");
        assert_eq!(client.session.ask(&format!("tcp {to}")), "answered", "another protocol");
        greedy.kill();
    }
    let metrics = Outcome::of(node.inside("curl").args(["-sS", "http://127.0.0.1:9962/metrics"])).success();
    let counted =
        metrics.lines().any(|line| line.contains("No mapping for NAT masquerade") && !line.ends_with(" 0"));
    assert!(counted, "{metrics}");
}

#[test]
fn a_service_whose_backend_is_outside_is_called_through_both() {
    let node = Node::up_with_outside("");
    let _witness = node.outside().serve(&["witness", "8080", "out"]);
    let slice = |kind: &str, address: IpAddr| {
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: {}, namespace: default, labels: {{kubernetes.io/service-name: far}}}}\n\
             addressType: {kind}\nports: [{{name: tcp, port: 8080}}, {{name: udp, port: 8080, protocol: UDP}}]\n\
             endpoints: [{{addresses: ['{address}']}}]\n",
            kind.to_lowercase()
        )
    };
    let [v4, v6] = node.outside().addresses();
    let yaml = service("far", 1, "").replace("  selector: {app: far}\n", "");
    node.apply("far.yaml", &(yaml + &slice("IPv4", v4) + &slice("IPv6", v6)));
    let mut client = asker(&node, "client", CLIENT);
    for (vip, uplink) in vip(1).into_iter().zip(uplink()) {
        for how in HOWS {
            let by_socket = client.session.ask(&format!("call {how} {vip}"));
            let by_packet = call(&mut node.beside("client", binary("probe")), how, vip);
            for said in [by_socket, by_packet] {
                assert!(said.contains(&format!("from={vip} heard=out ")), "{how} {vip}: {said}");
                assert_eq!(heard(&said).ip(), uplink, "{how} {vip}");
            }
        }
    }
}

#[test]
fn nobody_outside_reaches_a_workload_that_has_not_called() {
    let node = Node::up_with_outside("");
    let _witness = node.outside().serve(&["witness", "53", "out"]);
    let mut client = asker(&node, "client", CLIENT);
    for to in outside(&node, 53) {
        let seen = heard(&client.session.ask(&format!("call udp {to} 4000")));
        // From another port of the host that was called: not an answer.
        let said = Outcome::of(node.outside().run(binary("probe")).args(["udp", &seen.to_string()])).stdout;
        assert!(["refused", "silent"].contains(&said.as_str()), "{seen}: {said}");
        assert!(
            client.session.ask(&format!("call udp {to} 4000")).contains("heard=out "),
            "the client goes on"
        );
    }
}

/// A refusal has no connection by which the device could know whose it is.
#[test]
fn who_is_outside_hears_that_a_workload_wants_a_proof_of_him() {
    let node = Node::up_with_outside("");
    node.outside().learn(["10.77.0.0/24", "fd00:77::/112"]);
    let server = node.serve("server", &["app=server"], 80);
    node.apply(
        "proven.yaml",
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: server, namespace: default}\n\
         spec:\n  endpointSelector: {matchLabels: {app: server}}\n  ingress:\n\
         \x20 - fromEntities: [all]\n    authentication: {mode: required}\n",
    );
    for (address, told) in server.addresses.into_iter().zip(["unreachable", "prohibited"]) {
        let to = SocketAddr::new(address, 80).to_string();
        let call = |how: &str| Outcome::of(node.outside().run(binary("probe")).args([how, &to])).stdout;
        assert_eq!(call("tcp"), "refused", "{to}");
        assert_eq!(call("udp"), told, "{to}");
    }
}
