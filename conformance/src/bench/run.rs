//! Starting workloads, beside what a shell would do by hand for a process in a network of its own. What is left behind is
//! counted too.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use super::plan::Plan;
use super::report::{Row, Target};
use crate::lab::{Node, Outcome, wait_until};

const ID: &str = "l4.run";

/// By hand: a namespace with a veth pair, an address and a default route of each family; a command; all of it away.
/// What is missing compared with `ferromesh run`: cgroup, mounts, init, names, capabilities, policy.
const BY_HAND: &str = "\
ip netns add $0 && ip link add $0 type veth peer name eth0 netns $0 && ip link set $0 up &&
ip -n $0 address add 10.99.$1.2/24 dev eth0 && ip -n $0 -6 address add fd99:$1::2/64 dev eth0 nodad &&
ip -n $0 link set lo up && ip -n $0 link set eth0 up &&
ip -n $0 route add default via 10.99.$1.1 && ip -n $0 -6 route add default via fd99:$1::1 &&
ip netns exec $0 unshare --mount --pid --fork true && ip netns delete $0";

/// Measures the rows that are asked for.
#[must_use]
pub fn measure(plan: &Plan) -> Vec<Row> {
    if !plan.selected.wants(ID) {
        return Vec::new();
    }
    let (rounds, crowd) = if plan.quick { (3, 10) } else { (plan.rounds.max(5) * 4, 100) };
    let node = Node::up();
    let before = Left::of(&node);
    let (mut ours, mut by_hand) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        ours.push(at_once(1, |_| node.run_command(&format!("one-{round}"), &[], &["true"])));
        by_hand.push(at_once(1, |number| hand(&node, number)));
    }
    let crowds = if plan.quick { 1 } else { 3 };
    let (mut ours_crowd, mut by_hand_crowd) = (Vec::new(), Vec::new());
    for _ in 0..crowds {
        ours_crowd
            .push(at_once(crowd, |number| node.run_command(&format!("crowd-{number}"), &[], &["true"])));
        by_hand_crowd.push(at_once(crowd, |number| hand(&node, number)));
    }
    let row = |what: String, ours: Vec<f64>, by_hand: Vec<f64>| {
        Row::new(ID, what, median(ours), "ms").against("ip netns + veth + unshare", median(by_hand))
    };
    let mut rows = vec![
        row("ferromesh run -- true".to_owned(), ours, by_hand),
        row(format!("{crowd} at once, until all have run and gone"), ours_crowd, by_hand_crowd),
    ];
    rows.extend(before.rows(&node));
    rows
}

fn hand(node: &Node, number: usize) -> Command {
    let mut command = node.inside("sh");
    // The name of an interface has at most 15 letters; named namespaces are the whole machine's.
    let name = format!("fmhand{}x{number}", std::process::id() % 10_000);
    command.args(["-c", BY_HAND]).arg(name).arg(number.to_string());
    command
}

/// Milliseconds until all of them have ended well.
fn at_once(count: usize, command: impl Fn(usize) -> Command) -> f64 {
    let begin = Instant::now();
    let start = |number| {
        let mut command = command(number);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"))
    };
    let children: Vec<_> = (0..count).map(start).collect();
    for mut child in children {
        let status = child.wait().expect("a child");
        assert!(status.success(), "{status}");
    }
    begin.elapsed().as_secs_f64() * 1e3
}

/// What workloads could leave behind.
struct Left([(&'static str, usize); 4]);

impl Left {
    fn of(node: &Node) -> Self {
        let links = Outcome::of(node.inside("ip").args(["-o", "link"])).success().lines().count();
        let cgroups = directories(&node.workloads());
        let namespaces = directories_or_files(&node.namespaces());
        let endpoints = node.json(&["endpoint", "list"]).as_array().map_or(0, Vec::len);
        Self([
            ("endpoints", endpoints),
            ("interfaces", links),
            ("cgroups", cgroups),
            ("namespaces", namespaces),
        ])
    }

    /// Rows of what is more now, once it has had the time to go.
    fn rows(&self, node: &Node) -> Vec<Row> {
        let before = self.0.map(|(_, count)| count);
        wait_until("nothing is left behind", || Self::of(node).0.map(|(_, count)| count) == before);
        let left = Self::of(node).0.into_iter().zip(before);
        left.map(|((what, after), before)| {
            let row = Row::new(ID, format!("{what} left behind"), after as f64 - before as f64, "");
            row.judge(Target::AtMost(0.0), None)
        })
        .collect()
    }
}

fn directories(path: &Path) -> usize {
    fs::read_dir(path)
        .map_or(0, |entries| entries.filter_map(Result::ok).filter(|entry| entry.path().is_dir()).count())
}

fn directories_or_files(path: &Path) -> usize {
    fs::read_dir(path).map_or(0, Iterator::count)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
