//! Two plans compared, flow by flow.
//!
//! A flow from an endpoint to an endpoint passes if the sender's egress and the receiver's ingress allow it; with anyone
//! else at one end, the one endpoint's word is all. Ports are looked at in the ranges between which some ruleset, now or
//! then, makes a difference, so no changed port is missed and none is asked twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh::flow::TrafficDirection;
use mesh::identity::Identity;
use mesh::policy::protocol::{ICMP, ICMPV6, WITH_PORTS};
use mesh::policy::{Asked, Authentication, Match, Outcome, PolicyName, Ruleset};
use node_api::{Change, ChangeKind, Changes, Listed, PortRange, Reason};

use super::classes::{Class, Meeting, Tables};
use super::parties::{Party, Turn};

/// Rows of an answer.
const MOST_ROWS: usize = 1000;
/// Names, ports or policies of a row.
const MOST_NAMES: usize = 50;
/// Pairs of classes that are looked at: some seconds' work.
const MOST_PAIRS: usize = 20_000_000;

/// What changes between any two of the parties.
pub(super) fn changes(parties: &[Party]) -> Changes {
    let tables = Tables::new(parties);
    let classes = tables.classes(parties);
    let found = find(&classes, MOST_PAIRS);
    let row = |(from, to, found): (Vec<u32>, Vec<u32>, Found)| {
        let names = |at: &[u32]| -> BTreeSet<&str> {
            let named = at.iter().filter_map(|at| classes.get(*at as usize));
            named.flat_map(|class| class.names.iter().copied()).collect()
        };
        let listed = |names: BTreeSet<&str>| Listed::first(MOST_NAMES, names.into_iter().map(str::to_owned));
        Change {
            change: found.change,
            from: listed(names(&from)),
            to: listed(names(&to)),
            ports: Listed::first(MOST_NAMES, found.ports),
            direction: if found.decision.at_sender {
                TrafficDirection::Egress
            } else {
                TrafficDirection::Ingress
            },
            reason: found.decision.reason,
            policies: Listed::first(MOST_NAMES, found.decision.policies.iter().cloned()),
        }
    };
    Changes {
        endpoints: parties.iter().filter(|party| party.judged.is_some()).count(),
        peers: parties.len(),
        rows: Listed::first(MOST_ROWS, found.rows.into_iter().map(row)),
        complete: found.complete,
    }
}

/// What changes between two classes, on these ports.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Found {
    change: ChangeKind,
    decision: Decision,
    ports: Vec<PortRange>,
}

/// What decides then.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Decision {
    at_sender: bool,
    reason: Reason,
    policies: Vec<PolicyName>,
}

/// Rows: classes from which, classes to which, and what changes.
struct Rows {
    rows: Vec<(Vec<u32>, Vec<u32>, Found)>,
    complete: bool,
}

/// Compares every pair of which one side is different then, as long as `pairs` lasts.
fn find(classes: &[Class<'_>], mut pairs: usize) -> Rows {
    let all: Vec<u32> = (0..).take(classes.len()).collect();
    let is_touched = |at: &u32| classes.get(*at as usize).is_some_and(|class| class.touched);
    let touched: Vec<u32> = all.iter().copied().filter(is_touched).collect();
    let mut merged: BTreeMap<(Found, Vec<u32>), Vec<u32>> = BTreeMap::new();
    let mut complete = true;
    for (to, to_class) in all.iter().zip(classes) {
        let senders = if to_class.touched { &all } else { &touched };
        let Some(left) = pairs.checked_sub(senders.len()) else {
            complete = false;
            break;
        };
        pairs = left;
        for (found, from) in received(to_class, senders, classes) {
            // What a workload says to itself never leaves it.
            if to_class.size > 1 || from != [*to] {
                merged.entry((found, from)).or_default().push(*to);
            }
        }
    }
    let alone = |at: &[u32]| match at {
        [one] => classes.get(*one as usize).filter(|class| class.size == 1).map(|_| *one),
        _ => None,
    };
    let row = |((found, mut from), mut to): ((Found, Vec<u32>), Vec<u32>)| {
        // Flows to itself were kept until here, for rows to be alike that differ in nothing else.
        match (alone(&from), alone(&to)) {
            (_, Some(to)) => from.retain(|from| *from != to),
            (Some(from), None) => to.retain(|to| *to != from),
            (None, None) => {}
        }
        (from, to, found)
    };
    Rows { rows: merged.into_iter().map(row).collect(), complete }
}

/// What changes for flows to a class, and the senders for whom it does. Pairs that meet alike are compared once.
fn received(to: &Class<'_>, senders: &[u32], classes: &[Class<'_>]) -> BTreeMap<Found, Vec<u32>> {
    let mut meetings: BTreeMap<Meeting, Vec<u32>> = BTreeMap::new();
    for from in senders {
        let Some(class) = classes.get(*from as usize) else { continue };
        if class.judged.is_some() || to.judged.is_some() {
            meetings.entry(Meeting::new(class, to)).or_default().push(*from);
        }
    }
    let mut found: BTreeMap<Found, Vec<u32>> = BTreeMap::new();
    for from in meetings.into_values() {
        let class = from.first().and_then(|from| classes.get(*from as usize));
        for change in class.map(|class| Pair::new(class, to).changes()).into_iter().flatten() {
            found.entry(change).or_default().extend_from_slice(&from);
        }
    }
    found.values_mut().for_each(|from| from.sort_unstable());
    found
}

