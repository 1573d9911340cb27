//! The ranges of ports in which somebody is held to rules, and what holds in each.
//!
//! Promise: what holds where the same claims do is made once, and ranges share it. From one boundary to the next only those
//! claims are looked at that begin or end there, if these have done so at that point before; else all that hold. What all that
//! comes to ([`Measure`]) has a bound; beyond it nothing passes.
//!
//! Only ports matter that some demand is about. They are laid side by side and numbered anew: a claim on all ports is one
//! interval of that, however many holes there are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Claim;
use crate::identity::Identity;
use crate::l7::{HttpRules, L7Access, L7Demand, L7Inspected, L7Ports, L7Tls, Measure};
use crate::policy::compile::ports::Cell;
use crate::policy::universe::Audience;

/// Claims by their places, ascending.
type Active = Vec<usize>;
/// What holds at a range.
type Held = (Arc<[L7Access]>, Arc<[L7Tls]>, Arc<[L7Inspected]>);
/// The same; `None`: anybody may do anything there.
type Kind = Option<Held>;

/// The ranges, least first, equal neighbours as one; and what they come to, not counted further than `most`.
pub(super) fn ranges(claims: &[Claim<'_>], most: usize) -> (Vec<L7Ports>, usize) {
    let nobody = |claim: &Claim<'_>| matches!(&claim.audience, Audience::These(peers) if peers.is_empty());
    let claims: Vec<&Claim<'_>> = claims.iter().filter(|claim| !nobody(claim)).collect();
    let governed = Governed::new(claims.iter().copied().filter(|claim| claim.demand.is_some()));
    let mut changes: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (number, claim) in claims.iter().enumerate() {
        let intervals = claim.cells.iter().filter_map(|cell| governed.interval(cell));
        for (first, after) in union(intervals) {
            changes.entry(first).or_default().push(number);
            changes.entry(after).or_default().push(number);
        }
    }
    let mut states = States::new(&claims, most);
    let (mut ranges, mut state, mut from): (Vec<L7Ports>, _, _) = (Vec::new(), 0, 0);
    for (at, changed) in changes {
        if let Some(held) = states.kind(state) {
            for (first, last) in governed.ports(from, at) {
                let is_next =
                    |before: &&mut L7Ports| before.last.checked_add(1) == Some(first) && before.is(held);
                match ranges.last_mut().filter(is_next) {
                    Some(before) => before.last = last,
                    None => {
                        let (access, tls, inspected) = held.clone();
                        ranges.push(L7Ports { first, last, access, tls, inspected });
                    }
                }
            }
        }
        (state, from) = (states.next(state, changed), at);
    }
    (ranges, states.parts)
}

impl L7Ports {
    fn is(&self, (access, tls, inspected): &Held) -> bool {
        self.access == *access && self.tls == *tls && self.inspected == *inspected
    }
}

/// Intervals that have no point in common and do not touch, ascending; the end is not in them.
fn union(intervals: impl Iterator<Item = (u32, u32)>) -> Vec<(u32, u32)> {
    let mut intervals: Vec<(u32, u32)> = intervals.collect();
    intervals.sort_unstable();
    let mut all: Vec<(u32, u32)> = Vec::with_capacity(intervals.len());
    for (first, after) in intervals {
        match all.last_mut() {
            Some((_, end)) if first <= *end => *end = after.max(*end),
            _ => all.push((first, after)),
        }
    }
    all
}

/// The ports that some demand is about, side by side.
struct Governed {
    /// First port, the one after the last, and the number of the first among all.
    pieces: Vec<(u32, u32, u32)>,
}

impl Governed {
    fn new<'a>(claims: impl Iterator<Item = &'a Claim<'a>>) -> Self {
        let cells = claims.flat_map(|claim| &claim.cells).filter(|cell| cell.first <= cell.last);
        let mut number = 0;
        let pieces = union(cells.map(|cell| (cell.first.into(), u32::from(cell.last) + 1)));
        let pieces = pieces.into_iter().map(|(first, after)| {
            let piece = (first, after, number);
            number += after - first;
            piece
        });
        Self { pieces: pieces.collect() }
    }

    /// How many of them are below a port.
    fn below(&self, port: u32) -> u32 {
        let at = self.pieces.partition_point(|(first, ..)| *first <= port).checked_sub(1);
        let piece = at.and_then(|at| self.pieces.get(at));
        piece.map_or(0, |(first, after, number)| number + port.min(*after) - first)
    }

    /// What of them a cell has.
    fn interval(&self, cell: &Cell) -> Option<(u32, u32)> {
        let (first, after) = (self.below(cell.first.into()), self.below(u32::from(cell.last) + 1));
        (first < after).then_some((first, after))
    }

    /// The ranges of ports, both ends inclusive, of some of them.
    fn ports(&self, from: u32, to: u32) -> impl Iterator<Item = (u16, u16)> {
        let at = self.pieces.partition_point(|(.., number)| *number <= from).saturating_sub(1);
        let pieces = self.pieces.iter().skip(at).take_while(move |(.., number)| *number < to);
        pieces.filter_map(move |(first, after, number)| {
            let begin = first + from.saturating_sub(*number);
            let end = (*after).min(first + (to - number));
            Some((u16::try_from(begin).ok()?, u16::try_from(end.checked_sub(1)?).ok()?))
        })
    }
}

