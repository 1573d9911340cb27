//! Which rules a path can match: by the literals that their expressions begin with.
//!
//! The literals stand in order, each with the nearest one that it begins with itself. All that a path begins with are then
//! found by one binary search: the greatest that is not greater than the path, and those that this one begins with. A trie says
//! the same with many more pointers.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::sync::Arc;

use expression::{Branch, Matcher, Rest};

/// Rules by the literals that their paths' expressions begin with.
#[derive(Debug, Default)]
pub(super) struct Paths {
    text: Box<[u8]>,
    /// By their literals, ascending.
    entries: Box<[Entry]>,
    candidates: Box<[Candidate]>,
    /// Numbers of rules, which entries and candidates have parts of.
    numbers: Box<[u32]>,
}

/// A literal. Its places are those in the lists of [`Paths`].
#[derive(Debug)]
struct Entry {
    text: (usize, usize),
    /// The longest entry with candidates that this one begins with, beside itself.
    parent: Option<usize>,
    /// Rules that want this literal and nothing after it.
    exact: (usize, usize),
    /// Rules that want something after it.
    candidates: (usize, usize),
}

/// Rules that want the same after the same literal.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) rest: Rest,
    numbers: (usize, usize),
}

/// Rules that a path may match.
pub(super) struct Hit<'a> {
    /// What must come after so many bytes of it; `None`: nothing, and nothing does.
    pub(super) rest: Option<(&'a Rest, usize)>,
    /// Their numbers, ascending.
    pub(super) numbers: &'a [u32],
}

impl Paths {
    /// What a path may match.
    pub(super) fn hits<'a>(&'a self, path: &[u8]) -> impl Iterator<Item = Hit<'a>> {
        let last = self.entries.partition_point(|entry| self.text(entry) <= path).checked_sub(1);
        let greatest = last.and_then(|last| self.entries.get(last));
        let shared = greatest.map_or(0, |entry| {
            self.text(entry).iter().zip(path).take_while(|(one, other)| one == other).count()
        });
        let is_whole = |entry: &&Entry| length(entry.text) == path.len() && shared == path.len();
        let exact = greatest.filter(is_whole).map(|entry| self.numbers(entry.exact));
        let exact = exact.filter(|numbers| !numbers.is_empty()).map(|numbers| Hit { rest: None, numbers });
        // What the greatest begins with the path may not.
        let chain = std::iter::successors(greatest, |entry| self.entries.get(entry.parent?));
        let prefixes = chain.filter(move |entry| length(entry.text) <= shared);
        let others = prefixes.flat_map(|entry| {
            let (from, to) = entry.candidates;
            self.candidates.get(from..to).unwrap_or_default().iter().map(|candidate| Hit {
                rest: Some((&candidate.rest, length(entry.text))),
                numbers: self.numbers(candidate.numbers),
            })
        });
        exact.into_iter().chain(others)
    }

    fn text(&self, entry: &Entry) -> &[u8] {
        self.text.get(entry.text.0..entry.text.1).unwrap_or_default()
    }

    fn numbers(&self, (from, to): (usize, usize)) -> &[u32] {
        self.numbers.get(from..to).unwrap_or_default()
    }
}

fn length((from, to): (usize, usize)) -> usize {
    to - from
}

/// The same for what is alike.
fn kind(rest: &Rest) -> usize {
    match rest {
        Rest::End => 0,
        Rest::Line => 1,
        Rest::Automaton(automaton) => Arc::as_ptr(automaton) as usize,
    }
}

/// [`Paths`] in the making: the branches of one rule after the other are put in order, then one after the other is written down.
#[derive(Debug, Default)]
pub(super) struct Building {
    sorted: BTreeSet<Branched>,
    text: Vec<u8>,
    entries: Vec<Entry>,
    candidates: Vec<Candidate>,
    numbers: Vec<u32>,
    /// Entries that the last one begins with, and it: each begins with the one before.
    open: Vec<usize>,
    /// What is alike in the last candidate, if the last entry has one.
    kind: Option<usize>,
}

/// A branch of the path's expression of a rule.
#[derive(Debug)]
struct Branched {
    matcher: Arc<Matcher>,
    branch: usize,
    number: u32,
}

impl Building {
    /// Puts a rule in order; says how many branches it has.
    pub(super) fn sort(&mut self, number: u32, matcher: &Arc<Matcher>) -> usize {
        let count = matcher.branches().len();
        self.sorted.extend((0..count).map(|branch| Branched {
            matcher: Arc::clone(matcher),
            branch,
            number,
        }));
        count
    }

