//! Services on one node: real workloads call real backends by VIP and by name, both families. Needs root and the kernel.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a scenario that cannot go on has failed")]

mod service;

use std::net::IpAddr;

use conformance::lab::{Node, Outcome, Session, binary, wait_until};
use service::{CLIENT, WEB, asker, call, host_calls, mapped, service, vip, witness};

#[test]
fn workloads_and_the_host_call_a_vip_and_no_socket_shows_the_backend() {
    let node = Node::up();
    let _web = witness(&node, "web", WEB);
    node.apply("web.yaml", &service("web", 1, ""));
    let mut client = asker(&node, "client", CLIENT);
    let gateways: [IpAddr; 2] = ["10.77.0.1", "fd00:77::1"].map(|address| address.parse().unwrap());
    for (family, vip) in vip(1).into_iter().enumerate() {
        for how in ["tcp", "udp", "unconnected"] {
            let peer = if how == "unconnected" { "none".to_owned() } else { vip.to_string() };
            let shown = format!("peer={peer} from={vip} heard=web ");
            let said = client.session.ask(&format!("call {how} {vip}"));
            assert!(said.starts_with(&format!("{shown}{}", service::at(client.addresses[family]))), "{said}");
            let said = host_calls(&node, how, vip);
            assert!(said.starts_with(&format!("{shown}{}", service::at(gateways[family]))), "host: {said}");
        }
    }
}

#[test]
fn a_mapped_address_on_a_dual_stack_socket_is_the_ipv4_service() {
    let node = Node::up();
    let _web = witness(&node, "web", WEB);
    node.apply("web.yaml", &service("web", 1, ""));
    let mut client = asker(&node, "client", CLIENT);
    let vip = mapped(vip(1)[0]);
    for how in ["tcp", "udp", "unconnected"] {
        let peer = if how == "unconnected" { "none".to_owned() } else { vip.to_string() };
        let said = client.session.ask(&format!("call {how} {vip}"));
        let expected = format!("peer={peer} from={vip} heard=web {}", service::at(client.addresses[0]));
        assert!(said.starts_with(&expected), "{said}");
    }
}

#[test]
fn a_capture_in_the_workload_shows_the_backend_and_never_the_vip() {
    let node = Node::up();
    let web = witness(&node, "web", WEB);
    node.apply("web.yaml", &service("web", 1, ""));
    let mut client = asker(&node, "client", CLIENT);
    let capture = Session::start(node.beside("client", binary("probe")).arg("capture"));
    assert_eq!(capture.line(), "serving");
    for vip in vip(1) {
        for how in ["tcp", "udp", "unconnected"] {
            let said = client.session.ask(&format!("call {how} {vip}"));
            assert!(said.contains("heard=web "), "{said}");
        }
    }
    // The last one, to know when all have been seen.
    let backends = web.addresses.map(|address| std::net::SocketAddr::new(address, 8080).to_string());
    client.session.ask(&format!("call udp {} 5555", backends[0]));
    let mut seen = [0; 2];
    loop {
        let line = capture.line();
        if line.contains(":5555") {
            break;
        }
        let which = backends.iter().position(|backend| line.contains(backend));
        seen[which.unwrap_or_else(|| panic!("no backend: {line}"))] += 1;
    }
    assert!(seen.iter().all(|seen| *seen >= 4 + 6), "two datagrams each way, and a connection: {seen:?}");
}

#[test]
fn names_lead_to_services_from_each_search_domain_and_curl_gets_an_answer() {
    let node = Node::up();
    let web = witness(&node, "web", WEB);
    let yaml = service("web", 1, "")
        + "---\n"
        + &service("bare", 2, "  clusterIP: None\n").replace("app: bare", "app: web");
    node.apply("web.yaml", &yaml);
    let mut client = asker(&node, "client", CLIENT);
    let [v4, v6] = vip(1).map(|vip| vip.ip().to_string());
    for name in ["web", "web.default", "web.default.svc", "web.default.svc.cluster.local"] {
        assert_eq!(client.session.ask(&format!("resolve {name}")), format!("{v4} {v6}"), "{name}");
    }
    let [v4, v6] = web.addresses;
    assert_eq!(
        client.session.ask("resolve bare"),
        format!("{v4} {v6}"),
        "headless: the endpoints themselves"
    );
    assert_eq!(client.session.ask("resolve yoda"), "unresolved");
    for family in ["-4", "-6"] {
        let curl = ["curl", family, "-sS", "--http0.9", "--max-time", "5", "http://web/"];
        let said = node.run("curl", CLIENT, &curl).success();
        assert!(said.starts_with("web "), "{said}");
    }
}

