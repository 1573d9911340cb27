//! Authentication on one node: real agents, auth-agents and CAs, real workloads. Needs root and the kernel.
#![allow(clippy::unwrap_used, reason = "a scenario that cannot go on has failed")]

use std::net::SocketAddr;

use conformance::lab::{Node, Session, Workload, binary, wait_until};
use serde_json::Value;

/// Who calls has proven who it is.
const PROVEN: &str = include_str!("../../examples/star-wars/rule1-proven.yaml");
/// The same without proof.
const RULE1: &str = include_str!("../../examples/star-wars/rule1.yaml");
const EMPIRE: &[&str] = &["org=empire", "class=tiefighter"];
const ALLIANCE: &[&str] = &["org=alliance", "class=xwing"];
const DEATHSTAR: &[&str] = &["org=empire", "class=deathstar"];

/// A workload from which connections are tried.
fn asker(node: &Node, name: &str) -> Workload {
    node.start(name, EMPIRE, &[binary("probe").to_str().unwrap(), "ask"])
}

/// A connection that stays.
fn hold(node: &Node, name: &str, to: SocketAddr) -> Session {
    let to = to.to_string();
    node.start(name, EMPIRE, &[binary("probe").to_str().unwrap(), "hold", &to]).session
}

/// Whoever calls the deathstar must be proven; the processes that see to it, which start with the first such policy and
/// take what the machine takes, are at work.
fn require(node: &Node) {
    node.apply("rule1.yaml", PROVEN);
    node.certified("default");
}

fn proven(node: &Node) -> Vec<Value> {
    let pairs = node.json(&["auth", "pairs"]);
    pairs.as_array().unwrap().iter().filter(|pair| pair["state"] == "proven").cloned().collect()
}

/// Packets that have been held and have gone on.
fn released(node: &Node) -> u64 {
    let rows = node.json(&["metrics", "list"]);
    let of = |row: &&Value| row["name"] == "ferromesh_released_packets_total";
    rows.as_array().unwrap().iter().filter(of).map(|row| row["value"].as_f64().unwrap() as u64).sum()
}

/// Process ids of the node's processes of this verb, by their directories.
fn processes(node: &Node, verb: &str) -> Vec<i32> {
    let directory = node.state().join(if verb == "ca" { "ca" } else { "auth" });
    let uid = if verb == "ca" { 64_250 } else { 64_251 };
    linux::child::with_arguments(&[verb, "--directory", directory.to_str().unwrap()], uid).unwrap()
}

#[test]
fn the_first_connection_waits_for_its_proof_and_loses_no_packet() {
    // Nothing is proven before a packet asks.
    let node = Node::up_with(", authenticationAhead: 0");
    let deathstar = node.serve("deathstar", DEATHSTAR, 80);
    require(&node);
    let tiefighters = [(0, "tiefighter"), (1, "tiefighter-6")].map(|(which, name)| {
        let (mut tiefighter, address, before) =
            (asker(&node, name), deathstar.addresses[which], released(&node));
        let target = SocketAddr::new(address, 80);
        // The probe waits for less than the second after which a lost SYN would be sent again.
        assert_eq!(tiefighter.session.ask(&format!("tcp {target}")), "answered", "{address}");
        wait_until("it has waited and gone on", || released(&node) > before);
        assert_eq!(node.attempt("xwing", ALLIANCE, "tcp", address, 80), "silent", "{address}");
        tiefighter
    });
    let pairs = proven(&node);
    assert_eq!(pairs.len(), tiefighters.len(), "{pairs:?}");
    let id = "spiffe://cluster.local/ns/default/sa/default";
    assert_eq!((&pairs[0]["local_id"], &pairs[0]["remote_id"]), (&id.into(), &id.into()));

    let why = node.ferromesh(&["auth", "why", "tiefighter", "deathstar:80"]).success();
    for step in ["policy", "identity", "certificate", "proof", "mark"] {
        assert!(why.lines().any(|line| line.starts_with(&format!("✓   {step}"))), "{step}: {why}");
    }
    let denied = node.ferromesh(&["auth", "why", "tiefighter", "deathstar:81"]);
    assert!(denied.code == Some(1) && denied.stdout.starts_with("✗   policy"), "{denied:?}");
    let status = node.json(&["status"]);
    assert_eq!(status["authentication"]["problem"], Value::Null, "{status:#}");
    assert_eq!(node.json(&["endpoint", "get", "deathstar"])["spiffe_id"], id);
    let flows =
        node.ferromesh(&["observe", "--pod", "default/tiefighter", "--last", "20", "-o", "json"]).success();
    assert!(flows.contains("\"authentication\":{\"state\":\"proven\""), "{flows}");
    wait_until("what it counts is told", || {
        node.ferromesh(&["metrics", "list"]).stdout.contains("ferromesh_auth_marks")
    });
}

