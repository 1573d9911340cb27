//! Parties that fare alike, so that ten thousand of them are a few.
//!
//! Two parties are one class if they are judged by the same rulesets and no ruleset, now or then, tells their identities
//! apart, nor does it matter which of them is asked to authenticate.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh::flow::TrafficDirection;
use mesh::identity::Identity;
use mesh::policy::{Asked, Authentication, Match, Needs, Outcome, PolicyName, Ruleset};

use super::parties::{Judged, Party, Turn};

/// Parties that fare alike.
#[derive(Debug)]
pub(super) struct Class<'a> {
    /// Their names.
    pub(super) names: BTreeSet<&'a str>,
    /// Any one of their identities stands for all.
    pub(super) identity: Turn<Identity>,
    /// What they are judged by, if they are endpoints.
    pub(super) judged: Option<&'a Judged>,
    /// How many they are.
    pub(super) size: usize,
    /// What an identity of theirs is to each ruleset.
    signature: Turn<Option<&'a Signature>>,
    /// Numbers of the rulesets they are judged by.
    numbers: Option<Sides<Numbered>>,
    /// Something about them is different then.
    pub(super) touched: bool,
}

/// The rulesets of an endpoint, by number.
type Numbered = Turn<Option<u32>>;

/// Both directions of an endpoint.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Sides<T> {
    ingress: T,
    egress: T,
}

/// All that the verdicts between two classes depend on, where the receiver is given.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Meeting {
    /// The sender's ruleset, and what the receiver is to it.
    egress: Option<(Numbered, Turn<Option<u32>>)>,
    /// What the sender is to the receiver's ruleset.
    ingress: Option<Turn<Option<u32>>>,
    /// What comes of it if the receiver's ruleset asks the sender to authenticate.
    asked: Turn<Asked>,
}

impl Meeting {
    pub(super) fn new(from: &Class<'_>, to: &Class<'_>) -> Self {
        let egress = from.numbers.map(|own| (own.egress, to.tables(own.egress)));
        Self { egress, ingress: to.numbers.map(|own| from.tables(own.ingress)), asked: asked(from.identity) }
    }
}

impl Class<'_> {
    /// What they are to a ruleset: the number of a table, none where it does not name them.
    fn tables(&self, ruleset: Numbered) -> Turn<Option<u32>> {
        let table = |signature: Option<&Signature>, ruleset: Option<u32>| {
            let (signature, ruleset) = (signature?, ruleset?);
            let at = signature.binary_search_by_key(&ruleset, |(ruleset, _)| *ruleset).ok()?;
            signature.get(at).map(|(_, table)| *table)
        };
        Turn { now: table(self.signature.now, ruleset.now), then: table(self.signature.then, ruleset.then) }
    }
}

/// Numbers of rulesets: each `Arc` is one, for a plan shares equal ones.
type Numbers<'a> = BTreeMap<*const Ruleset, (u32, &'a Ruleset)>;
/// What an identity is to each ruleset that names it: (ruleset, table), in order.
type Signature = Vec<(u32, u32)>;

/// What is known of rulesets and identities before they are classed.
pub(super) struct Tables<'a> {
    numbers: Turn<Numbers<'a>>,
    signatures: Turn<BTreeMap<Identity, Signature>>,
}

impl<'a> Tables<'a> {
    pub(super) fn new(parties: &'a [Party]) -> Self {
        let judged = || parties.iter().filter_map(|party| party.judged.as_ref());
        let numbers = Turn {
            now: numbers(judged().flat_map(|judged| [&judged.ingress.now, &judged.egress.now])),
            then: numbers(judged().flat_map(|judged| [&judged.ingress.then, &judged.egress.then])),
        };
        let signatures = Turn { now: signatures(&numbers.now), then: signatures(&numbers.then) };
        Self { numbers, signatures }
    }