#[test]
fn without_endpoints_or_at_a_port_that_is_none_a_call_is_refused_at_once() {
    let node = Node::up();
    let _web = witness(&node, "web", WEB);
    node.apply("web.yaml", &(service("empty", 1, "") + "---\n" + &service("web", 2, "")));
    let mut client = asker(&node, "client", CLIENT);
    for vip in vip(1).into_iter().chain([mapped(vip(1)[0])]) {
        for how in ["tcp", "udp", "unconnected"] {
            assert_eq!(client.session.ask(&format!("call {how} {vip}")), "refused", "{how} {vip}");
            assert_eq!(host_calls(&node, how, vip), "refused", "host: {how} {vip}");
        }
    }
    for mut vip in vip(2) {
        vip.set_port(81);
        assert_eq!(client.session.ask(&format!("tcp {vip}")), "refused", "{vip}");
    }
}

#[test]
fn a_client_whose_sockets_cannot_be_seen_is_served_on_its_packets() {
    let node = Node::up();
    let _web = witness(&node, "web", WEB);
    node.apply("web.yaml", &(service("web", 1, "") + "---\n" + &service("empty", 2, "")));
    let client = asker(&node, "client", CLIENT);
    for (family, vip) in vip(1).into_iter().enumerate() {
        for how in ["tcp", "udp", "unconnected"] {
            let peer = if how == "unconnected" { "none".to_owned() } else { vip.to_string() };
            let said = call(&mut node.beside("client", binary("probe")), how, vip);
            let expected =
                format!("peer={peer} from={vip} heard=web {}", service::at(client.addresses[family]));
            assert!(said.starts_with(&expected), "{how} {vip}: {said}");
        }
    }
    for vip in vip(2) {
        for how in ["tcp", "udp"] {
            let said = call(&mut node.beside("client", binary("probe")), how, vip);
            assert_eq!(said, "refused", "{how} {vip}: without endpoints");
        }
    }
}

#[test]
fn a_workload_reaches_itself_through_its_service() {
    let node = Node::up();
    let _web = witness(&node, "web", WEB);
    node.apply("web.yaml", &service("web", 1, ""));
    for vip in vip(1) {
        for how in ["tcp", "udp", "unconnected"] {
            let peer = if how == "unconnected" { "none".to_owned() } else { vip.to_string() };
            let expected = format!("peer={peer} from={vip} heard=web ");
            for (what, mut command) in [
                ("by its sockets", node.within("web", binary("probe"))),
                ("by its packets", node.beside("web", binary("probe"))),
            ] {
                let said = call(&mut command, how, vip);
                assert!(said.starts_with(&expected), "{what}, {how} {vip}: {said}");
            }
        }
    }
}

#[test]
fn policy_judges_the_backend_whoever_was_called() {
    let node = Node::up();
    let _web = witness(&node, "web", WEB);
    node.apply("web.yaml", &service("web", 1, ""));
    node.apply(
        "policy.yaml",
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: empire-only, namespace: default}\n\
         spec:\n  endpointSelector: {matchLabels: {app: web}}\n  ingress:\n\
         \x20 - fromEndpoints: [{matchLabels: {org: empire}}]\n    toPorts: [{ports: [{port: '8080'}]}]\n",
    );
    let mut friend = asker(&node, "tiefighter", &["org=empire"]);
    let mut foe = asker(&node, "xwing", &["org=alliance"]);
    for vip in vip(1) {
        for how in ["tcp", "udp", "unconnected"] {
            let line = format!("call {how} {vip}");
            assert!(friend.session.ask(&line).contains("heard=web "), "{line}");
            assert_eq!(foe.session.ask(&line), "silent", "{line}");
            let said = call(&mut node.beside("tiefighter", binary("probe")), how, vip);
            assert!(said.contains("heard=web "), "on its packets, {line}: {said}");
            let said = call(&mut node.beside("xwing", binary("probe")), how, vip);
            assert_eq!(said, "silent", "on its packets, {line}");
        }
    }
    let dropped = node.ferromesh(&["observe", "--pod", "default/xwing", "--verdict", "DROPPED"]).success();
    assert!(dropped.contains("default/web:8080") && dropped.contains("default/empire-only"), "{dropped}");
}

