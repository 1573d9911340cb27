//! T55: there is no room any more for packets that wait.
//!
//! `server` and all clients on the first node; `absent` on the second, which is cut off before anybody has proven himself:
//! whoever calls it waits in vain, and is refused for a while. Nobody is proven ahead.

use std::net::{IpAddr, SocketAddr};

use conformance::lab::{Mesh, Node, REQUIRED_BY_CALLER, Session, Workload, binary, wait_until};
use serde_json::Value;

use crate::scene::{asker, known, proven, stay};

const FULL: &str = "Too many packets wait for authentication";

struct Scene {
    mesh: Mesh,
    server: Workload,
    absent: Workload,
}

impl Scene {
    fn with(clients: &[String]) -> Self {
        let mesh = Mesh::up(2, ", authenticationAhead: 0, authenticationGrace: 2s");
        let place = |name: &str, app: &str, node: u8| {
            format!(
                "---\napiVersion: ferromesh.io/v1alpha1\nkind: Workload\n\
                 metadata: {{name: {name}, namespace: default, labels: {{app: {app}}}}}\nspec: {{node: node-{node}}}\n"
            )
        };
        let clients: String = clients.iter().map(|name| place(name, "client", 0)).collect();
        mesh.apply(
            "workloads.yaml",
            &(place("server", "server", 0) + &place("absent", "server", 1) + &clients),
        );
        let server = mesh.nodes[0].serve("server", &[], 80);
        let absent = mesh.nodes[1].serve("absent", &[], 80);
        known(&mesh.nodes[0], &absent);
        mesh.apply("proven.yaml", REQUIRED_BY_CALLER);
        mesh.partition(1, true);
        Self { mesh, server, absent }
    }

    fn node(&self) -> &Node {
        &self.mesh.nodes[0]
    }

    /// First packets of a workload to an address, one in so many milliseconds.
    fn drizzle(&self, from: &str, to: IpAddr, pause: u64) -> Session {
        let mut command = self.node().within(from, binary("probe"));
        Session::start(command.args(["drizzle", &to.to_string(), &pause.to_string()]))
    }

    fn call(&self) -> String {
        format!("tcp {}", SocketAddr::from((self.server.addresses[0], 80)))
    }
}

/// Drops of a workload for want of room.
fn without_room(node: &Node, workload: &str) -> u64 {
    let rows = node.json(&["drops"]);
    let is_its = |row: &&Value| row["reason"] == FULL && row["workload"] == format!("default/{workload}");
    rows.as_array().unwrap().iter().filter(is_its).map(|row| row["packets"].as_u64().unwrap()).sum()
}

/// The value of a metric without labels.
fn metric(node: &Node, name: &str) -> f64 {
    let rows = node.ferromesh(&["metrics", "list", name, "-o", "json"]).stdout;
    let rows = serde_json::from_str::<Vec<Value>>(&rows).unwrap_or_default();
    rows.iter().find(|row| row["name"] == name).and_then(|row| row["value"].as_f64()).unwrap_or(0.0)
}

/// The call alone is enough: no packet is ever made. The auth-agent reads of it without any right.
#[test]
fn a_call_has_its_pair_proven_before_there_is_a_packet() {
    let scene = Scene::with(&["client".to_owned()]);
    let _socket = stay(scene.node(), "client", "hold-udp", (scene.server.addresses[0], 80).into());
    wait_until("the pair is proven", || proven(scene.node()).len() == 1);
    wait_until("it is counted", || metric(scene.node(), "ferromesh_asking_calls_total") > 0.0);
    assert!(metric(scene.node(), "ferromesh_held_packets_total") < 1.0);
}

/// A workload has used up what it may hold. Its calls are heard of all the same, and its next SYN comes before it has given
/// up waiting, which is less than a second; who is refused hears that at once.
#[test]
fn without_room_a_call_asks_by_itself_and_its_connection_opens_soon() {
    let scene = Scene::with(&["client".to_owned()]);
    let mut client = asker(scene.node(), "client");
    let _flood = scene.drizzle("client", scene.absent.addresses[0], 1);
    wait_until("its room is used up", || without_room(scene.node(), "client") > 0);
    assert_eq!(client.session.ask(&scene.call()), "answered");
    wait_until("it is counted", || {
        metric(scene.node(), "ferromesh_hastened_connections_total") > 0.0
            && metric(scene.node(), "ferromesh_asking_calls_total") > 0.0
    });
    let absent = format!("tcp {}", SocketAddr::from((scene.absent.addresses[0], 80)));
    wait_until("it is refused at once", || client.session.ask(&absent) == "refused");
    let drops = scene.node().ferromesh(&["drops"]).success();
    assert!(drops.contains("Authentication refused"), "{drops}");
}

/// Workloads that wait for what is not there, and for who is not known, fill all there is. What is proven goes on without
/// a word lost, and who is new and may be proven is.
#[test]
fn a_hold_that_is_full_disturbs_no_flow_and_keeps_nobody_out() {
    let names =
        |kind: &str, count: usize| (0..count).map(|number| format!("{kind}-{number}")).collect::<Vec<_>>();
    let (known, pending) = (names("known", 8), names("pending", 8));
    let all = [&["client", "live", "small"].map(str::to_owned)[..], &known, &pending].concat();
    let scene = Scene::with(&all);
    let node = scene.node();
    let mut live = stay(node, "live", "hold", (scene.server.addresses[1], 80).into());
    assert_eq!(live.ask("before"), "answered");
    let _others: Vec<_> = known.iter().chain(&pending).map(|name| asker(node, name)).collect();
    let (_small, mut client) = (asker(node, "small"), asker(node, "client"));
    let _floods: Vec<_> = known
        .iter()
        .map(|name| scene.drizzle(name, scene.absent.addresses[0], 1))
        .chain(pending.iter().map(|name| scene.drizzle(name, "10.77.1.250".parse().unwrap(), 1)))
        .collect();
    // It sends less than it may alone: what it lacks others have taken.
    let _small_flood = scene.drizzle("small", scene.absent.addresses[1], 20);
    wait_until("there is no room for anybody", || without_room(node, "small") > 0);
    wait_until("packets wait", || metric(node, "ferromesh_auth_held") > 0.0);
    for time in 0..20 {
        assert_eq!(live.ask("during"), "answered", "{time}");
        assert_eq!(client.session.ask(&scene.call()), "answered", "{time}");
    }
}
