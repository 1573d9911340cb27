//! Which ruleset has which id in the kernel.
//!
//! Equal rulesets share an id. An id is fresh when it is published, immutable from then on, and its entries go only
//! after nobody can look them up any more. Nothing about this is stored outside the kernel: after a restart the entries
//! found there are compared with what the plan wants, and what equals is adopted under its id.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use abi::{RuleKey, RuleValue};
use maps::Prefix;
use mesh::policy::{Match, Outcome, PolicyName, Ruleset};

use super::cookie::{Cookies, Names};

/// Entries of one id as they stand in the kernel.
type Table = BTreeMap<Prefix<RuleKey>, RuleValue>;

enum Held {
    /// Published or adopted by us.
    Known(Arc<Ruleset>),
    /// Left by an earlier agent; nobody has asked for its content yet.
    Found(Table),
}

/// The rulesets in the kernel.
#[derive(Default)]
pub(crate) struct Rulesets {
    held: BTreeMap<u32, Held>,
    /// By digest and content: large rulesets differ late.
    by_content: BTreeMap<(u64, Arc<Ruleset>), u32>,
    /// Removed last time: events on their way may still name them.
    fading: BTreeMap<u32, Arc<Ruleset>>,
    cookies: Cookies,
    highest: u32,
}

impl Rulesets {
    /// From the entries of `RULES` and the ids that endpoints point at (an empty ruleset has no entry).
    pub(crate) fn found(
        entries: Vec<(Prefix<RuleKey>, RuleValue)>,
        assigned: impl Iterator<Item = u32>,
    ) -> Self {
        let mut rulesets = Self { highest: assigned.max().unwrap_or(0), ..Self::default() };
        let mut tables: BTreeMap<u32, Table> = BTreeMap::new();
        for (prefix, value) in entries {
            let id = u32::from_be_bytes(prefix.data.ruleset);
            rulesets.highest = rulesets.highest.max(id);
            rulesets.cookies.found(value.cookie);
            tables.entry(id).or_default().insert(prefix, value);
        }
        rulesets.held = tables.into_iter().map(|(id, table)| (id, Held::Found(table))).collect();
        rulesets
    }

    /// Whether `id` holds exactly this content; adopts it if it was left by an earlier agent and does.
    pub(crate) fn holds(&mut self, id: u32, content: &Arc<Ruleset>) -> bool {
        match self.held.get(&id) {
            Some(Held::Known(known)) => known == content,
            Some(Held::Found(table)) => match pairs(id, table, content) {
                Some(pairs) if self.cookies.learn(&pairs) => self.know(id, content.clone()),
                _ => false,
            },
            None => id != 0 && content.entries.is_empty() && self.know(id, content.clone()),
        }
    }

    fn know(&mut self, id: u32, content: Arc<Ruleset>) -> bool {
        self.held.insert(id, Held::Known(content.clone()));
        self.by_content.entry((content.digest(), content)).or_insert(id);
        true
    }

    /// The id that holds this content, given with its digest.
    pub(crate) fn id(&self, content: &(u64, Arc<Ruleset>)) -> Option<u32> {
        self.by_content.get(content).copied()
    }

    /// An id that was never used.
    pub(crate) fn fresh(&mut self) -> u32 {
        self.highest += 1;
        self.highest
    }

    /// The entries of a ruleset under an id.
    pub(crate) fn entries(&mut self, id: u32, content: &Ruleset) -> Vec<(Prefix<RuleKey>, RuleValue)> {
        let entry = |(matched, outcome): (&Match, &Outcome)| (prefix(id, matched), self.value(outcome));
        content.entries.iter().map(entry).collect()
    }

    fn value(&mut self, outcome: &Outcome) -> RuleValue {
        let cookie = self.cookies.number(&outcome.by);
        RuleValue {
            cookie,
            verdict: outcome.verdict() as u8,
            requirement: outcome.requirement(),
            zero: [0; 2],
        }
    }

    /// The writing of an id begins: from now on its entries are ours to remove.
    pub(crate) fn begin(&mut self, id: u32, content: &Arc<Ruleset>) {
        self.held.insert(id, Held::Known(content.clone()));
    }

    /// The writing of an id has ended: others may share it.
    pub(crate) fn publish(&mut self, id: u32, content: &Arc<Ruleset>) {
        self.by_content.insert((content.digest(), content.clone()), id);
    }

    /// The ids not in `used`, and the entries each has at most.
    pub(crate) fn unused(&self, used: &BTreeSet<u32>) -> Vec<(u32, Vec<Prefix<RuleKey>>)> {
        let unused = self.held.iter().filter(|(id, _)| !used.contains(id));
        unused
            .map(|(id, held)| match held {
                Held::Known(content) => (*id, content.entries.keys().map(|m| prefix(*id, m)).collect()),
                Held::Found(table) => (*id, table.keys().copied().collect()),
            })
            .collect()
    }

    /// The entries of these ids are gone.
    pub(crate) fn removed(&mut self, ids: impl Iterator<Item = u32>) {
        self.fading.clear();
        for id in ids {
            if let Some(Held::Known(content)) = self.held.remove(&id) {
                let key = (content.digest(), content);
                if self.by_content.get(&key) == Some(&id) {
                    self.by_content.remove(&key);
                }
                self.fading.insert(id, key.1);
            }
        }
        let used =
            self.known().flat_map(|(_, content)| content.entries.values().map(|outcome| outcome.by.clone()));
        let used = used.collect();
        self.cookies.retire(&used);
    }

    fn known(&self) -> impl Iterator<Item = (u32, &Arc<Ruleset>)> {
        self.held.iter().filter_map(|(id, held)| match held {
            Held::Known(content) => Some((*id, content)),
            Held::Found(_) => None,
        })
    }

    /// Every id an event may carry, with its content.
    pub(crate) fn contents(&self) -> BTreeMap<u32, Arc<Ruleset>> {
        let fading = self.fading.iter().map(|(id, content)| (*id, content.clone()));
        fading.chain(self.known().map(|(id, content)| (id, content.clone()))).collect()
    }

    /// What every cookie stands for.
    pub(crate) fn cookies(&self) -> BTreeMap<u32, Arc<[PolicyName]>> {
        self.cookies.names().clone()
    }
}

/// Cookies in the kernel and the names they must stand for, if the table is the content in all else.
fn pairs<'a>(id: u32, table: &Table, content: &'a Ruleset) -> Option<Vec<(u32, &'a Names)>> {
    if table.len() != content.entries.len() {
        return None;
    }
    let pair = |(matched, outcome): (&Match, &'a Outcome)| {
        let value = table.get(&prefix(id, matched))?;
        let same = value.verdict == outcome.verdict() as u8 && value.requirement == outcome.requirement();
        same.then_some((value.cookie, &outcome.by))
    };
    content.entries.iter().map(pair).collect()
}

/// How a match stands in the trie.
fn prefix(id: u32, matched: &Match) -> Prefix<RuleKey> {
    let identity = matched.identity.map_or(0, mesh::identity::Identity::number);
    match matched.protocol {
        None => Prefix { bits: RuleKey::ANY_PROTOCOL, data: RuleKey::exact(id, identity, 0, 0) },
        Some(protocol) => Prefix {
            bits: RuleKey::ANY_PORT + u32::from(matched.port_bits),
            data: RuleKey::exact(id, identity, protocol, matched.port),
        },
    }
}