    /// Writes down the next branch, once all are in order; false: there is none.
    pub(super) fn write(&mut self) -> bool {
        let Some(next) = self.sorted.pop_first() else { return false };
        let Some(Branch { prefix, rest }) = next.matcher.branches().get(next.branch) else { return true };
        if self.entries.last().is_none_or(|entry| self.text_of(entry) != &**prefix) {
            self.enter(prefix);
        }
        self.numbers.push(next.number);
        let at = self.numbers.len();
        let Some(entry) = self.entries.last_mut() else { return true };
        match (rest, self.candidates.last_mut()) {
            (Rest::End, _) if entry.exact.0 == entry.exact.1 => entry.exact = (at - 1, at),
            (Rest::End, _) => entry.exact.1 = at,
            (rest, Some(last)) if self.kind == Some(kind(rest)) => last.numbers.1 = at,
            (rest, _) => {
                self.kind = Some(kind(rest));
                self.candidates.push(Candidate { rest: rest.clone(), numbers: (at - 1, at) });
                entry.candidates.1 = self.candidates.len();
            }
        }
        true
    }

    /// What has been written down.
    pub(super) fn finish(self) -> Paths {
        let Self { text, entries, candidates, numbers, .. } = self;
        Paths {
            text: text.into(),
            entries: entries.into(),
            candidates: candidates.into(),
            numbers: numbers.into(),
        }
    }

    fn enter(&mut self, prefix: &[u8]) {
        while let Some(other) = self.open.last().and_then(|at| self.entries.get(*at))
            && !prefix.starts_with(self.text_of(other))
        {
            self.open.pop();
        }
        let parent = self.open.last().and_then(|at| {
            let entry = self.entries.get(*at)?;
            if length(entry.candidates) > 0 { Some(*at) } else { entry.parent }
        });
        self.open.push(self.entries.len());
        let (from, first) = (self.text.len(), self.candidates.len());
        self.text.extend_from_slice(prefix);
        let (text, candidates) = ((from, self.text.len()), (first, first));
        self.entries.push(Entry { text, parent, exact: (0, 0), candidates });
        self.kind = None;
    }

    fn text_of(&self, entry: &Entry) -> &[u8] {
        self.text.get(entry.text.0..entry.text.1).unwrap_or_default()
    }
}

impl Branched {
    fn key(&self) -> (&[u8], usize, u32) {
        let branch = self.matcher.branches().get(self.branch);
        branch.map_or((&[], 0, self.number), |branch| (&*branch.prefix, kind(&branch.rest), self.number))
    }
}

impl Ord for Branched {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

impl PartialOrd for Branched {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Branched {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Branched {}

#[cfg(test)]
mod tests {
    use expression::Expressions;

    use super::*;

    /// Random expressions of few letters, so that they begin with each other, and random paths of the same: the index finds
    /// what each expression by itself matches.
    #[test]
    fn it_finds_what_matches_and_only_what_begins_so() {
        let mut state = 1_u32;
        let mut random = move |below: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) % below
        };
        for _ in 0..200 {
            let mut text =
                |most| -> String { (0..random(most)).map(|_| ["a", "b", "/"][random(3) as usize]).collect() };
            let tails = ["", "", ".*", "[ab]*", "(a|b)/.*", "a|b"];
            let texts: Vec<String> = (0..20).map(|at| text(6) + tails[at % tails.len()]).collect();
            let mut store = Expressions::default();
            let matchers: Vec<_> = texts.iter().map(|text| store.matcher(text, false).unwrap()).collect();
            let mut building = Building::default();
            for (number, matcher) in (0..).zip(&matchers) {
                building.sort(number, matcher);
            }
            while building.write() {}
            let paths = building.finish();
            for _ in 0..100 {
                let path = text(9);
                let path = path.as_bytes();
                let hits = paths
                    .hits(path)
                    .filter(|hit| hit.rest.is_none_or(|(rest, from)| rest.is_match(path, from)));
                let mut found: Vec<u32> = hits.flat_map(|hit| hit.numbers.iter().copied()).collect();
                found.sort_unstable();
                found.dedup();
                let right: Vec<u32> = (0..)
                    .zip(&matchers)
                    .filter(|(_, matcher)| matcher.is_match(path))
                    .map(|(number, _)| number)
                    .collect();
                assert_eq!(found, right, "{texts:?} {path:?}");
            }
        }
    }
}