    fn numbered(&self, judged: &Judged) -> Sides<Numbered> {
        let of = |numbers: &Numbers<'_>, ruleset: &Arc<Ruleset>| {
            numbers.get(&Arc::as_ptr(ruleset)).map(|(number, _)| *number)
        };
        let side = |side: &Turn<Arc<Ruleset>>| Turn {
            now: of(&self.numbers.now, &side.now),
            then: of(&self.numbers.then, &side.then),
        };
        Sides { ingress: side(&judged.ingress), egress: side(&judged.egress) }
    }

    /// The classes, in order of their first party.
    pub(super) fn classes(&'a self, parties: &'a [Party]) -> Vec<Class<'a>> {
        let mut equal = BTreeMap::new();
        let mut is_changed = |side: &Turn<Arc<Ruleset>>| {
            let key = (Arc::as_ptr(&side.now), Arc::as_ptr(&side.then));
            !*equal.entry(key).or_insert_with(|| side.now == side.then)
        };
        let mut by_key = BTreeMap::new();
        let mut classes: Vec<Class<'a>> = Vec::new();
        for party in parties {
            let numbers = party.judged.as_ref().map(|judged| self.numbered(judged));
            let signature = Turn {
                now: self.signatures.now.get(&party.identity.now),
                then: self.signatures.then.get(&party.identity.then),
            };
            let is_other = party.identity.now != party.identity.then;
            let key = (signature, numbers, asked(party.identity));
            let at = *by_key.entry(key).or_insert(classes.len());
            if let Some(class) = classes.get_mut(at) {
                class.names.insert(&party.name);
                class.size += 1;
                class.touched |= is_other;
                continue;
            }
            let mut sides = party.judged.iter().flat_map(|judged| [&judged.ingress, &judged.egress]);
            classes.push(Class {
                names: BTreeSet::from([party.name.as_str()]),
                identity: party.identity,
                judged: party.judged.as_ref(),
                size: 1,
                signature,
                numbers,
                touched: is_other || sides.any(&mut is_changed),
            });
        }
        classes
    }
}

/// What comes of it where they must authenticate: the same for all whom authentication does not tell apart.
fn asked(identity: Turn<Identity>) -> Turn<Asked> {
    let asked = |identity| Authentication::Required.of(identity, TrafficDirection::Ingress);
    Turn { now: asked(identity.now), then: asked(identity.then) }
}

fn numbers<'a>(rulesets: impl Iterator<Item = &'a Arc<Ruleset>>) -> Numbers<'a> {
    let mut numbers = Numbers::new();
    for ruleset in rulesets {
        let next = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
        numbers.entry(Arc::as_ptr(ruleset)).or_insert((next, ruleset));
    }
    numbers
}

/// An entry as it stands in a table: where it matches, and what it says. Outcomes that are equal mostly share their
/// list of policies; where they do not, classes are smaller than they could be and as right.
type Entry = (Option<u8>, u16, u8, (bool, bool), Authentication, Option<Needs>, *const [PolicyName]);

fn signatures(numbers: &Numbers<'_>) -> BTreeMap<Identity, Signature> {
    let mut signatures: BTreeMap<Identity, Signature> = BTreeMap::new();
    let mut in_order: Vec<_> = numbers.values().collect();
    in_order.sort_unstable_by_key(|(number, _)| *number);
    for (ruleset, rules) in in_order {
        let mut tables: BTreeMap<Vec<Entry>, u32> = BTreeMap::new();
        let mut entries = rules.entries.iter().peekable();
        while let Some((key, outcome)) = entries.next() {
            let mut table = vec![entry(key, outcome)];
            while let Some((key, outcome)) = entries.next_if(|(next, _)| next.identity == key.identity) {
                table.push(entry(key, outcome));
            }
            let next = u32::try_from(tables.len()).unwrap_or(u32::MAX);
            let table = *tables.entry(table).or_insert(next);
            if let Some(identity) = key.identity {
                signatures.entry(identity).or_default().push((*ruleset, table));
            }
        }
    }
    signatures
}

fn entry(key: &Match, outcome: &Outcome) -> Entry {
    (
        key.protocol,
        key.port,
        key.port_bits,
        (outcome.allow, outcome.proxied),
        outcome.authentication,
        outcome.needs,
        Arc::as_ptr(&outcome.by),
    )
}