/// Which claims hold together somewhere, and what they come to.
struct States<'a> {
    claims: &'a [&'a Claim<'a>],
    /// Places of the claims' demands in `demands`.
    ranks: Vec<Option<usize>>,
    /// In order, each once.
    demands: Vec<&'a L7Demand>,
    /// The first is that none does.
    all: Vec<(Active, Kind)>,
    known: BTreeMap<Active, usize>,
    moves: BTreeMap<(usize, Vec<usize>), usize>,
    peers: BTreeSet<Arc<[Identity]>>,
    measure: Measure,
    parts: usize,
    most: usize,
    /// What all others come to once there is more than `most`: its place.
    excess: Option<usize>,
}

impl<'a> States<'a> {
    fn new(claims: &'a [&'a Claim<'a>], most: usize) -> Self {
        let given: Vec<Option<&L7Demand>> = claims.iter().map(|claim| claim.demand).collect();
        // What is shared is compared once.
        let places: BTreeMap<_, &L7Demand> =
            given.iter().flatten().map(|demand| (place(demand), *demand)).collect();
        let demands: Vec<&L7Demand> = places.into_values().collect::<BTreeSet<_>>().into_iter().collect();
        let mut ranks: BTreeMap<_, Option<usize>> = BTreeMap::new();
        let mut rank = |demand: &L7Demand| {
            *ranks.entry(place(demand)).or_insert_with(|| demands.binary_search(&demand).ok())
        };
        let ranks = given.iter().map(|demand| demand.and_then(&mut rank)).collect();
        Self {
            claims,
            ranks,
            demands,
            all: vec![(Active::new(), None)],
            known: [(Active::new(), 0)].into(),
            moves: BTreeMap::new(),
            peers: BTreeSet::new(),
            measure: Measure::default(),
            parts: 0,
            most,
            excess: None,
        }
    }

    fn kind(&self, state: usize) -> Option<&Held> {
        self.all.get(state)?.1.as_ref()
    }

    /// The one in which these claims hold that did not, and do not hold that did.
    fn next(&mut self, state: usize, changed: Vec<usize>) -> usize {
        if let Some(excess) = self.excess {
            return excess;
        }
        let step = (state, changed);
        if let Some(next) = self.moves.get(&step) {
            return *next;
        }
        let before = self.all.get(state).map(|(active, _)| active.as_slice()).unwrap_or_default();
        let active = differing(before, &step.1);
        let next = match self.known.get(&active) {
            Some(known) => *known,
            None => self.enter(active),
        };
        self.moves.insert(step, next);
        next
    }

    fn enter(&mut self, active: Active) -> usize {
        let kind = self.access(&active);
        let place = self.all.len();
        // What nobody is held to has been looked at all the same.
        let own =
            kind.as_ref().map_or(0, |(access, tls, inspected)| self.measure.parts(access, tls, inspected));
        self.parts += own.max(active.len());
        self.all.push((active.clone(), kind));
        self.known.insert(active, place);
        if self.parts > self.most {
            // This one is still what it is: with it, whoever enforces them has too much.
            let nothing: Arc<[L7Access]> =
                [L7Access { peers: None, http: Some(HttpRules::default()) }].into();
            self.excess = Some(self.all.len());
            self.all.push((Active::new(), Some((nothing, Arc::default(), Arc::default()))));
        }
        place
    }

