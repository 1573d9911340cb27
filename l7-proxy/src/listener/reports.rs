//! Exchanges and counts that the agent has not been told.
//!
//! Promise: of exchanges the latest few wait for it, and those that are lost are counted; counts add up until it takes them.

use std::collections::{BTreeMap, VecDeque};

use mesh::exchange::{Exchange, PairCounts};
use node_api::proxy::{FromProxy, PerBudget, ProxyReport};

use super::workers::Workers;
use crate::record::Counts;
use crate::stage::admit::Amounts;

/// What exchanges may take that wait for an agent, bytes.
const MAX_WAITING: usize = 16 << 20;
/// What those in one message take, or one alone, bytes; as JSON up to six times that. Answers wait behind it.
const BATCH: usize = 128 << 10;
/// Pairs in one message, each some KB at most.
const PAIRS: usize = 16;

/// What waits.
#[derive(Default)]
pub(super) struct Reports {
    waiting: VecDeque<Exchange>,
    /// What they take, bytes.
    size: usize,
    lost: u64,
    counts: Counts,
    /// Counts that were told and not yet taken.
    told: Vec<PairCounts>,
    refused: Refused,
    /// What was refused that no rules are about, by reason; and what of that was told and not yet taken.
    untold: BTreeMap<String, u64>,
    taking: BTreeMap<String, u64>,
}

/// How often workloads were refused more of something, all workers together.
#[derive(Default)]
struct Refused {
    now: Amounts,
    /// What the agent has taken, and what it was told last.
    taken: Amounts,
    told: Option<Amounts>,
}

impl Refused {
    /// What is to be told.
    fn added(&self) -> Amounts {
        let before = self.told.unwrap_or(self.taken);
        let mut added = self.now;
        added.iter_mut().zip(before).for_each(|(now, before)| *now = now.saturating_sub(before));
        added
    }
}

impl Reports {
    pub(super) fn collect(&mut self, workers: &Workers) {
        for worker in &workers.shared {
            self.take(worker.log.take_exchanges());
        }
        self.refused.now = sum(workers.shared.iter().map(|worker| worker.budgets.refused()));
    }

    fn take(&mut self, report: ProxyReport) {
        self.counts.add(report.counts);
        self.add(report.untold);
        self.lost += report.lost;
        self.size += report.exchanges.iter().map(Exchange::size).sum::<usize>();
        self.waiting.extend(report.exchanges);
        while self.size > MAX_WAITING && self.pop().is_some() {
            self.lost += 1;
        }
    }

    fn add(&mut self, untold: BTreeMap<String, u64>) {
        for (reason, count) in untold {
            *self.untold.entry(reason).or_default() += count;
        }
    }

    fn pop(&mut self) -> Option<Exchange> {
        let first = self.waiting.pop_front()?;
        self.size -= first.size();
        Some(first)
    }

    /// The next message, if there is anything to tell.
    pub(super) fn next(&mut self) -> Option<FromProxy> {
        if self.is_empty() {
            return None;
        }
        let (mut exchanges, mut size) = (Vec::new(), 0);
        while size < BATCH
            && let Some(exchange) = self.pop()
        {
            size += exchange.size();
            exchanges.push(exchange);
        }
        let (lost, counts) = (std::mem::take(&mut self.lost), self.counts.take(PAIRS));
        self.told.clone_from(&counts);
        let refused = PerBudget::from(self.refused.added());
        self.refused.told = Some(self.refused.now);
        let untold = std::mem::take(&mut self.untold);
        self.taking.clone_from(&untold);
        Some(FromProxy::Report(Box::new(ProxyReport { exchanges, lost, counts, refused, untold })))
    }

    /// The agent has what it was told.
    pub(super) fn taken(&mut self) {
        self.told.clear();
        self.taking.clear();
        self.refused.taken = self.refused.told.take().unwrap_or(self.refused.taken);
    }

    /// It has gone; another one counts from zero.
    pub(super) fn again(&mut self) {
        self.counts.add(std::mem::take(&mut self.told));
        let untold = std::mem::take(&mut self.taking);
        self.add(untold);
        self.refused.told = None;
    }

