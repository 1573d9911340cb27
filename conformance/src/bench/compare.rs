//! Runs that take turns, and what they say of each other.
//!
//! A ratio is the median over the rounds of each round's ratio: what changes from round to round falls on both. One way
//! takes two turns in each round; how far those two differ tells how far the machine can be believed.

use super::load::{Mode, Order, Sample};
use super::plan::Plan;
use super::report::Row;

/// Operations a second of the open loops: well below what any of the ways can do with few services on a slow machine, so
/// that what waits, waits for a stall. A way that cannot keep up says so by a latency as long as its run.
const RR_RATE: f64 = 4000.0;
const CRR_RATE: f64 = 1000.0;

/// One run of one way.
pub(super) type Run<'a> = &'a dyn Fn(&dyn Fn(std::net::SocketAddr) -> Order) -> Result<Sample, String>;

/// The samples of one way, a round each.
pub(super) type Series = Vec<Sample>;

/// Back to back, for medians, throughput and CPU time.
pub(super) fn closed(plan: &Plan, mode: Mode, runs: &[Run]) -> Result<Vec<Series>, String> {
    alternate(plan, runs, &|to| Order { mode, to, seconds: plan.seconds_per_run, rate: None })
}

/// At a fixed rate, for the 99th percentile; half as long.
pub(super) fn open(plan: &Plan, mode: Mode, runs: &[Run]) -> Result<Vec<Series>, String> {
    let rate = Some(if mode == Mode::Crr { CRR_RATE } else { RR_RATE });
    alternate(plan, runs, &|to| Order { mode, to, seconds: plan.seconds_per_run / 2.0, rate })
}

fn alternate(
    plan: &Plan,
    runs: &[Run],
    order: &dyn Fn(std::net::SocketAddr) -> Order,
) -> Result<Vec<Series>, String> {
    turns(plan.rounds, runs.len(), |number| runs[number](order))
}

/// Lets so many take turns, as often as there are rounds; the samples of each.
pub(super) fn turns<T>(
    rounds: usize,
    count: usize,
    mut turn: impl FnMut(usize) -> Result<T, String>,
) -> Result<Vec<Vec<T>>, String> {
    let mut series: Vec<Vec<T>> = (0..count).map(|_| Vec::new()).collect();
    for round in 0..rounds {
        let mut turns: Vec<_> = series.iter_mut().enumerate().collect();
        // Forth and back: what drifts within a round falls on the last as on the first.
        if round % 2 == 1 {
            turns.reverse();
        }
        for (number, samples) in turns {
            samples.push(turn(number)?);
        }
    }
    Ok(series)
}

/// What a row tells of its samples.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Metric {
    /// Median latency.
    P50,
    /// 99th percentile of the latency at a fixed rate.
    P99,
    /// CPU time of the machine for one operation.
    Cpu,
    /// Bits that arrive.
    Throughput,
    /// CPU time of the machine for a million bytes.
    StreamCpu,
}

impl Metric {
    fn of(self, sample: &Sample) -> f64 {
        let operations = sample.operations as f64;
        match self {
            Self::P50 => sample.p50,
            Self::P99 => sample.p99,
            Self::Cpu => sample.busy_seconds * 1e6 / operations,
            Self::Throughput => operations * 8.0 / 1e9 / sample.seconds,
            Self::StreamCpu => sample.busy_seconds * 1e6 / (operations / 1e6),
        }
    }

    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::P50 => ("p50", "µs"),
            Self::P99 => ("p99 at a fixed rate", "µs"),
            Self::Cpu => ("CPU per operation", "µs"),
            Self::Throughput => ("throughput", "Gbit/s"),
            Self::StreamCpu => ("CPU per MB", "µs"),
        }
    }

    /// Of a way.
    pub(super) fn median(self, series: &[Sample]) -> f64 {
        median(series.iter().map(|sample| self.of(sample)).collect())
    }

    /// Of one way by another.
    pub(super) fn ratio(self, one: &[Sample], other: &[Sample]) -> f64 {
        median(one.iter().zip(other).map(|(one, other)| self.of(one) / self.of(other)).collect())
    }

    /// A row of one way beside another.
    pub(super) fn row(self, id: &str, what: &str, one: &[Sample], name: &str, other: &[Sample]) -> Row {
        let (words, unit) = self.words();
        let row = Row::new(id, format!("{what} {words}"), self.median(one), unit);
        Row { against: Some(name.to_owned()), ratio: Some(self.ratio(one, other)), ..row }
    }
}

/// The row of what could not be measured.
pub(super) fn unmeasured(id: &str, what: &str, why: &str) -> Row {
    Row::new(id, format!("{what}: not measured: {why}"), f64::NAN, "")
}

/// The middle one of these, or of the two in the middle.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { at(middle) } else { f64::midpoint(at(middle.wrapping_sub(1)), at(middle)) }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::super::plan::Selection;
    use super::*;

    fn sample(p50: f64) -> Sample {
        Sample { operations: 1_000_000, seconds: 2.0, busy_seconds: 3.0, p50, p90: 0.0, p99: 9.0 }
    }

    #[test]
    fn a_ratio_is_the_median_of_each_rounds_own() {
        // The machine was twice as slow in the third round, for both.
        let one = [10.0, 11.0, 20.0].map(sample);
        let other = [20.0, 20.0, 40.0].map(sample);
        assert!((Metric::P50.ratio(&one, &other) - 0.5).abs() < 1e-9);
        let row = Metric::P50.row("l4.x", "IPv4 RR", &one, "other", &other);
        assert_eq!((row.value, row.ratio, row.what.as_str()), (11.0, Some(0.5), "IPv4 RR p50"));
    }

    #[test]
    fn figures_are_for_one_operation_or_one_second() {
        let figures =
            [Metric::Cpu, Metric::Throughput, Metric::StreamCpu].map(|metric| metric.of(&sample(1.0)));
        assert_eq!(figures, [3.0, 0.004, 3_000_000.0]);
        assert_eq!((median(vec![4.0, 1.0, 2.0, 3.0]), median(vec![]).is_nan()), (2.5, true));
    }

    #[test]
    fn turns_go_forth_and_back_and_a_failure_ends_them() {
        let turns = RefCell::new(String::new());
        let run = |name: char| {
            let turns = &turns;
            move |_: &dyn Fn(std::net::SocketAddr) -> Order| {
                turns.borrow_mut().push(name);
                if turns.borrow().len() > 4 { Err("tired".to_owned()) } else { Ok(sample(1.0)) }
            }
        };
        let plan =
            |rounds| Plan { rounds, seconds_per_run: 0.0, selected: Selection::default(), quick: false };
        let (a, b) = (run('a'), run('b'));
        assert_eq!(closed(&plan(2), Mode::Rr, &[&a, &b]).unwrap().iter().map(Vec::len).sum::<usize>(), 4);
        assert_eq!(closed(&plan(3), Mode::Rr, &[&a, &b]), Err("tired".to_owned()));
        assert_eq!(*turns.borrow(), "abbaa");
    }
}
