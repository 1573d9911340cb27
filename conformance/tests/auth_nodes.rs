//! Mutual authentication between nodes, and between workloads of one: real agents, auth-agents, CA, kernel and traffic.
//! Needs root and the kernel.
#![allow(clippy::unwrap_used, reason = "a scenario that cannot go on has failed")]

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;

use conformance::lab::{
    HASTY, Mesh, Node, Outcome, REQUIRED, Session, Workload, binary, is_dead, placed_on, wait_until,
};
use serde_json::Value;

/// Two nodes: a server on the second, clients on both, everything placed, nothing required yet.
struct Scene {
    mesh: Mesh,
    server: Workload,
}

impl Scene {
    fn new(settings: &str) -> Self {
        Self::on(Mesh::up(2, settings))
    }

    fn on(mesh: Mesh) -> Self {
        mesh.place("server", &["app=server"], 1);
        mesh.place("client", &["app=client"], 0);
        mesh.place("near", &["app=client"], 1);
        mesh.place("stranger", &["app=other"], 0);
        let server = mesh.nodes[1].serve("server", &[], 80);
        let scene = Self { mesh, server };
        scene.known(0, "server");
        scene
    }

    fn required(settings: &str) -> Self {
        let scene = Self::new(settings);
        scene.mesh.apply("proven.yaml", REQUIRED);
        scene.mesh.ready(1, "server");
        scene
    }

    /// Waits until a node knows where a workload of another is.
    fn known(&self, node: usize, workload: &str) {
        let name = format!("default/{workload}");
        wait_until(&format!("node {node} knows {name}"), || {
            let plan = self.mesh.nodes[node].ferromesh(&["ip", "list", "-o", "json"]).stdout;
            self.server.addresses.iter().all(|address| plan.contains(&address.to_string()))
        });
    }

    fn server(&self, which: usize) -> IpAddr {
        self.server.addresses[which]
    }

    fn attempt(&self, from: &str, how: &str, which: usize) -> String {
        let node = usize::from(from == "near");
        self.mesh.nodes[node].attempt(from, &[], how, self.server(which), 80)
    }

    /// A connection that stays, of a client that has its certificate.
    fn hold(&self, from: &str, which: usize) -> Session {
        let [node, other] =
            [from == "near", from != "near"].map(|second| &self.mesh.nodes[usize::from(second)]);
        let to = SocketAddr::new(self.server(which), 80).to_string();
        node.call(from, &[], from, &[other], &["hold", &to]).session
    }
}

/// A connection that stays, as a workload.
fn hold(node: &Node, name: &str, to: SocketAddr) -> Session {
    let probe = binary("probe");
    let command = [probe.to_str().unwrap(), "hold", &to.to_string()].map(str::to_owned);
    node.start(name, &[], &command.each_ref().map(String::as_str)).session
}

#[test]
fn who_is_proven_gets_through_at_once_from_both_nodes_by_every_protocol() {
    let scene = Scene::required("");
    for which in [0, 1] {
        for from in ["client", "near"] {
            for how in ["tcp", "udp"] {
                assert_eq!(scene.attempt(from, how, which), "answered", "{from}, {how}, {which}");
            }
            let node = &scene.mesh.nodes[usize::from(from == "near")];
            let probe = binary("probe");
            let _there = node.start(from, &[], &[probe.to_str().unwrap(), "ask"]);
            // Without the sandbox, which has no raw sockets.
            let ping =
                Outcome::of(node.within(from, &probe).args(["ping", &scene.server(which).to_string()]));
            assert_eq!(ping.stdout, "answered", "{from}, ping, {which}");
        }
        assert_eq!(scene.attempt("stranger", "tcp", which), "silent", "policy does not name it");
    }
    shown_on_both_nodes(&scene);
}

