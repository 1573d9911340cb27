//! Which rules a path can match: by the literals that their expressions begin with.
//!
//! The literals stand in order, each with the nearest one that it begins with itself. All that a path begins with are then
//! found by one binary search: the greatest that is not greater than the path, and those that this one begins with. A trie says
//! the same with many more pointers.

use std::sync::Arc;

use expression::{Matcher, Rest};

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
    /// Of the expressions of these rules.
    pub(super) fn new<'a>(paths: impl Iterator<Item = (u32, &'a Arc<Matcher>)>) -> Self {
        let branches = paths.flat_map(|(number, matcher)| {
            matcher.branches().iter().map(move |branch| (&*branch.prefix, &branch.rest, number))
        });
        let mut branches: Vec<(&[u8], &Rest, u32)> = branches.collect();
        branches.sort_by_key(|(prefix, rest, number)| (*prefix, kind(rest), *number));
        branches.dedup_by_key(|(prefix, rest, number)| (*prefix, kind(rest), *number));
        let (mut text, mut entries, mut candidates) = (Vec::new(), Vec::new(), Vec::new());
        let mut open = Vec::new();
        let mut at = 0;
        for alike in branches.chunk_by(|(one, ..), (other, ..)| one == other) {
            let Some((prefix, ..)) = alike.first() else { continue };
            let first = candidates.len();
            let mut exact = (at, at);
            for same in alike.chunk_by(|(_, one, _), (_, other, _)| kind(one) == kind(other)) {
                let numbers = (at, at + same.len());
                at = numbers.1;
                match same.first() {
                    Some((_, Rest::End, _)) => exact = numbers,
                    Some((_, rest, _)) => candidates.push(Candidate { rest: Rest::clone(rest), numbers }),
                    None => {}
                }
            }
            let parent = enclosing(&mut open, prefix, entries.len(), candidates.len() > first);
            entries.push(Entry {
                text: (text.len(), text.len() + prefix.len()),
                parent,
                exact,
                candidates: (first, candidates.len()),
            });
            text.extend_from_slice(prefix);
        }
        let numbers = branches.iter().map(|(.., number)| *number).collect();
        Self { text: text.into(), entries: entries.into(), candidates: candidates.into(), numbers }
    }

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

/// The nearest entry with candidates of those in `open` that `prefix` begins with, which is put there, too.
fn enclosing<'a>(
    open: &mut Vec<(&'a [u8], usize, bool, Option<usize>)>,
    prefix: &'a [u8],
    number: usize,
    has_candidates: bool,
) -> Option<usize> {
    while open.last().is_some_and(|(other, ..)| !prefix.starts_with(other)) {
        open.pop();
    }
    let parent = open.last().and_then(|(_, number, has, parent)| if *has { Some(*number) } else { *parent });
    open.push((prefix, number, has_candidates, parent));
    parent
}

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
            let paths = Paths::new((0..).zip(&matchers));
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
