//! Backends come, go, drain and die, and so does the agent: what becomes of those who call. Needs root and the kernel.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a scenario that cannot go on has failed")]

mod service;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use conformance::lab::{Node, binary};
use service::{CLIENT, WEB, asker, backends, service, sockets, vip, who, witness};

#[test]
fn with_affinity_a_client_returns_to_its_backend_and_without_it_does_not() {
    let node = Node::up();
    let _web: Vec<_> = (0..3).map(|n| witness(&node, &format!("web-{n}"), WEB)).collect();
    let yaml = service("web", 1, "")
        + "---\n"
        + &service("loyal", 2, "  sessionAffinity: ClientIP\n").replace("app: loyal", "app: web");
    node.apply("web.yaml", &yaml);
    let mut client = asker(&node, "client", CLIENT);
    for family in [0, 1] {
        let mut answers = |number| -> BTreeSet<String> {
            let line = format!("call tcp {}", vip(number)[family]);
            (0..30).map(|_| who(&client.session.ask(&line))).collect()
        };
        assert_eq!(answers(2).len(), 1, "ClientIP");
        // 30 calls miss one of three backends with a probability of less than 2^-16.
        assert_eq!(answers(1).len(), 3, "any");
    }
}

#[test]
fn backends_come_and_go_under_load_without_a_failed_connect() {
    let node = Node::up();
    let _a = node.serve("a", &["app=web", "side=a"], 8080);
    let _b = node.serve("b", &["app=web", "side=b"], 8080);
    let side = |side: &str| service("web", 1, "").replace("{app: web}", &format!("{{app: web{side}}}"));
    node.apply("web.yaml", &side(""));
    let probe = binary("probe");
    let probe = probe.to_str().unwrap();
    let mut steady: Vec<_> = vip(1)
        .iter()
        .enumerate()
        .map(|(n, vip)| node.start(&format!("steady-{n}"), CLIENT, &[probe, "steady", &vip.to_string()]))
        .collect();
    for turn in 0..30 {
        node.apply("web.yaml", &side([", side: a", ", side: b", ""][turn % 3]));
    }
    for client in &mut steady {
        let said = client.session.ask("how many");
        assert!(said.ends_with(" good, 0 bad") && !said.starts_with("0 "), "{said}");
    }
}

#[test]
fn udp_clients_of_a_backend_that_left_are_told_at_once_and_nobody_else() {
    let node = Node::up();
    let a = node.serve("a", &["app=web", "side=a"], 8080);
    let _other = node.serve("b", &["app=other"], 8080);
    let yaml = |selector: &str| {
        service("web", 1, "").replace("{app: web}", selector) + "---\n" + &service("other", 2, "")
    };
    node.apply("web.yaml", &yaml("{app: web}"));
    let hold = |name: &str, mode: &str, to: SocketAddr| {
        let probe = binary("probe");
        let mut held = node.start(name, CLIENT, &[probe.to_str().unwrap(), mode, &to.to_string()]).session;
        assert_eq!(held.ask("first"), "answered", "{name}");
        held
    };
    for family in [0, 1] {
        let name = |what: &str| format!("{what}-{family}");
        let direct = SocketAddr::new(a.addresses[family], 8080);
        let ended = hold(&name("ended"), "hold-udp", vip(1)[family]);
        let mut others = [
            hold(&name("other-service"), "hold-udp", vip(2)[family]),
            hold(&name("no-service"), "hold-udp", direct),
            hold(&name("tcp"), "hold", vip(1)[family]),
        ];
        node.apply("web.yaml", &yaml("{app: web, side: none}"));
        assert_eq!(ended.line(), "aborted", "its backend left the service");
        for other in &mut others {
            assert_eq!(other.ask("second"), "answered");
        }
        node.apply("web.yaml", &yaml("{app: web}"));
    }
}

#[test]
fn clients_of_an_endpoint_that_is_gone_are_told() {
    let node = Node::up();
    let a = node.serve("a", WEB, 8080);
    node.apply("web.yaml", &service("web", 1, ""));
    let probe = binary("probe");
    let probe = probe.to_str().unwrap();
    let mut clients: Vec<_> = vip(1)
        .iter()
        .flat_map(|vip| [("hold-udp", vip), ("hold", vip)])
        .enumerate()
        .map(|(n, (mode, vip))| {
            (mode, node.start(&format!("c-{n}"), CLIENT, &[probe, mode, &vip.to_string()]))
        })
        .collect();
    for (_, client) in &mut clients {
        assert_eq!(client.session.ask("first"), "answered");
    }
    drop(a);
    for (mode, client) in &mut clients {
        match *mode {
            "hold-udp" => assert_eq!(client.session.line(), "aborted"),
            // Its own end may have said so first.
            _ => assert!(["aborted", "reset"].contains(&client.session.ask("second").as_str())),
        }
    }
}