/// Who has which ID, and each step by which one gets to the other; across nodes.
fn shown_on_both_nodes(scene: &Scene) {
    let mut live = scene.hold("client", 0);
    assert_eq!(live.ask("a word"), "answered");
    for node in &scene.mesh.nodes {
        let identities = node.json(&["identity", "list"]);
        for account in ["client", "server"] {
            let id = Value::from(format!("spiffe://cluster.local/ns/default/sa/{account}"));
            let has = |row: &&Value| row["spiffe_ids"].as_array().is_some_and(|ids| ids.contains(&id));
            let rows: Vec<_> = identities.as_array().unwrap().iter().filter(has).collect();
            assert_eq!(rows.len(), 1, "{identities:#}");
            assert!(rows[0]["labels"].to_string().contains(&format!("app={account}")), "{rows:?}");
        }
        let why = node.ferromesh(&["auth", "why", "client", "server:80"]).success();
        for step in ["policy", "identity", "session", "certificate", "proof", "mark"] {
            assert!(why.lines().any(|line| line.starts_with(&format!("✓   {step}"))), "{step}: {why}");
        }
        assert!(!why.contains('✗'), "{why}");
        let other = if std::ptr::eq(node, &scene.mesh.nodes[0]) { "node-1" } else { "node-0" };
        assert!(why.lines().any(|line| line.contains("session") && line.contains(other)), "{why}");
    }
}

/// What a node has counted: packets that have waited and gone on, calls that have asked for a proof, and pairs that were
/// proven because a packet or a call had asked.
fn counts(node: &Node) -> [u64; 3] {
    let rows = node.json(&["metrics", "list"]);
    let of = |name: &str, kind: Option<&str>| {
        let its = |row: &&Value| row["name"] == name && kind.is_none_or(|kind| row["labels"]["kind"] == kind);
        let values = rows.as_array().unwrap().iter().filter(its);
        values.map(|row| row["value"].as_f64().unwrap() as u64).sum()
    };
    [
        of("ferromesh_released_packets_total", None),
        of("ferromesh_asking_calls_total", None),
        of("ferromesh_auth_time_to_authenticate_seconds_count", Some("held")),
    ]
}

#[test]
fn with_nothing_proven_ahead_each_first_packet_waits_and_goes_on() {
    let scene = Scene::required(", authenticationAhead: 0");
    let server = &scene.mesh.nodes[1];
    let probe = binary("probe");
    for (from, which) in [("client", 0), ("near", 0), ("client", 1), ("near", 1)] {
        let node = &scene.mesh.nodes[usize::from(from == "near")];
        for how in ["tcp", "udp", "ping"] {
            // Each is an instance of its own, of which nothing is proven. The probe waits for less than a second.
            let [released, asked, proven] = counts(server);
            let said = match how {
                "ping" => {
                    let _there = node.start(from, &[], &[probe.to_str().unwrap(), "ask"]);
                    let to = scene.server(which).to_string();
                    Outcome::of(node.within(from, &probe).args(["ping", &to])).stdout
                }
                _ => scene.attempt(from, how, which),
            };
            let what = format!("{from}, {how}, {which}");
            assert_eq!(said, "answered", "{what}");
            // A call on the node whose policy asks has it proven, too. It is not waited for: who is interrupted between
            // the call and its packet, as on a busy machine, finds the proof there, most of all where the two accounts
            // have been proven to each other before. Nobody else asks: not from another node, and not for a ping.
            let asks = from == "near" && how != "ping";
            wait_until(&format!("{what}: its packet has waited, or its call was answered in time"), || {
                let now = counts(server);
                now[0] > released || (asks && now[2] > proven)
            });
            wait_until(&format!("{what}: calls that asked are counted"), || {
                counts(server)[1] == asked + u64::from(asks)
            });
        }
    }
}

#[test]
fn a_relabelled_client_loses_its_connections_on_both_nodes() {
    let scene = Scene::required("");
    for (which, from) in [(0, "client"), (1, "client"), (0, "near"), (1, "near")] {
        let mut live = scene.hold(from, which);
        assert_eq!(live.ask("before"), "answered", "{from}");
        let mut bystander = scene.hold(if from == "near" { "client" } else { "near" }, which);
        assert_eq!(bystander.ask("before"), "answered");
        let node = u8::from(from == "near");
        scene.mesh.place(from, &["app=other"], node);
        wait_until("the connection is dead", || is_dead(&live.ask("after")));
        assert_eq!(bystander.ask("after"), "answered", "it is none of his business");
        drop(live);
        scene.mesh.place(from, &["app=client"], node);
        wait_until("a new one is proven", || scene.attempt(from, "tcp", which) == "answered");
    }
}

#[test]
fn another_account_is_another_identity() {
    let scene = Scene::required("");
    let mut live = scene.hold("client", 0);
    assert_eq!(live.ask("before"), "answered");
    scene.mesh.apply("workload-client.yaml", &placed_on("client", "app: client", "somebody-else", 0));
    wait_until("the connection is dead", || is_dead(&live.ask("after")));
}