#[test]
fn switching_on_proves_who_talks_and_cuts_nobody_of_them() {
    let node = Node::up();
    let deathstar = node.serve("deathstar", DEATHSTAR, 80);
    // A second is for proofs; the processes' own start is not part of this.
    require(&node);
    assert_eq!(node.attempt("tiefighter", EMPIRE, "tcp", deathstar.addresses[0], 80), "answered");
    node.apply("rule1.yaml", RULE1);
    let mut live = deathstar.addresses.map(|address| {
        let name = if address.is_ipv4() { "tiefighter-4" } else { "tiefighter-6" };
        hold(&node, name, (address, 80).into())
    });
    assert_eq!(live.each_mut().map(|live| live.ask("before")), ["answered", "answered"]);
    node.apply("rule1.yaml", PROVEN);
    assert_eq!(live.each_mut().map(|live| live.ask("on")), ["answered", "answered"]);
    assert_eq!(proven(&node).len(), 2);
    node.apply("rule1.yaml", RULE1);
    assert_eq!(live.each_mut().map(|live| live.ask("off")), ["answered", "answered"]);
}

#[test]
fn who_is_gone_takes_its_connections_along() {
    let node = Node::up();
    let mut deathstar = node.serve("deathstar", DEATHSTAR, 80);
    require(&node);
    let mut live = hold(&node, "tiefighter", (deathstar.addresses[0], 80).into());
    assert_eq!(live.ask("before"), "answered");
    deathstar.session.kill();
    wait_until("the endpoint is gone", || node.json(&["endpoint", "list"]).as_array().unwrap().len() == 1);
    let said = live.ask("after");
    assert!(["aborted", "reset"].contains(&said.as_str()), "{said}");
    wait_until("no pair is left", || proven(&node).is_empty());
}

#[test]
fn processes_outlive_the_agent_and_the_next_takes_them_over() {
    let mut node = Node::up();
    let deathstar = node.serve("deathstar", DEATHSTAR, 80);
    require(&node);
    let mut live = hold(&node, "tiefighter", (deathstar.addresses[1], 80).into());
    assert_eq!(live.ask("before"), "answered");
    let before = ["ca", "auth-agent"].map(|verb| processes(&node, verb));
    assert_eq!(before.each_ref().map(Vec::len), [1, 1]);
    node.kill_agent();
    assert_eq!(live.ask("dead"), "answered");
    node.start_agent();
    assert_eq!(["ca", "auth-agent"].map(|verb| processes(&node, verb)), before);
    assert_eq!(live.ask("back"), "answered");
    let mut asker = asker(&node, "tiefighter-2");
    let target = SocketAddr::new(deathstar.addresses[0], 80);
    assert_eq!(asker.session.ask(&format!("tcp {target}")), "answered", "new workloads are proven too");
}

#[test]
fn a_process_that_dies_is_started_again_and_loses_no_flow() {
    let node = Node::up();
    let deathstar = node.serve("deathstar", DEATHSTAR, 80);
    require(&node);
    let target = SocketAddr::new(deathstar.addresses[0], 80);
    let mut live = hold(&node, "tiefighter", target);
    assert_eq!(live.ask("before"), "answered");
    for verb in ["auth-agent", "ca"] {
        let [pid] = processes(&node, verb)[..] else { panic!("one {verb} runs") };
        linux::process::send(pid, 9).unwrap();
        wait_until("another one runs", || matches!(processes(&node, verb)[..], [other] if other != pid));
        assert_eq!(live.ask("dead"), "answered");
    }
    // An auth-agent keeps the keys of workloads nowhere: it asks anew, and a CA that is not there a second later.
    wait_until("there are certificates again", || {
        let list = node.ferromesh(&["auth", "list", "-o", "json"]).stdout;
        let rows: Value = serde_json::from_str(&list).unwrap_or_default();
        rows.as_array()
            .is_some_and(|rows| rows.len() == 2 && rows.iter().all(|row| row["serial"].is_string()))
    });
    assert_eq!(live.ask("back"), "answered");
    wait_until("nothing is degraded", || node.json(&["status"])["degraded"].as_array().unwrap().is_empty());
    let mut asker = asker(&node, "tiefighter-2");
    assert_eq!(asker.session.ask(&format!("tcp {target}")), "answered");
}

