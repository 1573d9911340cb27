//! A workload calls a service by its address: the cgroup hooks put a backend into the socket, and packets go there
//! untouched. Beside it the same call of the backend itself over a bare routed way, and of a VIP that the host on such a
//! way translates by a map of nftables or by rules of iptables, with as many services each.
//!
//! All tables are filled as users fill them: the agent reads as many `Service` objects (both families, a selector that
//! finds the server), nftables and iptables read as many elements and rules. The one that is called is the last.

use std::process::Command;

use super::compare::{Metric, Run, Series, closed, open, unmeasured};
use super::load::Mode;
use super::path::{Bare, FAMILIES, Mesh};
use super::plan::Plan;
use super::report::{Row, Target};

const COUNTS: [(&str, usize); 4] = [("1", 1), ("1k", 1_000), ("10k", 10_000), ("50k", 50_000)];

const PLAIN: &str = "routed, no service";
const FLAT: &str = "itself at 1 service";

/// Rows `l4.socket_lb.{crr,rr}.{1,1k,10k,50k}`, as far as they are asked for.
#[must_use]
pub fn measure(plan: &Plan) -> Vec<Row> {
    let wanted = |label: &'static str| {
        let id = move |mode: Mode| format!("l4.socket_lb.{}.{label}", mode.word());
        let modes = [Mode::Crr, Mode::Rr].into_iter().filter(|mode| plan.selected.wants(&id(*mode)));
        modes.map(|mode| (mode, id(mode))).collect::<Vec<_>>()
    };
    if COUNTS.iter().all(|(label, _)| wanted(label).is_empty()) {
        return Vec::new();
    }
    let (plain, one) = (Bare::routed(), Mesh::new("", 1));
    let mut rows = Vec::new();
    for (label, count) in COUNTS {
        let wanted = wanted(label);
        if wanted.is_empty() {
            continue;
        }
        let many = (count > 1).then(|| Mesh::new("", count));
        let translated = [(nft_name(), Bare::nft(count)), (iptables_name(), Bare::iptables(count))];
        let paths = Paths { plain: &plain, one: &one, many: many.as_ref(), translated };
        for (mode, id) in wanted {
            for (family, name) in FAMILIES.into_iter().enumerate() {
                let plural = if count == 1 { "" } else { "s" };
                let what = format!("{name} {}, {label} service{plural}", mode.word().to_uppercase());
                let found = compare(plan, &paths, mode, family, (&id, &what));
                rows.extend(found.unwrap_or_else(|why| vec![unmeasured(&id, &what, &why)]));
            }
        }
    }
    rows
}

/// What is compared at one number of services.
struct Paths<'a> {
    plain: &'a Bare,
    one: &'a Mesh,
    /// `None`: this number is one.
    many: Option<&'a Mesh>,
    /// By name; why not, where there is none.
    translated: [(String, Result<Bare, String>); 2],
}

fn nft_name() -> String {
    "nft map DNAT".to_owned()
}

/// Two programs have this name, and speak to different parts of the kernel.
fn iptables_name() -> String {
    let said = Command::new("iptables").arg("--version").output();
    let said = said.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let kind =
        said.split_once('(').and_then(|(_, rest)| rest.split_once(')')).map_or("legacy", |(kind, _)| kind);
    format!("iptables DNAT ({kind})")
}

fn compare(
    plan: &Plan,
    paths: &Paths,
    mode: Mode,
    family: usize,
    (id, what): (&str, &str),
) -> Result<Vec<Row>, String> {
    let ours: Run = &|order| paths.many.unwrap_or(paths.one).way.run(family, order);
    let one: Run = &|order| paths.one.way.run(family, order);
    let plain: Run = &|order| paths.plain.way.run(family, order);
    let (found, missing): (Vec<_>, Vec<_>) = paths.translated.iter().partition(|(_, way)| way.is_ok());
    let names = found.iter().map(|(name, _)| name.as_str());
    let runs: Vec<_> = found.iter().filter_map(|(_, way)| way.as_ref().ok()).collect();
    let runs: Vec<_> =
        runs.into_iter().map(|bare| |order: &dyn Fn(_) -> _| bare.way.run(family, order)).collect();
    let translated = || runs.iter().map(|run| run as Run);

    let turns: Vec<Run> =
        [ours, plain, ours].into_iter().chain(translated()).chain(paths.many.map(|_| one)).collect();
    let series = closed(plan, mode, &turns)?;
    let [first, beside, again, rest @ ..] = series.as_slice() else { return Err("no series".to_owned()) };
    let names = names.chain([FLAT]);
    let others: Vec<(&str, &Series)> = [(PLAIN, beside)].into_iter().chain(names.zip(rest)).collect();
    let mut rows = judged(plan, mode, (id, what), first, again, &others);
    rows.extend(others.iter().map(|(name, other)| Metric::Cpu.row(id, what, first, name, other)));

    let series = open(plan, mode, &[ours, plain].into_iter().chain(translated()).collect::<Vec<_>>())?;
    let at_a_rate = others.iter().zip(&series[1..]);
    rows.extend(at_a_rate.map(|((name, _), other)| Metric::P99.row(id, what, &series[0], name, other)));
    rows.extend(missing.iter().filter_map(|(name, way)| {
        Some(unmeasured(id, &format!("{what} against {name}"), way.as_ref().err()?))
    }));
    Ok(rows)
}

/// Rows of the median latency, once and again, beside others'.
fn judged(
    plan: &Plan,
    mode: Mode,
    (id, what): (&str, &str),
    ours: &Series,
    again: &Series,
    others: &[(&str, &Series)],
) -> Vec<Row> {
    let metric = Metric::P50;
    let noise = Some(metric.ratio(ours, again));
    let mut rows = vec![metric.row(id, what, ours, "itself (A/A)", again)];
    rows.extend(others.iter().map(|(name, other)| {
        let row = metric.row(id, what, ours, name, other);
        let limit = match *name {
            PLAIN => 1.1,
            FLAT => 1.05,
            _ => 1.0,
        };
        // The promise is about connections; what packets cost once there is one, `l4.tc` promises.
        if mode == Mode::Crr { plan.judge(row, Target::AtMost(limit), noise) } else { row }
    }));
    rows
}
