//! Parties that fare alike, so that ten thousand of them are a few.
//!
//! Two parties are one class if they are judged by the same rulesets and no ruleset, now or then, tells their identities
//! apart.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh::identity::Identity;
use mesh::policy::{Match, Needs, Outcome, PolicyName, Ruleset};

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
    /// Something about them is different then.
    pub(super) touched: bool,
}

/// Numbers of rulesets: each `Arc` is one, for a plan shares equal ones.
type Numbers<'a> = BTreeMap<*const Ruleset, (u32, &'a Ruleset)>;
/// What an identity is to each ruleset that names it: (ruleset, table).
type Signature = Vec<(u32, u32)>;

/// The classes, in order of their first party.
pub(super) fn classes(parties: &[Party]) -> Vec<Class<'_>> {
    let judged = || parties.iter().filter_map(|party| party.judged.as_ref());
    let now = numbers(judged().flat_map(|judged| [&judged.ingress.now, &judged.egress.now]));
    let then = numbers(judged().flat_map(|judged| [&judged.ingress.then, &judged.egress.then]));
    let signatures = Turn { now: signatures(&now), then: signatures(&then) };
    let number =
        |numbers: &Numbers<'_>, ruleset| numbers.get(&Arc::as_ptr(ruleset)).map(|(number, _)| *number);
    let mut equal = BTreeMap::new();
    let mut by_key = BTreeMap::new();
    let mut classes: Vec<Class<'_>> = Vec::new();
    for party in parties {
        let judged = party.judged.as_ref().map(|judged| {
            [&judged.ingress, &judged.egress]
                .map(|turn| Turn { now: number(&now, &turn.now), then: number(&then, &turn.then) })
        });
        let signature = Turn {
            now: signatures.now.get(&party.identity.now),
            then: signatures.then.get(&party.identity.then),
        };
        let at = *by_key.entry((signature, judged)).or_insert(classes.len());
        if let Some(class) = classes.get_mut(at) {
            class.names.insert(&party.name);
            class.size += 1;
            class.touched |= party.identity.now != party.identity.then;
            continue;
        }
        let sides = party.judged.iter().flat_map(|judged| [&judged.ingress, &judged.egress]);
        let changed = sides.fold(false, |changed, side| {
            let key = (Arc::as_ptr(&side.now), Arc::as_ptr(&side.then));
            let equal = *equal.entry(key).or_insert_with(|| side.now == side.then);
            changed | !equal
        });
        classes.push(Class {
            names: BTreeSet::from([party.name.as_str()]),
            identity: party.identity,
            judged: party.judged.as_ref(),
            size: 1,
            touched: changed || party.identity.now != party.identity.then,
        });
    }
    classes
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
type Entry = (Option<u8>, u16, u8, bool, Option<Needs>, *const [PolicyName]);

fn signatures(numbers: &Numbers<'_>) -> BTreeMap<Identity, Signature> {
    let mut signatures: BTreeMap<Identity, Signature> = BTreeMap::new();
    for (ruleset, rules) in numbers.values() {
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
    (key.protocol, key.port, key.port_bits, outcome.allow, outcome.needs, Arc::as_ptr(&outcome.by))
}