    /// What these claims come to at one port; `None` if anybody may do anything. Whoever may do anything is not named again
    /// among those who may do something.
    fn access(&mut self, active: &[usize]) -> Kind {
        /// `None`: anybody.
        type Peers = Option<Vec<Identity>>;
        let mut by_demand: BTreeMap<Option<usize>, Peers> = BTreeMap::new();
        for number in active {
            let (Some(claim), Some(rank)) = (self.claims.get(*number), self.ranks.get(*number)) else {
                continue;
            };
            let peers = by_demand.entry(*rank).or_insert_with(|| Some(Vec::new()));
            match (&claim.audience, peers) {
                (Audience::Any, peers) => *peers = None,
                (Audience::These(these), Some(peers)) => peers.extend(these),
                (Audience::These(_), None) => {}
            }
        }
        for peers in by_demand.values_mut().flatten() {
            peers.sort_unstable();
            peers.dedup();
        }
        let free = match by_demand.get(&None) {
            Some(None) => return None,
            Some(Some(free)) => free.clone(),
            None => Vec::new(),
        };
        let (mut access, mut tls, mut inspected) = (Vec::new(), Vec::new(), Vec::new());
        let mut is_judged = false;
        for (rank, peers) in by_demand {
            let demand = rank.and_then(|rank| self.demands.get(rank)).copied();
            let held = |mut peers: Vec<Identity>| {
                if demand.is_some() {
                    peers.retain(|peer| free.binary_search(peer).is_err());
                }
                peers
            };
            let peers = peers.map(held);
            if peers.as_ref().is_some_and(Vec::is_empty) {
                continue;
            }
            let peers = peers.map(|peers| self.shared(peers));
            is_judged |= demand.is_some();
            match demand {
                None => access.push(L7Access { peers, http: None }),
                Some(L7Demand::Http(rules)) => access.push(L7Access { peers, http: Some(rules.clone()) }),
                Some(L7Demand::ServerNames(names)) => tls.push(L7Tls { peers, names: names.clone() }),
                Some(L7Demand::Inspection(inspection)) => {
                    inspected.push(L7Inspected { peers, inspection: Arc::clone(inspection) });
                }
            }
        }
        is_judged.then(|| (access.into(), tls.into(), inspected.into()))
    }

    fn shared(&mut self, peers: Vec<Identity>) -> Arc<[Identity]> {
        if let Some(known) = self.peers.get(peers.as_slice()) {
            return Arc::clone(known);
        }
        let peers: Arc<[Identity]> = peers.into();
        self.peers.insert(Arc::clone(&peers));
        peers
    }
}

/// Where the list of a demand is.
fn place(demand: &L7Demand) -> (u8, usize, usize) {
    match demand {
        L7Demand::Http(rules) => (0, rules.as_ptr() as usize, rules.len()),
        L7Demand::ServerNames(names) => (1, names.as_ptr() as usize, names.len()),
        L7Demand::Inspection(inspection) => (2, Arc::as_ptr(inspection) as usize, 1),
    }
}