#[test]
fn a_server_that_ends_takes_its_connections_along_and_its_address_rests() {
    let mut scene = Scene::required(HASTY);
    let mut live = scene.hold("client", 0);
    assert_eq!(live.ask("before"), "answered");
    let before = scene.server.addresses;
    drop(std::mem::replace(&mut scene.server, scene.mesh.nodes[1].serve("near", &[], 80)));
    wait_until("the connection is dead", || is_dead(&live.ask("after")));
    assert!(
        scene.server.addresses.iter().all(|address| !before.contains(address)),
        "an address rests before it is another's"
    );
}

#[test]
fn on_a_range_that_is_new_to_its_node_nobody_starts_before_others_have_forgotten_who_had_it() {
    // Far longer than this test.
    let mut mesh = Mesh::new(2, ", authenticationGrace: 10m");
    mesh.admin("proven.yaml", REQUIRED);
    mesh.start(0);
    mesh.enrol();
    mesh.start(1);
    mesh.place("server", &["app=server"], 1);
    for restarted in [false, true] {
        let node = &mesh.nodes[1];
        let degraded = node.json(&["status"])["degraded"].to_string();
        assert!(degraded.contains("new on this node"), "{restarted}: {degraded}");
        let mut command = node.inside(binary("ferromesh"));
        command.arg("--socket").arg(node.socket()).args(["run", "--name", "server", "--", "true"]);
        let mut run = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(run.stderr.take().unwrap()).read_line(&mut said).unwrap();
        assert!(said.contains("waiting: pool") && said.contains("did not have it before"), "{said}");
        run.kill().unwrap();
        run.wait().unwrap();
        mesh.nodes[1].kill_agent();
        mesh.start(1);
    }
}

#[test]
fn a_partition_ends_what_is_live_after_the_grace_and_heals() {
    let scene = Scene::required(HASTY);
    let mut live = scene.hold("client", 0);
    let mut bystander = scene.hold("near", 0);
    assert_eq!((live.ask("before"), bystander.ask("before")), ("answered".to_owned(), "answered".to_owned()));
    scene.mesh.partition(1, true);
    let node = &scene.mesh.nodes[0];
    wait_until("no mark of the other node is left", || {
        node.json(&["auth", "pairs"]).as_array().unwrap().iter().all(|pair| pair["state"] != "proven")
    });
    wait_until("it is said why", || {
        let why = node.ferromesh(&["auth", "why", "client", "server:80"]);
        why.code == Some(1) && why.stdout.contains("✗   session") && why.stdout.contains("node-1")
    });
    assert_eq!(bystander.ask("during"), "answered", "who is on one node needs no other");
    scene.mesh.partition(1, false);
    wait_until("the connection is dead", || is_dead(&live.ask("after")));
    drop(live);
    wait_until("new ones are proven", || scene.attempt("client", "tcp", 0) == "answered");
    assert_eq!(bystander.ask("after"), "answered");
}

