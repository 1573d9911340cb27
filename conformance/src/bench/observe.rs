//! What it costs that somebody watches: `ferromesh observe --follow` runs beside the load, or does not.
//!
//! The agent reads the ring of events in any case and keeps the newest; that is in every figure of the other rows too.

use std::process::{Child, Command, Stdio};

use super::compare::{Metric, Run, closed, open, unmeasured};
use super::load::Mode;
use super::path::{FAMILIES, Mesh};
use super::plan::Plan;
use super::report::{Row, Target};
use crate::lab::{Node, Outcome, binary, wait_until};

const ID: &str = "l4.observe";
const OFF: &str = "nobody watches";

/// Rows `l4.observe`, if they are asked for.
#[must_use]
pub fn measure(plan: &Plan) -> Vec<Row> {
    if !plan.selected.wants(ID) {
        return Vec::new();
    }
    let (mesh, tracing) = (Mesh::new("", 0), Mesh::new(", traceLevel: trace", 0));
    let mut rows = Vec::new();
    for mode in [Mode::Rr, Mode::Stream, Mode::Crr] {
        for (family, name) in FAMILIES.into_iter().enumerate() {
            let what = format!("{name} {}", mode.word().to_uppercase());
            let found = compare(plan, &mesh, &tracing, mode, family, &what);
            rows.extend(found.unwrap_or_else(|why| vec![unmeasured(ID, &what, &why)]));
        }
    }
    rows
}

fn compare(
    plan: &Plan,
    mesh: &Mesh,
    tracing: &Mesh,
    mode: Mode,
    family: usize,
    what: &str,
) -> Result<Vec<Row>, String> {
    let watched = |mesh: &Mesh, order: &dyn Fn(_) -> _| {
        let _watcher = Watcher::new(&mesh.node);
        mesh.way.run(family, order)
    };
    let on: Run = &|order| watched(mesh, order);
    let off: Run = &|order| mesh.way.run(family, order);
    let trace: Run = &|order| watched(tracing, order);
    let series = closed(plan, mode, &[on, off, on, trace])?;
    let (judged, cpu, target) = match mode {
        Mode::Stream => (Metric::Throughput, Metric::StreamCpu, Target::AtLeast(0.98)),
        Mode::Rr | Mode::Crr => (Metric::P50, Metric::Cpu, Target::AtMost(1.02)),
    };
    let noise = Some(judged.ratio(&series[0], &series[2]));
    let traced = format!("{what}, an event for each packet,");
    let row = judged.row(ID, what, &series[0], OFF, &series[1]);
    let mut rows = vec![
        judged.row(ID, what, &series[0], "itself (A/A)", &series[2]),
        // A connection of its own for every byte is an event for every byte: told, not promised.
        if mode == Mode::Crr { row } else { plan.judge(row, target, noise) },
        cpu.row(ID, what, &series[0], OFF, &series[1]),
        judged.row(ID, &traced, &series[3], OFF, &series[1]),
        cpu.row(ID, &traced, &series[3], OFF, &series[1]),
    ];
    if mode != Mode::Stream {
        let series = open(plan, mode, &[on, off])?;
        rows.push(Metric::P99.row(ID, what, &series[0], OFF, &series[1]));
    }
    Ok(rows)
}

/// Somebody who follows all flows and reads none. Gone when dropped, and the agent knows it.
struct Watcher<'a> {
    node: &'a Node,
    process: Child,
    before: usize,
}

impl<'a> Watcher<'a> {
    fn new(node: &'a Node) -> Self {
        let before = connections(node);
        let mut command: Command = node.inside(binary("ferromesh"));
        command.arg("--socket").arg(node.socket()).args(["observe", "--follow"]);
        let process = command.stdout(Stdio::null()).spawn().expect("the command line starts");
        let watcher = Self { node, process, before };
        wait_until("the agent has a follower", || connections(node) > before);
        watcher
    }
}

impl Drop for Watcher<'_> {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        wait_until("the agent has none again", || connections(self.node) <= self.before);
    }
}

/// How many clients the agent has. Its socket is renamed into place; the kernel goes by the first name.
fn connections(node: &Node) -> usize {
    let table = Outcome::of(node.inside("cat").arg("/proc/net/unix")).success();
    let path = node.socket().with_extension("").display().to_string();
    table.lines().filter(|line| line.contains(&path)).count()
}