/// What is in one of two ascending lists, and not in both.
fn differing(one: &[usize], other: &[usize]) -> Vec<usize> {
    let (mut one, mut other) = (one.iter().copied().peekable(), other.iter().copied().peekable());
    let mut all = Vec::new();
    loop {
        match (one.peek(), other.peek()) {
            (Some(left), Some(right)) if left == right => {
                one.next();
                other.next();
            }
            (Some(left), Some(right)) if left > right => all.extend(other.next()),
            (Some(_), _) => all.extend(one.next()),
            (None, Some(_)) => all.extend(other.next()),
            (None, None) => return all,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::l7::{Expression, HttpRule};

    fn demand(rules: usize) -> L7Demand {
        let rule = |number| HttpRule { path: Some(Expression(format!("/{number}"))), ..HttpRule::default() };
        L7Demand::Http((0..rules).map(rule).collect())
    }

    fn claim<'a>(
        peer: u32,
        demand: Option<&'a L7Demand>,
        cells: impl IntoIterator<Item = (u16, u16)>,
    ) -> Claim<'a> {
        let audience = Audience::These(Identity::new(peer).into_iter().collect());
        Claim {
            audience,
            demand,
            cells: cells.into_iter().map(|(first, last)| Cell::of(6, first, last)).collect(),
        }
    }

    /// What holds at a port, asked of each claim.
    fn plainly(claims: &[Claim<'_>], port: u16) -> Kind {
        let holds = |claim: &&Claim<'_>| claim.cells.iter().any(|cell| cell.holds(6, port));
        let active: Vec<&Claim<'_>> = claims.iter().filter(holds).collect();
        let mut states = States::new(&active, usize::MAX);
        states.access(&(0..active.len()).collect::<Vec<_>>())
    }

    #[test]
    fn ranges_say_at_each_port_what_the_claims_there_come_to() {
        let mut state = 1_u32;
        let mut random = move |below: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) % below
        };
        let names = L7Demand::ServerNames(["a.b".parse().unwrap()].into());
        let inspection = L7Demand::Inspection(Arc::default());
        let demands = [demand(1), demand(2), names, inspection];
        let mut governed = 0;
        for _ in 0..400 {
            let claims: Vec<Claim<'_>> = (0..1 + random(6))
                .map(|_| {
                    let edge = |random: &mut dyn FnMut(u32) -> u32| match random(8) {
                        0 => u16::MAX - random(3) as u16,
                        1 => 0,
                        _ => random(40) as u16,
                    };
                    let cells: Vec<(u16, u16)> = (0..1 + random(4))
                        .map(|_| (edge(&mut random), edge(&mut random)))
                        .map(|(one, other)| (one.min(other), one.max(other)))
                        .collect();
                    let demand = demands.get(random(6) as usize);
                    let mut claim = claim(256 + random(3), demand, cells);
                    if random(8) == 0 {
                        claim.audience = Audience::Any;
                    }
                    claim
                })
                .collect();
            let (ranges, _) = ranges(&claims, usize::MAX);
            assert!(ranges.windows(2).all(|two| two[0].last < two[1].first), "{ranges:?}");
            for port in (0..45).chain(u16::MAX - 4..=u16::MAX) {
                let found = ranges.iter().find(|it| (it.first..=it.last).contains(&port));
                let found = found.map(|it| (it.access.clone(), it.tls.clone(), it.inspected.clone()));
                governed += u32::from(found.is_some());
                assert_eq!(found, plainly(&claims, port), "{port}: {ranges:?}");
            }
            let merged = ranges.windows(2).all(|two| {
                let after = (two[1].access.clone(), two[1].tls.clone(), two[1].inspected.clone());
                two[0].last.checked_add(1) != Some(two[1].first) || !two[0].is(&after)
            });
            assert!(merged, "{ranges:?}");
        }
        assert!(governed > 4000, "{governed}");
    }

    /// A list on all ports, and others on every second one: what holds is made twice, not for each range.
    #[test]
    fn what_holds_at_many_ranges_is_made_once_and_counts_once() {
        let (wide, own) = (demand(1000), demand(10));
        let narrow = |peer| claim(peer, None, (0..16_000).map(|port| (2 * port, 2 * port)));
        let claims = [claim(256, Some(&wide), [(1, u16::MAX)]), narrow(257), narrow(258)];
        let (found, count) = ranges(&claims, 10_000);
        assert_eq!((found.len(), count), (31_999, 1001 + 1002));
        assert!(Arc::ptr_eq(&found[0].access, &found[2].access));
        // What differs counts for each.
        let single = |number: u16| claim(300 + u32::from(number), Some(&own), [(2 * number, 2 * number)]);
        let claims: Vec<_> =
            std::iter::once(claim(256, Some(&wide), [(1, u16::MAX)])).chain((1..4).map(single)).collect();
        assert_eq!(ranges(&claims, 10_000).1, 1001 + 3 * (1001 + 11));
    }

    #[test]
    fn beyond_the_bound_nothing_passes_and_who_enforces_it_sees_that_it_is_too_much() {
        let wide = demand(1000);
        let free: Vec<Claim<'_>> = (0..100)
            .map(|number| claim(300 + number, None, [(2 * number as u16, 2 * number as u16)]))
            .collect();
        let mut claims = vec![claim(256, Some(&wide), [(0, u16::MAX)])];
        claims.extend(free);
        let (found, count) = ranges(&claims, 5000);
        assert!(count > 5000 && count < 7000, "{count}");
        let rules = crate::l7::L7Rules { ports: found };
        assert!(rules.parts() > 5000 && rules.parts() < 7000, "{}", rules.parts());
        let last = rules.ports.last().unwrap();
        assert_eq!(last.last, u16::MAX);
        assert_eq!(*last.access, [L7Access { peers: None, http: Some(HttpRules::default()) }]);
    }
}