/// One end's word on a flow, now and then.
struct Word<'a> {
    at_sender: bool,
    ruleset: Turn<&'a Ruleset>,
    peer: Turn<Identity>,
}

/// What becomes of a packet, the strictest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Verdict {
    Denied,
    Authenticated,
    Allowed,
}

impl Verdict {
    /// How it changes.
    fn to(self, then: Self) -> Option<ChangeKind> {
        Some(match (self, then) {
            (Self::Allowed, Self::Denied) => ChangeKind::AllowedToDenied,
            (Self::Authenticated, Self::Denied) => ChangeKind::AuthenticatedToDenied,
            (Self::Allowed, Self::Authenticated) => ChangeKind::AllowedToAuthenticated,
            (Self::Denied, Self::Authenticated) => ChangeKind::DeniedToAuthenticated,
            (Self::Denied, Self::Allowed) => ChangeKind::DeniedToAllowed,
            (Self::Authenticated, Self::Allowed) => ChangeKind::AuthenticatedToAllowed,
            (Self::Denied, Self::Denied)
            | (Self::Authenticated, Self::Authenticated)
            | (Self::Allowed, Self::Allowed) => return None,
        })
    }
}

impl<'a> Word<'a> {
    fn direction(&self) -> TrafficDirection {
        if self.at_sender { TrafficDirection::Egress } else { TrafficDirection::Ingress }
    }

    fn asked(&self, outcome: Option<&Outcome>, peer: Identity) -> Asked {
        outcome.map_or(Asked::Nothing, |outcome| outcome.authentication.of(peer, self.direction()))
    }

    /// What becomes of a packet here, now and then, and the entry that decides then.
    fn judge(&self, protocol: u8, port: u16) -> (Turn<Verdict>, Option<&'a Outcome>) {
        let judge = |ruleset: &'a Ruleset, peer| {
            let (allowed, outcome) = ruleset.judge(peer, protocol, port);
            let verdict = match (allowed, self.asked(outcome, peer)) {
                (false, _) | (true, Asked::NoPrincipal) => Verdict::Denied,
                (true, Asked::Proof) => Verdict::Authenticated,
                (true, Asked::Nothing) => Verdict::Allowed,
            };
            (verdict, outcome)
        };
        let (now, _) = judge(self.ruleset.now, self.peer.now);
        let (then, outcome) = judge(self.ruleset.then, self.peer.then);
        (Turn { now, then }, outcome)
    }

    /// The entries that can decide, now or then.
    fn entries(&self) -> [impl Iterator<Item = (&Match, &Outcome)>; 2] {
        [(self.ruleset.now, self.peer.now), (self.ruleset.then, self.peer.then)]
            .map(|(ruleset, peer)| about(ruleset, None).chain(about(ruleset, Some(peer))))
    }

    /// Whether then every packet is judged as it is now, as far as entries tell.
    fn is_same(&self) -> bool {
        let [now, then] = self.entries().map(|entries| {
            entries.map(|(key, outcome)| {
                let said = (outcome.verdict(), outcome.authentication);
                (key.identity.is_some(), key.protocol, key.port, key.port_bits, said)
            })
        });
        let asked = |peer| Authentication::Required.of(peer, self.direction());
        now.eq(then) && asked(self.peer.now) == asked(self.peer.then)
    }
}

