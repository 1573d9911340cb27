//! The way of a packet between two workloads of a node, policy and connection tracking in force, beside a bare routed way
//! and a direct one.

use super::compare::{Metric, Run, closed, open, unmeasured};
use super::load::Mode;
use super::path::{Bare, FAMILIES, Mesh};
use super::plan::Plan;
use super::report::{Row, Target};

const ROUTED: &str = "routed veth";
const DIRECT: &str = "direct veth";

struct Paths {
    mesh: Mesh,
    routed: Bare,
    direct: Bare,
}

/// Rows `l4.tc.{rr,crr,stream}`, as far as they are asked for.
#[must_use]
pub fn measure(plan: &Plan) -> Vec<Row> {
    let id = |mode: Mode| format!("l4.tc.{}", mode.word());
    let modes: Vec<Mode> = [Mode::Rr, Mode::Crr, Mode::Stream]
        .into_iter()
        .filter(|mode| plan.selected.wants(&id(*mode)))
        .collect();
    if modes.is_empty() {
        return Vec::new();
    }
    let paths = Paths { mesh: Mesh::new("", 0), routed: Bare::routed(), direct: Bare::direct() };
    let mut rows = Vec::new();
    for mode in modes {
        for (family, name) in FAMILIES.into_iter().enumerate() {
            let (id, what) = (id(mode), format!("{name} {}", mode.word().to_uppercase()));
            let found = compare(plan, &paths, mode, family, (&id, &what));
            rows.extend(found.unwrap_or_else(|why| vec![unmeasured(&id, &what, &why)]));
        }
    }
    rows
}

fn compare(
    plan: &Plan,
    paths: &Paths,
    mode: Mode,
    family: usize,
    (id, what): (&str, &str),
) -> Result<Vec<Row>, String> {
    let ours: Run = &|order| paths.mesh.way.run(family, order);
    let routed: Run = &|order| paths.routed.way.run(family, order);
    let direct: Run = &|order| paths.direct.way.run(family, order);
    let series = closed(plan, mode, &[ours, routed, ours, direct])?;
    let [one, others @ ..] = series.as_slice() else { return Err("no series".to_owned()) };
    let (judged, cpu) = match mode {
        Mode::Stream => (Metric::Throughput, Metric::StreamCpu),
        Mode::Rr | Mode::Crr => (Metric::P50, Metric::Cpu),
    };
    let noise = Some(judged.ratio(one, &others[1]));
    let peers = [(ROUTED, &others[0], target(mode, ROUTED)), (DIRECT, &others[2], target(mode, DIRECT))];
    let mut rows = vec![judged.row(id, what, one, "itself (A/A)", &others[1])];
    for (peer, other, target) in peers {
        let row = judged.row(id, what, one, peer, other);
        rows.push(target.map_or_else(|| row.clone(), |target| plan.judge(row.clone(), target, noise)));
        rows.push(cpu.row(id, what, one, peer, other));
    }
    if mode != Mode::Stream {
        let series = open(plan, mode, &[ours, routed, direct])?;
        for (peer, other) in [ROUTED, DIRECT].into_iter().zip(&series[1..]) {
            rows.push(Metric::P99.row(id, what, &series[0], peer, other));
        }
    }
    Ok(rows)
}

fn target(mode: Mode, peer: &str) -> Option<Target> {
    match (mode, peer) {
        (Mode::Rr, ROUTED) => Some(Target::AtMost(1.0)),
        (Mode::Rr, DIRECT) => Some(Target::AtMost(1.1)),
        (Mode::Stream, ROUTED) => Some(Target::AtLeast(1.0)),
        _ => None,
    }
}
