//! Connections that are open: what it costs that every packet of them compares a mark.

use super::policy;
use crate::bench::compare::{Metric, Run, closed, unmeasured};
use crate::bench::load::Mode;
use crate::bench::path::{FAMILIES, Mesh};
use crate::bench::plan::Plan;
use crate::bench::report::{Row, Target};

const ID: &str = "auth.steady";
const PLAIN: &str = "the same policy without authentication";
/// Where the servers of ways listen.
const PORT: u16 = 9000;

/// Rows `auth.steady.{rr,stream}` and, of connections whose pair was proven before, `auth.steady.crr`.
#[must_use]
pub fn measure(plan: &Plan) -> Vec<Row> {
    let id = |mode: Mode| format!("{ID}.{}", mode.word());
    let modes: Vec<_> = [Mode::Rr, Mode::Stream, Mode::Crr]
        .into_iter()
        .filter(|mode| plan.selected.wants(&id(*mode)))
        .collect();
    if modes.is_empty() {
        return Vec::new();
    }
    let [proven, plain] = [true, false].map(|required| Mesh::with_policy(&policy(required, PORT), "", 0));
    let mut rows = Vec::new();
    for mode in modes {
        for (family, name) in FAMILIES.into_iter().enumerate() {
            let (id, what) = (id(mode), format!("{name} {}", mode.word().to_uppercase()));
            let found = compare(plan, &proven, &plain, mode, family, (&id, &what));
            rows.extend(found.unwrap_or_else(|why| vec![unmeasured(&id, &what, &why)]));
        }
    }
    rows
}

fn compare(
    plan: &Plan,
    proven: &Mesh,
    plain: &Mesh,
    mode: Mode,
    family: usize,
    (id, what): (&str, &str),
) -> Result<Vec<Row>, String> {
    let ours: Run = &|order| proven.way.run(family, order);
    let without: Run = &|order| plain.way.run(family, order);
    let series = closed(plan, mode, &[ours, without, ours])?;
    let (judged, cpu, target) = match mode {
        Mode::Stream => (Metric::Throughput, Metric::StreamCpu, Target::AtLeast(0.98)),
        Mode::Rr | Mode::Crr => (Metric::P50, Metric::Cpu, Target::AtMost(1.02)),
    };
    let noise = Some(judged.ratio(&series[0], &series[2]));
    Ok(vec![
        judged.row(id, what, &series[0], "itself (A/A)", &series[2]),
        plan.judge(judged.row(id, what, &series[0], PLAIN, &series[1]), target, noise),
        cpu.row(id, what, &series[0], PLAIN, &series[1]),
    ])
}