/// The entries of an identity.
fn about(ruleset: &Ruleset, identity: Option<Identity>) -> impl Iterator<Item = (&Match, &Outcome)> {
    let first = Match { identity, protocol: None, port: 0, port_bits: 0 };
    let last = Match { identity, protocol: Some(u8::MAX), port: u16::MAX, port_bits: u8::MAX };
    ruleset.entries.range(first..=last)
}

/// The words that decide between two classes: the sender's, then the receiver's.
struct Pair<'a>(Vec<Word<'a>>);

impl<'a> Pair<'a> {
    fn new(from: &Class<'a>, to: &Class<'a>) -> Self {
        let sender = from.judged.map(|judged| (true, &judged.egress, to.identity));
        let receiver = to.judged.map(|judged| (false, &judged.ingress, from.identity));
        let word = |(at_sender, ruleset, peer): (bool, &'a Turn<Arc<Ruleset>>, _)| Word {
            at_sender,
            ruleset: Turn { now: ruleset.now.as_ref(), then: ruleset.then.as_ref() },
            peer,
        };
        Self(sender.into_iter().chain(receiver).map(word).collect())
    }

    fn changes(&self) -> Vec<Found> {
        if self.0.iter().all(Word::is_same) {
            return Vec::new();
        }
        let boundaries = self.boundaries();
        let mut by_decision: BTreeMap<(ChangeKind, Decision), Ports> = BTreeMap::new();
        // Any protocol that nobody names stands for all of them.
        let unnamed = (0..=u8::MAX).rev().find(|protocol| !boundaries.contains_key(protocol));
        if let Some(key) = unnamed.and_then(|protocol| self.change(protocol, 0)) {
            by_decision.entry(key).or_default().unnamed = true;
        }
        for (protocol, starts) in &boundaries {
            for (first, last) in ranges(*protocol, starts) {
                if let Some(key) = self.change(*protocol, first) {
                    by_decision.entry(key).or_default().add(*protocol, first, last);
                }
            }
        }
        let named: Vec<u8> = boundaries.into_keys().collect();
        let found = by_decision.into_iter();
        found
            .map(|((change, decision), ports)| Found { change, decision, ports: ports.ranges(&named) })
            .collect()
    }

    /// First ports of the ranges that entries tell apart, by the protocols that they name.
    fn boundaries(&self) -> BTreeMap<u8, BTreeSet<u16>> {
        let mut boundaries: BTreeMap<u8, BTreeSet<u16>> = BTreeMap::new();
        for (key, _) in self.0.iter().flat_map(Word::entries).flatten() {
            let Some(protocol) = key.protocol else { continue };
            let starts = boundaries.entry(protocol).or_insert_with(|| [0].into());
            starts.insert(key.port);
            starts.extend(last_port(key).checked_add(1));
        }
        boundaries
    }

    /// How a packet's verdict changes, and what decides then: who denies it, or who denied it and does no longer.
    fn change(&self, protocol: u8, port: u16) -> Option<(ChangeKind, Decision)> {
        let judged = self.0.iter().map(|word| (word, word.judge(protocol, port)));
        let judged: Vec<_> = judged.collect();
        let now = judged.iter().map(|(_, (verdict, _))| verdict.now).min()?;
        let then = judged.iter().map(|(_, (verdict, _))| verdict.then).min()?;
        let change = now.to(then)?;
        let strictest = |verdict: &Turn<Verdict>| (verdict.now == now, verdict.then == then);
        // Whose word makes the difference: of several the first.
        let decides = |wanted: fn((bool, bool)) -> bool| {
            judged.iter().find(|(_, (verdict, _))| wanted(strictest(verdict)))
        };
        let (word, (_, outcome)) = match then < now {
            true => decides(|(_, then)| then)?,
            false => decides(|(now, then)| now && then).or_else(|| decides(|(now, _)| now))?,
        };
        Some((change, decision(word, *outcome)))
    }
}

