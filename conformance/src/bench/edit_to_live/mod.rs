//! How long after a file is renamed into place is the first packet judged anew?
//!
//! A client sends a datagram every 0.2 ms ([`crate::pulse`]); from the renaming of the file to the sending of the first
//! datagram that is judged by what it says. Edits follow each other without a pause, closing and opening in turn.
//! Once on a node of a demo's size, and in a directory of a cluster's: see `directory`.

mod directory;

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::plan::Plan;
use super::report::{Row, Target};
use crate::lab::{Node, Session, Workload, binary};
use crate::pulse;

/// A row has at least so many edits, however long they take; and no more once they have taken that long together.
const LEAST: usize = 10;
const LONGEST: Duration = Duration::from_secs(20);

/// What is measured, and with how many edits. It counts as broken when more than that are disturbed.
struct Case {
    id: &'static str,
    what: &'static str,
    file: &'static str,
    closed: fn() -> String,
    /// `None`: the file is removed.
    open: Option<fn() -> String>,
    edits: usize,
    target: Option<f64>,
    /// Whether the rule that selects everything is in force.
    everything: bool,
}

const RULE1: &str = include_str!("../../../../examples/star-wars/rule1.yaml");
const SMALL: &str = "l4.edit_to_live.small";
const MEMORY: &str = "l4.edit_to_live.memory";

const DEMO: Case = Case {
    id: SMALL,
    what: "demo, the rule is written and removed",
    file: "rule1.yaml",
    closed: || RULE1.to_owned(),
    open: None,
    edits: 100,
    target: Some(50.0),
    everything: false,
};

/// In this order: what a case leaves behind makes only those behind it dearer.
const CLUSTER: [Case; 5] = [
    Case {
        id: "l4.edit_to_live.one_selector",
        what: "a rule that touches one selector",
        file: "one.yaml",
        closed: || directory::one_selector(true),
        open: Some(|| directory::one_selector(false)),
        edits: 100,
        target: Some(50.0),
        everything: false,
    },
    Case {
        id: "l4.edit_to_live.relabel",
        what: "a relabel that touches every local ruleset",
        file: "client.yaml",
        closed: || directory::client(false),
        open: Some(|| directory::client(true)),
        edits: 100,
        target: Some(50.0),
        everything: false,
    },
    Case {
        id: "l4.edit_to_live.large_file",
        what: "the rule is one of a thousand in its file",
        file: "one.yaml",
        closed: || directory::one_of_a_thousand(true),
        open: Some(|| directory::one_of_a_thousand(false)),
        edits: 40,
        target: None,
        everything: false,
    },
    Case {
        id: "l4.edit_to_live.everything",
        what: "a rule that selects everything",
        file: "everything.yaml",
        closed: || directory::everything(true),
        open: Some(|| directory::everything(false)),
        edits: 20,
        // Above a hundred thousand entries are written and as many removed: see docs/performance.md.
        target: Some(500.0),
        everything: true,
    },
    Case {
        id: "l4.edit_to_live.relabel_large",
        what: "a relabel that touches every ruleset, each of a thousand entries",
        file: "client.yaml",
        closed: || directory::client(false),
        open: Some(|| directory::client(true)),
        edits: 20,
        target: None,
        everything: true,
    },
];

/// Measures the rows that are asked for.
#[must_use]
pub fn measure(plan: &Plan) -> Vec<Row> {
    let mut rows = Vec::new();
    if plan.selected.wants(SMALL) {
        let node = Node::up();
        let server = node.serve("deathstar", &["org=empire", "class=deathstar"], 80);
        for (family, address) in families(&server) {
            let client = Client::start(&node, &["org=alliance"], address);
            rows.extend(client.edit(plan, &node, &DEMO, family));
            client.end(&node);
        }
    }
    if CLUSTER.iter().any(|case| plan.selected.wants(case.id)) || plan.selected.wants(MEMORY) {
        rows.extend(cluster(plan));
    }
    rows
}

fn families(server: &Workload) -> impl Iterator<Item = (&'static str, IpAddr)> {
    ["IPv4", "IPv6"].into_iter().zip(server.addresses)
}

fn cluster(plan: &Plan) -> Vec<Row> {
    let extent = if plan.quick { directory::QUICK } else { directory::WHOLE };
    let node = Node::up();
    // Workloads first: what a large directory costs who starts then is not the question here.
    let server = node.serve("local-0", &["app=local-0"], 80);
    let mut others = Vec::new();
    while others.len() + 1 < extent.local {
        let started = others.len() + 1;
        others.extend((started..extent.local.min(started + 20)).map(|number| bystander(&node, number)));
        wait(&node, "the local workloads", |node| count(node, "endpoints") == others.len() + 1);
    }
    fill(&node, extent);
    let mut rows = Vec::new();
    for (family, address) in families(&server).take(if plan.quick { 1 } else { 2 }) {
        let client = Client::start(&node, &[], address);
        let mut is_there = false;
        for case in CLUSTER.iter().filter(|case| plan.selected.wants(case.id)) {
            if case.everything && !is_there {
                let before = count(&node, "policies");
                node.write("everything.yaml", &directory::everything(false));
                wait(&node, "the rule about everything", |node| count(node, "policies") == before + 1);
                is_there = true;
            }
            rows.extend(client.edit(plan, &node, case, family));
        }
        client.end(&node);
        node.write("one.yaml", &directory::one_selector(false));
        if is_there {
            node.remove("everything.yaml");
        }
        wait(&node, "the small file", |node| count(node, "policies") == extent.in_force());
    }
    if plan.selected.wants(MEMORY) {
        rows.extend(memory(&node, extent));
    }
    rows
}