#[test]
fn to_services_allows_the_backends_of_a_service_and_nobody_else() {
    let node = Node::up();
    let (_web, other) = (witness(&node, "web", WEB), witness(&node, "other", &["app=other"]));
    node.apply("web.yaml", &(service("web", 1, "") + "---\n" + &service("other", 2, "")));
    node.apply(
        "policy.yaml",
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: web-only, namespace: default}\n\
         spec:\n  endpointSelector: {matchLabels: {app: client}}\n  egress:\n\
         \x20 - toServices: [{k8sService: {serviceName: web, namespace: default}}]\n",
    );
    let mut client = asker(&node, "client", CLIENT);
    for (family, address) in other.addresses.into_iter().enumerate() {
        let direct = std::net::SocketAddr::new(address, 8080);
        assert!(client.session.ask(&format!("call tcp {}", vip(1)[family])).contains("heard=web "));
        assert_eq!(client.session.ask(&format!("call tcp {}", vip(2)[family])), "silent");
        assert_eq!(client.session.ask(&format!("call tcp {direct}")), "silent");
    }
}

#[test]
fn the_command_line_shows_services_slots_connections_and_addresses() {
    let node = Node::up();
    let web = witness(&node, "web", WEB);
    node.apply("web.yaml", &service("web", 1, ""));
    let client = asker(&node, "client", CLIENT);
    let list = node.ferromesh(&["service", "list"]).success();
    for (vip, address) in vip(1).into_iter().zip(web.addresses) {
        let backend = std::net::SocketAddr::new(address, 8080);
        assert!(list.contains(&format!("{vip}/TCP")), "{list}");
        assert!(list.contains(&format!("1 => {backend}/UDP")), "{list}");
        let slots = node.ferromesh(&["lb", "list"]).success();
        assert!(
            slots.contains(&format!("{vip}/TCP (1)")) && slots.contains(&format!("{backend}/TCP (")),
            "{slots}"
        );
    }
    call(&mut node.beside("client", binary("probe")), "tcp", vip(1)[0]);
    let rows = node.json(&["ct", "list", "--protocol", "tcp", "--ip", &client.addresses[0].to_string()]);
    let called = rows.as_array().unwrap().iter().any(|row| row["called"] == vip(1)[0].to_string());
    assert!(called, "{rows}");
    let addresses = node.ferromesh(&["ip", "list"]).success();
    assert!(addresses.contains("default/web") && addresses.contains("10.77.0.1/32"), "{addresses}");
    let status = node.json(&["status"])["services"].clone();
    assert_eq!(status, serde_json::json!({"services": 1, "frontends": 4, "backends": 2}));
    let get = node.ferromesh(&["service", "get", "web"]).success();
    assert_eq!(get.matches("Service:").count(), 4, "{get}");
}

#[test]
fn nothing_is_written_for_netfilter() {
    let node = Node::up_with_outside("");
    let _web = witness(&node, "web", WEB);
    node.apply("web.yaml", &service("web", 1, ""));
    let mut client = asker(&node, "client", CLIENT);
    assert!(client.session.ask(&format!("call tcp {}", vip(1)[0])).contains("heard=web "));
    assert_eq!(Outcome::of(node.inside(binary("probe")).arg("tables")).success(), "none");
    assert_eq!(Outcome::of(node.beside("client", binary("probe")).arg("tables")).success(), "none");
}

#[test]
fn a_broken_service_is_explained_and_harms_no_other() {
    let node = Node::up();
    let _web = witness(&node, "web", WEB);
    node.apply("web.yaml", &service("web", 1, ""));
    let broken = [
        ("usurper", service("usurper", 1, ""), "10.78.1.1"),
        ("squatter", service("squatter", 2, "").replace("10.78.1.2", "10.77.0.9"), "10.77.0.9"),
        ("port", service("port", 3, "").replace("port: 80,", "port: 70000,"), "70000"),
        ("nobody", service("nobody", 4, ""), "matches no workload"),
    ];
    for (name, yaml, told) in &broken {
        node.write(&format!("{name}.yaml"), yaml);
        wait_until(&format!("{name} is explained"), || {
            let list = node.ferromesh(&["policy", "list"]).success();
            list.lines().any(|line| line.contains(name) && line.contains(told))
        });
    }
    node.write(
        "slice.yaml",
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {name: orphan, namespace: default, labels: {kubernetes.io/service-name: gone}}\n\
         addressType: IPv4\nports: [{port: 80}]\nendpoints: [{addresses: [10.77.0.2]}]\n",
    );
    wait_until("the slice of no service is explained", || {
        let list = node.ferromesh(&["policy", "list"]).success();
        list.lines().any(|line| line.contains("orphan") && line.contains("gone"))
    });
    let mut client = asker(&node, "client", CLIENT);
    for vip in vip(1) {
        assert!(client.session.ask(&format!("call tcp {vip}")).contains("heard=web "), "{vip}");
    }
}