#[test]
fn a_root_that_is_taken_away_ends_what_depends_on_it_on_a_node_that_can_ask_nobody() {
    let scene = Scene::required("");
    // Both ends are on the node that has no CA.
    let mut live = scene.hold("near", 0);
    assert_eq!(live.ask("before"), "answered");
    let (first, second) = (&scene.mesh.nodes[0], &scene.mesh.nodes[1]);
    let established = || {
        let sockets =
            Outcome::of(second.inside("ss").args(["-Htn", "state", "established", "dport", "=", ":4251"]));
        sockets.stdout.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    // The one that stays, not one that asks something and is closed.
    let mut before = Vec::new();
    let mut seen = 0;
    wait_until("it waits for the CA's word", || {
        let now = established();
        seen = if now == before && now.len() == 1 { seen + 1 } else { 0 };
        before = now;
        seen == 20
    });
    // No port is left for another connection of this node's own: it cannot ask again.
    let ports = |range: &str| {
        let write = format!("echo {range} > /proc/sys/net/ipv4/ip_local_reserved_ports");
        Outcome::of(second.inside("sh").args(["-c", &write])).success();
    };
    ports("1-65535");
    std::fs::write(first.state().join("ca/bundle.pem"), "").unwrap();
    wait_until("the connection is dead", || is_dead(&live.ask("after")));
    ports("");
}

#[test]
fn an_auth_agent_that_is_killed_loses_no_flow_within_the_grace() {
    let scene = Scene::required("");
    let mut live = [scene.hold("client", 0), scene.hold("near", 1)];
    for node in &scene.mesh.nodes {
        let pid = auth_agent(node).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
        for live in &mut live {
            assert_eq!(live.ask("during"), "answered");
        }
        wait_until("another one runs", || auth_agent(node).is_some_and(|now| now != pid));
    }
    for live in &mut live {
        assert_eq!(live.ask("after"), "answered");
    }
    for node in &scene.mesh.nodes {
        wait_until("everything is proven again", || {
            node.json(&["auth", "pairs"]).as_array().unwrap().iter().any(|pair| pair["state"] == "proven")
        });
    }
    for live in &mut live {
        assert_eq!(live.ask("long after"), "answered");
    }
}

/// The process id of a node's auth-agent, by its arguments.
fn auth_agent(node: &Node) -> Option<i32> {
    let directory = node.state().join("auth").display().to_string();
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.find(|pid: &i32| {
        let arguments = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut arguments = arguments.split('\0').skip(1);
        arguments.next() == Some("auth-agent") && arguments.any(|word| word == directory)
    })
}

#[test]
fn no_workload_reaches_an_auth_agent_or_the_ca() {
    let scene = Scene::required("");
    let doors = |node, port| scene.mesh.addresses(node).map(|address| SocketAddr::new(address, port));
    unreachable(&scene, [doors(0, 4250), doors(1, 4250), doors(0, 4251)].as_flattened());
}

#[track_caller]
fn unreachable(scene: &Scene, doors: &[SocketAddr]) {
    for door in doors {
        for (node, name) in [(0, "client"), (1, "near")] {
            let node = &scene.mesh.nodes[node];
            let word = node.attempt(name, &[], "tcp", door.ip(), door.port());
            assert_ne!(word, "answered", "{name} → {door}");
            let drops = node.ferromesh(&["observe", "--verdict", "DROPPED", "--last", "20"]).stdout;
            assert!(drops.contains(&door.to_string()), "{door}: {drops}");
        }
    }
}

/// Fault 10. The network between the nodes has no IPv4 addresses that anybody was told of.
#[test]
fn nodes_that_know_one_another_by_ipv6_alone_prove_their_workloads_of_both_families() {
    let scene = Scene::on(Mesh::up_over_ipv6(2, ""));
    scene.mesh.apply("proven.yaml", REQUIRED);
    for which in [0, 1] {
        for from in ["client", "near"] {
            assert_eq!(scene.attempt(from, "tcp", which), "answered", "{from}, {which}");
        }
        assert_eq!(scene.attempt("stranger", "tcp", which), "silent");
    }
    for node in &scene.mesh.nodes {
        let nodes = node.json(&["auth", "nodes"]);
        let addresses: Vec<_> =
            nodes.as_array().unwrap().iter().map(|node| node["address"].to_string()).collect();
        assert!(addresses.len() == 1 && addresses[0].contains("[2001:db8:2::1"), "{nodes:#}");
    }
    let doors = |node: u8, port| SocketAddr::new(scene.mesh.addresses(node)[1], port);
    unreachable(&scene, &[doors(0, 4250), doors(1, 4250), doors(0, 4251)]);
    let mut live = scene.hold("client", 0);
    let mut bystander = scene.hold("near", 1);
    assert_eq!((live.ask("before"), bystander.ask("before")), ("answered".to_owned(), "answered".to_owned()));
    scene.mesh.place("client", &["app=other"], 0);
    wait_until("the connection is dead", || is_dead(&live.ask("after")));
    assert_eq!(bystander.ask("after"), "answered");
}

#[test]
fn a_policy_that_comes_to_require_proof_keeps_what_can_be_proven_and_ends_the_rest() {
    let scene = Scene::new("");
    let live = |from: &str, which| {
        let node = &scene.mesh.nodes[usize::from(from == "near")];
        hold(node, from, (scene.server(which), 80).into())
    };
    let mut stranger = live("stranger", 0);
    let mut live = [live("client", 0), live("near", 1)];
    scene.mesh.apply("proven.yaml", REQUIRED);
    for live in &mut live {
        assert_eq!(live.ask("after"), "answered");
    }
    assert_ne!(stranger.ask("after"), "answered");
}