fn bystander(node: &Node, number: usize) -> Session {
    let name = format!("local-{number}");
    let label = format!("app={name}");
    Session::start(&mut node.run_command(&name, &[&label], &["sleep", "infinity"]))
}

/// Puts the whole directory in place at once and waits until it is in force.
fn fill(node: &Node, extent: directory::Extent) {
    node.write("client.yaml", &directory::client(true));
    node.write("local.yaml", &directory::local(extent));
    node.write("one.yaml", &directory::one_selector(false));
    let draft = node.config().with_file_name("objects");
    directory::write(extent, &draft);
    fs::rename(draft, node.config().join("objects")).expect("the objects are put in place");
    wait(node, "the whole directory", |node| count(node, "policies") == extent.in_force());
    assert_eq!(count(node, "invalid"), 0, "every object is faultless");
}

/// A number of `ferromesh status`; zero while the agent is too busy to answer.
fn count(node: &Node, field: &str) -> usize {
    let outcome = node.ferromesh(&["status", "-o", "json"]);
    let status: Option<serde_json::Value> = serde_json::from_str(&outcome.stdout).ok();
    status.and_then(|status| status[field].as_u64()).unwrap_or(0) as usize
}

fn wait(node: &Node, what: &str, holds: impl Fn(&Node) -> bool) {
    let end = Instant::now() + Duration::from_secs(180);
    while !holds(node) {
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

/// A workload that sends datagrams to the server at a steady rate.
struct Client(Workload);

impl Client {
    fn start(node: &Node, labels: &[&str], server: IpAddr) -> Self {
        let target = SocketAddr::new(server, 80).to_string();
        let probe = binary("probe");
        Self(node.start("client", labels, &[probe.to_str().expect("UTF-8"), "pulse", &target]))
    }

    /// Ends it and waits until its name is free.
    fn end(self, node: &Node) {
        drop(self);
        let gone = |node: &Node| {
            let outcome = node.ferromesh(&["endpoint", "list", "-o", "json"]);
            outcome.code == Some(0) && !outcome.stdout.contains("\"client\"")
        };
        wait(node, "the client's end", gone);
    }

    /// The rows of a case.
    fn edit(&self, plan: &Plan, node: &Node, case: &Case, family: &str) -> [Row; 3] {
        let edits = if plan.quick { 4 } else { case.edits };
        let (mut samples, mut disturbed) = (Vec::new(), 0);
        let begin = Instant::now();
        while samples.len() < edits && (samples.len() < LEAST || begin.elapsed() < LONGEST) {
            for closing in [true, false] {
                let begin = pulse::now();
                match (closing, case.open) {
                    (true, _) => node.write(case.file, &(case.closed)()),
                    (false, Some(open)) => node.write(case.file, &open()),
                    (false, None) => node.remove(case.file),
                }
                match self.since(if closing { "closed" } else { "open" }, begin) {
                    Some(milliseconds) => samples.push(milliseconds),
                    None => disturbed += 1,
                }
            }
            assert!(disturbed <= edits, "{}: {disturbed} of {edits} edits disturbed", case.what);
        }
        if disturbed > 0 {
            eprintln!(
                "{family}, {}: {disturbed} edits left out, the way was closed for want of CPU",
                case.what
            );
        }
        samples.sort_by(f64::total_cmp);
        let row = |name: &str, share: f64| {
            let value = samples[((samples.len() - 1) as f64 * share).round() as usize];
            Row::new(case.id, format!("{family}, {}, {name}", case.what), value, "ms")
        };
        let p99 = match case.target {
            Some(bound) => plan.judge(row("p99", 0.99), Target::AtMost(bound), None),
            None => row("p99", 0.99),
        };
        [row("p50", 0.5), p99, row("max", 1.0)]
    }

    /// Milliseconds from `begin` to the change that the pulse reports. `None` if it reported another first: a pulse
    /// that gets no CPU for 20 ms takes the way for closed.
    fn since(&self, expected: &str, begin: u128) -> Option<f64> {
        let mut disturbed = false;
        loop {
            let line = self.0.session.line();
            let (word, at) = line.split_once(' ').unwrap_or((&line, ""));
            let at: u128 = at.parse().unwrap_or_else(|_| panic!("the pulse said {line:?}"));
            if word == expected && at >= begin {
                return (!disturbed).then(|| (at - begin) as f64 / 1e6);
            }
            disturbed = true;
        }
    }
}

/// What agent and maps hold with all of it in force.
fn memory(node: &Node, extent: directory::Extent) -> Vec<Row> {
    let status = node.json(&["status"]);
    let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", status["pid"])).expect("the agent runs");
    let kilobytes = |field: &str| {
        let line = rollup.lines().find_map(|line| line.strip_prefix(field)).expect("a field of smaps_rollup");
        line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number")
    };
    let size = format!(
        "{} endpoints, {} policies",
        extent.endpoints() + extent.local,
        extent.policies() + extent.local
    );
    let row = |what: &str, value: f64, unit| Row::new(MEMORY, format!("{size}: {what}"), value, unit);
    let mut rows = vec![
        row("agent, RSS", kilobytes("Rss:") / 1024.0, "MiB"),
        row("agent, PSS", kilobytes("Pss:") / 1024.0, "MiB"),
    ];
    let maps = status["maps"].as_object().expect("maps");
    let bytes: f64 = maps.values().filter_map(|map| map["bytes"].as_f64()).sum();
    rows.push(row("all maps", bytes / f64::from(1 << 20), "MiB"));
    for (name, map) in maps {
        if let Some(used) = map["used"].as_f64().filter(|used| *used > 0.0) {
            rows.push(row(&format!("{name}, entries"), used, ""));
        }
    }
    rows
}