#[test]
fn a_draining_endpoint_keeps_its_connections_and_gets_no_new_ones() {
    let node = Node::up();
    let (a, b) = (node.serve("a", &[], 8080), node.serve("b", &[], 8080));
    let yaml = |conditions: &str| {
        let slice = |family: usize, kind: &str| {
            let [a, b] = [&a, &b].map(|workload| workload.addresses[family]);
            format!(
                "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                 metadata: {{name: web-{kind}, namespace: default, labels: {{kubernetes.io/service-name: web}}}}\n\
                 addressType: {kind}\nports: [{{name: tcp, port: 8080}}, {{name: udp, port: 8080, protocol: UDP}}]\n\
                 endpoints:\n- {{addresses: ['{a}']{conditions}}}\n- {{addresses: ['{b}'], conditions: {{ready: false}}}}\n"
            )
            .replace("web-IPv", "web-ipv")
        };
        service("web", 1, "").replace("  selector: {app: web}\n", "") + &slice(0, "IPv4") + &slice(1, "IPv6")
    };
    node.apply("web.yaml", &yaml(""));
    let probe = binary("probe");
    let probe = probe.to_str().unwrap();
    let mut held: Vec<_> = vip(1)
        .iter()
        .flat_map(|vip| [("hold-udp", vip), ("hold", vip)])
        .enumerate()
        .map(|(n, (mode, vip))| node.start(&format!("c-{n}"), CLIENT, &[probe, mode, &vip.to_string()]))
        .collect();
    for client in &mut held {
        assert_eq!(client.session.ask("first"), "answered");
    }
    let draining = ", conditions: {ready: false, serving: true, terminating: true}";
    node.apply(
        "web.yaml",
        &yaml(draining).replace("conditions: {ready: false}}", "conditions: {ready: true}}"),
    );
    assert_eq!(backends(&node, "web", "draining"), sockets(&a.addresses));
    assert_eq!(backends(&node, "web", "backends"), sockets(&b.addresses));
    for client in &mut held {
        assert_eq!(client.session.ask("second"), "answered", "it drains: what it has it keeps");
    }
    drop(b);
    let mut late = asker(&node, "late", CLIENT);
    for vip in vip(1) {
        assert_ne!(
            late.session.ask(&format!("tcp {vip}")),
            "answered",
            "nobody new goes to the draining one"
        );
    }
}

/// Services beside the one that answers.
const MANY: usize = 10_000;

/// So many services, each answered by `app=web`, in files as large as are read.
fn many(port: u16) -> [(String, String); 4] {
    let one = |n: usize| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: many-{n}, namespace: default}}\nspec: {{clusterIP: \
             10.78.{}.{}, selector: {{app: web}}, ports: [{{port: 80, targetPort: {port}}}]}}\n---\n",
            100 + n / 200,
            1 + n % 200
        )
    };
    std::array::from_fn(|file| {
        let numbers = (0..MANY).skip(file * MANY / 4).take(MANY / 4);
        (format!("many-{file}.yaml"), numbers.map(one).collect())
    })
}

/// What the kernel has: frontend → number and backends; each slot named once.
fn in_kernel(node: &Node) -> BTreeMap<String, (u64, BTreeSet<String>)> {
    let rows = node.json(&["lb", "list"]);
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let row = |row: &serde_json::Value| {
        let slots = row["slots"].as_array().unwrap();
        let backends: BTreeSet<_> = slots.iter().map(|slot| text(&slot[1])).collect();
        assert_eq!(backends.len(), slots.len(), "{row}");
        (text(&row["frontend"]), (row["id"].as_u64().unwrap(), backends))
    };
    rows.as_array().unwrap().iter().map(row).collect()
}

/// What it should have, by the plan.
fn planned(node: &Node) -> BTreeMap<String, (u64, BTreeSet<String>)> {
    let rows = node.json(&["service", "list"]);
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let row = |row: &serde_json::Value| {
        let backends = row["backends"].as_array().unwrap().iter().map(text).collect();
        (text(&row["frontend"]), (row["id"].as_u64().unwrap(), backends))
    };
    rows.as_array().unwrap().iter().map(row).collect()
}

#[test]
fn an_agent_killed_in_the_middle_of_ten_thousand_services_leaves_what_the_next_makes_whole() {
    let mut node = Node::up();
    let _web = node.serve("web", WEB, 8080);
    node.apply("web.yaml", &service("web", 1, ""));
    let mut client = asker(&node, "client", CLIENT);
    let started = Instant::now();
    for (file, yaml) in many(8080) {
        node.apply(&file, &yaml);
    }
    let whole = started.elapsed();
    // Edits of all of them, each cut off somewhere between its first and its last moment.
    for (turn, part) in [5, 3, 6, 4, 7].into_iter().enumerate() {
        for (file, yaml) in many(if turn % 2 == 0 { 9090 } else { 8080 }) {
            node.write(&file, &yaml);
        }
        std::thread::park_timeout(whole.mul_f32(part as f32 / 8.0).max(Duration::from_millis(1)));
        node.kill_agent();
        for vip in vip(1) {
            assert_eq!(
                client.session.ask(&format!("tcp {vip}")),
                "answered",
                "the others do not notice, {vip}"
            );
        }
        node.start_agent();
        let (kernel, plan) = (in_kernel(&node), planned(&node));
        assert_eq!(kernel.len(), MANY + 4);
        assert!(kernel == plan, "turn {turn}: the tables are the plan");
    }
    for (file, _) in many(8080) {
        node.withdraw(&file);
    }
    assert_eq!(in_kernel(&node).len(), 4);
}
