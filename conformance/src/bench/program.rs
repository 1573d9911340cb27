//! What a packet costs in the programs of a workload's interface: alone by test runs, and in place under real traffic.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use aya::maps::MapInfo;
use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};

use super::plan::Plan;
use super::report::{Row, Target};
use crate::lab::{Node, Outcome, Session, Workload, binary};

const IN_PLACE: &str = "l4.program.in_place";
/// First of the ports that flows go to, and first of those they come from.
const PORTS: (u16, u16) = (10_000, 20_000);

/// Measures the rows that are asked for.
#[must_use]
pub fn measure(plan: &Plan) -> Vec<Row> {
    let mut rows = Vec::new();
    if ["established", "new", "floor"].iter().any(|kind| plan.selected.wants(&format!("l4.program.{kind}"))) {
        rows.extend(alone(plan));
    }
    if plan.selected.wants(IN_PLACE) {
        rows.extend(in_place(plan));
    }
    rows
}

/// By `program_cost` of `l4-datapath`, which tells how.
fn alone(plan: &Plan) -> Vec<Row> {
    let mut command = Command::new(binary("examples/program_cost"));
    command.arg("packets").args(plan.quick.then_some("quick"));
    let said = Outcome::of(&mut command).success();
    let row = |line: &str| {
        let [kind, what, value] = line.split('\t').collect::<Vec<_>>()[..] else {
            panic!("program_cost said {line:?}")
        };
        let row = Row::new(format!("l4.program.{kind}"), what, value.parse().expect("nanoseconds"), "ns");
        match kind {
            "established" if what.ends_with("hot") => plan.judge(row, Target::AtMost(200.0), None),
            "new" if what.ends_with("hot") => plan.judge(row, Target::AtMost(1000.0), None),
            _ => row,
        }
    };
    said.lines().map(row).filter(|row| plan.selected.wants(&row.id)).collect()
}

/// One direction of traffic: who sends to whom, half of the flows each.
struct Traffic {
    program: &'static str,
    what: &'static str,
    between_workloads: bool,
}

const TRAFFIC: [Traffic; 2] = [
    Traffic { program: "from_pod", what: "between two workloads", between_workloads: true },
    Traffic { program: "to_pod", what: "from the node to a workload", between_workloads: false },
];

fn in_place(plan: &Plan) -> Vec<Row> {
    let _counted = enable_stats(Stats::RunTime).expect("run statistics, kernel 5.8");
    let mut rows = Vec::new();
    for traffic in TRAFFIC {
        for (family, name) in ["IPv4", "IPv6"].into_iter().enumerate() {
            // A node of its own, so that nobody's quota is used up by the case before.
            let node = Node::up();
            let sinks = ["one", "two"].map(|name| sink(&node, name));
            let flows: &[u32] = if plan.quick { &[1, 10_000] } else { &[1, 10_000, 100_000] };
            for &flows in flows {
                let nanoseconds = one(plan, &node, &traffic, &sinks, family, flows);
                let what = format!("{name}, {} {}, {flows} flows", traffic.program, traffic.what);
                rows.push(Row::new(IN_PLACE, what, nanoseconds, "ns"));
            }
        }
    }
    rows
}

fn sink(node: &Node, name: &str) -> Workload {
    let probe = binary("probe");
    let (first, count) = (PORTS.0.to_string(), "200");
    node.start(name, &[], &[probe.to_str().expect("UTF-8"), "sink", &first, count])
}

/// Nanoseconds of a packet: the median of as many intervals as the plan has rounds.
fn one(plan: &Plan, node: &Node, traffic: &Traffic, sinks: &[Workload; 2], family: usize, flows: u32) -> f64 {
    // Sources and destination ports of each of the two senders.
    let (sources, ports) = match flows {
        1 => (1, 1),
        10_000 => (50, 100),
        _ => (250, 200),
    };
    let names = ["one", "two"];
    let senders: Vec<Session> = (0..if flows == 1 { 1 } else { 2 })
        .map(|sender| {
            let mut command = if traffic.between_workloads {
                node.within(names[sender], binary("probe"))
            } else {
                node.inside(binary("probe"))
            };
            let to = std::net::SocketAddr::new(sinks[1 - sender].addresses[family], PORTS.0);
            // Two senders of one network namespace need ports of their own.
            let from = PORTS.1 + 1000 * sender as u16;
            let numbers = [u32::from(from), sources, ports].map(|number| number.to_string());
            let session = Session::start(command.arg("flows").arg(to.to_string()).args(numbers));
            assert_eq!(session.line(), "open", "every flow has sent a packet");
            session
        })
        .collect();
    let charged: u64 = names.iter().map(|name| connections(node, name)).sum();
    assert!(charged >= flows.into(), "{flows} flows, but {charged} connections: were some refused?");
    let counters = Counters::of(node, traffic.program);
    let mut intervals: Vec<f64> = (0..plan.rounds.max(1)).map(|_| counters.interval(plan)).collect();
    drop(senders);
    intervals.sort_by(f64::total_cmp);
    intervals[intervals.len() / 2]
}

fn connections(node: &Node, name: &str) -> u64 {
    node.json(&["endpoint", "get", name])["connections"].as_u64().expect("a number")
}

/// Run statistics of a program of one node: found by a map that it shares with no other node's.
struct Counters {
    program: &'static str,
    map: u32,
}

impl Counters {
    fn of(node: &Node, program: &'static str) -> Self {
        let pin = find(&node.pins(), "NODE").expect("the map NODE is pinned");
        Self { program, map: MapInfo::from_pin(pin).expect("a pinned map").id() }
    }

    fn interval(&self, plan: &Plan) -> f64 {
        let (time, runs) = self.now();
        std::thread::park_timeout(Duration::from_secs_f64(plan.seconds_per_run.min(1.0)));
        let (later_time, later_runs) = self.now();
        assert!(later_runs > runs, "no packet passed");
        (later_time - time).as_nanos() as f64 / (later_runs - runs) as f64
    }

    fn now(&self) -> (Duration, u64) {
        let ours = loaded_programs().filter_map(Result::ok).filter(|info| {
            info.name_as_str() == Some(self.program)
                && info.map_ids().ok().flatten().is_some_and(|maps| maps.contains(&self.map))
        });
        ours.fold((Duration::ZERO, 0), |(time, runs), info| (time + info.run_time(), runs + info.run_count()))
    }
}

fn find(directory: &Path, name: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(directory).ok()?.filter_map(Result::ok).map(|entry| entry.path());
    let (directories, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    files
        .into_iter()
        .find(|path| path.file_name().is_some_and(|own| own == name))
        .or_else(|| directories.iter().find_map(|below| find(below, name)))
}
