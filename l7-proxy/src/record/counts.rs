//! Counts of exchanges by the pair of their ends, since they were taken last.

use std::collections::BTreeMap;
use std::ops::Bound;

use mesh::exchange::{BYTES, End, Kind, PairCounts, SECONDS};

/// Pairs that are told apart until they are taken.
const MOST_PAIRS: usize = 1024;

/// Counts by pair.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pairs: BTreeMap<[End; 2], PairCounts>,
    /// The last that was taken: the next come first, so that all have their turn.
    last: Option<[End; 2]>,
    /// Of those that there was no room for.
    rest: PairCounts,
}

impl Counts {
    /// An exchange is over.
    pub(crate) fn count(&mut self, ends: [End; 2], kind: Kind, latency: Option<f64>, bytes: [u64; 2]) {
        let pair = self.pair(Some(ends));
        pair.count(kind, 1);
        if let Some(latency) = latency {
            pair.latency.observe(latency, &SECONDS);
        }
        // A sum of 2^53 bytes and more is a little wrong.
        pair.received.observe(bytes[0] as f64, &BYTES);
        pair.sent.observe(bytes[1] as f64, &BYTES);
    }

    /// What was counted elsewhere, or has not been told after all.
    pub(crate) fn add(&mut self, counts: Vec<PairCounts>) {
        for more in counts {
            self.pair(more.ends).add(&more);
        }
    }

    /// Takes what there is, of so many pairs at most.
    pub(crate) fn take(&mut self, most: usize) -> Vec<PairCounts> {
        let mut taken = Vec::new();
        if !self.rest.exchanges.is_empty() {
            taken.push(std::mem::take(&mut self.rest));
        }
        let after = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let later = self.pairs.range((after, Bound::Unbounded)).map(|(ends, _)| *ends);
        let ends: Vec<_> = later.chain(self.pairs.keys().copied()).take(most).collect();
        taken.extend(ends.iter().filter_map(|ends| self.pairs.remove(ends)));
        self.last = ends.last().copied().or(self.last);
        taken
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pairs.is_empty() && self.rest.exchanges.is_empty()
    }

    fn pair(&mut self, ends: Option<[End; 2]>) -> &mut PairCounts {
        let is_full = self.pairs.len() >= MOST_PAIRS;
        match ends.filter(|ends| !is_full || self.pairs.contains_key(ends)) {
            Some(known) => {
                self.pairs.entry(known).or_insert_with(|| PairCounts { ends, ..PairCounts::default() })
            }
            None => &mut self.rest,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use mesh::flow::Verdict;

    use super::*;

    #[test]
    fn pairs_without_number_are_counted_together_and_none_is_lost() {
        let kind = Kind { method: Some(0), code: 200, verdict: Verdict::Forwarded, flag: None };
        let end = |number: u32| End { address: IpAddr::from(Ipv4Addr::from(number)), identity: None };
        let mut counts = Counts::default();
        for number in 0..2 * MOST_PAIRS as u32 {
            counts.count([end(number), end(1)], kind, Some(0.1), [1, 2]);
        }
        let mut all = Counts::default();
        while !counts.is_empty() {
            let part = counts.take(100);
            assert!(part.len() <= 101);
            all.add(part);
        }
        let pairs = all.take(usize::MAX);
        assert_eq!(pairs.len(), MOST_PAIRS + 1);
        assert_eq!(pairs.iter().map(|pair| pair.latency.count()).sum::<u64>(), 2 * MOST_PAIRS as u64);
        assert_eq!(pairs.iter().map(|pair| pair.sent.sum).sum::<f64>(), 4.0 * MOST_PAIRS as f64);
        assert!(all.is_empty());
    }
}