    pub(super) fn is_empty(&self) -> bool {
        let nothing_refused = self.refused.added() == Amounts::default() && self.untold.is_empty();
        self.waiting.is_empty() && self.lost == 0 && self.counts.is_empty() && nothing_refused
    }
}

fn sum(all: impl Iterator<Item = Amounts>) -> Amounts {
    all.fold(Amounts::default(), |mut sum, one| {
        sum.iter_mut().zip(one).for_each(|(sum, one)| *sum += one);
        sum
    })
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use mesh::exchange::Kind;
    use mesh::flow::Verdict;

    use super::*;

    fn exchange(path: usize) -> Exchange {
        let end = SocketAddr::from(([10, 0, 0, 1], 80));
        Exchange {
            start: 0,
            client: end,
            server: end,
            client_identity: None,
            server_identity: None,
            is_passed: false,
            is_https: false,
            method: String::new(),
            authority: String::new(),
            path: "a".repeat(path),
            protocol: String::new(),
            server_name: None,
            code: None,
            verdict: Verdict::Forwarded,
            reason: None,
            flag: None,
            received: 0,
            sent: 0,
            duration: 0,
            answered: None,
            served: None,
            request_headers: Vec::new(),
            response_headers: Vec::new(),
        }
    }

    fn counts(reports: &mut Reports) -> (usize, u64, u64) {
        let Some(FromProxy::Report(report)) = reports.next() else { return (0, 0, 0) };
        let kinds = report.counts.iter().flat_map(|pair| &pair.exchanges);
        (report.exchanges.len(), report.lost, kinds.map(|(_, count)| count).sum())
    }

    #[test]
    fn what_was_refused_is_told_once_and_again_if_it_was_not_taken() {
        let mut reports = Reports::default();
        let told = |reports: &mut Reports| match reports.next() {
            Some(FromProxy::Report(report)) => Some(report.refused),
            _ => None,
        };
        assert_eq!(told(&mut reports), None);
        reports.refused.now = sum([[1, 0, 2, 0], [0, 0, 1, 4]].into_iter());
        assert_eq!(told(&mut reports), Some([1, 0, 3, 4].into()));
        assert!(reports.is_empty());
        // Its agent goes before it has taken that.
        reports.again();
        assert_eq!(told(&mut reports), Some([1, 0, 3, 4].into()));
        reports.refused.now = [2, 0, 3, 4];
        assert_eq!(told(&mut reports), Some([1, 0, 0, 0].into()));
        reports.taken();
        assert!(reports.is_empty());
        reports.again();
        assert!(reports.is_empty());
    }

    #[test]
    fn what_nobody_takes_has_a_bound_and_is_counted() {
        let mut reports = Reports::default();
        let size = exchange(64 << 10).size();
        let fit = MAX_WAITING / size;
        for _ in 0..fit + 7 {
            reports.take(ProxyReport { exchanges: vec![exchange(64 << 10)], ..ProxyReport::default() });
        }
        let (first, lost, _) = counts(&mut reports);
        assert!(first <= BATCH / size + 1);
        assert_eq!(lost, 7);
        let mut all = first;
        while let (more @ 1.., 0, _) = counts(&mut reports) {
            all += more;
        }
        assert_eq!(all, fit);
        assert!(reports.is_empty() && reports.size == 0);
    }

    #[test]
    fn counts_are_told_again_to_another_agent_only_if_they_were_not_taken() {
        let mut pair = PairCounts::default();
        pair.count(Kind { method: None, code: 200, verdict: Verdict::Forwarded, flag: None }, 3);
        let untold: BTreeMap<_, _> = [("no rules for it".to_owned(), 1)].into();
        let report =
            || ProxyReport { counts: vec![pair.clone()], untold: untold.clone(), ..ProxyReport::default() };
        let mut reports = Reports::default();
        reports.take(report());
        assert_eq!(counts(&mut reports), (0, 0, 3));
        reports.again();
        reports.take(report());
        assert_eq!(reports.untold["no rules for it"], 2);
        assert_eq!(counts(&mut reports), (0, 0, 6));
        reports.taken();
        reports.again();
        assert!(reports.is_empty());
    }
}