fn decision(word: &Word<'_>, outcome: Option<&Outcome>) -> Decision {
    let ruleset = word.ruleset.then;
    let asked = word.asked(outcome, word.peer.then);
    let reason = match outcome {
        Some(Outcome { allow: true, .. }) if asked == Asked::NoPrincipal => Reason::NoPrincipal,
        Some(Outcome { allow: true, .. }) if asked == Asked::Proof => Reason::Authentication,
        Some(Outcome { allow: true, by, .. }) if !by.is_empty() => Reason::AllowRule,
        Some(Outcome { allow: true, .. }) if ruleset.enforced => Reason::Node,
        Some(Outcome { allow: true, .. }) => Reason::NotEnforced,
        Some(Outcome { needs: Some(_), .. }) => Reason::Unmet,
        Some(_) => Reason::DenyRule,
        None => Reason::DefaultDeny,
    };
    let policies = outcome.map_or_else(|| ruleset.denied_by_default.clone(), |outcome| outcome.by.to_vec());
    Decision { at_sender: word.at_sender, reason, policies }
}

fn last_port(key: &Match) -> u16 {
    key.port | u16::MAX.checked_shr(key.port_bits.into()).unwrap_or(0)
}

/// The last port or type of a protocol. One without ports has port 0 only.
fn greatest(protocol: u8) -> u16 {
    match protocol {
        ICMP | ICMPV6 => u8::MAX.into(),
        protocol if WITH_PORTS.contains(&protocol) => u16::MAX,
        _ => 0,
    }
}

/// The ranges that begin at these ports.
fn ranges(protocol: u8, starts: &BTreeSet<u16>) -> impl Iterator<Item = (u16, u16)> {
    let greatest = greatest(protocol);
    let starts = starts.range(..=greatest);
    let ends = starts.clone().skip(1).map(|next| next.saturating_sub(1)).chain([greatest]);
    starts.copied().zip(ends)
}

/// Ports on which the same changes.
#[derive(Default)]
struct Ports {
    /// All protocols that nobody names.
    unnamed: bool,
    /// In order; neighbours are one.
    named: BTreeMap<u8, Vec<(u16, u16)>>,
}

impl Ports {
    fn add(&mut self, protocol: u8, first: u16, last: u16) {
        let ranges = self.named.entry(protocol).or_default();
        match ranges.last_mut() {
            Some((_, end)) if end.checked_add(1) == Some(first) => *end = last,
            _ => ranges.push((first, last)),
        }
    }

    /// `protocols` are those that somebody names.
    fn ranges(mut self, protocols: &[u8]) -> Vec<PortRange> {
        let mut all = Vec::new();
        if self.unnamed {
            let is_whole = |protocol: &u8| {
                self.named.get(protocol).is_some_and(|ranges| *ranges == [(0, greatest(*protocol))])
            };
            let except: Vec<u8> = protocols.iter().copied().filter(|protocol| !is_whole(protocol)).collect();
            self.named.retain(|protocol, _| except.contains(protocol));
            all.push(PortRange { protocol: None, except, first: 0, last: u16::MAX });
        }
        for (protocol, ranges) in self.named {
            let range = |(first, last)| {
                let last = if last == greatest(protocol) && first == 0 { u16::MAX } else { last };
                PortRange { protocol: Some(protocol), except: Vec::new(), first, last }
            };
            all.extend(ranges.into_iter().map(range));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::{Bench, SHIPS};
    use crate::what_if::parties::parties;

    #[test]
    fn when_the_pairs_are_too_many_the_answer_says_so() {
        let rule1 = include_str!("../../../examples/star-wars/rule1.yaml");
        let (now, then) = (Bench::new("", &SHIPS), Bench::new(rule1, &SHIPS));
        let parties = parties((&now.world, &now.planned.plan), (&then.world, &then.planned.plan));
        let tables = Tables::new(&parties);
        let classes = tables.classes(&parties);
        let whole = find(&classes, MOST_PAIRS);
        assert!(whole.complete && !whole.rows.is_empty());
        let cut = find(&classes, classes.len() - 1);
        assert!(!cut.complete && cut.rows.len() < whole.rows.len());
    }
}