/// How long each certificate of the node is still good, in seconds: its own, and one for the workloads' account.
fn left(node: &Node) -> Vec<i64> {
    let list = node.ferromesh(&["auth", "list", "-o", "json"]).stdout;
    let rows: Value = serde_json::from_str(&list).unwrap_or_default();
    let now = i64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap();
    rows.as_array().into_iter().flatten().filter_map(|row| Some(row["expires"].as_i64()? - now)).collect()
}

#[test]
fn certificates_last_as_long_as_is_configured_and_a_change_counts_from_the_next_start() {
    let mut node = Node::up_with(", svidLifetime: 10m");
    let deathstar = node.serve("deathstar", DEATHSTAR, 80);
    require(&node);
    assert_eq!(node.attempt("tiefighter", EMPIRE, "tcp", deathstar.addresses[0], 80), "answered");
    let short = left(&node);
    assert!(short.len() == 2 && short.iter().all(|left| (300..=600).contains(left)), "{short:?}");
    let file = node.config().join("ferromesh.yaml");
    let changed = std::fs::read_to_string(file).unwrap().replace("svidLifetime: 10m", "svidLifetime: 2h");
    node.write("ferromesh.yaml", &changed);
    wait_until("it is said when that counts", || {
        node.json(&["status"])["degraded"].to_string().contains("svidLifetime: changed")
    });
    let before = processes(&node, "ca");
    node.kill_agent();
    node.start_agent();
    wait_until("another CA runs", || matches!(processes(&node, "ca")[..], [pid] if pid != before[0]));
    // The node keeps the certificate of its own that it has; those of workloads are asked for anew.
    wait_until("a certificate lasts longer", || left(&node).iter().any(|left| *left > 3_600));
    assert_eq!(node.attempt("tiefighter", EMPIRE, "tcp", deathstar.addresses[0], 80), "answered");
}

#[test]
fn a_root_that_is_taken_away_takes_live_connections_along() {
    let node = Node::up();
    let deathstar = node.serve("deathstar", DEATHSTAR, 80);
    require(&node);
    let mut live = hold(&node, "tiefighter", (deathstar.addresses[0], 80).into());
    assert_eq!(live.ask("before"), "answered");
    let file = node.state().join("ca/bundle.pem");
    let bundle = std::fs::read(&file).unwrap();
    std::fs::write(&file, "").unwrap();
    wait_until("the connection is dead", || ["aborted", "reset"].contains(&live.ask("after").as_str()));
    assert!(proven(&node).is_empty());
    std::fs::write(&file, bundle).unwrap();
    wait_until("a new one is proven", || {
        node.attempt("tiefighter-2", EMPIRE, "tcp", deathstar.addresses[0], 80) == "answered"
    });
}

#[test]
fn down_leaves_nothing_of_it_even_without_an_agent() {
    let mut node = Node::up();
    let deathstar = node.serve("deathstar", DEATHSTAR, 80);
    require(&node);
    assert_eq!(node.attempt("tiefighter", EMPIRE, "tcp", deathstar.addresses[0], 80), "answered");
    let changes = node.json(&["status"])["host_changes"].to_string();
    assert!(changes.contains("fm_hold") && changes.contains("auth-agent"), "{changes}");
    node.kill_agent();
    let left = node.verb("check", &["--clean"]);
    assert!(
        left.stdout.contains("ferromesh auth-agent") && left.stdout.contains("device fm_hold"),
        "{left:?}"
    );
    node.verb("down", &[]).success();
    node.verb("check", &["--clean"]).success();
    assert_eq!(["ca", "auth-agent"].map(|verb| processes(&node, verb).len()), [0, 0]);
    let links = node.inside("ip").args(["-brief", "link"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&links.stdout).lines().count(), 1, "only lo is left");
}
